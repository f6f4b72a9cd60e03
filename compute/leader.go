package compute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// leaderLoop is what RunLeader knows. Only its goroutine touches it.
type leaderLoop struct {
	jobs    *Jobs
	waiting map[string]job.Record              // unfinished and not run by this loop
	running map[string]context.CancelCauseFunc // one goroutine each
	ended   chan string
	over    int       // jobs that have ended since pruned
	pruned  time.Time // when records were last looked through for those that are too many
}

// RunLeader runs jobs, by priority and age, until ctx ends: node calls it while this
// node leads shard 0. A job that a former coordinator left running starts again in the
// next epoch. It returns when its runs have ended; they leave their records as
// they are, for the next leader.
func (j *Jobs) RunLeader(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	l := &leaderLoop{jobs: j, waiting: map[string]job.Record{}, running: map[string]context.CancelCauseFunc{}, ended: make(chan string)}
	j.listen(true)
	defer func() {
		j.listen(false)
		cancel()
		for range l.running {
			<-l.ended
		}
	}()
	reread := time.NewTimer(0)
	defer reread.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-l.ended:
			// A run that could not claim its job or write its end leaves it unfinished;
			// the next reread finds it, not this instant, or a broken record would spin.
			l.running[id](nil)
			delete(l.running, id)
			if l.over++; l.over >= pruneEnded {
				l.prune(ctx)
			}
		case <-j.wake:
			for id := range j.takeChanged() {
				l.look(ctx, id)
			}
		case <-reread.C:
			reread.Reset(l.lookAtAll(ctx))
		}
		l.start(ctx)
	}
}

// listen begins or ends the noting of changes.
func (j *Jobs) listen(on bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.changed = nil
	if on {
		j.changed = make(map[string]bool)
	}
}

func (j *Jobs) takeChanged() map[string]bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	changed := j.changed
	j.changed = make(map[string]bool)
	return changed
}

// look rereads one job's record. If the ledger does not answer, the next reread of all will tell.
func (l *leaderLoop) look(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, ledgerWait)
	defer cancel()
	rec, _, err := l.jobs.ledger.Get(ctx, id)
	switch {
	case err == nil:
		l.see(rec)
	case transport.CodeOf(err) == transport.CodeNotFound:
		l.gone(id)
	case ctx.Err() == nil:
		l.jobs.log.Warn("job record not read", "job", id, "err", err)
	}
}

// lookAtAll rereads what has not ended, and says when to look again.
func (l *leaderLoop) lookAtAll(ctx context.Context) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, ledgerWait)
	defer cancel()
	recs, err := l.jobs.ledger.Unfinished(ctx)
	if err != nil {
		if ctx.Err() == nil {
			l.jobs.log.Warn("job ledger not read", "err", err)
		}
		return maxPoll
	}
	clear(l.waiting)
	present := make(map[string]bool, len(recs))
	for _, rec := range recs {
		present[rec.ID] = true
		l.see(rec)
	}
	for id := range l.running {
		if !present[id] { // it was cancelled, or deleted
			l.gone(id)
		}
	}
	if time.Since(l.pruned) >= pruneTick {
		l.prune(ctx)
	}
	return ledgerTick
}

// prune drops records that are too old to keep. It reads them all.
func (l *leaderLoop) prune(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, ledgerWait)
	defer cancel()
	l.over, l.pruned = 0, time.Now()
	recs, err := l.jobs.ledger.List(ctx)
	if err != nil {
		if ctx.Err() == nil {
			l.jobs.log.Warn("job ledger not read", "err", err)
		}
		return
	}
	for _, id := range tooOld(recs, maxFinished, maxFinishedSize) {
		if err := l.jobs.ledger.Delete(ctx, id, -1); err != nil {
			l.jobs.log.Warn("old job record not deleted", "job", id, "err", err)
			return
		}
	}
}

// tooOld picks the finished jobs beyond the newest count and beyond size bytes.
func tooOld(recs []job.Record, count, sizeBytes int) []string {
	finished := slices.DeleteFunc(slices.Clone(recs), func(rec job.Record) bool { return !rec.State.Finished() })
	slices.SortFunc(finished, func(a, b job.Record) int {
		return cmp.Or(cmp.Compare(b.FinishedMillis, a.FinishedMillis), cmp.Compare(b.ID, a.ID))
	})
	for i, rec := range finished {
		if data, err := rec.Encode(); err == nil {
			sizeBytes -= len(data)
		}
		if i >= count || sizeBytes < 0 {
			var ids []string
			for _, rec := range finished[i:] {
				ids = append(ids, rec.ID)
			}
			return ids
		}
	}
	return nil
}

// see files a record under what is to be done with it.
func (l *leaderLoop) see(rec job.Record) {
	stop := l.running[rec.ID]
	switch {
	case rec.State.Finished():
		delete(l.waiting, rec.ID)
		if stop != nil {
			stop(job.ErrCancelled)
		}
	case stop == nil:
		l.waiting[rec.ID] = rec
	}
}

func (l *leaderLoop) gone(id string) {
	delete(l.waiting, id)
	if stop := l.running[id]; stop != nil {
		stop(job.ErrCancelled)
	}
}

// start begins waiting jobs while there is room: those that ran already first, then by precedence.
func (l *leaderLoop) start(ctx context.Context) {
	queue := slices.SortedFunc(maps.Values(l.waiting), func(a, b job.Record) int {
		if (a.State == job.Running) != (b.State == job.Running) {
			if a.State == job.Running {
				return -1
			}
			return 1
		}
		return byPrecedence(a, b)
	})
	for _, rec := range queue {
		if len(l.running) >= maxRunning || ctx.Err() != nil {
			return
		}
		delete(l.waiting, rec.ID)
		runCtx, cancel := context.WithCancelCause(ctx)
		l.running[rec.ID] = cancel
		go func() {
			l.jobs.run(runCtx, rec.ID)
			l.ended <- rec.ID
		}()
	}
}

