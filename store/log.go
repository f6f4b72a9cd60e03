package store

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/planted"
	"github.com/abacusdb/abacus/store/wal"
)

// The cache spares a leader one read of each entry per follower, and everybody
// the read before applying.
const (
	cacheEntries = 512
	cacheBytes   = 1 << 20
)

// maxAhead is how many appends of a leader may be under way at once: raft has two entries
// of ours in flight, and now and then one of its own.
const maxAhead = 4

// AsyncLog is a log that accepts entries before they are on the disk: they can be read at
// once, and done is told when they are there, with all that was accepted before, or that they cannot get
// there. It does not wait. If AppendAsync returns an error, nothing is accepted.
type AsyncLog interface {
	raft.LogStore
	AppendAsync(entries []*raft.Log, done func(error)) error
}

// walLog is a replica's part of its node's log.
type walLog struct{ *wal.Log }

func (l walLog) AppendAsync(entries []*raft.Log, done func(error)) error {
	return l.Append(entries, done)
}

// logStore is the log as raft sees it. Writes come from raft's main loop, and
// deletions of old entries from its snapshot loop; never two at once, for store
// lets no snapshot be taken while one is installed, and the log orders the rest.
//
// A leader sends entries to the others while its own disk writes them (Raft thesis 10.2.1). raft
// takes StoreLogs' return for its own vote for the entries, so what others answer is kept from it until
// they are on our disk as well (synced): what raft then counts as committed is on the disks of a majority.
type logStore struct {
	inner raft.LogStore
	path  string
	log   *slog.Logger
	// fatal does not return.
	fatal func(error)

	// ahead says whether raft leads and needs more votes than its own; nil: it does not.
	// Called on raft's main loop.
	ahead func() bool
	// emptied is called by the deletion that follows an install if raft's own idea
	// of its last entry is wrong from then on (hazard R24). It blocks raft's main
	// loop until the instance is told to end.
	emptied func()
	// snapshotEnd is the newest snapshot's last entry. After an install the log
	// lacks it, and a leader that asks whether we have it must not be told no: it
	// would go back further, and install for ever.
	snapshotEnd func() (index, term uint64)
	// installed is the index of a snapshot that was installed and whose old log
	// raft has not deleted yet; 0 if there is none.
	installed atomic.Uint64

	writing stopwatch // of a write under way
	reading stopwatch // of what the cache does not have

	// appended counts what was stored, to know when a snapshot is worth its while.
	appendedEntries, appendedBytes atomic.Uint64

	mu    sync.Mutex
	ring  [cacheEntries]raft.Log // entry i is at i % cacheEntries
	bytes int
	low   uint64 // entries below are not cached
	// flights are the appends that are not on the disk yet, in order.
	flights []*flight
}

// flight is an append that raft does not wait for.
type flight struct {
	first  uint64
	landed []func() // called when it is on the disk
}

func newLogStore(inner raft.LogStore, path string, fatal func(error), log *slog.Logger) *logStore {
	return &logStore{inner: inner, path: path, log: log, fatal: fatal, emptied: func() {},
		snapshotEnd: func() (uint64, uint64) { return 0, 0 }, writing: newStopwatch(), reading: newStopwatch()}
}

// IsMonotonic makes raft delete the whole old log when it installs a snapshot.
// Otherwise entries that were never committed survive below the snapshot and
// are sent to others as if they had been (hazard R5).
func (l *logStore) IsMonotonic() bool { return !planted.Is(planted.LogNotMonotonic) }

func (l *logStore) FirstIndex() (uint64, error) { return l.inner.FirstIndex() }
func (l *logStore) LastIndex() (uint64, error)  { return l.inner.LastIndex() }

// start is where the log begins. That it cannot be told is as if it began before any snapshot.
func (l *logStore) start() logStart {
	first, err := l.inner.FirstIndex()
	if err != nil {
		return logStart{}
	}
	end, term := l.snapshotEnd()
	return logStart{first, end, term}
}

// bytesAfter is what the entries after an index take; false if the log cannot tell.
func (l *logStore) bytesAfter(index uint64) (int64, bool) {
	if w, ok := l.inner.(interface{ BytesAfter(uint64) int64 }); ok {
		return w.BytesAfter(index), true
	}
	return 0, false
}

func (l *logStore) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l *logStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	// An install is over once raft appends again.
	l.installed.Store(0)
	if err := l.store(logs); err != nil {
		l.fatal(fmt.Errorf("raft log %s: store entries %d to %d: %w", l.path, logs[0].Index, logs[len(logs)-1].Index, err))
		return err
	}
	l.mu.Lock()
	for _, entry := range logs {
		l.remember(entry)
		l.appendedBytes.Add(uint64(len(entry.Data)))
	}
	l.mu.Unlock()
	l.appendedEntries.Add(uint64(len(logs)))
	return nil
}

