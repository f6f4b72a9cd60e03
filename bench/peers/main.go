// Command peers puts the same closed-loop key-value load on several systems in
// one session, run by run in turn, and prints what each did and the ratios.
// See README.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

var (
	errMissing     = errors.New("key not found")
	errUnsupported = errors.New("this peer has no such operation")
)

var (
	peerList = flag.String("peer", "etcd", "peers to run in turn; ratios are to the first")
	opList   = flag.String("op", "put", "operations: put, get (linearizable), sget (stale allowed), mixed (half get, half put), range, compute, failover")
	concList = flag.String("c", "64", "concurrent callers, several with commas")
	dur      = flag.Duration("d", 10*time.Second, "time of one run")
	runs     = flag.Int("runs", 3, "runs of each")
	keys     = flag.Int("keys", 20000, "key space")
	vsize    = flag.Int("vsize", 256, "value bytes")
	conns    = flag.Int("conns", 16, "connections, shared by the callers")
	target   = flag.String("target", "leader", "which node the connections go to: leader or all")
	rangeN   = flag.Int("n", 10000, "pairs one range operation reads")
	dir      = flag.String("dir", ".benchtmp", "data directory, on the disk under test")
	bin      = flag.String("bin", "/tmp/peers/bin", "where setup.sh put the servers")
	records  = flag.Int("records", 1_000_000, "records of the compute operation")
	nodes    = flag.Int("nodes", 3, "servers of each replicated peer")
	probe    = flag.Duration("probe", 100*time.Millisecond, "time a write of the failover operation is given before it is sent anew")
	jsonOut  = flag.String("json", "", "append one JSON object a run to this file")
)

// Result is one run.
type Result struct {
	Peer, Op             string
	C                    int
	Rate                 float64
	P50, P99, P999       float64 // ms
	ClientCPU, ServerCPU float64 // cores
	LeaderCPU            float64
	LeaderRSS            uint64
	Flushes, DiskKB      float64 // an operation
	Errors               uint64
}

type peer struct {
	name   string
	d      Driver
	cl     map[string][]Client // by target
	loaded bool
}

