package sim

import (
	"context"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

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

// outcome is what a client knows of a command.
type outcome int

const (
	answered  outcome = iota
	failed            // certainly not carried out
	uncertain         // carried out, or not, or later
)

// ask is one command and what to do with its outcome.
type ask struct {
	cmd command.Command
	// settle is called once; result is of an answered command.
	settle func(o outcome, result command.Result)
}

// workload makes commands and judges what came back. Its methods may be used concurrently.
type workload interface {
	// next is a read or a write in a shard.
	next(rng *rand.Rand, shard sharding.ShardID, read bool) ask
	// final are reads of everything, once nothing breaks any more.
	final() []ask
	// check judges, outside the bubble; it returns how many keys it judged.
	check(f *failure) (keys int)
}

// order numbers calls and returns: in virtual time many have one time.
type order struct{ n atomic.Int64 }

func (o *order) next() int64 { return o.n.Add(1) }

const never = math.MaxInt64

// keys makes new keys of given shards.
type keys struct {
	mu     sync.Mutex
	n      int
	spare  map[sharding.ShardID][]string
	router *sharding.Router
}

func newKeys(m sharding.Map) *keys {
	return &keys{spare: map[sharding.ShardID][]string{}, router: sharding.NewRouter(m)}
}

// make returns a key that nobody has had.
func (k *keys) make(shard sharding.ShardID) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.spare[shard]) == 0 {
		k.n++
		key := "k" + strconv.Itoa(k.n)
		_, s := k.router.Locate([]byte(key))
		k.spare[s] = append(k.spare[s], key)
	}
	list := k.spare[shard]
	k.spare[shard] = list[1:]
	return list[0]
}

// on makes a command about a key.
func on(op command.Op, key string, values ...string) command.Command {
	c := command.Command{Op: op, Slot: sharding.SlotOf([]byte(key)), Keys: [][]byte{[]byte(key)}}
	for _, v := range values {
		c.Values = append(c.Values, []byte(v))
	}
	return c
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
func (cl *client) run(stop <-chan struct{}, loads []workload, shards int) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(cl.rng.Int64N(int64(cl.c.opt.Think)) + 1)):
		}
		shard := sharding.ShardID(cl.rng.IntN(shards))
		reads := cl.rng.IntN(10) < 4 // a group of reads alone, which nodes may treat in a way of their own
		var group []ask
		for range 1 + cl.rng.IntN(6) {
			w := loads[cl.rng.IntN(len(loads))]
			group = append(group, w.next(cl.rng, shard, reads || cl.rng.IntN(4) == 0))
		}
		cl.do(shard, group)
	}
}

const (
	tries = 6
	// triesNumbered is for writes that count once however often they are sent.
	triesNumbered = 40
	shortestTry   = 200 * time.Millisecond
	longestTry    = 1500 * time.Millisecond
)

// do has a group carried out as one.
func (cl *client) do(shard sharding.ShardID, group []ask) outcome {
	cmds := make([]command.Command, len(group))
	harmless := true
	for i, a := range group {
		cmds[i] = a.cmd
		harmless = harmless && a.cmd.Op.IsRead()
	}
	numbered := !harmless && cl.numbers && cl.number(cmds)
	results, o := cl.exec(shard, cmds, harmless, numbered)
	cl.counts[o].Add(int64(len(group)))
	for i, a := range group {
		var r command.Result
		if o == answered {
			r = results[i]
			if r.Kind == command.KindError {
				cl.c.fault("shard %d answers %+v with error %d", shard, a.cmd, r.Code)
			}
		}
		a.settle(o, r)
	}
	return o
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

func (cl *client) exec(shard sharding.ShardID, cmds []command.Command, harmless, numbered bool) ([]command.Result, outcome) {
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
			return results, answered
		case !harmless && (dead || !transport.Certain(err)):
			if !numbered {
				cl.move()
				return nil, uncertain
			}
			unknown = true
		}
		cl.move()
	}
	if unknown {
		return nil, uncertain
	}
	return nil, failed
}

// move goes to another node.
func (cl *client) move() {
	time.Sleep(time.Duration(1+cl.rng.IntN(20)) * time.Millisecond)
	cl.at = cl.rng.IntN(len(cl.c.members))
}
