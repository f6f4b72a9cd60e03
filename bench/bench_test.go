package bench

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
)

// stallTarget takes service for each call, and stands still once, from stallAt
// on for stall.
type stallTarget struct {
	begin          time.Time
	service, stall time.Duration
	stallAt        time.Duration

	mu   sync.Mutex
	ops  int
	keys map[string]int
	kind [3]int
}

func (t *stallTarget) Do(_ context.Context, ops []Op, errs []error) {
	t.mu.Lock()
	t.ops += len(ops)
	for _, op := range ops {
		t.keys[op.Key]++
		t.kind[op.Kind]++
	}
	t.mu.Unlock()
	time.Sleep(t.service)
	if at := time.Since(t.begin); at >= t.stallAt && at < t.stallAt+t.stall {
		time.Sleep(t.stallAt + t.stall - at)
	}
	clear(errs)
}

func newStallTarget(service time.Duration) *stallTarget {
	return &stallTarget{begin: time.Now(), service: service, keys: map[string]int{}}
}

func config(change func(*Config)) Config {
	c := DefaultConfig()
	c.Warmup, c.Duration, c.Clients, c.Keys = time.Second, 10*time.Second, 4, 100
	change(&c)
	return c
}

func within(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// Four clients that wait 1 ms for each answer do 4,000 operations a second.
func TestClosedLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newStallTarget(time.Millisecond)
		r, err := Run(t.Context(), config(func(*Config) {}), target)
		if err != nil {
			t.Fatal(err)
		}
		within(t, "ops/s", r.OpsPerSec, 4000, 10)
		within(t, "seconds", r.Seconds, 10, 0.01)
		within(t, "p50", r.Latency.P50, 1, 0.01)
		within(t, "p99.9", r.Latency.P999, 1, 0.01)
		within(t, "operations, warm-up included", float64(target.ops), 44_000, 50)
		if r.Loop != "closed" || r.Failed != 0 || target.kind[Put] != target.ops {
			t.Errorf("report %+v", r)
		}
	})
}

func TestPipelineCountsEveryOperation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := Run(t.Context(), config(func(c *Config) { c.Pipeline = 16 }), newStallTarget(time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		within(t, "ops/s", r.OpsPerSec, 64_000, 200)
		within(t, "p50", r.Latency.P50, 1, 0.01)
	})
}

// A closed loop hides a stall of one second behind four slow operations; an
// open loop shows it in every operation that was due meanwhile.
func TestOpenLoopShowsAStall(t *testing.T) {
	for _, tc := range []struct {
		rate float64
		p99  float64 // at least
	}{{0, 0}, {1000, 850}} {
		synctest.Test(t, func(t *testing.T) {
			target := newStallTarget(time.Millisecond)
			target.stallAt, target.stall = 5*time.Second, time.Second
			r, err := Run(t.Context(), config(func(c *Config) { c.Rate, c.Clients = tc.rate, 8 }), target)
			if err != nil {
				t.Fatal(err)
			}
			within(t, "max", r.Latency.Max, 1000, 5)
			if tc.rate == 0 {
				within(t, "closed loop p99", r.Latency.P99, 1, 0.1)
				return
			}
			within(t, "ops/s", r.OpsPerSec, 1000, 2)
			within(t, "p50", r.Latency.P50, 1, 0.1)
			// One operation in ten was due during the stall (and while the backlog was worked off).
			if r.Latency.P99 < tc.p99 {
				t.Errorf("open loop p99 %v ms does not show the stall", r.Latency.P99)
			}
		})
	}
}

// A target that cannot keep up: the rate that is reached is reported, not the one asked for.
func TestOpenLoopOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := Run(t.Context(), config(func(c *Config) { c.Rate, c.Clients, c.Warmup = 1000, 1, 0 }), newStallTarget(2*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		within(t, "ops/s", r.OpsPerSec, 500, 2)
		within(t, "ops", float64(r.Ops), 10_000, 2)
		within(t, "max", r.Latency.Max, 10_000, 50)
	})
}

func TestErrorsAreCountedByKindAndKeptOutOfLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		r, err := Run(t.Context(), config(func(c *Config) { c.Clients, c.Warmup = 1, 0 }), targetFunc(func(errs []error) {
			n++
			if n%4 == 0 {
				time.Sleep(time.Second)
				errs[0] = errors.New("slow and bad")
				return
			}
			time.Sleep(time.Millisecond)
			errs[0] = nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		if r.Failed != 10 || r.Errors["slow and bad"] != 10 || r.Ops != 30 {
			t.Errorf("failed %d, %v, ops %d", r.Failed, r.Errors, r.Ops)
		}
		within(t, "max", r.Latency.Max, 1, 0.01)
		if !strings.Contains(r.String(), "slow and bad") {
			t.Errorf("the report does not name the error:\n%s", r)
		}
	})
}

