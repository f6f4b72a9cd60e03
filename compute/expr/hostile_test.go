package expr

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/compute/job"
)

// patience is for a single expression over a single record. Without the bounds each case below takes minutes, gigabytes or the stack; with
// them the slowest takes half a second, when nothing else runs.
const patience = slowed * 30 * time.Second

// bindLists makes lists of lists of lists, in a few letters: width^depth parts, if they are counted one by one.
func bindLists(depth, width int, use string) string {
	src := fmt.Sprintf(use, depth)
	for i := depth; i > 0; i-- {
		src = fmt.Sprintf("cel.bind(a%d, [%s], %s)", i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("a%d, ", i-1), width), ", "), src)
	}
	return strings.ReplaceAll(src, "a0", "key")
}

// Texts of strangers that want the node's time, memory or life. Each ends soon, in a program or an *Error.
func TestHostileTexts(t *testing.T) {
	chain := func(n int, format string, last string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String() + last
	}
	for name, src := range map[string]string{
		"1e5 parentheses":       strings.Repeat("(", 100_000),
		"parentheses":           strings.Repeat("(", 2000) + "1" + strings.Repeat(")", 2000),
		"brackets":              strings.Repeat("[", 4000),
		"braces":                strings.Repeat("{1:", 1300),
		"indexes":               "v" + strings.Repeat("[v", 1900) + strings.Repeat("]", 100),
		"minus signs":           strings.Repeat("-", 4000) + "1",
		"exclamation marks":     strings.Repeat("!", 4000) + "true",
		"fields":                "v" + strings.Repeat(".a", 2000),
		"optional fields":       "v" + strings.Repeat(".?a", 1300),
		"sums":                  "1" + strings.Repeat("+1", 2000),
		"ors":                   "v" + strings.Repeat("||v", 1300),
		"conditions":            strings.Repeat("v?v:", 1000) + "v",
		"open conditions":       strings.Repeat("true?", 800),
		"calls":                 strings.Repeat("size(", 800),
		"calls of results":      "v" + strings.Repeat(".size()", 500),
		"loops in loops":        strings.Repeat("[1].all(x, ", 350) + "true" + strings.Repeat(")", 350),
		"loops after loops":     "v" + strings.Repeat(".map(x,x)", 440),
		"optMap of optMap":      "optional.of(v)" + strings.Repeat(".optMap(x,x)", 330),
		"types that double":     chain(60, "cel.bind(a%d, {v: v}, ", "1") + strings.Repeat(")", 60),
		"maps of maps":          "[v]" + strings.Repeat(".map(a,{a:a})", 300),
		"has in has":            strings.Repeat("has(", 1000),
		"strings":               strings.Repeat("'", 4001),
		"triple quotes":         strings.Repeat("\"\"\"", 1300),
		"backslashes":           "'" + strings.Repeat("\\", 4001) + "'",
		"bad escapes":           "'" + strings.Repeat("\\q", 2000) + "'",
		"zero bytes":            strings.Repeat("\x00", 4000),
		"controls":              "\x1b[2J\x07 + v",
		"wide":                  strings.Repeat("漢", 1300),
		"comments":              strings.Repeat("//\n", 1300),
		"long digits":           strings.Repeat("9", 4000),
		"long exponent":         "1e" + strings.Repeat("9", 4000),
		"dots":                  strings.Repeat(".", 4000),
		"regex program":         "key.matches('((a{1,99}){1,99}){1,99}')",
		"regex classes":         "key.matches('" + strings.Repeat("[\\\\pL\\\\pN]{1,50}", 100) + "')",
		"regex nesting":         "key.matches('" + strings.Repeat("(", 1900) + strings.Repeat(")", 1900) + "')",
		"struct":                "google.protobuf.Struct{fields: {'a': google.protobuf.Value{}}}",
		"type of type":          strings.Repeat("type(", 700),
		"hidden names":          "@result + @quotient(1, 2) + __result__",
		"all list":              "[" + strings.Repeat("v,", 2000) + "v]",
		"huge list of lists":    "[" + strings.Repeat("[],", 1300) + "[]]",
		"commas":                strings.Repeat(",", 4000),
		"backticks":             "v.`" + strings.Repeat("a", 4000) + "`",
		"reserved words":        strings.Repeat("for while in ", 300),
		"negative range":        "lists.range(-9223372036854775808)",
		"format":                "'%.1000000000f'.format([1.0])",
		"a duration of forever": "duration('99999999999999999999h')",
		"the end of time":       "timestamp('9999-12-31T23:59:59Z') + duration('9999999h')",
	} {
		for _, as := range []string{job.AsString, job.AsJSON} {
			for _, role := range []Role{Filter, Map, Key, FlatMap} {
				start := time.Now()
				p, err := Compile(src, role, as)
				var typed *Error
				if err != nil && !errors.As(err, &typed) {
					t.Errorf("%s: error %T %v", name, err, err)
				}
				if err != nil && len(err.Error()) > 2000 {
					t.Errorf("%s: %d bytes of error", name, len(err.Error()))
				}
				if err == nil {
					r := NewRecord(as)
					r.Set([]byte("key"), []byte(`{"a":[1,2,3]}`))
					result(t.Context(), p.NewEval(r), role)
				}
				if took := time.Since(start); took > patience {
					t.Errorf("%s as %s: %v", name, as, took)
				}
			}
		}
	}
}

