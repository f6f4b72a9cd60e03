package compute

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// The article's example, over three nodes and eight shards.
func TestSquareSum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 8)
		c.fill("num/", 10)
		c.put("other", "not a number")
		rec := c.run(t.Context(), "n2", job.Spec{Prefix: "num/", As: "int", Map: "square", Reduce: "sum"})
		wantResult(t, rec, 285)
		if rec.Records != 10 || rec.Progress.TasksDone != rec.Progress.Tasks || rec.Progress.ShardsDone != 8 || rec.Progress.Records != 10 {
			t.Errorf("record %+v", rec)
		}
		if rec.Bytes != 60 || rec.Progress.Bytes != 60 { // of num/0 and 0, and nine more
			t.Errorf("read %d bytes, at last %d", rec.Bytes, rec.Progress.Bytes)
		}
	})
}

// Every function over random data agrees with a straight loop over it.
func TestJobsAgreeWithStraightLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 4)
		rnd := rand.New(rand.NewPCG(5, 5))
		values := map[string]string{}
		for i := range 3000 {
			key := fmt.Sprintf("r/%d", i)
			values[key] = fmt.Sprintf(`{"i":%d,"f":%g,"s":"%x"}`, int64(rnd.Uint64()), rnd.NormFloat64()*1e6, rnd.Uint32())
			c.put(key, "old value")
			c.put(key, values[key])
		}
		for _, mapTo := range []string{"json:i", "json:f", "json:s", "len", "key", "value"} {
			for _, reduce := range []string{"sum", "count", "min", "max", "mean"} {
				s := job.Spec{Prefix: "r/", As: "json", Map: mapTo, Reduce: reduce, OnError: "skip", TasksPerReplica: 1 + rnd.IntN(5)}
				fn, err := compile(s)
				if err != nil {
					continue // a combination that makes no sense
				}
				straight := new(Partial)
				for key, value := range values {
					fn.step(context.Background(), straight, []byte(key), []byte(value))
				}
				want, _, wantErr := straight.Final(s)
				rec := c.run(t.Context(), "n1", s)
				if wantErr != nil {
					if rec.State != job.Failed || rec.Error != wantErr.Error() {
						t.Errorf("%s %s: %s %v %q, want error %v", mapTo, reduce, rec.State, rec.Result, rec.Error, wantErr)
					}
					continue
				}
				wantResult(t, rec, want)
				if rec.Records != 3000 || rec.Bad != straight.Bad {
					t.Errorf("%s %s: %d records, %d bad; want 3000 and %d", mapTo, reduce, rec.Records, rec.Bad, straight.Bad)
				}
			}
		}
	})
}

// With enough tasks every replica works, followers more than the leader.
func TestFollowersFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 4)
		want := c.fill("a/", 4000)
		c.hook(func(h *hooks) {
			h.scan = func(string, uint32, string) error { time.Sleep(time.Millisecond); return nil }
		})
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		leaders, all := 0, 0 // of one shard alone it is chance: its replicas' nodes work for other shards, too
		for _, s := range rec.Shards {
			nodes := nodesOf(s)
			if len(nodes) != 3 {
				t.Errorf("shard %d led by %s: tasks by node %v", s.Shard, s.Master, nodes)
			}
			for node, n := range nodes {
				if all += n; node == s.Master {
					leaders += n
				}
			}
		}
		if leaders*4 > all {
			t.Errorf("leaders did %d tasks of %d themselves, want at most a quarter", leaders, all)
		}
		// One small task is done where it is.
		few := c.run(t.Context(), "n1", job.Spec{Prefix: "a/1", Reduce: "count"})
		wantResult(t, few, 1111)
		for _, s := range few.Shards {
			if len(s.Tasks) != 1 || s.Tasks[0].Role != job.RoleLeader {
				t.Errorf("shard %d: tasks %+v", s.Shard, s.Tasks)
			}
		}
	})
}

func TestOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 3)
		wantResult(t, c.run(t.Context(), "n1", sumOf("a/")), 0)
		want := c.fill("a/", 100)
		wantResult(t, c.run(t.Context(), "n1", sumOf("a/")), want)
	})
}

func TestEmptyAndBadData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		rec := c.run(t.Context(), "n1", sumOf("none/"))
		wantResult(t, rec, 0)
		if rec.Note == "" {
			t.Error("an answer about nothing has no note")
		}
		s := sumOf("none/")
		s.Reduce = job.ReduceMax
		if rec := c.run(t.Context(), "n1", s); rec.State != job.Failed || rec.Code != job.CodeNoRecords || rec.Error != "no records" || rec.Result != nil {
			t.Errorf("maximum of nothing: %+v", rec)
		}
		want := c.fill("a/", 50)
		c.put("a/x", "x")
		rec = c.run(t.Context(), "n1", sumOf("a/"))
		if rec.State != job.Failed || rec.Code != job.CodeBadRecords || rec.Bad != 1 || rec.Result != nil || len(rec.BadKeys) != 1 || rec.BadKeys[0] != "a/x" {
			t.Errorf("a bad record: %+v", rec)
		}
		s = sumOf("a/")
		s.OnError = job.OnErrorSkip
		rec = c.run(t.Context(), "n1", s)
		wantResult(t, rec, want)
		if rec.Bad != 1 || rec.Records != 51 {
			t.Errorf("%d bad of %d records", rec.Bad, rec.Records)
		}
	})
}

