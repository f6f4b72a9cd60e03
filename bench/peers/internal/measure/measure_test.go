package measure

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// The histogram's quantiles against the sorted values: never above, and at most a 32nd below.
func TestHistQuantiles(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var a, b Hist
		var v []time.Duration
		top := int64(1) << (8 + r.IntN(28))
		for i := range 1 + r.IntN(5000) {
			d := time.Duration(r.Int64N(top))
			v = append(v, d)
			if i%2 == 0 {
				a.Add(d)
			} else {
				b.Add(d)
			}
		}
		a.Merge(&b)
		slices.Sort(v)
		if a.N != uint64(len(v)) {
			t.Fatalf("merged %d of %d", a.N, len(v))
		}
		for _, p := range []float64{0, .01, .5, .9, .99, .999, 1} {
			got, want := a.Q(p), Quantile(v, p)
			if got > want || want-got > want/32+64 {
				t.Errorf("%d values up to %s: quantile %g = %s, want %s", len(v), time.Duration(top), p, got, want)
			}
		}
	}
	var none Hist
	if none.Q(.5) != 0 {
		t.Error("a quantile of nothing")
	}
}

func TestQuantile(t *testing.T) {
	var v []time.Duration
	for i := range 1000 {
		v = append(v, time.Duration(i+1))
	}
	for _, tc := range []struct {
		p    float64
		want time.Duration
	}{{0, 1}, {.5, 501}, {.99, 991}, {.999, 1000}, {1, 1000}} {
		if got := Quantile(v, tc.p); got != tc.want {
			t.Errorf("quantile %g = %d, want %d", tc.p, got, tc.want)
		}
	}
	if Quantile(nil, .5) != 0 {
		t.Error("a quantile of nothing")
	}
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		v           []float64
		med, lo, hi float64
	}{
		{nil, 0, 0, 0},
		{[]float64{3}, 3, 3, 3},
		{[]float64{9, 1}, 5, 1, 9},
		{[]float64{5, 1, 3}, 3, 1, 5},
		{[]float64{4, 1, 3, 2}, 2.5, 1, 4},
	} {
		before := slices.Clone(tc.v)
		med, lo, hi := Median(tc.v)
		if med != tc.med || lo != tc.lo || hi != tc.hi {
			t.Errorf("Median(%v) = %v [%v..%v], want %v [%v..%v]", tc.v, med, lo, hi, tc.med, tc.lo, tc.hi)
		}
		if !slices.Equal(before, tc.v) {
			t.Errorf("Median changed its argument")
		}
	}
}
