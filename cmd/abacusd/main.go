// Command abacusd runs one Abacus node.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/node"
)

// version is set by the linker (Makefile).
var version = "dev"

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1              // could not start, or a loop failed
	exitUsage  = 2              // flags, environment or configuration file
	exitForced = 3              // a second signal, or the graceful stop took too long
	exitFatal  = node.ExitFatal // 70: the disk failed or hung
)

func main() {
	tuneRuntime()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	cmd := newCommand(stderr)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.Execute()
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "abacusd: %v\nRun 'abacusd --help' for the flags.\n", err)
		return exitUsage
	case errors.Is(err, errForced):
		fmt.Fprintf(stderr, "abacusd: %v\n", err)
		return exitForced
	}
	fmt.Fprintf(stderr, "abacusd: %v\n", err)
	return exitFailed
}

// usageError is a mistake in flags, environment or configuration file.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

var errForced = errors.New("stopped at once; the data directory is as after a crash, and safe")

func newCommand(stderr io.Writer) *cobra.Command {
	cfg := node.DefaultConfig()
	cfg.Version = version
	opts := options{logLevel: "info", logFormat: "text"}
	cmd := &cobra.Command{
		Use:     "abacusd",
		Short:   "One node of an Abacus cluster",
		Version: version + " (" + goVersion() + ")",
		Long: `abacusd runs one node of Abacus, a durable, linearizable, hash-partitioned
key-value database that also computes.

The first node of a cluster bootstraps it, the others join through the peer
address of any member:

  abacusd --id n1 --data-dir d1 --bootstrap
  abacusd --id n2 --data-dir d2 --join 127.0.0.1:7501 \
          --client-addr 127.0.0.1:7402 --cluster-addr 127.0.0.1:7702 \
          --peer-addr 127.0.0.1:7502 --http-addr 127.0.0.1:7602

Each flag may also be given in the environment (--data-dir: ABACUS_DATA_DIR) or
in a YAML file (data-dir: ...) named by --config; flags win over the
environment, and the environment over the file.

SIGTERM or SIGINT stop it gracefully: leaderships are handed over, what is in
flight is finished. A second one stops it at once.

When its disk fails or hangs, it ends at once with exit code 70 and a line that
names the file: nobody knows then what is on the disk. Nothing acknowledged is
lost: a majority has it. Other exit codes: 1 could not start, or failed; 2 wrong
flags; 3 stopped at once.`,
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := layer(cmd.Flags()); err != nil {
				return &usageError{err}
			}
			log, err := opts.logger(stderr)
			if err != nil {
				return &usageError{err}
			}
			cfg.Log = log
			cfg.Fatal = func(err error) { die(stderr, err) }
			if opts.faultFile != "" {
				f, err := newFaults(opts.faultFile, log)
				if err != nil {
					return &usageError{fmt.Errorf("--fault-file: %w", err)}
				}
				cfg.Dial, cfg.Accept, cfg.Now = f.dial, f.accept, f.clock
				go f.watch(context.Background())
			}
			if err := cfg.Validate(); err != nil {
				return &usageError{err}
			}
			if given := ignored(cmd.Flags(), cfg); given != "" {
				log.Warn("ignored, for the node that bootstraps a cluster decides: " + given)
			}
			return serve(cfg)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	bindFlags(cmd.Flags(), &cfg, &opts)
	cmd.AddCommand(&cobra.Command{Use: "version", Short: "Print the version", Args: noArgs, Run: func(cmd *cobra.Command, _ []string) {
		fmt.Fprintf(cmd.OutOrStdout(), "abacusd %s (%s)\n", version, goVersion())
	}})
	return cmd
}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return &usageError{err}
	}
	return nil
}

// serve runs the node until a signal or a failure.
func serve(cfg node.Config) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type opened struct {
		n   *node.Node
		err error
	}
	cfg.OnReplicas = limitMemory
	open := make(chan opened, 1)
	go func() {
		n, err := node.Open(ctx, cfg)
		open <- opened{n, err}
	}()
	var n *node.Node
	select {
	case o := <-open:
		if errors.Is(o.err, node.ErrRemoved) {
			cfg.Log.Info("nothing to start", "reason", o.err.Error())
			return nil
		}
		if o.err != nil {
			return o.err
		}
		n = o.n
	case <-signals: // while joining, say
		cancel()
		return stop(cfg, signals, func() error {
			if o := <-open; o.n != nil {
				return o.n.Close()
			}
			return nil
		})
	}

	var failure error
	select {
	case s := <-signals:
		cfg.Log.Info("stopping", "signal", s.String())
	case failure = <-n.Failed():
		if errors.Is(failure, node.ErrRemoved) { // as was wished: nothing failed, and no service manager should start it again
			cfg.Log.Info("stopping", "reason", failure.Error())
			failure = nil
			break
		}
		cfg.Log.Error("node failed", "err", failure)
	}
	err := stop(cfg, signals, n.Close)
	if errors.Is(err, failure) { // it tells of the failure, too
		return err
	}
	return errors.Join(failure, err)
}

// stop waits for a graceful stop, but no longer than it may take, and no longer
// than until a second signal.
func stop(cfg node.Config, signals <-chan os.Signal, graceful func() error) error {
	stopped := make(chan error, 1)
	go func() { stopped <- graceful() }()
	select {
	case err := <-stopped:
		return err
	case <-signals:
	case <-time.After(cfg.StopTimeout):
	}
	return errForced
}

func goVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.GoVersion
	}
	return "unknown Go"
}

// options are about the process rather than the node.
type options struct {
	config, faultFile   string
	logLevel, logFormat string
}

func (o *options) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", o.logLevel)
	}
	hopts := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, hopts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, hopts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", o.logFormat)
}
