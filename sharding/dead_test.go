package sharding

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// checkDead is what must hold of every step of NextDead: marks go, or one comes, on a node that holds something, while no other that holds something has one, with
// as many nodes left as a shard wants replicas.
func checkDead(t *testing.T, was, now Map) {
	t.Helper()
	came, gone, busy, left := 0, 0, 0, 0
	for i, n := range now.Nodes {
		old := was.Nodes[i]
		switch {
		case n.Dead && !old.Dead:
			came++
			if !holds(was, n.ID) || old.Draining {
				t.Fatalf("node %s is taken for dead, and nothing is to be made anew", n.ID)
			}
		case !n.Dead && old.Dead:
			gone++
		case n.Dead && holds(was, n.ID):
			busy++
		}
		if !n.leaves() {
			left++
		}
	}
	if came+gone == 0 || came > 1 || came > 0 && (gone > 0 || busy > 0 || left < was.ReplicasWanted) {
		t.Fatalf("%d marks come and %d go, %d were there on nodes that hold something, %d nodes are left for %d replicas", came, gone, busy, left, was.ReplicasWanted)
	}
}

// Who has been silent longest is taken for dead, and the bound is exact.
func TestNextDead(t *testing.T) {
	set := func(m Map) Map { return must(t)(SetDeadAfter(m, time.Minute)) }
	five := set(cluster(t, 5, 6, 5))
	dead := func(m Map) (list string) {
		for _, n := range m.Nodes {
			if n.Dead {
				list += n.ID
			}
		}
		return list
	}
	for name, c := range map[string]struct {
		m      Map
		silent map[NodeID]time.Duration
		want   string
	}{
		"nobody":               {set(cluster(t, 5, 6, 3)), nil, ""},
		"not long enough":      {set(cluster(t, 5, 6, 3)), map[NodeID]time.Duration{"n2": time.Minute - 1}, ""},
		"long enough":          {set(cluster(t, 5, 6, 3)), map[NodeID]time.Duration{"n2": time.Minute}, "n2"},
		"the longest of two":   {set(cluster(t, 5, 6, 3)), map[NodeID]time.Duration{"n1": time.Minute, "n2": time.Hour}, "n2"},
		"three of five":        {set(cluster(t, 5, 6, 3)), map[NodeID]time.Duration{"n1": time.Minute, "n2": time.Hour, "n3": 1}, ""},
		"it holds nothing":     {set(cluster(t, 5, 6, 3)), map[NodeID]time.Duration{"n5": time.Hour}, ""},
		"none to spare":        {five, map[NodeID]time.Duration{"n5": time.Hour}, ""},
		"it drains":            {must(t)(DrainNode(set(cluster(t, 5, 6, 3)), "n2", "", anyNode)), map[NodeID]time.Duration{"n2": time.Hour}, ""},
		"off":                  {cluster(t, 5, 6, 3), map[NodeID]time.Duration{"n2": time.Hour}, ""},
		"heard again":          {edit(five, "n2", func(n *Node) { n.Dead = true }), nil, ""},
		"stays":                {edit(five, "n2", func(n *Node) { n.Dead = true }), map[NodeID]time.Duration{"n2": 1}, "n2"},
		"half are silent":      {edit(set(cluster(t, 4, 6, 3)), "n2", func(n *Node) { n.Dead = true }), map[NodeID]time.Duration{"n2": time.Hour, "n1": 1}, ""},
		"two nodes, one alone": {set(cluster(t, 2, 6, 1)), map[NodeID]time.Duration{"n1": time.Hour}, ""},
	} {
		next, changed := NextDead(c.m, func(n NodeID) Seen { return Seen{Alive: c.silent[n] == 0, Silent: c.silent[n]} })
		if dead(next) != c.want || changed != (dead(c.m) != c.want) {
			t.Errorf("%s: dead is %q, want %q; changed: %v", name, dead(next), c.want, changed)
		}
		if changed {
			if err := ValidateTransition(c.m, next); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			checkDead(t, c.m, next)
		}
	}
}

// The setting is bounded, needs the level of moves, and takes the marks with it when it goes.
func TestSetDeadAfter(t *testing.T) {
	m := cluster(t, 4, 3, 3)
	for _, bad := range []time.Duration{1, MinDeadAfter - 1, MaxDeadAfter + time.Millisecond, -time.Minute} {
		var refused *SettingError
		if _, changed, err := SetDeadAfter(m, bad); changed || !errors.As(err, &refused) || !strings.Contains(err.Error(), "must be 30s to 720h0m0s, or off") {
			t.Errorf("%v: %v", bad, err)
		}
	}
	old := m
	old.Level = LevelFirst
	var level *LevelError
	if _, _, err := SetDeadAfter(old, time.Minute); !errors.As(err, &level) {
		t.Errorf("at the first level: %v", err)
	}
	unchanged(t, m)(SetDeadAfter(m, 0))
	m = must(t)(SetDeadAfter(m, MaxDeadAfter))
	unchanged(t, m)(SetDeadAfter(m, MaxDeadAfter))
	m = edit(m, "n2", func(n *Node) { n.Dead = true })
	self := node("n2")
	self.Addrs.Peer = "elsewhere:1"
	if next, _ := UpdateNode(m, self); !next.Nodes[1].Dead {
		t.Error("a node takes its mark off by itself")
	}
	m = must(t)(SetDeadAfter(m, 0))
	if m.Nodes[1].Dead || m.Validate() != nil {
		t.Errorf("after off: %+v", m.Nodes[1])
	}
	if m.Nodes[1].Dead = true; m.Validate() == nil {
		t.Error("a dead node in a cluster that takes none for dead")
	}
	m.Nodes[1].Dead, m.DeadAfterMillis = false, 1
	if m.Validate() == nil {
		t.Error("dead after 1 ms")
	}
}

// A shard takes a change for the sake of a dead node only if a majority of it lives without that.
func TestCanSpare(t *testing.T) {
	for _, c := range []struct {
		replicas     int
		dead, silent string
		want         bool
	}{
		{3, "", "n1 n2 n3", true}, // not for the sake of a dead node
		{3, "n1", "n1", true},
		{3, "n1", "n1 n2", false},
		{2, "n1", "n1", false},
		{1, "n1", "n1", false},
		{4, "n1", "n1", true},
		{4, "n1", "n1 n2", false},
		{5, "n1", "n1 n2", true},
		{5, "n1", "n1 n2 n3", false},
	} {
		m := must(t)(SetDeadAfter(cluster(t, 5, 1, c.replicas), time.Minute))
		if c.dead != "" {
			m = edit(m, c.dead, func(n *Node) { n.Dead = true })
		}
		if got := CanSpare(m, m.Shards[0], func(n NodeID) bool { return !strings.Contains(c.silent, n) }); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
