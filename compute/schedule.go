package compute

import (
	"slices"
	"time"

	"github.com/abacusdb/abacus/compute/job"
)

const (
	// maxAttempts is how often a task may run and fail before the job fails.
	maxAttempts = 4
	// A follower runs two tasks of a shard at once, so that it never idles for a round
	// trip; the leader, which also serves the shard's clients, one.
	followerTasks = 2
	leaderTasks   = 1
	// A running task gets a second attempt elsewhere after twice the median of the finished ones.
	backupFactor   = 2
	minBackupAfter = 200 * time.Millisecond
	// firstBackupAfter holds while no task has finished and there is no median yet.
	firstBackupAfter = 3 * time.Second

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
}

// replicaTracker is what the master knows of one replica, and what it thinks of it.
type replicaTracker struct {
	ReplicaState
	inFlight     int
	strikes      int           // failures in a row
	blockedUntil time.Duration // it gets nothing before
}

// failed keeps tasks from a replica for a while: the longer, the more often it failed in a row.
func (r *replicaTracker) failed(now time.Duration) {
	r.blockedUntil = now + min(minQuarantine<<min(r.strikes, 10), maxQuarantine)
	r.strikes++
}

func (r *replicaTracker) usable(now time.Duration) bool { return r.Alive && now >= r.blockedUntil }

// launch is a decision: this task to that replica, now.
type launch struct {
	task    *taskState
	replica *replicaTracker
}

// schedule decides what to start at the time now. It changes nothing.
//
// Tasks without a live attempt come first, in order; each goes to a follower with
// room, to the leader only if no follower has room. A task does not return to a replica that it
// failed on while another is usable. When none can start, an idle replica gets a second
// attempt at a task that takes too long.
func schedule(now time.Duration, tasks []*taskState, replicas []*replicaTracker) []launch {
	s := scheduler{now: now, replicas: replicas, room: map[*replicaTracker]int{}}
	haveFollower := slices.ContainsFunc(replicas, func(r *replicaTracker) bool { return !r.Leader && r.usable(now) })
	for _, r := range replicas {
		if r.usable(now) {
			limit := followerTasks
			if r.Leader && haveFollower {
				limit = leaderTasks
			}
			s.room[r] = limit - r.inFlight
		}
	}
	var launches []launch
	for _, t := range tasks {
		if t.done || len(t.live) > 0 {
			continue
		}
		if r := s.pick(t); r != nil {
			s.room[r]--
			launches = append(launches, launch{t, r})
		}
	}
	if len(launches) > 0 {
		return launches
	}
	after := backupAfter(tasks)
	for _, t := range tasks {
		if t.done || len(t.live) != 1 || now-t.live[0].started <= after {
			continue
		}
		if r := s.pickIdle(t); r != nil {
			s.room[r] = 0
			launches = append(launches, launch{t, r})
		}
	}
	return launches
}

type scheduler struct {
	now      time.Duration
	replicas []*replicaTracker
	room     map[*replicaTracker]int
}

// pick chooses the replica for a task that nobody runs, or none for now.
func (s *scheduler) pick(t *taskState) *replicaTracker {
	fresh := func(r *replicaTracker) bool { return !slices.Contains(t.failedOn, r.Node) }
	untried := slices.ContainsFunc(s.replicas, func(r *replicaTracker) bool { return r.usable(s.now) && fresh(r) })
	return s.best(func(r *replicaTracker) bool { return fresh(r) || !untried })
}

// pickIdle chooses a replica for a second attempt: one with nothing to do, so
// not the one that has the task, and that has not failed at it.
func (s *scheduler) pickIdle(t *taskState) *replicaTracker {
	return s.best(func(r *replicaTracker) bool {
		return r.inFlight == 0 && !slices.Contains(t.failedOn, r.Node)
	})
}

// best prefers followers to the leader, then the one with the most room, then the order given.
func (s *scheduler) best(allowed func(*replicaTracker) bool) *replicaTracker {
	var best *replicaTracker
	for _, r := range s.replicas {
		if s.room[r] <= 0 || !allowed(r) {
			continue
		}
		if best == nil || best.Leader && !r.Leader || best.Leader == r.Leader && s.room[r] > s.room[best] {
			best = r
		}
	}
	return best
}

// backupAfter is how long a task may run before it gets a second attempt.
func backupAfter(tasks []*taskState) time.Duration {
	var took []int64
	for _, t := range tasks {
		if t.done {
			took = append(took, t.report.Millis)
		}
	}
	if len(took) == 0 {
		return firstBackupAfter
	}
	slices.Sort(took)
	median := time.Duration(took[len(took)/2]) * time.Millisecond
	return max(backupFactor*median, minBackupAfter)
}