type targetFunc func(errs []error)

func (f targetFunc) Do(_ context.Context, _ []Op, errs []error) { f(errs) }

func TestStopsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rate := range []float64{0, 0.001} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			began := time.Now()
			if _, err := Run(ctx, config(func(c *Config) { c.Rate, c.Duration = rate, time.Hour }), newStallTarget(time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			cancel()
			within(t, "seconds", time.Since(began).Seconds(), 1, 0.01)
		}
	})
}

func TestMixed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newStallTarget(time.Millisecond)
		if _, err := Run(t.Context(), config(func(c *Config) { c.Op = "mixed" }), target); err != nil {
			t.Fatal(err)
		}
		within(t, "share of gets", float64(target.kind[Get])/float64(target.ops), 0.5, 0.02)
	})
}

func TestLoadStoresEveryKeyOnce(t *testing.T) {
	target := newStallTarget(0)
	cfg := config(func(c *Config) { c.Keys = 12_345 })
	if err := Load(t.Context(), cfg, target, nil); err != nil {
		t.Fatal(err)
	}
	if len(target.keys) != cfg.Keys || target.ops != cfg.Keys {
		t.Errorf("%d keys in %d operations", len(target.keys), target.ops)
	}
	bad := errors.New("full")
	if err := Load(t.Context(), cfg, targetFunc(func(errs []error) { errs[len(errs)-1] = bad }), nil); !errors.Is(err, bad) {
		t.Errorf("load over a target that fails: %v", err)
	}
}

func TestUniform(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	seen := make([]int, 10)
	draw := uniform(10)
	for range 100_000 {
		seen[draw(r)]++
	}
	for k, n := range seen {
		within(t, "draws of key "+string(rune('0'+k)), float64(n), 10_000, 500)
	}
}

// The share of the busiest rank is 1/zeta(n), of the next one 2^-theta of that.
func TestZipfian(t *testing.T) {
	for _, n := range []int{1, 2, 1000, 100_000} {
		r := rand.New(rand.NewPCG(1, 2))
		draw, seen := zipfian(n), map[int]int{}
		const draws = 200_000
		for range draws {
			k := draw(r)
			if k < 0 || k >= n {
				t.Fatalf("drew key %d of %d", k, n)
			}
			seen[k]++
		}
		if n < 1000 {
			continue
		}
		first := float64(seen[scatter(0, n)]) / draws
		within(t, "share of the busiest", first, 1/zeta(n), 0.01)
		within(t, "share of the second", float64(seen[scatter(1, n)])/draws, math.Pow(2, -zipfTheta)/zeta(n), 0.01)
	}
	within(t, "zeta(3)", zeta(3), 1+math.Pow(2, -zipfTheta)+math.Pow(3, -zipfTheta), 1e-12)
}

func TestValidateNamesEveryFault(t *testing.T) {
	err := Config{Op: "fly", Dist: "odd", Clients: 0, Pipeline: 0, ValueSize: -1, Keys: 0, Warmup: -1, Rate: -1}.Validate()
	for _, want := range []string{"op", "dist", "clients", "pipeline", "value size", "keys", "warm-up", "duration", "rate"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	if err := config(func(c *Config) { c.Rate, c.Pipeline = 10, 2 }).Validate(); err == nil {
		t.Error("a pipeline in an open loop was accepted")
	}
}

// The real client against a cluster in memory, faults included.
func TestCluster(t *testing.T) {
	c := clienttest.New(t, 2)
	cl, err := client.Open(client.Config{Addrs: c.Addrs(), Conns: 2, Timeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	cfg := config(func(c *Config) {
		c.Warmup, c.Duration, c.Pipeline, c.Op, c.Describe = 0, 100*time.Millisecond, 8, "incr", DescribeError
	})
	r, err := Run(t.Context(), cfg, Cluster{cl})
	if err != nil || r.Ops == 0 || r.Failed != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		r.Reply.Error("UNCERTAIN maybe")
		return clienttest.Done
	})
	if r, err = Run(t.Context(), cfg, Cluster{cl}); err != nil || r.Errors["uncertain"] == 0 || r.Ops != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	for err, want := range map[error]string{
		client.ErrUnavailable: "unavailable (not executed)", &client.ServerError{Code: "TOOLARGE"}: "refused: TOOLARGE", client.ErrClosed: "closed", errors.New("x"): "other: x",
	} {
		if got := DescribeError(err); got != want {
			t.Errorf("%v is described as %q", err, got)
		}
	}
}
