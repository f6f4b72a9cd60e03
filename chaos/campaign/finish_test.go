//go:build linux

package campaign

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
)

// Reading back ends by its limit, whoever does not answer, says which reads are missing, and settles every call once.
func TestReadAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls []workload.Call
		var answered, failed atomic.Int64
		for _, key := range []string{"a", "hangs", "b", "refused", "c", "at last"} {
			calls = append(calls, workload.Call{Op: workload.Op{Key: key}, Settle: func(o workload.Outcome, r workload.Result) {
				if o == workload.Answered && r.Value == key {
					answered.Add(1)
				} else if o == workload.Failed {
					failed.Add(1)
				}
			}})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		refused, tries := errors.New("refused"), 0
		began := time.Now()
		missing, last := readAll(ctx, calls, 3, 2, func(_ int, op workload.Op) (workload.Result, error) {
			switch op.Key {
			case "hangs":
				<-ctx.Done()
				return workload.Result{}, ctx.Err()
			case "refused":
				return workload.Result{}, refused
			case "at last":
				if tries++; tries < 3 {
					return workload.Result{}, refused
				}
			}
			return workload.Result{Value: op.Key}, nil
		})
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it took %v", took)
		}
		if !slices.Equal(missing, []string{"hangs", "refused"}) || last == nil {
			t.Errorf("missing %q, %v", missing, last)
		}
		if answered.Load() != 4 || failed.Load() != 2 {
			t.Errorf("%d calls were answered and %d not", answered.Load(), failed.Load())
		}
	})
}

// When the time is over nothing is asked any more.
func TestReadAllStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked, settled := 0, 0
	call := workload.Call{Op: workload.Op{Key: "k"}, Settle: func(o workload.Outcome, _ workload.Result) { settled++ }}
	missing, _ := readAll(ctx, slices.Repeat([]workload.Call{call}, 100), 3, 1, func(int, workload.Op) (workload.Result, error) {
		asked++
		cancel()
		return workload.Result{}, errors.New("no")
	})
	if asked != 1 || settled != 100 || len(missing) != 100 {
		t.Errorf("asked %d times, settled %d, missing %d", asked, settled, len(missing))
	}
}

// More keys have more time, and all of a long run have enough.
func TestReadLimit(t *testing.T) {
	const longRun = 400_000 // keys in ninety minutes
	if limit := readLimit(longRun, true); limit < longRun*4*time.Millisecond || limit > time.Hour {
		t.Errorf("%v for %d keys", limit, longRun)
	}
	if readLimit(10, true) < time.Minute || readLimit(10, false) >= readLimit(10, true) {
		t.Errorf("%v for ten keys, %v when the cluster is not whole", readLimit(10, true), readLimit(10, false))
	}
}

// What was judged is told check by check, each with its own violations.
func TestChecks(t *testing.T) {
	c := &campaign{findings: workload.Findings{Dir: t.TempDir()}}
	c.check("one", "keys", func() int { return 3 })
	c.check("two", "keys", func() int { c.findings.Add("x"); c.findings.Add("y"); return 5 })
	c.check("three", "shards", func() int { return 0 })
	want := []Check{{"one", "keys", 3, 0}, {"two", "keys", 5, 2}, {"three", "shards", 0, 0}}
	if !slices.Equal(c.checks, want) {
		t.Errorf("%+v, want %+v", c.checks, want)
	}
}
