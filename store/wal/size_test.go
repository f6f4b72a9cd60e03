package wal

import "testing"

// What the entries after an index take is told of those on the disk and of those on their way there alike, wherever the log begins.
func TestBytesAfter(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 64<<10)
	l := w.Replica(Name{1, "a"})
	each := int64(entrySize(entries(1, 1, 1, 500)[0]))
	check := func(index uint64, n int64) {
		t.Helper()
		if got := l.BytesAfter(index); got != n*each {
			t.Errorf("after %d: %d bytes, want %d entries of %d", index, got, n, each)
		}
	}
	check(0, 0)
	must(t, l.StoreLogs(entries(1, 1, 10, 500)))
	check(0, 10)
	check(7, 3)
	check(10, 0)
	check(99, 0)
	must(t, l.DeleteRange(1, 4))
	check(0, 6)
	check(5, 5)
	l.mu.Lock() // its loop cannot take them now
	l.pending = append(l.pending, entries(1, 11, 12, 500)...)
	l.mu.Unlock()
	check(0, 8)
	check(9, 3)
	check(11, 1)
	check(12, 0)
	l.mu.Lock()
	l.pending = nil
	l.mu.Unlock()
}
