package fsm

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

// Entries change memory only; a checkpoint puts all of it, the index and the
// clock into the file with one commit, and a restart goes on from there.
func TestCheckpoint(t *testing.T) {
	m := newMachine(t, testConfig())
	commits := func() int {
		var id int
		if err := m.f.gen.db.View(func(tx *bolt.Tx) error { id = tx.ID(); return nil }); err != nil {
			t.Fatal(err)
		}
		return id
	}
	before := commits()
	for range 20 {
		m.log(1, set("a", "1"), setTTL("b", "2", 1000), get("a"))
	}
	m.f.ApplyBatch(m.logs[1:])
	m.apply(5, num(cmd(command.OpRecordSet, k("r"), "record"), 0))
	m.apply(5, get("a"), command.Command{Op: command.OpNoop})
	if got := commits() - before; got != 0 || m.f.DurableIndex() != 0 {
		t.Errorf("entries took %d commits, durable %d", got, m.f.DurableIndex())
	}
	applied, clock, hash := m.f.Applied(), m.f.Clock(), m.hash()
	if m.f.OverlayBytes() < 100 {
		t.Errorf("overlay of %d bytes", m.f.OverlayBytes())
	}
	v := m.view()
	if v.Index() != applied || v.Clock() != clock {
		t.Errorf("view stands at index %d, clock %d", v.Index(), v.Clock())
	}
	for range 2 { // the second has nothing to do
		if err := m.f.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if got := commits() - before; got != 1 {
		t.Errorf("two flushes took %d commits", got)
	}
	if m.f.DurableIndex() != applied || m.f.OverlayBytes() != 0 {
		t.Errorf("durable %d of %d, overlay %d bytes", m.f.DurableIndex(), applied, m.f.OverlayBytes())
	}
	if m.hash() != hash || v.Hash() != hash {
		t.Error("the checkpoint changed the state")
	}
	v.Close()
	m.checkFile()
	m.reopen(len(m.logs))
	if m.f.Applied() != applied || m.f.Clock() != clock || m.hash() != hash {
		t.Errorf("after a restart: applied %d, clock %d, same state: %v", m.f.Applied(), m.f.Clock(), m.hash() == hash)
	}
}

// A checkpoint begins by itself when enough has gathered, and entries go on
// while it is written: none waits for it, none is lost, none counts twice.
func TestCheckpointBesideWriter(t *testing.T) {
	cfg := testConfig()
	cfg.CheckpointBytes = 10_000
	hold, held := make(chan struct{}), make(chan struct{}, 100)
	cfg.OnCheckpoint = func() { held <- struct{}{}; <-hold }
	m := newMachine(t, cfg)
	m.apply(0, set("gone", "1"), set("kept", "1"))
	for m.f.OverlayBytes() < cfg.CheckpointBytes {
		m.apply(1, num(cmd(command.OpIncr, k("n")), 1), set(fmt.Sprint(m.f.Applied()), "some value"))
	}
	<-held // one is under way, and held
	frozenAt := m.f.Applied()
	m.apply(1, cmd(command.OpDel, k("gone")), num(cmd(command.OpIncr, k("n")), 1), set("new", "1"))
	if took, bytes := m.f.Checkpointing(); m.f.DurableIndex() >= frozenAt || took == 0 || bytes == 0 {
		t.Errorf("durable %d, checkpoint of %d bytes under way for %v", m.f.DurableIndex(), bytes, took)
	}
	hash := m.hash()
	close(hold)
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	if m.hash() != hash {
		t.Error("the checkpoint changed the state")
	}
	m.checkFile()
	m.reopen(0)
	if m.hash() != hash {
		t.Error("the restart changed the state")
	}
}

// Without a flush a restart finds the last checkpoint, and the log brings the rest.
func TestRestartReplays(t *testing.T) {
	m := newMachine(t, testConfig())
	m.apply(10, num(cmd(command.OpIncr, k("n")), 1))
	m.apply(10, setTTL("t", "x", 15))
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	m.apply(10)
	m.apply(0, num(cmd(command.OpIncr, k("n")), 1))
	if err := m.f.Close(); err != nil {
		t.Fatal(err)
	}
	m.open()
	if m.f.Applied() != 3 || m.f.Clock() != 20 {
		t.Fatalf("applied %d, clock %d", m.f.Applied(), m.f.Clock())
	}
	for i, r := range m.f.ApplyBatch(m.logs) {
		if a := r.(*Applied); a.Index != uint64(i+1) || (a.Results == nil) != (i < 3) {
			t.Errorf("replayed entry %d: %+v", i+1, a)
		}
	}
	if m.f.Applied() != 5 || m.f.Clock() != 30 {
		t.Errorf("applied %d, clock %d", m.f.Applied(), m.f.Clock())
	}
	m.wantContents(map[string]string{"5/n": "2", "5/t": "x"})
	m.pass(5)
	m.wantContents(map[string]string{"5/n": "2"})
}

func TestWantedOnly(t *testing.T) {
	cfg := testConfig()
	cfg.Wanted = func(id uint64) bool { return id == 3 }
	m := newMachine(t, cfg)
	if got := m.apply(0, set("a", "1"), get("a")); got != nil {
		t.Errorf("answers nobody waits for: %v", got)
	}
	if got := m.apply(0, get("a")); len(got) != 1 || show(got[0]) != `"1"` {
		t.Errorf("answers are %v", got)
	}
}

// Answers must not lie in memory that the next batch or commit uses again.
func TestAnswersAreCopies(t *testing.T) {
	m := newMachine(t, testConfig())
	l := m.log(0, set("a", "first"), get("a"), flags(set("a", "second"), command.FlagGet), set("b", "b"))
	res := m.f.Apply(l).(*Applied).Results
	for i := range l.Data {
		l.Data[i] = 0xff // raft may use its buffer again
	}
	for i := range 50 {
		m.apply(0, set("a", fmt.Sprint("other", i)), set("c", fmt.Sprint("other", i)))
	}
	if show(res[1]) != `"first"` || show(res[2]) != `"first"` {
		t.Errorf("answers changed: %s %s", show(res[1]), show(res[2]))
	}
	if v := m.view(); contents(v)["5/b"] != "b" {
		t.Errorf("b is %q", contents(v)["5/b"])
	}
}

// A crowd of keys that end at once goes a thousand per entry, and is gone from
// every answer and count at once.
func TestPurge(t *testing.T) {
	m := newMachine(t, testConfig())
	const crowd = 2500
	for i := range crowd {
		m.log(0, onSlot(setTTL(fmt.Sprintf("k%04d", i), "v", 100), uint16(100+i%7)))
	}
	m.f.ApplyBatch(m.logs[1:])
	m.apply(0, setTTL("later", "v", 500), set("stays", "v"))
	if d, ok := m.f.NextDeadline(); !ok || d != 100 {
		t.Fatalf("next deadline is %d, %v", d, ok)
	}
	for left := crowd - purgeLimit; ; left -= purgeLimit {
		if left == crowd-purgeLimit {
			m.pass(100)
		} else {
			m.pass(0)
		}
		v := m.view()
		if records, bytes := v.Counts(); records != 2 || bytes != 12 {
			t.Fatalf("counts are %d and %d", records, bytes)
		}
		var sum slotCount
		for slot := range uint16(command.Slots) {
			records, bytes := v.SlotCount(slot)
			sum.add(records, bytes)
		}
		if sum != (slotCount{records: 2, bytes: 12}) {
			t.Fatalf("slot counts add up to %+v", sum)
		}
		if got := len(contents(v)); got != 2 {
			t.Fatalf("%d keys are visible", got)
		}
		if keys, next := v.ScanPage(0, 10, [2]uint16{0, 16383}, nil, nil); len(keys) != 2 || next != 0 {
			t.Fatalf("scan gives %d keys, next %d", len(keys), next)
		}
		if got := v.head.total.records; got != int64(2+max(left, 0)) {
			t.Fatalf("%d keys are stored, want %d", got, 2+max(left, 0))
		}
		v.Close()
		m.checkFile()
		d, ok := m.f.NextDeadline()
		if left <= 0 {
			if !ok || d != 500 {
				t.Fatalf("next deadline is %d, %v", d, ok)
			}
			return
		}
		if !ok || d != 100 {
			t.Fatalf("next deadline is %d, %v with %d to go", d, ok, left)
		}
	}
}

// A write to a key that has ended but is not purged counts once.
func TestWriteToEndedKey(t *testing.T) {
	m := newMachine(t, testConfig())
	for i := range purgeLimit + 5 {
		m.log(0, setTTL(fmt.Sprintf("a%04d", i), "v", 10))
	}
	m.f.ApplyBatch(m.logs[1:])
	last := fmt.Sprintf("a%04d", purgeLimit+4) // purged last
	res := m.apply(10,
		cmd(command.OpExists, k(last)),
		flags(set(last, "new"), command.FlagIfAbsent|command.FlagGet|command.FlagKeepTTL),
		cmd(command.OpTTL, k(last)),
		cmd(command.OpDel, k(fmt.Sprintf("a%04d", purgeLimit+3))),
		cmd(command.OpAppend, k(fmt.Sprintf("a%04d", purgeLimit+2)), "x"))
	for i, want := range []string{"0", "nil", "-1", "0", "1"} {
		if got := show(res[i]); got != want {
			t.Errorf("answer %d is %s, want %s", i, got, want)
		}
	}
	m.checkFile()
	m.pass(1000)
	m.wantContents(map[string]string{"5/" + last: "new", fmt.Sprintf("5/a%04d", purgeLimit+2): "x"})
	m.checkFile()
}

func TestOnRecord(t *testing.T) {
	type call struct {
		name, value string
		rev         int64
		gone        bool
	}
	var calls []call
	cfg := testConfig()
	cfg.OnRecord = func(name string, value []byte, rev int64) {
		calls = append(calls, call{name, string(value), rev, value == nil})
	}
	m := newMachine(t, cfg)
	expect := func(want ...call) {
		t.Helper()
		if !reflect.DeepEqual(calls, want) {
			t.Fatalf("told of %+v, want %+v", calls, want)
		}
		calls = nil
	}
	m.apply(0, num(cmd(command.OpRecordSet, k("a"), "1"), 0), num(cmd(command.OpRecordSet, k("b"), ""), 0), num(cmd(command.OpRecordSet, k("a"), "no"), 7))
	expect(call{"a", "1", 1, false}, call{"b", "", 2, false})
	m.apply(0, set("key", "1"), get("key"))
	expect()
	m.reopen(0)
	expect(call{"a", "1", 1, false}, call{"b", "", 2, false})

	// A snapshot in which a is newer and b is gone.
	other := newMachine(t, testConfig())
	other.apply(0, num(cmd(command.OpRecordSet, k("a"), "1"), 0))
	other.apply(0, num(cmd(command.OpRecordSet, k("a"), "2"), 1))
	other.apply(0, set("x", "y"))
	if err := other.f.Flush(); err != nil {
		t.Fatal(err)
	}
	_, _, stream, err := other.f.OpenStream(StreamSparse)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.f.Restore(stream); err != nil {
		t.Fatal(err)
	}
	expect(call{"a", "2", 2, false}, call{"b", "", 0, true})
	m.apply(0, num(cmd(command.OpRecordDelete, k("a")), -1)) // index 4 is applied already
	expect()
	m.logs = other.logs
	m.apply(0, num(cmd(command.OpRecordDelete, k("a")), -1))
	expect(call{"a", "", 0, true})
}

func TestWaitApplied(t *testing.T) {
	m := newMachine(t, testConfig())
	ctx := context.Background()
	if err := m.f.WaitApplied(ctx, 1); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			index := uint64(2 + i%4)
			if err := m.f.WaitApplied(ctx, index); err != nil || m.f.Applied() < index {
				t.Errorf("wait for %d: %v, applied %d", index, err, m.f.Applied())
			}
		})
	}
	short, cancel := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- m.f.WaitApplied(short, 100) }()
	for range 4 {
		m.apply(0, set("a", "1"))
	}
	wg.Wait()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait: %v", err)
	}
	m.f.waitMu.Lock()
	left := len(m.f.waiters)
	m.f.waitMu.Unlock()
	if left != 0 {
		t.Errorf("%d waiters stay behind", left)
	}

	go func() { ended <- m.f.WaitApplied(ctx, 100) }()
	if err := m.f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("wait over a close: %v", err)
	}
	if _, err := m.f.View(); !errors.Is(err, ErrClosed) {
		t.Errorf("view after close: %v", err)
	}
	if err := m.f.Flush(); !errors.Is(err, ErrClosed) {
		t.Errorf("flush after close: %v", err)
	}
}

