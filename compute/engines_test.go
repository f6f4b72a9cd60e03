//go:build tools

package compute

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/compute/job/jobtest"
)

// Engines that know nothing of us judge the answers: sqlite3 over the same rows for integers and texts, Python's fractions and
// math.fsum for floats, and exact lists for the sketches.

// said pairs what a spec says with what SQL says for it.
type said struct{ spec, sql string }

// dialect is one way to read values, and what can be asked of them. x is the mapped value in SQL, g the group.
type dialect struct {
	as                           string
	filters, flats, maps, groups []said
	value                        func(rnd *rand.Rand, i int) string
}

var dialects = []dialect{
	{
		as:      "int",
		filters: []said{{"", "1"}, {"value range -100..<250", "x0 >= -100 AND x0 < 250"}, {"key prefix b/ and value range 0..", "key GLOB 'b/*' AND x0 >= 0"}, {"key suffix 7", "key GLOB '*7'"}, {"key re '[13579]$'", "key REGEXP '[13579]$'"}, {"v % 7 == 0 || key.startsWith('a')", "x0 % 7 = 0 OR key GLOB 'a*'"}},
		maps:    []said{{"value", "x0"}, {"square", "x0*x0"}, {"len", "length(value)"}, {"key", "key"}, {"v * 3 - 1", "x0*3-1"}},
		groups:  []said{{"key-part:/:1", "substr(key,1,1)"}, {"key-part:/:-1", "substr(key,3)"}, {"v % 5", "CAST(x0 % 5 AS TEXT)"}},
		value: func(rnd *rand.Rand, _ int) string {
			return strconv.FormatInt([]int64{rnd.Int64N(600) - 300, rnd.Int64N(2e6) - 1e6}[rnd.IntN(2)], 10)
		},
	},
	{
		as:      "string",
		filters: []said{{"", "1"}, {"value prefix a", "value GLOB 'a*'"}, {"value re '[0-9] [A-Z]'", "value REGEXP '[0-9] [A-Z]'"}, {"key range 1..5", "0"}, {"v.size() > 6", "length(value) > 6"}},
		maps:    []said{{"value", "value"}, {"lower", "lower(value)"}, {"len", "length(value)"}, {"key", "key"}, {"v + '!'", "value || '!'"}},
		groups:  []said{{"value", "value"}, {"lower", "lower(value)"}, {"key.substring(0, 1)", "substr(key,1,1)"}},
		value: func(rnd *rand.Rand, _ int) string {
			return fmt.Sprintf("%s %d %s", []string{"apple", "Tea", "a", "B&B"}[rnd.IntN(4)], rnd.IntN(30), []string{"X", "y", "Zz"}[rnd.IntN(3)])
		},
	},
	{
		as:      "json",
		filters: []said{{"", "1"}, {"json:x range -50..50", "json_extract(value,'$.x') BETWEEN -50 AND 50"}, {"json:s prefix a and json:o.y range 1..2", "json_extract(value,'$.s') GLOB 'a*' AND json_extract(value,'$.o.y') BETWEEN 1 AND 2"}, {"has(v.x) && v.x > 0", "json_extract(value,'$.x') > 0"}},
		flats:   []said{{"v.t", "$.t"}},
		maps:    []said{{"json:x", "json_extract(value,'$.x')"}, {"json:o.y", "json_extract(value,'$.o.y')"}, {"json:s", "json_extract(value,'$.s')"}, {"json:t.1", "json_extract(value,'$.t[1]')"}, {"len", "length(CAST(value AS BLOB))"}},
		groups:  []said{{"json:s", "json_extract(value,'$.s')"}, {"json:o.y", "CAST(json_extract(value,'$.o.y') AS TEXT)"}, {"key-part:/:1", "substr(key,1,1)"}, {"v.s", "json_extract(value,'$.s')"}},
		value: func(rnd *rand.Rand, i int) string {
			if i%11 == 0 {
				return `{"s":"ab"}`
			}
			t := make([]string, rnd.IntN(4))
			for i := range t {
				t[i] = strconv.Itoa(rnd.IntN(20))
			}
			return fmt.Sprintf(`{"s": "%s","x":%d, "o":{"y":%d},"t":[%s]}`, []string{"ab", "ä\\u00f6", "z"}[rnd.IntN(3)], rnd.IntN(400)-200, rnd.IntN(4), strings.Join(t, ","))
		},
	},
}

