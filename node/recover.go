package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Recovery from the loss of a majority, as the node leads it that is told to. Nothing of it is kept here: every step is made so that it can be repeated, by another node too, until
// the map of the new era is there. See docs/decisions/0023-recovery.md.
//
//	look    at all nodes but the lost, which must be silent: which shards have no majority, and who has most of each (sharding.PlanRecovery)
//	fence   on all of them; from here on there is no way back
//	plan    once more, for only now does nothing change any more
//	take    on the node that has most of each shard
//	map     of the new era: nodes open what it gives them, and those that were lost learn from it that they are out
//
// The map is decided on by shard 0 if that has its majority; else it is what this node says, and shard 0's next leader writes it down (changeMap).

// recoveryShown is what an administrator sees before he confirms.
type recoveryShown struct {
	ClusterID string `json:"cluster_id"`
	// Phrase is what carries it out.
	Phrase string `json:"phrase"`
	sharding.Recovery
	// Total is how many shards there are, Wanted how many replicas each should have.
	Total  int `json:"shards_in_all"`
	Wanted int `json:"replicas_wanted"`
	// Left are the nodes that stay.
	Left []sharding.NodeID `json:"nodes_left"`
}

// recoveryDone is what was done. The shards are served as soon as their new replicas have elected themselves.
type recoveryDone struct {
	Epoch  uint64             `json:"epoch"`
	Era    uint64             `json:"era"`
	Shards []sharding.ShardID `json:"shards"`
}

func (n *Node) showRecovery(ctx context.Context, args []string) (recoveryShown, error) {
	lost, empty, err := recoveryArgs(args)
	if err != nil {
		return recoveryShown{}, err
	}
	r, left, err := n.planRecovery(ctx, lost, empty, transport.CodeRefused)
	if err != nil {
		return recoveryShown{}, err
	}
	m := n.Router().Map()
	return recoveryShown{ClusterID: m.ClusterID, Phrase: r.Phrase(), Recovery: r, Total: len(m.Shards), Wanted: m.ReplicasWanted, Left: left}, nil
}

// recoveryArgs reads LOST,LOST and "empty".
func recoveryArgs(args []string) (lost []sharding.NodeID, empty bool, err error) {
	if len(args) > 0 && args[0] != "none" {
		lost = strings.Split(args[0], ",")
	}
	if len(args) > 1 {
		if args[1] != "empty" {
			return nil, false, transport.Errorf(transport.CodeBadRequest, "%q: want empty, to let shards begin anew of which nothing is left, or nothing", args[1])
		}
		empty = true
	}
	return lost, empty, nil
}

// planRecovery looks at all nodes but the lost. CodeRefused: it must not be done. CodeConflict: not now. If one of them is not there, it is absent: who only looks is to be
// told at once, and does not know yet whom to name; a recovery that has begun goes on when the node is back.
func (n *Node) planRecovery(ctx context.Context, lost []sharding.NodeID, empty bool, absent transport.Code) (r sharding.Recovery, left []sharding.NodeID, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if slices.Contains(lost, n.cfg.ID) {
		return r, nil, transport.Errorf(transport.CodeRefused, "node %s answers, for it was asked: it is not lost", n.cfg.ID)
	}
	for range 3 { // a newer map may know other nodes
		m := n.Router().Map()
		left = nil
		for _, nd := range m.Nodes {
			if !slices.Contains(lost, nd.ID) {
				left = append(left, nd.ID)
			} else if err := n.mustBeSilent(ctx, nd); err != nil {
				return r, nil, err
			}
		}
		answers, err := n.each(ctx, left, absent, func(ctx context.Context, id sharding.NodeID) (recoverAnswer, error) {
			return n.callRecover(ctx, id, recoverRequest{Step: stepLook})
		})
		if err != nil {
			return r, nil, err
		}
		var all []sharding.Survivor
		for _, a := range answers {
			for _, id := range a.Hears {
				if slices.Contains(lost, id) {
					return r, nil, transport.Errorf(transport.CodeConflict, "node %s has heard of node %s a moment ago: if that is lost, say it again in some seconds", a.Node, id)
				}
			}
			theirs, err := sharding.DecodeMap(a.Map)
			if err != nil {
				return r, nil, transport.Errorf(transport.CodeRefused, "the shard map of node %s: %v", a.Node, err)
			}
			n.offerMap(theirs)
			all = append(all, a.Survivors...)
		}
		if n.Router().Map().Epoch != m.Epoch {
			continue
		}
		r, err = sharding.PlanRecovery(m, lost, all, empty)
		if err != nil {
			return r, nil, transport.Errorf(transport.CodeRefused, "%v", err)
		}
		return r, left, nil
	}
	return r, nil, transport.Errorf(transport.CodeConflict, "the shard map changes: say it again")
}

