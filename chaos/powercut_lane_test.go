//go:build system

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/abacusdb/abacus/chaos/disk"
	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/transport/resp"
)

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
