package compute

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

var scanPaths = []string{"", "a", "a.b", "a.0.b", "0", "1.a", "a.b.c.d", `a\.b`, "ä", "n", "x.1"}

// judge compares the scanner with gjson, and its judgement of validity with encoding/json, too.
func judge(t *testing.T, doc []byte, path string) {
	t.Helper()
	valid := gjson.ValidBytes(doc)
	if std := json.Valid(doc); std != valid && strings.Count(string(doc), "[")+strings.Count(string(doc), "{") < 10000 { // encoding/json has a bound there
		t.Fatalf("%q: gjson says valid %v, encoding/json %v", doc, valid, std)
	}
	p := compilePath(path)
	if !p.plain {
		return
	}
	doc = doc[:len(doc):len(doc)] // to slice what is behind it is a panic
	var s jsonScan
	if got := s.find(doc, &p, false); got != valid {
		t.Fatalf("%q: valid %v, want %v", doc, got, valid)
	}
	if !valid {
		return
	}
	want := gjson.ParseBytes(doc)
	if path != "" {
		want = gjson.GetBytes(doc, path)
	}
	check := func(found jsonSpan) {
		t.Helper()
		kind := map[gjson.Type]jsonKind{gjson.Null: jsonNull, gjson.True: jsonBool, gjson.False: jsonBool, gjson.Number: jsonNumber, gjson.String: jsonString, gjson.JSON: jsonOther}[want.Type]
		if !want.Exists() {
			kind = jsonNone
		}
		if found.kind != kind {
			t.Fatalf("%q at %q: kind %d, want %d", doc, path, found.kind, kind)
		}
		if raw := string(doc[found.start:max(found.start, found.end)]); kind != jsonOther && kind != jsonNone && raw != strings.TrimSpace(want.Raw) {
			t.Fatalf("%q at %q: %q, want %q", doc, path, raw, want.Raw)
		}
		if kind == jsonString {
			if text := string(unquote(doc[found.start:found.end])); text != want.Str {
				t.Fatalf("%q at %q: %q, want %q", doc, path, text, want.Str)
			}
		}
	}
	check(s.found)
	s.find(doc, &p, true)
	check(s.found)
}

var scanDocs = []string{
	``, ` `, `false`, `{"a":false}`, `"\u123`, `"\u1234`, `1`, ` 1 `, `-`, `-0`, `-01`, `01`, `1.`, `1.5e`, `1e+5`, `.5`, `+1`, `true`, `tru`, `nullx`, `null`, `"a"`, `"\u00e4"`, `"\u00g4"`, `"\x"`, `"`, "\"\x1f\"", "\"\xff\"",
	`{}`, `[]`, `{`, `}`, `[}`, `{]`, `[1,]`, `{"a":1,}`, `{"a"}`, `{"a":}`, `{a:1}`, `[,1]`, `{"a":1 "b":2}`, `{} {}`, `[[[[]]]]`, `{"a":[0,{"b":7}],"n":null}`,
	`{"a":1,"a":2}`, `{"a":{"x":1},"a":{"b":2}}`, `{"a":5,"a":{"b":2}}`, `{"a":{"b":{"c":{"d":"deep"}}}}`, `[{"a":1},{"a":"two"}]`, `{"0":"name"}`, `[["x"],[1,2]]`,
	`{"a.b":1,"ä":true,"\u00e4":false}`, `{"\u0061":"escaped name"}`, `{"x":["a","b\n"]}`, "{\t\"a\" :\r\n [ 1 , 2 ] }", `{"a":[]}`, `{"a":{}}`, `{"a":[{"b":1},{"b":2}]}`, `{"x":[1,[2]]}`,
}

