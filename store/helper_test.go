package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/store/wal"
	"github.com/abacusdb/abacus/transport"
	"github.com/abacusdb/abacus/transport/transporttest"
)

// quick is timing for tests: elections in a fraction of a second, though many
// tests share few processors.
func quick() Timing {
	return Timing{Heartbeat: 250 * time.Millisecond, Election: 250 * time.Millisecond, Lease: 200 * time.Millisecond, Commit: 10 * time.Millisecond}
}

const patience = 20 * time.Second

func bg(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// cluster is one shard over several nodes of one process.
type cluster struct {
	t     *testing.T
	net   *transporttest.Network
	dir   string
	log   *slog.Logger
	nodes []*node
	edit  func(n *node, cfg *Config) // of each store's config, may be nil
	tcp   *sync.Map                  // address by node id; nil: the in-memory network
	tap   *tap                       // on the questions of reads; nil: none
}

// node is one of its nodes: a transport and a replica.
type node struct {
	c       *cluster
	id      string
	replica string
	first   bool
	tr      transport.Transport
	net     *Net
	store   *Store                // the test's own goroutine's
	running atomic.Pointer[Store] // the same
	gate    *gate
	wal     *wal.WAL // of all its replicas' lives; nil: raft-boltdb
}

// logKind is the kind of log that the clusters of these tests have: make test
// runs them with both.
var logKind = cmp.Or(os.Getenv("ABACUS_TEST_LOG"), "wal")

// logPath ends as errors name the log.
func (n *node) logPath() string {
	if logKind == "boltdb" {
		return filepath.Join(n.id, logName)
	}
	return n.id + "-wal"
}

// log opens the node's log, which stays open while its replicas come and go.
func (n *node) log() *wal.WAL {
	n.c.t.Helper()
	if logKind == "boltdb" || n.wal != nil {
		return n.wal
	}
	dir := filepath.Join(n.c.dir, n.id+"-wal")
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		n.wal, err = wal.Open(wal.Dir(dir), wal.Config{Path: dir, SegmentBytes: 256 << 10, Fatal: stopProcess, Log: n.c.log})
	}
	if err != nil {
		n.c.t.Fatal(err)
	}
	return n.wal
}

// newCluster starts a shard with one replica and adds the others.
func newCluster(t *testing.T, size int, edit func(n *node, cfg *Config)) *cluster {
	t.Helper()
	return newTappedCluster(t, size, edit, nil)
}

