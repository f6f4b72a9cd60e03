//go:build linux

package campaign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
)

// Faults that are none: what an administrator does to a cluster that serves. Others come in the middle of it.

// settleTime is how long a cluster that is whole may take to carry out what was asked of it.
const settleTime = 2 * time.Minute

// movesSaid is what a shard's leader says when a replica has gone to another node.
const movesSaid = `msg="replica moved"`

// moves sends replicas of shards to other nodes, by chance, and now and then takes one back.
func (s *siege) moves() (*fault, error) {
	from := s.b.logLengths()
	f, err := s.during("replicas of all shards, by chance", func(ctx context.Context) (begun int, err error) {
		for ctx.Err() == nil {
			words, ok := s.randomMove(ctx)
			if ok && s.b.adminOnce(ctx, s.order()[0], words...) == nil {
				begun++
			}
			if s.rng.IntN(8) == 0 {
				_ = s.b.adminOnce(ctx, s.order()[0], "shard", "cancel", fmt.Sprint(s.rng.IntN(s.b.c.Shards()))) // mostly there is nothing to take back
			}
			wait(ctx, 300*time.Millisecond)
		}
		return begun, nil
	})
	if err != nil {
		return nil, err
	}
	f.bit = nil // who has moved shows when all have arrived
	end := f.mend
	f.mend = func() error {
		err := end()
		f.healed = time.Now() // what is on its way still moves
		s.b.settle(s.ctx)
		return err
	}
	f.showed = func() (bool, error) { return s.b.counted(movesSaid, from) > 0, nil }
	return f, nil
}

// randomMove is one that may be asked for.
func (s *siege) randomMove(ctx context.Context) (words []string, ok bool) {
	status, err := s.b.c.Status(ctx)
	if err != nil || len(status.Shards) == 0 {
		return nil, false
	}
	sh := status.Shards[s.rng.IntN(len(status.Shards))]
	has := map[string]bool{}
	for _, r := range sh.Replicas {
		has[r.Node] = true
	}
	var free []string
	for _, n := range status.Nodes {
		if !has[n.ID] {
			free = append(free, n.ID)
		}
	}
	if len(free) == 0 || len(sh.Replicas) == 0 {
		return nil, false
	}
	return []string{"shard", "move", fmt.Sprint(sh.ID), sh.Replicas[s.rng.IntN(len(sh.Replicas))].Node, free[s.rng.IntN(len(free))]}, true
}

// drain has a node lose all its replicas, and get its share back afterwards.
func (s *siege) drain() (*fault, error) {
	n := s.leader()
	from := s.b.logLengths()
	if err := s.b.admin(s.ctx, "node", "drain", s.b.node(n).ID()); err != nil {
		return nil, err
	}
	f := &fault{
		detail: fmt.Sprintf("n%d", n), nodes: []int{n},
		showed: func() (bool, error) { return s.b.counted(movesSaid, from) > 0, nil },
	}
	f.mend = func() error {
		f.healed = time.Now() // nothing is broken, and nothing was
		if err := s.b.drained(s.ctx, n); err != nil {
			s.b.accuse("%v", err)
		}
		return s.b.restore(s.ctx, n)
	}
	return f, nil
}

// leaveAndJoin drains a node, takes it out of the cluster, and has an empty one join under its name.
func (s *siege) leaveAndJoin() (*fault, error) {
	n := s.leader()
	id := s.b.node(n).ID()
	said := s.b.saidSoFar(n)
	if err := s.b.admin(s.ctx, "node", "drain", id); err != nil {
		return nil, err
	}
	if err := s.b.drained(s.ctx, n); err != nil {
		s.b.accuse("%v", err)
		return &fault{detail: fmt.Sprintf("n%d", n)}, nil
	}
	s.b.hold(n)
	if err := s.b.admin(s.ctx, "node", "remove", id); err != nil {
		return nil, errors.Join(err, s.b.release(n))
	}
	gone, cancel := context.WithTimeout(s.ctx, settleTime)
	defer cancel()
	err := await(gone, fmt.Sprintf("n%d was removed and goes on", n), func() string {
		if s.b.node(n).Running() || !s.b.node(n).Ended() {
			return "its process runs"
		}
		return ""
	})
	if code := s.b.node(n).ExitCode(); err == nil && code != 0 {
		err = fmt.Errorf("n%d was removed and ended with code %d: %s", n, code, lastWords(s.b.node(n).LogTail(50)))
	}
	if err != nil {
		s.b.accuse("%v", err)
		return &fault{detail: fmt.Sprintf("n%d", n)}, nil
	}
	f := &fault{
		detail: fmt.Sprintf("n%d", n), nodes: []int{n},
		showed: func() (bool, error) { return strings.Contains(s.b.logSince(n, said), "msg=joined"), nil },
	}
	f.mend = func() error {
		if err := errors.Join(s.b.removeData(n), s.b.release(n)); err != nil {
			return err
		}
		f.healed = time.Now()
		return s.b.restore(s.ctx, n)
	}
	return f, nil
}

