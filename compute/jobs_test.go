package compute

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// leadJobs runs a node's job loop as shard 0's leadership does; stop ends it and waits.
func (c *cluster) leadJobs(node string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	jobs := c.node(node).jobs
	go func() { defer close(done); jobs.RunLeader(ctx) }()
	stop = func() { cancel(); <-done }
	c.t.Cleanup(stop)
	return stop
}

func (c *cluster) submit(node string, s job.Spec) string {
	c.t.Helper()
	id, err := c.node(node).jobs.Submit(c.t.Context(), s)
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

func (c *cluster) result(node, id string) job.Record {
	c.t.Helper()
	rec, err := c.node(node).jobs.Result(c.t.Context(), id, time.Hour)
	if err != nil {
		c.t.Fatal(err)
	}
	return rec
}

func (c *cluster) status(id string) job.Record {
	c.t.Helper()
	rec, _, err := c.ledger.Get(c.t.Context(), id)
	if err != nil {
		c.t.Fatal(err)
	}
	return rec
}

// slowly makes every record take d.
func (c *cluster) slowly(d time.Duration) {
	c.hook(func(h *hooks) { h.scan = func(string, uint32, string) error { time.Sleep(d); return nil } })
}

func TestSubmitAndResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 4)
		c.listen()
		c.leadJobs("n1")
		c.fill("num/", 10)
		start := time.Now()
		id := c.submit("n3", job.Spec{Name: "squares", Prefix: "num/", As: "int", Map: "square", Reduce: "sum"})
		rec := c.result("n2", id)
		wantResult(t, rec, 285)
		if rec.Epoch != 1 || rec.Coordinator != "n1" || rec.Spec.Name != "squares" || rec.Spec.OnError != "fail" || rec.FinishedMillis < rec.StartedMillis {
			t.Errorf("record %+v", rec)
		}
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("took %s", took)
		}
		list, err := c.node("n2").jobs.List(t.Context())
		if err != nil || len(list) != 1 || list[0].ID != id || list[0].Shards != nil || list[0].Result.String() != "285" {
			t.Errorf("list %+v, %v", list, err)
		}
	})
}

// Without a word from the ledger's replicas the loop still finds jobs by itself.
func TestJobsAreFoundWithoutNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		c.leadJobs("n1")
		want := c.fill("a/", 10)
		time.Sleep(time.Second)
		wantResult(t, c.result("n2", c.submit("n2", sumOf("a/"))), want)
	})
}

func TestSubmitRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		jobs := c.node("n1").jobs
		var wrong *job.SpecError
		if _, err := jobs.Submit(t.Context(), job.Spec{Reduce: "sum"}); !errors.As(err, &wrong) || wrong.Field != "reduce" {
			t.Errorf("a sum of strings: %v", err)
		}
		for range maxWaiting {
			c.submit("n1", sumOf("a/"))
		}
		var full *QueueFullError
		_, err := jobs.Submit(t.Context(), sumOf("a/"))
		if !errors.As(err, &full) || full.RetryAfter <= 0 || transport.CodeOf(err) != transport.CodeBusy {
			t.Errorf("job %d: %v", maxWaiting+1, err)
		}
		time.Sleep(2 * waitingAge) // also when counted anew
		if _, err := jobs.Submit(t.Context(), sumOf("a/")); !errors.As(err, &full) {
			t.Errorf("job %d: %v", maxWaiting+1, err)
		}
		c.leadJobs("n1")
		time.Sleep(time.Minute)
		c.submit("n1", sumOf("a/"))
	})
}

// A queue that was full takes jobs as soon as some have begun; and many who ask at once count it once.
func TestFullQueueIsCountedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		for range maxWaiting {
			c.submit("n1", sumOf("a/"))
		}
		var full *QueueFullError
		if _, err := c.node("n1").jobs.Submit(t.Context(), sumOf("a/")); !errors.As(err, &full) {
			t.Fatal(err)
		}
		c.ledger.mu.Lock()
		clear(c.ledger.records)
		c.ledger.mu.Unlock()
		time.Sleep(2 * fullAge)
		c.submit("n1", sumOf("a/"))
	})
}

