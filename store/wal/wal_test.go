package wal

import (
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
)

func entries(term, from, to uint64, size int) (list []*raft.Log) {
	for i := from; i <= to; i++ {
		list = append(list, &raft.Log{Index: i, Term: term, Data: fmt.Appendf(make([]byte, 0, size), "%0*d", size, i*1000+term)})
	}
	return list
}

// TestReopen shows that what was stored is there after a restart, over many
// segments and several logs, one of which stands still.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	w, err := Open(Dir(dir), Config{SegmentBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	idle, busy := w.Replica(Name{1, "a"}), w.Replica(Name{2, "b"})
	if err := idle.StoreLogs(entries(1, 1, 10, 500)); err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 2000; i += 10 {
		if err := busy.StoreLogs(entries(1, i, i+9, 400)); err != nil {
			t.Fatal(err)
		}
		if i > 50 {
			if err := busy.DeleteRange(1, i-50); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s := w.Stats(); s.SegmentsInUse > keepSegments+1 || s.CopiedBytes == 0 {
		t.Errorf("%+v", s)
	}
	for range 3 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if w, err = Open(Dir(dir), Config{SegmentBytes: 64 << 10}); err != nil {
			t.Fatal(err)
		}
		idle, busy = w.Replica(Name{1, "a"}), w.Replica(Name{2, "b"})
		for l, want := range map[*Log][2]uint64{idle: {1, 10}, busy: {1942, 2000}} {
			if l.base != want[0] || l.last() != want[1] {
				t.Fatalf("%v has %d to %d, want %v", l.name, l.base, l.last(), want)
			}
			for i := want[0]; i <= want[1]; i++ {
				var e raft.Log
				if err := l.GetLog(i, &e); err != nil || e.Index != i || e.Term != 1 {
					t.Fatalf("entry %d: %+v, %v", i, e, err)
				}
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkStore(b *testing.B) {
	w, err := Open(Dir(b.TempDir()), Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	l := w.Replica(Name{1, "a"})
	i := uint64(0)
	for b.Loop() {
		i++
		if err := l.StoreLogs(entries(1, i, i, 300)); err != nil {
			b.Fatal(err)
		}
		if i%1000 == 0 {
			if err := l.DeleteRange(1, i-100); err != nil {
				b.Fatal(err)
			}
		}
	}
}
