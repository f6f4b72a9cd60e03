package fold

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/job"
)

// everyReduce has each reduce once or more, with arguments that random values reach.
var everyReduce = []string{
	"sum", "count", "min", "max", "mean", "variance", "stddev", "histogram:log2", "histogram:-10,0,0.5,10,1e300", "top:1", "top:7",
	"distinct", "quantile:0.5", "quantile:0,0.25,0.9,1", "first", "last", "collect:1000",
}

func reduce(t testing.TB, s string) job.Reduce {
	t.Helper()
	r, err := job.ParseReduce(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// record is what a table is given.
type record struct {
	group, key []byte
	value      Value
}

// mixes are kinds of data; each makes one value.
var mixes = []struct {
	name string
	make func(rnd *rand.Rand) (v Value)
}{
	{"small integers", func(rnd *rand.Rand) (v Value) { v.SetInt(int64(rnd.IntN(41) - 20)); return }},
	{"integers of any size", func(rnd *rand.Rand) (v Value) {
		switch rnd.IntN(3) {
		case 0:
			v.SetInt(int64(rnd.Uint64()))
		case 1:
			v.SetInt([]int64{math.MaxInt64, math.MinInt64, math.MinInt64 + 1, 0, 1, -1, 1 << 53, 1<<53 + 1}[rnd.IntN(8)])
		default:
			n := new(big.Int).Lsh(big.NewInt(int64(rnd.Uint64())), uint(rnd.IntN(300)))
			v.SetBig(n.Add(n, big.NewInt(int64(rnd.IntN(3)))))
		}
		return
	}},
	{"floats", func(rnd *rand.Rand) (v Value) { v.SetFloat(rnd.NormFloat64() * 100); return }},
	{"any floats", func(rnd *rand.Rand) (v Value) {
		edges := []float64{0, math.SmallestNonzeroFloat64, -math.SmallestNonzeroFloat64, math.MaxFloat64, -math.MaxFloat64, 0x1p-1022, 1 << 53, 1e300}
		f := math.Float64frombits(rnd.Uint64())
		if rnd.IntN(3) == 0 || math.IsNaN(f) || math.IsInf(f, 0) {
			f = edges[rnd.IntN(len(edges))]
		}
		v.SetFloat(f)
		return
	}},
	{"texts", func(rnd *rand.Rand) (v Value) {
		text := make([]byte, rnd.IntN(6))
		for i := range text {
			text[i] = "ab<&\xff\x00ü"[rnd.IntN(8)]
		}
		v.SetText(text)
		return
	}},
	{"numbers with ties", func(rnd *rand.Rand) (v Value) {
		n := int64(rnd.IntN(5) - 2)
		switch rnd.IntN(3) {
		case 0:
			v.SetInt(n)
		case 1:
			v.SetFloat(float64(n))
		default:
			v.SetFloat(float64(n) / 2)
		}
		return
	}},
	{"numbers and texts", func(rnd *rand.Rand) (v Value) {
		switch rnd.IntN(4) {
		case 0:
			v.SetInt(int64(rnd.IntN(5)))
		case 1:
			v.SetFloat(float64(rnd.IntN(9)) / 2)
		case 2:
			v.SetText([]byte{"01ab"[rnd.IntN(4)]})
		default:
			v.Kind = Other
		}
		return
	}},
}

// randomRecords makes n records. A key may come more than once, as from a flat map.
func randomRecords(rnd *rand.Rand, n int, value func(*rand.Rand) Value) []record {
	groups := []string{"", "a", "b", "ab", "\xff", "<g>"}
	records := make([]record, n)
	for i := range records {
		records[i] = record{
			group: []byte(groups[rnd.IntN(len(groups))]),
			key:   fmt.Appendf(nil, "k%d", rnd.IntN(n)),
			value: value(rnd),
		}
	}
	return records
}

// over folds the records one after the other, and says how many the reduce could not take.
func over(t testing.TB, r job.Reduce, grouped bool, records []record) (table *Table, bad int) {
	t.Helper()
	table = NewTable(r, grouped, MaxGroups)
	bad, err := addAll(table, records)
	if err != nil {
		t.Fatal(err)
	}
	return table, bad
}

// addAll adds the records until one does not fit.
func addAll(table *Table, records []record) (bad int, err error) {
	var key, group []byte // one buffer for all, as in a scan: a table that keeps it instead of copying is found out
	for _, rec := range records {
		key, group = append(key[:0], rec.key...), append(group[:0], rec.group...)
		v := rec.value
		v.Text = slices.Clone(v.Text)
		ok, err := table.Add(group, key, &v)
		if err != nil {
			return bad, err
		}
		if !ok {
			bad++
		}
		for i := range v.Text {
			v.Text[i] = '#'
		}
	}
	return bad, nil
}

// However the records are split, in whatever order they come, and as whatever tree the parts are merged, sent on as bytes or not: the
// bytes and the answer are those of one straight loop.
func TestAnySplitAnyOrderAnyTree(t *testing.T) {
	for _, name := range everyReduce {
		r := reduce(t, name)
		for _, mix := range mixes {
			for _, grouped := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s of %s grouped %v", name, mix.name, grouped), func(t *testing.T) {
					for seed := range uint64(12) {
						rnd := rand.New(rand.NewPCG(seed, 7))
						records := randomRecords(rnd, rnd.IntN(120), mix.make)
						whole, bad := over(t, r, grouped, records)
						parts, partsBad := inParts(t, r, grouped, rnd, records)
						if got, want := parts.AppendBinary(nil), whole.AppendBinary(nil); !bytes.Equal(got, want) || partsBad != bad {
							t.Fatalf("seed %d: in parts\n%x, %d bad, whole\n%x, %d bad", seed, got, partsBad, want, bad)
						}
						want, wantNote, wantErr := whole.Final()
						got, note, err := parts.Final()
						if got != want || note != wantNote || !reflect.DeepEqual(err, wantErr) {
							t.Fatalf("seed %d: in parts %v %q %v, whole %v %q %v", seed, got, note, err, want, wantNote, wantErr)
						}
					}
				})
			}
		}
	}
}

