package sharding

import (
	"fmt"
	"slices"
	"time"
)

// A node that is silent for as long as the cluster waits (DeadAfterMillis) is marked as dead by the leader of shard 0. The mark does what draining does, but it is the
// cluster's own: it goes when the node is heard again. Replicas that were made anew elsewhere stay there.

// Bounds of how long the cluster waits for a silent node. Less than the least is a restart, or a switch that starts anew.
const (
	MinDeadAfter = 30 * time.Second
	MaxDeadAfter = 30 * 24 * time.Hour
)

// Seen is what the leader of shard 0 knows of a node.
type Seen struct {
	// Alive: it was heard just now, by him or by a leader of a shard.
	Alive bool
	// Silent is for how long it was not, as far as he has listened without a gap: less than it may be, and never more.
	Silent time.Duration
}

// SettingError says why a setting of the cluster is refused.
type SettingError struct{ Setting, Why string }

func (e *SettingError) Error() string { return e.Setting + ": " + e.Why }

// DeadAfter is after how long a silent node is taken for dead; 0 is never.
func (m Map) DeadAfter() time.Duration { return time.Duration(m.DeadAfterMillis) * time.Millisecond }

// SetDeadAfter says after how long a silent node's replicas are made anew elsewhere: MinDeadAfter to MaxDeadAfter, or 0 for never, which takes off the marks that there
// are. Moves that were begun go on. The error is a *SettingError, or a *LevelError.
func SetDeadAfter(m Map, after time.Duration) (next Map, changed bool, err error) {
	if why := badDeadAfter(after.Milliseconds()); after != 0 && (after < MinDeadAfter || why != "") {
		return m, false, &SettingError{Setting: "dead-after", Why: fmt.Sprintf("%v: must be %v to %v, or off", after, MinDeadAfter, MaxDeadAfter)}
	}
	if m.DeadAfterMillis == after.Milliseconds() {
		return m, false, nil
	}
	next = m.Clone()
	next.Epoch++
	next.DeadAfterMillis = after.Milliseconds()
	for i := range next.Nodes {
		next.Nodes[i].Dead = next.Nodes[i].Dead && after != 0
	}
	return next, true, ValidateTransition(m, next)
}

func badDeadAfter(millis int64) string {
	if millis != 0 && (millis < MinDeadAfter.Milliseconds() || millis > MaxDeadAfter.Milliseconds()) {
		return fmt.Sprintf("dead after %d ms: must be 0 or %d to %d", millis, MinDeadAfter.Milliseconds(), MaxDeadAfter.Milliseconds())
	}
	return ""
}

// NextDead takes the mark off nodes that are heard again, or puts it on the one that has been silent longest, if WhyNotDead knows nothing against it. false: nothing changes.
// While half of the nodes are silent it takes all marks off: who is dead is not for the lesser part to say.
func NextDead(m Map, seen func(NodeID) Seen) (next Map, changed bool) {
	if m.DeadAfterMillis == 0 {
		return m, false
	}
	next = m.Clone()
	next.Epoch++
	apart := cutOff(m, seen)
	for i := range next.Nodes {
		n := &next.Nodes[i]
		if n.Dead && (apart || seen(n.ID).Alive) {
			n.Dead, changed = false, true
		}
	}
	if changed {
		return next, true
	}
	dead := -1
	for i, n := range m.Nodes {
		if m.overdue(n, seen) && WhyNotDead(m, n.ID, seen) == "" && (dead < 0 || seen(n.ID).Silent > seen(m.Nodes[dead].ID).Silent) {
			dead = i
		}
	}
	if dead < 0 {
		return m, false
	}
	next.Nodes[dead].Dead = true
	return next, true
}

// overdue says whether a node has been silent for longer than the cluster waits, and nothing is done about what it has.
func (m Map) overdue(n Node, seen func(NodeID) Seen) bool {
	s := seen(n.ID)
	return m.DeadAfterMillis > 0 && !s.Alive && s.Silent >= m.DeadAfter() && !n.leaves() && holds(m, n.ID)
}

// cutOff says whether half of the nodes or more are silent: then it may be the others who have a cluster, and not we.
func cutOff(m Map, seen func(NodeID) Seen) bool {
	silent := 0
	for _, n := range m.Nodes {
		if !seen(n.ID).Alive {
			silent++
		}
	}
	return 2*silent >= len(m.Nodes)
}

// WhyNotDead says, for people, why a node that has been silent for longer than the cluster waits is not taken for dead; empty if nothing forbids it, or there is no need.
func WhyNotDead(m Map, id NodeID, seen func(NodeID) Seen) string {
	n, ok := m.Node(id)
	if !ok || !m.overdue(n, seen) {
		return ""
	}
	if cutOff(m, seen) {
		return "half of the nodes or more are silent: it may be this part of the cluster that is cut off"
	}
	left := 0
	for _, o := range m.Nodes {
		if o.Dead && holds(m, o.ID) {
			return fmt.Sprintf("node %s is, and one is enough at a time: abacus node drain %s has both replaced", o.ID, id)
		}
		if o.ID != id && !o.leaves() && seen(o.ID).Alive {
			left++
		}
	}
	if left < m.ReplicasWanted {
		return fmt.Sprintf("%d other nodes are left, and a shard wants %d replicas: start another node with --join", left, m.ReplicasWanted)
	}
	return ""
}

func holds(m Map, id NodeID) bool {
	return slices.ContainsFunc(m.Shards, func(s Shard) bool { _, has := s.On(id); return has })
}

// CanSpare says whether a shard has a majority of living replicas without those on nodes that are taken for dead. One that has not takes no change for their
// sake: a replica more would not help it to a majority, and make that larger.
func CanSpare(m Map, s Shard, alive Candidate) bool {
	living, dead := 0, 0
	for _, r := range s.Replicas {
		if n, _ := m.Node(r.Node); n.Dead {
			dead++
		} else if alive(r.Node) {
			living++
		}
	}
	return dead == 0 || living >= Majority(len(s.Replicas))
}

// leaves says whether a node loses the replicas that it has.
func (n Node) leaves() bool { return n.Draining || n.Dead }

// Takes says whether a node may get replicas, as far as the map knows.
func (n Node) Takes() bool { return !n.Cordoned && !n.leaves() }
