package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// A node's part in a recovery from the loss of a majority (recover.go leads it, on any node):
//
//	look   says what replicas it has and how far they are
//	fence  stops those of the lost shards for ever, and notes the era, both on its disk before it answers
//	take   makes what one of them had that of the shard's new replica, which is opened when the map has it
//
// Each can be repeated. A fenced replica votes for nobody and takes no entries, so that nodes that were taken for lost and come back find no
// majority of the old group with this one's help; what it had, it keeps until the new map is here.

// recovery is this node's part of one. Its zero value is ready.
type recovery struct {
	// placing is held while a replica is opened, and while one is fenced: what is opened is not fenced.
	placing sync.Mutex
	// steps is held by the step that is carried out, which may take long; run, under it, is the attempt that has fenced last: no other may go on.
	steps sync.Mutex
	run   string
}

const (
	stepLook  = "look"
	stepFence = "fence"
	stepTake  = "take"
)

type recoverRequest struct {
	ClusterID string `json:"cluster_id"`
	Step      string `json:"step"`
	// Run names the attempt, and Era the era that it begins.
	Run string `json:"run,omitempty"`
	Era uint64 `json:"era,omitempty"`
	// Shards are those to fence, Take the one to take over.
	Shards []sharding.ShardID  `json:"shards,omitempty"`
	Take   *sharding.LostShard `json:"take,omitempty"`
}

type recoverAnswer struct {
	Node sharding.NodeID `json:"node"`
	// Map is the newest here, encoded; Hears are the nodes that have told this one something a moment ago.
	Map       []byte              `json:"map"`
	Hears     []sharding.NodeID   `json:"hears"`
	Survivors []sharding.Survivor `json:"survivors"`
}

// fenced is a replica that was stopped for a recovery, as it was then. It is Known once that has been looked at.
type fenced struct {
	sharding.Survivor
	Known bool `json:"known"`
}

func (n *Node) handleRecover(_ context.Context, _ string, raw []byte) ([]byte, error) {
	var req recoverRequest
	if err := decodeWire(raw, &req); err != nil {
		return nil, transport.Errorf(transport.CodeBadRequest, "recover: %v", err)
	}
	answer, err := n.stepRecovery(req)
	if err != nil {
		return nil, err
	}
	return encodeWire(answer)
}

// stepRecovery carries a step out, however long the caller waits: a state that is half written is not left behind.
func (n *Node) stepRecovery(req recoverRequest) (answer recoverAnswer, err error) {
	r := &n.recovery
	if !r.steps.TryLock() {
		return answer, transport.Errorf(transport.CodeBusy, "node %s is at an earlier step of a recovery still", n.cfg.ID)
	}
	defer r.steps.Unlock()
	m := n.Router().Map()
	switch {
	case req.ClusterID != m.ClusterID:
		return answer, transport.Errorf(transport.CodeRefused, "node %s is of cluster %s, not of %s", n.cfg.ID, m.ClusterID, req.ClusterID)
	case req.Step == stepLook:
	case req.Era <= sharding.Era(m.Epoch), req.Era < n.dir.ident().Era:
		return answer, transport.Errorf(transport.CodeConflict, "node %s is in era %d already: the cluster was recovered meanwhile", n.cfg.ID, max(sharding.Era(m.Epoch), n.dir.ident().Era))
	case req.Step == stepFence:
		r.run = req.Run
		if err := n.fence(req.Era, req.Shards); err != nil {
			return answer, err
		}
	case req.Run != r.run:
		return answer, transport.Errorf(transport.CodeConflict, "node %s was started again, or another recovery has begun", n.cfg.ID)
	case req.Step == stepTake && req.Take != nil:
		if err := n.takeOver(*req.Take); err != nil {
			return answer, err
		}
	default:
		return answer, transport.Errorf(transport.CodeBadRequest, "recover: step %q", req.Step)
	}
	answer = recoverAnswer{Node: n.cfg.ID, Map: m.Encode(), Hears: []sharding.NodeID{}}
	for _, nd := range m.Nodes {
		if _, alive := n.peers.get(nd.ID); alive {
			answer.Hears = append(answer.Hears, nd.ID)
		}
	}
	answer.Survivors, err = n.survivors(m)
	return answer, err
}

