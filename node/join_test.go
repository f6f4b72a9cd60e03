package node

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Each of these must be refused with a message that says what to do, and must
// leave the cluster as it was.
func TestRefusals(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	n1 := open(t, cfg)
	untilHealthy(t, n1)
	epoch := n1.Router().Map().Epoch

	refused := func(what, want string, cfg Config) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		n, err := Open(ctx, cfg)
		if err == nil {
			n.Close()
			t.Fatalf("%s: accepted", what)
		}
		if !strings.Contains(err.Error(), want) {
			t.Fatalf("%s: %q does not say %q", what, err, want)
		}
	}

	same := testConfig(t, "n1")
	same.Join = []string{n1.Addrs().Peer}
	refused("an id that a running node uses", "running node has the id", same)

	locked := cfg
	refused("a locked directory", "in use by another abacusd", locked)

	busy := testConfig(t, "n2")
	busy.Bootstrap, busy.HTTPAddr = true, n1.Addrs().HTTP
	refused("a port in use", "--http-addr: listen tcp "+n1.Addrs().HTTP, busy)
	if _, err := os.Stat(busy.DataDir); !os.IsNotExist(err) {
		t.Fatalf("a port in use left a data directory: %v", err)
	}

	for what, addr := range map[string]string{"the client port": n1.Addrs().Client, "the HTTP port": n1.Addrs().HTTP} {
		lost := testConfig(t, "n2")
		lost.Join = []string{addr}
		if err := openUntilTold(t, lost, "not a peer port"); err == nil || !strings.Contains(err.Error(), "not a peer port") {
			t.Errorf("join %s: %v", what, err)
		}
	}

	empty := testConfig(t, "n2")
	refused("neither bootstrap nor join", "--bootstrap", empty)

	file := testConfig(t, "n2")
	file.Bootstrap = true
	if err := os.WriteFile(file.DataDir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a data directory that is a file", "choose another --data-dir", file)

	public := testConfig(t, "n2")
	public.Bootstrap, public.ClientAddr = true, "0.0.0.0:0"
	refused("an address that is not loopback", "--insecure", public)

	// A copy of a running node's directory would vote twice: it must not open one replica.
	twin := testConfig(t, "n1")
	if err := os.CopyFS(twin.DataDir, os.DirFS(cfg.DataDir)); err != nil {
		t.Fatal(err)
	}
	refused("a copy of a running node's directory", "running node has the id", twin)

	// A node that nobody can reach would take replicas and never fill them.
	lost := testConfig(t, "n2")
	lost.Join, lost.Advertise.Peer = []string{n1.Addrs().Peer}, "127.0.0.1:1"
	if err := openUntilTold(t, lost, "--advertise-peer-addr"); err == nil || !strings.Contains(err.Error(), "--advertise-peer-addr") {
		t.Fatalf("a joiner that cannot be reached: %v", err)
	}

	// A node of another cluster is not taken in.
	other := testConfig(t, "n9")
	other.Bootstrap = true
	n9 := open(t, other)
	untilHealthy(t, n9)
	if _, err := n9.askToJoin(t.Context(), n1.Addrs().Peer); transport.CodeOf(err) != transport.CodeWrongCluster && transport.CodeOf(err) != transport.CodeRefused {
		t.Fatalf("joined another cluster: %v", err)
	}
	renamed := other
	renamed.ID = "n8"
	n9.Close()
	refused("another id on a data directory", `belongs to node "n9"`, renamed)

	if e := n1.Router().Map().Epoch; e != epoch {
		t.Fatalf("refusals changed the map: epoch %d, was %d", e, epoch)
	}
}

// openUntilTold opens a node that asks to join again and again, until an answer has that text.
func openUntilTold(t *testing.T, cfg Config, text string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cfg.Log = slog.New(answerHandler{cfg.Log.Handler(), text, cancel})
	n, err := Open(ctx, cfg)
	if err == nil {
		n.Close()
	}
	return err
}

// answerHandler calls told when what is logged has an error with that text.
type answerHandler struct {
	slog.Handler
	text string
	told func()
}

func (h answerHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" && strings.Contains(a.Value.String(), h.text) {
			h.told()
		}
		return true
	})
	return h.Handler.Handle(ctx, r)
}

func (h answerHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

// A joiner whose answer got lost asks again and is the same node.
func TestJoinTwice(t *testing.T) {
	t.Parallel()
	nodes, _ := several(t, 2)
	n1, n2 := nodes[0], nodes[1]
	epoch := n1.Router().Map().Epoch
	m, err := n2.askToJoin(t.Context(), n1.Addrs().Peer)
	if err != nil || m.Epoch != epoch {
		t.Fatalf("second join: epoch %d (was %d), %v", m.Epoch, epoch, err)
	}
	// The same id from another directory is another node.
	req := joinRequest{Node: sharding.Node{ID: "n2", Instance: "someone-else", Addrs: n2.Addrs()}, Boot: "b"}
	raw, _ := encodeWire(req)
	if _, err := n1.handleJoin(t.Context(), "", raw); transport.CodeOf(err) != transport.CodeRefused {
		t.Fatalf("an id of another directory: %v", err)
	}
}

// A node that has not read its map yet is asked again, and does not send a member of its
// own cluster away, as it did when several started at once after a power cut.
func TestJoinAtOneThatStarts(t *testing.T) {
	starting := &Node{cfg: Config{ID: "n2"}}
	starting.router.Store(sharding.NewRouter(sharding.Map{}))
	for _, cluster := range []string{"", "4b93291ba5886a22"} {
		raw, _ := encodeWire(joinRequest{Node: sharding.Node{ID: "n1", Instance: "i"}, ClusterID: cluster, Boot: "b"})
		if _, err := starting.handleJoin(t.Context(), "", raw); transport.CodeOf(err) != transport.CodeUnavailable {
			t.Errorf("from cluster %q: %v", cluster, err)
		}
	}
}

// A node without data that is told to join itself would wait for ever.
func TestJoinItself(t *testing.T) {
	cfg := testConfig(t, "n1")
	cfg.PeerAddr, cfg.Join = "127.0.0.1:1", []string{"127.0.0.1:1"}
	if n, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "this node itself") {
		t.Errorf("%v, %v", n, err)
	}
}
