package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// One replica bootstraps a shard, which has its identity from the first entry on.
func TestBootstrap(t *testing.T) { synctest.Test(t, testBootstrap) }

func testBootstrap(t *testing.T) {
	c := newCluster(t, 1, nil)
	l := c.waitLeader()
	if in, ok := l.store.Init(); !ok || in.ClusterID != "test" || in.Shard != 3 {
		t.Fatalf("identity is %+v, %v", in, ok)
	}
	c.put("a", "1")
	c.want("a", "1")
	n := c.nodes[0]
	term := n.store.Status().Term
	n.stop()
	n.start() // with Bootstrap again: it must do no harm
	c.want("a", "1")
	if st := n.store.Status(); st.Term <= term || len(st.Members) != 1 || !st.Members[0].Voter {
		t.Fatalf("after a restart: %+v", st)
	}
}

// Each leader in turn is cut off and stopped, under load; the others go on, and
// every acknowledged write is there in the end, also after a restart of all.
func TestFailover(t *testing.T) { t.Parallel(); synctest.Test(t, testFailover) }

func testFailover(t *testing.T) {
	c := newCluster(t, 3, nil)
	var mu sync.Mutex
	acked := map[string]bool{}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var stores [3]atomic.Pointer[Store]
	for i, n := range c.nodes {
		stores[i].Store(n.store)
	}
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				time.Sleep(time.Millisecond) // or virtual time stands still
				k := fmt.Sprintf("w%d-%d", w, i)
				for j := range stores {
					s := stores[j].Load()
					if s == nil || !s.IsLeader() {
						continue
					}
					try, stop := context.WithTimeout(ctx, time.Second)
					if _, _, err := s.Propose(try, []command.Command{set(k, k)}); err == nil {
						mu.Lock()
						acked[k] = true
						mu.Unlock()
					}
					stop()
				}
			}
		})
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(acked) }
	progress := func() {
		t.Helper()
		n := count()
		until(t, "more acknowledged writes", func() bool { return count() > n+20 })
	}
	progress()
	for range 2 {
		l := c.waitLeader()
		for i, n := range c.nodes {
			if n == l {
				stores[i].Store(nil)
				n.kill()
				progress()
				n.start()
				stores[i].Store(n.store)
			}
		}
		progress()
	}
	cancel()
	wg.Wait()
	for _, n := range c.nodes {
		n.stop()
	}
	for _, n := range c.nodes {
		n.start()
	}
	c.converge()
	v, err := c.waitLeader().store.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for k := range acked {
		if got, ok := v.Get(7, key(k)); !ok || string(got) != k {
			t.Errorf("acknowledged write %s is lost (%q)", k, got)
		}
	}
}

// A graceful stop hands the leadership over: the next leader is there before an
// election time-out could have passed.
func TestHandOver(t *testing.T) { t.Parallel(); synctest.Test(t, testHandOver) }

func testHandOver(t *testing.T) {
	c := newCluster(t, 3, func(_ *node, cfg *Config) {
		cfg.Timing.Heartbeat, cfg.Timing.Election = 2*time.Second, 2*time.Second
	})
	c.converge()
	l := c.waitLeader()
	if err := l.store.Close(bg(t)); err != nil { // its links stay: a peer whose process ends is noticed by them, too
		t.Fatal(err)
	}
	l.opened(nil)
	began := time.Now()
	c.waitLeader()
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("took %v after a hand-over", took)
	}
	l.tr.Close()
	l.net.Close()
}

// TransferLeadership moves the leadership to the named replica.
func TestTransfer(t *testing.T) { synctest.Test(t, testTransfer) }

func testTransfer(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.converge()
	for range 3 {
		to := c.followers()[0]
		c.onLeader("transfer", func(s *Store) error { return s.TransferLeadership(bg(t), to.replica) })
		until(t, "the new leader", to.store.IsLeader)
		c.put("k", to.id)
	}
	if err := c.waitLeader().store.TransferLeadership(bg(t), "nobody.1"); transport.CodeOf(err) != transport.CodeRefused {
		t.Errorf("transfer to nobody: %v", err)
	}
}

// The leader's state hangs in the middle of a batch, its log does not: the others
// elect, and it does not stand against them until it is well again.
func TestHeldState(t *testing.T) { synctest.Test(t, testHeldState) }

