package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// View is one shard's keys at one log index. It is used by one goroutine.
type View interface {
	Index() uint64
	// Scan calls fn for every visible key of the slots from..to that begins with prefix,
	// until fn returns false. The slices are valid during the call only.
	Scan(from, to uint16, prefix []byte, fn func(slot uint16, key, value []byte) bool) error
	SlotCount(slot uint16) (records, bytes int64)
	Close()
}

// Views opens views of the replicas that this node holds.
type Views interface {
	// View waits until this node's replica of the shard has applied minIndex, at most until ctx ends.
	View(ctx context.Context, shard uint32, minIndex uint64) (View, error)
}

const (
	// viewWait is how long a task waits for its replica to catch up with the
	// master's index; a replica further behind is no help, another takes the task.
	viewWait = 2 * time.Second
	// queuedTasks bounds the tasks that wait for a turn; beyond it they are refused.
	queuedTasks = 256
	// cancelCheck is after how many records a task looks whether it is still wanted.
	cancelCheck = 1024
	// keptCancels is how many cancels are remembered for tasks that have not arrived yet.
	keptCancels = 256
)

// errTaskCancelled ends a task that the master no longer wants.
var errTaskCancelled = transport.Errorf(transport.CodeRefused, "task cancelled")

// Worker runs tasks on the replicas of this node: at most GOMAXPROCS-1 at once,
// so that one processor is always left for serving. It has no goroutines of its own.
type Worker struct {
	views Views
	log   *slog.Logger
	turns chan struct{} // a token for each running task

	mu     sync.Mutex
	tasks  map[taskKey]context.CancelCauseFunc // running and waiting
	early  []taskKey                           // cancels that overtook their task, oldest first
	closed bool
	wg     sync.WaitGroup
}

// NewWorker serves MethodTask and MethodTaskCancel on t.
func NewWorker(views Views, t transport.Transport, log *slog.Logger) *Worker {
	w := &Worker{
		views: views,
		log:   log,
		turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1)),
		tasks: make(map[taskKey]context.CancelCauseFunc),
	}
	t.Handle(transport.MethodTask, w.serveTask)
	t.Handle(transport.MethodTaskCancel, w.serveCancel)
	return w
}

// Close ends all tasks and waits for them: afterwards no view is open.
func (w *Worker) Close() {
	w.mu.Lock()
	w.closed = true
	for _, cancel := range w.tasks {
		cancel(transport.Errorf(transport.CodeClosed, "worker is stopping"))
	}
	w.mu.Unlock()
	w.wg.Wait()
}

func (w *Worker) serveTask(ctx context.Context, from string, data []byte) ([]byte, error) {
	var req taskRequest
	if rest, err := decodeMessage(data, &req); err != nil {
		return nil, badRequest(err)
	} else if len(rest) > 0 || req.From > req.To || req.To >= sharding.Slots {
		return nil, transport.Errorf(transport.CodeBadRequest, "task %d of job %s: slots %d-%d", req.Task, req.Job, req.From, req.To)
	}
	fn, err := compile(req.Spec)
	if err != nil {
		return nil, badRequest(err)
	}
	ctx, done, err := w.begin(ctx, req.taskKey)
	if err != nil {
		return nil, err
	}
	defer done()
	select {
	case w.turns <- struct{}{}:
		defer func() { <-w.turns }()
	case <-ctx.Done():
		return nil, ended(ctx)
	}
	reply, partial, err := w.run(ctx, &req, fn)
	if err != nil {
		return nil, err
	}
	return encodeMessage(reply, partial)
}

// begin registers a task, so that it can be cancelled, and refuses it if there is no room.
func (w *Worker) begin(ctx context.Context, key taskKey) (context.Context, func(), error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
		return nil, nil, transport.Errorf(transport.CodeClosed, "worker is stopping")
	case len(w.tasks) >= queuedTasks+cap(w.turns):
		return nil, nil, transport.Errorf(transport.CodeBusy, "%d tasks are waiting", len(w.tasks))
	case w.tasks[key] != nil:
		return nil, nil, transport.Errorf(transport.CodeConflict, "task %d of job %s is running already", key.Task, key.Job)
	}
	for _, k := range w.early {
		if k == key {
			return nil, nil, errTaskCancelled
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w.tasks[key] = cancel
	w.wg.Add(1)
	return ctx, func() {
		cancel(nil)
		w.mu.Lock()
		delete(w.tasks, key)
		w.mu.Unlock()
		w.wg.Done()
	}, nil
}

// run scans the task's slots. A panic, also one of a failing disk under a
// mapped file, fails the task and not the node: the task has changed nothing.
func (w *Worker) run(ctx context.Context, req *taskRequest, fn *function) (reply taskReply, p *Partial, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			w.log.Error("job task panicked", "job", req.Job, "shard", req.Shard, "task", req.Task, "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
			err = transport.Errorf(transport.CodeUnknown, "task panicked: %v", cause)
		}
	}()
	view, err := w.view(ctx, req)
	if err != nil {
		return reply, nil, err
	}
	defer view.Close()

	p = new(Partial)
	scanned := 0
	err = view.Scan(req.From, req.To, []byte(req.Spec.Prefix), func(_ uint16, key, value []byte) bool {
		if scanned++; scanned%cancelCheck == 0 && ctx.Err() != nil {
			return false
		}
		fn.step(p, key, value)
		return true
	})
	// Only a scan that nobody stopped has seen every key.
	if ctx.Err() != nil {
		return reply, nil, ended(ctx)
	}
	if err != nil {
		return reply, nil, transport.Errorf(transport.CodeUnknown, "scan slots %d-%d of shard %d: %v", req.From, req.To, req.Shard, err)
	}
	return taskReply{taskKey: req.taskKey, Index: view.Index(), From: req.From, To: req.To}, p, nil
}

func (w *Worker) view(ctx context.Context, req *taskRequest) (View, error) {
	wait, cancel := context.WithTimeout(ctx, viewWait)
	defer cancel()
	view, err := w.views.View(wait, req.Shard, req.Index)
	switch {
	case err == nil && view.Index() >= req.Index:
		return view, nil
	case err == nil:
		defer view.Close()
		return nil, transport.Errorf(transport.CodeTimeout, "replica of shard %d is at index %d, the task needs %d", req.Shard, view.Index(), req.Index)
	case ctx.Err() != nil:
		return nil, ended(ctx)
	case wait.Err() != nil:
		return nil, transport.Errorf(transport.CodeTimeout, "replica of shard %d has not reached index %d", req.Shard, req.Index)
	}
	return nil, err
}

func (w *Worker) serveCancel(_ context.Context, _ string, data []byte) ([]byte, error) {
	var key taskKey
	if _, err := decodeMessage(data, &key); err != nil {
		return nil, badRequest(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if cancel := w.tasks[key]; cancel != nil {
		cancel(errTaskCancelled)
		return nil, nil
	}
	// It has ended, or not begun: the two travel on different lanes.
	w.early = append(w.early, key)
	if len(w.early) > keptCancels {
		w.early = w.early[1:]
	}
	return nil, nil
}

// ended says with a number why ctx ended.
func ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	if numbered := (*transport.Error)(nil); errors.As(cause, &numbered) {
		return numbered
	}
	return transport.Errorf(transport.CodeTimeout, "%v", cause)
}