// A full queue still knows the jobs that are in it: a submit that is repeated
// because its answer was lost is not answered "not queued".
func TestFullQueueKnowsItsJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		jobs := c.node("n1").jobs
		mine := sumOf("a/")
		mine.ID = "mine"
		c.submit("n1", mine)
		for range maxWaiting - 1 {
			c.submit("n1", sumOf("a/"))
		}
		if id := c.submit("n1", mine); id != "mine" {
			t.Errorf("id %s", id)
		}
		other := sumOf("b/")
		other.ID = "mine"
		if _, err := jobs.Submit(t.Context(), other); transport.CodeOf(err) != transport.CodeRefused {
			t.Errorf("the id with another spec: %v", err)
		}
		other.ID = "new"
		var full *QueueFullError
		if _, err := jobs.Submit(t.Context(), other); !errors.As(err, &full) {
			t.Errorf("an id that is not queued: %v", err)
		}
	})
}

func TestSubmitIsIdempotent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		c.leadJobs("n1")
		s := sumOf("a/")
		s.ID = "mine"
		for range 3 {
			if id := c.submit("n1", s); id != "mine" {
				t.Errorf("id %s", id)
			}
			c.result("n1", "mine")
		}
		if rec := c.status("mine"); rec.Epoch != 1 {
			t.Errorf("ran %d times", rec.Epoch)
		}
		s.Prefix = "b/"
		if _, err := c.node("n1").jobs.Submit(t.Context(), s); transport.CodeOf(err) != transport.CodeRefused {
			t.Errorf("the id with another spec: %v", err)
		}
		if _, err := c.node("n1").jobs.Status(t.Context(), "nobody"); transport.CodeOf(err) != transport.CodeNotFound {
			t.Errorf("unknown job: %v", err)
		}
		if err := c.node("n1").jobs.Cancel(t.Context(), "nobody"); transport.CodeOf(err) != transport.CodeNotFound {
			t.Errorf("cancel of an unknown job: %v", err)
		}
	})
}

// The ledger answers "uncertain" to writes that it did and to writes that it
// did not do: every job is there once, and runs to its end.
func TestUncertainLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.listen()
		calls := 0
		c.ledger.uncertain = func() (answer, done bool) { // under the ledger's lock
			calls++
			return calls%2 == 0 || calls%3 == 0, calls%3 != 0
		}
		c.leadJobs("n1")
		want := c.fill("a/", 50)
		for range 10 {
			wantResult(t, c.result("n1", c.submit("n2", sumOf("a/"))), want)
		}
		if list, err := c.node("n1").jobs.List(t.Context()); err != nil || len(list) != 10 {
			t.Errorf("%d jobs, %v", len(list), err)
		}
	})
}

// A submit that may have been done, and then finds nobody to ask, must not be
// answered as if nothing was done: a client library would submit it once more.
func TestSubmitStaysUncertain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.ledger.uncertain = func() (answer, done bool) { // under the ledger's lock
			c.ledger.away = transport.Errorf(transport.CodeTimeout, "no leader")
			return true, true
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := c.node("n1").jobs.Submit(ctx, sumOf("a/")); transport.CodeOf(err) != transport.CodeUncertain {
			t.Errorf("got %v, want an uncertain error", err)
		}
	})
}

// At most maxRunning jobs at once, the oldest first.
func TestRunsAFewAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.listen()
		want := c.fill("a/", 100)
		c.slowly(10 * time.Millisecond)
		var ids []string
		for range 3 * maxRunning {
			ids = append(ids, c.submit("n2", sumOf("a/")))
			time.Sleep(time.Millisecond)
		}
		c.leadJobs("n1")
		most := 0
		for i, id := range ids {
			for !c.status(id).State.Finished() {
				recs, err := c.ledger.List(t.Context()) // all at one instant
				if err != nil {
					t.Fatal(err)
				}
				running := 0
				for _, rec := range recs {
					if rec.State == job.Running {
						running++
					}
				}
				most = max(most, running)
				time.Sleep(10 * time.Millisecond)
			}
			wantResult(t, c.status(id), want)
			if i+maxRunning+2 < len(ids) && c.status(ids[len(ids)-1]).State != job.Queued && i < maxRunning {
				t.Errorf("the last job ran before the %dth had finished", i)
			}
		}
		if most != maxRunning {
			t.Errorf("up to %d jobs ran at once, want %d", most, maxRunning)
		}
	})
}

