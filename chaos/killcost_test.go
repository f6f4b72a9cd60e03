//go:build tools

package chaos_test

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
)

// TestToolsKillCost kills a node in the middle of a job, by SIGKILL: once one that only works, once the master of a shard, once the
// coordinator, which is the leader of shard 0. The answer is the same, and comes at most two seconds, and the time of the tasks that the node had in hand,
// later than from the nodes that are left when they do all of the job.
func TestToolsKillCost(t *testing.T) {
	const records = 1_200_000
	c := startCluster(t, proc.Config{Nodes: 3, Shards: 2, Replicas: 3})
	path := writeFile(t, "texts", func(w io.Writer) {
		for i := range records {
			fmt.Fprintf(w, "word%d %s", i%500, strings.Repeat("and one more ", 12))
			fmt.Fprintln(w, i%7)
		}
	})
	cli(t, c.Node(1), "import", "--format", "lines", "--prefix", "k/", path).must(t)
	// The filter, which all records pass, is work: the job has to last for some seconds, or it is nearly done when it is known that a third is.
	s := job.Spec{Prefix: "k/", Filter: `value re "^word[0-9]+ (and one more )+[0-6]$"`, FlatMap: job.FlatMapWords, GroupBy: job.MapLower, Reduce: job.ReduceCount, TasksPerReplica: job.MaxTasksPerReplica, Cache: job.CacheOff}

	// run runs the job by way of a node; when a third of it is done, then is called.
	run := func(n *proc.Node, then func()) (rec job.Record, took time.Duration) {
		t.Helper()
		cl, err := client.Open(client.Config{Addrs: []string{n.Addrs().Client}, NoRouting: true, Timeout: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		ctx := timeout(t, 2*time.Minute)
		began := time.Now()
		id, err := cl.SubmitJob(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		if then != nil {
			eventually(t, time.Minute, "a third of the tasks are done", func() bool {
				rec, err := cl.JobStatus(ctx, id)
				return err == nil && rec.Progress.Tasks > 0 && (rec.State.Finished() || 3*rec.Progress.TasksDone >= rec.Progress.Tasks)
			})
			then()
		}
		if rec, err = cl.JobWait(ctx, id, nil); err == nil {
			err = rec.Err()
		}
		if err != nil {
			t.Fatalf("the job: %v", err)
		}
		return rec, time.Since(began)
	}
	leader := func(shard uint32) *proc.Node {
		t.Helper()
		n := c.Leader(timeout(t, 30*time.Second), shard)
		if n == nil {
			t.Fatalf("shard %d has no leader", shard)
		}
		return n
	}
	// apart waits until the shards have different leaders, as they have when all nodes are well.
	apart := func() {
		t.Helper()
		waitReady(t, c)
		eventually(t, 30*time.Second, "two nodes lead", func() bool { return leader(0) != leader(1) })
	}

	apart()
	whole, calm := run(leader(0), nil)
	hits := 0
	for _, tc := range []struct {
		name   string
		victim func() *proc.Node
	}{
		{"a worker", func() *proc.Node {
			return c.Nodes()[slices.IndexFunc(c.Nodes(), func(n *proc.Node) bool { return n != leader(0) && n != leader(1) })]
		}},
		{"the master of shard 1", func() *proc.Node { return leader(1) }},
		{"the coordinator", func() *proc.Node { return leader(0) }},
	} {
		apart()
		victim := tc.victim()
		other := c.Node(1 + victim.N%3)
		killed := false
		rec, took := run(other, func() {
			if err := victim.Kill(); err != nil {
				t.Fatal(err)
			}
			killed = true
		})
		_, left := run(other, nil) // on the nodes that are left
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		longest, lost := int64(0), 0
		for _, shard := range rec.Shards {
			for _, task := range shard.Tasks {
				longest = max(longest, task.Millis)
				lost += len(task.FailedOn)
			}
			if shard.Attempts > 1 {
				lost++
			}
		}
		hits += lost
		// A node works at one task for each processor at most.
		bound := max(calm, left) + 2*time.Duration(longest)*time.Millisecond + 2*time.Second
		t.Logf("%s killed: %v, at most %v; %v with three nodes and %v with the two that were left; %d attempts and masters lost, the longest task took %d ms",
			tc.name, took.Round(time.Millisecond), bound.Round(time.Millisecond), calm.Round(time.Millisecond), left.Round(time.Millisecond), lost, longest)
		if !killed || took > bound {
			t.Errorf("%s killed (%v): the job took %v, want at most %v", tc.name, killed, took, bound)
		}
		if rec.Result.String() != whole.Result.String() || rec.Records != records {
			t.Errorf("%s killed: %v over %d records, want %v over %d", tc.name, rec.Result, rec.Records, whole.Result, records)
		}
	}
	if hits == 0 {
		t.Error("no kill hit anything: this shows nothing")
	}
}
