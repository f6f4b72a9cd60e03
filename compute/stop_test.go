package compute

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// Ending the run stops the workers at once, and decides nothing about the job.
func TestStopReachesWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 4)
		for i := range 10_000 {
			c.put(fmt.Sprintf("a/%0300d", i), "1") // long enough for a worker to look around several times in a task
		}
		var scanned atomic.Int64
		c.hook(func(h *hooks) {
			h.scan = func(string, uint32, string) error { scanned.Add(1); time.Sleep(40 * time.Microsecond); return nil }
		})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(30*time.Millisecond, cancel)
		s := sumOf("a/")
		s.TasksPerReplica = 1
		rec := c.run(ctx, "n1", s)
		if rec.State.Finished() || rec.Result != nil {
			t.Errorf("job %s, result %v", rec.State, rec.Result)
		}
		time.Sleep(200 * time.Millisecond)
		if after := scanned.Load(); after == 0 || after > 8_750 {
			t.Errorf("%d records were scanned", after)
		}
		for _, id := range c.ids() {
			n := c.node(id)
			n.worker.mu.Lock()
			n.master.mu.Lock()
			if len(n.worker.tasks) != 0 || len(n.master.runs) != 0 {
				t.Errorf("%s still has %d tasks and %d runs", id, len(n.worker.tasks), len(n.master.runs))
			}
			n.master.mu.Unlock()
			n.worker.mu.Unlock()
		}
	})
}

// A scan that is stopped half-way, by a cancel or by the deadline, is no answer.
func TestHalfAScanIsNoAnswer(t *testing.T) {
	for name, stop := range map[string]func(w *Worker, key taskKey, cancel context.CancelFunc){
		"cancel": func(w *Worker, key taskKey, _ context.CancelFunc) {
			req, err := encodeMessage(key, nil)
			if err != nil {
				t.Error(err)
			}
			if _, err := w.serveCancel(context.Background(), "n1", req); err != nil {
				t.Error(err)
			}
		},
		"deadline": func(_ *Worker, _ taskKey, cancel context.CancelFunc) { cancel() },
		"close":    func(w *Worker, _ taskKey, _ context.CancelFunc) { go w.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1, 1)
				const cancelCheck = checkBytes / recordCost // records, at most, between two looks
				c.fill("a/", 5*cancelCheck)
				w, scanned := c.node("n1").worker, 0
				key := taskKey{Task: 1}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				c.hook(func(h *hooks) {
					h.scan = func(string, uint32, string) error {
						if scanned++; scanned == cancelCheck+1 {
							stop(w, key, cancel)
							synctest.Wait()
						}
						return nil
					}
				})
				req, err := encodeMessage(taskRequest{taskKey: key, To: 16383, Spec: sumOf("a/")}, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.serveTask(ctx, "n1", req); err == nil {
					t.Error("half a scan was answered as a whole one")
				}
				if scanned > 2*cancelCheck {
					t.Errorf("%d records were scanned", scanned)
				}
			})
		})
	}
}

// A real link does not carry a caller's cancel to the handler: the coordinator
// says so to its masters, and they to their workers.
func TestStopIsSentAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.fill("a/", 100)
		c.slowly(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(500*time.Millisecond, cancel)
		rec := job.Record{ID: "j1", Spec: sumOf("a/"), State: job.Running, Epoch: 1}
		c.coordinate(ctx, rec, detached{savedNowhere{c.node("n3")}})
		time.Sleep(100 * time.Millisecond)
		for _, id := range c.ids() {
			m := c.node(id).master
			m.mu.Lock()
			for _, r := range m.runs {
				if r.ctx.Err() == nil {
					t.Errorf("%s still runs shard %d", id, r.req.Shard)
				}
			}
			m.mu.Unlock()
		}
	})
}

// When the wait for a worker ends without an answer, it is told to stop; when it refused, there is nothing to stop.
func TestWorkerIsToldToStop(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		told bool
	}{
		"the wait ended": {transport.Errorf(transport.CodeLinkLost, ""), true},
		"refused":        {transport.Errorf(transport.CodeBusy, ""), false},
	} {
		told := make(chan taskKey, 1)
		m := &Master{t: stopped{err: c.err, told: told}}
		req := taskRequest{taskKey: taskKey{Task: 3, Attempt: 2}}
		if _, _, err := m.ask(t.Context(), "n2", req); !errors.Is(err, c.err) {
			t.Errorf("%s: error %v", name, err)
		}
		m.wg.Wait()
		if len(told) > 0 != c.told || c.told && <-told != req.taskKey {
			t.Errorf("%s: %d cancels were sent", name, len(told))
		}
	}
}

// stopped is a transport whose tasks end with err.
type stopped struct {
	transport.Transport
	err  error
	told chan taskKey
}

