package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// pin pins through whoever leads. Each attempt has an id of its own: an uncertain one may have pinned.
func (c *cluster) pin(id *uint64) (index uint64) {
	c.t.Helper()
	c.onLeader("pin", func(s *Store) (err error) {
		*id++
		index, err = s.Pin(bg(c.t), *id, time.Minute)
		return err
	})
	return index
}

// Every replica of a group shows the same state for a pin, whatever is written meanwhile, whoever leads, and however far behind a replica is. One that gets a
// snapshot past the pin has none, and says so; those that it had before, it keeps.
func TestPinsOfAGroup(t *testing.T) { synctest.Test(t, testPinsOfAGroup) }

func testPinsOfAGroup(t *testing.T) {
	c := newCluster(t, 3, func(n *node, cfg *Config) {
		frugal(n, cfg)
		cfg.InitialMmapSize = 64 << 20
		cfg.CheckpointBytes = 20 << 10
	})
	c.fill("before", 50)
	ctx, stop := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stop()
	for g := range 2 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				time.Sleep(time.Millisecond) // or virtual time stands still
				if _, s := c.leading(); s != nil {
					within, cancel := context.WithTimeout(ctx, time.Second)
					_, _, _ = s.Propose(within, []command.Command{set(fmt.Sprintf("w%d-%d", g, i%300), fmt.Sprint(i))})
					cancel()
				}
			}
		})
	}
	var id uint64
	type pinned struct{ id, index, hash uint64 }
	var pins []pinned
	check := func(n *node, p pinned) {
		t.Helper()
		v, err := n.store.Pinned(bg(t), p.id, p.index)
		if err != nil {
			t.Fatalf("%s: pin %d at %d: %v", n.id, p.id, p.index, err)
		}
		defer v.Close()
		if v.Index() != p.index || v.Hash() != p.hash {
			t.Fatalf("%s: pin %d at %d shows index %d and another state", n.id, p.id, p.index, v.Index())
		}
	}
	take := func() pinned {
		p := pinned{index: c.pin(&id)}
		p.id = id
		v, err := c.nodes[0].store.Pinned(bg(t), p.id, p.index)
		if err != nil {
			t.Fatal(err)
		}
		p.hash = v.Hash()
		v.Close()
		pins = append(pins, p)
		return p
	}
	for range 4 {
		take()
		for _, n := range c.nodes {
			for _, p := range pins {
				check(n, p)
			}
		}
	}
	c.onLeader("unpin", func(s *Store) error { return s.Unpin(bg(t), pins[0].id) })
	for _, n := range c.nodes {
		until(t, "the pin to end on "+n.id, func() bool {
			v, err := n.store.Pinned(bg(t), pins[0].id, pins[0].index)
			if err == nil {
				v.Close()
			}
			var gone *fsm.PinGoneError
			return errors.As(err, &gone) && gone.Reason == fsm.PinUnpinned
		})
	}
	pins = pins[1:]

	// One is cut off while the log is cut.
	var lost *node
	for _, f := range c.followers() {
		if f != c.nodes[0] { // who says what the hash is
			lost = f
		}
	}
	c.net.Isolate(lost.id)
	for c.leader() == nil || c.leader() == lost {
		c.waitLeader()
	}
	missed := take()
	c.fill("past", 150)
	c.waitCut(missed.index)
	kept := pins[:len(pins)-1]
	c.net.Heal()
	until(t, "the replica to catch up", func() bool { return lost.store.Applied() > missed.index })
	if _, err := lost.store.Pinned(bg(t), missed.id, missed.index); err != fsm.ErrNoPin {
		t.Fatalf("a pin that was skipped: %v", err)
	}
	for _, p := range kept {
		check(lost, p)
	}
	for _, n := range c.nodes {
		if n != lost {
			check(n, missed)
		}
	}
	check(lost, take())

	// Who has not applied the entry yet waits, and not for ever.
	within, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := lost.store.Pinned(within, 1, lost.store.Applied()+1000); transport.CodeOf(err) != transport.CodeTimeout {
		t.Fatalf("a pin of the future: %v", err)
	}
	if _, err := lost.store.Pin(bg(t), 1<<40, time.Minute); !lost.store.IsLeader() && transport.CodeOf(err) != transport.CodeNotLeader {
		t.Fatalf("pinned by a follower: %v", err)
	}
	c.onLeader("refuse", func(s *Store) error {
		for _, ttl := range []time.Duration{0, -time.Second, time.Microsecond, 2 * time.Hour} {
			if _, err := s.Pin(bg(t), 1, ttl); transport.CodeOf(err) != transport.CodeBadRequest {
				return fmt.Errorf("pinned for %v: %w", ttl, err)
			}
		}
		return nil
	})
}
