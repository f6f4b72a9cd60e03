package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

var (
	errMissing     = errors.New("key not found")
	errUnsupported = errors.New("this peer has no such operation")
)

// session is some peers that run side by side, to be measured in turn. Ratios are
// taken within one session only.
type session struct {
	Settings
	id    string
	row   string // of the suite's table
	peers []*peer
	out   io.Writer
}

type peer struct {
	name   string
	d      Driver
	s      *session
	cl     map[string][]Client // by target
	loaded bool
	// recorded: it has the data set of compute and jobs.
	recorded bool
	// version is what its servers say they are.
	version string
}

// runSession starts the peers, does the operations and stops the peers, whatever happens.
func runSession(ctx context.Context, set Settings, row string, out io.Writer) (err error) {
	s := &session{Settings: set, id: time.Now().UTC().Format("20060102T150405.000"), row: row, out: out}
	defer func() {
		for _, p := range s.peers {
			p.d.Procs().Stop()
			if dir := p.dir(); err == nil || ctx.Err() != nil {
				os.RemoveAll(dir)
			} else {
				fmt.Fprintf(os.Stderr, "peers: the logs of %s are left in %s\n", p.name, dir)
			}
		}
	}()
	for _, name := range s.Peers {
		if err := s.start(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	for _, op := range s.Ops {
		if err := s.do(ctx, op); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	return nil
}

func (s *session) start(ctx context.Context, name string) error {
	system, v, err := parsePeer(name)
	if err != nil {
		return err
	}
	d, err := drivers[system](v)
	if err != nil {
		return err
	}
	p := &peer{name: name, d: d, s: s, cl: map[string][]Client{}}
	if err := os.RemoveAll(p.dir()); err != nil {
		return err
	}
	if err := os.MkdirAll(p.dir(), 0o755); err != nil {
		return err
	}
	s.peers = append(s.peers, p)
	p.version = d.Version(s.Bin)
	return d.Start(ctx, Config{Dir: p.dir(), Bin: s.Bin, Nodes: s.Nodes, Env: serverEnv(os.Environ(), system)})
}

var unsafeInNames = regexp.MustCompile(`[^a-zA-Z0-9@-]+`)

func (p *peer) dir() string {
	return filepath.Join(p.s.Dir, unsafeInNames.ReplaceAllString(p.name, "_"))
}

// settle waits until every peer has all its replicas, votes and leaders in place.
func (s *session) settle(ctx context.Context) error {
	for _, p := range s.peers {
		if err := retry(ctx, s.Settle, func() error {
			if err := p.d.Procs().Check(); err != nil {
				return err
			}
			return p.d.Settled(ctx)
		}); err != nil {
			return fmt.Errorf("%s is not ready to be measured %w", p.name, err)
		}
	}
	return nil
}

func (s *session) do(ctx context.Context, op string) error {
	switch op {
	case "compute":
		return s.compute(ctx)
	case "jobs":
		return s.jobs(ctx)
	case "failover":
		return s.failover(ctx)
	case "moves":
		return s.moves(ctx)
	case "fill":
		return s.fill(ctx)
	case "idle":
		return s.idle(ctx)
	case "start":
		return s.restart(ctx)
	}
	for _, c := range s.C {
		if err := s.compare(ctx, op, c); err != nil {
			return err
		}
	}
	return nil
}

// inTurn runs f on every peer in turn, several times, another one first each time,
// keeps what it returns and prints the medians.
func (s *session) inTurn(ctx context.Context, f func(ctx context.Context, p *peer, run int) (Record, error)) error {
	return s.inTurnOf(ctx, s.peers, f)
}

// inTurnOf is inTurn for some peers.
func (s *session) inTurnOf(ctx context.Context, peers []*peer, f func(ctx context.Context, p *peer, run int) (Record, error)) error {
	var all []Record
	for run := range s.Runs {
		for k := range peers {
			p := peers[(k+run)%len(peers)]
			r, err := f(ctx, p, run)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == nil {
				err = p.d.Procs().Check()
			}
			if errors.Is(err, errUnsupported) {
				r.Values = nil
			} else if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if err := s.keep(r); err != nil {
				return err
			}
			all = append(all, r)
		}
	}
	s.print(all)
	return nil
}

// print writes one line a peer, in the order in which they were named.
func (s *session) print(all []Record) {
	gs := groups(all)
	for _, p := range s.peers {
		for _, g := range gs {
			if g.Peer == p.name {
				fmt.Fprintln(s.out, g.line(gs))
			}
		}
	}
}

// clients are the shared connections; stale reads always go to all nodes.
func (p *peer) clients(op string) ([]Client, error) {
	t := p.s.Target
	if op == "sget" {
		t = "all"
	}
	lead := -1
	if t == "leader" {
		lead = p.d.Leader()
	}
	k := fmt.Sprint(t, lead)
	if p.cl[k] == nil {
		for i := range p.s.Conns {
			c, err := p.d.Connect(i, lead)
			if err != nil {
				return nil, err
			}
			p.cl[k] = append(p.cl[k], c)
		}
	}
	return p.cl[k], nil
}

func (s *session) newVal() []byte {
	v := make([]byte, s.VSize)
	for i := range v {
		v[i] = byte('a' + rand.IntN(26))
	}
	return v
}

// sleep waits, but not when ctx has ended.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
