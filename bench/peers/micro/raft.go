package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	bolt "go.etcd.io/bbolt"
)

// nullFSM counts. batchFSM also takes batches.
type nullFSM struct{ n atomic.Uint64 }

func (f *nullFSM) Apply(l *raft.Log) any               { return f.n.Add(1) }
func (f *nullFSM) Snapshot() (raft.FSMSnapshot, error) { return f, nil }
func (f *nullFSM) Restore(r io.ReadCloser) error       { return r.Close() }
func (f *nullFSM) Persist(s raft.SnapshotSink) error   { return s.Close() }
func (f *nullFSM) Release()                            {}

type batchFSM struct{ nullFSM }

func (f *batchFSM) ApplyBatch(ls []*raft.Log) []any {
	out := make([]any, len(ls))
	for i := range ls {
		out[i] = f.n.Add(1)
	}
	return out
}

// boltFSM applies each entry to a bbolt file of its own (a real state machine).
// mode "sync": one durable txn per batch; "nosync": txn per batch without fsync (the raft log is the journal).
type boltFSM struct {
	nullFSM
	db   *bolt.DB
	size int // bytes of one write; a command holds one or more
}

func (f *boltFSM) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }
func (f *boltFSM) ApplyBatch(ls []*raft.Log) []any {
	out := make([]any, len(ls))
	measure.Check(f.db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bkt)
		if err != nil {
			return err
		}
		for i, l := range ls {
			if l.Type != raft.LogCommand {
				continue
			}
			for d := l.Data; len(d) >= f.size; d = d[f.size:] {
				if err := b.Put(d[:16], d[16:f.size]); err != nil {
					return err
				}
			}
			out[i] = f.n.Add(1)
		}
		return nil
	}))
	return out
}

type countingStore struct {
	raft.LogStore
	calls, logs atomic.Uint64
}

func (c *countingStore) StoreLogs(ls []*raft.Log) error {
	c.calls.Add(1)
	c.logs.Add(uint64(len(ls)))
	return c.LogStore.StoreLogs(ls)
}
func (c *countingStore) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

type raftCfg struct {
	dir                    string
	groups, nodes          int
	store                  string // boltdb, boltdb-nofl, wal, mem, shared
	fsm                    string // null, batch, bolt-sync, bolt-nosync
	maxAppend, logCache    int
	batchApplyCh, pipeline bool
	apply                  int // writes that a caller folds into one raft command
	coalesce               int // raft commands in flight a group, waiting writes go into the next; 0: off
	size                   int
}

type group struct {
	rafts  []*raft.Raft
	stores []*countingStore
	leader *raft.Raft
	lead   int
	queue  chan write // if coalescing
}

type write struct {
	data []byte
	done chan error
}

// coalesce folds what waits in the queue into raft commands, at most inFlight at a time.
func (g *group) coalesce(inFlight int) {
	sem := make(chan struct{}, inFlight)
	for w := range g.queue {
		sem <- struct{}{}
		batch, buf := []write{w}, append([]byte(nil), w.data...)
	more:
		for len(buf) < 256<<10 {
			select {
			case x := <-g.queue:
				batch, buf = append(batch, x), append(buf, x.data...)
			default:
				break more
			}
		}
		f := g.leader.Apply(buf, 10*time.Second)
		go func() {
			err := f.Error()
			<-sem
			for _, w := range batch {
				w.done <- err
			}
		}()
	}
}

