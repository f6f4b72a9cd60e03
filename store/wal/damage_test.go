package wal

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// smallLog is a WAL of a few commits of all kinds in two segments, closed: its last commit is a mark.
func smallLog(t testing.TB) *memFS {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	a, b := w.Replica(Name{1, "a"}), w.Replica(Name{2, "b"})
	must(t, a.StoreLogs(entries(1, 1, 6, 300)))
	must(t, b.StoreLogs(entries(1, 7, 9, 13)))
	must(t, w.Replica(Name{3, "c"}).StoreLogs(entries(1, 1, 1, 5)))
	must(t, b.DeleteRange(9, 9))
	must(t, a.StoreLogs(entries(1, 7, 13, 1300)))
	must(t, w.Drop(Name{3, "c"}))
	must(t, a.DeleteRange(1, 2))
	must(t, b.DeleteRange(7, 8))
	must(t, b.StoreLogs(entries(2, 100, 103, 33)))
	must(t, w.Close())
	if w.Stats().SegmentsInUse != 2 {
		t.Fatalf("%+v", w.Stats())
	}
	fs.restart()
	return fs
}

func checkSmallLog(t testing.TB, w *WAL) {
	want(t, w.Replica(Name{1, "a"}), 3, terms(11, 1)...)
	want(t, w.Replica(Name{2, "b"}), 100, terms(4, 2)...)
}

func openErr(fs *memFS) error {
	w, err := Open(fs, Config{SegmentBytes: 16 << 10, Fatal: func(error) {}})
	if err == nil {
		w.Close()
	}
	return err
}

// newestSegment is the number of the segment that is written to.
func newestSegment(fs *memFS) (newest uint64) {
	names, _ := fs.Names()
	for _, name := range names {
		if seq, ok := parseSegmentName(name); ok {
			newest = max(newest, seq)
		}
	}
	return newest
}

// commitsIn lists where commits begin in a segment, and where the last one ends.
func commitsIn(seg []byte) (at []int, end int) {
	h, err := decodeSegmentHeader(seg)
	if err != nil {
		return nil, 0
	}
	for off := int64(headerBytes); ; {
		_, records, ok := openCommit(seg, h.salt, off)
		if !ok {
			return at, end
		}
		at, end = append(at, int(off)), int(off)+commitBytes+len(records)
		off += align(int64(commitBytes + len(records)))
	}
}

// TestFlippedBit shows that a flipped bit in any byte of a commit that was marked, of a segment's header or
// of wal.id is damage. What is not covered has no meaning: the rest of the header's page, the
// bytes between two commits, and what follows the last one; the last, which is a mark and says nothing else,
// is taken for one that a crash cut short.
func TestFlippedBit(t *testing.T) {
	fs := smallLog(t)
	rng := rand.New(rand.NewPCG(1, 1))
	names, _ := fs.Names()
	tried := 0
	for _, name := range names {
		if _, ok := parseSegmentName(name); !ok && name != headName {
			continue
		}
		whole := fs.bytes(name)
		at, end := commitsIn(whole)
		last := name == segmentName(2)
		covered := func(i int) bool {
			switch {
			case at == nil || i < headerUsed:
				return true
			case i < headerBytes || i >= end || last && i >= at[len(at)-1]:
				return false
			}
			n, found := slices.BinarySearch(at, i)
			if !found {
				n--
			}
			return i < at[n]+commitBytes+int(binary.BigEndian.Uint32(whole[at[n]+4:]))
		}
		for i := range whole {
			if !covered(i) && i%97 > 0 { // not all of it
				continue
			}
			c := fs.clone()
			c.edit(name, func(b []byte) []byte { b[i] ^= 1 << rng.IntN(8); return b })
			if !covered(i) {
				w := open(t, c, 16<<10)
				checkSmallLog(t, w)
				must(t, w.Close())
				continue
			}
			tried++
			if err := openErr(c); !errors.Is(err, ErrDamaged) {
				t.Fatalf("byte %d of %s: %v", i, name, err)
			}
		}
	}
	if tried < 12000 {
		t.Errorf("%d bytes were tried", tried)
	}
}