// Expressions that are short and well typed, and want too much of a record.
func TestHostileLoops(t *testing.T) {
	text := strings.Repeat("x", 1<<20)
	numbers := "[" + strings.TrimSuffix(strings.Repeat("1,", 100_000), ",") + "]"
	var digits []string
	for i := range 100_000 {
		digits = append(digits, strconv.Itoa(i))
	}
	unique := "[" + strings.Join(digits, ",") + "]"
	for _, c := range []struct{ name, as, src, value, want string }{
		{"a loop of 1e6 steps", "int", `lists.range(v).all(a, lists.range(v).all(b, a + b >= 0))`, "1000", "cost: the expression takes more"},
		{"loops in loops", "json", `v.all(a, v.all(b, v.all(c, a + b + c > 0)))`, numbers, "cost: the expression takes more"},
		{"a loop over texts", "string", `lists.range(10000).all(a, v.matches("(x+x+)+y") == false)`, text, "cost: the expression takes more"},
		{"a regex that others cannot", "string", `v.matches("^(x+)+$")`, text[:50_000] + "y", "false"},
		{"a regex from the data", "string", `"aaaa".matches(v)`, "(a{1,99}){1,9}", "bad: regex program size"},
		{"a long regex from the data", "string", `"aaaa".matches(v)`, strings.Repeat("(a|b)*", 100_000), "bad: a regular expression of 600000 bytes"},
		{"regexes that make regexes", "string", strings.Repeat(`v.matches(`, 20) + `v.matches("x")` + strings.Repeat(` ? "x" : "y")`, 20), "x", "true"},
		{"texts of a type that is not known", "json", `lists.range(9000).all(i, v.t + v.t != "")`, `{"t":"` + text[:30<<10] + `"}`, "cost: the expression takes more"},
		{"lists that hold themselves", "json", bindLists(5, 20, `a%[1]d == a%[1]d`), "{}", "cost: the expression takes more"},
		{"lists that hold themselves, flat", "json", bindLists(5, 20, `a%[1]d.flatten(9).size() > 0`), "{}", "cost: the expression takes more"},
		{"lists that hold themselves, written", "json", bindLists(5, 20, `"%%s".format([a%[1]d]) != ""`), "{}", "cost: the expression takes more"},
		{"lists that hold a document", "json", bindLists(3, 20, `a%[1]d == a%[1]d`) + ` && [[v,v,v,v,v,v,v,v,v,v,v,v]].all(x, x == x)`, numbers, "cost: the expression takes more"},
		{"1 GiB of text", "string", `cel.bind(a, v + v, cel.bind(b, a + a, cel.bind(c, b + b, c + c + c + c) != ""))`, text[:30<<10], "bad: it makes a text of more"},
		{"1 GiB of text, replaced", "string", `v.replace("", v) != ""`, text, "bad: it makes a text of more"},
		{"1 GiB of text, joined", "string", `v.split("").join(v) != ""`, text[:10_000], "bad: it makes a text of more"},
		{"1 GiB of texts in a list", "json", `lists.range(9000).map(i, v + v + v) != []`, `"` + text[:20<<10] + `"`, "cost: the expression takes more"},
		{"a search of a text in itself", "string", `v.indexOf(v.substring(1000000) + "y") > 0`, text, "cost: the expression takes more"},
		{"a search from the end", "string", `v.lastIndexOf("y" + v.substring(1000000)) > 0`, text, "cost: the expression takes more"},
		{"each beside each", "json", `v.distinct().size() > 0`, unique, "cost: the expression takes more"},
		{"sets", "json", `sets.equivalent(v, v.reverse())`, unique, "cost: the expression takes more"},
		{"a hash of nothing", "float", `v != v || 0.0 / 0.0 == 0.0 / 0.0`, "0", "false"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		got := run(t, Filter, c.as, c.src, strings.Repeat("x", 1000), c.value)
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %.200s, want %s", c.name, got, c.want)
		}
		if took > patience {
			t.Errorf("%s: it took %v", c.name, took)
		}
		// All that was made, also what is no longer needed.
		if made := after.TotalAlloc - before.TotalAlloc; made > 512<<20 {
			t.Errorf("%s: %d MiB were made", c.name, made>>20)
		}
	}
}

