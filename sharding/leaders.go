package sharding

import "slices"

// PreferredLeaders says who should lead each shard: one of its replicas' nodes,
// such that leaders are spread as evenly as the placement of replicas allows
// (within one of each other when every node has a replica of every shard).
// Every node computes the same answer from the same map. A replica that is being moved away does not
// lead, nor do nodes that drain or are taken for dead, unless nobody else could.
func PreferredLeaders(m Map) map[ShardID]NodeID {
	leader := make(map[ShardID]NodeID, len(m.Shards))
	leads := make(map[NodeID]int, len(m.Nodes))
	fit := fitLeaders(m)
	for _, s := range m.Shards {
		best := NodeID("")
		for _, n := range fit[s.ID] {
			if best == "" || leads[n] < leads[best] {
				best = n
			}
		}
		if best != "" {
			leader[s.ID] = best
			leads[best]++
		}
	}
	// The greedy choice can leave a node with two or more leaders above another
	// that could take one, perhaps through a third. Move along such paths until
	// there is none: the spread is then the best there is. Each move lowers the
	// sum of squares, so it ends.
	for {
		path := relief(m, fit, leader, leads)
		if path == nil {
			return leader
		}
		for _, step := range path {
			leads[leader[step.shard]]--
			leader[step.shard] = step.to
			leads[step.to]++
		}
	}
}

// fitLeaders returns for each shard the nodes that may lead it, in order of id.
func fitLeaders(m Map) map[ShardID][]NodeID {
	leaves := make(map[NodeID]bool)
	for _, n := range m.Nodes {
		leaves[n.ID] = n.leaves()
	}
	fit := make(map[ShardID][]NodeID, len(m.Shards))
	for _, s := range m.Shards {
		var nodes []NodeID
		for _, r := range s.Replicas {
			if !leaves[r.Node] && (s.Move == nil || s.Move.From != r.ID) {
				nodes = append(nodes, r.Node)
			}
		}
		slices.Sort(nodes)
		if len(nodes) == 0 {
			nodes = replicaNodes(s)
		}
		fit[s.ID] = nodes
	}
	return fit
}

type handover struct {
	shard ShardID
	to    NodeID
}

// relief finds handovers that take one leader from a node and give one to a node
// that has at least two fewer, all between unchanged. It searches breadth first
// from the nodes with most leaders.
func relief(m Map, fit map[ShardID][]NodeID, leader map[ShardID]NodeID, leads map[NodeID]int) []handover {
	nodes := make([]NodeID, 0, len(m.Nodes))
	for _, n := range m.Nodes {
		nodes = append(nodes, n.ID)
	}
	slices.SortStableFunc(nodes, func(a, b NodeID) int { return leads[b] - leads[a] })

	led := make(map[NodeID][]Shard, len(nodes))
	for _, s := range m.Shards {
		led[leader[s.ID]] = append(led[leader[s.ID]], s)
	}
	type arrival struct {
		from  NodeID
		shard ShardID
	}
	for _, start := range nodes {
		seen := map[NodeID]arrival{start: {}}
		for queue := []NodeID{start}; len(queue) > 0; queue = queue[1:] {
			at := queue[0]
			if leads[at]+2 <= leads[start] {
				var path []handover
				for n := at; n != start; n = seen[n].from {
					path = append(path, handover{shard: seen[n].shard, to: n})
				}
				return path
			}
			for _, s := range led[at] {
				for _, n := range fit[s.ID] {
					if _, ok := seen[n]; !ok {
						seen[n] = arrival{from: at, shard: s.ID}
						queue = append(queue, n)
					}
				}
			}
		}
	}
	return nil
}

// BalanceLeader decides whether the leader of a shard should hand it over, and
// to which replica. ready says whether the replica on a node is alive, a voter
// and caught up; a handover to any other would be an outage. A leader that the
// map no longer places hands over to any ready replica, the preferred one first.
func BalanceLeader(s Shard, leader, preferred NodeID, ready func(NodeID) bool) (Replica, bool) {
	if leader == "" || leader == preferred {
		return Replica{}, false
	}
	if r, ok := s.On(preferred); ok && ready(preferred) {
		return r, true
	}
	if _, ok := s.On(leader); ok {
		return Replica{}, false
	}
	for _, n := range replicaNodes(s) {
		if ready(n) {
			return s.On(n)
		}
	}
	return Replica{}, false
}

// replicaNodes returns the nodes of a shard's replicas in order of id.
func replicaNodes(s Shard) []NodeID {
	nodes := make([]NodeID, 0, len(s.Replicas))
	for _, r := range s.Replicas {
		nodes = append(nodes, r.Node)
	}
	slices.Sort(nodes)
	return nodes
}