func (s stopped) Call(_ context.Context, _ string, _ transport.Lane, m transport.Method, req []byte) ([]byte, error) {
	if m == transport.MethodTask {
		return nil, s.err
	}
	var key taskKey
	if _, err := decodeMessage(req, &key); err != nil || m != transport.MethodTaskCancel {
		return nil, errors.New("not a task cancel")
	}
	s.told <- key
	return nil, nil
}

// detached lets calls go on after their caller has left.
type detached struct{ CoordinatorEnv }

func (d detached) CallLeader(ctx context.Context, shard uint32, m transport.Method, req []byte) ([]byte, error) {
	type answer struct {
		resp []byte
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		resp, err := d.CoordinatorEnv.CallLeader(context.WithoutCancel(ctx), shard, m, req)
		done <- answer{resp, err}
	}()
	select {
	case a := <-done:
		return a.resp, a.err
	case <-ctx.Done():
		return nil, transport.Errorf(transport.CodeLinkLost, "%v", ctx.Err())
	}
}

// A cancel that overtakes its task holds all the same.
func TestCancelBeforeTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		w := c.node("n1").worker
		key := taskKey{runKey: runKey{Job: "j1", Epoch: 1, Try: 1}, Task: 1, Attempt: 1}
		cancelReq, err := encodeMessage(key, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.serveCancel(t.Context(), "n1", cancelReq); err != nil {
			t.Fatal(err)
		}
		req, err := encodeMessage(taskRequest{taskKey: key, To: 100, Spec: sumOf("a/").WithDefaults()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.serveTask(t.Context(), "n1", req); !errors.Is(err, errTaskCancelled) {
			t.Errorf("error %v", err)
		}
		for range 3 * keptCancels {
			_, _ = w.serveCancel(t.Context(), "n1", cancelReq)
		}
		if len(w.early) > keptCancels {
			t.Errorf("%d cancels are kept", len(w.early))
		}
	})
}

// A worker with a full queue refuses, and the master comes back.
func TestWorkerQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, 1)
		want := c.fill("a/", 10)
		w := c.node("n2").worker
		var fill []func()
		for i := range queuedTasks + w.admission.slots {
			key := taskKey{Task: i}
			_, task, err := w.begin(t.Context(), &taskRequest{taskKey: key})
			if err != nil {
				t.Fatal(err)
			}
			fill = append(fill, func() { w.end(key, task) })
		}
		if _, _, err := w.begin(t.Context(), &taskRequest{taskKey: taskKey{Task: -1}}); transport.CodeOf(err) != transport.CodeBusy {
			t.Errorf("error %v", err)
		}
		time.AfterFunc(time.Second, func() {
			for _, done := range fill {
				done()
			}
		})
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
	})
}

func TestWorkerRefusesNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		w := c.node("n1").worker
		good := taskRequest{To: 100, Spec: sumOf("a/").WithDefaults()}
		for name, change := range map[string]func(r *taskRequest){
			"slots backwards":      func(r *taskRequest) { r.From = 101 },
			"slots beyond the end": func(r *taskRequest) { r.To = 16384 },
			"a bad spec":           func(r *taskRequest) { r.Spec.As = "number" },
		} {
			req := good
			change(&req)
			data, err := encodeMessage(req, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.serveTask(t.Context(), "n1", data); transport.CodeOf(err) != transport.CodeBadRequest {
				t.Errorf("%s: error %v", name, err)
			}
		}
		if _, err := w.serveTask(t.Context(), "n1", []byte("\x09")); transport.CodeOf(err) != transport.CodeBadRequest {
			t.Errorf("another version: error %v", err)
		}
	})
}

// A newer attempt takes over from an older one; an older one does not come back.
func TestMasterNewestAttemptWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		m := c.node("n1").master
		begin := func(epoch uint64, try int) (*shardRun, error) {
			return m.begin(t.Context(), shardRequest{runKey: runKey{Job: "j1", Epoch: epoch, Try: try}})
		}
		old, err := begin(1, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range [][2]int{{1, 2}, {1, 1}, {0, 9}} {
			if _, err := begin(uint64(k[0]), k[1]); transport.CodeOf(err) != transport.CodeConflict {
				t.Errorf("epoch %d try %d beside epoch 1 try 2: %v", k[0], k[1], err)
			}
		}
		newer, err := begin(2, 1)
		if err != nil {
			t.Fatal(err)
		}
		if transport.CodeOf(ended(old.ctx)) != transport.CodeConflict || newer.ctx.Err() != nil {
			t.Errorf("old %v, new %v", ended(old.ctx), newer.ctx.Err())
		}
		m.end(old)
		if m.runs[shardOfJob{"j1", 0}] != newer {
			t.Error("the end of the old run removed the new one")
		}
		m.end(newer)
	})
}
