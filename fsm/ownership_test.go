package fsm

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
)

var someSlots = []command.SlotRange{{From: 20, To: 29}}

func slotsCommand(op command.Op, n int64, slots ...command.SlotRange) command.Command {
	c := command.Command{Op: op, Int: n, TTL: 1}
	if op == command.OpSlotsThaw {
		c.TTL = 2
	}
	if len(slots) > 0 {
		c.Values = [][]byte{command.AppendSlots(nil, slots)}
	}
	return c
}

// The receiver's log decides a move, and what it has decided holds, whatever comes late, twice or from a driver that was replaced.
func TestReceiverDecides(t *testing.T) {
	const conflict, left, elsewhere = "!7", "!15:3", "!6"
	m := newMachine(t, testConfig()) // owns neither 10 nor 99, nor what is between
	load := func(token, n int64, keys ...string) command.Command {
		var rows []command.Row
		for _, k := range keys {
			rows = append(rows, command.Row{Slot: 20, Key: []byte(k), Value: []byte("v")})
		}
		return command.LoadRows(token, n, rows)
	}
	expect := func(move int64) command.Command { return slotsCommand(command.OpSlotsExpect, move, someSlots...) }
	own := func(token, parts int64) command.Command {
		return command.Command{Op: command.OpSlotsOwn, Int: token, TTL: parts}
	}
	token := func(move int64) int64 {
		t.Helper()
		r := m.apply(0, expect(move))[0]
		if r.Kind != command.KindInt {
			t.Fatalf("expect %d: %s", move, show(r))
		}
		return r.Int
	}
	m.wants(slotsCommand(command.OpSlotsExpect, 1, command.SlotRange{From: 0, To: 0}), conflict) // its own already
	first := token(5)
	m.wants(load(first, 1, "a"), conflict) // part 0 is missing
	m.wants(load(first, 0, "a"), "OK")
	m.wants(load(first, 0, "b"), "OK") // a repeat: nothing is done
	m.wants(onSlot(get("a"), 20), elsewhere)
	m.wants(expect(5), left) // another driver: the first one is out from here on
	m.wants(load(first, 1, "b"), conflict)
	m.wants(own(first, 1), conflict)
	m.wants(command.Command{Op: command.OpSlotsClear, Int: 100}, "1")
	second := token(5)
	m.wants(load(second, 0, "a", "b"), "OK")
	m.wants(own(second, 2), conflict) // a part is missing
	m.wants(expect(4), conflict)      // an older move
	m.wants(slotsCommand(command.OpSlotsAbort, 4), conflict)
	m.wants(own(second, 1), "OK")
	m.wants(own(second, 1), "OK")
	m.wants(onSlot(get("a"), 20), `"v"`)
	m.wants(expect(5), "nil")
	m.wants(slotsCommand(command.OpSlotsAbort, 5), "1")
	m.wants(command.Command{Op: command.OpSlotsClear, Int: 100}, "0")
	m.wantContents(map[string]string{"20/a": "v", "20/b": "v"})
	m.reopen(0)
	m.wants(own(second, 1), "OK")

	// The other way round: frozen, thawed, frozen and released.
	freeze, thaw, release := slotsCommand(command.OpSlotsFreeze, 9, someSlots...), slotsCommand(command.OpSlotsThaw, 9), slotsCommand(command.OpSlotsRelease, 9)
	m.wants(freeze, "OK")
	m.wants(freeze, "OK")
	m.wants(slotsCommand(command.OpSlotsFreeze, 10, command.SlotRange{From: 0, To: 0}), conflict) // one at a time
	m.wants(onSlot(get("a"), 20), "!14")
	m.wants(onSlot(set("a", "w"), 20), "!14")
	m.wantContents(map[string]string{})
	m.wants(slotsCommand(command.OpSlotsThaw, 8), "OK") // another move's
	m.wants(onSlot(get("a"), 20), "!14")
	m.wants(thaw, "OK")
	m.wants(onSlot(get("a"), 20), `"v"`)
	m.wants(release, "OK") // nothing is frozen
	m.wants(onSlot(get("a"), 20), `"v"`)
	m.wants(freeze, "OK")
	m.reopen(0)
	m.wants(release, "OK")
	m.wants(onSlot(get("a"), 20), elsewhere)
	if v := m.view(); !reflect.DeepEqual(v.Slots(), testInit().Slots) {
		t.Errorf("slots %v", v.Slots())
	}
	m.wants(command.Command{Op: command.OpSlotsClear, Int: 100}, "2")
	if !m.f.Cleared() || m.f.Stored() != 0 {
		t.Errorf("%d keys are left", m.f.Stored())
	}

	// An abort that comes first holds as well.
	third := token(11)
	m.wants(load(third, 0, "c"), "OK")
	m.wants(slotsCommand(command.OpSlotsAbort, 11), "0")
	m.wants(own(third, 1), conflict)
	m.wants(expect(11), conflict)
	m.wants(slotsCommand(command.OpSlotsAbort, 11), "0")
}

