package sharding

import "fmt"

// PlanReplace puts a new replica in the place of one that has lost its log or its
// votes, on the same node: an id that may have voted must not vote again without
// knowing how. The epoch rises by one. One that is to found its group needs no others: there is nothing yet that it could have promised.
func PlanReplace(m Map, shard ShardID, lost ReplicaID) (Map, error) {
	next := m.Clone()
	next.Epoch++
	for i := range next.Shards {
		s := &next.Shards[i]
		for j, r := range s.Replicas {
			if s.ID == shard && r.ID == lost {
				s.rename(j, next.Epoch)
				if err := ValidateTransition(m, next); err != nil {
					return Map{}, fmt.Errorf("plan replacement of %s: %w", lost, err)
				}
				return next, nil
			}
		}
	}
	return Map{}, fmt.Errorf("plan replacement of %s: shard %d has no such replica", lost, shard)
}

// PlanReturn lets a node back in whose data are gone: with the name of its new
// directory, and a new replica in the place of each that it had. The epoch rises by one.
func PlanReturn(m Map, n Node) (Map, error) {
	next := m.Clone()
	next.Epoch++
	known := false
	for i := range next.Nodes {
		if next.Nodes[i].ID == n.ID {
			n.fit(m)
			n.keepMarks(next.Nodes[i])
			next.Nodes[i], known = n, true
		}
	}
	if !known {
		return Map{}, fmt.Errorf("plan return of %s: it is not in the shard map", n.ID)
	}
	for i := range next.Shards {
		for j, r := range next.Shards[i].Replicas {
			if r.Node == n.ID {
				next.Shards[i].rename(j, next.Epoch)
			}
		}
	}
	if err := ValidateTransition(m, next); err != nil {
		return Map{}, fmt.Errorf("plan return of %s: %w", n.ID, err)
	}
	return next, nil
}

// keepMarks takes over what an administrator or the cluster has said of a node: it is not for the node to say.
func (n *Node) keepMarks(was Node) {
	n.Cordoned, n.Draining, n.Successor, n.Dead = was.Cordoned, was.Draining, was.Successor, was.Dead
}

// rename gives a replica a new id on its node; a move of it goes on under that.
func (s *Shard) rename(j int, epoch uint64) {
	old, id := s.Replicas[j].ID, replicaID(s.Replicas[j].Node, epoch)
	s.Replicas[j].ID = id
	if s.Founding == old {
		s.Founding = id
	}
	if mv := s.Move; mv != nil && (mv.From == old || mv.To == old) {
		next := *mv
		if next.From == old {
			next.From = id
		} else {
			next.To = id
		}
		s.Move = &next
	}
}

// Newer says whether a replica was placed later than another on the same node.
func (r Replica) Newer(than Replica) bool {
	a, ok := placedAt(r)
	b, okb := placedAt(than)
	return ok && okb && r.Node == than.Node && a > b
}

// Majority is how many of n replicas decide.
func Majority(n int) int { return n/2 + 1 }
