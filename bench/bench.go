// Package bench is the load engine behind `abacus bench`.
//
// Run starts workers, each a loop (worker.run) that draws operations, hands
// them to a Target and notes how long that took. In a closed loop a worker
// begins the next operation when it has the answer to the last, so a slow
// server is asked less. In an open loop operations are due at a fixed rate,
// whatever the server does, and a latency counts from when the operation was
// due, not from when a worker came round to it: a stall of a second shows in
// every operation that was due in that second (Tene, "How NOT to Measure Latency").
//
// Each worker owns its random numbers. A few tallies, each under a lock, take
// what workers measure (a histogram takes too much memory for each worker to
// have one); they are merged when all have stopped.
package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Kind is what an operation does.
type Kind uint8

const (
	Put Kind = iota
	Get
	Incr
)

// Op is one operation. Value is set for Put, and shared by many.
type Op struct {
	Kind  Kind
	Key   string
	Value []byte
}

// Target carries out operations, pipelined, and sets one error for each.
type Target interface {
	Do(ctx context.Context, ops []Op, errs []error)
}

// Config describes a run.
type Config struct {
	Op        string        // put, get, incr, or mixed: half put, half get
	Clients   int           // workers
	Pipeline  int           // operations that a worker has under way at once; closed loop only
	ValueSize int           // bytes of a value
	Keys      int           // keys 0..Keys-1
	Prefix    string        // of every key
	Dist      string        // uniform or zipfian
	Warmup    time.Duration // not measured
	Duration  time.Duration // measured
	Rate      float64       // operations a second, all workers together; 0: closed loop
	Seed      uint64        // of the random numbers
	// Describe names the kind of an error for the report. Default: its text.
	Describe func(error) string
}

// DefaultConfig is a run that fits a laptop.
func DefaultConfig() Config {
	return Config{Op: "put", Clients: 64, Pipeline: 1, ValueSize: 100, Keys: 100_000, Prefix: "bench/", Dist: "uniform", Warmup: 2 * time.Second, Duration: 10 * time.Second, Seed: 1}
}

// Validate reports every fault.
func (c Config) Validate() error {
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(slices.Contains([]string{"put", "get", "mixed", "incr"}, c.Op), "op %q: it must be put, get, mixed or incr", c.Op)
	check(slices.Contains([]string{"uniform", "zipfian"}, c.Dist), "dist %q: it must be uniform or zipfian", c.Dist)
	check(c.Clients >= 1 && c.Clients <= 10_000, "clients %d: must be within 1..10000", c.Clients)
	check(c.Pipeline >= 1 && c.Pipeline <= 4096, "pipeline %d: must be within 1..4096", c.Pipeline)
	check(c.Pipeline == 1 || c.Rate == 0, "pipeline %d: an open loop (rate) has none", c.Pipeline)
	check(c.ValueSize >= 0 && c.ValueSize <= 64<<20, "value size %d: must be within 0..64 MiB", c.ValueSize)
	check(c.Keys >= 1 && c.Keys <= 1_000_000_000, "keys %d: must be within 1..1000000000", c.Keys)
	check(c.Warmup >= 0, "warm-up %v: must not be negative", c.Warmup)
	check(c.Duration > 0, "duration %v: must be more than 0", c.Duration)
	check(c.Rate >= 0 && c.Rate <= 1e8, "rate %v: must be within 0..100000000", c.Rate)
	return errors.Join(faults...)
}

// highest is the longest latency that the histograms tell apart, in
// microseconds; a longer one counts as this.
const highest = int64(10 * time.Minute / time.Microsecond)

// worker is one loop and what it has seen.
type worker struct {
	cfg    *Config
	target Target
	rnd    *rand.Rand
	keys   func(*rand.Rand) int
	value  []byte

	tally *tally
	ops   []Op
	errs  []error
}

// tally is what some of the workers have seen.
type tally struct {
	mu     sync.Mutex
	hist   *hdrhistogram.Histogram
	errors map[string]int64
}

func newTally() *tally {
	return &tally{hist: hdrhistogram.New(1, highest, 3), errors: map[string]int64{}}
}

func (t *tally) note(took time.Duration, errs []error, describe func(error) string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, err := range errs {
		if err != nil {
			t.errors[describe(err)]++
			continue
		}
		t.hist.RecordValue(min(max(took.Microseconds(), 1), highest))
	}
}

