package sharding

import (
	"errors"
	"fmt"
	"slices"
)

// SlotMove is the wish that slots change hands. Who owns them is state in the two shards' logs: the receiver's decides, with "own" or "abort", whichever
// comes first. The map follows; until then the slots are the giver's in it.
type SlotMove struct {
	// ID is one more than that of the one before (Map.LastSlotMove), and never comes back: the logs refuse what an older one brings late.
	ID   uint64  `json:"id"`
	From ShardID `json:"from"`
	To   ShardID `json:"to"`
	// Slots are From's in the map for as long as the wish is there, and in no other wish.
	Slots []SlotRange `json:"slots"`
	// Paused: nothing new is begun for it.
	Paused bool `json:"paused,omitempty"`
	// Cancelled: it is to be given up. It ends when the receiver's log has said "abort" - or "own", if it had said so before. This is not taken back.
	Cancelled bool `json:"cancelled,omitempty"`
}

const (
	// SlotMovesAtOnce is how many run at once in the cluster. Each has two groups write all of what moves, next to what clients write, and stops writes to
	// it for a moment at the end. A second one uses the time in which the first waits for somebody; more make all of them, and so each stop, longer.
	SlotMovesAtOnce = 2
	// MaxSlotMoves is how many there can be: one for each shard, which is a split of all of them.
	MaxSlotMoves = MaxShards
	// MaxSlotRanges bounds the pieces into which moves cut shards, so that a map stays far below the limit of one value (8192 are 250 KB). It is looked at
	// when a move is asked for, with what all moves can make of it: their end must not be refused.
	MaxSlotRanges = 8192
)

// StartSlotMove asks for a range of slots of one shard to become another's. The error is a *SlotsError if it may not be.
func StartSlotMove(m Map, slots SlotRange, to ShardID) (Map, error) {
	refuse := func(format string, args ...any) (Map, error) {
		return Map{}, &SlotsError{Op: fmt.Sprintf("move slots %d-%d to shard %d", slots.From, slots.To, to), Why: fmt.Sprintf(format, args...)}
	}
	if slots.From > slots.To || slots.To >= Slots {
		return refuse("they are no range within 0-%d", Slots-1)
	}
	if _, ok := m.Shard(to); !ok {
		return refuse("there is no such shard")
	}
	from := m.ShardOf(slots.From)
	owner, _ := m.Shard(from)
	if i := slices.IndexFunc(owner.Slots, func(r SlotRange) bool { return r.From <= slots.From && slots.To <= r.To }); i < 0 {
		return refuse("not all of them are shard %d's, as slot %d is: move those of one shard at a time", from, slots.From)
	}
	if from == to {
		return refuse("it owns them already")
	}
	for _, mv := range m.SlotMoves {
		if mv.overlaps(slots) {
			return refuse("slot move %d has some of them: wait for it, or cancel it", mv.ID)
		}
	}
	next := m.Clone()
	next.Epoch++
	next.wish(from, to, []SlotRange{slots})
	return checkSlots(m, next, fmt.Sprintf("move slots %d-%d to shard %d", slots.From, slots.To, to))
}

// StartSplit asks for the upper half of a shard's slots to become a new shard's, which gets its first replica on a node that is up, and more of them by
// NextMoves once it is founded. An empty shard that a cancelled split has left is taken instead of a new one. The error is a *SlotsError, or a *NodeError
// about that node, if it may not be.
func StartSplit(m Map, shard ShardID, first NodeID) (Map, error) {
	next := m.Clone()
	next.Epoch++
	if err := next.split(shard, first); err != nil {
		return Map{}, err
	}
	return checkSlots(m, next, fmt.Sprintf("split shard %d", shard))
}

