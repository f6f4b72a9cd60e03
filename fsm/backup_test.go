package fsm

import (
	"fmt"
	"slices"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
)

// A backup takes a view a part at a time: whatever the parts, it gets the keys that a scan gets, in the same order, with
// the time that they have left by the shard's clock, and none that have ended.
func TestEachPartByPart(t *testing.T) {
	m := newMachine(t, testConfig())
	for _, s := range []uint16{0, 3, 3, 100, 16383} {
		for _, key := range []string{"a/2", "a", "b/1", "\xff", "a\x00"} {
			m.log(0, onSlot(set(key, "v"), s))
		}
	}
	m.log(0, onSlot(setTTL("a/0", "ended", 5), 3), onSlot(setTTL("a/3", "later", 50), 3), onSlot(setTTL("z", "ends with it", 7), 100))
	for i := range 3 * purgeLimit { // more than one entry takes out: some have ended, and are there
		m.log(0, onSlot(setTTL(fmt.Sprintf("c/%d", i), "ended", 6), 3))
	}
	m.f.ApplyBatch(m.logs[1:])
	m.pass(7)
	v := m.view()
	defer v.Close()
	if v.Index() == 0 || v.Term() == 0 || !slices.Equal(v.Slots(), testInit().Slots) {
		t.Errorf("index %d, term %d, slots %v", v.Index(), v.Term(), v.Slots())
	}
	var want []string
	v.Scan(0, command.Slots-1, nil, func(slot uint16, key, value []byte) bool {
		left := 0
		if string(key) == "a/3" {
			left = 43
		}
		want = append(want, fmt.Sprintf("%d %q %s %d", slot, key, value, left))
		return true
	})
	if len(want) != 21 {
		t.Fatalf("%d keys", len(want))
	}
	for _, visits := range []int{1, 2, 5, 1000} {
		for _, most := range []int{1, 3, 1000} {
			var got []string
			slot, after, done := uint16(0), []byte(nil), false
			for !done {
				n := 0
				slot, after, done = v.Each(slot, after, visits, func(slot uint16, key, value []byte, left int64) bool {
					if n++; n > most {
						return false
					}
					got = append(got, fmt.Sprintf("%d %q %s %d", slot, key, value, left))
					return true
				})
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d visits, %d keys a part:\n got %q\nwant %q", visits, most, got, want)
			}
		}
	}
	if slot, key := v.Expiring(); slot != 3 || string(key) != "a/3" {
		t.Errorf("key %q of slot %d ends next, want a/3", key, slot)
	}
	m.pass(43)
	later := m.view()
	defer later.Close()
	if _, key := later.Expiring(); key != nil {
		t.Errorf("key %q is going to end, and all have", key)
	}
}

// What a view keeps from being used again shows while it is open, and not after.
func TestHeldByAView(t *testing.T) {
	m := newMachine(t, testConfig())
	rewrite := func() {
		for i := range 300 {
			m.apply(0, set(fmt.Sprintf("key/%d", i), string(make([]byte, 400))))
		}
		m.checkFile()
	}
	rewrite()
	v := m.view()
	before := v.Held()
	for range 10 {
		rewrite()
	}
	most := v.Held()
	if most < before+10*300*400 {
		t.Errorf("%d bytes are held after 10 checkpoints of 300 keys, %d before", most, before)
	}
	v.Close()
	rewrite()
	other := m.view()
	defer other.Close()
	if held := other.Held(); held > most/3 { // the last two checkpoints'
		t.Errorf("%d bytes are held, and the view for which %d were is closed", held, most)
	}
}