// Followers that have not applied everything yet still answer for it.
func TestTasksWaitForTheIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		want := c.fill("a/", 500)
		var behind atomic.Uint64
		behind.Store(100)
		c.hook(func(h *hooks) {
			h.lag = func(node string, _ uint32) uint64 {
				if node == "n3" {
					return behind.Load()
				}
				return 0
			}
		})
		time.AfterFunc(300*time.Millisecond, func() { behind.Store(0) })
		wantResult(t, c.run(t.Context(), "n1", sumOf("a/")), want)

		// One that stays behind is done without.
		time.Sleep(time.Second)
		behind.Store(100)
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		for _, s := range rec.Shards {
			if nodesOf(s)["n3"] > 0 {
				t.Errorf("shard %d: %+v", s.Shard, s.Tasks)
			}
		}
	})
}

// A view below the index that was asked for is refused, not read.
func TestWorkerRefusesAnOldView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		c.fill("a/", 10)
		c.hook(func(h *hooks) { h.lag = func(string, uint32) uint64 { return 1 } })
		w := &Worker{views: oldViews{c.node("n1")}}
		_, err := w.view(t.Context(), &taskRequest{Index: 10})
		if transport.CodeOf(err) != transport.CodeTimeout {
			t.Errorf("error %v", err)
		}
	})
}

type oldViews struct{ *testNode }

func (o oldViews) View(ctx context.Context, shard uint32, minIndex uint64) (View, error) {
	return o.testNode.View(ctx, shard, minIndex-1)
}

// blockOn makes scans on a node stop at their first key until release is called.
func (c *cluster) blockOn(node string) (blocked chan string, release func()) {
	blocked, gate := make(chan string, 1000), make(chan struct{})
	c.hook(func(h *hooks) {
		h.scan = func(n string, shard uint32, _ string) error {
			if n == node {
				select {
				case <-gate:
				default:
					blocked <- n
					<-gate
				}
			}
			return nil
		}
	})
	return blocked, func() { close(gate) }
}

// A follower dies with tasks under way: they run elsewhere, and the answer is right.
func TestWorkerDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 4)
		want := c.fill("a/", 2000)
		blocked, release := c.blockOn("n3")
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			<-blocked
			c.lead(2, "n1") // n3 leads shard 2; this test is about a follower
			release()
			c.kill("n3")
		}()
		c.lead(2, "n1")
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		<-killed
		wantResult(t, rec, want)
	})
}

// The same by a broken network: the link swallows what is sent.
func TestWorkerUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		want := c.fill("a/", 300)
		c.net.Isolate("n3")
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		failed := 0
		for _, task := range rec.Shards[0].Tasks {
			failed += len(task.FailedOn)
			if task.Node == "n3" {
				t.Errorf("task %+v", task)
			}
		}
		// Second attempts may win before the link is given up; somebody must have taken over.
		if attempts := totalAttempts(rec); attempts == len(rec.Shards[0].Tasks) {
			t.Errorf("%d attempts at %d tasks, %d failed", attempts, len(rec.Shards[0].Tasks), failed)
		}
	})
}

func totalAttempts(rec job.Record) (n int) {
	for _, s := range rec.Shards {
		for _, task := range s.Tasks {
			n += task.Attempts
		}
	}
	return n
}

// A task that fails on one node goes to another, which the report says.
func TestTaskFailsOnOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		want := c.fill("a/", 300)
		c.hook(func(h *hooks) {
			h.scan = func(node string, _ uint32, _ string) error {
				if node == "n2" {
					return errors.New("disk is broken")
				}
				return nil
			}
		})
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		failed := 0
		for _, task := range rec.Shards[0].Tasks {
			if slices.Equal(task.FailedOn, []string{"n2"}) {
				failed++
			}
			if task.Node == "n2" || task.Attempts != 1+len(task.FailedOn) {
				t.Errorf("task %+v", task)
			}
		}
		if failed == 0 {
			t.Error("no task has failed on n2")
		}
	})
}

// A task that fails everywhere fails the job, with the reason, and no result.
func TestTaskFailsEverywhere(t *testing.T) {
	for name, fail := range map[string]func() error{
		"disk is broken": func() error { return errors.New("disk is broken") },
		"panicked":       func() error { panic("a bug") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 3, 4)
				c.fill("a/", 1000)
				tries := 0
				c.hook(func(h *hooks) {
					h.scan = func(_ string, _ uint32, key string) error {
						if key == "a/7" {
							tries++
							return fail()
						}
						return nil
					}
				})
				start := time.Now()
				rec := c.run(t.Context(), "n1", sumOf("a/"))
				if rec.State != job.Failed || rec.Result != nil || !strings.Contains(rec.Error, name) || rec.Code != job.CodeFailed {
					t.Errorf("job %s: result %v, %q", rec.State, rec.Result, rec.Error)
				}
				if took := time.Since(start); tries != maxAttempts || took > 5*time.Second {
					t.Errorf("%d tries in %s", tries, took)
				}
			})
		})
	}
}

