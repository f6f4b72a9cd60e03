package sharding

import (
	"fmt"
	"slices"
	"strings"
)

// PlanJoin adds a node to the map and gives each shard that has fewer replicas
// than wanted one more. A node that comes after every shard has its replicas
// gets none: it forwards. The epoch rises by one.
func PlanJoin(m Map, n Node) (Map, error) {
	if err := CheckNodeID(n.ID); err != nil {
		return Map{}, fmt.Errorf("plan join: %w", err)
	}
	if _, ok := m.Node(n.ID); ok {
		return Map{}, fmt.Errorf("plan join of %s: %w", n.ID, ErrKnownNode)
	}
	next := m.Clone()
	next.Epoch++
	next.Nodes = append(next.Nodes, n)
	slices.SortFunc(next.Nodes, func(a, b Node) int { return strings.Compare(a.ID, b.ID) })
	grow(&next)
	if err := ValidateTransition(m, next); err != nil {
		return Map{}, fmt.Errorf("plan join of %s: %w", n.ID, err)
	}
	return next, nil
}

// PlanGrow gives each shard that has fewer replicas than wanted one more, if a
// node without one is there; false if there is nothing to do. A shard that lacks
// several takes several steps, each its own epoch, so that a majority of the
// replicas always holds the log.
func PlanGrow(m Map) (Map, bool) {
	next := m.Clone()
	next.Epoch++
	if !grow(&next) {
		return m, false
	}
	return next, true
}

// grow adds at most one replica to each shard of m, on the node with the fewest.
func grow(m *Map) bool {
	load := make(map[NodeID]int, len(m.Nodes))
	for _, s := range m.Shards {
		for _, r := range s.Replicas {
			load[r.Node]++
		}
	}
	grown := false
	for i := range m.Shards {
		s := &m.Shards[i]
		if len(s.Replicas) >= m.ReplicasWanted {
			continue
		}
		best := NodeID("")
		for _, n := range m.Nodes { // by id, so that a tie has one outcome
			if n.Cordoned || n.Draining {
				continue
			}
			if _, has := s.On(n.ID); !has && (best == "" || load[n.ID] < load[best]) {
				best = n.ID
			}
		}
		if best == "" {
			continue
		}
		s.Replicas = append(s.Replicas, Replica{ID: replicaID(best, m.Epoch), Node: best})
		load[best]++
		grown = true
	}
	return grown
}

// UpdateNode puts a node's new addresses into the map, with a new epoch; false
// if the node is unknown, is another that goes by the same id, or nothing changed.
func UpdateNode(m Map, n Node) (Map, bool) {
	was, ok := m.Node(n.ID)
	n.Cordoned, n.Draining = was.Cordoned, was.Draining // not for the node to say
	if !ok || was == n || was.Instance != n.Instance {
		return m, false
	}
	next := m.Clone()
	next.Epoch++
	for i := range next.Nodes {
		if next.Nodes[i].ID == n.ID {
			next.Nodes[i] = n
		}
	}
	return next, true
}
