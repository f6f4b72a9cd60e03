package transporttest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/transport"
	"github.com/abacusdb/abacus/transport/transporttest"
)

// The same tests run over sockets and in memory: what one transport promises
// the other keeps. Nodes "a" and "b" are up; "nobody" is an id that no node
// has.

const (
	methodEcho transport.Method = 1000 + iota
	methodBlock
	methodOrder
	methodFail
	methodStream
	methodSlow
	methodMissing
)

// pair is two nodes and how to reach them.
type pair struct {
	a, b  transport.Transport
	addrB string
	start func() // after the handlers are set
}

var twins = []struct {
	name string
	make func(t *testing.T) *pair
}{
	{"tcp", func(t *testing.T) *pair {
		var mu sync.Mutex
		addrs := map[string]string{}
		resolve := func(id string) (string, error) {
			mu.Lock()
			defer mu.Unlock()
			if a, ok := addrs[id]; ok {
				return a, nil
			}
			return "", errors.New("no such node")
		}
		listen := func(id string) *transport.TCP {
			tr, err := transport.Listen(transport.Config{
				Self: id, ClusterID: func() string { return "c1" }, Addr: "127.0.0.1:0", Resolve: resolve})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { tr.Close() })
			mu.Lock()
			defer mu.Unlock()
			addrs[id] = tr.Addr().String()
			return tr
		}
		a, b := listen("a"), listen("b")
		return &pair{a: a, b: b, addrB: b.Addr().String(), start: func() { a.Start(); b.Start() }}
	}},
	{"memory", func(t *testing.T) *pair {
		n := transporttest.NewNetwork()
		a, b := n.Join("a"), n.Join("b")
		t.Cleanup(func() { a.Close(); b.Close() })
		return &pair{a: a, b: b, addrB: "b", start: func() {}}
	}},
}

// conform runs a test on both twins and looks for goroutines left behind.
func conform(t *testing.T, test func(t *testing.T, p *pair)) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			t.Run("run", func(t *testing.T) { test(t, twin.make(t)) })
			eventually(t, func() bool { return runtime.NumGoroutine() <= before }, "goroutines are left behind")
		})
	}
}

func eventually(t *testing.T, ok func() bool, what string) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(10 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			buf := make([]byte, 1<<20)
			t.Fatalf("%s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func echo(_ context.Context, from string, req []byte) ([]byte, error) {
	return append([]byte(from+":"), req...), nil
}

func wantCode(t *testing.T, err error, want ...transport.Code) {
	t.Helper()
	for _, c := range want {
		if transport.CodeOf(err) == c && errors.As(err, new(*transport.Error)) {
			return
		}
	}
	t.Fatalf("error %v, want %v", err, want)
}

func TestCall(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		for _, tr := range []transport.Transport{p.a, p.b} {
			tr.Handle(methodEcho, echo)
			tr.Handle(methodFail, func(context.Context, string, []byte) ([]byte, error) {
				return []byte("ignored"), fmt.Errorf("wrapped: %w", &transport.Error{Code: transport.CodeNotLeader, Detail: "n7"})
			})
		}
		p.start()
		ctx := deadline(t, 5*time.Second)
		if p.a.Self() != "a" {
			t.Fatalf("Self is %q", p.a.Self())
		}
		for _, size := range []int{0, 1, 100, 300 << 10, 5 << 20} {
			body := bytes.Repeat([]byte("x"), size)
			for _, to := range []string{"b", "a"} {
				got, err := p.a.Call(ctx, to, transport.LaneCall, methodEcho, body)
				if err != nil || string(got) != "a:"+string(body) {
					t.Fatalf("echo of %d bytes to %s: %d bytes, %v", size, to, len(got), err)
				}
			}
		}
		got, err := p.b.Call(context.Background(), "a", transport.LaneControl, methodEcho, []byte("no deadline"))
		if err != nil || string(got) != "b:no deadline" {
			t.Fatalf("got %q, %v", got, err)
		}
		// A caller known by address only has no id.
		if got, err = p.a.CallAddr(ctx, p.addrB, methodEcho, []byte("hi")); err != nil || string(got) != ":hi" {
			t.Fatalf("CallAddr: %q, %v", got, err)
		}
		for _, call := range []func() ([]byte, error){
			func() ([]byte, error) { return p.a.Call(ctx, "b", transport.LaneCall, methodFail, nil) },
			func() ([]byte, error) { return p.a.Call(ctx, "a", transport.LaneCall, methodFail, nil) },
			func() ([]byte, error) { return p.a.CallAddr(ctx, p.addrB, methodFail, nil) },
		} {
			got, err := call()
			var e *transport.Error
			if !errors.As(err, &e) || e.Code != transport.CodeNotLeader || e.Detail != "n7" || got != nil {
				t.Fatalf("error crossed as %v with %q", err, got)
			}
		}
		_, err = p.a.Call(ctx, "b", transport.LaneCall, methodMissing, nil)
		wantCode(t, err, transport.CodeNoMethod)
		_, err = p.a.Call(ctx, "b", transport.Lanes, methodEcho, nil)
		wantCode(t, err, transport.CodeBadRequest)
		_, err = p.a.Call(ctx, "b", transport.LaneControl, methodEcho, make([]byte, 1<<20+1))
		wantCode(t, err, transport.CodeTooLarge)
		_, err = p.a.Call(ctx, "nobody", transport.LaneCall, methodEcho, nil)
		wantCode(t, err, transport.CodeUnavailable)
		_, err = send(ctx, p.a, "nobody", transport.LaneCall, methodEcho, nil).Wait()
		wantCode(t, err, transport.CodeUnavailable)
	})
}