// A cancel, from any node, stops a running job's workers within 200 ms.
func TestCancelRunningJob(t *testing.T) {
	for _, heard := range []bool{true, false} {
		t.Run(fmt.Sprintf("heard %v", heard), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 3, 4)
				within := 200 * time.Millisecond
				if heard {
					c.listen()
				} else {
					within = saveTick + 200*time.Millisecond // it notices when it saves progress
				}
				c.leadJobs("n1")
				for i := range 5_000 {
					c.put(fmt.Sprintf("a/%0300d", i), "1") // long enough for a worker to look around several times in a task
				}
				var last atomic.Int64
				c.hook(func(h *hooks) {
					h.scan = func(string, uint32, string) error {
						last.Store(time.Now().UnixNano())
						time.Sleep(400 * time.Microsecond)
						return nil
					}
				})
				id := c.submit("n1", sumOf("a/"))
				time.Sleep(100 * time.Millisecond)
				if rec := c.status(id); rec.State != job.Running {
					t.Fatalf("job %s", rec.State)
				}
				cancelled := time.Now()
				if err := c.node("n3").jobs.Cancel(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				rec := c.result("n2", id)
				if rec.State != job.Cancelled || rec.Result != nil || !errors.Is(rec.Err(), job.ErrCancelled) {
					t.Errorf("job %s, result %v", rec.State, rec.Result)
				}
				time.Sleep(5 * time.Second)
				if took := time.Unix(0, last.Load()).Sub(cancelled); took < 0 || took > within {
					t.Errorf("workers went on for %s", took)
				}
				if rec := c.status(id); rec.State != job.Cancelled || rec.Result != nil {
					t.Errorf("later: job %s", rec.State)
				}
				if err := c.node("n3").jobs.Cancel(t.Context(), id); err != nil {
					t.Errorf("second cancel: %v", err)
				}
			})
		})
	}
}

// What a job does can be seen before its first task is done: who runs what, how much was read, and about how much of all that is.
// And of a job that is cancelled nothing of it is left.
func TestRunningTasksAreSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 4)
		c.listen()
		c.leadJobs("n1")
		for i := range 4_000 {
			c.put(fmt.Sprintf("a/%0300d", i), "1")
		}
		c.hook(func(h *hooks) {
			h.scan = func(string, uint32, string) error { time.Sleep(40 * time.Millisecond); return nil }
		})
		id := c.submit("n1", sumOf("a/"))
		last, running := 0.0, 0
		for range 6 {
			time.Sleep(2500 * time.Millisecond)
			rec := c.status(id)
			p := rec.Progress
			want := float64(p.Records) / 4000
			if rec.State != job.Running || p.Share <= last || math.Abs(p.Share-want) > 0.05 || p.Bytes < 300*p.Records {
				t.Errorf("%s, %+v: the share was %.2f, and of the records it is %.2f", rec.State, p, last, want)
			}
			last = p.Share
			for _, s := range rec.Shards {
				for _, k := range s.Tasks {
					if k.Done || k.Share == 0 {
						continue
					}
					if running++; k.Node == "" || k.Role == "" || k.Attempts == 0 || k.Records == 0 || k.Millis < refreshTick.Milliseconds() || k.Share > 1 {
						t.Errorf("shard %d: %+v", s.Shard, k)
					}
				}
			}
		}
		if running < 10 {
			t.Errorf("%d tasks were seen to run", running)
		}
		if err := c.node("n3").jobs.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		rec := c.result("n2", id)
		if rec.State != job.Cancelled {
			t.Errorf("%s, %+v", rec.State, rec.Progress)
		}
		for _, s := range rec.Shards {
			for _, k := range s.Tasks {
				if !k.Done && (k.Node != "" || k.Records != 0 || k.Share != 0) {
					t.Errorf("when it has been cancelled, shard %d: %+v", s.Shard, k)
				}
			}
		}
	})
}

func TestCancelQueuedAndFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		c.listen()
		id := c.submit("n1", sumOf("a/"))
		if err := c.node("n1").jobs.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		c.leadJobs("n1")
		time.Sleep(time.Minute)
		if rec := c.status(id); rec.State != job.Cancelled || rec.Epoch != 0 {
			t.Errorf("job %s, epoch %d", rec.State, rec.Epoch)
		}
		id = c.submit("n1", sumOf("a/"))
		c.result("n1", id)
		if err := c.node("n1").jobs.Cancel(t.Context(), id); transport.CodeOf(err) != transport.CodeRefused || !strings.Contains(err.Error(), "already succeeded") {
			t.Errorf("cancel of a finished job: %v", err)
		}
		if rec := c.status(id); rec.State != job.Succeeded {
			t.Errorf("job %s", rec.State)
		}
	})
}

// The coordinator dies in the middle: the next leader of shard 0 starts the job
// again, and the old one's run, if it still goes on somewhere, changes nothing.
func TestCoordinatorDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3)
		c.listen()
		want := c.fill("a/", 1000)
		c.slowly(time.Millisecond)
		stop := c.leadJobs("n1")
		id := c.submit("n2", sumOf("a/"))
		time.Sleep(100 * time.Millisecond)
		old := c.status(id)
		if old.State != job.Running || old.Epoch != 1 {
			t.Fatalf("job %s, epoch %d", old.State, old.Epoch)
		}
		stop()
		if rec := c.status(id); rec.State != job.Running {
			t.Fatalf("job %s after its coordinator stopped", rec.State)
		}
		c.leadJobs("n3")
		time.Sleep(50 * time.Millisecond)
		if rec := c.status(id); rec.State != job.Running || rec.Epoch != 2 {
			t.Fatalf("job %s, epoch %d", rec.State, rec.Epoch)
		}
		wrong := job.Number("1")
		old.State, old.Result = job.Succeeded, &wrong
		if err := c.node("n1").jobs.save(t.Context(), old); transport.CodeOf(err) != transport.CodeConflict {
			t.Errorf("a superseded coordinator's result: %v", err)
		}
		rec := c.result("n2", id)
		wantResult(t, rec, want)
		if rec.Epoch != 2 || rec.Coordinator != "n3" {
			t.Errorf("epoch %d by %s", rec.Epoch, rec.Coordinator)
		}
		if err := c.node("n1").jobs.save(t.Context(), old); transport.CodeOf(err) != transport.CodeConflict {
			t.Errorf("a superseded coordinator's result: %v", err)
		}
		wantResult(t, c.status(id), want)
	})
}

// Two coordinators at once, as when an old leader has not noticed yet: the
// later epoch wins, masters serve it alone, and the answer is right.
func TestTwoCoordinators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3)
		want := c.fill("a/", 1000)
		c.slowly(time.Millisecond)
		c.leadJobs("n1")
		id := c.submit("n1", sumOf("a/"))
		time.Sleep(100 * time.Millisecond)
		c.leadJobs("n2")
		rec := c.result("n3", id)
		wantResult(t, rec, want)
		if rec.Epoch != 2 || rec.Coordinator != "n2" {
			t.Errorf("epoch %d by %s", rec.Epoch, rec.Coordinator)
		}
	})
}

