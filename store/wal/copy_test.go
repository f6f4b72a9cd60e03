package wal

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"
)

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
