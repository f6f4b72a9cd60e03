//go:build linux

package campaign

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/abacusdb/abacus/chaos/disk"
	"github.com/abacusdb/abacus/chaos/lan"
	"github.com/abacusdb/abacus/chaos/proc"
)

// bed is the cluster under test: each node on a host of its own, with a disk of its own.
type bed struct {
	dir   string
	net   network
	disks []*disk.Disk // of host n at n-1
	c     *proc.Cluster
	log   func(format string, args ...any)

	mu    sync.Mutex
	hosts []host // of node n at n-1

	stop context.CancelFunc
	kept sync.WaitGroup
	// wrong are exits that nothing explains.
	wrong []string
	exits int // of nodes whose disks were made to fail
}

// host is what the keeper knows of a node.
type host struct {
	held bool // a step wants it down
	// excused: until then the end of its process with code 70 is its disk's fault, which a step has made.
	excused time.Time
	// robbed: its files were damaged, or its disk was made to fail, since its log was last looked at.
	robbed bool
	heard  int64 // up to where its log was looked at
	// again is when a process that ended is started; zero: it has not ended, or nobody has seen it.
	again   time.Time
	backoff time.Duration
	started time.Time
}

const (
	diskBytes = 1 << 30
	// firstBackoff and lastBackoff are what a service manager waits before it starts a process again.
	firstBackoff, lastBackoff = time.Second, 30 * time.Second
	// wellAfter is how long a process must live for the next end to be a first one.
	wellAfter = 30 * time.Second
	// dialTime bounds a connection of a user's own, with its handshake.
	dialTime = time.Second
	// exitFatal is how a node ends when its disk fails.
	exitFatal = 70
	// diskTimeout is the nodes' own: a disk that hangs for longer is given up.
	diskTimeout = 5 * time.Second
)

// newBed makes hosts, network and disks, and starts the nodes.
func newBed(ctx context.Context, cfg Config) (b *bed, err error) {
	b = &bed{dir: cfg.Dir, log: cfg.Log, hosts: make([]host, cfg.Nodes), stop: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close(""))
		}
	}()
	machine := proc.Config{
		Dir: filepath.Join(cfg.Dir, "cluster"), Abacusd: cfg.Abacusd, Env: cfg.Env, Nodes: cfg.Nodes, Shards: cfg.Shards, Replicas: cfg.Replicas, DieWithParent: true, TLS: !cfg.Plaintext,
		Args: []string{"--pprof", "--disk-timeout", diskTimeout.String(), "--min-free-disk", fmt.Sprint(16 << 20)},
	}
	if cfg.Rootless {
		b.net = &dialers{b: b, cut: map[lan.Link]uint64{}, all: map[lan.Link]uint64{}}
	} else if err := b.hosted(cfg, &machine); err != nil {
		return b, err
	}
	for n := 1; n <= cfg.Nodes; n++ {
		if err := writeFaults(b.faultFile(n), faults{}); err != nil {
			return b, err
		}
	}
	machine.NodeArgs = map[int][]string{}
	for n := 1; n <= cfg.Nodes; n++ {
		args := []string{"--fault-file", b.faultFile(n)}
		if n%2 == 0 {
			// Checkpoints and snapshots all the time, where the others meet few.
			args = append(args, "--checkpoint-bytes", "65536", "--snapshot-entries", "200", "--log-segment-bytes", "262144")
		}
		machine.NodeArgs[n] = args
	}
	if b.c, err = proc.Create(machine); err != nil {
		return b, err
	}
	if err := b.c.Start(); err != nil {
		return b, err
	}
	ready, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	if err := b.c.WaitReady(ready, nil); err != nil {
		return b, err
	}
	now := time.Now()
	for i := range b.hosts {
		b.hosts[i] = host{backoff: firstBackoff, started: now}
	}
	keep, stop := context.WithCancel(context.Background())
	b.stop = stop
	b.kept.Go(func() { b.keep(keep) })
	if cfg.Nodes > cfg.Replicas { // those that joined last have nothing yet
		if err := b.admin(ctx, "rebalance", "once"); err != nil {
			return b, err
		}
		whole, cancel := context.WithTimeout(ctx, settleTime)
		defer cancel()
		if err := b.sound(whole); err != nil {
			return b, err
		}
	}
	return b, nil
}

