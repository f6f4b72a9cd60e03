package main

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

// opened is what an open loop did, by operation: operation i was due i/rate after the start.
type opened struct {
	start time.Time
	rate  float64
	// lat is from the moment the operation was due, however late it was sent, to its
	// answer: what a user sees who does not wait for others' answers before asking
	// (no coordinated omission). failed and unfinished stand for those without one.
	lat []time.Duration
	// late is how long after that moment it was sent.
	late []time.Duration
}

const (
	unfinished time.Duration = -1
	failed     time.Duration = -2
)

// openCallers are at hand in an open loop: so many operations can be under way at once
// before one is sent late for want of a caller.
const openCallers = 2048

// due is when operation i is to be sent, after the start.
func (o *opened) due(i int) time.Duration { return time.Duration(float64(i) / o.rate * 1e9) }

// openLoop sends rate operations a second for d, each by the next free caller. If all
// are busy it is sent late, and its latency counts from when it was due all the same.
func openLoop(ctx context.Context, calls []caller, rate float64, d time.Duration) *opened {
	n := int(rate * d.Seconds())
	o := &opened{start: time.Now(), rate: rate, lat: make([]time.Duration, n), late: make([]time.Duration, n)}
	for i := range o.lat {
		o.lat[i] = unfinished
	}
	ctx, cancel := bounded(ctx, d+grace)
	defer cancel()
	var next atomic.Int64
	var wg sync.WaitGroup
	for _, call := range calls {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				due := o.start.Add(o.due(i))
				if sleep(ctx, time.Until(due)) != nil {
					return
				}
				o.late[i] = time.Since(due)
				_, err := call(ctx)
				switch {
				case err == nil:
					o.lat[i] = time.Since(due)
				case ctx.Err() == nil:
					o.lat[i] = failed
				}
			}
		})
	}
	wg.Wait()
	return o
}

// sorted are the latencies of the operations that were due in a second for which in
// holds, and were answered.
func (o *opened) sorted(in func(second int) bool) (v []time.Duration) {
	for i, l := range o.lat {
		if l >= 0 && in(int(o.due(i)/time.Second)) {
			v = append(v, l)
		}
	}
	slices.Sort(v)
	return v
}

// openRun is one run of an open loop, with the checkpoints of the servers meanwhile.
func (p *peer) openRun(ctx context.Context, r *Record, calls []caller) error {
	m, metered := p.d.(Metered)
	var w *checkpointWatch
	if metered {
		w = watchCheckpoints(ctx, m.Metrics())
	} else {
		r.Note = "checkpoints unknown: this peer exports no metrics of them"
	}
	o := openLoop(ctx, calls, r.Rate, p.s.Dur)
	var spans []checkpointSpan
	if metered {
		var err error
		if spans, err = w.stop(); err != nil {
			metered, r.Note = false, "checkpoints unknown: "+err.Error()
		}
	}
	every := o.sorted(func(int) bool { return true })
	late := slices.Clone(o.late)
	slices.Sort(late)
	v := r.Values
	for _, l := range o.lat {
		switch l {
		case unfinished:
			v["unfinished"]++
		case failed:
			v["errors"]++
		}
	}
	r.Seconds = p.s.Dur.Seconds()
	v["done"], v["rate"] = float64(len(every)), float64(len(every))/p.s.Dur.Seconds()
	v["p50_ms"], v["p99_ms"], v["p999_ms"] = ms(measure.Quantile(every, .5)), ms(measure.Quantile(every, .99)), ms(measure.Quantile(every, .999))
	v["late_p99_ms"] = ms(measure.Quantile(late, .99))
	if metered {
		o.classes(spans, p.s.BigKeys, v)
	}
	return nil
}

// classes takes the latencies of seconds with a large checkpoint and those of seconds without apart.
func (o *opened) classes(spans []checkpointSpan, bigKeys int, v map[string]float64) {
	seconds := int(o.due(len(o.lat))+time.Second-1) / int(time.Second)
	big, any := make([]bool, seconds), make([]bool, seconds)
	for _, c := range spans {
		v["checkpoints"] += c.ended
		v["largest_keys"] = max(v["largest_keys"], c.keys)
		for s := max(0, int(c.from.Sub(o.start)/time.Second)); s < seconds && o.start.Add(time.Duration(s)*time.Second).Before(c.to); s++ {
			any[s] = true
			big[s] = big[s] || c.keys >= float64(bigKeys)
		}
	}
	v["big_keys"] = float64(bigKeys)
	for name, in := range map[string]func(int) bool{
		"with":    func(s int) bool { return big[s] },
		"without": func(s int) bool { return !big[s] },
		"none":    func(s int) bool { return !any[s] },
	} {
		n := 0.0
		for s := range seconds {
			if in(s) {
				n++
			}
		}
		v[name+"_s"] = n
		if n > 0 {
			v[name+"_p999_ms"] = ms(measure.Quantile(o.sorted(in), .999))
		}
	}
	if without := v["without_p999_ms"]; v["with_s"] > 0 && without > 0 {
		v["with_to_without"] = v["with_p999_ms"] / without
	}
}
