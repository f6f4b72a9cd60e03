package compute

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Ledger keeps the jobs' records in shard 0; node implements it. Every read is
// linearizable and every change compares revisions. Errors are numbered:
// CodeNotFound, CodeConflict, CodeUncertain and so on.
type Ledger interface {
	Get(ctx context.Context, id string) (rec job.Record, rev int64, err error)
	// Put stores rec under rec.ID if the record's revision is expectRev (0: it must not exist).
	Put(ctx context.Context, rec job.Record, expectRev int64) (newRev int64, err error)
	List(ctx context.Context) ([]job.Record, error)
	// Unfinished are those of List that have not ended. It is asked for every second or so, and does not read the others, of which there may be a
	// thousand of some KiB each.
	Unfinished(ctx context.Context) ([]job.Record, error)
	// Delete removes the record if its revision is rev, or whatever it is if rev < 0.
	Delete(ctx context.Context, id string, rev int64) error
}

const (
	maxRunning      = 4    // jobs at once in the cluster
	maxWaiting      = 100  // beyond it a submit is refused
	maxFinished     = 1000 // kept
	maxFinishedSize = 16 << 20
	// maxEpochs bounds the coordinators that may die over a job: it must not take them down for ever.
	maxEpochs = 8

	queueRetryAfter = 5 * time.Second
	fullAge         = 100 * time.Millisecond // and when it finds it full
	waitingAge      = time.Second            // how old this node's idea of the queue's length may be
	ledgerTick      = 5 * time.Second        // the coordinator rereads all unfinished jobs this often, in case a change went unnoticed
	pruneTick       = time.Minute            // and looks this often for records that are too many
	pruneEnded      = 100                    // or after so many jobs
	ledgerWait      = 5 * time.Second        // for one look at the ledger
	updateWait      = 10 * time.Second
	forgetWait      = 2 * time.Second
	minPoll         = 10 * time.Millisecond
	maxPoll         = 250 * time.Millisecond
)

// QueueFullError refuses a submit; it was certainly not queued.
type QueueFullError struct {
	Waiting    int
	RetryAfter time.Duration
}

func (e *QueueFullError) Error() string {
	return fmt.Sprintf("%d jobs are waiting; try again in %s", e.Waiting, e.RetryAfter)
}

// Unwrap gives it the number CodeBusy.
func (e *QueueFullError) Unwrap() error { return &transport.Error{Code: transport.CodeBusy} }

// Jobs is the cluster's list of jobs. Every node has one and serves clients
// from it; on the node that leads shard 0, RunLeader also runs the jobs.
type Jobs struct {
	self   string
	ledger Ledger
	env    Env
	now    func() time.Time
	log    *slog.Logger
	co     *Coordinator

	mu      sync.Mutex
	changed map[string]bool // ids for RunLeader to look at; nil while it does not run
	wake    chan struct{}
	// watching are the jobs that calls of Result wait for, as many as there are calls at most.
	watching map[string]watched
	waiting  int // jobs not started, as of waitingAt, and what was submitted here since
	asOf     time.Time
	counting chan struct{} // holds a token while somebody counts
}

// NewJobs returns the list for node self. now is the wall clock, which a job's record is told in.
func NewJobs(self string, ledger Ledger, env Env, now func() time.Time, log *slog.Logger) *Jobs {
	return &Jobs{self: self, ledger: ledger, env: env, now: now, log: log, co: NewCoordinator(now, log), wake: make(chan struct{}, 1), watching: map[string]watched{}, counting: make(chan struct{}, 1)}
}

