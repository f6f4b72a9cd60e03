package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
)

// A command that changes nothing may be sent again, and a numbered write, which is
// executed once; any other only if it certainly was not executed. Each row makes the
// first attempt at INCR, SET, GET and JOB.CANCEL fail in one way and says what the caller gets.
func TestWhatIsSentAgain(t *testing.T) {
	answer := func(text string) func(*clienttest.Request) clienttest.Fate {
		return func(r *clienttest.Request) clienttest.Fate { r.Reply.Error(text); return clienttest.Done }
	}
	fate := func(f clienttest.Fate) func(*clienttest.Request) clienttest.Fate {
		return func(*clienttest.Request) clienttest.Fate { return f }
	}
	cases := []struct {
		name    string
		first   func(*clienttest.Request) clienttest.Fate
		certain bool // that it was not executed
	}{
		{"connection breaks before the answer", fate(clienttest.Lose), false},
		{"connection breaks before execution", fate(clienttest.Refuse), false}, // the client cannot know
		{"no answer", fate(clienttest.Hang), false},
		{"UNCERTAIN", answer("UNCERTAIN who knows"), false},
		{"CLUSTERDOWN", answer("CLUSTERDOWN no leader"), true},
		{"TRYAGAIN", answer("TRYAGAIN later"), true},
		{"LOADING", answer("LOADING later"), true},
	}
	commands := []struct {
		cmd        client.Cmd
		repeatable bool
	}{
		{client.Command("INCR", "k"), true},
		{client.Command("SET", "k", "1"), true},
		{client.Command("JOB.CANCEL", "j"), false},
		{client.Cmd{Args: client.Command("JOB.CANCEL", "j").Args, Repeatable: true}, true},
		{client.Command("GET", "k"), true},
		{client.Command("get", "k"), true},
	}
	for _, tc := range cases {
		for _, c := range commands {
			t.Run(fmt.Sprintf("%s/%s/%v", tc.name, c.cmd.Args[0], c.cmd.Repeatable), func(t *testing.T) {
				t.Parallel()
				cluster := clienttest.New(t, 3)
				cl := open(t, cluster)
				var hit atomic.Bool
				cluster.Hook(func(r *clienttest.Request) clienttest.Fate {
					if r.Args[0] == c.cmd.Name() && !hit.Swap(true) {
						return tc.first(r)
					}
					if r.Args[0] == "JOB.CANCEL" {
						r.Reply.SimpleString("OK")
						return clienttest.Done
					}
					return clienttest.Serve
				})
				r := cl.DoMulti(t.Context(), []client.Cmd{c.cmd})[0]
				again := tc.certain || c.repeatable
				if again && r.Err != nil {
					t.Errorf("not sent again: %v", r.Err)
				}
				if !again && !errors.Is(r.Err, client.ErrUncertain) {
					t.Errorf("want ErrUncertain, got %v", r.Err)
				}
				if n := cluster.Count(c.cmd.Name()); (n == 2) != again {
					t.Errorf("sent %d times", n)
				}
				if v, _ := cluster.Value("k"); again && !strings.EqualFold(c.cmd.Name(), "GET") && c.cmd.Name() != "JOB.CANCEL" && v != "1" {
					t.Errorf("k is %q, want 1", v)
				}
			})
		}
	}
}

func TestMovedIsFollowedAndLearnt(t *testing.T) {
	c := clienttest.New(t, 3)
	cl, ctx := open(t, c), t.Context()
	if err := cl.Put(ctx, "k", []byte("0")); err != nil {
		t.Fatal(err)
	}
	for _, leader := range []int{2, 0, 1} {
		c.SetLeader(leader)
		if _, err := cl.Incr(ctx, "k", 1); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the route to be learnt", func() bool {
			before := c.Count("GET")
			if _, err := cl.Get(ctx, "k"); err != nil {
				t.Fatal(err)
			}
			return c.Count("GET") == before+1
		})
	}
	if v, _ := c.Value("k"); v != "3" {
		t.Errorf("k is %s, want 3", v)
	}
}

