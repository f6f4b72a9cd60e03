package sharding

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func anyNode(NodeID) bool { return true }
func anyShard(Shard) bool { return true }

// carryOut begins and ends moves as planned until none is left, and fails if a step is not allowed or there is no end of them.
func carryOut(t *testing.T, m Map, may Candidate) (Map, int) {
	t.Helper()
	moves := 0
	for {
		plan := PlanMoves(m, may)
		if len(plan) == 0 {
			return m, moves
		}
		for _, w := range plan {
			next, err := StartMove(m, w.Shard, w.From, w.To)
			if err != nil {
				t.Fatalf("a planned move: %v", err)
			}
			sh, _ := next.Shard(w.Shard)
			if m, err = FinishMove(next, w.Shard, *sh.Move); err != nil {
				t.Fatal(err)
			}
			if moves++; moves > 100*len(m.Shards)*len(m.Nodes) {
				t.Fatal("it moves without end")
			}
		}
	}
}

func loads(m Map) map[NodeID]int {
	load := map[NodeID]int{}
	for _, n := range m.Nodes {
		load[n.ID] = 0
	}
	for _, s := range m.Shards {
		for _, r := range s.Replicas {
			load[r.Node]++
		}
	}
	return load
}

func edit(m Map, node NodeID, how func(*Node)) Map {
	m = m.Clone()
	for i := range m.Nodes {
		if m.Nodes[i].ID == node {
			how(&m.Nodes[i])
		}
	}
	return m
}

// Whatever the cluster, once the plan is carried out the counts of nodes that may have replicas are within one of each other, nodes that drain have none, and a plan
// has as few moves as are needed.
func TestPlanMovesLevels(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		wanted := 1 + rng.IntN(5)
		nodes, drains := wanted+rng.IntN(6), 0
		m := cluster(t, nodes, 1+rng.IntN(40), wanted)
		for n := 1; n <= nodes && nodes-drains > wanted; n++ {
			if rng.IntN(5) == 0 {
				m, drains = edit(m, fmt.Sprintf("n%d", n), func(n *Node) { n.Draining = true }), drains+1
			}
		}
		before := loads(m)
		shown := PlanAll(m, anyNode)
		m, moves := carryOut(t, m, anyNode)
		if len(shown) != moves {
			t.Fatalf("seed %d: a person is shown %d moves, and %d are made", seed, len(shown), moves)
		}
		least, most, must := 1<<30, 0, 0
		for _, n := range m.Nodes {
			have := loads(m)[n.ID]
			must += max(0, before[n.ID]-have)
			if n.Draining {
				if have > 0 {
					t.Fatalf("seed %d: node %s drains and has %d replicas", seed, n.ID, have)
				}
				continue
			}
			least, most = min(least, have), max(most, have)
		}
		if most-least > 1 {
			t.Fatalf("seed %d: %d to %d replicas on a node: %v", seed, least, most, loads(m))
		}
		if moves > must {
			t.Fatalf("seed %d: %d moves where %d are enough", seed, moves, must)
		}
	}
}

// A shard's replicas end in as many zones as there are, and none gets a second before another has one.
func TestPlanMovesSpreadsZones(t *testing.T) {
	for _, zones := range []string{"aabbcc", "aaabbc", "abbbbc", "abcabcabc"} {
		t.Run(zones, func(t *testing.T) { testSpread(t, zones) })
	}
}

func testSpread(t *testing.T, zones string) {
	m := cluster(t, len(zones), 12, 3)
	for i := range zones {
		m = edit(m, fmt.Sprintf("n%d", i+1), func(n *Node) { n.Zone = zones[i : i+1] })
	}
	zone := map[NodeID]string{}
	for _, n := range m.Nodes {
		zone[n.ID] = n.Zone
	}
	m, _ = carryOut(t, m, anyNode)
	for _, s := range m.Shards {
		seen := map[string]bool{}
		for _, r := range s.Replicas {
			seen[zone[r.Node]] = true
		}
		if len(seen) != 3 {
			t.Errorf("shard %d is in zones %v: %v", s.ID, seen, s.Replicas)
		}
	}
}

// A node that is down, has no room, or is cordoned gets nothing, and a node from which nothing can go keeps it.
func TestPlanMovesToNobody(t *testing.T) {
	m := cluster(t, 3, 8, 3)
	if plan := PlanMoves(edit(m, "n1", func(n *Node) { n.Draining = true }), anyNode); len(plan) > 0 {
		t.Errorf("three nodes, three replicas: %v", plan)
	}
	m, err := PlanJoin(m, node("n4"))
	if err != nil {
		t.Fatal(err)
	}
	if plan := PlanMoves(m, func(n NodeID) bool { return n != "n4" }); len(plan) > 0 {
		t.Errorf("to a node that is down: %v", plan)
	}
	if plan := PlanMoves(edit(m, "n4", func(n *Node) { n.Cordoned = true }), anyNode); len(plan) > 0 {
		t.Errorf("to a node that is cordoned: %v", plan)
	}
	plan := PlanMoves(m, anyNode)
	if len(plan) != 6 {
		t.Errorf("to a node that is new: %d moves, want 6: %v", len(plan), plan)
	}
	for _, w := range plan {
		if m, err = StartMove(m, w.Shard, w.From, w.To); err != nil {
			t.Fatal(err)
		}
	}
	if plan := PlanMoves(m, anyNode); len(plan) > 0 {
		t.Errorf("all are under way, and %v is planned", plan)
	}
}

