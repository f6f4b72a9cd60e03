package node

import (
	"testing"
	"time"

	"github.com/abacusdb/abacus/node/front"
)

// A load is what came between two looks, by the second.
func TestLoadSince(t *testing.T) {
	was := worked{errors: 3}
	was.reads.Counts[0], was.writes.Counts[2] = 100, 50
	now := was
	now.errors, now.clients = 5, 7
	now.reads.Counts[0], now.writes.Counts[20] = 300, 10 // the times before were others
	now.http = 8
	got := now.since(was, 4*time.Second)
	if got.Reads != 50 || got.HTTP != 2 || now.commands() != 300+50+10+8 || got.Writes != 2.5 || got.Errors != .5 || got.Clients != 7 {
		t.Errorf("%+v", got)
	}
	slow := front.LatencyBounds[20].Microseconds()
	if got.ReadP99 > 32 || got.WriteP50 >= slow || got.WriteP50 < slow*2/3 {
		t.Errorf("times %+v, those of writes are below %d µs", got, slow)
	}
	if idle := now.since(now, 0); idle.Reads != 0 || idle.ReadP99 != 0 {
		t.Errorf("idle: %+v", idle)
	}
	cluster := together([]load{{Reads: 1, WriteP99: 40, Clients: 2}, {Reads: 2, Writes: 3, HTTP: 4, WriteP99: 30, Clients: 1}})
	if cluster != (load{Reads: 3, Writes: 3, HTTP: 4, WriteP99: 40, Clients: 3}) {
		t.Errorf("together: %+v", cluster)
	}
}

// Nobody is there whom a job could hurt if all nodes that are alive say so, and nobody has come since.
func TestIsQuiet(t *testing.T) {
	few, many := &load{Reads: 2, Writes: 1, HTTP: 1}, &load{Writes: 9}
	for _, tc := range []struct {
		said  []*load
		since uint64
		want  bool
	}{
		{[]*load{{}}, 0, true},
		{[]*load{few, few}, 0, true},
		{[]*load{few, few, few}, 0, false},
		{[]*load{{}, few, many}, 0, false}, // another's clients
		{[]*load{{HTTP: 10}}, 0, false},
		{[]*load{{}}, 19, true},
		{[]*load{{}}, 20, false}, // they have just come
		{[]*load{nil}, 0, false},
		{[]*load{{}, nil}, 0, false},
	} {
		if got := isQuiet(tc.said, tc.since); got != tc.want {
			t.Errorf("%+v, %d commands since: %v", tc.said, tc.since, got)
		}
	}
}

// Whoever asks is given what he lacks, as far as it is kept, and all if his numbers are another process's.
func TestLoadHistory(t *testing.T) {
	var l loads
	for _, tc := range []struct{ looks, ask, first, want int }{
		{0, 0, 0, 0}, {0, 5, 0, 0}, {3, 0, 0, 3}, {3, 2, 2, 1}, {3, 3, 3, 0}, {3, 9, 0, 3}, {3, -1, 0, 3},
		{loadKept + 10, 0, 10, loadKept}, {loadKept + 10, loadKept, loadKept, 10},
	} {
		for l.looks < tc.looks {
			l.note(load{Reads: float64(l.looks)})
		}
		h := l.history(tc.ask)
		if h.First != tc.first || len(h.Reads) != tc.want || len(h.WriteP99) != tc.want {
			t.Errorf("from %d of %d: first %d, %d looks, want %d and %d", tc.ask, tc.looks, h.First, len(h.Reads), tc.first, tc.want)
		}
		for i, v := range h.Reads {
			if int(v) != h.First+i {
				t.Errorf("from %d of %d: look %d is that of %v", tc.ask, tc.looks, h.First+i, v)
			}
		}
	}
}
