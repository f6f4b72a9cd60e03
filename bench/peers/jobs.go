package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
	"github.com/abacusdb/abacus/bench/peers/internal/keyspace"
)

// Jobber is a Driver that is asked for answers over what it stores. One goroutine asks, and one job runs at a time.
type Jobber interface {
	// Job runs a job and waits for its answer, which is worked out anew each time.
	Job(ctx context.Context, job Job) (JobAnswer, error)
}

// Job is what to compute, in the words of a job's spec.
type Job struct {
	Prefix string `json:"prefix"`
	As     string `json:"as,omitempty"`
	Map    string `json:"map,omitempty"`
	Reduce string `json:"reduce"`
}

// JobAnswer is a number, and over how many records it is.
type JobAnswer struct{ Value, Records int64 }

// sumJob is the sum that the whole data set has been made for.
var sumJob = Job{Prefix: "k", As: "json", Map: "json:n", Reduce: "sum"}

// jobs compares latencies of put and of get in an open loop (-rate 50%: of what a closed loop of -c callers, who do half and half, does) with
// sums over all records that run one after the other all the time against those without, in turn. Puts and gets are told apart: a put takes
// several times as long, and would hide what becomes of gets.
//
// What is put is the record that is there already. So the sum of every job is known while thousands of writes a second go on, and is checked.
func (s *session) jobs(ctx context.Context) error {
	if s.Half+s.Rate == 0 {
		return errors.New("needs -rate 50%, or a number of operations a second")
	}
	peak := map[string]float64{}
	return s.inTurn(ctx, func(ctx context.Context, p *peer, run int) (Record, error) {
		r := s.record(p, "jobs", run)
		r.C, r.Dist, r.Records = s.C[0], s.Dist, s.Records
		j, ok := p.d.(Jobber)
		if !ok {
			return r, errUnsupported
		}
		if err := p.loadRecords(ctx); err != nil {
			return r, fmt.Errorf("load: %w", err)
		}
		if s.Half > 0 && peak[p.name] == 0 {
			both, err := p.rewriters(r.C, func(coin bool) bool { return coin })
			if err != nil {
				return r, err
			}
			closedLoop(ctx, both, min(time.Second, s.Dur/4)) // warm
			_, ok, _, took := closedLoop(ctx, both, min(s.Dur, 10*time.Second))
			peak[p.name] = float64(ok) / took.Seconds()
		}
		r.Rate, r.Seconds = s.Rate+s.Half*peak[p.name], s.Dur.Seconds()
		for turn := range 2 {
			if err := s.settle(ctx); err != nil {
				return r, err
			}
			if turn == run%2 { // whichever is first, the other is in the next run
				if err := p.putAndGet(ctx, r.Rate, r.Values, "rest"); err != nil {
					return r, err
				}
				continue
			}
			stop, ended := make(chan struct{}), make(chan error, 1)
			go func() { ended <- p.jobsUntil(ctx, j, stop, r.Values) }()
			busy := map[string]float64{} // the other goroutine has r.Values
			err := p.putAndGet(ctx, r.Rate, busy, "busy")
			close(stop)
			if err := errors.Join(err, <-ended); err != nil {
				return r, err
			}
			for name, v := range busy {
				r.Values[name] = v
			}
		}
		for _, op := range []string{"put", "get"} {
			if rest := r.Values["rest_"+op+"_p99_ms"]; rest > 0 {
				r.Values[op+"_busy_to_rest"] = r.Values["busy_"+op+"_p99_ms"] / rest
			}
		}
		return r, nil
	})
}

// putAndGet is an open loop of puts and one of gets beside it, each of half the rate.
func (p *peer) putAndGet(ctx context.Context, rate float64, v map[string]float64, prefix string) error {
	puts, err := p.rewriters(openCallers/2, func(bool) bool { return true })
	if err != nil {
		return err
	}
	gets, err := p.rewriters(openCallers/2, func(bool) bool { return false })
	if err != nil {
		return err
	}
	var put, get *opened
	var wg sync.WaitGroup
	wg.Go(func() { put = openLoop(ctx, puts, rate/2, p.s.Dur) })
	wg.Go(func() { get = openLoop(ctx, gets, rate/2, p.s.Dur) })
	wg.Wait()
	put.into(v, prefix+"_put_")
	get.into(v, prefix+"_get_")
	if v[prefix+"_put_rate"] == 0 || v[prefix+"_get_rate"] == 0 {
		return errors.New("no put, or no get, was answered")
	}
	return ctx.Err()
}

// rewriters are n callers that put a record of the data set as it is, or get one, as puts says of a coin's fall.
func (p *peer) rewriters(n int, puts func(coin bool) bool) (calls []caller, err error) {
	cl, err := p.clients("put")
	if err != nil {
		return nil, err
	}
	for i := range n {
		next, err := keyspace.New(p.s.Dist, p.s.Records, rand.Uint64())
		if err != nil {
			return nil, err
		}
		coin, c := rand.New(rand.NewPCG(rand.Uint64(), 1)), cl[i%len(cl)]
		calls = append(calls, func(ctx context.Context) (int, error) {
			var err error
			k := next()
			if puts(coin.Uint64()&1 == 0) {
				err = c.Put(ctx, key(k), dataset.Record(k))
			} else {
				err = c.Get(ctx, key(k), false)
			}
			if err != nil {
				return 0, err
			}
			return 1, nil
		})
	}
	return calls, nil
}

// jobsUntil runs one sum after the other until stop is closed. The one that is under way then is waited for and not counted: it ran
// without the load.
func (p *peer) jobsUntil(ctx context.Context, j Jobber, stop <-chan struct{}, v map[string]float64) error {
	want := JobAnswer{dataset.Sum(p.s.Records), int64(p.s.Records)}
	start := time.Now()
	for n := 1.0; ; n++ {
		a, err := j.Job(ctx, sumJob)
		if err != nil {
			return fmt.Errorf("job %.0f: %w", n, err)
		}
		if a != want {
			return fmt.Errorf("job %.0f beside writes that change nothing: %+v, want %+v", n, a, want)
		}
		select {
		case <-stop:
			if v["jobs"] == 0 {
				return errors.New("no job ended in the time: a longer -d is needed")
			}
			return nil
		default:
		}
		v["jobs"], v["job_records_s"] = n, n*float64(p.s.Records)/time.Since(start).Seconds()
	}
}