// Submit queues a job and returns its id. With an id in the spec it is
// idempotent: the same spec again is the same job, another one is CodeConflict.
// Errors: *job.SpecError, CodeRefused for what the cluster's feature level does not allow yet, *QueueFullError, or the ledger's.
func (j *Jobs) Submit(ctx context.Context, spec job.Spec) (string, error) {
	spec = spec.WithDefaults()
	if err := j.check(spec); err != nil {
		return "", err
	}
	given := spec.ID != ""
	if !given {
		spec.ID = "j" + strings.ToLower(rand.Text()[:12])
	}
	if err := j.admit(ctx); err != nil {
		var full *QueueFullError
		if !given || !errors.As(err, &full) {
			return "", err
		}
		// A caller whose answer was lost must not hear that its job was not queued when it was.
		known := j.retry(ctx, func(ctx context.Context) error { return j.same(ctx, spec) })
		switch {
		case known == nil:
			return spec.ID, nil
		case transport.CodeOf(known) == transport.CodeNotFound:
			return "", err
		}
		return "", fmt.Errorf("submit job %s: %w", spec.ID, known)
	}
	rec := job.Record{ID: spec.ID, Instance: strings.ToLower(rand.Text()[:8]), Spec: spec, State: job.Queued, SubmittedMillis: j.now().UnixMilli()}
	rec.Log(j.now(), "submitted by way of "+j.self)
	err := j.retry(ctx, func(ctx context.Context) error {
		_, err := j.ledger.Put(ctx, rec, 0)
		if transport.CodeOf(err) != transport.CodeConflict {
			return err
		}
		// There is one: ours, if an earlier try of this call or of the client went through unseen.
		return j.same(ctx, spec)
	})
	if err != nil {
		return "", fmt.Errorf("submit job %s: %w", spec.ID, err)
	}
	j.Changed(spec.ID)
	return spec.ID, nil
}

// check refuses a spec that cannot be run, or not yet.
func (j *Jobs) check(spec job.Spec) error {
	if _, err := compile(spec); err != nil { // expressions, too: a fault in one is told now and not by each task
		return err
	}
	// An older node would refuse its part of the job, or not understand its record.
	if has := j.env.Level(); has < sharding.LevelJobs && !spec.Classic() {
		return transport.Errorf(transport.CodeRefused, "%v", &sharding.LevelError{Has: has, Needs: sharding.LevelJobs})
	}
	return nil
}

// same says whether the ledger has the job of spec: nil if it has, CodeRefused if
// the id is another job's, CodeNotFound if it is nobody's.
func (j *Jobs) same(ctx context.Context, spec job.Spec) error {
	old, _, err := j.ledger.Get(ctx, spec.ID)
	if err == nil && old.Spec != spec {
		return &transport.Error{Code: transport.CodeRefused, Detail: "job " + spec.ID + " exists with another spec"}
	}
	return err
}