// reducesInSQL are queries over s(key, g, x), whose rows are (g, answer in JSON).
var reducesInSQL = map[string]string{
	"sum":              "SELECT g, sum(x) AS answer FROM s GROUP BY g",
	"count":            "SELECT g, count(*) AS answer FROM s GROUP BY g",
	"min":              "SELECT g, min(x) AS answer FROM s GROUP BY g",
	"max":              "SELECT g, max(x) AS answer FROM s GROUP BY g",
	"mean":             "SELECT g, json_array(sum(x), count(*)) AS answer FROM s GROUP BY g",
	"distinct":         "SELECT g, count(DISTINCT x) AS answer FROM s GROUP BY g",
	"collect:10000":    "SELECT g, json_group_array(x) AS answer FROM (SELECT DISTINCT g, x FROM s ORDER BY g, x) GROUP BY g",
	"top:4":            "SELECT g, json_group_array(json_object('value', x, 'key', key)) AS answer FROM (SELECT *, row_number() OVER (PARTITION BY g ORDER BY x DESC, key) AS n FROM s) WHERE n <= 4 GROUP BY g ORDER BY g",
	"first":            "SELECT g, x AS answer FROM (SELECT *, row_number() OVER (PARTITION BY g ORDER BY key) AS n FROM s) WHERE n = 1",
	"last":             "SELECT g, x AS answer FROM (SELECT *, row_number() OVER (PARTITION BY g ORDER BY key DESC) AS n FROM s) WHERE n = 1",
	"histogram:-10,50": "SELECT g, json_array(json_object('to',-10,'count',sum(x < -10)), json_object('from',-10,'to',50,'count',sum(x >= -10 AND x < 50)), json_object('from',50,'count',sum(x >= 50))) AS answer FROM s GROUP BY g",
}

// Over random filters, flat maps, maps, groups and reducers, sqlite3 says what we say. NULL is what does not parse, which both leave out.
func TestToolsSQLite(t *testing.T) {
	asked, skipped := 0, 0
	for seed, d := range dialects {
		rnd := rand.New(rand.NewPCG(uint64(seed), 11))
		var script bytes.Buffer
		script.WriteString("CREATE TABLE r(key TEXT PRIMARY KEY, value TEXT);\nBEGIN;\n")
		rows := make([]jobtest.Row, 1500)
		for i := range rows {
			rows[i] = jobtest.Row{Key: fmt.Sprintf("%c/%d", 'a'+rnd.IntN(3), i%700+1000*(i/700)), Value: d.value(rnd, i)}
			fmt.Fprintf(&script, "INSERT INTO r VALUES('%s','%s');\n", rows[i].Key, rows[i].Value)
		}
		script.WriteString("COMMIT;\n")
		one := func(list []said) said {
			if len(list) == 0 || rnd.IntN(3) == 0 {
				return said{}
			}
			return list[rnd.IntN(len(list))]
		}
		var specs []job.Spec
		for range 400 {
			filter, flat, m, group := d.filters[rnd.IntN(len(d.filters))], one(d.flats), d.maps[rnd.IntN(len(d.maps))], one(d.groups)
			s := job.Spec{As: d.as, Filter: filter.spec, FlatMap: flat.spec, Map: m.spec, GroupBy: group.spec, OnError: "skip"}
			from, x := "r", m.sql
			if flat.spec != "" {
				s.Map, from, x = "value", "r, json_each(rv, '"+flat.sql+"') e", "e.value"
			}
			names := []string{"sum", "count", "min", "max", "mean", "distinct", "collect:10000", "histogram:-10,50", "top:4", "first", "last"}
			if flat.spec != "" {
				names = names[:8] // one key has many values: which is first, sqlite does not say
			}
			s.Reduce = names[rnd.IntN(len(names))]
			if s = s.WithDefaults(); s.Validate() != nil || (m.spec == "json:s" || m.spec == "v + '!'") && strings.Contains("sum mean histogram:-10,50", s.Reduce) {
				skipped++ // a sum of texts
				continue
			}
			g := "''"
			if group.spec != "" {
				g = group.sql
			}
			if flat.spec == "" {
				x = ofRow(x)
			}
			number := "0"
			if d.as == "int" {
				number = "CAST(value AS INTEGER)"
			}
			inner := fmt.Sprintf("SELECT rk AS key, (%s) AS g, (%s) AS x FROM %s WHERE (%s) AND (%s) IS NOT NULL AND (%s) IS NOT NULL", ofRow(g), x,
				strings.Replace(from, "r", "(SELECT key AS rk, value AS rv, "+number+" AS x0 FROM r) r", 1), ofRow(filter.sql), ofRow(g), x)
			fmt.Fprintf(&script, "SELECT '-- %d';\nWITH s AS MATERIALIZED (%s) SELECT json_array(g, %s) FROM (%s) ORDER BY g;\n", len(specs), inner, asJSON(s.Reduce), reducesInSQL[s.Reduce])
			specs = append(specs, s)
		}
		answers := runSQLite(t, script.Bytes(), len(specs))
		for i, s := range specs {
			p, err := rowsThrough(s, rows)
			if err != nil {
				t.Fatalf("%+v: %v", s, err)
			}
			got, _, err := p.Final(s)
			want := fromSQL(t, s, answers[i])
			if err != nil {
				got = job.Text(err.Error())
			}
			if !sameJSON(t, got, want) && !(s.Reduce == "distinct" && within(got.String(), want, 0.025)) {
				t.Errorf("%+v: %s; sqlite3 says %s", s, got, want)
			}
			asked++
		}
	}
	if asked < 600 {
		t.Errorf("only %d questions were asked, %d make no sense", asked, skipped)
	}
}

