//go:build system

package chaos_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/abacusdb/abacus/chaos/disk"
	"github.com/abacusdb/abacus/chaos/proc"
)

// cut cuts the power of all disks at once and gives it back.
func (l *powerLane) cut(moment int) error {
	if moment == cutUnderLoad {
		for i, n := range l.cluster.Nodes() {
			if !n.Running() {
				return l.fault("%s ended under load, before any cut, with exit code %d; its log:\n%s", n.ID(), exitCode(n), l.logSince(i))
			}
		}
	}
	share := []float64{0, 0.1, 0.5, 0.9}[l.pick(2, 2, 4, 2)]
	dirty, err := 0, error(nil)
	if moment == cutUnderLoad && l.rng.IntN(3) > 0 {
		if dirty, err = l.stopDirty(); err != nil {
			return err
		}
	}
	l.note("cut %d: %s, %d pages dirty (0: not known), share torn %g", l.report.allCuts()+1, cutNames[moment], dirty, share)
	compare := dirty > 0 || l.rng.IntN(4) == 0
	if compare {
		if err := l.witness(); err != nil {
			return err
		}
	}
	longest := 20 * time.Millisecond // of tearing what runs
	if moment == cutAtStop {
		longest = time.Millisecond // or it has ended
	}
	running, err := l.tearAndCut(share, dirty > 0, longest)
	if err != nil {
		return err
	}
	if dirty > 0 {
		l.report.dirty++
	}
	if moment == cutAtStop && running {
		l.report.stopping++
	}
	if err := l.kill(); err != nil {
		return err
	}
	var wrong []error
	for _, w := range l.writers {
		wrong = append(wrong, w.wait(&l.report))
	}
	if err := l.restore(); err != nil {
		return err
	}
	l.countSnapshots()
	l.report.cuts[moment]++
	l.done.Add(1)
	if err := errors.Join(wrong...); err != nil {
		return l.fault("under load: %v", err)
	}
	return nil
}

// witness looks at the files of all disks, until lookAway.
func (l *powerLane) witness() error {
	for _, d := range l.disks {
		w, err := d.Witness()
		if err != nil {
			return err
		}
		l.seen = append(l.seen, w)
	}
	return nil
}

// lookAway returns what the files held, and lets go of them.
func (l *powerLane) lookAway() (held []disk.Contents, err error) {
	for _, w := range l.seen {
		held = append(held, w.Contents())
		err = errors.Join(err, w.Release())
	}
	l.seen = nil
	return held, err
}

// restore gives the power back and counts what the cut has lost.
func (l *powerLane) restore() error {
	before, err := l.lookAway()
	if err != nil {
		return err
	}
	bit := true
	for _, d := range l.disks {
		lost, err := d.Restore()
		if err != nil {
			return err
		}
		bit = bit && lost
	}
	if bit {
		l.report.bit++
	}
	if before == nil {
		return nil
	}
	if err := l.witness(); err != nil {
		return err
	}
	after, err := l.lookAway()
	if err != nil {
		return err
	}
	lostPages := 0
	for i := range before {
		lostPages += before[i].Lost(after[i])
	}
	l.report.compared++
	l.report.lostPages += lostPages
	if lostPages > 0 {
		l.report.reverted++
	}
	return nil
}

// kill ends the processes. One that hangs in the kernel, at a disk without power, is
// no fault of the database; it is waited for, and said where it hangs.
func (l *powerLane) kill() error {
	err := l.cluster.Kill()
	for tries := 0; err != nil && tries < 5; tries++ {
		for _, n := range l.cluster.Nodes() {
			stacks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", n.Pid()))
			for _, path := range stacks {
				if text, e := os.ReadFile(path); e == nil && len(text) > 0 {
					l.cfg.Log("%v; %s:\n%s", err, path, text)
				}
			}
		}
		err = l.cluster.Kill()
	}
	return err
}

// stopDirty stops the processes (SIGSTOP) at a moment when some of their writes
// are not synced yet, which is a small part of the time. It returns how many
// pages that concerns, or 0 with the processes running if there was no such moment.
func (l *powerLane) stopDirty() (pages int, err error) {
	for deadline := time.Now().Add(400 * time.Millisecond); time.Now().Before(deadline); {
		if err := l.signalAll(syscall.SIGSTOP); err != nil {
			return 0, err
		}
		for _, n := range l.cluster.Nodes() {
			waitStopped(n.Pid())
		}
		for _, d := range l.disks {
			n, err := d.Dirty()
			if errors.Is(err, errors.ErrUnsupported) {
				return 0, l.signalAll(syscall.SIGCONT)
			} else if err != nil {
				return 0, err
			}
			pages += n
		}
		if pages > 0 {
			return pages, nil
		}
		if err := l.signalAll(syscall.SIGCONT); err != nil {
			return 0, err
		}
		time.Sleep(time.Duration(l.rng.Int64N(int64(2 * time.Millisecond))))
	}
	return 0, nil
}

// waitStopped waits until all threads of a process that got SIGSTOP stand still, or
// wait for a disk, after which they stop.
func waitStopped(pid int) {
	deadline := time.Now().Add(20 * time.Millisecond)
	for time.Now().Before(deadline) {
		still := true
		stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, path := range stats {
			data, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			_, rest, _ := strings.Cut(string(data), ") ")
			still = still && rest != "" && strings.Contains("TDZ", rest[:1])
		}
		if still {
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// tearAndCut cuts the power when some of what is dirty has been forced out. From
// processes that stand still it is torn first; from others, until the moment of
// the cut, or they would have synced it meanwhile. It says whether any node was running
// just before the cut: what hits an error of its disk afterwards ends by that.
func (l *powerLane) tearAndCut(share float64, still bool, longest time.Duration) (running bool, err error) {
	errs := make([]error, len(l.disks)+1)
	var wg sync.WaitGroup
	var stop atomic.Bool
	if share > 0 {
		for i, d := range l.disks {
			rng := rand.New(rand.NewPCG(l.rng.Uint64(), 0))
			wg.Go(func() {
				for again := true; again && errs[i] == nil; again = !still && !stop.Load() {
					errs[i] = d.Tear(share, rng)
				}
			})
		}
		if still {
			wg.Wait()
		} else {
			time.Sleep(time.Duration(l.rng.Int64N(int64(longest))))
		}
	}
	running = slices.ContainsFunc(l.cluster.Nodes(), (*proc.Node).Running)
	errs[len(l.disks)] = disk.Cut(l.disks...)
	stop.Store(true)
	wg.Wait()
	return running, errors.Join(errs...)
}
