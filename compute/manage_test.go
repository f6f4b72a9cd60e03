package compute

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// Only what has ended is deleted, and only once; the id is then free.
func TestDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.listen()
		jobs := c.node("n1").jobs
		s := sumOf("a/")
		s.ID = "mine"
		c.submit("n1", s)
		if err := jobs.Delete(t.Context(), "mine"); transport.CodeOf(err) != transport.CodeRefused || !strings.Contains(err.Error(), "cancel it first") {
			t.Errorf("a waiting job: %v", err)
		}
		c.leadJobs("n2")
		c.result("n1", "mine")
		if err := jobs.Delete(t.Context(), "mine"); err != nil {
			t.Fatal(err)
		}
		if err := jobs.Delete(t.Context(), "mine"); transport.CodeOf(err) != transport.CodeNotFound {
			t.Errorf("a second time: %v", err)
		}
		s.Prefix = "b/"
		c.submit("n1", s)
		if rec := c.result("n1", "mine"); rec.Spec.Prefix != "b/" || rec.State != job.Succeeded {
			t.Errorf("the id again: %+v", rec)
		}
	})
}

// A delete whose answer was lost finds the job gone, and that is its success.
func TestDeleteWithLostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		c.listen()
		c.leadJobs("n1")
		id := c.submit("n1", sumOf("a/"))
		c.result("n1", id)
		ledger := &forgetful{memLedger: c.ledger}
		jobs := NewJobs("n2", ledger, nil, time.Now, c.node("n1").jobs.log)
		if err := jobs.Delete(t.Context(), id); err != nil || ledger.deleted != 1 {
			t.Errorf("%d times: %v", ledger.deleted, err)
		}
	})
}

// forgetful does not answer to deletes.
type forgetful struct {
	*memLedger
	deleted int
}

func (l *forgetful) Delete(ctx context.Context, id string, rev int64) error {
	l.deleted++
	if err := l.memLedger.Delete(ctx, id, rev); err != nil {
		return err
	}
	return transport.Errorf(transport.CodeUncertain, "the answer was lost")
}

// The same spec runs again under another id, once however often it is asked for.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.listen()
		want := c.fill("a/", 20)
		jobs := c.node("n1").jobs
		s := sumOf("a/")
		s.ID, s.Name = "first", "a name"
		c.submit("n1", s)
		if _, err := jobs.Retry(t.Context(), "first", ""); transport.CodeOf(err) != transport.CodeRefused {
			t.Errorf("of a job that waits: %v", err)
		}
		c.leadJobs("n1")
		c.result("n1", "first")
		for range 2 {
			if id, err := jobs.Retry(t.Context(), "first", "second"); id != "second" || err != nil {
				t.Fatalf("%q, %v", id, err)
			}
			rec := c.result("n1", "second")
			wantResult(t, rec, want)
			if rec.Spec.Name != "a name" || rec.Epoch != 1 {
				t.Errorf("%+v", rec)
			}
		}
		if id, err := jobs.Retry(t.Context(), "second", ""); err != nil || id == "second" || id == "" {
			t.Errorf("without an id: %q, %v", id, err)
		}
		var wrong *job.SpecError
		if _, err := jobs.Retry(t.Context(), "first", "first"); !errors.As(err, &wrong) {
			t.Errorf("under its own id: %v", err)
		}
		if _, err := jobs.Retry(t.Context(), "nobody", ""); transport.CodeOf(err) != transport.CodeNotFound {
			t.Errorf("of no job: %v", err)
		}
	})
}

// A job's life is in its record: who submitted it, who ran it, how it ended or who ended it.
func TestEventsOfAJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.listen()
		stop := c.leadJobs("n1")
		c.fill("a/", 20)
		c.slowly(time.Second)
		id := c.submit("n2", sumOf("a/"))
		time.Sleep(1500 * time.Millisecond)
		stop()
		c.leadJobs("n3")
		time.Sleep(1500 * time.Millisecond)
		if err := c.node("n2").jobs.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		c.hook(func(h *hooks) { h.scan = nil })
		done := c.result("n1", c.submit("n1", sumOf("b/")))
		for id, want := range map[string]string{
			id:      "submitted by way of n2; started by n1, run 1; started by n3, run 2; cancelled by way of n2",
			done.ID: fmt.Sprintf("submitted by way of n1; started by n3, run 1; succeeded: 0 records in %d tasks on 2 shards", done.Progress.Tasks),
		} {
			var texts []string
			for _, e := range c.status(id).Events {
				texts = append(texts, e.Text)
			}
			if got := strings.Join(texts, "; "); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		}
	})
}

func TestExplain(t *testing.T) {
	spec := job.Spec{Prefix: "a/"}.WithDefaults()
	replica := func(node string, leader, alive bool) ReplicaState {
		return ReplicaState{Node: node, Leader: leader, Alive: alive}
	}
	got := explain(spec, []ShardFacts{
		{Shard: 0, Slots: "0-99", Records: 1_000_000, Bytes: 1 << 20, Replicas: []ReplicaState{replica("n1", false, true), replica("n2", true, true), replica("n3", false, false)}},
		{Shard: 1, Slots: "100-200", Replicas: []ReplicaState{replica("n1", false, true)}},
	})
	want := job.Explanation{Spec: spec, Records: 1_000_000, Bytes: 1 << 20, Tasks: 2*defaultTasksPerReplica + 1, Nodes: []string{"n1", "n2"},
		Shards: []job.ExplainedShard{
			{Shard: 0, Slots: "0-99", Master: "n2", Nodes: []string{"n2", "n1"}, Records: 1_000_000, Bytes: 1 << 20, Tasks: 2 * defaultTasksPerReplica},
			{Shard: 1, Slots: "100-200", Nodes: []string{"n1"}, Tasks: 1},
		}}
	if len(got.Notes) != 2 || !strings.Contains(got.Notes[0], "shard 1 has no leader") || !strings.Contains(got.Notes[1], "prefix") {
		t.Errorf("notes %q", got.Notes)
	}
	got.Notes = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if none := explain(job.Spec{}.WithDefaults(), nil); none.Shards == nil || none.Nodes == nil || len(none.Notes) != 0 {
		t.Errorf("of nothing: %+v", none)
	}
	jobs := newCluster(t, 1, 1).node("n1").jobs
	if e, err := jobs.Explain(job.Spec{}, nil); err != nil || e.Spec.Reduce != job.ReduceCount {
		t.Errorf("%+v, %v", e, err)
	}
	var wrong *job.SpecError
	for _, bad := range []job.Spec{{Reduce: "multiply"}, {As: job.AsJSON, Map: "v.price * nosuch"}} { // as a submit is refused
		if _, err := jobs.Explain(bad, nil); !errors.As(err, &wrong) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
