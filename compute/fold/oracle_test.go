package fold

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/job"
)

// rats are the numbers among the records, as fractions.
func rats(records []record) (numbers []*big.Rat, floats bool) {
	for i := range records {
		switch v := &records[i].value; v.Kind {
		case Float:
			floats = true
			numbers = append(numbers, new(big.Rat).SetFloat64(v.Float))
		case Int:
			numbers = append(numbers, new(big.Rat).SetInt64(v.Int))
		case Big:
			numbers = append(numbers, new(big.Rat).SetInt(v.Big))
		}
	}
	return numbers, floats
}

// written is how a number that is rounded once is shown: all its digits if it is an integer of integers.
func written(r *big.Rat, floats bool) string {
	if !floats && r.IsInt() {
		return r.Num().String()
	}
	f, _ := r.Float64()
	if math.IsInf(f, 0) {
		return new(big.Float).SetPrec(200).SetRat(r).Text('g', 17)
	}
	digits, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	return string(digits)
}

// Sums, means, variances and their roots are those of math/big over all the values, rounded once.
func TestSumsAgainstBig(t *testing.T) {
	for _, mix := range mixes {
		if strings.Contains(mix.name, "text") {
			continue
		}
		for seed := range uint64(60) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			records := randomRecords(rnd, 1+rnd.IntN(60), mix.make)
			numbers, floats := rats(records)
			sum, squares, n := new(big.Rat), new(big.Rat), new(big.Rat).SetInt64(int64(len(numbers)))
			for _, x := range numbers {
				sum.Add(sum, x)
				squares.Add(squares, new(big.Rat).Mul(x, x))
			}
			mean := new(big.Rat).Quo(sum, n)
			variance := new(big.Rat).Quo(squares, n)
			variance.Sub(variance, new(big.Rat).Mul(mean, mean))
			for name, want := range map[string]string{
				"sum": written(sum, floats), "mean": written(mean, floats), "variance": written(variance, floats), "stddev": rootOf(variance, floats),
			} {
				table, _ := over(t, reduce(t, name), false, records)
				if got, _, err := table.Final(); got.String() != want || err != nil {
					t.Fatalf("%s of %s, seed %d: %v, %v; want %s", name, mix.name, seed, got, err, want)
				}
			}
		}
	}
}

// rootOf takes the root in ten thousand bits, far more than any float is near the middle of two.
func rootOf(r *big.Rat, floats bool) string {
	root := new(big.Float).SetPrec(10_000).SetRat(r)
	root.Sqrt(root)
	if exact, _ := root.Int(nil); !floats && new(big.Rat).SetInt(new(big.Int).Mul(exact, exact)).Cmp(r) == 0 {
		return exact.String()
	}
	rat, _ := root.Rat(nil)
	if rat == nil {
		rat = new(big.Rat)
	}
	return written(rat, true)
}

// A carry in the middle of a long sum changes nothing, whatever the sign and wherever it goes.
func TestAccumulatorCarries(t *testing.T) {
	for seed := range uint64(100) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		var a accumulator
		want := new(big.Int)
		for range 200 {
			m, shift, negative := rnd.Uint64(), uint(32*rnd.IntN(6)+31), rnd.IntN(2) == 0
			if seed%3 == 0 {
				negative = true
			}
			if rnd.IntN(4) == 0 {
				a.adds = limbAdds // make the next add carry
			}
			if a.add(m, shift, negative); a.adds > limbAdds {
				t.Fatal("it was time to carry")
			}
			n := new(big.Int).Lsh(new(big.Int).SetUint64(m), shift)
			if negative {
				n.Neg(n)
			}
			want.Add(want, n)
			if got := a.total(); got.Cmp(want) != 0 {
				t.Fatalf("seed %d: %s, want %s", seed, got, want)
			}
		}
		a.carry()
		for i, limb := range a.limbs[:len(a.limbs)-1] {
			if limb < 0 || limb > math.MaxUint32 {
				t.Fatalf("seed %d: limb %d is %d after a carry", seed, i, limb)
			}
		}
		if a.carry(); len(a.limbs) > 12 || a.total().Cmp(want) != 0 {
			t.Fatalf("seed %d: carries make %d limbs and %s, want %s", seed, len(a.limbs), a.total(), want)
		}
	}
}

