package compute

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// How a shard's part begins: with an answer that is known, with what another master has left, or anew.

// prepare finds out what the shard's log remembers of this part, and goes on from there; or it cuts the shard into tasks, which
// all read one pinned index, unless there is only one.
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
	r.slots = slices.Clone(view.Slots()) // none, if the shard owns none: then it answers for none
	r.version, r.planned = view.Version(), view.Index()
	if r.recall(view) {
		r.publish()
		return nil
	}
	if !r.shard.Pinning() {
		r.plan(view, r.slots)
		r.publish()
		return nil
	}
	r.rows = roundPrefix(r.req.Job, r.req.Round)
	known, err := r.remembered(view)
	if err != nil {
		return err
	}
	r.claim = known.claims
	if known.claims > 0 {
		err = r.resume(known)
	} else if r.plan(view, r.slots); len(r.tasks) > 1 {
		err = r.repin()
	}
	r.publish()
	return err
}

// recall takes the answer to the same question, if it is known and nothing has changed since. The view stands at or above an index that
// was taken after the submit, so the answer is that of a scan now.
func (r *shardRun) recall(view View) bool {
	key, ok := question(r.req.Shard, r.req.Spec)
	if !ok || r.req.Spec.Cache == job.CacheOff || !r.shard.Pinning() {
		return false
	}
	slots, p, ok := r.m.cache.get(key, r.version)
	if ok {
		r.slots, r.total, r.index, r.cached = slots, *p, view.Index(), true
	}
	return ok
}

// keep has the answer remembered for who asks the same of the same state. A task that read a later one, as it may without a pin, is no answer about
// that of the plan.
func (r *shardRun) keep() {
	exact := r.pin.ID != 0 && r.pins > 0 || len(r.tasks) == 1 && r.tasks[0].report.Index == r.planned
	if key, ok := question(r.req.Shard, r.req.Spec); ok && exact && !r.cached && r.total.Err() == nil && r.req.Spec.Cache != job.CacheOff {
		r.m.cache.put(key, r.version, r.slots, &r.total)
	}
}

// plan cuts slots into tasks, behind those that there are.
func (r *shardRun) plan(view View, slots []sharding.SlotRange) {
	for _, task := range Plan(view.SlotCount, slots, len(r.replicas), r.req.Spec) {
		r.add(task)
	}
}

func (r *shardRun) add(task Task) {
	task.ID = len(r.tasks)
	r.tasks = append(r.tasks, &taskState{Task: task, report: job.TaskReport{ID: task.ID, From: task.From, To: task.To}})
	r.pending++
}

// remembered is what the shard's log says of this part.
func (r *shardRun) remembered(view View) (found, error) {
	var rows []Row
	view.Records(r.rows, func(name string, value []byte, revision int64) bool {
		rows = append(rows, Row{Name: name, Value: slices.Clone(value), Revision: revision})
		return true
	})
	known, err := readWork(r.rows, rows)
	if err != nil {
		return found{}, transport.Errorf(transport.CodeRefused, "what shard %d remembers of job %s cannot be read: %v", r.req.Shard, r.req.Job, err)
	}
	return known, nil
}

// resume goes on where another master stopped, at the same index. Results of that one may be on their way into the log, and count if
// they come before this one's claim: so it claims, and then looks again what there is. Or it would do some of it twice, and what it
// writes would not fit together with that.
func (r *shardRun) resume(known found) error {
	r.pin, r.slots, r.index = known.pin, known.slots, known.pin.Index
	if len(known.left()) > 0 {
		var sofar Partial
		for _, d := range known.done {
			sofar.Merge(d.partial)
		}
		if err := r.memory.grow(sofar.memory()); err != nil { // before the claim, of which each try would leave one
			return err
		}
		if err := r.takeOver(nil, nil); err != nil {
			return err
		}
		view, err := r.shard.View()
		if err != nil {
			return err
		}
		defer view.Close()
		if known, err = r.remembered(view); err != nil {
			return err
		}
		if known.claims != r.claim {
			return transport.Errorf(transport.CodeConflict, "shard %d of job %s has another master by now", r.req.Shard, r.req.Job)
		}
		r.plan(view, known.left())
	}
	for _, d := range known.done {
		task := &taskState{Task: Task{ID: len(r.tasks), From: d.report.From, To: d.report.To, Records: d.report.Records, Bytes: d.report.Bytes}, done: true, report: d.report}
		task.report.ID = task.ID
		r.tasks = append(r.tasks, task)
		r.total.Merge(d.partial)
	}
	return r.memory.grow(r.total.memory())
}

// repin begins the part anew at the present index: for the first time, or because every replica has lost the pin.
func (r *shardRun) repin() error {
	if r.pins++; r.pins > maxPins {
		return transport.Errorf(transport.CodeRefused, "all replicas of shard %d have let go of their view of index %d, for the %d. time: the job takes too long for them, or they are short of room (%v)", r.req.Shard, r.index, maxPins, r.unpinned)
	}
	id := rand.Uint64()>>1 | 1
	index, err := r.shard.Pin(r.ctx, id, pinTTL)
	if err != nil {
		return err
	}
	pin := Pin{ID: id, Index: index}
	view, err := r.m.shards.Pinned(r.ctx, r.req.Shard, pin)
	if err != nil { // too many are pinned here, say: the others need not keep theirs
		return errors.Join(err, r.shard.Change(r.ctx, nil, nil, []uint64{id}))
	}
	defer view.Close()
	r.pin, r.index, r.slots, r.version = pin, index, slices.Clone(view.Slots()), view.Version()
	r.tasks, r.pending, r.total, r.fresh, r.tally = nil, 0, Partial{}, nil, 0
	for _, replica := range r.replicas {
		replica.unpinned = false
	}
	r.plan(view, r.slots)
	err = r.takeOver(rowsBut(view, r.req.Job, r.rows))
	if err != nil && transport.Certain(err) { // no row tells of the pin, so nobody else will
		err = errors.Join(err, r.shard.Change(r.ctx, nil, nil, []uint64{id}))
	}
	return err
}

// rowsBut are the names of a job's rows but for those that begin with present, and the pins that they tell of.
func rowsBut(view View, jobKey, present string) (names []string, pins []uint64) {
	view.Records(jobPrefix(jobKey), func(name string, value []byte, _ int64) bool {
		if present != "" && strings.HasPrefix(name, present) {
			return true
		}
		names = append(names, name)
		var c claimRow
		if strings.Contains(name, "/c/") && json.Unmarshal(value, &c) == nil && !slices.Contains(pins, c.Pin.ID) {
			pins = append(pins, c.Pin.ID)
		}
		return true
	})
	return names, pins
}

// takeOver claims the part: rows that earlier masters have on their way count no more. Rows of earlier rounds, and their pins, go.
func (r *shardRun) takeOver(drop []string, unpin []uint64) error {
	c := claimRow{Pin: r.pin, Master: r.m.t.Self()}
	for _, s := range r.slots {
		c.Slots = append(c.Slots, [2]uint16{s.From, s.To})
	}
	rows, err := claimRows(r.rows, r.claim+1, c)
	if err != nil {
		return err
	}
	if err := r.shard.Change(r.ctx, rows, drop, unpin); err != nil {
		return err // in conflict: another master was quicker
	}
	r.claim++
	return nil
}