// StartSplits splits all shards that can be split and have no slot move: that is all or none. first says where a shard's new one begins.
func StartSplits(m Map, first func(ShardID) NodeID) (Map, error) {
	next := m.Clone()
	next.Epoch++
	for _, s := range m.Shards {
		if countSlots(s.Slots) < 2 || m.slotMoveOf(s.ID) != nil {
			continue
		}
		if err := next.split(s.ID, first(s.ID)); err != nil {
			return Map{}, err
		}
	}
	if next.LastSlotMove == m.LastSlotMove {
		return Map{}, &SlotsError{Op: "split all shards", Why: "each has a slot move already, or fewer than two slots"}
	}
	return checkSlots(m, next, "split all shards")
}

// split adds to a map that is being made what StartSplit asks for.
func (m *Map) split(shard ShardID, first NodeID) error {
	refuse := func(format string, args ...any) error {
		return &SlotsError{Op: fmt.Sprintf("split shard %d", shard), Why: fmt.Sprintf(format, args...)}
	}
	s, ok := m.Shard(shard)
	if !ok {
		return refuse("there is no such shard")
	}
	if mv := m.slotMoveOf(shard); mv != nil {
		return refuse("slot move %d, of shard %d to %d, is under way: wait for it, or cancel it", mv.ID, mv.From, mv.To)
	}
	if n := countSlots(s.Slots); n < 2 {
		return refuse("it has %d slots, and needs two", n)
	}
	upper := upperHalf(s.Slots)
	if to, ok := m.spare(first); ok {
		m.wish(shard, to, upper)
		return nil
	}
	if len(m.Shards) >= MaxShards {
		return refuse("there are %d shards, and there can be no more", MaxShards)
	}
	switch n, ok := m.Node(first); {
	case !ok:
		return unknownNode("found a shard on", first, first)
	case n.Cordoned || n.Draining:
		return &NodeError{Verb: "found a shard on", Node: first, Faults: []string{"it is cordoned, and takes nothing: uncordon it first"}}
	}
	id := m.Shards[len(m.Shards)-1].ID + 1
	r := Replica{ID: replicaID(first, m.Epoch), Node: first}
	m.Shards = append(m.Shards, Shard{ID: id, Slots: []SlotRange{}, Replicas: []Replica{r}, Founding: r.ID})
	m.wish(shard, id, upper)
	return nil
}

// spare is an empty shard that no slot move names. Not shard 0: who has taken its slots away wants it to keep the map alone. Not one that is
// still to be founded elsewhere: the split may have been cancelled because that node is gone.
func (m Map) spare(first NodeID) (ShardID, bool) {
	for _, s := range m.Shards {
		if s.ID != 0 && len(s.Slots) == 0 && m.slotMoveOf(s.ID) == nil && (s.Founding == "" || s.Replicas[0].Node == first) {
			return s.ID, true
		}
	}
	return NoShard, false
}

// wish adds a slot move to a map that is being made.
func (m *Map) wish(from, to ShardID, slots []SlotRange) {
	m.LastSlotMove++
	m.SlotMoves = append(m.SlotMoves, SlotMove{ID: m.LastSlotMove, From: from, To: to, Slots: slots})
}

// FinishSlotMove gives the slots to the receiver. Only who has read "own" in the receiver's log may say so.
func FinishSlotMove(m Map, id uint64) (Map, error) {
	return endSlotMove(m, id, "finish", func(next *Map, mv SlotMove) { next.hand(mv) })
}

// AbortSlotMove leaves the slots where they are, and takes the wish out, which has to be cancelled before. Only who has read "abort" in the
// receiver's log may say so.
func AbortSlotMove(m Map, id uint64) (Map, error) {
	return endSlotMove(m, id, "abort", func(*Map, SlotMove) {})
}

func endSlotMove(m Map, id uint64, verb string, end func(*Map, SlotMove)) (Map, error) {
	mv, ok := m.SlotMove(id)
	if !ok {
		return Map{}, fmt.Errorf("%s slot move %d: %w", verb, id, ErrNoSlotMove)
	}
	next := m.Clone()
	next.Epoch++
	end(&next, mv)
	next.forget(id)
	return checkSlots(m, next, fmt.Sprintf("%s slot move %d", verb, id))
}