// An answer over the limit must not be called CodeTooLarge, which says that
// the request had no effect.
func TestAnswerTooLarge(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		p.b.Handle(methodEcho, func(context.Context, string, []byte) ([]byte, error) { return make([]byte, 1<<20+1), nil })
		p.start()
		_, err := p.a.Call(deadline(t, 5*time.Second), "b", transport.LaneControl, methodEcho, nil)
		if err == nil || transport.Certain(err) {
			t.Fatalf("error %v, want an uncertain one", err)
		}
	})
}

// Requests of one lane arrive in the order of the calls; answers may come in
// any order.
func TestOrderOnALane(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		const n = 5000
		var next atomic.Uint64
		var wrong atomic.Uint64
		var mu sync.Mutex
		var held []func([]byte, error)
		p.b.HandleInOrder(methodOrder, func(from string, req []byte, reply func([]byte, error)) {
			if got := binary.BigEndian.Uint64(req); got != next.Load() || from != "a" {
				wrong.Add(1)
			}
			next.Add(1)
			mu.Lock()
			defer mu.Unlock()
			// Answer backwards, in groups.
			held = append(held, func([]byte, error) { reply(req, nil); reply(nil, errors.New("twice")) })
			if len(held) == 50 {
				for i := len(held) - 1; i >= 0; i-- {
					held[i](nil, nil)
				}
				held = held[:0]
			}
		})
		p.start()
		ctx := deadline(t, 20*time.Second)
		var window []*pending
		for i := range uint64(n) {
			req := binary.BigEndian.AppendUint64(nil, i)
			window = append(window, send(ctx, p.a, "b", transport.LaneLog, methodOrder, req))
			binary.BigEndian.PutUint64(req, 1<<40) // Go has taken the bytes
			if len(window) == 1000 {
				for j, pending := range window {
					got, err := pending.Wait()
					if err != nil || binary.BigEndian.Uint64(got) != i+1-1000+uint64(j) {
						t.Fatalf("answer %d of the window: %x, %v", j, got, err)
					}
				}
				window = window[:0]
			}
		}
		if next.Load() != n || wrong.Load() != 0 {
			t.Fatalf("%d of %d arrived, %d out of order", next.Load(), n, wrong.Load())
		}
	})
}