func testHeldState(t *testing.T) {
	var held atomic.Pointer[node]
	hang := make(chan struct{})
	release := sync.OnceFunc(func() { close(hang) })
	c := newCluster(t, 3, func(n *node, cfg *Config) {
		cfg.Timing.Stuck = 300 * time.Millisecond
		cfg.OnRecord = func(name string, _ []byte, _ int64) {
			if name == "hang" && held.Load() == n {
				<-hang
			}
		}
	})
	t.Cleanup(release) // before the nodes stop
	c.converge()
	old := c.waitLeader()
	held.Store(old)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	rec := command.Command{Op: command.OpRecordSet, Keys: [][]byte{key("hang")}, Values: [][]byte{key("x")}}
	if _, _, err := old.store.Propose(ctx, []command.Command{rec}); transport.CodeOf(err) != transport.CodeUncertain {
		t.Errorf("propose: %v", err)
	}
	until(t, "another leader", func() bool { l := c.leader(); return l != nil && l != old })
	c.put("k", "v")
	var resp raft.RequestVoteResponse
	other := c.waitLeader()
	err := old.store.inst.Load().peers.RequestVote(raft.ServerID(other.replica), raft.ServerAddress(other.id), &raft.RequestVoteRequest{}, &resp)
	if !errors.Is(err, errStuckDisk) {
		t.Errorf("it asks for votes: %v", err)
	}
	release()
	c.converge()
	c.want("k", "v")
}

// The log's sync is held. On two of three replicas: no write is acknowledged.
// On one, whichever: all are.
func TestHeldSync(t *testing.T) { synctest.Test(t, testHeldSync) }

func testHeldSync(t *testing.T) {
	c := newCluster(t, 3, func(_ *node, cfg *Config) { cfg.Timing.Stuck = 300 * time.Millisecond })
	c.converge()
	func() { // one follower
		f := c.followers()[0]
		f.gate.hold()
		defer f.gate.release()
		for i := range 20 {
			c.put(fmt.Sprintf("one%d", i), "x")
		}
	}()
	c.converge()
	func() { // both followers
		l := c.waitLeader()
		for _, f := range c.followers() {
			f.gate.hold()
			defer f.gate.release()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond)
		defer cancel()
		_, _, err := l.store.Propose(ctx, []command.Command{set("two", "x")})
		if err == nil {
			t.Fatal("acknowledged by one log of three")
		}
		if transport.Certain(err) {
			t.Errorf("%v is certain, yet the entry is in a log", err)
		}
	}()
	c.converge()
	// The leader hangs: it must let the others elect, or the shard is dead.
	func() { // the leader
		l := c.waitLeader()
		l.gate.hold()
		defer l.gate.release()
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if _, _, err := l.store.Propose(ctx, []command.Command{set("hung", "x")}); err == nil || transport.Certain(err) {
			t.Errorf("propose to a hung disk: %v", err)
		}
		until(t, "another leader", func() bool {
			for _, f := range c.nodes {
				if f != l && f.store.IsLeader() {
					_, _, err := f.store.Propose(bg(t), []command.Command{set("moved", "x")})
					return err == nil
				}
			}
			return false
		})
	}()
	c.converge()
}

// A leader that is cut off refuses within its lease, what it took before is
// uncertain, and a follower's refusal names the leader.
func TestErrors(t *testing.T) { synctest.Test(t, testErrors) }

func testErrors(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.converge()
	l := c.waitLeader()
	f := c.followers()[0]
	until(t, "the follower to know the leader", func() bool { node, _ := f.store.Leader(); return node == l.id })
	_, _, err := f.store.Propose(bg(t), []command.Command{set("a", "1")})
	if !errors.Is(err, &transport.Error{Code: transport.CodeNotLeader, Detail: l.id}) {
		t.Errorf("from a follower: %v", err)
	}
	if _, _, err := l.store.Propose(bg(t), nil); transport.CodeOf(err) != transport.CodeBadRequest {
		t.Errorf("no commands: %v", err)
	}
	if _, _, err := l.store.Propose(bg(t), []command.Command{{Op: 250}}); transport.CodeOf(err) != transport.CodeBadRequest {
		t.Errorf("unknown op: %v", err)
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := l.store.Propose(gone, []command.Command{set("a", "1")}); err != nil && transport.CodeOf(err) != transport.CodeTimeout && transport.CodeOf(err) != transport.CodeUncertain {
		t.Errorf("context over: %v", err)
	}
	for range 10 {
		c.net.Isolate(l.id)
		_, _, err = l.store.Propose(bg(t), []command.Command{set("cut", "1")})
		if transport.CodeOf(err) != transport.CodeNotLeader {
			break
		}
		// It stepped down before raft took the entry.
		c.net.Heal()
		c.converge()
		l = c.waitLeader()
	}
	if err == nil || transport.Certain(err) {
		t.Errorf("lost leadership after the entry was logged: %v", err)
	}
	until(t, "the old leader to step down", func() bool { return !l.store.IsLeader() })
	if _, _, err = l.store.Propose(bg(t), []command.Command{set("cut", "1")}); transport.CodeOf(err) != transport.CodeNotLeader {
		t.Errorf("after stepping down: %v", err)
	}
	c.net.Heal()
	c.converge()
	l.stop()
	c.waitLeader()
}

// Many proposals at once share entries; each gets its own results.
func TestBatching(t *testing.T) { synctest.Test(t, testBatching) }

func testBatching(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.converge()
	l := c.waitLeader()
	before := l.store.Status().LastIndex
	const n = 500
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			k := fmt.Sprintf("k%d", i)
			res, _, err := l.store.Propose(bg(t), []command.Command{set(k, k), get(k)})
			if err != nil || len(res) != 2 || res[0].Kind != command.KindOK || string(res[1].Bytes) != k {
				t.Errorf("%s: %v %v", k, res, err)
			}
		})
	}
	wg.Wait()
	if used := l.store.Status().LastIndex - before; used > n/4 {
		t.Errorf("%d proposals took %d entries", n, used)
	}
	c.converge()
}

