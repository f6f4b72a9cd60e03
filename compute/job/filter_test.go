package job

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseFilter(t *testing.T) {
	for text, want := range map[string][]Condition{
		"":                                 nil,
		"key prefix user/":                 {{Subject: "key", Op: "prefix", Arg: "user/"}},
		"prefix a b ":                      {{Subject: "value", Op: "prefix", Arg: "a b"}},
		"value\tre ^a.*b$":                 {{Subject: "value", Op: "re", Arg: "^a.*b$"}},
		`suffix " and \u00e4"`:             {{Subject: "value", Op: "suffix", Arg: " and ä"}},
		`re '^\d+ and "x"'`:                {{Subject: "value", Op: "re", Arg: `^\d+ and "x"`}},
		"prefix sand and suffix andes":     {{Subject: "value", Op: "prefix", Arg: "sand"}, {Subject: "value", Op: "suffix", Arg: "andes"}},
		"prefix a or b and re 'x or re y'": {{Subject: "value", Op: "prefix", Arg: "a or b"}, {Subject: "value", Op: "re", Arg: "x or re y"}},
		"prefix ''":                        {{Subject: "value", Op: "prefix"}},
		`json:a\ b.0 range 18..<65`:        {{Subject: "json:", Path: `a\ b.0`, Op: "range", Range: Range{From: "18", To: "65", Below: true}}},
		"range -1.5e3..":                   {{Subject: "value", Op: "range", Range: Range{From: "-1.5e3"}}},
		"key range ..+7":                   {{Subject: "key", Op: "range", Range: Range{To: "+7"}}},
		"go:odd and key suffix x":          {{Op: "go:", Arg: "odd"}, {Subject: "key", Op: "suffix", Arg: "x"}},
		"cel: key prefix":                  {{Op: "cel:", Arg: "key prefix"}},
		"v.age > 18 && v.ok":               {{Op: "cel:", Arg: "v.age > 18 && v.ok"}},
		"key in ['a', 'b']":                {{Op: "cel:", Arg: "key in ['a', 'b']"}},
		"key == 'a'":                       {{Op: "cel:", Arg: "key == 'a'"}},
		"v":                                {{Op: "cel:", Arg: "v"}},
		"!v.ok":                            {{Op: "cel:", Arg: "!v.ok"}},
		"true":                             {{Op: "cel:", Arg: "true"}},
	} {
		if got, err := ParseFilter(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
}

// Each fault names what is wrong and has a caret under it.
func TestParseFilterShowsTheFault(t *testing.T) {
	for text, want := range map[string]string{
		"  ":                                     "character 3: a condition is missing",
		"value":                                  "character 6: a condition is missing",
		"value prefx a":                          `character 7: unknown "prefx"`,
		"age range 1..2":                         `character 1: unknown "age"`,
		"value prefix":                           "character 13: the argument is missing",
		"value prefix rock and roll":             `character 23: unknown "roll"`,
		`key prefix a/ or key prefix b/`:         "character 15: conditions are joined by and alone",
		`key prefix a/ or v.n > 5`:               "character 15: conditions are joined by and alone",
		`re x or range 1..`:                      "character 6: conditions are joined by and alone",
		`prefix "a" suffix b`:                    "character 12: conditions are joined by and",
		`prefix "a" and `:                        "character 16: a condition is missing",
		`prefix "a\q"`:                           "character 8: not a text in quotes as JSON has it",
		`prefix 'a`:                              "character 8: a quote that is not closed",
		"key prefix ü and value re a(b":          "character 27: error parsing regexp: missing closing ): `a(b`",
		"range 5":                                `character 7: "5" is no range of numbers`,
		"range ..":                               `character 7: ".." is no range of numbers`,
		"range a..z":                             `character 7: "a" is no number`,
		"range 0x1..2":                           `character 7: "0x1" is no number`,
		"range 1..NaN":                           `character 7: "NaN" is no number`,
		"range 1..1e999":                         `character 7: "1e999" is no number`,
		"range 2..1":                             `character 7: nothing lies in "2..1"`,
		"range 1..<1":                            `character 7: nothing lies in "1..<1"`,
		"json: prefix a":                         "character 1: the path after json: must have",
		"key prefix a and json:a|b re x":         "character 18: '|' is not supported in a path",
		"go:9 and key prefix a":                  `character 1: "9" is no name of a function`,
		strings.Repeat("re a and ", 33) + "re a": "character 285: more than 32 conditions",
	} {
		_, err := ParseFilter(text)
		if err == nil || !strings.HasPrefix(err.Reason, want) {
			t.Errorf("%q: %v, want %q", text, err, want)
			continue
		}
		line, caret, _ := strings.Cut(err.Where, "\n")
		if at, ok := strings.CutSuffix(caret, "^"); !ok || line != text || len(at) > utf8.RuneCountInString(line) || strings.TrimSpace(at) != "" ||
			!strings.HasSuffix(err.Error(), "\n"+err.Where) {
			t.Errorf("%q: %q", text, err.Where)
		}
	}
	_, err := ParseFilter("key prefix ü\nand value prefx a")
	if err == nil || err.Where != "and value prefx a\n          ^" {
		t.Errorf("in the second line: %v", err)
	}
}

// Each new field that is wrong, and each pair that no record could satisfy, is refused by name.
func TestNewFieldsRefuse(t *testing.T) {
	for _, c := range []struct{ spec, field, hint string }{
		{`{"filter":"key prefx a"}`, "filter", "prefix"},
		{`{"filter":"` + strings.Repeat("a", MaxFunctionBytes+1) + `"}`, "filter", ""},
		{`{"filter":"json:a range 1..2"}`, "filter", "--as json"},
		{`{"filter":"cel:"}`, "filter", "for example"},
		{`{"flat_map":"lines"}`, "flat_map", "words"},
		{`{"flat_map":"go:x"}`, "flat_map", "only map and filter"},
		{`{"as":"int","flat_map":"words"}`, "flat_map", "--as string"},
		{`{"as":"json","flat_map":"words"}`, "flat_map", "split"},
		{`{"map":"lenght"}`, "map", "len, square, parse"},
		{`{"map":"go:a b"}`, "map", "letters"},
		{`{"as":"int","map":"parse"}`, "map", "leave map out"},
		{`{"as":"json","map":"parse"}`, "map", "double"},
		{`{"as":"float","map":"lower"}`, "map", "--as string"},
		{`{"as":"json","map":"lower"}`, "map", "lowerAscii"},
		{`{"flat_map":"words","map":"square"}`, "map", ""},
		{`{"as":"json","flat_map":"v.a","map":"json:b"}`, "map", "flat_map"},
		{`{"as":"json","flat_map":"v.a","map":"v.b"}`, "map", "flat_map"},
		{`{"flat_map":"words","map":"go:f"}`, "map", "flat_map"},
		{`{"group_by":"customer"}`, "group_by", "key-part:SEP:N"},
		{`{"group_by":"json:a"}`, "group_by", "--as json"},
		{`{"group_by":"key-part:"}`, "group_by", "key-part:/:2"},
		{`{"group_by":"key-part:/"}`, "group_by", ""},
		{`{"group_by":"key-part:/:0"}`, "group_by", ""},
		{`{"group_by":"key-part:/:1001"}`, "group_by", ""},
		{`{"group_by":"key-part:/:x"}`, "group_by", ""},
		{`{"as":"int","group_by":"lower"}`, "group_by", "value"},
		{`{"group_by":"pair"}`, "group_by", "flat-map"},
		{`{"flat_map":"words","group_by":"pair"}`, "group_by", "flat-map"},
		{`{"reduce":"variance"}`, "reduce", "--as int"},
		{`{"flat_map":"words","reduce":"quantile:0.5"}`, "reduce", "parse"},
		{`{"map":"lower","reduce":"sum"}`, "reduce", ""},
		{`{"map":"key","as":"int","reduce":"histogram:log2"}`, "reduce", ""},
		{`{"on_error":"count"}`, "max_errors", "--max-errors"},
		{`{"max_errors":5}`, "max_errors", "--on-error count"},
		{`{"on_error":"count","max_errors":-1}`, "max_errors", ""},
		{`{"on_error":"count","max_errors":9007199254740993}`, "max_errors", ""},
		{`{"prefix":null}`, "prefix", "leave out"},
		{`{"prefix":"a/","as":"int","prefix":"b/"}`, "prefix", ""},
		{`{"max_groups":5}`, "max_groups", "--group-by"},
		{`{"filter":"value re (?s).{600}.{600}"}`, "filter", "count less"},
		{`{"filter":"value re (?s)` + strings.Repeat(".{1000}", 500) + `"}`, "filter", "count less"},
		{`{"filter":"value re (((a{10}){10}){10}|b)*` + strings.Repeat("(x|y|zz)+", 300) + `"}`, "filter", "count less"},
		{`{"as":"json","map":"json:a*b*c"}`, "map", "backslash"},
		{`{"as":"json","filter":"json:x*y.z**.a range 1.."}`, "filter", "backslash"},
		{`{"group_by":"key","max_groups":100001}`, "max_groups", ""},
		{`{"group_by":"key","max_groups":-1}`, "max_groups", ""},
		{`{"priority":"urgent"}`, "priority", "low, normal, high"},
		{`{"cache":"yes"}`, "cache", "on, off"},
		{`{"as":"text"}`, "as", "raw"},
	} {
		_, err := ParseSpec([]byte(c.spec))
		var wrong *SpecError
		if !errors.As(err, &wrong) || wrong.Field != c.field || wrong.Reason == "" || !strings.Contains(wrong.Hint, c.hint) {
			t.Errorf("%.80s: %v, want field %s and %q in the hint", c.spec, err, c.field, c.hint)
		}
	}
}

// Words that mean the same are one spec, and what v0.4 knew is told from the rest.
func TestClassic(t *testing.T) {
	plain, err := ParseSpec([]byte(`{"prefix":"a"}`))
	if err != nil || !plain.Classic() {
		t.Fatalf("%+v, %v", plain, err)
	}
	same, err := ParseSpec([]byte(`{"prefix":"a","priority":"normal","cache":"on","filter":"","group_by":""}`))
	if err != nil || same != plain {
		t.Errorf("%+v, %v; want %+v", same, err, plain)
	}
	for spec, classic := range map[string]bool{
		`{"as":"json","map":"json:a","reduce":"max","on_error":"skip","timeout_ms":5,"tasks_per_replica":2,"name":"n","id":"i"}`: true,
		`{"as":"float","map":"square","reduce":"mean"}`: true,
		`{"map":"len","reduce":"min"}`:                  true,
		`{"as":"raw"}`:                                  false,
		`{"filter":"prefix a"}`:                         false,
		`{"flat_map":"words"}`:                          false,
		`{"group_by":"key"}`:                            false,
		`{"map":"lower"}`:                               false,
		`{"map":"v + v"}`:                               false,
		`{"reduce":"last"}`:                             false,
		`{"on_error":"count","max_errors":1}`:           false,
		`{"priority":"high"}`:                           false,
		`{"cache":"off"}`:                               false,
	} {
		s, err := ParseSpec([]byte(spec))
		if err != nil || s.Classic() != classic {
			t.Errorf("%s: classic %v, %v", spec, s.Classic(), err)
		}
	}
}

// No filter makes the parser panic or lets through what it cannot mean; what it takes from words can be written again.
func FuzzParseFilter(f *testing.F) {
	for _, text := range []string{"key prefix a and value re ^b$", `json:a\ b range 1..<2`, `prefix "x" and suffix 'y'`, "v.a > 1", "go:f and range ..5", "range 1e5..", "\\", `"`, "re (a", "cel:", "key  "} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		conditions, err := ParseFilter(text)
		if err != nil {
			if err.Field != "filter" || err.Reason == "" {
				t.Fatalf("%q: %+v", text, err)
			}
			return
		}
		var again []string
		for _, c := range conditions {
			if c.Op == FuncCEL {
				return
			}
			again = append(again, written(c))
		}
		back, err := ParseFilter(strings.Join(again, " and "))
		if err != nil || !reflect.DeepEqual(back, conditions) {
			t.Fatalf("%q: %+v was read back as %+v, %v", text, conditions, back, err)
		}
	})
}

func written(c Condition) string {
	quoted, err := json.Marshal(c.Arg)
	if err != nil {
		panic(err)
	}
	switch {
	case c.Op == FuncGo:
		return FuncGo + c.Arg
	case c.Op == FilterRange && c.Range.Below:
		return c.Subject + c.Path + " range " + c.Range.From + "..<" + c.Range.To
	case c.Op == FilterRange:
		return c.Subject + c.Path + " range " + c.Range.From + ".." + c.Range.To
	}
	return c.Subject + c.Path + " " + c.Op + " " + string(quoted)
}
