package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/compute"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/fsm/command"
)

// runJob submits a job at a node and waits for its end.
func runJob(t *testing.T, n *Node, spec job.Spec) job.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	id, err := n.jobs.Submit(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := n.jobs.Result(ctx, id, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// Money moves between accounts of one slot all the time. Jobs add it all up on leaders and followers: each shard at one
// index of its log, so that not a penny is missing or there twice. Afterwards no shard remembers anything of them, and nothing is pinned.
func TestJobsReadOneIndex(t *testing.T) {
	nodes, _ := three(t)
	untilBalanced(t, nodes[0])
	const banks, accounts, each = 24, 40, 100
	account := func(bank, i int) string { return fmt.Sprintf("bank/{%d}/%d", bank, i) }
	for bank := range banks {
		for i := range accounts {
			put(t, nodes[0], account(bank, i), fmt.Sprint(each))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var movers sync.WaitGroup
	defer movers.Wait()
	defer cancel()
	for m := range 4 {
		movers.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(m), 1))
			for ctx.Err() == nil {
				bank, amount := rnd.IntN(banks), rnd.Int64N(50)
				from, to := account(bank, rnd.IntN(accounts)), account(bank, rnd.IntN(accounts))
				slot, shard := nodes[m%3].Router().Locate([]byte(from))
				parts := command.AppendCommands(nil, []command.Command{
					{Op: command.OpIncr, Slot: slot, Keys: [][]byte{[]byte(from)}, Int: -amount},
					{Op: command.OpIncr, Slot: slot, Keys: [][]byte{[]byte(to)}, Int: amount},
				})
				_, _ = nodes[m%3].Exec(ctx, shard, []command.Command{{Op: command.OpMulti, Slot: slot, Values: [][]byte{parts, command.AppendIndexes(nil, nil)}}})
			}
		})
	}
	roles, last := map[string]int{}, map[uint32]uint64{}
	for i := range 10 {
		rec := runJob(t, nodes[i%3], job.Spec{Prefix: "bank/", As: job.AsInt, Reduce: job.ReduceSum, TasksPerReplica: 4})
		if err := rec.Err(); err != nil || rec.Result.String() != fmt.Sprint(banks*accounts*each) {
			t.Fatalf("job %d: %v, %v", i, rec.Result, err)
		}
		for _, s := range rec.Shards {
			if !s.Exact || s.Index <= last[s.Shard] || len(s.Tasks) < 4 {
				t.Errorf("job %d: shard %d at index %d (before %d), exact: %t, %d tasks", i, s.Shard, s.Index, last[s.Shard], s.Exact, len(s.Tasks))
			}
			last[s.Shard] = s.Index
			for _, task := range s.Tasks {
				roles[task.Role]++
				if task.Index != s.Index {
					t.Errorf("job %d: shard %d was read at %d, task %d at %d", i, s.Shard, s.Index, task.ID, task.Index)
				}
			}
		}
	}
	// Of a part's first five tasks followers get four; of the rest, which take no time, who is quicker.
	if roles[job.RoleLeader] == 0 || roles[job.RoleFollower] < roles[job.RoleLeader] {
		t.Errorf("tasks by role: %v", roles)
	}
	until(t, "all tell what they can spare for jobs", func() error {
		for _, v := range nodes[0].clusterStatus().Nodes {
			if v.Jobs == nil || v.Jobs.Share <= 0 || v.Jobs.Share > 1 {
				return fmt.Errorf("%s: %+v", v.ID, v.Jobs)
			}
		}
		return nil
	})
	cancel()
	movers.Wait()
	until(t, "shards forget the jobs", func() error {
		for _, n := range nodes {
			for _, st := range n.host.all() {
				if pins := st.Pins(); pins.Live > 0 {
					return fmt.Errorf("%s pins %d views of shard %d", n.cfg.ID, pins.Live, st.Shard())
				}
				v, err := st.View()
				if err != nil {
					return err
				}
				left := ""
				v.Records("job-work/", func(name string, _ []byte, _ int64) bool { left = name; return false })
				v.Close()
				if left != "" {
					return fmt.Errorf("shard %d on %s remembers %s", st.Shard(), n.cfg.ID, left)
				}
			}
		}
		return nil
	})
}

