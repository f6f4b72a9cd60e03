package fsm

import (
	"math/rand/v2"
	"slices"
	"sort"
	"testing"
)

// TestRowsModel has rows set, deleted, copied and walked, with keys that begin alike, end early and have zeros, against
// a map and its sorted keys.
func TestRowsModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	keys := []string{""}
	for n := range 12 {
		for range 40 {
			b := make([]byte, n)
			for i := range b {
				b[i] = []byte{0, 0, 1, 'a', 0xff}[rng.IntN(5)]
			}
			keys = append(keys, string(b))
		}
	}
	type state struct {
		rows  rows
		model map[string]uint64
	}
	check := func(s state) {
		t.Helper()
		want := make([]string, 0, len(s.model))
		for k := range s.model {
			want = append(want, k)
		}
		sort.Strings(want)
		var got []string
		s.rows.walk(func(key string, r row) bool {
			if r.changed != s.model[key] {
				t.Fatalf("row %q has %d, want %d", key, r.changed, s.model[key])
			}
			got = append(got, key)
			return true
		})
		if !slices.Equal(got, want) || s.rows.len() != len(want) {
			t.Fatalf("%d rows %q, want %d %q", s.rows.len(), got, len(want), want)
		}
		for _, k := range keys[:50] {
			changed, had := s.model[k]
			if r, ok := s.rows.get(k); ok != had || r.changed != changed {
				t.Fatalf("get %q: %v, %t, want %v, %t", k, r.changed, ok, changed, had)
			}
		}
		from := keys[rng.IntN(len(keys))]
		c := s.rows.cursor()
		i := sort.SearchStrings(want, from)
		for ok := c.seek(from); ok; ok = c.next() {
			if i == len(want) || c.key() != want[i] || c.row().changed != s.model[want[i]] {
				t.Fatalf("from %q: %q at place %d of %q", from, c.key(), i, want)
			}
			i++
		}
		if i != len(want) {
			t.Fatalf("from %q: ended at %d of %d", from, i, len(want))
		}
	}
	now := state{newRows(), map[string]uint64{}}
	var copies []state
	for step := uint64(1); step <= 30_000; step++ {
		key := keys[rng.IntN(len(keys))]
		was, had := now.model[key]
		switch rng.IntN(5) {
		case 0, 1:
			own := []byte(key)
			old, ok := now.rows.set(asString(own), row{changed: step})
			clear(own) // it is the caller's
			if ok != had || ok && old.changed != was {
				t.Fatalf("set %q replaced %v, %t", key, old.changed, ok)
			}
			now.model[key] = step
		case 2:
			if old, ok := now.rows.delete(key); ok != had || ok && old.changed != was {
				t.Fatalf("delete %q returned %v, %t", key, old.changed, ok)
			}
			delete(now.model, key)
		default:
			if r, ok := now.rows.get(key); ok != had || r.changed != was {
				t.Fatalf("get %q: %v, %t", key, r.changed, ok)
			}
		}
		if step%1000 == 0 {
			frozen := state{now.rows.copy(), map[string]uint64{}}
			for k, v := range now.model {
				frozen.model[k] = v
			}
			copies = append(copies, frozen)
		}
		if step%500 == 0 {
			check(now)
		}
	}
	for _, c := range copies { // what was done afterwards did not change them
		check(c)
	}
}
