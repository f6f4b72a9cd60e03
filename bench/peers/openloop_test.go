package main

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// A server that stands still for a second delays all that was due in it, not only the one
// operation that a closed loop would have had under way: in virtual time, to the millisecond.
func TestOpenLoopCountsFromDueTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		stall := func(context.Context) (int, error) { // serves at once, but from 1 s to 2 s not at all
			if at := time.Since(start); at >= time.Second && at < 2*time.Second {
				time.Sleep(2*time.Second - at)
			}
			return 1, nil
		}
		// One caller for a hundred operations a second: while one waits, nothing is sent.
		o := openLoop(t.Context(), []caller{stall}, 100, 3*time.Second)
		if len(o.lat) != 300 {
			t.Fatalf("%d operations, want 300", len(o.lat))
		}
		for i, got := range o.lat {
			due, want := o.due(i), time.Duration(0)
			if due >= time.Second && due < 2*time.Second {
				want = 2*time.Second - due
			}
			if d := got - want; d < -time.Microsecond || d > time.Microsecond {
				t.Fatalf("operation %d, due at %s: latency %s, want %s", i, due, got, want)
			}
			if i > 100 && i < 200 && o.late[i] != got {
				t.Errorf("operation %d was sent %s late, want %s", i, o.late[i], got)
			}
		}
		second := o.sorted(func(s int) bool { return s == 1 })
		if len(second) != 100 || second[99] != time.Second {
			t.Errorf("the second second: %d operations, slowest %s; want 100 and 1s", len(second), second[len(second)-1])
		}
	})
}

// What fails or is not answered in time has no latency, and is not counted as fast.
func TestOpenLoopFailedAndUnfinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		call := func(ctx context.Context) (int, error) {
			if n++; n == 3 {
				return 0, errors.New("no")
			}
			if n == 8 {
				<-ctx.Done() // never answered
				return 0, ctx.Err()
			}
			return 1, nil
		}
		o := openLoop(t.Context(), []caller{call}, 10, time.Second)
		if o.lat[2] != failed {
			t.Errorf("the failed one: %s", o.lat[2])
		}
		for i := 7; i < 10; i++ {
			if o.lat[i] != unfinished {
				t.Errorf("operation %d: %s, want unfinished", i, o.lat[i])
			}
		}
		if got := len(o.sorted(func(int) bool { return true })); got != 6 {
			t.Errorf("%d latencies, want 6", got)
		}
	})
}

func TestOpenLoopKeepsItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		slow := func(context.Context) (int, error) { time.Sleep(30 * time.Millisecond); return 1, nil }
		calls := make([]caller, 8)
		for i := range calls {
			calls[i] = slow
		}
		o := openLoop(t.Context(), calls, 200, 2*time.Second)
		if took := time.Since(start); took < 2*time.Second || took > 2100*time.Millisecond {
			t.Errorf("took %s", took)
		}
		for i, l := range o.lat {
			if l != 30*time.Millisecond {
				t.Fatalf("operation %d: %s, want 30ms: eight callers are enough for six under way", i, l)
			}
		}
	})
}

func TestClasses(t *testing.T) {
	start := time.Now()
	o := &opened{start: start, rate: 10, lat: make([]time.Duration, 50)} // five seconds
	for i := range o.lat {
		o.lat[i] = time.Duration(1+i/10) * time.Millisecond // 1 ms in the first second … 5 ms in the fifth
	}
	at := func(s float64) time.Time { return start.Add(time.Duration(s * 1e9)) }
	v := map[string]float64{}
	o.classes([]checkpointSpan{
		{from: at(-1), to: at(-.5), keys: 1e6, ended: 1},   // before
		{from: at(1.95), to: at(2.05), keys: 60_000},       // touches the second and the third
		{from: at(3.2), to: at(3.3), keys: 100, ended: 1},  // small
		{from: at(5.2), to: at(5.3), keys: 1e6, ended: 1},  // after
		{from: at(2.05), to: at(2.1), keys: 5e4, ended: 1}, // as large as asked for
	}, 50_000, v)
	for name, want := range map[string]float64{
		"with_s": 2, "without_s": 3, "none_s": 2, "with_p999_ms": 3, "without_p999_ms": 5, "none_p999_ms": 5, "with_to_without": 3.0 / 5, "largest_keys": 1e6,
	} {
		if math.Abs(v[name]-want) > 1e-9 {
			t.Errorf("%s = %v, want %v", name, v[name], want)
		}
	}
}

func TestCheckpointMetrics(t *testing.T) {
	page := func(way0, ended0, keys0, way1 string) []byte {
		return []byte(`# HELP abacus_shard_checkpoint_keys Keys.
# TYPE abacus_shard_checkpoint_keys gauge
abacus_shard_checkpoint_keys{shard="0"} ` + way0 + `
abacus_shard_checkpoint_keys{shard="1"} ` + way1 + `
abacus_shard_checkpoint_keys_total{shard="0"} ` + keys0 + `
abacus_shard_checkpoint_keys_total{shard="1"} 7
abacus_shard_checkpoints_total{shard="0"} ` + ended0 + `
abacus_shard_checkpoints_total{shard="1"} 1
abacus_shard_records{shard="0"} 99
`)
	}
	a, err := parseCheckpoints(page("0", "2", "1e+06", "0"))
	if err != nil {
		t.Fatal(err)
	}
	if *a["0"] != (struct{ underWay, ended, keys float64 }{0, 2, 1e6}) {
		t.Errorf("shard 0: %+v", *a["0"])
	}
	if got := spansBetween(a, a, time.Time{}, time.Time{}); len(got) != 0 {
		t.Errorf("nothing happened: %+v", got)
	}
	b, _ := parseCheckpoints(page("0", "3", "1.06e+06", "500")) // one came and went unseen, one is under way
	keys := map[float64]float64{}
	for _, s := range spansBetween(a, b, time.Time{}, time.Time{}) {
		keys[s.keys] = s.ended
	}
	if len(keys) != 2 || keys[60_000] != 1 || keys[500] != 0 {
		t.Errorf("spans %v, want one of 60000 keys that ended and one of 500 under way", keys)
	}
	if _, err := parseCheckpoints([]byte("abacus_shard_records{shard=\"0\"} 99\n")); err == nil {
		t.Error("no error where the metrics are missing")
	}
}
