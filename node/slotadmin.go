package node

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// slotVerbs are what an administrator asks about slots. See verbs.
var slotVerbs = []verb{
	{words: []string{"shard", "split"}, args: "SHARD|all [SLOTS]", least: 1, most: 2, run: splitShards},
	{words: []string{"slots", "move"}, args: "FROM-TO SHARD", least: 2, most: 2, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		slots, err := parseSlots(a[0])
		if err != nil {
			return nil, err
		}
		return n.changeShard(ctx, a[1], func(m sharding.Map, to sharding.Shard) (sharding.Map, bool, error) {
			return decideSlotMove(m, slots, to)
		})
	}},
	{words: []string{"slots", "cancel"}, args: "MOVE", least: 1, most: 1, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.changeSlotMove(ctx, a[0], func(m sharding.Map, mv sharding.SlotMove) (sharding.Map, bool, error) {
			if mv.Cancelled {
				return m, false, nil
			}
			next, err := sharding.CancelSlotMove(m, mv.ID)
			return next, err == nil, err
		})
	}},
	{words: []string{"slots", "pause"}, args: "MOVE", least: 1, most: 1, run: pauseSlots(true)},
	{words: []string{"slots", "resume"}, args: "MOVE", least: 1, most: 1, run: pauseSlots(false)},
}

// splitShards splits a shard, or all of them. Behind a shard there may be how many slots it has: if it has another number by now it was split before,
// and is not split again, as it would be by a request that is repeated because its answer was lost.
func splitShards(n *Node, ctx context.Context, a []string) (any, error) {
	if strings.EqualFold(a[0], "all") {
		if len(a) > 1 {
			return nil, transport.Errorf(transport.CodeBadRequest, "how many slots it has goes behind one shard, not behind all")
		}
		return n.change(ctx, func(m sharding.Map) (sharding.Map, bool, error) { return decideSplitAll(m, n.founder) })
	}
	had := 0
	if len(a) > 1 {
		var err error
		if had, err = strconv.Atoi(a[1]); err != nil || had < 1 {
			return nil, transport.Errorf(transport.CodeBadRequest, "%q: want how many slots shard %s has", a[1], a[0])
		}
	}
	return n.changeShard(ctx, a[0], func(m sharding.Map, sh sharding.Shard) (sharding.Map, bool, error) {
		return decideSplit(m, sh, had, n.founder)
	})
}

// decideSplit splits a shard, if it has that many slots; 0: whatever it has.
func decideSplit(m sharding.Map, sh sharding.Shard, had int, founder func(sharding.Map, sharding.Shard) sharding.NodeID) (sharding.Map, bool, error) {
	if had > 0 && slotCount(sh.Slots) != had {
		return m, false, nil // it was split
	}
	for _, mv := range m.SlotMoves {
		if mv.From == sh.ID && splits(m, mv) {
			return m, false, nil // it is being split
		}
	}
	next, err := sharding.StartSplit(m, sh.ID, founder(m, sh))
	return next, err == nil, err
}

// decideSplitAll splits all shards. Said again while all are being split it changes nothing; when some have been and others not yet, it would
// split the first ones twice, and is refused.
func decideSplitAll(m sharding.Map, founder func(sharding.Map, sharding.Shard) sharding.NodeID) (sharding.Map, bool, error) {
	free := slices.ContainsFunc(m.Shards, func(sh sharding.Shard) bool {
		return slotCount(sh.Slots) > 1 && !slices.ContainsFunc(m.SlotMoves, func(mv sharding.SlotMove) bool { return mv.From == sh.ID || mv.To == sh.ID })
	})
	for _, mv := range m.SlotMoves {
		switch {
		case !splits(m, mv):
		case free:
			return m, false, transport.Errorf(transport.CodeRefused, "shard %d is being split already, by slot move %d: wait until none is, or split shards one by one", mv.From, mv.ID)
		default:
			return m, false, nil
		}
	}
	next, err := sharding.StartSplits(m, func(id sharding.ShardID) sharding.NodeID {
		sh, _ := m.Shard(id)
		return founder(m, sh)
	})
	return next, err == nil, err
}

// splits says whether a slot move gives a new shard its first slots.
func splits(m sharding.Map, mv sharding.SlotMove) bool {
	to, _ := m.Shard(mv.To)
	return len(to.Slots) == 0 && !mv.Cancelled
}

func slotCount(list []sharding.SlotRange) (n int) {
	for _, r := range list {
		n += int(r.To) - int(r.From) + 1
	}
	return n
}

