package node

import (
	"cmp"
	"context"
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
	mu     sync.RWMutex
	stores map[sharding.ShardID]*store.Store
}

func newHost() *host { return &host{stores: map[sharding.ShardID]*store.Store{}} }

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
	h.stores[s.Shard()] = s
	h.mu.Unlock()
}

// runReconcile makes what this node holds agree with the newest map: it caches
// the map and opens the replicas that were placed here.
func (n *Node) runReconcile(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.mapChanged:
		}
		m := n.Router().Map()
		if err := n.dir.saveMap(m); err != nil {
			return err
		}
		if err := n.openReplicas(ctx, m); err != nil {
			return err
		}
	}
}

// openReplicas opens each replica that the map places here and that is not open yet.
// What is damaged waits for runRepair.
func (n *Node) openReplicas(ctx context.Context, m sharding.Map) error {
	if self, ok := m.Node(n.cfg.ID); ok && self.Instance != n.dir.ident().Instance {
		// Its replicas are not ours: they would be opened twice.
		return fmt.Errorf("another data directory has taken the place of node %s while this one did not answer: what is in %s is not part of the cluster any more", n.cfg.ID, n.dir.path)
	}
	for _, sh := range m.Shards {
		for _, r := range sh.Replicas {
			if r.Node != n.cfg.ID || n.host.get(sh.ID) != nil || n.repairs.has(sh.ID, r.ID) {
				continue
			}
			if ctx.Err() != nil { // Close waits for us, to close what is open
				return nil
			}
			st, err := n.openReplica(m, sh, r)
			if err != nil && n.takeDamage(sh.ID, r.ID, err) {
				continue
			}
			if err != nil {
				return fmt.Errorf("open replica %s of shard %d: %w", r.ID, sh.ID, err)
			}
			n.host.put(st)
			n.log.Info("replica opened", "shard", sh.ID, "replica", r.ID, "applied", st.Status().Applied)
		}
	}
	return nil
}

func (n *Node) openReplica(m sharding.Map, sh sharding.Shard, r sharding.Replica) (*store.Store, error) {
	dir, err := n.dir.replicaDir(sh.ID, r.ID)
	if err != nil {
		return nil, err
	}
	cfg := n.storeConfig(sh, r, dir)
	if n.dir.ident().Founding && r.ID == foundingReplica(n.cfg.ID) {
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
		Timing:   store.DefaultTiming(),
		OnLeader: func(ctx context.Context, _ uint64) { n.lead(ctx, sh.ID) },
		Log:      n.log,
	}
	if sh.ID == metaShard {
		cfg.OnRecord = n.onRecord
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

const (
	// memberEvery is how often a leader compares its members with the map.
	memberEvery = 250 * time.Millisecond
	// transferEvery damps leader balancing: a shard's leadership moves at most this often.
	transferEvery = 5 * time.Second
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
	var work sync.WaitGroup
	defer work.Wait()
	if shard == metaShard {
		work.Go(func() { n.jobs.RunLeader(ctx) })
	}
	tick := time.NewTicker(memberEvery)
	defer tick.Stop()
	// Not in the first moments in office.
	lastTransfer := time.Now().Add(n.stays.begin(shard, time.Now()) - transferEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.stopping.Load() {
			continue
		}
		changed, err := n.stepMembers(ctx, st)
		if err != nil && ctx.Err() == nil {
			n.log.Warn("change members", "shard", shard, "err", err)
		}
		if changed || err != nil || time.Since(lastTransfer) < transferEvery {
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
// the map, if there is one: remove who is not in the map any more, add a learner, or
// make one that caught up a voter.
func (n *Node) stepMembers(ctx context.Context, st *store.Store) (changed bool, err error) {
	m := n.Router().Map()
	sh, ok := m.Shard(st.Shard())
	if !ok {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	members := st.Status().Members
	if changed, err := n.stepRemoval(ctx, st, m, members); changed || err != nil {
		return changed, err
	}
	for _, want := range sh.Replicas {
		if slices.ContainsFunc(members, func(o store.Member) bool { return sharding.Replica{ID: o.Replica, Node: o.Node}.Newer(want) }) {
			continue // our map is older than that
		}
		i := slices.IndexFunc(members, func(m store.Member) bool { return m.Replica == want.ID })
		switch {
		case i < 0:
			n.log.Info("adding learner", "shard", sh.ID, "replica", want.ID)
			return true, st.AddLearner(ctx, want.ID, want.Node)
		case !members[i].Voter && st.CaughtUp(want.ID):
			n.log.Info("promoting learner", "shard", sh.ID, "replica", want.ID)
			return true, st.Promote(ctx, want.ID, want.Node)
		case !members[i].Voter:
			changed = true // not done yet: leaders stay where they are
		}
	}
	return changed, nil
}

// betterLeader says who should lead instead of this node, if anybody.
func (n *Node) betterLeader(st *store.Store) (sharding.Replica, bool) {
	m := n.Router().Map()
	sh, ok := m.Shard(st.Shard())
	if !ok {
		return sharding.Replica{}, false
	}
	ready := func(id sharding.NodeID) bool {
		r, here := sh.On(id)
		ps, alive := n.peers.get(id)
		return here && alive && !ps.Stopping && st.CaughtUp(r.ID)
	}
	return sharding.BalanceLeader(sh, n.cfg.ID, sharding.PreferredLeaders(m)[sh.ID], ready)
}