// hand gives the slots of a move to its receiver.
func (m *Map) hand(mv SlotMove) {
	for i := range m.Shards {
		switch s := &m.Shards[i]; s.ID {
		case mv.From:
			s.Slots = withoutSlots(s.Slots, mv.Slots)
		case mv.To:
			s.Slots = joinSlots(s.Slots, mv.Slots)
		}
	}
}

func (m *Map) forget(id uint64) {
	m.SlotMoves = slices.DeleteFunc(m.SlotMoves, func(mv SlotMove) bool { return mv.ID == id })
	if len(m.SlotMoves) == 0 {
		m.SlotMoves = nil // one form of none
	}
}

// CancelSlotMove has a move be given up, if its receiver's log has not said "own" yet. One that cannot have begun is taken out at once. It has to be: "abort" in
// the receiver's log would bar the older moves to it, which are still to come.
func CancelSlotMove(m Map, id uint64) (Map, error) {
	return changeSlotMove(m, id, "cancel", func(next *Map, mv *SlotMove) error {
		if !m.mayHaveBegun(*mv) {
			next.forget(id)
			return nil
		}
		mv.Cancelled, mv.Paused = true, false
		return nil
	})
}

// mayHaveBegun says whether a move may be in its receiver's log. No map has let it begin (RunningSlotMoves) as long as there is no such log, or an older move to
// the same shard: that has been there for as long as the move.
func (m Map) mayHaveBegun(mv SlotMove) bool {
	to, _ := m.Shard(mv.To)
	return to.Founding == "" && !slices.ContainsFunc(m.SlotMoves, func(o SlotMove) bool { return o.To == mv.To && o.ID < mv.ID })
}

// PauseSlotMove has a move stand still, or go on.
func PauseSlotMove(m Map, id uint64, paused bool) (Map, error) {
	return changeSlotMove(m, id, "pause", func(_ *Map, mv *SlotMove) error {
		if mv.Cancelled && paused {
			return errors.New("it is being given up")
		}
		mv.Paused = paused
		return nil
	})
}

func changeSlotMove(m Map, id uint64, verb string, change func(*Map, *SlotMove) error) (Map, error) {
	next := m.Clone()
	next.Epoch++
	what := fmt.Sprintf("%s slot move %d", verb, id)
	i := slices.IndexFunc(next.SlotMoves, func(mv SlotMove) bool { return mv.ID == id })
	if i < 0 {
		return Map{}, fmt.Errorf("%s: %w", what, ErrNoSlotMove)
	}
	if err := change(&next, &next.SlotMoves[i]); err != nil {
		return Map{}, &SlotsError{Op: what, Why: err.Error()}
	}
	return checkSlots(m, next, what)
}

// Founded records that a shard's group is there: from now on it is as any other. The caller has seen, in this very map, that the replica which made itself the first
// voter is the one that Founding names. false: it was recorded before.
func Founded(m Map, shard ShardID) (next Map, changed bool, err error) {
	next = m.Clone()
	next.Epoch++
	i := slices.IndexFunc(next.Shards, func(s Shard) bool { return s.ID == shard })
	if i < 0 {
		return m, false, &SlotsError{Op: fmt.Sprintf("found shard %d", shard), Why: "there is no such shard"}
	}
	if next.Shards[i].Founding == "" {
		return m, false, nil
	}
	next.Shards[i].Founding = ""
	next, err = checkSlots(m, next, fmt.Sprintf("found shard %d", shard))
	return next, err == nil, err
}

func checkSlots(m, next Map, what string) (Map, error) {
	if err := ValidateTransition(m, next); err != nil {
		return Map{}, fmt.Errorf("%s: %w", what, err)
	}
	return next, nil
}