func hasAll(sh sharding.Shard, slots sharding.SlotRange) bool {
	return slices.ContainsFunc(sh.Slots, func(r sharding.SlotRange) bool { return r.From <= slots.From && slots.To <= r.To })
}

// decideSlotMove has slots move, if they are neither there nor on their way.
func decideSlotMove(m sharding.Map, slots sharding.SlotRange, to sharding.Shard) (sharding.Map, bool, error) {
	if hasAll(to, slots) {
		return m, false, nil
	}
	for _, mv := range m.SlotMoves {
		if mv.To == to.ID && !mv.Cancelled && slices.Equal(mv.Slots, []sharding.SlotRange{slots}) {
			return m, false, nil
		}
	}
	next, err := sharding.StartSlotMove(m, slots, to.ID)
	return next, err == nil, err
}

// founder is where the group of a shard that is split off begins: where the data are.
func (n *Node) founder(m sharding.Map, sh sharding.Shard) sharding.NodeID {
	leader := n.Leader(sh.ID)
	list := []sharding.NodeID{leader}
	for _, r := range sh.Replicas {
		list = append(list, r.Node)
	}
	for _, nd := range m.Nodes {
		list = append(list, nd.ID)
	}
	for _, id := range list {
		if nd, ok := m.Node(id); ok && nd.Takes() && n.mayTake(id) {
			return id
		}
	}
	return leader // which the map may refuse, and says why
}

func pauseSlots(paused bool) func(*Node, context.Context, []string) (any, error) {
	return func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.changeSlotMove(ctx, a[0], func(m sharding.Map, mv sharding.SlotMove) (sharding.Map, bool, error) {
			if mv.Paused == paused {
				return m, false, nil
			}
			next, err := sharding.PauseSlotMove(m, mv.ID, paused)
			return next, err == nil, err
		})
	}
}

// changeSlotMove changes the slot move of that number.
func (n *Node) changeSlotMove(ctx context.Context, number string, decide func(sharding.Map, sharding.SlotMove) (sharding.Map, bool, error)) (any, error) {
	id, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return nil, transport.Errorf(transport.CodeBadRequest, "slot move %q: want its number", number)
	}
	return n.change(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
		mv, ok := m.SlotMove(id)
		if !ok {
			return m, false, transport.Errorf(transport.CodeNotFound, "there is no slot move %d (any more)", id)
		}
		return decide(m, mv)
	})
}

// parseSlots reads a slot or a range of slots: 7, 0-1023.
func parseSlots(s string) (sharding.SlotRange, error) {
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	a, err := strconv.ParseUint(from, 10, 16)
	b, err2 := strconv.ParseUint(to, 10, 16)
	if err != nil || err2 != nil || a > b || b >= sharding.Slots {
		return sharding.SlotRange{}, transport.Errorf(transport.CodeBadRequest, "slots %q: want a slot or a range of them within 0-%d, as 0-1023", s, sharding.Slots-1)
	}
	return sharding.SlotRange{From: sharding.Slot(a), To: sharding.Slot(b)}, nil
}

// slotMoveView is a slot move as people look at it.
type slotMoveView struct {
	ID        uint64           `json:"id"`
	From      sharding.ShardID `json:"from"`
	To        sharding.ShardID `json:"to"`
	Slots     string           `json:"slots"`
	Paused    bool             `json:"paused,omitempty"`
	Cancelled bool             `json:"cancelled,omitempty"`
	// State says what it is at, or waits for.
	State string `json:"state"`
	// Sent of about Total bytes of keys and values were sent.
	Sent  int64 `json:"sent,omitempty"`
	Total int64 `json:"total,omitempty"`
}

// viewSlotMoves says how far the slot moves of a map are, by what the nodes have said.
func viewSlotMoves(m sharding.Map, said map[sharding.NodeID]peerStatus) []slotMoveView {
	under := map[uint64]handoverStatus{}
	for _, s := range said {
		for _, h := range s.Handovers {
			under[h.Move] = h
		}
	}
	var list []slotMoveView
	for _, mv := range m.SlotMoves {
		v := slotMoveView{ID: mv.ID, From: mv.From, To: mv.To, Slots: slotText(mv.Slots), Paused: mv.Paused, Cancelled: mv.Cancelled, State: m.WhySlotMoveWaits(mv.ID)}
		if h, ok := under[mv.ID]; ok {
			v.State, v.Sent, v.Total = h.Phase, h.Sent, h.Total
		}
		if v.State == "" {
			v.State = "begins"
		}
		list = append(list, v)
	}
	return list
}
