package sharding

import (
	"fmt"
	"slices"
)

// Move takes a replica of a shard from one node to another. The map carries it as a wish: a replica on the new node is placed with it, and the old one
// leaves the map when it is over. Between the two the shard's leader copies, gives the new one its vote and, if it is on the old node itself, hands its office on
// (Next). Whatever of that was done, doing it again does no harm, so a crash of anybody costs nothing but time.
type Move struct {
	From ReplicaID `json:"from"`
	To   ReplicaID `json:"to"`
	// Paused: nothing new is begun for it.
	Paused bool `json:"paused,omitempty"`
}

// StartMove places a replica on another node, which is to take the place of from. A shard has one move at a time.
func StartMove(m Map, shard ShardID, from ReplicaID, to NodeID) (Map, error) {
	return changeShard(m, shard, fmt.Sprintf("move %s to node %s", from, to), func(next Map, s *Shard) error {
		if s.Move != nil {
			return fmt.Errorf("%s is being moved to %s: wait for that, or cancel it", s.Move.From, s.Move.To)
		}
		if s.Founding != "" {
			return fmt.Errorf("%s is founding it: wait for that", s.Founding)
		}
		if s.place(from) < 0 {
			return fmt.Errorf("it has no replica %s", from)
		}
		if _, ok := next.Node(to); !ok {
			return fmt.Errorf("there is no node %q", to)
		}
		if r, has := s.On(to); has {
			return fmt.Errorf("node %s has replica %s", to, r.ID)
		}
		s.move(from, to, next.Epoch)
		return nil
	})
}

// move begins a move that is known to be allowed.
func (s *Shard) move(from ReplicaID, to NodeID, epoch uint64) {
	r := Replica{ID: replicaID(to, epoch), Node: to}
	s.Replicas = append(s.Replicas, r)
	s.Move = &Move{From: from, To: r.ID}
}

// FinishMove takes the old replica out. Only the shard's leader can know that it is time (Next).
func FinishMove(m Map, shard ShardID, mv Move) (Map, error) {
	return endMove(m, shard, mv, mv.From, "finish")
}

// CancelMove takes the new replica out again.
func CancelMove(m Map, shard ShardID, mv Move) (Map, error) {
	return endMove(m, shard, mv, mv.To, "cancel")
}

func endMove(m Map, shard ShardID, mv Move, out ReplicaID, verb string) (Map, error) {
	return changeShard(m, shard, fmt.Sprintf("%s the move of %s to %s", verb, mv.From, mv.To), func(_ Map, s *Shard) error {
		if s.Move == nil || s.Move.From != mv.From || s.Move.To != mv.To {
			return ErrNoMove
		}
		s.Replicas = slices.DeleteFunc(s.Replicas, func(r Replica) bool { return r.ID == out })
		s.Move = nil
		return nil
	})
}

// PauseMove has a move stand still, or go on.
func PauseMove(m Map, shard ShardID, mv Move, paused bool) (Map, error) {
	return changeShard(m, shard, fmt.Sprintf("pause the move of %s to %s", mv.From, mv.To), func(_ Map, s *Shard) error {
		if s.Move == nil || s.Move.From != mv.From || s.Move.To != mv.To {
			return ErrNoMove
		}
		s.Move = &Move{From: mv.From, To: mv.To, Paused: paused} // readers hold the one before
		return nil
	})
}

// changeShard makes a change to one shard of a copy, with the next epoch.
func changeShard(m Map, shard ShardID, what string, change func(next Map, s *Shard) error) (Map, error) {
	next := m.Clone()
	next.Epoch++
	i := slices.IndexFunc(next.Shards, func(s Shard) bool { return s.ID == shard })
	if i < 0 {
		return Map{}, fmt.Errorf("%s: there is no shard %d", what, shard)
	}
	err := change(next, &next.Shards[i])
	if err == nil {
		err = ValidateTransition(m, next)
	}
	if err != nil {
		return Map{}, fmt.Errorf("%s of shard %d: %w", what, shard, err)
	}
	return next, nil
}

// Observed is what the leader of a shard knows of its group.
type Observed struct {
	Leader  ReplicaID
	Members []ObservedMember
}

// ObservedMember is one replica of the group. CaughtUp: it has answered lately, and has all of the log but for a little.
type ObservedMember struct {
	Replica         ReplicaID
	Voter, CaughtUp bool
}

// Step is what a shard's leader does next for a move.
type Step struct {
	Kind StepKind
	// To is who is handed the leadership.
	To ReplicaID
	// Why it waits, for people.
	Why string
}

// StepKind is one of the below.
type StepKind int

const (
	// StepWait: others have to do something first, or the copy has to arrive.
	StepWait StepKind = iota
	// StepHandOver: the leader is the replica that goes.
	StepHandOver
	// StepFinish: the old replica may leave the map.
	StepFinish
)

// Next decides the next step of a move. Adding the new replica and giving it its vote is not among them: the map places it, and that is done for
// each replica that is placed. The old one may go when the new one votes and, without the old one, a majority of
// the voters has all of the log: nothing that was acknowledged rests on it then.
func Next(mv Move, o Observed) Step {
	if mv.Paused {
		return Step{Why: "paused"}
	}
	find := func(id ReplicaID) (ObservedMember, bool) {
		i := slices.IndexFunc(o.Members, func(m ObservedMember) bool { return m.Replica == id })
		if i < 0 {
			return ObservedMember{}, false
		}
		return o.Members[i], true
	}
	to, in := find(mv.To)
	switch {
	case !in:
		return Step{Why: mv.To + " is not a member yet"}
	case !to.CaughtUp:
		return Step{Why: mv.To + " receives the data"}
	case !to.Voter:
		return Step{Why: mv.To + " has no vote yet"}
	}
	stay, sound := 0, 0
	for _, m := range o.Members {
		if m.Voter && m.Replica != mv.From {
			stay++
			if m.CaughtUp {
				sound++
			}
		}
	}
	if sound < Majority(stay) {
		return Step{Why: fmt.Sprintf("without %s, %d of %d replicas keep up, and %d are a majority", mv.From, sound, stay, Majority(stay))}
	}
	if o.Leader == mv.From {
		return Step{Kind: StepHandOver, To: mv.To}
	}
	return Step{Kind: StepFinish}
}