// SlotMove returns the one with this id; false if there is none, or it has ended.
func (m Map) SlotMove(id uint64) (SlotMove, bool) {
	i := slices.IndexFunc(m.SlotMoves, func(mv SlotMove) bool { return mv.ID == id })
	if i < 0 {
		return SlotMove{}, false
	}
	return m.SlotMoves[i], true
}

// slotMoveOf is the first slot move that a shard gives or gets, nil if there is none.
func (m Map) slotMoveOf(shard ShardID) *SlotMove {
	i := slices.IndexFunc(m.SlotMoves, func(mv SlotMove) bool { return mv.From == shard || mv.To == shard })
	if i < 0 {
		return nil
	}
	return &m.SlotMoves[i]
}

func (mv SlotMove) overlaps(slots SlotRange) bool {
	return slices.ContainsFunc(mv.Slots, func(r SlotRange) bool { return r.From <= slots.To && slots.From <= r.To })
}

// RunningSlotMoves lists those that may be begun or go on, in order of id. All that are cancelled, so that they end. Of the others as many as may run at
// once: a shard takes part in one, a receiver takes them in order of id, and no map in which it is still to be founded lets any begin.
//
// It follows from the map alone, which does not know how far a move is: one that is resumed can push out a younger one that has begun. So a
// driver must not leave slots frozen because their move is not listed, nor because it is paused: what has frozen goes on to its end.
func (m Map) RunningSlotMoves() []SlotMove {
	var list []SlotMove
	m.eachSlotMove(func(mv SlotMove, why string) {
		if why == "" {
			list = append(list, mv)
		}
	})
	return list
}

// WhySlotMoveWaits says, for people, why a slot move is not among those that run; "" if it is, or is none.
func (m Map) WhySlotMoveWaits(id uint64) (why string) {
	m.eachSlotMove(func(mv SlotMove, because string) {
		if mv.ID == id {
			why = because
		}
	})
	return why
}

// eachSlotMove calls back for each in order of id, with why it waits.
func (m Map) eachSlotMove(call func(mv SlotMove, why string)) {
	running := 0
	busy := map[ShardID]uint64{}
	first := map[ShardID]uint64{} // by receiver
	for _, mv := range m.SlotMoves {
		why := ""
		if !mv.Cancelled {
			if why = m.whyWaits(mv, busy, running); why == "" && first[mv.To] != 0 {
				// Its log takes them in order only: what an older one brings then is refused for ever.
				why = fmt.Sprintf("slot move %d to the same shard comes first", first[mv.To])
			}
			if why == "" {
				running++
			}
		}
		if first[mv.To] == 0 {
			first[mv.To] = mv.ID
		}
		if why == "" {
			busy[mv.From], busy[mv.To] = mv.ID, mv.ID
		}
		call(mv, why)
	}
}

func (m Map) whyWaits(mv SlotMove, busy map[ShardID]uint64, running int) string {
	from, _ := m.Shard(mv.From)
	to, _ := m.Shard(mv.To)
	// What one replica has acknowledged is lost with its node: the data do not go where fewer keep them.
	enough := min(len(from.Replicas), m.ReplicasWanted)
	switch {
	case mv.Paused:
		return "paused"
	case to.Founding != "":
		return fmt.Sprintf("shard %d is being founded by %s", to.ID, to.Founding)
	case len(to.Replicas) < enough:
		return fmt.Sprintf("shard %d has %d of %d replicas", to.ID, len(to.Replicas), enough)
	case busy[mv.From] != 0:
		return fmt.Sprintf("shard %d takes part in slot move %d", mv.From, busy[mv.From])
	case busy[mv.To] != 0:
		return fmt.Sprintf("shard %d takes part in slot move %d", mv.To, busy[mv.To])
	case running >= SlotMovesAtOnce:
		return fmt.Sprintf("%d others run", running)
	}
	return ""
}
