//go:build tools

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
)

// TestToolsGrowAndShrink shows a cluster that grows from three nodes to five and to nine, and shrinks to three others, while clients write and read, by what an
// administrator types: every operation succeeds within five seconds of its first try, a read never tells less than one before it, all writes that were
// acknowledged are read back, replicas and leaders are even after each step, and a node that was removed ends by itself.
func TestToolsGrowAndShrink(t *testing.T) {
	c := createCluster(t, proc.Config{Nodes: 9, Shards: 16, Replicas: 3})
	start := func(from, to int) {
		t.Helper()
		for n := from; n <= to; n++ {
			if err := c.Node(n).Start(); err != nil {
				t.Fatal(err)
			}
		}
	}
	// even waits until nodes from to to, and nobody else, hold everything evenly.
	even := func(from, to int) {
		t.Helper()
		nodes := to - from + 1
		why := ""
		defer func() {
			if t.Failed() {
				t.Log("uneven: " + why)
			}
		}()
		eventually(t, 2*time.Minute, "all is even", func() bool {
			why = uneven(t, c.Node(to), nodes, 16, min(3, nodes))
			return why == ""
		})
		t.Logf("n%d to n%d hold all, evenly", from, to)
	}
	start(1, 1)
	eventually(t, time.Minute, "the first node serves", func() bool { return cli(t, c.Node(1), "put", "first", "1").code == 0 })
	start(2, 3)
	even(1, 3)
	l := load.Start(open(t, c), load.Config{Prefix: "elastic/", Writers: 6})
	t.Cleanup(l.Stop)
	progress(t, l, "with three nodes", 300, 30*time.Second)
	r := startReader(t, open(t, c), l.Counter())

	for _, to := range []int{5, 9} {
		l.Tally(true)
		start(len(running(c))+1, to)
		last := c.Node(to)
		eventually(t, time.Minute, "they have joined", func() bool { return len(nodesOf(t, last)) == to })
		cli(t, last, "rebalance", "--timeout", "30s").must(t)
		even(1, to)
		progress(t, l, fmt.Sprintf("with %d nodes", to), 300, 30*time.Second)
		t.Logf("grown to %d: a writer waited at most %v", to, l.Tally(false).Slowest)
		within(t, l)
	}
	l.Tally(true)
	for n := 1; n <= 6; n++ {
		cli(t, c.Node(9), "node", "drain", c.Node(n).ID(), "--timeout", "30s").must(t)
		cli(t, c.Node(9), "node", "remove", c.Node(n).ID(), "--timeout", "30s").must(t)
		eventually(t, 30*time.Second, "a node that was removed ends", func() bool { return !c.Node(n).Running() && c.Node(n).Ended() })
		if code := c.Node(n).ExitCode(); code != 0 {
			t.Errorf("%s ended with code %d:\n%s", c.Node(n).ID(), code, c.Node(n).LogTail(5))
		}
	}
	cli(t, c.Node(9), "rebalance", "--timeout", "30s").must(t)
	even(7, 9)
	progress(t, l, "with three others", 300, 30*time.Second)
	t.Logf("shrunk to 3: a writer waited at most %v", l.Tally(false).Slowest)
	within(t, l)
	r.check(t)
	check(t, c, l)
}

// reader reads a counter that only grows, again and again, until it is checked.
type reader struct {
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	reads, last int64
	slowest     time.Duration
	wrong       error
}

func startReader(t *testing.T, cl *client.Client, key string) *reader {
	r := &reader{stop: make(chan struct{})}
	r.wg.Go(func() {
		for r.wrong == nil {
			select {
			case <-r.stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			began := time.Now()
			got, err := cl.Get(ctx, key)
			cancel()
			n, bad := strconv.ParseInt(string(got), 10, 64)
			if err = errors.Join(err, bad); err != nil || n < r.last {
				r.wrong = fmt.Errorf("%s is %q after %d, in a read of %v: %v", key, got, r.last, time.Since(began), err)
			}
			r.reads, r.last, r.slowest = r.reads+1, n, max(r.slowest, time.Since(began))
		}
	})
	t.Cleanup(r.end)
	return r
}

func (r *reader) end() {
	r.once.Do(func() { close(r.stop) })
	r.wg.Wait()
}

// check ends the reading, and fails if a read failed, took longer than it may, or told less than one before it.
func (r *reader) check(t *testing.T) {
	t.Helper()
	r.end()
	t.Logf("%d reads, the slowest took %v", r.reads, r.slowest)
	if r.wrong != nil || r.slowest > 5*time.Second || r.reads < 100 {
		t.Errorf("%d reads, the slowest took %v: %v", r.reads, r.slowest, r.wrong)
	}
}

// within fails if a write waited longer than it may, or was given up.
func within(t *testing.T, l *load.Load) {
	t.Helper()
	tally := l.Tally(false)
	if tally.Slowest > 5*time.Second || tally.Refused > 0 || tally.Uncertain > 0 {
		t.Errorf("a write waited for %v, %d were refused and %d are uncertain", tally.Slowest, tally.Refused, tally.Uncertain)
	}
}

func running(c *proc.Cluster) (list []*proc.Node) {
	for _, n := range c.Nodes() {
		if n.Running() {
			list = append(list, n)
		}
	}
	return list
}

func nodesOf(t *testing.T, n *proc.Node) []proc.NodeStatus {
	t.Helper()
	s, err := n.Status(timeout(t, 5*time.Second))
	if err != nil {
		return nil
	}
	return s.Nodes
}

// uneven says what speaks against so many nodes holding so many shards evenly, and leading them so.
func uneven(t *testing.T, n *proc.Node, nodes, shards, replicas int) string {
	t.Helper()
	s, err := n.Status(timeout(t, 5*time.Second))
	switch {
	case err != nil:
		return err.Error()
	case !s.Healthy || s.Balance != "":
		return fmt.Sprintf("%v, balance %q", s.Problems, s.Balance)
	case len(s.Nodes) != nodes:
		return fmt.Sprintf("%d nodes", len(s.Nodes))
	}
	for _, nd := range s.Nodes {
		if all := shards * replicas; nd.Replicas < all/nodes || nd.Replicas > (all+nodes-1)/nodes {
			return fmt.Sprintf("%s has %d of %d replicas on %d nodes", nd.ID, nd.Replicas, all, nodes)
		}
		if nd.Leads < shards/nodes || nd.Leads > (shards+nodes-1)/nodes {
			return fmt.Sprintf("%s leads %d of %d shards", nd.ID, nd.Leads, shards)
		}
	}
	return ""
}
