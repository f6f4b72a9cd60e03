package fsm

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/fsm/planted"
)

// Slots change hands between two shards, the giver and the receiver, by entries in both logs. The receiver's decides:
//
//	receiver   expect (an attempt begins) · load, answers (parts, numbered) · own or abort, of which the first holds for ever
//	giver      freeze, after which nothing is read or written there · thaw after abort, or release after own
//
// A slot is served by the giver up to freeze, and by the receiver from own on. Own comes after freeze and after all parts,
// for its attempt has to be the newest one, and one attempt's driver freezes before it sends the last part. So at every
// moment one shard at most serves a slot, whoever of the two, or of their drivers, is slow, dead or deposed.
type ownership struct {
	// of says for each slot what it is to this shard.
	of [command.Slots]tenure
	// out are the slots that are frozen, nil if there are none.
	out *handover
	// in are the slots that are expected, nil if there are none.
	in *handover
	// decided is the newest move that this shard was to receive and whose fate is known. Older ones are refused.
	decided decision
	// attempts is how many attempts to receive slots were begun or asked for; the tokens of attempts are its values.
	attempts uint64
	// hidden is what is stored in slots that are not owned: not there yet, or not there any more.
	hidden slotCount
}

// tenure is what a slot is to a shard.
type tenure uint8

const (
	notOwned tenure = iota
	expected        // not owned, and rows of it come in
	owned
	leaving // owned, and neither read nor written
)

type handover struct {
	move  uint64
	token uint64 // of the attempt, which the receiver's log has given it
	parts uint64 // how many have come; of what comes in only
	slots []command.SlotRange
}

type decision struct {
	move  uint64
	token uint64 // of the attempt that brought it about
	owned bool
}

// clearMost bounds what one OpSlotsClear removes. Part of the replicated behaviour.
const clearMost = 1000

// maxParts bounds the parts of one attempt: nothing comes near it.
const maxParts = 1 << 40

func (o *ownership) mark(slots []command.SlotRange, t tenure) {
	for _, r := range slots {
		for s := int(r.From); s <= int(r.To); s++ {
			o.of[s] = t
		}
	}
}

// all says whether every one of the slots is t.
func (o *ownership) all(slots []command.SlotRange, t tenure) bool {
	for _, r := range slots {
		for s := int(r.From); s <= int(r.To); s++ {
			if o.of[s] != t {
				return false
			}
		}
	}
	return true
}

// ranges are the slots that are the shard's in one of these ways, in order and joined where they touch.
func (o *ownership) ranges(tenures ...tenure) (list []command.SlotRange) {
	for s, t := range o.of {
		switch n := len(list); {
		case !slices.Contains(tenures, t):
		case n > 0 && int(list[n-1].To)+1 == s:
			list[n-1].To = uint16(s)
		default:
			list = append(list, command.SlotRange{From: uint16(s), To: uint16(s)})
		}
	}
	return list
}

// leaving is what is frozen.
func (o *ownership) leaving() []command.SlotRange {
	if o.out == nil {
		return nil
	}
	return o.out.slots
}

// doSlots carries out a command about slots that change hands. It has been validated.
func (a *applier) doSlots(c *command.Command) command.Result {
	o := &a.own
	if c.Op != command.OpSlotsClear {
		a.ownNew, a.changed = true, a.index
	}
	switch c.Op {
	case command.OpSlotsExpect:
		return a.doExpect(c)
	case command.OpSlotsLoad, command.OpSlotsAnswers:
		return a.doPart(c)
	case command.OpSlotsOwn:
		return a.doOwn(c)
	case command.OpSlotsAbort:
		switch move := uint64(c.Int); {
		case move == o.decided.move && o.decided.owned:
			return command.Int(1)
		case move < o.decided.move || o.in != nil && move != o.in.move:
			return command.Err(command.CodeConflict) // moves come in order: another is under way
		default:
			a.giveUp()
			o.decided = decision{move: move}
			return command.Int(0)
		}
	case command.OpSlotsFreeze:
		return a.doFreeze(c)
	case command.OpSlotsThaw:
		// By who has begun a later attempt than the one that froze them, or has read "abort".
		if o.out != nil && o.out.move == uint64(c.Int) && o.out.token < uint64(c.TTL) {
			o.mark(o.out.slots, owned)
			o.out = nil
		}
		return command.OK()
	case command.OpSlotsRelease:
		if o.out != nil && o.out.move == uint64(c.Int) {
			o.mark(o.out.slots, notOwned)
			o.out = nil
			a.ownChanged()
		}
		return command.OK()
	case command.OpSlotsClear:
		return command.Int(a.clear(int(min(c.Int, clearMost))))
	}
	panic(fmt.Sprintf("fsm: entry %d: op %v is not about slots", a.index, c.Op))
}

