// Package node is the process: it hosts the replicas that the shard map gives
// it, serves RESP and HTTP, finds its peers, lets nodes in, forwards commands
// to leaders and runs its share of jobs. It is the only package that knows both
// Raft and compute.
//
// Its loops, each with the state it owns:
//
//	runExchange    what the peers said last (peers)
//	runFind        where nodes are that the map has elsewhere (peers)
//	runReconcile   the replicas open here (host) and the cached map
//	runRepair      replicas here whose files are damaged
//	handleRecover  replicas here that are stopped for a recovery (recovery): one call at a time
//	runAnnounce    nothing: it tells the cluster where this node is, until that is in the map
//	runFound       until a bootstrap is complete
//	runSpace       what the disk has left (space)
//	runScrub       nothing: it reads
//	runLoad        what is done for clients here, and in the cluster (loads)
//	runBackups     nothing: it lets go of views of backups
//	store.Watch    nothing: it ends the process when a disk hangs
//	lead           per shard, while this node leads it: members, moves, leader balance, jobs, users, comparisons of its replicas (checks)
//	auditLog.run   the file of the audit log
//
// The newest shard map is one immutable value (router), swapped whole.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/abacusdb/abacus/compute"
	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/node/front"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/sharding/access"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/store/wal"
	"github.com/abacusdb/abacus/transport"
)

// Node is a running member of a cluster. Its methods may be used concurrently.
type Node struct {
	cfg     Config
	log     *slog.Logger
	boot    string // random name of this process
	started time.Time
	addrs   sharding.Addrs // advertised

	dir       *dataDir
	wal       *wal.WAL // nil with LogBolt
	router    atomic.Pointer[sharding.Router]
	transport transport.Transport
	peerStats func() transport.Stats // nil with Config.Transport
	net       *store.Net
	host      *host
	stays     stays
	repairs   repairs
	recovery  recovery
	peers     *peers
	jobs      *compute.Jobs
	worker    *compute.Worker
	admission *compute.Admission // of worker and master
	master    *compute.Master
	fronts    []*front.Server // client port, cluster port
	http      *httpServer
	tls       tlsPorts
	registry  *prometheus.Registry
	users     atomic.Pointer[access.Users] // see Users; nil: no list was ever heard of
	saved     *access.Users                // what is in its file; of runReconcile
	audit     *auditLog
	retries   prometheus.Counter
	handovers handovers
	// What follow, finishSlots and the last handover did.
	follows, slotMoves prometheus.Counter
	slotFreeze         prometheus.Gauge
	adopted            adoptions
	backups            *backups
	checks             *checks
	opening            atomic.Uint32 // turns of openingShard
	ready              *readiness
	space              *space
	loads              loads
	// turn is shared by the state machines, so that one at a time writes a checkpoint.
	turn             *fsm.Turn
	pinTurn          *fsm.Turn // the same for copies of it that are made for pins
	scrubbed, scrubs prometheus.Counter

	mapChanged chan struct{} // capacity 1: a newer map awaits runReconcile
	news       chan struct{} // capacity 1: see tell
	stopping   atomic.Bool

	ctx    context.Context // ends when Close begins to stop loops
	cancel context.CancelFunc
	loops  errgroup.Group
	// reconciling is runReconcile, which may be opening a replica when Close begins.
	reconciling sync.WaitGroup
	failed      chan error // capacity 1: a loop that cannot go on
	closed      sync.Once
	err         error
}

