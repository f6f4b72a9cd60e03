package expr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/abacusdb/abacus/compute/fold"
)

const order = `{"id":9007199254740993,"qty":2,"price":2.5,"five":5,"one":1.0,"name":"Zoë","country":"de","paid":true,` +
	`"note":null,"tags":["b","a"],"lines":[{"sku":"x","n":2},{"sku":"y","n":3.5}],"to":{"b":1,"a":2},"pairs":[["k",1],[2.0,"t"]],` +
	`"huge":12345678901234567890,"far":1e400,"qty":99,"esc\"ape":"\u00e4\n"}`

// run shows what an expression makes of a record, as text: an error begins with "bad:" or "cost:".
func run(t testing.TB, role Role, as, src, key, value string) string {
	t.Helper()
	r := NewRecord(as)
	r.Set([]byte(key), []byte(value))
	return result(t.Context(), compile(t, src, role, as).NewEval(r), role)
}

func result(ctx context.Context, e *Eval, role Role) string {
	var out string
	var err error
	switch role {
	case Filter:
		var keep bool
		keep, err = e.Bool(ctx)
		out = fmt.Sprint(keep)
	case Map:
		var v fold.Value
		err = e.Value(ctx, &v)
		out = show(&v)
	case Key:
		var key []byte
		key, err = e.Key(ctx)
		out = string(key)
	case FlatMap:
		var items []string
		err = e.Each(ctx, func(group []byte, hasGroup bool, v *fold.Value) error {
			if hasGroup {
				items = append(items, string(group)+"="+show(v))
			} else {
				items = append(items, show(v))
			}
			return nil
		})
		out = strings.Join(items, " ")
	}
	var bad *RecordError
	var cost *CostError
	switch {
	case errors.As(err, &bad):
		return "bad: " + bad.Reason
	case errors.As(err, &cost):
		return "cost: " + cost.Error()
	case err != nil:
		return "error: " + err.Error()
	}
	return out
}

func show(v *fold.Value) string {
	switch v.Kind {
	case fold.Text:
		return fmt.Sprintf("%q", v.Text)
	case fold.Other:
		return "other"
	case fold.Float:
		return "f" + v.Digits()
	}
	return v.Digits()
}

