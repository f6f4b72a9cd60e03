package wal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestReopen shows, on a real directory, that what was stored is there after a restart, over many
// segments and several logs, one of which stands still.
func TestReopen(t *testing.T) {
	dir := Dir(t.TempDir())
	w := open(t, dir, 64<<10)
	idle, busy := w.Replica(Name{1, "a"}), w.Replica(Name{2, "b"})
	must(t, idle.StoreLogs(entries(1, 1, 10, 500)))
	for i := uint64(1); i <= 2000; i += 10 {
		must(t, busy.StoreLogs(entries(1, i, i+9, 400)))
		if i > 50 {
			must(t, busy.DeleteRange(1, i-50))
		}
	}
	if s := w.Stats(); s.SegmentsInUse > keepSegments+1 || s.CopiedBytes == 0 {
		t.Errorf("%+v", s)
	}
	for range 3 {
		must(t, w.Close())
		w = open(t, dir, 64<<10)
		want(t, w.Replica(Name{1, "a"}), 1, terms(10, 1)...)
		want(t, w.Replica(Name{2, "b"}), 1942, terms(59, 1)...)
	}
	if names := w.Names(); !slices.Equal(names, []Name{{1, "a"}, {2, "b"}}) {
		t.Errorf("names %v", names)
	}
}

// TestEntryKeepsItsFields shows that each field of an entry comes back, with values at their limits.
func TestEntryKeepsItsFields(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	list := []*raft.Log{
		{Index: 7, Term: 1<<64 - 1, Type: raft.LogConfiguration, Data: []byte("d"), Extensions: []byte("x"), AppendedAt: time.Unix(5, 7)},
		{Index: 8, Extensions: []byte("only")},
		{Index: 9, Data: []byte{0}},
		{Index: 10},
	}
	must(t, w.Replica(Name{0, ""}).StoreLogs(list))
	w = reopen(t, fs, w, "close")
	for _, e := range list {
		var got raft.Log
		if must(t, w.Replica(Name{0, ""}).GetLog(e.Index, &got)); !sameEntry(e, &got) {
			t.Errorf("%+v came back as %+v", e, got)
		}
	}
}

// TestAppendIsReadable shows that what Append has accepted can be read at once, that Wait returns after the
// sync and not before, and that appends are answered in order. The sync is held meanwhile.
func TestAppendIsReadable(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	l := w.Replica(Name{1, "a"})
	held, release := fs.gate()
	defer release()
	var waits []*appended
	for i := range uint64(3) {
		a, err := begin(l, entries(1, 1+2*i, 2+2*i, 10))
		must(t, err)
		waits = append(waits, a)
	}
	<-held
	want(t, l, 1, terms(6, 1)...)
	if err := l.DeleteRange(1, 2); err == nil {
		t.Error("entries that are not on the disk yet were deleted from the beginning")
	}
	for _, a := range waits {
		if len(a.done) > 0 {
			t.Error("an append was answered before its sync")
		}
	}
	if w.Writing() <= 0 {
		t.Error("nothing is being written")
	}
	release()
	for range 2 { // Wait may be called again
		for i := range waits {
			must(t, waits[len(waits)-1-i].Wait())
		}
	}
	want(t, l, 1, terms(6, 1)...)
	want(t, reopen(t, fs, w, "cut").Replica(Name{1, "a"}), 1, terms(6, 1)...)
}

