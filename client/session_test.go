package client_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
)

// A client that only reads opens no session, one that writes opens one.
func TestSessionIsOpenedByTheFirstWrite(t *testing.T) {
	c := clienttest.New(t, 3)
	cl, ctx := open(t, c), t.Context()
	for range 3 {
		if _, err := cl.Get(ctx, "k"); !errors.Is(err, client.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if n := c.Count("IDEM"); n != 0 {
		t.Errorf("%d sessions were opened for reads", n)
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := cl.Put(ctx, fmt.Sprint("k", i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := c.Count("IDEM"); n != 1 || cl.Stats().Sessions != 1 {
		t.Errorf("%d sessions were opened for writes", n)
	}
}

// A session that the cluster has forgotten is replaced, unless an earlier
// attempt of the write may have been executed: then nobody can tell any more.
func TestSessionExpires(t *testing.T) {
	c := clienttest.New(t, 3)
	cl, ctx := open(t, c), t.Context()
	for i := range 3 {
		if n, err := cl.Incr(ctx, "n", 1); err != nil || n != int64(i+1) {
			t.Fatalf("increment %d: %d, %v", i, n, err)
		}
		c.ForgetSessions()
	}
	var sent atomic.Int64
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "INCRBY" {
			return clienttest.Serve
		}
		switch sent.Add(1) {
		case 2: // the first was refused, and this one has a new session
			return clienttest.Lose
		case 3:
			c.ForgetSessions()
		}
		return clienttest.Serve
	})
	if _, err := cl.Incr(ctx, "n", 1); !errors.Is(err, client.ErrUncertain) {
		t.Errorf("want ErrUncertain, got %v", err)
	}
	if n, err := cl.Incr(ctx, "n", 1); err != nil || n != 5 {
		t.Errorf("after it: %d, %v", n, err)
	}
	// A cluster that forgets every session at once is an error, not a loop.
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Seq > 0 {
			c.ForgetSessions()
		}
		return clienttest.Serve
	})
	var server *client.ServerError
	if _, err := cl.Incr(ctx, "n", 1); !errors.As(err, &server) || server.Code != "SESSIONEXPIRED" {
		t.Errorf("want SESSIONEXPIRED, got %v", err)
	}
	if v, _ := c.Value("n"); v != "5" {
		t.Errorf("n is %s", v)
	}
}

// While one write waits, thousands of others go on, in further sessions, of which
// there are few, and no session has more numbers open than a shard remembers.
func TestWritesBehindOneThatWaits(t *testing.T) {
	c := clienttest.New(t, 2)
	cl, ctx := open(t, c, func(cfg *client.Config) { cfg.Timeout = 20 * time.Second }), t.Context()
	var stuck atomic.Bool
	stuck.Store(true)
	var widest, floors atomic.Uint64
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Seq > 0 {
			if d := r.Seq - r.Floor; d > widest.Load() {
				widest.Store(d)
			}
			if r.Floor > 1 {
				floors.Add(1)
			}
			if r.Args[1] == "stuck" && stuck.Load() {
				r.Reply.Error("TRYAGAIN not yet")
				return clienttest.Done
			}
		}
		return clienttest.Serve
	})
	done := make(chan error, 1)
	go func() { done <- cl.Put(ctx, "stuck", []byte("v")) }()
	eventually(t, "the first to wait", func() bool { return c.Count("SET") > 0 })
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 400 {
				if _, err := cl.Incr(ctx, fmt.Sprint("n", (w+i)%3), 1); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := c.Count("IDEM"); n < 2 || n > 8 {
		t.Errorf("%d sessions", n)
	}
	if w := widest.Load(); w < 900 || w >= 1000 {
		t.Errorf("a number was %d above its floor", w)
	}
	if floors.Load() == 0 {
		t.Error("no floor was raised")
	}
	stuck.Store(false)
	if err := <-done; err != nil {
		t.Error(err)
	}
	checkSum(t, c, 3200, "n0", "n1", "n2")
}

