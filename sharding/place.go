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
	n.fit(m)
	next.Nodes = append(next.Nodes, n)
	slices.SortFunc(next.Nodes, func(a, b Node) int { return strings.Compare(a.ID, b.ID) })
	all := func(NodeID) bool { return true }
	grow(&next, all, func(Shard) bool { return true })
	if err := ValidateTransition(m, next); err != nil {
		return Map{}, fmt.Errorf("plan join of %s: %w", n.ID, err)
	}
	return next, nil
}

// PlanGrow gives each shard that has fewer replicas than wanted one more, if a
// node without one is there that may have it; false if there is nothing to do. A shard that lacks
// several takes several steps, each its own epoch, so that a majority of the
// replicas always holds the log. ready says that a shard's last change is carried out.
func PlanGrow(m Map, may Candidate, ready func(Shard) bool) (Map, bool) {
	next := m.Clone()
	next.Epoch++
	if !grow(&next, may, ready) {
		return m, false
	}
	return next, true
}

// grow adds at most one replica to each shard of m, where best has it.
func grow(m *Map, may Candidate, ready func(Shard) bool) bool {
	grown := false
	p := newPlacement(*m, may)
	for i := range m.Shards {
		s := &m.Shards[i]
		if len(s.Replicas) >= m.ReplicasWanted || s.Move != nil || s.Founding != "" || !ready(*s) {
			continue
		}
		to := p.best(i, "")
		if to == "" {
			continue
		}
		s.Replicas = append(s.Replicas, Replica{ID: replicaID(to, m.Epoch), Node: to})
		p.add(i, to)
		grown = true
	}
	return grown
}

// UpdateNode puts a node's new addresses into the map, with a new epoch; false
// if the node is unknown, is another that goes by the same id, or nothing changed.
func UpdateNode(m Map, n Node) (Map, bool) {
	was, ok := m.Node(n.ID)
	n.fit(m)
	n.keepMarks(was) // not for the node to say
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
