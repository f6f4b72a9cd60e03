package chaos_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
)

// A start reads neither all keys nor all of the log: from exec to /readyz it
// takes at most twice as long with a million keys as with none after a clean stop, and two
// seconds more after a SIGKILL under load, when as much as may be is in the log alone. One
// node, so that all of it is this node's work. Medians, for an election's time-out is drawn by lot.
func TestStartWithAMillionKeys(t *testing.T) {
	const keys = 1_000_000
	c := startCluster(t, proc.Config{Nodes: 1, Shards: 8, Replicas: 1})
	n := c.Node(1)
	clean := func() time.Duration {
		if err := n.Stop(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		return startsIn(t, n)
	}
	empty := median(5, clean)

	writeKeys(t, c, "k/", keys)
	full := median(5, clean)

	killed := median(3, func() time.Duration {
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); writeUntil(ctx, c, "more/") }()
		before := appliedEntries(t, n)
		eventually(t, time.Minute, "writes enough that checkpoints come and go", func() bool { return appliedEntries(t, n) > before+400 })
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		stop()
		<-done
		return startsIn(t, n)
	})
	t.Logf("exec to /readyz: %v with no keys, %v with %d after a clean stop, %v after SIGKILL under load", empty, full, keys, killed)
	if full > 2*empty {
		t.Errorf("with %d keys a start takes %v, without %v", keys, full, empty)
	}
	if killed > 2*empty+2*time.Second {
		t.Errorf("after a kill a start takes %v, without keys %v", killed, empty)
	}
	if got := cli(t, n, "job", "run", "--prefix", "k/", "--reduce", "count").must(t); got != fmt.Sprintln(keys) {
		t.Errorf("%s of %d keys are there", got, keys)
	}
}

// writeKeys puts keys prefix0 to prefixN-1, many at a time.
func writeKeys(t *testing.T, c *proc.Cluster, prefix string, n int) {
	t.Helper()
	cl := open(t, c)
	const batch = 5000
	work := make(chan int)
	var writers sync.WaitGroup
	failed := make(chan error, 4)
	for range cap(failed) {
		writers.Go(func() {
			for from := range work {
				if err := putRange(t.Context(), cl, prefix, from, min(from+batch, n)); err != nil {
					failed <- err
					for range work { // so that the source does not stall
					}
				}
			}
		})
	}
	for from := 0; from < n; from += batch {
		work <- from
	}
	close(work)
	writers.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
}

// writeUntil puts keys until ctx ends or the node is gone.
func writeUntil(ctx context.Context, c *proc.Cluster, prefix string) {
	cl, err := client.Open(client.Config{Addrs: c.ClientAddrs(), Timeout: 2 * time.Second})
	if err != nil {
		return
	}
	defer cl.Close()
	for from := 0; ctx.Err() == nil; from += 1000 {
		if putRange(ctx, cl, prefix, from, from+1000) != nil {
			return
		}
	}
}

var filler = strings.Repeat("x", 100)

func putRange(ctx context.Context, cl *client.Client, prefix string, from, to int) error {
	cmds := make([]client.Cmd, 0, to-from)
	for i := from; i < to; i++ {
		cmds = append(cmds, client.Command("SET", prefix+strconv.Itoa(i), filler))
	}
	for _, r := range cl.DoMulti(ctx, cmds) {
		if r.Err != nil {
			return r.Err
		}
	}
	return nil
}

// appliedEntries is how many log entries a node has applied, over all shards.
func appliedEntries(t *testing.T, n *proc.Node) (sum uint64) {
	t.Helper()
	s, err := n.Status(timeout(t, 10*time.Second))
	if err != nil {
		return 0
	}
	for _, sh := range s.Shards {
		for _, r := range sh.Replicas {
			sum += r.Applied
		}
	}
	return sum
}

// startsIn starts a node and waits for /readyz.
func startsIn(t *testing.T, n *proc.Node) time.Duration {
	t.Helper()
	began := time.Now()
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	for url := "http://" + n.Addrs().HTTP + "/readyz"; ; time.Sleep(5 * time.Millisecond) {
		if resp, err := http.Get(url); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Since(began)
			}
		}
		if time.Since(began) > time.Minute {
			t.Fatal("not ready within a minute")
		}
	}
}

func median(runs int, f func() time.Duration) time.Duration {
	var all []time.Duration
	for range runs {
		all = append(all, f())
	}
	slices.Sort(all)
	return all[len(all)/2].Round(time.Millisecond)
}
