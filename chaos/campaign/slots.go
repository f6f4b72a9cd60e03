//go:build linux

package campaign

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/sharding"
)

// Slots that move between shards, and shards that are split, while others write and other things break.

const (
	// shardsMost is how many shards there may be. Where there are so many, one is emptied, and the next split takes that.
	shardsMost = 32
	// slotsSaid is what a giver's leader says when slots are another's, staySaid when a move was given
	// up.
	slotsSaid, staySaid = `msg="slots moved"`, `msg="slots stay"`
)

// splitShards splits one shard after another.
func (s *siege) splitShards() (*fault, error) {
	// How many splits there may be: each makes one more owner. It is counted from the fault's beginning, when all was well. Whom one asks later may
	// not have heard of the last one, or may see as empty what it is about to fill; and one whose answer was lost may have been made.
	left := -1
	return s.slots("one after another", func(ctx context.Context, status *proc.Status) (words []string) {
		owners := slices.DeleteFunc(slices.Clone(status.Shards), func(sh proc.ShardStatus) bool { return sh.Slots == "" })
		if len(owners) == 0 || len(status.SlotMoves) > 1 {
			return nil
		}
		if left < 0 {
			left = max(shardsMost-len(owners), 0)
		}
		if left > 0 {
			left--
			return []string{"shard", "split", fmt.Sprint(owners[s.rng.IntN(len(owners))].ID)}
		}
		if len(owners) < len(status.Shards) {
			return nil // the next of these faults has one to take
		}
		// The one with the fewest pieces, but for shard 0, which no split takes.
		slices.SortFunc(owners, func(a, b proc.ShardStatus) int { return strings.Count(a.Slots, ",") - strings.Count(b.Slots, ",") })
		from, to := owners[0], owners[1]
		if from.ID == 0 {
			from, to = to, from
		}
		run, _, _ := strings.Cut(from.Slots, ",")
		return []string{"slots", "move", run, fmt.Sprint(to.ID)}
	})
}

// slotsMove moves slots between shards, by chance; now and then it has a move stand still, go on, or be taken back.
func (s *siege) slotsMove() (*fault, error) {
	return s.slots("of all shards, by chance", func(ctx context.Context, status *proc.Status) (words []string) {
		if n := len(status.SlotMoves); n > 0 && s.rng.IntN(4) == 0 {
			mv := status.SlotMoves[s.rng.IntN(n)]
			return []string{"slots", []string{"cancel", "pause", "resume"}[s.rng.IntN(3)], strconv.FormatUint(mv.ID, 10)}
		}
		sh := status.Shards[s.rng.IntN(len(status.Shards))]
		to := status.Shards[s.rng.IntN(len(status.Shards))]
		runs, err := parseSlots(sh.Slots)
		if err != nil || len(runs) == 0 || sh.ID == to.ID {
			return nil
		}
		run := runs[s.rng.IntN(len(runs))]
		first := int(run.From) + s.rng.IntN(int(run.To-run.From)+1)
		last := min(int(run.To), first+s.rng.IntN(500))
		return []string{"slots", "move", fmt.Sprintf("%d-%d", first, last), fmt.Sprint(to.ID)}
	})
}

// slots says something of slots again and again, by what the status shows. In the end all that was begun is carried out; it had an effect if slots have
// come to another shard.
func (s *siege) slots(detail string, next func(context.Context, *proc.Status) (words []string)) (*fault, error) {
	from := s.b.logLengths()
	f, err := s.during(detail, func(ctx context.Context) (begun int, err error) {
		for ctx.Err() == nil {
			if status, err := s.b.c.Status(ctx); err == nil && len(status.Shards) > 0 {
				if words := next(ctx, status); words != nil && s.b.adminOnce(ctx, s.order()[0], words...) == nil {
					begun++
				}
			}
			wait(ctx, time.Duration(s.rng.IntN(300))*time.Millisecond) // what has just been asked for is there to be taken back
		}
		return begun, nil
	})
	if err != nil {
		return nil, err
	}
	f.bit = nil // who has moved shows when all have arrived
	end := f.mend
	f.mend = func() error {
		err := end()
		f.healed = time.Now() // what is on its way still moves
		if err == nil {
			err = s.b.resumeSlots(s.ctx)
		}
		s.b.settle(s.ctx)
		return err
	}
	f.showed = func() (bool, error) { return s.b.counted(slotsSaid, from) > 0, nil }
	return f, nil
}

// resumeSlots lets all moves of slots go on.
func (b *bed) resumeSlots(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return await(ctx, "moves of slots are paused", func() string {
		status, err := b.c.Status(ctx)
		if err != nil {
			return err.Error()
		}
		why := ""
		for _, mv := range status.SlotMoves {
			if mv.Paused {
				why = fmt.Sprintf("slot move %d", mv.ID)
				_ = b.adminOnce(ctx, 1, "slots", "resume", strconv.FormatUint(mv.ID, 10)) // the next look says whether it goes on
			}
		}
		return why
	})
}

// ownedOnce says what speaks against each slot being one shard's, by the map as the status shows it.
func ownedOnce(s *proc.Status) string {
	var owner [sharding.Slots]int64
	for i := range owner {
		owner[i] = -1
	}
	for _, sh := range s.Shards {
		runs, err := parseSlots(sh.Slots)
		if err != nil {
			return fmt.Sprintf("shard %d: %v", sh.ID, err)
		}
		for _, r := range runs {
			for slot := int(r.From); slot <= int(r.To); slot++ {
				if owner[slot] >= 0 {
					return fmt.Sprintf("slot %d is shard %d's and shard %d's", slot, owner[slot], sh.ID)
				}
				owner[slot] = int64(sh.ID)
			}
		}
	}
	if i := slices.Index(owner[:], -1); i >= 0 {
		return fmt.Sprintf("slot %d is nobody's", i)
	}
	return ""
}

// parseSlots reads what a status says of a shard's slots: 0-99,200-299.
func parseSlots(text string) (runs []sharding.SlotRange, err error) {
	if text == "" {
		return nil, nil
	}
	for run := range strings.SplitSeq(text, ",") {
		from, to, _ := strings.Cut(run, "-")
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a > b || b >= sharding.Slots {
			return nil, fmt.Errorf("slots %q: want ranges within 0-%d", text, sharding.Slots-1)
		}
		runs = append(runs, sharding.SlotRange{From: sharding.Slot(a), To: sharding.Slot(b)})
	}
	return runs, nil
}

// compareSlots has the map and the replicas of all shards, which were compared before, say who owns which slots.
func (c *campaign) compareSlots(ctx context.Context) error {
	status, err := c.bed.c.Status(ctx)
	if err != nil {
		return err
	}
	if why := ownedOnce(status); why != "" {
		c.findings.Add("in the end %s", why)
	}
	for _, sh := range status.Shards {
		for _, r := range sh.Replicas {
			d, err := c.bed.digest(ctx, c.bed.c.ByID(r.Node), sh.ID, "")
			switch {
			case err != nil:
				return err
			case d.Slots != sh.Slots:
				c.findings.Add("in the end shard %d owns %s by the map and %s by replica %s", sh.ID, sh.Slots, d.Slots, r.ID)
			}
		}
	}
	return nil
}
