// Package proc runs a cluster of real abacusd processes on this machine: start,
// wait until ready, kill, pause, resume, restart, stop. `abacus dev` and the
// tests in chaos are built on it.
//
// A Cluster is a directory. In it are cluster.json (what the cluster is, and
// the process id and start time of each node) and, per node n, the data
// directory n<n> and the log n<n>.log. The state lives in that file, not in this process:
// another process may Open the same directory and kill or restart a node. Only
// processes that a Cluster of that directory started are ever signalled, and
// only after looking that the process id still belongs to them.
//
// The only goroutine is the one per started process that waits for its end; it
// ends with the process.
package proc

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Errors that callers tell apart. They come wrapped with the node or the port.
var (
	// ErrRunning: the node has a live process already.
	ErrRunning = errors.New("is running already")
	// ErrNotRunning: the node has no live process.
	ErrNotRunning = errors.New("is not running")
	// ErrExited: a process ended while something was expected of it.
	ErrExited = errors.New("ended unexpectedly")
	// ErrPortInUse: something else listens on a port of the cluster.
	ErrPortInUse = errors.New("is in use")
	// ErrNoCluster: the directory holds no cluster.
	ErrNoCluster = errors.New("no cluster here")
)

// MaxNodes is how many nodes fit between two of the port ranges.
const MaxNodes = 99

// Config describes a new cluster.
type Config struct {
	// Dir is made if it is missing.
	Dir string
	// Abacusd is the path of the program.
	Abacusd string
	// Nodes and Shards are how many; Replicas is how many replicas of each shard
	// are wanted (0: three, or one per node when there are fewer).
	Nodes, Shards, Replicas int
	// BasePort b gives node n the ports b+n (client), b+100+n (peer), b+200+n
	// (HTTP) and b+300+n (cluster). 0 picks a base whose ports are free.
	BasePort int
	// Args are further flags for every node, NodeArgs for one (by number).
	Args     []string
	NodeArgs map[int][]string
	// DataDir overrides where a node keeps its data (nil: Dir/n<n>), so that a
	// test can give each node a file system of its own.
	DataDir func(n int) string
	// Host says where a node runs (nil: in this machine's own network, on 127.0.0.1). With it the ports are those of
	// BasePort or of 7400, and nobody looks whether they are free.
	Host func(n int) Host
	// Env is what nodes have in their environment beside this process's own.
	Env []string
	// TLS has all ports speak TLS, with certificates that are made with the cluster.
	TLS bool
	// DieWithParent has the kernel kill the nodes when this process ends, however
	// it ends. For tests; not where nodes shall outlive the command.
	DieWithParent bool
}

// Host is a network that a node runs in.
type Host struct {
	// Addr is the address that the node listens on and is reached at.
	Addr string `json:"addr"`
	// Enter is put before the command line. The process has to stay the same.
	Enter []string `json:"enter,omitempty"`
}

// hostsBase is the base port on hosts of their own.
const hostsBase = 7400

// state is what cluster.json holds.
type state struct {
	Version  int      `json:"version"`
	Abacusd  string   `json:"abacusd"`
	Shards   int      `json:"shards"`
	Replicas int      `json:"replicas"`
	BasePort int      `json:"base_port"`
	Args     []string `json:"args,omitempty"`
	TLS      bool     `json:"tls,omitempty"`
	// Down: the whole cluster was stopped on purpose, and no node started since.
	Down  bool        `json:"down,omitempty"`
	Nodes []nodeState `json:"nodes"`
}

type nodeState struct {
	DataDir string   `json:"data_dir"`
	Args    []string `json:"args,omitempty"`
	Host    *Host    `json:"host,omitempty"`
	// Pid and StartTime name the process: a process id alone may have been given
	// to a stranger since. 0: none.
	Pid       int    `json:"pid,omitempty"`
	StartTime string `json:"start_time,omitempty"`
}

