package compute

import (
	"slices"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
)

const (
	// maxAttempts is how often a task may run and fail before the job fails.
	maxAttempts = 4
	// A follower has two tasks of a shard at once, so that it never idles for a round
	// trip; the leader, which also serves the shard's clients, one.
	followerTasks = 2
	leaderTasks   = 1

	// A running task gets a second attempt elsewhere when it is slower than backupRate of the median rate (by how fast it goes, not by
	// how long it takes: a copy of a large task gains nothing), or when it was not heard to come further for lateAfter.
	backupRate     = 0.5
	minBackupAfter = time.Second // time enough for an idle node to take a part of it instead
	lateAfter      = 2 * time.Second
	// backupShare of the tasks have to be done before one is done twice because it is slow.
	backupShare = 0.75
	// mostTasks bounds a part's tasks, with those that cuts made: each is a row in the shard's log and a line of its report.
	mostTasks = 4 * maxTasks
	// minCut is what has to be left of a task, by its rate so far, for its tail to be worth another's while.
	minCut = 100 * time.Millisecond
	// cutPause is how long a worker is left alone that was asked for a tail and gave none.
	cutPause = 250 * time.Millisecond

	busyPause     = 50 * time.Millisecond
	minQuarantine = 100 * time.Millisecond
	maxQuarantine = 5 * time.Second
)

// taskState is what the master knows of one task.
type taskState struct {
	Task
	done     bool
	failures int // attempts that ran and failed; a refusal that ran nothing is none
	failedOn []string
	live     []*attempt
	report   job.TaskReport
}

// attempt is one replica's try at a task. Times count from the run's start.
type attempt struct {
	id      int
	task    *taskState
	replica *replicaTracker
	role    string
	started time.Duration
	cancel  func()

	moved   time.Duration // when it was last heard to have come further, or began
	asking  bool          // a question about that is on its way
	cutting bool          // and it asks to leave the tail to others
	cutAt   time.Duration // when it last did so
	vain    time.Duration // when it was last asked to, and did not; 0: never
	waited  time.Duration // when it was last heard that it waits for its turn
	running bool          // the worker has begun with it
	scanned int64         // bytes
	records int64
	share   float64 // of its task, by slots
}

// replicaTracker is what the master knows of one replica, and what it thinks of it.
type replicaTracker struct {
	ReplicaState
	inFlight     int
	strikes      int           // failures in a row
	blockedUntil time.Duration // it gets nothing before
	unpinned     bool          // it does not hold the pin, and never will
	fetches      bool          // its node has nothing to do and asks for work
}

// failed keeps tasks from a replica for a while: the longer, the more often it failed in a row.
func (r *replicaTracker) failed(now time.Duration) {
	r.blockedUntil = now + min(minQuarantine<<min(r.strikes, 10), maxQuarantine)
	r.strikes++
}

func (r *replicaTracker) usable(now time.Duration) bool {
	return r.Alive && !r.unpinned && now >= r.blockedUntil
}

// action is a decision: this task to that replica, now; or with cut, the task's worker is to leave its tail to others.
type action struct {
	task    *taskState
	replica *replicaTracker
	cut     *attempt
}

// schedule decides what to start at the time now. It changes nothing.
//
// Tasks without a live attempt come first; they go to followers with room, to the leader only
// if no follower has room. A task does not return to a replica that it
// failed on while another is usable. One small task alone is the leader's: handing it out would take longer than doing it.
//
// When none can start, replicas whose nodes ask for work get the tail of the task that has the most left to do, and idle
// ones a second attempt at a task that is slow or stands still.
func schedule(now time.Duration, tasks []*taskState, replicas []*replicaTracker) []action {
	s := scheduler{now: now, tasks: tasks, replicas: replicas, room: map[*replicaTracker]int{}}
	haveFollower := slices.ContainsFunc(replicas, func(r *replicaTracker) bool { return !r.Leader && r.usable(now) })
	for _, r := range replicas {
		if r.usable(now) {
			limit := followerTasks
			if r.Leader && haveFollower {
				limit = leaderTasks
			}
			if r.fetches { // its node is idle, whatever is under way to it
				limit++
			}
			s.room[r] = limit - r.inFlight
		}
	}
	if actions := s.begin(); len(actions) > 0 {
		return actions
	}
	if actions := s.steal(); len(actions) > 0 {
		return actions
	}
	return s.backup()
}

