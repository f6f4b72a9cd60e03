package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
	"github.com/abacusdb/abacus/bench/peers/internal/keyspace"
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

var key = dataset.Key

// grace is how long a run may go on past its time for operations that are under way.
const grace = 20 * time.Second

// bounded is a context that ends when a run has to be over. It has no deadline, for
// clients would send that along, or start a timer, with each operation.
func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	t := time.AfterFunc(d, cancel)
	return ctx, func() { t.Stop(); cancel() }
}

// caller does one operation, or one pipeline of them: how many succeeded, and what went wrong.
type caller func(ctx context.Context) (ok int, err error)

// callers are c callers of op with generators of their own; pipeline is how many
// commands each sends at once.
func (p *peer) callers(op string, c int) (calls []caller, pipeline int, done func(), err error) {
	s := p.s
	cl, err := p.clients(op)
	if err != nil {
		return nil, 0, nil, err
	}
	val := s.newVal()
	pl, ok := p.d.(Pipeliner)
	pipeline = 1
	if ok && op == "put" {
		pipeline = s.Pipeline
	}
	var conns []*respConn
	done = func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for i := range c {
		seed := rand.Uint64()
		next, err := keyspace.New(s.Dist, s.Keys, seed)
		if err != nil {
			return nil, 0, nil, err
		}
		if pipeline > 1 {
			conn, ks := &respConn{addr: pl.Pipe(i)}, make([]string, pipeline)
			conns = append(conns, conn)
			calls = append(calls, func(context.Context) (int, error) {
				for i := range ks {
					ks[i] = key(next())
				}
				return conn.PutMany(time.Now().Add(grace/2), ks, val)
			})
			continue
		}
		do, err := s.operation(op, cl[i%len(cl)], next, val)
		if err != nil {
			return nil, 0, nil, err
		}
		calls = append(calls, func(ctx context.Context) (int, error) {
			if err := do(ctx); err != nil {
				return 0, err
			}
			return 1, nil
		})
	}
	return calls, pipeline, done, nil
}

// operation is one caller's op on one client.
func (s *session) operation(op string, c Client, next keyspace.Generator, val []byte) (func(ctx context.Context) error, error) {
	switch op {
	case "put":
		return func(ctx context.Context) error { return c.Put(ctx, key(next()), val) }, nil
	case "get":
		return func(ctx context.Context) error { return c.Get(ctx, key(next()), false) }, nil
	case "sget":
		return func(ctx context.Context) error { return c.Get(ctx, key(next()), true) }, nil
	case "mixed":
		coin := rand.New(rand.NewPCG(rand.Uint64(), 1))
		return func(ctx context.Context) error {
			if k := key(next()); coin.Uint64()&1 == 0 {
				return c.Put(ctx, k, val)
			} else {
				return c.Get(ctx, k, false)
			}
		}, nil
	case "range":
		return func(ctx context.Context) error {
			n, err := c.Range(ctx, "k", s.RangeN, nil)
			if want := min(s.RangeN, s.Keys); err == nil && n != want {
				return fmt.Errorf("range read %d of %d", n, want)
			}
			return err
		}, nil
	}
	return nil, fmt.Errorf("no operation %q", op)
}

// closedLoop lets each caller go on as soon as it is answered.
func closedLoop(ctx context.Context, calls []caller, d time.Duration) (h measure.Hist, ok, bad uint64, took time.Duration) {
	ctx, cancel := bounded(ctx, d+grace)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	start := time.Now()
	for _, call := range calls {
		wg.Go(func() {
			var mine measure.Hist
			var good, failed uint64
			for t := time.Now(); t.Sub(start) < d && ctx.Err() == nil; {
				n, err := call(ctx)
				now := time.Now()
				good += uint64(n)
				if err != nil {
					failed++
					time.Sleep(time.Millisecond)
					now = time.Now()
				} else {
					mine.Add(now.Sub(t))
				}
				t = now
			}
			mu.Lock()
			defer mu.Unlock()
			h.Merge(&mine)
			ok, bad = ok+good, bad+failed
		})
	}
	wg.Wait()
	return h, ok, bad, time.Since(start)
}

// compare runs op on every peer in turn, several times.
func (s *session) compare(ctx context.Context, op string, c int) error {
	peak := map[string]float64{} // found by each peer's first run of an open loop
	return s.inTurn(ctx, func(ctx context.Context, p *peer, run int) (Record, error) {
		r := s.record(p, op, run)
		r.C, r.Dist, r.Keys = c, s.Dist, s.Keys
		if op != "put" {
			if err := p.load(ctx); err != nil {
				return r, fmt.Errorf("load: %w", err)
			}
		}
		n := c
		if s.Half > 0 || s.Rate > 0 {
			n = max(c, openCallers)
		}
		calls, pipeline, done, err := p.callers(op, n)
		if err != nil {
			return r, err
		}
		defer done()
		r.Pipeline = pipeline
		if _, err := calls[0](ctx); err != nil && !errors.Is(err, errMissing) {
			return r, err
		}
		closedLoop(ctx, calls[:c], min(time.Second, s.Dur/4)) // warm
		if s.Half > 0 && peak[p.name] == 0 {
			_, ok, _, took := closedLoop(ctx, calls[:c], min(s.Dur, 10*time.Second))
			peak[p.name] = float64(ok) / took.Seconds()
		}
		u := p.usage()
		if s.Half > 0 || s.Rate > 0 {
			r.Rate = s.Rate + s.Half*peak[p.name]
			if err := p.openRun(ctx, &r, calls); err != nil {
				return r, err
			}
			u.into(&r, r.Values["done"])
			return r, nil
		}
		h, ok, bad, took := closedLoop(ctx, calls[:c], s.Dur)
		r.Seconds = took.Seconds()
		if ok == 0 {
			return r, fmt.Errorf("no operation succeeded, %d failed", bad)
		}
		r.Values["rate"], r.Values["errors"] = float64(ok)/took.Seconds(), float64(bad)
		r.Values["p50_ms"], r.Values["p99_ms"], r.Values["p999_ms"] = ms(h.Q(.5)), ms(h.Q(.99)), ms(h.Q(.999))
		u.into(&r, float64(ok))
		return r, nil
	})
}