// hosted gives each node a host and a disk of its own.
func (b *bed) hosted(cfg Config, machine *proc.Config) error {
	net, err := lan.Create(cfg.Nodes)
	if err != nil {
		return fmt.Errorf("a network of namespaces: %w", err)
	}
	b.net = net
	for n := 1; n <= cfg.Nodes; n++ {
		d, err := disk.Create(cfg.Images, fmt.Sprintf("disk%d", n), diskBytes)
		if err != nil {
			return err
		}
		b.disks = append(b.disks, d)
	}
	machine.Args = append(machine.Args, "--insecure")
	machine.DataDir = func(n int) string { return filepath.Join(b.disk(n).Path(), "data") }
	machine.Host = func(n int) proc.Host { return proc.Host{Addr: net.Addr(n), Enter: net.Enter(n)} }
	return nil
}

func (b *bed) nodes() int             { return len(b.hosts) }
func (b *bed) node(n int) *proc.Node  { return b.c.Node(n) }
func (b *bed) disk(n int) *disk.Disk  { return b.disks[n-1] }
func (b *bed) faultFile(n int) string { return filepath.Join(b.dir, fmt.Sprintf("faults-n%d.json", n)) }
func (b *bed) at(n int) *host         { return &b.hosts[n-1] }
func names(nodes []int) string        { return strings.Join(namesOf(nodes), " ") }
func namesOf(nodes []int) (s []string) {
	for _, n := range nodes {
		s = append(s, fmt.Sprintf("n%d", n))
	}
	return s
}

// dial connects to a port of clients.
func (b *bed) dial(addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	defer cancel()
	return b.c.Dial(ctx, addr)
}

// keep is the service manager of all hosts.
func (b *bed) keep(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for n := 1; n <= b.nodes(); n++ {
			b.look(n, time.Now())
		}
	}
}

// look starts a node that has ended, once its time has come.
func (b *bed) look(n int, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.at(n)
	if h.held || b.node(n).Running() || !b.node(n).Ended() {
		return
	}
	if h.again.IsZero() {
		code, said := b.node(n).ExitCode(), lastWords(b.node(n).LogTail(50))
		explained := h.ended(code, said, now)
		b.log("n%d ended with code %d, starts again in %v: %s", n, code, time.Until(h.again).Round(time.Second), said)
		if b.exits++; !explained {
			b.wrong = append(b.wrong, fmt.Sprintf("n%d ended with code %d, and nothing was done to its disk: %s", n, code, said))
		}
	}
	if now.Before(h.again) {
		return
	}
	h.again, h.started = time.Time{}, now
	if err := b.node(n).Start(); err != nil {
		b.wrong = append(b.wrong, fmt.Sprintf("n%d does not start: %v", n, err))
	}
}

// ended takes down that a node's process has: when it is started again, and whether its end is explained by what was done to its disk.
func (h *host) ended(code int, said string, now time.Time) (explained bool) {
	if now.Sub(h.started) > wellAfter {
		h.backoff = firstBackoff
	}
	h.again = now.Add(h.backoff)
	h.backoff = min(2*h.backoff, lastBackoff)
	full := code == 1 && tellsNoRoom(said) // it tried to start meanwhile
	return (code == exitFatal || full) && !now.After(h.excused)
}

// lastWords is the line in which a node says why it ends.
func lastWords(log string) string {
	for _, line := range slices.Backward(strings.Split(log, "\n")) {
		if strings.HasPrefix(line, "abacusd: ") {
			return line
		}
	}
	return noLastWords
}

// saidSoFar is how long a node's log is; saidSince, the last words after that.
func (b *bed) saidSoFar(n int) int64 {
	info, err := os.Stat(b.node(n).LogPath())
	if err != nil {
		return 0
	}
	return info.Size()
}

