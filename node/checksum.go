package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// The replicas of a shard are compared: its leader has all of them keep a view of one index (a pin), has each hash its own, and compares. It is done
// once in an interval and when somebody asks. A replica that differs is named, in the log, the status and a metric, until it is found equal; nothing
// is mended, for if the majority is wrong, what is mended is the evidence.
//
// A replica is hashed a piece at a time, each asked for by the leader, from a view that is opened for it: so nothing is left behind when a leader goes, a
// replica that starts anew goes on, and no transaction keeps pages of the state's file for long.

const (
	// checkRecord is where a shard keeps the report of the last check.
	checkRecord = "checksum"
	// checkRate is how many bytes a second a node reads for checks, of all its shards together, as fsm.View.HashOn counts them. A pin ends when it is ten minutes old:
	// by then about 16 GiB are read, more than a state file has.
	checkRate = 32 << 20
	// checkPiece is how much is read for one call.
	checkPiece = 1 << 20
	// checkTTL is after how long a pin that nobody reads ends: if its leader has died.
	checkTTL = time.Minute
	// checkCall bounds one call, checkPatience how long calls to one replica may fail: it may be just coming back.
	checkCall     = 10 * time.Second
	checkPatience = 5 * time.Second
	// checkRest is between two calls after one that failed.
	checkRest = 250 * time.Millisecond
	// checkSave bounds the writing of what was found.
	checkSave = 10 * time.Second
	// checkLook is how often the wall clock is looked at, which may be set, and how long after a check that failed the next one is due.
	checkLook = 10 * time.Minute
)

// checks are those that leaders here make, one at a time.
type checks struct {
	turn   chan struct{} // has a token while one is being made
	budget *rate.Limiter

	mu  sync.Mutex
	led map[sharding.ShardID]*shardChecks
}

// shardChecks is of a shard that is led here. Behind checks.mu.
type shardChecks struct {
	wanted chan struct{} // has a token when now was asked for
	// now waits or is under way, nil if none does. ended is the last that ended, with an Error perhaps, judged the last of which something came.
	now    *checkReport
	ended  checkReport
	judged checkReport
	failed time.Time // zero: the last did not
	loaded bool      // judged is what was found last, by whoever led
}

func newChecks() *checks {
	return &checks{turn: make(chan struct{}, 1), budget: rate.NewLimiter(checkRate, checkPiece), led: map[sharding.ShardID]*shardChecks{}}
}

// begin has a shard checked, if it is led here, and returns the check: that which is waiting or under way already, if there is one.
func (c *checks) begin(shard sharding.ShardID) (checkReport, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.led[shard]
	if e == nil {
		return checkReport{}, false
	}
	if e.now == nil {
		e.now = &checkReport{Check: randomID(), Shard: shard, State: checkWaiting, Replicas: []replicaCheck{}}
	}
	select {
	case e.wanted <- struct{}{}:
	default:
	}
	return e.now.copy(), true
}

// show is the newest check of a shard, if it is led here.
func (c *checks) show(shard sharding.ShardID) (checkReport, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.led[shard]
	switch {
	case e == nil:
		return checkReport{}, false
	case e.now != nil:
		return e.now.copy(), true
	case e.ended.Check != "":
		return e.ended.copy(), true
	}
	return checkReport{Shard: shard, Replicas: []replicaCheck{}}, true
}

func (r checkReport) copy() checkReport {
	r.Replicas = append([]replicaCheck{}, r.Replicas...)
	return r
}

// last is the last check of which something came.
func (c *checks) last(shard sharding.ShardID) checkReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.led[shard]; e != nil {
		return e.judged
	}
	return checkReport{}
}

// suspects are the replicas of a shard that differ from a majority of its replicas, by what was found last. It is not known where this node does not lead the shard, or has
// just begun to.
func (c *checks) suspects(shard sharding.ShardID) (list []sharding.ReplicaID, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.led[shard]
	if e == nil || !e.loaded {
		return nil, false
	}
	for _, a := range e.judged.alarms() {
		if a.Result == checkDiffers {
			list = append(list, a.Replica)
		}
	}
	return list, true
}

