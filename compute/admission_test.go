package compute

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// testAdmission lets so many tasks run at once, as fast as they can: in virtual time they use more of a processor than there is.
func testAdmission(slots int) *Admission {
	a := NewAdmission(Limits{})
	a.slots, a.turns.free = slots, slots
	a.latency = &fakeLatency{}
	a.processors = 1e6
	a.setShare(a.Share()) // of those
	return a
}

// fakeLatency tells what a test says.
type fakeLatency struct{ of func() (time.Duration, bool) }

func (l *fakeLatency) skip() {}
func (l *fakeLatency) p99() (time.Duration, bool) {
	if l.of == nil {
		return 0, false
	}
	return l.of()
}

func TestSteer(t *testing.T) {
	const ok, late = latencyTarget, latencyTarget + 1
	for _, c := range []struct {
		name    string
		share   float64
		latency time.Duration
		wanted  bool
		want    float64
	}{
		{"it rises slowly when tasks wait", 0.25, ok, true, 0.25 + shareRise},
		{"not when nobody needs more", 0.25, ok, false, 0.25},
		{"it falls quickly when others wait", 0.5, late, true, 0.25},
		{"also when tasks do not", 0.5, late, false, 0.25},
		{"never below the floor", minShare * 1.2, late, true, minShare},
		{"never above the ceiling", maxShare - shareRise/2, ok, true, maxShare},
	} {
		if got := steer(c.share, c.latency, c.wanted); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	bounds := []float64{math.Inf(-1), 0.001, 0.002, 0.004, math.Inf(1)}
	for _, c := range []struct {
		name         string
		counts, seen []uint64
		want         time.Duration
		ok           bool
	}{
		{"too few", []uint64{99, 0, 0, 0}, []uint64{0, 0, 0, 0}, 0, false},
		{"too few that are new", []uint64{1000, 0, 0, 0}, []uint64{950, 0, 0, 0}, 0, false},
		{"one of a hundred may be late", []uint64{99, 0, 1, 0}, []uint64{0, 0, 0, 0}, time.Millisecond, true},
		{"two may not", []uint64{98, 0, 2, 0}, []uint64{0, 0, 0, 0}, 4 * time.Millisecond, true},
		{"what was told does not count", []uint64{200, 0, 50, 0}, []uint64{50, 0, 50, 0}, time.Millisecond, true},
		{"beyond all bounds", []uint64{0, 0, 0, 100}, []uint64{0, 0, 0, 0}, 4 * time.Millisecond, true},
	} {
		got, ok := percentile(c.counts, c.seen, bounds)
		if got != c.want || ok != c.ok {
			t.Errorf("%s: %v, %v, want %v, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

// The runtime tells what percentile expects, and counts what has happened since.
func TestSchedulerLatency(t *testing.T) {
	l := newSchedulerLatency()
	if l.skip(); len(l.seen) == 0 {
		t.Fatal("the runtime does not tell")
	}
	for range 10 * minWaits {
		done := make(chan struct{})
		go close(done)
		<-done
	}
	if p99, ok := l.p99(); !ok || p99 <= 0 {
		t.Errorf("p99 %v, %v", p99, ok)
	}
}

// work has n tasks work without an end, in virtual time, until the function that it returns is called; that tells how long they
// worked in all.
func work(a *Admission, n int) (stop func() time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	worked := make(chan time.Duration)
	for range n {
		go func() {
			a.enter()
			defer a.leave()
			a.await(ctx)
			m, all := a.meter(), time.Duration(0)
			defer m.close()
			for ctx.Err() == nil {
				time.Sleep(100 * time.Microsecond)
				all += 100 * time.Microsecond
				m.pay(ctx)
			}
			worked <- all
		}()
	}
	return func() (all time.Duration) {
		cancel()
		for range n {
			all += <-worked
		}
		return all
	}
}

// Tasks get what the share says of the processors, whatever their number: under load the least, on a node that nobody else uses all
// there is for them, soon.
func TestTasksUseTheirShare(t *testing.T) {
	for _, c := range []struct {
		name    string
		latency time.Duration
		share   float64
	}{
		{"others wait", 5 * time.Millisecond, minShare},
		{"nobody waits", 100 * time.Microsecond, maxShare},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := NewAdmission(Limits{})
				a.latency = &fakeLatency{of: func() (time.Duration, bool) { return c.latency, true }}
				defer a.Close()
				tasks := 2 * runtime.GOMAXPROCS(0)
				stop := work(a, tasks)
				time.Sleep(25 * time.Second)
				stop()
				if got := a.Share(); got != c.share {
					t.Errorf("share %v, want %v", got, c.share)
				}
				stop = work(a, tasks)
				time.Sleep(10 * time.Second)
				worked := stop()
				want := time.Duration(10 * c.share * float64(runtime.GOMAXPROCS(0)) * float64(time.Second))
				if worked < want*9/10 || worked > want*11/10+cpuBurst+time.Duration(tasks)*slice {
					t.Errorf("tasks worked for %v, want about %v", worked, want)
				}
				if s := a.Stats(); s.WaitedCPU == 0 || s.SchedulerLatency != c.latency {
					t.Errorf("stats %+v", s)
				}
			})
		})
	}
}

// When others begin to wait the share is at its floor in six tenths of a second; when they do not any more it rises by a fortieth a second.
func TestShareFollowsTheLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var latency atomic.Int64
		latency.Store(int64(100 * time.Microsecond))
		a := NewAdmission(Limits{})
		a.latency = &fakeLatency{of: func() (time.Duration, bool) { return time.Duration(latency.Load()), true }}
		defer a.Close()
		stop := work(a, 2*runtime.GOMAXPROCS(0))
		defer stop()
		time.Sleep(25 * time.Second)
		synctest.Wait()
		if a.Share() != maxShare {
			t.Errorf("share %v on a quiet node", a.Share())
		}
		latency.Store(int64(3 * time.Millisecond))
		time.Sleep(600 * time.Millisecond)
		synctest.Wait()
		if a.Share() != minShare {
			t.Errorf("share %v while others wait", a.Share())
		}
		latency.Store(int64(100 * time.Microsecond))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if s := a.Share(); s < 0.26 || s > 0.28 {
			t.Errorf("share %v 10 s after", s)
		}
	})
}

