//go:build system

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/disk"
	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/transport/resp"
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

// The moments of a cut.
const (
	cutUnderLoad = iota
	cutAtStart
	cutAtStop
	cutMoments
)

var cutNames = [cutMoments]string{"under load", "at a start", "at a stop"}

// powerReport counts what a run did.
type powerReport struct {
	took time.Duration
	cuts [cutMoments]int
	// stopping: cuts at a stop that came before every node had ended.
	stopping int
	// dirty: cuts under processes that stood still with pages written and not synced.
	dirty int
	// bit: cuts that are seen to have lost bytes that were not synced, on every disk.
	bit int
	// compared are the cuts before and after which all files were read; of those, reverted had
	// lost pages of the database's files, lostPages in all.
	compared, reverted, lostPages int
	// acked writes; unanswered ones that the next start still had, or had not.
	acked, survived, vanished int64
	// checked: keys and counters that were judged after a start; reads under load.
	checked, reads int64
	starts         int
	snapshots      int           // of Raft: each cut the log
	slowest        time.Duration // start, until everything was read
}

func (r *powerReport) allCuts() (n int) {
	for _, c := range r.cuts {
		n += c
	}
	return n
}

func (r *powerReport) String() string {
	n := r.allCuts()
	return fmt.Sprintf("%d cuts in %v, %.1f a second (%d under load, %d at a start, %d at a stop and %d of these before its end); %d stood still with pages unsynced; %d of all lost unsynced bytes; of %d whose files were compared %d lost pages of the database, %d in all\n"+
		"%d writes acknowledged, none lost unless said below; of those without an answer %d survived and %d did not; %d values judged after %d starts, %d reads under load; %d times a log was cut; the slowest start took %v",
		n, r.took.Round(time.Second), float64(n)/r.took.Seconds(), r.cuts[cutUnderLoad], r.cuts[cutAtStart], r.cuts[cutAtStop], r.stopping, r.dirty, r.bit, r.compared, r.reverted, r.lostPages,
		r.acked, r.survived, r.vanished, r.checked, r.starts, r.reads, r.snapshots, r.slowest.Round(time.Millisecond))
}

func (r *powerReport) add(o *powerReport) {
	for m := range r.cuts {
		r.cuts[m] += o.cuts[m]
	}
	r.stopping += o.stopping
	r.dirty += o.dirty
	r.bit += o.bit
	r.compared += o.compared
	r.reverted += o.reverted
	r.lostPages += o.lostPages
	r.acked += o.acked
	r.survived += o.survived
	r.vanished += o.vanished
	r.checked += o.checked
	r.reads += o.reads
	r.starts += o.starts
	r.snapshots += o.snapshots
	r.slowest = max(r.slowest, o.slowest)
}

// convincing refuses a run in which little was at stake.
func (r *powerReport) convincing() error {
	const ackedPerCut = 50
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("this run shows nothing: "+format, args...))
		}
	}
	n := r.allCuts()
	check(r.acked >= int64(n*ackedPerCut), "%d writes were acknowledged before %d cuts", r.acked, n)
	// The canary is dirty for a moment only, but the kernel may write it out in that moment.
	check(r.bit >= n-n/100, "%d of %d cuts lost unsynced bytes", r.bit, n)
	check(r.reverted > 0, "none of %d compared cuts lost a page of the database", r.compared)
	check(r.vanished > 0, "no write without an answer was gone after a cut")
	check(r.checked > 0 && r.starts > 0, "%d values judged after %d starts", r.checked, r.starts)
	check(r.stopping > 0, "every cut at a stop came after its end")
	for m, c := range r.cuts {
		check(c > 0, "no cut %s", cutNames[m])
	}
	return errors.Join(errs...)
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

