package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

// Mover is a Driver that can send a replica of a shard to another node while it serves.
type Mover interface {
	// Move sends one to another node and returns when it is there, with how many bytes that was to copy as the peer
	// had planned it. turn is a number that differs from call to call.
	Move(ctx context.Context, turn int) (bytes int64, err error)
	// Even has replicas moved until all nodes have as many.
	Even(ctx context.Context) error
}

// moves compares latencies in an open loop (-rate 50%: of what a closed loop of -c callers does) at rest and while one replica after another moves,
// in turn: rest, moves, rest, moves. Reads and writes are half each.
func (s *session) moves(ctx context.Context) error {
	if s.Nodes < 4 || s.Half == 0 {
		return errors.New("needs -nodes 4, so that there is somewhere to go, and -rate 50%")
	}
	peak := map[string]float64{}
	return s.inTurn(ctx, func(ctx context.Context, p *peer, run int) (Record, error) {
		r := s.record(p, "moves", run)
		r.C, r.Dist, r.Keys = s.C[0], s.Dist, s.Keys
		m, ok := p.d.(Mover)
		if !ok {
			return r, errUnsupported
		}
		if err := p.load(ctx); err != nil {
			return r, fmt.Errorf("load: %w", err)
		}
		calls, _, done, err := p.callers("mixed", max(r.C, openCallers))
		if err != nil {
			return r, err
		}
		defer done()
		if peak[p.name] == 0 {
			closedLoop(ctx, calls[:r.C], min(time.Second, s.Dur/4)) // warm
			_, ok, _, took := closedLoop(ctx, calls[:r.C], min(s.Dur, 10*time.Second))
			peak[p.name] = float64(ok) / took.Seconds()
		}
		r.Rate, r.Seconds = s.Half*peak[p.name], s.Dur.Seconds()
		v := r.Values
		rest := openLoop(ctx, calls, r.Rate, s.Dur)
		rest.into(v, "rest_")

		mctx, stop := context.WithCancel(ctx)
		var moving sync.WaitGroup
		var failed error
		before := measure.ReadDisk()
		moving.Go(func() {
			for turn := run << 16; mctx.Err() == nil; turn++ {
				bytes, err := m.Move(mctx, turn)
				if err != nil {
					if mctx.Err() == nil {
						failed = err
					}
					return
				}
				v["moves"]++
				v["moved_mib"] += float64(bytes) / (1 << 20)
			}
		})
		busy := openLoop(ctx, calls, r.Rate, s.Dur)
		stop()
		moving.Wait()
		if failed != nil {
			return r, fmt.Errorf("move: %w", failed)
		}
		v["disk_mib"] = float64(measure.ReadDisk().Sub(before).Bytes) / (1 << 20)
		busy.into(v, "moving_")
		if v["rest_p99_ms"] > 0 {
			v["moving_to_rest"] = v["moving_p99_ms"] / v["rest_p99_ms"]
		}
		v["rate"] = v["moving_rate"]
		if err := m.Even(ctx); err != nil {
			return r, err
		}
		return r, s.settle(ctx)
	})
}

// into writes what an open loop did.
func (o *opened) into(v map[string]float64, prefix string) {
	all := o.sorted(func(int) bool { return true })
	for _, l := range o.lat {
		if l < 0 {
			v[prefix+"errors"]++
		}
	}
	v[prefix+"rate"] = float64(len(all)) / (float64(len(o.lat)) / o.rate)
	v[prefix+"p50_ms"], v[prefix+"p99_ms"], v[prefix+"p999_ms"] = ms(measure.Quantile(all, .5)), ms(measure.Quantile(all, .99)), ms(measure.Quantile(all, .999))
	v[prefix+"max_ms"] = ms(measure.Quantile(all, 1))
}