// TestRefused shows what is refused, and that it changes nothing.
func TestRefused(t *testing.T) {
	for _, size := range []int64{1, 16<<10 - 1, 1<<30 + 1} {
		if _, err := Open(newMemFS(), Config{SegmentBytes: size}); err == nil {
			t.Errorf("segments of %d bytes were accepted", size)
		}
	}
	w := open(t, newMemFS(), 16<<10)
	l := w.Replica(Name{1, "a"})
	must(t, l.StoreLogs(nil))
	must(t, l.StoreLogs(entries(1, 5, 10, 10)))
	big := make([]byte, maxAppendBytes/2)
	for what, list := range map[string][]*raft.Log{
		"a gap":          entries(1, 12, 13, 10),
		"a repetition":   entries(1, 10, 10, 10),
		"a gap within":   {{Index: 11}, {Index: 13}},
		"too many bytes": {{Index: 11, Data: big}, {Index: 12, Data: big}},
	} {
		if err := l.StoreLogs(list); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
	if err := w.Replica(Name{2, "b"}).StoreLog(&raft.Log{Index: 0}); err == nil {
		t.Error("entry 0 was accepted")
	}
	if err := l.DeleteRange(6, 7); err == nil {
		t.Error("a hole was accepted")
	}
	for _, r := range [][2]uint64{{1, 4}, {11, 20}, {8, 7}} { // nothing is there
		must(t, l.DeleteRange(r[0], r[1]))
	}
	want(t, l, 5, terms(6, 1)...)
}

// TestAppendersShareCommits shows that what comes while a commit is synced shares the next one: 64
// appends of 64 logs wait for a held sync, and take one more.
func TestAppendersShareCommits(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 64<<10)
	before := w.Stats()
	held, release := fs.gate()
	defer release()
	first, err := begin(w.Replica(Name{0, "a"}), entries(1, 1, 1, 10))
	must(t, err)
	<-held
	waits := []*appended{first}
	for i := range uint32(64) {
		a, err := begin(w.Replica(Name{1 + i, "a"}), entries(1, 1, 1, 10))
		must(t, err)
		waits = append(waits, a)
	}
	release()
	for _, a := range waits {
		must(t, a.Wait())
	}
	if s := w.Stats(); s.Commits-before.Commits != 2 || s.Requests != 65 {
		t.Errorf("%d requests took %d commits", s.Requests, s.Commits-before.Commits)
	}
}

// TestBigEntry shows that an entry of 20 MiB is stored, between small ones, in segments of 16 KiB, as the
// first of a new log too, and that its segment is removed when nobody needs it.
func TestBigEntry(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	l := w.Replica(Name{1, "a"})
	big := bytes.Repeat([]byte("0123456789abcdef"), 20<<20/16)
	for i := range uint64(2) {
		must(t, l.StoreLog(&raft.Log{Index: 1 + 2*i, Term: 1, Data: big}))
		must(t, l.StoreLogs(entries(1, 2+2*i, 2+2*i, 100)))
		w = reopen(t, fs, w, "cut")
		l = w.Replica(Name{1, "a"})
		want(t, l, 1, terms(int(2+2*i), 1)...)
		var e raft.Log
		if must(t, l.GetLog(1+2*i, &e)); !bytes.Equal(e.Data, big) {
			t.Fatal("the big entry is not what was stored")
		}
	}
	must(t, l.DeleteRange(1, 3))
	for i := uint64(5); w.Stats().DiskBytes > 1<<20; i++ {
		if i > 100 {
			t.Fatalf("%+v", w.Stats())
		}
		must(t, l.StoreLogs(entries(1, i, i, 5000)))
	}
	must(t, w.Close()) // and so waits for the files to go
	if s := w.Stats(); s.DiskBytes > 1<<20 {
		t.Errorf("%+v", s)
	}
}

// TestDurableOnReturn shows that a cut of the end, a clear and a drop are on the disk when they return: the
// power goes right after. A beginning that was deleted is, after the next append.
func TestDurableOnReturn(t *testing.T) {
	for what, c := range map[string]struct {
		do    func(w *WAL, l *Log) error
		first uint64
		terms []uint64
	}{
		"cut":   {func(_ *WAL, l *Log) error { return l.DeleteRange(4, 10) }, 1, terms(3, 1)},
		"clear": {func(_ *WAL, l *Log) error { return l.DeleteRange(1, 10) }, 0, nil},
		"drop":  {func(w *WAL, l *Log) error { return w.Drop(l.name) }, 0, nil},
		"install": {func(_ *WAL, l *Log) error {
			return errors.Join(l.DeleteRange(1, 10), l.StoreLogs(entries(2, 500, 501, 9)))
		}, 500, terms(2, 2)},
		"rewrite": {func(_ *WAL, l *Log) error {
			return errors.Join(l.DeleteRange(9, 10), l.StoreLogs(entries(2, 9, 11, 9)))
		}, 1, append(terms(8, 1), 2, 2, 2)},
		"compact": {func(_ *WAL, l *Log) error {
			return errors.Join(l.DeleteRange(1, 7), l.StoreLogs(entries(2, 11, 11, 9)))
		}, 8, []uint64{1, 1, 1, 2}},
	} {
		t.Run(what, func(t *testing.T) {
			fs := newMemFS()
			w := open(t, fs, 16<<10)
			must(t, w.Replica(Name{1, "a"}).StoreLogs(entries(1, 1, 10, 100)))
			must(t, c.do(w, w.Replica(Name{1, "a"})))
			for _, end := range []string{"cut", "close"} {
				w = reopen(t, fs, w, end)
				if what == "drop" && len(w.Names()) > 0 {
					t.Errorf("names %v after a drop", w.Names())
				}
				want(t, w.Replica(Name{1, "a"}), c.first, c.terms...)
			}
		})
	}
}