// The handler's context ends with the caller's deadline and with its giving
// up; the caller, who cannot know what the handler did, gets CodeLinkLost, or
// what the handler says if that comes at the same moment.
func TestDeadlineAndCancelReachTheHandler(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		began, ended := make(chan time.Time, 1), make(chan error, 1)
		p.b.Handle(methodBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			d, _ := ctx.Deadline()
			began <- d
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		})
		p.b.Handle(methodEcho, echo)
		p.start()
		// With the link up, the deadline is the handler's and not the queue's.
		if _, err := p.a.Call(deadline(t, 10*time.Second), "b", transport.LaneCall, methodEcho, nil); err != nil {
			t.Fatal(err)
		}
		for _, wait := range []string{"call", "go"} {
			end := time.Now().Add(time.Second)
			ctx, cancel := context.WithDeadline(t.Context(), end)
			_, err := call(p.a, wait, ctx)
			cancel()
			wantCode(t, err, transport.CodeLinkLost, transport.CodeUnknown)
			if d := <-began; d.Before(end.Add(-5*time.Millisecond)) || d.After(end.Add(500*time.Millisecond)) {
				t.Errorf("%s: the handler's deadline is off by %s", wait, d.Sub(end))
			}
			<-ended
			if wait == "go" {
				continue // it cannot be given up early
			}
			ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
			go func() {
				<-began
				cancel()
			}()
			_, err = call(p.a, wait, ctx)
			wantCode(t, err, transport.CodeLinkLost, transport.CodeUnknown)
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("%s: the handler's context ended with %v", wait, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := call(p.a, "call", ctx)
		wantCode(t, err, transport.CodeTimeout)
	})
}

func call(tr transport.Transport, how string, ctx context.Context) ([]byte, error) {
	if how == "go" {
		return send(ctx, tr, "b", transport.LaneCall, methodBlock, nil).Wait()
	}
	return tr.Call(ctx, "b", transport.LaneCall, methodBlock, nil)
}

// A handler that runs long delays neither its own lane nor another.
func TestHandlersRunAtOnce(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		release := make(chan struct{})
		p.b.Handle(methodBlock, func(context.Context, string, []byte) ([]byte, error) { <-release; return nil, nil })
		p.b.Handle(methodEcho, echo)
		p.start()
		ctx := deadline(t, 10*time.Second)
		blocked := make([]*pending, 50)
		for i := range blocked {
			blocked[i] = send(ctx, p.a, "b", transport.LaneCall, methodBlock, nil)
		}
		for ln := range transport.Lanes {
			if _, err := p.a.Call(ctx, "b", ln, methodEcho, nil); err != nil {
				t.Fatalf("lane %d: %v", ln, err)
			}
		}
		close(release)
		for _, b := range blocked {
			if _, err := b.Wait(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Go never calls done itself, whatever comes of the request: its caller may hold what done wants.
func TestGoDoesNotCallBack(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		p.b.Handle(methodEcho, echo)
		p.start()
		var mu sync.Mutex
		ended := make(chan error)
		for what, send := range map[string]func(done func([]byte, error)){
			"answered": func(done func([]byte, error)) {
				p.a.Go("b", transport.LaneCall, methodEcho, nil, time.Now().Add(10*time.Second), done)
			},
			"too large": func(done func([]byte, error)) {
				p.a.Go("b", transport.LaneControl, methodEcho, make([]byte, 2<<20), time.Now().Add(10*time.Second), done)
			},
			"no lane": func(done func([]byte, error)) {
				p.a.Go("b", transport.Lanes, methodEcho, nil, time.Now().Add(10*time.Second), done)
			},
			"too late": func(done func([]byte, error)) {
				p.a.Go("b", transport.LaneCall, methodBlock, nil, time.Now().Add(-time.Second), done)
			},
		} {
			mu.Lock()
			send(func(_ []byte, err error) {
				mu.Lock() // would wait for ever in Go
				defer mu.Unlock()
				go func() { ended <- err }()
			})
			mu.Unlock()
			if err := <-ended; (err == nil) != (what == "answered") {
				t.Errorf("%s: %v", what, err)
			}
		}
		p.a.Close()
		mu.Lock()
		p.a.Go("b", transport.LaneCall, methodEcho, nil, time.Now().Add(10*time.Second), func(_ []byte, err error) {
			mu.Lock()
			defer mu.Unlock()
			go func() { ended <- err }()
		})
		mu.Unlock()
		wantCode(t, <-ended, transport.CodeClosed)
	})
}

// A peer that stops while it works on a request leaves its caller in doubt;
// afterwards calls fail for certain.
func TestPeerClosesMidCall(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		began := make(chan struct{}, 2)
		p.b.Handle(methodBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			began <- struct{}{}
			<-ctx.Done()
			return []byte("done"), nil
		})
		p.start()
		ctx := deadline(t, 10*time.Second)
		p1 := send(ctx, p.a, "b", transport.LaneCall, methodBlock, nil)
		p2 := send(ctx, p.a, "b", transport.LaneControl, methodBlock, nil)
		<-began
		<-began
		p.b.Close()
		for _, pending := range []*pending{p1, p2} {
			_, err := pending.Wait()
			wantCode(t, err, transport.CodeLinkLost)
		}
		_, err := p.a.Call(ctx, "b", transport.LaneCall, methodBlock, nil)
		wantCode(t, err, transport.CodeUnavailable)
		_, err = p.b.Call(ctx, "a", transport.LaneCall, methodBlock, nil)
		wantCode(t, err, transport.CodeClosed)
		_, err = p.b.Stream(ctx, "a", methodStream, nil, strings.NewReader(""), 0)
		wantCode(t, err, transport.CodeClosed)
	})
}