// A replica that guesses has diverged: what it cannot decode stops it.
func TestPanicsOnTheUnknown(t *testing.T) {
	for name, data := range map[string][]byte{
		"empty":       nil,
		"version 2":   {2, 0, 0, 0},
		"future op":   {1, 0, 0, 1, 200, 0, 0, 0, 0, 0, 0, 0, 0},
		"broken init": (&command.Batch{Commands: []command.Command{{Op: command.OpInit, Values: [][]byte{{9}}}}}).AppendTo(nil),
	} {
		t.Run(name, func(t *testing.T) {
			m := emptyMachine(t, testConfig())
			defer func() {
				if recover() == nil {
					t.Error("it went on")
				}
				if m.f.Applied() != 0 {
					t.Errorf("applied %d", m.f.Applied())
				}
			}()
			m.f.Apply(&raft.Log{Index: 7, Term: 1, Type: raft.LogCommand, Data: data})
		})
	}
}

// Views read while the writer writes; each sees one index, whole.
func TestViewsBesideWriter(t *testing.T) {
	m := newMachine(t, testConfig())
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			last := uint64(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				applied := m.f.Applied()
				v, err := m.f.View()
				if err != nil {
					t.Error(err)
					return
				}
				if v.Index() < applied || v.Index() < last {
					t.Errorf("view at index %d after index %d was applied", v.Index(), max(applied, last))
				}
				last = v.Index()
				a, okA := v.Get(5, []byte("a"))
				b, okB := v.Get(100, []byte("b"))
				if okA != okB || string(a) != string(b) {
					t.Errorf("view at index %d shows half an entry: %q and %q", v.Index(), a, b)
				}
				v.Close()
			}
		})
	}
	for i := range 100 {
		value := fmt.Sprint(i)
		m.apply(1, set("a", value), onSlot(set("b", value), 100))
		m.apply(1)
		if i%10 == 0 {
			if err := m.f.Flush(); err != nil {
				t.Error(err)
			}
		}
	}
	close(stop)
	wg.Wait()
}

