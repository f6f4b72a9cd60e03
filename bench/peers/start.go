package main

import (
	"context"
	"fmt"
	"net/http"
	"syscall"
	"time"
)

// startLimit is how long a node may take to end, and to be ready again.
const startLimit = 5 * time.Minute

// restart ends a node and times its next start, with nothing stored and with -records
// keys; the fill between is recorded as op fill's.
func (s *session) restart(ctx context.Context) error {
	for _, records := range []int{0, s.Records} {
		if records > 0 {
			if err := s.fill(ctx); err != nil {
				return err
			}
		}
		err := s.inTurn(ctx, func(ctx context.Context, p *peer, run int) (Record, error) {
			r := s.record(p, "start", run)
			r.Records, r.Signal = records, signalName(s.Signal)
			rd, ok := p.d.(Readier)
			if !ok {
				return r, errUnsupported
			}
			if err := s.settle(ctx); err != nil {
				return r, err
			}
			node := run % s.Nodes
			t := time.Now()
			if err := p.d.Procs().End(node, s.Signal, startLimit); err != nil {
				return r, err
			}
			r.Values["end_ms"] = ms(time.Since(t))
			t = time.Now()
			if err := p.d.Procs().Start(node); err != nil {
				return r, err
			}
			if err := awaitReady(ctx, p, rd.Ready(node)); err != nil {
				return r, err
			}
			r.Values["ready_ms"] = ms(time.Since(t))
			return r, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func signalName(s syscall.Signal) string {
	if s == syscall.SIGKILL {
		return "SIGKILL"
	}
	return "SIGTERM"
}

// awaitReady asks every 5 ms until the answer is 200.
func awaitReady(ctx context.Context, p *peer, url string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	// No connection is kept: each would be to the process before.
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := c.Do(req); err != nil {
			last = err
		} else {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			last = fmt.Errorf("%s: %s", url, resp.Status)
		}
		if err := p.d.Procs().Check(); err != nil {
			return err
		}
		if sleep(ctx, 5*time.Millisecond) != nil {
			return fmt.Errorf("not ready after %s: %w", startLimit, last)
		}
	}
}