func (b *bed) saidSince(n int, from int64) string { return lastWords(b.logSince(n, from)) }

func (b *bed) logSince(n int, from int64) string {
	log, err := os.ReadFile(b.node(n).LogPath())
	if err != nil || int64(len(log)) < from {
		return ""
	}
	return string(log[from:])
}

// tellsNoRoom says whether a node has found that a disk was full to the last byte.
func tellsNoRoom(log string) bool { return strings.Contains(log, syscall.ENOSPC.Error()) }

const noLastWords = "(it does not say why)"

// hold has nodes stay down when they end, until release.
func (b *bed) hold(nodes ...int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range nodes {
		b.at(n).held = true
	}
}

// accuse notes what must not be.
func (b *bed) accuse(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wrong = append(b.wrong, fmt.Sprintf(format, args...))
}

// release starts held nodes.
func (b *bed) release(nodes ...int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, n := range nodes {
		h := b.at(n)
		h.held, h.again, h.backoff, h.started = false, time.Time{}, firstBackoff, time.Now()
		if err := b.node(n).Start(); err != nil && !errors.Is(err, proc.ErrRunning) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// saysDamaged is what a node says of a replica that it cannot open or read.
const saysDamaged = `msg="replica damaged"`

// listen looks at what nodes have said since the last time: a replica may only be damaged where somebody has damaged it. A node that mends
// itself from the others would otherwise hide what it has lost.
func (b *bed) listen() {
	for n := 1; n <= b.nodes(); n++ {
		b.mu.Lock()
		from, robbed := b.at(n).heard, b.at(n).robbed
		b.mu.Unlock()
		until := b.saidSoFar(n)
		said := b.logSince(n, from)
		if i := strings.Index(said, saysDamaged); i >= 0 && !robbed {
			line, _, _ := strings.Cut(said[i:], "\n")
			b.accuse("n%d found damage, and nobody had damaged anything there: %s", n, line)
		}
		b.mu.Lock()
		b.at(n).heard, b.at(n).robbed = until, false
		b.mu.Unlock()
	}
}

// rob says that a node's files are not what it has written from now on.
func (b *bed) rob(nodes ...int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range nodes {
		b.at(n).robbed = true
	}
}

// excuse says that the disks of nodes are made to fail from now on.
func (b *bed) excuse(nodes ...int) { b.excuseUntil(time.Now().Add(24*time.Hour), nodes...) }

// acquit says that they are well. What a process has met by now it may still end for.
func (b *bed) acquit(nodes ...int) { b.excuseUntil(time.Now().Add(2*diskTimeout), nodes...) }

func (b *bed) excuseUntil(t time.Time, nodes ...int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range nodes {
		b.at(n).excused = t
	}
}

// kill ends processes with SIGKILL, all as nearly at once as can be, and holds them down.
func (b *bed) kill(nodes ...int) error {
	b.hold(nodes...)
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			if err := b.node(n).Kill(); err != nil && !errors.Is(err, proc.ErrNotRunning) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// close ends everything and takes it down. Where something is wrong it first puts what the nodes have stored into a directory, if one is given.
func (b *bed) close(keep string) error {
	b.stop()
	b.kept.Wait()
	var errs []error
	if b.c != nil {
		for _, n := range b.c.Nodes() {
			_ = n.Resume() // it may be paused, or not run at all
		}
		errs = append(errs, b.c.Kill())
		if keep != "" {
			errs = append(errs, b.keepData(keep))
		}
		b.c.Release()
	}
	for _, d := range b.disks {
		errs = append(errs, d.Close())
	}
	if b.net != nil {
		errs = append(errs, b.net.Close())
	}
	return errors.Join(errs...)
}

// unexplained are exits that no step has to answer for, and how many exits there were.
func (b *bed) unexplained() (wrong []string, exits int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.wrong), b.exits
}

// removeData takes away all that a node has stored.
func (b *bed) removeData(n int) error {
	if err := os.RemoveAll(b.node(n).DataDir()); err != nil {
		return fmt.Errorf("wipe n%d: %w", n, err)
	}
	return nil
}
