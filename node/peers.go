package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/compute"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// Peers find out about each other by exchange: of any two nodes one asks the other,
// twice a second and whenever it has news, and tells what it holds and leads and which shard map it has, and is told
// the same. Whoever has the older map fetches the newer. No node is special.

const (
	exchangeEvery   = 500 * time.Millisecond
	exchangeTimeout = time.Second
	// newsGather is how long news gathers before it is told: leaderships often begin together.
	newsGather = 10 * time.Millisecond
	// aliveFor is how long after its last word a peer counts as alive.
	aliveFor = 2 * time.Second
)

// peerStatus is what nodes tell each other, as JSON: unknown fields are
// ignored, so that versions may differ by additions.
type peerStatus struct {
	Node sharding.NodeID `json:"node"`
	// Boot is a random name of the process: two processes under one node id differ.
	Boot    string `json:"boot"`
	Version string `json:"version"`
	// Level is the highest feature level that the node understands.
	Level int    `json:"level,omitempty"`
	Epoch uint64 `json:"epoch"`
	// Users is the epoch of the list of users that the node goes by.
	Users uint64 `json:"users,omitempty"`
	// NoAuth: it checks nobody.
	NoAuth       bool  `json:"no_auth,omitempty"`
	UptimeMillis int64 `json:"uptime_ms"`
	Stopping     bool  `json:"stopping,omitempty"`
	// Addr is where the node's peer port is now. Found are nodes that it has heard of elsewhere than the map says.
	Addr  string                    `json:"addr,omitempty"`
	Found map[sharding.NodeID]found `json:"found,omitempty"`
	// DiskFree is in bytes. DiskLow: do not make this node a leader; DiskFull: it takes
	// no more data.
	DiskFree uint64 `json:"disk_free"`
	DiskLow  bool   `json:"disk_low,omitempty"`
	DiskFull bool   `json:"disk_full,omitempty"`
	// DiskSize is the file system's.
	DiskSize uint64 `json:"disk_size,omitempty"`
	Load     *load  `json:"load,omitempty"`

	Replicas []replicaStatus `json:"replicas"`
	// Repairs are replicas that do not run.
	Repairs []repairStatus `json:"repairs,omitempty"`
	// Handovers are the slots that are being copied from shards led there.
	Handovers []handoverStatus `json:"handovers,omitempty"`
	// Tasks are those of jobs that wait at masters there: an idle node asks for some.
	Tasks []compute.Load `json:"tasks,omitempty"`
	Jobs  *jobLoad       `json:"jobs,omitempty"`
}

// replicaStatus is one replica's view of its shard.
type replicaStatus struct {
	Shard   sharding.ShardID   `json:"shard"`
	Replica sharding.ReplicaID `json:"replica"`
	// Leads is true from the moment the leader has applied its opening command.
	Leads   bool            `json:"leads,omitempty"`
	State   string          `json:"state"`
	Leader  sharding.NodeID `json:"leader,omitempty"`
	Term    uint64          `json:"term"`
	Last    uint64          `json:"last"`
	Commit  uint64          `json:"commit"`
	Applied uint64          `json:"applied"`
	Records int64           `json:"records"`
	// File is the state on disk, in bytes in use.
	File int64 `json:"file,omitempty"`
	// Copy is about how much a new replica would be sent, told by the leader only.
	Copy int64 `json:"copy,omitempty"`
	// Overlay is the state in memory only, in bytes; Held, whether writes wait for it.
	Overlay int64 `json:"overlay,omitempty"`
	Held    bool  `json:"held,omitempty"`
	// Voter is what the replica itself knows of its vote, for when nobody leads.
	Voter bool `json:"voter,omitempty"`
	// Members is the Raft configuration, told by the leader, and by all while they
	// know of none.
	Members []store.Member `json:"members,omitempty"`
	// Committed are the replicas of the newest committed configuration, told by the
	// leader only. Members may still be taken back.
	Committed []sharding.ReplicaID `json:"committed,omitempty"`
	// Alarms are replicas that a comparison has found different, told by the leader only.
	Alarms []alarmStatus `json:"alarms,omitempty"`
}

// peers is the table of what the others said last.
type peers struct {
	mu    sync.RWMutex
	table map[sharding.NodeID]peer
	where map[sharding.NodeID]whereabouts // under mu
	// claims are who says that he leads a shard, by shard: each command asks for them. Made anew with each word.
	claims atomic.Pointer[map[sharding.ShardID][]claim]
	// listening is since when this process asks and hears without a gap: after a start, or a time in which it stood still, who has
	// said nothing may just not have been heard.
	listening, listened time.Time // under mu
}

type claim struct {
	leader sharding.NodeID
	term   uint64
	heard  time.Time
}

type peer struct {
	status peerStatus
	heard  time.Time // monotonic
	asking bool      // an exchange is under way
	again  bool      // there was news meanwhile
}

