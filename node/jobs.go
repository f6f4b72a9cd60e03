package node

import (
	"context"

	"github.com/abacusdb/abacus/compute"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// This file is the node as compute sees it: views of its replicas, the shards
// that it leads, the way to other leaders, and the ledger in shard 0.

// initCompute makes the three roles that a node plays in jobs.
func (n *Node) initCompute() {
	n.worker = compute.NewWorker(jobViews{n}, n.transport, n.log)
	n.master = compute.NewMaster(jobShards{n}, n.transport, n.log)
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
	return st.View()
}

// jobShards finds the shards that this node leads, for masters.
type jobShards struct{ n *Node }

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

func (s jobShard) View() (compute.View, error) { return s.st.View() }

func (s jobShard) Slots() []sharding.SlotRange {
	sh, _ := s.n.Router().Map().Shard(s.st.Shard())
	return sh.Slots
}

func (s jobShard) Replicas() (list []compute.ReplicaState) {
	for _, m := range s.st.Status().Members {
		if !m.Voter {
			continue // still catching up
		}
		_, alive := s.n.peers.get(m.Node)
		self := m.Node == s.n.cfg.ID
		// A master asks this while it works: one that has lost the lead must notice.
		list = append(list, compute.ReplicaState{Node: m.Node, Leader: self && s.st.IsLeader(), Alive: alive || self})
	}
	return list
}

// jobEnv is the cluster, for coordinators.
type jobEnv struct{ n *Node }

func (e jobEnv) Shards() (list []uint32) {
	for _, sh := range e.n.Router().Map().Shards {
		list = append(list, sh.ID)
	}
	return list
}

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
	list, err := l.n.records(ctx, recordsRequest{Shard: metaShard, Prefix: jobRecords + id})
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
	list, err := l.n.records(ctx, recordsRequest{Shard: metaShard, Prefix: jobRecords})
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
	_, err := l.change(ctx, command.Command{Op: command.OpRecordDelete, Keys: [][]byte{[]byte(jobRecords + id)}, Int: rev})
	return err
}

func (l jobLedger) change(ctx context.Context, cmd command.Command) (command.Result, error) {
	results, err := l.n.Exec(ctx, metaShard, []command.Command{cmd})
	if err != nil {
		return command.Result{}, err
	}
	return results[0], recordError(string(cmd.Keys[0]), results[0])
}
