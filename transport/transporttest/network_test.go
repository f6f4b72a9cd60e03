package transporttest_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/transport"
	"github.com/abacusdb/abacus/transport/transporttest"
)

// What only the twin has: links that a test cuts and delays. Everything runs
// on synctest's clock, where a wait of seconds takes none and its length is
// exact; synctest also fails a test that leaves a goroutine behind.

// bubble runs a test with three nodes that echo.
func bubble(t *testing.T, test func(t *testing.T, n *transporttest.Network, a, b, c transport.Transport)) {
	synctest.Test(t, func(t *testing.T) {
		n := transporttest.NewNetwork()
		var nodes []transport.Transport
		for _, id := range []string{"a", "b", "c"} {
			tr := n.Join(id)
			defer tr.Close()
			tr.Handle(methodEcho, echo)
			tr.HandleStream(methodStream, func(_ context.Context, _ string, _ []byte, body io.Reader, _ int64) ([]byte, error) {
				got, err := io.Copy(io.Discard, body)
				return fmt.Append(nil, got), err
			})
			nodes = append(nodes, tr)
		}
		test(t, n, nodes[0], nodes[1], nodes[2])
	})
}

// took calls and returns how long that took.
func took(tr transport.Transport, to string, timeout time.Duration) (time.Duration, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := tr.Call(ctx, to, transport.LaneCall, methodEcho, nil)
	return time.Since(start), err
}

func TestCut(t *testing.T) {
	bubble(t, func(t *testing.T, n *transporttest.Network, a, b, c transport.Transport) {
		n.Cut("a", "b")
		d, err := took(a, "b", time.Second)
		wantCode(t, err, transport.CodeLinkLost)
		if d != time.Second {
			t.Errorf("a cut request failed after %s, want its deadline", d)
		}
		if d, err = took(a, "b", time.Minute); d != transporttest.DeadAfter {
			t.Errorf("a cut link was noticed after %s", d)
		}
		wantCode(t, err, transport.CodeLinkLost)
		if _, err := took(a, "c", time.Second); err != nil {
			t.Errorf("another link: %v", err)
		}
		n.HealLink("a", "b")
		if d, err := took(a, "b", time.Second); err != nil || d != 0 {
			t.Errorf("after healing: %s, %v", d, err)
		}
	})
}

// With only the way back cut, requests are served and their answers lost.
func TestCutOneWay(t *testing.T) {
	bubble(t, func(t *testing.T, n *transporttest.Network, a, b, _ transport.Transport) {
		served := 0
		b.HandleInOrder(methodOrder, func(_ string, _ []byte, reply func([]byte, error)) { served++; reply(nil, nil) })
		n.Cut("b", "a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := a.Call(ctx, "b", transport.LaneLog, methodOrder, nil)
		wantCode(t, err, transport.CodeLinkLost)
		synctest.Wait()
		if served != 1 {
			t.Errorf("served %d requests, want 1", served)
		}
	})
}

func TestIsolateAndPartition(t *testing.T) {
	bubble(t, func(t *testing.T, n *transporttest.Network, a, b, c transport.Transport) {
		reach := func(from transport.Transport, to string, want bool) {
			t.Helper()
			if _, err := took(from, to, time.Second); (err == nil) != want {
				t.Errorf("%s to %s: %v, want reached %v", from.Self(), to, err, want)
			}
		}
		n.Isolate("a")
		reach(a, "b", false)
		reach(c, "a", false)
		reach(b, "c", true)
		reach(a, "a", true)
		d := n.Join("d")
		defer d.Close()
		d.Handle(methodEcho, echo)
		reach(a, "d", false)
		n.Rejoin("a")
		reach(a, "b", true)
		reach(a, "d", true)
		n.Partition([]string{"a", "b"}, []string{"c", "d"})
		reach(a, "b", true)
		reach(c, "d", true)
		reach(a, "c", false)
		reach(d, "b", false)
		n.Heal()
		reach(a, "c", true)
		reach(d, "b", true)
	})
}

func TestDelay(t *testing.T) {
	bubble(t, func(t *testing.T, n *transporttest.Network, a, b, c transport.Transport) {
		n.Delay("a", "b", 300*time.Millisecond)
		n.Delay("", "", 20*time.Millisecond)
		for _, want := range []struct {
			from transport.Transport
			to   string
			d    time.Duration
		}{{a, "b", 320 * time.Millisecond}, {b, "a", 320 * time.Millisecond}, {b, "c", 40 * time.Millisecond}, {a, "a", 0}} {
			if d, err := took(want.from, want.to, time.Second); err != nil || d != want.d {
				t.Errorf("%s to %s took %s, %v, want %s", want.from.Self(), want.to, d, err, want.d)
			}
		}
		// A request that arrives after its deadline is never dispatched.
		ran := 0
		b.HandleInOrder(methodOrder, func(_ string, req []byte, reply func([]byte, error)) {
			if int(req[0]) != ran {
				t.Errorf("request %d arrived as number %d", req[0], ran)
			}
			ran++
			reply(nil, nil)
		})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := a.Call(ctx, "b", transport.LaneLog, methodOrder, []byte{0})
		wantCode(t, err, transport.CodeLinkLost)
		time.Sleep(time.Second)
		synctest.Wait()
		if ran != 0 {
			t.Error("a request was dispatched after its deadline")
		}
		// Nor is one whose caller gave up on the way.
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Microsecond, cancel)
		_, err = a.Call(ctx, "b", transport.LaneLog, methodOrder, []byte{0})
		wantCode(t, err, transport.CodeLinkLost)
		time.Sleep(time.Second)
		synctest.Wait()
		if ran != 0 {
			t.Error("a request was dispatched after its caller gave up")
		}
		// Order holds though the delay shrinks between two requests.
		p0 := send(t.Context(), a, "b", transport.LaneLog, methodOrder, []byte{0})
		n.Delay("a", "b", 0)
		p1 := send(t.Context(), a, "b", transport.LaneLog, methodOrder, []byte{1})
		for _, p := range []*pending{p0, p1} {
			if _, err := p.Wait(); err != nil {
				t.Error(err)
			}
		}
	})
}