// What each role makes of each kind of value: results, and records that are bad.
func TestEval(t *testing.T) {
	for _, c := range []struct {
		role            Role
		as, src, value  string
		want, wantBegin string
	}{
		// Kinds of values.
		{role: Map, as: "string", src: `v`, value: "a", want: `"a"`},
		{role: Map, as: "string", src: `v`, value: "", want: `""`},
		{role: Map, as: "string", src: `v.size()`, value: "Zoë", want: "3"},
		{role: Map, as: "string", src: `v`, value: "\xff", want: "bad: the value is not UTF-8"},
		{role: Map, as: "string", src: `key`, value: "\xff", want: `"some/key"`},
		{role: Map, as: "raw", src: `size(v)`, value: "\xff\x00", want: "2"},
		{role: Map, as: "raw", src: `v`, value: "\xff\x00", want: `"\xff\x00"`},
		{role: Map, as: "raw", src: `string(v)`, value: "\xff\x00", wantBegin: "bad: "},
		{role: Map, as: "string", src: `bytes(v)`, value: "Zoë", want: `"Zoë"`},
		{role: Map, as: "string", src: `base64.decode(v)`, value: "/wA=", want: `"\xff\x00"`},
		{role: Map, as: "int", src: `v`, value: "-7", want: "-7"},
		{role: Map, as: "int", src: `v`, value: "", want: "bad: the value is not an integer of at most 64 bits"},
		{role: Map, as: "int", src: `v`, value: "9223372036854775808", want: "bad: the value is not an integer of at most 64 bits"},
		{role: Map, as: "int", src: `v`, value: "1.0", want: "bad: the value is not an integer of at most 64 bits"},
		{role: Map, as: "float", src: `v`, value: "1e3", want: "f1000"},
		{role: Map, as: "float", src: `v`, value: "NaN", want: "bad: the value is not a decimal number"},
		{role: Map, as: "float", src: `v`, value: "0x1p4", want: "bad: the value is not a decimal number"},
		{role: Map, as: "float", src: `v`, value: "1e999", want: "bad: the value is not a decimal number that a double can hold"},
		{role: Map, as: "float", src: `v * -1`, value: "0", want: "f0"},
		{role: Map, as: "json", src: `v`, value: ` "x" `, want: `"x"`},
		{role: Map, as: "json", src: `v + 1`, value: " 5 \n", want: "6"},
		{role: Map, as: "json", src: `v + 1`, value: "\t2.5\n", want: "f3.5"},
		{role: Map, as: "json", src: `v[0].a + v[1]`, value: "[ { \"a\" : 1 } , 2 ]", want: "3"},
		{role: Map, as: "json", src: `v + "!"`, value: `"\ud800\u0000"`, want: `"�\x00!"`},
		{role: Map, as: "json", src: `v`, value: "-0", want: "0"},
		{role: Map, as: "json", src: `v`, value: "-9223372036854775808", want: "-9223372036854775808"},
		{role: Map, as: "json", src: `v`, value: "5 5", want: "bad: the value is not a JSON document"},
		{role: Map, as: "json", src: `v`, value: "", want: "bad: the value is not a JSON document"},
		{role: Map, as: "json", src: `v`, value: "{", want: "bad: the value is not a JSON document"},
		{role: Map, as: "json", src: `v`, value: "\"\xff\"", want: "bad: the value is not UTF-8, as JSON must be"},
		{role: Map, as: "json", src: `v`, value: strings.Repeat("[", 200) + strings.Repeat("]", 200), want: "bad: the JSON document nests more than 128 levels"},
		{role: Map, as: "json", src: `v`, value: `"` + strings.Repeat("[", 200) + `\"{"`, wantBegin: `"[[[`},

		// Overflow is an error and never a wrap.
		{role: Map, as: "int", src: `v + 1`, value: "9223372036854775807", want: "bad: integer overflow"},
		{role: Map, as: "int", src: `v * v`, value: "9223372036854775807", want: "bad: integer overflow"},
		{role: Map, as: "int", src: `-v`, value: "-9223372036854775808", want: "bad: integer overflow"},
		{role: Map, as: "int", src: `v / -1`, value: "-9223372036854775808", want: "bad: integer overflow"},
		{role: Map, as: "int", src: `v / 0`, value: "1", want: "bad: division by zero"},
		{role: Map, as: "int", src: `v % 0`, value: "1", want: "bad: modulus by zero"},
		{role: Map, as: "int", src: `uint(v) + 18446744073709551614u`, value: "1", want: "18446744073709551615"},
		{role: Map, as: "float", src: `v / 0.0`, value: "1", want: "bad: the result is +Inf, which is no number to count with"},
		{role: Map, as: "float", src: `v / v`, value: "0", want: "bad: the result is NaN, which is no number to count with"},
		{role: Filter, as: "float", src: `v / v == v / v`, value: "0", want: "false"},

		// Ints by type divide as ints do, and meet doubles.
		{role: Map, as: "int", src: `v / 2`, value: "5", want: "2"},
		{role: Map, as: "int", src: `v * 2.5`, value: "2", want: "f5"},
		{role: Map, as: "float", src: `v * 2`, value: "2.5", want: "f5"},
		{role: Map, as: "float", src: `2 - v`, value: "2.5", want: "f-0.5"},

		// The numbers of a document: 2 and 2.5 work alike.
		{role: Map, src: `v.qty * 2`, want: "4"},
		{role: Map, src: `v.price * 2`, want: "f5"},
		{role: Map, src: `2 * v.price`, want: "f5"},
		{role: Map, src: `v.qty * v.price`, want: "f5"},
		{role: Map, src: `v.qty - v.price`, want: "f-0.5"},
		{role: Map, src: `v.five / 2`, want: "f2.5"},
		{role: Map, src: `v.five / v.qty`, want: "f2.5"},
		{role: Map, src: `v.qty / 2`, want: "1"},
		{role: Map, src: `v.?five.orValue(0) / 2`, want: "f2.5"},
		{role: Map, src: `(v.paid ? v.five : 1) / 2`, want: "f2.5"},
		{role: Map, src: `cel.bind(f, v.five, f / 2)`, want: "f2.5"},
		{role: FlatMap, src: `v.lines.map(l, l.n / 4)`, want: "f0.5 f0.875"},
		{role: Map, src: `v.tags.size() / 4`, want: "0"},
		{role: Map, src: `v.five * 1 / 2`, want: "f2.5"},
		{role: Map, src: `v.five / 0`, want: "bad: division by zero"},
		{role: Map, src: `int(v.five) / 2`, want: "2"},
		{role: Map, src: `v.five % 2`, want: "1"},
		{role: Map, src: `v.one % 2`, want: "1"},
		{role: Map, src: `v.price % 2`, want: "bad: no operator % for double and int"},
		{role: Map, src: `v.tags / 2`, want: "bad: no operator / for list and int"},
		{role: Filter, src: `v.qty == 2 && v.qty == 2.0 && v.one == 1 && v.price > 2 && v.five >= 5.0`, want: "true"},
		{role: Map, src: `v.id - 1`, want: "9007199254740992"},
		{role: Map, src: `v.id`, want: "9007199254740993"},
		{role: Map, src: `v.id + 0.5`, want: "bad: integer 9007199254740993 has more digits than a double holds"},
		{role: Map, src: `v.id / 2`, want: "bad: integer 9007199254740993 has more digits than a double holds"},
		{role: Map, src: `v.id * 1024 * 1024`, want: "bad: integer overflow"},
		{role: Map, src: `v.huge`, want: "bad: the integer 12345678901234567890 does not fit 64 bits"},
		{role: Map, src: `v.huge + 1.0`, want: "bad: the integer 12345678901234567890 does not fit 64 bits"},
		{role: Map, src: `v.far`, want: "bad: the number 1e400 is too large for a double"},
		{role: Map, src: `v.qty + v.tags`, want: "bad: no operator + for int and list"},
		{role: Map, src: `v.name + 1`, want: "bad: no operator + for string and int"},
		{role: Map, src: `math.greatest(v.qty, v.price)`, want: "f2.5"},

		// Fields that are there, null or missing.
		{role: Map, src: `v.missing`, want: "bad: no such key: missing"},
		{role: Map, src: `v.qty.x`, want: "bad: no such key: x"},
		{role: Filter, src: `has(v.missing) || has(v.to.c)`, want: "false"},
		{role: Filter, src: `has(v.note) && v.note == null && has(v.to.b)`, want: "true"},
		{role: Map, src: `v.note`, want: "bad: the result is null, which is no value"},
		{role: Map, src: `has(v.discount) ? v.discount : 0`, want: "0"},
		{role: Map, src: `v.?to.?c.orValue(7)`, want: "7"},
		{role: Map, src: `v.?to.?b.orValue(7)`, want: "1"},
		{role: Map, src: `v["esc\"ape"]`, want: `"ä\n"`},
		{role: Filter, src: `"qty" in v && !(5 in v) && "a" in v.tags`, want: "true"},
		{role: Map, src: `v.tags[2]`, want: "bad: index out of bounds: 2"},
		{role: Map, src: `v.qty`, want: "2"}, // the first of two, as json:qty
		{role: Map, src: `size(v)`, want: "16"},
		{role: Filter, src: `v.to == {"a": 2.0, "b": 1} && {"a": 2, "b": 1} == v.to && v.to != {"a": 2}`, want: "true"},
		{role: Filter, src: `v.paid`, want: "true"},
		{role: Filter, src: `v.qty`, want: "bad: a filter must be true or false, this is int"},
		{role: Filter, src: `v.missing || true`, want: "true"},
		{role: Map, src: `v.tags`, want: "other"},
		{role: Map, src: `v.to`, want: "other"},
		{role: Map, src: `v.paid`, want: "other"},
		{role: Map, src: `type(v) == map`, want: "other"},

		// Order is the document's, or that of the keys.
		{role: FlatMap, src: `v.to.map(k, k)`, want: `"b" "a"`},
		{role: FlatMap, src: `{"c": 1, "a": 1, "b": 1, "aa": 1}.map(k, k)`, want: `"a" "aa" "b" "c"`},
		{role: FlatMap, src: `{2: 1, true: 1, "b": 1, 10: 1}.map(k, string(k))`, want: `"true" "2" "10" "b"`},
		{role: Map, src: `"%s".format([{"z": 1, "a": v.to}])`, want: `"{a: {a: 2, b: 1}, z: 1}"`},

		// Libraries.
		{role: Map, src: `v.name.lowerAscii() + v.tags.join("-")`, want: `"zoëb-a"`},
		{role: FlatMap, src: `v.tags.sort()`, want: `"a" "b"`},
		{role: Map, src: `v.name.matches("^Z..$") ? math.round(v.price) : 0.0`, want: "f3"},
		{role: Map, src: `cel.bind(q, v.qty, q * q)`, want: "4"},
		{role: Map, as: "string", src: `base64.decode(v)`, value: "YWI=", want: `"ab"`},
		{role: Filter, src: `sets.intersects(v.tags, ["a"])`, want: "true"},
		{role: Map, as: "string", src: `timestamp(v).getHours("+02:00")`, value: "2024-01-02T03:04:05Z", want: "5"},
		{role: Map, as: "string", src: `timestamp(v).getHours("Europe/Berlin")`, value: "2024-01-02T03:04:05Z",
			want: "bad: time zones have no names here, since not every node knows them: write an offset, for example +02:00"},
		{role: Map, as: "string", src: `int(timestamp(v) - timestamp("2024-01-01T00:00:00Z") > duration("1h") ? 1 : 0)`, value: "2024-01-02T03:04:05Z", want: "1"},

		// Groups.
		{role: Key, src: `v.country`, want: "de"},
		{role: Key, src: `v.five`, want: "5"},
		{role: Key, src: `v.one`, want: "1"},
		{role: Key, src: `v.price`, want: "2.5"},
		{role: Key, src: `-0.0`, want: "0"},
		{role: Key, src: `v.paid`, want: "true"},
		{role: Key, src: `key.split("/")[0]`, want: "some"},
		{role: Key, src: `v.note`, want: "bad: a group is named by a text, number or bool, this is null"},
		{role: Key, src: `v.tags`, want: "bad: a group is named by a text, number or bool, this is list"},
		{role: Key, src: `1.0 / 0`, want: "bad: the result is +Inf, which is no number to count with"},
		{role: Key, as: "string", src: `timestamp(v)`, value: "2024-01-02T03:04:05Z", want: "2024-01-02T03:04:05Z"},

		// Many values of one record, all or none.
		{role: FlatMap, as: "string", src: `v.split(" ").map(w, [w, 1])`, value: "a b a", want: "a=1 b=1 a=1"},
		{role: FlatMap, src: `v.lines.map(l, [l.sku, l.n * 2])`, want: "x=4 y=f7"},
		{role: FlatMap, src: `v.pairs`, want: `k=1 2="t"`},
		{role: FlatMap, src: `v.tags`, want: `"b" "a"`},
		{role: FlatMap, src: `[]`, want: ""},
		{role: FlatMap, src: `v.qty`, want: "bad: a flat_map must make a list, this is int"},
		{role: FlatMap, src: `[v.qty, v.note]`, want: "bad: the result is null, which is no value"},
		{role: FlatMap, src: `[dyn(1), dyn(["k", 1])]`, want: "bad: a list has either values or [key, value] pairs, this has both"},
		{role: FlatMap, src: `[dyn(["k", 1]), dyn(1)]`, want: "bad: a list has either values or [key, value] pairs, this has both"},
		{role: FlatMap, src: `[[1, 2, 3]]`, want: "bad: a list in the list must be a pair [key, value], this has 3 elements"},

		// Results and what is on the way to them have bounds.
		{role: Map, as: "string", src: `v`, value: strings.Repeat("x", 64<<10), wantBegin: `"xxx`},
		{role: Map, as: "string", src: `v`, value: strings.Repeat("x", 64<<10+1), want: "bad: the result is a text of 65537 bytes, at most 65536 are allowed"},
		{role: Key, as: "string", src: `v`, value: strings.Repeat("x", 64<<10+1), want: "bad: the result is a text of 65537 bytes, at most 65536 are allowed"},
		{role: Filter, as: "string", src: `v + v != ""`, value: strings.Repeat("x", 40<<10), want: "bad: it makes a text of more than 65536 bytes"},
		{role: Filter, as: "string", src: `bytes(v) + bytes(v) != b""`, value: strings.Repeat("x", 40<<10), want: "bad: it makes a text of more than 65536 bytes"},
		{role: Filter, as: "string", src: `v.replace("", v) != ""`, value: strings.Repeat("x", 1<<20), want: "bad: it makes a text of more than 65536 bytes"},
		{role: Filter, as: "string", src: `v.replace("x", "1234567") != ""`, value: strings.Repeat("x", 10<<10), want: "bad: it makes a text of more than 65536 bytes"},
		{role: Filter, as: "string", src: `lists.range(1000).map(i, "").join(v) != ""`, value: strings.Repeat("x", 1<<10), want: "bad: it makes a text of more than 65536 bytes"},
		{role: FlatMap, as: "int", src: `lists.range(v)`, value: "10001", want: "bad: it makes a list of 10001, at most 10000 are allowed"},
		{role: FlatMap, as: "int", src: `lists.range(v) + lists.range(v)`, value: "6000", want: "bad: it makes 12000 values of one record, at most 10000 are allowed"},
		{role: Map, as: "string", src: `v.indexOf(key + key + key)`, value: strings.Repeat("x", 1<<20), wantBegin: "cost: the expression takes more than 2000000 steps"},
		{role: Map, as: "int", src: `lists.range(v).distinct().size()`, value: "2000", wantBegin: "cost: the expression takes more than 2000000 steps"},
		{role: Filter, as: "int", src: `sets.contains(lists.range(v), lists.range(v))`, value: "2000", wantBegin: "cost: the expression takes more than 2000000 steps"},
		{role: Filter, as: "string", src: `key.matches(v)`, value: "((a{1,99}){1,9}){1,9}", wantBegin: "bad: "},
		{role: Filter, src: `v["` + strings.Repeat("x", 1000) + `"]`, wantBegin: "bad: no such key: xxx"},
	} {
		as, value := c.as, c.value
		if as == "" {
			as, value = "json", order
		}
		got := run(t, c.role, as, c.src, "some/key", value)
		if c.wantBegin != "" && strings.HasPrefix(got, c.wantBegin) {
			continue
		}
		if got != c.want || c.wantBegin != "" {
			t.Errorf("%s of %s value %.60q, %.80s: %.300s, want %s%s", c.role, as, value, c.src, got, c.want, c.wantBegin)
		}
	}
}