func newPeers() *peers {
	return &peers{table: map[sharding.NodeID]peer{}, where: map[sharding.NodeID]whereabouts{}}
}

// hear notes a peer's status.
func (p *peers) hear(s peerStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.table[s.Node]
	e.status, e.heard = s, time.Now()
	p.table[s.Node] = e
	p.noteLocked(s.Node, s.Addr, e.heard)
	claims := make(map[sharding.ShardID][]claim)
	for id, e := range p.table {
		for _, r := range e.status.Replicas {
			if r.Leads {
				claims[r.Shard] = append(claims[r.Shard], claim{id, r.Term, e.heard})
			}
		}
	}
	p.claims.Store(&claims)
}

// listen notes that this process runs, and asks.
func (p *peers) listen(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.listened) > 3*exchangeEvery {
		p.listening = now
	}
	p.listened = now
}

// silent says whether a peer has said nothing for so long that it cannot be for us.
func (p *peers) silent(id sharding.NodeID, now time.Time) bool {
	return p.silence(id, now) >= aliveFor
}

// silence is for how long a peer has said nothing while we have listened without a gap; 0 if we do not.
func (p *peers) silence(id sharding.NodeID, now time.Time) time.Duration {
	p.mu.RLock()
	defer p.mu.RUnlock()
	last := p.listening
	if e, ok := p.table[id]; ok && e.heard.After(last) {
		last = e.heard
	}
	if p.listening.IsZero() || now.Sub(p.listened) > 3*exchangeEvery {
		return 0
	}
	return now.Sub(last)
}

// get returns a peer's last word and whether it is alive.
func (p *peers) get(id sharding.NodeID) (peerStatus, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	e, ok := p.table[id]
	return e.status, ok && time.Since(e.heard) < aliveFor
}

// heard is how long ago a peer said something, false if it never did.
func (p *peers) heard(id sharding.NodeID) (ago time.Duration, ever bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	e := p.table[id]
	return time.Since(e.heard), !e.heard.IsZero()
}

// claim returns the living peer that says it leads the shard, in the newest
// term if several do.
func (p *peers) claim(shard sharding.ShardID) (leader sharding.NodeID, term uint64) {
	claims := p.claims.Load()
	if claims == nil {
		return "", 0
	}
	for _, c := range (*claims)[shard] {
		if c.term > term && time.Since(c.heard) < aliveFor {
			leader, term = c.leader, c.term
		}
	}
	return leader, term
}

// sayRemoved says whether the living peer that leads the replica's shard, in a term
// not older than the replica's own, has its removal committed. Before that the
// leader may be deposed, and the next one need the replica for its majority.
func (p *peers) sayRemoved(s store.Status) bool {
	leader, term := p.claim(s.Shard)
	if leader == "" || term < s.Term {
		return false
	}
	said, _ := p.get(leader)
	for _, r := range said.Replicas {
		if r.Shard == s.Shard && r.Leads && r.Term == term {
			return len(r.Committed) > 0 && !slices.Contains(r.Committed, s.Replica)
		}
	}
	return false
}

// start claims the right to ask a peer: one exchange at a time each, and, unless we have news, none with one
// that has just asked us and has no newer map than ours.
func (p *peers) start(id sharding.NodeID, epoch uint64, news bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.table[id]
	if e.asking {
		e.again = e.again || news
		p.table[id] = e
		return false
	}
	if !news && time.Since(e.heard) < exchangeEvery*3/4 && e.status.Epoch <= epoch {
		return false
	}
	e.asking = true
	p.table[id] = e
	return true
}

// finish ends an exchange, or says that there has to be another one.
func (p *peers) finish(id sharding.NodeID) (again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.table[id]
	again = e.again
	e.asking, e.again = again, false
	p.table[id] = e
	return again
}