// A short task waits for nothing on a quiet node; nor does it escape: many of them use no more than their share.
func TestShortTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{})
		a.latency = &fakeLatency{of: func() (time.Duration, bool) { return 5 * time.Millisecond, true }}
		defer a.Close()
		short := func(ctx context.Context) {
			a.enter()
			defer a.leave()
			a.await(ctx)
			m := a.meter()
			defer m.close()
			time.Sleep(slice / 2)
			m.pay(ctx)
		}
		begin := time.Now()
		short(t.Context())
		if took := time.Since(begin); took != slice/2 {
			t.Errorf("a task of %v took %v", slice/2, took)
		}
		const tasks = 4000
		long := startLong(a) // keeps the steering going
		for range tasks {
			short(t.Context())
		}
		took, most := time.Since(begin), tasks*slice/2
		long()
		if share := float64(most) / float64(took) / float64(runtime.GOMAXPROCS(0)); share > 1.3*minShare && runtime.GOMAXPROCS(0) > 1 {
			t.Errorf("%d tasks of %v took %v: %.3f of the processors", tasks, slice/2, took, share)
		}
	})
}

// startLong is a task that works for nothing until the function that it returns is called.
func startLong(a *Admission) (stop func()) {
	a.enter()
	return a.leave
}

// The steering lives as long as there are tasks, and one tick longer.
func TestSteeringEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ticks := 0
		a := NewAdmission(Limits{})
		a.latency = &fakeLatency{of: func() (time.Duration, bool) { ticks++; return 5 * time.Millisecond, true }}
		defer a.Close()
		time.Sleep(time.Minute)
		a.enter()
		a.enter()
		time.Sleep(10*steerTick + 1)
		a.leave()
		a.leave()
		time.Sleep(time.Minute)
		synctest.Wait()
		if ticks != 11 {
			t.Errorf("%d ticks for tasks of 10", ticks)
		}
		// What was known of a minute ago is of no use.
		a.enter()
		defer a.leave()
		if a.Share() != startShare {
			t.Errorf("share %v a minute after, want %v", a.Share(), startShare)
		}
	})
}