// A reason is kept and shown, so it is short, whatever a record has in it, and is text.
func TestReasonIsShort(t *testing.T) {
	got := run(t, Filter, "json", `v[v.k]`, "k", `{"k":"`+strings.Repeat("ä", 5000)+`"}`)
	if len(got) > 300 || !strings.HasPrefix(got, "bad: ") || strings.Contains(got, "\ufffd") {
		t.Errorf("%d bytes: %s", len(got), got)
	}
}

// An error of fn ends Each and comes back; none is called for a bad record.
func TestEachStops(t *testing.T) {
	r := NewRecord("json")
	e := compile(t, `v`, FlatMap, "json").NewEval(r)
	stop := errors.New("stop")
	calls := 0
	fn := func([]byte, bool, *fold.Value) error { calls++; return stop }
	r.Set(nil, []byte(`[1,2,null]`))
	var bad *RecordError
	if err := e.Each(t.Context(), fn); !errors.As(err, &bad) || calls != 0 {
		t.Errorf("a bad record: %v after %d calls", err, calls)
	}
	r.Set(nil, []byte(`[1,2,3]`))
	if err := e.Each(t.Context(), fn); err != stop || calls != 1 {
		t.Errorf("fn said stop: %v after %d calls", err, calls)
	}
}

// One Record after the other, with objects of many sizes: nothing of the last is seen in the next, and a program serves several evaluators.
func TestRecordsDoNotMix(t *testing.T) {
	r := NewRecord("json")
	filter, m := compile(t, `has(v.a) && v.o.x > 0`, Filter, "json").NewEval(r), compile(t, `v.a + v.o.x + size(v)`, Map, "json").NewEval(r)
	for i := range 2000 {
		extra := strings.Builder{}
		for j := range (i * 7) % 40 {
			fmt.Fprintf(&extra, `,"f%d":%d`, j, j)
		}
		r.Set([]byte("k"), fmt.Appendf(nil, `{"a":%d,"o":{"x":%d}%s}`, i, i+1, extra.String()))
		if keep := result(t.Context(), filter, Filter); keep != "true" {
			t.Fatalf("record %d: %s", i, keep)
		}
		if got, want := result(t.Context(), m, Map), fmt.Sprint(i+i+1+2+(i*7)%40); got != want {
			t.Fatalf("record %d: %s, want %s", i, got, want)
		}
		r.Set([]byte("k"), []byte(`{}`))
		if keep := result(t.Context(), filter, Filter); keep != "false" {
			t.Fatalf("an empty object after record %d: %s", i, keep)
		}
	}
}

