package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// View is one shard's keys at one log index. It is used by one goroutine.
type View interface {
	Index() uint64
	// Version is the same for views of one replica, in one life of its process, that show the same keys and values of the same slots.
	Version() [2]uint64
	// Slots are the slots that the shard owned at that index, in order: it alone answers for them there.
	Slots() []sharding.SlotRange
	// Scan calls fn for every visible key of the slots from..to that begins with prefix,
	// until fn returns false. The slices are valid during the call only.
	Scan(from, to uint16, prefix []byte, fn func(slot uint16, key, value []byte) bool) error
	SlotCount(slot uint16) (records, bytes int64)
	// Records calls fn for each system record whose name begins with prefix, until fn returns false.
	Records(prefix string, fn func(name string, value []byte, revision int64) bool)
	Close()
}

// Views opens views of the replicas that this node holds.
type Views interface {
	// View waits until this node's replica of the shard has applied minIndex, at most until ctx ends.
	View(ctx context.Context, shard uint32, minIndex uint64) (View, error)
	// Pinned waits until this node's replica has applied the pin's index, at most until ctx ends, and opens the view that was
	// kept then; CodeNoPin if none was, or if it is gone.
	Pinned(ctx context.Context, shard uint32, pin Pin) (View, error)
	// Renew has this node's replica keep the pin as if it were used now: a task waits for its turn.
	Renew(shard uint32, pin Pin)
	// Hosts says whether this node has a replica of the shard.
	Hosts(shard uint32) bool
}

const (
	// viewWait is how long a task waits for its replica to catch up with the
	// master's index; a replica further behind is no help, another takes the task.
	viewWait = 2 * time.Second
	// taskTime is how long a task may hold its view: as long as a pin lasts. The storage keeps what is there for it, whatever pins may cost.
	taskTime = 10 * time.Minute
	// queuedTasks bounds the tasks that wait for a turn; beyond it they are refused.
	queuedTasks = 256
	// keptCancels is how many cancels are remembered for tasks that have not arrived yet.
	keptCancels = 256
)

// errTaskCancelled ends a task that the master no longer wants.
var errTaskCancelled = transport.Errorf(transport.CodeRefused, "task cancelled")

// Worker runs tasks on the replicas of this node: as many at once, and as fast, as its Admission has it,
// so that enough is left for serving. It has no goroutines of its own.
type Worker struct {
	views     Views
	t         transport.Transport
	log       *slog.Logger
	admission *Admission

	mu     sync.Mutex
	tasks  map[taskKey]*running // and waiting
	early  []taskKey            // cancels that overtook their task, oldest first
	offers map[string]offer     // by node
	asked  time.Time            // when this node last asked for work
	closed bool
	wg     sync.WaitGroup
}

// NewWorker serves MethodTask, MethodTaskStatus and MethodTaskCancel on t.
func NewWorker(views Views, t transport.Transport, admission *Admission, log *slog.Logger) *Worker {
	w := &Worker{
		views:     views,
		t:         t,
		log:       log,
		offers:    make(map[string]offer),
		admission: admission,
		tasks:     make(map[taskKey]*running),
	}
	t.Handle(transport.MethodTask, w.serveTask)
	t.Handle(transport.MethodTaskStatus, w.serveStatus)
	t.Handle(transport.MethodTaskCancel, w.serveCancel)
	return w
}

// Close ends all tasks and waits for them: afterwards no view is open.
func (w *Worker) Close() {
	w.mu.Lock()
	w.closed = true
	for _, task := range w.tasks {
		task.cancel(transport.Errorf(transport.CodeClosed, "worker is stopping"))
	}
	w.mu.Unlock()
	w.wg.Wait()
	w.admission.Close()
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
	ctx, task, err := w.begin(ctx, &req)
	if err != nil {
		return nil, err
	}
	defer w.end(req.taskKey, task)
	if err := w.admission.turns.take(ctx, req.Spec.Priority); err != nil {
		return nil, err
	}
	defer w.admission.turns.give(req.Spec.Priority)
	task.begin()
	reply, partial, err := w.run(ctx, &req, fn, task)
	if err != nil {
		return nil, err
	}
	return encodeMessage(reply, partial)
}

// begin registers a task, so that it can be cancelled, and refuses it if there is no room.
func (w *Worker) begin(ctx context.Context, req *taskRequest) (context.Context, *running, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := req.taskKey
	switch {
	case w.closed:
		return nil, nil, transport.Errorf(transport.CodeClosed, "worker is stopping")
	case len(w.tasks) >= queuedTasks+w.admission.slots:
		return nil, nil, transport.Errorf(transport.CodeBusy, "%d tasks are waiting", len(w.tasks))
	case w.tasks[key] != nil:
		return nil, nil, transport.Errorf(transport.CodeConflict, "task %d of job %s is running already", key.Task, key.Job)
	}
	if slices.Contains(w.early, key) {
		return nil, nil, errTaskCancelled
	}
	ctx, cancel := context.WithCancelCause(ctx)
	task := &running{cancel: cancel, pin: Pin{ID: req.Pin, Index: req.Index}, at: req.From, to: req.To}
	w.tasks[key] = task
	w.wg.Add(1)
	w.admission.enter()
	return ctx, task, nil
}

func (w *Worker) end(key taskKey, task *running) {
	task.cancel(nil)
	w.mu.Lock()
	delete(w.tasks, key)
	w.fetchLocked()
	w.mu.Unlock()
	w.admission.leave()
	w.wg.Done()
}

