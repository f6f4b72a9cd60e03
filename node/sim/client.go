package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// newRand is a stream of random numbers of its own for each use of a seed.
func newRand(seed uint64, use string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(use))
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}

// toCommand is an operation in the product's own terms.
func toCommand(o workload.Op) command.Command {
	c := command.Command{Slot: sharding.SlotOf([]byte(o.Key)), Keys: [][]byte{[]byte(o.Key)}}
	switch o.Kind {
	case workload.Get:
		c.Op = command.OpGet
	case workload.Set:
		c.Op, c.Values = command.OpSet, [][]byte{[]byte(o.Value)}
		if o.Compare {
			c.Values, c.Flags = append(c.Values, []byte(o.Old)), command.FlagIfEqual
		}
	case workload.Delete:
		c.Op = command.OpDel
	case workload.Append:
		c.Op, c.Values = command.OpAppend, [][]byte{[]byte(o.Value)}
	case workload.Incr:
		c.Op, c.Int = command.OpIncr, o.By
	default:
		panic(fmt.Sprintf("sim: an operation of kind %d", o.Kind))
	}
	return c
}

// toResult is its answer in a workload's terms.
func toResult(o workload.Op, r command.Result) workload.Result {
	out := workload.Result{Int: r.Int}
	switch o.Kind {
	case workload.Get:
		out.Value = string(r.Bytes)
	case workload.Set:
		out.Done = r.Kind == command.KindOK
	case workload.Delete:
		out.Done = r.Int == 1
	}
	return out
}

// client is one user of the cluster. It does what a client library does: it
// stays with a node until that fails it, repeats what may be repeated, and knows
// the three outcomes apart.
type client struct {
	c      *cluster
	rng    *rand.Rand
	at     int // member
	counts *[3]atomic.Int64

	// numbers: its writes are numbered, and repeated until they are answered.
	numbers      bool
	session, seq uint64
}

// run works until stop is closed.
func (cl *client) run(stop <-chan struct{}, loads []workload.Workload, shards int) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(cl.rng.Int64N(int64(cl.c.opt.Think)) + 1)):
		}
		shard := cl.rng.IntN(shards)
		reads := cl.rng.IntN(10) < 4 // a group of reads alone, which nodes may treat in a way of their own
		var group []workload.Call
		for range 1 + cl.rng.IntN(6) {
			w := loads[cl.rng.IntN(len(loads))]
			group = append(group, w.Next(cl.rng, shard, reads || cl.rng.IntN(4) == 0))
		}
		parts := cl.parts(shard, group)
		for _, to := range slices.Sorted(maps.Keys(parts)) {
			cl.do(to, parts[to])
		}
	}
}

// parts are a group by the shards that own its keys, as the client's node knows them. Now and then they are left together: to a shard that has given
// some of the slots away they go together, too.
func (cl *client) parts(shard int, group []workload.Call) map[sharding.ShardID][]workload.Call {
	l := cl.c.members[cl.at].life.Load()
	if l == nil || cl.rng.IntN(4) == 0 {
		return map[sharding.ShardID][]workload.Call{sharding.ShardID(shard): group}
	}
	router, parts := l.node.Router(), map[sharding.ShardID][]workload.Call{}
	for _, a := range group {
		_, to := router.Locate([]byte(a.Op.Key))
		parts[to] = append(parts[to], a)
	}
	return parts
}

const (
	tries = 6
	// triesNumbered is for writes that count once however often they are sent.
	triesNumbered = 40
	shortestTry   = 200 * time.Millisecond
	longestTry    = 1500 * time.Millisecond
)

// do has a group carried out as one.
func (cl *client) do(shard sharding.ShardID, group []workload.Call) workload.Outcome {
	cmds := make([]command.Command, len(group))
	harmless := true
	for i, a := range group {
		cmds[i] = toCommand(a.Op)
		harmless = harmless && a.Op.Reads()
	}
	numbered := !harmless && cl.numbers && cl.number(cmds)
	results, o := cl.exec(shard, cmds, harmless, numbered)
	for i, a := range group {
		var r workload.Result
		o := o
		switch {
		case o != workload.Answered:
		case moving(results[i]):
			o = workload.Failed
		case results[i].Kind == command.KindError:
			cl.c.fault("shard %d answers %+v with error %d", shard, a.Op, results[i].Code)
		default:
			r = toResult(a.Op, results[i])
		}
		cl.counts[o].Add(1)
		a.Settle(o, r)
	}
	return o
}

// moving says that a command was not carried out, for its slot is on its way to another shard.
func moving(r command.Result) bool {
	return r.Code == command.CodeWrongShard || r.Code == command.CodeSlotsMoving
}

// number gives the writes of a group numbers in the client's session, or says that
// there is no session to be had now.
func (cl *client) number(cmds []command.Command) bool {
	for try := 0; cl.session == 0; try++ {
		if try == tries {
			return false
		}
		if l := cl.c.members[cl.at].life.Load(); l != nil {
			ctx, cancel := context.WithTimeout(l.ctx, longestTry)
			id, err := l.node.OpenSession(ctx, cmds[0].Keys[0])
			cancel()
			if err == nil && !l.dead() {
				cl.session = id
				break
			}
		}
		cl.move()
	}
	floor := cl.seq + 1 // one group at a time: nothing before it is waited for
	for i := range cmds {
		if !cmds[i].Op.IsRead() {
			cl.seq++
			cmds[i].Session, cmds[i].Seq, cmds[i].Floor = cl.session, cl.seq, floor
		}
	}
	return true
}

func (cl *client) exec(shard sharding.ShardID, cmds []command.Command, harmless, numbered bool) ([]command.Result, workload.Outcome) {
	most, unknown := tries, false
	if numbered {
		most = triesNumbered
	}
	for range most {
		l := cl.c.members[cl.at].life.Load()
		if l == nil {
			cl.move()
			continue
		}
		timeout := shortestTry + time.Duration(cl.rng.Int64N(int64(longestTry-shortestTry)))
		ctx, cancel := context.WithTimeout(l.ctx, timeout)
		results, err := l.node.Exec(ctx, shard, cmds)
		cancel()
		// What a dead node says, its client never hears.
		switch dead := l.dead(); {
		case err == nil && !dead:
			if numbered && slices.ContainsFunc(results, func(r command.Result) bool {
				return r.Code == command.CodeSessionExpired || r.Code == command.CodeSessionUnknown
			}) {
				cl.c.fault("session %d is forgotten, and %d others at most were used since", cl.session, cl.c.opt.Clients)
			}
			if (harmless || numbered) && slices.ContainsFunc(results, moving) {
				unknown = unknown || numbered // of those that were carried out the answers are not looked at
				break
			}
			return results, workload.Answered
		case !harmless && (dead || !transport.Certain(err)):
			if !numbered {
				cl.move()
				return nil, workload.Uncertain
			}
			unknown = true
		}
		cl.move()
	}
	if unknown {
		return nil, workload.Uncertain
	}
	return nil, workload.Failed
}

// move goes to another node.
func (cl *client) move() {
	time.Sleep(time.Duration(1+cl.rng.IntN(20)) * time.Millisecond)
	cl.at = cl.rng.IntN(len(cl.c.members))
}