func (l *logStore) store(logs []*raft.Log) error {
	writing := l.writing.begin()
	async, ok := l.inner.(AsyncLog)
	if !ok || !l.mayRunAhead(logs) {
		err := l.inner.StoreLogs(logs)
		l.writing.end(writing)
		return err
	}
	f := &flight{first: logs[0].Index}
	l.mu.Lock()
	l.flights = append(l.flights, f)
	l.mu.Unlock()
	landed := func(err error) {
		l.writing.end(writing)
		switch {
		case err == nil:
			l.land(f)
		case errors.Is(err, wal.ErrClosed): // by a node that could not wait: nobody is told that it is on the disk
		default:
			l.fatal(fmt.Errorf("raft log %s: store entries from %d on: %w", l.path, f.first, err))
		}
	}
	if planted.Is(planted.EarlyCommit) { // so that there is something that the disk does not have yet
		now := landed
		landed = func(err error) { time.AfterFunc(20*time.Millisecond, func() { now(err) }) }
	}
	return async.AppendAsync(logs, landed)
}

// mayRunAhead says whether raft need not wait for the disk. The members that there are, a
// majority of whom must have what is in the log, are on the disk before they count.
func (l *logStore) mayRunAhead(logs []*raft.Log) bool {
	if l.ahead == nil || !l.ahead() {
		return false
	}
	for _, entry := range logs {
		if entry.Type == raft.LogConfiguration {
			return false
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.flights) < maxAhead
}

func (l *logStore) land(f *flight) {
	l.mu.Lock()
	l.flights = slices.DeleteFunc(l.flights, func(o *flight) bool { return o == f })
	landed := f.landed
	l.mu.Unlock()
	for _, f := range landed {
		f()
	}
}

// unsynced is what others' answers about entries up to an index wait for: see landing.
func (l *logStore) unsynced(index uint64, landed func()) bool {
	return !planted.Is(planted.EarlyCommit) && l.landing(index, landed)
}

// landing says whether entries up to an index are still on their way to the disk, and calls landed, which does not wait,
// when they have got there.
func (l *logStore) landing(index uint64, landed func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.flights) - 1; i >= 0; i-- {
		if f := l.flights[i]; f.first <= index {
			f.landed = append(f.landed, landed) // and those before it: the log writes in order
			return true
		}
	}
	return false
}

func (l *logStore) GetLog(index uint64, entry *raft.Log) error {
	l.mu.Lock()
	if c := &l.ring[index%cacheEntries]; c.Index == index && index >= l.low && index > 0 {
		*entry = *c
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	reading := l.reading.begin()
	err := l.inner.GetLog(index, entry)
	l.reading.end(reading)
	switch {
	case errors.Is(err, raft.ErrLogNotFound):
		// Raft asks for it only to compare terms: nobody sends an entry whose
		// predecessor he cannot read, but for the first.
		if at, term := l.snapshotEnd(); at == index && at > 1 {
			*entry = raft.Log{Index: at, Term: term, Type: raft.LogNoop}
			return nil
		}
	case err != nil:
		// To go on without it, or with what else was read, would be to diverge.
		l.fatal(fmt.Errorf("raft log %s: %w", l.path, err))
	}
	return err
}

func (l *logStore) DeleteRange(lo, hi uint64) error {
	last := uint64(0)
	first, err := l.inner.FirstIndex()
	if err == nil {
		last, err = l.inner.LastIndex()
	}
	l.mu.Lock()
	if lo <= first && hi < last {
		l.low = max(l.low, hi+1)
	} else {
		// The cache must not outlive what it holds: a truncated suffix would be sent on.
		clear(l.ring[:])
		l.bytes, l.low = 0, 0
	}
	l.mu.Unlock()

	if err == nil {
		writing := l.writing.begin()
		err = l.inner.DeleteRange(lo, hi)
		l.writing.end(writing)
	}
	if err == nil {
		first, err = l.inner.FirstIndex()
	}
	if err == nil {
		last, err = l.inner.LastIndex()
	}
	// Raft deletes a prefix or a suffix: what is left lies on one side.
	if err == nil && first != 0 && last >= lo && first <= hi {
		err = fmt.Errorf("entries %d to %d are left", max(lo, first), min(hi, last))
	}
	if err != nil {
		// raft only logs this and goes on, with entries that must not be there.
		l.fatal(fmt.Errorf("raft log %s: delete entries %d to %d: %w", l.path, lo, hi, err))
		return err
	}
	if last == 0 {
		if snap := l.installed.Swap(0); snap != 0 && hi > snap {
			l.emptied()
		}
	}
	return nil
}

// remember puts an entry in the ring. The caller holds mu.
func (l *logStore) remember(entry *raft.Log) {
	size := entrySize(entry)
	slot := &l.ring[entry.Index%cacheEntries]
	if slot.Index != 0 {
		l.bytes -= entrySize(slot)
	}
	*slot = *entry
	l.bytes += size
	if l.low == 0 || entry.Index < l.low {
		l.low = entry.Index
	}
	if entry.Index >= cacheEntries {
		l.low = max(l.low, entry.Index-cacheEntries+1)
	}
	for l.bytes > cacheBytes && l.low < entry.Index {
		if old := &l.ring[l.low%cacheEntries]; old.Index == l.low {
			l.bytes -= entrySize(old)
			*old = raft.Log{}
		}
		l.low++
	}
}