// Close fails the node's own calls and waits for its handlers.
func TestCloseWithCallsPending(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		began := make(chan struct{}, 1)
		var left atomic.Bool
		p.b.Handle(methodBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			began <- struct{}{}
			<-ctx.Done()
			return nil, nil
		})
		p.a.Handle(methodBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			began <- struct{}{}
			<-ctx.Done()
			left.Store(true)
			return nil, nil
		})
		p.start()
		ctx := deadline(t, 10*time.Second)
		out := send(ctx, p.a, "b", transport.LaneCall, methodBlock, nil)
		<-began
		in := send(ctx, p.b, "a", transport.LaneCall, methodBlock, nil)
		<-began
		if err := p.a.Close(); err != nil {
			t.Fatal(err)
		}
		if !left.Load() {
			t.Error("Close did not wait for a handler")
		}
		_, err := out.Wait()
		wantCode(t, err, transport.CodeLinkLost)
		_, err = in.Wait()
		wantCode(t, err, transport.CodeLinkLost)
		if err := p.a.Close(); err != nil {
			t.Fatalf("second Close: %v", err)
		}
	})
}

// Many callers at once: every one gets its own answer.
func TestManyCallers(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		p.a.Handle(methodEcho, echo)
		p.b.Handle(methodEcho, echo)
		p.start()
		ctx := deadline(t, 30*time.Second)
		var wg sync.WaitGroup
		for g := range 32 {
			wg.Go(func() {
				from, to := p.a, "b"
				if g%2 == 1 {
					from, to = p.b, "a"
				}
				for i := range 200 {
					body := fmt.Sprintf("%d/%d/%s", g, i, strings.Repeat("y", i*7))
					got, err := from.Call(ctx, to, transport.Lane(g%3), methodEcho, []byte(body))
					if err != nil || string(got) != from.Self()+":"+body {
						t.Errorf("call %d of %d: %v", i, g, err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// pending is a request under way.
type pending struct {
	done chan struct{}
	resp []byte
	err  error
}

// send is Go with something to wait for. ctx gives the deadline.
func send(ctx context.Context, tr transport.Transport, to string, lane transport.Lane, m transport.Method, req []byte) *pending {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(10 * time.Second)
	}
	p := &pending{done: make(chan struct{})}
	tr.Go(to, lane, m, req, deadline, func(resp []byte, err error) {
		p.resp, p.err = resp, err
		close(p.done)
	})
	return p
}

func (p *pending) Wait() ([]byte, error) { <-p.done; return p.resp, p.err }
