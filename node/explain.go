package node

import (
	"github.com/abacusdb/abacus/compute"
)

// shardFacts are the shards that own slots, as this node knows them from its own replicas and the peers' last words:
// a job is explained without asking anybody.
func (n *Node) shardFacts() (facts []compute.ShardFacts) {
	for _, sh := range n.clusterStatus().Shards {
		if sh.Slots == "" {
			continue
		}
		f := compute.ShardFacts{Shard: uint32(sh.ID), Slots: sh.Slots, Records: sh.Records, Bytes: sh.Bytes}
		for _, r := range sh.Replicas {
			f.Replicas = append(f.Replicas, compute.ReplicaState{Node: r.Node, Leader: r.State == "leader", Alive: r.Voter && r.State != "down" && r.State != "missing"})
		}
		facts = append(facts, f)
	}
	return facts
}
