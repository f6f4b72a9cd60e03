package sharding

import (
	"slices"
	"testing"
)

// A younger move to a shard that is cancelled before its turn leaves no "abort" in that shard's log, which takes moves in order: the older one could
// neither be carried out nor be cancelled after it. (Found by node/sim.)
func TestCancelBeforeItsTurn(t *testing.T) {
	m, err := StartSlotMove(founded(t), SlotRange{0, 9}, 2) // behind the split, which is move 1
	if err != nil {
		t.Fatal(err)
	}
	for _, paused := range []bool{false, true} {
		m, err := PauseSlotMove(m, 1, paused) // who is not running bars the way all the same
		if err != nil {
			t.Fatal(err)
		}
		if list := m.RunningSlotMoves(); slices.ContainsFunc(list, func(mv SlotMove) bool { return mv.ID == 2 }) {
			t.Fatalf("move 2 runs before move 1: %+v", list)
		}
		next, err := CancelSlotMove(m, 2)
		if err != nil {
			t.Fatal(err)
		}
		if mv, there := next.SlotMove(2); there {
			t.Errorf("it is to be given up by the receiver's log, which would bar move 1: %+v", mv)
		}
		if _, there := next.SlotMove(1); !there {
			t.Error("move 1 is gone")
		}
	}
	// The oldest may have begun: the log is asked.
	next, err := CancelSlotMove(m, 1)
	if err != nil {
		t.Fatal(err)
	}
	if mv, there := next.SlotMove(1); !there || !mv.Cancelled {
		t.Errorf("move 1 is %+v, want it to wait for the receiver's word", mv)
	}
}