// The same records give the same bytes on every goroutine and in every run of maps.
func TestDeterminism(t *testing.T) {
	sources := []string{
		`{"d": v.qty, "b": 1, "c": 2, "a": 3, "e": 5}.map(k, k)`, `v.to.map(k, [k, v.to[k]])`, `["%s".format([{"z": v.to, "y": 1, "x": {"q": 1, "p": 2}}])]`,
		`v.lines.map(l, l.map(k, k)).flatten()`, `[v.price * 3 / 7]`, `v.lines.sortBy(l, double(l.n)).map(l, l.sku)`, `[{"b": 1, "a": 2} == v.to]`,
	}
	programs := make([]*Program, len(sources))
	for i, src := range sources {
		programs[i] = compile(t, src, FlatMap, "json")
	}
	pass := func() string {
		var b strings.Builder
		r := NewRecord("json")
		for i := range 50 {
			r.Set(fmt.Appendf(nil, "key%d", i), []byte(strings.Replace(order, `"qty":2`, fmt.Sprintf(`"qty":%d`, i), 1)))
			for _, p := range programs {
				b.WriteString(result(context.Background(), p.NewEval(r), FlatMap) + "\n")
			}
		}
		return b.String()
	}
	want := pass()
	if strings.Count(want, "\n") != 350 {
		t.Fatalf("results are missing: %.500s", want)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got := pass(); got != want {
				t.Errorf("another result:\n%.500s\nwant\n%.500s", got, want)
			}
		})
	}
	wg.Wait()
}

