package compute

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/fold"
	"github.com/abacusdb/abacus/compute/job"
)

func spec(as, mapTo, reduce string) job.Spec {
	return job.Spec{As: as, Map: mapTo, Reduce: reduce, OnError: job.OnErrorFail}
}

// over runs a spec over values under the keys k0, k1, …
func over(t testing.TB, s job.Spec, values ...string) *Partial {
	t.Helper()
	fn, err := compile(s)
	if err != nil {
		t.Fatal(err)
	}
	p := new(Partial)
	for i, v := range values {
		fn.step(context.Background(), p, fmt.Appendf(nil, "k%d", i), []byte(v))
	}
	return p
}

func TestAnswers(t *testing.T) {
	digits := []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}
	big := "1" + strings.Repeat("0", 40)
	for _, c := range []struct {
		as, mapTo, reduce string
		values            []string
		want              string
	}{
		{"int", "square", "sum", digits, "285"},
		{"int", "value", "mean", digits, "4.5"},
		{"int", "value", "min", digits, "0"},
		{"int", "value", "max", digits, "9"},
		{"int", "value", "count", digits, "10"},
		{"string", "len", "sum", []string{"", "a", "äö"}, "5"},
		{"string", "key", "max", digits, "k9"},
		{"string", "value", "min", []string{"pear", "", "apple"}, ""},
		{"string", "value", "max", []string{"pear", "", "apple"}, "pear"},
		{"string", "value", "min", []string{"10", "9"}, "10"}, // as text

		// Integers never wrap.
		{"int", "value", "sum", []string{"9223372036854775807", "9223372036854775807"}, "18446744073709551614"},
		{"int", "value", "sum", []string{"-9223372036854775808", "-1"}, "-9223372036854775809"},
		{"int", "value", "sum", []string{"9223372036854775807", "1", "-9223372036854775807"}, "1"},
		{"int", "square", "sum", []string{"-9223372036854775808"}, "85070591730234615865843651857942052864"},
		{"int", "square", "max", []string{"3037000499", "-3037000500"}, "9223372037000250000"},
		{"int", "value", "sum", []string{big, "1"}, "1" + strings.Repeat("0", 39) + "1"},
		{"int", "value", "max", []string{big, "1"}, big},
		{"int", "value", "mean", []string{big, big}, big},
		{"int", "value", "mean", []string{"9223372036854775807", "9223372036854775807"}, "9223372036854775807"},
		{"int", "value", "sum", []string{"+5", "-0", "007"}, "12"},
		{"int", "square", "sum", []string{strings.Repeat("9", 1000)}, strings.Repeat("9", 999) + "8" + strings.Repeat("0", 999) + "1"},

		// Floats add exactly and are rounded once.
		{"float", "value", "sum", []string{"0.1", "0.2", "0.3", "0.4"}, "1"},
		{"float", "value", "sum", []string{"1e100", "1", "-1e100"}, "1"},
		{"float", "value", "sum", []string{"1e308", "1e308", "-1e308"}, "1e+308"},
		{"float", "value", "sum", []string{"1e308", "1e308"}, "2e+308"},
		{"float", "value", "mean", []string{"1e308", "1e308"}, "1e+308"},
		{"float", "value", "sum", []string{"5e-324", "5e-324"}, "1e-323"},
		{"float", "value", "sum", []string{"1.5", "-1.5"}, "0"},
		{"float", "value", "min", []string{"-0"}, "0"},
		{"float", "value", "max", []string{"-0", "0"}, "0"},
		{"float", "value", "max", []string{"-1e-3", "-2"}, "-0.001"},
		{"float", "square", "sum", []string{"1.5", "2"}, "6.25"},
		{"float", "value", "sum", []string{"1000000"}, "1000000"},

		{"json", "json:price", "sum", []string{`{"price":1.25}`, `{"price":2}`, `{"price":3}`}, "6.25"},
		{"json", "json:price", "sum", []string{`{"price":2}`, `{"price":3}`}, "5"},
		{"json", "json:a.1.b", "max", []string{`{"a":[0,{"b":7}]}`, `{"a":[0,{"b":-7}]}`}, "7"},
		{"json", "json:tags.#", "sum", []string{`{"tags":[1,2]}`, `{"tags":[]}`}, "2"},
		{"json", "json:n", "sum", []string{`{"n":9007199254740993}`, `{"n":9223372036854775807}`}, "9232379236109516800"},
		{"json", "json:name", "min", []string{`{"name":"b"}`, `{"name":"\u00e4"}`}, "b"},
		{"json", `json:\@type`, "max", []string{`{"@type":"x"}`}, "x"},
		{"json", "json:x", "min", []string{`{"x":1.5}`, `{"x":1}`, `{"x":9007199254740993}`}, "1"},
		{"json", "json:x", "max", []string{`{"x":9007199254740992.0}`, `{"x":9007199254740993}`}, "9007199254740993"},
		{"json", "json:ok", "count", []string{`{"ok":true}`, `{"ok":{}}`, `{"ok":""}`}, "3"},
		{"json", "value", "sum", []string{"1", " 2 ", "3.5"}, "6.5"},
		{"json", "len", "sum", []string{"[1]", "{}"}, "5"},
	} {
		s := spec(c.as, c.mapTo, c.reduce)
		got, note, err := over(t, s, c.values...).Final(s)
		if err != nil || got.String() != c.want || note != "" {
			t.Errorf("%s %s %s of %.60q: %s, note %q, error %v; want %s", c.as, c.mapTo, c.reduce, c.values, got, note, err, c.want)
		}
	}
}