// running is how far a task is, between the goroutine that scans and those that ask.
type running struct {
	cancel         context.CancelCauseFunc
	pin            Pin // zero: none
	records, bytes atomic.Int64

	mu    sync.Mutex
	begun bool
	at    sharding.Slot // it scans this slot
	to    sharding.Slot // the last one that it will scan
	ended bool          // it has scanned all
}

func (t *running) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = true
}

// enter goes on to a slot, after so many records and bytes, and says whether it is still this task's.
func (t *running) enter(slot sharding.Slot, records, bytes int64) bool {
	t.note(records, bytes)
	t.mu.Lock()
	defer t.mu.Unlock()
	if slot > t.to {
		return false
	}
	t.at = slot
	return true
}

func (t *running) note(records, bytes int64) {
	t.records.Store(records)
	t.bytes.Store(bytes)
}

// finish says up to which slot the task has scanned, for good.
func (t *running) finish() sharding.Slot {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	return t.to
}

// status is which slot the task is at and up to which it goes; with cut it leaves half of what it has not begun with to others, for good.
func (t *running) status(cut bool) (at, to sharding.Slot, begun bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if cut && !t.ended && t.at < t.to {
		t.to -= (t.to - t.at + 1) / 2
	}
	return t.at, t.to, t.begun
}

// serveStatus tells a master how far a task is.
func (w *Worker) serveStatus(_ context.Context, _ string, data []byte) ([]byte, error) {
	var req statusRequest
	if _, err := decodeMessage(data, &req); err != nil {
		return nil, badRequest(err)
	}
	w.mu.Lock()
	task := w.tasks[req.taskKey]
	w.mu.Unlock()
	if task == nil {
		return nil, transport.Errorf(transport.CodeNotFound, "task %d of job %s is not here", req.Task, req.Job)
	}
	at, to, begun := task.status(req.Cut)
	if !begun && task.pin.ID != 0 { // whose master still asks for it
		w.views.Renew(req.Shard, task.pin)
	}
	return encodeMessage(statusReply{At: at, To: to, Running: begun, Records: task.records.Load(), Bytes: task.bytes.Load()}, nil)
}

// run scans the task's slots. A panic in what the job asks for fails the task and not the node: the task has changed nothing. (Damage in the state
// is the view's, which ends the node: see fsm.)
func (w *Worker) run(ctx context.Context, req *taskRequest, fn *function, task *running) (reply taskReply, p *Partial, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			w.log.Error("job task panicked", "job", req.Job, "shard", req.Shard, "task", req.Task, "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
			err = transport.Errorf(transport.CodeUnknown, "task panicked: %v", cause)
		}
	}()
	w.admission.await(ctx) // before there is a view, which holds back the storage
	ctx, stop := context.WithTimeoutCause(ctx, taskTime, transport.Errorf(transport.CodeTimeout, "it took longer than %v: have the shard cut finer (tasks_per_replica), or leave records out", taskTime))
	defer stop()
	view, err := w.view(ctx, req)
	if err != nil {
		return reply, nil, err
	}
	defer view.Close()
	// They may have gone since the master planned, or it would count keys that the next owner counts too.
	if last, ok := sharding.RunFrom(view.Slots(), req.From); !ok || last < req.To {
		return reply, nil, transport.Errorf(transport.CodeSlotsMoved, "shard %d does not own all slots %d-%d at index %d", req.Shard, req.From, req.To, view.Index())
	}

	memory := w.admission.tasks.open()
	defer memory.close()
	meter := w.admission.meter()
	defer meter.close()
	if fn.costly {
		meter.each += costlyBytes
	}
	p = new(Partial)
	var full error // there is no memory for what it makes
	slot := int(req.From) - 1
	err = view.Scan(req.From, req.To, []byte(req.Spec.Prefix), func(s uint16, key, value []byte) bool {
		if int(s) != slot {
			if slot = int(s); !task.enter(s, meter.records, meter.bytes) {
				return false
			}
		}
		if meter.step(len(key) + len(value)) {
			task.note(meter.records, meter.bytes)
			meter.pay(ctx)
			if full = memory.grow(p.memory()); full != nil || ctx.Err() != nil {
				return false
			}
		}
		return fn.step(ctx, p, key, value)
	})
	task.note(meter.records, meter.bytes)
	to := task.finish()
	// Only a scan that nobody stopped has seen every key.
	if ctx.Err() != nil {
		return reply, nil, ended(ctx)
	}
	if full != nil {
		return reply, nil, full
	}
	if err != nil {
		return reply, nil, transport.Errorf(transport.CodeUnknown, "scan slots %d-%d of shard %d: %v", req.From, req.To, req.Shard, err)
	}
	reply = taskReply{taskKey: req.taskKey, Index: view.Index(), From: req.From, To: to}
	if req.WantBytes {
		reply.Bytes = meter.bytes
	}
	return reply, p, nil
}

func (w *Worker) view(ctx context.Context, req *taskRequest) (View, error) {
	wait, cancel := context.WithTimeout(ctx, viewWait)
	defer cancel()
	var view View
	var err error
	if req.Pin != 0 {
		view, err = w.views.Pinned(wait, req.Shard, Pin{ID: req.Pin, Index: req.Index})
	} else {
		view, err = w.views.View(wait, req.Shard, req.Index)
	}
	switch {
	case err == nil && (view.Index() == req.Index || req.Pin == 0 && view.Index() > req.Index):
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
	if task := w.tasks[key]; task != nil {
		task.cancel(errTaskCancelled)
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
