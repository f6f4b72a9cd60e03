package sharding

import (
	"cmp"
	"slices"
)

// Wish is a move that is not begun.
type Wish struct {
	Shard ShardID
	From  ReplicaID
	To    NodeID
	// Why, for people.
	Why string
}

// Candidate says whether a node may get replicas now: it is alive, and its disk has room. The map's own marks come on top.
type Candidate func(NodeID) bool

// PlanMoves lists the moves that lead from a map to one with nothing on nodes that drain or are taken for dead, each shard spread over as many zones as it can be, and as many
// replicas on each node as on any other, or one more; in this order, and in an order in which they can be carried out one after the other. Moves under way count
// as over. A shard is in it once: what is left to do then is in the plan of the map that comes of it. Every node comes to the same plan.
func PlanMoves(m Map, may Candidate) []Wish {
	p := newPlacement(m, may)
	p.drain()
	p.spread()
	p.level()
	return p.wishes
}

// PlanAll lists also the moves of the plans that come after that one, until nothing is left to do: what a person is shown. Nobody carries it out as it stands, for
// after each move the next are planned anew: of shards that are alike, others may move then.
func PlanAll(m Map, may Candidate) (all []Wish) {
	for range len(m.Nodes) + m.ReplicasWanted { // three plans as a rule; a bound that is never reached
		plan := PlanMoves(m, may)
		if len(plan) == 0 {
			break
		}
		all = append(all, plan...)
		m = m.Clone()
		m.Epoch++
		for _, w := range plan {
			i := slices.IndexFunc(m.Shards, func(s Shard) bool { return s.ID == w.Shard })
			m.Shards[i].move(w.From, w.To, m.Epoch)
		}
		for i := range m.Shards {
			if s := &m.Shards[i]; s.Move != nil {
				s.Replicas = slices.Delete(s.Replicas, s.place(s.Move.From), s.place(s.Move.From)+1)
				s.Move = nil
			}
		}
	}
	return all
}

// PlanDrains lists only the first of these: what nodes that drain or are taken for dead have to lose.
func PlanDrains(m Map, may Candidate) []Wish {
	p := newPlacement(m, may)
	p.drain()
	return p.wishes
}

// MovesAtOnce is how many moves a node takes part in at once, that it gives and that it gets.
const MovesAtOnce = 2

// NextMoves takes the next step of what the map is to become: it gives shards that have too few replicas another, begins moves that are planned, as many as may
// be under way, and ends BalanceOnce when nothing is left to do for it. false: there is nothing to do now. ready says that a shard's last change is carried out, as
// far as is known; a shard that is not takes no other.
func NextMoves(m Map, may Candidate, ready func(Shard) bool) (next Map, changed bool) {
	next, grown := PlanGrow(m, may, ready)
	if !grown {
		next = m.Clone()
		next.Epoch++
	}
	took := takeBack(&next)
	plan := PlanDrains
	if m.Balance != BalanceNever {
		plan = PlanMoves
	}
	wishes := plan(next, may)
	begun := begin(&next, wishes, may, func(s Shard) bool {
		was, _ := m.Shard(s.ID)
		return len(was.Replicas) == len(s.Replicas) && ready(s)
	})
	done := m.Balance == BalanceOnce && !grown && len(wishes) == 0 && !slices.ContainsFunc(m.Shards, func(s Shard) bool { return s.Move != nil || s.Founding != "" }) &&
		len(PlanMoves(next, func(NodeID) bool { return true })) == 0 // not while a node is only silent that would be moved to
	if done {
		next.Balance = BalanceNever
	}
	if !grown && !begun && !done && !took {
		return m, false
	}
	return next, true
}

// takeBack ends moves to nodes that drain or are taken for dead by now: what comes there would have to go again.
func takeBack(next *Map) (took bool) {
	for i := range next.Shards {
		s := &next.Shards[i]
		if s.Move == nil || s.Move.Paused {
			continue
		}
		j := s.place(s.Move.To)
		if to, _ := next.Node(s.Replicas[j].Node); to.leaves() {
			s.Replicas = slices.Delete(s.Replicas, j, j+1)
			s.Move, took = nil, true
		}
	}
	return took
}

// begin begins moves in a map that is being made, in the order of the wishes. A move to a node that does not answer stands still, and
// takes no place of the one that gives.
func begin(next *Map, wishes []Wish, may Candidate, ready func(Shard) bool) (begun bool) {
	busy := map[NodeID]int{}
	for _, s := range next.Shards {
		if s.Move == nil {
			continue
		}
		from := s.place(s.Move.From)
		to := s.place(s.Move.To)
		busy[s.Replicas[to].Node]++
		if may(s.Replicas[to].Node) {
			busy[s.Replicas[from].Node]++
		}
	}
	for _, w := range wishes {
		i := slices.IndexFunc(next.Shards, func(s Shard) bool { return s.ID == w.Shard })
		s := &next.Shards[i]
		j := s.place(w.From)
		from := s.Replicas[j].Node
		if busy[from] >= MovesAtOnce || busy[w.To] >= MovesAtOnce || !ready(*s) {
			continue
		}
		busy[from]++
		busy[w.To]++
		s.move(w.From, w.To, next.Epoch)
		begun = true
	}
	return begun
}