// Run drives the target and returns what it measured. It ends early, with
// what there is, when ctx ends.
func Run(ctx context.Context, cfg Config, target Target) (Report, error) {
	if err := cfg.Validate(); err != nil {
		return Report{}, fmt.Errorf("bench: %w", err)
	}
	if cfg.Describe == nil {
		cfg.Describe = func(err error) string { return err.Error() }
	}
	keys := uniform(cfg.Keys)
	if cfg.Dist == "zipfian" {
		keys = zipfian(cfg.Keys)
	}
	value := makeValue(cfg.ValueSize, cfg.Seed)
	tallies := make([]*tally, min(cfg.Clients, 8))
	for i := range tallies {
		tallies[i] = newTally()
	}
	workers := make([]*worker, cfg.Clients)
	for i := range workers {
		workers[i] = &worker{
			cfg: &cfg, target: target, keys: keys, value: value,
			rnd:   rand.New(rand.NewPCG(cfg.Seed, uint64(i))),
			tally: tallies[i%len(tallies)],
			ops:   make([]Op, cfg.Pipeline),
			errs:  make([]error, cfg.Pipeline),
		}
	}
	s := &schedule{begin: time.Now(), rate: cfg.Rate}
	s.measure = s.begin.Add(cfg.Warmup)
	s.end = s.measure.Add(cfg.Duration)
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Go(func() { w.run(ctx, s) })
	}
	wg.Wait()
	return report(cfg, tallies, s), nil
}

// schedule is what the workers share: when operations are due, and when
// measuring begins and ends.
type schedule struct {
	begin, measure, end time.Time
	rate                float64
	next                atomic.Int64 // the next operation of an open loop
}

// due is when operation n of an open loop should begin.
func (s *schedule) due(n int64) time.Time {
	return s.begin.Add(time.Duration(float64(n) / s.rate * float64(time.Second)))
}

func (w *worker) run(ctx context.Context, s *schedule) {
	for ctx.Err() == nil {
		start := time.Now()
		if s.rate > 0 {
			start = s.due(s.next.Add(1) - 1)
			if !start.Before(s.end) || !waitUntil(ctx, start) {
				return
			}
		} else if !start.Before(s.end) {
			return
		}
		for i := range w.ops {
			w.ops[i] = w.draw()
		}
		w.target.Do(ctx, w.ops, w.errs)
		took := time.Since(start)
		// By when it began: a closed loop's last operations end after the end. Those of a run that was
		// cut short tell nothing.
		if start.Before(s.measure) || ctx.Err() != nil {
			continue
		}
		w.tally.note(took, w.errs, w.cfg.Describe)
	}
}

// waitUntil waits for a moment, false if ctx ends first.
func waitUntil(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// draw makes the next operation.
func (w *worker) draw() Op {
	key := Key(w.cfg.Prefix, w.keys(w.rnd))
	switch w.cfg.Op {
	case "get":
		return Op{Kind: Get, Key: key}
	case "incr":
		return Op{Kind: Incr, Key: key}
	case "mixed":
		if w.rnd.IntN(2) == 0 {
			return Op{Kind: Get, Key: key}
		}
	}
	return Op{Kind: Put, Key: key, Value: w.value}
}

// Key is the name of key n.
func Key(prefix string, n int) string { return fmt.Sprintf("%s%09d", prefix, n) }

// makeValue is printable and does not compress to nothing.
func makeValue(size int, seed uint64) []byte {
	const letters = "abcdefghijklmnopqrstuvwxyz012345"
	r := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, size)
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	return b
}

