package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
)

// A replica moves in steps that different nodes take, each of which may be taken again:
//
//	the leader of shard 0     begins it in the map (runMoves), with a new replica beside the old one
//	the new replica's node    opens it, empty (runReconcile)
//	the shard's leader        adds it as a learner, gives it its vote (stepMembers), hands the office on if the old one
//	                          has it, and takes the old one out of the map (stepMove) and then out of the group (stepMembers)
//	the old replica's node    closes and deletes it, once the shard's leader says that it is out (dropReplicas)
//
// The map says what is wanted, the group's own log who has a vote: nobody who acts on an old map, or wakes up late, can take away what a majority needs.

// planEvery is how often the leader of shard 0 looks for what is to be moved.
const planEvery = time.Second

// runMoves begins moves while this node leads shard 0, for as long as the map wants any, and takes silent nodes for dead where it says so.
func (n *Node) runMoves(ctx context.Context) {
	tick := time.NewTicker(planEvery)
	defer tick.Stop()
	w := newWatch(n)
	recorded := sharding.Era(n.Router().Map().Epoch) == 0 // that is, our map in shard 0: a recovery leaves it to us
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !recorded {
			_, err := n.changeMap(ctx, func(m sharding.Map) (sharding.Map, bool, error) { return m, false, nil })
			recorded = err == nil
		}
		// On our own map first, which is not asked for over the network.
		was := n.Router().Map()
		if _, changed := n.nextMoves(was, w); !changed {
			continue
		}
		now, err := n.changeMap(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
			next, changed := n.nextMoves(m, w)
			return next, changed, nil
		})
		if err == nil {
			w.log(n.log, was, now)
		}
		if err != nil && ctx.Err() == nil {
			n.log.Warn("begin moves", "err", err)
		}
	}
}

func (n *Node) nextMoves(m sharding.Map, w *watch) (next sharding.Map, changed bool) {
	w.look(m)
	if next, changed := sharding.NextDead(m, w.seen); changed {
		return next, true
	}
	return sharding.NextMoves(m, n.mayTake, func(sh sharding.Shard) bool {
		return n.settled(m, sh) && sharding.CanSpare(m, sh, func(id sharding.NodeID) bool { return w.seen(id).Alive })
	})
}

// mayTake says whether a node may get replicas as far as we know it: it answers, and its disk has room.
func (n *Node) mayTake(id sharding.NodeID) bool {
	if id == n.cfg.ID {
		return !n.stopping.Load() && !n.space.low()
	}
	said, alive := n.peers.get(id)
	return alive && !said.Stopping && !said.DiskLow
}

// settled says whether a shard's group is what the map wants: all its replicas vote, and nobody else is in it. One on a node that is taken for dead may have
// died before it had its vote, and will not get it.
func (n *Node) settled(m sharding.Map, sh sharding.Shard) bool {
	leader, members := n.membersOf(sh.ID)
	if leader == "" || slices.ContainsFunc(members, func(o store.Member) bool {
		return !slices.ContainsFunc(sh.Replicas, func(r sharding.Replica) bool { return r.ID == o.Replica })
	}) {
		return false
	}
	for _, r := range sh.Replicas {
		if nd, _ := m.Node(r.Node); !nd.Dead && !slices.ContainsFunc(members, func(m store.Member) bool { return m.Replica == r.ID && m.Voter }) {
			return false
		}
	}
	return true
}

// stepMove takes the next step of a move of a shard that this node leads, if it is ours to take.
func (n *Node) stepMove(ctx context.Context, st *store.Store) (changed bool, err error) {
	sh, ok := n.Router().Map().Shard(st.Shard())
	if !ok || sh.Move == nil {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	mv, s := *sh.Move, st.Status()
	switch step := sharding.Next(mv, observed(s.Replica, s.Members)); step.Kind {
	case sharding.StepHandOver:
		n.log.Info("handing leadership over to move a replica", "shard", sh.ID, "from", mv.From, "to", step.To)
		return true, st.TransferLeadership(ctx, step.To)
	case sharding.StepFinish:
		_, err := n.changeMap(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
			if now, _ := m.Shard(sh.ID); now.Move != nil && now.Move.Paused {
				return m, false, nil // since we looked
			}
			return unlessOver(m)(sharding.FinishMove(m, sh.ID, mv))
		})
		if err == nil {
			n.log.Info("replica moved", "shard", sh.ID, "from", mv.From, "to", mv.To)
		}
		return true, err
	}
	return false, nil
}

// observed is a leader's view of its group as moves are decided on.
func observed(leader sharding.ReplicaID, members []store.Member) sharding.Observed {
	o := sharding.Observed{Leader: leader}
	for _, m := range members {
		o.Members = append(o.Members, sharding.ObservedMember{Replica: m.Replica, Voter: m.Voter, CaughtUp: m.CaughtUp})
	}
	return o
}

// unlessOver turns the end of a move, of a replica or of slots, into a decision: one that is over is no error, for it may have been ours to end.
func unlessOver(m sharding.Map) func(sharding.Map, error) (sharding.Map, bool, error) {
	return func(next sharding.Map, err error) (sharding.Map, bool, error) {
		switch {
		case errors.Is(err, sharding.ErrNoMove), errors.Is(err, sharding.ErrNoSlotMove):
			return m, false, nil
		case err != nil:
			return m, false, err
		}
		return next, true, nil
	}
}
