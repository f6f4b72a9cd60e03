package store

import (
	"fmt"
	"testing"
	"time"
)

// What a follower hears late tells of what was: it does not pass for new.
func TestReadStaleByOldWord(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		fs[0].store.FreshAt()
		time.Sleep(2 * time.Second)
		if age := time.Since(fs[0].store.FreshAt()); age > 900*time.Millisecond {
			return fmt.Errorf("in a healthy shard a follower is fresh as of %v ago", age)
		}
		c.net.Delay(l.id, fs[0].id, 3*time.Second) // as if the follower stood still, and what came had waited
		time.Sleep(6 * time.Second)
		if age := time.Since(fs[0].store.FreshAt()); age < 3*time.Second {
			return fmt.Errorf("by messages of three seconds ago a follower is fresh as of %v ago", age)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A follower that hears from a deposed leader only, who does not know it, is not fresh by what that says.
func TestReadStaleByDeposedLeader(t *testing.T) {
	err := situation(t, 5, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		b := fs[0]
		b.store.FreshAt()
		time.Sleep(2 * time.Minute)
		if age := time.Since(b.store.FreshAt()); age < time.Minute {
			return fmt.Errorf("nobody has asked for long, and it is told that it is fresh as of %v ago", age)
		}
		time.Sleep(2 * time.Second)
		if age := time.Since(b.store.FreshAt()); age > 900*time.Millisecond {
			return fmt.Errorf("in a healthy shard a follower is fresh as of %v ago", age)
		}
		c.net.Partition([]string{l.id, b.id}, []string{fs[1].id, fs[2].id, fs[3].id})
		if err := c.overtake(fs[1], fs[2]); err != nil {
			return err
		}
		wrote := time.Now()
		for time.Since(wrote) < 5*time.Second {
			for _, n := range []*node{l, b} {
				if at := n.store.FreshAt(); at.After(wrote) {
					return fmt.Errorf("%s, who has not heard of a write, is fresh as of %v after it", n.id, at.Sub(wrote))
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A follower whose log takes nothing answers heartbeats, and is not fresh by what these bring.
func TestReadStaleBehindItsLog(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		_, fs := c.prepare()
		f := fs[0]
		f.store.FreshAt()
		time.Sleep(2 * time.Second)
		f.gate.hold()
		defer f.gate.release()
		c.put("x", "2")
		wrote := time.Now()
		for time.Since(wrote) < 2*time.Second {
			if at := f.store.FreshAt(); at.After(wrote) {
				return fmt.Errorf("without the write it is fresh as of %v after it", at.Sub(wrote))
			}
			time.Sleep(10 * time.Millisecond)
		}
		f.gate.release()
		time.Sleep(2 * time.Second)
		if age := time.Since(f.store.FreshAt()); age > 900*time.Millisecond {
			return fmt.Errorf("two seconds after it has caught up it is fresh as of %v ago", age)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A word counts once the state is as far as it says, and never one that was for an earlier process.
func TestFreshness(t *testing.T) {
	applied := uint64(0)
	f := newFreshness(func() uint64 { return applied })
	f.trust(word{stamp{f.process, 100}, 7})
	f.trust(word{stamp{f.process, 200}, 9})
	f.trust(word{stamp{f.process + 1, 900}, 1})
	f.trust(word{})
	for _, c := range []struct{ applied, want uint64 }{{6, 0}, {7, 100}, {8, 100}, {9, 200}} {
		if applied = c.applied; f.newest() != c.want {
			t.Errorf("having applied %d: %d, want %d", c.applied, f.newest(), c.want)
		}
	}
	for range 2 * maxWords {
		f.trust(word{stamp{f.process, 300}, 99})
	}
	if len(f.waiting) != maxWords {
		t.Errorf("%d words wait", len(f.waiting))
	}
}

// A stamp is given back once a round that began after it came was confirmed.
func TestStampsRipen(t *testing.T) {
	t0 := time.Now()
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	var s stamps
	for i := 1; i <= maxStamps+2; i++ {
		s.add(stamp{1, uint64(i)}, at(10*i))
	}
	for _, c := range []struct {
		confirmed int
		want      uint64
	}{{5, 0}, {10, 1}, {19, 0}, {39, 3}, {100, maxStamps}, {200, 0}} {
		if ripe := s.ripen(at(c.confirmed)); ripe.at != c.want {
			t.Errorf("confirmed at %d: stamp %d is ripe, want %d", c.confirmed, ripe.at, c.want)
		}
	}
}
