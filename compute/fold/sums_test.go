package fold

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// The float sum is the exact sum rounded once; big.Rat is the judge.
func TestFloatSumIsExact(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		var sum FloatSum
		want := new(big.Rat)
		for range 100 {
			f := math.Float64frombits(rnd.Uint64())
			if seed%2 == 0 {
				f = rnd.NormFloat64() * 1e10
			}
			if math.IsNaN(f) || math.IsInf(f, 0) {
				continue
			}
			sum.Add(f)
			want.Add(want, new(big.Rat).SetFloat64(f))
		}
		if got := Ratio(new(big.Int), sum.Total(), 1); got.Cmp(want) != 0 {
			t.Fatalf("seed %d: sum %s, want %s", seed, Decimal(got), Decimal(want))
		}
	}
}

// Sums at the ends of the range: every limb, both signs, the smallest subnormal to the greatest.
func TestFloatSumEdges(t *testing.T) {
	var sum FloatSum
	edges := []float64{math.SmallestNonzeroFloat64, math.MaxFloat64, 0x1p-1022, 0x1p-1022 - math.SmallestNonzeroFloat64, 1, 0x1p31, 0x1p32, 0x1p33}
	for _, f := range edges {
		sum.Add(f)
		sum.Add(f)
		sum.Add(-f)
	}
	sum.exact.adds = limbAdds // make the next add fold
	for _, f := range edges {
		sum.Add(-f)
	}
	if got := sum.Total(); got.Sign() != 0 {
		t.Errorf("what was added and taken away again leaves %s", got)
	}
}

func TestIntSumSpills(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	var sum IntSum
	want := new(big.Int)
	for range 10000 {
		n := int64(rnd.Uint64())
		if rnd.IntN(10) == 0 {
			n = [...]int64{math.MaxInt64, math.MinInt64, 0, 1, -1}[rnd.IntN(5)]
		}
		sum.Add(n)
		want.Add(want, big.NewInt(n))
		if sum.Total().Cmp(want) != 0 {
			t.Fatalf("sum %s, want %s", sum.Total(), want)
		}
	}
}
