package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/chaos/proc"
)

func newDevStatusCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the processes and whether the cluster is well",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := openDev(dir)
			if err != nil {
				return err
			}
			return printDevStatus(cmd, c, dir)
		},
	}
	devDirFlag(cmd, &dir)
	return cmd
}

// devNodeStatus is a row of `abacus dev status`.
type devNodeStatus struct {
	ID      string `json:"id"`
	State   string `json:"state"` // running, paused or down
	Pid     int    `json:"pid,omitempty"`
	Client  string `json:"client"`
	Peer    string `json:"peer"`
	HTTP    string `json:"http"`
	Cluster string `json:"cluster"`
	Log     string `json:"log"`
}

func devNodes(c *proc.Cluster) []devNodeStatus {
	var rows []devNodeStatus
	for _, n := range c.Nodes() {
		a := n.Addrs()
		row := devNodeStatus{ID: n.ID(), State: "down", Pid: n.Pid(), Client: a.Client, Peer: a.Peer, HTTP: a.HTTP, Cluster: a.Cluster, Log: n.LogPath()}
		if row.Pid != 0 {
			row.State = "running"
		}
		if n.Paused() {
			row.State = "paused"
		}
		rows = append(rows, row)
	}
	return rows
}

func printDevStatus(cmd *cobra.Command, c *proc.Cluster, dir string) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
	defer cancel()
	rows := devNodes(c)
	status, statusErr := c.Status(ctx)
	// What the processes are is known here better than in the cluster, which takes a
	// moment to notice.
	var problems, notes []string
	running := 0
	for _, r := range rows {
		if r.State == "running" {
			running++
		} else {
			problems = append(problems, r.ID+" is "+r.State)
		}
	}
	if statusErr == nil {
		var sick []sickShard
		for _, s := range status.Shards {
			if !s.Healthy {
				sick = append(sick, sickShard{s.ID, s.Problem})
			}
		}
		problems, notes = append(problems, together(status.Problems, sick)...), status.Notes
	}
	healthy := statusErr == nil && status.Healthy && len(problems) == 0
	out := cmd.OutOrStdout()
	if f := cmd.Flag("output"); f != nil && f.Value.String() == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(struct {
			Dir     string          `json:"dir"`
			Healthy bool            `json:"healthy"`
			Nodes   []devNodeStatus `json:"nodes"`
			Cluster *proc.Status    `json:"cluster"`
		}{c.Dir(), healthy, rows, status}); err != nil {
			return fmt.Errorf("write the status: %w", err)
		}
	} else {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NODE\tSTATE\tPROCESS\tCLIENT\tPEER\tHTTP\tCLUSTER\tLOG")
		for _, r := range rows {
			pid := "-"
			if r.Pid != 0 {
				pid = strconv.Itoa(r.Pid)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.State, pid, r.Client, r.Peer, r.HTTP, r.Cluster, r.Log)
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("write the status: %w", err)
		}
	}
	switch {
	case devRunning(c) == 0:
		return fmt.Errorf("no node is running; start them with: %s", devCommand(dir, "up"))
	case statusErr != nil && running == 0:
		return fmt.Errorf("the cluster does not answer: %s", strings.Join(problems, "; "))
	case statusErr != nil:
		return fmt.Errorf("the cluster does not answer: %w", statusErr)
	case !healthy:
		return fmt.Errorf("the cluster is not well: %s", strings.Join(problems, "; "))
	}
	for _, n := range notes {
		fmt.Fprintln(cmd.ErrOrStderr(), "note:", n)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "the cluster is well: %d shards, %d nodes\n", len(status.Shards), len(status.Nodes))
	return nil
}

func printDevAddrs(out io.Writer, c *proc.Cluster) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tCLIENT\tHTTP\tCLUSTER\tPEER")
	for _, n := range c.Nodes() {
		a := n.Addrs()
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", n.ID(), a.Client, n.URL(""), a.Cluster, a.Peer)
	}
	_ = w.Flush()
}
