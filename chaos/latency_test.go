//go:build tools

package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
)

// TestToolsMoveLatency shows what clients feel while replicas move: at half of the peak rate, in an open loop, the p99 of reads and writes is at most three times that without, no
// operation fails and none takes five seconds. Replicas of 15 MB and more move one after the other, leaders among them, without a pause. Quiet times and
// times with moves take turns, and their medians are compared, for a machine has slow moments of its own: of some seconds, so that two of three turns may have one. Then
// there are more turns. Moves that cost three times as much would do so in each.
func TestToolsMoveLatency(t *testing.T) {
	const (
		shards                = 8
		leastTurns, mostTurns = 3, 7
		atMost                = 3.0
	)
	c := startCluster(t, proc.Config{Nodes: 4, Shards: shards, Replicas: 3})
	args := []string{"bench", "--op", "mixed", "--keys", "120000", "--value-size", "1000", "--prefix", "latency/", "-o", "json"}
	run := func(more ...string) (r benchReport) {
		t.Helper()
		out := cli(t, c.Node(1), append(slices.Clone(args), more...)...).must(t)
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("parse the report: %v\n%s", err, out)
		}
		if r.Failed > 0 || r.Latency.Max > 5000 {
			t.Errorf("%d operations failed (%v), the slowest took %.0f ms", r.Failed, r.Errors, r.Latency.Max)
		}
		return r
	}
	peak := run("--duration", "6s").OpsPerSec // and stores the keys
	rate := []string{"--no-load", "--duration", "8s", "--warmup", "1s", "--rate", fmt.Sprintf("%.0f", peak/2)}
	m := &mover{cl: open(t, c), shards: shards}

	var quiet, moving []float64
	median := func(of []float64) float64 { return slices.Sorted(slices.Values(of))[len(of)/2] }
	for turn := 0; turn < leastTurns || turn < mostTurns && median(moving) > atMost*median(quiet); turn++ {
		quiet = append(quiet, run(rate...).Latency.P99)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		before := m.done
		go func() { ended <- m.run(ctx) }()
		moving = append(moving, run(rate...).Latency.P99)
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if m.done < before+2 {
			t.Errorf("%d moves ended in the time: this shows nothing", m.done-before)
		}
	}
	t.Logf("peak %.0f operations a second; at half of it, p99 in ms %v without moves and %v with; %d moves, the longest %v", peak, quiet, moving, m.done, m.longest.Round(time.Millisecond))
	if without, with := median(quiet), median(moving); with > atMost*without {
		t.Errorf("p99 is %.1f ms with moves and %.1f without: %.1f times, want at most %.0f", with, without, with/without, atMost)
	}
}

// benchReport is what `abacus -o json bench` prints, as far as tests look.
type benchReport struct {
	OpsPerSec float64          `json:"ops_per_second"`
	Failed    int64            `json:"failed"`
	Errors    map[string]int64 `json:"errors"`
	Latency   struct {
		P99 float64 `json:"p99"`
		Max float64 `json:"max"`
	} `json:"latency_ms"`
}

// mover moves replicas, one at a time: of each shard in turn, one to the node that has none of it. Not for use by several goroutines.
type mover struct {
	cl      *client.Client
	shards  int
	done    int
	longest time.Duration
}

// run moves until ctx ends, and ends the move that it is at.
func (m *mover) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := m.move(); err != nil {
			return err
		}
	}
	return nil
}

func (m *mover) move() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := m.cl.Status(ctx)
	if err != nil {
		return err
	}
	sh, from, to := s.Shards[m.done%m.shards], "", ""
	for _, n := range s.Nodes {
		switch {
		case !slices.ContainsFunc(sh.Replicas, func(r client.ReplicaStatus) bool { return r.Node == n.ID }):
			to = n.ID
		case n.ID == sh.Leader && m.done%2 == 0, from == "" && n.ID != sh.Leader:
			from = n.ID // every second time that which leads
		}
	}
	began := time.Now()
	if _, err := m.cl.Admin(ctx, "shard", "move", fmt.Sprint(sh.ID), from, to); err != nil {
		return fmt.Errorf("move shard %d from %q to %q: %w", sh.ID, from, to, err)
	}
	for {
		s, err := m.cl.Status(ctx)
		if err != nil {
			return fmt.Errorf("shard %d is moved from %s to %s: %w", sh.ID, from, to, err)
		}
		now := s.Shards[m.done%m.shards]
		if now.Move == nil && slices.ContainsFunc(now.Replicas, func(r client.ReplicaStatus) bool { return r.Node == to }) &&
			!slices.ContainsFunc(now.Replicas, func(r client.ReplicaStatus) bool { return r.Node == from }) {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("shard %d is not moved from %s to %s after a minute: %+v", sh.ID, from, to, now)
		}
	}
	m.done++
	m.longest = max(m.longest, time.Since(began))
	return nil
}
