package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/sharding"
)

func newDeadAfterCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "dead-after [DURATION|off]",
		Short: "After how long a silent node's replicas are made anew elsewhere: never, unless it is said",
		Long: fmt.Sprintf(`Say after how long a node that nobody hears is taken for dead: then what it had is made anew on other nodes, from the others'
replicas, as after "node drain". %v to %v, or off, which is how a cluster begins. Without an argument, show it.

It is done for one node at a time; only while more than half of the nodes are heard, and as many others as a shard wants replicas; and only for
shards that have a majority without it. "abacus status" says why a silent node is not taken for dead. A node that is heard again may have replicas
again: what was moved stays where it is until "abacus rebalance". Choose more than the longest that a machine of yours takes to start.`, durationText(sharding.MinDeadAfter), durationText(sharding.MaxDeadAfter)),
		Example: `  abacus node dead-after 10m
  abacus node dead-after off`,
		Args: takes(0, 1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"off", "10m", "1h"}, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			done := "silent nodes are not taken for dead"
			if len(args) > 0 && args[0] != "off" {
				after, err := time.ParseDuration(args[0])
				if err != nil || after < sharding.MinDeadAfter || after > sharding.MaxDeadAfter {
					return usagef("dead-after %q: want a time such as 10m, from %s to %s, or off", args[0], durationText(sharding.MinDeadAfter), durationText(sharding.MaxDeadAfter))
				}
				done = fmt.Sprintf("a node that is silent for %s is taken for dead: its replicas are made anew elsewhere", durationText(after))
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				if len(args) > 0 {
					return a.admin(ctx, cmd, c, done, "node", "dead-after", args[0])
				}
				return a.showDeadAfter(ctx, cmd, c)
			})
		},
	}
}

func (a *app) showDeadAfter(ctx context.Context, cmd *cobra.Command, c *client.Client) error {
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if a.json() {
		return writeJSON(cmd.OutOrStdout(), map[string]int64{"dead_after_ms": st.DeadAfterMillis})
	}
	after := "off"
	if st.DeadAfterMillis > 0 {
		after = durationText(time.Duration(st.DeadAfterMillis) * time.Millisecond)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), after)
	return err
}

// durationText is 10m, not 10m0s.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