// usage is what the machine had used when a run began.
type usage struct {
	p      *peer
	at     time.Time
	pids   []int
	server []time.Duration
	self   time.Duration
	disk   measure.DiskStat
}

func (p *peer) usage() usage {
	u := usage{p: p, at: time.Now(), pids: p.d.Procs().Pids(), self: measure.SelfCPU(), disk: measure.ReadDisk()}
	for _, id := range u.pids {
		u.server = append(u.server, treeCPU(id))
	}
	return u
}

// into writes what has been used since: CPU in cores, the disk by operation.
func (u usage) into(r *Record, ops float64) {
	now, el := u.p.usage(), time.Since(u.at).Seconds()
	lead, sum, rss := u.p.d.Leader(), 0.0, 0.0
	for i, id := range u.pids {
		v := (now.server[i] - u.server[i]).Seconds() / el
		sum += v
		rss = max(rss, float64(measure.PidRSS(id))/(1<<20))
		if i == lead {
			r.Values["leader_cpu"] = v
		}
	}
	d := now.disk.Sub(u.disk)
	r.Values["server_cpu"], r.Values["client_cpu"], r.Values["rss_mib"] = sum, (now.self-u.self).Seconds()/el, rss
	r.Values["flushes_op"], r.Values["disk_kib_op"] = float64(d.Flushes)/max(ops, 1), float64(d.Bytes)/1024/max(ops, 1)
}

// treeCPU is the CPU time of a process and its children (PostgreSQL forks one per connection).
func treeCPU(pid int) time.Duration {
	t := measure.PidCPU(pid)
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for f := range strings.FieldsSeq(string(b)) {
		if kid, err := strconv.Atoi(f); err == nil {
			t += measure.PidCPU(kid)
		}
	}
	return t
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

// load stores every key of the key space once.
func (p *peer) load(ctx context.Context) error {
	if p.loaded {
		return nil
	}
	_, err := p.store(ctx, p.s.Keys, 64, 16, func(i int) int { return i }, nil)
	p.loaded = err == nil
	return err
}

// stuck is how long a load may go on without one write that succeeds.
const stuck = time.Minute

// store writes n keys, the i-th that which order names, with c callers, and in pipelines
// where the peer has them. What fails is sent again; repeats are counted. progress is called
// with how many are stored, by whoever stored them.
func (p *peer) store(ctx context.Context, n, c, pipeline int, order func(int) int, progress func(int)) (repeats uint64, err error) {
	cl, err := p.clients("put")
	if err != nil {
		return 0, err
	}
	pl, ok := p.d.(Pipeliner)
	if !ok {
		pipeline = 1
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(stuck, func() { cancel(fmt.Errorf("no write has succeeded for %s", stuck)) })
	defer watch.Stop()
	var wg sync.WaitGroup
	var next, stored atomic.Int64
	var again atomic.Uint64
	val := p.s.newVal()
	for i := range c {
		put := func(ks []string) error { return cl[i%len(cl)].Put(ctx, ks[0], val) }
		if pipeline > 1 {
			conn := &respConn{addr: pl.Pipe(i)}
			defer conn.Close()
			put = func(ks []string) error { _, err := conn.PutMany(time.Now().Add(grace/2), ks, val); return err }
		}
		wg.Go(func() {
			ks := make([]string, 0, pipeline)
			for ctx.Err() == nil {
				to := int(next.Add(int64(pipeline)))
				ks = ks[:0]
				for k := to - pipeline; k < min(to, n); k++ {
					ks = append(ks, key(order(k)))
				}
				if len(ks) == 0 {
					return
				}
				for err := put(ks); err != nil; err = put(ks) {
					if ctx.Err() != nil {
						return
					}
					again.Add(1)
					time.Sleep(5 * time.Millisecond)
				}
				watch.Reset(stuck)
				if total := int(stored.Add(int64(len(ks)))); progress != nil {
					progress(total)
				}
			}
		})
	}
	wg.Wait()
	if int(stored.Load()) != n {
		return again.Load(), fmt.Errorf("stored %d of %d: %w", stored.Load(), n, context.Cause(ctx))
	}
	return again.Load(), nil
}
