package compute

import (
	"context"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// slice is how long a task works before it pays for it.
	slice = time.Millisecond
	// cpuBurst is processor time that tasks may use at once after a rest: a short job waits for nothing, though clients are there.
	cpuBurst = 10 * time.Millisecond
	// mostOwed is the most that one slice pays for: a process that stood still for a while has not worked.
	mostOwed = time.Second
	// checkBytes is after how much a task looks at the clock, and whether it is still wanted; a record counts as recordCost and its bytes.
	checkBytes = 32 << 10
	// costlyBytes is what a record counts as besides, if it may take milliseconds: a task looks after a few of them.
	costlyBytes = 8 << 10
)

// Limits are what jobs may take of a node. The zero value is good.
type Limits struct {
	// ScanBytes is how many bytes of keys and values tasks may read in a second, all together; 0: as many as they can.
	ScanBytes int64
	// Quiet says whether hardly anybody but jobs asks the cluster for anything at present. nil: that is not known. Any goroutine may call it.
	Quiet func() bool
}

// Admission decides what tasks may take of this node, so that clients do not feel them: a turn each, for at most GOMAXPROCS-1 at once,
// by priority (turns.go); processor time, by how long others wait for it (steer.go); bytes a second that are read; and memory (budget.go).
//
// A task asks once for its turn and then pays as it goes (meter). It waits holding its view and its turn and no lock; what it waits
// for processor time is short, for it owes a few milliseconds at most.
//
// While there are tasks, one goroutine steers; it ends at its first tick without any. Any goroutine may use an Admission.
type Admission struct {
	processors float64 // of Go's
	slots      int     // for tasks at once
	turns      turns
	cpu        *rate.Limiter // a token is a nanosecond of one processor
	scan       *rate.Limiter // a token is a byte
	tasks      budget
	masters    budget
	latency    latencySource
	quiet      func() bool

	share      atomic.Uint64 // as the bits of a float64; the steering goroutine changes it
	p99        atomic.Int64  // that it has seen last
	wanted     atomic.Bool   // a task had to wait for processor time in this tick
	waitedCPU  atomic.Int64
	waitedScan atomic.Int64

	mu     sync.Mutex
	active int // tasks
	steers bool
	closed bool
	since  time.Time // when it last steered
	stop   chan struct{}
	wg     sync.WaitGroup
}

// latencySource tells how long others wait for a processor.
type latencySource interface {
	skip()
	p99() (time.Duration, bool)
}

// NewAdmission makes the limits of one node, which its Worker and its Master share.
func NewAdmission(limits Limits) *Admission {
	processors := runtime.GOMAXPROCS(0)
	a := &Admission{processors: float64(processors), slots: max(1, processors-1), latency: newSchedulerLatency(), quiet: limits.Quiet, stop: make(chan struct{})}
	if a.quiet == nil {
		a.quiet = func() bool { return false }
	}
	a.turns.free = a.slots
	a.tasks.limit, a.masters.limit = memoryBudget, memoryBudget
	a.cpu = rate.NewLimiter(0, int(cpuBurst))
	a.setShare(startShare)
	a.scan = rate.NewLimiter(rate.Inf, 0)
	if limits.ScanBytes > 0 { // a burst of a tenth of a second
		a.scan = rate.NewLimiter(rate.Limit(limits.ScanBytes), int(min(max(limits.ScanBytes/10, 1), math.MaxInt32)))
	}
	return a
}

// Close ends the steering and waits for it. Tasks must have ended.
func (a *Admission) Close() {
	a.mu.Lock()
	if !a.closed {
		a.closed = true
		close(a.stop)
	}
	a.mu.Unlock()
	a.wg.Wait()
}

// enter notes a task, which must leave.
func (a *Admission) enter() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.active++
	if a.steers || a.closed {
		return
	}
	a.steers = true
	switch {
	case a.quiet():
		a.setShare(maxShare)
	case time.Since(a.since) > shareAge:
		a.setShare(startShare)
	}
	a.wg.Go(a.runSteering)
}

func (a *Admission) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.active--
}

