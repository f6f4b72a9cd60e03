package fold

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
)

// Up to 1,024 different values distinct counts exactly, whatever they are; above it its errors are those of its standard error, 0.81 %.
func TestDistinct(t *testing.T) {
	kinds := map[string]func(i int) (v Value){
		"integers in a row":  func(i int) (v Value) { v.SetInt(int64(i)); return },
		"negative multiples": func(i int) (v Value) { v.SetInt(-int64(i) * 1_000_000); return },
		"floats":             func(i int) (v Value) { v.SetFloat(float64(i) + 0.5); return },
		"large integers":     func(i int) (v Value) { v.SetBig(new(big.Int).Lsh(big.NewInt(int64(i+1)), 64)); return },
		"texts":              func(i int) (v Value) { v.SetText(fmt.Appendf(nil, "user/%08d", i)); return },
	}
	const standard = 0.0081
	squares, n := 0.0, 0
	for name, value := range kinds {
		table := NewTable(reduce(t, "distinct"), false, 0)
		for i := range 60_000 {
			for range 1 + i%2 { // some more than once
				v := value(i)
				if _, err := table.Add(nil, nil, &v); err != nil {
					t.Fatal(err)
				}
			}
			different := i + 1
			if different > maxHashes && different%1000 != 0 {
				continue
			}
			got := answerOf(t, table)
			if different <= maxHashes {
				if got != float64(different) {
					t.Fatalf("%s: %v of %d", name, got, different)
				}
				continue
			}
			relative := got/float64(different) - 1
			if math.Abs(relative) > 4*standard {
				t.Errorf("%s: %v of %d is off by %.2f %%", name, got, different, 100*relative)
			}
			squares, n = squares+relative*relative, n+1
		}
	}
	if rms := math.Sqrt(squares / float64(n)); rms > 1.5*standard {
		t.Errorf("the error's root mean square is %.2f %%", 100*rms)
	}
}

// One worth is one value however it is written, and what differs in kind or sign is not.
func TestDistinctByWorth(t *testing.T) {
	two64 := new(big.Int).Lsh(big.NewInt(1), 64)
	for _, c := range []struct {
		in   []record
		want float64
	}{
		{values(1, 1.0), 1},
		{values(0, 0.0, math.Copysign(0, -1)), 1},
		{values(two64, 0x1p64), 1},
		{values(math.MinInt64, -0x1p63), 1},
		{values(math.MaxInt64, 0x1p63), 2},
		{values(new(big.Int).Lsh(big.NewInt(1), 63), 0x1p63), 1},
		{values(two64, new(big.Int).Neg(two64)), 2},
		{values(1, "1", "\x00\x00\x00\x00\x00\x00\x00\x01"), 3},
		{values("", "\x00"), 2},
		{values(1<<53, 1<<53+1, 0x1p53), 2},
	} {
		table, _ := over(t, reduce(t, "distinct"), false, c.in)
		if got := answerOf(t, table); got != c.want {
			t.Errorf("%v different values of %+v, want %v", got, c.in, c.want)
		}
		table, _ = over(t, reduce(t, "collect:10"), false, c.in)
		if got := len(table.whole.(*collectState).values); float64(got) != c.want {
			t.Errorf("%d values collected of %+v, want %v", got, c.in, c.want)
		}
	}
}

// On both sides of the step from single hashes to the sketch, and across it, bytes do not depend on how the values came.
func TestDistinctStep(t *testing.T) {
	r := reduce(t, "distinct")
	for _, different := range []int{maxHashes - 1, maxHashes, maxHashes + 1, 3 * maxHashes} {
		for seed := range uint64(10) {
			rnd := rand.New(rand.NewPCG(seed, 6))
			records := make([]record, different)
			for i := range records {
				records[i].value.SetInt(int64(i))
			}
			records = append(records, records[:rnd.IntN(different)]...)
			whole, _ := over(t, r, false, records)
			parts, _ := inParts(t, r, false, rnd, records)
			if string(parts.AppendBinary(nil)) != string(whole.AppendBinary(nil)) {
				t.Fatalf("%d values, seed %d: the bytes differ", different, seed)
			}
			if dense := whole.whole.(*distinctState).sketch != nil; dense != (different > maxHashes) {
				t.Fatalf("%d values: sketch %v", different, dense)
			}
		}
	}
}

