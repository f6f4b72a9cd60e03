//go:build linux

package campaign

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
	"github.com/abacusdb/abacus/sharding"
)

// Config says what to run. Zero fields take the default.
type Config struct {
	// Dir is for logs, the report and what a failure leaves. Images is for the disks (default: Dir).
	Dir, Images string
	// Abacusd is the program, Env what it has in its environment beside ours.
	Abacusd string
	Env     []string
	// Nodes (5, at least 3), Shards (16) and Replicas of each shard (3).
	Nodes, Shards, Replicas int
	// Seed chooses faults and operations, not how they interleave.
	Seed uint64
	// Duration is how long things break; it ends later if not every kind of fault has come once. Default 5 min.
	Duration time.Duration
	// Kinds and Workloads are which; default: all.
	Kinds, Workloads []string
	// Clients work at once (20), each with up to Think between two operations (20 ms).
	Clients int
	Think   time.Duration
	// Gap is the quiet time before each fault: between half and all of it. Default 5 s.
	Gap time.Duration
	// Within is in how long a shard is to serve again, in 99 of 100 cases, after the end of a fault or the loss of one node. Default 5 s.
	Within time.Duration
	// Floor is how many operations a second must be answered outside faults. Default 500.
	Floor float64
	// Plaintext leaves TLS out, which otherwise all ports speak.
	Plaintext bool
	// Rootless runs all nodes on this machine's own network and disk: for who is not root. Links are then cut inside the nodes, and
	// faults of disks are left out, so it is less than a run.
	Rootless bool
	// Log is told what happens.
	Log func(format string, args ...any)
}

func (c *Config) setDefaults() {
	orDefault(&c.Images, c.Dir)
	orDefault(&c.Nodes, 5)
	orDefault(&c.Shards, 16)
	orDefault(&c.Replicas, 3)
	orDefault(&c.Duration, 5*time.Minute)
	orDefault(&c.Clients, 20)
	orDefault(&c.Think, 20*time.Millisecond)
	orDefault(&c.Gap, 5*time.Second)
	orDefault(&c.Floor, 500)
	orDefault(&c.Within, 5*time.Second)
	if c.Log == nil {
		c.Log = func(string, ...any) {}
	}
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Run runs one. The report says what came of it, as far as it came; the error is of the machine or of the harness, not of
// the database, whose faults are Report.Violations.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	cfg.setDefaults()
	if cfg.Nodes < 3 {
		return nil, fmt.Errorf("%d nodes: want 3 at least", cfg.Nodes)
	}
	kinds, err := choose(cfg.Kinds, cfg.Rootless, cfg.Nodes > max(3, cfg.Replicas))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	c := &campaign{cfg: cfg, plan: newPlan(cfg.Seed, kinds), tl: newTimeline(cfg.Shards), findings: workload.Findings{Dir: filepath.Join(cfg.Dir, "failures")}}
	if c.bed, err = newBed(ctx, cfg); err != nil {
		return nil, err
	}
	err = c.run(ctx, len(kinds))
	r := c.report()
	if err != nil { // it has not come to its end
		r.Shortcomings, r.Late = nil, nil
	}
	keep := ""
	if len(r.Violations) > 0 || err != nil && ctx.Err() == nil {
		keep, r.Failures = c.findings.Dir, c.findings.Dir
	}
	return r, errors.Join(err, c.bed.close(keep))
}

// load is a workload with its name. In a list are some several times, to be chosen more often.
type load struct {
	name string
	workload.Workload
}

// campaign is a run under way.
type campaign struct {
	cfg  Config
	bed  *bed
	plan *plan
	tl   *timeline

	loads    []load
	workers  []*worker
	jobs     *workload.Jobs
	findings workload.Findings
	checks   []Check
	worked   time.Duration // how long clients were at work
	keys     int
	shards   int // in the end
	compared int // shards whose logs were
	events   []Event
	quiet    []span
	base     []footprint // of each node, before anything was done
}

// span is a time in which nothing was broken and nothing was recovering.
type span struct{ from, to time.Time }

