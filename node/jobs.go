package node

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/abacusdb/abacus/compute"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// This file is the node as compute sees it: views of its replicas, the shards
// that it leads, the way to other leaders, and the ledger in shard 0.

// initCompute makes the three roles that a node plays in jobs.
func (n *Node) initCompute() {
	n.admission = compute.NewAdmission(compute.Limits{ScanBytes: n.cfg.JobScanBytes, Quiet: n.quiet})
	n.worker = compute.NewWorker(jobViews{n}, n.transport, n.admission, n.log)
	n.master = compute.NewMaster(jobShards{jobViews{n}}, n.transport, n.admission, n.log)
	n.jobs = compute.NewJobs(n.cfg.ID, jobLedger{n}, jobEnv{n}, n.cfg.Now, n.log)
}

// jobViews opens views of replicas here, for workers.
type jobViews struct{ n *Node }

func (v jobViews) View(ctx context.Context, shard uint32, minIndex uint64) (compute.View, error) {
	st, err := v.n.hosted(shard)
	if err != nil {
		return nil, err
	}
	if err := st.WaitApplied(ctx, minIndex); err != nil {
		return nil, err
	}
	return openJobView(st)
}

// jobView is an fsm.View that tells its slots in compute's words.
type jobView struct{ *fsm.View }

func (v jobView) Slots() []sharding.SlotRange { return ownedSlots(v.View) }

func (v jobViews) Pinned(ctx context.Context, shard uint32, pin compute.Pin) (compute.View, error) {
	st, err := v.n.hosted(shard)
	if err != nil {
		return nil, err
	}
	view, err := st.Pinned(ctx, pin.ID, pin.Index)
	if gone := (*fsm.PinGoneError)(nil); errors.Is(err, fsm.ErrNoPin) || errors.As(err, &gone) {
		return nil, transport.Errorf(transport.CodeNoPin, "shard %d on node %s: %v", shard, v.n.cfg.ID, err)
	}
	if err != nil {
		return nil, err
	}
	return jobView{view}, nil
}

func (v jobViews) Renew(shard uint32, pin compute.Pin) {
	if st := v.n.host.get(sharding.ShardID(shard)); st != nil {
		st.RenewPin(pin.ID, pin.Index)
	}
}

func (v jobViews) Hosts(shard uint32) bool { return v.n.host.get(shard) != nil }

func openJobView(st *store.Store) (compute.View, error) {
	v, err := st.View()
	if err != nil {
		return nil, err
	}
	return jobView{v}, nil
}

// jobShards finds the shards that this node leads, for masters.
type jobShards struct{ jobViews }

func (s jobShards) Master(_ context.Context, shard uint32) (compute.Shard, error) {
	st, err := s.n.hosted(shard)
	if err != nil {
		return nil, err
	}
	if !st.IsLeader() {
		leader, _ := st.Leader()
		return nil, transport.Errorf(transport.CodeNotLeader, "%s", leader)
	}
	return jobShard{s.n, st}, nil
}

type jobShard struct {
	n  *Node
	st *store.Store
}

func (s jobShard) Fence(ctx context.Context) (uint64, error) {
	index, err := s.st.ReadIndex(ctx)
	if err != nil {
		return 0, err
	}
	return index, s.st.WaitApplied(ctx, index) // View must stand at it
}

func (s jobShard) View() (compute.View, error) { return openJobView(s.st) }

func (s jobShard) Replicas() (list []compute.ReplicaState) {
	for _, m := range s.st.Status().Members {
		if !m.Voter {
			continue // still catching up
		}
		said, alive := s.n.peers.get(m.Node)
		self := m.Node == s.n.cfg.ID
		share := 0.0
		switch {
		case self:
			share = s.n.admission.Share()
		case said.Jobs != nil:
			share = said.Jobs.Share
		}
		// A master asks this while it works: one that has lost the lead must notice.
		list = append(list, compute.ReplicaState{Node: m.Node, Leader: self && s.st.IsLeader(), Alive: alive || self, Share: share})
	}
	// In the same order in all shards, by which single tasks are spread.
	slices.SortFunc(list, func(a, b compute.ReplicaState) int { return strings.Compare(a.Node, b.Node) })
	return list
}

func (s jobShard) Pinning() bool { return s.n.Router().Map().Level >= sharding.LevelPins }

func (s jobShard) Pin(ctx context.Context, id uint64, ttl time.Duration) (uint64, error) {
	return s.st.Pin(ctx, id, ttl)
}

// Change proposes on this replica, and nowhere else: a master that has lost the lead has nothing more to say.
func (s jobShard) Change(ctx context.Context, rows []compute.Row, drop []string, unpin []uint64) error {
	var conflict, full, left error
	if s.n.space.full() { // asked once: a result is there as a whole, or not
		full = transport.Errorf(transport.CodeUnavailable, "%s", diskProblem(s.n.space.now.Load().free))
	}
	cmds := make([]command.Command, 0, len(rows)+len(drop)+1)
	for _, row := range rows {
		if row.Spare && full != nil {
			left = full
			continue
		}
		cmds = append(cmds, recordSet(row.Name, row.Value, 0))
	}
	for _, name := range drop {
		cmds = append(cmds, recordDelete(name, -1))
	}
	for _, pin := range unpin {
		cmds = append(cmds, command.Command{Op: command.OpUnpin, Int: int64(pin)})
	}
	for len(cmds) > 0 {
		part := proposal(cmds)
		results, _, err := s.st.Propose(ctx, part)
		if err != nil {
			return err
		}
		for i, r := range results {
			if part[i].Op != command.OpRecordSet && part[i].Op != command.OpRecordDelete {
				continue
			}
			if err := recordError(string(part[i].Keys[0]), r); err != nil && conflict == nil {
				conflict = err
			}
		}
		cmds = cmds[len(part):]
	}
	return cmp.Or(conflict, left)
}

