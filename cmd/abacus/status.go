package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
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
how far each replica is behind. Exit code 1 if anything is sick; it is named at the end. A
node that died counts as alive for 1.5 seconds after its last word.

A note is no sickness: a cluster that is as large as its nodes allow, with 1 of 3 replicas
on one node, say, is well, and the note says what it cannot survive.`,
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
				switch sick := problems(st); {
				case len(sick) == 0:
					return nil
				case a.json():
					return &exitError{exitFailed, fmt.Errorf("the cluster is not well: %s", firstOf(sick, 2))}
				}
				return &exitError{exitFailed, errors.New("the cluster is not well")} // what is sick, the table says
			})
		},
	}
}

// problems are the sentences that name what is sick, none for a healthy cluster.
// Shards with one and the same problem share a sentence.
func problems(st client.Status) []string {
	if st.Healthy {
		return nil
	}
	var sick []sickShard
	for _, s := range st.Shards {
		if !s.Healthy {
			sick = append(sick, sickShard{s.ID, s.Problem})
		}
	}
	if out := together(st.Problems, sick); len(out) > 0 {
		return out
	}
	return []string{"the node gives no reason"}
}

type sickShard struct {
	id      uint32
	problem string
}

// together makes one sentence of those about shards with one problem.
func together(all []string, sick []sickShard) []string {
	var out, ills []string
	shards := map[string][]string{} // by what they suffer from
	told := map[string]bool{}       // among all
	for _, s := range sick {
		told[fmt.Sprintf("shard %d: %s", s.id, s.problem)] = true
		if shards[s.problem] == nil {
			ills = append(ills, s.problem)
		}
		shards[s.problem] = append(shards[s.problem], strconv.FormatUint(uint64(s.id), 10))
	}
	for _, p := range all {
		if !told[p] {
			out = append(out, p)
		}
	}
	for _, ill := range ills {
		word := "shard"
		if len(shards[ill]) > 1 {
			word = "shards"
		}
		out = append(out, fmt.Sprintf("%s %s: %s", word, strings.Join(shards[ill], ", "), ill))
	}
	return out
}

// keyTotal is how many keys there are. Who counts them is the leader: a shard
// without one is not counted, and the total says so.
func keyTotal(st client.Status) string {
	var records, uncounted int64
	for _, s := range st.Shards {
		if s.Leader == "" {
			uncounted++
		} else {
			records += s.Records
		}
	}
	if uncounted > 0 {
		return fmt.Sprintf("at least %s (%s not counted)", plural(records, "key"), plural(uncounted, "shard"))
	}
	return plural(records, "key")
}

// firstOf is the first sentences, and how many more there are.
func firstOf(all []string, n int) string {
	if more := len(all) - n; more > 0 {
		return fmt.Sprintf("%s; and %d more", strings.Join(all[:n], "; "), more)
	}
	return strings.Join(all, "; ")
}

func printStatus(w io.Writer, st client.Status) error {
	fmt.Fprintf(w, "cluster %s, map epoch %d, %s, %s of %s, %s; seen by %s\n\n", st.ClusterID, st.Epoch, plural(int64(len(st.Nodes)), "node"),
		plural(int64(len(st.Shards)), "shard"), plural(int64(st.ReplicasWanted), "replica"), keyTotal(st), st.Node)

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
		state, term, keys := "ok", fmt.Sprint(s.Term), fmt.Sprint(s.Records)
		if !s.Healthy {
			state = "SICK"
		}
		if s.Leader == "" { // who else would know?
			term, keys = "?", "?"
		}
		t.row(s.ID, someSlots(s.Slots), orDash(s.Leader), term, keys, fmt.Sprintf("%d of %d", voters, max(len(s.Replicas), st.ReplicasWanted)), lag, strings.Join(replicas, " "), state)
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	if n := slotMovesNote(st); n != "" {
		fmt.Fprintln(w, "note:", shown(n))
	}
	for _, n := range st.Notes {
		fmt.Fprintln(w, "note:", shown(n))
	}
	sick := problems(st)
	if len(sick) == 0 {
		fmt.Fprintln(w, "all is well")
		return nil
	}
	fmt.Fprintln(w, "sick:")
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