// A root that lies a hair above the middle of two floats rounds up, however far below the last bit the hair is.
func TestRootRoundsOnce(t *testing.T) {
	middle := new(big.Int).SetUint64(1<<53 + 1)
	square := new(big.Int).Mul(middle, middle)
	for _, c := range []struct {
		more int64
		want string
	}{{-1, "9007199254740992"}, {0, "9007199254740992"}, {1, "9007199254740994"}} {
		r := new(big.Rat).SetInt(new(big.Int).Add(square, big.NewInt(c.more)))
		if got := Decimal(root(r)); got != c.want {
			t.Errorf("the root of %d and the square of %s is %s, want %s", c.more, middle, got, c.want)
		}
	}
}

// judge orders values with nothing of this package's: numbers as fractions, integers before floats of one worth if exact is set.
func judge(a, b *Value, exact bool) int {
	if (a.Kind == Text) != (b.Kind == Text) {
		if a.Kind == Text {
			return 1
		}
		return -1
	}
	if a.Kind == Text {
		return strings.Compare(string(a.Text), string(b.Text))
	}
	x, _ := rats([]record{{value: *a}})
	y, _ := rats([]record{{value: *b}})
	c := x[0].Cmp(y[0])
	if c == 0 && exact && (a.Kind == Float) != (b.Kind == Float) {
		if a.Kind == Float {
			return 1
		}
		return -1
	}
	return c
}

// shown is a value as it stands in a list.
func shown(v *Value) string {
	doc := new(document)
	if err := doc.append(v); err != nil {
		panic(err)
	}
	return string(doc.json)
}

// Top, collect, first, last, min, max and histograms are those of a sort and a straight loop over all the values.
func TestPickingAgainstLoops(t *testing.T) {
	for _, mix := range mixes {
		for seed := range uint64(60) {
			rnd := rand.New(rand.NewPCG(seed, 5))
			records := slices.DeleteFunc(randomRecords(rnd, 1+rnd.IntN(60), mix.make), func(r record) bool { return r.value.Kind == Other })
			if len(records) == 0 {
				continue
			}
			for name, want := range picked(records) {
				table, _ := over(t, reduce(t, name), false, records)
				got, note, err := table.Final()
				text := got.String()
				switch {
				case note != "":
					text = `{"base64":"` + text + `"}`
				case got.IsText():
					text = shown(&Value{Kind: Text, Text: []byte(text)})
				}
				if (err != nil) != (want == "mixed") || err == nil && text != want {
					t.Fatalf("%s of %s, seed %d: %v, %v; want %s", name, mix.name, seed, got, err, want)
				}
			}
		}
	}
}

func picked(records []record) map[string]string {
	numbers, texts := 0, 0
	for i := range records {
		if records[i].value.Kind == Text {
			texts++
		} else {
			numbers++
		}
	}
	want := map[string]string{}

	byKey := slices.Clone(records)
	slices.SortFunc(byKey, func(a, b record) int {
		if c := bytes.Compare(a.key, b.key); c != 0 {
			return c
		}
		return judge(&a.value, &b.value, true)
	})
	want["first"], want["last"] = shown(&byKey[0].value), shown(&byKey[len(byKey)-1].value)

	byWorth := slices.Clone(records)
	slices.SortStableFunc(byWorth, func(a, b record) int { return judge(&a.value, &b.value, true) })
	low, high := byWorth[0].value, byWorth[len(byWorth)-1].value
	for i := range byWorth { // of one worth the integer
		if judge(&byWorth[i].value, &high, false) == 0 {
			high = byWorth[i].value
			break
		}
	}
	list := []string{}
	for i := range byWorth {
		if i == 0 || judge(&byWorth[i-1].value, &byWorth[i].value, false) != 0 {
			list = append(list, shown(&byWorth[i].value))
		}
	}
	want["collect:1000"] = "[" + strings.Join(list, ",") + "]"

	top := slices.Clone(records)
	slices.SortStableFunc(top, func(a, b record) int {
		if c := judge(&b.value, &a.value, false); c != 0 {
			return c
		}
		if c := bytes.Compare(a.key, b.key); c != 0 {
			return c
		}
		return judge(&a.value, &b.value, true)
	})
	for _, k := range []int{1, 7} {
		var rows []string
		for i := range top[:min(k, len(top))] {
			rows = append(rows, fmt.Sprintf(`{"value":%s,"key":%q}`, shown(&top[i].value), top[i].key))
		}
		want[fmt.Sprintf("top:%d", k)] = "[" + strings.Join(rows, ",") + "]"
	}
	want["min"], want["max"] = shown(&low), shown(&high)
	if numbers > 0 && texts > 0 {
		want["min"], want["max"], want["top:1"], want["top:7"] = "mixed", "mixed", "mixed", "mixed"
	}
	if texts == 0 {
		want["histogram:-10,0,0.5,10"], want["histogram:log2"] = histograms(records)
	}
	return want
}