func answerOf(t *testing.T, table *Table) float64 {
	t.Helper()
	got, _, err := table.Final()
	if err != nil {
		t.Fatal(err)
	}
	f, err := strconv.ParseFloat(got.String(), 64)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Of several distributions, every quantile is off by less than 1 % of the right value, and the ends and small integers not at all.
func TestQuantiles(t *testing.T) {
	quantiles := []float64{0, 0.001, 0.01, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1}
	name := "quantile:"
	for i, q := range quantiles {
		if i > 0 {
			name += ","
		}
		name += FormatFloat(q)
	}
	for _, c := range []struct {
		name string
		make func(rnd *rand.Rand) (v Value)
	}{
		{"uniform", func(rnd *rand.Rand) (v Value) { v.SetFloat(rnd.Float64()); return }},
		{"normal", func(rnd *rand.Rand) (v Value) { v.SetFloat(rnd.NormFloat64()); return }},
		{"log-normal", func(rnd *rand.Rand) (v Value) { v.SetFloat(math.Exp(3 * rnd.NormFloat64())); return }},
		{"Pareto", func(rnd *rand.Rand) (v Value) { v.SetFloat(math.Pow(1-rnd.Float64(), -3)); return }},
		{"any float", mixes[3].make},
		{"subnormal", func(rnd *rand.Rand) (v Value) {
			v.SetFloat(float64(rnd.IntN(1000)) * math.SmallestNonzeroFloat64)
			return
		}},
		{"small integers", func(rnd *rand.Rand) (v Value) { v.SetInt(int64(rnd.IntN(255) - 127)); return }},
		{"milliseconds", func(rnd *rand.Rand) (v Value) { v.SetInt(int64(100 * rnd.ExpFloat64())); return }},
		{"integers of any size", mixes[1].make},
		{"one value", func(*rand.Rand) (v Value) { v.SetFloat(0.1); return }},
	} {
		rnd := rand.New(rand.NewPCG(11, 11))
		records := randomRecords(rnd, 5000, c.make)
		table, _ := over(t, reduce(t, name), false, records)
		result, _, err := table.Final()
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]json.Number
		if err := json.Unmarshal([]byte(result.String()), &got); err != nil {
			t.Fatal(err)
		}
		sorted, _ := rats(records)
		slices.SortFunc(sorted, (*big.Rat).Cmp)
		for _, q := range quantiles {
			want := sorted[int(math.Floor(q*float64(len(sorted)-1)))]
			est, ok := new(big.Rat).SetString(got[FormatFloat(q)].String())
			if !ok {
				t.Fatalf("%s: quantile %v is %q", c.name, q, got[FormatFloat(q)])
			}
			off := new(big.Rat).Sub(est, want)
			exact := q == 0 || q == 1 || c.name == "small integers" || c.name == "one value"
			allowed := new(big.Rat).Mul(new(big.Rat).Abs(want), big.NewRat(1, 100))
			if c.name == "subnormal" || c.name == "any float" { // the answer itself is rounded to such a step
				allowed.Add(allowed, new(big.Rat).SetFloat64(math.SmallestNonzeroFloat64))
			}
			if exact {
				want, _ := new(big.Rat).SetString(Decimal(want)) // in as many digits as the answer
				off.Sub(est, want)
				allowed.SetInt64(0)
				if c.name == "integers of any size" {
					allowed.Mul(new(big.Rat).Abs(want), big.NewRat(1, 1<<52))
				}
			}
			if off.Abs(off).Cmp(allowed) > 0 {
				t.Errorf("%s: quantile %v is %s, want %s", c.name, q, got[FormatFloat(q)], want.FloatString(5))
			}
		}
	}
}

// Every number lies between the edges of its bucket, and buckets rise with the numbers.
func TestBuckets(t *testing.T) {
	for _, fine := range []uint{0, fineQuantile} {
		for _, mix := range mixes {
			rnd := rand.New(rand.NewPCG(9, 9))
			records := slices.DeleteFunc(randomRecords(rnd, 300, mix.make), func(r record) bool { return !r.value.Kind.IsNumber() })
			slices.SortFunc(records, func(a, b record) int { return CompareNumbers(&a.value, &b.value) })
			for i := range records {
				v := &records[i].value
				bucket := bucketOf(v, fine)
				x := v.rat()
				if x.Sign() < 0 {
					bucket = -bucket
				}
				x.Abs(x)
				if (bucket == 0) != (x.Sign() == 0) || bucket != 0 && (bucketEdge(bucket, fine, 0).Cmp(x) > 0 || bucketEdge(bucket, fine, 2).Cmp(x) <= 0) {
					t.Fatalf("%s is in bucket %d", v.Digits(), bucket)
				}
				if i > 0 && bucketOf(&records[i-1].value, fine) > bucketOf(v, fine) {
					t.Fatalf("%s is in a lower bucket than %s", v.Digits(), records[i-1].value.Digits())
				}
			}
		}
	}
}
