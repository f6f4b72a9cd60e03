package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestModel shows that the WAL does what it promises whatever ends it: four logs are
// appended to, cut, cleared, dropped at once, with random sizes and in small segments, until the WAL is
// closed, an operation fails, the process is killed or the power cut; in the middle of
// a start, too. After each, each log must be in a state that its own list of acknowledged and
// unacknowledged operations allows. It takes the numbers of ends from ABACUS_WAL_CUTS, the seed from ABACUS_WAL_SEED.
func TestModel(t *testing.T) {
	cuts, seed := 2000, rand.Uint64()
	if testing.Short() {
		cuts = 300
	}
	if s := os.Getenv("ABACUS_WAL_CUTS"); s != "" {
		cuts, _ = strconv.Atoi(s)
	}
	if s := os.Getenv("ABACUS_WAL_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("ABACUS_WAL_SEED=%d ABACUS_WAL_CUTS=%d", seed, cuts)
	rng := rand.New(rand.NewPCG(seed, 1))
	var all Stats
	ends := map[string]int{}
	for n := 0; n < cuts && !t.Failed(); {
		m := newWorld(t, rng)
		for i := 0; i < 200 && n < cuts && !t.Failed(); i++ {
			ends[m.live()]++
			n++
		}
		all.Commits += m.stats.Commits
		all.Requests += m.stats.Requests
		all.CopiedBytes += m.stats.CopiedBytes
		all.WrittenBytes += m.stats.WrittenBytes
		all.SegmentsMade += m.stats.SegmentsMade
		ends["segments put aside"] += m.renamed[0]
		ends["segments used again"] += m.renamed[1]
	}
	t.Logf("ends: %v; %d commits for %d requests, %d MiB, of which %d MiB copied", ends, all.Commits, all.Requests, all.WrittenBytes>>20, all.CopiedBytes>>20)
	if all.CopiedBytes == 0 || all.SegmentsMade == 0 || ends["segments put aside"] == 0 || ends["segments used again"] == 0 || all.Commits >= all.Requests {
		t.Errorf("nothing was copied, made, put aside, used again or shared: %+v", all)
	}
}

// world is a WAL that ends and begins again, and what it should hold.
type world struct {
	t       *testing.T
	rng     *rand.Rand
	fs      *memFS
	bytes   int64
	logs    []*modelLog
	id      uint64
	stats   Stats  // summed up
	renamed [2]int // how many segments were put aside, and spare ones used again
	history []string
}

func newWorld(t *testing.T, rng *rand.Rand) *world {
	m := &world{t: t, rng: rng, fs: newMemFS(), bytes: []int64{16 << 10, 24<<10 + 4, 64 << 10}[rng.IntN(3)]}
	for i := range 4 {
		m.logs = append(m.logs, &modelLog{m: m, name: Name{uint32(i % 2), fmt.Sprintf("replica-%d", i)}, states: []logState{{}}})
	}
	return m
}

// modelLog has the states that a log may be in: the first is what was acknowledged, each further one
// is after one more operation that was not.
type modelLog struct {
	m      *world
	name   Name
	states []logState
}

// logState is a log's entries from low on. Those before first were deleted, but may be there again. No
// entries: it is empty.
type logState struct {
	low, first uint64
	ids        []uint64
}

func (s logState) last() uint64 { return s.low + uint64(len(s.ids)) - 1 }

// modelEntry is the entry that an id stands for: all of it follows from the id.
func modelEntry(index, id uint64) *raft.Log {
	size := int(id >> 8 % 300)
	switch r := id % 100; {
	case r < 5:
		size = 0
	case r >= 99:
		size = int(id >> 8 % 70_000)
	case r >= 95:
		size = int(id >> 8 % 9_000)
	case r >= 80:
		size = int(id >> 8 % 2_000)
	}
	e := &raft.Log{Index: index, Term: id, Type: raft.LogType(id % 5)}
	if size > 0 {
		e.Data = bytes.Repeat(binary.BigEndian.AppendUint64(nil, id), size/8+1)[:size]
	}
	if id%3 == 0 {
		e.Extensions = binary.BigEndian.AppendUint64(nil, ^id)
	}
	if id%2 == 0 {
		e.AppendedAt = time.Unix(0, int64(id>>1|1))
	}
	return e
}

func sameEntry(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

// live is one life of the WAL. It returns how it ended.
func (m *world) live() (end string) {
	if m.rng.IntN(4) == 0 { // the start itself does not get far
		m.fs.cutAt = m.fs.ops + 1 + m.rng.IntN(25)
	}
	fatal := func(error) {}
	w, err := Open(m.fs, Config{SegmentBytes: m.bytes, Fatal: fatal})
	if err != nil {
		if !errors.Is(err, errOff) {
			m.t.Fatalf("open after %q: %v", m.history, err)
		}
		return m.end(m.rng.IntN(4) > 0, "start cut")
	}
	if m.id != 0 && w.ID() != m.id {
		m.t.Fatalf("id %x was %x", w.ID(), m.id)
	}
	m.id = w.ID()
	m.fs.mu.Lock()
	m.fs.cutAt = 0
	off := m.fs.off
	m.fs.mu.Unlock()
	if off { // just after the start
		w.Close()
		return m.end(m.rng.IntN(4) > 0, "start cut")
	}
	for _, l := range m.logs {
		l.recovered(w, len(m.history) > 0 && m.history[len(m.history)-1] == "closed")
	}
	m.fs.mu.Lock()
	kind := m.rng.IntN(8)
	at := m.fs.ops + 1 + m.rng.IntN(120)
	switch {
	case kind < 6:
		m.fs.cutAt = at
	case kind == 6:
		m.fs.fail = m.failAt(at)
	}
	m.fs.hook = func(op fsOp, name string) {
		if op == opRename {
			m.fs.mu.Lock()
			defer m.fs.mu.Unlock()
			if _, ok := parseSegmentName(name); ok {
				m.renamed[0]++
			} else if strings.HasPrefix(name, sparePrefix) {
				m.renamed[1]++
			}
		}
	}
	m.fs.mu.Unlock()

	var workers, readers sync.WaitGroup
	stop := make(chan struct{})
	for i, l := range m.logs {
		ops := 3 + m.rng.IntN(25)
		if i == 0 {
			ops = m.rng.IntN(2) // it stands still: it has to be copied forward
		}
		rng := rand.New(rand.NewPCG(m.rng.Uint64(), 2))
		workers.Go(func() { l.work(w, rng, ops) })
	}
	seed := m.rng.Uint64()
	readers.Go(func() { m.read(w, rand.New(rand.NewPCG(seed, 3)), stop) })
	workers.Wait()
	close(stop)
	readers.Wait()
	if kind == 7 {
		if err := w.Close(); err != nil {
			m.t.Errorf("close: %v", err)
		}
		m.add(w.Stats())
		m.fs.restart()
		m.history = append(m.history, "closed")
		return "closed"
	}
	m.fs.kill() // if it is not off yet
	w.Close()
	m.add(w.Stats())
	if kind == 6 {
		return m.end(false, "failed")
	}
	return m.end(kind < 5, "")
}

func (m *world) end(cut bool, how string) string {
	switch {
	case !cut:
		m.fs.restart()
		how += " killed"
	case m.rng.IntN(2) == 0:
		m.fs.powerCut(m.rng, true)
		how += " cut"
	default:
		m.fs.powerCut(m.rng, false)
		how += " cut, names at random"
	}
	if m.history = append(m.history, how); len(m.history) > 20 {
		m.history = m.history[1:]
	}
	return how
}

func (m *world) add(s Stats) {
	m.stats.Commits += s.Commits
	m.stats.Requests += s.Requests
	m.stats.CopiedBytes += s.CopiedBytes
	m.stats.WrittenBytes += s.WrittenBytes
	m.stats.SegmentsMade += s.SegmentsMade
}

// failAt fails one operation. fs.mu is held when it is called.
func (m *world) failAt(at int) func(fsOp, string) error {
	err := []error{syscall.EIO, syscall.ENOSPC, errShort}[m.rng.IntN(3)]
	return func(op fsOp, _ string) error {
		if op == opRead || op == opOpen || m.fs.ops < at {
			return nil
		}
		at = 1 << 62
		return err
	}
}

// read reads what there is, while segments come and go.
func (m *world) read(w *WAL, rng *rand.Rand, stop chan struct{}) {
	for range 100 {
		select {
		case <-stop:
			return
		default:
		}
		l := w.Replica(m.logs[rng.IntN(len(m.logs))].name)
		first, _ := l.FirstIndex()
		last, _ := l.LastIndex()
		if first == 0 || last < first {
			continue
		}
		var e raft.Log
		i := first + rng.Uint64N(last-first+1)
		if err := l.GetLog(i, &e); err == nil && !sameEntry(&e, modelEntry(i, e.Term)) {
			m.t.Errorf("entry %d of %v is not whole", i, l.name)
		} else if err != nil && !errors.Is(err, raft.ErrLogNotFound) && !errors.Is(err, errOff) {
			m.t.Errorf("read entry %d of %v: %v", i, l.name, err)
		}
	}
}

// recovered compares the log with the states that it may be in, and takes the one that it is in.
func (l *modelLog) recovered(w *WAL, closed bool) {
	log := w.Replica(l.name)
	got := logState{}
	got.first, _ = log.FirstIndex()
	last, _ := log.LastIndex()
	got.low = got.first
	for i := got.first; i <= last && last > 0; i++ {
		var e raft.Log
		if err := log.GetLog(i, &e); err != nil {
			l.m.t.Fatalf("%v after %q: entry %d: %v", l.name, l.m.history, i, err)
		}
		if !sameEntry(&e, modelEntry(i, e.Term)) {
			l.m.t.Fatalf("%v: entry %d is not what was written", l.name, i)
		}
		got.ids = append(got.ids, e.Term)
	}
	for i, s := range l.states {
		if closed && i < len(l.states)-1 {
			continue
		}
		if closed && s.first > s.low {
			s.low, s.ids = s.first, s.ids[s.first-s.low:]
		}
		switch {
		case len(got.ids) == 0 && (len(s.ids) == 0 || s.first > s.last()):
		case len(got.ids) == 0 || len(s.ids) == 0 || got.last() != s.last() || got.first < s.low || got.first > s.first:
			continue
		case !slices.Equal(got.ids, s.ids[got.first-s.low:]):
			continue
		}
		l.states = []logState{got}
		return
	}
	for _, s := range l.states {
		l.m.t.Errorf("%v may have %d (%d) to %d: %x", l.name, s.low, s.first, s.last(), s.ids)
	}
	l.m.t.Fatalf("%v after %q has %d to %d: %x", l.name, l.m.history, got.first, got.last(), got.ids)
}

func (l *modelLog) now() logState { return l.states[len(l.states)-1] }

// work does random operations until one fails, or so many.
func (l *modelLog) work(w *WAL, rng *rand.Rand, ops int) {
	log := w.Replica(l.name)
	for range ops {
		s := l.now()
		var err error
		switch r := rng.IntN(100); {
		case len(s.ids) > 60 || r < 15 && len(s.ids) > 2:
			hi := s.first + rng.Uint64N(s.last()-s.first+1)
			if len(s.ids) > 60 {
				hi = s.last() - 20
			}
			if hi == s.last() {
				err = l.try(logState{}, func() error { return log.DeleteRange(s.first, hi) })
			} else if err = log.DeleteRange(min(s.low, s.first), hi); err == nil {
				l.states[len(l.states)-1].first = max(s.first, hi+1)
			}
		case r < 30 && len(s.ids) > 0 && s.last() > s.first:
			lo := s.first + 1 + rng.Uint64N(s.last()-s.first)
			next := s
			next.ids = s.ids[: lo-s.low : lo-s.low]
			err = l.try(next, func() error { return log.DeleteRange(lo, s.last()+rng.Uint64N(2)) })
		case r < 34:
			err = l.try(logState{}, func() error { return log.DeleteRange(s.first, s.last()) })
		case r < 36:
			if err = l.try(logState{}, func() error { return w.Drop(l.name) }); err == nil {
				log = w.Replica(l.name)
			}
		case r < 50:
			err = l.append(log, rng, 2+rng.IntN(3))
		default:
			err = l.append(log, rng, 1)
		}
		if err != nil {
			return
		}
		if !l.check(log, rng) {
			return
		}
	}
}

// try does an operation after which the log is in the state.
func (l *modelLog) try(next logState, do func() error) error {
	l.states = append(l.states, next)
	if err := do(); err != nil {
		return err
	}
	l.acknowledged(1)
	return nil
}

// acknowledged: so many more operations were. What was deleted of the beginning before
// them does not come back.
func (l *modelLog) acknowledged(n int) {
	l.states = l.states[n:]
	if s := &l.states[0]; len(s.ids) > 0 && s.first > s.low {
		s.ids, s.low = s.ids[min(s.first-s.low, uint64(len(s.ids))):], s.first
	}
}

// append appends so many batches, one after the other without waiting.
func (l *modelLog) append(log *Log, rng *rand.Rand, batches int) error {
	var waits []*appended
	for range batches {
		s := l.now()
		if len(s.ids) == 0 {
			s.low = 1 + rng.Uint64N(1000)
			s.first = s.low
		}
		var list []*raft.Log
		ids := slices.Clone(s.ids)
		for range 1 + rng.IntN(6) {
			id := rng.Uint64()
			list = append(list, modelEntry(s.low+uint64(len(ids)), id))
			ids = append(ids, id)
		}
		s.ids = ids
		a, err := begin(log, list)
		if err != nil {
			break
		}
		l.states = append(l.states, s)
		waits = append(waits, a)
		l.check(log, rng)
	}
	var failed error
	for _, a := range waits {
		if err := a.Wait(); err != nil {
			failed = err
		} else if failed != nil {
			l.m.t.Errorf("%v: an append is acknowledged, and one before it failed: %v", l.name, failed)
		} else {
			l.acknowledged(1)
		}
	}
	if len(waits) < batches {
		failed = errOff
	}
	return failed
}

// check compares the log with the newest state.
func (l *modelLog) check(log *Log, rng *rand.Rand) bool {
	s := l.now()
	first, _ := log.FirstIndex()
	last, _ := log.LastIndex()
	if len(s.ids) == 0 {
		if first != 0 || last != 0 {
			l.m.t.Errorf("%v has %d to %d, and should be empty", l.name, first, last)
		}
		return !l.m.t.Failed()
	}
	if first != s.first || last != s.last() {
		l.m.t.Errorf("%v has %d to %d, should have %d to %d", l.name, first, last, s.first, s.last())
		return false
	}
	i := s.first + rng.Uint64N(last-first+1)
	var e raft.Log
	if err := log.GetLog(i, &e); errors.Is(err, errOff) {
		return false
	} else if err != nil || !sameEntry(&e, modelEntry(i, s.ids[i-s.low])) {
		l.m.t.Errorf("%v: entry %d: %v", l.name, i, err)
		return false
	}
	return true
}