// placement is a map as it will be, while it is planned.
type placement struct {
	m     Map
	on    [][]NodeID // by place of the shard in m: who has a replica, in order of id
	id    []map[NodeID]ReplicaID
	fixed []bool // the shard has a move under way or is still to be founded, and takes no other
	load  map[NodeID]int
	// heir is who gets what a draining node has.
	heir  map[NodeID]NodeID
	zone  map[NodeID]string
	takes []NodeID // nodes that may get replicas, in order of id

	wishes []Wish
}

func newPlacement(m Map, may Candidate) *placement {
	p := &placement{m: m, load: map[NodeID]int{}, heir: map[NodeID]NodeID{}, zone: map[NodeID]string{}}
	for _, n := range m.Nodes {
		p.zone[n.ID] = cmp.Or(n.Zone, "node "+n.ID)
		if n.Draining && n.Successor != "" {
			p.heir[n.ID] = n.Successor
		}
		if n.Takes() && may(n.ID) {
			p.takes = append(p.takes, n.ID)
		}
	}
	for _, s := range m.Shards {
		var on []NodeID
		id := map[NodeID]ReplicaID{}
		for _, r := range s.Replicas {
			if s.Move == nil || s.Move.From != r.ID {
				on = append(on, r.Node)
				id[r.Node] = r.ID
				p.load[r.Node]++
			}
		}
		slices.Sort(on)
		p.on, p.id, p.fixed = append(p.on, on), append(p.id, id), append(p.fixed, s.Move != nil || s.Founding != "")
	}
	return p
}

// move plans one.
func (p *placement) move(shard int, from, to NodeID, why string) {
	p.wishes = append(p.wishes, Wish{Shard: p.m.Shards[shard].ID, From: p.id[shard][from], To: to, Why: why})
	p.on[shard] = slices.DeleteFunc(p.on[shard], func(n NodeID) bool { return n == from })
	p.load[from]--
	p.add(shard, to)
	p.fixed[shard] = true
}

// add gives a shard a replica on a node.
func (p *placement) add(shard int, to NodeID) {
	p.on[shard] = append(p.on[shard], to)
	slices.Sort(p.on[shard])
	p.load[to]++
}

// crowd is how many replicas a shard has in a node's zone, without the one on a node that goes.
func (p *placement) crowd(shard int, node, gone NodeID) (n int) {
	for _, o := range p.on[shard] {
		if o != gone && p.zone[o] == p.zone[node] {
			n++
		}
	}
	return n
}

// best is the node that should get a shard's replica in the place of that on another: of the zones with fewest of its replicas, of the
// nodes there the one with fewest; "" if there is none. Where a node has a successor, that one or none.
func (p *placement) best(shard int, gone NodeID) (best NodeID) {
	for _, n := range p.takes {
		if heir := p.heir[gone]; slices.Contains(p.on[shard], n) || heir != "" && n != heir {
			continue
		}
		if best == "" || cmp.Or(cmp.Compare(p.crowd(shard, n, gone), p.crowd(shard, best, gone)), cmp.Compare(p.load[n], p.load[best])) < 0 {
			best = n
		}
	}
	return best
}

func (p *placement) drain() {
	for _, n := range p.m.Nodes {
		switch {
		case n.Draining:
			p.empty(n.ID, "drains")
		case n.Dead:
			p.empty(n.ID, "is taken for dead")
		}
	}
}

func (p *placement) empty(node NodeID, why string) {
	for i := range p.on {
		if !p.fixed[i] && slices.Contains(p.on[i], node) {
			if to := p.best(i, node); to != "" {
				p.move(i, node, to, "node "+node+" "+why)
			}
		}
	}
}

// spread takes replicas out of zones that hold two or more than another could.
func (p *placement) spread() {
	for i := range p.on {
		if p.fixed[i] {
			continue
		}
		from := slices.MaxFunc(p.on[i], func(a, b NodeID) int {
			return cmp.Or(cmp.Compare(p.crowd(i, a, ""), p.crowd(i, b, "")), cmp.Compare(p.load[a], p.load[b]))
		})
		if to := p.best(i, from); to != "" && p.crowd(i, to, from) < p.crowd(i, from, from) {
			p.move(i, from, to, "zone "+p.zone[from]+" has several replicas of the shard")
		}
	}
}

// level moves from the fullest nodes to the emptiest, as long as that makes them more alike and no shard's zones fewer.
func (p *placement) level() {
	for p.levelOne() {
	}
}

func (p *placement) levelOne() bool {
	nodes := make([]NodeID, 0, len(p.m.Nodes))
	for _, n := range p.m.Nodes {
		nodes = append(nodes, n.ID)
	}
	slices.SortStableFunc(nodes, func(a, b NodeID) int { return p.load[b] - p.load[a] })
	takes := slices.Clone(p.takes)
	slices.SortStableFunc(takes, func(a, b NodeID) int { return p.load[a] - p.load[b] })
	for _, from := range nodes {
		for _, to := range takes {
			if p.load[from]-p.load[to] < 2 {
				break
			}
			for i := range p.on {
				if !p.fixed[i] && slices.Contains(p.on[i], from) && !slices.Contains(p.on[i], to) && p.crowd(i, to, from) <= p.crowd(i, from, from) {
					p.move(i, from, to, "node "+from+" has more replicas than "+to)
					return true
				}
			}
		}
	}
	return false
}
