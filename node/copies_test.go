package node

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
	"golang.org/x/sync/errgroup"
)

// What a plan says that its moves will copy is, within a tenth, what the node that they go to then receives: of shards of which the log is still there from the
// beginning, that; of others, the keys that they hold, however often these were written, and the end of the log.
func TestMovesCopyWhatThePlanSays(t *testing.T) {
	t.Parallel()
	const cutAfter = 40 // entries: few, for a log may be cut once more between the plan and its moves
	for name, tc := range map[string]struct {
		writes, keys, valueBytes int
		states                   bool
	}{
		"logs":   {writes: 400, keys: 400, valueBytes: 16 << 10},
		"states": {writes: 2600, keys: 800, valueBytes: 4 << 10, states: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			edit := func(cfg *Config) { cfg.SnapshotEntries = cutAfter }
			nodes, _ := severalOf(t, 3, edit)
			writeOften(t, nodes, tc.writes, tc.keys, tc.valueBytes)
			for _, n := range nodes {
				for _, st := range n.host.all() {
					until(t, "its log is cut, lately, or not at all", func() error {
						r, err := st.LogRange()
						if tail := st.CopyBytes() - st.Status().FileBytes; err != nil || r.First > 1 != tc.states || tc.states && tail > cutAfter*2*int64(tc.valueBytes) {
							return fmt.Errorf("shard %d of %s has entries %+v, %d bytes beside the state: %v", st.Shard(), n.cfg.ID, r, tail, err)
						}
						return nil
					})
				}
			}

			cfg := testConfig(t, "n4")
			cfg.Join = []string{nodes[0].Addrs().Peer}
			edit(&cfg)
			nodes = append(nodes, open(t, cfg))
			var plan balancePlan
			until(t, "a plan as the leaders have it now", func() error {
				if err := json.Unmarshal(admin(t, nodes[3], "rebalance plan"), &plan); err != nil || len(plan.Moves) != 2 || plan.Unknown != 0 {
					return fmt.Errorf("plan %+v: %v", plan, err)
				}
				for _, mv := range plan.Moves {
					for _, n := range nodes {
						if st := n.Replica(mv.Shard); st != nil && st.IsLeader() && st.CopyBytes() != mv.Bytes {
							return fmt.Errorf("%+v, and now %d", mv, st.CopyBytes())
						}
					}
				}
				return nil
			})
			before := nodes[3].peerStats().BytesIn
			admin(t, nodes[0], "rebalance once")
			until(t, "the moves are done", func() error {
				s := nodes[0].clusterStatus()
				if !s.Healthy || s.Balance != "" || len(nodes[3].host.all()) != 2 {
					return fmt.Errorf("%v, balance %q, %d replicas", s.Problems, s.Balance, len(nodes[3].host.all()))
				}
				return nil
			})
			moved := int64(nodes[3].peerStats().BytesIn - before)
			if moved < plan.Bytes*9/10 || moved > plan.Bytes*11/10 {
				t.Errorf("n4 received %d bytes, planned were %d", moved, plan.Bytes)
			}
			var live, copied int64
			for _, mv := range plan.Moves {
				live += nodes[3].Replica(mv.Shard).Status().FileBytes
			}
			for _, n := range nodes {
				copied += n.net.CopiedBytes()
			}
			t.Logf("planned %d, received %d, of these %d in copies of states; %d in use", plan.Bytes, moved, copied, live)
			if written := int64(2 * tc.writes * tc.valueBytes); tc.states && (copied < live*9/10 || plan.Bytes > written*2/3) || !tc.states && copied > 0 {
				t.Errorf("%d bytes of states were copied, %d are in use, %d were written and %d planned", copied, live, written, plan.Bytes)
			}
		})
	}
}

// writeOften writes so often to each shard, one entry of its log each time, to so many keys in turn.
func writeOften(t *testing.T, nodes []*Node, writes, keys, valueBytes int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	value := make([]byte, valueBytes)
	for shard := range nodes[0].Router().Map().Shards {
		group.Go(func() error {
			for i, key := 0, 0; i < writes; key++ {
				k := fmt.Appendf(nil, "key%d", key%(keys*len(nodes)))
				slot, at := nodes[0].Router().Locate(k)
				if int(at) != shard {
					continue
				}
				i++
				for { // a leader may have gone with it, where disks are slow: to write it twice does no harm
					_, err := nodes[0].Exec(ctx, at, []command.Command{{Op: command.OpSet, Keys: [][]byte{k}, Slot: slot, Values: [][]byte{value}}})
					if err == nil {
						break
					}
					if ctx.Err() != nil || transport.Certain(err) {
						return fmt.Errorf("write %d to shard %d: %w", i, shard, err)
					}
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}