// longDocs are of strings that are read more than a word at a time, and of what may be beside the way.
func longDocs() (docs []string) {
	pad := strings.Repeat("ä, x ", 20)
	for _, end := range []string{`"`, ``, `\"`, `\""`, `\u00e4 and on"`, "\x1f\"", "\n\"", `\`, `\u12`, `\q"`} {
		docs = append(docs, `"`+pad+end, `{"`+pad+end+`:1,"a":2}`, `{"n":"`+pad+end+`,"a":{"b":"`+pad+end+`}}`)
	}
	for _, beside := range []string{`[]`, `{}`, `[[],{}]`, `{"a":{"b":[1,{"a":2}]}}`, `[1,"` + pad + `",{"` + pad + `":null}]`, `[1 2]`, `{"b"}`, `{"b":}`, `{"b":1,}`, `[1,]`, `[}`, `{]`, `{"b":1]`, `[1}`, `{1:2}`, `[tru]`, `{"b":01}`, `[`, `{`, `{"b"`, `{"b":`, `{"b":1`, `[1`, `[1,`} {
		docs = append(docs, `{"x":`+beside+`,"a":1}`, `{"x":`+beside, `[`+beside+`,{"a":[{"b":3}]}]`)
	}
	return docs
}

func TestJSONScan(t *testing.T) {
	for _, doc := range longDocs() {
		for _, path := range scanPaths {
			judge(t, []byte(doc), path)
		}
	}
	for _, doc := range scanDocs {
		for _, path := range scanPaths {
			judge(t, []byte(doc), path)
		}
	}
	// As deep as a value is long, without a stack to overflow.
	var s jsonScan
	deep := strings.Repeat("[", 1<<20)
	beside := compilePath("b")
	if !s.find([]byte(`{"a":`+deep+strings.Repeat("]", 1<<20)+`,"b":1}`), &beside, false) || s.found.kind != jsonNumber {
		t.Error("a million brackets beside the way were judged wrongly")
	}
	if s.find([]byte(deep), &jsonPath{plain: true}, false) || !s.find([]byte(deep+strings.Repeat("]", 1<<20)), &jsonPath{plain: true}, false) {
		t.Error("a million brackets were judged wrongly")
	}
}

func TestCompilePath(t *testing.T) {
	for path, plain := range map[string]bool{
		"a": true, "a.b": true, "a.0": true, `a\.b`: true, `\@type`: true, "über.x y": true,
		"a.*": false, "a?": false, "a.#": false, `a.#(b=="c").d`: false, "..a": false, "a.": false, "a..b": false, "1234567890": false,
	} {
		if got := compilePath(path); got.plain != plain {
			t.Errorf("%s: plain %v", path, got.plain)
		}
	}
}

// Over any document and path the scanner finds what gjson finds, and refuses what it refuses.
func FuzzJSONScan(f *testing.F) {
	for _, doc := range append(longDocs(), scanDocs...) {
		for _, path := range scanPaths {
			f.Add([]byte(doc), path)
		}
	}
	f.Fuzz(func(t *testing.T, doc []byte, path string) {
		if path == "" || jobPath(path) {
			judge(t, doc, path)
		}
	})
}

// jobPath says whether a spec may have the path.
func jobPath(path string) bool {
	s := spec("json", "json:"+path, "count")
	return s.Validate() == nil
}

func BenchmarkJSON(b *testing.B) {
	doc := []byte(oslo)
	b.Run("gjson", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		for b.Loop() {
			_ = gjson.ValidBytes(doc) && gjson.GetBytes(doc, "population").Exists()
		}
	})
	b.Run("scan", func(b *testing.B) { // any document
		b.SetBytes(int64(len(doc)))
		var s jsonScan
		p := compilePath("population")
		for b.Loop() {
			s.parse(doc, &p, false)
		}
	})
	// The next of a table, whose documents are all alike, or of two kinds in turn, or each with another member; at the beginning, or at the end.
	for _, end := range []bool{false, true} {
		for _, kinds := range []int{1, 2, 1000} {
			var docs [][]byte
			for n := range kinds {
				if end {
					docs = append(docs, fmt.Appendf(nil, `%s,"x%d":1}`, doc[:len(doc)-1], n))
				} else {
					docs = append(docs, fmt.Appendf(nil, `{"id%d":%s`, n, doc[len(`{"id":`):]))
				}
			}
			b.Run(fmt.Sprintf("end=%v/kinds=%d", end, kinds), func(b *testing.B) {
				b.SetBytes(int64(len(docs[0])))
				var s jsonScan
				p := compilePath("population")
				for n := 0; b.Loop(); n++ {
					s.find(docs[n%kinds], &p, false)
				}
			})
		}
	}
}
