package store

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
)

func indexes(t *testing.T, l *logStore) (first, last uint64) {
	t.Helper()
	first, err := l.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err = l.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	return first, last
}

// What is stored is read back, through the cache and past it, after any
// truncation of a suffix or a prefix.
func TestLogStore(t *testing.T) {
	l, _ := openLog(t)
	check := func(term, from, to uint64) {
		t.Helper()
		for i := from; i <= to; i++ {
			var e raft.Log
			if err := l.GetLog(i, &e); err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
			if want := fmt.Sprintf("%d@%d", i, term); e.Index != i || e.Term != term || string(e.Data) != want {
				t.Fatalf("entry %d is %q of term %d, want %s", i, e.Data, e.Term, want)
			}
		}
	}
	missing := func(i uint64) {
		t.Helper()
		var e raft.Log
		if err := l.GetLog(i, &e); !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
	const n = 3 * cacheEntries
	for i := uint64(1); i <= n; i += 64 {
		if err := l.StoreLogs(entries(1, i, i+63)); err != nil {
			t.Fatal(err)
		}
	}
	check(1, 1, n)
	missing(n + 1)
	if err := l.DeleteRange(n-10, n); err != nil {
		t.Fatal(err)
	}
	missing(n - 10)
	if err := l.StoreLogs(entries(2, n-10, n+5)); err != nil {
		t.Fatal(err)
	}
	check(1, 1, n-11)
	check(2, n-10, n+5)
	if err := l.DeleteRange(1, n-20); err != nil {
		t.Fatal(err)
	}
	missing(1)
	missing(n - 20)
	if first, last := indexes(t, l); first != n-19 || last != n+5 {
		t.Fatalf("log is %d to %d", first, last)
	}
	check(1, n-19, n-11)
	check(2, n-10, n+5)
}

// The cache holds no more bytes than it may, and forgets the oldest first.
func TestLogCacheIsBounded(t *testing.T) {
	l, _ := openLog(t)
	big := bytes.Repeat([]byte("x"), cacheBytes/4)
	for i := uint64(1); i <= 12; i++ {
		if err := l.StoreLog(&raft.Log{Index: i, Term: 1, Data: big}); err != nil {
			t.Fatal(err)
		}
		held := 0
		for j := range l.ring {
			if l.ring[j].Index != 0 {
				held += entrySize(&l.ring[j])
			}
		}
		if held != l.bytes || held > cacheBytes+entrySize(&l.ring[0]) {
			t.Fatalf("after entry %d the cache holds %d bytes and counts %d", i, held, l.bytes)
		}
	}
	for i := uint64(1); i <= 12; i++ {
		var e raft.Log
		if err := l.GetLog(i, &e); err != nil || e.Index != i {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
}

// Any error of the log stops the process, deletions included: raft only logs those.
func TestLogFailsStop(t *testing.T) {
	l, _ := openLog(t)
	g := newGate(l.inner)
	l.inner = g
	g.fail = errDisk
	if err := fails(t, func() { _ = l.StoreLogs(entries(1, 1, 2)) }); !errors.Is(err, errDisk) {
		t.Errorf("store: %v", err)
	}
	l.inner = brokenDelete{l.inner}
	if err := fails(t, func() { _ = l.DeleteRange(1, 2) }); !errors.Is(err, errDisk) {
		t.Errorf("delete: %v", err)
	}
	l.inner = lazyDelete{newGate(g.LogStore)}
	if err := l.StoreLogs(entries(1, 1, 9)); err != nil {
		t.Fatal(err)
	}
	if err := fails(t, func() { _ = l.DeleteRange(3, 9) }); err == nil {
		t.Error("a deletion that left entries went unnoticed")
	}
}

type brokenDelete struct{ raft.LogStore }

func (brokenDelete) DeleteRange(_, _ uint64) error { return errDisk }

type lazyDelete struct{ raft.LogStore }

func (lazyDelete) DeleteRange(_, _ uint64) error { return nil }

// The term is kept and never falls; unchanged, it is not written.
func TestTermNeverFalls(t *testing.T) {
	_, s := openLog(t)
	term := func(v uint64) error { return s.SetUint64([]byte(keyCurrentTerm), v) }
	for _, v := range []uint64{0, 3, 3, 4} {
		if err := term(v); err != nil {
			t.Fatal(err)
		}
	}
	again, err := newStableStore(s.inner, s.path, stopProcess)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := again.GetUint64([]byte(keyCurrentTerm)); err != nil || v != 4 {
		t.Fatalf("term is %d, %v", v, err)
	}
	if err := fails(t, func() { _ = term(3) }); err == nil {
		t.Error("the term fell")
	}
	if v, _ := s.GetUint64([]byte(keyCurrentTerm)); v != 4 {
		t.Errorf("term is %d after a refused fall", v)
	}
}

// A crash between the two halves of raft's vote leaves the vote before, whole
// (hazard R25): otherwise the candidate of term 5 would have a vote in term 8.
func TestVoteIsOneValue(t *testing.T) {
	_, s := openLog(t)
	vote := func(s *stableStore) (uint64, string) {
		t.Helper()
		term, err := s.GetUint64([]byte(keyLastVoteTerm))
		if err != nil {
			t.Fatal(err)
		}
		cand, err := s.Get([]byte(keyLastVoteCand))
		if err != nil {
			t.Fatal(err)
		}
		return term, string(cand)
	}
	reopen := func() *stableStore {
		t.Helper()
		again, err := newStableStore(s.inner, s.path, stopProcess)
		if err != nil {
			t.Fatal(err)
		}
		return again
	}
	if s.voted() {
		t.Error("a new store has voted")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.SetUint64([]byte(keyLastVoteTerm), 5))
	if reopen().voted() {
		t.Error("half a vote counts")
	}
	must(s.Set([]byte(keyLastVoteCand), []byte("a")))
	if term, cand := vote(reopen()); term != 5 || cand != "a" {
		t.Fatalf("vote is %d %q", term, cand)
	}
	must(s.SetUint64([]byte(keyLastVoteTerm), 8))
	if term, cand := vote(reopen()); term != 5 || cand != "a" {
		t.Fatalf("after a crash between the halves the vote is %d %q", term, cand)
	}
	must(s.Set([]byte(keyLastVoteCand), []byte("b")))
	if term, cand := vote(reopen()); term != 8 || cand != "b" {
		t.Fatalf("vote is %d %q", term, cand)
	}
	must(s.SetUint64([]byte(keyLastVoteTerm), 8))
	if err := fails(t, func() { _ = s.Set([]byte(keyLastVoteCand), []byte("c")) }); err == nil {
		t.Error("voted twice in one term")
	}
}

// A vote is stored as these bytes, and one of another format is refused: taken
// for none, it would be given again.
func TestVoteFormat(t *testing.T) {
	_, s := openLog(t)
	if err := errors.Join(s.SetUint64([]byte(keyLastVoteTerm), 5), s.Set([]byte(keyLastVoteCand), []byte("a"))); err != nil {
		t.Fatal(err)
	}
	want := []byte{1, 0, 0, 0, 0, 0, 0, 0, 5, 'a'}
	if got, err := s.inner.Get([]byte(keyVote)); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("stored as %v, %v", got, err)
	}
	for _, bad := range [][]byte{{}, {1}, want[:8], {0, 0, 0, 0, 0, 0, 0, 0, 5, 'a'}, {2, 0, 0, 0, 0, 0, 0, 0, 5, 'a'}} {
		if err := s.inner.Set([]byte(keyVote), bad); err != nil {
			t.Fatal(err)
		}
		if _, err := newStableStore(s.inner, s.path, stopProcess); err == nil {
			t.Errorf("%v was taken for a vote", bad)
		}
	}
}

// After an install, raft deletes the log. If its own last index lies above the
// snapshot, it must be restarted (hazard R24); if not, or when a suffix is
// truncated later, it must not.
func TestEmptiedLogIsNoticed(t *testing.T) {
	for _, c := range []struct {
		name       string
		last, snap uint64
		want       bool
	}{{"log ends above the snapshot", 40, 26, true}, {"log ends below", 20, 26, false}, {"log ends at it", 26, 26, false}} {
		t.Run(c.name, func(t *testing.T) {
			l, _ := openLog(t)
			called := false
			l.emptied = func() { called = true }
			if err := l.StoreLogs(entries(1, 1, c.last)); err != nil {
				t.Fatal(err)
			}
			l.installed.Store(c.snap)
			if err := l.DeleteRange(1, c.last); err != nil {
				t.Fatal(err)
			}
			if called != c.want {
				t.Errorf("noticed: %v, want %v", called, c.want)
			}
		})
	}
	t.Run("later truncation", func(t *testing.T) {
		l, _ := openLog(t)
		l.emptied = func() { t.Error("taken for an install") }
		l.installed.Store(26) // over an empty log: raft deletes nothing
		if err := l.StoreLogs(entries(1, 27, 40)); err != nil {
			t.Fatal(err)
		}
		if err := l.DeleteRange(27, 40); err != nil {
			t.Fatal(err)
		}
	})
}

// The entry at the snapshot's end can be asked for after the log below was deleted.
func TestSnapshotEndIsKnown(t *testing.T) {
	l, _ := openLog(t)
	l.snapshotEnd = func() (uint64, uint64) { return 26, 7 }
	var e raft.Log
	if err := l.GetLog(26, &e); err != nil || e.Index != 26 || e.Term != 7 {
		t.Errorf("snapshot end: %+v, %v", e, err)
	}
	for _, i := range []uint64{25, 27} {
		if err := l.GetLog(i, &e); !errors.Is(err, raft.ErrLogNotFound) {
			t.Errorf("entry %d: %v", i, err)
		}
	}
}
