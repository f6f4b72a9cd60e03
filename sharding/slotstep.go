package sharding

import "slices"

// What may be wrong with slot moves and the shards that come for them, in a map (validate…) and in a step from one to the next (slotSteps). FinishSlotMove and the
// others say no more than what is wanted; shard 0 takes nothing that does not pass here, from whomever it comes.

func (m Map) validateSlotMoves(f *faults) {
	if len(m.SlotMoves) > MaxSlotMoves {
		f.add("%d slot moves: must be at most %d", len(m.SlotMoves), MaxSlotMoves)
		return
	}
	var wished slotSet
	for i, mv := range m.SlotMoves {
		if mv.ID == 0 || mv.ID > m.LastSlotMove || i > 0 && m.SlotMoves[i-1].ID >= mv.ID {
			f.add("slot move %d: ids must be unique, in order and from 1 to %d, the last one given", mv.ID, m.LastSlotMove)
		}
		from, ok := m.Shard(mv.From)
		if _, has := m.Shard(mv.To); !ok || !has || mv.From == mv.To {
			f.add("slot move %d: of shard %d to %d: must be two that are there", mv.ID, mv.From, mv.To)
		}
		if len(mv.Slots) == 0 || !legal(mv.Slots) {
			f.add("slot move %d: its slots must be ranges within 0-%d, apart and in order", mv.ID, Slots-1)
			continue
		}
		var owned slotSet
		if legal(from.Slots) {
			owned.put(from.Slots, true)
		}
		for _, r := range mv.Slots {
			for slot := int(r.From); slot <= int(r.To); slot++ {
				if !owned[slot] {
					f.add("slot move %d: slot %d is not shard %d's", mv.ID, slot, mv.From)
					break
				}
				if wished[slot] {
					f.add("slot move %d: slot %d is in another", mv.ID, slot)
					break
				}
			}
		}
		wished.put(mv.Slots, true)
	}
}

// legal says whether ranges are within bounds, joined and in order.
func legal(ranges []SlotRange) bool {
	for i, r := range ranges {
		if r.From > r.To || r.To >= Slots || i > 0 && int(ranges[i-1].To)+1 >= int(r.From) {
			return false
		}
	}
	return true
}

// validateFounding: what may make itself the first voter of a group must be all there is of it.
func (s Shard) validateFounding(f *faults) {
	if s.Founding == "" {
		return
	}
	if len(s.Replicas) != 1 || s.Replicas[0].ID != s.Founding {
		f.add("shard %d: %q founds it: must be its only replica", s.ID, truncate(s.Founding))
	}
	if len(s.Slots) > 0 {
		f.add("shard %d: it owns slots before it is founded", s.ID)
	}
}

// slotSteps adds what is wrong with how slots, their moves and the shards that come for them change in a step.
func slotSteps(old, new Map, f *faults) {
	begun := slotMovesBegun(old, new, f)
	for _, s := range new.Shards {
		if _, ok := old.Shard(s.ID); !ok {
			newShard(old, new, s, begun, f)
		}
	}
	var ended []SlotMove
	for _, mv := range old.SlotMoves {
		if _, ok := new.SlotMove(mv.ID); !ok {
			ended = append(ended, mv)
		}
	}
	if len(ended) > 1 {
		f.add("slot moves %d and %d end: one a step", ended[0].ID, ended[1].ID)
		return
	}
	stay := old.Clone()
	differ := differentSlots(stay, new)
	if len(ended) == 0 {
		if differ >= 0 {
			f.add("shard %d: its slots change, and no slot move ends", differ)
		}
		return
	}
	mv := ended[0]
	if differ < 0 {
		// Else a wish whose receiver may own the slots by now would be forgotten.
		if !mv.Cancelled && old.mayHaveBegun(mv) {
			f.add("slot move %d ends and shard %d keeps the slots: it must be cancelled first", mv.ID, mv.From)
		}
		return
	}
	stay.hand(mv)
	if id := differentSlots(stay, new); id >= 0 {
		f.add("shard %d: its slots change, and not by slot move %d, which ends", id, mv.ID)
	}
}

// slotMovesBegun lists the moves that are new; those that are not stay what they are.
func slotMovesBegun(old, new Map, f *faults) (begun []SlotMove) {
	for _, mv := range new.SlotMoves {
		was, ok := old.SlotMove(mv.ID)
		switch {
		case !ok && mv.ID <= old.LastSlotMove:
			f.add("slot move %d begins: its id must be above %d, the last one given", mv.ID, old.LastSlotMove)
		case !ok:
			begun = append(begun, mv)
		case was.From != mv.From || was.To != mv.To || !slices.Equal(was.Slots, mv.Slots):
			f.add("slot move %d becomes another", mv.ID)
		case was.Cancelled && !mv.Cancelled:
			f.add("slot move %d was cancelled: that is not taken back", mv.ID)
		}
	}
	if want := old.LastSlotMove + uint64(len(begun)); new.LastSlotMove != want {
		f.add("the last slot move was %d and becomes %d: must be %d, with %d that begin", old.LastSlotMove, new.LastSlotMove, want, len(begun))
	}
	if n := new.mostRanges(); len(begun) > 0 && n > MaxSlotRanges {
		f.add("slots would be in up to %d ranges: must be at most %d: move neighbours back to where they border first", n, MaxSlotRanges)
	}
	return begun
}

// mostRanges is how many ranges of slots the shards can have once the moves have ended, in whatever way: each range that moves can cut one in two and come to another.
func (m Map) mostRanges() (n int) {
	for _, s := range m.Shards {
		n += len(s.Slots)
	}
	for _, mv := range m.SlotMoves {
		n += 2 * len(mv.Slots)
	}
	return n
}

// newShard: a shard comes empty, with one replica that founds it, for a slot move.
func newShard(old, new Map, s Shard, begun []SlotMove, f *faults) {
	if last := old.Shards[len(old.Shards)-1].ID; s.ID < last {
		f.add("shard %d is new: its id must be above %d", s.ID, last)
	}
	if s.Founding == "" { // Validate has seen to it that such a shard is empty and has one replica
		f.add("shard %d is new, and nobody founds it", s.ID)
	}
	for _, r := range s.Replicas {
		if epoch, _ := placedAt(r); epoch != new.Epoch {
			f.add("shard %d: new replica %q: its id must end in the new epoch, %d", s.ID, r.ID, new.Epoch)
		}
	}
	if !slices.ContainsFunc(begun, func(mv SlotMove) bool { return mv.To == s.ID }) {
		f.add("shard %d is new, and no slot move to it begins", s.ID)
	}
}

// foundingStep says what is wrong with how a shard's founder changes in a step: it goes once, when the group is there.
func foundingStep(was, now Shard) string {
	switch {
	case was.Founding == "" && now.Founding != "":
		return "a group that is there is founded anew by " + now.Founding
	case was.Founding != "" && now.Founding == "" && now.place(was.Founding) < 0:
		return was.Founding + " has founded it, and is not in it"
	}
	return "" // another replica in the founder's place: Validate and the rules of replicas see to that
}

// differentSlots is the first shard of a map whose slots are others in another, -1 if there is none. A shard that is new owns none (newShard).
func differentSlots(a, b Map) int64 {
	for _, s := range a.Shards {
		if now, ok := b.Shard(s.ID); ok && !slices.Equal(s.Slots, now.Slots) {
			return int64(s.ID)
		}
	}
	return -1
}
