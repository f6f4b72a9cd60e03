package compute

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Shard is a shard that this node leads, as its master sees it.
type Shard interface {
	// Fence returns a log index: whoever has applied it has applied every write
	// acknowledged before Fence was called.
	Fence(ctx context.Context) (index uint64, err error)
	// View opens a view at or above every index that Fence has returned.
	View() (View, error)
	Slots() []sharding.SlotRange
	// Replicas lists the replicas that hold the shard's data, and who leads.
	Replicas() []ReplicaState
}

// Shards finds shards on this node.
type Shards interface {
	// Master returns the shard if this node leads it, else CodeNotLeader or CodeNoReplica.
	Master(ctx context.Context, shard uint32) (Shard, error)
}

// maxRuns bounds the shard parts that one node masters at once.
const maxRuns = 1024

// Master runs shards' parts of jobs on the shards that this node leads. Each part is a
// shardRun, on the goroutine of the request that asked for it.
type Master struct {
	shards Shards
	t      transport.Transport
	log    *slog.Logger

	mu     sync.Mutex
	runs   map[shardOfJob]*shardRun // at most one for a shard of a job: the newest
	closed bool
	wg     sync.WaitGroup // runs, and the cancels they send
}

type shardOfJob struct {
	job   string
	shard uint32
}

// NewMaster serves MethodShardJob, MethodShardJobStatus and MethodShardJobCancel on t.
func NewMaster(shards Shards, t transport.Transport, log *slog.Logger) *Master {
	m := &Master{shards: shards, t: t, log: log, runs: make(map[shardOfJob]*shardRun)}
	t.Handle(transport.MethodShardJob, m.serveShardJob)
	t.Handle(transport.MethodShardJobStatus, m.serveStatus)
	t.Handle(transport.MethodShardJobCancel, m.serveCancel)
	return m
}

// Close ends all runs and waits for them.
func (m *Master) Close() {
	m.mu.Lock()
	m.closed = true
	for _, r := range m.runs {
		r.cancel(transport.Errorf(transport.CodeClosed, "master is stopping"))
	}
	m.mu.Unlock()
	m.wg.Wait()
}

func (m *Master) serveShardJob(ctx context.Context, _ string, data []byte) ([]byte, error) {
	var req shardRequest
	if _, err := decodeMessage(data, &req); err != nil {
		return nil, badRequest(err)
	}
	if err := req.Spec.Validate(); err != nil {
		return nil, badRequest(err)
	}
	r, err := m.begin(ctx, req)
	if err != nil {
		return nil, err
	}
	defer m.end(r)
	reply, partial, err := r.run()
	if err != nil {
		return nil, err
	}
	return encodeMessage(reply, partial)
}

// begin registers a run. A newer one takes the place of an older one, whose
// coordinator no longer waits for it.
func (m *Master) begin(ctx context.Context, req shardRequest) (*shardRun, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := shardOfJob{req.Job, req.Shard}
	old := m.runs[id]
	switch {
	case m.closed:
		return nil, transport.Errorf(transport.CodeClosed, "master is stopping")
	case old != nil && !old.req.newerThan(req.runKey) && !req.newerThan(old.req.runKey):
		return nil, transport.Errorf(transport.CodeConflict, "shard %d of job %s is running already", req.Shard, req.Job)
	case old != nil && old.req.newerThan(req.runKey):
		return nil, transport.Errorf(transport.CodeConflict, "shard %d of job %s runs for a newer coordinator", req.Shard, req.Job)
	case old == nil && len(m.runs) >= maxRuns:
		return nil, transport.Errorf(transport.CodeBusy, "%d shard parts are running", len(m.runs))
	}
	if old != nil {
		old.cancel(transport.Errorf(transport.CodeConflict, "superseded by a newer attempt"))
	}
	r := &shardRun{m: m, req: req, start: time.Now()}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	m.runs[id] = r
	m.wg.Add(1)
	return r, nil
}