// What an expression does not look at is not decoded.
func TestDocumentIsReadLazily(t *testing.T) {
	r := NewRecord("json")
	r.Set([]byte("k"), []byte(order))
	e := compile(t, `v.qty > 1`, Filter, "json").NewEval(r)
	for range 3 { // and once only
		if got := result(t.Context(), e, Filter); got != "true" {
			t.Fatal(got)
		}
	}
	if r.used != 1 {
		t.Errorf("%d objects were made, want the document alone", r.used)
	}
	made := 0
	for _, f := range r.objects[0].fields {
		if f.value != nil {
			made++
		}
	}
	if made != 1 {
		t.Errorf("%d fields were made, want one", made)
	}
	r.Set([]byte("k"), []byte("no JSON at all"))
	if got := result(t.Context(), compile(t, `key == "k"`, Filter, "json").NewEval(r), Filter); got != "true" {
		t.Errorf("an expression over the key reads the value: %s", got)
	}
}

// The text of a result is the record's own, not a copy of it.
func TestTextAliasesTheRecord(t *testing.T) {
	r := NewRecord("string")
	value := []byte("some text")
	r.Set(nil, value)
	var out fold.Value
	if err := compile(t, `v`, Map, "string").NewEval(r).Value(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Text, value) || &out.Text[0] != &value[0] {
		t.Errorf("%q is a copy", out.Text)
	}
}

// A program over one kind of values is not run over another.
func TestKindsMustAgree(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("it was taken")
		}
	}()
	compile(t, `v`, Map, "int").NewEval(NewRecord("json"))
}