func TestWaitsForALeader(t *testing.T) {
	c := clienttest.New(t, 3)
	c.SetLeader(-1)
	cl := open(t, c)
	done := make(chan error, 1)
	go func() { done <- cl.Put(t.Context(), "k", []byte("v")) }()
	eventually(t, "attempts", func() bool { return c.Count("SET") >= 3 })
	c.SetLeader(1)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestGivesUpAtTheDeadline(t *testing.T) {
	c := clienttest.New(t, 3)
	c.SetLeader(-1)
	cl := open(t, c, func(cfg *client.Config) { cfg.Timeout = 500 * time.Millisecond })
	err := cl.Put(t.Context(), "k", []byte("v"))
	if !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, client.ErrTimeout) || errors.Is(err, client.ErrUncertain) {
		t.Errorf("want ErrUnavailable by ErrTimeout, got %v", err)
	}
	if !strings.Contains(err.Error(), "no leader") {
		t.Errorf("does not say what the last attempt met: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := cl.Put(ctx, "k", nil); !errors.Is(err, context.Canceled) || !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("cancelled before the start: %v", err)
	}
}

// Whose last attempt is cut off by the deadline is told of the one before, too: it says what is wrong.
func TestLastAttemptCutOff(t *testing.T) {
	c := clienttest.New(t, 1)
	c.Hook(onceThenHang("GET", "TRYAGAIN not yet"))
	cl := open(t, c, func(cfg *client.Config) { cfg.Timeout, cfg.Stall = 500*time.Millisecond, time.Minute })
	_, err := cl.Get(t.Context(), "k")
	var server *client.ServerError
	if !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, client.ErrTimeout) || !errors.As(err, &server) || server.Code != "TRYAGAIN" {
		t.Fatalf("got %v", err)
	}
	if text := err.Error(); strings.Count(text, "deadline passed") != 2 || !strings.HasSuffix(text, "; the one before: TRYAGAIN not yet") {
		t.Errorf("it says %q", text)
	}
}

// onceThenHang has a command fail once, and hang from then on.
func onceThenHang(command, failure string) func(*clienttest.Request) clienttest.Fate {
	var asked atomic.Bool
	return func(r *clienttest.Request) clienttest.Fate {
		switch {
		case r.Args[0] != command:
			return clienttest.Serve
		case asked.Swap(true):
			return clienttest.Hang
		}
		r.Reply.Error(failure)
		return clienttest.Done
	}
}

// A repeatable write whose every attempt was lost must not be called certain.
func TestRepeatedWriteThatFailsIsUncertain(t *testing.T) {
	c := clienttest.New(t, 1)
	var n atomic.Int64
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "SET" {
			return clienttest.Serve
		}
		if n.Add(1) == 1 {
			return clienttest.Lose
		}
		r.Reply.Error("TRYAGAIN later")
		return clienttest.Done
	})
	cl := open(t, c, func(cfg *client.Config) { cfg.Timeout = time.Second })
	cmd := client.Command("SET", "k", "v")
	cmd.Repeatable = true
	if r := cl.DoMulti(t.Context(), []client.Cmd{cmd})[0]; !errors.Is(r.Err, client.ErrUncertain) {
		t.Errorf("want ErrUncertain, got %v", r.Err)
	}
}

// A cancel is sent again, and when its fate stays unknown that is not "not executed".
func TestCancelMayBeUncertain(t *testing.T) {
	c := clienttest.New(t, 1)
	var n atomic.Int64
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "JOB.CANCEL" {
			return clienttest.Serve
		}
		if n.Add(1) == 1 {
			return clienttest.Lose
		}
		r.Reply.Error("TRYAGAIN later")
		return clienttest.Done
	})
	cl := open(t, c, func(cfg *client.Config) { cfg.Timeout = time.Second })
	if err := cl.CancelJob(t.Context(), "j1"); !errors.Is(err, client.ErrUncertain) || n.Load() < 2 {
		t.Errorf("after %d attempts: %v", n.Load(), err)
	}
}

func TestNodeThatIsDown(t *testing.T) {
	c := clienttest.New(t, 3)
	cl, ctx := open(t, c), t.Context()
	for i := range 30 { // connections to all
		if err := cl.Put(ctx, fmt.Sprint("k", i), []byte("0")); err != nil {
			t.Fatal(err)
		}
	}
	c.Nodes[0].Stop()
	c.SetLeader(1)
	for i := range 30 {
		// A connection that broke while it was idle is certain; nothing here may fail.
		if _, err := cl.Incr(ctx, fmt.Sprint("k", i), 1); err != nil {
			t.Fatal(err)
		}
	}
	c.Nodes[0].Start()
	c.SetLeader(0)
	for i := range 30 {
		if _, err := cl.Incr(ctx, fmt.Sprint("k", i), 1); err != nil {
			t.Fatal(err)
		}
		if v, _ := c.Value(fmt.Sprint("k", i)); v != "2" {
			t.Errorf("k%d is %s, want 2", i, v)
		}
	}
}

// A client that was given one address outlives that node, for wide commands too.
func TestLearnsTheOtherNodes(t *testing.T) {
	c := clienttest.New(t, 3)
	cl, ctx := open(t, c, func(cfg *client.Config) { cfg.Addrs = cfg.Addrs[:1] }), t.Context()
	if err := cl.Put(ctx, "k", nil); err != nil {
		t.Fatal(err)
	}
	c.Nodes[0].Stop()
	c.SetLeader(2)
	if n, err := cl.Size(ctx); err != nil || n != 1 {
		t.Errorf("size: %d, %v", n, err)
	}
	if _, err := cl.Get(ctx, "k"); err != nil {
		t.Error(err)
	}
}

