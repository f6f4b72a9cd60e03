package compute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// leaderLoop is what RunLeader knows. Only its goroutine touches it.
type leaderLoop struct {
	jobs    *Jobs
	waiting map[string]job.Record              // unfinished and not run by this loop
	running map[string]context.CancelCauseFunc // one goroutine each
	ended   chan string
}

// RunLeader runs jobs, oldest first, until ctx ends: node calls it while this
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

// lookAtAll rereads the ledger, drops what is too old to keep, and says when to look again.
func (l *leaderLoop) lookAtAll(ctx context.Context) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, ledgerWait)
	defer cancel()
	recs, err := l.jobs.ledger.List(ctx)
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
		if !present[id] {
			l.gone(id)
		}
	}
	for _, id := range tooOld(recs, maxFinished, maxFinishedSize) {
		if err := l.jobs.ledger.Delete(ctx, id, -1); err != nil {
			l.jobs.log.Warn("old job record not deleted", "job", id, "err", err)
			break
		}
	}
	return ledgerTick
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

// start begins waiting jobs while there is room: those that ran already first, then the oldest.
func (l *leaderLoop) start(ctx context.Context) {
	queue := slices.SortedFunc(maps.Values(l.waiting), func(a, b job.Record) int {
		if (a.State == job.Running) != (b.State == job.Running) {
			if a.State == job.Running {
				return -1
			}
			return 1
		}
		return bySubmit(a, b)
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

// run claims a job for a new epoch, runs it and writes its end.
func (j *Jobs) run(ctx context.Context, id string) {
	var rec job.Record
	err := j.update(ctx, id, func(r *job.Record) error {
		if r.State.Finished() {
			return job.ErrCancelled
		}
		r.Epoch++
		r.State, r.Coordinator = job.Running, j.self
		r.Shards, r.Progress = nil, job.Progress{}
		if r.StartedMillis == 0 {
			r.StartedMillis = j.now().UnixMilli()
		}
		if r.Epoch > maxEpochs {
			r.State, r.Code, r.FinishedMillis = job.Failed, job.CodeFailed, j.now().UnixMilli()
			r.Error = fmt.Sprintf("lost its coordinator %d times", maxEpochs)
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
		return
	}
	if err := j.save(ctx, rec); err != nil {
		j.log.Warn("job end not written", "job", id, "epoch", rec.Epoch, "state", rec.State, "err", err)
		return
	}
	j.log.Info("job finished", "job", id, "epoch", rec.Epoch, "state", rec.State)
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
		*r = rec
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