func (m *Master) end(r *shardRun) {
	r.cancel(nil)
	m.mu.Lock()
	if id := (shardOfJob{r.req.Job, r.req.Shard}); m.runs[id] == r {
		delete(m.runs, id)
	}
	m.mu.Unlock()
	m.wg.Done()
}

// newerThan orders the attempts at one shard's part of one job.
func (k runKey) newerThan(o runKey) bool {
	return k.Epoch > o.Epoch || k.Epoch == o.Epoch && k.Try > o.Try
}

func (m *Master) serveStatus(_ context.Context, _ string, data []byte) ([]byte, error) {
	var key runKey
	if _, err := decodeMessage(data, &key); err != nil {
		return nil, badRequest(err)
	}
	m.mu.Lock()
	r := m.runs[shardOfJob{key.Job, key.Shard}]
	m.mu.Unlock()
	if r == nil || r.req.runKey != key {
		return nil, transport.Errorf(transport.CodeNotFound, "shard %d of job %s is not running here", key.Shard, key.Job)
	}
	reply := shardReply{runKey: key, Report: job.ShardReport{Shard: key.Shard, Master: m.t.Self()}}
	if report := r.published.Load(); report != nil {
		reply.Report = *report
	}
	return encodeMessage(reply, nil)
}

// serveCancel ends the run of the given attempt or an older one.
func (m *Master) serveCancel(_ context.Context, _ string, data []byte) ([]byte, error) {
	var key runKey
	if _, err := decodeMessage(data, &key); err != nil {
		return nil, badRequest(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.runs[shardOfJob{key.Job, key.Shard}]; r != nil && !r.req.newerThan(key) {
		r.cancel(transport.Errorf(transport.CodeRefused, "job cancelled"))
	}
	return nil, nil
}

// cancelTask tells a worker that an attempt is not wanted any more. It is sent
// on the control lane, past whatever bulk is under way, and nobody waits for the answer
// but Close: a worker that does not hear it finishes a task whose result is not taken.
func (m *Master) cancelTask(node string, key taskKey) {
	req, err := encodeMessage(key, nil)
	if err != nil {
		return
	}
	m.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := m.t.Call(ctx, node, transport.LaneControl, transport.MethodTaskCancel, req); err != nil {
			m.log.Debug("task cancel not delivered", "job", key.Job, "shard", key.Shard, "task", key.Task, "node", node, "err", err)
		}
	})
}

const (
	runTick     = 50 * time.Millisecond  // how often the loop looks for slow tasks
	refreshTick = 250 * time.Millisecond // how often it looks for new replicas and lost leadership
	// A task's attempt may take this long, and this much more for each record it holds.
	attemptTimeout   = 30 * time.Second
	attemptPerRecord = 2 * time.Microsecond
)

// shardRun is one shard's part of one job. Its loop owns everything below the
// line; attempts only send outcomes.
type shardRun struct {
	m         *Master
	req       shardRequest
	ctx       context.Context
	cancel    context.CancelCauseFunc
	start     time.Time
	published atomic.Pointer[job.ShardReport] // for status

	// ---
	shard    Shard
	slots    []sharding.SlotRange // as planned and as answered for
	index    uint64
	tasks    []*taskState
	replicas []*replicaTracker
	attempts int // numbers them
	pending  int // tasks not done
	total    Partial
	outcomes chan outcome
	wg       sync.WaitGroup
}

// outcome is how an attempt ended.
type outcome struct {
	attempt *attempt
	reply   taskReply
	partial *Partial
	err     error
}

// run answers with the whole shard's partial or with an error. CodeRefused
// means that trying again will not help.
func (r *shardRun) run() (shardReply, *Partial, error) {
	if err := r.prepare(); err != nil {
		return shardReply{}, nil, err
	}
	r.outcomes = make(chan outcome)
	err := r.loop()
	// Whoever still works on this works for nothing.
	r.cancel(transport.Errorf(transport.CodeRefused, "shard part has ended"))
	go func() { r.wg.Wait(); close(r.outcomes) }()
	for range r.outcomes {
	}
	if err != nil {
		return shardReply{}, nil, err
	}
	reply := shardReply{runKey: r.req.runKey, Report: *r.published.Load()}
	for _, s := range r.slots {
		reply.Slots = append(reply.Slots, [2]uint16{s.From, s.To})
	}
	return reply, &r.total, nil
}

