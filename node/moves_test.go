package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// admin says something to a node, which may find that it is too early for a while.
func admin(t *testing.T, n *Node, words string) (answer []byte) {
	t.Helper()
	until(t, words, func() (err error) {
		answer, err = n.Admin(t.Context(), strings.Fields(words))
		if err != nil && transport.CodeOf(err) != transport.CodeConflict && transport.Certain(err) {
			t.Fatalf("%s: %v", words, err)
		}
		return err
	})
	return answer
}

// A cluster grows from three nodes to five and shrinks to three others, under load: nothing that was acknowledged is lost, no write takes longer than
// its client waits, and whom it does not need any more ends by itself.
func TestGrowAndShrink(t *testing.T) {
	nodes, cfgs := three(t)
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer stop()
	counted := make([]int64, 6)
	through := nodes[2] // it stays
	for i := range counted {
		key := []byte(fmt.Sprintf("counter%d", i))
		slot, _ := through.Router().Locate(key)
		clients.Go(func() {
			for ctx.Err() == nil {
				// Longer than an operation may take, and every failure is one.
				wctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				_, shard := through.Router().Locate(key)
				res, err := through.Exec(wctx, shard, []command.Command{{Op: command.OpIncr, Keys: [][]byte{key}, Slot: slot, Int: 1}})
				cancel()
				if err != nil {
					if !transport.Certain(err) { // a leader that lost its office may have done it
						continue
					}
					t.Errorf("increment %s: %v", key, err)
					return
				}
				if res[0].Int <= counted[i] {
					t.Errorf("%s is %d after %d", key, res[0].Int, counted[i])
				}
				counted[i] = res[0].Int
			}
		})
	}
	for i := 4; i <= 5; i++ {
		cfg := testConfig(t, fmt.Sprintf("n%d", i))
		cfg.Join = []string{through.Addrs().Peer}
		nodes, cfgs = append(nodes, open(t, cfg)), append(cfgs, cfg)
	}
	until(t, "both new nodes are in the plan, once they have heard of each other", func() error {
		var p balancePlan
		if err := json.Unmarshal(admin(t, nodes[4], "rebalance plan"), &p); err != nil || len(p.Moves) != 3 || p.Bytes <= 0 || p.Unknown != 0 {
			return fmt.Errorf("plan %+v: %v", p, err)
		}
		return nil
	})
	admin(t, nodes[4], "rebalance once")
	even := func(names ...string) {
		t.Helper()
		until(t, "even", func() error {
			s := through.clusterStatus()
			if s.Balance != sharding.BalanceNever || !s.Healthy {
				return fmt.Errorf("balance %q, problems %v", s.Balance, s.Problems)
			}
			least, most := 9, 0
			for _, nd := range s.Nodes {
				if !nd.Draining {
					least, most = min(least, nd.Replicas), max(most, nd.Replicas)
				}
			}
			if most-least > 1 {
				return fmt.Errorf("%d to %d replicas on a node: %+v", least, most, s.Nodes)
			}
			return nil
		})
	}
	even()
	for _, id := range []string{"n1", "n2"} {
		admin(t, through, "node drain "+id)
		until(t, id+" is drained", func() error {
			for _, sh := range through.clusterStatus().Shards {
				for _, r := range sh.Replicas {
					if r.Node == id {
						return fmt.Errorf("shard %d: %+v, move %+v", sh.ID, sh.Replicas, sh.Move)
					}
				}
			}
			return nil
		})
		admin(t, through, "node remove "+id)
	}
	for _, n := range nodes[:2] {
		select {
		case err := <-n.Failed():
			if !errors.Is(err, ErrRemoved) {
				t.Errorf("%s: %v", n.cfg.ID, err)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%s goes on", n.cfg.ID)
		}
		if left := n.host.all(); len(left) > 0 {
			t.Errorf("%s holds %d replicas", n.cfg.ID, len(left))
		}
		if err := n.Close(); err != nil {
			t.Errorf("close %s: %v", n.cfg.ID, err)
		}
	}
	untilBalanced3(t, nodes[2:])
	stop()
	clients.Wait()
	for i, want := range counted {
		key := fmt.Sprintf("counter%d", i)
		if got, err := strconv.ParseInt(get(t, nodes[3], key), 10, 64); err != nil || got < want || want == 0 {
			t.Errorf("%s is %d (%v), and %d was acknowledged", key, got, err, want)
		}
	}
	// Its data directory is of no use any more, and says so.
	if _, err := Open(t.Context(), cfgs[0]); !errors.Is(err, ErrRemoved) {
		t.Errorf("a removed node started: %v", err)
	}
}

// untilBalanced3 waits until each of three nodes has a replica of everything and leads a shard.
func untilBalanced3(t *testing.T, nodes []*Node) {
	t.Helper()
	untilHealthy(t, nodes...)
	untilBalanced(t, nodes[0])
}

// What would take what is needed is refused in words; what is too early says so.
func TestAdminRefuses(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	for words, want := range map[string]struct {
		code transport.Code
		text string
	}{
		"":                     {transport.CodeBadRequest, "want one of: node cordon NODE"},
		"node":                 {transport.CodeBadRequest, "want one of"},
		"node drain":           {transport.CodeBadRequest, "0 arguments: want node drain NODE [SUCCESSOR]"},
		"node drain n3":        {transport.CodeRefused, "its replica of shards 0, 1, 2 can go nowhere"},
		"node drain n3 n2":     {transport.CodeRefused, "node n2 has one already"},
		"node drain n9":        {transport.CodeRefused, `no node "n9"`},
		"node remove n3":       {transport.CodeRefused, "drain it first"},
		"shard move 0 n1 n2":   {transport.CodeRefused, "node n2 has replica"},
		"shard move 0 n1 n9":   {transport.CodeNotFound, `no node "n9"`},
		"shard move 0 n9 n1":   {transport.CodeNotFound, `no node "n9"`},
		"shard move 7 n1 n2":   {transport.CodeNotFound, "no shard 7"},
		"shard move one n1 n2": {transport.CodeBadRequest, "want a number"},
		"shard cancel 0":       {transport.CodeNotFound, "no replica of shard 0 is being moved"},
		"shard pause 0":        {transport.CodeNotFound, "no replica of shard 0 is being moved"},
	} {
		_, err := nodes[1].Admin(t.Context(), strings.Fields(words))
		if transport.CodeOf(err) != want.code || !strings.Contains(fmt.Sprint(err), want.text) {
			t.Errorf("%q: %v, want %v with %q", words, err, want.code, want.text)
		}
	}
	epoch := nodes[0].Router().Map().Epoch
	admin(t, nodes[2], "node cordon n1")
	admin(t, nodes[0], "NODE CORDON n1") // once more, and in other letters
	admin(t, nodes[1], "node uncordon n1")
	admin(t, nodes[1], "node remove n9") // it is not there
	if got := nodes[1].Router().Map().Epoch; got != epoch+2 {
		t.Errorf("epoch %d, want %d", got, epoch+2)
	}
}

// A move stands still while it is paused, and is taken back without a trace.
func TestPauseAndCancelMove(t *testing.T) {
	t.Parallel()
	nodes, _ := several(t, 4)
	put(t, nodes[0], "key", "value")
	// Begun and paused in one step, or it might be over before.
	_, err := nodes[0].changeMap(t.Context(), func(m sharding.Map) (sharding.Map, bool, error) {
		sh, _ := m.Shard(1)
		r, _ := sh.On("n2")
		next, err := sharding.StartMove(m, 1, r.ID, "n4")
		if err == nil {
			next.Shards[1].Move.Paused = true
		}
		return next, true, err
	})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the new replica is placed, and there it stays", func() error {
		s := nodes[0].clusterStatus()
		voters := 0
		for _, r := range s.Shards[1].Replicas {
			if r.Voter {
				voters++
			}
		}
		if mv := s.Shards[1].Move; mv == nil || !mv.Paused || mv.State != "paused" || voters != 3 || nodes[3].Replica(1) == nil || !s.Healthy {
			return fmt.Errorf("%+v, %d voters, %v", mv, voters, s.Problems)
		}
		return nil
	})
	admin(t, nodes[0], "shard pause 1") // it is
	if m := nodes[0].Router().Map(); m.Shards[1].Move == nil {
		t.Fatalf("it went on: %+v", m.Shards[1])
	}
	if _, err := nodes[0].Admin(t.Context(), strings.Fields("shard move 1 n1 n4")); transport.CodeOf(err) != transport.CodeRefused {
		t.Errorf("a second move of the shard: %v", err)
	}
	admin(t, nodes[3], "shard cancel 1")
	until(t, "nothing is left of it", func() error {
		if st := nodes[3].Replica(1); st != nil {
			return fmt.Errorf("replica %s is open", st.Status().Replica)
		}
		s := nodes[0].clusterStatus()
		if !s.Healthy || s.Shards[1].Move != nil || len(s.Shards[1].Replicas) != 3 {
			return fmt.Errorf("%v, %+v", s.Problems, s.Shards[1])
		}
		return nil
	})
	if got := get(t, nodes[3], "key"); got != "value" {
		t.Errorf("key = %q", got)
	}
}