// byPrecedence orders jobs that wait: by when they were submitted, moved by their priorities.
func byPrecedence(a, b job.Record) int {
	due := func(r job.Record) time.Time {
		return precedence(time.UnixMilli(r.SubmittedMillis), r.Spec.Priority, jobHeadStart)
	}
	return cmp.Or(due(a).Compare(due(b)), bySubmit(a, b))
}

// run claims a job for a new epoch, runs it and writes its end.
func (j *Jobs) run(ctx context.Context, id string) {
	var rec job.Record
	err := j.update(ctx, id, func(r *job.Record) error {
		if r.State.Finished() {
			return job.ErrCancelled
		}
		r.Epoch++
		r.State, r.Coordinator = job.Running, j.self
		r.Shards, r.TasksOmitted, r.Progress = nil, 0, job.Progress{}
		if r.StartedMillis == 0 {
			r.StartedMillis = j.now().UnixMilli()
		}
		r.Log(j.now(), fmt.Sprintf("started by %s, run %d", j.self, r.Epoch))
		if r.Epoch > maxEpochs {
			r.State, r.Code, r.FinishedMillis = job.Failed, job.CodeFailed, j.now().UnixMilli()
			r.Error = fmt.Sprintf("lost its coordinator %d times", maxEpochs)
			r.Log(j.now(), "failed: "+r.Error)
		}
		rec = *r
		return nil
	})
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, job.ErrCancelled) {
			j.log.Warn("job not claimed", "job", id, "err", err)
		}
		return
	}
	if rec.State.Finished() {
		return
	}
	j.log.Info("job started", "job", id, "epoch", rec.Epoch)
	rec = j.co.Run(ctx, rec, &runEnv{Env: j.env, jobs: j})
	if !rec.State.Finished() {
		j.log.Info("job run stopped", "job", id, "epoch", rec.Epoch)
		if errors.Is(context.Cause(ctx), job.ErrCancelled) { // nobody will go on with it
			j.forget(ctx, rec)
		}
		return
	}
	if err := j.save(ctx, rec); err != nil {
		j.log.Warn("job end not written", "job", id, "epoch", rec.Epoch, "state", rec.State, "err", err)
		return
	}
	j.log.Info("job finished", "job", id, "epoch", rec.Epoch, "state", rec.State)
	j.forget(ctx, rec)
}

// forget tells the shards that what they remember of a job can go. A shard that does not hear it finds out by itself: see Sweep.
func (j *Jobs) forget(ctx context.Context, rec job.Record) {
	if j.env.Level() < sharding.LevelPins { // they remember nothing, and may not know the question
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetWait) // which ends when it is seen that the job has
	defer cancel()
	var all sync.WaitGroup
	defer all.Wait()
	for _, s := range rec.Shards {
		// Of one task nothing is remembered; of a part that has not ended it is not known how many there are.
		if s.Done && len(s.Tasks) < 2 {
			continue
		}
		all.Go(func() {
			req, err := encodeMessage(shardOfJob{rec.Key(), s.Shard}, nil)
			if err == nil {
				_, err = j.env.CallLeader(ctx, s.Shard, transport.MethodShardJobForget, req)
			}
			if err != nil {
				j.log.Debug("shard does not forget a job yet", "job", rec.ID, "shard", s.Shard, "err", err)
			}
		})
	}
}

// Sweep has a shard that this node leads forget the jobs that have ended: node calls it now and then, for a coordinator or a master may
// have died before it could.
func (j *Jobs) Sweep(ctx context.Context, m *Master, shard uint32, rows []string) error {
	seen := map[string]bool{}
	var failed error // the first; a record that this program cannot read is no reason to keep the rows of all others
	for _, name := range rows {
		key := JobOfRow(name)
		if key == "" || seen[key] {
			continue
		}
		seen[key] = true
		id, _, _ := strings.Cut(key, "~")
		rec, _, err := j.ledger.Get(ctx, id)
		if err != nil && transport.CodeOf(err) != transport.CodeNotFound {
			failed = cmp.Or(failed, err)
			continue
		}
		if err == nil && rec.Key() == key && !rec.State.Finished() {
			continue
		}
		if err := m.Forget(ctx, shard, key); err != nil {
			return err
		}
	}
	return failed
}

// save writes a run's record if the job is still this run's: not finished and
// not claimed in a later epoch. Else it is CodeConflict, even if what finished it was an
// earlier try of this very call: that one has been heard.
func (j *Jobs) save(ctx context.Context, rec job.Record) error {
	err := j.update(ctx, rec.ID, func(r *job.Record) error {
		if r.Epoch == rec.Epoch && r.State == rec.State && r.State.Finished() {
			return errNoChange
		}
		if r.Epoch != rec.Epoch || r.State.Finished() {
			return errSuperseded
		}
		next := rec
		next.LogSince(*r, j.now())
		*r = next
		return nil
	})
	if errors.Is(err, errSuperseded) || transport.CodeOf(err) == transport.CodeNotFound {
		return &transport.Error{Code: transport.CodeConflict, Detail: "job " + rec.ID + " is not this coordinator's any more"}
	}
	return err
}

// runEnv lets a coordinator save its progress.
type runEnv struct {
	Env
	jobs *Jobs
}

func (e *runEnv) Save(ctx context.Context, rec job.Record) error { return e.jobs.save(ctx, rec) }