// within says whether a is off by no more than a part of b. It is three times the standard error of a distinct.
func within(a, b string, part float64) bool {
	got, errGot := strconv.ParseFloat(a, 64)
	want, errWant := strconv.ParseFloat(b, 64)
	return errGot == nil && errWant == nil && math.Abs(got-want) <= part*math.Abs(want)
}

// ofRow names the columns of a row, which json_each has, too.
func ofRow(sql string) string { return strings.NewReplacer("key", "rk", "value", "rv").Replace(sql) }

// asJSON is the second column of the query, as JSON if it is that already.
func asJSON(reduce string) string {
	if strings.HasPrefix(reduce, "collect") || strings.HasPrefix(reduce, "top") || strings.HasPrefix(reduce, "histogram") || reduce == "mean" {
		return "json(answer)"
	}
	return "answer"
}

// runSQLite returns the lines that follow each marker.
func runSQLite(t *testing.T, script []byte, n int) [][]string {
	t.Helper()
	cmd := exec.Command("sqlite3", "-batch", "-bail", ":memory:")
	cmd.Stdin = bytes.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sqlite3: %v\n%.2000s", err, out)
	}
	answers := make([][]string, n)
	at := -1
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "-- ") {
			at++
			continue
		}
		answers[at] = append(answers[at], line)
	}
	if at != n-1 {
		t.Fatalf("%d answers, want %d", at+1, n)
	}
	return answers
}

