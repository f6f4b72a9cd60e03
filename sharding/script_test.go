package sharding

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestScripts carries out what administrators say, and what shards' leaders then do, and shows the map after each: testdata/scripts, a file for a subject.
// Write the results anew with: go test ./sharding -run TestScripts -rewrite
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		s := &script{down: map[NodeID]bool{}, silent: map[NodeID]time.Duration{}}
		datadriven.RunTest(t, path, s.run)
	})
}

type script struct {
	m    Map
	down map[NodeID]bool
	// silent is for how long nothing was heard of a node.
	silent map[NodeID]time.Duration
}

func (s *script) may(n NodeID) bool { return !s.down[n] && s.silent[n] == 0 }

func (s *script) seen(n NodeID) Seen { return Seen{Alive: s.silent[n] == 0, Silent: s.silent[n]} }

// ready is every shard that does not move, and has a majority.
func (s *script) ready(sh Shard) bool {
	return sh.Move == nil && CanSpare(s.m, sh, func(n NodeID) bool { return s.silent[n] == 0 })
}

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
	number := func(i int) uint32 {
		n, err := strconv.ParseUint(at(i), 10, 32)
		if err != nil {
			t.Fatalf("%s: %v", d.Pos, err)
		}
		return uint32(n)
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
		clear(s.silent)
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
	case "dead-after": // DURATION|off
		after, err := time.ParseDuration(strings.Replace(at(0), "off", "0s", 1))
		if err != nil {
			t.Fatalf("%s: %v", d.Pos, err)
		}
		return set(SetDeadAfter(s.m, after)) + s.marks()
	case "silent": // NODE DURATION
		after, err := time.ParseDuration(at(1))
		if err != nil {
			t.Fatalf("%s: %v", d.Pos, err)
		}
		s.silent[at(0)] = after
		return ""
	case "heard":
		delete(s.silent, at(0))
		return ""
	case "dead": // one step of the leader of shard 0
		next, changed := NextDead(s.m, s.seen)
		return set(next, changed, nil) + s.marks()
	case "why":
		return WhyNotDead(s.m, at(0), s.seen) + "\n"
	case "balance":
		return set(SetBalance(s.m, Balance(at(0))))
	case "plan":
		return plan(PlanMoves(s.m, s.may))
	case "next": // one step of the leader of shard 0, every shard being settled
		next, changed := NextMoves(s.m, s.may, s.ready)
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
			next, changed := NextMoves(s.m, s.may, s.ready)
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
	case "return": // NODE, after its data were lost
		n, _ := s.m.Node(at(0))
		n.Instance += "-new"
		return always(PlanReturn(s.m, n)) + s.show()
	case "split": // SHARD NODE
		return always(StartSplit(s.m, number(0), at(1))) + s.show()
	case "split-all": // each begins where the shard's leader should be
		leaders := PreferredLeaders(s.m)
		return always(StartSplits(s.m, func(sh ShardID) NodeID { return leaders[sh] })) + s.show()
	case "slots": // FROM TO SHARD
		return always(StartSlotMove(s.m, SlotRange{Slot(number(0)), Slot(number(1))}, number(2))) + s.show()
	case "founded": // SHARD
		return set(Founded(s.m, number(0))) + s.show()
	case "finish-slots": // ID
		return always(FinishSlotMove(s.m, uint64(number(0)))) + s.show()
	case "abort-slots":
		return always(AbortSlotMove(s.m, uint64(number(0)))) + s.show()
	case "cancel-slots":
		return always(CancelSlotMove(s.m, uint64(number(0)))) + s.show()
	case "pause-slots", "resume-slots":
		return always(PauseSlotMove(s.m, uint64(number(0)), d.Cmd == "pause-slots")) + s.show()
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

// show is the map: shards with their replicas, the one who should lead with a star, their slots if these move, and how many replicas each node has.
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
		if sh.Founding != "" {
			fmt.Fprintf(&b, "  %s founds it", sh.Founding)
		}
		if s.m.LastSlotMove > 0 {
			fmt.Fprintf(&b, "  slots %v", sh.Slots)
		}
		b.WriteString("\n")
	}
	for _, mv := range s.m.SlotMoves {
		state := "runs"
		if why := s.m.WhySlotMoveWaits(mv.ID); why != "" {
			state = "waits: " + why
		}
		if mv.Cancelled {
			state += ", cancelled"
		}
		fmt.Fprintf(&b, "slot move %d: %v of shard %d to %d %s\n", mv.ID, mv.Slots, mv.From, mv.To, state)
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
		if n.Dead {
			b.WriteString(", taken for dead")
		}
		b.WriteString("\n")
	}
	return b.String()
}
