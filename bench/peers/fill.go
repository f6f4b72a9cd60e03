package main

import (
	"context"
	"sync"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/keyspace"
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

// fill stores -records distinct keys in random order, once a peer.
func (s *session) fill(ctx context.Context) error {
	for _, c := range s.C {
		var all []Record
		for _, p := range s.peers {
			r, err := p.fill(ctx, c)
			if err != nil {
				return err
			}
			if err := s.keep(r); err != nil {
				return err
			}
			all = append(all, r)
		}
		s.print(all)
	}
	return nil
}

// fillStep is how many keys each rate of a fill is of: a million, or a tenth of fewer than two.
func fillStep(records int) int {
	if records >= 2_000_000 {
		return 1_000_000
	}
	return max(1, records/10)
}

func (p *peer) fill(ctx context.Context, c int) (Record, error) {
	s := p.s
	r := s.record(p, "fill", 0)
	r.C, r.Records, r.Pipeline = c, s.Records, 1
	if _, ok := p.d.(Pipeliner); ok {
		r.Pipeline = s.Pipeline
	}
	step := fillStep(s.Records)
	mem := watchMemory(p.d.Procs().Pids())
	at := make([]time.Duration, s.Records/step) // when each step was done
	var mu sync.Mutex
	u, t := p.usage(), time.Now()
	repeats, err := p.store(ctx, s.Records, c, r.Pipeline, keyspace.Permutation(s.Records, 1), func(total int) {
		// Callers pass a step's end in any order and each once, in leaps of a pipeline.
		if i := total / step; i > 0 && total-i*step < r.Pipeline && i <= len(at) {
			mu.Lock()
			if at[i-1] == 0 {
				at[i-1] = time.Since(t)
			}
			mu.Unlock()
		}
	})
	r.Seconds = time.Since(t).Seconds()
	most, sum := mem.stop()
	if err != nil {
		return r, err
	}
	if err := p.d.Procs().Check(); err != nil {
		return r, err
	}
	prev := time.Duration(0)
	for _, d := range at {
		r.Steps = append(r.Steps, float64(step)/(d-prev).Seconds())
		prev = d
	}
	r.Values["rate"], r.Values["errors"], r.Values["step"] = float64(s.Records)/r.Seconds, float64(repeats), float64(step)
	r.Values["last_to_first"] = r.Steps[len(r.Steps)-1] / r.Steps[0]
	u.into(&r, float64(s.Records))
	r.Values["rss_anon_mib"], r.Values["rss_anon_sum_mib"] = most, sum
	return r, nil
}

// memoryWatch notes once a second what memory servers hold.
type memoryWatch struct {
	cancel context.CancelFunc
	done   chan struct{}
	most   float64 // of one server, MiB
	sum    float64 // of all at once
}

func watchMemory(pids []int) *memoryWatch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &memoryWatch{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for ended := false; ; {
			sum := 0.0
			for _, id := range pids {
				v := float64(measure.PidRSSAnon(id)) / (1 << 20)
				sum += v
				w.most = max(w.most, v)
			}
			w.sum = max(w.sum, sum)
			if ended {
				return
			}
			ended = sleep(ctx, time.Second) != nil // then once more: a short load ends fuller than it began
		}
	}()
	return w
}

// stop ends the watch: the most that one server held, and the most that all held at once.
func (w *memoryWatch) stop() (most, sum float64) {
	w.cancel()
	<-w.done
	return w.most, w.sum
}
