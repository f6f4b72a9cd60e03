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

// overRows runs a spec in JSON over rows, which are key=value.
func overRows(t testing.TB, spec string, rows ...string) (*Partial, job.Spec) {
	t.Helper()
	s, err := job.ParseSpec([]byte(spec))
	if err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	fn, err := compile(s)
	if err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	p := new(Partial)
	for _, r := range rows {
		key, value, _ := strings.Cut(r, "=")
		fn.step(context.Background(), p, []byte(key), []byte(value))
	}
	return p, s
}

// What each word does, over rows that tell it from its neighbours.
func TestWords(t *testing.T) {
	people := []string{
		`p/1={"name":"Ada","age":36,"country":"UK","tags":["math","code"],"ok":true}`,
		`p/2={"name":"Bo","age":17,"country":"SE","tags":[],"ok":false}`,
		`p/3={"name":"Cé","age":65.5,"country":"uk","tags":["code"]}`,
		`q/4={"name":"A\u0064a","age":"36","country":null}`,
	}
	text := []string{"a/1=The cat, the DOG", "a/2=Ünder the_cat's 3 Trees", "b/3=", "b/4=1.50"}
	ints := []string{"u/1=5", "u/2=-5", "v/3=10", "v/4=99999999999999999999", "w=7"}
	for _, c := range []struct {
		spec string
		rows []string
		want string
	}{
		// Filters: on the key, on the bytes of the value, on what stands at a path; joined; quoted.
		{`{"filter":"key prefix p/"}`, people, "3"},
		{`{"filter":"key suffix 4"}`, people, "1"},
		{`{"filter":"prefix The"}`, text, "1"},
		{`{"filter":"value suffix DOG"}`, text, "1"},
		{`{"filter":"re ^T.*G$"}`, text, "1"},
		{`{"filter":"value prefix \"The cat, the\" and key re '^a'"}`, text, "1"},
		{`{"filter":"value prefix ''"}`, text, "4"},
		{`{"filter":"value range 1.5..1.5"}`, text, "1"},
		{`{"as":"int","filter":"value range 5..10"}`, ints, "3"},
		{`{"as":"int","filter":"value range 5..<10"}`, ints, "2"},
		{`{"as":"int","filter":"value range ..-5"}`, ints, "1"},
		{`{"as":"int","filter":"range 99999999999999999999.."}`, ints, "1"},
		{`{"as":"int","filter":"range 1e19..99999999999999999998"}`, ints, "0"},
		{`{"filter":"value range 9..11 and key prefix v"}`, ints, "1"},
		{`{"as":"json","filter":"json:age range 18..65.5"}`, people, "2"},
		{`{"as":"json","filter":"json:age range 18..<65.5"}`, people, "1"},
		{`{"as":"json","filter":"json:name prefix Ad"}`, people, "2"},
		{`{"as":"json","filter":"json:name re ^.é$ and json:age range 1.."}`, people, "1"},
		{`{"as":"json","filter":"json:tags.# range 1.."}`, people, "2"},
		{`{"as":"json","filter":"v.age > 20"}`, people[:3], "2"},
		{`{"as":"json","filter":"cel: key == 'p/2'"}`, people, "1"},

		// Maps.
		{`{"map":"lower","reduce":"max"}`, text, "ünder the_cat's 3 trees"},
		{`{"map":"parse","reduce":"sum","on_error":"skip"}`, text, "1.5"},
		{`{"map":"parse","reduce":"sum"}`, ints, "100000000000000000016"},
		{`{"as":"raw","map":"len","reduce":"sum"}`, text, "44"},
		{`{"as":"raw","map":"size(v)","reduce":"sum"}`, []string{"a=\xff\xfe", "b=x"}, "3"},
		{`{"as":"string","map":"size(v)","reduce":"sum","on_error":"skip"}`, []string{"a=\xff\xfe", "b=x"}, "1"},
		{`{"as":"json","map":"v.age * 2","reduce":"sum","filter":"key prefix p/ and json:age range 1..40"}`, people, "106"},

		// Words of a text: letters, marks and digits, whatever else separates.
		{`{"flat_map":"words"}`, text, "12"},
		{`{"flat_map":"words","map":"len","reduce":"max"}`, text, "6"},
		{`{"flat_map":"words","map":"parse","reduce":"sum","on_error":"skip"}`, text, "51"},
		{`{"flat_map":"words","group_by":"lower","reduce":"count","filter":"key prefix a/"}`, text,
			`[{"group":"3","value":1},{"group":"cat","value":2},{"group":"dog","value":1},{"group":"s","value":1},{"group":"the","value":3},{"group":"trees","value":1},{"group":"ünder","value":1}]`},
		{`{"flat_map":"words","group_by":"lower","map":"key","reduce":"collect:5","filter":"value re DOG"}`, text,
			`[{"group":"cat","value":["a/1"]},{"group":"dog","value":["a/1"]},{"group":"the","value":["a/1"]}]`},
		{`{"as":"json","flat_map":"v.tags","group_by":"value","on_error":"skip"}`, people, `[{"group":"code","value":2},{"group":"math","value":1}]`},
		{`{"as":"json","flat_map":"v.tags","group_by":"json:country","on_error":"skip"}`, people, `[{"group":"UK","value":2},{"group":"uk","value":1}]`},
		{`{"as":"json","flat_map":"v.tags.map(t, [t, v.age])","group_by":"pair","reduce":"max","on_error":"skip"}`, people, `[{"group":"code","value":65.5},{"group":"math","value":36}]`},

		// Groups.
		{`{"as":"int","group_by":"key-part:/:1","reduce":"sum"}`, ints, `[{"group":"u","value":0},{"group":"v","value":100000000000000000009},{"group":"w","value":7}]`},
		{`{"as":"int","group_by":"key-part:/:2","reduce":"max","on_error":"skip"}`, ints, `[{"group":"1","value":5},{"group":"2","value":-5},{"group":"3","value":10},{"group":"4","value":99999999999999999999}]`},
		{`{"as":"int","group_by":"key-part:/:-2","on_error":"skip"}`, ints, `[{"group":"u","value":2},{"group":"v","value":2}]`},
		{`{"group_by":"key-part:::-1"}`, []string{"a:b:c=", "c="}, `[{"group":"c","value":2}]`},
		{`{"as":"float","group_by":"value"}`, []string{"a=5.0", "b=5", "c=0.5", "d=-0"}, `[{"group":"0","value":1},{"group":"0.5","value":1},{"group":"5","value":2}]`},
		{`{"as":"json","group_by":"json:name"}`, people, `[{"group":"Ada","value":2},{"group":"Bo","value":1},{"group":"Cé","value":1}]`},
		{`{"as":"json","group_by":"json:ok","on_error":"skip"}`, people, `[{"group":"false","value":1},{"group":"true","value":1}]`},
		{`{"as":"json","map":"json:age","group_by":"v.country.upperAscii()","reduce":"mean","on_error":"skip"}`, people, `[{"group":"SE","value":17},{"group":"UK","value":50.75}]`},
		{`{"as":"int","group_by":"key","filter":"key prefix none"}`, ints, `[]`},
		{`{"group_by":"lower"}`, []string{"a=X", "b=x"}, `[{"group":"x","value":2}]`},
		{`{"group_by":"value","map":"lower","reduce":"min"}`, []string{"a=X", "b=x"}, `[{"group":"X","value":"x"},{"group":"x","value":"x"}]`},
	} {
		p, s := overRows(t, c.spec, c.rows...)
		got, _, err := p.Final(s)
		if err != nil || got.String() != c.want {
			t.Errorf("%s: %s, error %v; want %s", c.spec, got, err, c.want)
		}
	}
}