// Where nobody else is there, tasks have all that they may have from the first moment, however long their own goroutines wait; and when clients come,
// what they wait counts again.
func TestQuietNodeSparesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy atomic.Bool
		a := NewAdmission(Limits{Quiet: func() bool { return !busy.Load() }})
		a.latency = &fakeLatency{of: func() (time.Duration, bool) { return 5 * time.Millisecond, true }}
		defer a.Close()
		a.enter()
		defer a.leave()
		if a.Share() != maxShare {
			t.Errorf("share %v at first", a.Share())
		}
		time.Sleep(5*steerTick + 1)
		if a.Share() != maxShare {
			t.Errorf("share %v after five ticks", a.Share())
		}
		busy.Store(true)
		time.Sleep(2 * steerTick)
		if want := maxShare * shareFall * shareFall; a.Share() != want {
			t.Errorf("share %v two ticks after clients have come, want %v", a.Share(), want)
		}
		busy.Store(false)
		time.Sleep(steerTick)
		if a.Share() != maxShare {
			t.Errorf("share %v a tick after they have gone", a.Share())
		}
	})
}

// A task that waits for what it owes ends at once when it is not wanted any more.
func TestCancelEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(Limits{ScanBytes: 1 << 20})
		defer a.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m := a.meter()
		for range 3 {
			m.bytes += 1 << 20
			time.AfterFunc(10*time.Millisecond, cancel)
			begin := time.Now()
			m.settle(ctx, begin)
			if took := time.Since(begin); took > 10*time.Millisecond {
				t.Errorf("waited for %v", took)
			}
		}
	})
}

// What tasks read together stays below the limit, also when one slice reads more than the bucket holds.
func TestScanBytes(t *testing.T) {
	for name, c := range map[string]struct{ limit, part, each int }{
		"much by little":   {10 << 20, 64 << 10, 25 << 20},
		"little by chunks": {1 << 20, 1 << 20, 10 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := testAdmission(4)
				a.scan = NewAdmission(Limits{ScanBytes: int64(c.limit)}).scan
				defer a.Close()
				begin, done := time.Now(), make(chan int)
				for range 4 {
					go func() {
						m, read := a.meter(), 0
						for read < c.each {
							time.Sleep(2 * slice)
							m.step(c.part)
							m.pay(t.Context())
							read += c.part
						}
						done <- read
					}()
				}
				read := 0
				for range 4 {
					read += <-done
				}
				if rate := float64(read) / time.Since(begin).Seconds(); rate > 1.05*float64(c.limit) || rate < 0.9*float64(c.limit) {
					t.Errorf("%.0f bytes a second, want about %d", rate, c.limit)
				}
				if a.Stats().WaitedScan == 0 {
					t.Error("nobody waited")
				}
			})
		})
	}
}

// Who gets the next turn: the higher priority, of equals the first; and in the end everybody.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := turns{free: 1}
		take := func(name, priority string, order *[]string) {
			if err := q.take(t.Context(), priority); err != nil {
				t.Error(err)
			}
			*order = append(*order, name)
			time.Sleep(time.Second)
			q.give(priority)
		}
		var order []string
		for _, w := range [][2]string{{"first", ""}, {"low", job.PriorityLow}, {"normal 1", ""}, {"normal 2", job.PriorityNormal}, {"high", job.PriorityHigh}} {
			go take(w[0], w[1], &order)
			synctest.Wait()
		}
		if _, waiting, _ := q.counts(); waiting != [3]int{1, 2, 1} {
			t.Errorf("waiting %v", waiting)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []string{"first", "high", "normal 1", "normal 2", "low"}; !slices.Equal(order, want) {
			t.Errorf("order %q, want %q", order, want)
		}
		// Though there are always some of high priority, a low one waits no longer than its age allows.
		order = nil
		var highs []string
		go take("high", job.PriorityHigh, &highs)
		synctest.Wait()
		go take("low", job.PriorityLow, &order)
		for range 60 {
			time.Sleep(time.Second / 2)
			go take("high", job.PriorityHigh, &highs)
			synctest.Wait()
		}
		synctest.Wait()
		if len(order) != 1 {
			t.Error("a low priority starves")
		}
		time.Sleep(time.Minute)
		if running, waiting, waited := q.counts(); q.free != 1 || running != [3]int{} || waiting != [3]int{} || waited == 0 {
			t.Errorf("after all: %d free, running %v, waiting %v, waited %v", q.free, running, waiting, waited)
		}
	})
}

