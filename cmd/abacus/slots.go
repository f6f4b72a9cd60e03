package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/sharding"
)

func newSlotsCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "slots",
		Short: "Slots that move from one shard to another: list, move, pause, cancel",
		Long: `Every key is in one of 16384 slots, and every slot is one shard's ("shard list" says whose). A range of slots can be given to another shard
while its keys are read and written: they are copied, and at the end stand still for some milliseconds. A slot move has a number, which "slots list" shows; it
goes on by itself, whoever has asked for it. To make more shards, see "shard split".`,
		Example: `  abacus slots move 0-1023 --to 5
  abacus slots list
  abacus slots pause 7 && abacus slots resume 7
  abacus slots cancel 7                   # the slots stay where they are, if they are there still`,
	}
	list := newListCommand(a, "List slots that are on their way to another shard", func(st client.Status) any { return append([]client.SlotMoveStatus{}, st.SlotMoves...) },
		func(w io.Writer, st client.Status) error {
			if len(st.SlotMoves) == 0 {
				_, err := fmt.Fprintln(w, "no slots move")
				return err
			}
			return printSlotMoves(w, st)
		})
	cmd.AddCommand(list, newSlotsMoveCommand(a),
		newSlotsVerb(a, "pause", "Have a slot move stand still", "slot move %s stands still; what it is just handing over still goes"),
		newSlotsVerb(a, "resume", "Let a slot move go on", "slot move %s goes on"),
		newSlotsVerb(a, "cancel", "Give a slot move up; the slots stay where they are", "slot move %s is given up, unless its slots were just handed over"))
	return cmd
}

func newShardSplitCommand(a *app) *cobra.Command {
	var all, noWait bool
	cmd := &cobra.Command{
		Use:   "split SHARD | --all",
		Short: "Give half of a shard's slots to a new shard, while all is served",
		Long: `Give the upper half of a shard's slots to a new shard, and wait until it has them: the new shard gets a Raft group of its own, with as many replicas as any
other, then a copy of the keys; writes to them stand still for some milliseconds at the end. An empty shard that a cancelled split has left is taken
instead of a new one. Ctrl-C ends the waiting, not the split; "slots cancel" ends that. A split is not taken back once it is done.`,
		Example: `  abacus shard split 3
  abacus shard split --all                # twice as many shards, two splits at a time`,
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				if len(args) > 0 {
					return fmt.Errorf("shard split: give a shard, or --all, not both")
				}
				return nil
			}
			if len(args) == 0 {
				return fmt.Errorf("shard split takes 1 argument, received 0: the shard, or --all for every one of them")
			}
			return takes(1, 1)(cmd, args)
		},
		ValidArgsFunction: completeFrom(a, 0, shardIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all {
				return a.withClient(cmd, func(ctx context.Context, c *client.Client) error { return a.splitAll(ctx, cmd, c, noWait) })
			}
			shard, err := shardID(args[0])
			if err != nil {
				return err
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error { return a.split(ctx, cmd, c, shard, noWait) })
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "split every shard that has two slots or more")
	waitFlag(cmd, &noWait)
	return cmd
}

func (a *app) split(ctx context.Context, cmd *cobra.Command, c *client.Client, shard uint32, noWait bool) error {
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	had := slotsOf(st, shard).size()
	words := []string{"shard", "split", fmt.Sprint(shard)}
	if had > 0 {
		// So that it is not split twice when the answer is lost and this is said again.
		words = append(words, strconv.Itoa(had))
	}
	return a.beginSlots(ctx, cmd, c, noWait, words, slotWait{
		what: fmt.Sprintf("split shard %d", shard), done: fmt.Sprintf("shard %d is split; see: %s", shard, a.try("shard list")), again: "see how far it is: " + a.try("slots list"),
		mine: func(st client.Status, m client.SlotMoveStatus) bool {
			return m.From == shard && slotsOf(st, m.To) == nil
		},
		unseen: func(now client.Status) bool { return slotsOf(now, shard).size() < had },
	})
}

func (a *app) splitAll(ctx context.Context, cmd *cobra.Command, c *client.Client, noWait bool) error {
	return a.beginSlots(ctx, cmd, c, noWait, []string{"shard", "split", "all"}, slotWait{
		what: "split all shards", done: "all shards are split; see: " + a.try("shard list"), again: "see how far it is: " + a.try("slots list"),
		mine:   func(st client.Status, m client.SlotMoveStatus) bool { return slotsOf(st, m.To) == nil },
		unseen: func(client.Status) bool { return true },
	})
}

// beginSlots has slots move, and waits for it if it is to.
func (a *app) beginSlots(ctx context.Context, cmd *cobra.Command, c *client.Client, noWait bool, words []string, w slotWait) (err error) {
	if noWait {
		return a.admin(ctx, cmd, c, "it has begun; see how far it is: "+a.try("slots list"), words...)
	}
	if w.epoch, err = begin(ctx, c, words...); err != nil {
		return err
	}
	return a.awaitSlots(ctx, cmd, c, w)
}

