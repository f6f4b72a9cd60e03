package node

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// watch is what the leader of shard 0 knows of who is silent, by its own clock, from when it began to lead on. runMoves owns it.
type watch struct {
	heardOf func(sharding.Map) map[sharding.NodeID]bool
	silence func(sharding.NodeID, time.Time) time.Duration
	// since is when it began, or began anew: after a time in which it stood still, or in which nobody wanted to know. looked is when it looked last.
	since, looked time.Time
	// heard is who was heard when it looked last, and last when each was.
	heard map[sharding.NodeID]bool
	last  map[sharding.NodeID]time.Time
}

func newWatch(n *Node) *watch {
	return &watch{heardOf: n.heardOf, silence: n.peers.silence, since: time.Now(), last: map[sharding.NodeID]time.Time{}}
}

// look notes who is heard now.
func (w *watch) look(m sharding.Map) {
	now := time.Now()
	if m.DeadAfter() == 0 || !w.looked.IsZero() && now.Sub(w.looked) > announceTimeout+2*planEvery {
		w.since = now
	}
	w.looked = now
	if m.DeadAfter() == 0 {
		return
	}
	w.heard = w.heardOf(m)
	for id := range w.heard {
		w.last[id] = now
	}
}

// seen is a node as it was when we looked.
func (w *watch) seen(id sharding.NodeID) sharding.Seen {
	from := w.since
	if last := w.last[id]; last.After(from) {
		from = last
	}
	return sharding.Seen{Alive: w.heard[id], Silent: min(w.looked.Sub(from), w.silence(id, w.looked))}
}

// log says what has changed in who is taken for dead.
func (w *watch) log(log *slog.Logger, was, now sharding.Map) {
	for _, nd := range now.Nodes {
		switch old, _ := was.Node(nd.ID); {
		case nd.Dead && !old.Dead:
			log.Warn("node is taken for dead: its replicas are made anew elsewhere", "node", nd.ID, "silent", w.seen(nd.ID).Silent.Round(time.Second))
		case !nd.Dead && old.Dead:
			log.Info("node is no longer taken for dead", "node", nd.ID, "alive", w.seen(nd.ID).Alive)
		}
	}
}

// heardOf is who is heard, by us or by one that is: it may be only our link to it that is broken. Who leads a shard has answers of those that are in it, and
// who follows hears whom it follows.
func (n *Node) heardOf(m sharding.Map) map[sharding.NodeID]bool {
	said := []peerStatus{n.status()}
	for _, nd := range m.Nodes {
		if s, alive := n.peers.get(nd.ID); alive {
			said = append(said, s)
		}
	}
	heard := map[sharding.NodeID]bool{}
	for _, s := range said {
		heard[s.Node] = true
		for _, r := range s.Replicas {
			if r.Leader != "" {
				heard[r.Leader] = true
			}
			for _, o := range r.Members {
				if r.Leads && o.CaughtUp {
					heard[o.Node] = true
				}
			}
		}
	}
	return heard
}

// deadNotes say which nodes have been silent for long enough, as far as this node knows, and why they are not taken for dead.
func (n *Node) deadNotes(m sharding.Map) (notes []string) {
	if m.DeadAfter() == 0 {
		return nil
	}
	heard, now := n.heardOf(m), time.Now()
	seen := func(id sharding.NodeID) sharding.Seen {
		return sharding.Seen{Alive: heard[id], Silent: n.peers.silence(id, now)}
	}
	for _, nd := range m.Nodes {
		if why := sharding.WhyNotDead(m, nd.ID, seen); why != "" {
			notes = append(notes, fmt.Sprintf("node %s has been silent for longer than %v, and is not taken for dead: %s", nd.ID, m.DeadAfter(), why))
		}
	}
	return notes
}

// setDeadAfter is "node dead-after 10m", or off.
func setDeadAfter(n *Node, ctx context.Context, a []string) (any, error) {
	after := time.Duration(0)
	if a[0] != "off" {
		var err error
		if after, err = time.ParseDuration(a[0]); err != nil || after == 0 {
			return nil, transport.Errorf(transport.CodeBadRequest, "dead-after %q: want a time such as 10m, from %v to %v, or off", a[0], sharding.MinDeadAfter, sharding.MaxDeadAfter)
		}
	}
	return n.change(ctx, func(m sharding.Map) (sharding.Map, bool, error) { return sharding.SetDeadAfter(m, after) })
}