// survivors describes all replicas here.
func (n *Node) survivors(m sharding.Map) (list []sharding.Survivor, err error) {
	n.recovery.placing.Lock()
	defer n.recovery.placing.Unlock()
	id := n.dir.ident()
	told := map[string]bool{}
	tell := func(s sharding.Survivor) {
		list, told[replicaKey(s.Shard, s.Replica)] = append(list, s), true
	}
	for _, f := range id.Fenced {
		if !f.Known {
			return nil, transport.Errorf(transport.CodeConflict, "node %s has not looked at its replica %s yet since it was stopped for a recovery", n.cfg.ID, f.Replica)
		}
		tell(f.Survivor)
	}
	for _, e := range n.repairs.all() {
		tell(sharding.Survivor{Shard: e.shard, Replica: e.replica, Node: n.cfg.ID, Problem: e.text})
	}
	for _, st := range n.host.all() {
		tell(n.describeOpen(st))
	}
	for _, key := range id.Replicas {
		if !told[key] {
			return nil, transport.Errorf(transport.CodeConflict, "node %s is opening its replicas still (%s)", n.cfg.ID, key)
		}
	}
	for _, sh := range m.Shards {
		if r, here := sh.On(n.cfg.ID); here && !slices.ContainsFunc(list, func(s sharding.Survivor) bool { return s.Shard == sh.ID }) {
			return nil, transport.Errorf(transport.CodeConflict, "node %s has not made its replica %s yet", n.cfg.ID, r.ID)
		}
	}
	return list, nil
}

func (n *Node) describeOpen(st *store.Store) sharding.Survivor {
	s := st.Status()
	v := sharding.Survivor{Shard: s.Shard, Replica: s.Replica, Node: n.cfg.ID, Commit: s.Commit, Applied: s.Applied, Term: s.Term, Records: s.Records}
	for _, m := range s.Members {
		if m.Voter {
			v.Voters = append(v.Voters, m.Replica)
		}
	}
	var err error
	v.Last.Term, v.Last.Index, err = st.LastEntry()
	if _, known := st.Init(); err != nil {
		v.Problem = err.Error()
	} else if !known {
		v.Problem = "it is empty"
	}
	return v
}

// fence stops this node's replicas of shards for ever, and notes how far each is.
func (n *Node) fence(era uint64, shards []sharding.ShardID) error {
	n.recovery.placing.Lock()
	defer n.recovery.placing.Unlock()
	was := n.dir.ident()
	list := slices.Clone(was.Fenced)
	for _, shard := range shards {
		for _, id := range n.dir.replicas(shard) {
			if n.dir.isFenced(shard, id) {
				continue
			}
			f := fenced{Survivor: sharding.Survivor{Shard: shard, Replica: id, Node: n.cfg.ID, Fenced: true}}
			if e, waits := n.repairs.get(shard); waits && e.replica == id {
				f.Problem, f.Known = e.text, true
			}
			list = append(list, f)
		}
	}
	// On the disk first: from here on a start does not open them, and deals only with its own era.
	if era != was.Era || len(list) != len(was.Fenced) {
		n.log.Warn("replicas are stopped for ever, for a recovery from the loss of a majority", "era", era, "shards", shards)
		if err := n.dir.update(func(id *ident) { id.Era, id.Fenced = era, list }); err != nil {
			return err
		}
	}
	for i, f := range list {
		if f.Known {
			continue
		}
		if st := n.host.get(f.Shard); st != nil && st.Status().Replica == f.Replica {
			n.host.remove(st)
			ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
			err := st.Close(ctx)
			cancel()
			if err != nil {
				n.fatal(fmt.Errorf("stop replica %s of shard %d for a recovery: %w", f.Replica, f.Shard, err)) // it may still vote: a start will not let it
				return err
			}
		}
		list = slices.Clone(list)
		list[i] = n.examine(f)
		if err := n.dir.update(func(id *ident) { id.Fenced = list }); err != nil {
			return err
		}
	}
	return nil
}

// examine looks at what a replica that was stopped has on its disk.
func (n *Node) examine(f fenced) fenced {
	f.Known = true
	r, err := store.Inspect(n.closedConfig(f.Shard, f.Replica))
	if err != nil {
		f.Problem = err.Error()
		return f
	}
	f.Last = sharding.Position{Term: r.LastTerm, Index: r.LastIndex}
	f.Term, f.Commit, f.Applied, f.Records, f.Voters = r.Term, r.Applied, r.Applied, r.Records, r.Voters
	if r.Empty {
		f.Problem = "it is empty"
	}
	return f
}