// prepare takes the index that every task must have applied, and cuts the shard into tasks.
func (r *shardRun) prepare() error {
	var err error
	if r.shard, err = r.m.shards.Master(r.ctx, r.req.Shard); err != nil {
		return err
	}
	if r.index, err = r.shard.Fence(r.ctx); err != nil {
		return err
	}
	view, err := r.shard.View()
	if err != nil {
		return err
	}
	defer view.Close() // a view held through the job would hold back the storage for nothing
	if err := r.refresh(); err != nil {
		return err
	}
	count := func(slot sharding.Slot) int64 { records, _ := view.SlotCount(slot); return records }
	states := make([]ReplicaState, 0, len(r.replicas))
	for _, replica := range r.replicas {
		states = append(states, replica.ReplicaState)
	}
	r.slots = r.shard.Slots()
	for _, task := range Plan(count, r.slots, states, r.req.Spec) {
		r.tasks = append(r.tasks, &taskState{Task: task, report: job.TaskReport{ID: task.ID, From: task.From, To: task.To}})
	}
	r.pending = len(r.tasks)
	r.publish()
	return nil
}

// refresh takes over who holds the shard and is alive, and ends the run if this node no longer leads.
func (r *shardRun) refresh() error {
	states := r.shard.Replicas()
	known := make(map[string]*replicaTracker, len(r.replicas))
	for _, t := range r.replicas {
		known[t.Node] = t
	}
	r.replicas = r.replicas[:0]
	leads := false
	for _, state := range states {
		t := known[state.Node]
		if t == nil {
			t = new(replicaTracker)
		}
		t.ReplicaState = state
		r.replicas = append(r.replicas, t)
		leads = leads || state.Leader && state.Node == r.m.t.Self()
	}
	if !leads {
		return transport.Errorf(transport.CodeNotLeader, "")
	}
	return nil
}

