package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/abacusdb/abacus/node"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
	"github.com/abacusdb/abacus/transport/transporttest"
)

// Elections in a fraction of a second: waiting costs nothing here, but what
// happens in a second does. The lease is as long as it may be, so that a deposed
// leader believes in itself for as long as it can: no promise may rest on a lease.
var timing = store.Timing{Heartbeat: 300 * time.Millisecond, Election: 300 * time.Millisecond, Lease: 300 * time.Millisecond,
	Commit: 40 * time.Millisecond, Stuck: 1500 * time.Millisecond}

const (
	// mmapBytes is the address space of a state file. It must never grow: the growth
	// waits, under a lock, for streams that wait for the network.
	mmapBytes = 16 << 20
	// baseDelay and baseJitter are of every message.
	baseDelay  = 200 * time.Microsecond
	baseJitter = 1500 * time.Microsecond
)

// cluster is the nodes of one scenario.
type cluster struct {
	opt     Options
	seed    uint64
	dir     string
	net     *transporttest.Network
	members []*member
	journal *journal
	zombies sync.WaitGroup // what crashed and has not ended yet
	shards  int            // in the end

	mu     sync.Mutex
	faults []error // violations found while it runs
}

// fault notes a violation.
func (c *cluster) fault(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.faults) < 20 {
		c.faults = append(c.faults, fmt.Errorf(format, args...))
	}
}

// err is what was violated so far.
func (c *cluster) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.faults...)
}

// member is a node through all its lives.
type member struct {
	c     *cluster
	id    string
	first bool
	lives int
	dir   string               // of the next life
	left  chan struct{}        // closed once the last life has left the network
	life  atomic.Pointer[life] // nil while it is down
}

// life is a node from its start to its stop or crash.
type life struct {
	id   string
	dir  string
	tr   transport.Transport
	node *node.Node
	disk *disk
	// ctx ends with the crash, and with it the calls of its clients.
	ctx    context.Context
	cancel context.CancelFunc
}

func (l *life) dead() bool { return l.ctx.Err() != nil }

func newCluster(seed uint64, opt Options, dir string) *cluster {
	c := &cluster{opt: opt, seed: seed, dir: dir, net: transporttest.NewNetwork(), journal: newJournal()}
	c.net.Seed(seed)
	c.net.Delay("", "", baseDelay)
	c.net.Jitter("", "", baseJitter)
	for i := range opt.Nodes {
		m := &member{c: c, id: fmt.Sprintf("n%d", i+1), first: i == 0, left: make(chan struct{})}
		close(m.left)
		m.dir = filepath.Join(dir, m.id+"-0")
		c.members = append(c.members, m)
	}
	return c
}

// start begins a member's next life.
func (m *member) start() error {
	<-m.left
	c := m.c
	l := &life{id: m.id, dir: m.dir}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.disk = newDisk(c, newRand(c.seed, fmt.Sprintf("disk %s %d", m.id, m.lives)), l.dead)
	m.lives++
	m.left = make(chan struct{})
	l.tr = c.net.Join(m.id)
	cfg := node.DefaultConfig()
	cfg.ID, cfg.DataDir, cfg.Shards, cfg.Replicas = m.id, l.dir, c.opt.Shards, c.opt.Replicas
	cfg.Transport, cfg.StopTimeout = l.tr, 8*time.Second
	cfg.Log = slog.New(c.journal)
	cfg.SegmentBytes = 64 << 10 // so that logs are copied forward, and files used again
	cfg.TuneStore = func(sc *store.Config) {
		sc.Timing, sc.Snapshots, sc.InitialMmapSize = timing, c.opt.Snapshots, mmapBytes
		sc.CheckpointBytes, sc.OnCheckpoint = c.opt.CheckpointBytes, l.disk.wait
		sc.WrapLog, sc.WrapStable = l.disk.wrapLog(sc.Shard, sc.Replica), l.disk.wrapStable
	}
	if cfg.Bootstrap = m.first; !m.first {
		cfg.Join = []string{c.members[0].id}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if l.node, err = node.Open(ctx, cfg); err != nil {
		l.tr.Close()
		close(m.left)
		l.cancel()
		return fmt.Errorf("start %s: %w", m.id, err)
	}
	c.zombies.Go(func() {
		select {
		case err := <-l.node.Failed():
			if !l.dead() {
				c.fault("node %s ended: %w", m.id, err)
			}
		case <-l.ctx.Done():
		}
	})
	m.life.Store(l)
	return nil
}

// crash stops members at one instant, without warning. It may be called by one
// goroutine at a time.
func (c *cluster) crash(ms []*member) error {
	synctest.Wait() // every goroutine waits for something: the files stand still
	var lives []*life
	for _, m := range ms {
		l := m.life.Load()
		m.dir = filepath.Join(c.dir, fmt.Sprintf("%s-%d", m.id, m.lives))
		if err := copyDir(m.dir, l.dir); err != nil {
			return fmt.Errorf("crash %s: %w", m.id, err)
		}
		lives = append(lives, l)
	}
	for _, l := range lives {
		l.cancel()
	}
	for i, m := range ms {
		m.life.Store(nil)
		l := lives[i]
		c.zombies.Go(func() {
			l.tr.Close()
			close(m.left)
			_ = l.node.Close() // a dead node's last words
			_ = os.RemoveAll(l.dir)
		})
	}
	return nil
}

// stop ends all lives gracefully.
func (c *cluster) stop() error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for _, m := range c.members {
		if l := m.life.Swap(nil); l != nil {
			wg.Go(func() {
				err := l.node.Close()
				l.cancel()
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					errs = append(errs, fmt.Errorf("stop %s: %w", l.id, err))
				}
			})
		}
	}
	wg.Wait()
	c.zombies.Wait()
	return errors.Join(errs...)
}

