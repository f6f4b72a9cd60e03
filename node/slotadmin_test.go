package node

import (
	"testing"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// What an administrator says about slots may be said twice, for answers get lost: while it goes on, and when it is done. A decision is
// made here on a map of two shards, again on what came of it, and again when the slot moves have ended.
func TestSlotVerbsMayBeRepeated(t *testing.T) {
	first := func(sharding.Map, sharding.Shard) sharding.NodeID { return "n1" }
	split := func(id sharding.ShardID, had int) decision {
		return func(m sharding.Map) (sharding.Map, bool, error) {
			sh, _ := m.Shard(id)
			return decideSplit(m, sh, had, first)
		}
	}
	all := func(m sharding.Map) (sharding.Map, bool, error) { return decideSplitAll(m, first) }
	move := func(m sharding.Map) (sharding.Map, bool, error) {
		to, _ := m.Shard(1)
		return decideSlotMove(m, sharding.SlotRange{From: 5, To: 9}, to)
	}
	for _, tc := range []struct {
		name       string
		decide     decision
		shards     int
		whenDone   bool // said again then, it is something new
		splitAfter int  // shards that are there when everything was said
	}{
		{"split, its slots told", split(0, 8192), 3, false, 3},
		{"split", split(0, 0), 3, true, 4},
		{"split all", all, 4, true, 8},
		{"slots move", move, 2, false, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := sharding.NewMap("c", sharding.Node{ID: "n1"}, 2, 1)
			if err != nil {
				t.Fatal(err)
			}
			say := func(want bool) {
				t.Helper()
				next, changed, err := tc.decide(m)
				if err != nil || changed != want {
					t.Fatalf("changed %v, want %v: %v", changed, want, err)
				}
				m = next
			}
			say(true)
			say(false)
			if len(m.Shards) != tc.shards {
				t.Fatalf("%d shards, want %d", len(m.Shards), tc.shards)
			}
			end(t, &m, len(m.SlotMoves))
			say(tc.whenDone)
			if len(m.Shards) != tc.splitAfter {
				t.Errorf("%d shards, want %d", len(m.Shards), tc.splitAfter)
			}
		})
	}
	// Of all that are split some are done: to split all would split these again.
	m, err := sharding.NewMap("c", sharding.Node{ID: "n1"}, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	if m, _, err = all(m); err != nil {
		t.Fatal(err)
	}
	end(t, &m, 1)
	if _, _, err := all(m); transport.CodeOf(err) != transport.CodeRefused {
		t.Errorf("half of them: %v", err)
	}
}

// end ends the first slot moves of a map.
func end(t *testing.T, m *sharding.Map, n int) {
	t.Helper()
	for _, mv := range m.SlotMoves[:n] {
		next, _, err := sharding.Founded(*m, mv.To)
		if err == nil {
			*m, err = sharding.FinishSlotMove(next, mv.ID)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