// inParts deals the records out at random, sends some parts through the codec and merges them as a random tree.
func inParts(t *testing.T, r job.Reduce, grouped bool, rnd *rand.Rand, records []record) (table *Table, bad int) {
	records = slices.Clone(records)
	rnd.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	parts := make([]*Table, 0, 8)
	for range 1 + rnd.IntN(8) {
		n := rnd.IntN(len(records) + 1)
		part, partBad := over(t, r, grouped, records[:n])
		records, bad, parts = records[n:], bad+partBad, append(parts, part)
	}
	rest, restBad := over(t, r, grouped, records)
	bad, parts = bad+restBad, append(parts, rest)
	for len(parts) > 1 {
		i, j := rnd.IntN(len(parts)), rnd.IntN(len(parts)-1)
		if j >= i {
			j++
		}
		into, from := parts[i], parts[j]
		if rnd.IntN(2) == 0 {
			from = sent(t, from)
		}
		before := from.AppendBinary(nil)
		if err := into.Merge(from); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(from.AppendBinary(nil), before) {
			t.Fatal("Merge changed what it read")
		}
		if err := from.Merge(into); err != nil { // whatever happens to it afterwards is its own business
			t.Fatal(err)
		}
		parts = slices.Delete(parts, j, j+1)
	}
	return parts[0], bad
}

// sent is the table as another node gets it.
func sent(t *testing.T, table *Table) *Table {
	t.Helper()
	data := table.AppendBinary(nil)
	back, err := DecodeTable(data, table.reduce, table.groups != nil, table.maxGroups)
	if err != nil {
		t.Fatalf("%x: %v", data, err)
	}
	clear(data) // it must keep nothing of them
	return back
}

// values makes records of numbers and texts, written as in Go, with keys in their order.
func values(in ...any) []record {
	records := make([]record, len(in))
	for i, x := range in {
		records[i].key = fmt.Appendf(nil, "k%d", i)
		v := &records[i].value
		switch x := x.(type) {
		case int:
			v.SetInt(int64(x))
		case float64:
			v.SetFloat(x)
		case string:
			v.SetText([]byte(x))
		case *big.Int:
			v.SetBig(x)
		}
	}
	return records
}