// loop starts what schedule says, takes outcomes, and ends when every task is done.
func (r *shardRun) loop() error {
	tick, refresh := time.NewTicker(runTick), time.NewTicker(refreshTick)
	defer tick.Stop()
	defer refresh.Stop()
	for r.pending > 0 {
		for _, l := range schedule(time.Since(r.start), r.tasks, r.replicas) {
			r.launch(l)
		}
		select {
		case <-r.ctx.Done():
			return ended(r.ctx)
		case o := <-r.outcomes:
			if err := r.take(o); err != nil {
				return err
			}
			r.publish()
		case <-tick.C: // time alone may make a second attempt due
		case <-refresh.C:
			if err := r.refresh(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *shardRun) launch(l launch) {
	t := l.task
	r.attempts++
	a := &attempt{id: r.attempts, task: t, replica: l.replica, role: job.RoleFollower, started: time.Since(r.start)}
	if l.replica.Leader {
		a.role = job.RoleLeader
	}
	ctx, cancel := context.WithTimeout(r.ctx, attemptTimeout+time.Duration(t.Records)*attemptPerRecord)
	a.cancel = cancel
	t.live = append(t.live, a)
	l.replica.inFlight++
	t.report.Attempts++
	t.report.Node, t.report.Role = l.replica.Node, a.role
	req := taskRequest{
		taskKey: taskKey{runKey: r.req.runKey, Task: t.ID, Attempt: a.id},
		Index:   r.index, From: t.From, To: t.To, Spec: r.req.Spec,
	}
	node := l.replica.Node // the tracker is the loop's
	r.wg.Go(func() {
		defer cancel()
		o := outcome{attempt: a}
		o.reply, o.partial, o.err = r.m.ask(ctx, node, req)
		r.outcomes <- o
	})
}

// ask has one worker run one attempt and checks that the answer is to this question.
func (m *Master) ask(ctx context.Context, node string, req taskRequest) (reply taskReply, p *Partial, err error) {
	data, err := encodeMessage(req, nil)
	if err != nil {
		return reply, nil, err
	}
	data, err = m.t.Call(ctx, node, transport.LaneCall, transport.MethodTask, data)
	if err != nil {
		if ctx.Err() != nil || !transport.Certain(err) { // the worker may be at it still
			m.cancelTask(node, req.taskKey)
		}
		return reply, nil, err
	}
	rest, err := decodeMessage(data, &reply)
	if err != nil {
		return reply, nil, err
	}
	if reply.taskKey != req.taskKey || reply.From != req.From || reply.To != req.To || reply.Index < req.Index {
		return reply, nil, fmt.Errorf("answer to another task: %+v for %+v", reply, req.taskKey)
	}
	p, err = DecodePartial(rest)
	return reply, p, err
}

// take acts on an outcome. A task's first result is taken, and its other attempts are called off:
// a second result finds the task done and is dropped.
func (r *shardRun) take(o outcome) error {
	a, t, now := o.attempt, o.attempt.task, time.Since(r.start)
	a.replica.inFlight--
	for i, live := range t.live {
		if live == a {
			t.live = append(t.live[:i], t.live[i+1:]...)
			break
		}
	}
	if t.done {
		return nil
	}
	if o.err == nil {
		t.done = true
		r.pending--
		r.total.Merge(o.partial)
		a.replica.strikes = 0
		t.report.Done, t.report.Node, t.report.Role, t.report.Index = true, a.replica.Node, a.role, o.reply.Index
		t.report.Records, t.report.Bad, t.report.Millis = o.partial.Records, o.partial.Bad, (now - a.started).Milliseconds()
		for _, other := range t.live {
			other.cancel()
		}
		return nil
	}
	if r.ctx.Err() != nil {
		return ended(r.ctx)
	}
	return r.takeFailure(a, o.err, now)
}

func (r *shardRun) takeFailure(a *attempt, err error, now time.Duration) error {
	t := a.task
	if transport.CodeOf(err) == transport.CodeBusy { // a full queue is no fault
		a.replica.blockedUntil = now + busyPause
		t.report.Attempts--
		return nil
	}
	a.replica.failed(now)
	t.addFailedOn(a.replica.Node)
	r.m.log.Warn("job task failed", "job", r.req.Job, "shard", r.req.Shard, "task", t.ID, "node", a.replica.Node, "err", err)
	if neverRan(err) && now-a.started < attemptTimeout {
		return nil
	}
	if t.failures++; t.failures < maxAttempts {
		return nil
	}
	return transport.Errorf(transport.CodeRefused, "task %d of shard %d (slots %d-%d) failed %d times, last on %s: %v",
		t.ID, r.req.Shard, t.From, t.To, t.failures, a.replica.Node, err)
}

// addFailedOn remembers the node, for the report and so that the task goes elsewhere.
func (t *taskState) addFailedOn(node string) {
	for _, n := range t.failedOn {
		if n == node {
			return
		}
	}
	t.failedOn = append(t.failedOn, node)
}

// neverRan tells a replica that is away, stopping or behind from a task that
// fails. The former is no reason to give the job up: the job's time-out bounds it.
func neverRan(err error) bool {
	switch transport.CodeOf(err) {
	case transport.CodeUnavailable, transport.CodeNoReplica, transport.CodeClosed, transport.CodeTimeout:
		return true
	}
	return false
}

// publish makes the present state visible to status.
func (r *shardRun) publish() {
	report := &job.ShardReport{Shard: r.req.Shard, Master: r.m.t.Self(), Index: r.index, Done: r.pending == 0, Attempts: r.req.Try}
	for _, t := range r.tasks {
		task := t.report
		task.FailedOn = append([]string(nil), t.failedOn...)
		report.Tasks = append(report.Tasks, task)
	}
	r.published.Store(report)
}