type scheduler struct {
	now      time.Duration
	tasks    []*taskState
	replicas []*replicaTracker
	room     map[*replicaTracker]int
}

// begin starts tasks that nobody works on. Each replica begins at a place of its own in the shard and goes on from there, round its
// end. So it mostly reads what it read for the job before, which its memory has; were it left to chance, each would come to hold the
// whole shard.
func (s *scheduler) begin() (actions []action) {
	var waiting []*taskState
	var from, to sharding.Slot
	for i, t := range s.tasks {
		if i == 0 || t.From < from {
			from = t.From
		}
		to = max(to, t.To)
		if !t.done && len(t.live) == 0 {
			waiting = append(waiting, t)
		}
	}
	span := int(to-from) + 1 // with what other shards have of it
	for {
		r := s.pick(waiting)
		if r == nil {
			return actions
		}
		place := int(from) + span*slices.Index(s.replicas, r)/len(s.replicas)
		i := s.next(waiting, r, place, span)
		s.room[r]--
		actions = append(actions, action{task: waiting[i], replica: r})
		waiting = slices.Delete(waiting, i, i+1)
	}
}

// next is which of the tasks that wait a replica gets: one that has failed elsewhere, or the first one from its place on. It may have one.
func (s *scheduler) next(waiting []*taskState, r *replicaTracker, place, span int) (next int) {
	least := span
	for i, t := range waiting {
		if !s.may(t, r) {
			continue
		}
		if len(t.failedOn) > 0 {
			return i // it may be what fails the job, or what all will wait for
		}
		// By its middle: a task's ends are a slot earlier or later in each job.
		if d := ((int(t.From)+int(t.To))/2 - place + span) % span; d < least {
			next, least = i, d
		}
	}
	return next
}

// steal cuts, for each node that asks for work, the task that has the most left to do. Tasks with two attempts are not
// cut: their answers would not be about the same slots.
func (s *scheduler) steal() (actions []action) {
	if len(s.tasks) >= mostTasks {
		return nil
	}
	thieves := 0
	for _, r := range s.replicas {
		if r.fetches && r.usable(s.now) && s.room[r] > 0 {
			thieves++
		}
	}
	var victims []*attempt
	for _, t := range s.tasks {
		if t.done || len(t.live) != 1 || t.From == t.To {
			continue
		}
		a := t.live[0]
		switch {
		case a.cutting:
			thieves-- // a tail is on its way
		case a.replica.fetches:
		case s.standsStill(a): // nobody may be there to leave anything
		case a.vain > 0 && s.now-a.vain < cutPause:
		case s.timeLeft(a) > minCut:
			victims = append(victims, a)
		}
	}
	slices.SortStableFunc(victims, func(a, b *attempt) int { return compareDurations(s.timeLeft(b), s.timeLeft(a)) })
	for _, a := range victims[:max(min(thieves, len(victims)), 0)] {
		actions = append(actions, action{task: a.task, cut: a})
	}
	return actions
}

func compareDurations(a, b time.Duration) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// timeLeft is how long an attempt will take from now on, by what it has done so far. One that waits for its turn has all before it.
func (s *scheduler) timeLeft(a *attempt) time.Duration {
	took := s.now - a.started
	left := max(float64(a.task.Bytes)*s.matching()-float64(a.scanned), 0)
	switch {
	case !a.running || a.scanned == 0:
		return took + minCut // longer than it has waited: a tail in another's hands cannot be later
	default:
		return time.Duration(float64(took) * left / float64(a.scanned))
	}
}

