package sharding

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestScripts carries out what administrators say, and what shards' leaders then do, and shows the map after each: testdata/scripts, a file for a subject.
// Write the results anew with: go test ./sharding -run TestScripts -rewrite
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		s := &script{down: map[NodeID]bool{}}
		datadriven.RunTest(t, path, s.run)
	})
}

type script struct {
	m    Map
	down map[NodeID]bool
}

func (s *script) may(n NodeID) bool { return !s.down[n] }

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	words := make([]string, len(d.CmdArgs))
	for i, a := range d.CmdArgs {
		words[i] = a.String()
	}
	set := func(m Map, changed bool, err error) string {
		if err != nil {
			return "refused: " + err.Error() + "\n"
		}
		if !changed {
			return "nothing changes\n"
		}
		if err := ValidateTransition(s.m, m); err != nil {
			t.Fatalf("%s: %v", d.Pos, err)
		}
		s.m = m
		return ""
	}
	always := func(m Map, err error) string { return set(m, true, err) }
	at := func(i int) string { return append(words, "", "", "")[i] }
	shard := func() Shard {
		id, err := strconv.Atoi(at(0))
		sh, ok := s.m.Shard(ShardID(id))
		if err != nil || !ok {
			t.Fatalf("%s: shard %q", d.Pos, at(0))
		}
		return sh
	}
	move := func() Move {
		if mv := shard().Move; mv != nil {
			return *mv
		}
		return Move{From: "none", To: "none"}
	}
	switch d.Cmd {
	case "cluster": // nodes=3 shards=4 replicas=3 [zones=aab]
		var nodes, shards, replicas int
		d.ScanArgs(t, "nodes", &nodes)
		d.ScanArgs(t, "shards", &shards)
		d.ScanArgs(t, "replicas", &replicas)
		s.m = cluster(t, nodes, shards, replicas)
		if d.HasArg("zones") {
			var zones string
			d.ScanArgs(t, "zones", &zones)
			for i := range zones {
				s.m = edit(s.m, fmt.Sprintf("n%d", i+1), func(n *Node) { n.Zone = zones[i : i+1] })
			}
		}
		return s.show()
	case "join": // NODE [zone=a]
		n := node(at(0))
		d.MaybeScanArgs(t, "zone", &n.Zone)
		return always(PlanJoin(s.m, n)) + s.show()
	case "cordon":
		return set(CordonNode(s.m, at(0))) + s.marks()
	case "uncordon":
		return set(UncordonNode(s.m, at(0))) + s.marks()
	case "drain": // NODE [SUCCESSOR]
		return set(DrainNode(s.m, at(0), at(1), s.may)) + s.marks()
	case "remove":
		return set(RemoveNode(s.m, at(0))) + s.marks()
	case "down", "up":
		s.down[at(0)] = d.Cmd == "down"
		return ""
	case "balance":
		return set(SetBalance(s.m, Balance(at(0))))
	case "plan":
		return plan(PlanMoves(s.m, s.may))
	case "next": // one step of the leader of shard 0, every shard being settled
		next, changed := NextMoves(s.m, s.may, func(sh Shard) bool { return sh.Move == nil })
		return set(next, changed, nil) + s.show()
	case "finish-all": // what the shards' leaders do when the copies have arrived
		for _, sh := range s.m.Shards {
			if sh.Move != nil {
				if out := always(FinishMove(s.m, sh.ID, *sh.Move)); out != "" {
					return out
				}
			}
		}
		return s.show()
	case "settle": // next and finish-all, until nothing changes
		steps := 0
		for ; steps < 1000; steps++ {
			next, changed := NextMoves(s.m, s.may, func(sh Shard) bool { return sh.Move == nil })
			if changed {
				set(next, true, nil)
			}
			for _, sh := range s.m.Shards {
				if sh.Move != nil {
					changed = true
					always(FinishMove(s.m, sh.ID, *sh.Move))
				}
			}
			if !changed {
				break
			}
		}
		return fmt.Sprintf("after %d rounds\n", steps) + s.show()
	case "move": // SHARD REPLICA NODE
		return always(StartMove(s.m, shard().ID, at(1), at(2))) + s.show()
	case "finish":
		return always(FinishMove(s.m, shard().ID, move())) + s.show()
	case "cancel":
		return always(CancelMove(s.m, shard().ID, move())) + s.show()
	case "pause", "resume":
		return always(PauseMove(s.m, shard().ID, move(), d.Cmd == "pause")) + s.show()
	case "step": // SHARD leader=n1.1, and a line for each member: REPLICA voter|learner [caught-up]
		o := Observed{}
		d.ScanArgs(t, "leader", &o.Leader)
		for _, line := range strings.Split(strings.TrimSpace(d.Input), "\n") {
			f := strings.Fields(line)
			o.Members = append(o.Members, ObservedMember{Replica: f[0], Voter: f[1] == "voter", CaughtUp: slices.Contains(f, "caught-up")})
		}
		step := Next(move(), o)
		return [...]string{"wait: " + step.Why, "hand over to " + step.To, "finish"}[step.Kind] + "\n"
	}
	t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
	return ""
}

func plan(wishes []Wish) string {
	var b strings.Builder
	for _, w := range wishes {
		fmt.Fprintf(&b, "shard %d: %s to %s, for %s\n", w.Shard, w.From, w.To, w.Why)
	}
	if len(wishes) == 0 {
		return "nothing to move\n"
	}
	return b.String()
}

// show is the map: shards with their replicas, the one who should lead with a star, and how many replicas each node has.
func (s *script) show() string {
	var b strings.Builder
	leaders := PreferredLeaders(s.m)
	fmt.Fprintf(&b, "epoch %d\n", s.m.Epoch)
	for _, sh := range s.m.Shards {
		fmt.Fprintf(&b, "shard %d:", sh.ID)
		for _, r := range sh.Replicas {
			b.WriteString(" " + r.ID)
			if leaders[sh.ID] == r.Node {
				b.WriteString("*")
			}
		}
		if mv := sh.Move; mv != nil {
			fmt.Fprintf(&b, "  moves %s to %s", mv.From, mv.To)
			if mv.Paused {
				b.WriteString(", paused")
			}
		}
		b.WriteString("\n")
	}
	return b.String() + s.marks()
}

// marks are the nodes.
func (s *script) marks() string {
	var b strings.Builder
	load := loads(s.m)
	led := map[NodeID]int{}
	for _, n := range PreferredLeaders(s.m) {
		led[n]++
	}
	for _, n := range s.m.Nodes {
		fmt.Fprintf(&b, "%s: %d replicas, should lead %d", n.ID, load[n.ID], led[n.ID])
		if n.Zone != "" {
			b.WriteString(", zone " + n.Zone)
		}
		switch {
		case n.Draining && n.Successor != "":
			b.WriteString(", drains to " + n.Successor)
		case n.Draining:
			b.WriteString(", drains")
		case n.Cordoned:
			b.WriteString(", cordoned")
		}
		b.WriteString("\n")
	}
	return b.String()
}
