package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestMain shows that nothing is left running when all tests have closed what they opened.
func TestMain(m *testing.M) {
	code := m.Run()
	for range 1000 { // the last instructions of a goroutine that has said that it ends
		if !strings.Contains(stacks(), "wal.(*preparer).run") && !strings.Contains(stacks(), "wal.(*WAL).run") {
			os.Exit(code)
		}
		runtime.Gosched()
	}
	fmt.Println("goroutines are left:\n" + stacks())
	os.Exit(1)
}

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// entries have so many bytes each, which follow from index and term.
func entries(term, from, to uint64, size int) (list []*raft.Log) {
	for i := from; i <= to; i++ {
		e := &raft.Log{Index: i, Term: term, Data: fmt.Appendf(make([]byte, 0, size+20), "%d ", i*1000+term)}
		for len(e.Data) < size {
			e.Data = append(e.Data, e.Data[:min(len(e.Data), size-len(e.Data))]...)
		}
		e.Data = e.Data[:size]
		list = append(list, e)
	}
	return list
}

// open opens a WAL that the test closes; it fails the test on a fatal error, unless the test ended the process.
func open(t testing.TB, fs FS, segmentBytes int64) *WAL {
	t.Helper()
	w, err := Open(fs, Config{SegmentBytes: segmentBytes, Fatal: func(err error) {
		if !errors.Is(err, errOff) {
			t.Errorf("fatal: %v", err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// appended is an append under way.
type appended struct{ done chan error }

func begin(l *Log, list []*raft.Log) (*appended, error) {
	a := &appended{done: make(chan error, 1)}
	return a, l.Append(list, func(err error) { a.done <- err })
}

// Wait returns when the entries are on the disk, or cannot get there. It may be called again.
func (a *appended) Wait() error {
	err := <-a.done
	a.done <- err
	return err
}

// want fails unless the log has these entries, each of the term that terms has at its place, and whole.
func want(t testing.TB, l *Log, first uint64, terms ...uint64) {
	t.Helper()
	gotFirst, _ := l.FirstIndex()
	gotLast, _ := l.LastIndex()
	last := first + uint64(len(terms)) - 1
	if len(terms) == 0 {
		first, last = 0, 0
	}
	if gotFirst != first || gotLast != last {
		t.Fatalf("%v has %d to %d, want %d to %d", l.name, gotFirst, gotLast, first, last)
	}
	for i, term := range terms {
		var e raft.Log
		must(t, l.GetLog(first+uint64(i), &e))
		if e.Index != first+uint64(i) || e.Term != term {
			t.Fatalf("%v: entry %d has index %d and term %d, want %d", l.name, first+uint64(i), e.Index, e.Term, term)
		}
	}
	for _, i := range []uint64{0, first - 1, last + 1} {
		if err := l.GetLog(i, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatalf("%v: entry %d: %v", l.name, i, err)
		}
	}
}

// terms is n times the term.
func terms(n int, term uint64) []uint64 { return slices.Repeat([]uint64{term}, n) }

// reopen closes or kills the WAL, or cuts its power, and opens it again.
func reopen(t testing.TB, fs *memFS, w *WAL, how string) *WAL {
	t.Helper()
	if how != "close" {
		fs.kill()
	}
	w.Close()
	if how == "cut" {
		fs.powerCut(rand.New(rand.NewPCG(1, 1)), true)
	} else {
		fs.restart()
	}
	return open(t, fs, w.cfg.SegmentBytes)
}

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

// TestIdleLogHoldsNothing shows that the disk is bounded while one log stands still and another goes
// on: never more than two bytes for each that is alive, and five segments; and what stands still is there.
func TestIdleLogHoldsNothing(t *testing.T) {
	const segment = 32 << 10
	fs := newMemFS()
	w := open(t, fs, segment)
	idle, busy := w.Replica(Name{1, "idle"}), w.Replica(Name{2, "busy"})
	must(t, idle.StoreLogs(entries(1, 1, 20, 700)))
	for i := uint64(1); i <= 6000; i += 5 {
		must(t, busy.StoreLogs(entries(1, i, i+4, 300)))
		if i > 20 {
			must(t, busy.DeleteRange(1, i-20))
		}
		if s := w.Stats(); s.DiskBytes > 2*s.LiveBytes+5*segment {
			t.Fatalf("after %d entries: %+v", i, s)
		}
	}
	s := w.Stats()
	if files, _ := fs.Names(); len(files) > int(s.SegmentsInUse)+maxSpares+2 {
		t.Errorf("files %q, in use %d", files, s.SegmentsInUse)
	}
	if s.CopiedBytes == 0 || 2*s.CopiedBytes > s.WrittenBytes {
		t.Errorf("%+v", s)
	}
	if s.SegmentsMade > keepSegments+maxSpares+2 {
		t.Errorf("%d segments were made", s.SegmentsMade)
	}
	want(t, reopen(t, fs, w, "cut").Replica(Name{1, "idle"}), 1, terms(20, 1)...)
}

// TestLargeIdleLog shows the bound when much stands still at the beginning of the log, and what comes
// comes in large commits: three bytes for each that is alive, and five segments.
func TestLargeIdleLog(t *testing.T) {
	const segment = 128 << 10 // in smaller ones, headers and ends would count
	w := open(t, newMemFS(), segment)
	idle, busy := w.Replica(Name{1, "idle"}), w.Replica(Name{2, "busy"})
	for i := uint64(1); i <= 1000; i += 10 {
		must(t, idle.StoreLogs(entries(1, i, i+9, 1000)))
	}
	worst := 0.0
	for i := uint64(1); i <= 6000; i += 20 {
		must(t, busy.StoreLogs(entries(1, i, i+19, 1000)))
		must(t, busy.DeleteRange(1, i))
		s := w.Stats()
		worst = max(worst, float64(s.DiskBytes-5*segment)/float64(s.LiveBytes))
	}
	if s := w.Stats(); worst > 3 || 2*s.CopiedBytes > s.WrittenBytes {
		t.Errorf("up to %.2f bytes of disk for one that is alive; %+v", worst, s)
	}
	want(t, idle, 1, terms(1000, 1)...)
}

// TestNothingIsCopiedAtRest shows that a log in which nothing is deleted, in segments half empty by their nature,
// is not copied for ever: each commit copies at most what it appends.
func TestNothingIsCopiedAtRest(t *testing.T) {
	w := open(t, newMemFS(), 16<<10)
	l := w.Replica(Name{1, "a"})
	for i := uint64(1); i <= 60; i++ {
		must(t, l.StoreLogs(entries(1, i, i, 6100)))
	}
	if s := w.Stats(); s.CopiedBytes == 0 || 2*s.CopiedBytes > s.WrittenBytes || s.Commits > 61 {
		t.Errorf("%+v", s)
	}
	want(t, l, 1, terms(60, 1)...)
}

// TestCopyBringsNothingBack cuts the end of a log, and appends it anew, while its segment is being copied forward: a few
// entries have been copied, those in question have not, or the other way round. The power goes at once, or when the end
// is there anew, or when all is copied.
func TestCopyBringsNothingBack(t *testing.T) {
	for _, c := range []struct {
		copied int64  // so many bytes, when
		from   uint64 // the log is cut from here
	}{{300, 20}, {300, 2}, {5000, 2}, {5000, 20}} {
		for _, end := range []string{"cut", "anew", "copied", "cleared", "dropped"} {
			fs := newMemFS()
			w := open(t, fs, 16<<10)
			idle, busy := w.Replica(Name{1, "idle"}), w.Replica(Name{2, "busy"})
			must(t, idle.StoreLogs(entries(1, 1, 30, 300)))
			next := uint64(1)
			write := func() {
				must(t, busy.StoreLogs(entries(1, next, next, 500)))
				must(t, busy.DeleteRange(1, next-1))
				next++
			}
			for w.Stats().CopiedBytes < c.copied {
				write()
			}
			first, left := uint64(1), terms(int(c.from-1), 1)
			switch end {
			case "cleared":
				must(t, idle.DeleteRange(1, 30))
				first, left = 7, nil
			case "dropped":
				must(t, w.Drop(idle.name))
				idle = w.Replica(idle.name)
				first, left = 7, nil
			default:
				must(t, idle.DeleteRange(c.from, 30))
			}
			if end != "cut" {
				must(t, idle.StoreLogs(entries(2, first+uint64(len(left)), 35, 250)))
				left = append(left, terms(35-int(first)-len(left)+1, 2)...)
			}
			if end != "cut" && end != "anew" {
				for range 200 {
					write()
				}
			}
			want(t, idle, first, left...)
			want(t, reopen(t, fs, w, "cut").Replica(idle.name), first, left...)
		}
	}
}

// TestCopyFindsDamage shows that an entry whose bytes have changed on the disk is found when it is read, and does not get a
// new checksum when it is copied forward: the log ends.
func TestCopyFindsDamage(t *testing.T) {
	fs := newMemFS()
	told := make(chan error, 1)
	w, err := Open(fs, Config{SegmentBytes: 16 << 10, Fatal: func(err error) { told <- err }})
	must(t, err)
	defer w.Close()
	idle, busy := w.Replica(Name{1, "idle"}), w.Replica(Name{2, "busy"})
	must(t, idle.StoreLogs(entries(1, 1, 3, 300)))
	at := w.Stats().WrittenBytes - 5
	fs.edit(segmentName(1), func(b []byte) []byte { b[headerBytes+at] ^= 1; return b })
	must(t, idle.GetLog(2, new(raft.Log)))
	idle.mu.Lock()
	right := idle.places[0]
	idle.places[0] = idle.places[1]
	idle.mu.Unlock()
	for i, what := range map[uint64]string{3: "a flipped bit", 1: "an entry in another's place"} {
		if err := idle.GetLog(i, new(raft.Log)); !errors.Is(err, ErrDamaged) {
			t.Errorf("read %s: %v", what, err)
		}
	}
	idle.mu.Lock()
	idle.places[0] = right
	idle.mu.Unlock()
	for next := uint64(1); err == nil && next < 1000; next++ {
		if err = busy.StoreLogs(entries(1, next, next, 500)); err == nil {
			err = busy.DeleteRange(1, next-1)
		}
	}
	if !errors.Is(err, ErrDamaged) || !errors.Is(<-told, ErrDamaged) {
		t.Errorf("copy forward: %v", err)
	}
}

// TestCopyBesideCut shows that order in a commit keeps a copy from bringing back what the same commit cuts and
// appends anew. Callers cannot ask for this, as a cut returns before its end is appended to; the loop does
// not rest on that.
func TestCopyBesideCut(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	idle, busy := w.Replica(Name{1, "idle"}), w.Replica(Name{2, "busy"})
	must(t, idle.StoreLogs(entries(1, 1, 30, 300)))
	for next := uint64(1); w.Stats().CopiedBytes == 0; next++ {
		must(t, busy.StoreLogs(entries(1, next, next, 500)))
		must(t, busy.DeleteRange(1, next-1))
	}
	done := make(chan error, 2)
	ended := func(err error) { done <- err }
	cut := &request{log: idle, op: opTruncate, index: 2, done: ended}
	anew := &request{log: idle, index: 2, done: ended}
	list := entries(2, 2, 30, 300)
	for _, e := range list {
		anew.records = appendEntry(anew.records, recEntry, idle.id, e)
		anew.sizes = append(anew.sizes, uint32(entrySize(e)))
	}
	held, release := fs.gate()
	other, err := begin(w.Replica(Name{3, "c"}), entries(1, 1, 1, 1))
	must(t, err)
	<-held
	idle.mu.Lock()
	must(t, w.enqueue(cut))
	must(t, w.enqueue(anew))
	idle.pending = append(idle.pending, list...)
	idle.mu.Unlock()
	copied := w.Stats().CopiedBytes
	release()
	must(t, errors.Join(other.Wait(), <-done, <-done))
	must(t, w.Replica(Name{3, "c"}).StoreLogs(entries(1, 2, 2, 1)))
	if n := w.Stats().CopiedBytes - copied; n < 5000 {
		t.Fatalf("only %d bytes were copied beside", n)
	}
	want(t, idle, 1, append(terms(1, 1), terms(29, 2)...)...)
	want(t, reopen(t, fs, w, "cut").Replica(idle.name), 1, append(terms(1, 1), terms(29, 2)...)...)
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

// TestReadsBesideRecycling shows that readers see whole entries, or that there is none, while segments are
// emptied and used again under them: on a real directory, for the race detector too.
func TestReadsBesideRecycling(t *testing.T) {
	w := open(t, Dir(t.TempDir()), 16<<10)
	idle, busy := w.Replica(Name{1, "idle"}), w.Replica(Name{2, "busy"})
	must(t, idle.StoreLogs(entries(1, 1, 20, 300)))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(1, 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, l := range []*Log{idle, busy} {
					first, _ := l.FirstIndex()
					last, _ := l.LastIndex()
					if first == 0 || last < first {
						continue
					}
					i := first + rng.Uint64N(last-first+1)
					var e raft.Log
					err := l.GetLog(i, &e)
					if err != nil && (l == idle || !errors.Is(err, raft.ErrLogNotFound)) {
						t.Errorf("%v: entry %d: %v", l.name, i, err)
						return
					}
					if err == nil && !sameEntry(&e, entries(1, i, i, 300)[0]) {
						t.Errorf("%v: entry %d is not what was stored", l.name, i)
						return
					}
				}
			}
		})
	}
	for i := uint64(1); i <= 2000; i += 5 {
		must(t, busy.StoreLogs(entries(1, i, i+4, 300)))
		if i > 10 {
			must(t, busy.DeleteRange(1, i-10))
		}
	}
	close(stop)
	readers.Wait()
	if s := w.Stats(); s.CopiedBytes == 0 {
		t.Errorf("%+v", s)
	}
}

// TestReaderHoldsSegment shows that a file is not used again while somebody reads in it: a read is held before
// it gets its bytes, its segment is let go, and appends go on until they would have overwritten it.
func TestReaderHoldsSegment(t *testing.T) {
	fs := newMemFS()
	w := open(t, fs, 16<<10)
	l := w.Replica(Name{1, "a"})
	must(t, l.StoreLogs(entries(1, 1, 10, 1000)))
	held, release := make(chan struct{}), make(chan struct{})
	var reads atomic.Int32
	fs.setHook(func(op fsOp, name string) {
		if op == opRead && reads.Add(1) == 1 {
			close(held)
			<-release
		}
	})
	var e raft.Log
	read, written := make(chan error, 1), make(chan error, 1)
	go func() { read <- l.GetLog(5, &e) }()
	<-held
	go func() {
		written <- func() error {
			for i := uint64(11); i <= 100; i++ {
				if err := errors.Join(l.StoreLogs(entries(2, i, i, 1000)), l.DeleteRange(1, i-1)); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	waitFor(t, func() bool { // either it waits, or it did what it should not
		for _, s := range strings.Split(stacks(), "\n\n") {
			if strings.Contains(s, "wal.(*preparer).putAside") && strings.Contains(s, "sync.(*RWMutex).Lock") {
				return true
			}
		}
		return len(written) > 0
	})
	close(release)
	must(t, <-read)
	if !sameEntry(&e, entries(1, 5, 5, 1000)[0]) {
		t.Error("the entry is not what was stored")
	}
	must(t, <-written)
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

func (w *WAL) queued() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue)
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

// waitFor waits until what another goroutine does is done.
func waitFor(t testing.TB, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
	}
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

// TestFailures fails each operation of a fixed load in turn, in three ways, and shows that Fatal is told, that who waits gets an
// error and Close ends; and that what was acknowledged is there when the process starts again, and
// still after a power cut (a sync that fails leaves pages that no other sync writes).
func TestFailures(t *testing.T) {
	for _, failure := range []error{syscall.EIO, syscall.ENOSPC, errShort} {
		done, told := 0, 0
		for at := 1; ; at++ {
			fs := newMemFS()
			var mu sync.Mutex
			var fatal []error
			w, err := Open(fs, Config{SegmentBytes: 16 << 10, Fatal: func(err error) { // the start is TestStartFails's
				mu.Lock()
				defer mu.Unlock()
				fatal = append(fatal, err)
			}})
			must(t, err)
			fs.mu.Lock()
			n, puttingAside := 0, false
			fs.fail = func(op fsOp, name string) error {
				if op != opRead && op != opOpen {
					if n++; n == at {
						_, old := parseSegmentName(name)
						puttingAside = op == opRename && old
						return failure
					}
				}
				return nil
			}
			fs.mu.Unlock()
			acknowledged := uint64(0)
			idle, l := w.Replica(Name{1, "idle"}), w.Replica(Name{1, "a"})
			err = idle.StoreLogs(entries(1, 1, 3, 1000))
			idleThere := err == nil
			for i := uint64(1); i <= 120 && err == nil; i += 3 {
				var waits []*appended
				for k := range uint64(3) {
					a, e := begin(l, entries(1, i+k, i+k, 700))
					if err = errors.Join(err, e); e == nil {
						waits = append(waits, a)
					}
				}
				for k, a := range waits {
					if e := a.Wait(); e != nil {
						err = e
					} else {
						acknowledged = i + uint64(k)
					}
				}
				if i > 6 && err == nil {
					err = l.DeleteRange(1, i-6)
				}
			}
			w.Close()
			mu.Lock()
			// That the next segment could not be made is told when it is needed.
			if n < at && len(fatal) > 0 || (err != nil || puttingAside) && len(fatal) == 0 {
				t.Fatalf("operation %d of %d failed: told %v, answered %v", at, n, fatal, err)
			}
			told += len(fatal)
			for _, e := range append(fatal, err) {
				if n >= at && e != nil && !errors.Is(e, failure) {
					t.Fatalf("operation %d failed: %v", at, e)
				}
			}
			mu.Unlock()
			if n < at {
				done = at
				break
			}
			fs.restart()
			var there uint64
			for _, how := range []string{"cut", "close"} {
				w = open(t, fs, 16<<10)
				l, idle = w.Replica(Name{1, "a"}), w.Replica(Name{1, "idle"})
				last, _ := l.LastIndex()
				if last < max(acknowledged, there) {
					t.Fatalf("operation %d failed: %d were acknowledged and %d seen, %d are there", at, acknowledged, there, last)
				}
				there = last
				if n, _ := idle.LastIndex(); n != 3 && idleThere {
					t.Fatalf("operation %d failed: the idle log has %d entries", at, n)
				}
				fs.kill()
				w.Close()
				if fs.restart(); how == "cut" {
					fs.powerCut(rand.New(rand.NewPCG(uint64(at), 1)), false)
				}
			}
		}
		if done < 100 || told < 2*done/3 {
			t.Errorf("%d operations, %d times Fatal was told", done, told)
		}
	}
}

// TestStartFails fails each operation of a start in turn: the error is returned, everything is closed,
// and the next start works.
func TestStartFails(t *testing.T) {
	for _, fresh := range []bool{true, false} {
		for at := 1; ; at++ {
			fs := newMemFS()
			if !fresh {
				w := open(t, fs, 16<<10)
				must(t, w.Replica(Name{1, "a"}).StoreLogs(entries(1, 1, 50, 700)))
				fs.kill()
				w.Close()
				fs.restart()
			}
			n := 0
			fs.fail = func(op fsOp, name string) error {
				if n++; n == at {
					return syscall.EIO
				}
				return nil
			}
			w, err := Open(fs, Config{SegmentBytes: 16 << 10, Fatal: func(error) {}})
			if err == nil {
				w.Close() // it may have been the preparer's
			} else if !errors.Is(err, syscall.EIO) {
				t.Fatalf("operation %d failed: %v", at, err)
			} else if errors.Is(err, ErrDamaged) {
				t.Fatalf("operation %d failed, and it is called damage: %v", at, err)
			}
			fs.restart()
			w = open(t, fs, 16<<10)
			if !fresh {
				want(t, w.Replica(Name{1, "a"}), 1, terms(50, 1)...)
			}
			must(t, w.Close())
			if n < at {
				break
			}
		}
	}
}
