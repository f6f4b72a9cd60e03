package node

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// A leader of shard 0 counts from when it began to lead, or to want to know, or stood still, and from when a node was heard last; and never for longer than its process
// has listened.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		on := sharding.Map{DeadAfterMillis: time.Minute.Milliseconds(), Nodes: []sharding.Node{{ID: "n2"}}}
		heard, listens := false, time.Hour
		w := newWatch(&Node{peers: newPeers()})
		w.heardOf = func(sharding.Map) map[sharding.NodeID]bool {
			if !heard {
				return nil
			}
			return map[sharding.NodeID]bool{"n2": true}
		}
		w.silence = func(sharding.NodeID, time.Time) time.Duration { return listens }
		look := func(m sharding.Map, times int) {
			for range times {
				time.Sleep(planEvery)
				w.look(m)
			}
		}
		want := func(when string, alive bool, silent time.Duration) {
			t.Helper()
			if s := w.seen("n2"); s.Alive != alive || s.Silent != silent {
				t.Errorf("%s: %+v, want alive %v, silent %v", when, s, alive, silent)
			}
		}
		look(on, 5)
		want("since it began to lead", false, 5*planEvery)
		look(sharding.Map{}, 5)
		look(on, 2)
		want("since somebody wants to know", false, 2*planEvery)
		heard = true
		look(on, 3)
		want("while it is heard", true, 0)
		heard = false
		look(on, 4)
		want("since it was heard last", false, 4*planEvery)
		time.Sleep(announceTimeout + 3*planEvery)
		w.look(on)
		want("after standing still", false, 0)
		look(on, 9)
		listens = 2 * time.Second
		want("while it did not listen", false, listens)
	})
}

// Who is heard by a leader or by who follows it is heard, and who is only said to be a member is not.
func TestHeardOf(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	n := nodes[0]
	m := n.Router().Map().Clone()
	for _, id := range []string{"n6", "n7", "n8", "n9"} {
		if n.heardOf(m)[id] {
			t.Fatalf("%s is heard of, and is not there", id)
		}
	}
	m.Nodes = append(m.Nodes, sharding.Node{ID: "n5"})
	n.peers.hear(peerStatus{Node: "n5", Replicas: []replicaStatus{
		{Shard: 1, Leader: "n6"},
		{Shard: 2, Leader: "n5", Leads: true, Members: []store.Member{{Node: "n7", CaughtUp: true}, {Node: "n8"}}},
		{Shard: 0, Members: []store.Member{{Node: "n9", CaughtUp: true}}},
	}})
	heard := n.heardOf(m)
	for id, want := range map[string]bool{"n1": true, "n2": true, "n5": true, "n6": true, "n7": true, "n8": false, "n9": false} {
		if heard[id] != want {
			t.Errorf("%s is heard: %v, want %v", id, heard[id], want)
		}
	}
}

// The setting is said on any node and shows in the status, and what is out of bounds is refused in words.
func TestAdminDeadAfter(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	for words, want := range map[string]transport.Code{
		"node dead-after":        transport.CodeBadRequest,
		"node dead-after soon":   transport.CodeBadRequest,
		"node dead-after 0s":     transport.CodeBadRequest,
		"node dead-after 29s":    transport.CodeRefused,
		"node dead-after 10000h": transport.CodeRefused,
	} {
		if _, err := nodes[1].Admin(t.Context(), strings.Fields(words)); transport.CodeOf(err) != want {
			t.Errorf("%q: %v, want %v", words, err, want)
		}
	}
	for words, want := range map[string]int64{"node dead-after 10m": 600_000, "NODE DEAD-AFTER 10m": 600_000, "node dead-after off": 0} {
		admin(t, nodes[2], words)
		if got := nodes[2].clusterStatus().DeadAfterMillis; got != want {
			t.Errorf("after %q: %d", words, got)
		}
	}
}

// A replica that died before it had its vote does not keep its shard from getting another, once its node is taken for dead; one that may yet get it does.
func TestSettledWithoutTheDead(t *testing.T) {
	m := sharding.Map{Nodes: []sharding.Node{{ID: "n2"}, {ID: "n3"}, {ID: "n4"}}}
	sh := sharding.Shard{Replicas: []sharding.Replica{{ID: "n2.1", Node: "n2"}, {ID: "n3.1", Node: "n3"}, {ID: "n4.1", Node: "n4"}}}
	voters := []store.Member{{Replica: "n2.1", Node: "n2", Voter: true}, {Replica: "n3.1", Node: "n3", Voter: true}}
	dead := m.Clone()
	dead.Nodes[2].Dead = true
	for name, c := range map[string]struct {
		m       sharding.Map
		members []store.Member
		want    bool
	}{
		"all vote":                {m, append(slices.Clone(voters), store.Member{Replica: "n4.1", Node: "n4", Voter: true}), true},
		"one is no member yet":    {m, voters, false},
		"it is dead":              {dead, voters, true},
		"a dead learner":          {dead, append(slices.Clone(voters), store.Member{Replica: "n4.1", Node: "n4"}), true},
		"a living one is missing": {dead, voters[:1], false},
		"one too many":            {dead, append(slices.Clone(voters), store.Member{Replica: "n5.1", Node: "n5", Voter: true}), false},
		"no leader":               {dead, nil, false},
	} {
		n := &Node{peers: newPeers(), host: &host{}}
		if c.members != nil {
			n.peers.hear(peerStatus{Node: "n2", Replicas: []replicaStatus{{Shard: 0, Term: 1, Leads: true, Leader: "n2", Members: c.members}}})
		}
		if got := n.settled(c.m, sh); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