func newSlotsMoveCommand(a *app) *cobra.Command {
	var noWait bool
	var flagTo string
	cmd := &cobra.Command{
		Use:   "move FROM-TO SHARD",
		Short: "Give a range of slots to another shard, while all is served",
		Long: `Give a range of slots, which are one shard's now, to another one, and wait until it has them. Ctrl-C ends the waiting, not the move;
"slots cancel" ends that.`,
		Example: `  abacus slots move 0-1023 5
  abacus slots move 0-1023 --to 5         # the same
  abacus slots move 77 --to 5             # one slot`,
		Args: func(cmd *cobra.Command, args []string) error {
			if flagTo != "" {
				if len(args) == 2 {
					return fmt.Errorf("slots move: give the shard behind the slots or with --to, not both")
				}
				return takes(1, 1)(cmd, args)
			}
			if len(args) == 1 {
				return fmt.Errorf("slots move: to which shard? As in: %s %s --to 5", cmd.CommandPath(), args[0])
			}
			return takes(2, 2)(cmd, args)
		},
		ValidArgsFunction: completeFrom(a, 1, shardIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, err := parseSlotRange(args[0])
			if err != nil {
				return err
			}
			to, err := shardID(append(args, flagTo)[1])
			if err != nil {
				return err
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				move := fmt.Sprintf("slots move %s %d", args[0], to)
				return a.beginSlots(ctx, cmd, c, noWait, strings.Fields(move), slotWait{
					what: "move slots " + args[0], done: fmt.Sprintf("slots %s are shard %d's", args[0], to), again: "wait for it with: " + a.try(move),
					mine: func(_ client.Status, m client.SlotMoveStatus) bool {
						return m.To == to && slices.Equal(parseSlots(m.Slots), slotSet{wanted})
					},
					unseen: func(now client.Status) bool { return slotsOf(now, to).meets(slotSet{wanted}) },
				})
			})
		},
	}
	cmd.Flags().StringVar(&flagTo, "to", "", "the shard that gets them")
	if err := cmd.RegisterFlagCompletionFunc("to", completeFrom(a, 1, shardIDs)); err != nil {
		panic(fmt.Sprintf("completion of --to: %v", err)) // the flag is there: it was just made
	}
	waitFlag(cmd, &noWait)
	return cmd
}

func newSlotsVerb(a *app, verb, short, done string) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " MOVE",
		Short: short,
		Args:  takes(1, 1),
		ValidArgsFunction: completeFrom(a, 0, func(st client.Status) (ids []string) {
			for _, m := range st.SlotMoves {
				ids = append(ids, cobra.CompletionWithDesc(strconv.FormatUint(m.ID, 10), fmt.Sprintf("slots %s from shard %d to %d", someSlots(m.Slots), m.From, m.To)))
			}
			return ids
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := strconv.ParseUint(args[0], 10, 64); err != nil {
				return usagef("slot move %q: it must be a number, as in the list of slots that move", args[0])
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				return a.admin(ctx, cmd, c, fmt.Sprintf(done, args[0]), "slots", verb, args[0])
			})
		},
	}
}

// slotWait is slot moves that are waited for.
type slotWait struct {
	what, done, again string
	// epoch is of the map that has them.
	epoch uint64
	// mine says of a slot move of a status whether it is waited for.
	mine func(client.Status, client.SlotMoveStatus) bool
	// unseen says whether what ended before anybody looked was done, rather than given up.
	unseen func(now client.Status) bool
}

// awaitSlots waits until the slot moves have ended, shows how far they are, and fails if one was given up.
func (a *app) awaitSlots(ctx context.Context, cmd *cobra.Command, c *client.Client, w slotWait) error {
	info := cmd.ErrOrStderr()
	bar := newBar(info, w.what, 1, false)
	defer bar.clear()
	lastLine := time.Now()
	seen := map[uint64]client.SlotMoveStatus{}
	var stayed []string
	err := a.follow(ctx, cmd, c, w.epoch, w.again, func(st client.Status) (over bool, err error) {
		var left []client.SlotMoveStatus
		for _, m := range st.SlotMoves {
			if _, known := seen[m.ID]; known || !m.Cancelled && w.mine(st, m) {
				seen[m.ID] = m
				left = append(left, m)
			}
		}
		if len(left) == 0 {
			for _, m := range seen {
				if slotsOf(st, m.From).meets(parseSlots(m.Slots)) {
					stayed = append(stayed, fmt.Sprintf("slots %s are shard %d's still", someSlots(m.Slots), m.From))
				}
			}
			if len(seen) == 0 && !w.unseen(st) {
				stayed = []string{"nothing has changed"}
			}
			return true, nil
		}
		said, done, total := w.what+": "+slotMoveState(left[0]), left[0].Sent, left[0].Total
		if len(seen) > 1 {
			done, total = int64(len(seen)-len(left)), int64(len(seen))
			said = fmt.Sprintf("%s: %d of %d done; shard %d to %d: %s", w.what, done, total, left[0].From, left[0].To, slotMoveState(left[0]))
		}
		if terminal(info) {
			bar.set(int(done), int(total))
			bar.to(done, said)
		} else if time.Since(lastLine) >= tellEvery {
			lastLine = time.Now()
			fmt.Fprintln(info, said)
		}
		return false, nil
	})
	if err != nil {
		return err
	}
	if len(stayed) > 0 {
		slices.Sort(stayed)
		return &exitError{exitFailed, fmt.Errorf("%s: it was cancelled: %s", w.what, firstOf(stayed, 2))}
	}
	return a.carriedOut(cmd, w.done)
}

