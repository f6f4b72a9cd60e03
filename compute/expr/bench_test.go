package expr

import (
	"fmt"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/fold"
)

// What an expression costs a record, beside what native words do (BenchmarkStep of compute).
func BenchmarkEval(b *testing.B) {
	document := fmt.Sprintf(`{"id":123456,"customer":"c-1042","country":"de","qty":3,"price":19.5,"tags":["a","b","c"],"note":"%s"}`, strings.Repeat("x", 150))
	for _, c := range []struct {
		name, as, value string
		role            Role
		src             string
	}{
		{"filter int", "int", "12345", Filter, `v > 1000 && v % 2 == 1`},
		{"map int", "int", "12345", Map, `v * v + 1`},
		{"filter json", "json", document, Filter, `v.qty > 2 && v.country == "de"`},
		{"map json", "json", document, Map, `v.qty * v.price`},
		{"key json", "json", document, Key, `v.country + "/" + v.customer`},
		{"function json", "json", document, Filter, `v.customer.contains("42")`},
		{"loop json", "json", document, Filter, `v.tags.exists(t, t == "c")`},
		{"flat_map", "string", "the quick brown fox jumps over the lazy dog", FlatMap, `v.split(" ").map(w, [w, 1])`},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := compile(b, c.src, c.role, c.as)
			r := NewRecord(c.as)
			e := p.NewEval(r)
			key, value, ctx := []byte("orders/1"), []byte(c.value), b.Context()
			var out fold.Value
			var err error
			b.ReportAllocs()
			for b.Loop() {
				r.Set(key, value)
				switch c.role {
				case Filter:
					_, err = e.Bool(ctx)
				case Map:
					err = e.Value(ctx, &out)
				case Key:
					_, err = e.Key(ctx)
				case FlatMap:
					err = e.Each(ctx, func([]byte, bool, *fold.Value) error { return nil })
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
func compile(t testing.TB, src string, role Role, as string) *Program {
	t.Helper()
	p, err := Compile(src, role, as)
	if err != nil {
		t.Fatalf("compile %s: %v", src, err)
	}
	return p
}
