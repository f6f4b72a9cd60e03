// Package jobtest makes random jobs and records, for tests of whoever computes them.
package jobtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/abacusdb/abacus/compute/job"
)

// What specs are made of, by how values are read; "" is for all.
var (
	Filters = map[string][]string{
		"":       {"", "", "", "key prefix u/1", "key suffix 7", "key re '^[ud]/[0-4]'", "key range 1..5", "key prefix u/ and key suffix 3", "key.endsWith('5')"},
		"string": {"value prefix a", "value re [aeiou]{2}", "value range -5..40", "v.size() > 4"},
		"int":    {"value range -10..10", "value range 0..<1e3", "value range ..99999999999999999999 and key prefix u", "v > 3"},
		"float":  {"value range -0.5..0.5", "value range 0..", "v * 2.0 < 1.0"},
		"json":   {"json:x range -20..20", "json:s prefix a and json:x range 0..", "json:o.y range 1..3", "v.x > 0", "has(v.tags) && v.tags.size() > 1", `json:tags.# range 1..2`},
	}
	FlatMaps = map[string][]string{
		"":       {"", "", ""},
		"string": {"words", "v.split(' ')"},
		"json":   {"v.tags", "v.tags.map(t, [t, v.x])"},
	}
	Maps = map[string][]string{
		"":       {"value", "value", "key", "len"},
		"string": {"lower", "parse", "v + key"},
		"int":    {"square", "v * 2"},
		"float":  {"square", "v + 1.0"},
		"json":   {"json:x", "json:s", "json:o.y", "json:tags.0", "v.x", "v.s"},
	}
	Groups = map[string][]string{
		"":       {"", "", "", "key", "value", "key-part:/:1", "key-part:/:-1", "key-part:/:3", "key.substring(0, 1)"},
		"string": {"lower", "v.size()"},
		"int":    {"v % 3"},
		"json":   {"json:s", "json:x", "json:ok", "v.s", "pair"},
	}
	Reduces = []string{"sum", "count", "min", "max", "mean", "variance", "stddev", "histogram:log2", "histogram:-10,0,10", "top:3", "distinct", "quantile:0.5,0.9", "first", "last", "collect:10000"}
)

// Ways are those in which values are read.
var Ways = []string{job.AsString, job.AsInt, job.AsFloat, job.AsJSON}

// Spec is one at random, for values that are read the way given. Not all make sense: those that do not, Validate or the compiler refuses.
func Spec(rnd *rand.Rand, as string) job.Spec {
	pick := func(from map[string][]string) string {
		list := append(from[""][:len(from[""]):len(from[""])], from[as]...)
		return list[rnd.IntN(len(list))]
	}
	s := job.Spec{As: as, Filter: pick(Filters), FlatMap: pick(FlatMaps), Map: pick(Maps), GroupBy: pick(Groups),
		Reduce: Reduces[rnd.IntN(len(Reduces))], OnError: []string{"skip", "skip", "fail", "count"}[rnd.IntN(4)]}
	if strings.Contains(s.FlatMap, "[t,") && rnd.IntN(5) > 0 {
		s.GroupBy = "pair"
	}
	if s.OnError == "count" {
		s.MaxErrors = 1 + rnd.Int64N(60)
	}
	if s.GroupBy != "" && rnd.IntN(3) == 0 {
		s.MaxGroups = 1 + rnd.IntN(20)
	}
	return s
}

// Row is a record.
type Row struct{ Key, Value string }

// Rows are n records with different keys. Most can be read as the way given; some cannot.
func Rows(rnd *rand.Rand, as string, n int) []Row {
	rows := make([]Row, n)
	for i := range rows {
		value := Value(rnd, as)
		switch {
		case as == job.AsString && rnd.IntN(3) > 0:
			value = text(rnd)
		case as == job.AsJSON && rnd.IntN(3) > 0:
			value = fmt.Sprintf(`{"x":%s,"s":%q,"ok":%v,"o":{"y":%d},"tags":[%s]}`, Value(rnd, job.AsInt), text(rnd), rnd.IntN(2) == 0, rnd.IntN(5),
				strings.Join([]string{`"a"`, `"b"`, `"long one"`}[:rnd.IntN(4)], ","))
		case rnd.IntN(20) == 0:
			value = []string{"", "x", "-", "\xff", "{", "null"}[rnd.IntN(6)]
		}
		rows[i] = Row{fmt.Sprintf("%s%d", []string{"u/", "d/e/", "5/", ""}[rnd.IntN(4)], i), value}
	}
	return rows
}

func text(rnd *rand.Rand) string {
	words := []string{"apple", "Äpfel", "TEA", "see", "a", "12", "3.5", "-7", "don't", "b"}
	list := make([]string, rnd.IntN(4))
	for i := range list {
		list[i] = words[rnd.IntN(len(words))]
	}
	return strings.Join(list, []string{" ", ", "}[rnd.IntN(2)])
}

// Value is one that mostly can be read as the way given: integers of any size, any bits of a float, JSON that is half of it broken.
func Value(rnd *rand.Rand, as string) string {
	n := func() string {
		switch rnd.IntN(4) {
		case 0:
			return strconv.FormatInt(int64(rnd.Uint64()), 10) // any of 64 bits
		case 1:
			return strconv.FormatUint(rnd.Uint64(), 10) + strconv.FormatUint(rnd.Uint64(), 10)
		}
		return strconv.Itoa(rnd.IntN(100) - 50)
	}
	f := func() string {
		if rnd.IntN(3) == 0 {
			return strconv.FormatFloat(math.Float64frombits(rnd.Uint64()), 'g', -1, 64) // NaN too
		}
		return strconv.FormatFloat(rnd.NormFloat64(), 'g', -1, 64)
	}
	switch as {
	case job.AsInt:
		return n()
	case job.AsFloat:
		return f()
	case job.AsJSON:
		return [...]string{`{"x":` + n() + `}`, `{"x":` + f() + `}`, `{"x":"` + n() + `"}`, `{"y":1}`, `{`}[min(rnd.IntN(12), 4)]
	}
	return strings.Repeat(string(rune('a'+rnd.IntN(26))), rnd.IntN(30))
}
