package main

import (
	"context"
	"fmt"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

// compute loads the data set and times each way the peer has of summing it.
func (s *session) compute(ctx context.Context, p *peer) error {
	c, ok := p.d.(Computer)
	if !ok {
		fmt.Fprintf(s.out, "%-15s compute unsupported\n", p.name)
		return nil
	}
	t := time.Now()
	if err := c.Load(ctx, s.Records, dataset.Key, dataset.Record); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%-15s compute: loaded %d records in %s\n", p.name, s.Records, time.Since(t).Round(time.Millisecond))
	for _, k := range c.Tasks() {
		var v, cpu, scpu []float64
		for run := range s.Runs {
			pids := p.d.Procs().Pids()
			s0, c0, t := time.Duration(0), measure.SelfCPU(), time.Now()
			for _, id := range pids {
				s0 += treeCPU(id)
			}
			n, err := k.Run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", k.Name, err)
			}
			if want := dataset.Sum(s.Records); n != want {
				return fmt.Errorf("%s: sum %d, want %d", k.Name, n, want)
			}
			v = append(v, time.Since(t).Seconds())
			cpu = append(cpu, (measure.SelfCPU() - c0).Seconds())
			for _, id := range pids {
				s0 -= treeCPU(id)
			}
			scpu = append(scpu, -s0.Seconds())
			r := s.record(p, "compute", run)
			r.Task, r.Values = k.Name, map[string]float64{"seconds": v[run], "client_cpu_s": cpu[run], "server_cpu_s": scpu[run]}
			if err := s.keep(r); err != nil {
				return err
			}
		}
		m, lo, hi := measure.Median(v)
		cc, _, _ := measure.Median(cpu)
		sc, _, _ := measure.Median(scpu)
		fmt.Fprintf(s.out, "%-15s compute: %-60s %7.3f s [%.3f..%.3f]  cpu-seconds client=%.2f servers=%.2f\n", p.name, k.Name, m, lo, hi, cc, sc)
	}
	return nil
}
