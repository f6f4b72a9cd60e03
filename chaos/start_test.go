package chaos_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
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
// seconds more after a SIGKILL with as much as may be in the log alone. One node, so
// that all of it is this node's work. The quickest of several, for an election's time-out is drawn by lot and a disk slow now and then.
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
	empty := quickest(5, clean)

	writeKeys(t, c, "k/", keys)
	full := quickest(5, clean)

	if got := cli(t, n, "job", "run", "--prefix", "k/", "--reduce", "count").must(t); got != fmt.Sprintln(keys) {
		t.Errorf("%s of %d keys are there", got, keys)
	}
	if err := n.Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}

	// No checkpoint comes by itself here, so that every shard's state in memory grows
	// until its leader takes no more: as much as may be is then in the log alone.
	b := startCluster(t, proc.Config{Nodes: 1, Shards: 8, Replicas: 1, Args: []string{"--checkpoint-bytes", "1099511627776", "--snapshot-entries", "1000000000"}})
	n = b.Node(1)
	fillToTheBound(t, b)
	killed := quickest(3, func() time.Duration {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		took := startsIn(t, n)
		if full := shardsAtBound(t, n); full != 8 {
			t.Errorf("after the start %d of 8 shards are at the bound", full)
		}
		return took
	})
	t.Logf("exec to /readyz: %v with no keys, %v with %d after a clean stop, %v after SIGKILL with the state in memory at its bound", empty, full, keys, killed)
	if full > 2*empty {
		t.Errorf("with %d keys a start takes %v, without %v", keys, full, empty)
	}
	if killed > 2*empty+2*time.Second {
		t.Errorf("after a kill a start takes %v, without keys %v", killed, empty)
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
				if err := putRange(t.Context(), cl, prefix, filler, from, min(from+batch, n)); err != nil {
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

// fillToTheBound writes until every shard's leader holds writes back.
func fillToTheBound(t *testing.T, c *proc.Cluster) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	value := strings.Repeat("x", 1000)
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			cl, err := client.Open(client.Config{Addrs: c.ClientAddrs(), Timeout: time.Second})
			if err != nil {
				t.Error(err)
				return
			}
			defer cl.Close()
			for from := 0; ctx.Err() == nil; from += 500 {
				// Errors are what is wanted: shards that are full make the others' turn come.
				_ = putRange(ctx, cl, fmt.Sprintf("w%d/", w), value, from, from+500)
			}
		})
	}
	eventually(t, 2*time.Minute, "every shard to hold writes back", func() bool { return shardsAtBound(t, c.Node(1)) == c.Shards() })
	stop()
	writers.Wait()
}

// shardsAtBound is how many shards of a node have all the state in memory that they may,
// 32 MiB less one entry of the log.
func shardsAtBound(t *testing.T, n *proc.Node) (full int) {
	t.Helper()
	resp, err := http.Get("http://" + n.Addrs().HTTP + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if bytes, err := strconv.ParseFloat(value, 64); err == nil && strings.HasPrefix(name, "abacus_shard_overlay_bytes{") && bytes > 31<<20 {
			full++
		}
	}
	return full
}

var filler = strings.Repeat("x", 100)

func putRange(ctx context.Context, cl *client.Client, prefix, value string, from, to int) error {
	cmds := make([]client.Cmd, 0, to-from)
	for i := from; i < to; i++ {
		cmds = append(cmds, client.Command("SET", prefix+strconv.Itoa(i), value))
	}
	for _, r := range cl.DoMulti(ctx, cmds) {
		if r.Err != nil {
			return r.Err
		}
	}
	return nil
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

// quickest runs f so many times and returns the shortest time that it told.
func quickest(runs int, f func() time.Duration) time.Duration {
	least := f()
	for range runs - 1 {
		least = min(least, f())
	}
	return least.Round(time.Millisecond)
}