// A worker that stands still gets its tasks taken over, and its late results are not counted again.
func TestSlowWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		want := c.fill("a/", 1000)
		blocked, release := c.blockOn("n3")
		c.lead(1, "n1")
		start := time.Now()
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		if took := time.Since(start); took > lateAfter+2*refreshTick {
			t.Errorf("took %s", took)
		}
		if len(blocked) == 0 || totalAttempts(rec) <= rec.Progress.Tasks {
			t.Errorf("%d scans stood still, %d attempts at %d tasks", len(blocked), totalAttempts(rec), rec.Progress.Tasks)
		}
		release()
	})
}

// A second attempt and the first one both answer, in either order and at the
// same time: the task counts once.
func TestDuplicateResults(t *testing.T) {
	for _, late := range []time.Duration{lateAfter - time.Millisecond, lateAfter + 2*refreshTick, lateAfter + 2*time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 3, 1)
			want := c.fill("a/", 9)
			// The answers of both followers arrive late: by the time the second
			// attempt is at work, the first has computed its result and sent it.
			c.net.Delay("n2", "n1", late)
			c.net.Delay("n3", "n1", late)
			s := sumOf("a/")
			s.TasksPerReplica = 1
			rec := c.run(t.Context(), "n1", s)
			wantResult(t, rec, want)
			if late > lateAfter+refreshTick && totalAttempts(rec) <= rec.Progress.Tasks {
				t.Errorf("no second attempts: %d at %d tasks", totalAttempts(rec), rec.Progress.Tasks)
			}
		})
	}
}

// take, given the same result twice, counts it once; and a failure after a
// success changes nothing.
func TestTakeOnce(t *testing.T) {
	task := &taskState{}
	r := &shardRun{m: &Master{}, ctx: t.Context(), start: time.Now(), memory: testAdmission(1).masters.open(), tasks: []*taskState{task}, pending: 1}
	attempts, calledOff := make([]*attempt, 3), 0
	for i := range attempts {
		attempts[i] = &attempt{id: i, task: task, replica: &replicaTracker{inFlight: 1}, cancel: func() { calledOff++ }}
		task.live = append(task.live, attempts[i])
	}
	result := over(t, sumOf(""), "1", "2")
	for i, o := range []outcome{{partial: result}, {partial: result}, {err: errors.New("late failure")}} {
		o.attempt = attempts[i]
		if err := r.take(o); err != nil {
			t.Fatal(err)
		}
	}
	if calledOff != 2 {
		t.Errorf("%d other attempts were called off, want 2", calledOff)
	}
	if r.pending != 0 || r.total.Records != 2 || r.total.sum.Total().Int64() != 3 || len(task.live) != 0 || task.failures != 0 {
		t.Errorf("pending %d, total %+v, task %+v", r.pending, r.total, task)
	}
}

// An answer to another task, to an older attempt or from too low an index is not taken.
func TestWrongAnswersAreNotTaken(t *testing.T) {
	req := taskRequest{taskKey: taskKey{runKey{"j1", 2, 3, 1, 0}, 4, 5}, Index: 10, From: 6, To: 7}
	good := taskReply{taskKey: req.taskKey, Index: 10, From: 6, To: 7}
	for name, change := range map[string]func(r *taskReply){
		"":                func(*taskReply) {},
		"another job":     func(r *taskReply) { r.Job = "j2" },
		"another epoch":   func(r *taskReply) { r.Epoch = 1 },
		"another shard":   func(r *taskReply) { r.Shard = 4 },
		"another try":     func(r *taskReply) { r.Try = 2 },
		"another task":    func(r *taskReply) { r.Task = 0 },
		"another attempt": func(r *taskReply) { r.Attempt = 4 },
		"another range":   func(r *taskReply) { r.To = 8 },
		"an older state":  func(r *taskReply) { r.Index = 9 },
	} {
		reply := good
		change(&reply)
		data, err := encodeMessage(reply, over(t, sumOf(""), "1"))
		if err != nil {
			t.Fatal(err)
		}
		m := &Master{t: answering{data: data}}
		if _, _, err := m.ask(t.Context(), "n2", req); (err == nil) != (name == "") {
			t.Errorf("%q: error %v", name, err)
		}
	}
}

// answering is a transport that knows one answer.
type answering struct {
	transport.Transport
	data []byte
}

func (a answering) Call(context.Context, string, transport.Lane, transport.Method, []byte) ([]byte, error) {
	return a.data, nil
}
