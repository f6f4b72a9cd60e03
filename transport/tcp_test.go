package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What only sockets have: hellos, links that break, freeze and come back,
// queues and limits. What both transports promise is tested in transporttest.

func TestConfigReportsEveryFault(t *testing.T) {
	_, err := Listen(Config{Self: strings.Repeat("x", 256), MaxFrame: 7, PingEvery: -1})
	for _, want := range []string{"node id", "Resolve", "address", "MaxFrame", "duration"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}

func TestHelloIsJudged(t *testing.T) {
	c := newCluster(t)
	var id atomic.Value
	id.Store("c1")
	c.node("b", func(cfg *Config) { cfg.ClusterID = func() string { return id.Load().(string) } })
	c.at["x"] = c.at["b"] // an address that is another node's

	a := c.node("a", nil)
	_, err := a.Call(in(t, 5*time.Second), "x", LaneCall, mEcho, nil)
	wantCode(t, err, CodeWrongNode)
	_, err = a.Stream(in(t, 5*time.Second), "x", mStream, nil, strings.NewReader(""), 0)
	wantCode(t, err, CodeWrongNode)

	other := c.node("o", func(cfg *Config) { cfg.ClusterID = func() string { return "c2" } })
	for ln := range Lanes {
		_, err = other.Call(in(t, 5*time.Second), "b", ln, mEcho, nil)
		wantCode(t, err, CodeWrongCluster)
	}
	_, err = other.CallAddr(in(t, 5*time.Second), c.at["b"], mEcho, nil)
	wantCode(t, err, CodeWrongCluster)
	_, err = other.Stream(in(t, 5*time.Second), "b", mStream, nil, strings.NewReader(""), 0)
	wantCode(t, err, CodeWrongCluster)

	// One of another era of the cluster may ask what it has missed, and no more.
	for era, of := range map[string]string{"c1+1": "0", "c1": "1"} {
		id.Store(map[string]string{"c1+1": "c1", "c1": "c1+1"}[era])
		late := c.node("e"+of, func(cfg *Config) { cfg.ClusterID = func() string { return era } })
		for ln := range Lanes {
			_, err = late.Call(in(t, 5*time.Second), "b", ln, mEcho, nil)
			wantCode(t, err, CodeWrongEra)
		}
		_, err = late.Stream(in(t, 5*time.Second), "b", mStream, nil, strings.NewReader(""), 0)
		wantCode(t, err, CodeWrongEra)
		if got, err := late.CallAddr(in(t, 5*time.Second), c.at["b"], mEcho, []byte("map?")); err != nil || string(got) != ":map?" {
			t.Fatalf("of another era: %q, %v", got, err)
		}
		_, err = other.CallAddr(in(t, 5*time.Second), c.at["b"], mEcho, nil)
		wantCode(t, err, CodeWrongCluster)
	}
	id.Store("c1")

	// One that wants to join has no cluster yet: it may ask, and no more.
	joiner := c.node("j", func(cfg *Config) { cfg.ClusterID = nil })
	if got, err := joiner.CallAddr(in(t, 5*time.Second), c.at["b"], mEcho, []byte("in?")); err != nil || string(got) != ":in?" {
		t.Fatalf("joiner got %q, %v", got, err)
	}
	_, err = joiner.Call(in(t, 5*time.Second), "b", LaneCall, mEcho, nil)
	wantCode(t, err, CodeWrongCluster)
	// It is called before it knows that it was let in: to be tried again.
	_, err = a.Call(in(t, 5*time.Second), "j", LaneCall, mEcho, nil)
	wantCode(t, err, CodeUnavailable)

	// Somebody else uses this node's id.
	c.mu.Lock()
	real := c.at["b"]
	c.mu.Unlock()
	twin := c.node("b", func(cfg *Config) { cfg.Resolve = func(string) (string, error) { return real, nil } })
	c.mu.Lock()
	c.at["b"] = real
	c.mu.Unlock()
	conn, err := twin.open(in(t, 5*time.Second), hello{kind: kindLane}, twin.dialer("a"))
	wantCode(t, err, CodeWrongNode)
	if conn != nil {
		t.Fatal("a connection with an error")
	}

	// A refusal ends with its reason, within the back-off.
	id.Store("c2")
	eventually(t, "the link comes up", func() bool {
		_, err := other.Call(in(t, time.Second), "b", LaneCall, mEcho, nil)
		return err == nil
	})
}

// A link that breaks leaves the calls it carried in doubt; the next call
// makes a new one.
func TestLinkLostMidCall(t *testing.T) {
	c := newCluster(t)
	f := newFault()
	a := c.node("a", func(cfg *Config) { cfg.Dial = f.dial })
	b := c.listen("b", nil)
	began, ended := make(chan struct{}, 1), make(chan error, 1)
	b.Handle(mBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		began <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, nil
	})
	b.Start()
	p := send(in(t, 10*time.Second), a, "b", LaneCall, mBlock, nil)
	<-began
	f.kill()
	_, err := p.Wait()
	wantCode(t, err, CodeLinkLost)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the handler's context ended with %v", err)
	}
	if _, err := a.Call(in(t, 5*time.Second), "b", LaneCall, mEcho, nil); err != nil {
		t.Fatalf("call after the link was lost: %v", err)
	}
	if n := a.Stats().Links; n != 2 {
		t.Errorf("%d links, want 2", n)
	}
}

