package sharding

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func must(t *testing.T) func(Map, bool, error) Map {
	return func(m Map, changed bool, err error) Map {
		t.Helper()
		if err != nil || !changed {
			t.Fatalf("changed %v: %v", changed, err)
		}
		return m
	}
}

func unchanged(t *testing.T, m Map) func(Map, bool, error) {
	return func(next Map, changed bool, err error) {
		t.Helper()
		if err != nil || changed || next.Epoch != m.Epoch {
			t.Fatalf("changed %v, epoch %d after %d: %v", changed, next.Epoch, m.Epoch, err)
		}
	}
}

// Marks are set and taken back; saying it twice is saying it once.
func TestCordonAndDrain(t *testing.T) {
	m := cluster(t, 4, 6, 3)
	m = must(t)(CordonNode(m, "n4"))
	unchanged(t, m)(CordonNode(m, "n4"))
	if n, _ := m.Node("n4"); !n.Cordoned || n.Draining {
		t.Fatalf("%+v", n)
	}
	m = must(t)(UncordonNode(m, "n4"))
	unchanged(t, m)(UncordonNode(m, "n4"))
	m = must(t)(DrainNode(m, "n1", "n4", anyNode))
	unchanged(t, m)(DrainNode(m, "n1", "n4", anyNode))
	for _, w := range PlanDrains(m, anyNode) {
		if w.To != "n4" {
			t.Fatalf("%+v, and the successor is n4", w)
		}
	}
	m = must(t)(UncordonNode(m, "n1"))
	if n, _ := m.Node("n1"); n.Draining || n.Successor != "" {
		t.Fatalf("%+v", n)
	}
	if plan := PlanDrains(m, anyNode); len(plan) > 0 {
		t.Fatalf("nothing drains: %+v", plan)
	}
}