// TestBeginningDeletedBesideCut shows that compaction, which raft does beside its appends, does no harm to a cut
// of the end that waits for its sync, when nothing is left between them: the log is empty and takes any
// index, in this process and the next, and the segments that this frees may go.
func TestBeginningDeletedBesideCut(t *testing.T) {
	for _, early := range []bool{true, false} { // deleted before the cut is written, or while it is
		for _, end := range []string{"", "close", "cut"} {
			fs := newMemFS()
			w := open(t, fs, 16<<10)
			l, other := w.Replica(Name{1, "a"}), w.Replica(Name{2, "b"})
			must(t, l.StoreLogs(entries(1, 1, 10, 100)))
			must(t, other.StoreLogs(entries(1, 1, 1, 10)))
			held, release := fs.gate()
			if early {
				_, err := begin(other, entries(1, 2, 2, 10))
				must(t, err)
				<-held
			}
			cut := make(chan error)
			go func() { cut <- l.DeleteRange(5, 10) }()
			if early {
				waitFor(t, func() bool { return w.queued() > 0 })
			} else {
				<-held
			}
			must(t, l.DeleteRange(1, 4))
			release()
			must(t, <-cut)
			want(t, l, 0)
			if end == "cut" {
				must(t, other.DeleteRange(0, 10))
				for i := uint64(3); w.Stats().SegmentsInUse < 2; i++ { // the first segment goes
					must(t, other.StoreLogs(entries(1, i, i, 1000)))
				}
			}
			if end != "" {
				w = reopen(t, fs, w, end)
				l = w.Replica(Name{1, "a"})
				want(t, l, 0)
			}
			must(t, l.StoreLogs(entries(2, 50, 60, 10)))
			want(t, l, 50, terms(11, 2)...)
			want(t, reopen(t, fs, w, "cut").Replica(Name{1, "a"}), 50, terms(11, 2)...)
		}
	}
}

// TestAppendBesideClear shows that an entry accepted while all that is before it is deleted (compaction with nothing
// left behind, beside an append) is there afterwards.
func TestAppendBesideClear(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	l := w.Replica(Name{1, "a"})
	must(t, l.StoreLogs(entries(1, 1, 10, 100)))
	held, release := fs.gate()
	var running sync.WaitGroup
	running.Go(func() {
		if err := l.DeleteRange(1, 10); err != nil {
			t.Error(err)
		}
	})
	<-held
	a, err := begin(l, entries(2, 11, 12, 100))
	must(t, err)
	release()
	running.Wait()
	must(t, a.Wait())
	want(t, l, 11, 2, 2)
	must(t, l.DeleteRange(12, 12))
	want(t, l, 11, 2)
	want(t, reopen(t, fs, w, "cut").Replica(Name{1, "a"}), 11, 2)
}

// TestBeginningDeletedBeforeDrop shows that a segment does not go before the file says why: its entries were
// deleted, and their log's drop waits for the next commit because this one is full. The power goes in between.
func TestBeginningDeletedBeforeDrop(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 6<<20) // the big commit begins no new segment: its manifest would say it, too
	l, other := w.Replica(Name{1, "a"}), w.Replica(Name{2, "b"})
	must(t, l.StoreLogs(entries(1, 1, 5, 1<<20)))
	must(t, l.StoreLogs(entries(1, 6, 6, 1<<20)))
	held, release, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
	defer close(end)
	var syncs atomic.Int32
	fs.setHook(func(op fsOp, name string) {
		if _, ok := parseSegmentName(name); ok && op == opSync {
			switch syncs.Add(1) {
			case 1: // a small one, so that others wait
				close(held)
				<-release
			case 3: // the drop, after the big one
				<-end
			}
		}
	})
	_, err := begin(other, entries(1, 1, 1, 10))
	must(t, err)
	<-held
	big, err := begin(other, entries(1, 2, 2, maxGroupBytes))
	must(t, err)
	must(t, l.DeleteRange(1, 5))
	go w.Drop(l.name)
	waitFor(t, func() bool { return w.queued() == 2 })
	close(release)
	must(t, big.Wait())
	waitFor(t, func() bool { return fs.isDurable("spare-0000000000000001.tmp") })
	want(t, open(t, fs.clone(), 6<<20).Replica(l.name), 6, 1) // what is on the disk
}