// A peer that falls silent with its connection open is found out by pings.
func TestSilentPeerIsFoundOut(t *testing.T) {
	c := newCluster(t)
	f := newFault()
	a := c.node("a", func(cfg *Config) {
		cfg.Dial, cfg.PingEvery, cfg.DeadAfter = f.dial, 50*time.Millisecond, time.Second
	})
	c.node("b", nil)
	if _, err := a.Call(in(t, 5*time.Second), "b", LaneControl, mEcho, nil); err != nil {
		t.Fatal(err)
	}
	// Idle for long, but alive.
	time.Sleep(1500 * time.Millisecond) // the time itself is what is tested
	if _, err := a.Call(in(t, 5*time.Second), "b", LaneControl, mEcho, nil); err != nil {
		t.Fatal(err)
	}
	if n := a.Stats().Links; n != 1 {
		t.Fatalf("an idle link was replaced: %d links", n)
	}
	f.hold(true)
	start := time.Now()
	_, err := a.Call(in(t, 10*time.Second), "b", LaneControl, mEcho, nil)
	wantCode(t, err, CodeLinkLost)
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("found out after %s", d)
	}
	f.hold(false)
	eventually(t, "the link comes up again", func() bool {
		_, err := a.Call(in(t, time.Second), "b", LaneControl, mEcho, nil)
		return err == nil
	})
}

// A request that lay on the way until its deadline had passed is not
// dispatched, though by the receiver's clock it only just came. The caller's
// deadline is carried over on a clock that both agree on.
func TestLateRequestIsNotDispatched(t *testing.T) {
	for _, order := range []bool{false, true} {
		t.Run(fmt.Sprintf("inOrder=%v", order), func(t *testing.T) {
			c := newCluster(t)
			f := newFault()
			a := c.node("a", func(cfg *Config) { cfg.Dial = f.dial })
			b := c.listen("b", nil)
			var ran atomic.Int32
			if order {
				b.HandleInOrder(mCount, func(_ string, _ []byte, reply func([]byte, error)) { ran.Add(1); reply(nil, nil) })
			} else {
				b.Handle(mCount, func(context.Context, string, []byte) ([]byte, error) { ran.Add(1); return nil, nil })
			}
			b.Start()
			if _, err := a.Call(in(t, 5*time.Second), "b", LaneLog, mCount, nil); err != nil {
				t.Fatal(err)
			}
			f.hold(true)
			_, err := a.Call(in(t, 500*time.Millisecond), "b", LaneLog, mCount, nil)
			wantCode(t, err, CodeLinkLost)
			p := send(in(t, 10*time.Second), a, "b", LaneLog, mCount, nil)
			time.Sleep(time.Second) // more than the clocks of two nodes are apart, by what they know
			f.hold(false)
			if _, err := p.Wait(); err != nil {
				t.Fatal(err)
			}
			if ran.Load() != 2 || b.Stats().Late != 1 {
				t.Errorf("%d requests dispatched, want 2; %d late, want 1", ran.Load(), b.Stats().Late)
			}
		})
	}
}

