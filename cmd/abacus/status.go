package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
)

func newStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show nodes, shards, leaders and lag, and name what is sick",
		Long: `Show the cluster as one of its nodes sees it: nodes, shards, their leaders and voters, and
how far each replica is behind. Exit code 1 if anything is sick; it is named at the end.`,
		Example: `  abacus status
  abacus status --addr 10.0.0.1:7401,10.0.0.2:7401
  abacus status -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				text, err := c.StatusJSON(ctx)
				if err != nil {
					return err
				}
				var st client.Status
				if err := json.Unmarshal(text, &st); err != nil {
					return fmt.Errorf("parse the cluster's status: %w", err)
				}
				out := cmd.OutOrStdout()
				if a.json() {
					err = writeJSON(out, json.RawMessage(text))
				} else {
					err = printStatus(out, st)
				}
				if err != nil {
					return err
				}
				if sick := problems(st); len(sick) > 0 {
					return &exitError{exitFailed, fmt.Errorf("the cluster is not well: %s", firstOf(sick, 2))}
				}
				return nil
			})
		},
	}
}

// problems are the sentences that name what is sick, none for a healthy cluster.
func problems(st client.Status) []string {
	out := st.Problems
	if len(out) == 0 && !st.Healthy {
		for _, s := range st.Shards {
			if !s.Healthy {
				out = append(out, fmt.Sprintf("shard %d: %s", s.ID, s.Problem))
			}
		}
		if len(out) == 0 {
			out = []string{"the node gives no reason"}
		}
	}
	return out
}

// firstOf is the first sentences, and how many more there are.
func firstOf(all []string, n int) string {
	if more := len(all) - n; more > 0 {
		return fmt.Sprintf("%s; and %d more", strings.Join(all[:n], "; "), more)
	}
	return strings.Join(all, "; ")
}

func printStatus(w io.Writer, st client.Status) error {
	var records int64
	for _, s := range st.Shards {
		records += s.Records
	}
	fmt.Fprintf(w, "cluster %s, map epoch %d, %s, %s of %s, %s; seen by %s\n\n", st.ClusterID, st.Epoch, plural(int64(len(st.Nodes)), "node"),
		plural(int64(len(st.Shards)), "shard"), plural(int64(st.ReplicasWanted), "replica"), plural(records, "key"), st.Node)

	t := newTable(w, "NODE", "STATE", "LEADS", "REPLICAS", "UPTIME", "VERSION", "CLIENT", "CLUSTER", "PEER", "HTTP")
	for _, n := range st.Nodes {
		state, uptime := "alive", (time.Duration(n.UptimeMillis) * time.Millisecond).Round(time.Second).String()
		if !n.Alive {
			state, uptime = "DOWN", "-"
		}
		t.row(n.ID, state, n.Leads, n.Replicas, uptime, orDash(n.Version), n.Addrs.Client, n.Addrs.Cluster, n.Addrs.Peer, n.Addrs.HTTP)
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)

	t = newTable(w, "SHARD", "SLOTS", "LEADER", "TERM", "KEYS", "VOTERS", "MAX LAG", "REPLICAS", "STATE")
	for _, s := range st.Shards {
		voters, lag := 0, int64(0)
		var replicas []string
		for _, r := range s.Replicas {
			if r.Voter {
				voters++
			}
			lag = max(lag, r.Lag)
			replicas = append(replicas, replicaCell(r))
		}
		state := "ok"
		if !s.Healthy {
			state = "SICK: " + s.Problem
		}
		t.row(s.ID, s.Slots, orDash(s.Leader), s.Term, s.Records, fmt.Sprintf("%d of %d", voters, max(len(s.Replicas), st.ReplicasWanted)), lag, strings.Join(replicas, " "), state)
	}
	if err := t.flush(); err != nil {
		return err
	}
	sick := problems(st)
	if len(sick) == 0 {
		fmt.Fprintln(w, "\nall is well")
		return nil
	}
	fmt.Fprintf(w, "\nsick:\n")
	for _, p := range sick {
		fmt.Fprintf(w, "  %s\n", shown(p))
	}
	return nil
}

// replicaCell names a replica, with what is not as it should be: n1* n2 n3(learner,-120).
func replicaCell(r client.ReplicaStatus) string {
	switch r.State {
	case "leader":
		return r.Node + "*"
	case "follower":
		if r.Lag > 0 {
			return fmt.Sprintf("%s(-%d)", r.Node, r.Lag)
		}
		return r.Node
	}
	if r.Lag > 0 {
		return fmt.Sprintf("%s(%s,-%d)", r.Node, r.State, r.Lag)
	}
	return fmt.Sprintf("%s(%s)", r.Node, r.State)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
