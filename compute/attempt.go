package compute

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// What a shard's part has workers do, and what it makes of their answers. All methods of shardRun here are its loop's.

func (r *shardRun) launch(l action) {
	t := l.task
	r.attempts++
	now := time.Since(r.start)
	a := &attempt{id: r.attempts, task: t, replica: l.replica, role: job.RoleFollower, started: now, moved: now}
	if l.replica.Leader {
		a.role = job.RoleLeader
	}
	ctx, cancel := context.WithCancel(r.ctx)
	if !r.shard.Pinning() { // nor does it say how far it is: see giveUp
		ctx, cancel = context.WithTimeout(r.ctx, attemptTimeout+time.Duration(t.Records)*attemptPerRecord)
	}
	a.cancel = cancel
	if len(t.live) > 0 && r.shard.Pinning() { // or the coordinator may not know the word
		t.report.Backups++
	}
	t.live = append(t.live, a)
	l.replica.inFlight++
	l.replica.fetches = false
	t.report.Attempts++
	t.report.Node, t.report.Role = l.replica.Node, a.role
	req := taskRequest{
		taskKey: r.keyOf(a), Index: r.index, Pin: r.pin.ID, WantBytes: r.shard.Pinning(), From: t.From, To: t.To, Spec: r.req.Spec,
	}
	node := l.replica.Node // the tracker is the loop's
	r.wg.Go(func() {
		defer cancel()
		o := outcome{attempt: a}
		o.reply, o.partial, o.err = r.m.ask(ctx, node, req)
		r.outcomes <- o
	})
}

func (r *shardRun) keyOf(a *attempt) taskKey {
	return taskKey{runKey: r.req.runKey, Task: a.task.ID, Attempt: a.id}
}

// askAll asks the workers of all attempts that have run for a while how far they are.
func (r *shardRun) askAll() {
	if !r.shard.Pinning() { // who does not know pins does not know the question
		return
	}
	for _, t := range r.tasks {
		for _, a := range t.live {
			if time.Since(r.start)-a.started >= refreshTick {
				r.ask(a, false)
			}
		}
	}
}

// giveUp ends attempts that have not come further for too long, and do not wait for a turn. One that does, however slowly, goes on: a node may have little to spare for
// jobs, and another attempt would fare no better.
func (r *shardRun) giveUp() {
	if !r.shard.Pinning() {
		return
	}
	for _, t := range r.tasks {
		for _, a := range t.live {
			if time.Since(r.start)-max(a.moved, a.waited) > attemptTimeout {
				a.cancel()
			}
		}
	}
}

// ask asks a worker how far it is, and with cut to leave the tail of its task to others.
func (r *shardRun) ask(a *attempt, cut bool) {
	if a.asking && !cut || a.cutting {
		return
	}
	a.asking, a.cutting = true, cut
	node, key := a.replica.Node, r.keyOf(a)
	r.wg.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, askWait)
		defer cancel()
		p := progress{attempt: a, cut: cut}
		var req []byte
		if req, p.err = encodeMessage(statusRequest{taskKey: key, Cut: cut}, nil); p.err == nil {
			var data []byte
			if data, p.err = r.m.t.Call(ctx, node, transport.LaneControl, transport.MethodTaskStatus, req); p.err == nil {
				_, p.err = decodeMessage(data, &p.reply)
			}
		}
		r.answers <- p
	})
}

// hear notes how far an attempt is. If its worker has left a tail, that becomes a task.
func (r *shardRun) hear(p progress) {
	a := p.attempt
	a.asking, a.cutting = false, a.cutting && !p.cut
	if p.cut && (p.err != nil || p.reply.To >= a.task.To) {
		a.vain = time.Since(r.start)
	}
	if p.err != nil || !slices.Contains(a.task.live, a) {
		return
	}
	if p.reply.Bytes > a.scanned || p.reply.Running != a.running {
		a.moved = time.Since(r.start)
	}
	if p.reply.Running {
		// If its node has asked for work, then before this task came to it. Should it have done so since, it will again.
		a.replica.fetches = false
	} else { // it waits for its turn, which may take as long as other tasks do
		a.waited = time.Since(r.start)
	}
	a.running, a.scanned, a.records = p.reply.Running, p.reply.Bytes, p.reply.Records
	r.shorten(a.task, p.reply.To)
	// A second attempt may be beyond what the first has left to others.
	a.share = min(max(float64(int(p.reply.At)-int(a.task.From)), 0)/float64(int(a.task.To-a.task.From)+1), 1)
}

