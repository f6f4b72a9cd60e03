package sharding

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// owners is who owns each slot, worked out from the ranges alone.
func owners(t *testing.T, m Map) (owner [Slots]ShardID) {
	t.Helper()
	for i := range owner {
		owner[i] = NoShard
	}
	for _, s := range m.Shards {
		for _, r := range s.Slots {
			for slot := int(r.From); slot <= int(r.To); slot++ {
				if owner[slot] != NoShard {
					t.Fatalf("slot %d is shard %d's and shard %d's", slot, owner[slot], s.ID)
				}
				owner[slot] = s.ID
			}
		}
	}
	if i := slices.Index(owner[:], NoShard); i >= 0 {
		t.Fatalf("slot %d is nobody's", i)
	}
	return owner
}

// checkSlotStep is checkStep's part about slots: one owner each, another one only if a slot move has ended, and then of exactly its slots; no shard and no
// move that goes on is lost, and those that run may.
func checkSlotStep(t *testing.T, was, now Map) {
	t.Helper()
	before, after := owners(t, was), owners(t, now)
	moved := map[Slot]bool{}
	for slot := range after {
		if before[slot] != after[slot] {
			moved[Slot(slot)] = true
		}
	}
	for _, mv := range was.SlotMoves {
		if _, ok := now.SlotMove(mv.ID); ok || len(moved) == 0 {
			continue
		}
		for _, r := range mv.Slots {
			for slot := int(r.From); slot <= int(r.To); slot++ {
				if before[slot] != mv.From || after[slot] != mv.To {
					t.Fatalf("slot move %d of shard %d to %d has ended, and slot %d was %d's and is %d's", mv.ID, mv.From, mv.To, slot, before[slot], after[slot])
				}
				delete(moved, Slot(slot))
			}
		}
	}
	if len(moved) > 0 {
		t.Fatalf("%d slots have another owner, and no move of them has ended", len(moved))
	}
	for _, s := range was.Shards {
		if _, ok := now.Shard(s.ID); !ok {
			t.Fatalf("shard %d is lost", s.ID)
		}
	}
	checkRunning(t, now)
}

// checkRunning is what must hold of the slot moves that run.
func checkRunning(t *testing.T, m Map) {
	t.Helper()
	busy, others := map[ShardID]bool{}, 0
	running := m.RunningSlotMoves()
	if !slices.IsSortedFunc(running, func(a, b SlotMove) int { return int(a.ID) - int(b.ID) }) {
		t.Fatalf("out of order: %+v", running)
	}
	for _, mv := range m.SlotMoves {
		runs := slices.ContainsFunc(running, func(r SlotMove) bool { return r.ID == mv.ID })
		if runs != (m.WhySlotMoveWaits(mv.ID) == "") || mv.Cancelled && !runs {
			t.Fatalf("%+v runs: %v, waits because %q", mv, runs, m.WhySlotMoveWaits(mv.ID))
		}
		if !runs || mv.Cancelled {
			continue
		}
		from, _ := m.Shard(mv.From)
		to, _ := m.Shard(mv.To)
		others++
		if mv.Paused || busy[mv.From] || busy[mv.To] || to.Founding != "" || len(to.Replicas) < min(m.ReplicasWanted, len(from.Replicas)) {
			t.Fatalf("%+v runs, from %+v to %+v", mv, from, to)
		}
		busy[mv.From], busy[mv.To] = true, true
	}
	if others > SlotMovesAtOnce {
		t.Fatalf("%d run at once", others)
	}
}

// anySlotStep is one thing that can be said about slots or their moves, at any time.
func anySlotStep(rng *rand.Rand, m Map, node NodeID) (Map, error) {
	shard := m.Shards[rng.IntN(len(m.Shards))]
	id := uint64(0)
	if len(m.SlotMoves) > 0 {
		id = m.SlotMoves[rng.IntN(len(m.SlotMoves))].ID
	}
	switch rng.IntN(9) {
	case 0, 1:
		return StartSplit(m, shard.ID, node)
	case 2:
		if len(m.Shards) > 12 {
			return Map{}, ErrNoSlotMove
		}
		return StartSplits(m, func(ShardID) NodeID { return node })
	case 3, 4:
		if len(shard.Slots) == 0 {
			return Map{}, ErrNoSlotMove
		}
		r := shard.Slots[rng.IntN(len(shard.Slots))]
		a, b := rng.IntN(int(r.To-r.From)+1), rng.IntN(int(r.To-r.From)+1)
		return StartSlotMove(m, SlotRange{r.From + Slot(min(a, b)), r.From + Slot(max(a, b))}, m.Shards[rng.IntN(len(m.Shards))].ID)
	case 5:
		return CancelSlotMove(m, id)
	case 6:
		return PauseSlotMove(m, id, rng.IntN(2) == 0)
	case 7:
		return AbortSlotMove(m, id)
	default:
		return FinishSlotMove(m, id)
	}
}

// stepSlots has groups be founded, and the moves that run end, as their drivers would, and says how many there were to do.
func stepSlots(t *testing.T, rng *rand.Rand, m Map, may Candidate) (_ Map, open int) {
	t.Helper()
	take := func(next Map, err error) {
		if err != nil {
			t.Fatal(err)
		}
		checkStep(t, m, next, may)
		m = next
	}
	for _, s := range m.Shards {
		if s.Founding == "" {
			continue
		}
		if open++; rng.IntN(2) == 0 {
			next, changed, err := Founded(m, s.ID)
			if !changed {
				t.Fatalf("shard %d was founded before", s.ID)
			}
			take(next, err)
		}
	}
	for _, mv := range m.RunningSlotMoves() {
		open++
		switch {
		case rng.IntN(2) == 0:
		case mv.Cancelled && rng.IntN(2) == 0:
			take(AbortSlotMove(m, mv.ID))
		default:
			take(FinishSlotMove(m, mv.ID))
		}
	}
	return m, open
}