// A job whose coordinators keep dying is given up.
func TestJobThatKillsItsCoordinators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		c.fill("a/", 100)
		c.slowly(time.Second)
		id := c.submit("n1", sumOf("a/"))
		for range maxEpochs {
			stop := c.leadJobs("n1")
			time.Sleep(time.Second)
			stop()
		}
		if rec := c.status(id); rec.State != job.Running || rec.Epoch != maxEpochs {
			t.Fatalf("job %s, epoch %d", rec.State, rec.Epoch)
		}
		c.leadJobs("n1")
		rec := c.result("n1", id)
		if rec.State != job.Failed || !strings.Contains(rec.Error, "lost its coordinator") || rec.FinishedMillis == 0 {
			t.Errorf("job %s: %q", rec.State, rec.Error)
		}
	})
}

// While a job runs, its record tells how far it is.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.listen()
		c.leadJobs("n1")
		want := c.fill("a/", 4000)
		c.slowly(5 * time.Millisecond)
		id := c.submit("n1", sumOf("a/"))
		var last job.Progress
		seen := map[job.Progress]bool{}
		for {
			rec, err := c.node("n2").jobs.Result(t.Context(), id, 100*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if rec.State.Finished() {
				wantResult(t, rec, want)
				break
			}
			if p := rec.Progress; p.TasksDone < last.TasksDone || p.Records < last.Records || rec.Result != nil {
				t.Errorf("progress went from %+v to %+v", last, p)
			}
			last = rec.Progress
			seen[last] = true
		}
		if len(seen) < 3 || last.Tasks != 18 || last.Shards != 2 {
			t.Errorf("progress %v", seen)
		}
	})
}

func TestResultWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		id := c.submit("n1", sumOf("a/"))
		start := time.Now()
		rec, err := c.node("n1").jobs.Result(t.Context(), id, 3*time.Second)
		if took := time.Since(start); err != nil || rec.State != job.Queued || took < 3*time.Second || took > 3500*time.Millisecond {
			t.Errorf("job %s after %s, %v", rec.State, took, err)
		}
		start = time.Now()
		if rec, err = c.node("n1").jobs.Result(t.Context(), id, 0); err != nil || rec.State != job.Queued || time.Since(start) != 0 {
			t.Errorf("job %s after %s, %v", rec.State, time.Since(start), err)
		}
	})
}

func TestTooOld(t *testing.T) {
	var recs []job.Record
	for i := range 10 {
		recs = append(recs, job.Record{ID: fmt.Sprint(i), State: job.Succeeded, FinishedMillis: int64(i + 1)})
	}
	recs = append(recs, job.Record{ID: "running", State: job.Running}, job.Record{ID: "queued", State: job.Queued})
	one, err := recs[0].Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		count, size int
		want        []string
	}{
		{10, 1 << 20, nil},
		{8, 1 << 20, []string{"1", "0"}},
		{10, 8*len(one) + 20, []string{"1", "0"}},
		{0, 1 << 20, []string{"9", "8", "7", "6", "5", "4", "3", "2", "1", "0"}},
	} {
		if got := tooOld(recs, c.count, c.size); !slices.Equal(got, c.want) {
			t.Errorf("%d records and %d bytes: drop %v, want %v", c.count, c.size, got, c.want)
		}
	}
}

// The loop deletes the records that tooOld names.
func TestOldJobsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		for i := range maxFinished + 5 {
			rec := job.Record{ID: fmt.Sprintf("j%04d", i), State: job.Succeeded, FinishedMillis: int64(i + 1)}
			if _, err := c.ledger.Put(t.Context(), rec, 0); err != nil {
				t.Fatal(err)
			}
		}
		c.leadJobs("n1")
		time.Sleep(time.Second)
		recs, err := c.ledger.List(t.Context())
		if err != nil || len(recs) != maxFinished || slices.ContainsFunc(recs, func(r job.Record) bool { return r.ID < "j0005" }) {
			t.Errorf("%d records are kept, %v", len(recs), err)
		}
		// Soon after they have become too many again, not only after a minute.
		began := time.Now()
		for i := range pruneEnded {
			if _, err := c.node("n1").jobs.Submit(t.Context(), job.Spec{ID: fmt.Sprintf("k%04d", i), Reduce: "count"}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.node("n1").jobs.Result(t.Context(), fmt.Sprintf("k%04d", i), time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		recs, err = c.ledger.List(t.Context())
		if took := time.Since(began); err != nil || len(recs) != maxFinished || took > pruneTick/2 {
			t.Errorf("%d records are kept %v after %d more jobs, %v", len(recs), took, pruneEnded, err)
		}
	})
}