// fromSQL puts sqlite3's rows into the form of our answers.
func fromSQL(t *testing.T, s job.Spec, lines []string) string {
	type entry struct {
		Group string          `json:"group"`
		Value json.RawMessage `json:"value"`
	}
	list := []entry{}
	for _, line := range lines {
		var pair [2]json.RawMessage
		if err := json.Unmarshal([]byte(line), &pair); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		e := entry{Value: pair[1]}
		if err := json.Unmarshal(pair[0], &e.Group); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if s.Reduce == "mean" {
			var sumCount [2]int64
			if err := json.Unmarshal(pair[1], &sumCount); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			e.Value = json.RawMessage(strconv.FormatFloat(float64(sumCount[0])/float64(sumCount[1]), 'f', -1, 64)) // both are below 2^53: rounded once
		}
		list = append(list, e)
	}
	if s.GroupBy == "" {
		if len(list) == 0 {
			return map[string]string{"sum": "0", "count": "0", "distinct": "0", "collect:10000": "[]", "top:4": "[]", "histogram:-10,50": `[{"to":-10,"count":0},{"from":-10,"to":50,"count":0},{"from":50,"count":0}]`}[s.Reduce]
		}
		return string(list[0].Value)
	}
	data, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// sameJSON compares what is in two documents, not how it is written. want is empty where there are no records to answer about.
func sameJSON(t *testing.T, got job.Value, want string) bool {
	if want == "" {
		return got.String() == job.ErrNoRecords.Error()
	}
	data, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	for into, text := range map[*any]string{&a: string(data), &b: want} {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		if err := d.Decode(into); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	return reflect.DeepEqual(a, b)
}

func rowsThrough(s job.Spec, rows []jobtest.Row) (*Partial, error) {
	fn, err := compile(s)
	if err != nil {
		return nil, err
	}
	p := new(Partial)
	for _, r := range rows {
		fn.step(context.Background(), p, []byte(r.Key), []byte(r.Value))
	}
	return p, nil
}

// judge.py reads floats, one on a line, and prints one on a line: fsum, mean, variance, stddev, min, max, the number of different ones, and
// then quantiles. All but the standard deviation are exact and rounded once.
const judgeScript = `
import sys, math
from fractions import Fraction
xs = [float(l) for l in sys.stdin]
ex = [Fraction(x) for x in xs]
n = len(xs)
mean = sum(ex) / n
var = sum((x - mean) ** 2 for x in ex) / n
s = sorted(xs)
print(repr(math.fsum(xs)))
print(repr(float(mean)))
print(repr(float(var)))
print(repr(math.sqrt(var)))
print(repr(s[0]))
print(repr(s[-1]))
print(len(set(xs)))
for q in (0, 0.01, 0.25, 0.5, 0.9, 0.999, 1):
    print(repr(s[math.floor(q * (n - 1))]))
`

// Floats, judged by Python: sums, means and variances to the last bit, sketches within what docs/jobs.md states.
func TestToolsPython(t *testing.T) {
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 13))
		rows := make([]jobtest.Row, 3000)
		var lines strings.Builder
		for i := range rows {
			f := []float64{rnd.NormFloat64(), rnd.ExpFloat64() * 1e6, rnd.NormFloat64() * 1e-9, float64(rnd.IntN(50)) / 8, rnd.NormFloat64() * 1e15}[(rnd.Uint64()*seed+uint64(rnd.IntN(2)))%5]
			rows[i] = jobtest.Row{Key: fmt.Sprint(i), Value: strconv.FormatFloat(f, 'g', -1, 64)}
			lines.WriteString(rows[i].Value + "\n")
		}
		cmd := exec.Command("python3", "-c", judgeScript)
		cmd.Stdin = strings.NewReader(lines.String())
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("python3: %v", err)
		}
		want := strings.Fields(string(out))
		for i, q := range []struct {
			reduce string
			within float64 // 0: the same bits
		}{
			{"sum", 0}, {"mean", 0}, {"variance", 0}, {"stddev", 1e-15}, {"min", 0}, {"max", 0}, {"distinct", 0.025},
			{"quantile:0", 0}, {"quantile:0.01", 0.01}, {"quantile:0.25", 0.01}, {"quantile:0.5", 0.01}, {"quantile:0.9", 0.01}, {"quantile:0.999", 0.01}, {"quantile:1", 0},
		} {
			s := job.Spec{As: "float", Reduce: q.reduce}.WithDefaults()
			p, err := rowsThrough(s, rows)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := p.Final(s)
			if err != nil {
				t.Fatalf("%s: %v", q.reduce, err)
			}
			if !within(got.String(), want[i], q.within) {
				t.Errorf("seed %d: %s is %s, Python says %s", seed, q.reduce, got, want[i])
			}
		}
	}
}
