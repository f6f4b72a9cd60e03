package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/chaos/proc"
)

// devStopGrace is how long a node may take to stop by itself: it promises ten
// seconds, and a loaded machine gets some more before the node is killed.
const devStopGrace = 20 * time.Second

// newDevCommand is `abacus dev`: a whole cluster of real abacusd processes on
// this machine, to try things on and to break.
func newDevCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a cluster of real nodes on this machine, and break it",
		Long: `Run a cluster of real abacusd processes on this machine, for trying things out and for
breaking them. Everything lives in one directory; delete it when you have done.

Node n listens on base+n (clients), base+100+n (peers), base+200+n (HTTP) and base+300+n (cluster
clients): with the default base of 7400, clients use 7401, 7402 and 7403.`,
		Example: `  abacus dev up                    # three nodes in the foreground; Ctrl-C stops them
  abacus dev up --detach           # in the background; "abacus dev down" stops them
  abacus dev kill 2                # SIGKILL, as if the machine had died
  abacus dev restart 2
  abacus dev demo                  # a guided tour, in a directory of its own`,
	}
	cmd.AddCommand(newDevUpCommand(), newDevDownCommand(), newDevStatusCommand(), newDemoCommand())
	cmd.AddCommand(
		newDevNodeCommand("kill", "End nodes with SIGKILL, as if their machines had died", devDeed{
			long:  "End nodes with SIGKILL, as if their machines had died, and wait a moment until the others have noticed.",
			act:   func(n *proc.Node) (string, error) { return "was killed; bring it back with: ", n.Kill() },
			undo:  "restart",
			after: devUntilNoticed,
		}),
		newDevRestartCommand(),
		newDevNodeCommand("pause", "Stop nodes where they are (SIGSTOP): connections stay open, nothing is answered", devDeed{
			act:   func(n *proc.Node) (string, error) { return "is paused; let it go on with: ", n.Pause() },
			undo:  "resume",
			after: devUntilNoticed,
		}),
		newDevNodeCommand("resume", "Let paused nodes go on", devDeed{
			act: func(n *proc.Node) (string, error) { return "goes on", n.Resume() },
		}),
	)
	return cmd
}

// devDeed is what a command does to each of the nodes it names.
type devDeed struct {
	long string // for the help; "" is the short text
	// act does it and says what became of the node; undo is the command whose name
	// and node come behind that, if any.
	act  func(*proc.Node) (string, error)
	undo string
	// after, if any, waits for what is to follow on all of them.
	after func(ctx context.Context, c *proc.Cluster, nodes []*proc.Node, dir string, info io.Writer) error
}

// devNotice bounds the wait for the others to notice a dead node. They take it for
// alive for 1.5 s after its last word.
const devNotice = 3 * time.Second

// devUntilNoticed waits until the nodes are known to be gone, so that the next
// look at the cluster does not find it well.
func devUntilNoticed(ctx context.Context, _ *proc.Cluster, nodes []*proc.Node, _ string, info io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, devNotice)
	defer cancel()
	for _, n := range nodes {
		if err := n.WaitNoticed(ctx, false); err != nil {
			fmt.Fprintf(info, "%s is gone, but %v\n", n.ID(), err)
		}
	}
	return nil
}

func devDirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "./abacus-dev", "directory of the cluster")
}

func newDevDownCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop all nodes; the data stays",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := openDev(dir)
			if err != nil {
				return err
			}
			began, what := time.Now(), "all nodes have stopped"
			if devRunning(c) == 0 {
				what = "no node was running"
			}
			if err := c.Stop(devStopGrace); err != nil {
				return err
			}
			if devTook := time.Since(began).Round(100 * time.Millisecond); devTook > 0 {
				what += fmt.Sprintf(" (%v)", devTook)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s; \"%s\" starts them again with their data\n", what, devCommand(dir, "up"))
			return nil
		},
	}
	devDirFlag(cmd, &dir)
	return cmd
}

func openDev(dir string) (*proc.Cluster, error) {
	c, err := proc.Open(dir)
	if errors.Is(err, proc.ErrNoCluster) {
		return nil, fmt.Errorf("%s holds no cluster: start one with \"%s\", or name another directory with --dir", dir, devCommand(dir, "up"))
	}
	return c, err
}

