package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Env is the cluster as a coordinator needs it; node implements it.
type Env interface {
	// Shards lists every shard of the cluster.
	Shards() []uint32
	// CallLeader calls the node that leads the shard now, as far as is known,
	// which may be this one. Its errors are numbered; CodeUnavailable if no leader is known.
	CallLeader(ctx context.Context, shard uint32, m transport.Method, req []byte) ([]byte, error)
}

// CoordinatorEnv is Env and a place to keep progress.
type CoordinatorEnv interface {
	Env
	// Save keeps the record. CodeConflict ends the run: the job was cancelled or taken over.
	Save(ctx context.Context, rec job.Record) error
}

const (
	progressTick = 500 * time.Millisecond // how often masters are asked how far they are
	statusWait   = 400 * time.Millisecond
	saveTick     = time.Second // how often progress is written to the ledger
	saveWait     = 3 * time.Second
	cancelWait   = time.Second // how long the end of a cancelled run waits for its masters

	minShardPause = 50 * time.Millisecond
	maxShardPause = time.Second
	// maxMasterLosses bounds the masters that may die over one shard's part: a
	// job that kills them must not do so for ever.
	maxMasterLosses = 8
	// maxShardCalls bounds the shards of one job that are under way at once.
	maxShardCalls = 64
)

// Coordinator runs one job over all shards.
type Coordinator struct {
	now func() time.Time
	log *slog.Logger
}

// NewCoordinator returns a coordinator; it may run any number of jobs at once. now is the wall clock.
func NewCoordinator(now func() time.Time, log *slog.Logger) *Coordinator {
	return &Coordinator{now: now, log: log}
}

// Run runs the job of rec and returns the record in its final state; or still
// running if ctx ended or the job was taken over, which decides nothing. It answers for
// every slot or not at all: a shard that fails fails the job.
func (c *Coordinator) Run(ctx context.Context, rec job.Record, env CoordinatorEnv) job.Record {
	run := &jobRun{rec: rec, env: env, now: c.now, log: c.log, updates: make(chan shardUpdate), calls: make(chan struct{}, maxShardCalls)}
	timed, cancel := context.WithTimeoutCause(ctx, rec.Spec.Timeout(), job.ErrTimeout)
	defer cancel()
	run.ctx, run.cancel = context.WithCancelCause(timed)
	err := run.loop()
	run.stop()
	if ctx.Err() != nil || errors.Is(err, errSuperseded) {
		return run.rec
	}
	run.conclude(err)
	return run.rec
}

// errSuperseded: the ledger says that the job is no longer this coordinator's.
var errSuperseded = errors.New("job was cancelled or taken over")

// jobRun is one run of one job. Its loop owns the record; each shard has a
// goroutine that sends updates.
type jobRun struct {
	env     CoordinatorEnv
	now     func() time.Time
	log     *slog.Logger
	ctx     context.Context
	cancel  context.CancelCauseFunc
	updates chan shardUpdate
	calls   chan struct{} // a token for each shard under way
	wg      sync.WaitGroup

	rec     job.Record
	total   Partial
	covered [][2]uint16
}

// shardUpdate is a shard's progress, or its end if done.
type shardUpdate struct {
	i       int // position in rec.Shards
	done    bool
	reply   shardReply
	partial *Partial
	err     error
}

func (r *jobRun) loop() error {
	shards := slices.Clone(r.env.Shards())
	slices.Sort(shards)
	if len(shards) == 0 {
		return errors.New("the cluster has no shards yet")
	}
	r.rec.Shards = make([]job.ShardReport, len(shards))
	for i, shard := range shards {
		r.rec.Shards[i] = job.ShardReport{Shard: shard}
		r.wg.Go(func() { r.runShard(i, shard) })
	}
	r.progress()
	save := time.NewTicker(saveTick)
	defer save.Stop()
	for pending := len(shards); pending > 0; {
		select {
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		case u := <-r.updates:
			if u.err != nil {
				return fmt.Errorf("shard %d: %w", shards[u.i], u.err)
			}
			if u.done {
				pending--
				r.total.Merge(u.partial)
				r.covered = append(r.covered, u.reply.Slots...)
			}
			r.rec.Shards[u.i] = u.reply.Report
			r.progress()
		case <-save.C:
			if err := r.save(); err != nil {
				return err
			}
		}
	}
	return checkCovered(r.covered)
}

