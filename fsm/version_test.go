package fsm

import (
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
)

// A view's version changes with what it shows, and a restart or another's state makes it another for good.
func TestVersion(t *testing.T) {
	m := newMachine(t, testConfig())
	version := func() [2]uint64 {
		v := m.view()
		defer v.Close()
		return v.Version()
	}
	last := version()
	step := func(what string, changes bool, do func()) {
		t.Helper()
		do()
		now := version()
		if (now != last) != changes {
			t.Errorf("%s: version %v after %v", what, now, last)
		}
		last = now
	}
	key, other := [][]byte{[]byte("k")}, [][]byte{[]byte("o")}
	set := command.Command{Op: command.OpSet, Slot: 5, Keys: key, Values: [][]byte{[]byte("1")}}
	one := func(c command.Command) func() { return func() { m.one(c) } }
	step("a key", true, one(set))
	step("the same again", true, one(set)) // it may have another deadline or history; nobody has looked
	step("a read", false, one(command.Command{Op: command.OpGet, Slot: 5, Keys: key}))
	step("a key that is not there is deleted", false, one(command.Command{Op: command.OpDel, Slot: 5, Keys: other}))
	step("a record", false, one(command.Command{Op: command.OpRecordSet, Keys: key, Values: key}))
	step("a pin", false, one(command.Command{Op: command.OpPin, Int: 7, TTL: 1000}))
	step("time", false, func() { m.pass(10) })
	step("a deadline", true, one(command.Command{Op: command.OpExpire, Slot: 5, Keys: key, TTL: 100}))
	step("time before it", false, func() { m.pass(99) })
	step("time at it", true, func() { m.pass(1) })
	step("time after it", false, func() { m.pass(1000) })
	step("a foreign slot", false, one(command.Command{Op: command.OpSet, Slot: 50, Keys: key, Values: key}))
	step("slots are frozen", true, one(command.Command{Op: command.OpSlotsFreeze, Int: 1, TTL: 1, Values: [][]byte{command.AppendSlots(nil, []command.SlotRange{{From: 5, To: 5}})}}))
	step("a checkpoint", false, func() {
		if err := m.f.Flush(); err != nil {
			t.Fatal(err)
		}
	})
	step("a restart", true, func() { m.reopen(0) })
}