// update changes the check of a shard that is under way.
func (c *checks) update(e *shardChecks, change func(*checkReport)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(e.now)
}

// runChecks compares the replicas of a shard while this node leads it.
func (n *Node) runChecks(ctx context.Context, st *store.Store) {
	c, e := n.checks, &shardChecks{wanted: make(chan struct{}, 1)}
	c.mu.Lock()
	c.led[st.Shard()] = e
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.led[st.Shard()] == e { // and not the next leadership's
			delete(c.led, st.Shard())
		}
	}()
	if !n.loadCheck(ctx, st, e) {
		return
	}
	for {
		wait := n.untilCheck(st.Shard(), e)
		if wait <= 0 {
			c.begin(st.Shard())
		}
		timer := time.NewTimer(max(wait, time.Millisecond))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C: // the clock may have been set meanwhile
			continue
		case <-e.wanted:
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return
		case c.turn <- struct{}{}:
		}
		n.check(ctx, st, e)
		<-c.turn
	}
}

// loadCheck reads what was found last, by whoever led. It says false when the leadership ends.
func (n *Node) loadCheck(ctx context.Context, st *store.Store, e *shardChecks) bool {
	for {
		_, r, err := readCheck(ctx, st)
		if err == nil {
			n.checks.mu.Lock()
			e.ended, e.judged, e.loaded = r, r, true
			n.checks.mu.Unlock()
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(checkRest):
		}
	}
}

// readCheck reads the record of the last check; a report without a name if there never was one.
func readCheck(ctx context.Context, st *store.Store) (revision int64, r checkReport, err error) {
	list, err := recordsLocal(ctx, st, recordsRequest{Prefix: checkRecord})
	if err != nil {
		return 0, r, err
	}
	for _, rec := range list {
		if rec.Name == checkRecord {
			if json.Unmarshal(rec.Value, &r) != nil {
				r = checkReport{} // a later version's: what is found next takes its place
			}
			return rec.Revision, r, nil
		}
	}
	return 0, r, nil
}

// untilCheck is how long to wait before the wall clock is looked at again; 0: a check is due. Not soon after a start, when there is enough to do; and what
// could not be checked waits for a while.
func (n *Node) untilCheck(shard sharding.ShardID, e *shardChecks) time.Duration {
	m, every := n.Router().Map(), n.cfg.CheckInterval
	if every == 0 || m.Level < sharding.LevelPins || n.stopping.Load() {
		return checkLook
	}
	n.checks.mu.Lock()
	last, failed := time.UnixMilli(e.judged.BeganMillis), e.failed
	if e.judged.Check == "" {
		last = n.cfg.Now().Add(-time.Since(n.started)) // not the present moment, which never comes
	}
	n.checks.mu.Unlock()
	now := n.cfg.Now()
	wait := nextCheck(last, now, every, shard, len(m.Shards)).Sub(now)
	wait = max(wait, every/scrubSpread-time.Since(n.started))
	if !failed.IsZero() {
		wait = max(wait, min(checkLook, every)-time.Since(failed))
	}
	return min(wait, checkLook)
}