func raftBench(args []string) {
	fs := flag.NewFlagSet("raft", flag.ExitOnError)
	var c raftCfg
	fs.StringVar(&c.dir, "dir", ".benchtmp", "directory on the disk under test")
	fs.IntVar(&c.groups, "groups", 1, "raft groups")
	fs.IntVar(&c.nodes, "nodes", 3, "members of each group")
	fs.StringVar(&c.store, "store", "boltdb", "boltdb, boltdb-nofl (NoFreelistSync, map freelist), wal, shared (one group-committed file per node), mem (not durable)")
	fs.StringVar(&c.fsm, "fsm", "null", "null, batch, bolt-sync, bolt-nosync")
	fs.IntVar(&c.maxAppend, "maxappend", 64, "MaxAppendEntries")
	fs.IntVar(&c.logCache, "cache", 512, "raft.NewLogCache size, 0 for none")
	fs.BoolVar(&c.batchApplyCh, "batchapplych", false, "BatchApplyCh")
	fs.BoolVar(&c.pipeline, "pipeline", true, "AppendEntries pipelining")
	fs.IntVar(&c.apply, "fold", 1, "client writes folded into one raft command")
	fs.IntVar(&c.coalesce, "coalesce", 0, "fold all waiting writes of a group into one raft command, this many commands in flight (0: a command a write)")
	fs.IntVar(&c.size, "size", 256, "bytes of one write")
	concs := fs.String("c", "1,16,64,256", "concurrent appliers, over all groups")
	dur := fs.Duration("d", 10*time.Second, "time per run")
	runs := fs.Int("runs", 3, "runs")
	fs.Parse(args)
	c.dir = measure.MustDir(c.dir)
	defer os.RemoveAll(c.dir)

	gs, stop := startGroups(c)
	name := fmt.Sprintf("raft groups=%d nodes=%d store=%s fsm=%s maxappend=%d batchapplych=%v cache=%d fold=%d coalesce=%d", c.groups, c.nodes, c.store, c.fsm, c.maxAppend, c.batchApplyCh, c.logCache, c.apply, c.coalesce)
	for _, cc := range ints(*concs) {
		var rates, cpus []float64
		var all measure.Hist
		var dsk measure.DiskStat
		var calls, logs uint64
		for r := 0; r < *runs; r++ {
			applyLoop(gs, cc, c.size, c.apply, 500*time.Millisecond) // warm
			d0, c0 := measure.ReadDisk(), measure.SelfCPU()
			k0, l0 := leaderStores(gs)
			n, h, el := applyLoop(gs, cc, c.size, c.apply, *dur)
			k1, l1 := leaderStores(gs)
			calls += k1 - k0
			logs += l1 - l0
			x := measure.ReadDisk().Sub(d0)
			dsk.Flushes += x.Flushes
			dsk.Bytes += x.Bytes
			dsk.Writes += x.Writes
			rates = append(rates, float64(n)/el.Seconds())
			cpus = append(cpus, (measure.SelfCPU()-c0).Seconds()/el.Seconds())
			all.Merge(h)
		}
		m, lo, hi := measure.Median(rates)
		cpu, _, _ := measure.Median(cpus)
		tot := float64(all.N) * float64(c.apply)
		fmt.Printf("%s c=%-4d %8.0f writes/s [%.0f..%.0f] %s cpu=%.2f cores flushes/write=%.3f diskKB/write=%.1f entries/StoreLogs(leader)=%.1f\n",
			name, cc, m, lo, hi, &all, cpu, float64(dsk.Flushes)/tot, float64(dsk.Bytes)/1024/tot, float64(logs)/float64(max(calls, 1)))
	}
	stop()
}

func leaderStores(gs []*group) (c, l uint64) {
	for _, g := range gs {
		c += g.stores[g.lead].calls.Load()
		l += g.stores[g.lead].logs.Load()
	}
	return
}