// Cluster is the nodes of one directory.
type Cluster struct {
	dir           string
	env           []string
	dieWithParent bool
	// reserved holds the base port itself, which no node uses, so that two
	// clusters which pick free ports never pick the same ones.
	reserved net.Listener

	// fixed is the cluster as it was created; the processes in it are not kept
	// up to date, the file is. Only UseArgs and UseAbacusd change it after Create or Open.
	fixed state
	nodes []*Node

	// mu guards the file against this process's own goroutines, and what each
	// Node says it guards.
	mu sync.Mutex
}

// Create makes the directory of a new cluster and starts nothing. Where a port of
// the BasePort given is in use, it returns ErrPortInUse and leaves nothing behind.
func Create(cfg Config) (*Cluster, error) {
	if cfg.Nodes < 1 || cfg.Nodes > MaxNodes {
		return nil, fmt.Errorf("nodes: %d is not between 1 and %d", cfg.Nodes, MaxNodes)
	}
	if cfg.Shards == 0 {
		cfg.Shards = 8
	}
	if cfg.Replicas == 0 {
		cfg.Replicas = min(3, cfg.Nodes)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("cluster directory %s: %w", cfg.Dir, err)
	}
	if _, err := os.Stat(statePath(dir)); err == nil {
		return nil, fmt.Errorf("%s holds a cluster already", dir)
	}
	c := &Cluster{dir: dir, env: cfg.Env, dieWithParent: cfg.DieWithParent}
	if cfg.BasePort == 0 && cfg.Host != nil {
		cfg.BasePort = hostsBase
	}
	if cfg.BasePort == 0 {
		if cfg.BasePort, c.reserved, err = freeBasePort(cfg.Nodes); err != nil {
			return nil, err
		}
	}
	if cfg.BasePort < 1 || cfg.BasePort+300+cfg.Nodes > 65535 {
		return nil, fmt.Errorf("base port %d: the ports up to %d must be between 1 and 65535", cfg.BasePort, cfg.BasePort+300+cfg.Nodes)
	}
	for n := 1; n <= cfg.Nodes; n++ {
		c.nodes = append(c.nodes, &Node{c: c, N: n})
	}
	c.fixed = state{Version: 1, Abacusd: cfg.Abacusd, Shards: cfg.Shards, Replicas: cfg.Replicas, BasePort: cfg.BasePort, Args: cfg.Args, TLS: cfg.TLS}
	for n := 1; n <= cfg.Nodes; n++ {
		data := filepath.Join(dir, "n"+strconv.Itoa(n))
		if cfg.DataDir != nil {
			data = cfg.DataDir(n)
		}
		ns := nodeState{DataDir: data, Args: cfg.NodeArgs[n]}
		if cfg.Host != nil {
			h := cfg.Host(n)
			ns.Host = &h
		}
		c.fixed.Nodes = append(c.fixed.Nodes, ns)
	}
	if c.reserved == nil && cfg.Host == nil { // a base that we picked was free a moment ago
		if err := c.checkPorts(c.nodes); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.Release()
		return nil, fmt.Errorf("make the cluster directory: %w", err)
	}
	if cfg.TLS {
		if err := c.makeCerts(); err != nil {
			c.Release()
			return nil, err
		}
	}
	if err := c.save(c.fixed); err != nil {
		c.Release()
		return nil, err
	}
	return c, nil
}

// Open returns the cluster that a directory holds, or ErrNoCluster.
func Open(dir string) (*Cluster, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cluster directory %s: %w", dir, err)
	}
	c := &Cluster{dir: abs}
	if c.fixed, err = c.load(); err != nil {
		return nil, err
	}
	for n := range c.fixed.Nodes {
		c.nodes = append(c.nodes, &Node{c: c, N: n + 1})
	}
	return c, nil
}

// Dir is where the cluster is; Shards, Replicas and BasePort are what it was
// created with.
func (c *Cluster) Dir() string   { return c.dir }
func (c *Cluster) Shards() int   { return c.fixed.Shards }
func (c *Cluster) Replicas() int { return c.fixed.Replicas }
func (c *Cluster) BasePort() int { return c.fixed.BasePort }

