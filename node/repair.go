package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// Replicas here whose files are damaged do not run; the node's others do. One whose
// state is damaged gets a peer's (store.Reseed) and is who it was. One whose log or
// votes are damaged or lost must not vote under its id again: its directory is put aside
// and the leader of shard 0 asked for a new replica in its place. See
// docs/decisions/0012-repair.md.

const (
	repairEvery = 500 * time.Millisecond
	// repairWarn is how often a repair that does not get on is logged.
	repairWarn = 10 * time.Second
	// freshContact is how long ago a voter that counts as alive answered its leader.
	freshContact = 2 * time.Second
	// keepDamaged is how many directories of lost replicas stay, for each shard.
	keepDamaged   = 2
	damagedSuffix = ".damaged"
)

// errReplicaLost: the replica's directory was here once.
var errReplicaLost = errors.New("its directory is gone")

// repairs are the replicas of this node that wait for repair, one at most of a shard.
type repairs struct {
	mu   sync.Mutex
	list map[sharding.ShardID]repair

	done, failed atomic.Uint64 // attempts
}

func (r *repairs) metrics() []prometheus.Collector {
	count := func(name, help string, v *atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(v.Load()) })
	}
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "abacus_replicas_damaged", Help: "Replicas here that do not run and wait for repair."},
			func() float64 { return float64(len(r.all())) }),
		count("abacus_repairs_total", "Replicas here that were re-seeded or replaced.", &r.done),
		count("abacus_repair_failures_total", "Attempts to re-seed or replace a replica that failed; they are made again.", &r.failed),
	}
}

type repair struct {
	shard   sharding.ShardID
	replica sharding.ReplicaID
	damage  store.Damage
	// text says what is being done, or why it cannot be.
	text   string
	warned time.Time
}

// repairStatus is what a node tells of a replica that does not run.
type repairStatus struct {
	Shard   sharding.ShardID   `json:"shard"`
	Replica sharding.ReplicaID `json:"replica"`
	Text    string             `json:"text"`
}

func (r *repairs) get(shard sharding.ShardID) (repair, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.list[shard]
	return e, ok
}

func (r *repairs) has(shard sharding.ShardID, id sharding.ReplicaID) bool {
	e, ok := r.get(shard)
	return ok && e.replica == id
}

func (r *repairs) put(e repair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.list == nil {
		r.list = map[sharding.ShardID]repair{}
	}
	r.list[e.shard] = e
}

func (r *repairs) drop(shard sharding.ShardID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.list, shard)
}

// all returns them in order of their shards.
func (r *repairs) all() []repair {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]repair, 0, len(r.list))
	for _, e := range r.list {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b repair) int { return cmp.Compare(a.shard, b.shard) })
	return list
}

func (r *repairs) status() (list []repairStatus) {
	for _, e := range r.all() {
		list = append(list, repairStatus{e.shard, e.replica, e.text})
	}
	return list
}

// takeDamage notes a replica that could not be opened for repair. It says false if
// the error is about something else.
func (n *Node) takeDamage(shard sharding.ShardID, id sharding.ReplicaID, err error) bool {
	e := repair{shard: shard, replica: id, damage: store.DamageOf(err)}
	if errors.Is(err, errReplicaLost) {
		e.damage = store.DamageLog
	}
	switch e.damage {
	case store.DamageState:
		e.text = fmt.Sprintf("replica %s waits to be re-seeded: its state is damaged", id)
	case store.DamageLog:
		e.text = fmt.Sprintf("replica %s waits to be replaced: its log or its votes are lost", id)
	default:
		return false
	}
	n.log.Error("replica damaged", "shard", shard, "replica", id, "err", err)
	n.repairs.put(e)
	return true
}

