package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
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

func (w *WAL) queued() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue)
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
