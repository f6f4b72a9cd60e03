//go:build tools

package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/compute/job/jobtest"
)

// TestToolsJobShapes asks the same random questions of the same records in three clusters: one node with one shard; three nodes with four
// shards, which are split while jobs run; five nodes with three replicas of sixteen shards, one of which is killed and started again and again.
// Each job is cut into as many tasks as chance wills, and no answer comes from a cache. All answers are the same to the last byte, and so is
// what is said of records that were filtered out or could not be read.
func TestToolsJobShapes(t *testing.T) {
	const records, each = 400, 90
	clusters := []*proc.Cluster{
		startCluster(t, proc.Config{Nodes: 1, Shards: 1, Replicas: 1}),
		startCluster(t, proc.Config{Nodes: 3, Shards: 4, Replicas: 3}),
		startCluster(t, proc.Config{Nodes: 5, Shards: 16, Replicas: 3}),
	}
	clients := make([]*client.Client, len(clusters))
	for i, c := range clusters {
		clients[i] = open(t, c)
	}
	var (
		answered, failed, tasks, moved int
		down                           *proc.Node
		rnd                            = rand.New(rand.NewPCG(7, 17))
	)
	for _, as := range jobtest.Ways {
		rows := jobtest.Rows(rnd, as, records)
		for _, cl := range clients {
			putRows(t, cl, rows)
		}
		if as == job.AsInt {
			cli(t, clusters[1].Node(1), "shard", "split", "--all", "--timeout", "30s").must(t)
		}
		for n := range each {
			switch largest := clusters[2]; n % 30 {
			case 10:
				down = largest.Node(1 + rnd.IntN(5))
				if err := down.Kill(); err != nil {
					t.Fatal(err)
				}
			case 20:
				if err := down.Start(); err != nil {
					t.Fatal(err)
				}
			case 29:
				waitReady(t, largest)
			}
			s := jobtest.Spec(rnd, as)
			var want string
			for i, cl := range clients {
				s.TasksPerReplica, s.Cache = 1+rnd.IntN(8), job.CacheOff
				rec, err := runJob(t, cl, s)
				if errors.Is(err, client.ErrBadJob) {
					want = ""
					break // a combination that makes no sense
				}
				if err != nil {
					t.Fatalf("cluster %d, %+v: %v", i+1, s, err)
				}
				if got := outcome(t, rec); i == 0 {
					want = got
				} else if got != want {
					t.Errorf("cluster %d, %+v:\n%s\none node says\n%s", i+1, s, got, want)
				}
				for _, shard := range rec.Shards {
					tasks += len(shard.Tasks)
					for _, task := range shard.Tasks {
						moved += len(task.FailedOn)
					}
				}
				if i == 0 && rec.State == job.Succeeded {
					answered++
				} else if i == 0 {
					failed++
				}
			}
		}
		for _, cl := range clients {
			deleteRows(t, cl, rows)
		}
	}
	t.Logf("%d jobs answered and %d failed alike in all clusters, with %d tasks, %d attempts of which were lost", answered, failed, tasks, moved)
	if answered < each || failed == 0 || tasks < 20*answered {
		t.Errorf("%d answers, %d failures, %d tasks: too few to say something", answered, failed, tasks)
	}
}

// outcome is all that a job says of its records. Why a job failed depends on which task was first to.
func outcome(t *testing.T, rec job.Record) string {
	t.Helper()
	if rec.State != job.Succeeded {
		return fmt.Sprint(rec.State, " ", rec.Code)
	}
	b, err := json.Marshal([]any{rec.State, rec.Result, rec.Note, rec.Records, rec.Filtered, rec.Bad, rec.BadKeys})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func runJob(t *testing.T, cl *client.Client, s job.Spec) (job.Record, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id, err := cl.SubmitJob(ctx, s)
	if err != nil {
		return job.Record{}, err
	}
	return cl.JobWait(ctx, id, nil)
}

func putRows(t *testing.T, cl *client.Client, rows []jobtest.Row) {
	t.Helper()
	cmds := make([]client.Cmd, len(rows))
	for i, r := range rows {
		cmds[i] = client.Command("SET", r.Key, r.Value)
	}
	for _, r := range cl.DoMulti(timeout(t, time.Minute), cmds) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}

func deleteRows(t *testing.T, cl *client.Client, rows []jobtest.Row) {
	t.Helper()
	keys := make([]string, len(rows))
	for i, r := range rows {
		keys[i] = r.Key
	}
	if n, err := cl.Del(timeout(t, time.Minute), keys...); err != nil || n != int64(len(rows)) {
		t.Fatalf("%d of %d records deleted: %v", n, len(rows), err)
	}
}
