package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// The directed tests of reads: real stores, in virtual time on the in-memory
// network. Each brings about the one situation that a protection is for, and says
// with an error if a read then misses an acknowledged write. planted_read_test.go
// runs the same scenarios with the protection taken out, and wants that error.

// situation runs f on a cluster in virtual time and returns f's error. Timing is
// the product's: a leader keeps its office for a second after it was cut off.
func situation(t *testing.T, size int, edit func(*node, *Config), f func(t *testing.T, c *cluster) error) (err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		err = f(t, newTappedCluster(t, size, func(n *node, cfg *Config) {
			cfg.Timing = DefaultTiming()
			if edit != nil {
				edit(n, cfg)
			}
		}, newTap()))
	})
	return err
}

// tap sees the questions of reads on their way, and counts what leaders send to followers.
type tap struct {
	mu      sync.Mutex
	appends int
	sent    map[string]int  // by receiver
	lose    map[string]bool // receivers that nothing reaches
}

func newTap() *tap { return &tap{sent: map[string]int{}, lose: map[string]bool{}} }

// losing has the questions to a node lost, or not any more.
func (p *tap) losing(node string, lose bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose[node] = lose
}

// count returns how many were sent since the last call.
func (p *tap) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, m := range p.sent {
		n += m
	}
	clear(p.sent)
	return n
}

type tapped struct {
	transport.Transport
	tap *tap
}

func (p tapped) Go(to string, lane transport.Lane, m transport.Method, req []byte, deadline time.Time, done func([]byte, error)) {
	p.tap.saw(m)
	if m == transport.MethodConfirm {
		p.tap.mu.Lock()
		p.tap.sent[to]++
		lose := p.tap.lose[to]
		p.tap.mu.Unlock()
		if lose {
			time.AfterFunc(time.Until(deadline), func() { done(nil, transport.Errorf(transport.CodeLinkLost, "lost")) })
			return
		}
	}
	p.Transport.Go(to, lane, m, req, deadline, done)
}

func (p *tap) saw(m transport.Method) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m == transport.MethodRaftAppend || m == transport.MethodHeartbeats {
		p.appends++
	}
}

func (p tapped) Call(ctx context.Context, to string, lane transport.Lane, m transport.Method, req []byte) ([]byte, error) {
	p.tap.saw(m)
	return p.Transport.Call(ctx, to, lane, m, req)
}

// elect makes a node's replica the leader now, as a transfer of leadership would, by way of another.
func (c *cluster) elect(n, by *node) error {
	req := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(by.replica), Addr: []byte(by.id)}}
	return by.store.inst.Load().peers.TimeoutNow(raft.ServerID(n.replica), raft.ServerAddress(n.id), req, &raft.TimeoutNowResponse{})
}

// overtake has another elected, who acknowledges a write, all within moments.
func (c *cluster) overtake(n, by *node) error {
	if err := c.elect(n, by); err != nil {
		return err
	}
	for deadline := time.Now().Add(100 * time.Millisecond); !n.store.IsLeader(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("it was not elected")
		}
	}
	_, _, err := n.store.Propose(bg(c.t), []command.Command{set("x", "2")})
	return err
}

// errMissed is what a scenario is about; any other error is none of a protection that is missing.
var errMissed = errors.New("a read missed an acknowledged write")

// missed reads x at a replica and returns an error if it answers with an old value.
func missed(ctx context.Context, s *Store, want string) error {
	res, index, err := s.Read(ctx, []command.Command{get("x")})
	if err == nil && string(res[0].Bytes) != want {
		return fmt.Errorf("%w: x = %q at index %d, acknowledged was %q", errMissed, res[0].Bytes, index, want)
	}
	if err != nil && !transport.Certain(err) {
		return fmt.Errorf("the failure of a read is not certain: %w", err)
	}
	return nil
}

// shortly bounds a read that should not be answered.
func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// still fails the test if a scenario did not come about: the old leader knows already.
func (c *cluster) still(l *node) {
	c.t.Helper()
	if !l.store.IsLeader() {
		c.t.Fatal("the old leader has noticed already")
	}
}

// prepare returns the leader and the followers of a cluster in which x is 1 everywhere.
func (c *cluster) prepare() (l *node, followers []*node) {
	c.t.Helper()
	c.put("x", "1")
	c.converge()
	return c.waitLeader(), c.followers()
}

// oldAcknowledgement (hazard R1): a follower's acknowledgements are long under way.
// Meanwhile it restarts and helps to elect another leader. What arrives then was sent before
// the read began, so it says nothing about it.
func oldAcknowledgement(t *testing.T) error {
	return situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		c.net.CutBoth(l.id, fs[1].id)
		// Long enough that one is under way, for a heartbeat goes every 100 to 300 ms; short enough that the
		// leader does not step down before it arrives, 750 ms after the last one that was not delayed.
		c.net.Delay(fs[0].id, l.id, 450*time.Millisecond)
		time.Sleep(400 * time.Millisecond)
		c.net.Cut(l.id, fs[0].id)
		fs[0].kill()
		fs[0].start()
		if err := c.overtake(fs[1], fs[0]); err != nil {
			t.Fatal(err)
		}
		c.still(l)
		return missed(shortly(t), l.store, "2")
	})
}

// learnersConfirm (hazard R2): the leader is cut off from the other voters, but not from a learner.
func learnersConfirm(t *testing.T) error {
	return situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		n := c.addNode()
		n.start()
		c.onLeader("add learner", func(s *Store) error { return s.AddLearner(bg(t), n.replica, n.id) })
		l, _ := c.prepare()
		fs := slices.DeleteFunc(c.followers(), func(f *node) bool { return f == n })
		c.net.Partition([]string{l.id, n.id}, []string{fs[0].id, fs[1].id})
		if err := c.overtake(fs[0], fs[1]); err != nil {
			t.Fatal(err)
		}
		c.still(l)
		return missed(shortly(t), l.store, "2")
	})
}

