package job

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseReduce(t *testing.T) {
	for s, want := range map[string]Reduce{
		"sum":                          {Name: "sum"},
		"variance":                     {Name: "variance"},
		"distinct":                     {Name: "distinct"},
		"last":                         {Name: "last"},
		"histogram:log2":               {Name: ReduceHistogram},
		"histogram:0":                  {Name: ReduceHistogram, Bounds: []float64{0}},
		"histogram:-1.5,-0,1e3":        {Name: ReduceHistogram, Bounds: []float64{-1.5, 0, 1000}},
		"top:1":                        {Name: ReduceTop, Limit: 1},
		"top:1000":                     {Name: ReduceTop, Limit: 1000},
		"collect:10000":                {Name: ReduceCollect, Limit: 10000},
		"quantile:0.5":                 {Name: ReduceQuantile, Quantiles: []float64{0.5}},
		"quantile:1,0,0.99":            {Name: ReduceQuantile, Quantiles: []float64{1, 0, 0.99}},
		"histogram:" + numbers(0, 256): {Name: ReduceHistogram, Bounds: rangeOf(256)},
	} {
		got, err := ParseReduce(s)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%.40s: %+v, %v", s, got, err)
		}
	}
}

// What is refused says what to write instead.
func TestParseReduceRefuses(t *testing.T) {
	for s, part := range map[string]string{
		"":                             "one of sum count min max mean variance stddev histogram:log2 top:10 distinct quantile:0.5,0.99 first last collect:100",
		"median":                       `unknown "median"`,
		"Sum":                          "unknown",
		"sum:1":                        "write sum",
		"summ":                         "unknown",
		"top":                          "for example top:10",
		"top:":                         "for example top:10",
		"top:0":                        "from 1 to 1000",
		"top:+5":                       "from 1 to 1000",
		"top:1001":                     "from 1 to 1000",
		"top:1.5":                      "from 1 to 1000",
		"collect":                      "for example collect:100",
		"collect:10001":                "from 1 to 10000",
		"collect:-1":                   "from 1 to 10000",
		"histogram":                    "for example histogram:log2",
		"histogram:log10":              "not a decimal number",
		"histogram:1,0":                "must rise",
		"histogram:0,-0":               "must rise",
		"histogram:0, 1":               "no blanks",
		"histogram:0,":                 "not a decimal number",
		"histogram:NaN":                "not a decimal number",
		"histogram:Inf":                "not a decimal number",
		"histogram:1e999":              "not a decimal number",
		"histogram:0x10p0":             "not a decimal number",
		"histogram:1_0":                "not a decimal number",
		"histogram:" + numbers(0, 257): "at most 256",
		"quantile":                     "for example quantile:0.5,0.99",
		"quantile:50":                  "from 0 to 1",
		"quantile:-0.1":                "from 0 to 1",
		"quantile:0.5,0.50":            "twice",
		"quantile:" + strings.Repeat("0,", 32) + "1": "at most 32",
	} {
		_, err := ParseReduce(s)
		if err == nil || err.Field != "reduce" || !strings.Contains(err.Error(), part) {
			t.Errorf("%.40s: %v, want %s", s, err, part)
		}
	}
}

// Every word parses with the example that hints give for it, and says rightly whether texts are for it.
func TestReduces(t *testing.T) {
	numbersOnly := ""
	for _, known := range reduces {
		r, err := ParseReduce(known.name + known.example)
		if err != nil || r.Name != known.name {
			t.Errorf("%s%s: %+v, %v", known.name, known.example, r, err)
		}
		if r.NumbersOnly() {
			numbersOnly += r.Name + " "
		}
	}
	if numbersOnly != "sum mean variance stddev histogram: quantile: " {
		t.Errorf("numbers only: %s", numbersOnly)
	}
}

func rangeOf(n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = float64(i)
	}
	return out
}

func numbers(from, n int) string {
	words := make([]string, n)
	for i := range words {
		words[i] = string(rune('0'+(from+i)/100)) + string(rune('0'+(from+i)/10%10)) + string(rune('0'+(from+i)%10))
	}
	return strings.Join(words, ",")
}
