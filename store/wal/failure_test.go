package wal

import (
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
)

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