// freshLeader (hazard R3): a leader that does not know yet that its predecessor's
// last write is committed, though it has it.
func freshLeader(t *testing.T) error {
	lazy := func(_ *node, cfg *Config) { cfg.Timing.Commit, cfg.Timing.Tell = 10*time.Second, 10*time.Second } // followers hear late of commits
	return situation(t, 3, lazy, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		// The entry is committed by the next leader's copy: sent to it after it had been committed by the other's, it would come with the news.
		c.net.CutBoth(l.id, fs[1].id)
		_, index, err := l.store.Propose(bg(t), []command.Command{set("x", "2")})
		if err != nil {
			t.Fatal(err)
		}
		if last := fs[0].store.Status().LastIndex; last < index {
			t.Fatalf("its log ends at %d, and entry %d is committed", last, index)
		}
		c.net.Isolate(l.id)
		fs[1].gate.hold() // it votes, but takes no entry of the new leader
		defer fs[1].gate.release()
		if err := c.elect(fs[0], fs[1]); err != nil {
			t.Fatal(err)
		}
		until(t, "a leader", func() bool { return fs[0].store.lead.Load() != nil })
		if fs[0].store.Applied() >= index {
			t.Fatal("it has applied the write already")
		}
		if err := missed(shortly(t), fs[0].store, "2"); err != nil {
			return err
		}
		fs[1].gate.release()
		until(t, "the new leader to be ready", fs[0].store.IsLeader)
		return missed(bg(t), fs[0].store, "2")
	})
}

// slowState (hazard R4): raft has handed the entry to a state machine that is still busy with another.
func slowState(t *testing.T) error {
	var slow atomic.Pointer[node]
	var hang, reached atomic.Pointer[chan struct{}]
	return situation(t, 3, func(n *node, cfg *Config) {
		cfg.Timing.Stuck = time.Hour
		cfg.OnRecord = func(string, []byte, int64) {
			if slow.Load() == n {
				close(*reached.Load()) // there is one such record
				<-*hang.Load()
			}
		}
	}, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		f := fs[0]
		held := make(chan struct{})
		release := sync.OnceFunc(func() { close(held) })
		defer release()
		there := make(chan struct{})
		hang.Store(&held)
		reached.Store(&there)
		slow.Store(f)
		rec := command.Command{Op: command.OpRecordSet, Keys: [][]byte{key("r")}, Values: [][]byte{key("x")}}
		if _, _, err := l.store.Propose(bg(t), []command.Command{rec}); err != nil {
			t.Fatal(err)
		}
		// Not before the follower stands still: in one batch with the record, x would be in its state by then.
		<-there
		if _, _, err := l.store.Propose(bg(t), []command.Command{set("x", "2")}); err != nil {
			t.Fatal(err)
		}
		index, err := l.store.ReadIndex(bg(t))
		if err != nil {
			t.Fatal(err)
		}
		until(t, "raft to have handed it over", func() bool { return f.store.raft().AppliedIndex() >= index })
		early := func(ctx context.Context) error {
			res, at, err := f.store.ReadAt(ctx, index, []command.Command{get("x")})
			if err == nil && string(res[0].Bytes) != "2" {
				return fmt.Errorf("%w: x = %q at index %d, asked for %d", errMissed, res[0].Bytes, at, index)
			}
			return nil
		}
		if err := early(shortly(t)); err != nil {
			return err
		}
		release()
		return early(bg(t))
	})
}

// deposedLeader: a leader is cut off, another is elected at once; the first does not know yet.
func deposedLeader(t *testing.T) error {
	return situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		c.net.Isolate(l.id)
		if err := c.overtake(fs[0], fs[1]); err != nil {
			t.Fatal(err)
		}
		c.still(l)
		return missed(shortly(t), l.store, "2")
	})
}

// pausedLeader: all that a leader sends and is sent takes long, as when its process
// stands still for a while. The answers it gets are true, but of old.
func pausedLeader(t *testing.T) error {
	return situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		c.net.Delay(l.id, "", 300*time.Millisecond)
		c.net.Delay("", l.id, 300*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		if err := c.overtake(fs[0], fs[1]); err != nil {
			t.Fatal(err)
		}
		c.still(l)
		return missed(shortly(t), l.store, "2")
	})
}

// twoOfFour: a leader of three has made a fourth voter, as only the two of them
// know. The other two, a majority of three, elect: two of four must not be enough.
func twoOfFour(t *testing.T) error {
	return situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		n := c.addNode()
		n.start()
		c.onLeader("add learner", func(s *Store) error { return s.AddLearner(bg(t), n.replica, n.id) })
		l, _ := c.prepare()
		until(t, "the learner to catch up", func() bool { return l.store.CaughtUp(n.replica) })
		fs := slices.DeleteFunc(c.followers(), func(f *node) bool { return f == n })
		c.net.Partition([]string{l.id, n.id}, []string{fs[0].id, fs[1].id})
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if err := l.store.Promote(ctx, n.replica, n.id); transport.CodeOf(err) != transport.CodeUncertain {
			t.Fatalf("promote on a minority: %v", err)
		}
		if err := c.overtake(fs[0], fs[1]); err != nil {
			t.Fatal(err)
		}
		c.still(l)
		return missed(shortly(t), l.store, "2")
	})
}
