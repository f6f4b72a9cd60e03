package main

import (
	"context"
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
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/chaos/proc"
)

type devUp struct {
	nodes, shards, replicas, basePort int
	dir, abacusd                      string
	detach, tls                       bool
	wait                              time.Duration
}

func newDevUpCommand() *cobra.Command {
	var o devUp
	cmd := &cobra.Command{
		Use:   "up [flags] [-- FLAGS FOR EVERY abacusd]",
		Short: "Start a cluster, or start the one in the directory again with its data",
		Long: `Start a cluster, or start the one in the directory again with its data. A cluster keeps
the number of its nodes, shards and replicas, its ports, and whether it speaks TLS. Flags for
abacusd behind --, and another --abacusd, are kept for the next time if the cluster comes up
with them, and replace those of before.`,
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
	f.StringVar(&o.abacusd, "abacusd", "", "path of abacusd (default: that which the cluster came up with last; for a new one beside abacus, then in PATH)")
	f.BoolVar(&o.detach, "detach", false, "return when the cluster is ready and leave it running")
	f.BoolVar(&o.tls, "tls", false, "have a new cluster speak TLS on all ports, with certificates made for it")
	f.DurationVar(&o.wait, "wait", 60*time.Second, "how long the cluster may take to become ready")
	return cmd
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
	if err := c.Keep(); err != nil {
		return errors.Join(err, c.Stop(devStopGrace))
	}
	fmt.Fprintf(info, "ready after %v: every shard has its voters and a leader\n", time.Since(began).Round(100*time.Millisecond))
	printDevAddrs(out, c)
	fmt.Fprintf(info, "\nlet abacus try them all, whichever is down:\n  export ABACUS_ADDR=%s\n", strings.Join(c.ClientAddrs(), ","))
	if c.TLS() {
		fmt.Fprintf(info, "  export ABACUS_CA=%s\n", proc.Shell([]string{c.CA()}))
	}
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
		if cmd.Flags().Changed("tls") && o.tls != c.TLS() {
			return nil, usagef("%s holds a cluster with --tls=%v: leave the flag out to start it again, or choose another --dir", o.dir, c.TLS())
		}
		if o.abacusd == "" {
			return c, nil
		}
		abacusd, err := findAbacusd(o.abacusd)
		if err != nil || abacusd == c.Abacusd() {
			return c, err
		}
		if running := devRunning(c); running > 0 {
			return nil, fmt.Errorf("%s of the cluster in %s runs already, with %s: stop it first, with \"%s\"", plural(int64(running), "node"), o.dir, c.Abacusd(), devCommand(o.dir, "down"))
		}
		c.UseAbacusd(abacusd) // as after an upgrade
		return c, nil
	}
	if !errors.Is(err, proc.ErrNoCluster) {
		return nil, err
	}
	abacusd, err := findAbacusd(o.abacusd)
	if err != nil {
		return nil, err
	}
	c, err = proc.Create(proc.Config{Dir: o.dir, Abacusd: abacusd, Nodes: o.nodes, Shards: o.shards, Replicas: o.replicas, BasePort: o.basePort, TLS: o.tls})
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