// The shape of every answer, and how each is written.
func TestFinal(t *testing.T) {
	huge, _ := new(big.Int).SetString("123456789012345678901234567890", 10)
	for _, c := range []struct {
		reduce string
		in     []record
		want   string
	}{
		{"sum", values(), "0"},
		{"sum", values(1, huge), "123456789012345678901234567891"},
		{"sum", values(1, 0.5), "1.5"},
		{"sum", values(math.MaxFloat64, math.MaxFloat64), "3.5953862697246314e+308"},
		{"count", values(1, "a"), "2"},
		{"min", values(3, 2.0, 2), "2"},
		{"max", values("a", "b"), "b"},
		{"max", values("\xff"), "/w=="},
		{"mean", values(1, 2), "1.5"},
		{"mean", values(huge, huge), "123456789012345678901234567890"},
		{"variance", values(2, 4, 4, 4, 5, 5, 7, 9), "4"},
		{"stddev", values(2, 4, 4, 4, 5, 5, 7, 9), "2"},
		{"stddev", values(1, 2), "0.5"},
		{"variance", values(1e9+4, 1e9+7, 1e9+13, 1e9+16), "22.5"}, // where the usual formula in floats fails
		{"histogram:0,10", values(-1, 0, 9.5, 10, huge), `[{"to":0,"count":1},{"from":0,"to":10,"count":2},{"from":10,"count":2}]`},
		{"histogram:0,10", values(), `[{"to":0,"count":0},{"from":0,"to":10,"count":0},{"from":10,"count":0}]`},
		{"histogram:log2", values(0, 1, 2, 3, 4, -4, 0.75), `[{"from":-8,"to":-4,"count":1},{"from":0,"to":0,"count":1},{"from":0.5,"to":1,"count":1},{"from":1,"to":2,"count":1},{"from":2,"to":4,"count":2},{"from":4,"to":8,"count":1}]`},
		{"histogram:log2", values(), `[]`},
		{"top:2", values(1, 5, 3, 5.0), `[{"value":5,"key":"k1"},{"value":5,"key":"k3"}]`},
		{"top:3", values("a", "<b>"), `[{"value":"a","key":"k0"},{"value":"<b>","key":"k1"}]`},
		{"top:3", values(), `[]`},
		{"distinct", values(1, 1.0, "1", 2.5, huge, 1), "4"},
		{"quantile:0.5", values(1, 2, 3, 4, 100), "3"},
		{"quantile:0.5", values(0.1), "0.1"},
		{"quantile:0,0.5,1", values(5, 1, 3), `{"0":1,"0.5":3,"1":5}`},
		{"first", values(3, 1, 2), "3"},
		{"last", values(3, 1, "x"), "x"},
		{"collect:9", values("b", 2, 1.5, "a", 2.0, "\xff", 2), `[1.5,2,"a","b",{"base64":"/w=="}]`},
		{"collect:9", values(), `[]`},
	} {
		table, bad := over(t, reduce(t, c.reduce), false, c.in)
		got, note, err := table.Final()
		if got.String() != c.want || err != nil || bad != 0 || (note != "") != (c.want == "/w==") {
			t.Errorf("%s: %v, note %q, %v, %d bad; want %s", c.reduce, got, note, err, bad, c.want)
		}
	}
}

// Groups come in the order of their bytes, and only those that a value was taken for.
func TestFinalByGroup(t *testing.T) {
	in := values(1, "text", 3, 4, 5)
	for i, group := range []string{"b", "only bad", "a & <b>", "b", "\xfe"} {
		in[i].group = []byte(group)
	}
	for name, want := range map[string]string{
		"sum":    `[{"group":"a & <b>","value":3},{"group":"b","value":5},{"group":{"base64":"/g=="},"value":5}]`,
		"first":  `[{"group":"a & <b>","value":3},{"group":"b","value":1},{"group":"only bad","value":"text"},{"group":{"base64":"/g=="},"value":5}]`,
		"top:10": `[{"group":"a & <b>","value":[{"value":3,"key":"k2"}]},{"group":"b","value":[{"value":4,"key":"k3"},{"value":1,"key":"k0"}]},{"group":"only bad","value":[{"value":"text","key":"k1"}]},{"group":{"base64":"/g=="},"value":[{"value":5,"key":"k4"}]}]`,
	} {
		table, _ := over(t, reduce(t, name), true, in)
		got, _, err := table.Final()
		if got.String() != want || err != nil {
			t.Errorf("%s: %v, %v; want %s", name, got, err, want)
		}
	}
	if got, _, err := NewTable(reduce(t, "min"), true, 1).Final(); got.String() != "[]" || err != nil {
		t.Errorf("no groups: %v, %v", got, err)
	}
}