// Nodes returns all nodes, in order.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node returns node n, counted from 1.
func (c *Cluster) Node(n int) *Node { return c.nodes[n-1] }

// ByID returns the node with the id ("n2"), or nil.
func (c *Cluster) ByID(id string) *Node {
	for _, n := range c.nodes {
		if n.ID() == id {
			return n
		}
	}
	return nil
}

// ClientAddrs returns the client addresses of all nodes.
func (c *Cluster) ClientAddrs() []string {
	var out []string
	for _, n := range c.nodes {
		out = append(out, n.Addrs().Client)
	}
	return out
}

// ClusterAddrs returns the cluster-mode addresses of all nodes.
func (c *Cluster) ClusterAddrs() []string {
	var out []string
	for _, n := range c.nodes {
		out = append(out, n.Addrs().Cluster)
	}
	return out
}

// Start starts every node that does not run.
func (c *Cluster) Start() error {
	for _, n := range c.nodes {
		if err := n.Start(); err != nil && !errors.Is(err, ErrRunning) {
			return err
		}
	}
	return nil
}

// Stop asks every running node to stop, all at once, and kills what is still
// there after the grace, which it reports as an error.
func (c *Cluster) Stop(grace time.Duration) error {
	// Said first: whoever watches the processes end shall know why.
	if err := c.update(func(st *state) error { st.Down = true; return nil }); err != nil {
		return err
	}
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() {
			if err := n.Stop(grace); err != nil && !errors.Is(err, ErrNotRunning) {
				errs[i] = errors.Join(err, n.Kill())
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Kill ends every running node with SIGKILL, all as nearly at once as can be.
func (c *Cluster) Kill() error {
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() {
			if err := n.Kill(); err != nil && !errors.Is(err, ErrNotRunning) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Untouched says that no node ever came as far as to write data: none runs, and no
// data directory holds anything. Such a cluster is a mere intention.
func (c *Cluster) Untouched() bool {
	for i, n := range c.nodes {
		entries, err := os.ReadDir(c.fixed.Nodes[i].DataDir)
		if n.Running() || len(entries) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
			return false
		}
	}
	return true
}

// Discard forgets a cluster that is Untouched, so that another may be created in
// its directory. The logs stay.
func (c *Cluster) Discard() error {
	if err := os.Remove(statePath(c.dir)); err != nil {
		return fmt.Errorf("discard the cluster: %w", err)
	}
	return nil
}

// UseArgs lets this handle start nodes with other further flags than those in the
// file; Keep writes them there, once they are known to be good.
func (c *Cluster) UseArgs(args []string) { c.fixed.Args = args }

// Abacusd is the program that this handle starts nodes with.
func (c *Cluster) Abacusd() string { return c.fixed.Abacusd }

// UseAbacusd likewise has it start nodes with another program.
func (c *Cluster) UseAbacusd(path string) { c.fixed.Abacusd = path }

// Keep writes to the file what UseArgs and UseAbacusd were told.
func (c *Cluster) Keep() error {
	return c.update(func(st *state) error { st.Args, st.Abacusd = c.fixed.Args, c.fixed.Abacusd; return nil })
}

// Down says that the whole cluster was stopped on purpose, perhaps by another process.
func (c *Cluster) Down() bool {
	st, err := c.load()
	return err == nil && st.Down
}

// Release gives up the reservation of the ports. The nodes run on.
func (c *Cluster) Release() {
	if c.reserved != nil {
		_ = c.reserved.Close()
		c.reserved = nil
	}
}

// CheckPorts returns ErrPortInUse, with the port and whose it would be, if a
// node that does not run could not listen.
func (c *Cluster) CheckPorts() error {
	return c.checkPorts(slices.DeleteFunc(slices.Clone(c.nodes), (*Node).Running))
}

func (c *Cluster) checkPorts(nodes []*Node) error {
	for _, n := range nodes {
		a := n.Addrs()
		for _, p := range []struct{ what, addr string }{{"client", a.Client}, {"peer", a.Peer}, {"HTTP", a.HTTP}, {"cluster", a.Cluster}} {
			l, err := net.Listen("tcp", p.addr)
			if err != nil {
				return fmt.Errorf("%s, the %s port of %s, %w (%w)", p.addr, p.what, n.ID(), ErrPortInUse, err)
			}
			_ = l.Close()
		}
	}
	return nil
}

// freeBasePort finds a base whose ports are all free, and holds the base
// itself. It stays below the range from which the kernel gives ports to
// outgoing connections, or one of those could sit on a node's port while the
// node is down.
func freeBasePort(nodes int) (int, net.Listener, error) {
	const lowest, highest, step = 11000, 32000, 400
	var lastErr error
	for range 200 {
		base := lowest + rand.IntN((highest-lowest)/step)*step
		hold, err := net.Listen("tcp", addr(base))
		if err != nil {
			lastErr = err
			continue
		}
		if err := portsFree(base, nodes); err != nil {
			lastErr = err
			_ = hold.Close()
			continue
		}
		return base, hold, nil
	}
	return 0, nil, fmt.Errorf("find free ports: %w", lastErr)
}

func portsFree(base, nodes int) error {
	for n := 1; n <= nodes; n++ {
		for _, offset := range []int{0, 100, 200, 300} {
			l, err := net.Listen("tcp", addr(base+offset+n))
			if err != nil {
				return err
			}
			_ = l.Close()
		}
	}
	return nil
}

func addr(port int) string { return addrOn("127.0.0.1", port) }

func addrOn(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

func statePath(dir string) string { return filepath.Join(dir, "cluster.json") }

// load reads cluster.json afresh: another process may have restarted a node.
func (c *Cluster) load() (state, error) {
	data, err := os.ReadFile(statePath(c.dir))
	if errors.Is(err, os.ErrNotExist) {
		return state{}, fmt.Errorf("%s: %w", c.dir, ErrNoCluster)
	}
	if err != nil {
		return state{}, fmt.Errorf("read the cluster's state: %w", err)
	}
	var st state
	if err := json.Unmarshal(data, &st); err != nil {
		return state{}, fmt.Errorf("read %s: %w", statePath(c.dir), err)
	}
	if st.Version != 1 {
		return state{}, fmt.Errorf("read %s: version %d is not known to this program", statePath(c.dir), st.Version)
	}
	if len(st.Nodes) == 0 || (c.nodes != nil && len(st.Nodes) != len(c.nodes)) {
		return state{}, fmt.Errorf("read %s: it lists %d nodes", statePath(c.dir), len(st.Nodes))
	}
	return st, nil
}

func (c *Cluster) save(st state) error {
	data, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("write the cluster's state: %w", err)
	}
	// Renamed into place: a reader in another process sees the old or the new, never half.
	tmp := statePath(c.dir) + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the cluster's state: %w", err)
	}
	if err := os.Rename(tmp, statePath(c.dir)); err != nil {
		return fmt.Errorf("write the cluster's state: %w", err)
	}
	return nil
}

// update changes the state file under a lock that spans processes, so that two
// commands at the same moment do not forget each other's process.
func (c *Cluster) update(change func(*state) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	unlock, err := lockFile(filepath.Join(c.dir, "cluster.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	st, err := c.load()
	if err != nil {
		return err
	}
	if err := change(&st); err != nil {
		return err
	}
	return c.save(st)
}

// current returns the node's part of the state file.
func (c *Cluster) current(n int) (nodeState, error) {
	st, err := c.load()
	if err != nil {
		return nodeState{}, err
	}
	return st.Nodes[n-1], nil
}

// peers lists the peer addresses of all nodes but n.
func (c *Cluster) peers(n int) string {
	var out []string
	for _, other := range c.nodes {
		if other.N != n {
			out = append(out, other.Addrs().Peer)
		}
	}
	return strings.Join(out, ",")
}
