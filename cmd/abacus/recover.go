package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/sharding"
)

// recoveryPlan is the answer to "recover plan".
type recoveryPlan struct {
	ClusterID string `json:"cluster_id"`
	Phrase    string `json:"phrase"`
	sharding.Recovery
	Total  int      `json:"shards_in_all"`
	Wanted int      `json:"replicas_wanted"`
	Left   []string `json:"nodes_left"`
}

// recoverPatience is how long a recovery may take: each shard's log is applied and its state written.
const recoverPatience = 15 * time.Minute

func newRecoverCommand(a *app) *cobra.Command {
	var lost []string
	var dry, empty bool
	var confirm string
	cmd := &cobra.Command{
		Use:   "recover --lost NODE,NODE...",
		Short: "Go on without the majority of a shard's replicas, which is lost for good",
		Long: `Have shards that have lost the majority of their replicas go on with what is left. THIS MAY LOSE WRITES that were
acknowledged: those that only the lost nodes had. While there is hope that enough of the nodes come back, wait for them instead.

The nodes in --lost are given up for ever: they must not answer, and if they come back with their old disks they are refused,
and end by themselves. All other nodes must answer. For each shard without a majority the replica whose log is furthest goes on, alone,
with all that is in its log; shards that have their majority lose nothing. It shows what it would do and asks for a phrase to be typed, which a
script gives with --confirm, having read it with --dry-run -o json. From then on there is no way back. If it is interrupted,
say it again.

--start-empty also lets shards begin anew, WITHOUT ANY OF THEIR DATA, of which no replica is left.

Make sure that the lost nodes cannot be reached by clients, either: as long as they see no node that is left, they do not know. Never do this
on both sides of a network that is parted.`,
		Example: `  abacus recover --lost n2,n3 --dry-run
  abacus recover --lost n2,n3`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dry && confirm != "" {
				return usagef("--dry-run and --confirm exclude each other")
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				args := []string{"none"}
				if len(lost) > 0 {
					args[0] = strings.Join(lost, ",")
				}
				if empty {
					args = append(args, "empty")
				}
				return a.recover(ctx, cmd, c, args, dry, confirm)
			})
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&lost, "lost", nil, "nodes that are lost for good; none if it is only their files that are damaged")
	f.BoolVar(&dry, "dry-run", false, "only show what would be done, and the phrase")
	f.BoolVar(&empty, "start-empty", false, "shards of which nothing is left begin anew, without their data")
	f.StringVar(&confirm, "confirm", "", "the phrase, instead of being asked for it")
	return cmd
}

func (a *app) recover(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string, dry bool, confirm string) error {
	raw, err := c.Admin(ctx, append([]string{"recover", "plan"}, args...)...)
	if err != nil {
		return err
	}
	var p recoveryPlan
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("parse the plan: %w", err)
	}
	out, info := cmd.OutOrStdout(), cmd.ErrOrStderr()
	switch {
	case dry && a.json():
		return writeJSON(out, json.RawMessage(raw))
	case dry:
		if err := printRecovery(out, p); err != nil {
			return err
		}
		_, err := fmt.Fprintf(out, "\nto carry it out, leave out --dry-run and type, or give with --confirm: %s\n", p.Phrase)
		return err
	case confirm == "":
		if err := printRecovery(info, p); err != nil {
			return err
		}
		if !terminal(cmd.InOrStdin()) {
			return usagef("nobody is there to confirm it: read the phrase with --dry-run, and give it with --confirm")
		}
		fmt.Fprintf(info, "\nThere is no way back. To go on, type %s\n> ", p.Phrase)
		if confirm, err = readLine(ctx, cmd.InOrStdin()); err != nil {
			return err
		}
	}
	if confirm != p.Phrase {
		return &exitError{exitFailed, fmt.Errorf("nothing was done: %q is not the phrase %s", confirm, p.Phrase)}
	}
	done, err := a.runRecovery(ctx, info, c, append([]string{"recover", "run", p.Phrase}, args...))
	if err != nil {
		return err
	}
	if err := a.awaitLeaders(ctx, c, p); err != nil {
		return err
	}
	if a.json() {
		return writeJSON(out, json.RawMessage(done))
	}
	_, err = fmt.Fprintf(out, "recovered and served again: %s, on one replica each to begin with; others follow on nodes that are there or join (abacusd --join); see: %s\n",
		plural(int64(len(p.Shards)), "shard"), a.try("status"))
	return err
}