func (a *applier) doExpect(c *command.Command) command.Result {
	o, move := &a.own, uint64(c.Int)
	slots, err := command.DecodeSlots(c.Values[0])
	switch {
	case err != nil:
		return command.Err(command.CodeBadCommand)
	case move == o.decided.move && o.decided.owned:
		return command.Nil()
	case move <= o.decided.move || o.in != nil && move < o.in.move:
		return command.Err(command.CodeConflict)
	}
	a.giveUp() // also this move's own earlier attempt: from here on it can decide nothing
	o.attempts++
	if !o.all(slots, notOwned) {
		return command.Err(command.CodeConflict)
	}
	for _, r := range slots {
		if s, _, ok := a.counts.next(int(r.From)); ok && s <= r.To {
			return command.Result{Kind: command.KindError, Code: command.CodeSlotsLeft, Int: int64(o.attempts)}
		}
	}
	o.in = &handover{move: move, token: o.attempts, slots: slots}
	o.mark(slots, expected)
	return command.Int(int64(o.attempts))
}

// giveUp ends the attempt under way. What it has brought stays until it is cleared.
func (a *applier) giveUp() {
	o := &a.own
	if o.in == nil {
		return
	}
	o.mark(o.in.slots, notOwned)
	if o.in.move-1 > o.decided.move {
		// Older moves are over, whatever became of them; this one may begin anew.
		o.decided = decision{move: o.in.move - 1}
	}
	o.in = nil
}

func (a *applier) doPart(c *command.Command) command.Result {
	in := a.own.in
	n := uint64(c.TTL)
	switch {
	case in == nil || in.token != uint64(c.Int) || n > in.parts || n >= maxParts:
		return command.Err(command.CodeConflict)
	case n < in.parts:
		return command.OK()
	}
	if c.Op == command.OpSlotsAnswers {
		list, err := decodeAnswers(c.Values[0])
		if err != nil {
			return command.Err(command.CodeBadCommand)
		}
		if !planted.Is(planted.ForgetAnswers) {
			a.sess.merge(list)
		}
		in.parts++
		return command.OK()
	}
	rows, err := c.Rows()
	if err != nil {
		return command.Err(command.CodeBadCommand)
	}
	for i := range rows {
		if a.own.of[rows[i].Slot] != expected {
			return command.Err(command.CodeBadCommand)
		}
	}
	for i := range rows {
		r := &rows[i]
		old := a.load(r.Slot, r.Key)
		if r.Gone {
			a.remove(r.Slot, r.Key, old)
		} else {
			a.put(r.Slot, r.Key, r.Value, a.deadlineIn(r.TTL), old)
		}
	}
	in.parts++
	return command.OK()
}

func (a *applier) doOwn(c *command.Command) command.Result {
	o, token := &a.own, uint64(c.Int)
	switch {
	case o.decided.owned && o.decided.token == token:
		return command.OK()
	case o.in == nil || o.in.token != token || o.in.parts != uint64(c.TTL):
		return command.Err(command.CodeConflict)
	}
	o.mark(o.in.slots, owned)
	for _, r := range o.in.slots {
		for s := int(r.From); s <= int(r.To); s++ {
			// Whoever watches a key that is not here may have seen it come and go while the slot was another shard's.
			a.counts.at(uint16(s)).removed = a.index
			a.dirty.add(uint16(s))
		}
	}
	o.decided = decision{move: o.in.move, token: token, owned: true}
	o.in = nil
	a.ownChanged()
	return command.OK()
}

func (a *applier) doFreeze(c *command.Command) command.Result {
	o := &a.own
	if o.out != nil {
		if o.out.move == uint64(c.Int) && o.out.token <= uint64(c.TTL) {
			a.own.out.token = uint64(c.TTL)
			return command.OK()
		}
		return command.Err(command.CodeConflict)
	}
	slots, err := command.DecodeSlots(c.Values[0])
	if err != nil {
		return command.Err(command.CodeBadCommand)
	}
	if !o.all(slots, owned) {
		return command.Err(command.CodeConflict)
	}
	o.out = &handover{move: uint64(c.Int), token: uint64(c.TTL), slots: slots}
	o.mark(slots, leaving)
	return command.OK()
}