// TestTornTail shows that what a power cut leaves of the last commit is cut off, and that everything before it is
// there and the log goes on: each number of bytes of its beginning, and sectors at random.
func TestTornTail(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	l := w.Replica(Name{1, "a"})
	must(t, l.StoreLogs(entries(1, 1, 5, 200)))
	before := fs.bytes(segmentName(1))
	at := int(w.off)
	must(t, l.StoreLogs(entries(1, 6, 10, 400)))
	after := fs.bytes(segmentName(1))
	_, end := commitsIn(after)
	fs.kill()
	w.Close()
	fs.restart()

	check := func(what string, n int, seg []byte, whole bool) {
		t.Helper()
		c := fs.clone()
		c.edit(segmentName(1), func([]byte) []byte { return seg })
		w := open(t, c, 16<<10)
		l := w.Replica(Name{1, "a"})
		last := uint64(5)
		if whole {
			last = 10
		}
		if got, _ := l.LastIndex(); got != last {
			t.Fatalf("%s %d: the log ends at %d, want %d", what, n, got, last)
		}
		must(t, l.StoreLogs(entries(2, last+1, last+2, 150)))
		w = reopen(t, c, w, "cut")
		want(t, w.Replica(Name{1, "a"}), 1, append(terms(int(last), 1), 2, 2)...)
		must(t, w.Close())
	}
	for n := 0; at+n <= end; n++ {
		seg := slices.Clone(before)
		copy(seg[at:], after[at:at+n])
		check("prefix", n, seg, at+n == end)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for n := range 500 {
		seg := slices.Clone(before)
		whole := true
		for s := at / sectorBytes; s*sectorBytes < end; s++ {
			if rng.IntN(2) == 0 {
				copy(seg[s*sectorBytes:], after[s*sectorBytes:(s+1)*sectorBytes])
			} else {
				whole = false
			}
		}
		check("sectors", n, seg, whole)
	}
}

// TestLastCommit shows what cannot be decided: a flipped bit in the last commit, which nothing follows, looks as if a crash
// had cut it short, and so it is left out. After Close, which marks it, it is damage.
func TestLastCommit(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	l := w.Replica(Name{1, "a"})
	must(t, l.StoreLogs(entries(1, 1, 2, 20)))
	at := int(w.off)
	must(t, l.StoreLogs(entries(1, 3, 4, 20)))
	unmarked := fs.clone()
	must(t, w.Close())
	flip := func(b []byte) []byte { b[at+commitBytes+3] ^= 4; return b }

	unmarked.edit(segmentName(1), flip)
	w = open(t, unmarked, 16<<10)
	want(t, w.Replica(Name{1, "a"}), 1, 1, 1)

	fs.restart()
	fs.edit(segmentName(1), flip)
	if err := openErr(fs); !errors.Is(err, ErrDamaged) {
		t.Errorf("a flipped bit before the mark: %v", err)
	}
}

// TestStartMarks shows that what a crash left unmarked is marked by the next Close.
func TestStartMarks(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	must(t, w.Replica(Name{1, "a"}).StoreLogs(entries(1, 1, 2, 20)))
	at := int(w.end.off) - 20
	w = reopen(t, fs, w, "kill")
	must(t, w.Close())
	fs.restart()
	fs.edit(segmentName(1), func(b []byte) []byte { b[at] ^= 4; return b })
	if err := openErr(fs); !errors.Is(err, ErrDamaged) {
		t.Errorf("a flipped bit before the mark: %v", err)
	}
}

// TestMissing shows which files may be missing: none that something rests on. All others are damage.
func TestMissing(t *testing.T) {
	long := newMemFS() // four segments; entries of a log in the first one are needed
	w := open(t, long, 16<<10)
	must(t, w.Replica(Name{1, "old"}).StoreLogs(entries(1, 1, 2, 100)))
	for i := uint64(1); newestSegment(long) < 4; i++ {
		must(t, w.Replica(Name{2, "new"}).StoreLogs(entries(1, i, i, 1000)))
	}
	must(t, w.Close())
	long.restart()
	other := smallLog(t)

	remove := func(names ...string) func(fs *memFS) {
		return func(fs *memFS) {
			for _, name := range names {
				fs.edit(name, func([]byte) []byte { return nil })
			}
		}
	}
	set := func(name string, b []byte) func(fs *memFS) {
		return func(fs *memFS) { fs.edit(name, func([]byte) []byte { return b }) }
	}
	cut := func(name string, n int) func(fs *memFS) {
		return func(fs *memFS) { fs.edit(name, func(b []byte) []byte { return b[:n] }) }
	}
	s := segmentName
	for what, change := range map[string]func(fs *memFS){
		"the first, with live entries": remove(s(1)),
		"one in the middle":            remove(s(2)),
		"two in the middle":            remove(s(2), s(3)),
		"the last":                     remove(s(4)),
		"all":                          remove(s(1), s(2), s(3), s(4)),
		"all but the last":             remove(s(1), s(2), s(3)),
		"wal.id":                       remove(headName),
		"wal.id and the first":         remove(headName, s(1)),
		"wal.id and all but the first": remove(headName, s(2), s(3), s(4)),
		"wal.id is empty":              set(headName, []byte{}),
		"wal.id is cut short":          cut(headName, headBytes-1),
		"a segment of another log":     set(s(2), other.bytes(s(2))),
		"the first of another log":     set(s(1), other.bytes(s(1))),
		"wal.id of another log":        set(headName, other.bytes(headName)),
		"a segment in another's place": set(s(3), long.bytes(s(2))),
		"a segment twice":              set(s(5), long.bytes(s(4))),
		"a segment cut short":          cut(s(2), 9000),
		"a segment cut to its header":  cut(s(2), headerBytes),
		"the last cut short":           cut(s(4), 9000),
		"the first emptied":            cut(s(1), 0),
		"a header of zeros":            set(s(3), make([]byte, 16<<10)),
		"all commits of one are zeros": set(s(3), append(long.bytes(s(3))[:headerBytes], make([]byte, 12<<10)...)),
		"all commits of the first":     set(s(1), append(long.bytes(s(1))[:headerBytes], make([]byte, 12<<10)...)),
		"only the last's header is left": func(fs *memFS) {
			remove(s(1), s(2), s(3))(fs)
			set(s(4), append(long.bytes(s(4))[:headerBytes], make([]byte, 12<<10)...))(fs)
		},
	} {
		c := long.clone()
		change(c)
		if err := openErr(c); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// And these do no harm.
	for what, change := range map[string]func(fs *memFS){
		"what a preparer left": func(fs *memFS) {
			set("0000000000000005.tmp", make([]byte, 16<<10))(fs)
			set("spare-0000000000000001.tmp", []byte("x"))(fs)
			set("wal.id.tmp", []byte("x"))(fs)
		},
		"other files":  set("lost+found", []byte("x")),
		"a short name": set("1.wal", []byte("x")),
		"wal.id that is old": func(fs *memFS) {
			h, _ := readHead(fs)
			must(t, writeHead(fs, head{h.wal, 3}))
		},
	} {
		c := long.clone()
		change(c)
		w := open(t, c, 16<<10)
		want(t, w.Replica(Name{1, "old"}), 1, 1, 1)
		must(t, w.Close())
		if h, err := readHead(c); c.off == false && (err != nil || h.seq != 4) {
			t.Errorf("%s: wal.id has %+v, %v", what, h, err)
		}
	}
}

// TestLossOfLastSegmentIsNoticed shows that wal.id names each segment before anything in it is acknowledged: the power goes
// right after, and the segment is lost.
func TestLossOfLastSegmentIsNoticed(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	for i := uint64(1); i <= 40; i++ {
		must(t, w.Replica(Name{1, "a"}).StoreLogs(entries(1, i, i, 1000)))
		c := fs.clone()
		names, _ := c.Names()
		names = slices.DeleteFunc(names, func(name string) bool { _, ok := parseSegmentName(name); return !ok })
		if h, err := readHead(c); err != nil || segmentName(h.seq) != names[len(names)-1] {
			t.Fatalf("%q are there, wal.id has %+v, %v", names, h, err)
		}
	}
}

// TestSecondLife shows that nothing of a file's former life is valid: a segment is filled with commits, is used
// again, and each of its old commits that is still there is not taken for one, at the place where the log ends or
// after it.
func TestSecondLife(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	l := w.Replica(Name{1, "a"})
	old := 0
	for i := uint64(1); old == 0; i++ { // commits of one size: each new one ends where an old one begins
		if i == 1000 {
			t.Fatal("nothing is left of any file's former life")
		}
		must(t, l.StoreLogs(entries(1, i, i, 1000)))
		if i > 3 {
			must(t, l.DeleteRange(1, i-3))
		}
		if seq := newestSegment(fs); seq >= 12 {
			seg := fs.bytes(segmentName(seq))
			at, _ := commitsIn(seg)
			for j := headerBytes; j < len(seg); j += alignBytes {
				if binary.BigEndian.Uint32(seg[j:]) == commitMagic && !slices.Contains(at, j) {
					old++
				}
			}
		}
	}
	last, _ := l.LastIndex()
	w = reopen(t, fs, w, "cut")
	if got, _ := w.Replica(Name{1, "a"}).LastIndex(); got != last {
		t.Errorf("the log ends at %d, not at %d", got, last)
	}
}

// TestEveryCut ends a fixed load at each of its operations in turn, by a kill and by a power cut; starts, does a
// little more and cuts the power again: what a start rested on must be durable by then. Among the load: an idle
// log is copied forward while its end is cut and written anew, it is cleared and dropped; segments are used again.
func TestEveryCut(t *testing.T) {
	for _, how := range []string{"names", "cut", "kill"} {
		copied := int64(0)
		for at := 1; ; at++ {
			m := &world{t: t, rng: rand.New(rand.NewPCG(uint64(at), 7)), fs: newMemFS(), bytes: 16 << 10}
			m.logs = []*modelLog{{m: m, name: Name{1, "idle"}, states: []logState{{}}}, {m: m, name: Name{2, "busy"}, states: []logState{{}}}}
			m.fs.cutAt = at
			ended := m.script()
			copied = max(copied, m.stats.CopiedBytes)
			if ended {
				break
			}
			for range 2 {
				switch how {
				case "kill":
					m.fs.restart()
				default:
					m.fs.powerCut(m.rng, how == "cut")
				}
				w, err := Open(m.fs, Config{SegmentBytes: m.bytes, Fatal: func(error) {}})
				if err != nil {
					t.Fatalf("operation %d, %s: %v", at, how, err)
				}
				for _, l := range m.logs {
					l.recovered(w, false)
					must(t, l.append(w.Replica(l.name), m.rng, 1))
				}
				m.fs.kill()
				w.Close()
				m.fs.powerCut(m.rng, how != "names")
			}
			w, err := Open(m.fs, Config{SegmentBytes: m.bytes})
			must(t, err)
			for _, l := range m.logs {
				l.recovered(w, false)
			}
			must(t, w.Close())
		}
		if copied < 10_000 {
			t.Errorf("%d bytes were copied", copied)
		}
		if testing.Short() {
			break
		}
	}
}

// script runs the load. It returns whether it came to its end.
func (m *world) script() bool {
	w, err := Open(m.fs, Config{SegmentBytes: m.bytes, Fatal: func(error) {}})
	if err != nil {
		return false
	}
	defer func() {
		w.Close()
		m.stats = w.Stats()
	}()
	idle, busy := m.logs[0], m.logs[1]
	fill := func(n int) (err error) {
		for range n {
			l := w.Replica(busy.name)
			if err = busy.append(l, m.rng, 2); err != nil {
				return err
			}
			if s := busy.now(); len(s.ids) > 12 {
				hi := s.last() - 6
				if err = l.DeleteRange(s.first, hi); err != nil {
					return err
				}
				busy.states[len(busy.states)-1].first = max(s.first, hi+1)
			}
		}
		return nil
	}
	stand := func() (err error) {
		for range 4 {
			err = errors.Join(err, idle.append(w.Replica(idle.name), m.rng, 3))
		}
		return err
	}
	cut := func() error {
		s := idle.now()
		lo := s.first + uint64(len(s.ids))*2/3
		next := s
		next.ids = s.ids[: lo-s.low : lo-s.low]
		l := w.Replica(idle.name)
		return idle.try(next, func() error { return l.DeleteRange(lo, s.last()) })
	}
	clear := func() error {
		s := idle.now()
		return idle.try(logState{}, func() error { return w.Replica(idle.name).DeleteRange(s.first, s.last()) })
	}
	drop := func() error { return idle.try(logState{}, func() error { return w.Drop(idle.name) }) }
	for _, step := range []func() error{stand, stand, func() error { return fill(12) }, cut, func() error { return fill(1) }, stand, func() error { return fill(2) }, cut,
		func() error { return fill(12) }, clear, stand, func() error { return fill(10) }, drop, stand, func() error { return fill(6) }, cut, func() error { return fill(3) }} {
		if step() != nil {
			return false
		}
	}
	must(m.t, w.Close())
	return !m.fs.off
}

// TestFormat shows the bytes: who changes them has to change the version.
func TestFormat(t *testing.T) {
	h := segmentHeader{wal: 0x0102030405060708, seq: 9, salt: 0x1112131415161718, size: 16 << 10}
	commit := append(make([]byte, commitBytes), appendMark(nil, recTruncate, 3, 77)...)
	sealCommit(commit, h.salt, headerBytes, commitHeader{number: 5, synced: position{8, 12000}})
	entry := appendEntry(nil, recEntry, 3, &raft.Log{Index: 77, Term: 4, Type: raft.LogConfiguration, Data: []byte("data"), Extensions: []byte("ext")})
	sealEntry(entry, h.salt)
	fs := newMemFS()
	must(t, writeHead(fs, head{h.wal, 9}))
	for _, c := range []struct {
		what string
		got  []byte
		want string
	}{
		{"segment header", h.encode()[:headerUsed], "4142414357414c31000000010000100001020304050607080000000000000009111213141516171800000000000040004639bd11"},
		{"commit", commit, "434f4d540000000d000000000000000500000000000000080000000000002ee00000000000001000b2f6bdbd0600000003000000000000004d"},
		{"entry", entry, "0300000003000000000000004d000000000000000405000000000000000000000004000000035266531964617461657874"},
		{"define", appendDefine(nil, 3, Name{6, "ab"}), "02000000030000000600026162"},
		{"manifest", appendManifest(nil, []manifestLog{{3, Name{6, "ab"}, 70, 77}}), "01000000010000000300000006000261620000000000000046000000000000004d"},
		{"wal.id", fs.bytes(headName), "41424157414c49440000000101020304050607080000000000000009ffa8ba7f"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: %s", c.what, got)
		}
	}
	if len(h.encode()) != headerBytes || recEntry != 3 || recCopy != 4 || recFirst != 5 || recTruncate != 6 || recClear != 7 || recDrop != 8 {
		t.Error("a number changed")
	}
}