// save writes progress. Only a lost job ends the run; a ledger that does not answer just now is tried again.
func (r *jobRun) save() error {
	ctx, cancel := context.WithTimeout(r.ctx, saveWait)
	defer cancel()
	rec := r.rec
	rec.Shards = slices.Clone(rec.Shards) // the loop goes on changing its own
	err := r.env.Save(ctx, rec)
	if transport.CodeOf(err) == transport.CodeConflict {
		return errSuperseded
	}
	if err != nil && r.ctx.Err() == nil {
		r.log.Warn("job progress not saved", "job", r.rec.ID, "err", err)
	}
	return nil
}

// stop calls off what still runs, on masters too, and waits.
func (r *jobRun) stop() {
	r.cancel(context.Canceled)
	go func() { r.wg.Wait(); close(r.updates) }()
	for range r.updates {
	}
}

// checkCovered says whether the shards' slots are every slot exactly once. They
// would not be if a shard were forgotten or asked twice.
func checkCovered(ranges [][2]uint16) error {
	slices.SortFunc(ranges, func(a, b [2]uint16) int { return int(a[0]) - int(b[0]) })
	next := 0
	for _, r := range ranges {
		if int(r[0]) != next || r[1] < r[0] {
			return fmt.Errorf("the shards' answers do not cover slot %d exactly once", min(next, int(r[0])))
		}
		next = int(r[1]) + 1
	}
	if next != sharding.Slots {
		return fmt.Errorf("the shards' answers do not cover slot %d exactly once", next)
	}
	return nil
}

// conclude turns the end of the loop into the job's end.
func (r *jobRun) conclude(err error) {
	rec := &r.rec
	rec.FinishedMillis = r.now().UnixMilli()
	rec.Records, rec.Bad, rec.BadKeys = r.total.Records, r.total.Bad, r.total.BadKeys()
	var value job.Value
	if err == nil {
		value, rec.Note, err = r.total.Final(rec.Spec)
	}
	if err == nil {
		rec.State, rec.Result = job.Succeeded, &value
		return
	}
	rec.State, rec.Result, rec.Error, rec.Code = job.Failed, nil, err.Error(), codeOf(err)
	if rec.Code == job.CodeTimeout {
		rec.Error = fmt.Sprintf("not finished within %s; %d of %d shards were", rec.Spec.Timeout(), rec.Progress.ShardsDone, rec.Progress.Shards)
	}
}

func codeOf(err error) job.Code {
	var bad *BadRecordsError
	switch {
	case errors.Is(err, job.ErrNoRecords):
		return job.CodeNoRecords
	case errors.Is(err, job.ErrTimeout):
		return job.CodeTimeout
	case errors.As(err, &bad):
		return job.CodeBadRecords
	}
	return job.CodeFailed
}

// progress sums up the shards.
func (r *jobRun) progress() {
	p := job.Progress{Shards: len(r.rec.Shards)}
	for _, s := range r.rec.Shards {
		if s.Done {
			p.ShardsDone++
		}
		p.Tasks += len(s.Tasks)
		for _, t := range s.Tasks {
			if t.Done {
				p.TasksDone++
				p.Records += t.Records
			}
		}
	}
	r.rec.Progress = p
}