// Where the cluster addresses cannot be reached, the client addresses forward.
func TestFallsBackToForwarding(t *testing.T) {
	c := clienttest.New(t, 3)
	reachable := c.Addrs()
	cl := open(t, c, func(cfg *client.Config) {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			if !slices.Contains(reachable, addr) {
				return nil, errors.New("unreachable")
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	})
	for i := range 20 {
		if err := cl.Put(t.Context(), fmt.Sprint("k", i), nil); err != nil {
			t.Fatal(err)
		}
	}
}

// A node that is cut off from the others answers all the same, that it finds no leader, and tells routes in which it leads, or
// nobody does: others are asked, who know better.
func TestNodeCutOffIsLeft(t *testing.T) {
	for name, believes := range map[string]bool{"believes that it leads": true, "knows no leader": false} {
		for _, routing := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, routing %t", name, routing), func(t *testing.T) {
				t.Parallel()
				c := clienttest.New(t, 3)
				apart := c.Nodes[0]
				c.SetLeader(2)
				host, port, err := net.SplitHostPort(apart.Cluster)
				if err != nil {
					t.Fatal(err)
				}
				n, err := strconv.Atoi(port)
				if err != nil {
					t.Fatal(err)
				}
				c.Hook(func(r *clienttest.Request) clienttest.Fate {
					switch {
					case r.Node != apart, r.Args[0] == "HELLO", r.Args[0] == "CLIENT":
						return clienttest.Serve
					case r.Args[0] != "CLUSTER":
						r.Reply.Error("CLUSTERDOWN nothing was done, try again: the leader of shard 0 is not known")
					case believes:
						r.Reply.Array(1)
						r.Reply.Array(3)
						r.Reply.Int(0)
						r.Reply.Int(16383)
						r.Reply.Array(2)
						r.Reply.BulkString(host)
						r.Reply.Int(int64(n))
					default:
						r.Reply.Array(0)
					}
					return clienttest.Done
				})
				cl := open(t, c, func(cfg *client.Config) { cfg.NoRouting, cfg.Timeout = !routing, 5*time.Second })
				for i := range 20 {
					if err := cl.Put(t.Context(), fmt.Sprint("k", i), []byte("v")); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// fullNode refuses every connection as a node with --max-clients does: with a
// line and the end, having read nothing. With a delay the commands are in flight by then.
func fullNode(t *testing.T, delay time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				time.Sleep(delay)
				nc.Write([]byte("-ERR max number of clients reached\r\n"))
				nc.Close()
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// A node that takes no more clients has executed nothing: another one is asked,
// for writes too, and when there is none the failure is certain.
func TestFullNodeIsLeft(t *testing.T) {
	for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			t.Parallel()
			full, c := fullNode(t, delay), clienttest.New(t, 1)
			const clients, callers = 20, 5
			for range clients {
				cl := open(t, c, func(cfg *client.Config) { cfg.Addrs, cfg.NoRouting = []string{full, c.Nodes[0].Client}, true })
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						if _, err := cl.Incr(t.Context(), "n", 1); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			}
			if v, _ := c.Value("n"); v != fmt.Sprint(clients*callers) {
				t.Errorf("n is %s, want %d", v, clients*callers)
			}
		})
	}
	// At once, so that the deadline falls into a pause and not between command and line.
	full, c := fullNode(t, 0), clienttest.New(t, 1)
	cl := open(t, c, func(cfg *client.Config) { cfg.Addrs, cfg.Timeout = []string{full}, time.Second })
	_, err := cl.Incr(t.Context(), "n", 1)
	if !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, client.ErrTooManyClients) || errors.Is(err, client.ErrUncertain) {
		t.Errorf("with no other node: %v", err)
	}
}

func TestHangingNodeIsLeft(t *testing.T) {
	c := clienttest.New(t, 3)
	cl, ctx := open(t, c, func(cfg *client.Config) { cfg.Stall = 400 * time.Millisecond }), t.Context()
	c.Put("k", "v")
	bad := c.Nodes[c.LeaderOf("k")]
	if _, err := cl.Get(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Node == bad {
			return clienttest.Hang
		}
		return clienttest.Serve
	})
	c.SetLeader((c.LeaderOf("k") + 1) % 3)
	began := time.Now()
	if _, err := cl.Get(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v to leave a node that hangs", took)
	}
	// Callers who go on sending must not make the node look alive.
	c.SetLeader(slices.Index(c.Nodes, bad))
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Node == bad && r.Cluster {
			return clienttest.Hang
		}
		return clienttest.Serve
	})
	_, err := cl.Get(ctx, "k")
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
				cl.Get(short, "k")
				cancel()
			}
		}
	})
	began = time.Now()
	if err := cl.Put(ctx, "k", nil); err != nil && !errors.Is(err, client.ErrUncertain) {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v to see that a busy connection is dead", took)
	}
	close(stop)
	wg.Wait()
	if err != nil {
		t.Error(err)
	}
	eventually(t, "the connections on which the node hangs to be given up", func() bool { return bad.Hanging() == 0 })
	// Others may stay, to be used again: one whose command was withdrawn before it went out,
	// one to the client port, which answers. The client knows them all.
	if err := cl.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "the connections to end with the client", func() bool { return bad.Conns() == 0 })
}