// Between the change and the moment it is published a view shows the change, with
// the index and the clock that belong to it. OnRecord is called just there.
func TestViewBeforePublish(t *testing.T) {
	var f *FSM
	calls := 0
	cfg := testConfig()
	cfg.OnRecord = func(string, []byte, int64) {
		calls++
		v, err := f.View()
		if err != nil {
			t.Error(err)
			return
		}
		defer v.Close()
		if _, _, ok := v.Record("r"); !ok || v.Index() != 3 || v.Clock() != 12 || f.Applied() != 2 {
			t.Errorf("record there: %v, view at index %d, clock %d, applied %d", ok, v.Index(), v.Clock(), f.Applied())
		}
	}
	m := newMachine(t, cfg)
	f = m.f
	m.pass(5)
	m.apply(7, num(cmd(command.OpRecordSet, k("r"), "v"), 0))
	if calls != 1 {
		t.Errorf("called %d times", calls)
	}
}

// Close waits for views, but not for ever, and a late view still ends well.
func TestCloseWithViewOpen(t *testing.T) {
	cfg := testConfig()
	cfg.CloseTimeout = time.Millisecond
	m := newMachine(t, cfg)
	m.apply(0, set("a", "1"))
	v := m.view()
	gen := m.f.gen
	if err := m.f.Close(); !errors.Is(err, ErrViewsOpen) {
		t.Errorf("close: %v", err)
	}
	if got, _ := v.Get(5, []byte("a")); string(got) != "1" {
		t.Errorf("the view lost its file: %q", got)
	}
	v.Close()
	v.Close()
	select {
	case <-gen.ended:
	case <-time.After(10 * time.Second):
		t.Error("the last view did not close the file")
	}
}
