package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// fate is an IndexFuture that has come to its end.
type fate struct {
	err   error
	index uint64
}

func (f fate) Error() error  { return f.err }
func (f fate) Index() uint64 { return f.index }

// Only what raft refused before it gave an index is certain.
func TestApplyErrors(t *testing.T) {
	s := &Store{stable: &stableStore{}}
	for _, c := range []struct {
		fate
		want transport.Code
	}{
		{fate{raft.ErrNotLeader, 0}, transport.CodeNotLeader},
		{fate{raft.ErrLeadershipTransferInProgress, 0}, transport.CodeNotLeader},
		{fate{raft.ErrEnqueueTimeout, 0}, transport.CodeBusy},
		{fate{raft.ErrRaftShutdown, 0}, transport.CodeClosed},
		{fate{raft.ErrRaftShutdown, 7}, transport.CodeUncertain}, // committed, on its way to the state machine
		{fate{raft.ErrNotLeader, 7}, transport.CodeUncertain},
		{fate{raft.ErrLeadershipLost, 7}, transport.CodeUncertain},
		{fate{raft.ErrLeadershipLost, 0}, transport.CodeUncertain},
		{fate{errDisk, 7}, transport.CodeUncertain},
		{fate{errDisk, 0}, transport.CodeUncertain},
	} {
		err := s.applyError(c.fate, c.err)
		if transport.CodeOf(err) != c.want || transport.Certain(err) != (c.want != transport.CodeUncertain) {
			t.Errorf("%v at index %d is %v, want %v", c.err, c.index, err, c.want)
		}
	}
}

// The queue keeps the order, bounds bytes and an entry's size, and settles each
// proposal exactly once: taken, forgotten or refused.
func TestQueue(t *testing.T) {
	sized := func(n int) *proposal {
		p := newProposal([]command.Command{set("k", "v")})
		p.size = n
		return p
	}
	q := newQueue(newPacer())
	a, b, c, d := sized(100), sized(100), sized(1000), sized(1)
	for _, p := range []*proposal{a, b, c, d} {
		if err := q.push(p); err != nil {
			t.Fatal(err)
		}
	}
	if !q.forget(b) || q.forget(b) {
		t.Error("a queued proposal can be forgotten once")
	}
	batch, cmds := q.take(200, false)
	if len(batch) != 1 || batch[0] != a || len(cmds) != 1 {
		t.Fatalf("took %d proposals", len(batch))
	}
	if q.forget(a) {
		t.Error("forgot what was taken")
	}
	batch, _ = q.take(200, false)
	if len(batch) != 1 || batch[0] != c {
		t.Fatal("a proposal over the size of an entry goes alone")
	}
	if batch, _ = q.take(200, false); len(batch) != 1 || batch[0] != d {
		t.Fatal("the last one")
	}
	if batch, _ = q.take(200, false); batch != nil || q.live != 0 || q.bytes != 0 {
		t.Fatalf("left: %d proposals, %d bytes", q.live, q.bytes)
	}
	big := sized(maxQueueBytes + 1)
	if err := q.push(big); err != nil {
		t.Errorf("one large proposal into an empty queue: %v", err)
	}
	if err := q.push(sized(1)); transport.CodeOf(err) != transport.CodeBusy {
		t.Errorf("over the bound: %v", err)
	}
	q.close(errClosed)
	if got := <-big.answer; !errors.Is(got.err, errClosed) {
		t.Errorf("close answered %v", got.err)
	}
	if err := q.push(sized(1)); !errors.Is(err, errClosed) {
		t.Errorf("push after close: %v", err)
	}
}

// Random pushes, takes and forgets against a plain list.
func TestQueueModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	q := newQueue(newPacer())
	var model []*proposal
	for range 20000 {
		switch r.IntN(4) {
		case 0, 1:
			p := newProposal([]command.Command{set("k", "v")})
			p.size = r.IntN(100)
			if err := q.push(p); err != nil {
				t.Fatal(err)
			}
			model = append(model, p)
		case 2:
			if len(model) > 0 {
				i := r.IntN(len(model))
				if !q.forget(model[i]) {
					t.Fatal("a queued proposal cannot be forgotten")
				}
				model = append(model[:i:i], model[i+1:]...)
			}
		case 3:
			batch, _ := q.take(r.IntN(300), false)
			for i, p := range batch {
				if i >= len(model) || model[i] != p {
					t.Fatal("out of order")
				}
			}
			model = model[len(batch):]
		}
		bytes := 0
		for _, p := range model {
			bytes += p.size
		}
		if q.live != len(model) || q.bytes != bytes || len(q.items) > 2*max(len(model), 64)+1 {
			t.Fatalf("%d proposals of %d bytes in %d places, want %d of %d", q.live, q.bytes, len(q.items), len(model), bytes)
		}
	}
}

// While its main loop waits for the disk, a follower answers heartbeats, so that
// its leader keeps its lease and nobody calls an election; but only those of its
// own term, and none while a higher term is being written (hazard R22).
func TestFastHeartbeat(t *testing.T) { synctest.Test(t, testFastHeartbeat) }