var key = dataset.Key

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run() error {
	var ps []*peer
	defer func() {
		for _, p := range ps {
			p.d.Procs().Stop()
			os.RemoveAll(filepath.Join(*dir, p.name))
		}
	}()
	for _, n := range splitList(*peerList) {
		mk := drivers[n]
		if mk == nil {
			return fmt.Errorf("no peer %q", n)
		}
		p := &peer{name: n, d: mk(), cl: map[string][]Client{}}
		ps = append(ps, p)
		dd := filepath.Join(*dir, n)
		os.RemoveAll(dd)
		if err := os.MkdirAll(dd, 0o755); err != nil {
			return err
		}
		if err := p.d.Start(Config{Dir: dd, Bin: *bin, Nodes: *nodes}); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	for _, op := range splitList(*opList) {
		if op == "compute" {
			for _, p := range ps {
				if err := compute(p); err != nil {
					return err
				}
			}
			continue
		}
		if op == "failover" {
			for _, p := range ps {
				if err := failover(p); err != nil {
					return err
				}
			}
			continue
		}
		for _, cs := range splitList(*concList) {
			c, err := strconv.Atoi(cs)
			if err != nil {
				return err
			}
			if err := compare(ps, op, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare runs op on every peer in turn, several times, and prints medians and ratios.
func compare(ps []*peer, op string, c int) error {
	res := make([][]Result, len(ps))
	for r := 0; r < *runs; r++ {
		for k := range ps {
			i := (k + r) % len(ps) // another peer goes first each time
			x, err := ps[i].run(op, c)
			if errors.Is(err, errUnsupported) {
				continue
			}
			if err != nil {
				return fmt.Errorf("%s %s: %w", ps[i].name, op, err)
			}
			res[i] = append(res[i], x)
			if *jsonOut != "" {
				f, err := os.OpenFile(*jsonOut, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
				if err != nil {
					return err
				}
				json.NewEncoder(f).Encode(x)
				f.Close()
			}
		}
	}
	base := 0.0
	for i, p := range ps {
		rs := res[i]
		if len(rs) == 0 {
			fmt.Printf("%-15s %-6s c=%-4d unsupported\n", p.name, op, c)
			continue
		}
		med := func(f func(Result) float64) (m, lo, hi float64) {
			var v []float64
			for _, r := range rs {
				v = append(v, f(r))
			}
			return measure.Median(v)
		}
		m1 := func(f func(Result) float64) float64 { m, _, _ := med(f); return m }
		m, lo, hi := med(func(r Result) float64 { return r.Rate })
		if i == 0 {
			base = m
		}
		errs := uint64(0)
		for _, r := range rs {
			errs += r.Errors
		}
		fmt.Printf("%-15s %-6s c=%-4d %9.0f/s [%.0f..%.0f] x%.2f  p50=%.2fms p99=%.2fms p99.9=%.2fms  cpu client=%.2f servers=%.2f (leader %.2f)  leaderRSS=%dMiB  flushes/op=%.3f diskKB/op=%.1f errors=%d\n",
			p.name, op, c, m, lo, hi, m/base,
			m1(func(r Result) float64 { return r.P50 }), m1(func(r Result) float64 { return r.P99 }), m1(func(r Result) float64 { return r.P999 }),
			m1(func(r Result) float64 { return r.ClientCPU }), m1(func(r Result) float64 { return r.ServerCPU }), m1(func(r Result) float64 { return r.LeaderCPU }),
			rs[len(rs)-1].LeaderRSS>>20, m1(func(r Result) float64 { return r.Flushes }), m1(func(r Result) float64 { return r.DiskKB }), errs)
	}
	return nil
}

// clients are the shared connections; stale reads always go to all nodes.
func (p *peer) clients(op string) ([]Client, error) {
	t := *target
	if op == "sget" {
		t = "all"
	}
	lead := -1
	if t == "leader" {
		lead = p.d.Leader()
	}
	k := fmt.Sprint(t, lead)
	if p.cl[k] == nil {
		for i := range *conns {
			c, err := p.d.Connect(i, lead)
			if err != nil {
				return nil, err
			}
			p.cl[k] = append(p.cl[k], c)
		}
	}
	return p.cl[k], nil
}

func newVal() []byte {
	v := make([]byte, *vsize)
	for i := range v {
		v[i] = byte('a' + rand.IntN(26))
	}
	return v
}

func (p *peer) load() error {
	if p.loaded {
		return nil
	}
	cl, err := p.clients("put")
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var next atomic.Int64
	var fail atomic.Value
	val := newVal()
	for i := range 64 {
		wg.Go(func() {
			for {
				k := int(next.Add(1)) - 1
				if k >= *keys {
					return
				}
				if err := cl[i%len(cl)].Put(context.Background(), key(k), val); err != nil {
					fail.Store(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if e := fail.Load(); e != nil {
		return e.(error)
	}
	p.loaded = true
	return nil
}

func (p *peer) run(op string, c int) (Result, error) {
	if op != "put" {
		if err := p.load(); err != nil {
			return Result{}, err
		}
	}
	cl, err := p.clients(op)
	if err != nil {
		return Result{}, err
	}
	ctx := context.Background()
	val := newVal()
	do := func(c Client, r *rand.Rand) error {
		k := key(r.IntN(*keys))
		switch op {
		case "put":
			return c.Put(ctx, k, val)
		case "get":
			return c.Get(ctx, k, false)
		case "sget":
			return c.Get(ctx, k, true)
		case "mixed":
			if r.IntN(2) == 0 {
				return c.Put(ctx, k, val)
			}
			return c.Get(ctx, k, false)
		case "range":
			n, err := c.Range(ctx, "k", *rangeN, nil)
			if err == nil && n != min(*rangeN, *keys) {
				return fmt.Errorf("range read %d of %d", n, *rangeN)
			}
			return err
		}
		return fmt.Errorf("no operation %q", op)
	}
	if err := do(cl[0], rand.New(rand.NewPCG(1, 1))); err != nil && !errors.Is(err, errMissing) {
		return Result{}, err
	}
	loop := func(d time.Duration) (measure.Hist, uint64, time.Duration) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var all measure.Hist
		var errs atomic.Uint64
		start := time.Now()
		for i := range c {
			wg.Go(func() {
				var h measure.Hist
				r := rand.New(rand.NewPCG(uint64(i), uint64(start.UnixNano())))
				for t := time.Now(); t.Sub(start) < d; {
					err := do(cl[i%len(cl)], r)
					n := time.Now()
					if err != nil {
						errs.Add(1)
						time.Sleep(time.Millisecond)
					} else {
						h.Add(n.Sub(t))
					}
					t = n
				}
				mu.Lock()
				all.Merge(&h)
				mu.Unlock()
			})
		}
		wg.Wait()
		return all, errs.Load(), time.Since(start)
	}
	loop(min(time.Second, *dur/4)) // warm
	pids := p.d.Procs().Pids()
	cpu := func() (out []time.Duration) {
		for _, id := range pids {
			out = append(out, treeCPU(id))
		}
		return
	}
	d0, s0, c0 := measure.ReadDisk(), cpu(), measure.SelfCPU()
	h, errs, el := loop(*dur)
	d1, s1, c1 := measure.ReadDisk().Sub(d0), cpu(), measure.SelfCPU()
	x := Result{Peer: p.name, Op: op, C: c, Rate: float64(h.N) / el.Seconds(), P50: ms(h.Q(.5)), P99: ms(h.Q(.99)), P999: ms(h.Q(.999)),
		ClientCPU: (c1 - c0).Seconds() / el.Seconds(), Flushes: float64(d1.Flushes) / float64(max(h.N, 1)), DiskKB: float64(d1.Bytes) / 1024 / float64(max(h.N, 1)), Errors: errs}
	lead := p.d.Leader()
	for i := range pids {
		v := (s1[i] - s0[i]).Seconds() / el.Seconds()
		x.ServerCPU += v
		if i == lead {
			x.LeaderCPU = v
			x.LeaderRSS = measure.PidRSS(pids[i])
		}
	}
	return x, nil
}

// treeCPU is the CPU time of a process and its children (PostgreSQL forks one per connection).
func treeCPU(pid int) time.Duration {
	t := measure.PidCPU(pid)
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var kid int
	for _, f := range splitFields(string(b)) {
		kid, _ = strconv.Atoi(f)
		t += measure.PidCPU(kid)
	}
	return t
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

// failover kills the leader under load and times the first write that was sent after it and succeeded.
func failover(p *peer) error {
	var back, gap []float64
	for trial := 0; trial < *runs; trial++ {
		lead := p.d.Leader()
		for t := time.Now(); lead < 0 && time.Since(t) < 20*time.Second; lead = p.d.Leader() {
			time.Sleep(200 * time.Millisecond)
		}
		if lead < 0 {
			return errors.New("no leader")
		}
		var cl []Client
		for n := range *nodes {
			if n == lead {
				continue
			}
			for i := range 8 {
				c, err := p.d.Connect(i, n)
				if err != nil {
					return err
				}
				cl = append(cl, c)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		var killed, first, last, maxGap atomic.Int64
		var wg sync.WaitGroup
		val := newVal()
		t0 := time.Now()
		for _, c := range cl {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(rand.Uint64(), 1))
				for ctx.Err() == nil {
					sent := int64(time.Since(t0))
					cc, cn := context.WithTimeout(ctx, *probe)
					err := c.Put(cc, key(r.IntN(*keys)), val)
					cn()
					if err != nil {
						time.Sleep(time.Millisecond)
						continue
					}
					now := int64(time.Since(t0))
					if l := last.Swap(now); now-l > maxGap.Load() {
						maxGap.Store(now - l)
					}
					if k := killed.Load(); k > 0 && sent > k {
						first.CompareAndSwap(0, now)
					}
				}
			})
		}
		time.Sleep(2 * time.Second)
		maxGap.Store(0)
		killed.Store(int64(time.Since(t0)))
		p.d.Procs().Kill(lead)
		for t := time.Now(); first.Load() == 0 && time.Since(t) < 30*time.Second; {
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(time.Second)
		cancel()
		wg.Wait()
		for _, c := range cl {
			c.Close()
		}
		back = append(back, float64(first.Load()-killed.Load())/1e6)
		gap = append(gap, float64(maxGap.Load())/1e6)
		if err := p.d.Procs().Start(lead); err != nil {
			return err
		}
		time.Sleep(3 * time.Second)
	}
	m, lo, hi := measure.Median(back)
	g, glo, ghi := measure.Median(gap)
	fmt.Printf("%-15s failover (kill -9 leader under 16 writers) trials=%d probe=%s  first write after kill: median %.0fms [%.0f..%.0f]; longest gap between successes: median %.0fms [%.0f..%.0f]; all: %.0f\n",
		p.name, *runs, *probe, m, lo, hi, g, glo, ghi, back)
	return nil
}

// compute loads the data set and times each way the peer has of summing it.
func compute(p *peer) error {
	c, ok := p.d.(Computer)
	if !ok {
		fmt.Printf("%-15s compute unsupported\n", p.name)
		return nil
	}
	ctx := context.Background()
	t := time.Now()
	if err := c.Load(ctx, *records, dataset.Key, dataset.Record); err != nil {
		return err
	}
	fmt.Printf("%-15s compute: loaded %d records in %s\n", p.name, *records, time.Since(t).Round(time.Millisecond))
	for _, k := range c.Tasks() {
		var v, cpu, scpu []float64
		for range *runs {
			pids := p.d.Procs().Pids()
			s0, c0, t := time.Duration(0), measure.SelfCPU(), time.Now()
			for _, id := range pids {
				s0 += treeCPU(id)
			}
			n, err := k.Run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", k.Name, err)
			}
			if want := dataset.Sum(*records); n != want {
				return fmt.Errorf("%s: sum %d, want %d", k.Name, n, want)
			}
			v = append(v, time.Since(t).Seconds())
			cpu = append(cpu, (measure.SelfCPU() - c0).Seconds())
			for _, id := range pids {
				s0 -= treeCPU(id)
			}
			scpu = append(scpu, -s0.Seconds())
		}
		m, lo, hi := measure.Median(v)
		cc, _, _ := measure.Median(cpu)
		sc, _, _ := measure.Median(scpu)
		fmt.Printf("%-15s compute: %-60s %7.3f s [%.3f..%.3f]  cpu-seconds client=%.2f servers=%.2f\n", p.name, k.Name, m, lo, hi, cc, sc)
	}
	return nil
}
