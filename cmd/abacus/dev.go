package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
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

type devUp struct {
	nodes, shards, replicas, basePort int
	dir, abacusd                      string
	detach                            bool
	wait                              time.Duration
}

func newDevUpCommand() *cobra.Command {
	var o devUp
	cmd := &cobra.Command{
		Use:   "up [flags] [-- FLAGS FOR EVERY abacusd]",
		Short: "Start a cluster, or start the one in the directory again with its data",
		Long: `Start a cluster, or start the one in the directory again with its data. A cluster keeps
the number of its nodes, shards and replicas and its ports. Flags for abacusd behind -- are
kept for the next time if the cluster comes up with them, and replace those of before.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); len(args) > 0 && dash != 0 {
				return fmt.Errorf("dev up takes no arguments, received %s (flags for every abacusd go behind --)", shown(args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, args)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.nodes, "nodes", 3, "how many nodes")
	f.IntVar(&o.shards, "shards", 8, "how many shards")
	f.IntVar(&o.replicas, "replicas", 0, "replicas of each shard (default 3, or as many as there are nodes)")
	f.IntVar(&o.basePort, "base-port", 7400, "node n gets base+n, base+100+n, base+200+n and base+300+n")
	devDirFlag(cmd, &o.dir)
	f.StringVar(&o.abacusd, "abacusd", "", "path of abacusd (default: beside abacus, then in PATH)")
	f.BoolVar(&o.detach, "detach", false, "return when the cluster is ready and leave it running")
	f.DurationVar(&o.wait, "wait", 60*time.Second, "how long the cluster may take to become ready")
	return cmd
}

func devDirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "./abacus-dev", "directory of the cluster")
}

func (o *devUp) run(cmd *cobra.Command, args []string) error {
	out := cmd.OutOrStdout()
	info, watched := watchOutput(cmd.Context(), cmd.ErrOrStderr())
	ctx, stop := signal.NotifyContext(watched, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()

	c, err := o.open(cmd)
	if err != nil {
		return err
	}
	running := devRunning(c)
	switch {
	case running == len(c.Nodes()):
		return fmt.Errorf("the cluster in %s is running already: see it with \"%s\", stop it with \"%s\"", o.dir, devCommand(o.dir, "status"), devCommand(o.dir, "down"))
	case len(args) > 0 && running > 0:
		return fmt.Errorf("%s of the cluster in %s runs already, with other flags: stop it first, with \"%s\"", plural(int64(running), "node"), o.dir, devCommand(o.dir, "down"))
	case len(args) > 0:
		c.UseArgs(args)
	}
	if err := c.CheckPorts(); err != nil {
		return fmt.Errorf("%w: stop what listens there; a cluster keeps its ports, so that other ones (--base-port) need another --dir", err)
	}

	logs := startDevLogs(c, info)
	defer logs.Close()
	if o.detach {
		logs.Close() // the nodes' logs are in files; the terminal goes back to its user
	}
	fmt.Fprintf(info, "starting %d nodes, %d shards with %d replicas each, in %s\n", len(c.Nodes()), c.Shards(), c.Replicas(), c.Dir())
	began := time.Now()
	if err := c.Start(); err != nil {
		return errors.Join(err, c.Stop(devStopGrace))
	}
	waitCtx, cancel := context.WithTimeout(ctx, o.wait)
	most := -1
	err = c.WaitReady(waitCtx, func(p proc.Progress) {
		if p.Ready > most {
			most = p.Ready
			fmt.Fprintf(info, "%d of %d shards are ready\n", p.Ready, p.Shards)
		}
	})
	cancel()
	if err != nil {
		fmt.Fprintln(info, "stopping the nodes again")
		err = errors.Join(err, c.Stop(devStopGrace))
		if ctx.Err() != nil {
			return errors.New("interrupted before the cluster was ready; the nodes are stopped")
		}
		return err
	}
	// Only now: flags with which the nodes do not start shall not come back.
	if err := c.KeepArgs(); err != nil {
		return errors.Join(err, c.Stop(devStopGrace))
	}
	fmt.Fprintf(info, "ready after %v: every shard has its voters and a leader\n", time.Since(began).Round(100*time.Millisecond))
	printDevAddrs(out, c)
	fmt.Fprintf(info, "\nlet abacus try them all, whichever is down:\n  export ABACUS_ADDR=%s\n", strings.Join(c.ClientAddrs(), ","))
	fmt.Fprintf(info, "try:\n  %[1]s --addr %[2]s put greeting hello\n  %[1]s --addr %[3]s get greeting\n", self, c.Node(1).Addrs().Client, c.Node(len(c.Nodes())).Addrs().Client)
	if o.detach {
		fmt.Fprintf(info, "the nodes run on; stop them with: %s\n", devCommand(o.dir, "down"))
		return nil
	}
	fmt.Fprintf(info, "the nodes run until Ctrl-C; break one from another terminal: %s\n\n", devCommand(o.dir, "kill "+strconv.Itoa(min(2, len(c.Nodes())))))
	stop() // from here on a second Ctrl-C ends this command at once
	return superviseDev(watched, c, o.dir, info)
}

// devRunning counts the nodes that run.
func devRunning(c *proc.Cluster) int {
	running := 0
	for _, n := range c.Nodes() {
		if n.Running() {
			running++
		}
	}
	return running
}

// validate refuses what no cluster can be; the nodes have the same bounds.
func (o *devUp) validate(changed func(flag string) bool) error {
	lastBase := 65535 - 300 - o.nodes
	switch {
	case o.nodes < 1 || o.nodes > proc.MaxNodes:
		return usagef("--nodes %d: it must be within 1..%d", o.nodes, proc.MaxNodes)
	case o.shards < 1 || o.shards > 256:
		return usagef("--shards %d: it must be within 1..256", o.shards)
	case changed("replicas") && (o.replicas < 1 || o.replicas > 9):
		return usagef("--replicas %d: it must be within 1..9", o.replicas)
	case o.basePort < 1 || o.basePort > lastBase:
		return usagef("--base-port %d: it must be within 1..%d", o.basePort, lastBase)
	case o.wait <= 0:
		return usagef("--wait %v: it must be more than 0", o.wait)
	}
	return nil
}

// open opens the cluster of the directory, or creates it from the flags.
func (o *devUp) open(cmd *cobra.Command) (*proc.Cluster, error) {
	if err := o.validate(cmd.Flags().Changed); err != nil {
		return nil, err
	}
	c, err := proc.Open(o.dir)
	if err == nil && c.Untouched() {
		// Its first start failed before there was any data: nothing is lost with it.
		if err := c.Discard(); err != nil {
			return nil, err
		}
		err = proc.ErrNoCluster
	} else if err == nil {
		// What a cluster is was decided when it was made. A flag that says otherwise
		// is a mistake to point out, not to pass over.
		for _, f := range []struct {
			name      string
			want, got int
		}{{"nodes", o.nodes, len(c.Nodes())}, {"shards", o.shards, c.Shards()}, {"replicas", o.replicas, c.Replicas()}, {"base-port", o.basePort, c.BasePort()}} {
			if cmd.Flags().Changed(f.name) && f.want != f.got {
				return nil, usagef("%s holds a cluster with --%s %d: leave the flag out to start it again, or choose another --dir", o.dir, f.name, f.got)
			}
		}
		return c, nil
	}
	if !errors.Is(err, proc.ErrNoCluster) {
		return nil, err
	}
	abacusd, err := findAbacusd(o.abacusd)
	if err != nil {
		return nil, err
	}
	c, err = proc.Create(proc.Config{Dir: o.dir, Abacusd: abacusd, Nodes: o.nodes, Shards: o.shards, Replicas: o.replicas, BasePort: o.basePort})
	if errors.Is(err, proc.ErrPortInUse) {
		return nil, fmt.Errorf("%w: choose other ports with --base-port, or stop what listens there", err)
	}
	return c, err
}

// findAbacusd looks where it was told, else beside this program, else in PATH.
func findAbacusd(given string) (string, error) {
	if given != "" {
		path, err := exec.LookPath(given)
		if err != nil {
			return "", usagef("--abacusd: %w", err)
		}
		return filepath.Abs(path)
	}
	if self, err := os.Executable(); err == nil {
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), "abacusd")); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("abacusd")
	if err != nil {
		return "", errors.New("abacusd is neither beside abacus nor in PATH: build both with \"make build\", or say where it is with --abacusd")
	}
	return filepath.Abs(path)
}

// superviseDev says what happens to the nodes until Ctrl-C or ctx's end, then
// stops them; it also ends when another command took the cluster down.
func superviseDev(ctx context.Context, c *proc.Cluster, dir string, info io.Writer) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	up := make([]bool, len(c.Nodes()))
	for i := range up {
		up[i] = true
	}
	for {
		select {
		case <-ctx.Done():
			return c.Stop(devStopGrace)
		case <-signals:
			fmt.Fprintln(info, "stopping the nodes; Ctrl-C again kills them")
			done := make(chan error, 1)
			go func() { done <- c.Stop(devStopGrace) }()
			select {
			case err := <-done:
				if err == nil {
					fmt.Fprintf(info, "all nodes have stopped; their data is in %s\n", c.Dir())
				}
				return err
			case <-signals:
				return errors.Join(errors.New("the nodes were killed"), c.Kill(), <-done)
			}
		case <-look.C:
			running := 0
			for i, n := range c.Nodes() {
				now := n.Running()
				if now {
					running++
				}
				if now != up[i] && !c.Down() {
					if now {
						fmt.Fprintf(info, "%s is back (process %d)\n", n.ID(), n.Pid())
					} else {
						fmt.Fprintf(info, "%s has ended; bring it back with: %s\n", n.ID(), devCommand(dir, "restart "+strconv.Itoa(n.N)))
					}
				}
				up[i] = now
			}
			if running == 0 && c.Down() {
				fmt.Fprintln(info, "the cluster was taken down")
				return nil
			}
		}
	}
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
		fmt.Fprintf(w, "%s\t%s\thttp://%s\t%s\t%s\n", n.ID(), a.Client, a.HTTP, a.Cluster, a.Peer)
	}
	_ = w.Flush()
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