func testFastHeartbeat(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.converge()
	l, f := c.waitLeader(), c.followers()[0]
	f.gate.hold()
	defer f.gate.release()
	c.put("k", "v")
	until(t, "the follower's main loop to hang", func() bool { return f.store.stuckFor() > 0 })
	term := l.store.Status().Term
	beat := func(term uint64) bool {
		req := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.replica), Addr: []byte(l.replica + "\x00" + l.id)}, Term: term}
		resp, ok := f.store.inst.Load().peers.fastHeartbeat(req)
		return ok && resp.Success && resp.Term == term
	}
	if !beat(term) {
		t.Error("a heartbeat waits for the disk")
	}
	if beat(term+1) || beat(term-1) {
		t.Error("a heartbeat of another term bypasses the main loop")
	}
	f.store.stable.rising.Lock()
	if beat(term) {
		t.Error("a heartbeat bypasses the main loop while the term rises")
	}
	f.store.stable.rising.Unlock()
	time.Sleep(3 * quick().Heartbeat) // nothing may happen
	if now := l.store.Status(); now.Term != term || !l.store.IsLeader() {
		t.Errorf("a hung follower brought term %d", now.Term)
	}
}

// A raft that refuses entries for ever, for a transfer that does not end, is
// restarted.
func TestWedgedTransfer(t *testing.T) { synctest.Test(t, testWedgedTransfer) }

func testWedgedTransfer(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.waitLeader()
	c.put("a", "1")
	before := n.store.inst.Load()
	l := n.store.lead.Load()
	l.refused()
	l.refusedSince.Store(-int64(transferWedged))
	l.refused()
	until(t, "raft to be restarted", func() bool { in := n.store.inst.Load(); return in != nil && in != before })
	c.want("a", "1")
	c.put("b", "2")
}

// Who finds an instance broken that was replaced meanwhile does not hit its successor.
func TestLateReopenSparesSuccessor(t *testing.T) { synctest.Test(t, testLateReopenSparesSuccessor) }

func testLateReopenSparesSuccessor(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	replaced := func(old *instance) (in *instance) {
		t.Helper()
		until(t, "raft to be restarted", func() bool { in = n.store.inst.Load(); return in != nil && in != old })
		return in
	}
	first := n.store.inst.Load()
	first.reopen("first")
	second := replaced(first)
	first.reopen("late")
	c.put("a", "1")
	for range 20 { // nothing may happen
		c.want("a", "1")
		time.Sleep(5 * time.Millisecond)
	}
	if n.store.inst.Load() != second {
		t.Fatal("a request for the first instance restarted the second")
	}
	second.reopen("its own")
	replaced(second)
	c.want("a", "1")
}

// Close under load answers everybody, and leaves nothing running.
func TestCloseUnderLoad(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("cluster", func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.converge()
		var wg sync.WaitGroup
		stores := make([]*Store, 3)
		for i, n := range c.nodes {
			stores[i] = n.store
		}
		for w := range 32 {
			wg.Go(func() {
				s := stores[w%3]
				for i := 0; ; i++ {
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					_, _, err := s.Propose(ctx, []command.Command{set(fmt.Sprint(w, i), "x")})
					cancel()
					if errors.Is(err, errClosed) {
						return
					}
					if err != nil {
						time.Sleep(time.Millisecond) // a follower refuses at once, and 32 of these would take all processors
					}
				}
			})
		}
		for _, n := range c.nodes {
			l := c.leader()
			n.stop()
			if n == l {
				c.waitLeaderIfMajority()
			}
		}
		wg.Wait()
		if _, err := stores[0].View(); err == nil {
			t.Error("a view of a closed store")
		}
		if err := stores[0].Close(bg(t)); err != nil {
			t.Errorf("close twice: %v", err)
		}
	})
	until(t, "all goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

func (c *cluster) waitLeaderIfMajority() {
	up := 0
	for _, n := range c.nodes {
		if n.store != nil {
			up++
		}
	}
	if up > len(c.nodes)/2 {
		c.waitLeader()
	}
}

// A hung disk does not hold Close for longer than its context.
func TestCloseWithHungDisk(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.waitLeader()
	inst := n.store.inst.Load()
	n.gate.hold()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, _, err := n.store.Propose(ctx, []command.Command{set("a", "1")}); transport.CodeOf(err) != transport.CodeUncertain {
		t.Errorf("propose: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := n.store.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: %v", err)
	}
	s := n.store
	n.gate.release()
	n.tr.Close()
	n.opened(nil)
	<-inst.stopped // now that the disk is back
	mustClose(t, s.fsm)
	mustClose(t, s.db)
}

// Status tells a leader's view of its followers, and a follower's of its leader.
func TestStatus(t *testing.T) { synctest.Test(t, testStatus) }

func testStatus(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.converge()
	l, f := c.waitLeader(), c.followers()[0]
	st := l.store.Status()
	if st.State != "Leader" || st.Leader != l.id || st.LeaderReplica != l.replica || st.Term == 0 || st.Commit == 0 || st.Applied == 0 || len(st.Members) != 3 {
		t.Errorf("leader: %+v", st)
	}
	for _, m := range st.Members {
		if !m.Voter || m.LastContact < 0 || m.Match == 0 {
			t.Errorf("leader's member: %+v", m)
		}
	}
	until(t, "the follower to know the leader", func() bool { return f.store.Status().Leader == l.id })
	if st := f.store.Status(); st.State != "Follower" || st.LastContact < 0 || st.Shard != 3 || st.Node != f.id {
		t.Errorf("follower: %+v", st)
	}
	if err := f.store.Probe(bg(t)); transport.CodeOf(err) != transport.CodeNotLeader {
		t.Errorf("probe of a follower: %v", err)
	}
	index, err := l.store.Fence(bg(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.store.WaitApplied(bg(t), index); err != nil {
		t.Error(err)
	}
}

// Impossible configurations are refused, all faults at once.
func TestConfig(t *testing.T) {
	_, err := Open(Config{Timing: Timing{Heartbeat: time.Second, Election: time.Millisecond, Lease: time.Minute}})
	if err == nil {
		t.Fatal("opened")
	}
	for _, want := range []string{"Replica", "Node", "Dir", "Net", "Election", "Lease"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}
