package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/bench"
	"github.com/abacusdb/abacus/client"
)

// openLoopClients is how many operations an open loop may have under way when
// --clients does not say.
const openLoopClients = 512

func newBenchCommand(a *app) *cobra.Command {
	cfg := bench.DefaultConfig()
	var (
		conns  int
		noLoad bool
	)
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Put load on the cluster and measure it",
		Long: `Put load on the cluster and measure throughput and latency.

Without --rate the loop is closed: each client sends its next operation when it has the
answer to the last. With --rate N the loop is open: N operations a second are due whatever
the cluster does, and a latency counts from when the operation was due, so that a stall
shows in full. --clients is then how many may be under way at once.

Every write is synced on a majority before it is acknowledged; there is no other mode.
The keys (--prefix) stay in the cluster afterwards. get and mixed store all keys first.`,
		Example: `  abacus bench --op put --clients 64 --duration 10s
  abacus bench --op get --dist zipfian --pipeline 16
  abacus bench --op mixed --rate 2000 -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Rate > 0 && !cmd.Flags().Changed("clients") {
				cfg.Clients = openLoopClients
			}
			if err := cfg.Validate(); err != nil {
				return &usageError{err: err}
			}
			if conns < 1 || conns > 1024 {
				return usagef("--conns %d: it must be within 1..1024", conns)
			}
			c, err := a.openWith(client.Config{Conns: conns})
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			cfg.Describe = bench.DescribeError
			return a.bench(ctx, cmd, c, cfg, (cfg.Op == "get" || cfg.Op == "mixed") && !noLoad)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Op, "op", cfg.Op, "put, get, mixed (half and half) or incr")
	f.IntVar(&cfg.Clients, "clients", cfg.Clients, "clients that work at the same time (open loop: 512)")
	f.IntVar(&cfg.Pipeline, "pipeline", cfg.Pipeline, "operations that each client sends at once")
	f.IntVar(&cfg.ValueSize, "value-size", cfg.ValueSize, "bytes of a value")
	f.IntVar(&cfg.Keys, "keys", cfg.Keys, "how many keys")
	f.StringVar(&cfg.Prefix, "prefix", cfg.Prefix, "what every key begins with")
	f.StringVar(&cfg.Dist, "dist", cfg.Dist, "which keys are used how often: uniform or zipfian")
	f.DurationVar(&cfg.Warmup, "warmup", cfg.Warmup, "load before measuring begins")
	f.DurationVar(&cfg.Duration, "duration", cfg.Duration, "how long to measure")
	f.Float64Var(&cfg.Rate, "rate", 0, "operations a second that are due (open loop); 0 is a closed loop")
	f.IntVar(&conns, "conns", 1, "connections to each node")
	f.BoolVar(&noLoad, "no-load", false, "do not store the keys before get and mixed")
	f.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "of the random numbers")
	return cmd
}

func (a *app) bench(ctx context.Context, cmd *cobra.Command, c *client.Client, cfg bench.Config, load bool) error {
	info, target := cmd.ErrOrStderr(), bench.Cluster{Client: c}
	if err := c.Ping(ctx); err != nil {
		return err
	}
	if load {
		if err := loadKeys(ctx, info, cfg, target); err != nil {
			return err
		}
	}
	fmt.Fprintf(info, "%s: %v warm-up, then %v measured\n", cfg.Op, cfg.Warmup, cfg.Duration)
	r, err := bench.Run(ctx, cfg, target)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if a.json() {
		err = writeJSON(out, r)
	} else {
		_, err = fmt.Fprint(out, r)
	}
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case r.Ops == 0:
		return &exitError{exitFailed, fmt.Errorf("no operation succeeded, %d failed", r.Failed)}
	}
	return nil
}

func loadKeys(ctx context.Context, info io.Writer, cfg bench.Config, target bench.Target) error {
	fmt.Fprintf(info, "storing %s of %d bytes (--no-load leaves it out)\n", plural(int64(cfg.Keys), "key"), cfg.ValueSize)
	bar := newBar(info, "storing", int64(cfg.Keys), false)
	defer bar.clear()
	return bench.Load(ctx, cfg, target, func(done int) { bar.set(done, cfg.Keys) })
}