// up returns the members that run.
func (c *cluster) up() (list []*member) {
	for _, m := range c.members {
		if m.life.Load() != nil {
			list = append(list, m)
		}
	}
	return list
}

// leader returns the life whose replica of a shard leads, or nil.
func (c *cluster) leader(shard sharding.ShardID) (*life, *store.Store) {
	for _, m := range c.members {
		if l := m.life.Load(); l != nil {
			if st := l.node.Replica(shard); st != nil && st.IsLeader() {
				return l, st
			}
		}
	}
	return nil, nil
}

// newest returns the newest shard map that a running node knows.
func (c *cluster) newest() (m sharding.Map) {
	for _, mb := range c.members {
		if l := mb.life.Load(); l != nil {
			if n := l.node.Router().Map(); n.Epoch > m.Epoch {
				m = n
			}
		}
	}
	return m
}

// until waits for a condition, in virtual time.
func until(what string, patience time.Duration, ok func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %s: %w", patience, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// open starts all members and waits until every shard has all its replicas.
func (c *cluster) open() error {
	for _, m := range c.members {
		if err := m.start(); err != nil {
			return err
		}
		if m.first { // it must have written the map before others can be let in
			if err := until("the first node leads shard 0", time.Minute, func() error {
				if _, st := c.leader(0); st == nil {
					return errors.New("no leader")
				}
				return nil
			}); err != nil {
				return err
			}
		}
	}
	return until("all replicas have joined", 2*time.Minute, c.complete)
}

// release takes back all that an administrator has said of nodes, lets moves go on, and has the cluster made even.
func (c *cluster) release() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	node := c.members[0].life.Load().node
	say := func(words ...string) error {
		_, err := node.Admin(ctx, words)
		return err
	}
	for _, m := range c.members {
		if err := say("node", "uncordon", m.id); err != nil {
			return err
		}
	}
	for _, sh := range node.Router().Map().Shards {
		if sh.Move != nil && sh.Move.Paused {
			if err := say("shard", "resume", fmt.Sprint(sh.ID)); err != nil {
				return err
			}
		}
	}
	for _, mv := range node.Router().Map().SlotMoves {
		if mv.Paused {
			if err := say("slots", "resume", fmt.Sprint(mv.ID)); err != nil {
				return err
			}
		}
	}
	return say("rebalance", "once")
}

// complete says what is missing: no replica moves, nor is any to be moved; every node has the newest map, every replica of
// the map is open and a voter, and nobody else is a member.
func (c *cluster) complete() error {
	m := c.newest()
	for _, mb := range c.members {
		l := mb.life.Load()
		if l == nil {
			return fmt.Errorf("%s is down", mb.id)
		}
		if e := l.node.Router().Map().Epoch; e != m.Epoch {
			return fmt.Errorf("%s has map %d, the newest is %d", mb.id, e, m.Epoch)
		}
	}
	if m.Balance != sharding.BalanceNever {
		return fmt.Errorf("the cluster is not even yet: %s", m.Balance)
	}
	if len(m.SlotMoves) > 0 {
		mv := m.SlotMoves[0]
		return fmt.Errorf("slot move %d, from shard %d to %d, goes on; it waits for %q", mv.ID, mv.From, mv.To, m.WhySlotMoveWaits(mv.ID))
	}
	for _, sh := range m.Shards {
		if sh.Founding != "" {
			return fmt.Errorf("shard %d is still to be founded by %s", sh.ID, sh.Founding)
		}
		if sh.Move != nil {
			return fmt.Errorf("shard %d: %s moves to %s", sh.ID, sh.Move.From, sh.Move.To)
		}
		l, st := c.leader(sh.ID)
		if st == nil {
			return fmt.Errorf("shard %d has no leader", sh.ID)
		}
		members := st.Status().Members
		if len(members) != len(sh.Replicas) {
			return fmt.Errorf("shard %d, led by %s, has members %+v, the map wants %+v", sh.ID, l.id, members, sh.Replicas)
		}
		for _, mem := range members {
			if r, ok := sh.On(mem.Node); !ok || r.ID != mem.Replica || !mem.Voter {
				return fmt.Errorf("shard %d: member %+v, the map wants %+v", sh.ID, mem, sh.Replicas)
			}
		}
		for _, r := range sh.Replicas {
			if st := c.replica(r.Node, sh.ID); st == nil || st.Status().Replica != r.ID {
				return fmt.Errorf("replica %s of shard %d is not open", r.ID, sh.ID)
			}
		}
		if len(sh.Replicas) < 2 {
			return fmt.Errorf("shard %d has %d replicas", sh.ID, len(sh.Replicas))
		}
	}
	return nil
}

func (c *cluster) replica(nodeID string, shard sharding.ShardID) *store.Store {
	for _, m := range c.members {
		if l := m.life.Load(); m.id == nodeID && l != nil {
			return l.node.Replica(shard)
		}
	}
	return nil
}

// copyDir copies a directory of regular files, holes left as holes.
func copyDir(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		return copyFile(filepath.Join(to, rel), path)
	})
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); {
		data, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			break
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, at-data)); err != nil {
			return err
		}
	}
	return out.Close()
}
