package sharding

// slotSet is a set of slots, to add and take away ranges without cases.
type slotSet [Slots]bool

// put puts the slots of ranges, which lie within 0..16383, into the set, or takes them out.
func (s *slotSet) put(ranges []SlotRange, in bool) {
	for _, r := range ranges {
		for slot := int(r.From); slot <= int(r.To); slot++ {
			s[slot] = in
		}
	}
}

// ranges is the set in its one form: in order, and joined where they touch. An empty set is an empty list and not nil, which JSON tells apart.
func (s *slotSet) ranges() []SlotRange {
	list := []SlotRange{}
	for slot := 0; slot < Slots; slot++ {
		if !s[slot] {
			continue
		}
		from := slot
		for slot+1 < Slots && s[slot+1] {
			slot++
		}
		list = append(list, SlotRange{From: Slot(from), To: Slot(slot)})
	}
	return list
}

// joinSlots is what a shard owns that gets more.
func joinSlots(have, more []SlotRange) []SlotRange {
	var s slotSet
	s.put(have, true)
	s.put(more, true)
	return s.ranges()
}

// withoutSlots is what is left to a shard that gives some.
func withoutSlots(have, less []SlotRange) []SlotRange {
	var s slotSet
	s.put(have, true)
	s.put(less, false)
	return s.ranges()
}

// upperHalf is the higher half of the slots by their number, the smaller one if that is odd.
func upperHalf(have []SlotRange) []SlotRange {
	var s slotSet
	s.put(have, true)
	skip := countSlots(have) - countSlots(have)/2
	for slot := range s {
		if skip > 0 && s[slot] {
			s[slot] = false
			skip--
		}
	}
	return s.ranges()
}

// countSlots is how many slots are in ranges that are apart.
func countSlots(ranges []SlotRange) (n int) {
	for _, r := range ranges {
		n += int(r.To) - int(r.From) + 1
	}
	return n
}