// check makes the check that waits.
func (n *Node) check(ctx context.Context, st *store.Store, e *shardChecks) {
	began, at := time.Now(), n.cfg.Now()
	n.checks.update(e, func(now *checkReport) { now.BeganMillis = at.UnixMilli() })
	index, rows, err := n.hashReplicas(ctx, st, e)
	if ctx.Err() != nil {
		return // who leads now is asked anew
	}
	var r checkReport
	n.checks.update(e, func(now *checkReport) { r = now.copy() })
	r.Index, r.State, r.TookMillis = index, checkDone, time.Since(began).Milliseconds()
	if err != nil {
		r.Error, r.Replicas = err.Error(), []replicaCheck{}
		n.log.Warn("compare replicas", "shard", st.Shard(), "err", err)
	} else {
		before := n.checks.last(st.Shard())
		r.Result, r.Replicas = compareReplicas(rows, before.Replicas, index, at)
		n.logCheck(r)
		if err := saveCheck(ctx, st, r); err != nil && ctx.Err() == nil {
			n.log.Warn("keep what a comparison of replicas has found: the next leader will not know of it", "shard", st.Shard(), "err", err)
		}
	}
	n.checks.mu.Lock()
	select {
	case <-e.wanted: // who asked meanwhile has this one
	default:
	}
	e.now, e.ended, e.failed = nil, r, time.Time{}
	if err != nil {
		e.failed = time.Now()
	} else {
		e.judged = r
	}
	n.checks.mu.Unlock()
	n.tell()
}

// logCheck makes a line of what was found, and one for each replica that differs.
func (n *Node) logCheck(r checkReport) {
	for _, row := range r.Replicas {
		switch row.Result {
		case checkDiffers, checkDisagrees:
			n.log.Error("replica differs", "shard", r.Shard, "replica", row.Replica, "on", row.Node, "index", r.Index, "result", row.Result, "hash", row.Hash, "hashes", hashesOf(r.Replicas), "records", row.Records)
		case checkNotCompared:
			n.log.Warn("replica not compared", "shard", r.Shard, "replica", row.Replica, "on", row.Node, "index", r.Index, "why", row.Why)
		}
	}
	n.log.Info("replicas compared", "shard", r.Shard, "index", r.Index, "result", r.Result, "took", time.Duration(r.TookMillis)*time.Millisecond)
}

// saveCheck keeps a report in the shard.
func saveCheck(ctx context.Context, st *store.Store, r checkReport) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkSave)
	defer cancel()
	for {
		revision, _, err := readCheck(ctx, st)
		if err != nil {
			return err
		}
		results, _, err := st.Propose(ctx, []command.Command{recordSet(checkRecord, raw, revision)})
		if err != nil {
			return err
		}
		if err := recordError(checkRecord, results[0]); transport.CodeOf(err) != transport.CodeConflict {
			return err
		}
	}
}

// hashReplicas has all members hash their state at one index.
func (n *Node) hashReplicas(ctx context.Context, st *store.Store, e *shardChecks) (index uint64, rows []replicaCheck, err error) {
	id := rand.Uint64()>>1 | 1
	index, err = st.Pin(ctx, id, checkTTL)
	if err != nil {
		return 0, nil, fmt.Errorf("pin the state of shard %d: %w", st.Shard(), err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(ctx, checkCall)
		defer cancel()
		if err := st.Unpin(ctx, id); err != nil { // the leadership ends, say: the pin ends by itself, and nobody may wait here
			n.log.Debug("unpin after a comparison", "shard", st.Shard(), "err", err)
		}
	}()
	s := st.Status()
	for _, m := range s.Members {
		rows = append(rows, replicaCheck{Replica: m.Replica, Node: m.Node})
	}
	n.checks.update(e, func(now *checkReport) {
		now.State, now.Index, now.Total, now.Replicas = checkRunning, index, s.Records, slices.Clone(rows)
	})
	var work sync.WaitGroup
	for i, m := range s.Members {
		if !m.Voter && !m.CaughtUp {
			rows[i].Why = "it is still being given the state"
			continue
		}
		work.Go(func() {
			h, err := n.hashReplica(ctx, m.Node, hashRequest{Shard: st.Shard(), Pin: id, Index: index}, func(h fsm.HashState) {
				n.checks.update(e, func(now *checkReport) { now.Replicas[i].Records = h.Records })
			})
			if rows[i].Records = h.Records; err != nil {
				rows[i].Why = err.Error()
				return
			}
			rows[i].Hash = fmt.Sprintf("%016x", h.Sum)
		})
	}
	work.Wait()
	return index, rows, nil
}

// hashReplica has one replica hash its state, piece by piece.
func (n *Node) hashReplica(ctx context.Context, node sharding.NodeID, q hashRequest, tell func(fsm.HashState)) (fsm.HashState, error) {
	answered := time.Now()
	for !q.State.Done {
		next, err := n.askPiece(ctx, node, q)
		switch code := transport.CodeOf(err); {
		case err == nil:
			q.State, answered = next, time.Now()
			tell(next)
			continue
		case ctx.Err() != nil:
			return q.State, ctx.Err()
		case code == transport.CodeNoPin, code == transport.CodeNoMethod, code == transport.CodeBadRequest, time.Since(answered) > checkPatience:
			return q.State, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(checkRest):
		}
	}
	return q.State, nil
}

func (n *Node) askPiece(ctx context.Context, node sharding.NodeID, q hashRequest) (next fsm.HashState, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkCall)
	defer cancel()
	if node == n.cfg.ID {
		return n.hashPiece(ctx, q)
	}
	err = n.callJSON(ctx, node, transport.MethodChecksum, checkRequest{Piece: &q}, &next)
	return next, err
}