// Whoever gives up before the link is there takes the request back, and knows
// it; the others of the queue are delivered in order, in few writes.
func TestGivingUpInTheQueue(t *testing.T) {
	c := newCluster(t)
	gate := make(chan struct{})
	a := c.node("a", func(cfg *Config) {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			<-gate
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	})
	b := c.listen("b", nil)
	var got []byte
	b.HandleInOrder(mCount, func(_ string, req []byte, reply func([]byte, error)) {
		got = append(got, req[0])
		reply(nil, nil)
	})
	b.Start()
	var kept, dropped []*pending
	var want []byte
	soon := in(t, 200*time.Millisecond)
	for i := range byte(200) {
		req := bytes.Repeat([]byte{i}, 100)
		if i%3 == 0 || i == 199 { // the last one, too
			dropped = append(dropped, send(soon, a, "b", LaneLog, mCount, req))
			continue
		}
		kept = append(kept, send(in(t, 10*time.Second), a, "b", LaneLog, mCount, req))
		want = append(want, i)
	}
	for _, p := range dropped {
		_, err := p.Wait()
		wantCode(t, err, CodeTimeout)
	}
	_, err := a.Call(in(t, 20*time.Millisecond), "b", LaneLog, mCount, []byte{250})
	wantCode(t, err, CodeTimeout)
	close(gate)
	for _, p := range kept {
		if _, err := p.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
	if w := a.Stats().Writes; w > 3 {
		t.Errorf("%d writes for one queue", w)
	}
}

// A peer that cannot be reached costs each caller nothing while the lane
// backs off, and is dialled a few times a second at most.
func TestBackOff(t *testing.T) {
	c := newCluster(t)
	var dials atomic.Int32
	a := c.node("a", func(cfg *Config) {
		cfg.Dial = func(context.Context, string) (net.Conn, error) {
			dials.Add(1)
			return nil, errors.New("refused")
		}
	})
	c.at["b"] = "nowhere:1"
	start, calls := time.Now(), 0
	for time.Since(start) < 600*time.Millisecond {
		_, err := a.Call(in(t, time.Second), "b", LaneCall, mEcho, nil)
		wantCode(t, err, CodeUnavailable)
		calls++
	}
	if n := dials.Load(); n < 2 || n > 40 || calls < 2*int(n) {
		t.Errorf("%d calls made %d dials", calls, n)
	}
}

func TestPeerRestarts(t *testing.T) {
	c := newCluster(t)
	a := c.node("a", nil)
	for range 3 {
		b := c.node("b", nil)
		eventually(t, "the peer answers", func() bool {
			got, err := a.Call(in(t, time.Second), "b", LaneCall, mEcho, []byte("x"))
			return err == nil && string(got) == "a:x"
		})
		b.Close()
		_, err := a.Call(in(t, time.Second), "b", LaneCall, mEcho, nil)
		if err == nil {
			t.Fatal("a closed peer answered")
		}
	}
}

func TestQueueIsBounded(t *testing.T) {
	c := newCluster(t)
	a := c.node("a", func(cfg *Config) {
		cfg.Dial = func(ctx context.Context, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	})
	c.at["b"] = "nowhere:1"
	body := make([]byte, 1<<20-1024)
	var pending []*pending
	for range 4 {
		pending = append(pending, send(in(t, time.Second), a, "b", LaneControl, mEcho, body))
	}
	_, err := a.Call(in(t, 10*time.Second), "b", LaneControl, mEcho, body)
	wantCode(t, err, CodeUnavailable)
	if !strings.Contains(err.Error(), "full") {
		t.Errorf("error %v does not say why", err)
	}
	for _, p := range pending {
		_, err := p.Wait()
		wantCode(t, err, CodeTimeout)
	}
}

// A node serves so many requests of a peer at once; others are refused, at
// once, and the peer's next ones are served when the first are answered.
func TestMaxInFlight(t *testing.T) {
	c := newCluster(t)
	a := c.node("a", nil)
	b := c.listen("b", func(cfg *Config) { cfg.MaxInFlight = 3 })
	release := make(chan struct{})
	b.Handle(mBlock, func(context.Context, string, []byte) ([]byte, error) { <-release; return nil, nil })
	b.Start()
	ctx := in(t, 10*time.Second)
	var busy int
	var pending []*pending
	for range 10 {
		pending = append(pending, send(ctx, a, "b", LaneCall, mBlock, make([]byte, 1000)))
	}
	for _, p := range pending[3:] {
		if _, err := p.Wait(); CodeOf(err) == CodeBusy {
			busy++
		}
	}
	if busy != 7 || b.Stats().Busy != 7 {
		t.Errorf("%d refused, %d counted, want 7", busy, b.Stats().Busy)
	}
	// Another lane has room of its own.
	if _, err := a.Call(ctx, "b", LaneControl, mEcho, nil); err != nil {
		t.Error(err)
	}
	close(release)
	for _, p := range pending[:3] {
		if _, err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "there is room again", func() bool {
		_, err := a.Call(ctx, "b", LaneCall, mBlock, nil)
		return err == nil
	})
}

// What goes out here comes in there, calls, answers and streams alike, and each end counts all of it; what a node tells itself is no traffic.
func TestBytesAreCounted(t *testing.T) {
	c := newCluster(t)
	const size = 300 << 10
	b := c.listen("b", nil)
	b.HandleStream(mStream, func(_ context.Context, _ string, _ []byte, body io.Reader, _ int64) ([]byte, error) {
		_, err := io.Copy(io.Discard, body)
		return nil, err
	})
	b.Start()
	a := c.node("a", nil)
	if _, err := a.Call(in(t, 5*time.Second), "a", LaneCall, mEcho, make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if st := a.Stats(); st.BytesIn != 0 || st.BytesOut != 0 {
		t.Errorf("%d bytes came and %d went, and nobody else was called", st.BytesIn, st.BytesOut)
	}
	if _, err := a.Call(in(t, 5*time.Second), "b", LaneCall, mEcho, make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Stream(in(t, 5*time.Second), "b", mStream, nil, bytes.NewReader(make([]byte, size)), size); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both have counted the same", func() bool {
		at, to := a.Stats(), b.Stats()
		return at.BytesOut == to.BytesIn && at.BytesIn == to.BytesOut
	})
	if st := a.Stats(); st.BytesOut < 2*size || st.BytesOut > 2*size+4096 || st.BytesIn < size || st.BytesIn > size+4096 {
		t.Errorf("%d bytes went and %d came, with a call and a stream of %d there and one back", st.BytesOut, st.BytesIn, size)
	}
}

// Closing while calls wait for a connection that does not come.
func TestCloseWhileConnecting(t *testing.T) {
	c := newCluster(t)
	dialing := make(chan struct{})
	a := c.node("a", func(cfg *Config) {
		cfg.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			close(dialing)
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	c.at["b"] = "nowhere:1"
	p := send(in(t, 10*time.Second), a, "b", LaneCall, mEcho, nil)
	<-dialing
	a.Close()
	_, err := p.Wait()
	wantCode(t, err, CodeClosed)
	_, err = a.CallAddr(in(t, time.Second), "nowhere:1", mEcho, nil)
	wantCode(t, err, CodeClosed)
}

// Callers at once share writes, and a call costs few allocations.
func TestAllocations(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a", nil), c.listen("b", nil)
	b.HandleInOrder(mCount, func(_ string, req []byte, reply func([]byte, error)) { reply(req, nil) })
	b.Start()
	ctx := in(t, 30*time.Second)
	req := make([]byte, 100)
	n := testing.AllocsPerRun(2000, func() {
		if _, err := a.Call(ctx, "b", LaneCall, mCount, req); err != nil {
			t.Fatal(err)
		}
	})
	// Both sides: the request's bytes, the reply function and its state, the answer's bytes.
	if n > 6 {
		t.Errorf("%v allocations a call", n)
	}
}

func BenchmarkCall(b *testing.B) {
	for _, callers := range []int{1, 64} {
		for _, size := range []int{100, 64 << 10} {
			b.Run(fmt.Sprintf("callers=%d/bytes=%d", callers, size), func(b *testing.B) {
				addrs := map[string]string{}
				listen := func(id string) *TCP {
					tr, err := Listen(Config{Self: id, Addr: "127.0.0.1:0",
						Resolve: func(id string) (string, error) { return addrs[id], nil }})
					if err != nil {
						b.Fatal(err)
					}
					addrs[id] = tr.Addr().String()
					return tr
				}
				from, to := listen("a"), listen("b")
				defer from.Close()
				defer to.Close()
				to.Handle(mEcho, func(_ context.Context, _ string, req []byte) ([]byte, error) { return req[:8], nil })
				from.Start()
				to.Start()
				req := make([]byte, size)
				binary.BigEndian.PutUint64(req, 1)
				ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
				defer cancel()
				b.ReportAllocs()
				b.SetBytes(int64(size))
				b.ResetTimer()
				var left atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for left.Add(-1) >= 0 {
							if _, err := from.Call(ctx, "b", LaneCall, mEcho, req); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				sa, sb := from.Stats(), to.Stats()
				b.ReportMetric(float64(sa.Writes+sb.Writes)/float64(b.N), "writes/op")
			})
		}
	}
}
