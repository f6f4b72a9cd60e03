package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
)

func newNodeCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Nodes: list, drain, replace, remove",
		Long: `Nodes of the cluster, and what they are to hold. To take a node out: drain it, which moves its
replicas to other nodes while everything is served, then remove it, which ends it. A node that
is dead and does not come back is drained in the same way: its replicas are made anew from the
others; the cluster does that by itself if it is told after how long (dead-after). Each of these can be repeated after any failure.`,
		Example: `  abacus node list
  abacus node drain n3 && abacus node remove n3
  abacus node replace n3 n6               # n6 was started with abacusd --join`,
	}
	cmd.AddCommand(newListCommand(a, "List nodes with what they hold and what was said of them", func(st client.Status) any { return st.Nodes }, printNodes), newNodeDrainCommand(a), newNodeReplaceCommand(a), newNodeRemoveCommand(a), newDeadAfterCommand(a),
		newNodeVerb(a, "cordon", "Have a node get no more replicas; what it has stays", "cordoned: it gets no more replicas"),
		newNodeVerb(a, "uncordon", "Let a node have replicas again, and end its draining", "in use again; moves that were begun go on"))
	return cmd
}

func printNodes(w io.Writer, st client.Status) error {
	arriving, leaving := map[string]int{}, map[string]int{}
	for _, s := range st.Shards {
		if s.Move != nil {
			arriving[nodeOf(s.Move.To)]++
			leaving[nodeOf(s.Move.From)]++
		}
	}
	t := newTable(w, "NODE", "STATE", "ZONE", "LEADS", "REPLICAS", "ARRIVING", "LEAVING", "DISK FREE", "CLIENT", "PEER")
	for _, n := range st.Nodes {
		disk := "-"
		if n.Alive {
			disk = byteCount(int64(n.DiskFree))
		}
		t.row(n.ID, nodeState(n), orDash(n.Zone), n.Leads, n.Replicas, arriving[n.ID], leaving[n.ID], disk, n.Addrs.Client, n.Addrs.Peer)
	}
	return t.flush()
}

func nodeState(n client.NodeStatus) string {
	words := []string{"alive"}
	if !n.Alive {
		words[0] = "DOWN"
	}
	switch {
	case n.Draining && n.Successor != "":
		words = append(words, "drains to "+n.Successor)
	case n.Draining:
		words = append(words, "drains")
	case n.Cordoned:
		words = append(words, "cordoned")
	}
	if n.Dead {
		words = append(words, "taken for dead")
	}
	return strings.Join(words, ", ")
}

// nodeOf is a replica's node: n3 of n3.17.
func nodeOf(replica string) string { return replica[:max(strings.LastIndexByte(replica, '.'), 0)] }

func newNodeVerb(a *app, verb, short, done string) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " NODE",
		Short:             short,
		Args:              takes(1, 1),
		ValidArgsFunction: completeMembers(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				return a.admin(ctx, cmd, c, fmt.Sprintf("node %s is %s", args[0], done), "node", verb, args[0])
			})
		},
	}
}

func newNodeDrainCommand(a *app) *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Move all replicas of a node to other nodes, while everything is served",
		Long: `Move all replicas of a node to other nodes, a few at a time, and wait until it has none. The node goes
on to run and to forward commands. A shard is never without its majority: where there is no room for a replica elsewhere, the
drain is refused, and says of which shards. Ctrl-C ends the waiting, not the drain; "node uncordon" ends that.`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeMembers(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				return a.drain(ctx, cmd, c, noWait, args[0])
			})
		},
	}
	waitFlag(cmd, &noWait)
	return cmd
}

func newNodeReplaceCommand(a *app) *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use:   "replace OLD NEW",
		Short: "Move all replicas of a node, dead or alive, to one that has joined for that",
		Long: `Move all replicas of a node to another that was started with abacusd --join, and wait until that is done. The old node may be
dead: its replicas are made anew from the others. Then remove the old one.`,
		Args:              takes(2, 2),
		ValidArgsFunction: completeMembers(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				return a.drain(ctx, cmd, c, noWait, args[0], args[1])
			})
		},
	}
	waitFlag(cmd, &noWait)
	return cmd
}

func (a *app) drain(ctx context.Context, cmd *cobra.Command, c *client.Client, noWait bool, nodes ...string) error {
	node := nodes[0]
	if noWait {
		return a.admin(ctx, cmd, c, "node "+node+" drains; see: "+a.try("shard list"), append([]string{"node", "drain"}, nodes...)...)
	}
	epoch, err := begin(ctx, c, append([]string{"node", "drain"}, nodes...)...)
	if err != nil {
		return err
	}
	left := func(st client.Status) (left, moving []client.ShardStatus, gone bool) {
		for _, s := range st.Shards {
			for _, r := range s.Replicas {
				if r.Node == node {
					left = append(left, s)
					if s.Move != nil && nodeOf(s.Move.From) == node {
						moving = append(moving, s)
					}
				}
			}
		}
		for _, n := range st.Nodes {
			if n.ID != node || !n.Draining {
				continue
			}
			for range n.Replicas - len(left) { // moved, and not dropped yet: its groups may still count it
				left = append(left, client.ShardStatus{})
			}
			return left, moving, false
		}
		return left, moving, true
	}
	again := "node drain " + node
	if len(nodes) > 1 {
		again = "node replace " + strings.Join(nodes, " ")
	}
	if err := a.await(ctx, cmd, c, waitFor{what: "drain " + node, epoch: epoch, again: again, look: left}); err != nil {
		return err
	}
	return a.carriedOut(cmd, fmt.Sprintf("node %s has no replicas any more, and may be stopped; to take it out of the cluster: %s", node, a.try("node remove "+node)))
}

func newNodeRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NODE",
		Short: "Take a node out of the cluster that holds no replicas any more",
		Long: `Take a node out of the cluster that holds no replicas any more (see drain). It ends by itself if it runs, and can never come back with the same data
directory; with an empty one it may join anew.`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeMembers(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				return a.adminOr(ctx, cmd, c, fmt.Sprintf("node %s is out of the cluster", args[0]),
					fmt.Sprintf("there is no node %s in the cluster, or not any more: see %s", args[0], a.try("node list")), "node", "remove", args[0])
			})
		},
	}
}
