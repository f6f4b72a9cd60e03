//go:build system

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestPowerCutOneNode cuts the power of nodes that are alone, so that each
// acknowledgement rests on that one disk. Many clusters of one node run side by
// side, for a start is mostly waiting for an election.
//
// The node is cut under load, right after its start, or while it stops; before
// that, random pages of its files are forced out, so that its last writes reach the disk
// torn and out of order. Then it must start again, and hold every acknowledged write. Each
// cluster keeps its file system over all its cuts, so that damage can gather.
//
// ABACUS_CUTS is how many cuts there are in this and the next test together,
// ABACUS_SEED repeats the choices of a run (but not the moments).
func TestPowerCutOneNode(t *testing.T) {
	all := cutsWanted(t)
	testPowerCuts(t, powerCuts{Nodes: 1, Shards: 2, Lanes: 16, Cuts: all - cutsOfThree(all)})
}

// TestPowerCutThreeNodes cuts the power of all three nodes of a cluster in the
// same instant: no majority is left that has anything in memory.
func TestPowerCutThreeNodes(t *testing.T) {
	testPowerCuts(t, powerCuts{Nodes: 3, Shards: 3, Lanes: 4, Cuts: cutsOfThree(cutsWanted(t))})
}

func cutsWanted(t *testing.T) int {
	text := os.Getenv("ABACUS_CUTS")
	if text == "" {
		return 300
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 20 {
		t.Fatalf("ABACUS_CUTS is %q: want a number of cuts, at least 20", text)
	}
	return n
}

// Three nodes take longer for a cut, and find less.
func cutsOfThree(all int) int { return all / 5 }

func testPowerCuts(t *testing.T, cfg powerCuts) {
	cfg.Abacusd, cfg.Seed, cfg.Patience, cfg.Log = abacusd, rand.Uint64(), time.Minute, t.Logf
	if text := os.Getenv("ABACUS_SEED"); text != "" {
		var err error
		if cfg.Seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ABACUS_SEED is %q: want a number", text)
		}
	}
	cfg.Dir = imageDir(t, int64(cfg.Lanes*cfg.Nodes)*diskBytes)
	// Interrupted, it still unmounts what it mounted.
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	t.Logf("ABACUS_SEED=%d", cfg.Seed)
	report, err := runPowerCuts(ctx, cfg)
	t.Log(report)
	if err != nil {
		t.Fatal(err)
	}
	if err := report.convincing(); err != nil {
		t.Fatal(err)
	}
}

const diskBytes = 256 << 20

// imageDir is where the images lie: in memory if there is room, or the syncs of a
// slow machine would be all that a run does. What counts as on the disk is what
// reached the loop device, wherever that keeps it.
func imageDir(t *testing.T, needBytes int64) string {
	const memory = "/dev/shm"
	var st syscall.Statfs_t
	if err := syscall.Statfs(memory, &st); err != nil || int64(st.Bavail)*st.Bsize < needBytes {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "abacus-powercut-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// powerCuts says what to run. It knows nothing of *testing.T, so that a test with
// a planted bug can run it too and demand a finding.
type powerCuts struct {
	Abacusd string
	// Dir is for the images of the disks and the clusters' logs.
	Dir string
	// Nodes and Shards of each cluster; Lanes is how many clusters run side by side,
	// and Cuts how many cuts they share.
	Nodes, Shards, Lanes, Cuts int
	Seed                       uint64
	// Patience is how long a cluster may take, after a start, until it answers for every key.
	Patience time.Duration
	Log      func(format string, args ...any)
}

// finding is a fault of the database: damage, or a write lost or invented. Other
// errors of runPowerCuts are troubles of the machine.
type finding struct {
	what string
	cuts int    // of the whole run, until it was found
	kept string // the directory with the evidence
}

func (f *finding) Error() string {
	return fmt.Sprintf("after %d cuts: %s\n(the disks, the logs and the history are kept in %s)", f.cuts, f.what, f.kept)
}

// runPowerCuts runs all lanes until the cuts are done or one finds a fault.
func runPowerCuts(ctx context.Context, cfg powerCuts) (*powerReport, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	var left, done atomic.Int64
	left.Store(int64(cfg.Cuts))
	var lanes []*powerLane
	var wg sync.WaitGroup
	errs := make([]error, cfg.Lanes)
	for n := range cfg.Lanes {
		// One after the other: losetup does not pick a free device and take it in one step.
		l, err := newPowerLane(cfg, n, &left, &done)
		if err != nil {
			cancel(err)
			errs[n] = err
			break
		}
		lanes = append(lanes, l)
		wg.Go(func() {
			err := l.run(ctx)
			var f *finding
			if errors.As(err, &f) {
				f.cuts = int(done.Load())
				f.kept = l.keep(f.what)
			}
			if err = errors.Join(err, l.close()); err != nil {
				errs[n] = fmt.Errorf("cluster %d: %w", n, err)
				cancel(err)
			}
		})
	}
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case <-finished:
			waiting = false
		case <-tick.C:
			cfg.Log("%d of %d cuts, %.1f a second", done.Load(), cfg.Cuts, float64(done.Load())/time.Since(began).Seconds())
		}
	}
	sum := &powerReport{took: time.Since(began)}
	for _, l := range lanes {
		sum.add(&l.report)
	}
	err := errors.Join(errs...)
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return sum, err
}