// drained waits until a node has no replicas.
func (b *bed) drained(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	id := b.node(n).ID()
	return await(ctx, id+" is not drained", func() string {
		status, err := b.c.Status(ctx)
		if err != nil {
			return err.Error()
		}
		for _, sh := range status.Shards {
			for _, r := range sh.Replicas {
				if r.Node == id {
					return fmt.Sprintf("shard %d has %s there; move: %+v; %s", sh.ID, r.ID, sh.Move, strings.Join(status.Problems, "; "))
				}
			}
		}
		return ""
	})
}

// restore gives a node its share of replicas again.
func (b *bed) restore(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	id := b.node(n).ID()
	err := await(ctx, id+" has not joined", func() string {
		status, err := b.c.Status(ctx)
		if err != nil {
			return err.Error()
		}
		for _, nd := range status.Nodes {
			if nd.ID == id {
				return ""
			}
		}
		return "it is not among the nodes"
	})
	if err != nil {
		b.accuse("%v", err)
		return nil
	}
	if err := b.admin(ctx, "node", "uncordon", id); err != nil {
		return err
	}
	if err := b.admin(ctx, "rebalance", "once"); err != nil {
		return err
	}
	b.settle(ctx)
	return nil
}

// settle waits until nothing moves any more and nothing is to.
func (b *bed) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if err := await(ctx, "replicas or slots go on moving", func() string { return b.moving(ctx) }); err != nil {
		b.accuse("%v", err)
	}
}

func (b *bed) moving(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	status, err := b.c.Status(ctx)
	if err != nil {
		return err.Error()
	}
	return busy(status)
}

// busy says what is being moved.
func busy(s *proc.Status) string {
	if s.Balance != "" {
		return "the cluster is being rebalanced: " + s.Balance
	}
	for _, n := range s.Nodes {
		if n.Draining {
			return n.ID + " drains"
		}
	}
	for _, mv := range s.SlotMoves {
		return fmt.Sprintf("slot move %d, from shard %d to %d: %s", mv.ID, mv.From, mv.To, mv.State)
	}
	for _, sh := range s.Shards {
		if sh.Move != nil {
			return fmt.Sprintf("shard %d: %s moves to %s: %s", sh.ID, sh.Move.From, sh.Move.To, sh.Move.State)
		}
	}
	return ""
}

// admin says something to the cluster, through one node after another, until one has taken it down.
func (b *bed) admin(ctx context.Context, words ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	n := 0
	return await(ctx, strings.Join(words, " "), func() string {
		n = n%b.nodes() + 1
		if err := b.adminOnce(ctx, n, words...); err != nil {
			return err.Error()
		}
		return ""
	})
}

func (b *bed) adminOnce(ctx context.Context, n int, words ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.node(n).URL("/v1/admin/"+strings.Join(words, "/")), nil)
	if err != nil {
		return err
	}
	resp, err := b.c.HTTP(5 * time.Second).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("n%d: %s: %.300s", n, resp.Status, text)
	}
	return err
}

// logLengths are how long the nodes' logs are; counted is how often they have said something since.
func (b *bed) logLengths() (list []int64) {
	for n := 1; n <= b.nodes(); n++ {
		list = append(list, b.saidSoFar(n))
	}
	return list
}

func (b *bed) counted(what string, from []int64) (sum int) {
	for n := 1; n <= b.nodes(); n++ {
		sum += strings.Count(b.logSince(n, from[n-1]), what)
	}
	return sum
}
