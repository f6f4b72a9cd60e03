package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// incr is a numbered INCR.
func incr(session, seq, floor uint64) command.Command {
	return command.Command{Op: command.OpIncr, Int: 1, Session: session, Seq: seq, Floor: floor}
}

// keysOf returns a key of each shard.
func keysOf(n *Node) map[sharding.ShardID]string {
	keys := map[sharding.ShardID]string{}
	for i := 0; len(keys) < len(n.Router().Map().Shards); i++ {
		k := fmt.Sprint("key", i)
		_, shard := n.Router().Locate([]byte(k))
		keys[shard] = k
	}
	return keys
}

// A session made by one shard is taken in by the others when it is used there,
// whatever node it is used through; a number counts once, and what is unknown or forgotten
// is refused and not carried out.
func TestSessionsOverShards(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	ctx := t.Context()
	id, err := nodes[0].OpenSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := keysOf(nodes[0])
	for turn := range 2 {
		for _, key := range keys {
			for i, n := range nodes {
				if r := do(t, n, key, incr(id, 1, 0)); r.Kind != command.KindInt || r.Int != 1 {
					t.Errorf("turn %d, node %d: %s: %+v, want 1", turn, i, key, r)
				}
			}
		}
	}
	// The first command of a session keeps its place in a pipeline.
	other, err := nodes[1].OpenSession(ctx, []byte(keys[0]))
	if err != nil {
		t.Fatal(err)
	}
	if o := command.SessionOrigin(other); o != 0 {
		t.Errorf("the session of a key of shard 0 was made by shard %d", o)
	}
	slot, shard := nodes[0].Router().Locate([]byte(keys[1]))
	k := [][]byte{[]byte(keys[1])}
	set := command.Command{Op: command.OpSet, Keys: k, Slot: slot, Values: [][]byte{[]byte("7")}}
	add := incr(other, 1, 0)
	add.Keys, add.Slot = k, slot
	results, err := nodes[2].Exec(ctx, shard, []command.Command{set, add, {Op: command.OpGet, Keys: k, Slot: slot}})
	if err != nil || len(results) != 3 || results[1].Int != 8 || string(results[2].Bytes) != "8" {
		t.Errorf("in a pipeline: %+v, %v", results, err)
	}

	// Ids that nobody gave, and numbers that were given up.
	for _, made := range []uint64{id + 1000, 2<<48 | 999, 77<<48 | 1} {
		if r := do(t, nodes[0], keys[1], incr(made, 1, 0)); r.Code != command.CodeSessionUnknown {
			t.Errorf("session %x: %+v", made, r)
		}
	}
	do(t, nodes[0], keys[2], incr(id, 9, 9))
	if r := do(t, nodes[1], keys[2], incr(id, 8, 0)); r.Code != command.CodeSessionExpired {
		t.Errorf("a number below the floor: %+v", r)
	}

	// Forgotten where it was made: no other shard takes it in any more.
	late, err := nodes[0].OpenSession(ctx, []byte(keys[0]))
	if err != nil {
		t.Fatal(err)
	}
	opens := make([]command.Command, 1000)
	for i := range opens {
		opens[i] = command.Command{Op: command.OpSessionOpen}
	}
	for range 17 {
		if _, err := nodes[0].Exec(ctx, 0, opens); err != nil {
			t.Fatal(err)
		}
	}
	for shard, key := range keys {
		want := command.CodeSessionUnknown
		if shard == 0 {
			want = command.CodeSessionExpired
		}
		if r := do(t, nodes[1], key, incr(late, 1, 0)); r.Code != want {
			t.Errorf("a forgotten session in shard %d: %+v", shard, r)
		}
	}
	if got := get(t, nodes[0], keys[0]); got != "1" {
		t.Errorf("%s is %s", keys[0], got)
	}
}

