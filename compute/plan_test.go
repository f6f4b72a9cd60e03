package compute

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
)

func nReplicas(n int) []ReplicaState { return make([]ReplicaState, n) }

// Whatever the counters say, the tasks are the shard's slots, each exactly once, in order.
func TestPlanCoversEverySlotOnce(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		var slots []sharding.SlotRange
		for from := rnd.IntN(100); from < sharding.Slots; {
			to := min(from+rnd.IntN(3000), sharding.Slots-1)
			slots = append(slots, sharding.SlotRange{From: sharding.Slot(from), To: sharding.Slot(to)})
			from = to + 1 + rnd.IntN(2)*rnd.IntN(500)
		}
		counts := make([]int64, sharding.Slots)
		for range rnd.IntN(20000) {
			counts[rnd.IntN(len(counts))] += rnd.Int64N(1 << rnd.IntN(20))
		}
		if seed%7 == 0 {
			counts[rnd.IntN(len(counts))] = -5 // a counter that is wrong steers badly, no more
		}
		count := func(s sharding.Slot) int64 { return counts[s] }
		tasks := Plan(count, slots, nReplicas(1+rnd.IntN(7)), job.Spec{TasksPerReplica: rnd.IntN(17)})

		var want, got []int
		for _, r := range slots {
			for s := int(r.From); s <= int(r.To); s++ {
				want = append(want, s)
			}
		}
		for i, task := range tasks {
			if task.ID != i || task.From > task.To {
				t.Fatalf("seed %d: task %d is %+v", seed, i, task)
			}
			for s := int(task.From); s <= int(task.To); s++ {
				got = append(got, s)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: %d tasks cover %d slots of %d", seed, len(tasks), len(got), len(want))
		}
		if len(tasks) > maxTasks+len(slots) {
			t.Fatalf("seed %d: %d tasks for %d ranges", seed, len(tasks), len(slots))
		}
	}
}

func TestPlanCutsEqualShares(t *testing.T) {
	all := []sharding.SlotRange{{From: 0, To: sharding.Slots - 1}}
	for _, c := range []struct {
		name    string
		perSlot int64
		spec    job.Spec
		tasks   int
	}{
		{"nothing", 0, job.Spec{}, 1},
		{"few records are one task", 0, job.Spec{TasksPerReplica: 4}, 1},
		{"several for each replica", 10, job.Spec{}, 12},
		{"as asked", 10, job.Spec{TasksPerReplica: 2}, 6},
		{"none too large", 1 << 12, job.Spec{}, 64},
		{"bounded", 1 << 20, job.Spec{}, maxTasks},
	} {
		count := func(sharding.Slot) int64 { return c.perSlot }
		tasks := Plan(count, all, nReplicas(3), c.spec)
		if len(tasks) != c.tasks {
			t.Errorf("%s: %d tasks, want %d", c.name, len(tasks), c.tasks)
		}
		for _, task := range tasks {
			if share := c.perSlot * sharding.Slots / int64(c.tasks); task.Records > share+2*c.perSlot {
				t.Errorf("%s: task %+v holds far more than its share %d", c.name, task, share)
			}
		}
	}
}

// A slot that holds nearly everything is a task of its own and leaves the others theirs.
func TestPlanHotSlot(t *testing.T) {
	count := func(s sharding.Slot) int64 {
		if s == 5000 {
			return 1 << 20
		}
		return 1
	}
	tasks := Plan(count, []sharding.SlotRange{{From: 0, To: sharding.Slots - 1}}, nReplicas(3), job.Spec{})
	if len(tasks) != 2 || tasks[0].To != 5000 {
		t.Errorf("tasks %+v", tasks)
	}
}