func histograms(records []record) (given, log2 string) {
	numbers, _ := rats(records)
	bounds := []float64{-10, 0, 0.5, 10}
	var rows []string
	for i := range len(bounds) + 1 {
		n, ends := 0, ""
		for _, x := range numbers {
			above := i == 0 || x.Cmp(new(big.Rat).SetFloat64(bounds[i-1])) >= 0
			below := i == len(bounds) || x.Cmp(new(big.Rat).SetFloat64(bounds[i])) < 0
			if above && below {
				n++
			}
		}
		if i > 0 {
			ends += fmt.Sprintf(`"from":%v,`, bounds[i-1])
		}
		if i < len(bounds) {
			ends += fmt.Sprintf(`"to":%v,`, bounds[i])
		}
		rows = append(rows, fmt.Sprintf(`{%s"count":%d}`, ends, n))
	}
	given = "[" + strings.Join(rows, ",") + "]"

	counts := map[[2]int]int{} // by sign and exponent
	for _, x := range numbers {
		exponent := 0
		if x.Sign() != 0 {
			f := new(big.Float).SetPrec(10_000).SetRat(x) // binary fractions all: exact
			exponent = f.MantExp(nil) - 1
		}
		counts[[2]int{x.Sign(), exponent}]++
	}
	var keys [][2]int
	for key := range counts {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b [2]int) int {
		if a[0] != b[0] {
			return a[0] - b[0]
		}
		return a[0] * (a[1] - b[1])
	})
	rows = nil
	for _, key := range keys {
		power := func(e int) string {
			f := new(big.Float).SetMantExp(big.NewFloat(1), e)
			if e >= 0 && e < 64 {
				return f.Text('f', 0)
			}
			r, _ := f.Rat(nil)
			return written(r, true)
		}
		switch key[0] {
		case 0:
			rows = append(rows, fmt.Sprintf(`{"from":0,"to":0,"count":%d}`, counts[key]))
		case 1:
			rows = append(rows, fmt.Sprintf(`{"from":%s,"to":%s,"count":%d}`, power(key[1]), power(key[1]+1), counts[key]))
		default:
			rows = append(rows, fmt.Sprintf(`{"from":-%s,"to":-%s,"count":%d}`, power(key[1]+1), power(key[1]), counts[key]))
		}
	}
	return given, "[" + strings.Join(rows, ",") + "]"
}

// A grouped answer is, group by group, that of the records of the group alone.
func TestGroupsAgainstWhole(t *testing.T) {
	for _, name := range everyReduce {
		r := reduce(t, name)
		for _, mix := range mixes {
			rnd := rand.New(rand.NewPCG(8, 8))
			records := randomRecords(rnd, 100, mix.make)
			grouped, _ := over(t, r, true, records)
			seen := 0
			for group, s := range grouped.groups {
				alone, _ := over(t, r, false, slices.DeleteFunc(slices.Clone(records), func(rec record) bool { return string(rec.group) != group }))
				if got, want := s.appendTo(nil), alone.whole.appendTo(nil); !bytes.Equal(got, want) {
					t.Errorf("%s of %s, group %q: %x, alone %x", name, mix.name, group, got, want)
				}
				seen++
			}
			if result, _, err := grouped.Final(); err == nil {
				var list []struct {
					Group any
					Value job.Value
				}
				if err := json.Unmarshal([]byte(result.String()), &list); err != nil || len(list) != seen {
					t.Errorf("%s of %s: %v lists %d of %d groups, %v", name, mix.name, result, len(list), seen, err)
				}
			}
		}
	}
}
