package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
)

// host holds the replicas that live on this node. Only the reconcile loop (and Open
// and Close, before and after it) adds to it; everybody reads it.
type host struct {
	mu      sync.RWMutex
	stores  map[sharding.ShardID]*store.Store
	counted func(replicas int) // Config.OnReplicas
}

func newHost(counted func(int)) *host {
	return &host{stores: map[sharding.ShardID]*store.Store{}, counted: counted}
}

// get returns this node's replica of a shard, nil if it has none.
func (h *host) get(shard sharding.ShardID) *store.Store {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.stores[shard]
}

// all returns the replicas in order of their shards.
func (h *host) all() []*store.Store {
	h.mu.RLock()
	defer h.mu.RUnlock()
	list := make([]*store.Store, 0, len(h.stores))
	for _, s := range h.stores {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *store.Store) int { return cmp.Compare(a.Shard(), b.Shard()) })
	return list
}

func (h *host) put(s *store.Store) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stores[s.Shard()] = s
	h.counted(len(h.stores))
}

func (h *host) remove(s *store.Store) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.stores, s.Shard())
	h.counted(len(h.stores))
}

// runReconcile makes what this node holds agree with the newest map: it caches
// the map, opens the replicas that were placed here and drops those taken out.
func (n *Node) runReconcile(ctx context.Context) error {
	tick := time.NewTicker(dropEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if n.dropReplicas(ctx) {
				n.noteMapChanged() // another replica of the same shard may wait for its place
			}
			continue
		case <-n.mapChanged:
		}
		m := n.Router().Map()
		if err := n.dir.saveMap(m); err != nil {
			return err
		}
		if err := n.saveUsers(); err != nil {
			return err
		}
		if err := n.openReplicas(ctx, m); err != nil {
			return err
		}
	}
}

// ErrRemoved: the node was taken out of its cluster. There is nothing left for it to do.
var ErrRemoved = errors.New("this node was removed from its cluster")

// openReplicas opens each replica that belongs here and is not open yet. What is
// damaged waits for runRepair.
func (n *Node) openReplicas(ctx context.Context, m sharding.Map) error {
	self, ok := m.Node(n.cfg.ID)
	if !ok {
		return fmt.Errorf("%w: node %s is not in the map of cluster %s any more; what is in %s may be deleted", ErrRemoved, n.cfg.ID, m.ClusterID, n.cfg.DataDir)
	}
	if self.Instance != n.dir.ident().Instance {
		// Its replicas are not ours: they would be opened twice.
		return fmt.Errorf("another data directory has taken the place of node %s while this one did not answer: what is in %s is not part of the cluster any more", n.cfg.ID, n.dir.path)
	}
	if err := n.leaveFenced(m); err != nil {
		return err
	}
	for _, sh := range m.Shards {
		if ctx.Err() != nil { // Close waits for us, to close what is open
			return nil
		}
		if err := n.openReplicaHere(m, sh); err != nil {
			return err
		}
	}
	return nil
}

// openReplicaHere opens this node's replica of a shard, if there is one to open.
func (n *Node) openReplicaHere(m sharding.Map, sh sharding.Shard) error {
	n.recovery.placing.Lock()
	defer n.recovery.placing.Unlock()
	r, here := n.replicaHere(sh)
	if !here || n.host.get(sh.ID) != nil || n.repairs.has(sh.ID, r.ID) || n.dir.isFenced(sh.ID, r.ID) {
		return nil
	}
	st, err := n.openReplica(m, sh, r)
	if err != nil && n.takeDamage(sh.ID, r.ID, err) {
		return nil
	}
	if errors.Is(err, store.ErrOtherLog) {
		other := map[string]string{LogWAL: LogBolt, LogBolt: LogWAL}[n.cfg.LogStore]
		err = fmt.Errorf("%w; start the node with --log-store=%s", err, other)
	}
	if err != nil {
		return fmt.Errorf("open replica %s of shard %d: %w", r.ID, sh.ID, err)
	}
	n.host.put(st)
	n.log.Info("replica opened", "shard", sh.ID, "replica", r.ID, "applied", st.Status().Applied)
	return nil
}

// replicaHere is this node's replica of a shard: the one that the map places here, or
// before it one that the map has taken out and that was not dropped yet. Its group may
// still count it as a voter, and have no majority without it.
func (n *Node) replicaHere(sh sharding.Shard) (sharding.Replica, bool) {
	placed, here := sh.On(n.cfg.ID)
	for _, id := range n.dir.replicas(sh.ID) {
		if id != placed.ID {
			return sharding.Replica{ID: id, Node: n.cfg.ID}, true
		}
	}
	return placed, here
}

func (n *Node) openReplica(m sharding.Map, sh sharding.Shard, r sharding.Replica) (*store.Store, error) {
	dir, err := n.dir.replicaDir(sh.ID, r.ID)
	if err != nil {
		return nil, err
	}
	cfg := n.storeConfig(sh, r, dir)
	if id := n.dir.ident(); id.Founding && r.ID == foundingReplica(n.cfg.ID) || r.ID == sh.Founding || slices.Contains(id.Anew, replicaKey(sh.ID, r.ID)) {
		cfg.Bootstrap = &command.Init{ClusterID: m.ClusterID, Shard: sh.ID, Slots: initSlots(sh.Slots), Limits: command.DefaultLimits()}
	}
	return store.Open(cfg)
}