// Which records are of jobs that have not ended is seen without decoding them: whatever texts are in them.
func TestUnfinishedIsSeenInTheBytes(t *testing.T) {
	q, open := unfinished, `"state":"queued"`
	for _, state := range []job.State{job.Queued, job.Running, job.Succeeded, job.Failed, job.Cancelled} {
		rec := job.Record{ID: "j", State: state, Error: open, BadKeys: []string{open}, Spec: job.Spec{Prefix: open, Filter: open}}
		rec.Log(time.Now(), open)
		value, err := rec.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if q.wants(value) == state.Finished() {
			t.Errorf("%s: wanted %v", state, q.wants(value))
		}
	}
	if all := new(recordsRequest); !all.wants(nil) {
		t.Error("who asks for all gets none")
	}
}

// A few keys need no pin and no log: their leader reads them, at one index all the same.
func TestSmallJobsStayAtTheLeader(t *testing.T) {
	nodes, _ := three(t)
	untilBalanced(t, nodes[0]) // a leadership that moves writes, too
	put(t, nodes[0], "few/1", "x")
	applied := func() (sum uint64) {
		for _, st := range nodes[0].host.all() {
			if st.Shard() != metaShard {
				sum += st.Applied()
			}
		}
		return sum
	}
	before := applied()
	rec := runJob(t, nodes[1], job.Spec{Prefix: "few/", Reduce: job.ReduceCount})
	if rec.Err() != nil || rec.Result.String() != "1" {
		t.Fatalf("%v, %v", rec.Result, rec.Err())
	}
	for _, s := range rec.Shards {
		if !s.Exact || len(s.Tasks) != 1 || s.Tasks[0].Role != job.RoleLeader {
			t.Errorf("shard %+v", s)
		}
	}
	if n := applied() - before; n > 4 { // entries for the clock may come
		t.Errorf("a small job wrote %d entries", n)
	}
	if strings.Contains(rec.Note, "no key") {
		t.Error(rec.Note)
	}
}

// Where a disk is nearly full, jobs read on, and what claims them is written; results of tasks, which are for the death of a master, are not.
func TestResultsStayOffAFullDisk(t *testing.T) {
	cfg := testConfig(t, "n1")
	cfg.Bootstrap, cfg.MinFreeDisk = true, 1<<60
	n := open(t, cfg)
	until(t, "it leads", func() error {
		for _, sh := range n.Router().Map().Shards {
			if n.Leader(sh.ID) == "" {
				return fmt.Errorf("shard %d has no leader", sh.ID)
			}
		}
		return nil
	})
	if rec := runJob(t, n, job.Spec{Reduce: job.ReduceCount}); rec.Err() != nil || rec.Result.String() != "0" {
		t.Errorf("a job: %v, %v", rec.Result, rec.Err())
	}
	st := n.host.get(metaShard)
	rows := []compute.Row{{Name: compute.WorkRows + "x/1/c", Value: []byte("c")}, {Name: compute.WorkRows + "x/1/t", Value: []byte("t"), Spare: true}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := (jobShard{n, st}).Change(ctx, rows, nil, nil); err == nil || !strings.Contains(err.Error(), "nearly full") {
		t.Errorf("error %v, want that the disk is nearly full", err)
	}
	v, err := st.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var names []string
	v.Records(compute.WorkRows, func(name string, _ []byte, _ int64) bool { names = append(names, name); return true })
	if !slices.Equal(names, []string{rows[0].Name}) {
		t.Errorf("there are %q, want the claim alone", names)
	}
}
