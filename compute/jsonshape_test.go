package compute

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// shapeDocs are such that one may be taken for the next.
var shapeDocs = []string{
	`{"a":5,"a":{"b":2}}`, `{"a":{"b":9},"a":{"b":2}}`, `{"a":null,"a":{"b":2}}`, `{"a":"","a":[1,2]}`, `{"a":[7],"a":[1,2]}`,
	`{"a":{"b":1}}`, `{"a":{"b":"x"}}`, `{"a":{"b":{}}}`, `{"a":{"b":01}}`, `{"a":{"b":}}`, `{"a":{"b":1}} `, `{"a":{"b":1}}}`, `{"a":{"b":1}`, `{"a":{"b":1 }}`,
	`[1,2]`, `[1,2`, `[12]`, `[1.5,2]`, `[-1,2]`, `[0,2]`, `[00,2]`, `[1e3,2]`, `[1e,2]`, `[1.,2]`, `["",2]`, `[{"a":1},2]`, `[2,{"a":1}]`, `[2,{"a":[]}]`, `[1,2,3]`,
	`{"x":1,"longer name":2,"a":3}`, `{"x":1,"longer nome":2,"a":3}`, `{"x":1,"longer name":2,"a":{"b":[3]}}`, `{"x":"1","longer name":"","a":3}`,
	`{"x":"` + strings.Repeat("y", 40) + `","a":1}`, `{"x":"y","a":1}`, `{"x":"` + strings.Repeat("y", 40) + `\"","a":1}`, `{"x":"` + strings.Repeat("y", 40) + `,"a":1}`,
	`1`, `12`, `"a"`, ` 1`, ` "a"`, `{"abcde":1,"a":2}`, `{"abcde"?1,"a":2}`,
}

// alike compares what s finds with the help of a shape, if there is one, with what is found without; first where the document is not known to be valid, or last.
func alike(t *testing.T, s *jsonScan, before, doc string, path *jsonPath, first bool) {
	t.Helper()
	data := []byte(doc)[:len(doc):len(doc)] // to slice what is behind it is a panic
	var plain jsonScan
	valid := plain.parse(data, path, false)
	for _, known := range []bool{!first, first} {
		if known && !valid {
			continue
		}
		s.found = jsonSpan{1, 2, jsonBool} // of the document before
		if got := s.find(data, path, known); got != valid {
			t.Fatalf("%q at %q after %q: valid %v, want %v", doc, path.text, before, got, valid)
		}
		got, want := s.found, plain.found
		if got.kind == jsonOther && want.kind == jsonOther {
			got.end = want.end
		}
		if valid && got != want {
			t.Fatalf("%q at %q after %q: found %v, want %v", doc, path.text, before, got, want)
		}
	}
}

// A document is judged as if there had been none before it, whatever that was.
func TestJSONShape(t *testing.T) {
	var s jsonScan // one for all, as a job's function has one for all of its paths
	docs := append(append(append([]string{}, shapeDocs...), scanDocs...), longDocs()...)
	for _, text := range scanPaths {
		path := compilePath(text)
		for _, before := range docs {
			for _, doc := range docs {
				for _, first := range []bool{true, false} {
					path.shape = jsonShape{}
					alike(t, &s, "", before, &path, first)
					alike(t, &s, before, doc, &path, first)
				}
			}
		}
	}
}

// The same over documents that are drawn, most of them with the texts of the one before and other values between them.
func TestJSONShapeAtRandom(t *testing.T) {
	var s jsonScan
	rnd := rand.New(rand.NewPCG(5, 6))
	values := []string{`1`, `0`, `-7`, `12345678901234567890`, `1.5e3`, `""`, `"x"`, `"b\u00e4"`, `"` + strings.Repeat("long ", 10) + `"`, `true`, `null`, `{}`, `[]`, `{"b":4}`, `[3,[4]]`, `{"b":{"c":[1]}}`, ``, `01`, `"`, `]`, `tru`}
	gaps := []string{`{"a":`, `{"a":{"b":`, `,"a":`, `,"b":`, `},"a":`, `,"name of some length":`, `[`, `,`, `, {"a":`, `}`, `]`, `}}`, `]}`, ` `, ``}
	pick := func(of []string) string { return of[rnd.IntN(len(of))] }
	for range 3_000 {
		path := compilePath(pick(scanPaths))
		var form []string
		for range 1 + rnd.IntN(5) {
			form = append(form, pick(gaps))
		}
		open := 0 // a bracket that is open is mostly closed, or few would be valid
		last := ""
		for _, c := range strings.Join(form, "") {
			switch c {
			case '{', '[':
				last, open = string(c+2)+last, open+1
			case '}', ']':
				if open > 0 {
					last, open = last[1:], open-1
				}
			}
		}
		if rnd.IntN(4) > 0 {
			form = append(form, last)
		}
		before := ""
		for range 20 {
			var b strings.Builder
			for n, gap := range form {
				if b.WriteString(gap); n < len(form)-1 {
					b.WriteString(values[rnd.IntN(len(values)-rnd.IntN(2)*5)])
				}
			}
			alike(t, &s, before, b.String(), &path, rnd.IntN(2) == 0)
			before = b.String()
		}
	}
}

