package compute

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/abacusdb/abacus/compute/job"
)

const (
	// turnHeadStart is how much longer a task must have waited than one of the next higher priority to go before it; jobHeadStart is the same
	// for jobs in the cluster's queue. So what is high goes first, what came first goes first, and what is low goes at last.
	turnHeadStart = 5 * time.Second
	jobHeadStart  = time.Minute
)

// Priorities are the classes of jobs, the lowest first.
var Priorities = [...]string{job.PriorityLow, job.PriorityNormal, job.PriorityHigh}

func classOf(priority string) int {
	switch priority {
	case job.PriorityLow:
		return 0
	case job.PriorityHigh:
		return 2
	}
	return 1 // the empty one is normal
}

// precedence is what a queue is ordered by: when one came, moved by its priority.
func precedence(came time.Time, priority string, headStart time.Duration) time.Time {
	return came.Add(time.Duration(1-classOf(priority)) * headStart)
}

// turns bounds how many tasks of a node run at once. Any goroutine may use it.
type turns struct {
	mu      sync.Mutex
	free    int // invariant: none is free while somebody waits
	waiting []*turnWaiter
	running [len(Priorities)]int
	waited  time.Duration // by those that have got one
}

type turnWaiter struct {
	came  time.Time
	class int
	due   time.Time     // the earliest goes first
	given chan struct{} // closed when it has its turn
}

// take waits for a turn, which must be given back with the same priority. Its error says why ctx ended.
func (q *turns) take(ctx context.Context, priority string) error {
	q.mu.Lock()
	class := classOf(priority)
	if q.free > 0 {
		q.free--
		q.running[class]++
		q.mu.Unlock()
		return nil
	}
	now := time.Now()
	w := &turnWaiter{came: now, class: class, due: precedence(now, priority, turnHeadStart), given: make(chan struct{})}
	q.waiting = append(q.waiting, w)
	q.mu.Unlock()
	select {
	case <-w.given:
		return nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.waiting, w); i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
	} else { // it was given one just now, which nobody would give back
		q.giveLocked(class)
	}
	return ended(ctx)
}

func (q *turns) give(priority string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.giveLocked(classOf(priority))
}

func (q *turns) giveLocked(class int) {
	q.running[class]--
	if len(q.waiting) == 0 {
		q.free++
		return
	}
	next := slices.MinFunc(q.waiting, func(a, b *turnWaiter) int { return a.due.Compare(b.due) }) // of equals the first
	i := slices.Index(q.waiting, next)
	q.waiting = slices.Delete(q.waiting, i, i+1)
	q.running[next.class]++
	q.waited += time.Since(next.came)
	close(next.given)
}

// counts are how many have a turn and wait for one, by class.
func (q *turns) counts() (running, waiting [len(Priorities)]int, waited time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.waiting {
		waiting[w.class]++
	}
	return q.running, waiting, q.waited
}