// A key that has ended and was not purged yet, because too many ended at once, is among those that the receiver must not have.
func TestEndedKeysAreNotHandedOver(t *testing.T) {
	m := newMachine(t, testConfig())
	for i := range purgeLimit + 50 {
		m.apply(0, onSlot(setTTL(fmt.Sprintf("k%04d", i), "v", 10), 200))
	}
	m.apply(0, onSlot(set("stays", "v"), 200))
	m.pass(20)
	v := m.view()
	if got := len(v.Ended([]command.SlotRange{{From: 200, To: 200}})); got != 50 {
		t.Errorf("%d keys have ended and are stored, want 50", got)
	}
	if got := len(v.Ended([]command.SlotRange{{From: 201, To: 300}})); got != 0 {
		t.Errorf("%d keys of other slots", got)
	}
	n := 0
	v.Rows(200, 200, nil, func(command.Row) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

// Writing goes on while a capture is taken: nothing that changes is missed, and what others change is not in it.
func TestCapture(t *testing.T) {
	m := newMachine(t, testConfig())
	m.apply(0, onSlot(set("a", "1"), 200), onSlot(set("b", "1"), 200))
	c, err := m.f.Capture([]command.SlotRange{{From: 200, To: 200}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := m.f.Capture(nil); err != ErrCapturing {
		t.Errorf("a second one: %v", err)
	}
	take := func(want string) {
		t.Helper()
		v, keys, err := c.Take()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if got := fmt.Sprintf("%q", keys); got != want {
			t.Errorf("took %s, want %s", got, want)
		}
		for _, k := range keys {
			if r := v.Row(k); r.Slot != 200 || r.Gone != bytes.HasSuffix(k, []byte("b")) {
				t.Errorf("row of %q: %+v", k, r)
			}
		}
	}
	take("[]")
	m.apply(0, onSlot(set("a", "2"), 200), onSlot(cmd(command.OpDel, k("b")), 200), onSlot(set("c", "1"), 201))
	take(`["\x00\xc8a" "\x00\xc8b"]`)
	take("[]")
	m.apply(0, onSlot(setTTL("a", "3", 5), 200))
	take(`["\x00\xc8a"]`)
	c.Close()
	if _, _, err := c.Take(); err != ErrCaptureLost {
		t.Errorf("after Close: %v", err)
	}
}

func FuzzOwnership(f *testing.F) {
	o := ownership{decided: decision{move: 3, token: 9, owned: true}, in: &handover{move: 4, token: 10, parts: 2, slots: someSlots}}
	f.Add(o.encode())
	s := session{id: 7, floor: 1, answers: map[answerKey]command.Result{{seq: 2, slot: 20}: command.Int(5)}}
	f.Add(append([]byte{answersVersion, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, byte(len(s.encode(nil)))}, s.encode(nil)...))
	f.Add(newSessions(1).encodeKnown([]byte{answersVersion}))
	init := testInit()
	f.Fuzz(func(t *testing.T, data []byte) {
		var got, again ownership
		if len(data) > 0 && got.restore(&init, data) == nil {
			if err := again.restore(&init, got.encode()); err != nil || !reflect.DeepEqual(got, again) {
				t.Errorf("%x comes out otherwise: %v", data, err)
			}
		}
		if list, err := decodeAnswers(data); err == nil {
			newSessions(1).merge(list)
		}
	})
}

// What was answered and given up, or forgotten with its session, must not look new to the shard that the slots come to.
func TestGivenUpNumbersStayGivenUp(t *testing.T) {
	giver := newMachine(t, testConfig())
	session := func(m *machine, id uint64) uint64 {
		return uint64(m.apply(0, command.Command{Op: command.OpSessionOpen, Int: int64(id)})[0].Int)
	}
	incrOn := func(slot uint16, s, seq, floor uint64) command.Command {
		return numbered(onSlot(incr("n"), slot), s, seq, floor)
	}
	forgotten := session(giver, 0)
	giver.wants(incrOn(200, forgotten, 1, 0), "1")
	for range maxSessions {
		session(giver, 0)
	}
	giver.wants(incrOn(200, forgotten, 1, 0), expired)
	s := session(giver, 0)
	giver.wants(incrOn(200, s, 5, 0), "2")
	giver.wants(incrOn(200, s, 6, 0), "3")
	giver.wants(incrOn(5, s, 50, 6), "1") // in a slot that stays: 5 was given up
	giver.wants(incrOn(200, s, 5, 0), expired)
	idle := session(giver, 0) // nothing in the slots that move is left of it but its floor
	giver.wants(incrOn(200, idle, 5, 0), "4")
	giver.wants(incrOn(5, idle, 50, 50), "2")

	receiver := emptyMachine(t, testConfig())
	in := testInit()
	in.Shard, in.Slots = 2, nil
	receiver.apply(0, command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
	session(receiver, forgotten) // before the giver forgot it
	moved := command.SlotRange{From: 200, To: 200}
	token := receiver.apply(0, slotsCommand(command.OpSlotsExpect, 1, moved))[0].Int
	n := int64(0)
	for _, part := range giver.f.SlotAnswers([]command.SlotRange{moved}, 64<<10) {
		receiver.wants(command.Command{Op: command.OpSlotsAnswers, Int: token, TTL: n, Values: [][]byte{part}}, "OK")
		n++
	}
	receiver.wants(command.Command{Op: command.OpSlotsOwn, Int: token, TTL: n}, "OK")
	session(receiver, s) // as a node does for a session that it takes to be new here
	receiver.wants(incrOn(200, forgotten, 1, 0), expired)
	session(receiver, idle)
	receiver.wants(incrOn(200, s, 5, 0), expired)
	receiver.wants(incrOn(200, idle, 5, 0), expired)
	receiver.wants(incrOn(200, s, 6, 0), "3")
	receiver.wants(incrOn(200, s, 51, 6), "1") // the key itself was not sent
	receiver.checkState()
	receiver.reopen(0)
	receiver.wants(incrOn(200, forgotten, 1, 0), expired)
}