func (n *Node) closedConfig(shard sharding.ShardID, id sharding.ReplicaID) store.Config {
	return n.storeConfig(sharding.Shard{ID: shard}, sharding.Replica{ID: id, Node: n.cfg.ID}, n.dir.file(replicaKey(shard, id)))
}

// takeOver makes what a fenced replica had that of the shard's new one.
func (n *Node) takeOver(l sharding.LostShard) error {
	key := replicaKey(l.Shard, l.To.ID)
	if l.To.Node != n.cfg.ID || l.From != nil && l.From.Node != n.cfg.ID {
		return transport.Errorf(transport.CodeBadRequest, "replica %s is not node %s's", l.To.ID, n.cfg.ID)
	}
	if l.From == nil {
		n.log.Warn("a shard begins anew, without data", "shard", l.Shard, "replica", l.To.ID)
		return n.dir.update(func(id *ident) { id.Anew = append(without(id.Anew, key), key) })
	}
	if !n.dir.isFenced(l.Shard, l.From.Replica) {
		return transport.Errorf(transport.CodeConflict, "replica %s of shard %d was not stopped for a recovery", l.From.Replica, l.Shard)
	}
	return store.Recover(n.closedConfig(l.Shard, l.From.Replica), store.Heir{Replica: l.To.ID, Dir: n.dir.file(key), Term: l.Term})
}

// leaveFenced puts the replicas aside that were stopped for a recovery, once the map that it has made is here.
func (n *Node) leaveFenced(m sharding.Map) error {
	id := n.dir.ident()
	if sharding.Era(m.Epoch) < id.Era || len(id.Fenced) == 0 {
		return n.forgetAnew()
	}
	for _, f := range id.Fenced {
		kept, err := n.dir.quarantine(f.Shard, f.Replica)
		if err != nil {
			return err
		}
		if err := n.dir.lose(f.Shard, f.Replica); err != nil {
			return err
		}
		if err := n.dropLog(f.Shard, f.Replica); err != nil {
			return err
		}
		n.log.Info("replica put aside after a recovery", "shard", f.Shard, "replica", f.Replica, "path", kept)
		if err := n.dir.update(func(id *ident) {
			id.Fenced = slices.DeleteFunc(slices.Clone(id.Fenced), func(o fenced) bool { return o.Shard == f.Shard && o.Replica == f.Replica })
		}); err != nil {
			return err
		}
	}
	return nil
}

