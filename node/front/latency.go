package front

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// LatencyBounds are the ends of the classes that times are counted in: 32 µs, and from there by halves of powers of two, to 33 s.
// Whoever interpolates in a class errs by less than a quarter.
var LatencyBounds = func() (bounds [41]time.Duration) {
	for i := range bounds {
		bounds[i] = 32 * time.Microsecond << (i / 2)
		if i%2 == 1 {
			bounds[i] += bounds[i] / 2
		}
	}
	return bounds
}()

// Latency counts times by class. It is a value; see Stats.
type Latency struct {
	// Counts[i] is how many took less than LatencyBounds[i], and not less than the bound before; the last, those above all bounds.
	Counts [len(LatencyBounds) + 1]uint64
	// Sum of the times.
	Sum time.Duration
}

// Count is how many times were counted.
func (l *Latency) Count() (n uint64) {
	for _, c := range l.Counts {
		n += c
	}
	return n
}

// Since is what was counted after an earlier state of the same counters.
func (l Latency) Since(was Latency) Latency {
	for i := range l.Counts {
		l.Counts[i] -= was.Counts[i]
	}
	l.Sum -= was.Sum
	return l
}

// Plus is the counts of both.
func (l Latency) Plus(o Latency) Latency {
	for i := range l.Counts {
		l.Counts[i] += o.Counts[i]
	}
	l.Sum += o.Sum
	return l
}

// Quantile is the time that a share q (0 to 1) did not exceed, 0 if nothing was counted.
func (l *Latency) Quantile(q float64) time.Duration {
	rank := q * float64(l.Count())
	low := time.Duration(0)
	for i, c := range l.Counts {
		if i == len(LatencyBounds) {
			break
		}
		if c > 0 && rank <= float64(c) {
			return low + time.Duration(float64(LatencyBounds[i]-low)*rank/float64(c))
		}
		rank -= float64(c)
		low = LatencyBounds[i]
	}
	if l.Count() == 0 {
		return 0
	}
	return low
}

// latencyClass is the index in Counts.
func latencyClass(d time.Duration) int {
	us := uint64(max(d, 0)) / 1000
	if us < 32 {
		return 0
	}
	n := bits.Len64(us)
	return min(2*(n-6)+int(us>>(n-2)&1)+1, len(LatencyBounds))
}

// timing counts the times of one kind of commands of a port.
type timing struct {
	counts [len(LatencyBounds) + 1]atomic.Uint64
	sum    atomic.Int64
}

func (t *timing) add(d time.Duration, n uint64) {
	if n > 0 {
		t.counts[latencyClass(d)].Add(n)
		t.sum.Add(int64(d) * int64(n))
	}
}

func (t *timing) load() (l Latency) {
	for i := range t.counts {
		l.Counts[i] = t.counts[i].Load()
	}
	l.Sum = time.Duration(t.sum.Load())
	return l
}

// timed counts the commands of an executed window: each took as long as all. What was refused before it was
// executed took no time of anybody's.
func (p *plan) timed(d time.Duration) {
	var reads, writes uint64
	for i := range p.requests {
		switch r := &p.requests[i]; {
		case r.refused != "":
		case r.spec.has(flagWrite):
			writes++
		default:
			reads++
		}
	}
	p.c.srv.stats.reads.add(d, reads)
	p.c.srv.stats.writes.add(d, writes)
}