// mustBeSilent refuses a node that answers.
func (n *Node) mustBeSilent(ctx context.Context, nd sharding.Node) error {
	if addr, err := n.resolve(nd.ID); err == nil {
		nd.Addrs.Peer = addr
	}
	if n.bootOf(ctx, nd) != "" {
		return transport.Errorf(transport.CodeRefused, "node %s answers at %s: it is not lost; stop its process, and keep it from starting again, if it is to be given up", nd.ID, nd.Addrs.Peer)
	}
	return nil
}

// recover carries out what was shown under the phrase.
func (n *Node) recover(ctx context.Context, phrase string, args []string) (recoveryDone, error) {
	lost, empty, err := recoveryArgs(args)
	if err != nil {
		return recoveryDone{}, err
	}
	r, left, err := n.planRecovery(ctx, lost, empty, transport.CodeConflict)
	if err != nil {
		return recoveryDone{}, err
	}
	if phrase != r.Phrase() {
		return recoveryDone{}, transport.Errorf(transport.CodeRefused, "the phrase %q is not that of this recovery: look again at what it would do, and confirm that", phrase)
	}
	n.log.Warn("recovery from the loss of a majority", "lost", lost, "shards", len(r.Shards), "era", r.Era)
	run := randomID()
	shards := make([]sharding.ShardID, 0, len(r.Shards))
	for _, l := range r.Shards {
		shards = append(shards, l.Shard)
	}
	_, err = n.each(ctx, left, transport.CodeConflict, func(ctx context.Context, id sharding.NodeID) (recoverAnswer, error) {
		return n.callRecover(ctx, id, recoverRequest{Step: stepFence, Run: run, Era: r.Era, Shards: shards})
	})
	if err != nil {
		return recoveryDone{}, err
	}
	// What they had when we looked first may have grown since.
	settled, left, err := n.planRecovery(ctx, lost, empty, transport.CodeConflict)
	if err != nil {
		return recoveryDone{}, err
	}
	if settled.Phrase() != phrase {
		return recoveryDone{}, transport.Errorf(transport.CodeRefused, "something has changed meanwhile: look again at what it would do, and confirm that")
	}
	_, err = n.each(ctx, left, transport.CodeConflict, func(ctx context.Context, id sharding.NodeID) (answer recoverAnswer, err error) {
		for _, l := range settled.Shards {
			if l.To.Node != id {
				continue
			}
			if answer, err = n.callRecover(ctx, id, recoverRequest{Step: stepTake, Run: run, Era: r.Era, Take: &l}); err != nil {
				return answer, err
			}
		}
		return answer, nil
	})
	if err != nil {
		return recoveryDone{}, err
	}
	m, err := n.enterEra(ctx, settled, run, slices.Contains(shards, metaShard))
	if err != nil {
		return recoveryDone{}, err
	}
	return recoveryDone{Epoch: m.Epoch, Era: r.Era, Shards: shards}, nil
}

// enterEra makes the map of the new era known.
func (n *Node) enterEra(ctx context.Context, r sharding.Recovery, run string, metaIsLost bool) (sharding.Map, error) {
	if metaIsLost {
		next, err := r.Next(n.Router().Map())
		if err != nil {
			return next, transport.Errorf(transport.CodeRefused, "%v", err)
		}
		n.recovery.steps.Lock()
		defer n.recovery.steps.Unlock()
		if n.recovery.run != run { // whoever fences us later has fenced the others too, or will find the era begun
			return next, transport.Errorf(transport.CodeConflict, "another recovery has begun: look again")
		}
		n.offerMap(next)
		return next, nil
	}
	var made sharding.Map
	return n.changeMap(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
		if made.Epoch != 0 && slices.Equal(m.Encode(), made.Encode()) {
			return m, false, nil
		}
		if sharding.Era(m.Epoch) >= r.Era {
			return m, false, transport.Errorf(transport.CodeConflict, "the cluster was recovered meanwhile: look again")
		}
		next, err := r.Next(m)
		if err != nil {
			return m, false, errors.Join(fmt.Errorf("era %d", r.Era), err)
		}
		made = next
		return next, true, nil
	})
}