func FuzzJSONShape(f *testing.F) {
	for i, doc := range shapeDocs {
		f.Add(doc, shapeDocs[(i+1)%len(shapeDocs)], "a.b")
	}
	f.Fuzz(func(t *testing.T, before, doc, path string) {
		if path != "" && !jobPath(path) {
			return
		}
		p := compilePath(path)
		if !p.plain {
			return
		}
		var s jsonScan
		for _, first := range []bool{true, false} {
			p.shape = jsonShape{}
			alike(t, &s, "", before, &p, first)
			alike(t, &s, before, doc, &p, first)
		}
	})
}

// Of what is known to be valid nothing is read behind the value, nor the value if it is an object or array: that may be the whole document.
func TestShapeReadsNoFurther(t *testing.T) {
	for doc, kind := range map[string]jsonKind{`{"a":[ never read`: jsonOther, `{"a":7, never read`: jsonNumber} {
		var s jsonScan
		path := compilePath("a")
		s.find([]byte(`{"a":{"b":1},"c":2}`), &path, false)
		if !path.shape.find(&s, []byte(doc), true) || s.found.kind != kind {
			t.Errorf("%s: found %v", doc, s.found)
		}
	}
}

// Documents of one shape are read by it from the second on, of a few by one of them; where each is of another, next to none is compared in vain.
func TestShapesAreForeseen(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	const docs = 10_000
	for _, c := range []struct {
		name              string
		doc               func(n int) string
		least, most, vain int // documents read by a shape, and compared with one in vain
	}{
		{"one shape", func(n int) string { return fmt.Sprintf(`{"id":%d,"n":%d,"more":%d}`, n, n, n) }, docs - 1, docs - 1, 0},
		{"another for good", func(n int) string { return fmt.Sprintf(`{"id%d":%d,"n":%d}`, n*2/docs, n, n) }, docs - 20, docs - 2, 20},
		{"two in turn", func(n int) string { return fmt.Sprintf(`{"id%d":%d,"n":%d}`, n%2, n, n) }, docs/2 - 1, docs / 2, docs / 2},
		{"one of three", func(n int) string { return fmt.Sprintf(`{"id%d":%d,"n":%d}`, rnd.IntN(3), n, n) }, 0, docs / 4, docs / 10},
		{"each its own", func(n int) string { return fmt.Sprintf(`{"%d%s":%d,"n":%d}`, n, strings.Repeat("x", 1000), n, n) }, 0, 0, 100},
		{"floats", func(n int) string { return fmt.Sprintf(`{"id":%d.5,"n":%de2}`, n, n) }, docs - 1, docs - 1, 0},
		{"strings, long or not", func(n int) string { return fmt.Sprintf(`{"id":"%s","n":%d}`, strings.Repeat("x", n%40), n) }, docs - 1, docs - 1, 0},
		{"a long name", func(n int) string { return fmt.Sprintf(`{"identity":%d,"n":%d}`, n, n) }, docs - 1, docs - 1, 0},
		{"nested beside", func(n int) string { return fmt.Sprintf(`{"id":[%s1],"n":%d}`, strings.Repeat("[1],", n%3), n) }, docs - 1, docs - 1, 0},
		{"another member at the end of some", func(n int) string {
			return fmt.Sprintf(`{"id":"%40d"%s,"n":%d}`, n, strings.Repeat(`,"x":1`, n/2%2), n)
		}, 0, docs / 10, docs / 20},
		{"and of few", func(n int) string {
			return fmt.Sprintf(`{"id":"%40d"%s,"n":%d}`, n, strings.Repeat(`,"x":1`, n%20/19), n)
		}, docs * 8 / 10, docs - docs/20, docs / 10},
		{"too wide", func(int) string { return `[` + strings.Repeat(`1,`, shapeValues) + `1]` }, 0, 0, 0},
		{"too long", func(int) string { return `{"` + strings.Repeat(`x`, shapeText) + `":1}` }, 0, 0, 0},
	} {
		for _, valid := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/valid=%v", c.name, valid), func(t *testing.T) {
				var s jsonScan
				path := compilePath("n")
				by, vain := 0, 0
				for n := range docs {
					doc := []byte(c.doc(n))
					switch {
					case path.shape.find(&s, doc, valid):
						if by++; s.found.kind != jsonNumber {
							t.Fatalf("%s: found %v", doc, s.found)
						}
						continue
					case len(path.shape.gaps) > 0:
						vain++
					}
					s.find(doc, &path, valid)
				}
				if by < c.least || by > c.most || vain > c.vain {
					t.Errorf("%d of %d by a shape, %d compared in vain; want %d to %d, %d", by, docs, vain, c.least, c.most, c.vain)
				}
				if cap(path.shape.text) > 2*shapeText || cap(path.shape.gaps) > 2*shapeValues || cap(s.values) > 2*shapeValues {
					t.Errorf("it has grown to %d bytes of %d gaps and %d values", cap(path.shape.text), cap(path.shape.gaps), cap(s.values))
				}
			})
		}
	}
}