// powerLane is one cluster and its disks.
type powerLane struct {
	cfg     powerCuts
	n       int
	rng     *rand.Rand
	left    *atomic.Int64 // cuts that no lane has taken yet
	done    *atomic.Int64
	disks   []*disk.Disk
	cluster *proc.Cluster

	writers  []*powerWriter
	counters []*counter
	// seen is the disks' files, while somebody looks.
	seen []*disk.Witness
	// logFrom is where each node's log began at its last start.
	logFrom []int64
	// snapshots holds the metadata of each replica's newest one, by its file.
	snapshots map[string]string
	history   []string
	report    powerReport
}

func newPowerLane(cfg powerCuts, n int, left, done *atomic.Int64) (*powerLane, error) {
	const writers, keys, counters = 4, 48, 4
	l := &powerLane{cfg: cfg, n: n, rng: rand.New(rand.NewPCG(cfg.Seed, uint64(n))), left: left, done: done,
		logFrom: make([]int64, cfg.Nodes), snapshots: map[string]string{}}
	for i := range counters {
		l.counters = append(l.counters, &counter{name: fmt.Sprintf("counter/%d", i)})
	}
	for i := range writers {
		w := &powerWriter{rng: rand.New(rand.NewPCG(cfg.Seed, uint64(n)<<16|uint64(i+1))), counters: l.counters}
		for k := range keys {
			w.registers = append(w.registers, &register{name: fmt.Sprintf("w%d/key%d", i, k)})
		}
		l.writers = append(l.writers, w)
	}
	dir := filepath.Join(cfg.Dir, fmt.Sprintf("cluster%d", n))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for i := 1; i <= cfg.Nodes; i++ {
		d, err := disk.Create(dir, fmt.Sprintf("disk%d", i), diskBytes)
		if err != nil {
			return nil, errors.Join(err, l.close())
		}
		l.disks = append(l.disks, d)
	}
	var err error
	var args []string
	if n%2 == 1 {
		// Checkpoints and cuts of the log all the time, where the other lanes meet few.
		args = []string{"--checkpoint-bytes", "65536", "--snapshot-entries", "100", "--log-segment-bytes", "131072"}
	}
	l.cluster, err = proc.Create(proc.Config{
		Dir: dir, Abacusd: cfg.Abacusd, Nodes: cfg.Nodes, Shards: cfg.Shards, Args: args, DieWithParent: true,
		DataDir: func(n int) string { return filepath.Join(l.disks[n-1].Path(), "data") },
	})
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// close ends the processes and takes the disks down.
func (l *powerLane) close() error {
	var errs []error
	if l.cluster != nil {
		errs = append(errs, l.cluster.Kill())
		l.cluster.Release()
	}
	_, err := l.lookAway() // or the disks stay busy
	errs = append(errs, err)
	for _, d := range l.disks {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// run is one cut after the other, and a last look. A start that is cut short is
// not looked at: the next one shows what it did.
func (l *powerLane) run(ctx context.Context) error {
	if err := l.start(); err != nil {
		return err
	}
	// Every shard shall have all its replicas before the first cut.
	forming, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := l.cluster.WaitReady(forming, nil); ctx.Err() != nil {
		return nil // another cluster has the error
	} else if err != nil {
		return err
	}
	running := true // looked at, and ready for load
	for ctx.Err() == nil && l.left.Add(-1) >= 0 {
		moment := l.pick(6, 2, 2)
		if !running {
			if err := l.start(); err != nil {
				return err
			}
		}
		if moment == cutAtStart && !running {
			l.wait(ctx, l.duringStart())
		} else {
			if moment == cutAtStart {
				moment = cutUnderLoad
			}
			if !running {
				if err := l.look(ctx); err != nil {
					return err
				}
			}
			if ctx.Err() != nil {
				return nil
			}
			l.load(ctx)
			if moment == cutAtStop {
				if err := l.signalAll(syscall.SIGTERM); err != nil {
					return err
				}
				// A stop is quick: later there is nothing to cut into.
				longest := []time.Duration{500 * time.Microsecond, 5 * time.Millisecond, 100 * time.Millisecond}[l.pick(3, 2, 1)]
				l.wait(ctx, time.Duration(l.rng.Int64N(int64(longest))))
			}
		}
		if err := l.cut(moment); err != nil {
			return err
		}
		running = false
	}
	if ctx.Err() != nil {
		return nil // another cluster has the error
	}
	if err := l.start(); err != nil {
		return err
	}
	return l.look(ctx)
}

// duringStart is a time within a start: mostly while files are opened, sometimes
// later, around the election.
func (l *powerLane) duringStart() time.Duration {
	if l.rng.IntN(3) > 0 {
		return time.Duration(l.rng.Int64N(int64(80 * time.Millisecond)))
	}
	return time.Duration(l.rng.Int64N(int64(2500 * time.Millisecond)))
}

// pick returns i with a chance of weights[i].
func (l *powerLane) pick(weights ...int) int {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	at := l.rng.IntN(sum)
	for i, w := range weights {
		if at -= w; at < 0 {
			return i
		}
	}
	panic("unreachable")
}

func (l *powerLane) note(format string, args ...any) {
	l.history = append(l.history, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (l *powerLane) fault(format string, args ...any) error {
	f := &finding{what: fmt.Sprintf(format, args...)}
	l.note("%s", f.what)
	return f
}

func (l *powerLane) wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (l *powerLane) start() error {
	for i, n := range l.cluster.Nodes() {
		l.logFrom[i] = 0
		if info, err := os.Stat(n.LogPath()); err == nil {
			l.logFrom[i] = info.Size()
		}
	}
	l.note("start")
	return l.cluster.Start()
}

// look waits until the cluster answers for every key, and judges the answers.
func (l *powerLane) look(ctx context.Context) error {
	began := time.Now()
	var names []string
	for _, w := range l.writers {
		for _, r := range w.registers {
			names = append(names, r.name)
		}
	}
	for _, c := range l.counters {
		names = append(names, c.name)
	}
	found := map[string]powerValue{}
	var last error
	for len(found) < len(names) {
		n := l.cluster.Nodes()[l.rng.IntN(l.cfg.Nodes)]
		before := len(found)
		last = readPowerValues(ctx, n.Addrs().Client, names, found)
		if len(found) > before {
			continue
		}
		var answer *resp.ServerError
		if !errors.As(last, &answer) {
			for i, n := range l.cluster.Nodes() {
				if !n.Running() {
					return l.fault("%s does not start after a cut: exit code %d; its log ends with:\n%s", n.ID(), exitCode(n), l.logSince(i))
				}
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if waited := time.Since(began); waited > l.cfg.Patience {
			return l.fault("%d of %d keys cannot be read %v after a start, because: %v", len(names)-len(found), len(names), waited.Round(time.Second), last)
		}
		time.Sleep(20 * time.Millisecond) // between two polls of a node that starts
	}
	l.report.starts++
	l.report.slowest = max(l.report.slowest, time.Since(began))
	for i, n := range l.cluster.Nodes() {
		text := l.logSince(i)
		for _, word := range []string{"panic:", "fatal error:", "damaged", "corrupt"} {
			if strings.Contains(text, word) {
				return l.fault("%s started after a cut, but says %q; its log:\n%s", n.ID(), word, text)
			}
		}
	}
	var wrong []string
	for _, w := range l.writers {
		for _, r := range w.registers {
			v := found[r.name]
			survived, vanished, err := r.settle(v.bytes, v.found, v.at)
			if err != nil {
				wrong = append(wrong, err.Error())
			}
			l.report.survived += int64(survived)
			l.report.vanished += int64(vanished)
		}
	}
	for _, c := range l.counters {
		v, got := found[c.name], int64(0)
		var err error
		if v.found {
			got, err = strconv.ParseInt(string(v.bytes), 10, 64)
		}
		if err = errors.Join(err, c.settle(got)); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	l.report.checked += int64(len(names))
	l.note("looked after %v", time.Since(began))
	if len(wrong) > 0 {
		return l.fault("%d of %d keys are wrong:\n%s", len(wrong), len(names), strings.Join(wrong[:min(20, len(wrong))], "\n"))
	}
	return nil
}

// countSnapshots counts those that the nodes took, by their metadata. They are
// rare, a thousand or more writes apart, so a short run may well see none.
func (l *powerLane) countSnapshots() {
	for _, d := range l.disks {
		paths, _ := filepath.Glob(filepath.Join(d.Path(), "data", "shard-*", "*", "snapshots", "snapshot.json"))
		for _, path := range paths {
			if data, err := os.ReadFile(path); err == nil && string(data) != l.snapshots[path] {
				l.snapshots[path] = string(data)
				l.report.snapshots++
			}
		}
	}
}

// exitCode is that of a node that has just ended: it may not be waited for yet.
func exitCode(n *proc.Node) int {
	for deadline := time.Now().Add(time.Second); n.ExitCode() < 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	return n.ExitCode()
}

// logSince returns what a node logged since its last start, or the end of that.
func (l *powerLane) logSince(i int) string {
	data, err := os.ReadFile(l.cluster.Nodes()[i].LogPath())
	if err != nil || int64(len(data)) < l.logFrom[i] {
		return ""
	}
	data = data[l.logFrom[i]:]
	if len(data) > 8<<10 {
		data = data[len(data)-8<<10:]
	}
	return string(data)
}

// load lets all writers write until some writes are acknowledged, and leaves them
// writing. A slow machine is given time, or a cut would find nothing to lose.
func (l *powerLane) load(ctx context.Context) {
	for i, w := range l.writers {
		n := l.cluster.Nodes()[(i+l.rng.IntN(l.cfg.Nodes))%l.cfg.Nodes]
		w.start(n.Addrs().Client)
	}
	wanted := 1 + l.rng.Int64N(600)
	deadline := time.Now().Add(3 * time.Second)
	for ctx.Err() == nil && time.Now().Before(deadline) {
		var acked int64
		for _, w := range l.writers {
			acked += w.acked.Load()
		}
		if acked >= wanted {
			break
		}
		time.Sleep(time.Millisecond)
	}
	// Not always right after an answer.
	l.wait(ctx, time.Duration(l.rng.Int64N(int64(20*time.Millisecond))))
}

func (l *powerLane) signalAll(sig syscall.Signal) error {
	for _, n := range l.cluster.Nodes() {
		if pid := n.Pid(); pid != 0 {
			if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("send %v to %s: %w", sig, n.ID(), err)
			}
		}
	}
	return nil
}

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

// keep copies everything that could explain a finding, and returns where to.
func (l *powerLane) keep(what string) string {
	dir, err := os.MkdirTemp("", "abacus-powercut-")
	if err != nil {
		return err.Error()
	}
	errs := []error{l.cluster.Kill()}
	for i, n := range l.cluster.Nodes() {
		for _, source := range []string{l.disks[i].Path(), l.disks[i].Image(), n.LogPath()} {
			out, err := exec.Command("cp", "-a", "--sparse=always", source, dir).CombinedOutput()
			if err != nil {
				errs = append(errs, fmt.Errorf("copy %s: %w: %s", source, err, out))
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, cluster %d\n%s\n\nHistory:\n%s\n\nKeys:\n", l.cfg.Seed, l.n, what, strings.Join(l.history, "\n"))
	now := time.Now()
	for _, w := range l.writers {
		for _, r := range w.registers {
			fmt.Fprintf(&b, "%s: %s\n", r.name, r.known(now))
		}
	}
	for _, c := range l.counters {
		fmt.Fprintf(&b, "%s: %d, %d acknowledged since, %d without an answer\n", c.name, c.base, c.acked, c.pending)
	}
	errs = append(errs, os.WriteFile(filepath.Join(dir, "history.txt"), []byte(b.String()), 0o644))
	if err := errors.Join(errs...); err != nil {
		l.cfg.Log("keep the evidence: %v", err)
	}
	return dir
}
