package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// say says something to a node, in words, and reads the answer.
func say[T any](t *testing.T, n *Node, words string) (answer T, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	raw, err := n.Admin(ctx, strings.Fields(words))
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		t.Fatalf("%s: %v in %s", words, err, raw)
	}
	return answer, nil
}

// wantRefusal says something that must be refused.
func wantRefusal(t *testing.T, n *Node, words string, code transport.Code, why string) {
	t.Helper()
	if _, err := say[any](t, n, words); transport.CodeOf(err) != code || !strings.Contains(err.Error(), why) {
		t.Errorf("%s: %v, want %v: %q", words, err, code, why)
	}
}

// recovers has a node recover the cluster without those that are lost, as often as it takes.
func recovers(t *testing.T, n *Node, args string) (done recoveryDone) {
	t.Helper()
	// The lost were heard of a moment ago.
	var shown recoveryShown
	until(t, "the plan of a recovery", func() (err error) {
		shown, err = say[recoveryShown](t, n, "recover plan "+args)
		return err
	})
	until(t, "a recovery", func() (err error) {
		done, err = say[recoveryDone](t, n, "recover run "+shown.Phrase+" "+args)
		if err != nil && transport.CodeOf(err) != transport.CodeConflict {
			t.Fatal(err)
		}
		return err
	})
	return done
}

// untilServed waits until a node's cluster has so many nodes and leaders of every shard.
func untilServed(t *testing.T, n *Node, nodes int) {
	t.Helper()
	until(t, "all shards served", func() error {
		s := n.clusterStatus()
		if len(s.Nodes) != nodes {
			return fmt.Errorf("%d nodes", len(s.Nodes))
		}
		for _, sh := range s.Shards {
			if sh.Leader == "" {
				return fmt.Errorf("shard %d: %s", sh.ID, sh.Problem)
			}
		}
		return n.Ready(t.Context())
	})
}

// restarted opens a node that is expected to end by itself, and returns with which error.
func restarted(t *testing.T, cfg Config) error {
	t.Helper()
	n, err := Open(t.Context(), cfg)
	if err != nil {
		return err
	}
	defer n.Close()
	select {
	case err := <-n.Failed():
		return err
	case <-time.After(30 * time.Second):
		return nil
	}
}