// Load puts every key once, so that reads find something. progress, if not nil,
// is told how many are stored.
func Load(ctx context.Context, cfg Config, target Target, progress func(done int)) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	value := makeValue(cfg.ValueSize, cfg.Seed)
	size := max(1, min(1000, 1<<20/(cfg.ValueSize+64)))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next, done atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				from := int(next.Add(int64(size))) - size
				if from >= cfg.Keys {
					return
				}
				ops := make([]Op, 0, size)
				for n := from; n < min(from+size, cfg.Keys); n++ {
					ops = append(ops, Op{Kind: Put, Key: Key(cfg.Prefix, n), Value: value})
				}
				errs := make([]error, len(ops))
				target.Do(ctx, ops, errs)
				if err := errors.Join(firstOf(errs)); err != nil {
					cancel(fmt.Errorf("load keys %d to %d: %w", from, from+len(ops)-1, err))
					return
				}
				n := done.Add(int64(len(ops)))
				if progress != nil {
					progress(int(n))
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Report is what a run measured. Latencies are milliseconds.
type Report struct {
	Op        string           `json:"op"`
	Loop      string           `json:"loop"` // closed or open
	Clients   int              `json:"clients"`
	Pipeline  int              `json:"pipeline"`
	ValueSize int              `json:"value_size"`
	Keys      int              `json:"keys"`
	Dist      string           `json:"dist"`
	Rate      float64          `json:"rate,omitempty"` // asked for; open loop
	Seconds   float64          `json:"seconds"`        // measured
	Ops       int64            `json:"ops"`            // that succeeded
	OpsPerSec float64          `json:"ops_per_second"`
	Errors    map[string]int64 `json:"errors"` // by kind
	Failed    int64            `json:"failed"`
	Latency   Latency          `json:"latency_ms"`
}

// Latency is a distribution, in milliseconds.
type Latency struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99_9"`
	Max  float64 `json:"max"`
}

func report(cfg Config, tallies []*tally, s *schedule) Report {
	r := Report{Op: cfg.Op, Loop: "closed", Clients: cfg.Clients, Pipeline: cfg.Pipeline, ValueSize: cfg.ValueSize, Keys: cfg.Keys, Dist: cfg.Dist, Rate: cfg.Rate, Errors: map[string]int64{}}
	if cfg.Rate > 0 {
		r.Loop = "open"
	}
	all := hdrhistogram.New(1, highest, 3)
	for _, t := range tallies {
		all.Merge(t.hist)
		for kind, n := range t.errors {
			r.Errors[kind] += n
			r.Failed += n
		}
	}
	// To the last answer: at a rate that the target cannot keep up with, that is long after the end.
	r.Seconds = max(time.Since(s.measure).Seconds(), 0)
	r.Ops = all.TotalCount()
	if r.Seconds > 0 {
		r.OpsPerSec = float64(r.Ops) / r.Seconds
	}
	ms := func(us int64) float64 { return float64(us) / 1000 }
	r.Latency = Latency{Mean: all.Mean() / 1000, P50: ms(all.ValueAtQuantile(50)), P90: ms(all.ValueAtQuantile(90)), P99: ms(all.ValueAtQuantile(99)), P999: ms(all.ValueAtQuantile(99.9)), Max: ms(all.Max())}
	return r
}

// String is the report for people.
func (r Report) String() string {
	var b strings.Builder
	loop := fmt.Sprintf("closed loop, %d clients, pipeline %d", r.Clients, r.Pipeline)
	if r.Loop == "open" {
		loop = fmt.Sprintf("open loop, %g ops/s wanted, at most %d at once", r.Rate, r.Clients)
	}
	fmt.Fprintf(&b, "%s: %s; %d byte values, %d keys, %s\n", r.Op, loop, r.ValueSize, r.Keys, r.Dist)
	fmt.Fprintf(&b, "  throughput  %.0f ops/s  (%d ops in %.1f s)\n", r.OpsPerSec, r.Ops, r.Seconds)
	fmt.Fprintf(&b, "  latency ms  mean %.2f  p50 %.2f  p90 %.2f  p99 %.2f  p99.9 %.2f  max %.2f\n", r.Latency.Mean, r.Latency.P50, r.Latency.P90, r.Latency.P99, r.Latency.P999, r.Latency.Max)
	if r.Failed == 0 {
		b.WriteString("  errors      none\n")
		return b.String()
	}
	kinds := make([]string, 0, len(r.Errors))
	for k := range r.Errors {
		kinds = append(kinds, k)
	}
	slices.SortFunc(kinds, func(a, b string) int { return int(r.Errors[b] - r.Errors[a]) })
	fmt.Fprintf(&b, "  errors      %d\n", r.Failed)
	for _, k := range kinds {
		fmt.Fprintf(&b, "    %8d  %s\n", r.Errors[k], k)
	}
	return b.String()
}
