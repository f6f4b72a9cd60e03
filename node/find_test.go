package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
)

// All nodes come back with new addresses on all ports, and know one of the new ones: they find each other and serve within ten seconds,
// and the map says where they are.
func TestAllAddressesNew(t *testing.T) {
	nodes, cfgs := three(t)
	put(t, nodes[0], "key", "value")
	var was []sharding.Addrs
	for _, n := range nodes {
		was = append(was, n.Addrs())
	}
	for _, n := range nodes {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	seeds := filepath.Join(t.TempDir(), "seeds")
	for i := range nodes {
		cfgs[i].ClientAddr, cfgs[i].ClusterAddr, cfgs[i].PeerAddr, cfgs[i].HTTPAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		// The second is told by a name, the third by a file.
		switch i {
		case 1:
			cfgs[i].Join = []string{strings.Replace(nodes[0].Addrs().Peer, "127.0.0.1", "localhost", 1)}
		case 2:
			if err := os.WriteFile(seeds, []byte("# where we are today\n"+nodes[0].Addrs().Peer+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			cfgs[i].Join, cfgs[i].JoinFile = nil, seeds
		}
		nodes[i] = open(t, cfgs[i])
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for shard := range sharding.ShardID(3) {
		if _, err := nodes[2].Exec(ctx, shard, []command.Command{{Op: command.OpNoop}}); err != nil {
			t.Fatalf("shard %d after %v: %v", shard, time.Since(began), err)
		}
	}
	if got := get(t, nodes[1], "key"); got != "value" {
		t.Errorf("key = %q", got)
	}
	t.Logf("served after %v", time.Since(began))
	until(t, "the map says where they are", func() error {
		for _, n := range nodes {
			for i, o := range nodes {
				nd, _ := n.Router().Map().Node(o.cfg.ID)
				if nd.Addrs != o.Addrs() || nd.Addrs.Peer == was[i].Peer {
					return fmt.Errorf("%s has %s at %v, it is at %v and was at %v", n.cfg.ID, o.cfg.ID, nd.Addrs, o.Addrs(), was[i])
				}
			}
		}
		return nil
	})
	untilHealthy(t, nodes...)
}

// Of two words about a node's whereabouts the newer counts, whoever passes it on; the node's own announcement in the map ends both.
func TestWhereabouts(t *testing.T) {
	m, err := sharding.NewMap("c", sharding.Node{ID: "n1", Addrs: sharding.Addrs{Peer: "a:1"}}, 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	m, err = sharding.PlanJoin(m, sharding.Node{ID: "n2", Addrs: sharding.Addrs{Peer: "b:1"}})
	if err != nil {
		t.Fatal(err)
	}
	p, now := newPeers(), time.Now()
	p.note("n2", "b:2", now.Add(-time.Second))
	p.note("n2", "b:old", now.Add(-time.Minute))
	p.note("n1", "a:1", now)
	p.note("n9", "z:1", now)
	if got := p.address("n2"); got != "b:2" {
		t.Errorf("n2 is at %q", got)
	}
	// Only what the map does not say, and of whom it knows.
	if got := p.found(m, now); len(got) != 1 || got["n2"] != (found{"b:2", 1000}) {
		t.Errorf("%+v", got)
	}
	p.note("n2", "b:3", now)
	next, _ := sharding.UpdateNode(m, sharding.Node{ID: "n2", Addrs: sharding.Addrs{Peer: "b:4"}})
	p.moved(m, next)
	if got := p.address("n2"); got != "" {
		t.Errorf("n2 has announced itself, and is still at %q", got)
	}
	if got := p.address("n1"); got != "a:1" {
		t.Errorf("n1 is at %q", got)
	}
	if got := p.address("n9"); got != "" {
		t.Errorf("n9 is not in the map, and is at %q", got)
	}
}

func TestSeeds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seeds")
	n := &Node{cfg: Config{Join: []string{"10.0.0.1:7501", "127.0.0.1:7501"}, JoinFile: path, PeerAddr: "127.0.0.1:7501"}, log: testConfig(t, "n1").Log}
	if err := os.WriteFile(path, []byte("10.0.0.2:7501 # the second\n\n#10.0.0.9:1\n10.0.0.1:7501\nnonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := n.seeds(t.Context()), []string{"10.0.0.1:7501", "10.0.0.2:7501"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	cfg := testConfig(t, "n1")
	cfg.JoinFile = path
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "line 5") {
		t.Errorf("%v", err)
	}
	cfg.JoinFile = filepath.Join(t.TempDir(), "none")
	if err := cfg.Validate(); err == nil {
		t.Error("a file that there is not")
	}
	if got := expand(t.Context(), "localhost:1"); !slices.Contains(got, "127.0.0.1:1") && !slices.Contains(got, "[::1]:1") {
		t.Errorf("localhost is %v", got)
	}
	if got := expand(t.Context(), "nowhere.invalid:1"); !slices.Equal(got, []string{"nowhere.invalid:1"}) {
		t.Errorf("%v", got)
	}
}