// Losses take single requests and answers, about as many as was said, and only
// where they were set; jitter stays below its bound.
func TestLoseAndJitter(t *testing.T) {
	bubble(t, func(t *testing.T, n *transporttest.Network, a, b, c transport.Transport) {
		n.Seed(7)
		n.Lose("a", "b", 0.3)
		n.Jitter("", "", 10*time.Millisecond)
		const calls = 1000
		lost := 0
		for range calls {
			d, err := took(a, "b", time.Second)
			if err != nil {
				wantCode(t, err, transport.CodeLinkLost)
				lost++
			} else if d >= 20*time.Millisecond {
				t.Fatalf("there and back took %s", d)
			}
			if _, err := took(c, "b", time.Second); err != nil {
				t.Fatalf("another link: %v", err)
			}
		}
		if lost < calls/5 || lost > calls*2/5 {
			t.Errorf("lost %d of %d, want about 30%%", lost, calls)
		}
		if got := n.Swallowed(); got.Lost != uint64(lost) || got.Cut != 0 {
			t.Errorf("counted %+v, want %d lost", got, lost)
		}
		n.Lose("a", "b", 0)
		n.Cut("a", "b")
		if _, err := took(a, "b", time.Second); err == nil {
			t.Error("a cut link carries")
		}
		if got := n.Swallowed(); got.Cut != 1 {
			t.Errorf("counted %+v, want 1 cut", got)
		}
	})
}

// A stream whose link is cut in the middle fails at both ends.
func TestCutStream(t *testing.T) {
	bubble(t, func(t *testing.T, n *transporttest.Network, a, b, _ transport.Transport) {
		cut := readFunc(func(p []byte) (int, error) { n.Cut("b", "a"); return len(p), nil })
		_, err := a.Stream(t.Context(), "b", methodStream, nil, io.MultiReader(strings.NewReader(strings.Repeat("x", 100<<10)), cut), 1<<20)
		wantCode(t, err, transport.CodeLinkLost)
		_, err = a.Stream(t.Context(), "b", methodStream, nil, &endless{}, 1<<20)
		wantCode(t, err, transport.CodeUnavailable)
		n.Heal()
		got, err := a.Stream(t.Context(), "b", methodStream, nil, &endless{}, 1<<20)
		if err != nil || string(got) != "1048576" {
			t.Errorf("after healing: %q, %v", got, err)
		}
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// A node that was closed may come back under its id.
func TestRejoinAfterClose(t *testing.T) {
	bubble(t, func(t *testing.T, n *transporttest.Network, a, b, _ transport.Transport) {
		b.Close()
		d, err := took(a, "b", time.Second)
		wantCode(t, err, transport.CodeUnavailable)
		if d != 0 {
			t.Errorf("a missing node refused after %s", d)
		}
		again := n.Join("b")
		defer again.Close()
		again.Handle(methodEcho, echo)
		if _, err := took(a, "b", time.Second); err != nil {
			t.Error(err)
		}
	})
}