// storeConfig says how a replica here is opened, or repaired.
func (n *Node) storeConfig(sh sharding.Shard, r sharding.Replica, dir string) store.Config {
	cfg := store.Config{
		Shard:    sh.ID,
		Replica:  r.ID,
		Node:     n.cfg.ID,
		Dir:      dir,
		Net:      n.net,
		WAL:      n.wal,
		Timing:   store.DefaultTiming(),
		OnLeader: func(ctx context.Context, _ uint64) { n.lead(ctx, sh.ID) },
		Log:      n.log,
		Turn:     n.turn,
		PinTurn:  n.pinTurn,
		Room:     n.space.room,
		// Until then there may be members that know no other form.
		WholeCopies:   func() bool { return n.Router().Map().Level < sharding.LevelMoves },
		SessionsAbove: func() uint64 { return sharding.Era(n.Router().Map().Epoch) << 32 },
		DiskFull:      n.space.full,
		Fatal:         n.fatal,
	}
	if sh.ID == metaShard {
		cfg.OnRecord = n.onRecord
	}
	cfg.CheckpointBytes, cfg.Snapshots.Entries = n.cfg.CheckpointBytes, n.cfg.SnapshotEntries
	if n.cfg.TuneStore != nil {
		n.cfg.TuneStore(&cfg)
	}
	return cfg
}

func initSlots(in []sharding.SlotRange) []command.SlotRange {
	out := make([]command.SlotRange, len(in))
	for i, r := range in {
		out[i] = command.SlotRange{From: r.From, To: r.To}
	}
	return out
}

// dropReplicas closes and deletes the replicas that the map has taken out, once
// their leaders say that they are no members any more: until then a majority may
// need them.
func (n *Node) dropReplicas(ctx context.Context) (dropped bool) {
	m := n.Router().Map()
	for _, st := range n.host.all() {
		s := st.Status()
		if !m.Removed(s.Shard, s.Replica) || !n.peers.sayRemoved(s) {
			continue
		}
		// A restart must not find it in an older map, and make it anew.
		if err := n.dir.saveMap(m); err != nil {
			n.log.Warn("save the shard map", "err", err)
			return dropped
		}
		// Out of the host first, so that nobody finds a closed store.
		n.host.remove(st)
		// Also if the node stops meanwhile: nobody else would close it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
		err := errors.Join(st.Close(ctx), n.dir.removeReplica(s.Shard, s.Replica), n.dropLog(s.Shard, s.Replica))
		cancel()
		if err != nil { // files may be left; its id never comes back
			n.log.Warn("drop replica", "shard", s.Shard, "replica", s.Replica, "err", err)
		}
		n.log.Info("replica dropped", "shard", s.Shard, "replica", s.Replica)
		dropped = true
	}
	return dropped
}

const (
	// dropEvery is how often to look for replicas that were taken out.
	dropEvery = time.Second
	// dropTimeout bounds the closing of one.
	dropTimeout = 5 * time.Second
	// memberEvery is how often a leader compares its members with the map.
	memberEvery = 250 * time.Millisecond
	// transferEvery damps leader balancing: a shard's leadership moves at most this often.
	transferEvery = 5 * time.Second
	// leaveEvery is the same where the leader's disk is nearly full.
	leaveEvery = time.Second
	// A new leader stays for minStay before it hands over to a better one. Whoever gets
	// back what it handed over less than returnedWithin ago stays twice as long the
	// next time, up to maxStay: the better one does not hold it (its machine is
	// overloaded, say), and each attempt is an election more.
	minStay        = time.Second
	maxStay        = time.Minute
	returnedWithin = 2 * time.Minute
)

// stays remembers how this node's hand-overs of leaderships fared.
type stays struct {
	mu     sync.Mutex
	shards map[sharding.ShardID]stay
}

type stay struct {
	least  time.Duration
	handed time.Time // over to another; zero if never
}

// begin says how long a leadership that begins now is to stay at least.
func (s *stays) begin(shard sharding.ShardID, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.shards[shard]
	switch {
	case e.handed.IsZero() || now.Sub(e.handed) > returnedWithin:
		e.least = minStay
	default:
		e.least = min(2*e.least, maxStay)
	}
	if s.shards == nil {
		s.shards = map[sharding.ShardID]stay{}
	}
	s.shards[shard] = e
	return e.least
}

// handOver notes that a leadership was handed over.
func (s *stays) handOver(shard sharding.ShardID, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.shards[shard]
	e.handed = now
	s.shards[shard] = e
}