func startGroups(c raftCfg) ([]*group, func()) {
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: os.Stderr})
	shared := make([]*sharedLog, c.nodes)
	if c.store == "shared" {
		for n := range shared {
			shared[n] = newSharedLog(filepath.Join(c.dir, fmt.Sprintf("shared%d.log", n)))
		}
	}
	var gs []*group
	var closers []func()
	for g := 0; g < c.groups; g++ {
		gr := &group{}
		var servers []raft.Server
		var trans []*raft.NetworkTransport
		for n := 0; n < c.nodes; n++ {
			t, err := raft.NewTCPTransportWithLogger("127.0.0.1:0", nil, 8, 10*time.Second, log)
			measure.Check(err)
			trans = append(trans, t)
			servers = append(servers, raft.Server{ID: raft.ServerID(fmt.Sprint(n)), Address: t.LocalAddr()})
		}
		for n := 0; n < c.nodes; n++ {
			d := measure.MustDir(c.dir, fmt.Sprintf("g%d-n%d", g, n))
			var ls raft.LogStore
			var ss raft.StableStore
			switch c.store {
			case "boltdb", "boltdb-nofl":
				o := raftboltdb.Options{Path: filepath.Join(d, "raft.db")}
				if c.store == "boltdb-nofl" {
					o.BoltOptions = &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType}
				}
				b, err := raftboltdb.New(o)
				measure.Check(err)
				ls, ss = b, b
				closers = append(closers, func() { b.Close() })
			case "wal":
				w, err := wal.Open(d)
				measure.Check(err)
				ls, ss = w, w
				closers = append(closers, func() { w.Close() })
			case "mem":
				m := raft.NewInmemStore()
				ls, ss = m, m
			case "shared":
				m := raft.NewInmemStore() // votes: not under test here
				ls, ss = shared[n].group(uint64(g)), m
			default:
				panic(c.store)
			}
			cs := &countingStore{LogStore: ls}
			ls = cs
			if c.logCache > 0 {
				lc, err := raft.NewLogCache(c.logCache, cs)
				measure.Check(err)
				ls = lc
			}
			snap := raft.NewInmemSnapshotStore()
			cfg := raft.DefaultConfig()
			cfg.LocalID = servers[n].ID
			cfg.Logger = log
			cfg.MaxAppendEntries = c.maxAppend
			cfg.BatchApplyCh = c.batchApplyCh
			cfg.SnapshotThreshold = 1 << 40
			cfg.SnapshotInterval = time.Hour
			var f raft.FSM
			switch c.fsm {
			case "null":
				f = &nullFSM{}
			case "batch":
				f = &batchFSM{}
			default:
				db, err := bolt.Open(filepath.Join(d, "kv.db"), 0o644, &bolt.Options{NoSync: c.fsm == "bolt-nosync", NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
				measure.Check(err)
				f = &boltFSM{db: db, size: c.size}
				closers = append(closers, func() { db.Close() })
			}
			if n == 0 {
				measure.Check(raft.BootstrapCluster(cfg, ls, ss, snap, trans[n], raft.Configuration{Servers: servers}))
			}
			r, err := raft.NewRaft(cfg, f, ls, ss, snap, trans[n])
			measure.Check(err)
			gr.rafts = append(gr.rafts, r)
			gr.stores = append(gr.stores, cs)
		}
		gs = append(gs, gr)
	}
	for _, gr := range gs {
		for t := time.Now(); gr.leader == nil; time.Sleep(20 * time.Millisecond) {
			for i, r := range gr.rafts {
				if r.State() == raft.Leader {
					gr.leader, gr.lead = r, i
				}
			}
			if time.Since(t) > 20*time.Second {
				panic("no leader")
			}
		}
	}
	for _, g := range gs {
		if c.coalesce > 0 {
			g.queue = make(chan write, 4096)
			go g.coalesce(c.coalesce)
		}
	}
	return gs, func() {
		for _, g := range gs {
			for _, r := range g.rafts {
				r.Shutdown().Error()
			}
		}
		for _, f := range closers {
			f()
		}
	}
}

func applyLoop(gs []*group, c, size, fold int, dur time.Duration) (int, *measure.Hist, time.Duration) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all measure.Hist
	start := time.Now()
	for i := 0; i < c; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			g := gs[i%len(gs)]
			var h measure.Hist
			done := make(chan error, 1)
			seq := uint64(i) << 40
			for time.Since(start) < dur {
				buf := make([]byte, size*fold) // raft keeps it
				seq++
				binary.BigEndian.PutUint64(buf, scramble(seq%100_000+uint64(i)))
				t := time.Now()
				var err error
				if g.queue != nil {
					g.queue <- write{buf, done}
					err = <-done
				} else {
					err = g.leader.Apply(buf, 10*time.Second).Error()
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, "apply:", err)
					for k, r := range g.rafts {
						if r.State() == raft.Leader {
							mu.Lock()
							g.leader, g.lead = r, k
							mu.Unlock()
						}
					}
					time.Sleep(50 * time.Millisecond)
					continue
				}
				h.Add(time.Since(t))
			}
			mu.Lock()
			all.Merge(&h)
			mu.Unlock()
		}()
	}
	wg.Wait()
	return int(all.N) * fold, &all, time.Since(start)
}

