package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// metaShard also keeps the shard map and the job ledger.
const metaShard sharding.ShardID = 0

// mapRecord is the name of the shard map among shard 0's system records.
const mapRecord = "map"

const (
	joinRetry   = 500 * time.Millisecond
	joinTimeout = time.Minute
	// joinRepeat is how often a seed's unchanged answer is logged.
	joinRepeat = 10 * time.Second
	foundRetry = 100 * time.Millisecond
	// announceTimeout bounds one attempt to be let in or announced.
	announceTimeout = 10 * time.Second
)

// joinRequest asks to be let in, or, from a node that is in, announces its addresses.
type joinRequest struct {
	Node      sharding.Node `json:"node"`
	ClusterID string        `json:"cluster_id"`
	// Boot names the asking process, to tell it from another one under its id.
	Boot string `json:"boot"`
	// Forwarded is set on the way to shard 0's leader, so that nobody forwards twice.
	Forwarded bool `json:"forwarded,omitempty"`
	// Level is the highest feature level that the node understands.
	Level int `json:"level,omitempty"`
	// Lost asks for another replica in the place of one whose log is lost.
	Lost *lostReplica `json:"lost,omitempty"`
}

// bootstrap makes the data directory the first of a new cluster.
func (n *Node) bootstrap() error {
	m, err := sharding.NewMap(randomID(), n.self(), n.cfg.Shards, n.cfg.Replicas)
	if err != nil {
		return err
	}
	if err := n.dir.saveMap(m); err != nil {
		return err
	}
	if err := n.dir.update(func(id *ident) { id.ClusterID, id.Founding = m.ClusterID, true }); err != nil {
		return err
	}
	n.log.Info("new cluster", "cluster", m.ClusterID, "shards", n.cfg.Shards, "replicas", n.cfg.Replicas)
	n.router.Store(sharding.NewRouter(m))
	return nil
}

// join asks the seeds, in turn, until one lets this node in.
func (n *Node) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	said := map[string]string{} // by seed: what was logged last, and
	var since time.Time         // when anything was
	for {
		last := errors.New("there is nobody but this node itself")
		for _, seed := range n.seeds(ctx) {
			m, err := n.askToJoin(ctx, seed)
			if err == nil {
				if err := n.dir.saveMap(m); err != nil {
					return err
				}
				if err := n.dir.update(func(id *ident) { id.ClusterID = m.ClusterID }); err != nil {
					return err
				}
				n.log.Info("joined", "cluster", m.ClusterID, "seed", seed)
				n.router.Store(sharding.NewRouter(m))
				return nil
			}
			switch transport.CodeOf(err) {
			case transport.CodeRefused, transport.CodeWrongCluster:
				return fmt.Errorf("%s does not let node %s in: %w", seed, n.cfg.ID, err)
			}
			last = err
			if said[seed] != err.Error() || time.Since(since) > joinRepeat {
				said[seed], since = err.Error(), time.Now()
				n.log.Info("waiting to join", "seed", seed, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no member of a cluster at %v let node %s in within %s (last answer: %w); is --join the peer address of a running node?",
				n.seedNames(), n.cfg.ID, joinTimeout, last)
		case <-time.After(joinRetry):
		}
	}
}

func (n *Node) askToJoin(ctx context.Context, addr string) (sharding.Map, error) {
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	req, err := encodeWire(joinRequest{Node: n.self(), ClusterID: n.dir.ident().ClusterID, Boot: n.boot, Level: sharding.Level})
	if err != nil {
		return sharding.Map{}, err
	}
	raw, err := n.transport.CallAddr(ctx, addr, transport.MethodJoin, req)
	if err != nil {
		return sharding.Map{}, err
	}
	return sharding.DecodeMap(raw)
}

// foreignFor is how long a node of another cluster must be the only one that
// answers at our peers' addresses before this node gives up.
const foreignFor = 5 * time.Second

// announceEvery is how often to look whether the map has this node as it is.
const announceEvery = time.Second