// Open starts a node and returns once it serves. ctx bounds the start only.
//
// The order: what can fail for a wrong flag comes first and leaves no trace
// (listeners, directory); then the data; then the peers; then the clients.
func Open(ctx context.Context, cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnReplicas == nil {
		cfg.OnReplicas = func(int) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Fatal == nil {
		cfg.Fatal = func(err error) { panic(err) }
	}
	n := &Node{cfg: cfg, log: cfg.Log.With("node", cfg.ID), boot: randomID(), started: time.Now(), host: newHost(cfg.OnReplicas), peers: newPeers(), backups: newBackups(), checks: newChecks(),
		ready: newReadiness(), mapChanged: make(chan struct{}, 1), news: make(chan struct{}, 1), failed: make(chan error, 1), turn: fsm.NewTurn(), pinTurn: fsm.NewTurn()}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.router.Store(sharding.NewRouter(sharding.Map{}))
	n.initMetrics()

	if cfg.joinsItself() && !isMember(cfg.DataDir) {
		return nil, fmt.Errorf("--join %s is this node itself, and data directory %s is empty: name the peer address of another member", cfg.Join[0], cfg.DataDir)
	}
	if !cfg.Bootstrap && !cfg.joins() && !isMember(cfg.DataDir) {
		return nil, fmt.Errorf("data directory %s is empty: start the first node of a cluster with --bootstrap, any other with --join HOST:PORT (the peer address of a member)", cfg.DataDir)
	}
	// All ports before anything durable: a port in use is the commonest mistake.
	listeners, err := listenAll(cfg.listenAddrs())
	if err != nil {
		return nil, err
	}
	n.addrs = cfg.advertised(listeners)
	// One node per directory, for two would destroy it.
	if n.dir, err = openDataDir(cfg.DataDir, cfg.ID); err != nil {
		closeAll(listeners)
		return nil, err
	}
	n.dir.fatal = n.fatal
	if n.audit, err = openAudit(cfg.AuditLog, cfg.ID, n.log); err != nil {
		closeAll(listeners)
		n.dir.close()
		return nil, err
	}
	if n.space, err = newSpace(cfg.DataDir, uint64(cfg.MinFreeDisk)); err != nil {
		closeAll(listeners)
		n.audit.close()
		n.dir.close()
		return nil, err
	}
	if n.tls, err = openTLS(cfg, n.log); err != nil {
		closeAll(listeners)
		n.dir.close()
		return nil, err
	}
	// Peers are called by node id; the map says where they are now.
	takeCalls := func() {}
	if n.transport = cfg.Transport; n.transport == nil {
		peerListener := listeners[0]
		if cfg.Accept != nil {
			peerListener = &wrappingListener{peerListener, cfg.Accept}
		}
		tcp, err := transport.Listen(transport.Config{Self: cfg.ID, Listener: peerListener, ClusterID: n.clusterInEra,
			Resolve: n.resolve, Dial: cfg.Dial, Log: n.log, TLS: n.tls.peer, AllowPlaintext: cfg.TLS.plaintext(plaintextPeer)})
		if err != nil {
			closeAll(listeners)
			n.audit.close()
			n.dir.close()
			return nil, err
		}
		n.transport, takeCalls, n.peerStats = tcp, tcp.Start, tcp.Stats
		n.tls.peerFailed = func() uint64 { return tcp.Stats().Untrusted }
	}
	defer func() {
		if err != nil {
			closeAll(listeners) // closing those twice that were handed to a server is harmless
			n.Close()
		}
	}()
	n.net = store.NewNet(n.transport, cfg.CopyRate, n.log)
	n.handle()
	n.tls.run(n)
	// Peers may call from here on: a joiner has to answer the leader's probe.
	takeCalls()

	known := n.dir.ident().ClusterID != ""
	if err := n.enter(ctx); err != nil {
		return nil, err
	}
	// Before anything writes: a disk may hang from the first moment.
	n.run(func(ctx context.Context) error { store.Watch(ctx, cfg.DiskTimeout, n.host.all, n.fatal); return nil })
	n.run(n.runSpace)
	if err := n.openWAL(); err != nil {
		return nil, err
	}
	// Replicas before clients: a node without its replicas can only forward.
	if err := n.openReplicas(ctx, n.Router().Map()); err != nil {
		return nil, err
	}
	n.run(n.runExchange)
	if cfg.joins() {
		n.run(n.runFind)
	}
	n.run(n.runScrub)
	n.run(n.runBackups)
	n.reconciling.Add(1)
	n.run(func(ctx context.Context) error { defer n.reconciling.Done(); return n.runReconcile(ctx) })
	n.run(n.runRepair)
	if n.dir.ident().Founding {
		n.run(n.runFound)
	}
	n.run(func(ctx context.Context) error { return n.runAnnounce(ctx, known) })
	if len(listeners) == 0 {
		return n, nil
	}
	// Clients last, when there is something to serve.
	for i, mode := range []front.Mode{front.ModeForward, front.ModeCluster} {
		f := front.NewServer(n.frontConfig(mode), backend{n})
		n.fronts = append(n.fronts, f)
		l := n.tls.listen(listeners[1+i], respWantsTLS)
		n.run(func(context.Context) error { return f.Serve(l) })
	}
	n.run(n.runLoad)
	n.http = newHTTPServer(n)
	l := n.tls.listen(listeners[3], httpWantsTLS)
	n.run(func(context.Context) error { return n.http.serve(l) })
	n.log.Info("serving", "client", n.addrs.Client, "cluster", n.addrs.Cluster, "peer", n.addrs.Peer, "http", n.addrs.HTTP)
	return n, nil
}

// enter makes the node a member: of the cluster its directory belongs to, of a
// new one, or of the one that it is told to join.
func (n *Node) enter(ctx context.Context) error {
	if id := n.dir.ident(); id.ClusterID != "" {
		if n.cfg.Bootstrap {
			n.log.Info("data directory belongs to a cluster: --bootstrap, --shards and --replicas are ignored", "cluster", id.ClusterID)
		}
		m, ok, err := n.dir.loadMap()
		if err != nil {
			return err
		}
		if !ok || m.ClusterID != id.ClusterID {
			return fmt.Errorf("data directory %s: no shard map of cluster %s: it was damaged; restore the file map from a backup or another node", n.dir.path, id.ClusterID)
		}
		n.router.Store(sharding.NewRouter(m))
		n.loadUsers()
		// A copy of a running node's directory must not take part in Raft at all: it
		// would vote a second time in terms in which the first has voted.
		if self, ok := m.Node(n.cfg.ID); ok {
			if boot := n.bootOf(ctx, self); boot != "" && boot != n.boot {
				return fmt.Errorf("a running node has the id %q (peer address %s): it and this data directory %s are the same node; stop one", n.cfg.ID, self.Addrs.Peer, n.dir.path)
			}
		}
		return nil
	}
	switch {
	case n.cfg.Bootstrap:
		return n.bootstrap()
	case n.cfg.joins():
		return n.join(ctx)
	}
	return fmt.Errorf("data directory %s was never let into a cluster: say --join again", n.dir.path)
}

// Close stops the node gracefully within StopTimeout (what hangs is let go a
// little earlier, so that the rest still closes in order): leaderships are handed
// over, what is in flight is finished, everything is closed. It is the reverse
// of Open, and may be called more than once.
func (n *Node) Close() error {
	n.closed.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), n.cfg.StopTimeout*9/10)
		defer cancel()
		n.stopping.Store(true) // not ready any more; peers do not hand us leaderships
		n.tell()
		// Leaderships first, while clients are still served: their commands are
		// forwarded to the new leaders and nobody sees an error.
		n.handOver(ctx)
		// Clients next: no new ones, and what is in flight is answered.
		stop, cancelStop := context.WithTimeout(ctx, n.cfg.StopTimeout/3)
		defer cancelStop()
		var stops errgroup.Group
		for _, f := range n.fronts {
			stops.Go(func() error { return f.Shutdown(stop) })
		}
		if n.http != nil {
			stops.Go(func() error { return n.http.shutdown(stop) })
		}
		if err := stops.Wait(); err != nil {
			n.log.Warn("some clients were cut off", "err", err)
		}
		// Loops that call peers and stores.
		n.cancel()
		n.master.Close()
		n.worker.Close()
		n.backups.close()
		n.reconciling.Wait()
		// Stores before links: a shard that still leads hands over as it closes. Each
		// breaks its own calls first, for raft waits for goroutines that sit in one.
		var closes errgroup.Group
		for _, st := range n.host.all() {
			closes.Go(func() error { return st.Close(ctx) })
		}
		n.err = errors.Join(n.err, closes.Wait(), n.transport.Close())
		if n.net != nil { // after the links: its messages end with them
			n.net.Close()
		}
		if err := n.loops.Wait(); err != nil && !errors.Is(err, ErrRemoved) { // which Failed has told
			n.err = errors.Join(n.err, err)
		}
		if n.wal != nil { // after the stores, and the loops that may still open or repair one
			n.err = errors.Join(n.err, n.closeWAL(ctx))
		}
		n.audit.close()
		n.err = errors.Join(n.err, n.dir.close())
		n.log.Info("stopped")
	})
	return n.err
}

