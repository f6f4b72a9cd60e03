package compute

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// A part that is one task has no pin: its tail, read by another, would be of another state. So it is not cut, however long it takes
// and whoever has nothing to do.
func TestTaskWithoutPinIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		var low, high string // accounts in slots that are far apart
		for i := 0; low == "" || high == ""; i++ {
			switch key := fmt.Sprintf("a/money%d", i); {
			case sharding.SlotOf([]byte(key)) < 100:
				low = key
			case sharding.SlotOf([]byte(key)) > sharding.Slots-100:
				high = key
			}
		}
		want := c.fill("a/", 1000) + 2000
		c.both(low, "1000", high, "1000")
		c.hook(func(h *hooks) { h.scan = slowScan })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { c.publish(ctx) })
		wg.Go(func() {
			for i := 0; ctx.Err() == nil && i < 900; i++ {
				time.Sleep(time.Millisecond)
				c.both(low, fmt.Sprint(1000-i), high, fmt.Sprint(1000+i))
			}
		})
		s := sumOf("a/")
		s.TasksPerReplica = 0
		rec := c.run(ctx, "n1", s)
		wantResult(t, rec, want)
		if shard := rec.Shards[0]; len(shard.Tasks) != 1 || !shard.Exact {
			t.Errorf("shard %+v", shard)
		}
	})
}

// A worker that is cut off cannot leave a tail to anybody. Who asks for work does its tasks anew, as soon as it is late.
func TestIdleNodesBackUpWhoIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		want := c.fill("a/", 1000)
		c.hook(func(h *hooks) { h.scan = slowScan })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { c.publish(ctx) })
		time.AfterFunc(100*time.Millisecond, func() { c.net.Isolate("n2") })
		start := time.Now()
		rec := c.run(ctx, "n1", sumOf("a/"))
		wantResult(t, rec, want)
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("the job took %s", took)
		}
	})
}

// asked counts the calls of one method.
type asked struct {
	transport.Transport
	method transport.Method
	n      atomic.Int64
}

func (a *asked) Call(ctx context.Context, to string, l transport.Lane, m transport.Method, req []byte) ([]byte, error) {
	if m == a.method {
		if a.n.Add(1) > 1000 {
			time.Sleep(time.Millisecond) // or virtual time stands still
		}
	}
	return a.Transport.Call(ctx, to, l, m, req)
}

// A worker that is in its last slot has nothing to leave, and is not asked for it all the time.
func TestLastSlotIsNotAskedForAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		for i := range 1000 { // as with a hash tag
			c.log(0, write{slot: 5, key: fmt.Sprintf("a/{x}%d", i), value: "1"})
		}
		c.log(0, write{slot: 10000, key: "a/y", value: "1"})
		c.log(0, write{slot: 12000, key: "a/z", value: "1"})
		c.hook(func(h *hooks) { h.scan = slowScan })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { c.publish(ctx) })
		count := &asked{Transport: c.node("n1").t, method: transport.MethodTaskStatus}
		c.node("n1").master.t = count
		rec := c.run(ctx, "n1", sumOf("a/"))
		wantResult(t, rec, 1002)
		if len(rec.Shards[0].Tasks) < 2 {
			t.Fatalf("shard %+v", rec.Shards[0])
		}
		if n := count.n.Load(); n < 2 || n > 20 {
			t.Errorf("workers were asked %d times in a second", n)
		}
	})
}

// A node that asked for work while its task was on the way to it has some now: others may have the tail.
func TestAskedBeforeItsTaskCame(t *testing.T) {
	slow := &replicaTracker{ReplicaState: ReplicaState{Node: "n2", Alive: true}, fetches: true, inFlight: 1}
	idle := &replicaTracker{ReplicaState: ReplicaState{Node: "n3", Alive: true}, fetches: true}
	task := &taskState{Task: Task{To: 99, Records: 1e6, Bytes: 1e8}}
	a := &attempt{task: task, replica: slow}
	task.live = []*attempt{a}
	r := &shardRun{start: time.Now().Add(-time.Second), tasks: []*taskState{task}}
	r.hear(progress{attempt: a, reply: statusReply{To: 99, Running: true, Bytes: 1e6}})
	cuts := schedule(time.Second, r.tasks, []*replicaTracker{slow, idle})
	if len(cuts) != 1 || cuts[0].cut != a {
		t.Errorf("it does %+v, want the task cut", cuts)
	}
}