// sweepEvery is how often the leader of a shard looks for what its log remembers of jobs that have ended.
const sweepEvery = 30 * time.Second

// runSweep forgets what coordinators and masters that have died could not.
func (n *Node) runSweep(ctx context.Context, st *store.Store) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := n.sweep(ctx, st); err != nil && ctx.Err() == nil {
			n.log.Info("jobs that have ended are not forgotten yet", "shard", st.Shard(), "err", err)
		}
	}
}

func (n *Node) sweep(ctx context.Context, st *store.Store) error {
	ctx, cancel := context.WithTimeout(ctx, sweepEvery)
	defer cancel()
	v, err := st.View()
	if err != nil {
		return err
	}
	var rows []string
	v.Records(compute.WorkRows, func(name string, _ []byte, _ int64) bool {
		rows = append(rows, name)
		return true
	})
	v.Close()
	return n.jobs.Sweep(ctx, n.master, st.Shard(), rows)
}

// jobEnv is the cluster, for coordinators.
type jobEnv struct{ n *Node }

func (e jobEnv) Shards() (list []uint32) {
	for _, sh := range e.n.Router().Map().Shards {
		if len(sh.Slots) == 0 { // it may not even have a leader yet
			continue
		}
		list = append(list, sh.ID)
	}
	return list
}

func (e jobEnv) Level() int { return e.n.Router().Map().Level }

func (e jobEnv) CallLeader(ctx context.Context, shard uint32, m transport.Method, req []byte) ([]byte, error) {
	leader := e.n.Leader(shard)
	if leader == "" {
		return nil, transport.Errorf(transport.CodeUnavailable, "shard %d has no leader that is known here", shard)
	}
	return e.n.transport.Call(ctx, leader, transport.LaneCall, m, req)
}

// jobLedger keeps job records among shard 0's system records.
type jobLedger struct{ n *Node }

const jobRecords = "job/"

func (l jobLedger) Get(ctx context.Context, id string) (job.Record, int64, error) {
	list, err := l.n.records(ctx, recordsRequest{Shard: metaShard, Prefix: jobRecords + id, Exact: true})
	if err != nil {
		return job.Record{}, 0, err
	}
	for _, r := range list {
		if r.Name == jobRecords+id {
			rec, err := job.DecodeRecord(r.Value)
			return rec, r.Revision, err
		}
	}
	return job.Record{}, 0, transport.Errorf(transport.CodeNotFound, "there is no job %q", id)
}

func (l jobLedger) Put(ctx context.Context, rec job.Record, expectRev int64) (int64, error) {
	raw, err := rec.Encode()
	if err != nil {
		return 0, err
	}
	r, err := l.change(ctx, recordSet(jobRecords+rec.ID, raw, expectRev))
	return r.Int, err
}

func (l jobLedger) List(ctx context.Context) ([]job.Record, error) {
	return l.list(ctx, recordsRequest{})
}

// unfinished tells the records of jobs that have not ended by their bytes: a quotation mark that is in a text of a record has a backslash before it,
// so the first such name is the record's own. It stands near the beginning, before the reports of the tasks, which are most of a record.
var unfinished = recordsRequest{After: `"state":`, Then: []string{`"` + string(job.Queued) + `"`, `"` + string(job.Running) + `"`}}

func (l jobLedger) Unfinished(ctx context.Context) ([]job.Record, error) {
	recs, err := l.list(ctx, unfinished)
	return slices.DeleteFunc(recs, func(r job.Record) bool { return r.State.Finished() }), err // a node before v0.5 sends them all
}

func (l jobLedger) list(ctx context.Context, which recordsRequest) ([]job.Record, error) {
	which.Shard, which.Prefix = metaShard, jobRecords
	list, err := l.n.records(ctx, which)
	if err != nil {
		return nil, err
	}
	recs := make([]job.Record, 0, len(list))
	for _, r := range list {
		rec, err := job.DecodeRecord(r.Value)
		if err != nil { // written by a later version, say: the others go on
			l.n.log.Warn("job record not understood", "record", r.Name, "err", err)
			continue
		}
		recs = append(recs, rec)
	}
	return recs, nil
}

func (l jobLedger) Delete(ctx context.Context, id string, rev int64) error {
	_, err := l.change(ctx, recordDelete(jobRecords+id, rev))
	return err
}

func (l jobLedger) change(ctx context.Context, cmd command.Command) (command.Result, error) {
	results, err := l.n.Exec(ctx, metaShard, []command.Command{cmd})
	if err != nil {
		return command.Result{}, err
	}
	return results[0], recordError(string(cmd.Keys[0]), results[0])
}
