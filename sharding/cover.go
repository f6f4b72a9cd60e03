package sharding

// What several shards say is put together by their slots, for these change hands while it is being asked: an answer
// for all keys is one only if the slots that the answers are for are each slot once.

// RunFrom returns the last slot of the longest run of slots that begins at slot and lies within ranges, which are in
// order and may touch. It is false if slot is not in them.
func RunFrom(ranges []SlotRange, slot Slot) (last Slot, ok bool) {
	for _, r := range ranges {
		switch {
		case !ok:
			last, ok = r.To, r.From <= slot && slot <= r.To
		case int(r.From) == int(last)+1:
			last = r.To
		default:
			return last, true
		}
	}
	return last, ok
}

// Partition says whether ranges, in any order, are every slot exactly once. If not, it returns the first slot that is
// in none or in more than one of them.
func Partition(ranges []SlotRange) (fault Slot, ok bool) {
	var times [Slots]uint8 // up to 2
	for _, r := range ranges {
		for slot := int(r.From); slot <= int(r.To) && slot < Slots; slot++ {
			times[slot] = min(times[slot]+1, 2)
		}
	}
	for slot, n := range times {
		if n != 1 {
			return Slot(slot), false
		}
	}
	return 0, true
}