// forgetAnew takes back the leave to begin without data where it was used.
func (n *Node) forgetAnew() error {
	for _, key := range n.dir.ident().Anew {
		for _, st := range n.host.all() {
			if _, known := st.Init(); known && replicaKey(st.Shard(), st.Status().Replica) == key {
				if err := n.dir.update(func(id *ident) { id.Anew = without(id.Anew, key) }); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (d *dataDir) isFenced(shard sharding.ShardID, id sharding.ReplicaID) bool {
	return slices.ContainsFunc(d.ident().Fenced, func(f fenced) bool { return f.Shard == shard && f.Replica == id })
}

// fencedStatus is what peers are told of the replicas that were stopped.
func (n *Node) fencedStatus() (list []repairStatus) {
	for _, f := range n.dir.ident().Fenced {
		list = append(list, repairStatus{f.Shard, f.Replica, fmt.Sprintf("replica %s was stopped for a recovery that is not over: say abacus recover again", f.Replica)})
	}
	return list
}

// --- eras ---

// clusterInEra is this node's cluster as it says hello: with its era, if any but the first.
func (n *Node) clusterInEra() string {
	id := n.dir.ident()
	era := id.Era
	if !n.isOut() { // to have heard of an era is not to be in it
		era = max(era, sharding.Era(n.Router().Map().Epoch))
	}
	if era > 0 && id.ClusterID != "" {
		return fmt.Sprintf("%s+%d", id.ClusterID, era)
	}
	return id.ClusterID
}

// isOut says that the newest map is without this node: it is about to end, and what it leads till then counts for nobody.
func (n *Node) isOut() bool {
	m := n.Router().Map()
	self, in := m.Node(n.cfg.ID)
	return m.Epoch > 0 && (!in || self.Instance != n.dir.ident().Instance)
}

// ofOurEra says whether a peer knows of all recoveries that we know of, and is a member as far as we know. One that was lost may be led by
// others that were: what it says that it leads is of another history.
func (n *Node) ofOurEra(s peerStatus) bool {
	m := n.Router().Map()
	_, in := m.Node(s.Node)
	return sharding.Era(s.Epoch) >= sharding.Era(m.Epoch) && (in || s.Epoch > m.Epoch || sharding.Era(m.Epoch) == 0)
}

// askWhatWasMissed fetches the map of a peer that is of another era. If ours is the older one, it says whether we are still in the cluster.
func (n *Node) askWhatWasMissed(ctx context.Context, id sharding.NodeID) {
	addr, err := n.resolve(id)
	if err != nil {
		return
	}
	raw, err := n.transport.CallAddr(ctx, addr, transport.MethodMap, nil)
	if err != nil {
		n.log.Debug("fetch the map of another era", "peer", id, "err", err)
		return
	}
	m, err := sharding.DecodeMap(raw)
	if err != nil {
		n.log.Warn("peer's shard map not understood", "peer", id, "err", err)
		return
	}
	n.offerMap(m)
}

// callRecover has a node take a step; this node itself, too.
func (n *Node) callRecover(ctx context.Context, id sharding.NodeID, req recoverRequest) (answer recoverAnswer, err error) {
	req.ClusterID = n.Router().Map().ClusterID
	if id == n.cfg.ID {
		return n.stepRecovery(req)
	}
	addr, err := n.resolve(id)
	if err != nil {
		return answer, err
	}
	raw, err := encodeWire(req)
	if err != nil {
		return answer, err
	}
	// To its address: it may be of another era until it has taken this step.
	raw, err = n.transport.CallAddr(ctx, addr, transport.MethodRecover, raw)
	if err != nil {
		return answer, err
	}
	if err := decodeWire(raw, &answer); err != nil {
		return answer, err
	}
	if answer.Node != id {
		return answer, transport.Errorf(transport.CodeWrongNode, "node %s answers at the address of %s", answer.Node, id)
	}
	return answer, nil
}

// each has several nodes take a step at once, and returns their answers. The first error, in the order of the nodes, ends it; absent is its code where a
// node is not there.
func (n *Node) each(ctx context.Context, nodes []sharding.NodeID, absent transport.Code, step func(context.Context, sharding.NodeID) (recoverAnswer, error)) ([]recoverAnswer, error) {
	answers, errs := make([]recoverAnswer, len(nodes)), make([]error, len(nodes))
	var calls sync.WaitGroup
	for i, id := range nodes {
		calls.Go(func() { answers[i], errs[i] = step(ctx, id) })
	}
	calls.Wait()
	for i, err := range errs {
		if err != nil {
			return nil, stepError(nodes[i], err, absent)
		}
	}
	return answers, nil
}

// stepError says what an administrator can do about a step that failed.
func stepError(id sharding.NodeID, err error, absent transport.Code) error {
	switch transport.CodeOf(err) {
	case transport.CodeNoMethod:
		return transport.Errorf(transport.CodeRefused, "node %s runs a version that knows no recovery: upgrade it first", id)
	case transport.CodeConflict, transport.CodeBusy:
		return transport.Errorf(transport.CodeConflict, "%s: say it again", detail(err))
	case transport.CodeTimeout, transport.CodeLinkLost, transport.CodeClosed:
		return transport.Errorf(transport.CodeConflict, "node %s has not answered yet (%v): say it again", id, err)
	case transport.CodeUnavailable, transport.CodeWrongNode:
		return transport.Errorf(absent, "node %s does not answer and is not among the lost: start it, or, if it is lost for good, name it, too (%s)", id, cmp.Or(detail(err), "no answer"))
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return transport.Errorf(transport.CodeConflict, "node %s is at it still: say it again", id)
	}
	return transport.Errorf(transport.CodeRefused, "node %s: %v", id, err)
}

// lookTimeout bounds the first round, which finds out who is there.
const lookTimeout = 3 * time.Second
