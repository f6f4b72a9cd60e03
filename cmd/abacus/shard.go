package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
)

func newShardCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shard",
		Short: "Shards: list, split, move a replica to another node, compare replicas",
		Example: `  abacus shard list
  abacus shard move 3 n1 n4               # the replica of shard 3 on n1 goes to n4
  abacus shard pause 3 && abacus shard resume 3
  abacus shard split 3                    # the upper half of its slots becomes a new shard's
  abacus shard check 3                    # do all its replicas hold the same?`,
	}
	cmd.AddCommand(newListCommand(a, "List shards with their slots, their replicas and the moves under way", func(st client.Status) any { return st.Shards }, printShards), newShardSplitCommand(a), newShardMoveCommand(a), newShardCheckCommand(a),
		newShardVerb(a, "pause", "Have the move of a shard's replica stand still", "stands still; its copy may still arrive"),
		newShardVerb(a, "resume", "Let the move of a shard's replica go on", "goes on"),
		newShardVerb(a, "cancel", "Take the move of a shard's replica back", "is taken back"))
	return cmd
}

// newListCommand lists a part of the cluster's status.
func newListCommand(a *app, short string, part func(client.Status) any, print func(io.Writer, client.Status) error) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: short,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				st, err := c.Status(ctx)
				if err != nil {
					return err
				}
				if a.json() {
					return writeJSON(cmd.OutOrStdout(), part(st))
				}
				return print(cmd.OutOrStdout(), st)
			})
		},
	}
}

func printShards(w io.Writer, st client.Status) error {
	t := newTable(w, "SHARD", "SLOTS", "KEYS", "BYTES", "REPLICAS", "MOVE", "STATE")
	for _, s := range st.Shards {
		var replicas []string
		for _, r := range s.Replicas {
			replicas = append(replicas, replicaCell(r))
		}
		move, state := "-", "ok"
		if s.Problem != "" {
			state = s.Problem
		}
		if m := s.Move; m != nil {
			move, state = fmt.Sprintf("%s to %s", nodeOf(m.From), nodeOf(m.To)), moveState(*m)
		}
		t.row(s.ID, someSlots(s.Slots), s.Records, byteCount(s.Bytes), strings.Join(replicas, " "), move, state)
	}
	if err := t.flush(); err != nil || len(st.SlotMoves) == 0 {
		return err
	}
	fmt.Fprintln(w)
	return printSlotMoves(w, st)
}

func moveState(m client.MoveStatus) string {
	if m.CopySize > 0 {
		return fmt.Sprintf("%s: %s of %s", m.State, byteCount(m.CopySent), byteCount(m.CopySize))
	}
	return m.State
}

func newShardMoveCommand(a *app) *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use:   "move SHARD FROM TO",
		Short: "Move a shard's replica from one node to another, while it is served",
		Long: `Move a shard's replica from one node to another and wait until that is done: the state is copied, the new replica gets its
vote, the leadership goes elsewhere if the old one has it, and the old one leaves. Ctrl-C ends the waiting, not the move.`,
		Args:              takes(3, 3),
		ValidArgsFunction: completeMembers(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := shardNumber(args[0]); err != nil {
				return err
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				words := append([]string{"shard", "move"}, args...)
				if noWait {
					return a.admin(ctx, cmd, c, "the move has begun; see: "+a.try("shard list"), words...)
				}
				epoch, err := begin(ctx, c, words...)
				if err != nil {
					return err
				}
				look := func(st client.Status) (left, moving []client.ShardStatus, gone bool) {
					for _, s := range st.Shards {
						if strconv.FormatUint(uint64(s.ID), 10) == args[0] && s.Move != nil && nodeOf(s.Move.From) == args[1] && nodeOf(s.Move.To) == args[2] {
							return []client.ShardStatus{s}, []client.ShardStatus{s}, false
						}
					}
					return nil, nil, false
				}
				if err := a.await(ctx, cmd, c, waitFor{what: "move shard " + args[0], epoch: epoch, again: strings.Join(words, " "), look: look}); err != nil {
					return err
				}
				// It may have been taken back meanwhile.
				st, err := c.Status(ctx)
				if err != nil {
					return err
				}
				for _, s := range st.Shards {
					if strconv.FormatUint(uint64(s.ID), 10) == args[0] && !slices.ContainsFunc(s.Replicas, func(r client.ReplicaStatus) bool { return r.Node == args[2] }) {
						return &exitError{exitFailed, fmt.Errorf("the move was taken back: shard %s has no replica on %s", args[0], args[2])}
					}
				}
				return a.carriedOut(cmd, fmt.Sprintf("the replica of shard %s on %s is on %s now", args[0], args[1], args[2]))
			})
		},
	}
	waitFlag(cmd, &noWait)
	return cmd
}

func newShardVerb(a *app, verb, short, done string) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " SHARD",
		Short: short,
		Args:  takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := shardNumber(args[0]); err != nil {
				return err
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				return a.admin(ctx, cmd, c, fmt.Sprintf("the move of shard %s %s", args[0], done), "shard", verb, args[0])
			})
		},
	}
}