// A move begins with its new replica, ends with one of the two, and is what it was in between.
func TestMoveTransitions(t *testing.T) {
	m := cluster(t, 4, 2, 3)
	started, err := StartMove(m, 1, "n1.1", "n4")
	if err != nil {
		t.Fatal(err)
	}
	sh, _ := started.Shard(1)
	mv := *sh.Move
	if want := (Move{From: "n1.1", To: "n4.5"}); mv != want || len(sh.Replicas) != 4 {
		t.Fatalf("%+v, %v", mv, sh.Replicas)
	}
	for what, try := range map[string]func() (Map, error){
		"a second one":      func() (Map, error) { return StartMove(started, 1, "n2.2", "n4") },
		"to one who has it": func() (Map, error) { return StartMove(m, 1, "n1.1", "n2") },
		"of nothing":        func() (Map, error) { return StartMove(m, 1, "n9.1", "n4") },
		"to nowhere":        func() (Map, error) { return StartMove(m, 1, "n1.1", "n9") },
		"of no shard":       func() (Map, error) { return StartMove(m, 9, "n1.1", "n4") },
		"the end of none":   func() (Map, error) { return FinishMove(m, 1, mv) },
		"the end of another": func() (Map, error) {
			return CancelMove(started, 1, Move{From: "n2.2", To: "n4.5"})
		},
	} {
		if _, err := try(); err == nil {
			t.Errorf("%s is allowed", what)
		}
	}
	paused, err := PauseMove(started, 1, mv, true)
	if sh, _ := paused.Shard(1); err != nil || !sh.Move.Paused {
		t.Errorf("%+v, %v", sh.Move, err)
	}
	if sh, _ := started.Shard(1); sh.Move.Paused {
		t.Error("the map before was changed")
	}
	finished, err := FinishMove(paused, 1, mv)
	if sh, _ := finished.Shard(1); err != nil || sh.Move != nil || len(sh.Replicas) != 3 || slices.ContainsFunc(sh.Replicas, func(r Replica) bool { return r.ID == "n1.1" }) {
		t.Errorf("%+v, %v", sh, err)
	}
	cancelled, err := CancelMove(started, 1, mv)
	if sh, _ := cancelled.Shard(1); err != nil || sh.Move != nil || slices.ContainsFunc(sh.Replicas, func(r Replica) bool { return r.ID == "n4.5" }) {
		t.Errorf("%+v, %v", sh, err)
	}
	if _, err := FinishMove(finished, 1, mv); !errors.Is(err, ErrNoMove) {
		t.Errorf("once more: %v", err)
	}
	// What loses its log meanwhile is replaced, and the move goes on under its new name.
	for lost, want := range map[ReplicaID]Move{"n1.1": {From: "n1.6", To: "n4.5"}, "n4.5": {From: "n1.1", To: "n4.6"}, "n2.2": mv} {
		next, err := PlanReplace(started, 1, lost)
		if sh, _ := next.Shard(1); err != nil || *sh.Move != want {
			t.Errorf("%s is replaced: %+v, %v", lost, sh.Move, err)
		}
	}
	for what, spoil := range map[string]func(*Shard){
		"it becomes another":            func(s *Shard) { s.Move = &Move{From: "n2.2", To: "n4.5"} },
		"it ends and nobody goes":       func(s *Shard) { s.Move = nil },
		"it ends and a third one goes":  func(s *Shard) { s.Move = nil; s.Replicas = s.Replicas[2:] },
		"its replica is none":           func(s *Shard) { s.Move = &Move{From: "n1.1", To: "n4.9"} },
		"both are one":                  func(s *Shard) { s.Move = &Move{From: "n1.1", To: "n1.1"} },
		"its replica goes, it does not": func(s *Shard) { s.Replicas = s.Replicas[1:] },
	} {
		next := started.Clone()
		next.Epoch++
		spoil(&next.Shards[1])
		if err := ValidateTransition(started, next); err == nil {
			t.Errorf("%s: allowed", what)
		}
	}
}

func TestNext(t *testing.T) {
	mv := Move{From: "a", To: "d"}
	group := func(leader ReplicaID, members string) Observed { // + votes and keeps up, ~ votes, - keeps up
		o := Observed{Leader: leader}
		for _, m := range strings.Fields(members) {
			o.Members = append(o.Members, ObservedMember{Replica: m[:1], Voter: strings.ContainsAny(m[1:], "+~"), CaughtUp: strings.ContainsAny(m[1:], "+-")})
		}
		return o
	}
	for _, c := range []struct {
		leader  ReplicaID
		members string
		want    StepKind
		why     string
	}{
		{"b", "a+ b+ c+", StepWait, "not a member"},
		{"b", "a+ b+ c+ d", StepWait, "receives"},
		{"b", "a+ b+ c+ d-", StepWait, "no vote"},
		{"b", "a+ b+ c+ d~", StepWait, "receives"},
		{"b", "a+ b+ c+ d+", StepFinish, ""},
		{"a", "a+ b+ c+ d+", StepHandOver, ""},
		{"b", "a~ b+ c+ d+", StepFinish, ""},     // the old one is dead
		{"b", "a+ b+ c~ d+", StepFinish, ""},     // two of three
		{"d", "a+ b~ c~ d+", StepWait, "1 of 3"}, // without a there would be no majority
		{"a", "a+ b~ c~ d+", StepWait, "1 of 3"},
		{"d", "a+ d+", StepFinish, ""},
		{"b", "b+ c+ d+", StepFinish, ""}, // it has gone already
	} {
		got := Next(mv, group(c.leader, c.members))
		if got.Kind != c.want || !strings.Contains(got.Why, c.why) || got.Kind == StepHandOver && got.To != "d" {
			t.Errorf("%s leads %q: %+v", c.leader, c.members, got)
		}
	}
	mv.Paused = true
	if got := Next(mv, group("b", "a+ b+ c+ d+")); got.Kind != StepWait {
		t.Errorf("paused: %+v", got)
	}
}
