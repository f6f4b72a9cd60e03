package fsm

import "encoding/binary"

// What a backup asks of a view: its keys in order, a part at a time, and what it costs that it is open.

// Term is the term of the entry that the view stands at.
func (v *View) Term() uint64 { return v.head.term }

// Held is how many bytes of the state's file are kept from being used again, for the sake of open views: this one or others.
func (v *View) Held() int64 {
	return int64(v.gen.db.Stats().PendingPageN) * int64(v.gen.db.Info().PageSize)
}

// Expiring returns some key that will end, and has not by the shard's clock; nil if there is none. Valid until Close.
func (v *View) Expiring() (slot uint16, key []byte) {
	defer v.f.guard(nil)
	start := binary.BigEndian.AppendUint64(nil, uint64(v.clock+1))
	c := v.layers.cursor(inTTL)
	defer c.guard()()
	c.seek(start)
	for k, _, ok := c.next(); ok; k, _, ok = c.next() {
		if slot, key = splitKey(k[8:]); v.shows(slot) {
			return slot, key
		}
	}
	return 0, nil
}

// Each calls fn for the keys behind (slot, after), slot by slot in key order, until fn says false, which leaves that key for
// the next time. An empty after is before the slot's first key. left is how long a key has yet to live, in milliseconds, 0 if for ever. It looks at no more than
// visits rows, those of keys that have ended included, and returns where it stopped, which is where to go on; done says that there is no key behind.
// What fn gets is valid until Close.
func (v *View) Each(slot uint16, after []byte, visits int, fn func(slot uint16, key, value []byte, left int64) bool) (atSlot uint16, at []byte, done bool) {
	defer v.f.guard(nil)
	c := v.layers.cursor(inKeys)
	defer c.guard()()
	start := appendKey(nil, slot, after)
	if len(after) > 0 {
		start = append(start, 0) // the next key there could be
	}
	c.seek(start)
	for range visits {
		k, r, ok := c.next()
		if !ok {
			return slot, after, true
		}
		s, key := splitKey(k)
		e := seen(r, true, v.clock)
		left := int64(0)
		if e.deadline != 0 {
			left = e.deadline - v.clock
		}
		if e.visible && v.shows(s) && !fn(s, key, e.value, left) {
			return slot, after, false
		}
		slot, after = s, key
	}
	return slot, after, false
}