// A task that is not wanted any more neither keeps a turn nor stays in the queue, even if both come at once.
func TestTurnOfACancelledTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := turns{free: 1}
		for i := range 100 {
			if err := q.take(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			got := make(chan error)
			go func() { got <- q.take(ctx, job.PriorityHigh) }()
			synctest.Wait()
			if i%2 == 0 {
				cancel()
				q.give("")
			} else {
				q.give("")
				cancel()
			}
			if err := <-got; err == nil {
				q.give(job.PriorityHigh)
			}
			if running, waiting, _ := q.counts(); q.free != 1 || running != [3]int{} || waiting != [3]int{} {
				t.Fatalf("%d free, running %v, waiting %v", q.free, running, waiting)
			}
		}
	})
}

func TestQueueOfJobs(t *testing.T) {
	at := func(id, priority string, minute float64) job.Record {
		return job.Record{ID: id, SubmittedMillis: int64(minute * 60_000), Spec: job.Spec{Priority: priority}}
	}
	for _, c := range []struct {
		name string
		jobs []job.Record
		want []string
	}{
		{"priority, then age", []job.Record{at("low", job.PriorityLow, 0), at("second", "", 0.2), at("first", "", 0.1), at("high", job.PriorityHigh, 0.3)}, []string{"high", "first", "second", "low"}},
		{"age at last", []job.Record{at("high", job.PriorityHigh, 2.5), at("low", job.PriorityLow, 0), at("normal", "", 1.2)}, []string{"low", "normal", "high"}},
		{"the same moment", []job.Record{at("b", "", 1), at("a", "", 1)}, []string{"a", "b"}},
	} {
		slices.SortFunc(c.jobs, byPrecedence)
		var got []string
		for _, rec := range c.jobs {
			got = append(got, rec.ID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Who does not fit is refused, the oldest never; and what is given back is there again.
func TestBudget(t *testing.T) {
	b := budget{limit: func() int64 { return 10 << 20 }}
	busy := func(err error) bool { return transport.CodeOf(err) == transport.CodeBusy }
	first, second := b.open(), b.open()
	if err := second.grow(9<<20 + 1); err != nil { // 10 MiB in steps
		t.Errorf("all of it: %v", err)
	}
	if err := second.grow(11 << 20); !busy(err) {
		t.Errorf("more than all of it: %v", err)
	}
	if err := first.grow(20 << 20); err != nil {
		t.Errorf("the oldest: %v", err)
	}
	third := b.open()
	if err := third.grow(1); !busy(err) {
		t.Errorf("when there is nothing left: %v", err)
	}
	first.close()
	if err := third.grow(1); !busy(err) {
		t.Errorf("when the second has all: %v", err)
	}
	if err := second.grow(12 << 20); err != nil {
		t.Errorf("the oldest of those that are left: %v", err)
	}
	second.close()
	if err := third.grow(1); err != nil {
		t.Errorf("when all is free: %v", err)
	}
	third.close()
	if used, refused := b.counts(); used != 0 || refused != 3 {
		t.Errorf("in the end %d bytes are used, %d were refused", used, refused)
	}
}

// groupJob puts records whose groups take more than a lease begins with, and returns a job over them and the groups.
func groupJob(c *cluster) (job.Spec, int) {
	const groups = 2000
	for i := range groups {
		c.put(fmt.Sprintf("g/%050d", i), "1")
	}
	return job.Spec{Prefix: "g/", As: "int", GroupBy: "key", Reduce: "count", TasksPerReplica: 1}, groups
}

// A node that is short of memory refuses tasks with tables, which is nobody's fault; others do them.
func TestOneNodeIsShortOfMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		spec, groups := groupJob(c)
		tasks := &c.node("n2").worker.admission.tasks
		tasks.limit = func() int64 { return 0 }
		oldest := tasks.open()
		defer oldest.close()
		rec := c.run(t.Context(), "n1", spec)
		if rec.State != job.Succeeded || rec.Records != int64(groups) {
			t.Fatalf("record %+v", rec)
		}
		for _, task := range rec.Shards[0].Tasks {
			if task.Node == "n2" || len(task.FailedOn) > 0 || task.Attempts != 1 {
				t.Errorf("task %+v", task)
			}
		}
		if s := c.node("n2").worker.admission.Stats(); s.MemoryRefused == 0 || s.MemoryBytes != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

// Where all nodes and the master are short of memory a job waits, and is done when there is some.
func TestJobsWaitForMemory(t *testing.T) {
	for name, of := range map[string]func(a *Admission) *budget{
		"tasks":   func(a *Admission) *budget { return &a.tasks },
		"masters": func(a *Admission) *budget { return &a.masters },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 3, 2)
				spec, groups := groupJob(c)
				var oldest []*lease
				for _, id := range c.ids() {
					b := of(c.node(id).worker.admission)
					b.limit = func() int64 { return 0 }
					oldest = append(oldest, b.open())
				}
				begin := time.Now()
				time.AfterFunc(time.Second, func() {
					for _, l := range oldest {
						l.close()
					}
				})
				rec := c.run(t.Context(), "n1", spec)
				if rec.State != job.Succeeded || rec.Records != int64(groups) || time.Since(begin) < time.Second {
					t.Errorf("after %v: %s %q, %d records", time.Since(begin), rec.State, rec.Error, rec.Records)
				}
				synctest.Wait()
				for _, id := range c.ids() {
					if s := c.node(id).worker.admission.Stats(); s.MemoryBytes != 0 || s.Running != [3]int{} {
						t.Errorf("%s after all: %+v", id, s)
					}
				}
			})
		})
	}
}

