package sharding

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
)

// Three nodes one after the other: each shard gets its replica with the join,
// the fourth node gets none.
func TestPlanJoinGrowsReplicas(t *testing.T) {
	for nodes := 1; nodes <= 5; nodes++ {
		m := cluster(t, nodes, 8, 3)
		if m.Epoch != uint64(nodes) || len(m.Nodes) != nodes {
			t.Fatalf("%d nodes: epoch %d, %d nodes", nodes, m.Epoch, len(m.Nodes))
		}
		want := []Replica{{"n1.1", "n1"}, {"n2.2", "n2"}, {"n3.3", "n3"}}[:min(nodes, 3)]
		for _, s := range m.Shards {
			if !reflect.DeepEqual(s.Replicas, want) {
				t.Errorf("%d nodes: shard %d has %v", nodes, s.ID, s.Replicas)
			}
		}
	}
}

func TestPlanJoinRefuses(t *testing.T) {
	m := cluster(t, 2, 8, 3)
	if _, err := PlanJoin(m, node("n2")); !errors.Is(err, ErrKnownNode) {
		t.Errorf("a known node: %v", err)
	}
	if _, err := PlanJoin(m, node("n/3")); err == nil {
		t.Error("a bad id was accepted")
	}
}

// The map that a plan starts from is in use elsewhere.
func TestPlansLeaveTheirMapAlone(t *testing.T) {
	m := cluster(t, 2, 8, 3)
	before := m.Clone()
	if _, err := PlanJoin(m, node("n0")); err != nil {
		t.Fatal(err)
	}
	moved := node("n1")
	moved.Addrs = Addrs{}
	UpdateNode(m, moved)
	m.ReplicasWanted = 5
	PlanGrow(m, anyNode, anyShard)
	m.ReplicasWanted = before.ReplicasWanted
	if !reflect.DeepEqual(m, before) {
		t.Fatalf("got %+v, want %+v", m, before)
	}
}

// Replicas wanted rises on a cluster of many nodes: it is reached a replica at a
// time, by legal steps, and the new replicas spread over the empty nodes.
func TestPlanGrow(t *testing.T) {
	for _, nodes := range []int{2, 3, 4, 6, 11} {
		m := cluster(t, nodes, 16, 1)
		m.ReplicasWanted = 3
		steps := 0
		for {
			next, grew := PlanGrow(m, anyNode, anyShard)
			if !grew {
				break
			}
			if err := ValidateTransition(m, next); err != nil {
				t.Fatalf("%d nodes: %v", nodes, err)
			}
			m = next
			steps++
		}
		if want := min(nodes, 3) - 1; steps != want {
			t.Errorf("%d nodes: %d steps, want %d", nodes, steps, want)
		}
		load := map[NodeID]int{}
		for _, s := range m.Shards {
			if len(s.Replicas) != min(nodes, 3) {
				t.Errorf("%d nodes: shard %d has %d replicas", nodes, s.ID, len(s.Replicas))
			}
			for _, r := range s.Replicas {
				load[r.Node]++
			}
		}
		delete(load, "n1") // holds the first replica of all
		if len(load) != nodes-1 || spread(load) > 1 {
			t.Errorf("%d nodes: replicas per node %v", nodes, load)
		}
	}
}

func TestUpdateNode(t *testing.T) {
	m := cluster(t, 3, 4, 3)
	moved := node("n2")
	moved.Addrs.Peer = "new:1"
	next, ok := UpdateNode(m, moved)
	if !ok {
		t.Fatal("nothing changed")
	}
	if err := ValidateTransition(m, next); err != nil {
		t.Fatal(err)
	}
	if n, _ := next.Node("n2"); n != moved {
		t.Errorf("got %+v", n)
	}
	if _, ok := UpdateNode(next, moved); ok {
		t.Error("changed twice")
	}
	if _, ok := UpdateNode(m, node("n9")); ok {
		t.Error("an unknown node changed the map")
	}
	moved.Instance = "dir-other"
	if _, ok := UpdateNode(m, moved); ok {
		t.Error("another directory under the same id changed the map")
	}
}

// Random joins in random order of ids: every step is legal, replicas are as many
// as the nodes allow, and the leaders are spread evenly and stable.
func TestRandomJoins(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		wanted := 1 + rng.IntN(5)
		ids := rng.Perm(1 + rng.IntN(8))
		m, err := NewMap("c1", node(fmt.Sprint("n", ids[0])), 1+rng.IntN(40), wanted)
		if err != nil {
			t.Fatal(err)
		}
		for joined := 1; ; joined++ {
			check(t, seed, m, min(joined, wanted), joined <= wanted)
			if joined == len(ids) {
				break
			}
			next, err := PlanJoin(m, node(fmt.Sprint("n", ids[joined])))
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err := ValidateTransition(m, next); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			m = next
		}
	}
}

func check(t *testing.T, seed uint64, m Map, replicas int, everywhere bool) {
	t.Helper()
	load := map[NodeID]int{}
	for _, s := range m.Shards {
		if len(s.Replicas) != replicas {
			t.Fatalf("seed %d: shard %d has %d replicas, want %d", seed, s.ID, len(s.Replicas), replicas)
		}
		for _, r := range s.Replicas {
			load[r.Node]++
		}
	}
	if spread(load) > 1 {
		t.Fatalf("seed %d: replicas per node %v", seed, load)
	}
	preferred := PreferredLeaders(m)
	leads := map[NodeID]int{}
	for _, s := range m.Shards {
		if _, ok := s.On(preferred[s.ID]); !ok {
			t.Fatalf("seed %d: shard %d prefers %q, which holds no replica", seed, s.ID, preferred[s.ID])
		}
		leads[preferred[s.ID]]++
	}
	if everywhere {
		for _, n := range m.Nodes {
			leads[n.ID] += 0
		}
		if spread(leads) > 1 {
			t.Fatalf("seed %d: leaders per node %v", seed, leads)
		}
	}
	if again := PreferredLeaders(m.Clone()); !reflect.DeepEqual(again, preferred) {
		t.Fatalf("seed %d: a second look prefers others", seed)
	}
}

func spread(count map[NodeID]int) int {
	least, most := 1<<30, 0
	for _, n := range count {
		least, most = min(least, n), max(most, n)
	}
	return max(0, most-least)
}

// A shard gets no replica while its last change is not carried out, or while one of its replicas moves.
func TestPlanGrowWaits(t *testing.T) {
	m := cluster(t, 5, 2, 2)
	m.ReplicasWanted = 4
	next, grew := PlanGrow(m, anyNode, func(s Shard) bool { return s.ID == 1 })
	if !grew || len(next.Shards[0].Replicas) != 2 || len(next.Shards[1].Replicas) != 3 {
		t.Errorf("%+v", next.Shards)
	}
	moving, err := StartMove(m, 0, "n1.1", "n5")
	if err != nil {
		t.Fatal(err)
	}
	next, grew = PlanGrow(moving, anyNode, anyShard)
	if !grew || len(next.Shards[0].Replicas) != 3 || len(next.Shards[1].Replicas) != 3 {
		t.Errorf("%+v", next.Shards)
	}
}
