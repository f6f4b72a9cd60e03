package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Env is the cluster as a coordinator needs it; node implements it.
type Env interface {
	// Shards lists the shards that own slots, as far as is known. One left out is noticed: its slots are missing.
	Shards() []uint32
	// CallLeader calls the node that leads the shard now, as far as is known,
	// which may be this one. Its errors are numbered; CodeUnavailable if no leader is known.
	CallLeader(ctx context.Context, shard uint32, m transport.Method, req []byte) ([]byte, error)
	// Level is the cluster's feature level, as far as is known. It only rises.
	Level() int
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

	// A round fails when slots change hands in it. Most of them wait for one move's last step, which takes
	// less than a second; the job's time-out bounds them long before their number does, unless something is wrong.
	maxRounds     = 100
	minRoundPause = 50 * time.Millisecond
	maxRoundPause = 2 * time.Second
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
// every slot or not at all: a shard that fails fails the job. When slots changed hands in a way that its shards'
// answers do not fit together, it asks them all again, until its time-out.
func (c *Coordinator) Run(ctx context.Context, rec job.Record, env CoordinatorEnv) job.Record {
	run := &jobRun{rec: rec, env: env, now: c.now, log: c.log, began: time.Now(), ran: time.Duration(rec.RanMillis) * time.Millisecond}
	timed, cancel := context.WithTimeoutCause(ctx, rec.Spec.Timeout()-run.ran, job.ErrTimeout) // a coordinator goes on with the time of the last one
	defer cancel()
	err := run.run(timed)
	if ctx.Err() != nil || errors.Is(err, errSuperseded) {
		return run.rec
	}
	run.conclude(err)
	return run.rec
}

// errSuperseded: the ledger says that the job is no longer this coordinator's.
var errSuperseded = errors.New("job was cancelled or taken over")

// jobRun is one run of one job: rounds, one after the other, until one counts every slot once.
type jobRun struct {
	env CoordinatorEnv
	now func() time.Time
	log *slog.Logger

	rec   job.Record
	began time.Time     // of this run
	ran   time.Duration // runs before it
	total Partial       // of the last round
	tries atomic.Int64  // calls of masters; a master takes a higher number for a newer call
}

// run returns nil when rec and total are of a round that counted every slot once.
func (r *jobRun) run(ctx context.Context) error {
	// A coordinator that takes over goes on in the last one's round: what shards have accepted in it counts.
	for round, pause := max(r.rec.Rounds, 1), minRoundPause; ; round, pause = round+1, min(2*pause, maxRoundPause) {
		if round > 1 {
			r.rec.Rounds = round
		}
		err := r.round(ctx)
		switch {
		case transport.CodeOf(err) != transport.CodeSlotsMoved:
			return err
		case round >= maxRounds:
			return fmt.Errorf("slots changed hands in each of %d rounds, run the job again when they stay: %w", round, err)
		}
		r.log.Info("slots changed hands under a job, asking all shards again", "job", r.rec.ID, "round", round, "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// round asks every shard that the map has now. CodeSlotsMoved means that slots changed hands meanwhile.
func (r *jobRun) round(ctx context.Context) error {
	round := &jobRound{jobRun: r, updates: make(chan shardUpdate), calls: make(chan struct{}, maxShardCalls)}
	round.ctx, round.cancel = context.WithCancelCause(ctx)
	r.total = Partial{}
	err := round.loop()
	round.stop()
	return err
}

// jobRound is one round. Its loop owns the record; each shard has a goroutine that sends updates.
type jobRound struct {
	*jobRun
	ctx     context.Context
	cancel  context.CancelCauseFunc
	updates chan shardUpdate
	calls   chan struct{} // a token for each shard under way
	wg      sync.WaitGroup
	covered []sharding.SlotRange
}

// shardUpdate is a shard's progress, or its end if done, or why it is asked once more.
type shardUpdate struct {
	i       int // position in rec.Shards
	done    bool
	trouble string
	reply   shardReply
	partial *Partial
	err     error
}

func (r *jobRound) loop() error {
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
	r.rec.Sum()
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
			if u.trouble != "" {
				report := &r.rec.Shards[u.i]
				report.Trouble, report.Attempts = u.trouble, max(report.Attempts, 1)+1
				report.DropRunning()
				r.rec.Sum()
				continue
			}
			if u.done {
				pending--
				r.total.Merge(u.partial)
				for _, slots := range u.reply.Slots {
					r.covered = append(r.covered, sharding.SlotRange{From: slots[0], To: slots[1]})
				}
			}
			r.rec.Shards[u.i] = u.reply.Report
			r.rec.Sum()
			if r.total.Err() != nil { // there is no answer, whatever the others find
				return nil
			}
		case <-save.C:
			if err := r.save(); err != nil {
				return err
			}
		}
	}
	return checkCovered(r.covered)
}

// save writes progress. Only a lost job ends the run; a ledger that does not answer just now is tried again.
func (r *jobRound) save() error {
	ctx, cancel := context.WithTimeout(r.ctx, saveWait)
	defer cancel()
	r.rec.RanMillis = r.ranMillis()
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
func (r *jobRound) stop() {
	r.cancel(context.Canceled)
	go func() { r.wg.Wait(); close(r.updates) }()
	for range r.updates {
	}
}

// checkCovered says with CodeSlotsMoved that the shards' slots are not every slot exactly once: one has changed hands
// between two answers, or the map did not have a shard yet.
func checkCovered(ranges []sharding.SlotRange) error {
	if slot, ok := sharding.Partition(ranges); !ok {
		return transport.Errorf(transport.CodeSlotsMoved, "the shards' answers do not cover slot %d exactly once", slot)
	}
	return nil
}

func (r *jobRun) ranMillis() int64 { return (r.ran + time.Since(r.began)).Milliseconds() }

// conclude turns the end of the loop into the job's end.
func (r *jobRun) conclude(err error) {
	rec := &r.rec
	rec.FinishedMillis, rec.RanMillis = r.now().UnixMilli(), r.ranMillis()
	rec.Cached = len(rec.Shards) > 0 && !slices.ContainsFunc(rec.Shards, func(s job.ShardReport) bool { return !s.Cached })
	rec.DropRunning()
	rec.Bytes = rec.Progress.Bytes
	rec.Records, rec.Filtered, rec.Bad, rec.BadKeys = r.total.Records, r.total.Filtered, r.total.Bad, r.total.BadKeys()
	var value job.Value
	if err == nil {
		value, rec.Note, err = r.total.Final(rec.Spec)
	}
	if err == nil {
		rec.State, rec.Result = job.Succeeded, &value
		if _, err = rec.Encode(); err == nil {
			return
		}
	}
	rec.State, rec.Result, rec.Error, rec.Code = job.Failed, nil, err.Error(), codeOf(err)
	if rec.Code == job.CodeTimeout {
		rec.Error = fmt.Sprintf("not finished within %s; %d of %d shards were", rec.Spec.Timeout(), rec.Progress.ShardsDone, rec.Progress.Shards)
		if rec.Rounds > 1 {
			rec.Error += fmt.Sprintf(" in round %d: slots kept changing hands", rec.Rounds)
		}
		if i := slices.IndexFunc(rec.Shards, func(s job.ShardReport) bool { return s.Trouble != "" }); i >= 0 {
			rec.Error += fmt.Sprintf("; shard %d was asked %d times, the last time because: %s", rec.Shards[i].Shard, rec.Shards[i].Attempts, rec.Shards[i].Trouble)
		}
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

// runShard asks the shard's master, and its successor if it dies or loses the lead, which goes on from what the shard's log has.
func (r *jobRound) runShard(i int, shard uint32) {
	select {
	case r.calls <- struct{}{}:
		defer func() { <-r.calls }()
	case <-r.ctx.Done():
		return
	}
	key := runKey{Job: r.rec.Key(), Epoch: r.rec.Epoch, Shard: shard}
	if r.env.Level() >= sharding.LevelPins { // else nothing is remembered, and a master may not know the word
		key.Round = r.rec.Rounds
	}
	pause, losses, trouble := minShardPause, 0, ""
	for attempts := 1; ; attempts++ {
		key.Try = int(r.tries.Add(1))
		reply, partial, err := r.askMaster(i, key, attempts, trouble)
		if r.ctx.Err() != nil {
			r.cancelMaster(key)
			return
		}
		if err == nil {
			r.updates <- shardUpdate{i: i, done: true, reply: reply, partial: partial}
			return
		}
		switch transport.CodeOf(err) {
		case transport.CodeRefused, transport.CodeBadRequest, transport.CodeTooLarge, transport.CodeSlotsMoved:
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
		trouble = job.Cut(err.Error())
		select { // who waits for the job is to know what for
		case r.updates <- shardUpdate{i: i, trouble: trouble}:
		case <-r.ctx.Done():
			return
		}
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
			return
		}
		pause = min(2*pause, maxShardPause)
	}
}

// askMaster makes one call, the round's attempts-th for the shard, and reports progress while it waits for the answer. trouble is why the
// call before it was in vain.
func (r *jobRound) askMaster(i int, key runKey, attempts int, trouble string) (reply shardReply, p *Partial, err error) {
	req, err := encodeMessage(shardRequest{runKey: key, Spec: r.rec.Spec}, nil)
	if err != nil {
		return reply, nil, err
	}
	type answer struct {
		data []byte
		err  error
	}
	answers := make(chan answer, 1)
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	r.wg.Go(func() {
		data, err := r.env.CallLeader(ctx, key.Shard, transport.MethodShardJob, req)
		answers <- answer{data, err}
	})
	tick := time.NewTicker(progressTick)
	defer tick.Stop()
	unknown := 0 // how often, in a row, the shard's leader has not known of it
	for {
		select {
		case a := <-answers:
			if a.err != nil {
				return reply, nil, a.err
			}
			reply, p, err = decodeShardReply(a.data, key)
			reply.Report.Attempts = attempts
			return reply, p, err
		case <-tick.C:
			reply, err := r.askStatus(key)
			switch {
			case err == nil:
				unknown = 0
				reply.Report.Attempts, reply.Report.Trouble = attempts, trouble
				select {
				case r.updates <- shardUpdate{i: i, reply: reply}:
				case <-r.ctx.Done():
				}
			case transport.CodeOf(err) == transport.CodeNotFound:
				// Once it may have ended this moment. Then another node leads: the master that was asked may stand still, and its link be
				// found dead only in some seconds. What it had done, the next one knows.
				if unknown++; unknown == 2 {
					return reply, nil, transport.Errorf(transport.CodeNotLeader, "the shard's leader does not know of it any more")
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

func (r *jobRound) askStatus(key runKey) (reply shardReply, err error) {
	ctx, cancel := context.WithTimeout(r.ctx, statusWait)
	defer cancel()
	req, err := encodeMessage(key, nil)
	if err != nil {
		return reply, err
	}
	data, err := r.env.CallLeader(ctx, key.Shard, transport.MethodShardJobStatus, req)
	if err != nil {
		return reply, err
	}
	_, err = decodeMessage(data, &reply)
	reply.Report.Done = false // only the answer itself makes a shard done
	if err == nil && reply.runKey != key {
		err = fmt.Errorf("answer to another question: %+v for %+v", reply.runKey, key)
	}
	return reply, err
}

// cancelMaster tells the shard's leader that nobody waits for it any more.
func (r *jobRound) cancelMaster(key runKey) {
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