// What a table is taken for is about what it takes.
func TestMemoryOfATable(t *testing.T) {
	spec := job.Spec{As: "int", GroupBy: "key", Reduce: "sum", MaxGroups: job.MaxMaxGroups}.WithDefaults()
	fn, err := compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p := new(Partial)
	for i := range spec.MaxGroups {
		if !fn.step(t.Context(), p, fmt.Appendf(nil, "customer/%08d", i), []byte("12")) {
			t.Fatal(p.Err())
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	takes := int64(after.HeapAlloc - before.HeapAlloc)
	if said := p.memory(); said < takes*2/3 || said > takes*3 {
		t.Errorf("a table of %d bytes is taken for %d", takes, said)
	} else {
		t.Logf("a table of %d bytes is taken for %d", takes, said)
	}
	runtime.KeepAlive(p)
}

// Tasks pay for what they do: on a node whose processors others wait for a job takes long, and ends.
func TestJobOnABusyNode(t *testing.T) {
	for name, c := range map[string]struct {
		processors  float64
		least, most time.Duration
	}{
		"nobody else":            {1e6, 0, time.Second},
		"others wait":            {1, 5 * time.Second, 25 * time.Second}, // half a second of work, at 2 %
		"and there are 4 of its": {4, 1500 * time.Millisecond, 25 * time.Second / 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cl := newCluster(t, 1, 1)
				want := cl.fill("a/", 5000)
				a := cl.node("n1").worker.admission
				a.processors = c.processors
				a.latency = &fakeLatency{of: func() (time.Duration, bool) { return 5 * time.Millisecond, true }}
				cl.slowly(100 * time.Microsecond)
				begin := time.Now()
				wantResult(t, cl.run(t.Context(), "n1", sumOf("a/")), want)
				if took := time.Since(begin); took < c.least || took > c.most {
					t.Errorf("the job took %v, want %v to %v", took, c.least, c.most)
				}
			})
		})
	}
}

// A job of high priority that comes last goes before all that wait.
func TestHighPriorityGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.listen()
		c.fill("a/", 100)
		c.slowly(10 * time.Millisecond)
		spec := sumOf("a/")
		var ids []string
		for i := range 3 * maxRunning {
			spec.Priority = []string{"", job.PriorityLow}[i%2]
			ids = append(ids, c.submit("n2", spec))
			time.Sleep(time.Millisecond)
		}
		spec.Priority = job.PriorityHigh
		high := c.submit("n2", spec)
		c.leadJobs("n1")
		for c.status(high).State == job.Queued {
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		recs, err := c.ledger.List(t.Context()) // all at one instant
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range recs {
			if first := slices.Index(ids, rec.ID); rec.State != job.Queued && rec.ID != high && (first >= 2*maxRunning || rec.Spec.Priority == job.PriorityLow) {
				t.Errorf("job %d of priority %q is %s", first, rec.Spec.Priority, rec.State)
			}
		}
		for _, id := range ids { // and in the end all have run
			if rec := c.result("n1", id); rec.State != job.Succeeded {
				t.Errorf("job %s %s", id, rec.State)
			}
		}
	})
}