// sharedLog is an experiment, not a product: one append-only file per node
// that all its raft groups write to, with one fdatasync for all that wait
// (group commit over groups). Entries are also kept in memory for reads; there
// is no truncation of the file, no recovery.
type sharedLog struct {
	f    *os.File
	mu   sync.Mutex
	buf  []byte
	wait []chan struct{}
	kick chan struct{}
	off  int64
}

func newSharedLog(p string) *sharedLog {
	f, err := os.Create(p)
	measure.Check(err)
	s := &sharedLog{f: f, kick: make(chan struct{}, 1)}
	go s.loop()
	return s
}

const extent = 64 << 20

func (s *sharedLog) loop() {
	var end int64
	zero := make([]byte, 1<<20)
	for range s.kick {
		s.mu.Lock()
		b, w := s.buf, s.wait
		s.buf, s.wait = nil, nil
		s.mu.Unlock()
		if len(w) == 0 {
			continue
		}
		for s.off+int64(len(b)) > end { // preallocate by writing zeros: later syncs change no metadata
			for i := 0; i < extent; i += len(zero) {
				_, err := s.f.WriteAt(zero, end+int64(i))
				measure.Check(err)
			}
			measure.Check(s.f.Sync())
			end += extent
		}
		_, err := s.f.WriteAt(b, s.off)
		measure.Check(err)
		s.off += int64(len(b))
		measure.Check(fdatasync(s.f))
		for _, c := range w {
			close(c)
		}
	}
}

func (s *sharedLog) append(rec func([]byte) []byte) {
	ch := make(chan struct{})
	s.mu.Lock()
	s.buf = rec(s.buf)
	s.wait = append(s.wait, ch)
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
	<-ch
}

// sharedGroup is one raft group's view of the shared file; it keeps the last entries in memory.
type sharedGroup struct {
	s           *sharedLog
	id          uint64
	mu          sync.Mutex
	first, last uint64
	ring        [8192]*raft.Log
}

func (s *sharedLog) group(id uint64) raft.LogStore { return &sharedGroup{s: s, id: id} }

func (g *sharedGroup) FirstIndex() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.first, nil
}
func (g *sharedGroup) LastIndex() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last, nil
}
func (g *sharedGroup) GetLog(i uint64, l *raft.Log) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.ring[i%uint64(len(g.ring))]
	if x == nil || x.Index != i {
		return raft.ErrLogNotFound
	}
	*l = *x
	return nil
}

func (g *sharedGroup) DeleteRange(lo, hi uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if lo <= g.first {
		g.first = hi + 1
	}
	if hi >= g.last {
		g.last = lo - 1
	}
	return nil
}

func (g *sharedGroup) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }
func (g *sharedGroup) StoreLogs(ls []*raft.Log) error {
	g.s.append(func(b []byte) []byte {
		for _, l := range ls {
			b = binary.BigEndian.AppendUint64(b, g.id)
			b = binary.BigEndian.AppendUint64(b, l.Index)
			b = binary.BigEndian.AppendUint64(b, l.Term)
			b = append(b, byte(l.Type))
			b = binary.BigEndian.AppendUint32(b, uint32(len(l.Data)))
			b = append(b, l.Data...)
		}
		return b
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range ls {
		g.ring[l.Index%uint64(len(g.ring))] = l
		if g.first == 0 {
			g.first = l.Index
		}
		g.last = l.Index
	}
	return nil
}