// A key ends by a log entry soon after its time, and a shard without TTLs writes nothing.
func TestTTL(t *testing.T) { t.Parallel(); synctest.Test(t, testTTL) }

func testTTL(t *testing.T) {
	c := newCluster(t, 3, nil)
	l := c.waitLeader()
	cmd := set("short", "x")
	cmd.TTL = 300
	began := time.Now()
	if _, _, err := l.store.Propose(bg(t), []command.Command{cmd}); err != nil {
		t.Fatal(err)
	}
	answered := time.Now()
	has := func() bool {
		v, err := l.store.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		_, ok := v.Get(7, key("short"))
		return ok
	}
	if !has() {
		t.Fatal("the key ended at once")
	}
	until(t, "the key to end without other entries", func() bool { return !has() })
	if took, late := time.Since(began), time.Since(answered); took < 300*time.Millisecond || late > 2*time.Second {
		t.Errorf("a TTL of 300 ms took %v from the request and %v from the answer", took, late)
	}
	quiet := l.store.Status().LastIndex
	time.Sleep(400 * time.Millisecond) // nothing to wait for: nothing must happen
	if now := l.store.Status().LastIndex; l.store.IsLeader() && now != quiet {
		t.Errorf("a silent shard wrote %d entries", now-quiet)
	}
	c.converge()
}

// The shard's clock never runs ahead of real time, however often leaders change.
func TestClockIsNeverEarly(t *testing.T) { t.Parallel(); synctest.Test(t, testClockIsNeverEarly) }

func testClockIsNeverEarly(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.converge()
	began := time.Now() // before the entry at which the clock is read
	c.put("k", "v")
	clock := c.waitLeader().store.fsm.Clock()
	for range 4 {
		for range 20 {
			c.put("k", "v")
		}
		to := c.followers()[0]
		c.onLeader("transfer", func(s *Store) error { return s.TransferLeadership(bg(t), to.replica) })
		until(t, "a leader", func() bool { return c.leader() != nil })
	}
	c.put("k", "v")
	now := c.waitLeader().store.fsm.Clock()
	if real := time.Since(began).Milliseconds() + 1; now-clock > real {
		t.Errorf("the shard's clock moved %d ms in %d ms", now-clock, real)
	}
	if now == clock {
		t.Error("the shard's clock stands still")
	}
}

// OnLeader runs while the replica leads, with its term, and never twice at once.
func TestOnLeader(t *testing.T) { synctest.Test(t, testOnLeader) }

func testOnLeader(t *testing.T) {
	var running, most, runs atomic.Int64
	terms := make(chan uint64, 100)
	c := newCluster(t, 3, func(n *node, cfg *Config) {
		cfg.OnLeader = func(ctx context.Context, term uint64) {
			if n.id == "n1" {
				if r := running.Add(1); r > most.Load() {
					most.Store(r)
				}
				runs.Add(1)
				terms <- term
			}
			<-ctx.Done()
			if n.id == "n1" {
				time.Sleep(50 * time.Millisecond)
				running.Add(-1)
			}
		}
	})
	c.converge()
	for range 4 {
		to := c.followers()[0]
		before := runs.Load()
		c.onLeader("transfer", func(s *Store) error { return s.TransferLeadership(bg(t), to.replica) })
		until(t, "the new leader", to.store.IsLeader)
		if to.id == "n1" {
			until(t, "OnLeader", func() bool { return runs.Load() > before })
		}
	}
	if runs.Load() < 2 || most.Load() != 1 {
		t.Errorf("%d runs, at most %d at once", runs.Load(), most.Load())
	}
	last := uint64(0)
	for len(terms) > 0 {
		if term := <-terms; term <= last {
			t.Errorf("term %d after %d", term, last)
		} else {
			last = term
		}
	}
	c.nodes[0].stop()
	if running.Load() != 0 {
		t.Error("OnLeader runs after Close")
	}
}