// lead runs on this node while it leads a shard; ctx ends with the leadership.
func (n *Node) lead(ctx context.Context, shard sharding.ShardID) {
	st := n.waitHosted(ctx, shard)
	if st == nil {
		return
	}
	n.tell()
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { n.runSlots(ctx, st) })
	work.Go(func() { n.runSweep(ctx, st) })
	work.Go(func() { n.runChecks(ctx, st) })
	if shard == metaShard {
		work.Go(func() { n.jobs.RunLeader(ctx) })
		work.Go(func() { n.runMoves(ctx) })
		work.Go(func() { n.runUsers(ctx) })
	}
	// All leaderships of a node look at the same moments: a wake-up each would be a good part of what an idle node does.
	next := func() time.Duration { return memberEvery - time.Since(n.started)%memberEvery }
	tick := time.NewTimer(next())
	defer tick.Stop()
	// Not in the first moments in office.
	lastTransfer := time.Now().Add(n.stays.begin(shard, time.Now()) - transferEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			tick.Reset(next())
		}
		if n.stopping.Load() {
			continue
		}
		changed, err := n.stepMembers(ctx, st)
		if err != nil && ctx.Err() == nil {
			n.log.Warn("change members", "shard", shard, "err", err)
		}
		moving, err2 := n.stepMove(ctx, st)
		if err2 != nil && ctx.Err() == nil {
			n.log.Warn("move a replica", "shard", shard, "err", err2)
		}
		every := transferEvery
		if n.space.low() { // writes are refused soon, or already
			every = leaveEvery
		}
		busy := (changed || moving) && !n.space.low()
		if busy || err != nil || err2 != nil || time.Since(lastTransfer) < every {
			continue
		}
		if to, ok := n.betterLeader(st); ok {
			lastTransfer = time.Now()
			n.log.Info("handing leadership over", "shard", shard, "to", to.Node)
			tctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			if err := st.TransferLeadership(tctx, to.ID); err != nil && ctx.Err() == nil {
				n.log.Warn("hand leadership over", "shard", shard, "to", to.Node, "err", err)
			}
			n.stays.handOver(shard, time.Now())
			cancel()
		}
	}
}

// waitHosted waits until openReplicas has put the store where others find it:
// a single voter may lead before Open returned.
func (n *Node) waitHosted(ctx context.Context, shard sharding.ShardID) *store.Store {
	for {
		if st := n.host.get(shard); st != nil {
			return st
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// stepMembers takes the next step that brings a shard's Raft members nearer to
// the map, if there is one: add a learner, make one that caught up a voter, and, while
// none is catching up, take out a member that the map has taken out. So a group whose map
// is several steps ahead never has fewer voters than it must.
func (n *Node) stepMembers(ctx context.Context, st *store.Store) (changed bool, err error) {
	m := n.Router().Map()
	sh, ok := m.Shard(st.Shard())
	if !ok {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	members := st.Status().Members
	catchingUp := false
	for _, want := range sh.Replicas {
		if slices.ContainsFunc(members, func(o store.Member) bool { return sharding.Replica{ID: o.Replica, Node: o.Node}.Newer(want) }) {
			continue // our map is older than that
		}
		if sh.Move != nil && sh.Move.Paused && sh.Move.To == want.ID {
			continue
		}
		i := slices.IndexFunc(members, func(m store.Member) bool { return m.Replica == want.ID })
		switch {
		case i < 0 && slices.ContainsFunc(members, func(m store.Member) bool { return m.Node == want.Node }):
			// Its predecessor on that node has to go first: Raft takes no two members of one address.
		case i < 0:
			n.log.Info("adding learner", "shard", sh.ID, "replica", want.ID)
			return true, st.AddLearner(ctx, want.ID, want.Node)
		case !members[i].Voter && st.CaughtUp(want.ID):
			n.log.Info("promoting learner", "shard", sh.ID, "replica", want.ID)
			return true, st.Promote(ctx, want.ID, want.Node)
		case !members[i].Voter:
			catchingUp = catchingUp || inTouch(members[i])
		}
	}
	if catchingUp { // leaders stay where they are: another would send it the whole state anew
		return true, nil
	}
	return n.stepRemoval(ctx, st, m, members)
}

// betterLeader says who should lead instead of this node, if anybody.
func (n *Node) betterLeader(st *store.Store) (sharding.Replica, bool) {
	router := n.Router()
	sh, ok := router.Map().Shard(st.Shard())
	if !ok {
		return sharding.Replica{}, false
	}
	suspects, known := n.checks.suspects(sh.ID)
	if !known && !n.space.low() {
		return sharding.Replica{}, false // it might be the worse one
	}
	ready := func(id sharding.NodeID) bool {
		r, here := sh.On(id)
		ps, alive := n.peers.get(id)
		return here && alive && !ps.Stopping && !ps.DiskLow && st.CaughtUp(r.ID) && !slices.Contains(suspects, r.ID)
	}
	preferred := router.PreferredLeader(sh.ID)
	if own, _ := sh.On(n.cfg.ID); n.space.low() || slices.Contains(suspects, own.ID) { // clients would read, and copies be made of, what the majority does not hold
		// As if the map did not place us: to anybody who is ready.
		sh.Replicas = slices.DeleteFunc(slices.Clone(sh.Replicas), func(r sharding.Replica) bool { return r.Node == n.cfg.ID })
		if preferred == n.cfg.ID {
			preferred = ""
		}
	}
	return sharding.BalanceLeader(sh, n.cfg.ID, preferred, ready)
}
