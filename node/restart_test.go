package node

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/abacusdb/abacus/sharding"
)

// After a rolling restart, one node after the other, each when all shards are whole again, every node leads as many shards as any other, but for one, and has as many
// replicas. A node that stops hands its leaderships to others, and who was restarted last leads nothing at first.
func TestLeadersEvenAfterRollingRestart(t *testing.T) {
	const shards, soon = 16, 20 * time.Second
	nodes, cfgs := severalOf(t, 5, func(cfg *Config) { cfg.Shards = shards })
	until(t, "all nodes are in a plan", func() error {
		var p balancePlan
		if err := json.Unmarshal(admin(t, nodes[0], "rebalance plan"), &p); err != nil || len(p.Moves) != 18 { // three nodes have all 48 replicas, two are to have 9 each
			return fmt.Errorf("plan %+v: %v", p, err)
		}
		return nil
	})
	admin(t, nodes[0], "rebalance once")
	even := func(n *Node) error {
		s := n.clusterStatus()
		if !s.Healthy || s.Balance != sharding.BalanceNever || len(s.Nodes) != len(nodes) {
			return fmt.Errorf("%d nodes, balance %q, %v", len(s.Nodes), s.Balance, s.Problems)
		}
		for _, nd := range s.Nodes {
			if nd.Replicas < 3*shards/5 || nd.Replicas > 3*shards/5+1 || nd.Leads < shards/5 || nd.Leads > shards/5+1 {
				return fmt.Errorf("%s has %d replicas and leads %d shards", nd.ID, nd.Replicas, nd.Leads)
			}
		}
		return nil
	}
	until(t, "even to begin with", func() error { return even(nodes[0]) })
	for i := range 50 {
		put(t, nodes[i%5], fmt.Sprintf("key%d", i), "value")
	}

	var restarted time.Time
	for i, n := range nodes {
		if err := n.Close(); err != nil {
			t.Fatalf("close %s: %v", n.cfg.ID, err)
		}
		nodes[i] = open(t, cfgs[i])
		restarted = time.Now()
		untilHealthy(t, nodes...)
	}
	until(t, "even again", func() error { return even(nodes[0]) })
	took := time.Since(restarted)
	t.Logf("even %v after the last restart", took.Round(time.Millisecond))
	if took > soon {
		t.Errorf("it took %v, want %v", took, soon)
	}
	for _, n := range nodes { // what others do, a node hears in half a second
		until(t, n.cfg.ID+" sees it so, too", func() error { return even(n) })
	}
	for i := range 50 {
		if got := get(t, nodes[(i+1)%5], fmt.Sprintf("key%d", i)); got != "value" {
			t.Errorf("key%d = %q", i, got)
		}
	}
}
