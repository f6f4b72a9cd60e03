package node

import (
	"strings"
	"testing"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
)

func TestThinNote(t *testing.T) {
	for _, tc := range []struct {
		have, wanted int
		want         string
	}{
		{3, 3, ""}, {1, 1, "1 replica of each shard"}, {2, 2, ""}, {1, 3, "1 of 3 replicas: a lost disk loses data"}, {2, 3, "one node down"}, {3, 5, "3 of 5 replicas"},
	} {
		if got := thinNote(tc.have, tc.wanted); !strings.HasPrefix(got, tc.want) && !strings.Contains(got, tc.want) || (got == "") != (tc.want == "") {
			t.Errorf("%d of %d: %q", tc.have, tc.wanted, got)
		}
	}
}

// Who votes is what the leader says, and while nobody leads what each replica
// knows itself: a shard in an election has not lost its voters.
func TestViewShard(t *testing.T) {
	sh := sharding.Shard{ID: 4, Slots: []sharding.SlotRange{{From: 0, To: 9}},
		Replicas: []sharding.Replica{{ID: "a.1", Node: "a"}, {ID: "b.2", Node: "b"}, {ID: "c.3", Node: "c"}}}
	alive := map[sharding.NodeID]bool{"a": true, "b": true}
	said := func(leads bool) map[sharding.NodeID]peerStatus {
		a := replicaStatus{Shard: 4, Replica: "a.1", Term: 7, Commit: 20, Applied: 20, Voter: true}
		b := replicaStatus{Shard: 4, Replica: "b.2", Term: 7, Applied: 15, Voter: true}
		if leads {
			a.Leads, a.Members = true, []store.Member{{Replica: "a.1", Voter: true}, {Replica: "b.2"}, {Replica: "c.3", Voter: true}}
		}
		return map[sharding.NodeID]peerStatus{"a": {Node: "a", Replicas: []replicaStatus{a}}, "b": {Node: "b", Replicas: []replicaStatus{b}}}
	}
	for _, tc := range []struct {
		name    string
		leads   bool
		states  string
		problem string
	}{
		{"led", true, "leader learner down", "replica c.3 on node c is down"},
		{"in an election", false, "follower follower down", "no leader: neither reads nor writes, until a majority of its replicas is back (if it is lost for good: abacus recover --help); replica c.3 on node c is down"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := viewShard(sh, 3, said(tc.leads), alive)
			states := v.Replicas[0].State + " " + v.Replicas[1].State + " " + v.Replicas[2].State
			// A node that died while it led is known for that by its last word.
			dead := said(tc.leads)
			dead["c"] = peerStatus{Node: "c", Replicas: []replicaStatus{{Shard: 4, Replica: "c.3", Term: 6, Leads: true, Members: []store.Member{{Replica: "c.3", Voter: true}}}}}
			if last := viewShard(sh, 3, dead, alive).Replicas[2]; !last.Voter || last.State != "down" {
				t.Errorf("the dead leader: %+v", last)
			}
			if states != tc.states || v.Problem != tc.problem {
				t.Errorf("states %q, problem %q; want %q and %q", states, v.Problem, tc.states, tc.problem)
			}
		})
	}
}

// A shard that a split has just made is not sick while it grows, but it is when one of its nodes is down: then the split waits.
func TestViewFoundingShard(t *testing.T) {
	sh := sharding.Shard{ID: 4, Replicas: []sharding.Replica{{ID: "a.1", Node: "a"}, {ID: "b.2", Node: "b"}}, Founding: "a.1"}
	alive := map[sharding.NodeID]bool{"a": true, "b": true}
	leads := map[sharding.NodeID]peerStatus{"a": {Node: "a", Replicas: []replicaStatus{{Shard: 4, Replica: "a.1", Term: 7, Voter: true, Leads: true, Members: []store.Member{{Replica: "a.1", Voter: true}}}}}}
	if v := viewShard(sh, 3, nil, alive); !v.Healthy {
		t.Errorf("nobody has opened it: %s", v.Problem)
	}
	sh.Founding = ""
	if v := viewShard(sh, 3, leads, alive); !v.Healthy {
		t.Errorf("it grows: %s", v.Problem)
	}
	if v := viewShard(sh, 3, nil, alive); v.Healthy {
		t.Error("founded, and without a leader: no problem")
	}
	alive["b"] = false
	if v := viewShard(sh, 3, leads, alive); v.Healthy {
		t.Error("a node is down: no problem")
	}
	alive["b"], sh.ID = true, metaShard
	leads["a"].Replicas[0].Shard = metaShard
	if v := viewShard(sh, 3, leads, alive); v.Healthy || v.Leader != "a" {
		t.Error("shard 0 keeps the map, slots or not: no problem")
	}
}