// ownChanged makes the shard's identity say what it owns now.
func (a *applier) ownChanged() {
	in := *a.init // published: never changed in place
	in.Slots = a.own.ranges(owned, leaving)
	a.init, a.initIsNew = &in, true
	a.countHidden()
}

func (a *applier) countHidden() {
	a.own.hidden = slotCount{}
	for s, c, ok := a.counts.next(0); ok; s, c, ok = a.counts.next(int(s) + 1) {
		if a.own.of[s] < owned {
			a.own.hidden.add(c.records, c.bytes)
		}
	}
}

// clear removes rows of slots that are neither owned nor expected.
func (a *applier) clear(most int) (n int64) {
	if a.own.hidden.records == 0 {
		return 0
	}
	var keys [][]byte
	for s, _, ok := a.counts.next(0); ok && len(keys) < most; s, _, ok = a.counts.next(int(s) + 1) {
		if a.own.of[s] != notOwned {
			continue
		}
		a.layers.walk(inKeys, binary.BigEndian.AppendUint16(nil, s), func(k []byte, _ row) bool {
			keys = append(keys, clone(k))
			return len(keys) < most
		})
	}
	for _, k := range keys {
		slot, key := splitKey(k)
		a.remove(slot, key, a.load(slot, key))
	}
	return int64(len(keys))
}

// encode writes what is not in the shard's identity:
//
//	1 (version), attempts · decided: move, token, owned (1) · out, in: 0, or 1, move, token, parts, slots (command.AppendSlots, with its length)
const ownershipVersion = 1

func (o *ownership) encode() []byte {
	buf := binary.AppendUvarint([]byte{ownershipVersion}, o.attempts)
	buf = binary.AppendUvarint(buf, o.decided.move)
	buf = binary.AppendUvarint(buf, o.decided.token)
	if o.decided.owned {
		buf = append(buf, 1)
	} else {
		buf = append(buf, 0)
	}
	for _, h := range []*handover{o.out, o.in} {
		if h == nil {
			buf = append(buf, 0)
			continue
		}
		buf = append(buf, 1)
		for _, n := range []uint64{h.move, h.token, h.parts} {
			buf = binary.AppendUvarint(buf, n)
		}
		slots := command.AppendSlots(nil, h.slots)
		buf = append(binary.AppendUvarint(buf, uint64(len(slots))), slots...)
	}
	return buf
}

// changed is encode, or nil if no slots ever changed hands.
func (o *ownership) changed() []byte {
	if o.attempts == 0 && o.decided == (decision{}) && o.out == nil && o.in == nil {
		return nil
	}
	return o.encode()
}

// restore marks what is owned by the shard's identity, and takes over what encode wrote; data is nil if nothing was ever written.
func (o *ownership) restore(init *command.Init, data []byte) error {
	*o = ownership{}
	if init != nil {
		o.mark(init.Slots, owned)
	}
	if data == nil {
		return nil
	}
	bad := fmt.Errorf("%d bytes do not say which slots change hands", len(data))
	if data[0] != ownershipVersion {
		return bad
	}
	data = data[1:]
	short := false
	number := func() uint64 {
		n, size := binary.Uvarint(data)
		if size <= 0 {
			short = true
			return 0
		}
		data = data[size:]
		return n
	}
	o.attempts = number()
	o.decided = decision{move: number(), token: number(), owned: number() == 1}
	for _, h := range []struct {
		to     **handover
		before tenure
		now    tenure
	}{{&o.out, owned, leaving}, {&o.in, notOwned, expected}} {
		if number() == 0 || short {
			continue
		}
		got := &handover{move: number(), token: number(), parts: number()}
		size := number()
		if short || size > uint64(len(data)) {
			return bad
		}
		slots, err := command.DecodeSlots(data[:size])
		if err != nil {
			return err
		}
		if data = data[size:]; !o.all(slots, h.before) {
			return bad
		}
		got.slots, *h.to = slots, got
		o.mark(slots, h.now)
	}
	if short || len(data) > 0 {
		return bad
	}
	return nil
}
