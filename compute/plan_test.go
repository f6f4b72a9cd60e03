package compute

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
)

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
		count := func(s sharding.Slot) (int64, int64) { return counts[s], counts[s] * rnd.Int64N(100) }
		tasks := Plan(count, slots, 1+rnd.IntN(7), job.Spec{TasksPerReplica: rnd.IntN(17)})

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
		{"several for each replica", 40, job.Spec{}, 12},
		{"fewer rather than small ones", 10, job.Spec{}, 5},
		{"one of what is useful", 2, job.Spec{}, 1},
		{"as asked", 10, job.Spec{TasksPerReplica: 2}, 6},
		{"none too large", 1 << 12, job.Spec{}, 64},
		{"bounded", 1 << 20, job.Spec{}, maxTasks},
	} {
		count := func(sharding.Slot) (int64, int64) { return c.perSlot, 20 * c.perSlot }
		tasks := Plan(count, all, 3, c.spec)
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

// Few records may be worth several tasks by what they weigh.
func TestHeavyRecords(t *testing.T) {
	for _, c := range []struct {
		bytes int64
		tasks int
	}{{usefulTaskBytes, 1}, {usefulTaskBytes + 1, 2}, {5 * usefulTaskBytes, 5}, {100 * usefulTaskBytes, 12}} {
		if n := wantedTasks(1000, c.bytes, 3, job.Spec{}); n != c.tasks {
			t.Errorf("%d tasks for 1,000 records of together %d bytes, want %d", n, c.bytes, c.tasks)
		}
	}
}

// Where a record may take milliseconds, few are worth several tasks, too: that one node does them all would be seen.
func TestSlowRecords(t *testing.T) {
	for _, c := range []struct {
		spec job.Spec
		slow bool
	}{
		{job.Spec{Map: "v.size()"}, true},
		{job.Spec{FlatMap: `v.split(",")`}, true},
		{job.Spec{Filter: "v.size() > 3"}, true},
		{job.Spec{Filter: "key prefix a and value re ^x"}, true},
		{job.Spec{GroupBy: "v.country"}, true},
		{job.Spec{Map: "go:f"}, true},
		{job.Spec{Map: "json:a", Filter: "json:b range 1..2 and key prefix c", FlatMap: "", GroupBy: "json:c"}, false},
		{job.Spec{Map: "len", FlatMap: "words", GroupBy: "lower"}, false},
	} {
		want := map[bool]int{true: 12, false: 1}[c.slow]
		if n := wantedTasks(12*slowTaskRecords, 1000, 3, c.spec); n != want {
			t.Errorf("%+v: %d tasks for %d records, want %d", c.spec, n, 12*slowTaskRecords, want)
		}
	}
	if n := wantedTasks(slowTaskRecords, 1000, 3, job.Spec{Map: "v.size()"}); n != 1 {
		t.Errorf("%d tasks for so few that one will do", n)
	}
}

// A slot that holds nearly everything is a task of its own and leaves the others theirs.
func TestPlanHotSlot(t *testing.T) {
	count := func(s sharding.Slot) (int64, int64) {
		if s == 5000 {
			return 1 << 20, 1 << 25
		}
		return 1, 32
	}
	tasks := Plan(count, []sharding.SlotRange{{From: 0, To: sharding.Slots - 1}}, 3, job.Spec{})
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
			ts = append(ts, &taskState{Task: Task{ID: i, From: sharding.Slot(100 * i), To: sharding.Slot(100*i + 99), Records: 1e6, Bytes: 1e8}})
		}
		return ts
	}
	on := func(task *taskState, r *replicaTracker, started time.Duration) {
		task.live = append(task.live, &attempt{task: task, replica: r, started: started, moved: started, running: true})
		r.inFlight++
	}
	done := func(task *taskState, took int64) {
		task.done, task.report.Millis, task.report.Bytes = true, took, task.Bytes
	}

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
		}, []string{"3:n2", "6:n3", "4:n2", "7:n3", "0:n1"}},
		{"each goes on from its own place", 0, func() ([]*taskState, []*replicaTracker) {
			ts := tasks(9)
			for _, i := range []int{0, 3, 4, 6, 7} {
				done(ts[i], 1)
			}
			return ts, []*replicaTracker{leader(), follower("n2"), follower("n3")}
		}, []string{"5:n2", "8:n3", "1:n2", "2:n3"}},
		{"what has failed is not left for last", 0, func() ([]*taskState, []*replicaTracker) {
			ts := tasks(9)
			ts[2].failedOn = []string{"n3"}
			return ts, []*replicaTracker{leader(), follower("n2"), follower("n3")}
		}, []string{"2:n2", "6:n3", "3:n2", "7:n3", "0:n1"}},
		{"round the end of the shard", 0, func() ([]*taskState, []*replicaTracker) {
			ts := tasks(9)
			for i := 6; i < 9; i++ {
				done(ts[i], 1)
			}
			return ts, []*replicaTracker{leader(), follower("n2"), follower("n3")}
		}, []string{"3:n2", "0:n3", "4:n2", "1:n3", "2:n1"}},
		{"its place is there without it, too", 0, func() ([]*taskState, []*replicaTracker) {
			dead := follower("n2")
			dead.Alive = false
			return tasks(9), []*replicaTracker{leader(), dead, follower("n3")}
		}, []string{"6:n3", "7:n3", "0:n1"}},
		{"places are of the slots that the tasks have", 0, func() ([]*taskState, []*replicaTracker) {
			ts := tasks(6)
			for _, t := range ts {
				t.From, t.To = t.From+7000, t.To+7000
			}
			return ts, []*replicaTracker{follower("n2"), follower("n3")}
		}, []string{"0:n2", "3:n3", "1:n2", "4:n3"}},
		{"a leader alone does it all", 0, func() ([]*taskState, []*replicaTracker) {
			return tasks(3), []*replicaTracker{leader()}
		}, []string{"0:n1", "1:n1"}},
		{"of two with as much room, the one that can spare more", 0, func() ([]*taskState, []*replicaTracker) {
			f, g := follower("n2"), follower("n3")
			f.Share, g.Share = 0.05, 0.5
			return tasks(1), []*replicaTracker{leader(), f, g}
		}, []string{"0:n3"}},
		{"a little more is no reason, or all masters would choose the same", 0, func() ([]*taskState, []*replicaTracker) {
			f, g := follower("n2"), follower("n3")
			f.Share, g.Share = 0.4, 0.5
			return tasks(1), []*replicaTracker{leader(), f, g}
		}, []string{"0:n2"}},
		{"the first after the leader", 0, func() ([]*taskState, []*replicaTracker) {
			return tasks(1), []*replicaTracker{follower("n0"), leader(), follower("n2")}
		}, []string{"0:n2"}},
		{"round the list", 0, func() ([]*taskState, []*replicaTracker) {
			return tasks(1), []*replicaTracker{follower("n0"), follower("n00"), leader()}
		}, []string{"0:n0"}},
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
		{"a small task alone is the leader's", 0, func() ([]*taskState, []*replicaTracker) {
			ts := tasks(1)
			ts[0].Records = minTaskRecords - 1
			return ts, []*replicaTracker{leader(), follower("n2")}
		}, []string{"0:n1"}},
		{"unless it has failed there", 0, func() ([]*taskState, []*replicaTracker) {
			ts := tasks(1)
			ts[0].Records, ts[0].failedOn = 1, []string{"n1"}
			return ts, []*replicaTracker{leader(), follower("n2")}
		}, []string{"0:n2"}},
		{"nothing for who has no pin", 0, func() ([]*taskState, []*replicaTracker) {
			f := follower("n2")
			f.unpinned = true
			return tasks(3), []*replicaTracker{leader(), f}
		}, []string{"0:n1", "1:n1"}},
		{"no second attempt at half the rate of the others", 1400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(4), follower("n2"), follower("n3")
			for i, took := range []int64{1000, 2000, 9000} { // the median: 50 MB/s
				done(ts[i], took)
			}
			on(ts[3], f, 0)
			ts[3].live[0].scanned = 3.5e7 // 25 MB/s
			return ts, []*replicaTracker{leader(), f, g}
		}, nil},
		{"a second attempt below it, elsewhere", 1400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(4), follower("n2"), follower("n3")
			for i, took := range []int64{1000, 2000, 9000} {
				done(ts[i], took)
			}
			on(ts[3], f, 0)
			ts[3].live[0].scanned = 3.5e7 - 1
			return ts, []*replicaTracker{leader(), f, g}
		}, []string{"3:n3"}},
		{"none before most are done", 1400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(4), follower("n2"), follower("n3")
			done(ts[0], 100)
			done(ts[1], 100)
			on(ts[2], f, 0)
			on(ts[3], f, 0)
			return ts, []*replicaTracker{leader(), f, g}
		}, nil},
		{"none for a task that waits for its turn", 1400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(2), follower("n2"), follower("n3")
			done(ts[0], 1)
			on(ts[1], f, 0)
			ts[1].live[0].running = false
			return ts, []*replicaTracker{leader(), f, g}
		}, nil},
		{"none where a part of it was taken just now", 1400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(2), follower("n2"), follower("n3")
			done(ts[0], 1)
			on(ts[1], f, 0)
			ts[1].live[0].cutAt = 400 * ms
			return ts, []*replicaTracker{leader(), f, g}
		}, nil},
		{"who asks for work gets the tail of what takes longest", 400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(2), follower("n2"), follower("n3")
			on(ts[0], f, 0)
			on(ts[1], f, 0)
			ts[0].live[0].scanned, ts[1].live[0].scanned = 9e7, 5e7
			g.fetches = true
			return ts, []*replicaTracker{leader(), f, g}
		}, []string{"cut 1"}},
		{"but not of what is nearly done", 400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(1), follower("n2"), follower("n3")
			on(ts[0], f, 0)
			ts[0].live[0].scanned = 8e7 + 1
			g.fetches = true
			return ts, []*replicaTracker{leader(), f, g}
		}, nil},
		{"nor of one slot", 400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(1), follower("n2"), follower("n3")
			ts[0].To = ts[0].From
			on(ts[0], f, 0)
			g.fetches = true
			return ts, []*replicaTracker{leader(), f, g}
		}, nil},
		{"one tail for one who asks", 400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(2), follower("n2"), follower("n3")
			on(ts[0], f, 0)
			on(ts[1], f, 0)
			ts[0].live[0].cutting = true
			g.fetches = true
			return ts, []*replicaTracker{leader(), f, g}
		}, nil},
		{"a task with two attempts is not cut", 400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g, h := tasks(1), follower("n2"), follower("n3"), follower("n4")
			on(ts[0], f, 0)
			on(ts[0], g, 0)
			h.fetches = true
			return ts, []*replicaTracker{leader(), f, g, h}
		}, nil},
		{"who had no tail to leave is not asked again at once", 400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(1), follower("n2"), follower("n3")
			on(ts[0], f, 0)
			ts[0].live[0].vain = 151 * ms
			g.fetches = true
			return ts, []*replicaTracker{leader(), f, g}
		}, nil},
		{"but after a while", 400 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(1), follower("n2"), follower("n3")
			on(ts[0], f, 0)
			ts[0].live[0].vain = 150 * ms
			g.fetches = true
			return ts, []*replicaTracker{leader(), f, g}
		}, []string{"cut 0"}},
		{"what stands still is done twice, not cut", 2001 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(1), follower("n2"), follower("n3")
			on(ts[0], f, 0)
			g.fetches = true
			return ts, []*replicaTracker{leader(), f, g}
		}, []string{"0:n3"}},
		{"though it was asked to leave its tail and has not answered", 2001 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, g := tasks(1), follower("n2"), follower("n3")
			on(ts[0], f, 0)
			ts[0].live[0].cutting = true
			return ts, []*replicaTracker{leader(), f, g}
		}, []string{"0:n3"}},
		{"who asks has room for a task that waits", 0, func() ([]*taskState, []*replicaTracker) {
			ts, f := tasks(3), follower("n2")
			on(ts[0], f, 0)
			on(ts[1], f, 0)
			f.fetches = true
			return ts, []*replicaTracker{f}
		}, []string{"2:n2"}},
		{"the leader helps too with what stands still", 2001 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f := tasks(1), follower("n2")
			on(ts[0], f, 0)
			return ts, []*replicaTracker{leader(), f}
		}, []string{"0:n1"}},
		{"but nobody who is at work", 2001 * ms, func() ([]*taskState, []*replicaTracker) {
			ts, f, l := tasks(2), follower("n2"), leader()
			on(ts[0], f, 0)
			on(ts[1], l, 2000*ms)
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
			if l.cut != nil {
				got = append(got, "cut "+string(rune('0'+l.task.ID)))
				continue
			}
			got = append(got, string(rune('0'+l.task.ID))+":"+l.replica.Node)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: launched %v, want %v", c.name, got, c.want)
		}
	}
}

