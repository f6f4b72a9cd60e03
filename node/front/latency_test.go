package front

import (
	"testing"
	"time"
)

// Each time is counted in the class whose bounds enclose it, at the bounds too.
func TestLatencyClass(t *testing.T) {
	for i, bound := range LatencyBounds {
		if got := latencyClass(bound - time.Microsecond); got != i {
			t.Errorf("%v is in class %d, want %d", bound-time.Microsecond, got, i)
		}
		if got := latencyClass(bound); got != i+1 {
			t.Errorf("%v is in class %d, want %d", bound, got, i+1)
		}
	}
	for d, want := range map[time.Duration]int{-1: 0, 0: 0, time.Hour: len(LatencyBounds)} {
		if got := latencyClass(d); got != want {
			t.Errorf("%v is in class %d, want %d", d, got, want)
		}
	}
}

// A quantile is within a quarter of the exact one, and never above what was counted of a later state.
func TestLatencyQuantile(t *testing.T) {
	var counted timing
	for ms := 1; ms <= 1000; ms++ {
		counted.add(time.Duration(ms)*time.Millisecond, 1)
	}
	was := counted.load()
	for q, want := range map[float64]time.Duration{.1: 100 * time.Millisecond, .5: 500 * time.Millisecond, .99: 990 * time.Millisecond} {
		if got := was.Quantile(q); got < want*3/4 || got > want*5/4 {
			t.Errorf("the quantile %v is %v, want about %v", q, got, want)
		}
	}
	if was.Count() != 1000 || was.Sum != 500500*time.Millisecond {
		t.Errorf("%d counted, sum %v", was.Count(), was.Sum)
	}
	counted.add(50*time.Microsecond, 9)
	since := counted.load().Since(was)
	if p := since.Quantile(.99); since.Count() != 9 || p < 48*time.Microsecond || p > 64*time.Microsecond || since.Sum != 450*time.Microsecond {
		t.Errorf("since then %d of %v", since.Count(), p)
	}
	if none := (Latency{}); none.Quantile(.5) != 0 {
		t.Error("a quantile of nothing")
	}
	var slow timing
	slow.add(time.Hour, 1)
	if l := slow.load(); l.Quantile(.5) != LatencyBounds[len(LatencyBounds)-1] {
		t.Errorf("above all bounds: %v", l.Quantile(.5))
	}
}

// Commands on keys are timed where they are executed, by kind, each of a pipeline; what is refused or about no key is not.
func TestTimed(t *testing.T) {
	cl := newCluster(t, 1, 1)
	s, addr := serve(t, Config{}, cl.node("n1"))
	c := dial(t, addr)
	c.want([]string{"PING", "SET {a}1 x", "GET {a}1", "GET {a}2", "SET {a}1", "MULTI", "SET {a}2 y", "GET {a}2", "EXEC"},
		[]string{"+PONG", "+OK", "x", "(nil)", "-ERR wrong...", "+OK", "+QUEUED", "+QUEUED", "[+OK y]"})
	if st := s.Stats(); st.Reads.Count() != 2 || st.Writes.Count() != 2 || st.Reads.Sum <= 0 {
		t.Errorf("%d reads and %d writes are timed, want 2 and 2 (a transaction is one)", st.Reads.Count(), st.Writes.Count())
	}
}