// A cluster that has lost a majority of its nodes goes on with the others: all that these had is there, replicas are made anew as nodes join, and the lost, when they come back together, whole
// and a majority of what there was, are told that they are out, and have not voted for anybody.
func TestRecoverMajority(t *testing.T) {
	t.Parallel()
	for _, size := range []int{3, 5} {
		t.Run(fmt.Sprintf("%d nodes", size), func(t *testing.T) {
			t.Parallel()
			nodes, cfgs := severalOf(t, size, func(cfg *Config) { cfg.Replicas = size })
			keep := size / 2
			fill(t, nodes[0], "a")
			wantRefusal(t, nodes[0], "recover plan", transport.CodeRefused, "every shard has a majority")
			var lost []string
			for i := keep; i < size; i++ {
				lost = append(lost, nodes[i].cfg.ID)
			}
			names := strings.Join(lost, ",")
			wantRefusal(t, nodes[0], "recover plan "+names, transport.CodeRefused, "is not lost")
			wantRefusal(t, nodes[0], "recover plan n1", transport.CodeRefused, "node n1 answers")
			for i := keep; i < size; i++ {
				cfgs[i] = stopped(t, nodes[i], cfgs[i])
			}
			left := nodes[:keep]
			// One that is neither there nor given up might come back with a vote.
			until(t, "silence is not enough", func() error {
				_, err := say[any](t, nodes[0], "recover plan "+lost[0])
				if transport.CodeOf(err) != transport.CodeRefused || !strings.Contains(err.Error(), lost[1]) && !strings.Contains(err.Error(), lost[len(lost)-1]) {
					return fmt.Errorf("not refused for the others: %w", err)
				}
				return nil
			})
			wantRefusal(t, nodes[0], "recover plan n77", transport.CodeRefused, "does not answer and is not among the lost")
			until(t, "another phrase is refused", func() error {
				_, err := say[any](t, nodes[0], "recover run recover-all "+names)
				if transport.CodeOf(err) != transport.CodeRefused || !strings.Contains(err.Error(), "is not that of this recovery") {
					return fmt.Errorf("%w", err)
				}
				return nil
			})

			done := recovers(t, nodes[0], names)
			if len(done.Shards) != 3 || done.Era != 1 || sharding.Era(done.Epoch) != 1 {
				t.Fatalf("%+v", done)
			}
			untilServed(t, nodes[0], keep)
			wantAll(t, "a", left...)
			fill(t, nodes[0], "b")
			wantAll(t, "b", left...)
			for range 3 { // in each shard: the log may have lost sessions that others know
				if id, err := nodes[0].OpenSession(t.Context(), nil); err != nil || id&(1<<48-1) <= 1<<32 {
					t.Errorf("session %x, %v: its id may have been given before", id, err)
				}
			}

			// All lost come back at once: a majority of the old groups.
			ends := make(chan error, size)
			for i := keep; i < size; i++ {
				go func() { ends <- restarted(t, cfgs[i]) }()
			}
			for range size - keep {
				if err := <-ends; !errors.Is(err, ErrRemoved) {
					t.Errorf("a lost node came back: %v", err)
				}
			}
			for _, n := range left {
				for _, st := range n.host.all() {
					for _, m := range st.Status().Members {
						if slices.Contains(lost, m.Node) {
							t.Errorf("shard %d: %+v is a member again", st.Shard(), m)
						}
					}
				}
			}
			wantAll(t, "a", left...)
			wantAll(t, "b", left...)

			// What was recovered is a cluster like any other: it starts again, and grows.
			for i := range left {
				cfgs[i] = stopped(t, left[i], cfgs[i])
			}
			for i := range left {
				left[i] = open(t, cfgs[i])
			}
			untilServed(t, left[0], keep)
			for i := keep; i < size; i++ {
				cfg := testConfig(t, cfgs[i].ID) // the same names, with empty disks
				cfg.Join = []string{left[0].Addrs().Peer}
				left = append(left, open(t, cfg))
			}
			untilHealthy(t, left...)
			wantAll(t, "a", left...)
			wantAll(t, "b", left...)
			untilEqual(t, left...)
			m, _, err := left[0].readMap(t.Context())
			if err != nil || sharding.Era(m.Epoch) != 1 {
				t.Errorf("shard 0 has a map of epoch %d, %v", m.Epoch, err)
			}
		})
	}
}