// admit refuses a job when the queue is full. The count may be a second old, so
// the bound is a soft one: nodes together may overshoot it by what they take in within that.
func (j *Jobs) admit(ctx context.Context) error {
	stale := func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		age := time.Since(j.asOf)
		return age > waitingAge || j.waiting >= maxWaiting && age > fullAge // some of them may have begun meanwhile
	}
	if stale() { // one counts for all that come meanwhile
		select {
		case j.counting <- struct{}{}:
			defer func() { <-j.counting }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if stale() {
		recs, err := j.ledger.Unfinished(ctx)
		if err != nil {
			return fmt.Errorf("count waiting jobs: %w", err)
		}
		waiting := 0
		for _, rec := range recs {
			if rec.State == job.Queued {
				waiting++
			}
		}
		j.mu.Lock()
		j.waiting, j.asOf = waiting, time.Now()
		j.mu.Unlock()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.waiting >= maxWaiting {
		return &QueueFullError{Waiting: j.waiting, RetryAfter: queueRetryAfter}
	}
	j.waiting++
	return nil
}

// Status returns the record as it is now.
func (j *Jobs) Status(ctx context.Context, id string) (job.Record, error) {
	rec, _, err := j.ledger.Get(ctx, id)
	return rec, err
}

// Result waits up to wait for the job to finish and returns the record as it then is.
func (j *Jobs) Result(ctx context.Context, id string, wait time.Duration) (job.Record, error) {
	deadline := time.Now().Add(wait)
	watch := j.watch(id)
	defer j.unwatch(id)
	for poll := minPoll; ; poll = min(poll*3/2, maxPoll) {
		rec, err := j.Status(ctx, id)
		left := time.Until(deadline)
		if err != nil || rec.State.Finished() || left <= 0 {
			return rec, err
		}
		select {
		case <-watch.changed: // a replica of the ledger is here, and heard of it first
			watch = j.rewatch(id)
		case <-time.After(min(poll, left)):
		case <-ctx.Done():
			return rec, nil // the record is right, only not final
		}
	}
}

// Cancel ends a job that has not finished. Cancelling twice is no error;
// cancelling one that has finished otherwise is CodeRefused.
func (j *Jobs) Cancel(ctx context.Context, id string) error {
	err := j.update(ctx, id, func(rec *job.Record) error {
		switch {
		case rec.State == job.Cancelled:
			return errNoChange
		case rec.State.Finished():
			return transport.Errorf(transport.CodeRefused, "job %s has already %s", id, rec.State)
		}
		rec.State, rec.Code, rec.Error = job.Cancelled, job.CodeCancelled, "cancelled"
		rec.FinishedMillis = j.now().UnixMilli()
		rec.DropRunning()
		rec.Log(j.now(), "cancelled by way of "+j.self)
		return nil
	})
	if err == nil {
		j.Changed(id)
	}
	return err
}

// List returns all jobs without their shards, the newest first.
func (j *Jobs) List(ctx context.Context) ([]job.Record, error) {
	recs, err := j.ledger.List(ctx)
	if err != nil {
		return nil, err
	}
	for i := range recs {
		recs[i] = recs[i].Summary()
	}
	slices.SortFunc(recs, func(a, b job.Record) int { return -bySubmit(a, b) })
	return recs, nil
}

func bySubmit(a, b job.Record) int {
	return cmp.Or(cmp.Compare(a.SubmittedMillis, b.SubmittedMillis), cmp.Compare(a.ID, b.ID))
}

// watched is a job whose end somebody waits for on this node.
type watched struct {
	waiters int
	changed chan struct{} // closed at the next change of its record that is applied here
}

func (j *Jobs) watch(id string) watched {
	j.mu.Lock()
	defer j.mu.Unlock()
	w := j.watching[id]
	if w.waiters == 0 {
		w.changed = make(chan struct{})
	}
	w.waiters++
	j.watching[id] = w
	return w
}

// rewatch is for who waits on.
func (j *Jobs) rewatch(id string) watched {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.watching[id]
}

func (j *Jobs) unwatch(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	w := j.watching[id]
	if w.waiters--; w.waiters == 0 {
		delete(j.watching, id)
		return
	}
	j.watching[id] = w
}

// Changed tells the loop, and who waits for the job here, that a job's record has changed: node calls it when
// this replica of shard 0 applies such a change, so that a submit starts and a
// cancel stops a job at once. It never blocks, and does nothing on a node that does not lead.
func (j *Jobs) Changed(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if w, ok := j.watching[id]; ok {
		close(w.changed)
		w.changed = make(chan struct{})
		j.watching[id] = w
	}
	if j.changed == nil {
		return
	}
	j.changed[id] = true // bounded by the ledger: a name is there once
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// errNoChange ends an update that has nothing to do.
var errNoChange = errors.New("no change")

// update changes a record by compare-and-set until it succeeds, change refuses,
// or ctx ends. change sees the present record each time, so it also finds its own
// change if an uncertain one went through.
func (j *Jobs) update(ctx context.Context, id string, change func(*job.Record) error) error {
	err := j.retry(ctx, func(ctx context.Context) error {
		rec, rev, err := j.ledger.Get(ctx, id)
		if err != nil {
			return err
		}
		if err := change(&rec); err != nil {
			return err
		}
		_, err = j.ledger.Put(ctx, rec, rev)
		return err
	})
	if errors.Is(err, errNoChange) {
		return nil
	}
	return err
}

// retry repeats try while the ledger is away, contended or unclear about what
// it did; try must find out what that was. Other errors and the end of ctx end it.
// If one of the tries may have done something, and none found out, its end is
// CodeUncertain even when the last one certainly did nothing.
func (j *Jobs) retry(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, updateWait)
	defer cancel()
	unsure := false
	for pause := minPoll; ; pause = min(2*pause, maxPoll) {
		err := try(ctx)
		switch transport.CodeOf(err) {
		case transport.CodeUncertain, transport.CodeLinkLost:
			unsure = true
		case transport.CodeConflict, transport.CodeUnavailable,
			transport.CodeNotLeader, transport.CodeNoReplica, transport.CodeBusy, transport.CodeTimeout, transport.CodeClosed:
		default:
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			if unsure && transport.Certain(err) {
				err = transport.Errorf(transport.CodeUncertain, "an earlier attempt may have been carried out; the last one met: %v", err)
			}
			return err
		}
	}
}