func TestBadRecords(t *testing.T) {
	for _, c := range []struct {
		as, mapTo, reduce string
		bad               []string
	}{
		{"int", "value", "count", []string{"", " 1", "1 ", "1\n", "1.0", "1e3", "0x10", "1_000", "+", "-", "--1", "ten", "\xff", "\x00", strings.Repeat("9", 1001), "-" + strings.Repeat("9", 1001)}},
		{"float", "value", "count", []string{"", "NaN", "Inf", "-inf", "1e999", "0x1p3", "1_0.5", "1,5", " 1", ".", strings.Repeat("1", 2000)}},
		{"float", "square", "sum", []string{"1e200"}},
		{"json", "value", "count", []string{"", "{", "nul", "null", "{}x", "'a'", "NaN"}},
		{"json", "json:a", "count", []string{"{}", `{"a":null}`, `[]`, `{"b":1}`, `{"a":1`, "7"}},
		{"json", "json:a", "sum", []string{`{"a":"1"}`, `{"a":true}`, `{"a":[1]}`, `{"a":{}}`, `{"a":` + strings.Repeat("9", 1500) + `}`, `{"a":1e999}`}},
		{"json", "json:a", "min", []string{`{"a":true}`, `{"a":[1]}`}},
	} {
		s := spec(c.as, c.mapTo, c.reduce)
		for _, value := range c.bad {
			p := over(t, s, value)
			if p.Records != 1 || p.Bad != 1 {
				t.Errorf("%s %s %s: %.60q was taken for a good record", c.as, c.mapTo, c.reduce, value)
			}
		}
		_, _, err := over(t, s, c.bad...).Final(s)
		var bad *BadRecordsError
		if !errors.As(err, &bad) || bad.Bad != int64(len(c.bad)) || len(bad.Keys) != min(len(c.bad), maxBadKeys) {
			t.Errorf("%s %s %s: %v, want %d bad records", c.as, c.mapTo, c.reduce, err, len(c.bad))
		}
	}
}

// A document that lacks what the job looks for is called that, not malformed.
func TestBadRecordsSayWhatIsMissing(t *testing.T) {
	for reduce, want := range map[string]string{
		"sum":   "2 of 2 records have no JSON number at the path a.b, for example",
		"max":   "2 of 2 records have no JSON number or text at the path a.b, for example",
		"count": "2 of 2 records have no JSON value at the path a.b, for example",
	} {
		s := spec("json", "json:a.b", reduce)
		_, _, err := over(t, s, `{"a":1}`, `{"b":2}`).Final(s)
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), "; it is so with all that were read: look at one first; use --on-error skip") {
			t.Errorf("%s: %v, want %q", reduce, err, want)
		}
	}
}

// A JSON object parses; what it lacks is a path to a number.
func TestObjectsAreNoNumbers(t *testing.T) {
	for reduce, want := range map[string]string{
		"sum":   "2 of 2 records are no JSON number in themselves, for example k0; take a field of an object with --map json:PATH, or use --on-error skip to leave them out",
		"min":   "2 of 2 records are no JSON number or text in themselves, for example k0; take a field of",
		"count": "1 of 2 records do not parse as json for map value, for example k1; use --on-error skip to leave them out",
	} {
		s := spec("json", "value", reduce)
		if _, _, err := over(t, s, `{"a":1}`, `[2`).Final(s); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", reduce, err, want)
		}
	}
}

