package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/keyspace"
)

// failover kills a node that leads, under load, peer by peer in turn, and times when
// writes to what it led succeed again.
func (s *session) failover(ctx context.Context) error {
	if s.Nodes < 3 {
		return errors.New("needs 3 nodes: with one of 2 down there is no majority")
	}
	return s.inTurn(ctx, func(ctx context.Context, p *peer, run int) (Record, error) {
		if len(p.d.Procs().Pids()) < s.Nodes {
			return s.record(p, "failover", run), errUnsupported // one server
		}
		if err := s.settle(ctx); err != nil {
			return Record{}, err
		}
		for range 5 {
			r, err := p.failoverTrial(ctx, run)
			if !errors.Is(err, errMoved) {
				return r, err
			}
		}
		return Record{}, errMoved
	})
}

var errMoved = errors.New("leaders moved while a trial was prepared, five times")

// led is what one shard of the node to be killed has: keys, and whether a write of one
// has succeeded since.
type led struct {
	keys []string
	back atomic.Int64 // nanoseconds from the kill to the first success; 0: not yet
}

// victim is the node to kill and the keys of what it leads, by shard. A peer with one
// leader has one shard, number 0.
func (p *peer) victim(ctx context.Context, run int) (node int, shards map[int]*led, slots map[int][]SlotRange, err error) {
	sp, ok := p.d.(Spreader)
	if !ok {
		if node = p.d.Leader(); node < 0 {
			return 0, nil, nil, errors.New("no leader")
		}
		all := &led{}
		for i := range p.s.Keys {
			all.keys = append(all.keys, key(i))
		}
		return node, map[int]*led{0: all}, nil, nil
	}
	for i := range p.s.Nodes { // another one each time, of those that lead anything
		node = (run + i) % p.s.Nodes
		if slots, err = sp.Led(ctx, node); err != nil || len(slots) > 0 {
			break
		}
	}
	if err != nil {
		return 0, nil, nil, err
	}
	shards = map[int]*led{}
	for id := range slots {
		shards[id] = &led{}
	}
	for i := range p.s.Keys {
		k := key(i)
		if id, ok := shardOf(slots, keyspace.Slot(k)); ok {
			shards[id].keys = append(shards[id].keys, k)
		}
	}
	for id, l := range shards {
		if len(l.keys) == 0 {
			return 0, nil, nil, fmt.Errorf("no key of %d is in shard %d: raise -keys", p.s.Keys, id)
		}
	}
	if len(shards) == 0 {
		return 0, nil, nil, errors.New("no node leads anything")
	}
	return node, shards, slots, nil
}

func shardOf(slots map[int][]SlotRange, slot int) (int, bool) {
	for id, ranges := range slots {
		for _, r := range ranges {
			if slot >= r.From && slot <= r.To {
				return id, true
			}
		}
	}
	return 0, false
}

const (
	failoverWriters = 16
	failoverLimit   = 60 * time.Second
)

func (p *peer) failoverTrial(ctx context.Context, run int) (Record, error) {
	s := p.s
	r := s.record(p, "failover", run)
	node, shards, slots, err := p.victim(ctx, run)
	if err != nil {
		return r, err
	}
	// Writers are bound to a shard each, so that one which is back takes nobody from
	// another which is not; and they talk to the nodes that stay.
	ids := slices.Sorted(maps.Keys(shards))
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var dead atomic.Int64 // when the node was surely gone, after t0; 0: it runs
	var killed, written atomic.Int64
	t0 := time.Now()
	val := s.newVal()
	var clients []Client
	defer func() {
		cancel()
		wg.Wait()
		for _, c := range clients {
			c.Close()
		}
	}()
	for w := range max(failoverWriters, (s.Nodes-1)*len(ids)) {
		at := (node + 1 + w/len(ids)%(s.Nodes-1)) % s.Nodes // each shard is written to through each of them
		c, err := p.prober(w, at)
		if err != nil {
			return r, err
		}
		clients = append(clients, c)
		shard := shards[ids[w%len(ids)]]
		wg.Go(func() {
			for ctx.Err() == nil {
				k := shard.keys[rand.IntN(len(shard.keys))]
				// What is sent before the process has been reaped, the dying one could still answer.
				after := dead.Load() > 0
				cc, cn := context.WithTimeout(ctx, s.Probe)
				err := c.Put(cc, k, val)
				cn()
				if err != nil {
					time.Sleep(time.Millisecond)
					continue
				}
				written.Add(1)
				if after {
					shard.back.CompareAndSwap(0, int64(time.Since(t0))-killed.Load())
				}
			}
		})
	}
	if err := sleep(ctx, 2*time.Second); err != nil {
		return r, err
	}
	if written.Load() == 0 {
		return r, errors.New("no write succeeded before the kill")
	}
	if p.moved(ctx, node, slots) {
		return r, errMoved
	}
	killed.Store(int64(time.Since(t0)))
	if err := p.d.Procs().End(node, syscall.SIGKILL, 10*time.Second); err != nil {
		return r, err
	}
	dead.Store(int64(time.Since(t0)))
	err = retry(ctx, failoverLimit, func() error {
		for id, l := range shards {
			if l.back.Load() == 0 {
				return fmt.Errorf("shard %d, which node %d led, takes no writes", id, node)
			}
		}
		return nil
	})
	cancel()
	wg.Wait()
	if e := p.d.Procs().Start(node); e != nil || err != nil {
		return r, errors.Join(err, e)
	}
	first, all := int64(0), int64(0)
	for _, l := range shards {
		b := l.back.Load()
		if all = max(all, b); first == 0 || b < first {
			first = b
		}
	}
	r.Values["first_ms"], r.Values["all_ms"] = ms(time.Duration(first)), ms(time.Duration(all))
	r.Values["reaped_ms"] = ms(time.Duration(dead.Load() - killed.Load()))
	if slots != nil {
		r.Values["shards"] = float64(len(shards))
	}
	return r, nil
}

// moved says whether the node leads other shards now than when the keys were chosen.
func (p *peer) moved(ctx context.Context, node int, slots map[int][]SlotRange) bool {
	sp, ok := p.d.(Spreader)
	if !ok {
		return p.d.Leader() != node
	}
	now, err := sp.Led(ctx, node)
	return err != nil || !slices.Equal(slices.Sorted(maps.Keys(now)), slices.Sorted(maps.Keys(slots)))
}

// prober connects a writer that gives up on an answer after -probe.
func (p *peer) prober(i, node int) (Client, error) {
	if sp, ok := p.d.(Spreader); ok {
		return sp.Probe(node), nil
	}
	return p.d.Connect(i, node)
}
