package sharding

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// placed is a map with the replicas of each shard as given; only what
// PreferredLeaders looks at.
func placed(shards ...[]NodeID) Map {
	m := Map{}
	seen := map[NodeID]bool{}
	for i, nodes := range shards {
		s := Shard{ID: ShardID(i)}
		for _, n := range nodes {
			s.Replicas = append(s.Replicas, Replica{ID: replicaID(n, 1), Node: n})
			if !seen[n] {
				seen[n] = true
				m.Nodes = append(m.Nodes, Node{ID: n})
			}
		}
		m.Shards = append(m.Shards, s)
	}
	return m
}

// The greedy choice gives shards 0 and 1 to a and b, and then c nothing while a
// or b has two: shards must be handed on along a chain.
func TestPreferredLeadersMovesAlongChains(t *testing.T) {
	m := placed(
		[]NodeID{"a", "b"}, []NodeID{"b", "c"}, []NodeID{"c", "d"},
		[]NodeID{"a"}, []NodeID{"a", "b"}, []NodeID{"b"}, []NodeID{"d"},
	)
	leads := map[NodeID]int{}
	for shard, n := range PreferredLeaders(m) {
		if _, ok := m.Shards[shard].On(n); !ok {
			t.Fatalf("shard %d prefers %q", shard, n)
		}
		leads[n]++
	}
	if spread(leads) > 1 || len(leads) != 4 {
		t.Fatalf("leaders per node %v", leads)
	}
}

// Against every possible assignment of small random placements: the most that a
// node leads is as low, and the least as high, as any assignment has it.
func TestPreferredLeadersIsOptimal(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		nodes := 2 + rng.IntN(3)
		shards := make([][]NodeID, 1+rng.IntN(6))
		for i := range shards {
			for _, n := range rng.Perm(nodes)[:1+rng.IntN(nodes)] {
				shards[i] = append(shards[i], fmt.Sprint("n", n))
			}
		}
		m := placed(shards...)
		squares := func(count map[NodeID]int) (sum int) {
			for _, n := range count {
				sum += n * n
			}
			return sum
		}
		got := map[NodeID]int{}
		for _, n := range PreferredLeaders(m) {
			got[n]++
		}
		best := 1 << 30
		count := map[NodeID]int{}
		var try func(i int)
		try = func(i int) {
			if i == len(shards) {
				best = min(best, squares(count))
				return
			}
			for _, n := range shards[i] {
				count[n]++
				try(i + 1)
				count[n]--
			}
		}
		try(0)
		if squares(got) != best {
			t.Fatalf("seed %d: placement %v: leaders %v, sum of squares %d, best %d", seed, shards, got, squares(got), best)
		}
	}
}

func TestPreferredLeadersOfNothing(t *testing.T) {
	if got := PreferredLeaders(Map{}); len(got) != 0 {
		t.Errorf("empty map: %v", got)
	}
	if got := PreferredLeaders(Map{Shards: []Shard{{ID: 0}}}); len(got) != 0 {
		t.Errorf("a shard without replicas: %v", got)
	}
}

func TestBalanceLeader(t *testing.T) {
	s := placed([]NodeID{"n1", "n2", "n3"}).Shards[0]
	for name, tc := range map[string]struct {
		leader, preferred NodeID
		ready             string
		want              ReplicaID // "": none
	}{
		"the preferred leads":              {"n1", "n1", "n1n2n3", ""},
		"the preferred is ready":           {"n1", "n2", "n1n2n3", "n2.1"},
		"the preferred is not ready":       {"n1", "n2", "n1n3", ""},
		"nobody leads":                     {"", "n2", "n1n2n3", ""},
		"the preferred holds none":         {"n1", "n9", "n1n2n3n9", ""},
		"no preference":                    {"n1", "", "n1n2n3", ""},
		"leader not placed":                {"n9", "n2", "n1n2n3", "n2.1"},
		"leader not placed, second choice": {"n9", "n1", "n3n2", "n2.1"},
		"leader not placed, none ready":    {"n9", "n1", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			ready := func(n NodeID) bool {
				for i := 0; i+2 <= len(tc.ready); i += 2 {
					if tc.ready[i:i+2] == n {
						return true
					}
				}
				return false
			}
			got, ok := BalanceLeader(s, tc.leader, tc.preferred, ready)
			if got.ID != tc.want || ok != (tc.want != "") {
				t.Fatalf("got %+v, %v; want %q", got, ok, tc.want)
			}
		})
	}
}

func BenchmarkPreferredLeaders(b *testing.B) {
	m := cluster(b, 3, MaxShards, 3)
	for b.Loop() {
		PreferredLeaders(m)
	}
}
