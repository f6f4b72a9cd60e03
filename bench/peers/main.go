// Command peers puts the same key-value load on several systems in one session,
// run by run in turn, and prints what each did and the ratios. See README.md.
//
//	peers [flags]          one session
//	peers suite [flags]    the whole table, into a JSON file and a page made from it
//	peers report FILE      the page again, of the JSON file
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Settings are what one session does.
type Settings struct {
	Peers    []string
	Ops      []string
	C        []int         // concurrent callers
	Dur      time.Duration // of one run
	Runs     int
	Keys     int
	VSize    int // bytes
	Conns    int
	Pipeline int     // commands that a caller sends at once, for peers that can; 1: none
	Dist     string  // of the keys
	Rate     float64 // operations a second of an open loop; 0: closed loop
	Half     float64 // or this part of what the peer does in a closed loop
	Target   string
	RangeN   int
	Records  int
	Nodes    int
	Probe    time.Duration
	Settle   time.Duration
	Signal   syscall.Signal // that ends a node of op start
	BigKeys  int            // keys of a checkpoint that is worth telling apart
	Dir, Bin string
	JSON     string
}

func defaultSettings() Settings {
	return Settings{Peers: []string{"etcd"}, Ops: []string{"put"}, C: []int{64}, Dur: 10 * time.Second, Runs: 3, Keys: 20_000, VSize: 256, Conns: 16,
		Pipeline: 1, Dist: "uniform", Target: "leader", RangeN: 10_000, Records: 1_000_000, Nodes: 3, Probe: 100 * time.Millisecond,
		Settle: 15 * time.Minute, Signal: syscall.SIGTERM, BigKeys: 50_000, Dir: ".benchtmp", Bin: "/tmp/peers/bin"}
}

func newFlags(name string, s *Settings) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	s.bind(f)
	return f
}

// bind names the settings that any session can be given.
func (s *Settings) bind(f *flag.FlagSet) {
	list := func(name, usage string, into *[]string) {
		f.Func(name, usage+" (default "+strings.Join(*into, ",")+")", func(v string) error { *into = strings.Split(v, ","); return nil })
	}
	list("peer", "peers to run in turn, SYSTEM[@SHARDS][:PATH]; ratios are to the first", &s.Peers)
	list("op", "put, get (linearizable), sget (stale allowed), mixed (half get, half put), range, fill, idle, start, failover, moves, compute, jobs", &s.Ops)
	f.Func("c", "concurrent callers, several with commas (default 64)", func(v string) (err error) {
		s.C = nil
		for p := range strings.SplitSeq(v, ",") {
			n, err := strconv.Atoi(p)
			if err != nil || n < 1 {
				return fmt.Errorf("want numbers above 0")
			}
			s.C = append(s.C, n)
		}
		return nil
	})
	f.DurationVar(&s.Dur, "d", s.Dur, "time of one run")
	f.IntVar(&s.Runs, "runs", s.Runs, "runs of each")
	f.IntVar(&s.Keys, "keys", s.Keys, "key space")
	f.IntVar(&s.VSize, "vsize", s.VSize, "value bytes")
	f.IntVar(&s.Conns, "conns", s.Conns, "connections, shared by the callers")
	f.IntVar(&s.Pipeline, "pipeline", s.Pipeline, "put and fill: commands that each caller sends at once on a connection of its own")
	f.StringVar(&s.Dist, "dist", s.Dist, "keys: uniform or zipfian (YCSB's, theta 0.99)")
	f.Func("rate", "open loop at so many operations a second, or 50% of what the peer does in a closed loop", func(v string) (err error) {
		s.Rate, s.Half = 0, 0
		if part, ok := strings.CutSuffix(v, "%"); ok {
			s.Half, err = strconv.ParseFloat(part, 64)
			s.Half /= 100
		} else {
			s.Rate, err = strconv.ParseFloat(v, 64)
		}
		if err == nil && s.Rate+s.Half <= 0 {
			err = fmt.Errorf("want more than 0")
		}
		return err
	})
	f.StringVar(&s.Target, "target", s.Target, "which node the connections go to: leader or all")
	f.IntVar(&s.RangeN, "n", s.RangeN, "pairs one range operation reads")
	f.StringVar(&s.Dir, "dir", s.Dir, "data directory, on the disk under test")
	f.StringVar(&s.Bin, "bin", s.Bin, "where setup.sh put the servers")
	f.IntVar(&s.Records, "records", s.Records, "records of compute, jobs, fill and start")
	f.IntVar(&s.Nodes, "nodes", s.Nodes, "servers of each replicated peer")
	f.DurationVar(&s.Probe, "probe", s.Probe, "time a write of the failover operation is given before it is sent anew")
	f.DurationVar(&s.Settle, "settle", s.Settle, "most time to wait for all replicas, votes and leaders before anything is measured")
	f.Func("signal", "what ends the node that op start starts again: TERM or KILL (default TERM)", func(v string) error {
		switch v {
		case "TERM":
			s.Signal = syscall.SIGTERM
		case "KILL":
			s.Signal = syscall.SIGKILL
		default:
			return fmt.Errorf("want TERM or KILL")
		}
		return nil
	})
	f.IntVar(&s.BigKeys, "checkpoint-keys", s.BigKeys, "open loop: tell apart the seconds with a checkpoint of so many keys")
	f.StringVar(&s.JSON, "json", s.JSON, "append one JSON object a run to this file")
}

func (s *Settings) validate() error {
	if s.Runs < 1 || s.Keys < 1 || s.VSize < 1 || s.Conns < 1 || s.Pipeline < 1 || s.Records < 1 || s.Nodes < 1 || s.Dur <= 0 {
		return fmt.Errorf("-runs, -keys, -vsize, -conns, -pipeline, -records, -nodes and -d must be above 0: %+v", *s)
	}
	if s.Pipeline > 1 && s.Rate+s.Half > 0 {
		return fmt.Errorf("-rate and -pipeline do not go together: which of 16 commands is due when?")
	}
	if s.Records < 10*s.Pipeline {
		return fmt.Errorf("-records %d: want at least ten pipelines of %d", s.Records, s.Pipeline)
	}
	if s.Target != "leader" && s.Target != "all" {
		return fmt.Errorf("-target %q: want leader or all", s.Target)
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "suite":
			return runSuite(ctx, args[1:], os.Stdout)
		case "report":
			if len(args) != 2 {
				return errors.New("usage: peers report FILE.jsonl")
			}
			return writeReport(args[1], strings.TrimSuffix(args[1], ".jsonl")+".md")
		}
	}
	s := defaultSettings()
	f := newFlags("peers", &s)
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("what is %q?", f.Arg(0))
	}
	if err := s.validate(); err != nil {
		return err
	}
	return runSession(ctx, s, "", os.Stdout)
}