func (c *campaign) run(ctx context.Context, kinds int) error {
	cs, err := openClients(c.bed)
	if err != nil {
		return err
	}
	defer cs.close()
	if c.base, err = c.bed.footprints(ctx); err != nil {
		return err
	}
	keys, err := c.newKeys()
	if err != nil {
		return err
	}
	if err := c.prepare(cs, keys); err != nil {
		return err
	}
	stop := make(chan struct{})
	began := time.Now()
	var working sync.WaitGroup
	for i := range c.cfg.Clients {
		w := &worker{cs: cs, c: cs.all, home: i % c.cfg.Nodes, patience: patience[i%len(patience)], rng: rand.New(rand.NewPCG(c.cfg.Seed, uint64(i)<<8|'w')), tl: c.tl}
		if i%3 == 2 { // one that begins at a single node
			w.c = cs.one[w.home]
		}
		c.workers = append(c.workers, w)
		working.Go(func() { w.run(stop, c.loads, c.cfg.Shards, c.cfg.Think) })
	}
	for i, addr := range cs.followers {
		for _, load := range c.distinct() {
			if r, ok := load.Workload.(*workload.Registers); ok {
				e := &eager{addr: addr, dial: cs.dial, load: r, shards: c.cfg.Shards, rng: rand.New(rand.NewPCG(c.cfg.Seed, uint64(i)<<8|'e')), tl: c.tl}
				working.Go(func() { e.run(stop) })
			}
		}
	}
	probing, endProbes := context.WithCancel(context.Background())
	for shard, key := range c.probeKeys(keys) {
		p := &prober{shard: shard, key: key, tl: c.tl}
		working.Go(func() { p.run(probing, cs.all) })
	}
	err = c.steps(ctx, kinds)
	close(stop)
	endProbes()
	working.Wait()
	c.worked = time.Since(began)
	if err != nil {
		c.giveUp()
		c.findings.Partial = true
		c.judge() // what is known
		return err
	}
	return c.finish(ctx, cs)
}

// steps breaks one thing after another.
func (c *campaign) steps(ctx context.Context, kinds int) error {
	began := time.Now()
	for i := 0; time.Since(began) < c.cfg.Duration || i < kinds; i++ {
		from := time.Now()
		if !wait(ctx, c.cfg.Gap/2+time.Duration(c.plan.rng.Int64N(int64(c.cfg.Gap/2)+1))) {
			return ctx.Err()
		}
		c.quiet = append(c.quiet, span{from, time.Now()})
		if err := c.step(ctx, c.plan.next()); err != nil {
			return err
		}
		c.bed.listen()
		if wrong, _ := c.bed.unexplained(); len(wrong) > 0 || c.findings.Count() > 0 {
			return nil // what follows would say less and less
		}
	}
	return nil
}

// step breaks something, and perhaps something else meanwhile, mends it, and waits until every shard serves again.
func (c *campaign) step(ctx context.Context, s step) error {
	f, ev, err := c.begin(ctx, s)
	if err != nil {
		return err
	}
	if s.with == nil {
		wait(ctx, s.hold)
	} else {
		wait(ctx, (s.hold-s.with.hold)/2)
		g, with, err := c.begin(ctx, *s.with)
		if err != nil {
			return errors.Join(err, f.end())
		}
		c.events[with].second = true
		wait(ctx, s.with.hold)
		if err := c.end(g, with); err != nil {
			return errors.Join(err, f.end())
		}
		wait(ctx, (s.hold-s.with.hold)/2)
	}
	if err := c.end(f, ev); err != nil {
		return err
	}
	return c.recover(ctx, ev, s.with == nil)
}

func (c *campaign) begin(ctx context.Context, s step) (*fault, int, error) {
	k := find(s.kind)
	sg := &siege{ctx: ctx, b: c.bed, rng: rand.New(rand.NewPCG(s.seed, 's'))}
	began := time.Now()
	f, err := k.bear(sg)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", s.kind, err)
	}
	c.cfg.Log("%7.1fs  %s: %s", began.Sub(c.tl.began).Seconds(), s.kind, f.detail)
	c.events = append(c.events, Event{Kind: s.kind, Detail: f.detail, Nodes: f.nodes, Began: began, Broken: time.Now(), dead: f.dead})
	return f, len(c.events) - 1, nil
}

// end mends a fault, having looked whether it had an effect.
func (c *campaign) end(f *fault, event int) error {
	ev := &c.events[event]
	ev.Bit = true
	if f.bit != nil {
		var err error
		if ev.Bit, err = f.bit(); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", ev.Kind, err), f.end())
		}
	}
	if err := f.end(); err != nil {
		return fmt.Errorf("mend %s: %w", ev.Kind, err)
	}
	ev.Mended = time.Now()
	if ev.Healed = f.healed; ev.Healed.IsZero() {
		ev.Healed = ev.Mended
	}
	if f.showed != nil {
		var err error
		if ev.Bit, err = f.showed(); err != nil {
			return fmt.Errorf("%s: %w", ev.Kind, err)
		}
	}
	if !ev.Bit {
		c.cfg.Log("          it had no effect")
	}
	return nil
}

func (f *fault) end() error {
	if f.mend == nil {
		return nil
	}
	mend := f.mend
	f.mend = nil
	return mend()
}

// stuckAfter is when a shard that does not serve again is a violation.
const stuckAfter = time.Minute