// hashRequest asks a replica to go on with its hash.
type hashRequest struct {
	Shard sharding.ShardID `json:"shard"`
	Pin   uint64           `json:"pin"`
	Index uint64           `json:"index"`
	State fsm.HashState    `json:"state"`
}

// hashPiece reads the next piece of the replica here, no faster than checkRate for all together.
func (n *Node) hashPiece(ctx context.Context, q hashRequest) (next fsm.HashState, err error) {
	st, err := n.hosted(q.Shard)
	if err != nil {
		return next, err
	}
	ctx, cancel := withAnswerMargin(ctx)
	defer cancel()
	if err := n.checks.budget.WaitN(ctx, checkPiece); err != nil {
		return next, transport.Errorf(transport.CodeBusy, "node %s hashes other replicas: %v", n.cfg.ID, err)
	}
	v, err := st.Pinned(ctx, q.Pin, q.Index)
	if gone := (*fsm.PinGoneError)(nil); errors.Is(err, fsm.ErrNoPin) || errors.As(err, &gone) {
		return next, transport.Errorf(transport.CodeNoPin, "shard %d on node %s: %v", q.Shard, n.cfg.ID, err)
	}
	if err != nil {
		return next, err
	}
	defer v.Close()
	next, _, err = v.HashOn(q.State, checkPiece)
	if err != nil {
		return next, transport.Errorf(transport.CodeBadRequest, "%v", err)
	}
	return next, nil
}

var (
	descMismatch = prometheus.NewDesc("abacus_replica_mismatch", "Replicas of a shard led here that the last comparison found different, and that were not found equal since.", []string{"shard"}, nil)
	descChecked  = prometheus.NewDesc("abacus_replica_checked_timestamp_seconds", "When the replicas of a shard led here were compared last, in Unix time; 0: never.", []string{"shard"}, nil)
)

// checkCollector tells of the shards that are led here.
type checkCollector struct{ n *Node }

func (c checkCollector) Describe(ch chan<- *prometheus.Desc) { ch <- descMismatch; ch <- descChecked }

func (c checkCollector) Collect(ch chan<- prometheus.Metric) {
	for _, st := range c.n.host.all() {
		if !st.IsLeader() {
			continue
		}
		shard, r := fmt.Sprint(st.Shard()), c.n.checks.last(st.Shard())
		sh, _ := c.n.Router().Map().Shard(st.Shard())
		ch <- prometheus.MustNewConstMetric(descMismatch, prometheus.GaugeValue, float64(len(differing(sh, r.alarms()))), shard)
		ch <- prometheus.MustNewConstMetric(descChecked, prometheus.GaugeValue, float64(r.BeganMillis)/1000, shard)
	}
}
