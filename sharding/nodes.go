package sharding

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What an administrator does to nodes. Each of these is a wish in the map; moves carry it out. Asking for what is there already changes nothing, and is no error.

// CordonNode has a node get no more replicas. What it has stays.
func CordonNode(m Map, id NodeID) (next Map, changed bool, err error) {
	return changeNode(m, id, func(n *Node) { n.Cordoned = true })
}

// UncordonNode lets a node have replicas again, and ends its draining. Moves that were begun go on. It refuses, as a *NodeError, if all that is to be taken back is what
// the cluster itself says of the node: it would say so again.
func UncordonNode(m Map, id NodeID) (next Map, changed bool, err error) {
	if n, _ := m.Node(id); n.Dead && !n.Cordoned && !n.Draining {
		return m, false, &NodeError{Verb: "uncordon", Node: id, Faults: []string{"it is taken for dead until it is heard again: start it, or have no node taken for dead with abacus node dead-after off"}}
	}
	return changeNode(m, id, func(n *Node) { n.Cordoned, n.Draining, n.Successor = false, false, "" })
}

// DrainNode has all replicas of a node move to others, or to one that is named. It refuses, as a *NodeError, if a shard's replica could go
// nowhere: a node holds one replica of a shard at most, so a cluster of as many nodes as a shard has replicas cannot spare one.
func DrainNode(m Map, id, successor NodeID, may Candidate) (next Map, changed bool, err error) {
	if successor == id {
		return m, false, &NodeError{Verb: "drain", Node: id, Faults: []string{"it cannot take its own place"}}
	}
	if successor != "" {
		to, ok := m.Node(successor)
		switch {
		case !ok:
			return m, false, &NodeError{Verb: "drain", Node: id, Faults: []string{fmt.Sprintf("there is no node %q: one that was just started is a member in some seconds", successor)}}
		case to.Cordoned || to.Draining:
			return m, false, &NodeError{Verb: "drain", Node: id, Faults: []string{fmt.Sprintf("node %s is cordoned, and takes nothing: uncordon it first", successor)}}
		case to.Dead || !may(successor):
			return m, false, &NodeError{Verb: "drain", Node: id, Faults: []string{fmt.Sprintf("node %s does not answer, or its disk is nearly full", successor)}}
		}
	}
	if next, changed, err = changeNode(m, id, func(n *Node) { n.Draining, n.Successor = true, successor }); err != nil {
		return m, false, err
	}
	// As it will be when all that drains has gone as far as it can: others may want the same places.
	p := newPlacement(next, may)
	for n := -1; n < len(p.wishes); {
		n = len(p.wishes)
		clear(p.fixed)
		p.drain()
	}
	var stuck []ShardID
	for i, s := range next.Shards {
		if slices.Contains(p.on[i], id) {
			stuck = append(stuck, s.ID)
		}
	}
	if len(stuck) == 0 {
		return next, changed, nil
	}
	why := fmt.Sprintf("the %d of %d nodes that may take replicas have one already; start another node with --join, or uncordon one", len(p.takes), len(p.m.Nodes))
	if successor != "" {
		why = fmt.Sprintf("node %s has one already", successor)
	}
	return m, false, &NodeError{Verb: "drain", Node: id, Faults: []string{fmt.Sprintf("its replica of %s can go nowhere: %s", nameShards(stuck), why)}}
}

// nameShards is "shard 3", or "shards 1, 2, 5".
func nameShards(ids []ShardID) string {
	word, list := "shard ", make([]string, len(ids))
	if len(ids) > 1 {
		word = "shards "
	}
	for i, id := range ids {
		list[i] = strconv.FormatUint(uint64(id), 10)
	}
	if more := len(list) - maxFaults; more > 0 {
		list = append(list[:maxFaults:maxFaults], fmt.Sprintf("and %d more", more))
	}
	return word + strings.Join(list, ", ")
}

// RemoveNode takes a node out of the cluster. It refuses, as a *NodeError, while a shard has a replica there.
func RemoveNode(m Map, id NodeID) (next Map, changed bool, err error) {
	if _, ok := m.Node(id); !ok {
		return m, false, unknownNode("remove", id, id)
	}
	var held []ShardID
	for _, s := range m.Shards {
		if _, has := s.On(id); has {
			held = append(held, s.ID)
		}
	}
	for _, n := range m.Nodes {
		if n.Successor == id {
			return m, false, &NodeError{Verb: "remove", Node: id, Faults: []string{fmt.Sprintf("node %s drains to it: uncordon that first", n.ID)}}
		}
	}
	if founding := m.foundedOn(id); len(founding) > 0 {
		return m, false, &NodeError{Verb: "remove", Node: id, Faults: []string{fmt.Sprintf("it is founding %s: wait for that, then drain it; if it is lost, start a node with its id and an empty --data-dir first", nameShards(founding))}}
	}
	if len(held) > 0 {
		return m, false, &NodeError{Verb: "remove", Node: id, Faults: []string{fmt.Sprintf("it has a replica of %s: drain it first", nameShards(held))}}
	}
	next = m.Clone()
	next.Epoch++
	next.Nodes = slices.DeleteFunc(next.Nodes, func(n Node) bool { return n.ID == id })
	return next, true, ValidateTransition(m, next)
}

// foundedOn lists the shards that are still to be founded by a node.
func (m Map) foundedOn(id NodeID) (list []ShardID) {
	for _, s := range m.Shards {
		if _, has := s.On(id); has && s.Founding != "" {
			list = append(list, s.ID)
		}
	}
	return list
}

// Balance is when replicas are moved for the sake of evenness alone, one of the below.
type Balance string

const (
	// BalanceNever: only when somebody says so.
	BalanceNever Balance = ""
	// BalanceOnce: now, until nothing is left to move.
	BalanceOnce Balance = "once"
	// BalanceAlways: whenever a node has joined, or anything else has made it uneven.
	BalanceAlways Balance = "always"
)

// SetBalance says when replicas are moved for evenness.
func SetBalance(m Map, b Balance) (next Map, changed bool, err error) {
	if m.Balance == b {
		return m, false, nil
	}
	next = m.Clone()
	next.Epoch++
	next.Balance = b
	return next, true, ValidateTransition(m, next)
}

func changeNode(m Map, id NodeID, change func(*Node)) (Map, bool, error) {
	next := m.Clone()
	i := slices.IndexFunc(next.Nodes, func(n Node) bool { return n.ID == id })
	if i < 0 {
		return m, false, unknownNode("change", id, id)
	}
	was := next.Nodes[i]
	change(&next.Nodes[i])
	if next.Nodes[i] == was {
		return m, false, nil
	}
	next.Epoch++
	return next, true, ValidateTransition(m, next)
}

func unknownNode(verb string, id, unknown NodeID) error {
	return &NodeError{Verb: verb, Node: id, Faults: []string{fmt.Sprintf("there is no node %q", unknown)}}
}