// A job that fails or is cancelled while shards are at it leaves nothing in them: no rows, and no pins, of which a replica has a few only.
func TestUnfinishedPartsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.fill("a/", 2000)
		c.listen()
		c.leadJobs("n1")
		c.hook(func(h *hooks) {
			h.scan = func(_ string, shard uint32, _ string) error {
				if shard == 0 {
					time.Sleep(time.Millisecond)
				}
				return nil
			}
		})
		left := func(what string) {
			t.Helper()
			time.Sleep(3 * time.Second)
			c.mu.Lock()
			defer c.mu.Unlock()
			for shard, rows := range c.rows {
				if len(rows) > 0 {
					t.Errorf("%s: %d rows in shard %d", what, len(rows), shard)
				}
			}
			for _, n := range c.nodes {
				for shard, pins := range n.pins {
					if len(pins) > 0 {
						t.Errorf("%s: %s has %d pins of shard %d", what, n.id, len(pins), shard)
					}
				}
			}
		}
		s := sumOf("a/")
		s.GroupBy, s.MaxGroups = "key", 900 // a task has too few for that
		if rec := c.result("n1", c.submit("n1", s)); rec.State != job.Failed || rec.Shards[0].Done {
			t.Fatalf("job %s, shards %+v", rec.State, rec.Shards)
		}
		left("failed")
		id := c.submit("n1", sumOf("a/"))
		time.Sleep(100 * time.Millisecond)
		if err := c.node("n2").jobs.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		left("cancelled")
	})
}

// A thousand jobs, submitted at once at two nodes, while a third, which leads a shard and works for both, dies again and again, and the coordinator
// goes from node to node: each is taken or refused for now, each that was taken ends with the right answer, and nobody remembers any of it.
func TestThousandJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const all = 1000 / slowed
		c := newCluster(t, 4, 2)
		c.listen()
		want := strconv.Itoa(c.fill("a/", 60))
		c.lead(1, "n3")
		var clients sync.WaitGroup
		var wrong, refused atomic.Int32
		for i := range all {
			clients.Go(func() {
				node, s := c.node([]string{"n1", "n2"}[i%2]), sumOf("a/")
				s.ID, s.Cache, s.TasksPerReplica = fmt.Sprintf("j%d", i), job.CacheOff, 1+i%3
				for {
					_, err := node.jobs.Submit(t.Context(), s)
					var full *QueueFullError
					if errors.As(err, &full) {
						refused.Add(1)
						time.Sleep(full.RetryAfter + time.Duration(i)*time.Millisecond)
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					break
				}
				rec, err := node.jobs.Result(t.Context(), s.ID, time.Hour)
				if err != nil || rec.State != job.Succeeded || rec.Result.String() != want {
					if wrong.Add(1) < 5 {
						t.Errorf("%s: %v, %s, %v: %s", s.ID, err, rec.State, rec.Result, rec.Error)
					}
				}
			})
		}
		over, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for i := 0; ; i++ {
				stop := c.leadJobs([]string{"n1", "n2"}[i%2])
				for range 3 {
					select {
					case <-over:
						stop()
						return
					case <-time.After(700 * time.Millisecond):
					}
					c.kill("n3")
					c.lead(1, "n4")
					time.Sleep(300 * time.Millisecond)
					c.start("n3")
					c.lead(1, "n3")
				}
				stop()
			}
		}()
		clients.Wait()
		close(over)
		<-ended
		if wrong.Load() > 0 || slowed == 1 && refused.Load() == 0 {
			t.Errorf("%d of %d jobs went wrong; %d times one was refused for now", wrong.Load(), all, refused.Load())
		}
	})
}
