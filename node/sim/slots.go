package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Slots that change hands while everything else breaks, and who owns them.

// splitsMost is how many shards a scenario may get beside those that it begins with: each has logs and states of its own to look after.
const splitsMost = 4

// slots says what an administrator might of slots, to any node: a shard is split, slots are to be another's, a move is paused, goes on or is taken back.
func (n *nemesis) slots(rng *rand.Rand) {
	up := n.c.up()
	if len(up) == 0 {
		return
	}
	l := up[rng.IntN(len(up))].life.Load()
	if l == nil {
		return
	}
	m := l.node.Router().Map()
	words := slotWords(rng, m, n.c.opt.Shards+splitsMost)
	if words == nil {
		return
	}
	n.say(l, words, func(r *Report) { r.SlotWishes++ })
}

// slotWords are what may be said of the slots of a map, by chance. nil: what chance wants has nothing to be said of.
func slotWords(rng *rand.Rand, m sharding.Map, shardsMost int) []string {
	sh := m.Shards[rng.IntN(len(m.Shards))]
	switch p := rng.IntN(10); {
	case p == 0:
		if len(m.Shards) >= shardsMost {
			return nil
		}
		return []string{"shard", "split", fmt.Sprint(sh.ID)}
	case p < 7:
		if len(sh.Slots) == 0 {
			return nil
		}
		run := sh.Slots[rng.IntN(len(sh.Slots))]
		from := int(run.From) + rng.IntN(int(run.To-run.From)+1)
		to := min(int(run.To), from+rng.IntN(3000)) // of some thousand slots of a shard
		return []string{"slots", "move", fmt.Sprintf("%d-%d", from, to), fmt.Sprint(m.Shards[rng.IntN(len(m.Shards))].ID)}
	case len(m.SlotMoves) == 0:
		return nil
	default:
		mv := m.SlotMoves[rng.IntN(len(m.SlotMoves))]
		return []string{"slots", []string{"cancel", "pause", "resume"}[p-7], strconv.FormatUint(mv.ID, 10)}
	}
}

// look finds slots that two shards serve. It looks at all shards' leaders, by reads that a majority has confirmed, one after the other, and then
// once more. Had no slot moved, two shards with one slot would be enough; as it is, one must have it before and after the other
// does. A slot can only have gone and come back if another move was asked for meanwhile, and then the look says nothing.
func (n *nemesis) look(*rand.Rand) {
	before, err := n.c.confirmedMap()
	if err != nil {
		return
	}
	var passes [2]map[sharding.ShardID]*slotSet
	for i := range passes {
		passes[i] = map[sharding.ShardID]*slotSet{}
		for _, sh := range before.Shards {
			if s := n.c.confirmedSlots(sh.ID); s != nil {
				passes[i][sh.ID] = s
			}
		}
	}
	after, err := n.c.confirmedMap()
	if err != nil || after.LastSlotMove != before.LastSlotMove {
		return
	}
	seen := 0
	for i, a := range before.Shards {
		a1, a2 := passes[0][a.ID], passes[1][a.ID]
		if a1 == nil || a2 == nil {
			continue
		}
		seen++
		for j, b := range before.Shards {
			middle := passes[0][b.ID]
			if j < i {
				middle = passes[1][b.ID]
			}
			if i == j || middle == nil {
				continue
			}
			for slot := range sharding.Slots {
				if a1[slot] && middle[slot] && a2[slot] {
					n.c.fault("slot %d is served by shard %d and by shard %d", slot, a.ID, b.ID)
					return
				}
			}
		}
	}
	if seen*2 >= len(before.Shards) {
		n.count(func(r *Report) { r.Looks++ })
	}
}

type slotSet [sharding.Slots]bool

func setOf(ranges []command.SlotRange) *slotSet {
	s := new(slotSet)
	for _, r := range ranges {
		for slot := int(r.From); slot <= int(r.To); slot++ {
			s[slot] = true
		}
	}
	return s
}

// lookPatience bounds one question of a look: who is cut off does not hold up the others.
const lookPatience = 200 * time.Millisecond

// confirmedSlots are the slots that a shard serves, by a read of its leader that a majority has confirmed; nil if there is none to be had.
func (c *cluster) confirmedSlots(shard sharding.ShardID) *slotSet {
	l, st := c.leader(shard)
	if st == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(l.ctx, lookPatience)
	defer cancel()
	v, err := st.ReadView(ctx)
	if err != nil {
		return nil
	}
	defer v.Close()
	return setOf(v.Slots())
}

// confirmedMap is the map as of some moment during the call.
func (c *cluster) confirmedMap() (m sharding.Map, err error) {
	l, st := c.leader(0)
	if st == nil {
		return m, transport.Errorf(transport.CodeUnavailable, "shard 0 has no leader")
	}
	ctx, cancel := context.WithTimeout(l.ctx, lookPatience)
	defer cancel()
	v, err := st.ReadView(ctx)
	if err != nil {
		return m, err
	}
	defer v.Close()
	raw, _, ok := v.Record(mapRecord)
	if !ok {
		return m, transport.Errorf(transport.CodeUnavailable, "there is no map yet")
	}
	return sharding.DecodeMap(raw)
}

// ownedOnce says what is left of moves of slots: each slot is one shard's, as all its replicas know and the map says, none is frozen, and nothing
// is stored of others' slots.
func (c *cluster) ownedOnce(m sharding.Map) error {
	if len(m.SlotMoves) > 0 {
		mv := m.SlotMoves[0]
		return fmt.Errorf("slot move %d, from shard %d to %d, goes on: %s", mv.ID, mv.From, mv.To, m.WhySlotMoveWaits(mv.ID))
	}
	var owner [sharding.Slots]sharding.ShardID
	for i := range owner {
		owner[i] = sharding.NoShard
	}
	for _, sh := range m.Shards {
		for i, r := range sh.Replicas {
			st := c.replica(r.Node, sh.ID)
			if st == nil {
				return fmt.Errorf("replica %s of shard %d is not open", r.ID, sh.ID)
			}
			if move, _ := st.Leaving(); move != 0 {
				return fmt.Errorf("shard %d: slots are frozen in %s for move %d, which has ended", sh.ID, r.ID, move)
			}
			if !st.Cleared() {
				return fmt.Errorf("shard %d: %s stores what is others'", sh.ID, r.ID)
			}
			v, err := st.View()
			if err != nil {
				return err
			}
			slots := slices.Clone(v.Slots())
			v.Close()
			if !slices.Equal(slots, initSlots(sh.Slots)) {
				return fmt.Errorf("shard %d: %s owns %v, and by the map it is %v", sh.ID, r.ID, slots, sh.Slots)
			}
			if i > 0 {
				continue
			}
			for _, run := range slots {
				for slot := int(run.From); slot <= int(run.To); slot++ {
					if owner[slot] != sharding.NoShard {
						c.fault("in the end slot %d is shard %d's and shard %d's", slot, owner[slot], sh.ID)
					}
					owner[slot] = sh.ID
				}
			}
		}
	}
	if slot := slices.Index(owner[:], sharding.NoShard); slot >= 0 {
		c.fault("in the end slot %d is nobody's", slot)
	}
	return nil
}

func initSlots(list []sharding.SlotRange) (out []command.SlotRange) {
	for _, r := range list {
		out = append(out, command.SlotRange{From: r.From, To: r.To})
	}
	return out
}
