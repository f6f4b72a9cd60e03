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

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// No scenario makes a read miss what was acknowledged.
func TestReadMissesNothing(t *testing.T) {
	for name, scenario := range map[string]func(*testing.T) error{
		"acknowledgement from before": oldAcknowledgement, "learners do not count": learnersConfirm, "before the first entry of the term": freshLeader,
		"slow state": slowState, "deposed leader": deposedLeader, "paused leader": pausedLeader, "two of four": twoOfFour,
	} {
		t.Run(name, func(t *testing.T) {
			if err := scenario(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// Reads see what was acknowledged, at the leader and at followers, answer as
// entries of the log would, and leave no trace in it.
func TestRead(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		for i := range 20 {
			want := fmt.Sprint(i)
			if _, _, err := l.store.Propose(bg(t), []command.Command{set("x", want)}); err != nil {
				return err
			}
			if err := missed(bg(t), l.store, want); err != nil {
				return err
			}
			for _, f := range fs {
				index, err := l.store.ReadIndex(bg(t))
				if err != nil {
					return err
				}
				res, at, err := f.store.ReadAt(bg(t), index, []command.Command{get("x")})
				if err != nil || at < index || string(res[0].Bytes) != want {
					return fmt.Errorf("a follower read %v at %d, %v, want %s at %d or later", res, at, err, want, index)
				}
			}
		}
		before := l.store.Status().LastIndex
		for range 50 {
			if _, _, err := l.store.Read(bg(t), []command.Command{get("x"), get("none")}); err != nil {
				return err
			}
		}
		if after := l.store.Status().LastIndex; after != before {
			t.Errorf("50 reads made %d entries", after-before)
		}
		_, _, err := fs[0].store.Read(bg(t), []command.Command{get("x")})
		if transport.CodeOf(err) != transport.CodeNotLeader {
			t.Errorf("a follower's own read: %v", err)
		}
		if _, _, err := l.store.Read(bg(t), []command.Command{set("x", "1")}); transport.CodeOf(err) != transport.CodeBadRequest {
			t.Errorf("a write as a read: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// What is left of a key's time is told by the shard's clock, which stands still
// while the shard is idle: it must be moved on first.
func TestReadTTL(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		x := set("x", "1")
		x.TTL = 60_000
		ttl := command.Command{Op: command.OpTTL, Slot: 7, Keys: [][]byte{key("x")}}
		if _, _, err := l.store.Propose(bg(t), []command.Command{x}); err != nil {
			return err
		}
		time.Sleep(50 * time.Second)
		res, index, err := l.store.Read(bg(t), []command.Command{get("x"), ttl})
		if err != nil || res[1].Int < 9_000 || res[1].Int > 11_000 {
			return fmt.Errorf("50 of 60 s later: %v, %v", res, err)
		}
		if _, _, err := fs[0].store.ReadAt(bg(t), index, []command.Command{ttl}); transport.CodeOf(err) != transport.CodeNotLeader {
			return fmt.Errorf("a follower tells the time: %v", err)
		}
		time.Sleep(11 * time.Second)
		if res, _, err = l.store.Read(bg(t), []command.Command{get("x"), ttl}); err != nil || res[0].Kind != command.KindNil || res[1].Int != -2 {
			return fmt.Errorf("after its end: %v, %v", res, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Without a majority a read fails within its deadline, and nothing of it is left.
func TestReadWithoutMajority(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		for _, f := range fs {
			c.tap.losing(f.id, true)
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
				defer cancel()
				began := time.Now()
				_, _, err := l.store.Read(ctx, []command.Command{get("x")})
				if transport.CodeOf(err) != transport.CodeTimeout || time.Since(began) != 300*time.Millisecond {
					t.Errorf("after %v: %v", time.Since(began), err)
				}
			})
		}
		wg.Wait()
		if left := l.store.cfg.Net.confirms.pending(); left != 0 {
			t.Errorf("%d rounds, reads and questions are left", left)
		}
		for _, f := range fs {
			c.tap.losing(f.id, false)
		}
		return missed(bg(t), l.store, "1")
	})
	if err != nil {
		t.Error(err)
	}
}

// pending counts what is kept for reads.
func (c *confirms) pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.readers + len(c.shards)
	for _, p := range c.peers {
		n += len(p.waiting)
	}
	return n
}

// A peer that is dead, or slower than the others, holds up no read, but for those that asked
// it first, and these for a moment: half of the voters beside the leader are enough.
func TestReadPastDeadPeer(t *testing.T) {
	for name, hurt := range map[string]func(c *cluster, l, f *node){
		"lost":    func(c *cluster, _, f *node) { c.tap.losing(f.id, true) },
		"cut":     func(c *cluster, _, f *node) { c.net.Isolate(f.id) },
		"slow":    func(c *cluster, l, f *node) { c.net.Delay(f.id, l.id, 400*time.Millisecond) },
		"stopped": func(_ *cluster, _, f *node) { f.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
				l, fs := c.prepare()
				c.net.Delay(l.id, fs[1].id, 2*time.Millisecond)
				c.net.Delay(fs[1].id, l.id, 2*time.Millisecond)
				hurt(c, l, fs[0])
				var wg sync.WaitGroup
				var late atomic.Int64
				const readers, reads = 20, 50
				for range readers {
					wg.Go(func() {
						for range reads {
							began := time.Now()
							if err := missed(bg(t), l.store, "1"); err != nil {
								t.Error(err)
							}
							// Its own round trip, and what is left of the one before.
							switch took, limit := time.Since(began), 8*time.Millisecond; {
							case took > limit+confirmHedge+time.Millisecond:
								t.Errorf("a read took %v", took)
							case took > limit:
								late.Add(1)
							}
						}
					})
				}
				wg.Wait()
				if n := late.Load(); n > 2*readers {
					t.Errorf("%d of %d reads waited for the peer that does not answer", n, readers*reads)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// The members change while a round is under way: it is held anew with those that
// are voters then, and a voter that was removed is not needed any more, nor enough.
func TestReadWhileMembersChange(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		c.tap.losing(fs[0].id, true)
		c.tap.losing(fs[1].id, true)
		answered := make(chan error, 1)
		go func() { answered <- missed(bg(t), l.store, "1") }()
		time.Sleep(10 * time.Millisecond) // the round is under way
		if err := l.store.Remove(bg(t), fs[1].replica); err != nil {
			return err
		}
		c.tap.losing(fs[1].id, false)
		time.Sleep(5 * time.Second)
		select {
		case err := <-answered:
			return fmt.Errorf("answered without the one other voter: %v", err)
		default:
		}
		c.tap.losing(fs[0].id, false)
		select {
		case err := <-answered:
			return err
		case <-time.After(2 * confirmTimeout):
			return errors.New("not answered though the one other voter confirms")
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// A shard with one voter reads without asking anybody.
func TestReadAlone(t *testing.T) {
	err := situation(t, 1, nil, func(t *testing.T, c *cluster) error {
		l, _ := c.prepare()
		if err := missed(bg(t), l.store, "1"); err != nil {
			return err
		}
		if n := c.tap.count(); n != 0 {
			t.Errorf("%d questions were sent", n)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A stale read with a bound is answered while the replica knows that it has all that is older.
func TestReadStale(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		try := func(n *node, bound time.Duration) error {
			_, _, err := n.store.ReadStale(bound, []command.Command{get("x")})
			return err
		}
		refused := func(n *node, bound time.Duration, what string) {
			t.Helper()
			if err := try(n, bound); transport.CodeOf(err) != transport.CodeUnavailable {
				t.Errorf("%s: %v", what, err)
			}
		}
		for _, f := range fs {
			refused(f, time.Hour, "who was never asked before")
		}
		time.Sleep(2 * time.Second)
		for _, n := range c.nodes {
			if err := try(n, 900*time.Millisecond); err != nil {
				t.Errorf("in a healthy shard: %v", err)
			}
		}
		c.net.Isolate(fs[0].id)
		c.put("x", "2")
		time.Sleep(time.Second)
		if err := try(fs[0], 2*time.Second); err != nil {
			t.Errorf("a second after it was cut off: %v", err)
		}
		refused(fs[0], time.Second, "a second after it was cut off")
		res, _, err := fs[0].store.ReadStale(0, []command.Command{get("x")})
		if err != nil || string(res[0].Bytes) != "1" {
			t.Errorf("without a bound: %v, %v", res, err)
		}
		// It asks for votes, and in the end a vote is given: neither is word from a leader.
		time.Sleep(10 * time.Second)
		refused(fs[0], 5*time.Second, "ten seconds after it was cut off")
		// The leader's answers come late: what they answer was sent before.
		c.net.Delay(fs[1].id, l.id, 250*time.Millisecond)
		time.Sleep(450 * time.Millisecond)
		c.still(l)
		refused(l, 200*time.Millisecond, "a leader whose newest answer is to a question of 250 ms ago")
		if err := try(l, 2*time.Second); err != nil {
			t.Errorf("and not for two seconds: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// One message to a peer asks for all shards and all reads that wait.
func TestReadsShareMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const shards = 4
		c := newTappedCluster(t, 0, nil, newTap())
		stores := make([][shards]*Store, 3)
		var nets []*Net
		for i := range stores {
			id := fmt.Sprintf("n%d", i+1)
			tr := tapped{c.net.Join(id), c.tap}
			t.Cleanup(func() { tr.Close() })
			nets = append(nets, NewNet(tr, 0, c.log))
			t.Cleanup(func() { nets[i].Close() })
		}
		for s := range shards {
			for i := range stores {
				id := fmt.Sprintf("n%d", i+1)
				cfg := Config{Shard: uint32(s), Replica: id + ".1", Node: id, Dir: fmt.Sprintf("%s/%d/%s", c.dir, s, id), Net: nets[i], InitialMmapSize: 1 << 20}
				if i == 0 {
					in := *identity()
					in.Shard = uint32(s)
					cfg.Bootstrap = &in
				}
				st, err := Open(cfg)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { st.Close(bg(t)) })
				stores[i][s] = st
				if i > 0 {
					until(t, "a leader", stores[0][s].IsLeader)
					if err := stores[0][s].AddLearner(bg(t), id+".1", id); err != nil {
						t.Fatal(err)
					}
					until(t, "a voter", func() bool { return stores[0][s].Promote(bg(t), id+".1", id) == nil })
				}
			}
		}
		c.net.Delay("", "", 5*time.Millisecond)
		c.tap.count()
		const reads = 500
		var wg sync.WaitGroup
		for i := range reads {
			wg.Go(func() {
				if _, _, err := stores[0][i%shards].Read(bg(t), []command.Command{get("x")}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		// To each of two peers: those that went at once, and then one for all the rest.
		if n := c.tap.count(); n > 2*(confirmsInFlight+2) {
			t.Errorf("%d reads of %d shards took %d messages", reads, shards, n)
		}
	})
}
