package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
)

func newShardCheckCommand(a *app) *cobra.Command {
	var all, last bool
	cmd := &cobra.Command{
		Use:   "check SHARD | --all",
		Short: "Compare the replicas of a shard, all at one log index",
		Long: `Have every replica of a shard read its whole state at one log index, and compare what they hold, while all is served. A replica that differs from the majority is
named; where there is no majority, all are. It stays in "status" until a later comparison finds it equal, or it is replaced: the runbook says how. Nothing is mended by
itself. Replicas that do not answer, or have no state of that index, are not compared.

The cluster does the same by itself, once a day unless abacusd's --check-every says otherwise; --last shows what came of it. Ctrl-C ends the waiting, not the comparison.
Exit code 1 if replicas differ, 5 if nothing could be compared.`,
		Example: `  abacus shard check 3
  abacus shard check --all
  abacus shard check --all --last         # what was found last, without another look`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return fmt.Errorf("shard check: give a shard, or --all, not both")
			case all:
				return nil
			case len(args) == 0:
				return fmt.Errorf("shard check takes 1 argument, received 0: the shard, or --all for every one of them")
			}
			return takes(1, 1)(cmd, args)
		},
		ValidArgsFunction: completeFrom(a, 0, shardIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			var shards []uint32
			if !all {
				shard, err := shardID(args[0])
				if err != nil {
					return err
				}
				shards = []uint32{shard}
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				if all {
					st, err := c.Status(ctx)
					if err != nil {
						return err
					}
					for _, s := range st.Shards {
						shards = append(shards, s.ID)
					}
				}
				look := c.ShardChecked
				if !last {
					look = func(ctx context.Context, shard uint32) (client.ShardCheck, error) {
						return a.awaitCheck(ctx, cmd, c, shard)
					}
				}
				return a.checkShards(ctx, cmd, shards, look)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "compare the replicas of every shard, one shard after the other")
	f.BoolVar(&last, "last", false, "only show what the last comparison has found")
	return cmd
}

// checkShards has shards looked at, one after the other, and shows what was found. One that cannot be looked at does not keep the others from it.
func (a *app) checkShards(ctx context.Context, cmd *cobra.Command, shards []uint32, look func(context.Context, uint32) (client.ShardCheck, error)) error {
	checks := []client.ShardCheck{}
	for _, shard := range shards {
		r, err := look(ctx, shard)
		if err != nil {
			if len(shards) == 1 || context.Cause(ctx) != nil || refused(err) {
				return err
			}
			r = client.ShardCheck{Shard: shard, Error: err.Error(), Replicas: []client.ReplicaCheck{}}
		}
		checks = append(checks, r)
	}
	write := func() error { return printChecks(cmd.OutOrStdout(), checks) }
	if a.json() {
		write = func() error { return writeJSON(cmd.OutOrStdout(), checks) }
	}
	if err := write(); err != nil {
		return err
	}
	return checksError(checks)
}

// checksError says what is wrong with what was found; nil: nothing.
func checksError(checks []client.ShardCheck) error {
	var differ, open []string
	for _, r := range checks {
		alarms, others := 0, 0
		for _, p := range r.Replicas {
			if p.Alarm != nil {
				alarms++
			}
			if p.Result == "not compared" {
				others++
			}
		}
		switch {
		case alarms > 0 || r.Result == "mismatch":
			differ = append(differ, fmt.Sprint(r.Shard))
		case r.Error != "" || r.Result == "not compared" && others > 0:
			open = append(open, fmt.Sprint(r.Shard))
		}
	}
	switch {
	case len(differ) > 0:
		return &exitError{exitFailed, fmt.Errorf("replicas differ, of shard %s: docs/operations.md says what to do, under replicas that differ", strings.Join(differ, ", "))}
	case len(open) > 0:
		return &exitError{exitUnavailable, fmt.Errorf("nothing could be compared, of shard %s", strings.Join(open, ", "))}
	}
	return nil
}

// checkAgain is how often a comparison is begun that a change of the leader has lost.
const checkAgain = 3

// awaitCheck has the replicas of a shard compared and waits for it.
func (a *app) awaitCheck(ctx context.Context, cmd *cobra.Command, c *client.Client, shard uint32) (client.ShardCheck, error) {
	r, err := c.CheckShard(ctx, shard)
	if err != nil {
		return r, err
	}
	info := cmd.ErrOrStderr()
	bar := newBar(info, fmt.Sprintf("check shard %d", shard), 1, false)
	defer bar.clear()
	name, begun := r.Check, 1
	answered, told, pause := time.Now(), time.Now(), 50*time.Millisecond
	for r.State != "done" {
		select {
		case <-ctx.Done():
			if context.Cause(ctx) == errInterrupted {
				fmt.Fprintf(info, "it goes on; see what it finds: %s\n", a.try(fmt.Sprintf("shard check %d --last", shard)))
			}
			return r, context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
		next, err := c.ShardChecked(ctx, shard)
		if err == nil && next.Check != name {
			if begun == checkAgain {
				return r, fmt.Errorf("check shard %d: its leader has changed %d times meanwhile; try again later", shard, begun)
			}
			begun++
			if next, err = c.CheckShard(ctx, shard); err == nil {
				name = next.Check
			}
		}
		switch {
		case err == nil:
			r, answered = next, time.Now()
		case refused(err), context.Cause(ctx) == nil && time.Since(answered) > time.Minute:
			return r, err
		default: // a node that goes, a leader that is elected
			continue
		}
		if done, total := checkProgress(r); terminal(info) {
			bar.set(int(done), int(total))
		} else if time.Since(told) > tellEvery {
			told = time.Now()
			fmt.Fprintf(info, "check shard %d: %s of about %s\n", shard, count(done), plural(total, "key"))
		}
	}
	return r, nil
}

// refused says that to ask again would bring the same answer.
func refused(err error) bool {
	var answer *client.ServerError
	return errors.As(err, &answer) && !errors.Is(err, client.ErrUnavailable)
}

// checkProgress is how many keys the slowest replica that gets on has read, of about how many.
func checkProgress(r client.ShardCheck) (done, total int64) {
	done = r.RecordsTotal
	for _, p := range r.Replicas {
		if p.Records > 0 {
			done = min(done, p.Records)
		}
	}
	if r.State == "waiting" {
		done = 0
	}
	return done, r.RecordsTotal
}

func printChecks(w io.Writer, checks []client.ShardCheck) error {
	t := newTable(w, "SHARD", "INDEX", "REPLICA", "NODE", "HASH", "RECORDS", "RESULT")
	for _, r := range checks {
		index := fmt.Sprint(r.Index)
		switch {
		case r.Error != "":
			t.row(r.Shard, "-", "-", "-", "-", "-", "failed: "+r.Error)
		case r.Check == "":
			t.row(r.Shard, "-", "-", "-", "-", "-", "never compared")
		}
		for _, p := range r.Replicas {
			result := orDash(p.Result)
			if p.Why != "" {
				result += ": " + p.Why
			}
			if p.Alarm != nil && p.Alarm.Index != r.Index {
				result += fmt.Sprintf("; it %s at index %d", map[string]string{"differs": "differed", "disagrees": "disagreed"}[p.Alarm.Result], p.Alarm.Index)
			}
			t.row(r.Shard, index, p.Replica, p.Node, orDash(p.Hash), p.Records, result)
		}
	}
	return t.flush()
}