func TestSkipBadRecords(t *testing.T) {
	s := spec("int", "value", "sum")
	s.OnError = job.OnErrorSkip
	got, note, err := over(t, s, "1", "x", "2").Final(s)
	if err != nil || got.String() != "3" || note != "1 of 3 records did not parse and were left out" {
		t.Errorf("%s, note %q, error %v", got, note, err)
	}
	s.Reduce = job.ReduceCount
	if got, _, err := over(t, s, "1", "x", "2").Final(s); err != nil || got.String() != "2" {
		t.Errorf("count %s, error %v", got, err)
	}
	s.Reduce = job.ReduceMax
	if _, _, err := over(t, s, "x").Final(s); !errors.Is(err, job.ErrNoRecords) {
		t.Errorf("max of none that parses: %v", err)
	}
}

func TestNoRecords(t *testing.T) {
	for reduce, want := range map[string]string{"sum": "0", "count": "0", "min": "", "max": "", "mean": ""} {
		s := spec("int", "value", reduce)
		s.Prefix = "none/"
		got, note, err := new(Partial).Final(s)
		if want == "" {
			if !errors.Is(err, job.ErrNoRecords) {
				t.Errorf("%s of nothing: %s, %v", reduce, got, err)
			}
		} else if err != nil || got.String() != want || note != `no key begins with "none/"` {
			t.Errorf("%s of nothing: %s, note %q, %v", reduce, got, note, err)
		}
	}
}

func TestMixedKinds(t *testing.T) {
	s := spec("json", "json:a", "min")
	_, _, err := over(t, s, `{"a":1}`, `{"a":"x"}`, `{"a":2.5}`).Final(s)
	var mixed *fold.MixedKindsError
	if !errors.As(err, &mixed) || mixed.Numbers != 2 || mixed.Texts != 1 {
		t.Errorf("error %v, want 2 numbers and 1 text", err)
	}
}

func TestTextResults(t *testing.T) {
	s := spec("string", "value", "max")
	got, note, err := over(t, s, "\xff\x00").Final(s)
	if err != nil || got.String() != "/wA=" || note != "the result is not UTF-8 and shown in base64" {
		t.Errorf("%s, note %q, error %v", got, note, err)
	}
	fits := strings.Repeat("b", maxTextBytes)
	if got, _, err := over(t, s, fits, "a").Final(s); err != nil || got.String() != fits {
		t.Errorf("a text of the greatest length: %d bytes, %v", len(got.String()), err)
	}
	var tooLarge *fold.ResultTooLargeError
	if _, _, err := over(t, s, fits, fits+"b", fits+"c").Final(s); !errors.As(err, &tooLarge) {
		t.Errorf("a text that is too long: %v", err)
	}
	// The long one is the larger of the two, so the minimum fits.
	s.Reduce = job.ReduceMin
	if got, _, err := over(t, s, fits+"b", fits).Final(s); err != nil || got.String() != fits {
		t.Errorf("minimum beside a text that is too long: %d bytes, %v", len(got.String()), err)
	}
}

// The sample of bad keys is the smallest as they are shown, in any order of arrival.
func TestBadKeySample(t *testing.T) {
	fn, err := compile(spec("int", "value", "sum"))
	if err != nil {
		t.Fatal(err)
	}
	keys := []string{"\x01", "\"", strings.Repeat("z", 1000), strings.Repeat("ü", 500)}
	for i := range 20 {
		keys = append(keys, fmt.Sprintf("k%02d", i))
	}
	var want []byte
	for shift := range keys {
		p := new(Partial)
		for i := range keys {
			fn.step(context.Background(), p, []byte(keys[(i+shift)%len(keys)]), []byte("x"))
		}
		if shift == 0 {
			want = p.Encode()
		}
		if len(p.badKeys) != maxBadKeys || p.badKeys[0] != `"\""` || p.badKeys[2] != "k00" {
			t.Fatalf("sample %q", p.badKeys)
		}
		if string(p.Encode()) != string(want) {
			t.Fatalf("sample %q depends on the order", p.badKeys)
		}
	}
}

func TestCompareNumbersExactly(t *testing.T) {
	in := func(s string) *fold.Value { it := new(fold.Value); readInt([]byte(s), it); return it }
	fl := func(f float64) *fold.Value { it := new(fold.Value); it.SetFloat(f); return it }
	for _, c := range []struct {
		a, b *fold.Value
		want int
	}{
		{in("9007199254740993"), fl(9007199254740992), 1},
		{fl(1 << 62), in("4611686018427387905"), -1},
		{in("1"), fl(1), 0},
		{in("1" + strings.Repeat("0", 400)), fl(math.MaxFloat64), 1},
		{fl(-math.MaxFloat64), in("-1" + strings.Repeat("0", 400)), 1},
		{in("99999999999999999999"), in("99999999999999999998"), 1},
		{fl(0.5), in("0"), 1},
	} {
		if got := fold.CompareNumbers(c.a, c.b); got != c.want {
			t.Errorf("compare %s with %s: %d, want %d", c.a.Digits(), c.b.Digits(), got, c.want)
		}
	}
}