// What would leave a replica with no place is refused, and says of which shards.
func TestDrainRefuses(t *testing.T) {
	m := cluster(t, 3, 4, 3)
	four := cluster(t, 4, 4, 3)
	cordoned := must(t)(CordonNode(four, "n4"))
	for name, c := range map[string]struct {
		m        Map
		node, to NodeID
		may      Candidate
		want     string
	}{
		"no place":            {m, "n3", "", anyNode, "shards 0, 1, 2, 3"},
		"unknown":             {m, "n9", "", anyNode, `no node "n9"`},
		"unknown successor":   {four, "n3", "n9", anyNode, `no node "n9"`},
		"itself":              {four, "n3", "n3", anyNode, "its own place"},
		"successor has it":    {four, "n3", "n2", anyNode, "node n2 has one already"},
		"successor is down":   {four, "n3", "n4", func(n NodeID) bool { return n != "n4" }, "does not answer"},
		"only other cordoned": {cordoned, "n3", "", anyNode, "the 2 of 4 nodes"},
		"successor cordoned":  {cordoned, "n3", "n4", anyNode, "uncordon it first"},
	} {
		next, changed, err := DrainNode(c.m, c.node, c.to, c.may)
		var refused *NodeError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) || changed || next.Epoch != c.m.Epoch {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRemoveNode(t *testing.T) {
	m := cluster(t, 4, 4, 3)
	if _, _, err := RemoveNode(m, "n1"); err == nil || !strings.Contains(err.Error(), "shards 0, 1, 2, 3") {
		t.Errorf("of a node with replicas: %v", err)
	}
	if _, _, err := RemoveNode(m, "n9"); err == nil {
		t.Error("an unknown node was removed")
	}
	m = must(t)(DrainNode(m, "n1", "n4", anyNode))
	m, _ = carryOut(t, m, anyNode)
	m = must(t)(RemoveNode(m, "n1"))
	if _, ok := m.Node("n1"); ok || len(m.Nodes) != 3 {
		t.Fatalf("%+v", m.Nodes)
	}
	// Not while somebody drains to it.
	m = cluster(t, 5, 4, 3)
	m = must(t)(DrainNode(m, "n1", "n5", anyNode))
	if _, _, err := RemoveNode(m, "n5"); err == nil || !strings.Contains(err.Error(), "node n1 drains to it") {
		t.Errorf("a successor was removed: %v", err)
	}
}

// A node says where it is and not what an administrator has said of it.
func TestMarksAreNotForTheNodeToSay(t *testing.T) {
	m := must(t)(DrainNode(cluster(t, 4, 4, 3), "n1", "n4", anyNode))
	self := node("n1")
	self.Addrs.Peer = "elsewhere:1"
	next, changed := UpdateNode(m, self)
	if n, _ := next.Node("n1"); !changed || !n.Draining || n.Successor != "n4" || n.Addrs.Peer != "elsewhere:1" {
		t.Fatalf("%+v", n)
	}
}

// settle carries NextMoves out as nodes would, one epoch after another, checking each step as shard 0 does.
func settle(t *testing.T, rng *rand.Rand, m Map, may Candidate) Map {
	t.Helper()
	for range 10_000 {
		settled := map[ShardID]bool{}
		for _, s := range m.Shards {
			settled[s.ID] = rng.IntN(4) > 0
		}
		next, changed := NextMoves(m, may, func(s Shard) bool { return settled[s.ID] })
		if changed {
			checkStep(t, m, next, may)
			checkBusy(t, m, next, may)
			for i, s := range next.Shards {
				if mv := m.Shards[i].Move; mv != nil && s.Move == nil { // taken back
					to, _ := m.Node(mv.To[:strings.IndexByte(mv.To, '.')])
					if !to.leaves() || len(s.Replicas) != len(m.Shards[i].Replicas)-1 || mv.Paused {
						t.Fatalf("shard %d: its move to %s is taken back", s.ID, mv.To)
					}
					continue
				}
				if was := m.Shards[i]; !slices.Equal(s.Replicas, was.Replicas) && (!settled[s.ID] || was.Move != nil) {
					t.Fatalf("shard %d: %v becomes %v before its last change is carried out", s.ID, was.Replicas, s.Replicas)
				}
			}
			m = next
		}
		var open int
		m, open = stepSlots(t, rng, m, may)
		for _, s := range m.Shards {
			if s.Move == nil {
				continue
			}
			open++
			if rng.IntN(2) == 0 {
				next, err := FinishMove(m, s.ID, *s.Move)
				if err != nil {
					t.Fatal(err)
				}
				checkStep(t, m, next, may)
				m = next
			}
		}
		if _, more := NextMoves(m, may, anyShard); !more && open == 0 {
			return m
		}
	}
	t.Fatal("it moves without end")
	return m
}

// checkStep is what must hold of every step: it is legal, each slot has one owner, which is another only by a slot move that ends, no shard has fewer replicas than
// before but for one whose move ends, and a majority of the replicas was there before, but for a shard that is still to be founded.
func checkStep(t *testing.T, was, now Map, may Candidate) {
	t.Helper()
	if err := ValidateTransition(was, now); err != nil {
		t.Fatal(err)
	}
	checkSlotStep(t, was, now)
	for _, s := range now.Shards {
		old, ok := was.Shard(s.ID)
		if !ok {
			if len(s.Slots) > 0 || len(s.Replicas) != 1 || s.Founding != s.Replicas[0].ID {
				t.Fatalf("it comes as %+v", s)
			}
			continue
		}
		if old.Founding == "" && s.Founding != "" {
			t.Fatalf("shard %d is founded again", s.ID)
		}
		stay := 0
		for _, r := range s.Replicas {
			if slices.Contains(old.Replicas, r) {
				stay++
			}
		}
		if stay < Majority(len(s.Replicas)) && len(old.Replicas) > 1 {
			t.Fatalf("shard %d: %d of %d replicas were there before", s.ID, stay, len(s.Replicas))
		}
		if stay == 0 && (old.Founding == "" || s.Founding == "" || len(s.Replicas) > 1) {
			t.Fatalf("shard %d: nothing is left of %v in %v", s.ID, old.Replicas, s.Replicas)
		}
		if len(s.Replicas) < len(old.Replicas) && old.Move == nil {
			t.Fatalf("shard %d: %v becomes %v", s.ID, old.Replicas, s.Replicas)
		}
	}
}

// checkBusy says whether what was planned has no node take part in more moves at once than it may: what an administrator has begun comes on top.
func checkBusy(t *testing.T, was, now Map, may Candidate) {
	t.Helper()
	before := busyNodes(was, may)
	for n, moves := range busyNodes(now, may) {
		if moves > MovesAtOnce && moves > before[n] {
			t.Fatalf("node %s takes part in %d moves", n, moves)
		}
	}
}

func busyNodes(m Map, may Candidate) map[NodeID]int {
	busy := map[NodeID]int{}
	for _, s := range m.Shards {
		if s.Move != nil {
			to := s.Move.To[:strings.IndexByte(s.Move.To, '.')]
			busy[to]++
			if may(to) { // else it stands still
				busy[s.Move.From[:strings.IndexByte(s.Move.From, '.')]]++
			}
		}
	}
	return busy
}

// Whatever an administrator says and whatever nodes come, go and fail, in any order, and whatever slot moves end in: every step of the map is legal (checkStep), and
// when it is quiet each shard has as many replicas as wanted or as there are nodes, none on a drained node, no slot move is left, and BalanceOnce leaves
// the counts of nodes within one of each other.
func TestNextMovesFromAnywhere(t *testing.T) {
	returns, slotSteps, asked, dead := 0, 0, 0, 0
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 7))
		wanted := 1 + rng.IntN(4)
		m := cluster(t, 1, 1+rng.IntN(12), wanted)
		joined := 1
		for range 45 {
			nodes := make([]NodeID, 0, len(m.Nodes))
			for _, n := range m.Nodes {
				nodes = append(nodes, n.ID)
			}
			one := nodes[rng.IntN(len(nodes))]
			var next Map
			var err error
			changed := true
			switch rng.IntN(14) {
			case 12:
				next, changed, err = SetDeadAfter(m, time.Duration(rng.IntN(5))*time.Minute/2)
			case 13: // one or two are silent, or somebody is heard again
				silent := map[NodeID]time.Duration{one: time.Duration(rng.IntN(400)) * time.Second}
				if rng.IntN(2) == 0 {
					silent[nodes[rng.IntN(len(nodes))]] = time.Duration(rng.IntN(200)) * time.Second
				}
				next, changed = NextDead(m, func(n NodeID) Seen { return Seen{Alive: silent[n] == 0, Silent: silent[n]} })
				if changed {
					dead++
					checkDead(t, m, next)
				}
			case 0, 1:
				joined++
				next, err = PlanJoin(m, node("m"+string(rune('a'+joined/26))+string(rune('a'+joined%26))))
			case 2:
				next, changed, err = CordonNode(m, one)
			case 3:
				next, changed, err = UncordonNode(m, one)
			case 4:
				next, changed, err = DrainNode(m, one, "", anyNode)
			case 5:
				next, changed, err = RemoveNode(m, one)
			case 6:
				next, changed, err = SetBalance(m, []Balance{BalanceNever, BalanceOnce, BalanceAlways}[rng.IntN(3)])
			case 7:
				sh := m.Shards[rng.IntN(len(m.Shards))]
				if sh.Move != nil {
					next, err = CancelMove(m, sh.ID, *sh.Move)
				} else {
					next, err = StartMove(m, sh.ID, sh.Replicas[rng.IntN(len(sh.Replicas))].ID, one)
				}
			case 8:
				n, _ := m.Node(one)
				n.Instance += "+"
				if next, err = PlanReturn(m, n); err == nil {
					returns++
				}
			default:
				next, err = anySlotStep(rng, m, one)
				if err == nil {
					slotSteps++
				}
			}
			if err != nil || !changed {
				continue // refused
			}
			checkStep(t, m, next, anyNode)
			m = next
			if rng.IntN(3) == 0 {
				down := nodes[rng.IntN(len(nodes))]
				m = settle(t, rng, m, func(n NodeID) bool { return n != down })
			}
		}
		for _, n := range m.Nodes {
			if next, changed, err := UncordonNode(m, n.ID); changed && err == nil {
				m = next
			}
		}
		m, _, _ = SetDeadAfter(m, 0)
		for _, mv := range m.SlotMoves {
			if mv.Paused {
				next, err := PauseSlotMove(m, mv.ID, false)
				if err != nil {
					t.Fatal(err)
				}
				checkStep(t, m, next, anyNode)
				m = next
			}
		}
		m, _, _ = SetBalance(m, BalanceOnce)
		m = settle(t, rng, m, anyNode)
		asked += int(m.LastSlotMove)
		if len(m.SlotMoves) > 0 {
			t.Fatalf("seed %d: %+v", seed, m.SlotMoves)
		}
		least, most := 1<<30, 0
		for _, n := range m.Nodes {
			least, most = min(least, loads(m)[n.ID]), max(most, loads(m)[n.ID])
		}
		if most-least > 1 || m.Balance != BalanceNever {
			t.Fatalf("seed %d: %d to %d replicas on a node, balance %q: %v", seed, least, most, m.Balance, loads(m))
		}
		for _, s := range m.Shards {
			if want := min(wanted, len(m.Nodes)); len(s.Replicas) < want || s.Move != nil {
				t.Fatalf("seed %d: shard %d has %v, want %d; move %v", seed, s.ID, s.Replicas, want, s.Move)
			}
		}
	}
	if dead < 100 || returns < 100 || slotSteps < 500 || asked < 500 {
		t.Fatalf("%d marks of dead nodes, %d nodes returned, %d steps of slot moves, %d were asked for: too few to show anything", dead, returns, slotSteps, asked)
	}
}
