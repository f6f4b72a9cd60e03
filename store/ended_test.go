package store

import (
	"testing"
	"time"
)

// A leader whose process has ended is followed at once, and not after the election time-out.
func TestSuccessorOfEndedProcess(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		c.put("a", "1")
		c.converge()
		old := c.waitLeader()
		began := time.Now()
		old.tr.Close() // as its sockets are when the process ends
		until(t, "another leader", func() bool {
			for _, n := range c.nodes {
				if n != old && n.store.IsLeader() {
					return true
				}
			}
			return false
		})
		if took, limit := time.Since(began), DefaultTiming().Heartbeat/2; took > limit {
			t.Errorf("it took %v, want less than %v", took, limit)
		}
		old.stop()
		c.want("a", "1")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// An idle leader sends heartbeats, and hardly anything else; a follower that was started anew
// is told what is committed all the same.
func TestQuietWhenIdle(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		c.put("a", "1")
		c.converge()
		time.Sleep(time.Second)
		sent := func() int {
			c.tap.mu.Lock()
			defer c.tap.mu.Unlock()
			return c.tap.appends
		}
		const idle = 20 * time.Second
		before := sent()
		time.Sleep(idle)
		// A heartbeat comes after a tenth to a fifth of the time-out.
		heartbeats := 2 * int(idle/(DefaultTiming().Heartbeat/10))
		if n := sent() - before; n > heartbeats || n < heartbeats/3 {
			t.Errorf("%d messages in %v, of which at most %d are heartbeats", n, idle, heartbeats)
		}
		f, l := c.followers()[0], c.waitLeader()
		f.kill()
		c.put("b", "2")
		f.start()
		began := time.Now()
		until(t, "the follower has what is committed", func() bool { return f.store.Applied() == l.store.Applied() })
		if took := time.Since(began); took > time.Second {
			t.Errorf("after %v", took)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