// settle turns "not carried out" into "unknown" when an earlier attempt may have been.
func TestSettle(t *testing.T) {
	uncertain := func(err error) bool { return transport.CodeOf(err) == transport.CodeUncertain }
	certain := transport.Errorf(transport.CodeNotLeader, "n1")
	cmds := []command.Command{incr(1, 1, 0)}
	for _, c := range []command.Code{command.CodeSessionUnknown, command.CodeSessionExpired, command.CodeSessionFull, command.CodeWrongShard, command.CodeDiskFull} {
		results := []command.Result{command.Err(c)}
		if err := settle(cmds, results, nil, true); !uncertain(err) {
			t.Errorf("%v after an unknown attempt: %v", c, err)
		}
		if err := settle(cmds, results, nil, false); err != nil {
			t.Errorf("%v at once: %v", c, err)
		}
	}
	for _, r := range []command.Result{command.Int(1), command.Err(command.CodeNotInteger)} {
		if err := settle(cmds, []command.Result{r}, nil, true); err != nil {
			t.Errorf("%+v is an answer: %v", r, err)
		}
	}
	if err := settle(cmds, nil, certain, true); !uncertain(err) {
		t.Errorf("an error after an unknown attempt: %v", err)
	}
	if err := settle(cmds, nil, certain, false); err != certain {
		t.Errorf("a certain error: %v", err)
	}
	if err := settle([]command.Command{{Op: command.OpGet}}, nil, certain, true); err != certain {
		t.Errorf("a read: %v", err)
	}
}

// breaker is a way to an address whose connections can be broken.
type breaker struct {
	l  net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newBreaker(t *testing.T, to func() string) *breaker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &breaker{l: l, conns: map[net.Conn]bool{}}
	b.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to())
			if err != nil {
				in.Close()
				continue
			}
			b.mu.Lock()
			b.conns[in], b.conns[out] = true, true
			b.mu.Unlock()
			for _, p := range [][2]net.Conn{{in, out}, {out, in}} {
				b.wg.Go(func() {
					io.Copy(p[0], p[1])
					p[0].Close()
					p[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() { l.Close(); b.snap(); b.wg.Wait() })
	return b
}

// snap breaks all connections.
func (b *breaker) snap() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.Close()
	}
	clear(b.conns)
}

// While the link to a leader breaks again and again, numbered increments through
// another node are repeated by it, and each counts once.
func TestLostAnswersCountOnce(t *testing.T) { // not beside others: a call must get through in the 15 ms between two breaks
	cfg1, cfg2 := testConfig(t, "n1"), testConfig(t, "n2")
	cfg1.Bootstrap = true
	n1 := open(t, cfg1)
	free, err := net.Listen("tcp", cfg2.PeerAddr)
	if err != nil {
		t.Fatal(err)
	}
	cfg2.PeerAddr = free.Addr().String()
	b := newBreaker(t, func() string { return cfg2.PeerAddr })
	free.Close()
	cfg2.Join, cfg2.Advertise.Peer = []string{n1.Addrs().Peer}, b.l.Addr().String()
	n2 := open(t, cfg2)
	untilHealthy(t, n1, n2)
	var shard sharding.ShardID
	until(t, "a leader at the other end", func() error {
		for _, s := range n1.Router().Map().Shards {
			if n1.Leader(s.ID) == "n2" {
				shard = s.ID
				return nil
			}
		}
		return fmt.Errorf("n2 leads nothing")
	})
	key := keysOf(n1)[shard]
	id, err := n1.OpenSession(t.Context(), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var answered atomic.Uint64
	wg.Go(func() {
		// Often, but not so often that a disk whose syncs are slow lets no answer through.
		for pause, last := 15*time.Millisecond, uint64(0); ; {
			select {
			case <-stop:
				return
			case <-time.After(pause):
				b.snap()
			}
			if now := answered.Load(); now == last {
				pause = min(2*pause, time.Second)
			} else {
				pause, last = 15*time.Millisecond, now
			}
		}
	})
	repeats := func() (n uint64) {
		for _, node := range []*Node{n1, n2} {
			n += node.host.get(shard).Repeats()
		}
		return n
	}
	slot, _ := n1.Router().Locate([]byte(key))
	done := uint64(0)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && (done < 100 || repeats() < 3); {
		cmd := incr(id, done+1, done+1)
		cmd.Keys, cmd.Slot = [][]byte{[]byte(key)}, slot
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		r, err := n1.Exec(ctx, shard, []command.Command{cmd})
		cancel()
		if done++; err != nil || r[0].Int != int64(done) {
			t.Fatalf("increment %d: %+v, %v", done, r, err)
		}
		answered.Store(done)
	}
	close(stop)
	wg.Wait()
	if got := get(t, n1, key); got != fmt.Sprint(done) {
		t.Errorf("%d increments were answered, the counter is %s", done, got)
	}
	if done < 100 || repeats() == 0 {
		t.Errorf("%d increments, %d of them repeated: nothing was shown", done, repeats())
	}
}