// Whatever happens to commands, a counter ends at what was acknowledged: nothing is
// lost, and nothing that is sent again counts twice.
func TestCounterUnderRandomFaults(t *testing.T) {
	n, acked, c, cl := countUnderFaults(t)
	if n != acked {
		t.Errorf("counter %d, acknowledged %d", n, acked)
	}
	if st := cl.Stats(); st.Repeated == 0 || c.Repeats() == 0 || st.Sessions == 0 {
		t.Errorf("nothing was tested: %+v, %d answered from the session", st, c.Repeats())
	}
}

// countUnderFaults increments one counter from eight goroutines and returns its value
// and how many increments were acknowledged. None may fail.
func countUnderFaults(t *testing.T) (n, acknowledged int64, c *clienttest.Cluster, cl *client.Client) {
	t.Helper()
	c = clienttest.New(t, 3)
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "INCRBY" {
			return clienttest.Serve
		}
		switch rand.IntN(60) {
		case 0:
			return clienttest.Lose
		case 1:
			return clienttest.Refuse
		case 2:
			r.Reply.Error("TRYAGAIN later")
			return clienttest.Done
		case 3:
			r.Reply.Error("UNCERTAIN maybe")
			return clienttest.Done
		case 4:
			c.SetLeader(rand.IntN(3))
		}
		return clienttest.Serve
	})
	cl = open(t, c)
	var acked atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if _, err := cl.Incr(t.Context(), "n", 1); err != nil {
					t.Errorf("incr: %v", err)
					continue
				}
				acked.Add(1)
			}
		})
	}
	wg.Wait()
	c.Hook(nil)
	n, err := cl.Incr(t.Context(), "n", 0)
	if err != nil {
		t.Fatal(err)
	}
	return n, acked.Load(), c, cl
}

// A server that answers nonsense must not harm anything but its connection.
func TestNonsenseFromTheServer(t *testing.T) {
	for name, text := range map[string]string{
		"no RESP": "HTTP/1.1 400 Bad Request\r\n\r\n", "huge bulk": "$99999999999\r\n", "deep array": strings.Repeat("*1\r\n", 1000),
		"unasked answers": "+OK\r\n+OK\r\n", "a truncated answer": "$10\r\nabc", "nothing": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					nc, err := l.Accept()
					if err != nil {
						return
					}
					nc.Write([]byte(text))
					nc.Read(make([]byte, 1024))
					nc.Close()
				}
			}()
			cl, err := client.Open(client.Config{Addrs: []string{l.Addr().String()}, Timeout: 200 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			if _, err := cl.Get(t.Context(), "k"); err == nil && name != "unasked answers" {
				t.Error("no error")
			}
		})
	}
}

// A command that is told to gives up soon when every address refuses
// connections, and not while one takes them and the cluster elects.
func TestGiveUpRefused(t *testing.T) {
	c := clienttest.New(t, 2)
	open := func() *client.Client {
		cl, err := client.Open(client.Config{Addrs: c.Addrs(), Timeout: 3 * time.Second, GiveUpRefused: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cl.Close() })
		return cl
	}
	c.Nodes[0].Stop()
	c.SetLeader(-1)
	elected := time.AfterFunc(time.Second, func() { c.SetLeader(1) })
	defer elected.Stop()
	if err := open().Put(context.Background(), "k", []byte("v")); err != nil {
		t.Errorf("put during an election, with one node down: %v", err)
	}
	c.Nodes[1].Stop()
	began := time.Now()
	err := open().Put(context.Background(), "k", []byte("v"))
	if took := time.Since(began); !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrTimeout) || took > 2*time.Second {
		t.Errorf("put with all nodes down: %v after %v", err, took)
	}
}

// What answers in another protocol is no node: it is not asked again and again.
func TestNotAClientPort(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	cl, err := client.Open(client.Config{Addrs: []string{web.Listener.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	began := time.Now()
	_, err = cl.Incr(context.Background(), "k", 1)
	if took := time.Since(began); !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, client.ErrNotClientPort) || took > 5*time.Second {
		t.Errorf("incr at an HTTP port: %v after %v", err, took)
	}
}
