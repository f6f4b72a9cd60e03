//go:build linux

package campaign

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
	"github.com/abacusdb/abacus/transport/resp"
)

// teller is a node that knows IDEM and INCRBY. It may carry a command out and not answer it.
type teller struct {
	addr string

	mu       sync.Mutex
	values   map[string]int64
	answers  map[string]string // by session and number
	sessions int
	floors   []string
	// mute: commands are carried out and not answered. refuse: they are refused, and nothing is done. forget: sessions are forgotten.
	mute, refuse, forget bool
}

func newTeller(t *testing.T) *teller {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &teller{addr: l.Addr().String(), values: map[string]int64{}, answers: map[string]string{}}
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { n.serve(nc) })
		}
	})
	return n
}

func (n *teller) serve(nc net.Conn) {
	defer nc.Close()
	r := resp.NewReader(nc, resp.DefaultLimits())
	for {
		cmds, err := r.ReadPipeline(nil)
		for _, cmd := range cmds {
			var words []string
			for _, arg := range cmd.Args {
				words = append(words, string(arg))
			}
			answer, ok := n.do(words)
			if !ok {
				return // the connection breaks behind what was sent
			}
			_, _ = nc.Write([]byte(answer))
		}
		if err != nil {
			return
		}
	}
}

func (n *teller) do(words []string) (answer string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if words[1] == "OPEN" {
		n.sessions++
		return fmt.Sprintf("$1\r\n%d\r\n", n.sessions), true
	}
	if n.forget {
		return "-SESSIONEXPIRED it was\r\n", true
	}
	number, floor, _ := strings.Cut(words[2], "/")
	n.floors = append(n.floors, floor)
	if a, ok := n.answers[words[1]+" "+number]; ok {
		return a, !n.mute
	}
	if n.refuse {
		return "-CLUSTERDOWN nobody leads\r\n", true
	}
	by, _ := strconv.ParseInt(words[5], 10, 64)
	n.values[words[4]] += by
	answer = fmt.Sprintf(":%d\r\n", n.values[words[4]])
	n.answers[words[1]+" "+number] = answer
	return answer, !n.mute
}

func (n *teller) set(how func(*teller)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	how(n)
}

// An increment whose answer is lost is sent again under its number until it is known: it counts once, and its answer is that of the first time.
func TestIncrementsAreRepaid(t *testing.T) {
	n := newTeller(t)
	w := &worker{cs: &clients{plain: []string{n.addr}, dial: func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) }}, patience: time.Second, rng: rand.New(rand.NewPCG(1, 1)), tl: newTimeline(1)}
	var told []string
	incr := func() workload.Outcome {
		return w.do("counter", workload.Call{Op: workload.Op{Kind: workload.Incr, Key: "n", By: 1}, Settle: func(o workload.Outcome, r workload.Result) {
			told = append(told, fmt.Sprint(o, r.Int))
		}})
	}
	incr()
	n.set(func(n *teller) { n.mute = true })
	if o := incr(); o != workload.Uncertain || len(told) != 1 || len(w.debts) != 1 {
		t.Fatalf("%v; told %q, %d owed", o, told, len(w.debts))
	}
	w.repay() // in vain
	n.set(func(n *teller) { n.mute, n.refuse = false, true })
	if o := incr(); o != workload.Failed {
		t.Errorf("an increment that was refused: %v", o)
	}
	n.set(func(n *teller) { n.refuse = false })
	incr()
	if err := w.repayAll(time.Now().Add(time.Minute)); err != nil {
		t.Error(err)
	}
	if want := []string{"answered 1", "failed 0", "answered 3", "answered 2"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	// The number that was owed was never given up.
	if want := []string{"1", "2", "2", "2", "2", "2"}; !slices.Equal(n.floors, want) || n.values["n"] != 3 || w.known != 1 {
		t.Errorf("floors %q, want %q; the value is %d, %d became known", n.floors, want, n.values["n"], w.known)
	}
}

// What is never answered ends by the limit, as uncertain, and is told; so is a session that was forgotten.
func TestIncrementsThatStayOwed(t *testing.T) {
	n := newTeller(t)
	w := &worker{cs: &clients{plain: []string{n.addr}, dial: func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) }}, patience: time.Second, rng: rand.New(rand.NewPCG(1, 1)), tl: newTimeline(1)}
	var told []workload.Outcome
	incr := func() {
		w.do("counter", workload.Call{Op: workload.Op{Kind: workload.Incr, Key: "n", By: 1}, Settle: func(o workload.Outcome, _ workload.Result) { told = append(told, o) }})
	}
	n.set(func(n *teller) { n.mute = true })
	for range mostDebts {
		incr()
	}
	for range 50 { // at the bound it is no matter of chance
		if !w.owes() || len(told) > 0 {
			t.Fatalf("%d owed, and more are sent; told %v", len(w.debts), told)
		}
	}
	n.set(func(n *teller) { n.mute, n.forget = false, true })
	w.repay()
	if err := w.repayAll(time.Now()); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d numbered increments have no answer", mostDebts-1)) || !strings.Contains(err.Error(), "1 numbered increments met a session") {
		t.Errorf("%v", err)
	}
	if len(told) != mostDebts || slices.ContainsFunc(told, func(o workload.Outcome) bool { return o != workload.Uncertain }) {
		t.Errorf("told %v", told)
	}
}
