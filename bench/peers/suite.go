package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// suiteRow is one session of the table.
type suiteRow struct {
	name string
	set  func(*Settings)
}

// suite is the table that is published: 3 nodes, values of 256 B, 8 shards unless a
// peer's name says otherwise, 16 connections.
var suite = []suiteRow{
	{"put and get", func(s *Settings) {
		s.Peers, s.Ops, s.C = []string{"etcd", "abacus", "redis-mux"}, []string{"put", "get"}, []int{256, 64, 1}
	}},
	{"zipfian mix", func(s *Settings) {
		s.Peers, s.Ops, s.Dist = []string{"etcd", "abacus"}, []string{"mixed"}, "zipfian"
	}},
	{"pipelines", func(s *Settings) {
		s.Peers, s.Pipeline = []string{"etcd", "abacus"}, 16
	}},
	// In two sessions: what 64 shards cost while they wait would weigh on the others.
	{"16 shards", func(s *Settings) { s.Peers, s.C = []string{"abacus@1", "abacus@16", "etcd"}, []int{256} }},
	{"64 shards", func(s *Settings) { s.Peers, s.C = []string{"abacus@1", "abacus@64", "etcd"}, []int{256} }},
	{"failover", func(s *Settings) {
		s.Peers, s.Ops, s.Runs = []string{"etcd", "abacus"}, []string{"failover"}, 2*s.Runs
	}},
	{"checkpoints", func(s *Settings) {
		s.Peers, s.C, s.Half, s.Keys, s.Dur, s.Runs = []string{"abacus"}, []int{256}, .5, 2_000_000, 6*s.Dur, min(s.Runs, 3)
	}},
	{"idle", func(s *Settings) {
		s.Peers, s.Ops, s.Dur, s.Runs = []string{"etcd", "abacus@64"}, []string{"idle"}, 2*s.Dur, min(s.Runs, 3)
	}},
	{"computing", func(s *Settings) {
		s.Peers, s.Ops, s.Records = []string{"etcd", "abacus", "pg"}, []string{"compute"}, min(s.Records, 1_000_000)
	}},
	// By itself: what waits would be in the way of both.
	{"jobs", func(s *Settings) {
		s.Peers, s.Ops, s.C, s.Half, s.Records, s.Dur, s.Runs = []string{"abacus"}, []string{"jobs"}, []int{256}, .5, min(s.Records, 1_000_000), 6*s.Dur, min(s.Runs, 3)
	}},
	{"fill and start", func(s *Settings) {
		s.Peers, s.Ops, s.Pipeline = []string{"abacus"}, []string{"start"}, 16
	}},
}

// suiteSettings are what the rows begin with.
func suiteSettings(quick bool) Settings {
	s := defaultSettings()
	s.Runs, s.Keys, s.Records = 5, 100_000, 10_000_000
	if quick {
		s.Runs, s.Dur, s.Keys, s.Records = 1, 2*time.Second, 20_000, 200_000
	}
	return s
}

func runSuite(ctx context.Context, args []string, stdout io.Writer) error {
	quick, more := false, false
	only, out := "", "results"
	own := func(s *Settings) *flag.FlagSet {
		f := flag.NewFlagSet("peers suite", flag.ContinueOnError)
		f.BoolVar(&quick, "quick", quick, "every row once and short: shows that all works, and no figure to quote")
		f.StringVar(&only, "only", only, "rows whose name matches this regular expression")
		f.StringVar(&out, "out", out, "folder for peers.jsonl and peers.md")
		f.BoolVar(&more, "append", more, "keep the rows that peers.jsonl has; one measured again takes the old one's place")
		f.StringVar(&s.Dir, "dir", s.Dir, "data directory, on the disk under test")
		f.StringVar(&s.Bin, "bin", s.Bin, "where setup.sh put the servers")
		f.IntVar(&s.Records, "records", s.Records, "keys of the fill")
		f.IntVar(&s.Runs, "runs", s.Runs, "runs of each")
		f.DurationVar(&s.Dur, "d", s.Dur, "time of one run")
		return f
	}
	// Twice: -quick changes the defaults of the others.
	s := suiteSettings(false)
	if err := own(&s).Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	s = suiteSettings(quick)
	own(&s).Parse(args)
	if err := s.validate(); err != nil {
		return err
	}
	rows, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return err
	}
	s.JSON = filepath.Join(out, "peers.jsonl")
	if !more {
		if err := os.RemoveAll(s.JSON); err != nil {
			return err
		}
	}
	if err := appendJSON(s.JSON, thisMachine(s.Dir, quick)); err != nil {
		return err
	}
	var failures error
	for _, row := range suite {
		if !rows.MatchString(row.name) {
			continue
		}
		set := s
		row.set(&set)
		fmt.Fprintf(stdout, "== %s\n", row.name)
		err := runSession(ctx, set, row.name, stdout)
		if ctx.Err() != nil {
			failures = errors.Join(failures, ctx.Err())
			break
		}
		if err != nil { // the other rows do not depend on it
			err = fmt.Errorf("%s: %w", row.name, err)
			fmt.Fprintln(stdout, "failed:", err)
			failures = errors.Join(failures, err, appendJSON(s.JSON, failure{Kind: "failed", Row: row.name, Error: err.Error()}))
		}
	}
	page := filepath.Join(out, "peers.md")
	if err := writeReport(s.JSON, page); err != nil {
		return errors.Join(failures, err)
	}
	fmt.Fprintf(stdout, "\n%s, made of %s\n", page, s.JSON)
	return failures
}