// runShard asks the shard's master, and its successor if it dies or loses the
// lead: the whole part again, for what the old one had is gone with it.
func (r *jobRun) runShard(i int, shard uint32) {
	select {
	case r.calls <- struct{}{}:
		defer func() { <-r.calls }()
	case <-r.ctx.Done():
		return
	}
	key := runKey{Job: r.rec.ID, Epoch: r.rec.Epoch, Shard: shard}
	pause, losses := minShardPause, 0
	for {
		key.Try++
		reply, partial, err := r.askMaster(i, key)
		if r.ctx.Err() != nil {
			r.cancelMaster(key)
			return
		}
		if err == nil {
			r.updates <- shardUpdate{i: i, done: true, reply: reply, partial: partial}
			return
		}
		switch transport.CodeOf(err) {
		case transport.CodeRefused, transport.CodeBadRequest, transport.CodeTooLarge:
			r.updates <- shardUpdate{i: i, err: err}
			return
		case transport.CodeLinkLost, transport.CodeUnknown:
			r.cancelMaster(key) // it may be alive behind a broken link
			if losses++; losses == maxMasterLosses {
				r.updates <- shardUpdate{i: i, err: fmt.Errorf("lost its master %d times: %w", losses, err)}
				return
			}
		}
		r.log.Info("asking a shard's master again", "job", key.Job, "shard", shard, "try", key.Try, "err", err)
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
			return
		}
		pause = min(2*pause, maxShardPause)
	}
}

// askMaster makes one call and reports progress while it waits for the answer.
func (r *jobRun) askMaster(i int, key runKey) (shardReply, *Partial, error) {
	req, err := encodeMessage(shardRequest{runKey: key, Spec: r.rec.Spec}, nil)
	if err != nil {
		return shardReply{}, nil, err
	}
	type answer struct {
		data []byte
		err  error
	}
	answers := make(chan answer, 1)
	r.wg.Go(func() {
		data, err := r.env.CallLeader(r.ctx, key.Shard, transport.MethodShardJob, req)
		answers <- answer{data, err}
	})
	tick := time.NewTicker(progressTick)
	defer tick.Stop()
	for {
		select {
		case a := <-answers:
			if a.err != nil {
				return shardReply{}, nil, a.err
			}
			return decodeShardReply(a.data, key)
		case <-tick.C:
			if reply, ok := r.askStatus(key); ok {
				select {
				case r.updates <- shardUpdate{i: i, reply: reply}:
				case <-r.ctx.Done():
				}
			}
		}
	}
}

func decodeShardReply(data []byte, key runKey) (reply shardReply, p *Partial, err error) {
	rest, err := decodeMessage(data, &reply)
	if err != nil {
		return reply, nil, err
	}
	if reply.runKey != key || reply.Report.Shard != key.Shard || !reply.Report.Done {
		return reply, nil, fmt.Errorf("answer to another question: %+v for %+v", reply.runKey, key)
	}
	p, err = DecodePartial(rest)
	return reply, p, err
}

func (r *jobRun) askStatus(key runKey) (reply shardReply, ok bool) {
	ctx, cancel := context.WithTimeout(r.ctx, statusWait)
	defer cancel()
	req, err := encodeMessage(key, nil)
	if err != nil {
		return reply, false
	}
	data, err := r.env.CallLeader(ctx, key.Shard, transport.MethodShardJobStatus, req)
	if err != nil {
		return reply, false
	}
	_, err = decodeMessage(data, &reply)
	reply.Report.Done = false // only the answer itself makes a shard done
	return reply, err == nil && reply.runKey == key
}

// cancelMaster tells the shard's leader that nobody waits for it any more.
func (r *jobRun) cancelMaster(key runKey) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), cancelWait)
	defer cancel()
	req, err := encodeMessage(key, nil)
	if err == nil {
		_, err = r.env.CallLeader(ctx, key.Shard, transport.MethodShardJobCancel, req)
	}
	if err != nil {
		r.log.Debug("cancel not delivered to master", "job", key.Job, "shard", key.Shard, "err", err)
	}
}