// Records: what matched, what the filter dropped, what was bad. A record is left out whole.
func TestRecordsAreCounted(t *testing.T) {
	rows := []string{"a=1 2 x", "b=3", "c=4 5", "d=", "x=6"}
	p, s := overRows(t, `{"flat_map":"words","map":"parse","reduce":"sum","filter":"key re [a-d]","on_error":"count","max_errors":1}`, rows...)
	got, note, err := p.Final(s)
	if err != nil || got.String() != "12" || note != "1 of 5 records did not parse and were left out" {
		t.Errorf("%s, note %q, %v", got, note, err)
	}
	if p.Records != 5 || p.Filtered != 1 || p.Bad != 1 || p.values() != 3 || p.badKeys[0] != "a" {
		t.Errorf("%+v", p)
	}
	// One more is too many.
	p, s = overRows(t, `{"as":"int","on_error":"count","max_errors":1}`, rows...)
	want := "3 of 5 records do not parse as int for map value, for example a; at most 1 may be left out: raise --max-errors, or use --on-error skip"
	if _, _, err := p.Final(s); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	p, s = overRows(t, `{"filter":"key prefix z"}`, rows...)
	if got, note, err := p.Final(s); err != nil || got.String() != "0" || note != "the filter let none of 5 records through" {
		t.Errorf("%s, note %q, %v", got, note, err)
	}
}

