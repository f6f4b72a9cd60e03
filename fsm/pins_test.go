package fsm

import (
	"errors"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
)

func pinCmd(id, ttl int64) command.Command {
	return command.Command{Op: command.OpPin, Int: id, TTL: ttl}
}

func unpin(id int64) command.Command { return command.Command{Op: command.OpUnpin, Int: id} }

const minute = 60_000 // of a pin's time to live

func (m *machine) pinned(id, index uint64) *View {
	m.t.Helper()
	v, err := m.f.Pinned(id, index)
	if err != nil {
		m.t.Fatal(err)
	}
	return v
}

// wantGone checks why a pin cannot be read; "" stands for ErrNoPin.
func (m *machine) wantGone(id, index uint64, why PinReason) {
	m.t.Helper()
	_, err := m.f.Pinned(id, index)
	var gone *PinGoneError
	switch {
	case why == "" && err == ErrNoPin:
	case errors.As(err, &gone) && *gone == PinGoneError{Pin: id, Index: index, Reason: why}:
	default:
		m.t.Fatalf("pin %d at %d: %v, want %q", id, index, err, why)
	}
}

// A pin shows the state after the whole of its entry, whatever comes before and after it in the entry and in the batch.
func TestPinIsExact(t *testing.T) {
	m := newMachine(t, testConfig())
	m.log(0, set("before", "1"))
	l := m.log(0, set("a", "1"), pinCmd(7, minute), set("a", "2"))
	m.log(0, set("a", "3"), set("after", "1"))
	m.f.ApplyBatch(m.logs[1:])
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	v := m.pinned(7, l.Index)
	defer v.Close()
	if got, _ := v.Get(5, []byte("a")); v.Index() != l.Index || string(got) != "2" {
		t.Fatalf("at index %d a is %q", v.Index(), got)
	}
	if n, _ := v.Counts(); n != 2 {
		t.Fatalf("%d keys", n)
	}
	m.wantGone(7, l.Index+1, "")
	m.wantGone(8, l.Index, "")
	m.one(unpin(7))
	m.wantGone(7, l.Index, PinUnpinned)
}

// A shard without an identity has no pins, and what is malformed pins nothing. One without slots has.
func TestPinRefused(t *testing.T) {
	m := emptyMachine(t, testConfig())
	if got := m.one(pinCmd(1, minute)); got != "!8" {
		t.Fatalf("an empty shard answers %s", got)
	}
	in := testInit()
	m.apply(0, command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
	if got := m.one(pinCmd(1, 0)); got != "!9" {
		t.Fatalf("a pin for no time is answered %s", got)
	}
	for i := range m.logs {
		m.wantGone(1, uint64(i+1), "")
	}
	if got := m.one(unpin(1)); got != "OK" {
		t.Fatalf("no pin to end: %s", got)
	}

	m = emptyMachine(t, testConfig())
	in.Slots = nil
	m.apply(0, command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
	if got := m.one(pinCmd(1, minute)); got != "2" {
		t.Fatalf("a shard without slots answers %s", got)
	}
	m.pinned(1, 2).Close()
}
