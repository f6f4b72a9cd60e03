package compute

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

const (
	runTick     = 50 * time.Millisecond  // how often the loop looks for slow tasks
	refreshTick = 250 * time.Millisecond // how often it looks for new replicas, lost leadership, and asks how far tasks are
	askWait     = time.Second            // how long it waits for an answer to that
	// A task's attempt may take this long without coming further; or where that is not told, in all, and this much more for each record it holds.
	attemptTimeout = 30 * time.Second
	// The latter has to be enough for a slow expression on a node that can spare little (minShare); where an attempt stands still, it is noticed long before.
	attemptPerRecord = 40 * time.Microsecond

	// pinTTL is how long replicas keep a pinned view that no task has used.
	pinTTL = time.Minute
	// maxPins bounds how often a part begins anew because all replicas have lost its pin.
	maxPins = 4

	// Accepted results are written when there are so many of them, when the first has waited for so long, or when they are the last.
	flushTasks = 64
	// maxKept bounds the bytes of results that one part has written: they go into the log and the state of every replica, past what holds back clients' writes.
	maxKept    = 16 << 20
	flushAfter = 200 * time.Millisecond
	flushWait  = 5 * time.Second

	// maxFetches is how many nodes' requests for work a part notes between two looks; more would be asked for again.
	maxFetches = 16
)

// shardRun is one shard's part of one job. Its loop owns everything below the
// line; attempts and others only send events.
type shardRun struct {
	m         *Master
	req       shardRequest
	ctx       context.Context
	cancel    context.CancelCauseFunc
	start     time.Time
	memory    *lease
	published atomic.Pointer[job.ShardReport] // for status
	open      atomic.Int32                    // tasks that an idle node could take
	idle      chan string                     // nodes that ask for work
	ended     chan struct{}                   // closed when it has, and writes no rows any more
	after     chan struct{}                   // ended of the run that this one replaces; nil if there is none

	// ---
	shard    Shard
	slots    []sharding.SlotRange // as planned and as answered for
	index    uint64
	pin      Pin    // zero: tasks read views at or above index
	rows     string // prefix of the part's rows
	claim    int
	pins     int       // taken by this run
	unpinned error     // what a replica said last that did not have the pin
	version  [2]uint64 // of the view that the plan was made on
	planned  uint64    // that view's index
	cached   bool      // the answer was known
	tasks    []*taskState
	replicas []*replicaTracker
	attempts int  // numbers them
	pending  int  // tasks not done
	news     bool // since the last publish
	total    Partial
	outcomes chan outcome
	answers  chan progress
	wg       sync.WaitGroup

	// Accepted, not yet in the log; nothing is if there is no pin.
	fresh    []Row
	kept     int           // bytes of all results that were written, or are to be
	tally    int           // tasks in fresh
	since    time.Duration // when the first of them came
	flushing bool
	flushed  chan error
}

// outcome is how an attempt ended.
type outcome struct {
	attempt *attempt
	reply   taskReply
	partial *Partial
	err     error
}

// progress is how far an attempt is, by its worker.
type progress struct {
	attempt *attempt
	cut     bool // it was asked to leave its tail to others
	reply   statusReply
	err     error
}

// run answers with the partial of all slots that the shard owned, or with an error. CodeRefused
// means that trying again will not help, CodeSlotsMoved that the shards must be asked again together.
func (r *shardRun) run() (shardReply, *Partial, error) {
	if r.after != nil {
		select { // two masters at once would write rows of one claim
		case <-r.after:
		case <-r.ctx.Done():
			return shardReply{}, nil, ended(r.ctx)
		}
	}
	if err := r.prepare(); err != nil {
		return shardReply{}, nil, err
	}
	r.outcomes, r.answers, r.flushed = make(chan outcome), make(chan progress), make(chan error)
	err := r.loop()
	// Whoever still works on this works for nothing.
	r.cancel(transport.Errorf(transport.CodeRefused, "shard part has ended"))
	r.drain()
	if err != nil {
		return shardReply{}, nil, err
	}
	r.keep()
	reply := shardReply{runKey: r.req.runKey, Report: *r.published.Load()}
	for _, s := range r.slots {
		reply.Slots = append(reply.Slots, [2]uint16{s.From, s.To})
	}
	return reply, &r.total, nil
}

