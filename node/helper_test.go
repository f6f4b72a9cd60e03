package node

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// Three nodes in one process, over real sockets and real files. Such a test waits for most of its time, for elections and for nodes to hear of each other: those that
// measure no time run beside others (t.Parallel).

// besideEach is how many of them run beside each other for each processor, unless -parallel says how many.
const besideEach = 2

func TestMain(m *testing.M) {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		if err := flag.Set("test.parallel", strconv.Itoa(besideEach*runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

var hosts atomic.Uint32

// ownHost is an address of this machine that nobody else has who asks here, so that a node which comes back to the ports that it had finds them free,
// whatever runs beside it. Only on Linux a machine has that many.
func ownHost() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	n := hosts.Add(1)
	return fmt.Sprintf("127.1.%d.%d", n/250%250, n%250+1)
}

func testConfig(t *testing.T, id string) Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.ID, cfg.DataDir, cfg.Shards = id, filepath.Join(t.TempDir(), id), 3
	cfg.StopTimeout = 30 * time.Second // of a disk that others write to as well
	at := ownHost() + ":0"
	cfg.ClientAddr, cfg.ClusterAddr, cfg.PeerAddr, cfg.HTTPAddr = at, at, at, at
	cfg.Log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	return cfg
}

// testWriter shows logs of failed tests only.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Helper()
	defer func() { _ = recover() }() // a goroutine that logs after the test's end
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func open(t *testing.T, cfg Config) *Node {
	t.Helper()
	n, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("open %s: %v", cfg.ID, err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close %s: %v", cfg.ID, err)
		}
	})
	return n
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func untilHealthy(t *testing.T, nodes ...*Node) {
	t.Helper()
	for _, n := range nodes {
		until(t, "healthy", func() error {
			s := n.clusterStatus()
			if !s.Healthy || len(s.Nodes) != len(nodes) {
				return fmt.Errorf("%s: %d nodes, %v", n.cfg.ID, len(s.Nodes), s.Problems)
			}
			return n.Ready(t.Context())
		})
	}
}

// untilBalanced waits until each of three nodes leads one of the three shards:
// from then on leaderships stay.
func untilBalanced(t *testing.T, n *Node) {
	t.Helper()
	until(t, "leaders balanced", func() error {
		for _, nd := range n.clusterStatus().Nodes {
			if nd.Leads != 1 || nd.Replicas != 3 {
				return fmt.Errorf("%s leads %d of 3 and has %d replicas", nd.ID, nd.Leads, nd.Replicas)
			}
		}
		return nil
	})
}

// three starts a cluster of three nodes.
func three(t *testing.T) (nodes []*Node, cfgs []Config) {
	t.Helper()
	return several(t, 3)
}

func several(t *testing.T, n int) (nodes []*Node, cfgs []Config) {
	t.Helper()
	for i := range n {
		cfg := testConfig(t, fmt.Sprintf("n%d", i+1))
		if i == 0 {
			cfg.Bootstrap = true
		} else {
			cfg.Join = []string{nodes[0].Addrs().Peer}
		}
		nodes, cfgs = append(nodes, open(t, cfg)), append(cfgs, cfg)
	}
	untilHealthy(t, nodes...)
	return nodes, cfgs
}

// severalOf is several with another configuration.
func severalOf(t *testing.T, n int, edit func(*Config)) (nodes []*Node, cfgs []Config) {
	t.Helper()
	for i := range n {
		cfg := testConfig(t, fmt.Sprintf("n%d", i+1))
		edit(&cfg)
		if i == 0 {
			cfg.Bootstrap = true
		} else {
			cfg.Join = []string{nodes[0].Addrs().Peer}
		}
		nodes, cfgs = append(nodes, open(t, cfg)), append(cfgs, cfg)
	}
	untilHealthy(t, nodes...)
	return nodes, cfgs
}

// do runs one command on the key's shard from a node.
func do(t *testing.T, n *Node, key string, cmd command.Command) command.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	slot, shard := n.Router().Locate([]byte(key))
	cmd.Keys, cmd.Slot = [][]byte{[]byte(key)}, slot
	results, err := n.Exec(ctx, shard, []command.Command{cmd})
	if err != nil {
		t.Fatalf("%s on %s: %v", key, n.cfg.ID, err)
	}
	return results[0]
}

// put stores a value, and says it again where it is not known whether it was: the leader may just have gone.
func put(t *testing.T, n *Node, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	slot, shard := n.Router().Locate([]byte(key))
	cmd := command.Command{Op: command.OpSet, Keys: [][]byte{[]byte(key)}, Slot: slot, Values: [][]byte{[]byte(value)}}
	for {
		results, err := n.Exec(ctx, shard, []command.Command{cmd})
		switch {
		case err != nil && !transport.Certain(err) && ctx.Err() == nil:
			continue
		case err != nil:
			t.Fatalf("put %s on %s: %v", key, n.cfg.ID, err)
		case results[0].Kind != command.KindOK:
			t.Fatalf("put %s: %+v", key, results[0])
		}
		return
	}
}

func get(t *testing.T, n *Node, key string) string {
	t.Helper()
	return string(do(t, n, key, command.Command{Op: command.OpGet}).Bytes)
}