func (a *Admission) runSteering() {
	a.latency.skip()
	tick := time.NewTicker(steerTick)
	defer tick.Stop()
	for {
		select {
		case <-a.stop:
			return
		case <-tick.C:
		}
		p99, known := a.latency.p99()
		if known {
			a.p99.Store(int64(p99))
		}
		switch {
		case a.quiet():
			a.setShare(maxShare)
		case known:
			a.setShare(steer(a.Share(), p99, a.wanted.Swap(false)))
		}
		a.mu.Lock()
		a.since = time.Now()
		if a.active == 0 {
			a.steers = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
	}
}

// Share is how much of GOMAXPROCS tasks may use now.
func (a *Admission) Share() float64 { return math.Float64frombits(a.share.Load()) }

func (a *Admission) setShare(share float64) {
	a.share.Store(math.Float64bits(share))
	a.cpu.SetLimit(rate.Limit(share * a.processors * float64(time.Second)))
}

// charge takes what was used out of what there is, and says how long to wait until it is there.
func (a *Admission) charge(now time.Time, used time.Duration, read int64) (cpu, scan time.Duration) {
	return owe(a.cpu, now, int64(min(used, mostOwed))), owe(a.scan, now, read)
}

// owe takes n, in parts if it is more than a bucket holds.
func owe(l *rate.Limiter, now time.Time, n int64) (wait time.Duration) {
	if l.Limit() == rate.Inf {
		return 0
	}
	for {
		part := min(n, int64(l.Burst()))
		wait = l.ReserveN(now, int(part)).DelayFrom(now)
		if n -= part; n <= 0 {
			return wait
		}
	}
}

// meter counts what one task has read, and what of that it has not paid for. The task's goroutine uses it.
type meter struct {
	records, bytes int64

	a     *Admission
	since time.Time // it pays for what has been since
	paid  int64     // bytes
	each  int64     // bytes that a record counts as, beside its own
	next  int64     // it looks around when it has read so much, each counted
}

// await waits until what tasks have used is paid, or until ctx ends. A task that has its turn begins with it, or many that are shorter
// than a slice would never wait.
func (a *Admission) await(ctx context.Context) {
	m := a.meter()
	m.settle(ctx, m.since)
}

// meter begins to count for a task.
func (a *Admission) meter() meter {
	return meter{a: a, since: time.Now(), each: recordCost, next: checkBytes}
}

// step counts a record of so many bytes, and says whether it is time to look around.
func (m *meter) step(bytes int) (look bool) {
	m.records++
	m.bytes += int64(bytes)
	work := m.bytes + m.records*m.each
	if work < m.next {
		return false
	}
	m.next = work + checkBytes
	return true
}

// pay settles when a slice is over. A task pays for the time on the clock: when the machine's processors are others', that is more
// than the task had, and so it leaves them more.
func (m *meter) pay(ctx context.Context) {
	if now := time.Now(); now.Sub(m.since) >= slice {
		m.settle(ctx, now)
	}
}

// settle takes what was used until now and waits until it is there, or until ctx ends.
func (m *meter) settle(ctx context.Context, now time.Time) {
	cpu, scan := m.a.charge(now, now.Sub(m.since), m.bytes-m.paid)
	if cpu > 0 {
		m.a.wanted.Store(true)
	}
	m.paid = m.bytes
	if wait := max(cpu, scan); wait > 0 {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	} else {
		runtime.Gosched() // whoever waits behind this task on its processor goes first
	}
	m.since = time.Now()
	waited := m.since.Sub(now)
	if cpu >= scan {
		m.a.waitedCPU.Add(int64(waited))
	} else {
		m.a.waitedScan.Add(int64(waited))
	}
}

// close pays for the rest, for which those that come next wait.
func (m *meter) close() {
	now := time.Now()
	m.a.charge(now, now.Sub(m.since), m.bytes-m.paid)
}

// AdmissionStats are what jobs take of a node. By class is in the order of Priorities.
type AdmissionStats struct {
	Share            float64       // of GOMAXPROCS, that tasks may use
	SchedulerLatency time.Duration // the 99th percentile that was seen last
	WaitedCPU        time.Duration // by tasks, in all; it rises as they go on
	WaitedScan       time.Duration
	WaitedTurn       time.Duration
	MemoryBytes      int64  // about, of group tables
	MemoryRefused    uint64 // tasks and shards' parts that did not fit
	Running, Waiting [len(Priorities)]int
}

// Stats are the figures of now.
func (a *Admission) Stats() AdmissionStats {
	s := AdmissionStats{
		Share: a.Share(), SchedulerLatency: time.Duration(a.p99.Load()),
		WaitedCPU: time.Duration(a.waitedCPU.Load()), WaitedScan: time.Duration(a.waitedScan.Load()),
	}
	s.Running, s.Waiting, s.WaitedTurn = a.turns.counts()
	for _, b := range []*budget{&a.tasks, &a.masters} {
		used, refused := b.counts()
		s.MemoryBytes += used
		s.MemoryRefused += refused
	}
	return s
}