// recover waits until every shard has answered a write that began after what was broken was whole again, and notes how long that took. Where
// mending goes on after that, as long as it takes a node to fetch what it has lost, shards have to serve meanwhile.
func (c *campaign) recover(ctx context.Context, event int, alone bool) error {
	ev := &c.events[event]
	limit := time.Now().Add(stuckAfter)
	for shard := range c.cfg.Shards {
		for {
			if at, ok := c.tl.served(shard, ev.Healed); ok {
				ev.Recovery = append(ev.Recovery, at.Sub(ev.Healed))
				break
			}
			if time.Now().After(limit) {
				c.findings.Add("shard %d takes no write %v after the end of: %s, %s", shard, stuckAfter, ev.Kind, ev.Detail)
				return nil
			}
			if !wait(ctx, 20*time.Millisecond) {
				return ctx.Err()
			}
		}
		if ev.dead && alone { // with another fault beside it there may be no majority
			if at, ok := c.tl.served(shard, ev.Broken); ok {
				ev.Outage = append(ev.Outage, at.Sub(ev.Broken))
			}
		}
	}
	c.cfg.Log("          served again after %v", slices.Max(ev.Recovery).Round(time.Millisecond))
	// Nodes that went may still come back.
	settled, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := c.bed.sound(settled); err != nil {
		c.findings.Add("after the end of: %s, %s: %v", ev.Kind, ev.Detail, err)
	}
	return nil
}

// prepare makes the workloads and opens the banks.
func (c *campaign) prepare(cs *clients, keys workload.Keys) error {
	order := new(workload.Order)
	banks := workload.NewBanks("bank/", c.cfg.Shards, keys)
	c.jobs = workload.NewJobs(banks)
	all := []struct {
		name string
		make func() []workload.Workload
	}{
		{"register", func() []workload.Workload {
			r := workload.NewRegisters(order, keys)
			return []workload.Workload{r, r, r, r}
		}},
		{"counter", func() []workload.Workload { return []workload.Workload{workload.NewCounters(keys)} }},
		{"list", func() []workload.Workload { l := workload.NewLists(keys); return []workload.Workload{l, l} }},
		{"set", func() []workload.Workload { s := workload.NewSets("set/", keys); return []workload.Workload{s, s} }},
		{"bank", func() []workload.Workload { return []workload.Workload{banks, banks} }},
		{"ttl", func() []workload.Workload { return []workload.Workload{workload.NewTTLs(keys)} }},
		{"job", func() []workload.Workload { return []workload.Workload{&seldom{c.jobs, banks, 40}, banks} }},
	}
	var names []string
	for _, w := range all {
		names = append(names, w.name)
		if len(c.cfg.Workloads) == 0 || slices.Contains(c.cfg.Workloads, w.name) {
			for _, made := range w.make() {
				name := w.name
				if made == workload.Workload(banks) { // the jobs have them work, too
					name = "bank"
				}
				c.loads = append(c.loads, load{name, made})
			}
		}
	}
	for _, w := range c.cfg.Workloads {
		if !slices.Contains(names, w) {
			return fmt.Errorf("there is no workload %q; there are: %s", w, strings.Join(names, ", "))
		}
	}
	w := &worker{cs: cs, c: cs.all, patience: opTimeout, rng: rand.New(rand.NewPCG(c.cfg.Seed, 'o')), tl: c.tl}
	defer w.close()
	for _, call := range banks.Opening() {
		for try := 0; w.do("bank", call) != workload.Answered; try++ {
			if try == 20 {
				return errors.New("a bank cannot be opened, though nothing is broken yet")
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

// probeKeys is a key of each shard that nobody else writes.
func (c *campaign) probeKeys(keys workload.Keys) (list []string) {
	for shard := range c.cfg.Shards {
		list = append(list, "probe/{"+keys(shard)+"}")
	}
	return list
}

// newKeys makes keys in the shards that a cluster begins with.
func (c *campaign) newKeys() (workload.Keys, error) {
	m, err := sharding.NewMap("chaos", sharding.Node{ID: "n1", Addrs: sharding.Addrs{Peer: "n1"}}, c.cfg.Shards, c.cfg.Replicas)
	if err != nil {
		return nil, err
	}
	return workload.KeysOf(m), nil
}

// seldom has one in so many calls be a job, and the others a bank's.
type seldom struct {
	*workload.Jobs
	banks *workload.Banks
	every int
}

func (s *seldom) Next(rng *rand.Rand, shard int, read bool) workload.Call {
	if rng.IntN(s.every) == 0 {
		return s.Jobs.Next(rng, shard, read)
	}
	return s.banks.Next(rng, shard, read)
}