func newTappedCluster(t *testing.T, size int, edit func(n *node, cfg *Config), tap *tap) *cluster {
	t.Helper()
	c := &cluster{t: t, net: transporttest.NewNetwork(), dir: t.TempDir(), log: slog.New(slog.DiscardHandler), edit: edit, tap: tap}
	if os.Getenv("STORE_TEST_LOG") != "" {
		c.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	t.Cleanup(func() {
		c.net.Heal()
		for _, n := range c.nodes {
			n.stop()
			if n.wal != nil {
				mustClose(t, n.wal)
			}
		}
	})
	for range size {
		c.addNode()
	}
	for i, n := range c.nodes {
		n.start()
		if i > 0 {
			c.join(n)
		}
	}
	return c
}

func (c *cluster) addNode() *node {
	id := fmt.Sprintf("n%d", len(c.nodes)+1)
	n := &node{c: c, id: id, replica: id + ".1", first: len(c.nodes) == 0}
	c.nodes = append(c.nodes, n)
	return n
}

// join makes a started node's replica a voter.
func (c *cluster) join(n *node) {
	c.t.Helper()
	c.onLeader("add learner "+n.replica, func(s *Store) error { return s.AddLearner(bg(c.t), n.replica, n.id) })
	c.onLeader("promote "+n.replica, func(s *Store) error { return s.Promote(bg(c.t), n.replica, n.id) })
}

// onLeader repeats f on whoever leads until it succeeds.
func (c *cluster) onLeader(what string, f func(*Store) error) {
	c.t.Helper()
	var last error
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		if _, s := c.leading(); s != nil {
			if last = f(s); last == nil {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("%s: %v", what, last)
}

// leader returns the node whose replica leads and is ready, or nil.
func (c *cluster) leader() *node {
	l, _ := c.leading()
	return l
}

// leading is leader, for goroutines beside the test's own, which may stop the node meanwhile.
func (c *cluster) leading() (*node, *Store) {
	for _, n := range c.nodes {
		if s := n.running.Load(); s != nil && s.IsLeader() {
			return n, s
		}
	}
	return nil, nil
}

func (c *cluster) waitLeader() *node {
	c.t.Helper()
	var l *node
	until(c.t, "a leader", func() bool { l = c.leader(); return l != nil })
	return l
}

// lead has a node lead, whoever did.
func (c *cluster) lead(n *node) *node {
	c.t.Helper()
	c.onLeader("hand over to "+n.id, func(s *Store) error {
		if s == n.store {
			return nil
		}
		if err := s.TransferLeadership(bg(c.t), n.replica); err != nil {
			return err
		}
		return errors.New("it does not lead yet")
	})
	return n
}

func (c *cluster) followers() (fs []*node) {
	for _, n := range c.nodes {
		if n.store != nil && !n.store.IsLeader() {
			fs = append(fs, n)
		}
	}
	return fs
}

func (n *node) config() Config {
	cfg := Config{
		Shard: 3, Replica: n.replica, Node: n.id, Dir: filepath.Join(n.c.dir, n.id), Timing: quick(),
		InitialMmapSize: 1 << 20, Log: n.c.log.With("node", n.id), WAL: n.log(),
		WrapLog: func(l raft.LogStore) raft.LogStore { n.gate = newGate(l); return n.gate },
	}
	if n.first {
		cfg.Bootstrap = identity()
	}
	return cfg
}

func identity() *command.Init {
	return &command.Init{
		ClusterID: "test", Shard: 3, Slots: []command.SlotRange{{From: 0, To: 16383}}, Limits: command.DefaultLimits(),
	}
}

func (n *node) start() {
	n.c.t.Helper()
	if err := n.open(); err != nil {
		n.c.t.Fatal(err)
	}
}

func (n *node) open() error {
	cfg := n.config()
	if n.c.tcp != nil {
		tr := n.listen()
		n.tr, cfg.Net = tr, NewNet(tr, 0, cfg.Log)
		tr.Start()
	} else {
		n.tr = n.c.net.Join(n.id)
		if n.c.tap != nil {
			n.tr = tapped{n.tr, n.c.tap}
		}
		cfg.Net = NewNet(n.tr, 0, cfg.Log)
	}
	if n.c.edit != nil {
		n.c.edit(n, &cfg)
	}
	n.net = cfg.Net
	s, err := Open(cfg)
	if err != nil {
		cfg.Net.Close()
		n.tr.Close()
		return err
	}
	n.opened(s)
	return nil
}

// opened says which replica runs; nil: none does.
func (n *node) opened(s *Store) {
	n.store = s
	n.running.Store(s)
}

// listen opens a real transport.
func (n *node) listen() *transport.TCP {
	n.c.t.Helper()
	tr, err := transport.Listen(transport.Config{
		Self: n.id, ClusterID: func() string { return "test" }, Addr: "127.0.0.1:0", Log: n.c.log,
		Resolve: func(id string) (string, error) {
			addr, ok := n.c.tcp.Load(id)
			if !ok {
				return "", transport.Errorf(transport.CodeUnavailable, "no node %s", id)
			}
			return addr.(string), nil
		},
	})
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.c.tcp.Store(n.id, tr.Addr().String())
	return tr
}

// stop closes gracefully.
func (n *node) stop() {
	n.c.t.Helper()
	if n.store == nil {
		return
	}
	n.gate.release()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.store.Close(ctx); err != nil {
		n.c.t.Errorf("close %s: %v", n.id, err)
	}
	n.opened(nil)
	n.tr.Close()
	n.net.Close()
}

// kill cuts the node off before it stops, so that it can hand nothing over.
func (n *node) kill() {
	n.c.t.Helper()
	n.tr.Close()
	n.stop()
}

func key(s string) []byte { return []byte(s) }

func set(k, v string) command.Command {
	return command.Command{Op: command.OpSet, Slot: 7, Keys: [][]byte{key(k)}, Values: [][]byte{key(v)}}
}

func get(k string) command.Command {
	return command.Command{Op: command.OpGet, Slot: 7, Keys: [][]byte{key(k)}}
}

// put writes through whoever leads, until it is acknowledged.
func (c *cluster) put(k, v string) {
	c.t.Helper()
	c.onLeader("put "+k, func(s *Store) error {
		_, _, err := s.Propose(bg(c.t), []command.Command{set(k, v)})
		return err
	})
}

// want reads through the log.
func (c *cluster) want(k, v string) {
	c.t.Helper()
	c.onLeader("get "+k, func(s *Store) error {
		res, _, err := s.Propose(bg(c.t), []command.Command{get(k)})
		if err == nil && string(res[0].Bytes) != v {
			c.t.Fatalf("%s is %q, want %q", k, res[0].Bytes, v)
		}
		return err
	})
}

// converge waits until all replicas have applied what the leader has, and
// checks that their states are equal.
func (c *cluster) converge() {
	c.t.Helper()
	c.put("converge", "x")
	until(c.t, "all replicas at one index", func() bool {
		l := c.leader()
		if l == nil {
			return false
		}
		for _, n := range c.nodes {
			if n.store != nil && n.store.Applied() != l.store.Applied() {
				return false
			}
		}
		return true
	})
	var want uint64
	for i, n := range c.nodes {
		if n.store == nil {
			continue
		}
		v, err := n.store.View()
		if err != nil {
			c.t.Fatal(err)
		}
		h := v.Hash()
		v.Close()
		if want == 0 {
			want = h
		} else if h != want {
			c.t.Errorf("replica %d of %d has another state at the same index", i+1, len(c.nodes))
		}
	}
}

// gate is a log whose writes a test can hold, as a slow disk would, or fail.
type gate struct {
	raft.LogStore
	mu   sync.Mutex
	shut chan struct{} // closed by release; nil if open
	fail error
	last chan struct{} // closed when the last append was answered; nil: there was none
}

func newGate(l raft.LogStore) *gate { return &gate{LogStore: l} }

func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut == nil {
		g.shut = make(chan struct{})
	}
}

func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut != nil {
		close(g.shut)
		g.shut = nil
	}
}

func (g *gate) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

func (g *gate) StoreLogs(ls []*raft.Log) error {
	g.mu.Lock()
	shut, fail := g.shut, g.fail
	g.mu.Unlock()
	if fail != nil {
		return fail
	}
	if shut != nil {
		<-shut
	}
	return g.LogStore.StoreLogs(ls)
}

// AppendAsync has entries on the disk when the gate is open, and readable before.
func (g *gate) AppendAsync(ls []*raft.Log, done func(error)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail != nil {
		return g.fail
	}
	shut, before, landed := g.shut, g.last, make(chan struct{})
	g.last = landed
	after := func(err error) { // in order
		if before != nil {
			<-before
		}
		if shut != nil {
			<-shut
		}
		done(err)
		close(landed)
	}
	inner, ok := g.LogStore.(AsyncLog)
	if !ok {
		err := g.LogStore.StoreLogs(ls)
		go after(err)
		return nil
	}
	return inner.AppendAsync(ls, func(err error) { go after(err) })
}

// openLog opens a real log in a new directory.
func openLog(t *testing.T) (*logStore, *stableStore) {
	t.Helper()
	path := filepath.Join(t.TempDir(), logName)
	db, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	stable, err := newStableStore(db, path, stopProcess)
	if err != nil {
		t.Fatal(err)
	}
	return newLogStore(boltLog{db}, path, stopProcess, slog.New(slog.DiscardHandler)), stable
}

// stopProcess is what Config.Fatal is by default.
func stopProcess(err error) { panic(err) }

// fails runs f, whose fatal must be called, and returns with what.
func fails(t *testing.T, f func()) (err error) {
	t.Helper()
	defer func() {
		p := recover()
		if p == nil {
			t.Fatal("it did not stop the process")
		}
		err, _ = p.(error)
	}()
	f()
	return nil
}

func entries(term, from, to uint64) (ls []*raft.Log) {
	for i := from; i <= to; i++ {
		ls = append(ls, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "%d@%d", i, term)})
	}
	return ls
}

func mustClose(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

var errDisk = errors.New("disk on fire")
