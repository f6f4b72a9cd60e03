package node

import (
	"testing"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
)

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
		{"in an election", false, "follower follower down", "no leader: neither reads nor writes; replica c.3 on node c is down"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := viewShard(sh, 3, said(tc.leads), alive)
			states := v.Replicas[0].State + " " + v.Replicas[1].State + " " + v.Replicas[2].State
			if states != tc.states || v.Problem != tc.problem {
				t.Errorf("states %q, problem %q; want %q and %q", states, v.Problem, tc.states, tc.problem)
			}
		})
	}
}