// matching is which part of the bytes planned for is read: a plan is of all keys, and a job may be about those with a prefix.
func (s *scheduler) matching() float64 {
	planned, read := int64(0), int64(0)
	for _, t := range s.tasks {
		if t.done {
			planned, read = planned+t.Bytes, read+t.report.Bytes
		}
	}
	if planned == 0 || read >= planned {
		return 1
	}
	return float64(read) / float64(planned)
}

// backup gives idle replicas a second attempt at tasks that are slow or stand still.
func (s *scheduler) backup() (actions []action) {
	for _, t := range s.tasks {
		if t.done || len(t.live) != 1 {
			continue
		}
		if a := t.live[0]; !s.standsStill(a) && (a.cutting || !s.isSlow(a)) {
			continue
		}
		if r := s.pickIdle(t); r != nil {
			s.room[r] = 0
			actions = append(actions, action{task: t, replica: r})
		}
	}
	return actions
}

func (s *scheduler) standsStill(a *attempt) bool { return s.now-a.moved > lateAfter }

func (s *scheduler) isSlow(a *attempt) bool {
	took := s.now - a.started
	median, enough := s.medianRate()
	return enough && s.now-max(a.started, a.cutAt) > minBackupAfter && a.running && float64(a.scanned)/took.Seconds() < backupRate*median
}

// medianRate is that of the tasks that are done, in bytes a second, and whether they are enough to go by.
func (s *scheduler) medianRate() (bytesPerSecond float64, enough bool) {
	var rates []float64
	for _, t := range s.tasks {
		if t.done {
			rates = append(rates, float64(t.report.Bytes)/max(float64(t.report.Millis)/1e3, 0.5e-3))
		}
	}
	if len(rates) == 0 || float64(len(rates)) < backupShare*float64(len(s.tasks)) {
		return 0, false
	}
	slices.Sort(rates)
	return rates[len(rates)/2], true
}

// pick chooses the replica that gets one of the tasks that wait, or none for now.
func (s *scheduler) pick(waiting []*taskState) *replicaTracker {
	willing := func(r *replicaTracker) bool {
		return slices.ContainsFunc(waiting, func(t *taskState) bool { return s.may(t, r) })
	}
	if len(s.tasks) == 1 && s.tasks[0].Records < minTaskRecords {
		if leader := s.best(func(r *replicaTracker) bool { return r.Leader && willing(r) }); leader != nil {
			return leader
		}
	}
	return s.best(willing)
}

// may says whether a replica may have a task: one that failed at it only when all others that live and hold the pin have, those
// included that have to wait, which is for maxQuarantine at most.
func (s *scheduler) may(t *taskState, r *replicaTracker) bool {
	fresh := func(r *replicaTracker) bool { return !slices.Contains(t.failedOn, r.Node) }
	return fresh(r) || !slices.ContainsFunc(s.replicas, func(r *replicaTracker) bool { return r.Alive && !r.unpinned && fresh(r) })
}

// pickIdle chooses a replica for a second attempt: one with nothing to do, so
// not the one that has the task, and that has not failed at it.
func (s *scheduler) pickIdle(t *taskState) *replicaTracker {
	return s.best(func(r *replicaTracker) bool {
		return r.inFlight == 0 && !slices.Contains(t.failedOn, r.Node)
	})
}

// best prefers followers to the leader, then the one with the most room, then the one whose node can spare twice as much, then the order
// given, from the leader on: so the masters of many shards with a task each, who do not know of each other, have each node get as many
// as the node before it leads.
func (s *scheduler) best(allowed func(*replicaTracker) bool) *replicaTracker {
	var best *replicaTracker
	after := slices.IndexFunc(s.replicas, func(r *replicaTracker) bool { return r.Leader }) + 1
	for i := range s.replicas {
		r := s.replicas[(after+i)%len(s.replicas)]
		if s.room[r] <= 0 || !allowed(r) {
			continue
		}
		if best == nil || best.Leader && !r.Leader || best.Leader == r.Leader && (s.room[r] > s.room[best] || s.room[r] == s.room[best] && r.Share > 2*best.Share) {
			best = r
		}
	}
	return best
}
