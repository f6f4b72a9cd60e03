package fsm

import (
	"bytes"
	"container/heap"
)

// A scan cursor holds no state anywhere: it is a place in an order that never
// changes, slot<<48 | position. A slot is read whole if it is small. The keys of a
// large one are visited in the order of a 48-bit hash, so that keys which come and
// go move no other key: whatever exists from the first page to the last is seen.
const (
	scanPositionBits = 48
	scanPositionMask = 1<<scanPositionBits - 1
	// scanWhole is how many keys a slot may have to be read in one page.
	scanWhole = 1000
	// scanVisits bounds the keys looked at for one page when few of them match.
	scanVisits = 20000
)

// ScanPage returns the next keys of a scan over slots[0]..slots[1], both
// included: those that begin with prefix and that match says yes to (nil: all).
// The first cursor is 0, and so is next when the range is done. A page has count
// keys or more, or fewer where few match; it may be empty before the end. Keys
// that are there during the whole scan come at least once. The keys are copies.
func (v *View) ScanPage(cursor uint64, count int, slots [2]uint16, match func(key []byte) bool, prefix []byte) (keys [][]byte, next uint64) {
	count = max(count, 1)
	slot, pos := slots[0], uint64(0)
	if s := cursor >> scanPositionBits; s > uint64(slots[1]) {
		return nil, 0
	} else if s >= uint64(slot) {
		slot, pos = uint16(s), cursor&scanPositionMask
	}
	visits := 0
	whole := max(count, scanWhole)
	for at, n, ok := v.counts.next(int(slot)); ok && at <= slots[1]; at, n, ok = v.counts.next(int(at) + 1) {
		if !v.shows(at) {
			continue
		}
		if at != slot {
			slot, pos = at, 0
		}
		if len(keys) >= count || visits >= scanVisits {
			return keys, uint64(slot)<<scanPositionBits | pos
		}
		stored := n.records
		visits += int(stored)
		if pos == 0 && stored <= int64(whole) {
			v.scan(slot, slot, prefix, func(_ uint16, key []byte, r *row) bool {
				if v.visible(r) && (match == nil || match(key)) {
					keys = append(keys, clone(key))
				}
				return true
			})
			continue
		}
		var last uint64
		keys, last = v.scanSlot(keys, slot, pos, whole, match, prefix)
		if last != 0 {
			return keys, uint64(slot)<<scanPositionBits | last
		}
	}
	return keys, 0
}

// scanSlot appends the keys of a slot whose positions are the next limit above
// pos. All keys at one position come together, or a page that ended between
// them would lose some. last is the position reached, 0 if the slot is done.
func (v *View) scanSlot(keys [][]byte, slot uint16, pos uint64, limit int, match func([]byte) bool, prefix []byte) (_ [][]byte, last uint64) {
	// First pass: the highest position of the page.
	var top maxHeap
	more := false
	v.scan(slot, slot, prefix, func(_ uint16, key []byte, r *row) bool {
		if !v.visible(r) {
			return true
		}
		p := scanPosition(key)
		switch {
		case p <= pos || match != nil && !match(key):
		case len(top) < limit:
			heap.Push(&top, p)
		case p < top[0]:
			top[0], more = p, true
			heap.Fix(&top, 0)
		case p > top[0]:
			more = true
		}
		return true
	})
	if len(top) == 0 {
		return keys, 0
	}
	last = top[0]
	v.scan(slot, slot, prefix, func(_ uint16, key []byte, r *row) bool {
		if v.visible(r) {
			if p := scanPosition(key); p > pos && p <= last && (match == nil || match(key)) {
				keys = append(keys, bytes.Clone(key))
			}
		}
		return true
	})
	if !more {
		return keys, 0
	}
	return keys, last
}

// scanPosition is FNV-1a folded to 48 bits, and never 0: that is before all. It
// is part of the meaning of cursors that clients hold.
func scanPosition(key []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range key {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return max(h>>scanPositionBits^h&scanPositionMask, 1)
}

// maxHeap keeps the smallest positions, the largest of them on top.
type maxHeap []uint64

func (h maxHeap) Len() int           { return len(h) }
func (h maxHeap) Less(i, j int) bool { return h[i] > h[j] }
func (h maxHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *maxHeap) Push(x any)        { *h = append(*h, x.(uint64)) }
func (h *maxHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
