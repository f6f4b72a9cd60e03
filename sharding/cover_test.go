package sharding

import "testing"

func TestRunFrom(t *testing.T) {
	ranges := []SlotRange{{From: 3, To: 5}, {From: 6, To: 9}, {From: 11, To: 11}, {From: 16000, To: Slots - 1}}
	for _, c := range []struct {
		slot, last Slot
		ok         bool
	}{
		{2, 0, false}, {3, 9, true}, {5, 9, true}, {6, 9, true}, {9, 9, true}, {10, 0, false}, {11, 11, true}, {12, 0, false},
		{16000, Slots - 1, true}, {Slots - 1, Slots - 1, true},
	} {
		last, ok := RunFrom(ranges, c.slot)
		if ok != c.ok || ok && last != c.last {
			t.Errorf("from %d: to %d, %v; want %d, %v", c.slot, last, ok, c.last, c.ok)
		}
	}
	if _, ok := RunFrom(nil, 0); ok {
		t.Error("no ranges have slot 0")
	}
}

func TestPartition(t *testing.T) {
	const last = Slots - 1
	for _, c := range []struct {
		name   string
		ranges []SlotRange
		fault  Slot
		ok     bool
	}{
		{"whole", []SlotRange{{0, last}}, 0, true},
		{"out of order", []SlotRange{{8, last}, {0, 6}, {7, 7}}, 0, true},
		{"none", nil, 0, false},
		{"gap", []SlotRange{{0, 6}, {8, last}}, 7, false},
		{"gap at the end", []SlotRange{{0, last - 1}}, last, false},
		{"double", []SlotRange{{0, 7}, {7, last}}, 7, false},
		{"all twice", []SlotRange{{0, last}, {0, last}}, 0, false},
		{"double and gap even out", []SlotRange{{0, 7}, {7, 7}, {9, last}}, 7, false},
		{"beyond the last", []SlotRange{{0, 9}, {10, last + 5}}, 0, true},
	} {
		if fault, ok := Partition(c.ranges); fault != c.fault || ok != c.ok {
			t.Errorf("%s: slot %d, %v; want %d, %v", c.name, fault, ok, c.fault, c.ok)
		}
	}
}