// newDevNodeCommand makes a command that does one thing to each of the nodes it names.
func newDevNodeCommand(name, short string, d devDeed) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:               name + " N…",
		ValidArgsFunction: completeNodes(&dir),
		Short:             short,
		Long:              d.long,
		Args:              takesSome,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := openDev(dir)
			if err != nil {
				return err
			}
			var nodes []*proc.Node
			for _, a := range args {
				n, err := strconv.Atoi(strings.TrimPrefix(a, "n"))
				if err != nil || n < 1 || n > len(c.Nodes()) {
					return usagef("%q is no node: they are numbered 1 to %d", a, len(c.Nodes()))
				}
				nodes = append(nodes, c.Node(n))
			}
			for _, n := range nodes {
				done, err := d.act(n)
				if err != nil {
					return err
				}
				if d.undo != "" {
					done += devCommand(dir, d.undo+" "+strconv.Itoa(n.N))
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "%s %s\n", n.ID(), done)
			}
			if d.after == nil {
				return nil
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return d.after(ctx, c, nodes, dir, cmd.ErrOrStderr())
		},
	}
	devDirFlag(cmd, &dir)
	return cmd
}

// newDevRestartCommand is `abacus dev restart`, which waits as `abacus dev up` does.
func newDevRestartCommand() *cobra.Command {
	var (
		noWait bool
		wait   time.Duration
	)
	cmd := newDevNodeCommand("restart", "Start nodes again, stopping those that run", devDeed{
		long: "Start nodes again, stopping those that run, and wait until the cluster is well. While other nodes are\ndown it cannot be: then until these nodes answer and the others have noticed.",
		act:  devRestart,
		after: func(ctx context.Context, c *proc.Cluster, nodes []*proc.Node, dir string, info io.Writer) error {
			if noWait {
				return nil
			}
			ctx, cancel := context.WithTimeout(ctx, wait)
			defer cancel()
			return devUntilWell(ctx, c, nodes, dir, info)
		},
	})
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return as soon as the nodes answer")
	cmd.Flags().DurationVar(&wait, "wait", 60*time.Second, "how long the cluster may take to be well")
	return cmd
}

func devUntilWell(ctx context.Context, c *proc.Cluster, nodes []*proc.Node, dir string, info io.Writer) error {
	for _, n := range nodes {
		if err := n.WaitNoticed(ctx, true); err != nil {
			return fmt.Errorf("%s is up, and %w; look with: %s", n.ID(), err, devCommand(dir, "status"))
		}
	}
	for _, row := range devNodes(c) {
		if row.State != "running" {
			fmt.Fprintf(info, "%s is still %s\n", row.ID, row.State)
			return nil
		}
	}
	if err := c.WaitReady(ctx, nil); err != nil {
		return fmt.Errorf("%w; look with: %s", err, devCommand(dir, "status"))
	}
	fmt.Fprintln(info, "the cluster is well")
	return nil
}

func devRestart(n *proc.Node) (string, error) {
	if err := n.Stop(devStopGrace); err != nil && !errors.Is(err, proc.ErrNotRunning) {
		return "", err
	}
	if err := n.Start(); err != nil {
		return "", err
	}
	// Up is when it answers. A node that cannot start says why in its log.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		if _, err := n.Status(ctx); err == nil {
			return fmt.Sprintf("is up (process %d)", n.Pid()), nil
		} else if ctx.Err() != nil {
			return "", fmt.Errorf("%s was started and does not answer: %w; see %s", n.ID(), err, n.LogPath())
		}
		if !n.Running() {
			return "", fmt.Errorf("%s %w; its log %s ends with:\n%s", n.ID(), proc.ErrExited, n.LogPath(), n.LogTail(15))
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// devCommand is a command on the cluster in a directory as its user would type it.
func devCommand(dir, command string) string { return self + " dev " + command + devDirArg(dir) }

// devDirArg is the flag to repeat in advice, nothing for the default directory.
func devDirArg(dir string) string {
	if dir == "./abacus-dev" {
		return ""
	}
	return " --dir " + proc.Shell([]string{dir})
}