// runAnnounce tells a cluster that this node knows already where it is now, and again whenever the map says otherwise. It
// fails as announce does.
func (n *Node) runAnnounce(ctx context.Context, known bool) error {
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	for {
		if known || n.misplaced() {
			if err := n.announce(ctx); err != nil {
				return err
			}
			known = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// misplaced says that the map has this node otherwise than it is, in what it can store.
func (n *Node) misplaced() bool {
	_, changed := sharding.UpdateNode(n.Router().Map(), n.self())
	return changed
}

// notMember ends the refusal of a node that was taken out. The words are the sign: nodes of an older version would go on asking after a code that they do not know.
const notMember = "is not a member any more"

// announce goes on until somebody has taken note: after all nodes were stopped the first
// ones up must wait for a majority. It fails if the cluster says that another
// process is this node, or if another cluster has taken the place of ours.
func (n *Node) announce(ctx context.Context) error {
	var foreign time.Time // since when only strangers answer
	for warned := time.Now(); ; {
		var stranger error
		hope := false // that one of our own answers, now or later
		var addrs []string
		for _, m := range n.Router().Map().Nodes {
			if addr, err := n.resolve(m.ID); m.ID != n.cfg.ID && err == nil {
				addrs = append(addrs, addr)
			}
		}
		addrs = append(addrs, n.self().Addrs.Peer) // alone, or leading shard 0
		for _, addr := range addrs {
			m, err := n.askToJoin(ctx, addr)
			if err == nil {
				n.offerMap(m)
				return nil
			}
			switch transport.CodeOf(err) {
			case transport.CodeRefused:
				if strings.HasSuffix(err.Error(), notMember) {
					return fmt.Errorf("%w while it was down: what is in %s is not part of the cluster any more", ErrRemoved, n.dir.path)
				}
				return fmt.Errorf("the cluster refuses node %s: %w", n.cfg.ID, err)
			case transport.CodeWrongCluster:
				stranger = fmt.Errorf("%s: %w", addr, err)
			default: // nobody there yet, or one of ours that knows no leader
				hope = hope || addr != n.self().Addrs.Peer
			}
			if time.Since(warned) > 10*time.Second {
				warned = time.Now()
				n.log.Warn("not announced yet: waiting for a majority of shard 0", "asked", addr, "err", err)
			}
		}
		switch {
		case stranger == nil || hope:
			foreign = time.Time{}
		case foreign.IsZero():
			foreign = time.Now()
		case time.Since(foreign) > foreignFor:
			return fmt.Errorf("data directory %s belongs to cluster %s, and where its nodes were is another one (%w): start it beside its own cluster, or with an empty --data-dir to join this one",
				n.dir.path, n.dir.ident().ClusterID, stranger)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(joinRetry):
		}
	}
}

// handleJoin lets a node in if this node leads shard 0, else passes it on.
func (n *Node) handleJoin(ctx context.Context, from string, raw []byte) ([]byte, error) {
	var req joinRequest
	if err := decodeWire(raw, &req); err != nil {
		return nil, transport.Errorf(transport.CodeBadRequest, "join: %v", err)
	}
	// With TLS, from is whom the certificate is bound to; a request that was forwarded comes from the node that has looked at it.
	if from != "" && !req.Forwarded && from != string(req.Node.ID) {
		return nil, transport.Errorf(transport.CodeRefused, "its certificate is bound to node %s, and it wants to join as %s", from, req.Node.ID)
	}
	if err := sharding.CheckNodeID(req.Node.ID); err != nil || req.Node.Instance == "" {
		return nil, transport.Errorf(transport.CodeRefused, "node %q, instance %q: %v", req.Node.ID, req.Node.Instance, err)
	}
	have := n.Router().Map().ClusterID
	if have == "" { // peers may call before we have read our map: that is no reason to refuse one of our own
		return nil, transport.Errorf(transport.CodeUnavailable, "node %s is starting, and in no cluster yet", n.cfg.ID)
	}
	if req.ClusterID != "" && req.ClusterID != have {
		return nil, transport.Errorf(transport.CodeRefused, "its data directory belongs to cluster %s, this is cluster %s: start it with an empty --data-dir to let it join here", req.ClusterID, have)
	}
	forward, err := encodeWire(joinRequest{Node: req.Node, ClusterID: req.ClusterID, Boot: req.Boot, Level: req.Level, Forwarded: true, Lost: req.Lost})
	if err != nil {
		return nil, err
	}
	var answer []byte
	admit := func(ctx context.Context, leader sharding.NodeID, st *store.Store) (err error) {
		if st != nil {
			answer, err = n.admit(ctx, req)
			return err
		}
		if req.Forwarded {
			return transport.Errorf(transport.CodeNotLeader, "%s", leader)
		}
		answer, err = n.transport.Call(ctx, leader, transport.LaneCall, transport.MethodJoin, forward)
		return err
	}
	if req.Forwarded {
		err = admit(ctx, n.Leader(metaShard), n.host.get(metaShard))
		return answer, err
	}
	err = n.atLeader(ctx, metaShard, false, admit)
	return answer, err
}

// admit changes the map so that the node is in it with its present addresses,
// and returns the map.
func (n *Node) admit(ctx context.Context, req joinRequest) ([]byte, error) {
	m, err := n.changeMap(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
		next, changed, err := n.decideJoin(ctx, m, req)
		if changed && err == nil {
			n.log.Info("admitting node", "node", req.Node.ID, "peer_addr", req.Node.Addrs.Peer, "epoch", next.Epoch)
		}
		return next, changed, err
	})
	if err != nil {
		return nil, err
	}
	return m.Encode(), nil
}

// decideJoin works out the map with the node in it. It refuses a node whose id
// belongs to a running process, or to another data directory that cannot be done without.
func (n *Node) decideJoin(ctx context.Context, m sharding.Map, req joinRequest) (next sharding.Map, changed bool, err error) {
	if req.Level < m.Level {
		return m, false, transport.Errorf(transport.CodeRefused, "node %s understands feature level %d, and the cluster is at level %d: start it with a newer abacusd", req.Node.ID, req.Level, m.Level)
	}
	known, in := m.Node(req.Node.ID)
	if !in {
		if req.ClusterID != "" {
			return m, false, transport.Errorf(transport.CodeRefused, "node %s was a member of cluster %s and "+notMember, req.Node.ID, m.ClusterID)
		}
		// It will be counted on: others must be able to reach it where it says it is.
		if err := n.reachable(ctx, req); err != nil {
			return m, false, err
		}
		next, err = sharding.PlanJoin(m, req.Node)
		return next, true, err
	}
	if boot := n.bootOf(ctx, known); boot != "" && boot != req.Boot {
		return m, false, transport.Errorf(transport.CodeRefused, "a running node has the id %q (peer address %s): choose another --id", known.ID, known.Addrs.Peer)
	}
	if known.Instance != req.Node.Instance {
		return n.decideReturn(ctx, m, known, req)
	}
	if req.Lost != nil {
		return n.decideReplace(m, req.Node.ID, *req.Lost)
	}
	next, changed = sharding.UpdateNode(m, req.Node)
	return next, changed, nil
}

// bootOf asks the process at a node's peer address for its name; "" if nobody
// answers there, or another node does, which has taken over the port.
func (n *Node) bootOf(ctx context.Context, node sharding.Node) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	raw, err := n.transport.CallAddr(ctx, node.Addrs.Peer, transport.MethodStatus, nil)
	if err != nil {
		return ""
	}
	s, err := decodeStatus(raw)
	if err != nil || s.Node != node.ID {
		return ""
	}
	return s.Boot
}

// recordSet stores a system record if its revision is still rev, 0 for none.
func recordSet(name string, value []byte, rev int64) command.Command {
	return command.Command{Op: command.OpRecordSet, Keys: [][]byte{[]byte(name)}, Values: [][]byte{value}, Int: rev}
}

func recordDelete(name string, rev int64) command.Command {
	return command.Command{Op: command.OpRecordDelete, Keys: [][]byte{[]byte(name)}, Int: rev}
}

func recordError(name string, r command.Result) error {
	if r.Kind != command.KindError {
		return nil
	}
	if r.Code == command.CodeConflict {
		return transport.Errorf(transport.CodeConflict, "record %s is at revision %d", name, r.Int)
	}
	return transport.Errorf(transport.CodeRefused, "record %s: %v", name, r.Code)
}

// foundingReplica is the id of the replicas that a bootstrapping node begins with.
func foundingReplica(id sharding.NodeID) sharding.ReplicaID { return id + ".1" }

// runFound ends a bootstrap: it writes the first map into shard 0, waits until
// every shard has its identity here, and clears the mark that lets an empty
// replica make itself a voter. Leaderships may have moved on by then.
func (n *Node) runFound(ctx context.Context) error {
	for {
		if err := n.found(ctx); err == nil {
			return n.dir.update(func(id *ident) { id.Founding = false })
		} else if ctx.Err() == nil {
			n.log.Debug("the cluster is not set up yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(foundRetry):
		}
	}
}

func (n *Node) found(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	m := n.Router().Map()
	results, err := n.Exec(ctx, metaShard, []command.Command{recordSet(mapRecord, m.Encode(), 0)})
	if err != nil {
		return err
	}
	if err := recordError(mapRecord, results[0]); err != nil && transport.CodeOf(err) != transport.CodeConflict {
		return err // a conflict: the map is there already
	}
	for _, sh := range m.Shards {
		st := n.host.get(sh.ID)
		if st == nil {
			return fmt.Errorf("shard %d is not open yet", sh.ID)
		}
		if _, ok := st.Init(); !ok {
			return fmt.Errorf("shard %d has no first entry yet", sh.ID)
		}
	}
	return nil
}

// onRecord hears of each change of a system record of shard 0. It runs on the
// state machine's goroutine.
func (n *Node) onRecord(name string, value []byte, _ int64) {
	if id, ok := strings.CutPrefix(name, jobRecords); ok {
		n.jobs.Changed(id)
		return
	}
	if name == usersRecord && value != nil {
		n.takeUsers(value, "shard 0")
		return
	}
	if name != mapRecord || value == nil {
		return
	}
	m, err := sharding.DecodeMap(value)
	if err != nil {
		n.log.Error("shard map in shard 0 not understood", "err", err)
		return
	}
	n.offerMap(m)
}

// offerMap takes a map if it is newer than ours.
func (n *Node) offerMap(m sharding.Map) {
	for {
		old := n.router.Load()
		if m.ClusterID != old.Map().ClusterID || m.Epoch <= old.Map().Epoch {
			return
		}
		if n.router.CompareAndSwap(old, sharding.NewRouter(m)) {
			n.peers.moved(old.Map(), m)
			break
		}
	}
	n.log.Info("shard map", "epoch", m.Epoch, "nodes", len(m.Nodes))
	n.noteMapChanged()
	n.tell()
}

// noteMapChanged wakes runReconcile.
func (n *Node) noteMapChanged() {
	select {
	case n.mapChanged <- struct{}{}:
	default: // a notice is waiting already
	}
}