// schedule as a table: what is launched, given who runs what.
func TestSchedule(t *testing.T) {
	const ms = time.Millisecond
	leader := func() *replicaTracker {
		return &replicaTracker{ReplicaState: ReplicaState{Node: "n1", Leader: true, Alive: true}}
	}
	follower := func(node string) *replicaTracker {
		return &replicaTracker{ReplicaState: ReplicaState{Node: node, Alive: true}}
	}
	tasks := func(n int) (ts []*taskState) {
		for i := range n {
			ts = append(ts, &taskState{Task: Task{ID: i}})
		}
		return ts
	}
	on := func(task *taskState, r *replicaTracker, started time.Duration) {
		task.live = append(task.live, &attempt{task: task, replica: r, started: started})
		r.inFlight++
	}
	done := func(task *taskState, took int64) { task.done, task.report.Millis = true, took }

	for _, c := range []struct {
		name string
		now  time.Duration
		set  func() ([]*taskState, []*replicaTracker)
		want []string
	}{
		{"one task goes to a follower", 0, func() ([]*taskState, []*replicaTracker) {
			return tasks(1), []*replicaTracker{leader(), follower("n2"), follower("n3")}
		}, []string{"0:n2"}},
		{"followers fill up first, the leader takes one", 0, func() ([]*taskState, []*replicaTracker) {
			return tasks(9), []*replicaTracker{leader(), follower("n2"), follower("n3")}
		}, []string{"0:n2", "1:n3", "2:n2", "3:n3", "4:n1"}},
		{"a leader alone does it all", 0, func() ([]*taskState, []*replicaTracker) {
			return tasks(3), []*replicaTracker{leader()}
		}, []string{"0:n1", "1:n1"}},
		{"dead followers get nothing", 0, func() ([]*taskState, []*replicaTracker) {
			dead := follower("n2")
			dead.Alive = false
			return tasks(3), []*replicaTracker{leader(), dead}
		}, []string{"0:n1", "1:n1"}},
		{"a blocked follower waits", 99 * ms, func() ([]*taskState, []*replicaTracker) {
			blocked := follower("n2")
			blocked.blockedUntil = 100 * ms
			return tasks(1), []*replicaTracker{leader(), blocked, follower("n3")}
		}, []string{"0:n3"}},
		{"and comes back", 100 * ms, func() ([]*taskState, []*replicaTracker) {
			blocked := follower("n2")
			blocked.blockedUntil = 100 * ms
			return tasks(1), []*replicaTracker{leader(), blocked}
		}, []string{"0:n2"}},
		{"a task does not return to where it failed", 0, func() ([]*taskState, []*replicaTracker) {
			ts := tasks(1)
			ts[0].failedOn = []string{"n2"}
			return ts, []*replicaTracker{leader(), follower("n2"), follower("n3")}
		}, []string{"0:n3"}},
		{"the leader is better than a follower that failed", 0, func() ([]*taskState, []*replicaTracker) {
			ts := tasks(1)
			ts[0].failedOn = []string{"n2", "n3"}
			return ts, []*replicaTracker{leader(), follower("n2"), follower("n3")}
		}, []string{"0:n1"}},
		{"it waits for a busy replica rather than fail again", 0, func() ([]*taskState, []*replicaTracker) {
			ts, l, f := tasks(3), leader(), follower("n2")
			ts[2].failedOn = []string{"n2"}
			on(ts[0], l, 0)
			on(ts[1], f, 0)
			return ts, []*replicaTracker{l, f}
		}, nil},
		{"it returns if it failed everywhere", 0, func() ([]*taskState, []*replicaTracker) {
			ts := tasks(1)
			ts[0].failedOn = []string{"n1", "n2"}
			return ts, []*replicaTracker{leader(), follower("n2")}
		}, []string{"0:n2"}},
		{"no second attempt before twice the median", 400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(4), follower("n2"), follower("n3")
			for i, took := range []int64{100, 200, 900} {
				done(ts[i], took)
			}
			on(ts[3], f, 0)
			return ts, []*replicaTracker{leader(), f, g}
		}, nil},
		{"a second attempt after twice the median, elsewhere", 401 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(4), follower("n2"), follower("n3")
			for i, took := range []int64{100, 200, 900} {
				done(ts[i], took)
			}
			on(ts[3], f, 0)
			return ts, []*replicaTracker{leader(), f, g}
		}, []string{"3:n3"}},
		{"the leader helps too", 3001 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f := tasks(1), follower("n2")
			on(ts[0], f, 0)
			return ts, []*replicaTracker{leader(), f}
		}, []string{"0:n1"}},
		{"but nobody who is at work", 3001 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, l := tasks(2), follower("n2"), leader()
			on(ts[0], f, 0)
			on(ts[1], l, 3000*ms)
			return ts, []*replicaTracker{l, f}
		}, nil},
		{"never a third attempt", 9999 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(1), follower("n2"), follower("n3")
			on(ts[0], f, 0)
			on(ts[0], g, 0)
			return ts, []*replicaTracker{leader(), f, g}
		}, nil},
		{"second attempts while a task waits for a replica that is full", 9999 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(2), follower("n2"), follower("n3")
			on(ts[0], f, 0)
			ts[1].failedOn = []string{"n3"}
			f.inFlight = followerTasks
			return ts, []*replicaTracker{f, g}
		}, []string{"0:n3"}},
		{"nobody there", 0, func() ([]*taskState, []*replicaTracker) { return tasks(2), nil }, nil},
	} {
		ts, replicas := c.set()
		var got []string
		for _, l := range schedule(c.now, ts, replicas) {
			got = append(got, string(rune('0'+l.task.ID))+":"+l.replica.Node)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: launched %v, want %v", c.name, got, c.want)
		}
	}
}

func TestQuarantineGrows(t *testing.T) {
	r := new(replicaTracker)
	for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
		if r.failed(0); r.blockedUntil != want*time.Millisecond {
			t.Errorf("blocked for %s, want %s ms", r.blockedUntil, want*1)
		}
	}
}

func TestCheckCovered(t *testing.T) {
	for _, c := range []struct {
		ranges [][2]uint16
		ok     bool
	}{
		{[][2]uint16{{0, 16383}}, true},
		{[][2]uint16{{8000, 16383}, {0, 7999}}, true},
		{nil, false},
		{[][2]uint16{{0, 16382}}, false},
		{[][2]uint16{{1, 16383}}, false},
		{[][2]uint16{{0, 8000}, {8000, 16383}}, false},
		{[][2]uint16{{0, 7998}, {8000, 16383}}, false},
		{[][2]uint16{{0, 16383}, {0, 16383}}, false},
	} {
		if err := checkCovered(c.ranges); (err == nil) != c.ok {
			t.Errorf("%v: %v", c.ranges, err)
		}
	}
}
