package wal

import (
	"encoding/binary"
	"log/slog"
	"runtime"
	"testing"

	"github.com/hashicorp/raft"
)

// FuzzRecover shows that a start on a segment of arbitrary bytes does not panic, and takes no more memory
// than there are bytes. The checksum of the header is put right, or nothing would be looked at behind it.
func FuzzRecover(f *testing.F) {
	fs := smallLog(f)
	first, second := fs.bytes(segmentName(1)), fs.bytes(segmentName(2))
	f.Add(first[:headerUsed], first[headerBytes:], true)
	f.Add(second[:headerUsed], second[headerBytes:], false)
	f.Add(second[:headerUsed], []byte{}, true)
	id := fs.bytes(headName)
	f.Fuzz(func(t *testing.T, header, body []byte, two bool) {
		seg := make([]byte, headerBytes+len(body))
		copy(seg[:headerUsed], header)
		copy(seg[headerBytes:], body)
		binary.BigEndian.PutUint64(seg[40:], uint64(len(seg)))
		putHeaderSum(seg)
		c := newMemFS()
		put := func(name string, b []byte) { c.edit(name, func([]byte) []byte { return b }) }
		put(headName, id)
		put(segmentName(1), seg)
		if two {
			put(segmentName(2), second)
		}
		openBounded(t, c, len(seg)+len(second))
	})
}

func putHeaderSum(seg []byte) {
	h, _ := decodeSegmentHeader(seg)
	h = segmentHeader{wal: binary.BigEndian.Uint64(seg[16:]), seq: binary.BigEndian.Uint64(seg[24:]), salt: binary.BigEndian.Uint64(seg[32:]), size: binary.BigEndian.Uint64(seg[40:])}
	copy(seg, h.encode()[:headerUsed])
}

// FuzzRecords shows the same of commits whose checksums are right, and their records arbitrary: what is cut of
// the fuzzer's bytes at each place where a record's length leads. If they are accepted, the log works, and
// another start finds the same.
func FuzzRecords(f *testing.F) {
	entry := func(i, term uint64) []byte {
		return appendEntry(nil, recEntry, 1, &raft.Log{Index: i, Term: term, Data: []byte("data")})
	}
	define := appendDefine(nil, 1, Name{1, "a"})
	f.Add(appendManifest(nil, nil), append(append(define, entry(1, 1)...), entry(2, 1)...), appendMark(nil, recTruncate, 1, 2))
	f.Add(appendManifest(nil, nil), append(append(define, entry(1, 1)...), entry(2, 1)...), appendMark(nil, recFirst, 1, 2))
	f.Add(appendManifest(nil, []manifestLog{{1, Name{1, "a"}, 1, 3}}), append([]byte{recCopy}, entry(1, 1)[1:]...), appendMark(nil, recFirst, 1, 4))
	f.Add(appendManifest(nil, []manifestLog{{1, Name{1, "a"}, 1, 1 << 22}}), appendMark(nil, recFirst, 1, 1<<22-1), appendMark(nil, recClear, 1, 0))
	f.Add(appendManifest(nil, []manifestLog{{1, Name{1, "a"}, 1, 1 << 63}}), appendMark(nil, recFirst, 1, 1<<63-2), appendMark(nil, recTruncate, 1, 1<<63-1))
	f.Add(appendManifest(nil, []manifestLog{{1, Name{1, "a"}, 1, 1<<64 - 1}}), appendMark(nil, recClear, 1, 0), entry(7, 7))
	f.Add(appendManifest(nil, []manifestLog{{1, Name{1, "a"}, 0, 0}, {2, Name{}, 0, 0}}), entry(7, 7), appendMark(nil, recDrop, 1, 0))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		if len(a)+len(b)+len(c) > 600 { // the fuzzer spends its time on making long ones shorter
			return
		}
		fs, size := logOf(t, a, b, c)
		w := openBounded(t, fs, size)
		if w == nil || w.off+32<<10 > int64(size) {
			return
		}
		for _, l := range w.list() {
			if last, _ := l.LastIndex(); last < 1<<63 {
				_, err := begin(l, entries(9, last+1, last+1, 10))
				must(t, err)
			}
		}
		batch, _ := w.take()
		must(t, w.commit(batch))
		w2 := openBounded(t, fs, size)
		if w2 == nil {
			t.Fatal("another start finds damage")
		}
		for _, name := range w.Names() {
			first, _ := w.Replica(name).FirstIndex()
			last, _ := w.Replica(name).LastIndex()
			first2, _ := w2.Replica(name).FirstIndex()
			last2, _ := w2.Replica(name).LastIndex()
			if first != first2 || last != last2 {
				t.Errorf("%v had %d to %d, and has %d to %d", name, first, last, first2, last2)
			}
		}
	})
}

// openBounded reads a WAL if it is not damaged, and all its entries. It starts no goroutines: the fuzzer
// takes each new order in which they run for something of interest.
func openBounded(t *testing.T, fs *memFS, size int) *WAL {
	w := newWAL(fs, Config{SegmentBytes: 16 << 10, Log: slog.New(slog.DiscardHandler)})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := w.recover()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > uint64(30*size)+1<<20 {
		t.Errorf("a start on %d bytes took %d", size, n)
	}
	if err != nil {
		return nil
	}
	for _, l := range w.list() {
		first, _ := l.FirstIndex()
		last, _ := l.LastIndex()
		for n := range last - first + 1 {
			if err := l.GetLog(first+n, new(raft.Log)); err != nil && last > 0 {
				t.Fatalf("entry %d of %v: %v", first+n, l.name, err)
			}
		}
	}
	return w
}