// Of an integer and a float of one value the same one is kept, whichever comes first.
func TestTiesDoNotDependOnOrder(t *testing.T) {
	for _, reduce := range []string{"min", "max"} {
		s := spec("json", "value", reduce)
		a, b := over(t, s, "1", "1.0").Encode(), over(t, s, "1.0", "1").Encode()
		if string(a) != string(b) {
			t.Errorf("%s: %x and %x", reduce, a, b)
		}
	}
}

func BenchmarkStep(b *testing.B) {
	for _, c := range []struct {
		name  string
		s     job.Spec
		value string
	}{
		{"int square sum", spec("int", "square", "sum"), "123456"},
		{"int filter square sum", job.Spec{As: "int", Filter: "value range 0..1000000", Map: "square", Reduce: "sum", OnError: "fail"}, "123456"},
		{"int group sum", job.Spec{As: "int", Map: "value", GroupBy: "key", Reduce: "sum", OnError: "fail"}, "123456"},
		{"json filter group sum", job.Spec{As: "json", Filter: "json:country prefix N", Map: "json:population", GroupBy: "json:country", Reduce: "sum", OnError: "fail"}, oslo},
		{"words by lower", job.Spec{As: "string", FlatMap: "words", Map: "value", GroupBy: "lower", Reduce: "count", OnError: "fail"}, "The quick brown fox jumps over the lazy dog"},
		{"CEL map sum", job.Spec{As: "int", Map: "v * v + 1", Reduce: "sum", OnError: "fail"}, "123456"},
		{"quantile", job.Spec{As: "int", Map: "value", Reduce: "quantile:0.5", OnError: "fail"}, "123456"},
		{"float sum", spec("float", "value", "sum"), "1234.5678"},
		{"json path sum", spec("json", "json:population", "sum"), oslo},
		{"string max", spec("string", "value", "max"), "hello world"},
	} {
		b.Run(c.name, func(b *testing.B) {
			fn, err := compile(c.s)
			if err != nil {
				b.Fatal(err)
			}
			p, key, value := new(Partial), []byte("key"), []byte(c.value)
			b.ReportAllocs()
			for b.Loop() {
				fn.step(context.Background(), p, key, value)
			}
		})
	}
}

// oslo is a document of 221 bytes.
const oslo = `{"id":"c-102934","name":"Oslo","country":"NO","tags":["capital","port","fjord"],"population":580000,"area":{"land":426.4,"water":27.7},"lat":59.91273,"lon":10.74609,"mayor":"Anne Lindboe","updated":"2026-11-03T10:22:33Z"}`

// What would take a record very long, or very deep, is a bad record.
func TestCostlyRecordsAreBad(t *testing.T) {
	long := strings.Repeat("a", 1<<20)
	for name, c := range map[string]struct {
		spec  job.Spec
		value string
		bad   bool
	}{
		"a large pattern on a short text": {job.Spec{Filter: "value re '(?s)(?:.?){400}!'"}, "aaa!", false},
		"a large pattern on a long text":  {job.Spec{Filter: "value re '(?s)(?:.?){400}!'"}, long, true},
		"a small one":                     {job.Spec{Filter: "value re 'a+!?$'"}, long, false},
		"a deep document":                 {job.Spec{As: "json", Map: "json:a.#"}, strings.Repeat("[", 1<<20), true},
		"one with deep texts":             {job.Spec{As: "json", Map: "json:a.#"}, `{"a":["` + strings.Repeat(`[\"{`, 20_000) + `"]}`, false},
	} {
		c.spec.Reduce, c.spec.OnError = "count", "skip"
		if p := over(t, c.spec.WithDefaults(), c.value); (p.Bad == 1) != c.bad {
			t.Errorf("%s: %d of %d bad", name, p.Bad, p.Records)
		}
	}
}

// A sum takes no value that is not a number, whoever made it.
func TestEndlessValuesAreBad(t *testing.T) {
	if p := over(t, job.Spec{Map: "go:endless", Reduce: "sum", OnError: "skip"}.WithDefaults(), "1", "2"); p.Bad != 2 {
		t.Errorf("%d values without end are bad, want 2", p.Bad)
	}
}