// printSlotMoves lists slots that are on their way.
func printSlotMoves(w io.Writer, st client.Status) error {
	t := newTable(w, "SLOT MOVE", "SLOTS", "FROM", "TO", "STATE")
	for _, m := range st.SlotMoves {
		t.row(m.ID, someSlots(m.Slots), m.From, m.To, slotMoveState(m))
	}
	return t.flush()
}

func slotMoveState(m client.SlotMoveStatus) string {
	state := m.State
	if m.Cancelled {
		state = "cancelled, " + state
	}
	if m.Total > 0 {
		return fmt.Sprintf("%s: %s of about %s", state, byteCount(m.Sent), byteCount(m.Total))
	}
	return state
}

// slotMovesNote says in one line which slots move, "" if none do.
func slotMovesNote(st client.Status) string {
	var list []string
	for _, m := range st.SlotMoves {
		list = append(list, fmt.Sprintf("slots %s from shard %d to %d (%s)", someSlots(m.Slots), m.From, m.To, slotMoveState(m)))
	}
	if len(list) == 0 {
		return ""
	}
	return "on the move: " + firstOf(list, 2)
}

// someSlots shortens a list of ranges: after many moves a shard has hundreds.
func someSlots(text string) string {
	const most = 3
	parts := strings.Split(text, ",")
	if more := len(parts) - most; more > 0 {
		return fmt.Sprintf("%s and %s", strings.Join(parts[:most], ","), plural(int64(more), "more range"))
	}
	return orDash(text)
}

// slotSet is a set of slots as the status has it: 0-99,200-299.
type slotSet []sharding.SlotRange

// parseSlots reads what a node has written.
func parseSlots(text string) (set slotSet) {
	for part := range strings.SplitSeq(text, ",") {
		if r, err := parseSlotRange(part); err == nil {
			set = append(set, r)
		}
	}
	return set
}

// parseSlotRange reads a slot or a range of them: 7, 0-1023.
func parseSlotRange(s string) (sharding.SlotRange, error) {
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	first, err := strconv.ParseUint(from, 10, 16)
	last, err2 := strconv.ParseUint(to, 10, 16)
	if err != nil || err2 != nil || first > last || last >= sharding.Slots {
		return sharding.SlotRange{}, usagef("slots %q: want a slot or a range of them within 0-%d, as 0-1023", s, sharding.Slots-1)
	}
	return sharding.SlotRange{From: sharding.Slot(first), To: sharding.Slot(last)}, nil
}

func (s slotSet) size() (n int) {
	for _, r := range s {
		n += int(r.To) - int(r.From) + 1
	}
	return n
}

// meets says whether a slot is in both.
func (s slotSet) meets(o slotSet) bool {
	return slices.ContainsFunc(s, func(r sharding.SlotRange) bool {
		return slices.ContainsFunc(o, func(q sharding.SlotRange) bool { return r.From <= q.To && q.From <= r.To })
	})
}

// slotsOf are the slots of a shard, none if there is no such shard.
func slotsOf(st client.Status, shard uint32) slotSet {
	for _, s := range st.Shards {
		if s.ID == shard {
			return parseSlots(s.Slots)
		}
	}
	return nil
}

func shardIDs(st client.Status) (ids []string) {
	for _, s := range st.Shards {
		ids = append(ids, cobra.CompletionWithDesc(strconv.FormatUint(uint64(s.ID), 10), "slots "+someSlots(s.Slots)))
	}
	return ids
}

// completeFrom offers words of the cluster's status for the argument at a place, if a node answers at once.
func completeFrom(a *app, place int, words func(client.Status) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) != place {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.open()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
		defer cancel()
		st, err := c.Status(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return words(st), cobra.ShellCompDirectiveNoFileComp
	}
}