// drain waits for all that was started.
func (r *shardRun) drain() {
	over := make(chan struct{})
	go func() { r.wg.Wait(); close(over) }()
	for {
		select {
		case <-r.outcomes:
		case <-r.answers:
		case <-r.flushed:
		case <-over:
			return
		}
	}
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

// loop starts what schedule says, takes what comes of it, and ends when every task is done and in the log; or when a task has found that
// the job has no answer, whatever others find.
func (r *shardRun) loop() error {
	tick, refresh := time.NewTicker(runTick), time.NewTicker(refreshTick)
	defer tick.Stop()
	defer refresh.Stop()
	for r.pending > 0 && r.total.Err() == nil || r.tally > 0 || r.flushing {
		if err := r.act(); err != nil {
			return err
		}
		select {
		case <-r.ctx.Done():
			return ended(r.ctx)
		case o := <-r.outcomes:
			if err := r.take(o); err != nil {
				return err
			}
			r.publish()
		case p := <-r.answers:
			r.hear(p)
			r.news = true
		case err := <-r.flushed:
			if r.flushing = false; err != nil && r.ctx.Err() == nil {
				// The answer is right all the same; only the death of this master would cost more.
				r.m.log.Warn("results of tasks are not in the log", "job", r.req.Job, "shard", r.req.Shard, "err", err)
			}
		case node := <-r.idle:
			for _, replica := range r.replicas {
				// Without a pin there is no tail to give: it would be read at another index than the rest.
				replica.fetches = replica.fetches || replica.Node == node && r.pin.ID != 0
			}
		case <-tick.C: // time alone may make a second attempt due
		case <-refresh.C:
			if err := r.refresh(); err != nil {
				return err
			}
			if r.news {
				r.publish()
			}
			r.askAll()
			r.giveUp()
		}
	}
	return nil
}

// fetch notes that a node asks for work. It never blocks.
func (r *shardRun) fetch(node string) {
	select {
	case r.idle <- node:
	default:
	}
}

// act carries out what is due.
func (r *shardRun) act() error {
	now := time.Since(r.start)
	if r.pin.ID != 0 && r.pending > 0 && r.pinLost() {
		r.m.log.Warn("every replica has lost the pinned view of a job, beginning anew", "job", r.req.Job, "shard", r.req.Shard, "index", r.index, "err", r.unpinned)
		return r.repin()
	}
	for _, a := range schedule(now, r.tasks, r.replicas) {
		if a.cut != nil {
			r.ask(a.cut, true)
		} else {
			r.launch(a)
			r.news = true
		}
	}
	open := 0
	for _, t := range r.tasks {
		if !t.done && r.pin.ID != 0 { // without a pin, nobody gets one for asking
			open++
		}
	}
	r.open.Store(int32(open))
	due := r.tally >= flushTasks || r.pending == 0 || r.total.Err() != nil || now-r.since >= flushAfter
	if r.tally > 0 && !r.flushing && due {
		r.flush()
	}
	return nil
}

// pinLost says whether no replica that could run a task holds the pin, and none is at work with it.
func (r *shardRun) pinLost() bool {
	for _, t := range r.tasks {
		if len(t.live) > 0 {
			return false
		}
	}
	return !slices.ContainsFunc(r.replicas, func(t *replicaTracker) bool { return t.Alive && !t.unpinned })
}

// publish makes the present state visible to status.
func (r *shardRun) publish() {
	r.news = false
	report := &job.ShardReport{Shard: r.req.Shard, Master: r.m.t.Self(), Index: r.index, Done: r.pending == 0 || r.total.Err() != nil}
	if r.shard.Pinning() { // or the coordinator may not know these words
		report.Exact, report.Cached = r.pin.ID != 0 || r.cached, r.cached
		if len(r.tasks) == 1 && r.tasks[0].done { // one view was read, whichever
			report.Index, report.Exact = r.tasks[0].report.Index, true
		}
	}
	for _, t := range r.tasks {
		task := t.report
		task.FailedOn = append([]string(nil), t.failedOn...)
		if !t.done {
			t.tellRunning(&task, time.Since(r.start))
		}
		report.Tasks = append(report.Tasks, task)
	}
	r.published.Store(report)
}

// tellRunning adds what is known of the attempt that has come furthest, if there is one. It may wait for its turn on its node.
func (t *taskState) tellRunning(report *job.TaskReport, now time.Duration) {
	report.Node, report.Role = "", ""
	for i, a := range t.live {
		if i == 0 || a.share > report.Share {
			report.Node, report.Role = a.replica.Node, a.role
			report.Records, report.Bytes, report.Share = a.records, a.scanned, a.share
			if report.Millis = 0; a.running {
				report.Millis = (now - a.started).Milliseconds()
			}
		}
	}
}