// runExchange is the peer-to-peer loop.
func (n *Node) runExchange(ctx context.Context) error {
	tick := time.NewTicker(exchangeEvery)
	defer tick.Stop()
	var calls sync.WaitGroup
	defer calls.Wait()
	news := false
	for {
		n.peers.listen(time.Now())
		have := n.Router().Map()
		for _, m := range have.Nodes {
			if m.ID == n.cfg.ID || !n.peers.start(m.ID, have.Epoch, news) {
				continue
			}
			calls.Go(func() {
				for again := true; again && ctx.Err() == nil; again = n.peers.finish(m.ID) {
					n.exchange(ctx, m.ID)
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			news = false
		case <-n.news:
			news = true
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(newsGather):
			}
			select { // what came meanwhile is told with it
			case <-n.news:
			default:
			}
		}
	}
}

// tell has the peers told our status soon.
func (n *Node) tell() {
	select {
	case n.news <- struct{}{}:
	default: // they will be
	}
}

// exchange tells a peer our status, hears its, and fetches its map if newer.
func (n *Node) exchange(ctx context.Context, id sharding.NodeID) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	raw, err := n.transport.Call(ctx, id, transport.LaneControl, transport.MethodStatus, n.statusJSON())
	if transport.CodeOf(err) == transport.CodeWrongEra {
		n.askWhatWasMissed(ctx, id)
		return
	}
	if err != nil {
		n.log.Debug("peer does not answer", "peer", id, "err", err)
		return
	}
	s, err := decodeStatus(raw)
	if err != nil {
		n.log.Warn("peer status not understood", "peer", id, "err", err)
		return
	}
	if n.ofOurEra(s) {
		n.heardFrom(s)
		n.learn(s)
	}
	if s.Users > n.usersEpoch() {
		n.fetchUsers(ctx, id)
	}
	if s.Epoch <= n.Router().Map().Epoch {
		return
	}
	raw, err = n.transport.Call(ctx, id, transport.LaneCall, transport.MethodMap, nil)
	if err != nil {
		n.log.Debug("fetch shard map", "peer", id, "err", err)
		return
	}
	m, err := sharding.DecodeMap(raw)
	if err != nil {
		n.log.Warn("peer's shard map not understood", "peer", id, "err", err)
		return
	}
	n.offerMap(m)
}

// handleStatus is the other end of exchange.
func (n *Node) handleStatus(_ context.Context, from string, req []byte) ([]byte, error) {
	if len(req) > 0 {
		s, err := decodeStatus(req)
		if err != nil {
			return nil, transport.Errorf(transport.CodeBadRequest, "status: %v", err)
		}
		switch {
		case !n.ofOurEra(s):
			return n.statusJSON(), nil // by which it learns that
		case from == "": // it looks for us, and does not know who we are
			if _, ours := n.Router().Map().Node(s.Node); ours {
				if was := n.peers.address(s.Node); was != s.Addr {
					n.peers.note(s.Node, s.Addr, time.Now())
					n.tell() // and look for it, too
				}
			}
		case s.Node == from:
			n.heardFrom(s)
		}
		n.learn(s)
		if s.Users > n.usersEpoch() {
			n.tell() // and hear who they are
		}
	}
	return n.statusJSON(), nil
}

func (n *Node) handleMap(context.Context, string, []byte) ([]byte, error) {
	return n.Router().Map().Encode(), nil
}

func decodeStatus(raw []byte) (s peerStatus, err error) {
	if err := decodeWire(raw, &s); err != nil {
		return s, fmt.Errorf("decode peer status: %w", err)
	}
	if err := sharding.CheckNodeID(s.Node); err != nil {
		return s, fmt.Errorf("decode peer status: %w", err)
	}
	return s, nil
}

// heardFrom notes what a peer says, and takes work that waits there, if there is none here.
func (n *Node) heardFrom(s peerStatus) {
	n.peers.hear(s)
	n.worker.Offered(s.Node, s.Tasks)
}

// status is what this node tells its peers.
func (n *Node) status() peerStatus {
	s := peerStatus{Node: n.cfg.ID, Boot: n.boot, Version: n.cfg.Version, Level: sharding.Level, Epoch: n.Router().Map().Epoch, Users: n.usersEpoch(), NoAuth: n.cfg.NoAuth,
		UptimeMillis: time.Since(n.started).Milliseconds(), Stopping: n.stopping.Load(), Repairs: append(n.repairs.status(), n.fencedStatus()...), Handovers: n.handovers.list(), Tasks: n.master.Loads(), Jobs: n.jobLoad()}
	s.Addr, s.Found = n.addrs.Peer, n.peers.found(n.Router().Map(), time.Now())
	disk := n.space.now.Load()
	s.DiskFree, s.DiskLow, s.DiskFull, s.DiskSize = disk.free, disk.low, disk.full, disk.size
	s.Load = n.loads.now.Load()
	for _, st := range n.host.all() {
		if !n.isOut() {
			r := describe(st)
			r.Alarms = n.checks.last(r.Shard).alarms()
			s.Replicas = append(s.Replicas, r)
		}
	}
	return s
}

func (n *Node) statusJSON() []byte {
	raw, err := encodeWire(n.status())
	if err != nil {
		panic(err) // a plain struct of plain fields
	}
	return raw
}

// describe turns a store's status into words for peers.
func describe(st *store.Store) replicaStatus {
	s := st.Status()
	r := replicaStatus{Shard: s.Shard, Replica: s.Replica, Leads: st.IsLeader(), State: s.State, Leader: s.Leader,
		Term: s.Term, Last: s.LastIndex, Commit: s.Commit, Applied: s.Applied, Records: s.Records, File: s.FileBytes, Overlay: s.OverlayBytes, Held: s.Held}
	r.Voter = slices.ContainsFunc(s.Members, func(m store.Member) bool { return m.Replica == s.Replica && m.Voter })
	if r.Leads || r.Leader == "" {
		r.Members = s.Members
	}
	if r.Leads {
		r.Committed, r.Copy = st.Committed(), st.CopyBytes()
	}
	return r
}
