package compute

import (
	"math"
	"runtime/metrics"
	"time"
)

// How much of the processors tasks may use is steered by how long goroutines wait for one once they can run: that is what a put or
// a get feels of a job, and what an idle node does not have. It follows CockroachDB's elastic CPU (pkg/util/admission,
// scheduler_latency_listener.go), with its target, start and ceiling; ours moves in seconds, for a job lasts seconds, and
// where theirs falls by a step, ours falls by half. Where nobody else is there to wait, nobody is spared: of what waits then, most is
// the job's own.
const (
	steerTick = 100 * time.Millisecond
	// latencyTarget is what of 100 goroutines that can run 99 should not have to wait.
	latencyTarget = time.Millisecond
	// The shares are of GOMAXPROCS.
	startShare = 0.25
	minShare   = 0.02 // or a job would not end on a node that is always busy
	maxShare   = 0.75
	shareRise  = 0.0025 // in a tick
	shareFall  = 0.5    // of what it was
	// minWaits is how many goroutines must have waited for the slowest hundredth of them to mean something. Fewer are gathered over several ticks.
	minWaits = 100
	// shareAge is how long a share that was steered to is of use to the tasks that come next.
	shareAge = 10 * time.Second
)

// steer decides the share for the next tick, by the latency in the last one and by whether tasks had to wait for processor time in it: a
// share that nobody uses up must not rise, or it would be there all at once.
func steer(share float64, latency time.Duration, wanted bool) float64 {
	switch {
	case latency > latencyTarget:
		share *= shareFall
	case wanted:
		share += shareRise
	}
	return min(max(share, minShare), maxShare)
}

// schedulerLatency reads how long goroutines of this process waited for a processor. One goroutine uses it.
type schedulerLatency struct {
	sample [1]metrics.Sample
	seen   []uint64 // counts of what has been reported
}

func newSchedulerLatency() *schedulerLatency {
	l := new(schedulerLatency)
	l.sample[0].Name = "/sched/latencies:seconds"
	return l
}

// skip forgets what has been up to now.
func (l *schedulerLatency) skip() {
	if h := l.read(); h != nil {
		l.seen = append(l.seen[:0], h.Counts...)
	}
}

// p99 is the 99th percentile since it was last told, or since skip. It says false as long as too few have waited.
func (l *schedulerLatency) p99() (time.Duration, bool) {
	h := l.read()
	if h == nil || len(h.Counts) != len(l.seen) {
		return 0, false
	}
	p99, ok := percentile(h.Counts, l.seen, h.Buckets)
	if ok {
		copy(l.seen, h.Counts)
	}
	return p99, ok
}

func (l *schedulerLatency) read() *metrics.Float64Histogram {
	metrics.Read(l.sample[:])
	if l.sample[0].Value.Kind() != metrics.KindFloat64Histogram { // a Go that does not tell: the share stays what it is
		return nil
	}
	return l.sample[0].Value.Float64Histogram()
}

// percentile is the upper bound of the 99th percentile of what counts has beyond seen; bucket i is from bounds[i] to bounds[i+1], in seconds.
func percentile(counts, seen []uint64, bounds []float64) (time.Duration, bool) {
	var all uint64
	for i := range counts {
		all += counts[i] - seen[i]
	}
	if all < minWaits {
		return 0, false
	}
	above := all / 100
	i := len(counts) - 1
	for ; i > 0; i-- {
		n := counts[i] - seen[i]
		if n > above {
			break
		}
		above -= n
	}
	bound := bounds[i+1]
	if math.IsInf(bound, 1) {
		bound = bounds[i]
	}
	return time.Duration(bound * float64(time.Second)), true
}
