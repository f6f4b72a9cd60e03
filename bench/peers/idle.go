package main

import (
	"context"
	"fmt"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

// quiet is how long nothing is asked of the servers before their idleness is measured.
const quiet = 5 * time.Second

// idle measures what servers cost that have nothing to do: all peers in the same time,
// for CPU time is counted by process.
func (s *session) idle(ctx context.Context) error {
	var all []Record
	for run := range s.Runs {
		if err := s.settle(ctx); err != nil {
			return err
		}
		if err := sleep(ctx, quiet); err != nil {
			return err
		}
		cpu := make([][]time.Duration, len(s.peers))
		t := time.Now()
		for i, p := range s.peers {
			for _, id := range p.d.Procs().Pids() {
				cpu[i] = append(cpu[i], treeCPU(id))
			}
		}
		mem := make([]*memoryWatch, len(s.peers))
		for i, p := range s.peers {
			mem[i] = watchMemory(p.d.Procs().Pids())
		}
		err := sleep(ctx, s.Dur)
		el := time.Since(t).Seconds()
		for i, p := range s.peers {
			r := s.record(p, "idle", run)
			r.Seconds = el
			var each []float64
			for k, id := range p.d.Procs().Pids() {
				v := 100 * (treeCPU(id) - cpu[i][k]).Seconds() / el
				each = append(each, v)
				r.Values[fmt.Sprintf("cpu_%d_percent", k)] = v
				r.Values["cpu_sum_percent"] += v
				r.Values["rss_mib"] = max(r.Values["rss_mib"], float64(measure.PidRSS(id))/(1<<20))
			}
			r.Values["cpu_percent"], _, r.Values["cpu_most_percent"] = measure.Median(each)
			r.Values["rss_anon_mib"], _ = mem[i].stop()
			if err == nil {
				err = p.d.Procs().Check()
			}
			if err == nil {
				err = s.keep(r)
			}
			all = append(all, r)
		}
		if err != nil {
			return err
		}
	}
	s.print(all)
	return nil
}