// From job to job a replica mostly gets the tasks that it had before, though they take from one to three milliseconds, each time anew, and
// their ends are not quite where they were. By chance it would be a third.
func TestReplicasKeepTheirParts(t *testing.T) {
	for _, tasks := range []int{6, 30} {
		if share := keptParts(tasks); share < 0.8 {
			t.Errorf("%.2f of %d tasks were where they were before, want 0.8", share, tasks)
		}
	}
}

func keptParts(tasks int) (share float64) {
	const jobs = 200
	rnd := rand.New(rand.NewPCG(1, 2))
	last := make([]string, tasks)
	kept := 0
	for n := range jobs {
		replicas := []*replicaTracker{
			{ReplicaState: ReplicaState{Node: "n1", Alive: true}},
			{ReplicaState: ReplicaState{Node: "n2", Alive: true, Leader: true}},
			{ReplicaState: ReplicaState{Node: "n3", Alive: true}},
		}
		var ts []*taskState
		for i, from := 0, 0; i < tasks; i++ {
			to := 100*i + 97 + rnd.IntN(6)
			ts = append(ts, &taskState{Task: Task{ID: i, From: sharding.Slot(from), To: sharding.Slot(to), Records: 1e6, Bytes: 1e8}})
			from = to + 1
		}
		ends := map[*taskState]time.Duration{} // of those under way
		for now := time.Duration(0); ; {
			for _, a := range schedule(now, ts, replicas) {
				a.replica.inFlight++
				a.task.live = []*attempt{{task: a.task, replica: a.replica, started: now, moved: now}}
				ends[a.task] = now + time.Millisecond + time.Duration(rnd.IntN(int(2*time.Millisecond)))
			}
			var next *taskState
			for _, task := range ts {
				if end, ok := ends[task]; ok && (next == nil || end < ends[next]) {
					next = task
				}
			}
			if next == nil {
				break
			}
			now = ends[next]
			delete(ends, next)
			r := next.live[0].replica
			r.inFlight--
			next.done, next.live = true, nil
			if n > 0 && last[next.ID] == r.Node {
				kept++
			}
			last[next.ID] = r.Node
		}
	}
	return float64(kept) / float64(tasks*(jobs-1))
}

func TestQuarantineGrows(t *testing.T) {
	r := new(replicaTracker)
	for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
		if r.failed(0); r.blockedUntil != want*time.Millisecond {
			t.Errorf("blocked for %s, want %s ms", r.blockedUntil, want*1)
		}
	}
}
