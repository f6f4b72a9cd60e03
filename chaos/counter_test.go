package chaos_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
)

// brittle is a connection that now and then breaks right behind what was sent:
// the command arrives, its answer does not.
type brittle struct{ net.Conn }

func (b brittle) Write(p []byte) (int, error) {
	n, err := b.Conn.Write(p)
	if rand.IntN(150) == 0 {
		// The node reads what was sent before it meets the end.
		b.Conn.(*net.TCPConn).CloseWrite()
		time.AfterFunc(time.Millisecond, func() { b.Close() })
	}
	return n, err
}

// counting is one goroutine's increments.
type counting struct {
	key             string
	done, uncertain int64
	failure         error
}

// TestCounterExact shows that a counter under kills and breaking links, with
// clients that send again whatever got no answer, ends at what they were told was done. Every
// worker counts in a key of its own, over many shards, and in one that all share. Leaders
// are killed with SIGKILL under it, one after the other, and then all nodes. A worker's key
// may differ from its count only by its own uncertain increments, of which there
// must be few; and commands must have been answered from the session tables.
func TestCounterExact(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 6})
	const clients, workers = 4, 4
	var (
		counts  []*counting
		cls     []*client.Client
		total   atomic.Int64
		wg      sync.WaitGroup
		stop    = make(chan struct{})
		repeats uint64
	)
	for i := range clients {
		cl, err := client.Open(client.Config{Addrs: c.ClientAddrs(), Timeout: 30 * time.Second, Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			nc, err := d.DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			return brittle{nc}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		cls = append(cls, cl)
		for w := range workers {
			own := &counting{key: fmt.Sprintf("exact/%d/%d", i, w)}
			shared := &counting{key: "exact/shared"}
			counts = append(counts, own, shared)
			wg.Go(func() {
				for turn := 0; ; turn++ {
					select {
					case <-stop:
						return
					default:
					}
					n := own
					if turn%4 == 0 {
						n = shared
					}
					switch _, err := cl.Incr(context.Background(), n.key, 1); {
					case err == nil:
						n.done++
						total.Add(1)
					case errors.Is(err, client.ErrUncertain):
						n.uncertain++
					case !errors.Is(err, client.ErrUnavailable):
						n.failure = err
						return
					}
				}
			})
		}
	}
	stopped := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer stopped()
	more := func(when string, n int64) {
		t.Helper()
		want := total.Load() + n
		eventually(t, 40*time.Second, fmt.Sprintf("%d increments %s", n, when), func() bool { return total.Load() >= want })
	}
	more("before any kill", 500)
	for round := range 4 {
		repeats += sessionRepeats(t, c)
		st, err := open(t, c).Status(timeout(t, 20*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		n := c.Node(1)
		for i := range c.Nodes() { // the leader of another shard each time
			if c.Node(i+1).ID() == st.Shards[round%len(st.Shards)].Leader {
				n = c.Node(i + 1)
			}
		}
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		more("without "+n.ID(), 300)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		waitReady(t, c)
		more("with "+n.ID()+" back", 300)
	}
	repeats += sessionRepeats(t, c)
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	more("after the death of all", 500)
	stopped()
	repeats += sessionRepeats(t, c)

	cl := open(t, c)
	var done, uncertain int64
	shared := &counting{key: "exact/shared"}
	check := func(n *counting) {
		raw, err := cl.Get(timeout(t, 20*time.Second), n.key)
		if err != nil {
			t.Errorf("%s: %v", n.key, err)
			return
		}
		if v, err := strconv.ParseInt(string(raw), 10, 64); err != nil || v < n.done || v > n.done+n.uncertain {
			t.Errorf("%s is %s: %d increments were done and %d are uncertain", n.key, raw, n.done, n.uncertain)
		}
	}
	for _, n := range counts {
		done, uncertain = done+n.done, uncertain+n.uncertain
		if n.failure != nil {
			t.Errorf("%s: an error that is neither unavailable nor uncertain: %v", n.key, n.failure)
		}
		if n.key == shared.key {
			shared.done, shared.uncertain = shared.done+n.done, shared.uncertain+n.uncertain
			continue
		}
		check(n)
	}
	check(shared)
	var stats client.Stats
	for _, cl := range cls {
		s := cl.Stats()
		stats.Repeated, stats.Sessions = stats.Repeated+s.Repeated, stats.Sessions+s.Sessions
	}
	t.Logf("%d increments done, %d uncertain; %d sent again by %d clients with %d sessions; replicas answered from their tables %d times",
		done, uncertain, stats.Repeated, clients, stats.Sessions, repeats)
	if uncertain > 4 {
		t.Errorf("%d increments are uncertain", uncertain)
	}
	if stats.Repeated == 0 || repeats == 0 {
		t.Errorf("nothing was shown: %d sent again, %d answered from the tables", stats.Repeated, repeats)
	}
}

// sessionRepeats adds up what the running nodes say in their metrics, since they started.
func sessionRepeats(t *testing.T, c *proc.Cluster) (n uint64) {
	t.Helper()
	for _, node := range c.Nodes() {
		req, err := http.NewRequestWithContext(timeout(t, 10*time.Second), "GET", "http://"+node.Addrs().HTTP+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			if f := strings.Fields(s.Text()); strings.HasPrefix(s.Text(), "abacus_session_repeats_total{") {
				v, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					t.Fatal(err)
				}
				n += uint64(v)
			}
		}
		resp.Body.Close()
	}
	return n
}
