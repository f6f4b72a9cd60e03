package sim

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// A new leader is known at once also where there is no replica of its shard, and not
// only when nodes exchange their states the next time.
func TestNewLeaderIsTold(t *testing.T) {
	const atOnce = 50 * time.Millisecond // a message takes 2
	opt := Options{Nodes: 5, Replicas: 3, Shards: 2, Clients: 1}.withDefaults(7)
	var slowest time.Duration
	left := bubble(t, func() {
		c := newCluster(7, opt, t.TempDir())
		err := c.open()
		for i := 0; i < 10 && err == nil; i++ {
			var took time.Duration
			if took, err = c.handOver(sharding.ShardID(i % opt.Shards)); err == nil {
				slowest = max(slowest, took)
			}
			time.Sleep(1234 * time.Millisecond)
		}
		if err = errors.Join(err, c.err(), c.stop()); err != nil {
			t.Error(err)
		}
	})
	if left != "" {
		t.Errorf("left behind: %s", left)
	}
	if t.Logf("slowest: %v", slowest); slowest == 0 || slowest > atOnce {
		t.Errorf("a leader was known everywhere after %v, want at most %v", slowest, atOnce)
	}
}

// handOver gives a shard another leader, and returns how long after it leads all nodes know.
func (c *cluster) handOver(shard sharding.ShardID) (took time.Duration, err error) {
	from, st := c.leader(shard)
	if st == nil {
		return 0, fmt.Errorf("shard %d has no leader", shard)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, m := range st.Status().Members {
		if m.Node != from.id {
			if err := st.TransferLeadership(ctx, m.Replica); err != nil {
				return 0, fmt.Errorf("transfer shard %d: %w", shard, err)
			}
			break
		}
	}
	var began time.Time
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		to, _ := c.leader(shard)
		if to == nil || to == from {
			continue
		}
		if began.IsZero() {
			began = time.Now()
		}
		known := 0
		for _, m := range c.up() {
			if m.life.Load().node.Leader(shard) == to.id {
				known++
			}
		}
		if known == len(c.members) {
			return time.Since(began), nil
		}
	}
	return 0, fmt.Errorf("shard %d: its new leader was not known everywhere within 10 s", shard)
}

// A node that is cut off with a minority says so soon, and certainly: its client is to ask another node.
func TestMinorityAnswersSoon(t *testing.T) {
	const soon = 500 * time.Millisecond
	opt := Options{Nodes: 5, Replicas: 5, Shards: 2, Clients: 1}.withDefaults(7)
	left := bubble(t, func() {
		c := newCluster(7, opt, t.TempDir())
		err := c.open()
		if err == nil {
			time.Sleep(5 * time.Second)
			var ids []string
			for _, m := range c.members {
				ids = append(ids, m.id)
			}
			c.net.Partition(ids[:2], ids[2:])
			time.Sleep(3 * time.Second)
			for _, m := range c.members[:2] {
				for shard := range opt.Shards {
					key := workload.KeysOf(c.newest())(shard)
					ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
					began := time.Now()
					_, err := m.life.Load().node.Exec(ctx, sharding.ShardID(shard), []command.Command{toCommand(workload.Op{Kind: workload.Set, Key: key, Value: "x"})})
					cancel()
					if took := time.Since(began); took > soon || err == nil || !transport.Certain(err) {
						t.Errorf("%s answers %v after %v, want a certain error within %v", m.id, err, took, soon)
					}
				}
			}
			c.net.Heal()
			time.Sleep(5 * time.Second)
		}
		if err = errors.Join(err, c.err(), c.stop()); err != nil {
			t.Error(err)
		}
	})
	if left != "" {
		t.Errorf("left behind: %s", left)
	}
}