// handOver gives this node's leaderships to others, as far as there are others.
func (n *Node) handOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.StopTimeout/2)
	defer cancel()
	var moves sync.WaitGroup
	for _, st := range n.host.all() {
		if !st.IsLeader() {
			continue
		}
		to, ok := n.successor(st)
		if !ok {
			continue
		}
		moves.Go(func() {
			if err := st.TransferLeadership(ctx, to); err != nil {
				n.log.Info("leadership not handed over", "shard", st.Shard(), "to", to, "err", err)
			}
		})
	}
	moves.Wait()
}

// successor is a living voter that has caught up, one with room on its disk first, which holds what the majority holds.
func (n *Node) successor(st *store.Store) (best sharding.ReplicaID, ok bool) {
	suspects, _ := n.checks.suspects(st.Shard())
	for _, m := range st.Status().Members {
		ps, alive := n.peers.get(m.Node)
		if m.Node == n.cfg.ID || !m.Voter || !alive || ps.Stopping || !st.CaughtUp(m.Replica) {
			continue
		}
		if !ps.DiskLow && !slices.Contains(suspects, m.Replica) {
			return m.Replica, true
		}
		best, ok = m.Replica, true
	}
	return best, ok
}

// Failed yields an error if the node cannot go on; the process should then end.
func (n *Node) Failed() <-chan error { return n.failed }