// What has no answer says so, and of groups which one.
func TestFinalErrors(t *testing.T) {
	for _, name := range []string{"min", "max", "mean", "variance", "stddev", "quantile:0.5", "first", "last"} {
		if _, _, err := NewTable(reduce(t, name), false, 0).Final(); !errors.Is(err, job.ErrNoRecords) {
			t.Errorf("%s of nothing: %v", name, err)
		}
	}
	for _, name := range []string{"min", "max", "top:3"} {
		in := values(1, "a", "b")
		table, _ := over(t, reduce(t, name), false, in)
		var mixed *MixedKindsError
		if _, _, err := table.Final(); !errors.As(err, &mixed) || *mixed != (MixedKindsError{Numbers: 1, Texts: 2}) {
			t.Errorf("%s of numbers and texts: %v", name, err)
		}
		grouped, _ := over(t, reduce(t, name), true, in)
		var group *GroupError
		if _, _, err := grouped.Final(); !errors.As(err, &group) || group.Group != "" || !errors.As(err, &mixed) {
			t.Errorf("%s of numbers and texts in a group: %v", name, err)
		}
	}
	long := strings.Repeat("a", MaxTextBytes)
	for _, name := range []string{"min", "max", "first", "last", "top:2", "collect:2"} {
		var tooLarge *ResultTooLargeError
		table, _ := over(t, reduce(t, name), false, values(long+"b", long+"bc"))
		if _, _, err := sent(t, table).Final(); !errors.As(err, &tooLarge) || !tooLarge.Text {
			t.Errorf("%s of a long text: %v", name, err)
		}
		table, _ = over(t, reduce(t, name), false, values(long))
		if _, _, err := table.Final(); err != nil {
			t.Errorf("%s of the longest text: %v", name, err)
		}
	}
}

// Structured answers are bounded as they are stored, where < takes six bytes.
func TestFinalIsBounded(t *testing.T) {
	for _, c := range []struct {
		letter string
		bytes  int
		fits   bool
	}{
		{"a", MaxResultBytes / 8, true}, {"a", MaxResultBytes/8 + 10, false},
		{"<", MaxResultBytes / 48, true}, {"<", MaxResultBytes/48 + 10, false},
	} {
		texts := make([]any, 8)
		for i := range texts {
			texts[i] = strings.Repeat(c.letter, c.bytes-4-i) // less quotes, a comma, and the list's own brackets
		}
		r := reduce(t, "collect:9")
		table, _ := over(t, r, false, values(texts...))
		got, _, err := table.Final()
		var tooLarge *ResultTooLargeError
		if c.fits != (err == nil) || err != nil && (!errors.As(err, &tooLarge) || tooLarge.Text) {
			t.Errorf("8 times %d of %s: %v", c.bytes, c.letter, err)
		}
		if stored, err := (job.Record{Result: &got}).Encode(); err != nil || len(stored) > MaxResultBytes+1000 {
			t.Errorf("8 times %d of %s are stored in %d bytes, %v", c.bytes, c.letter, len(stored), err)
		}
	}
}

// A reduce refuses the kinds that it cannot take, without a trace: no group is made for them.
func TestAddRefusesKinds(t *testing.T) {
	text, other := Value{Kind: Text, Text: []byte("1")}, Value{Kind: Other}
	gigantic := Value{}
	gigantic.SetBig(new(big.Int).Lsh(big.NewInt(1), 8*maxBigBytes))
	for _, name := range everyReduce {
		r := reduce(t, name)
		table := NewTable(r, true, MaxGroups)
		for _, c := range []struct {
			v     *Value
			takes bool
		}{
			{&Value{Kind: None}, false}, {&gigantic, false},
			{&text, !r.NumbersOnly()}, {&other, name == "count"}, {&Value{Kind: Int}, true}, {&Value{Kind: Float}, true},
		} {
			before := table.Groups()
			ok, err := table.Add(fmt.Appendf(nil, "%p", c.v), []byte("k"), c.v)
			if err != nil || ok != c.takes || (table.Groups() > before) != c.takes {
				t.Errorf("%s of kind %d: %v %v, %d groups after %d", name, c.v.Kind, ok, err, table.Groups(), before)
			}
		}
	}
}