// Lost nodes that come back together and see no node that is left do not know, and serve the old cluster: nobody can keep them from it. As soon as they reach one
// that is left they end, and what they took meanwhile is nowhere.
func TestLostMajorityLearnsLate(t *testing.T) {
	t.Parallel()
	nodes, cfgs := three(t)
	fill(t, nodes[0], "a")
	for i := 1; i < 3; i++ {
		cfgs[i] = stopped(t, nodes[i], cfgs[i])
	}
	recovers(t, nodes[0], "n2,n3")
	untilServed(t, nodes[0], 1)
	var healed atomic.Bool
	var dialer net.Dialer
	var back []*Node
	ends := make(chan error, 2)
	for i := 1; i < 3; i++ {
		cfgs[i].Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			if addr == nodes[0].Addrs().Peer && !healed.Load() {
				return nil, errors.New("the network is parted")
			}
			return dialer.DialContext(ctx, "tcp", addr)
		}
		n, err := Open(t.Context(), cfgs[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		back = append(back, n)
		go func() { ends <- <-n.Failed() }()
	}
	until(t, "the lost serve", func() error {
		for _, sh := range back[0].clusterStatus().Shards {
			if sh.Leader == "" {
				return errors.New(sh.Problem)
			}
		}
		return nil
	})
	put(t, back[0], "theirs", "x")
	put(t, nodes[0], "ours", "x")
	healed.Store(true)
	for range back {
		select {
		case err := <-ends:
			if !errors.Is(err, ErrRemoved) {
				t.Errorf("a lost node ends: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the lost go on")
		}
	}
	if theirs, ours := get(t, nodes[0], "theirs"), get(t, nodes[0], "ours"); theirs != "" || ours != "x" {
		t.Errorf("theirs %q, ours %q", theirs, ours)
	}
	wantAll(t, "a", nodes[0])
}

// A recovery that ends anywhere, with all processes, is brought to its end by another, at another node.
func TestRecoverAgain(t *testing.T) {
	t.Parallel()
	for _, last := range []string{stepFence, stepTake} {
		t.Run("after "+last, func(t *testing.T) {
			t.Parallel()
			nodes, cfgs := severalOf(t, 5, func(cfg *Config) { cfg.Replicas = 5 })
			fill(t, nodes[0], "a")
			for i := 2; i < 5; i++ {
				stopped(t, nodes[i], cfgs[i])
			}
			var r sharding.Recovery
			until(t, "a plan", func() (err error) {
				r, _, err = nodes[0].planRecovery(t.Context(), []string{"n3", "n4", "n5"}, false, transport.CodeConflict)
				return err
			})
			for _, n := range nodes[:2] {
				if _, err := n.stepRecovery(recoverRequest{ClusterID: n.Router().Map().ClusterID, Step: stepFence, Run: "x", Era: 1, Shards: []sharding.ShardID{0, 1, 2}}); err != nil {
					t.Fatal(err)
				}
			}
			if last == stepTake {
				for _, l := range r.Shards {
					n := nodes[slices.IndexFunc(nodes, func(n *Node) bool { return n.cfg.ID == l.To.Node })]
					req := recoverRequest{ClusterID: n.Router().Map().ClusterID, Step: stepTake, Run: "another", Era: 1, Take: &l}
					if _, err := n.stepRecovery(req); transport.CodeOf(err) != transport.CodeConflict {
						t.Fatalf("a step of an attempt that has not fenced: %v", err)
					}
					req.Run = "x"
					if _, err := n.stepRecovery(req); err != nil {
						t.Fatal(err)
					}
				}
			}
			for i := range 2 {
				if len(nodes[i].host.all()) != 0 {
					t.Fatalf("%s has replicas open that were fenced", nodes[i].cfg.ID)
				}
				cfgs[i] = stopped(t, nodes[i], cfgs[i])
			}
			for i := range 2 {
				nodes[i] = open(t, cfgs[i])
				if len(nodes[i].host.all()) != 0 {
					t.Fatalf("%s has opened replicas that were fenced", nodes[i].cfg.ID)
				}
			}
			if s := nodes[0].clusterStatus(); s.Healthy || !strings.Contains(strings.Join(s.Problems, "\n"), "stopped for a recovery") {
				t.Errorf("what is the matter is not told: %v", s.Problems)
			}
			recovers(t, nodes[1], "n3,n4,n5")
			untilServed(t, nodes[1], 2)
			untilServed(t, nodes[0], 2)
			wantAll(t, "a", nodes[0], nodes[1])
			// The other survivor's replicas were put aside, and new ones made.
			untilHealthy(t, nodes[0], nodes[1])
			untilEqual(t, nodes[0], nodes[1])
			for _, n := range nodes[:2] {
				if id := n.dir.ident(); len(id.Fenced) != 0 || len(id.Lost) != 3 || len(id.Replicas) != 3 || id.Era != 1 {
					t.Errorf("%+v", id)
				}
			}
		})
	}
}

// Shards that still have their majority are not touched, but for the replicas on lost nodes, and the map is changed by shard 0 itself if that is one of them; a shard of which nothing is
// left begins anew if that is said, and not before.
func TestRecoverSomeShards(t *testing.T) {
	t.Parallel()
	nodes, cfgs := severalOf(t, 5, func(cfg *Config) { cfg.Shards, cfg.Replicas = 6, 1 })
	fill(t, nodes[0], "a")
	m := nodes[0].Router().Map()
	// Shard 0 stays on n1; of the others some go to n4 and n5.
	for shard, to := range map[int]string{3: "n4", 4: "n5", 5: "n3"} {
		if _, err := say[any](t, nodes[0], fmt.Sprintf("shard move %d %s %s", shard, m.Shards[shard].Replicas[0].Node, to)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the moves are over", func() error {
		for _, sh := range nodes[0].Router().Map().Shards {
			if sh.Move != nil || len(sh.Replicas) != 1 {
				return fmt.Errorf("shard %d: %+v", sh.ID, sh)
			}
			if st := nodes[0].host.get(sh.ID); st != nil && sh.ID > 2 {
				return fmt.Errorf("shard %d is still on n1", sh.ID)
			}
		}
		return nil
	})
	untilHealthy(t, nodes...)
	for i := 3; i < 5; i++ {
		stopped(t, nodes[i], cfgs[i])
	}
	until(t, "gone shards are named", func() error {
		_, err := say[any](t, nodes[1], "recover plan n4,n5")
		if err == nil || !strings.Contains(err.Error(), "shard 3: nothing of use is left") || !strings.Contains(err.Error(), "shard 4: nothing") {
			return fmt.Errorf("%w", err)
		}
		return nil
	})
	before, _ := nodes[0].Router().Map().Shard(0)
	done := recovers(t, nodes[1], "n4,n5 empty")
	if !slices.Equal(done.Shards, []sharding.ShardID{3, 4}) {
		t.Fatalf("%+v", done)
	}
	for _, n := range nodes[:3] {
		untilServed(t, n, 3)
	}
	after, _ := nodes[0].Router().Map().Shard(0)
	if !slices.Equal(before.Replicas, after.Replicas) {
		t.Errorf("shard 0 was touched: %+v, %+v", before, after)
	}
	for i := range 40 {
		key := fmt.Sprintf("a%d", i)
		_, shard := nodes[0].Router().Locate([]byte(key))
		want := "v"
		if shard == 3 || shard == 4 {
			want = ""
		}
		if got := get(t, nodes[2], key); got != want {
			t.Errorf("%s of shard %d is %q, want %q", key, shard, got, want)
		}
	}
	fill(t, nodes[2], "b")
	wantAll(t, "b", nodes[:3]...)
	wantRefusal(t, nodes[0], "recover plan n4", transport.CodeRefused, `no node "n4"`)
}

// A node whose disk is sound and one replica's log is not counts as far as it can: that shard is recovered without any node being lost.
func TestRecoverDamagedReplicas(t *testing.T) {
	t.Parallel()
	nodes, cfgs := three(t)
	fill(t, nodes[0], "a")
	var dirs []string
	for i := 1; i < 3; i++ {
		_, dir := replicaPath(t, nodes[i], 1)
		dirs = append(dirs, dir)
		cfgs[i] = stopped(t, nodes[i], cfgs[i])
	}
	for i, dir := range dirs {
		if err := os.Remove(dir + "/raft.db"); err != nil {
			t.Fatal(err)
		}
		nodes[i+1] = open(t, cfgs[i+1])
	}
	until(t, "the others are served", func() error {
		for _, sh := range nodes[0].clusterStatus().Shards {
			if (sh.Leader == "") != (sh.ID == 1) {
				return fmt.Errorf("shard %d is led by %q", sh.ID, sh.Leader)
			}
		}
		return nil
	})
	done := recovers(t, nodes[2], "none")
	if !slices.Equal(done.Shards, []sharding.ShardID{1}) {
		t.Fatalf("%+v", done)
	}
	untilHealthy(t, nodes...)
	wantAll(t, "a", nodes...)
	untilEqual(t, nodes...)
}

// What a node of an earlier era says that it leads is not believed, though nothing on the way has refused it.
func TestEarlierEraIsNotHeard(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	n := open(t, cfg)
	untilHealthy(t, n)
	m := n.Router().Map()
	m.Epoch = 1_000_000_000
	n.offerMap(m)
	// One of our own epoch that is no member has learnt that it is out, and one of a later may have been let in.
	for epoch, heard := range map[uint64]bool{7: false, 1_000_000_000: false, 1_000_000_003: true} {
		s := peerStatus{Node: "n9", Epoch: epoch, Replicas: []replicaStatus{{Shard: 2, Replica: "n9.1", Leads: true, Term: 1000}}}
		raw, _ := encodeWire(s)
		if _, err := n.handleStatus(t.Context(), "n9", raw); err != nil {
			t.Fatal(err)
		}
		if leader, _ := n.peers.claim(2); (leader == "n9") != heard {
			t.Errorf("of epoch %d: the leader is %q", epoch, leader)
		}
		delete(n.peers.table, "n9")
		n.peers.claims.Store(nil)
	}
}