// shorten makes a task of what a worker has left of its own.
func (r *shardRun) shorten(t *taskState, to sharding.Slot) {
	if t.done || to < t.From || to >= t.To || r.pin.ID == 0 { // without a pin nobody was asked to
		return
	}
	all := int64(t.To-t.From) + 1
	tail := Task{From: to + 1, To: t.To}
	part := int64(tail.To-tail.From) + 1
	for _, a := range t.live {
		a.cutAt = time.Since(r.start)
	}
	tail.Records, tail.Bytes = t.Records*part/all, t.Bytes*part/all // keys are spread by their hashes
	t.Records, t.Bytes, t.To, t.report.To = t.Records-tail.Records, t.Bytes-tail.Bytes, to, to
	r.add(tail)
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
	exact := req.Pin == 0 || reply.Index == req.Index
	whole := reply.To == req.To || req.Pin != 0 && reply.To >= req.From && reply.To < req.To
	if reply.taskKey != req.taskKey || reply.From != req.From || !whole || reply.Index < req.Index || !exact {
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
	if i := slices.Index(t.live, a); i >= 0 {
		t.live = slices.Delete(t.live, i, i+1)
	}
	if t.done || !slices.Contains(r.tasks, t) { // or it was of a pin that is lost
		return nil
	}
	if o.err != nil {
		if r.ctx.Err() != nil {
			return ended(r.ctx)
		}
		return r.takeFailure(a, o.err, now)
	}
	if o.reply.To > t.To { // it was cut for its other attempt, which failed; the tail is another task's by now
		r.m.log.Warn("answer to more than its task", "job", r.req.Job, "shard", r.req.Shard, "task", t.ID, "node", a.replica.Node)
		return nil
	}
	r.shorten(t, o.reply.To) // the worker was asked to, and this is the first that is heard of it
	t.done = true
	r.pending--
	r.total.Merge(o.partial)
	if err := r.memory.grow(r.total.memory()); err != nil {
		return err // the coordinator asks again: what is in the log is there then
	}
	a.replica.strikes = 0
	t.report.Done, t.report.Node, t.report.Role, t.report.Index = true, a.replica.Node, a.role, o.reply.Index
	t.report.Records, t.report.Bytes, t.report.Bad, t.report.Millis = o.partial.Records, o.reply.Bytes, o.partial.Bad, (now - a.started).Milliseconds()
	t.report.FailedOn = slices.Clone(t.failedOn)
	for _, other := range t.live {
		other.cancel()
	}
	r.remember(t, o.partial, now)
	return nil
}

// remember has an accepted result written to the shard's log.
func (r *shardRun) remember(t *taskState, p *Partial, now time.Duration) {
	if r.pin.ID == 0 {
		return
	}
	rows, err := doneRows(r.rows, r.claim, t.report, p)
	if err != nil {
		r.m.log.Warn("result of a task cannot be kept in the log", "job", r.req.Job, "shard", r.req.Shard, "task", t.ID, "err", err)
		return
	}
	for _, row := range rows {
		r.kept += len(row.Name) + len(row.Value)
	}
	if r.kept > maxKept { // the next master would do the task again
		return
	}
	if r.tally == 0 {
		r.since = now
	}
	r.fresh = append(r.fresh, rows...)
	r.tally++
}

// flush writes what was accepted. With the last of it the pin has served.
func (r *shardRun) flush() {
	rows, unpin := r.fresh, []uint64(nil)
	if r.pending == 0 {
		unpin = []uint64{r.pin.ID}
	}
	r.fresh, r.tally, r.flushing = nil, 0, true
	r.wg.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, flushWait)
		defer cancel()
		r.flushed <- r.shard.Change(ctx, rows, nil, unpin)
	})
}

func (r *shardRun) takeFailure(a *attempt, err error, now time.Duration) error {
	t := a.task
	switch transport.CodeOf(err) {
	case transport.CodeBusy: // a full queue is no fault
		a.replica.blockedUntil = now + busyPause
		t.report.Attempts--
		return nil
	case transport.CodeNoPin: // nor is this: the replica was made, restarted or replaced since the pin
		a.replica.unpinned, r.unpinned = true, err
		t.report.Attempts--
		return nil
	case transport.CodeSlotsMoved:
		// Nor is this, of anybody: the slots have gone since the plan was made. Another plan here would not do,
		// as their next owner may have planned without them: the coordinator has to ask all shards again.
		return err
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
	if !slices.Contains(t.failedOn, node) {
		t.failedOn = append(t.failedOn, node)
	}
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