func shardNumber(s string) error {
	_, err := shardID(s)
	return err
}

func shardID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, usagef("shard %q: it must be a number, as in the list of shards", s)
	}
	return uint32(id), nil
}

func newRebalanceCommand(a *app) *cobra.Command {
	var dry, stop, noWait bool
	var auto string
	cmd := &cobra.Command{
		Use:   "rebalance",
		Short: "Move replicas until every node has as many as any other",
		Long: `Move replicas, a few at a time, until every node has as many as any other or one more, and the replicas of each shard are spread over as
many zones as can be; leaders are even within a minute of that. Replicas are moved for evenness only when this is said, or always with --auto=on: after a
node has joined, say. See what would be done with --dry-run. Ctrl-C ends the waiting, not the moves; --stop begins no more.`,
		Example: `  abacus rebalance --dry-run
  abacus rebalance
  abacus rebalance --auto=on`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := 0
			for _, on := range []bool{dry, stop, auto != ""} {
				if on {
					given++
				}
			}
			switch {
			case given > 1:
				return usagef("--dry-run, --stop and --auto exclude each other")
			case auto != "" && auto != "on" && auto != "off":
				return usagef("--auto %s: it must be on or off", auto)
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				switch {
				case dry:
					return a.printPlan(ctx, cmd, c)
				case auto == "on":
					return a.admin(ctx, cmd, c, "replicas are moved from now on whenever the cluster is uneven", "rebalance", "always")
				case stop, auto == "off":
					return a.admin(ctx, cmd, c, "no more moves are begun for evenness; those under way go on", "rebalance", "stop")
				}
				return a.rebalance(ctx, cmd, c, noWait)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&dry, "dry-run", false, "only show which moves it would take, and how many bytes")
	f.StringVar(&auto, "auto", "", "on: move whenever the cluster is uneven; off: only when this is said")
	f.BoolVar(&stop, "stop", false, "begin no more moves")
	waitFlag(cmd, &noWait)
	return cmd
}

func (a *app) printPlan(ctx context.Context, cmd *cobra.Command, c *client.Client) error {
	p, err := c.PlanRebalance(ctx)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	switch {
	case a.json():
		return writeJSON(out, p)
	case len(p.Moves) == 0:
		fmt.Fprintln(out, "nothing to move: the cluster is even")
		return nil
	}
	t := newTable(out, "SHARD", "FROM", "TO", "BYTES", "WHY")
	for _, m := range p.Moves {
		size := "?"
		if m.Bytes >= 0 {
			size = byteCount(m.Bytes)
		}
		t.row(m.Shard, nodeOf(m.From), m.To, size, m.Why)
	}
	if err := t.flush(); err != nil {
		return err
	}
	unknown := ""
	if p.Unknown > 0 {
		unknown = fmt.Sprintf(", and of %s the size is not known", plural(int64(p.Unknown), "shard"))
	}
	fmt.Fprintf(out, "\n%s, %s%s\n", plural(int64(len(p.Moves)), "move"), byteCount(p.Bytes), unknown)
	return nil
}

func (a *app) rebalance(ctx context.Context, cmd *cobra.Command, c *client.Client, noWait bool) error {
	if noWait {
		return a.admin(ctx, cmd, c, "the cluster is being rebalanced; see: "+a.try("shard list"), "rebalance", "once")
	}
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	epoch := st.Epoch
	if st.Balance != "always" {
		if epoch, err = begin(ctx, c, "rebalance", "once"); err != nil {
			return err
		}
	}
	var plan client.Plan
	look := func(st client.Status) (left, moving []client.ShardStatus, gone bool) {
		for _, s := range st.Shards {
			if s.Move != nil {
				moving = append(moving, s)
			}
		}
		if plan, err = c.PlanRebalance(ctx); err != nil || st.Balance == "once" && len(plan.Moves) == 0 {
			// Not known, or about to be said to be over.
			return append(moving, client.ShardStatus{}), moving, false
		}
		left = slices.Clone(moving)
		for _, m := range plan.Moves {
			left = append(left, client.ShardStatus{ID: m.Shard})
		}
		return left, moving, st.Balance == "" && len(left) > 0
	}
	if err := a.await(ctx, cmd, c, waitFor{what: "rebalance", epoch: epoch, again: "rebalance", look: look}); err != nil {
		return err
	}
	return a.carriedOut(cmd, "the cluster is even")
}

// waitFor is something that goes on in the cluster, and that is waited for.
type waitFor struct {
	what, again string
	// epoch is of the map that has the wish: a node that knows an older one cannot tell.
	epoch uint64
	// look says what is left to do, and which of that is being done. gone: somebody has said that it is not to be done any more.
	look func(client.Status) (left, moving []client.ShardStatus, gone bool)
}

// errFollowGone: what was waited for is not wished any more.
var errFollowGone = errors.New("somebody has ended it meanwhile")

// await waits until nothing is left, and shows how far it is: a bar on a terminal, else a line now and then. When it is interrupted, the moves go on.
func (a *app) await(ctx context.Context, cmd *cobra.Command, c *client.Client, f waitFor) error {
	info := cmd.ErrOrStderr()
	bar := newBar(info, f.what, 1, false)
	defer bar.clear()
	most, lastLine := 0, time.Now()
	return a.follow(ctx, cmd, c, f.epoch, "wait for it with: "+a.try(f.again), func(st client.Status) (over bool, err error) {
		left, moving, gone := f.look(st)
		if len(left) == 0 {
			return true, nil
		}
		if gone {
			return false, &exitError{exitFailed, fmt.Errorf("%s: %w; %s left to move", f.what, errFollowGone, plural(int64(len(left)), "replica"))}
		}
		most = max(most, len(left))
		if terminal(info) {
			bar.set(most-len(left), most)
		} else if time.Since(lastLine) >= tellEvery {
			lastLine = time.Now()
			fmt.Fprintf(info, "%s: %s left%s\n", f.what, plural(int64(len(left)), "replica"), movingNow(moving))
		}
		return false, nil
	})
}

const (
	// followEvery is how often what goes on is looked at.
	followEvery = 250 * time.Millisecond
	// tellEvery is how often that is told where there is no bar.
	tellEvery = 5 * time.Second
)

// follow looks at the cluster, by nodes that know the map of an epoch or a newer one, until look says that it is over, or a minute has gone without an
// answer. When it is interrupted it says how to go on.
func (a *app) follow(ctx context.Context, cmd *cobra.Command, c *client.Client, epoch uint64, again string, look func(client.Status) (over bool, err error)) error {
	lastAnswer := time.Now()
	for {
		st, err := c.Status(ctx)
		switch {
		case err == nil && st.Epoch >= epoch:
			lastAnswer = time.Now()
			if over, err := look(st); over || err != nil {
				return err
			}
		case context.Cause(ctx) == nil && time.Since(lastAnswer) < time.Minute:
			// A node that goes, a leader that is elected: what is waited for goes on meanwhile.
		case context.Cause(ctx) == nil:
			if err == nil {
				err = fmt.Errorf("node %s does not hear of the others", st.Node)
			}
			return fmt.Errorf("follow: %w; %s", err, again)
		}
		select {
		case <-ctx.Done():
			if context.Cause(ctx) == errInterrupted {
				fmt.Fprintln(cmd.ErrOrStderr(), "it goes on;", again)
				return errInterrupted
			}
			return context.Cause(ctx)
		case <-time.After(followEvery):
		}
	}
}

func movingNow(moving []client.ShardStatus) string {
	var parts []string
	for _, s := range moving {
		parts = append(parts, fmt.Sprintf("shard %d, %s", s.ID, moveState(*s.Move)))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + firstOf(parts, 2) + ")"
}

// begin says something to the cluster, and returns the epoch of the map that has it.
func begin(ctx context.Context, c *client.Client, words ...string) (epoch uint64, err error) {
	text, err := c.Admin(ctx, words...)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Epoch uint64 `json:"epoch"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return 0, fmt.Errorf("parse the answer to %q: %w", strings.Join(words, " "), err)
	}
	return answer.Epoch, nil
}

// admin says something to the cluster and what that means.
func (a *app) admin(ctx context.Context, cmd *cobra.Command, c *client.Client, done string, words ...string) error {
	return a.adminOr(ctx, cmd, c, done, done, words...)
}

// adminOr is admin for what says something else if nothing had to be changed.
func (a *app) adminOr(ctx context.Context, cmd *cobra.Command, c *client.Client, done, unchanged string, words ...string) error {
	answer, err := c.Admin(ctx, words...)
	if err != nil {
		return err
	}
	if a.json() {
		return writeJSON(cmd.OutOrStdout(), json.RawMessage(answer))
	}
	var did struct{ Unchanged bool }
	if json.Unmarshal(answer, &did) == nil && did.Unchanged {
		done = unchanged
	}
	return a.carriedOut(cmd, done)
}

func (a *app) carriedOut(cmd *cobra.Command, text string) error {
	if a.json() {
		return writeJSON(cmd.OutOrStdout(), map[string]bool{"ok": true})
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

func waitFlag(cmd *cobra.Command, noWait *bool) {
	cmd.Flags().BoolVar(noWait, "no-wait", false, "do not wait for the end")
}

// completeMembers offers the nodes that there are, if one says so at once.
func completeMembers(a *app) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := a.open()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		st, err := c.Status(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var ids []string
		if strings.HasPrefix(cmd.Use, "move") && len(args) == 0 {
			for _, s := range st.Shards {
				ids = append(ids, strconv.FormatUint(uint64(s.ID), 10))
			}
			return ids, cobra.ShellCompDirectiveNoFileComp
		}
		for _, n := range st.Nodes {
			if !slices.Contains(args, n.ID) {
				ids = append(ids, n.ID)
			}
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}

// byteCount is "1.5 MiB".
func byteCount(n int64) string {
	const unit = 1024
	if n < unit {
		return plural(n, "byte")
	}
	value, i := float64(n)/unit, 0
	for ; value >= unit && i < 4; i++ {
		value /= unit
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[i])
}