// A loop looks at its context while it runs: one that was cancelled before ends in it, not only after it, and says what the context says.
func TestCancelledInside(t *testing.T) {
	gone := errors.New("the job was cancelled")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	r := NewRecord("int")
	r.Set(nil, []byte("9000"))
	_, err := compile(t, `lists.range(v).all(a, a >= 0)`, Filter, "int").NewEval(r).Bool(ctx)
	if !errors.Is(err, gone) {
		t.Errorf("a long loop: %v", err)
	}
	r.Set(nil, []byte("3")) // too short to look: that it is between records that a worker looks is up to the worker
	if keep, err := compile(t, `lists.range(v).all(a, a >= 0)`, Filter, "int").NewEval(r).Bool(ctx); err != nil || !keep {
		t.Errorf("a short loop: %v %v", keep, err)
	}
}

// Cancelled by somebody else in the middle of a record.
func TestCancelledInTheMiddle(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := NewRecord("int")
	r.Set(nil, []byte("9000"))
	e := compile(t, `lists.range(v).all(a, lists.range(20).all(b, a + b >= 0))`, Filter, "int").NewEval(r)
	running := make(chan struct{})
	ended := make(chan error)
	go func() {
		for first := true; ; first = false {
			if first {
				close(running)
			}
			if _, err := e.Bool(ctx); err != nil {
				ended <- err
				return
			}
		}
	}()
	<-running
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("it goes on")
	}
}

// Whatever the text and the record: no panic, no long run, errors of three kinds.
func FuzzExpression(f *testing.F) {
	for i, src := range []string{
		`v.qty * 2 > 1`, `v.price / 0 == 1`, `v.tags.map(t, [t, 1])`, `key.split("/")[0]`, `{"a": 1, "b": v}.map(k, k)`, `cel.bind(x, [v, v], x == x)`,
		`v.matches("(a{1,9}){1,9}")`, `v.?a.?b.orValue(1)`, `lists.range(100).all(a, lists.range(100).all(b, a != b))`, `timestamp(v).getHours("+02:00")`, `-v % 2`,
		`"%s %.3f %x".format([v, 1.5, 255])`, `optional.of(v).optMap(x, x + x)`, `v.sort().reverse().slice(0, 1)`, `base64.decode(v)`, `math.greatest(v, 1.5)`, `"\u00e4\U0001F600" + r'\n'`,
		`[1, 2.0, "a", null, true, b"x", 3u].distinct()`, `sets.contains([1], v)`, `v in {1: 2}`, `has(v.a) && v.a.b.c[0]["d"]`, `type(v) == int ? dyn(1) : dyn("a")`,
	} {
		f.Add(src, []string{`{"qty":2,"tags":["a"],"price":1.5,"a":{"b":null}}`, `[1,2.5,"a"]`, "5", "x\xff", ""}[i%5], uint8(i))
	}
	kinds := []string{job.AsRaw, job.AsString, job.AsInt, job.AsFloat, job.AsJSON}
	f.Fuzz(func(t *testing.T, src, value string, how uint8) {
		role, as := Role(how%4), kinds[int(how/4)%len(kinds)]
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		start := time.Now()
		p, err := Compile(src, role, as)
		if err != nil {
			var typed *Error
			if !errors.As(err, &typed) || err.Error() == "" {
				t.Fatalf("compile: %T %v", err, err)
			}
			return
		}
		r := NewRecord(as)
		e := p.NewEval(r)
		var results [2]string
		for i := range results {
			r.Set([]byte(value), []byte(value))
			results[i] = result(ctx, e, role)
		}
		if results[0] != results[1] {
			t.Errorf("first %s, then %s", results[0], results[1])
		}
		if strings.HasPrefix(results[0], "error: ") || strings.Contains(results[0], "internal error") {
			t.Errorf("an error of no kind: %s", results[0])
		}
		if took := time.Since(start); took > patience {
			t.Errorf("it took %v", took)
		}
	})
}