// What a filter drops need not parse, and what it needs to parse does.
func TestFiltersBeforeReading(t *testing.T) {
	for _, c := range []struct {
		spec                   string
		filtered, bad, between int64
	}{
		{`{"as":"int","filter":"key prefix a"}`, 2, 1, 1},
		{`{"as":"int","filter":"value range 1..5"}`, 0, 3, 1},
		{`{"as":"string","filter":"value range 1..5"}`, 3, 0, 1},
		{`{"as":"json","filter":"json:a range 1..5"}`, 2, 2, 0},
		{`{"as":"json","filter":"key suffix 1 and json:a range 1..5"}`, 4, 0, 0},
	} {
		p, _ := overRows(t, c.spec, "a1=3", "a2={", "b1={}", "b2=x")
		if p.Filtered != c.filtered || p.Bad != c.bad || p.values() != c.between {
			t.Errorf("%s: %d filtered, %d bad, %d values; want %d, %d, %d", c.spec, p.Filtered, p.Bad, p.values(), c.filtered, c.bad, c.between)
		}
	}
}

// What an expression says of a bad record goes with its key, through the codec too.
func TestExpressionsSayWhy(t *testing.T) {
	p, _ := overRows(t, `{"as":"json","map":"v.qty * 2","reduce":"sum"}`, `k1={"qty":1}`, `k2={"n":1}`, `k0=[`)
	p, err := DecodePartial(p.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if len(p.badWhy) != 2 || p.badWhy[0] != "" || !strings.Contains(p.badWhy[1], "qty") {
		t.Errorf("reasons %q", p.badWhy)
	}
	q, s := overRows(t, `{"as":"json","map":"v.qty * 2","reduce":"sum"}`, `k1={"qty":1}`, `k2={"n":1}`)
	if _, _, err := q.Final(s); err == nil || !strings.HasPrefix(err.Error(), "1 of 2 records have no value in an expression, for example k2: ") || !strings.Contains(err.Error(), "qty") {
		t.Errorf("error %v", err)
	}
	p, _ = overRows(t, `{"as":"json","flat_map":"v.tags","group_by":"pair"}`, `k={"tags":["a"]}`)
	if p.Bad != 1 || !strings.Contains(p.badWhy[0], "pairs") {
		t.Errorf("values where pairs are wanted: %+v", p)
	}
	p, _ = overRows(t, `{"as":"json","flat_map":"v.tags.map(t, [t, 1])"}`, `k={"tags":["a"]}`)
	if p.Bad != 1 || !strings.Contains(p.badWhy[0], "pair") {
		t.Errorf("pairs that nobody wants: %+v", p)
	}
}

// An expression that takes too much for one record ends the scan and the job, and says so at the other end.
func TestCostEndsTheJob(t *testing.T) {
	s := job.Spec{As: "json", Map: "v.l.map(a, v.l.map(b, v.l.filter(c, a + b + c > 1.0).size())).size()", Reduce: "sum", OnError: "skip"}.WithDefaults()
	fn, err := compile(s)
	if err != nil {
		t.Fatal(err)
	}
	p := new(Partial)
	list := "[" + strings.Repeat("1,", 2000) + "1]"
	if fn.step(context.Background(), p, []byte("k"), []byte(`{"l":`+list+`}`)) {
		t.Error("the scan goes on")
	}
	sent, err := DecodePartial(p.Encode())
	if err != nil {
		t.Fatal(err)
	}
	total, _ := overRows(t, `{"as":"json","map":"v.x","reduce":"sum"}`, `a={"x":1}`)
	total.Merge(sent)
	if _, _, err := total.Final(s); err == nil || err.Error() != p.Err().Error() || !strings.Contains(err.Error(), "steps for one record") {
		t.Errorf("error %v", err)
	}
}

// A scan whose context has ended stops, and the record is not called bad.
func TestContextEndsAnExpression(t *testing.T) {
	fn, err := compile(job.Spec{As: "json", Map: "v.l.map(a, v.l.map(b, a + b).size()).size()", Reduce: "sum"}.WithDefaults())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	p := new(Partial)
	list := "[" + strings.Repeat("1,", 200) + "1]"
	if fn.step(ctx, p, []byte("k"), []byte(`{"l":`+list+`}`)) || p.Bad != 0 || p.Err() != nil {
		t.Errorf("%+v", p)
	}
}

// Verdicts merge to the same one, in whatever order they come.
func TestVerdictsMerge(t *testing.T) {
	groups, large := &fold.TooManyGroupsError{Max: 5}, &fold.TooLargeError{Max: 9}
	for _, order := range [][]error{{groups, large}, {large, groups}, {groups, groups}, {nil, groups}} {
		p := new(Partial)
		for _, err := range order {
			o := new(Partial)
			if err != nil {
				o.decide(err)
			} else {
				o, _ = overRows(t, `{"group_by":"key"}`, "a=", "b=")
			}
			p.Merge(o)
		}
		if got := new(fold.TooManyGroupsError); !errors.As(p.Err(), &got) || got.Max != 5 {
			t.Errorf("%v: %v", order, p.Err())
		}
	}
	// Parts of two jobs are none of one.
	p, s := overRows(t, `{"group_by":"key"}`, "a=")
	o, _ := overRows(t, `{"group_by":"key","reduce":"max"}`, "a=")
	p.Merge(o)
	if _, _, err := p.Final(s); !errors.As(err, new(*MismatchError)) {
		t.Errorf("parts of two jobs: %v", err)
	}
}

func init() {
	RegisterMap("initial", func(key, value []byte, out *fold.Value) bool {
		if len(value) == 0 {
			return false
		}
		out.SetText(value[:1])
		return true
	})
	RegisterMap("endless", func(_, _ []byte, out *fold.Value) bool { out.SetFloat(math.Inf(1)); return true })
	RegisterFilter("odd-keys", func(key, _ []byte) bool { return (key[len(key)-1]-'0')%2 == 1 })
}

func TestRegistry(t *testing.T) {
	p, s := overRows(t, `{"map":"go:initial","filter":"go:odd-keys and key prefix k","reduce":"max","on_error":"skip"}`, "k1=ab", "k2=zb", "k3=bc", "k5=", "x7=zz")
	if got, _, err := p.Final(s); err != nil || got.String() != "b" || p.Bad != 1 || p.Filtered != 2 {
		t.Errorf("%s, %v, %+v", got, err, p)
	}
	for spec, want := range map[string]string{
		`{"map":"go:none"}`:            "map: this node does not know go:none (it was built with endless, initial",
		`{"filter":"go:none"}`:         "filter: this node does not know go:none (it was built with odd-keys",
		`{"filter":"v.x and go:none"}`: "filter: ",
	} {
		s, err := job.ParseSpec([]byte(spec))
		if err == nil {
			_, err = compile(s)
		}
		if !errors.As(err, new(*job.SpecError)) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", spec, err, want)
		}
	}
	for _, name := range []string{"", "a b", "9a", "initial"} {
		func() {
			defer func() {
				if cause := fmt.Sprint(recover()); !strings.HasPrefix(cause, "compute: ") {
					t.Errorf("%q was registered: %s", name, cause)
				}
			}()
			RegisterMap(name, func(_, _ []byte, _ *fold.Value) bool { return false })
		}()
	}
}

// Keys that look alike in a report have one reason, whichever was met first.
func TestOneReasonForKeysThatLookAlike(t *testing.T) {
	long := strings.Repeat("k", maxBadKeyBytes)
	a, b := new(Partial), new(Partial)
	a.addBad([]byte(long+"1"), "why")
	a.addBad([]byte(long+"2"), "because")
	b.addBad([]byte(long+"2"), "because")
	b.addBad([]byte(long+"1"), "why")
	if a.Bad != 2 || len(a.badKeys) != 1 || a.badWhy[0] != "because" || string(a.Encode()) != string(b.Encode()) {
		t.Errorf("%+v and %+v", a, b)
	}
}