// Router returns the newest shard map known here.
func (n *Node) Router() *sharding.Router { return n.router.Load() }

// Addrs are this node's advertised addresses.
func (n *Node) Addrs() sharding.Addrs { return n.addrs }

// Replica returns this node's replica of a shard, nil if it has none: for
// simulations, which compare states and move leaderships.
func (n *Node) Replica(shard sharding.ShardID) *store.Store { return n.host.get(shard) }

// self is this node as the map knows it.
func (n *Node) self() sharding.Node {
	return sharding.Node{ID: n.cfg.ID, Addrs: n.addrs, Instance: n.dir.ident().Instance, Zone: n.cfg.Zone}
}

// handle registers the calls that this node answers.
func (n *Node) handle() {
	n.transport.Handle(transport.MethodJoin, n.handleJoin)
	n.transport.Handle(transport.MethodMap, n.handleMap)
	n.transport.Handle(transport.MethodStatus, n.handleStatus)
	n.transport.Handle(transport.MethodUsers, n.handleUsers)
	n.transport.Handle(transport.MethodExec, n.handleExec)
	n.transport.Handle(transport.MethodScan, n.handleScan)
	n.transport.Handle(transport.MethodRecords, n.handleRecords)
	n.transport.Handle(transport.MethodReadIndex, n.handleReadIndex)
	n.transport.Handle(transport.MethodRecover, n.handleRecover)
	n.transport.Handle(transport.MethodChecksum, n.handleChecksum)
	n.initCompute()
}

// run starts a loop that Close waits for. A loop that returns an error before
// Close ends the node: nothing here may stop working in silence.
func (n *Node) run(loop func(context.Context) error) {
	n.loops.Go(func() error {
		err := loop(n.ctx)
		if err == nil || n.ctx.Err() != nil || n.stopping.Load() {
			return nil
		}
		select {
		case n.failed <- err:
		default:
		}
		return err
	})
}

// listenFlags are the flags of the addresses that Config.listenAddrs returns.
var listenFlags = [...]string{"--peer-addr", "--client-addr", "--cluster-addr", "--http-addr"}

// listenAll opens all ports or none.
func listenAll(addrs []string) ([]net.Listener, error) {
	var list []net.Listener
	for i, a := range addrs {
		l, err := net.Listen("tcp", a)
		if err != nil {
			closeAll(list)
			return nil, fmt.Errorf("%s: %w; is another abacusd running? choose another port", listenFlags[i], err)
		}
		list = append(list, l)
	}
	return list, nil
}

// wrappingListener is for Config.Accept.
type wrappingListener struct {
	net.Listener
	wrap func(net.Conn) net.Conn
}

func (l *wrappingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(c), nil
}

func closeAll(ls []net.Listener) {
	for _, l := range ls {
		l.Close()
	}
}