// TestCloseAnswers shows that what was accepted before Close is written, and answered so; and that nothing is
// accepted afterwards, nor by a log that was dropped.
func TestCloseAnswers(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	l := w.Replica(Name{1, "a"})
	held, release := fs.gate()
	var waits []*appended
	for i := range uint64(3) {
		a, err := begin(l, entries(1, 1+i, 1+i, 10))
		must(t, err)
		waits = append(waits, a)
		<-held // the others wait
	}
	closed := make(chan error, 2)
	for range 2 { // a second Close waits for the first
		go func() { closed <- w.Close() }()
	}
	waitFor(t, func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.err != nil })
	if _, err := begin(l, entries(1, 4, 4, 10)); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	release()
	for _, a := range waits {
		must(t, a.Wait())
	}
	must(t, <-closed)
	must(t, <-closed)
	must(t, w.Close())
	for what, err := range map[string]error{
		"append": l.StoreLogs(entries(1, 4, 4, 10)), "cut": l.DeleteRange(3, 3), "clear": l.DeleteRange(1, 3),
		"compact": l.DeleteRange(1, 1), "drop": w.Drop(l.name),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after close: %v", what, err)
		}
	}
	if err := l.GetLog(1, new(raft.Log)); err == nil {
		t.Error("read after close")
	}
	fs.restart()
	w = open(t, fs, 16<<10)
	l = w.Replica(Name{1, "a"})
	want(t, l, 1, 1, 1, 1)

	must(t, w.Drop(l.name))
	must(t, w.Drop(l.name)) // there is none
	if err := l.StoreLogs(entries(1, 4, 4, 10)); err == nil {
		t.Error("append after drop")
	}
	if err := l.GetLog(1, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("read after drop: %v", err)
	}
	want(t, w.Replica(l.name), 0)
}

// TestDropAndAgain shows that a log that is dropped and made again has nothing of its former life, over
// restarts that give out numbers again, while old segments come and go.
func TestDropAndAgain(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	for round := range uint64(30) {
		for i, how := range []string{"kill", "cut", "close"} {
			name := Name{1, "a"}
			l := w.Replica(name)
			must(t, l.StoreLogs(entries(1+round, 1+round, 10+round, 200)))
			if i != 0 {
				must(t, w.Replica(Name{2, "b"}).DeleteRange(0, 1<<60))
			}
			must(t, w.Replica(Name{2, "b"}).StoreLogs(entries(1, 1, 1, 100)))
			must(t, w.Drop(name))
			must(t, w.Drop(Name{2, "b"}))
			must(t, w.Replica(Name{3, "c"}).StoreLogs(entries(2+round, 5, 6, 200)))
			w = reopen(t, fs, w, how)
			want(t, w.Replica(name), 0)
			want(t, w.Replica(Name{3, "c"}), 5, terms(2, 2+round)...)
			must(t, w.Drop(Name{3, "c"}))
		}
	}
	if s := w.Stats(); s.SegmentsInUse > 2 {
		t.Errorf("%+v", s)
	}
}

// TestIdleMark shows that a commit that nothing follows is marked a second later, and so is a beginning
// that was deleted: the power goes then, and one finds a flipped bit in it. In virtual time.
func TestIdleMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newMemFS()
		w := open(t, fs, 16<<10)
		l := w.Replica(Name{1, "a"})
		must(t, l.StoreLogs(entries(1, 1, 5, 10)))
		time.Sleep(2 * markAfter)
		synctest.Wait()
		at := int(w.off) // a mark is all header
		must(t, l.DeleteRange(1, 2))
		time.Sleep(3 * markAfter)
		synctest.Wait()
		commits := w.Stats().Commits
		time.Sleep(10 * markAfter)
		synctest.Wait()
		if n := w.Stats().Commits; n != commits {
			t.Errorf("%d commits while nothing happened", n-commits)
		}
		fs.kill()
		w.Close()
		fs.powerCut(rand.New(rand.NewPCG(1, 1)), true)
		flipped := fs.clone()
		flipped.edit(segmentName(1), func(b []byte) []byte { b[at-commitBytes-20] ^= 1; return b })
		if _, err := Open(flipped, Config{SegmentBytes: 16 << 10}); !errors.Is(err, ErrDamaged) {
			t.Errorf("a flipped bit in a commit that was marked: %v", err)
		}
		w = open(t, fs, 16<<10)
		want(t, w.Replica(Name{1, "a"}), 3, 1, 1, 1)
		w.Close()
	})
}
