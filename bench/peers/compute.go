package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

// compute times each way that each peer has of summing -records JSON records, and jobs that have none to read: before there are any
// records, and with a prefix that none of them has.
func (s *session) compute(ctx context.Context) error {
	jobbers := slices.DeleteFunc(slices.Clone(s.peers), func(p *peer) bool { _, ok := p.d.(Jobber); return !ok })
	if err := s.inTurnOf(ctx, jobbers, func(ctx context.Context, p *peer, run int) (Record, error) { return p.overNothing(ctx, run, 0) }); err != nil {
		return err
	}
	for _, p := range s.peers {
		if err := p.loadRecords(ctx); errors.Is(err, errUnsupported) {
			fmt.Fprintf(s.out, "%-15s compute unsupported\n", p.name)
		} else if err != nil {
			return fmt.Errorf("%s: load: %w", p.name, err)
		}
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	// What stores more comes last, lest it be in the way of the others.
	if err := s.tasks(ctx, func(t Task) bool { return t.Prepare == nil }); err != nil {
		return err
	}
	if err := s.inTurnOf(ctx, jobbers, func(ctx context.Context, p *peer, run int) (Record, error) { return p.overNothing(ctx, run, s.Records) }); err != nil {
		return err
	}
	return s.tasks(ctx, func(t Task) bool { return t.Prepare != nil })
}

// loadRecords stores the data set, once.
func (p *peer) loadRecords(ctx context.Context) error {
	c, ok := p.d.(Computer)
	if !ok {
		return errUnsupported
	}
	if p.recorded {
		return nil
	}
	t := time.Now()
	if err := c.Load(ctx, p.s.Records, dataset.Key, dataset.Record); err != nil {
		return err
	}
	p.recorded = true
	fmt.Fprintf(p.s.out, "%-15s loaded %d records in %s\n", p.name, p.s.Records, time.Since(t).Round(time.Millisecond))
	return nil
}

// tasks runs those of all peers' tasks that are wanted: peer by peer in turn, all its tasks, several times, another peer first each time.
func (s *session) tasks(ctx context.Context, wanted func(Task) bool) error {
	of := map[*peer][]Task{}
	for _, p := range s.peers {
		if !p.recorded {
			continue
		}
		for _, t := range p.d.(Computer).Tasks() {
			if !wanted(t) {
				continue
			}
			if t.Prepare != nil {
				if err := t.Prepare(ctx, s.Records); err != nil {
					return fmt.Errorf("%s: prepare %s: %w", p.name, t.Name, err)
				}
			}
			of[p] = append(of[p], t)
		}
	}
	var all []Record
	for run := range s.Runs {
		for k := range s.peers {
			p := s.peers[(k+run)%len(s.peers)]
			for _, t := range of[p] {
				r, err := p.task(ctx, t, run)
				if err == nil {
					err = p.d.Procs().Check()
				}
				if err != nil {
					return fmt.Errorf("%s: %s: %w", p.name, t.Name, err)
				}
				if err := s.keep(r); err != nil {
					return err
				}
				all = append(all, r)
			}
		}
	}
	s.print(all)
	return nil
}

// task runs one task, twice, and checks its answers. The first finds memory as the other peers' turns have left it, which is a matter of the machine and of what
// the peer did before in its turn, so it is kept by itself.
func (p *peer) task(ctx context.Context, t Task, run int) (Record, error) {
	r := p.s.record(p, "compute", run)
	r.Task, r.Records = t.Name, p.s.Records
	servers := func() (sum time.Duration) {
		for _, id := range p.d.Procs().Pids() {
			sum += treeCPU(id)
		}
		return sum
	}
	want := dataset.Sum(p.s.Records)
	if t.Counts {
		want = int64(p.s.Records)
	}
	for _, seconds := range []string{"first_seconds", "seconds"} {
		server, client, start := servers(), measure.SelfCPU(), time.Now()
		n, err := t.Run(ctx)
		took := time.Since(start)
		if err != nil {
			return r, err
		}
		if n != want {
			return r, fmt.Errorf("the answer is %d, want %d", n, want)
		}
		r.Values[seconds] = took.Seconds()
		r.Values["client_cpu_s"], r.Values["server_cpu_s"] = (measure.SelfCPU() - client).Seconds(), (servers() - server).Seconds()
	}
	return r, nil
}

// overNothing asks for -d for the sum over no keys, one job after the other, with so many records stored that are none of it.
func (p *peer) overNothing(ctx context.Context, run, stored int) (Record, error) {
	r := p.s.record(p, "nokeys", run)
	r.Records = stored
	j := p.d.(Jobber)
	ask := func() error {
		a, err := j.Job(ctx, Job{Prefix: "none/", As: "json", Map: "json:n", Reduce: "sum"})
		if err == nil && a != (JobAnswer{}) {
			err = fmt.Errorf("%d over %d records, want 0 over none", a.Value, a.Records)
		}
		return err
	}
	if err := ask(); err != nil { // the first makes connections
		return r, err
	}
	var lat []time.Duration
	start := time.Now()
	for t := start; t.Sub(start) < p.s.Dur; t = time.Now() {
		if err := ask(); err != nil {
			return r, err
		}
		lat = append(lat, time.Since(t))
	}
	r.Seconds = time.Since(start).Seconds()
	slices.Sort(lat)
	v := r.Values
	v["jobs"] = float64(len(lat))
	v["p50_ms"], v["p99_ms"], v["max_ms"] = ms(measure.Quantile(lat, .5)), ms(measure.Quantile(lat, .99)), ms(measure.Quantile(lat, 1))
	return r, nil
}
