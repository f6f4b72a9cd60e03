package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
)

// jobLoops run one job after the other, so that whatever happens to the cluster
// happens while jobs are under way.
type jobLoops struct {
	ctx    context.Context
	client *client.Client
	spec   job.Spec
	loops  *errgroup.Group
	quit   chan struct{}
	once   sync.Once // closes quit

	mu      sync.Mutex
	present map[string]bool // submitted, and not known to have ended
	ended   []job.Record
}

func startJobLoops(ctx context.Context, c *client.Client, spec job.Spec, n int) *jobLoops {
	l := &jobLoops{client: c, spec: spec, quit: make(chan struct{}), present: map[string]bool{}}
	l.loops, l.ctx = errgroup.WithContext(ctx)
	for range n {
		l.loops.Go(l.run)
	}
	return l
}

// run ends after the job that is under way when quit is closed, or with the
// first job that cannot be submitted or followed.
func (l *jobLoops) run() error {
	for {
		select {
		case <-l.quit:
			return nil
		default:
		}
		id, err := l.client.SubmitJob(l.ctx, l.spec)
		if err != nil {
			return fmt.Errorf("submit: %w", err)
		}
		l.mu.Lock()
		l.present[id] = true
		l.mu.Unlock()
		rec, err := l.client.JobWait(l.ctx, id, nil)
		if err != nil {
			return fmt.Errorf("follow job %s: %w", id, err)
		}
		l.mu.Lock()
		delete(l.present, id)
		l.ended = append(l.ended, rec)
		l.mu.Unlock()
	}
}

// awaitRunning returns as soon as the cluster says of one of the jobs that it runs.
func (l *jobLoops) awaitRunning(limit time.Duration) (id string, err error) {
	ctx, cancel := context.WithTimeout(l.ctx, limit)
	defer cancel()
	for {
		var ids []string
		l.mu.Lock()
		for id := range l.present {
			ids = append(ids, id)
		}
		l.mu.Unlock()
		for _, id := range ids {
			rec, err := l.client.JobStatus(ctx, id)
			if err != nil {
				return "", fmt.Errorf("look at job %s: %w", id, err)
			}
			if rec.State == job.Running {
				return id, nil
			}
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return "", errors.New("no job was seen to run")
		}
	}
}

// stop lets the jobs under way end and returns all that the loops have run.
func (l *jobLoops) stop() ([]job.Record, error) {
	l.once.Do(func() { close(l.quit) })
	err := l.loops.Wait()
	return l.ended, err
}

// spanning returns the jobs that were running from before began until after gone.
// A job's times are in whole milliseconds, by the clock of the same machine: one
// that began in the very millisecond counts as begun too late.
func spanning(ended []job.Record, began, gone time.Time) []job.Record {
	var out []job.Record
	for _, rec := range ended {
		if rec.StartedMillis > 0 && rec.StartedMillis < began.UnixMilli() && rec.FinishedMillis > gone.UnixMilli() {
			out = append(out, rec)
		}
	}
	return out
}