// runRepair repairs what is damaged here, one replica at a time.
func (n *Node) runRepair(ctx context.Context) error {
	tick := time.NewTicker(repairEvery)
	defer tick.Stop()
	for {
		for _, e := range n.repairs.all() {
			if n.dir.isFenced(e.shard, e.replica) { // a recovery goes on without it
				n.repairs.drop(e.shard)
				continue
			}
			m := n.Router().Map()
			sh, _ := m.Shard(e.shard)
			var err error
			if m.Removed(e.shard, e.replica) {
				err = n.letGo(e)
			} else {
				err = n.repair(ctx, sh, e)
			}
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				n.repairs.done.Add(1)
				continue
			}
			n.repairs.failed.Add(1)
			if e, ok := n.repairs.get(e.shard); ok && time.Since(e.warned) > repairWarn {
				e.warned = time.Now()
				n.repairs.put(e)
				n.log.Warn("repair goes on", "shard", e.shard, "replica", e.replica, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// letGo is for a damaged replica that has been taken out of the map: another may
// have its place here.
func (n *Node) letGo(e repair) error {
	if _, err := n.dir.quarantine(e.shard, e.replica); err != nil {
		return err
	}
	if err := n.dir.lose(e.shard, e.replica); err != nil {
		return err
	}
	if err := n.dropLog(e.shard, e.replica); err != nil {
		return err
	}
	n.repairs.drop(e.shard)
	n.noteMapChanged()
	return nil
}

func (n *Node) repair(ctx context.Context, sh sharding.Shard, e repair) error {
	if e.damage == store.DamageState {
		return n.reseed(ctx, sh, e)
	}
	return n.replace(ctx, e)
}

// reseed asks the shard's other replicas for their state, the leader first.
func (n *Node) reseed(ctx context.Context, sh sharding.Shard, e repair) error {
	m := n.Router().Map()
	dir, err := n.dir.replicaDir(sh.ID, e.replica)
	if err != nil {
		e.damage = store.DamageLog
		n.repairs.put(e)
		return err
	}
	cfg := n.storeConfig(sh, sharding.Replica{ID: e.replica, Node: n.cfg.ID}, dir)
	var peers []sharding.NodeID
	for _, r := range sh.Replicas {
		if _, alive := n.peers.get(r.Node); alive {
			peers = append(peers, r.Node)
		}
	}
	leader := n.Leader(sh.ID)
	if i := slices.Index(peers, leader); i > 0 {
		peers = slices.Insert(slices.Delete(peers, i, i+1), 0, leader)
	}
	if len(peers) == 0 {
		peers = append(peers, "") // the log alone may do
	}
	var errs []error
	for _, peer := range peers {
		e.text = fmt.Sprintf("replica %s is being re-seeded from %s", e.replica, cmp.Or(peer, "its own log"))
		n.repairs.put(e)
		err := store.Reseed(ctx, cfg, m.ClusterID, peer)
		if err == nil {
			n.repairs.drop(sh.ID)
			n.noteMapChanged()
			return nil
		}
		errs = append(errs, err)
		if store.DamageOf(err) == store.DamageLog {
			e.damage = store.DamageLog
			break
		}
	}
	err = errors.Join(errs...)
	e.text = fmt.Sprintf("replica %s waits to be re-seeded: %v", e.replica, err)
	n.repairs.put(e)
	return err
}

// replace puts the replica's directory aside and asks for another replica in its place.
func (n *Node) replace(ctx context.Context, e repair) error {
	kept, err := n.dir.quarantine(e.shard, e.replica)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	req, err := encodeWire(joinRequest{Node: n.self(), ClusterID: n.dir.ident().ClusterID, Boot: n.boot, Level: sharding.Level, Lost: &lostReplica{e.shard, e.replica}})
	if err != nil {
		return err
	}
	raw, err := n.handleJoin(ctx, n.cfg.ID, req)
	var m sharding.Map
	if err == nil {
		m, err = sharding.DecodeMap(raw)
	}
	if err != nil {
		files := "nothing of it is left"
		if kept != "" {
			files = "its files are kept in " + kept
		}
		what := "waits to be replaced"
		if transport.CodeOf(err) == transport.CodeRefused {
			what = "cannot be replaced"
		}
		e.text = fmt.Sprintf("replica %s has lost its log or its votes and %s: %s (%s)", e.replica, what, detail(err), files)
		n.repairs.put(e)
		return err
	}
	n.offerMap(m)
	return n.letGo(e)
}

// quarantine puts a replica's directory aside, and returns where it is, "" if there is none.
func (d *dataDir) quarantine(shard sharding.ShardID, id sharding.ReplicaID) (string, error) {
	dir := d.file(replicaKey(shard, id))
	kept := dir + damagedSuffix
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(kept); err != nil {
			return "", nil
		}
		return kept, nil
	}
	old, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "*"+damagedSuffix))
	if err != nil {
		return "", err
	}
	at := func(p string) int64 {
		if info, err := os.Stat(p); err == nil {
			return info.ModTime().UnixNano()
		}
		return 0
	}
	slices.SortFunc(old, func(a, b string) int { return cmp.Compare(at(a), at(b)) })
	for len(old) >= keepDamaged {
		if err := os.RemoveAll(old[0]); err != nil {
			return "", fmt.Errorf("remove an old damaged replica: %w", err)
		}
		old = old[1:]
	}
	// One id, one name: it never comes back, so there is nothing under it yet.
	if err := os.Rename(dir, kept); err != nil {
		return "", fmt.Errorf("put damaged replica aside: %w", err)
	}
	return kept, syncDir(filepath.Dir(dir))
}

// --- at the leader of shard 0 ---

// lostReplica is a replica whose node cannot answer for what it promised.
type lostReplica struct {
	Shard   sharding.ShardID   `json:"shard"`
	Replica sharding.ReplicaID `json:"replica"`
}

// decideReplace works out the map with another replica in the place of a lost one.
func (n *Node) decideReplace(m sharding.Map, node sharding.NodeID, lost lostReplica) (next sharding.Map, changed bool, err error) {
	sh, _ := m.Shard(lost.Shard)
	r, ok := sh.On(node)
	if !ok || r.ID != lost.Replica {
		return m, false, nil // done before
	}
	if err := n.maySpare(sh, node); err != nil {
		return m, false, err
	}
	next, err = sharding.PlanReplace(m, lost.Shard, lost.Replica)
	if err != nil {
		return m, false, transport.Errorf(transport.CodeRefused, "%v", err)
	}
	return next, true, nil
}

// decideReturn works out the map with a node back whose data directory is a new
// one, and with new replicas in place of all that it had.
func (n *Node) decideReturn(ctx context.Context, m sharding.Map, known sharding.Node, req joinRequest) (next sharding.Map, changed bool, err error) {
	if req.ClusterID != "" {
		return m, false, transport.Errorf(transport.CodeRefused, "the id %q belongs to another data directory now, which took its place while it did not answer: start it with an empty --data-dir under another --id", known.ID)
	}
	if said, alive := n.peers.get(known.ID); alive && said.Boot != req.Boot {
		return m, false, transport.Errorf(transport.CodeConflict, "node %s answered a moment ago, from another data directory", known.ID)
	}
	if err := n.reachable(ctx, req); err != nil {
		return m, false, err
	}
	// A reason that will not pass is named before any that may.
	var why error
	for _, sh := range m.Shards {
		if _, ok := sh.On(known.ID); !ok {
			continue
		}
		if err := n.maySpare(sh, known.ID); why == nil || err != nil && transport.CodeOf(err) == transport.CodeRefused {
			why = err
		}
		if why != nil && transport.CodeOf(why) == transport.CodeRefused {
			break
		}
	}
	if why != nil {
		return m, false, transport.Errorf(transport.CodeOf(why), "the id %q belongs to a node that had another data directory, and it cannot be replaced: %s", known.ID, detail(why))
	}
	if next, err = sharding.PlanReturn(m, req.Node); err != nil {
		return m, false, transport.Errorf(transport.CodeRefused, "%v", err)
	}
	n.log.Warn("a node returns without its data", "node", known.ID, "instance", req.Node.Instance)
	return next, true, nil
}

func detail(err error) string {
	var e *transport.Error
	if errors.As(err, &e) {
		return e.Detail
	}
	return err.Error()
}

// reachable says whether the process that asks answers where it says it is: others will count on it.
func (n *Node) reachable(ctx context.Context, req joinRequest) error {
	switch boot := n.bootOf(ctx, req.Node); boot {
	case req.Boot:
		return nil
	case "":
		return transport.Errorf(transport.CodeBadRequest, "node %s does not answer at the peer address it gives, %s: check --peer-addr and --advertise-peer-addr", req.Node.ID, req.Node.Addrs.Peer)
	default:
		return transport.Errorf(transport.CodeRefused, "another process with the id %q answers at its peer address %s", req.Node.ID, req.Node.Addrs.Peer)
	}
}

// maySpare says whether a shard goes on without its replica on a node: whether the
// others that vote and answer are a majority, and no other change is under way. It
// is CodeRefused if that cannot pass, else CodeConflict.
func (n *Node) maySpare(sh sharding.Shard, node sharding.NodeID) error {
	if sh.Founding != "" {
		return nil // it is not there yet, and holds nothing
	}
	if rest, most := len(sh.Replicas)-1, sharding.Majority(len(sh.Replicas)); rest < most {
		return transport.Errorf(transport.CodeRefused, "shard %d has %d of %d replicas without it, and %d are a majority: if the others are lost for good, see abacus recover --help", sh.ID, rest, len(sh.Replicas), most)
	}
	leader, members := n.membersOf(sh.ID)
	if leader == "" || leader == node {
		return transport.Errorf(transport.CodeConflict, "shard %d has no leader that is known here", sh.ID)
	}
	voters, alive := 0, 0
	for _, m := range members {
		if m.Voter {
			voters++
		}
		listed := slices.ContainsFunc(sh.Replicas, func(r sharding.Replica) bool { return r.ID == m.Replica })
		switch {
		case m.Node == node && listed:
		case !listed:
			return transport.Errorf(transport.CodeConflict, "shard %d: replica %s is still being removed", sh.ID, m.Replica)
		case !m.Voter:
			return transport.Errorf(transport.CodeConflict, "shard %d: replica %s is still catching up", sh.ID, m.Replica)
		case inTouch(m):
			alive++
		}
	}
	for _, r := range sh.Replicas {
		if r.Node != node && !slices.ContainsFunc(members, func(m store.Member) bool { return m.Replica == r.ID }) {
			return transport.Errorf(transport.CodeConflict, "shard %d: replica %s is still being added", sh.ID, r.ID)
		}
	}
	if most := sharding.Majority(voters); alive < most {
		return transport.Errorf(transport.CodeConflict, "shard %d has %d of %d voters that answer without it, and %d are a majority", sh.ID, alive, voters, most)
	}
	return nil
}

// inTouch says whether a member answered its leader lately.
func inTouch(m store.Member) bool { return m.LastContact >= 0 && m.LastContact < freshContact }

// membersOf is the shard's Raft configuration as its leader tells it.
func (n *Node) membersOf(shard sharding.ShardID) (leader sharding.NodeID, members []store.Member) {
	leader = n.Leader(shard)
	if leader == n.cfg.ID {
		if st := n.host.get(shard); st != nil && st.IsLeader() {
			return leader, st.Status().Members
		}
		return "", nil
	}
	said, alive := n.peers.get(leader)
	if !alive {
		return "", nil
	}
	for _, r := range said.Replicas {
		if r.Shard == shard && r.Leads {
			return leader, r.Members
		}
	}
	return "", nil
}

// --- at the leader of the shard ---

// stepRemoval takes a member out that the map does not list any more, if there is one
// that the group can do without now. It never leaves fewer living voters than decide:
// then what is added comes first.
func (n *Node) stepRemoval(ctx context.Context, st *store.Store, m sharding.Map, members []store.Member) (changed bool, err error) {
	for _, gone := range members {
		if !m.Removed(st.Shard(), gone.Replica) {
			continue
		}
		if gone.Replica == st.Status().Replica { // another must do it
			if to, ok := n.successor(st); ok {
				n.log.Info("handing leadership over to be removed", "shard", st.Shard(), "to", to)
				return true, st.TransferLeadership(ctx, to)
			}
			continue
		}
		voters, alive := 0, 0
		for _, o := range members {
			if o.Replica != gone.Replica && o.Voter {
				voters++
				if inTouch(o) {
					alive++
				}
			}
		}
		if gone.Voter && alive < sharding.Majority(voters) {
			continue
		}
		err := st.Remove(ctx, gone.Replica)
		if transport.CodeOf(err) == transport.CodeBusy { // one that stays lags: next time
			n.log.Debug("replica not removed yet", "shard", st.Shard(), "replica", gone.Replica, "err", err)
			return true, nil
		}
		if err == nil {
			n.log.Info("removed replica", "shard", st.Shard(), "replica", gone.Replica)
		}
		return true, err
	}
	return false, nil
}