// runRecovery says it until it is done: it takes as long as it takes, and each attempt goes on where the last one was.
func (a *app) runRecovery(ctx context.Context, info io.Writer, c *client.Client, words []string) ([]byte, error) {
	began, told := time.Now(), time.Now()
	for {
		raw, err := c.Admin(ctx, words...)
		again := errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrTimeout) || errors.Is(err, client.ErrUncertain) || err != nil && strings.HasPrefix(serverCode(err), "TRYAGAIN")
		if err == nil || !again || context.Cause(ctx) != nil || time.Since(began) > recoverPatience {
			return raw, err
		}
		if time.Since(told) > 5*time.Second {
			told = time.Now()
			fmt.Fprintf(info, "recover: %v\n", err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// serverCode is the text of a server's refusal, which begins with its code.
func serverCode(err error) string {
	var e *client.ServerError
	if errors.As(err, &e) {
		return e.Error()
	}
	return ""
}

// awaitLeaders waits until what was recovered is served.
func (a *app) awaitLeaders(ctx context.Context, c *client.Client, p recoveryPlan) error {
	began := time.Now()
	for {
		st, err := c.Status(ctx)
		var without []string
		if err == nil {
			for _, s := range st.Shards {
				if s.Leader == "" && slices.ContainsFunc(p.Shards, func(l sharding.LostShard) bool { return l.Shard == s.ID }) {
					without = append(without, fmt.Sprint(s.ID))
				}
			}
			if st.Epoch >= p.Epoch && len(without) == 0 {
				return nil
			}
			err = fmt.Errorf("the shards are recovered, and %s of them not served yet (%s); see: %s", plural(int64(len(without)), "shard"), firstOf(without, 8), a.try("status"))
		}
		if time.Since(began) > time.Minute {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func printRecovery(w io.Writer, p recoveryPlan) error {
	lost := "no node is given up"
	if len(p.Lost) > 0 {
		lost = "given up for ever: " + strings.Join(p.Lost, ", ")
	}
	fmt.Fprintf(w, "cluster %s, %s; nodes that stay: %s\n%d of %d shards have lost their majority; the others are not touched, but for replicas on nodes that are given up.\n\n",
		p.ClusterID, lost, strings.Join(p.Left, ", "), len(p.Shards), p.Total)
	t := newTable(w, "SHARD", "REPLICA", "LAST TERM", "LAST INDEX", "COMMITTED", "KEYS", "VOTES", "")
	gone := 0
	for _, l := range p.Shards {
		votes := fmt.Sprintf("%d of %d", l.VotersLeft, l.Voters)
		if l.From == nil {
			gone++
			t.row(l.Shard, l.To.ID, "-", "-", "-", 0, votes, "NOTHING IS LEFT: begins anew, empty")
		}
		for _, v := range l.Left {
			what := "given up"
			switch {
			case l.From != nil && v.Replica == l.From.Replica:
				what = "goes on, as " + l.To.ID
			case v.Problem != "":
				what = "of no use: " + v.Problem
			}
			t.row(l.Shard, v.Replica, v.Last.Term, v.Last.Index, v.Commit, v.Records, votes, what)
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, `
What may be lost: every write to these shards that was acknowledged and is behind the last index of the replica that goes on; only the lost
nodes had it, and nobody here can say how many there were. What may appear: writes up to that index and above "committed", whether or not they were ever acknowledged.
`)
	if gone > 0 {
		fmt.Fprintf(w, "All keys of %s are lost.\n", plural(int64(gone), "shard"))
	}
	return nil
}

// readLine reads what is typed.
func readLine(ctx context.Context, r io.Reader) (string, error) {
	type typed struct {
		line string
		err  error
	}
	lines := make(chan typed, 1)
	go func() { // it may never return, and the process ends
		line, err := bufio.NewReader(r).ReadString('\n')
		lines <- typed{line, err}
	}()
	select {
	case l := <-lines:
		if l.err != nil && l.line == "" {
			return "", &exitError{exitFailed, errors.New("nothing was done: nothing was typed")}
		}
		return strings.TrimSpace(l.line), nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}