func checkSum(t *testing.T, c *clienttest.Cluster, want int, keys ...string) {
	t.Helper()
	sum := 0
	for _, k := range keys {
		v, _ := c.Value(k)
		n := 0
		fmt.Sscan(v, &n)
		sum += n
	}
	if sum != want {
		t.Errorf("the counters add up to %d, want %d", sum, want)
	}
}

// Long batches are numbered in pieces, and what is lost of them is sent again, once
// executed; commands over several slots take a number for each.
func TestBatchesAreExact(t *testing.T) {
	c := clienttest.New(t, 3)
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] == "INCR" && rand.IntN(800) == 0 {
			return clienttest.Lose
		}
		return clienttest.Serve
	})
	cl, ctx := open(t, c, func(cfg *client.Config) { cfg.Timeout = 30 * time.Second }), t.Context()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var cmds []client.Cmd
			for i := range 2500 {
				cmds = append(cmds, client.Command("INCR", fmt.Sprint("n", i%5)))
				if i%7 == 0 {
					cmds = append(cmds, client.Command("GET", "n0"))
				}
			}
			cmds = append(cmds, client.Command("DEL", "a", "b", "c", "d"), client.Command("MULTI"), client.Cmd{})
			for i, r := range cl.DoMulti(ctx, cmds) {
				if i < len(cmds)-2 && r.Err != nil {
					t.Errorf("%s: %v", cmds[i].Name(), r.Err)
				}
				if i == len(cmds)-2 && (r.Err == nil || !strings.Contains(r.Err.Error(), "shared")) {
					t.Errorf("MULTI: %v", r.Err)
				}
			}
		})
	}
	wg.Wait()
	checkSum(t, c, 10_000, "n0", "n1", "n2", "n3", "n4")
	if c.Repeats() == 0 {
		t.Error("nothing was repeated")
	}
}

// Where nobody can open a session, a write fails and a read of the same batch does not.
func TestNoSession(t *testing.T) {
	c := clienttest.New(t, 1)
	c.Put("k", "v")
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] == "IDEM" {
			r.Reply.Error("TRYAGAIN not yet")
			return clienttest.Done
		}
		return clienttest.Serve
	})
	cl := open(t, c, func(cfg *client.Config) { cfg.Timeout = time.Second })
	r := cl.DoMulti(t.Context(), []client.Cmd{client.Command("SET", "k", "w")})
	if !errors.Is(r[0].Err, client.ErrUnavailable) || errors.Is(r[0].Err, client.ErrUncertain) || !strings.HasPrefix(r[0].Err.Error(), "SET: ") || !strings.Contains(r[0].Err.Error(), "not yet") {
		t.Errorf("write: %v", r[0].Err)
	}
	if c.Count("SET") != 0 {
		t.Error("a write was sent without a number")
	}
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] == "IDEM" {
			r.Reply.Error("ERR unknown command 'IDEM'")
			return clienttest.Done
		}
		return clienttest.Serve
	})
	r = cl.DoMulti(t.Context(), []client.Cmd{client.Command("SET", "k", "w"), client.Command("GET", "k")})
	if r[0].Err == nil || r[1].Err != nil || string(r[1].Reply.Str) != "v" {
		t.Errorf("%+v", r)
	}
}

// Whether a session was opened may be uncertain; that a write which never got a number was not executed is certain.
func TestUncertainSession(t *testing.T) {
	c := clienttest.New(t, 1)
	c.Hook(onceThenHang("IDEM", "UNCERTAIN who knows"))
	cl := open(t, c, func(cfg *client.Config) { cfg.Timeout, cfg.Stall = time.Second, time.Minute })
	err := cl.Put(t.Context(), "k", nil)
	if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrUncertain) || !strings.Contains(err.Error(), "UNCERTAIN who knows") {
		t.Errorf("got %v", err)
	}
	if c.Count("SET") != 0 {
		t.Error("a write was sent without a number")
	}
}
