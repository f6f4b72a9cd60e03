package compute

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/job/jobtest"
)

// Over random specs and records, any split into parts, in any order, sent and merged in any grouping, comes to the bytes and the
// answer of one straight loop.
func TestRandomSpecsAgree(t *testing.T) {
	ran := map[string]int{}
	for seed := range uint64(2000 / slowed) { // one goroutine: the race detector has little to find in it
		rnd := rand.New(rand.NewPCG(seed, 7))
		s := jobtest.Spec(rnd, jobtest.Ways[rnd.IntN(4)])
		fn, err := compile(s)
		if err != nil {
			continue // a combination that makes no sense
		}
		rows := jobtest.Rows(rnd, s.As, rnd.IntN(120))
		whole := new(Partial)
		for _, r := range rows {
			if !fn.step(context.Background(), whole, []byte(r.Key), []byte(r.Value)) {
				break
			}
		}
		parts := rowsInParts(t, fn, rnd, rows)
		if got, want := parts.Encode(), whole.Encode(); !bytes.Equal(got, want) {
			t.Fatalf("seed %d, %+v: in parts %x (%v), whole %x (%v)", seed, s, got, parts.Err(), want, whole.Err())
		}
		value, note, err := whole.Final(s)
		inParts, noteInParts, errInParts := parts.Final(s)
		if value != inParts || note != noteInParts || fmt.Sprint(err) != fmt.Sprint(errInParts) {
			t.Fatalf("seed %d, %+v: in parts %v %q %v, whole %v %q %v", seed, s, inParts, noteInParts, errInParts, value, note, err)
		}
		if err == nil && whole.values() > 0 {
			ran[strings.TrimRight(s.Reduce, "0123456789.,-")]++
			ran["filter "+s.Filter]++
			ran["flat "+s.FlatMap]++
			ran["map "+s.Map]++
			ran["group "+s.GroupBy]++
		} else if err != nil {
			ran[fmt.Sprintf("%T", err)]++
		}
	}
	if slowed > 1 { // too few for what follows
		return
	}
	// All of it has had an answer, and each failure that can be met has been.
	want := []string{"*compute.BadRecordsError", "*fold.TooManyGroupsError", "*errors.errorString"}
	for _, r := range jobtest.Reduces {
		want = append(want, strings.TrimRight(r, "0123456789.,-"))
	}
	for prefix, some := range map[string]map[string][]string{"filter ": jobtest.Filters, "flat ": jobtest.FlatMaps, "map ": jobtest.Maps, "group ": jobtest.Groups} {
		for _, list := range some {
			for _, word := range list {
				want = append(want, prefix+word)
			}
		}
	}
	for _, what := range want {
		if ran[what] == 0 {
			t.Errorf("%s was never met", what)
		}
	}
}

// rowsInParts deals the rows out at random, sends each part through the codec and merges them as a random tree.
func rowsInParts(t *testing.T, fn *function, rnd *rand.Rand, rows []jobtest.Row) *Partial {
	parts := make([]*Partial, 1+rnd.IntN(8))
	for i := range parts {
		parts[i] = new(Partial)
	}
	for _, i := range rnd.Perm(len(rows)) {
		p := parts[rnd.IntN(len(parts))]
		if p.Err() == nil {
			fn.step(context.Background(), p, []byte(rows[i].Key), []byte(rows[i].Value))
		}
	}
	for len(parts) > 1 {
		i := rnd.IntN(len(parts) - 1)
		sent, err := DecodePartial(parts[i+1].Encode())
		if err != nil {
			t.Fatalf("a part of %q: %v", rows, err)
		}
		parts[i].Merge(sent)
		parts = append(parts[:i+1], parts[i+2:]...)
	}
	return parts[0]
}