// A table is bounded in groups and in bytes, by Add and by Merge alike.
func TestTableIsBounded(t *testing.T) {
	sum := reduce(t, "sum")
	one := Value{Kind: Int, Int: 1}
	full, other := NewTable(sum, true, 2), NewTable(sum, true, 2)
	for _, group := range []string{"a", "b", "a"} {
		if _, err := full.Add([]byte(group), nil, &one); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := other.Add([]byte("c"), nil, &one); err != nil {
		t.Fatal(err)
	}
	var groups *TooManyGroupsError
	if _, err := full.Add([]byte("c"), nil, &one); !errors.As(err, &groups) || groups.Max != 2 {
		t.Errorf("a third group of two: %v", err)
	}
	if err := other.Merge(full); !errors.As(err, &groups) {
		t.Errorf("three groups of two merged: %v", err)
	}

	for name, grouped := range map[string]bool{"max": true, "first": true, "top:1000": false, "collect:1000": false, "collect:2": true} {
		r := reduce(t, name)
		table, half := NewTable(r, grouped, MaxGroups), NewTable(r, grouped, MaxGroups)
		var tooLarge *TooLargeError
		var err error
		added := 0
		for ; err == nil && added < 1000; added++ {
			v := Value{Kind: Text, Text: fmt.Appendf(nil, "%d%s", added, strings.Repeat("x", MaxTextBytes-4))}
			if _, err = table.Add(v.Text[:4], v.Text[:4], &v); added%2 == 0 && added < 100 {
				if _, err := half.Add(v.Text[:4], v.Text[:4], &v); err != nil {
					t.Fatal(err)
				}
			}
		}
		if most := MaxTableBytes / MaxTextBytes; !errors.As(err, &tooLarge) || added < most || added > most+10 {
			t.Errorf("%s: %d texts of %d bytes: %v", name, added, MaxTextBytes, err)
		}
		if err := half.Merge(table); !errors.As(err, &tooLarge) {
			t.Errorf("%s: merged: %v", name, err)
		}
	}

	r := reduce(t, "collect:3")
	var many *TooManyValuesError
	table, _ := over(t, r, false, values(1, 2, "3", 1, 2.0))
	if _, err := table.Add(nil, nil, &Value{Kind: Float, Float: 0.5}); !errors.As(err, &many) || many.Max != 3 {
		t.Errorf("a fourth value of three: %v", err)
	}
	more, _ := over(t, r, false, values(4))
	if err := more.Merge(table); !errors.As(err, &many) {
		t.Errorf("four values of three merged: %v", err)
	}
}

// What a table says it takes is what its states add up to, so that bounds do not wear off.
func TestBytesAreCounted(t *testing.T) {
	for _, name := range everyReduce {
		if name == "sum" || name == "mean" {
			continue // what an integer sum spills into is not counted while it is added up
		}
		for _, mix := range mixes {
			rnd := rand.New(rand.NewPCG(5, 5))
			table, _ := over(t, reduce(t, name), true, randomRecords(rnd, 100, mix.make))
			more, _ := over(t, reduce(t, name), true, randomRecords(rnd, 100, mix.make))
			if err := table.Merge(more); err != nil {
				t.Fatal(err)
			}
			want := 0
			for group, s := range table.groups {
				want += len(group) + groupBytes + s.size()
			}
			if table.bytes != want {
				t.Errorf("%s of %s: counted %d bytes, there are %d", name, mix.name, table.bytes, want)
			}
			// Sums of floats have limbs left from numbers that have cancelled; everything else is counted alike by who reads it.
			if got := sent(t, table).bytes; got != want && name != "variance" && name != "stddev" {
				t.Errorf("%s of %s: counted %d bytes, who reads it %d", name, mix.name, want, got)
			}
		}
	}
}

// A scan does not allocate for a record: millions a second would keep the garbage collector busy.
func TestAddDoesNotAllocate(t *testing.T) {
	in := values(7, -3, 1<<40, 0.5, -1e10, 1e-5)
	for _, name := range everyReduce {
		for _, grouped := range []bool{false, true} {
			table, _ := over(t, reduce(t, name), grouped, in)
			if n := testing.AllocsPerRun(100, func() {
				for i := range in {
					if _, err := table.Add(in[i].group, in[i].key, &in[i].value); err != nil {
						t.Fatal(err)
					}
				}
			}); n != 0 {
				t.Errorf("%s, grouped %v: %v allocations for %d records", name, grouped, n, len(in))
			}
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	ints, floats := make([]Value, 1024), make([]Value, 1024)
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range ints {
		ints[i].SetInt(int64(rnd.IntN(1_000_000)))
		floats[i].SetFloat(rnd.NormFloat64() * 1000)
	}
	keys, groups := make([][]byte, 1024), make([][]byte, 1024)
	for i := range keys {
		keys[i], groups[i] = fmt.Appendf(nil, "key/%d", i), fmt.Appendf(nil, "group/%d", i)
	}
	for _, name := range everyReduce {
		for kind, values := range map[string][]Value{"ints": ints, "floats": floats} {
			for _, grouped := range []bool{false, true} {
				b.Run(fmt.Sprintf("%s/%s/grouped=%v", name, kind, grouped), func(b *testing.B) {
					b.ReportAllocs()
					r := reduce(b, name)
					r.Limit *= 10 // room for 1,024 different values
					table := NewTable(r, grouped, MaxGroups)
					for i := 0; b.Loop(); i++ {
						if _, err := table.Add(groups[i%1024], keys[i%1024], &values[i%1024]); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}
