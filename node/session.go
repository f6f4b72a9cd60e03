package node

import (
	"context"
	"sync"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Exactly-once writes, the node's side. A session is made by one shard and taken
// in by every other one in which it is used, before its first command there: the
// node asks the shard that made it, and opens it in the same proposal as the command.
// So a numbered command is never refused for a session that is only new to its shard, and
// the order of a pipeline holds.

// maxAdoptions bounds the memory of which sessions are known where. When it is full
// it begins anew, at the price of asking again.
const maxAdoptions = 1 << 16

type adoption struct {
	shard   sharding.ShardID
	session uint64
}

// adoptions are the sessions of which this node knows that a shard has had
// them. A shard that has forgotten one says so by itself, for ever.
type adoptions struct {
	mu   sync.Mutex
	seen map[adoption]struct{}
}

func (a *adoptions) has(k adoption) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.seen[k]
	return ok
}

func (a *adoptions) add(k adoption) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen == nil || len(a.seen) >= maxAdoptions {
		a.seen = make(map[adoption]struct{})
	}
	a.seen[k] = struct{}{}
}

// adopt returns the commands that open in a shard the sessions of cmds that
// it may not know. What it cannot open stays unknown there, and the shard refuses its
// commands. The error is certain: nothing was proposed to the shard.
func (n *Node) adopt(ctx context.Context, shard sharding.ShardID, cmds []command.Command) (opens []command.Command, err error) {
	last := uint64(0)
	for i := range cmds {
		id := cmds[i].Session
		if id == 0 || id == last { // a pipeline is one session's as a rule
			continue
		}
		last = id
		origin := command.SessionOrigin(id)
		if origin == shard || n.adopted.has(adoption{shard, id}) || opensSession(opens, id) {
			continue
		}
		if _, ok := n.Router().Map().Shard(origin); !ok {
			continue // nobody made it
		}
		check, err := n.Exec(ctx, origin, []command.Command{{Op: command.OpSessionCheck, Int: int64(id)}})
		if err != nil {
			return nil, transport.Errorf(transport.CodeTimeout, "shard %d, which made the session: %v", origin, err)
		}
		if check[0].Kind == command.KindInt {
			opens = append(opens, command.Command{Op: command.OpSessionOpen, Int: int64(id)})
		}
	}
	return opens, nil
}

func opensSession(opens []command.Command, id uint64) bool {
	for i := range opens {
		if uint64(opens[i].Int) == id {
			return true
		}
	}
	return false
}

// execAdopting is exec for commands some of which are numbered.
func (n *Node) execAdopting(ctx context.Context, shard sharding.ShardID, cmds []command.Command) (results []command.Result, index uint64, err error) {
	opens, err := n.adopt(ctx, shard, cmds)
	if err != nil {
		return nil, 0, err
	}
	if len(opens) > 0 {
		cmds = append(opens[:len(opens):len(opens)], cmds...)
	}
	results, index, err = n.execAll(ctx, shard, cmds)
	if err != nil {
		return nil, 0, err
	}
	for i := range opens {
		if r := results[i]; r.Kind == command.KindInt || r.Code == command.CodeSessionExpired {
			n.adopted.add(adoption{shard, uint64(opens[i].Int)})
		}
	}
	return results[len(opens):], index, nil
}

// numbered says whether any of the commands belongs to a session.
func numbered(cmds []command.Command) bool {
	for i := range cmds {
		if cmds[i].Session != 0 {
			return true
		}
	}
	return false
}

// repeatable says whether to carry out the commands again does no more than to
// carry them out once: reads, numbered writes, what is about slots that move, and opening a session, of which one
// too many harms nobody.
func repeatable(cmds []command.Command) bool {
	for i := range cmds {
		if c := &cmds[i]; c.Session == 0 && c.Op != command.OpSessionOpen && !c.Op.IsRead() && !c.Op.IsSlots() {
			return false
		}
	}
	return true
}

// settle is the end of a proposal that was perhaps made several times. unsure:
// one of the attempts may have been carried out. Then what says "not carried out" speaks of
// the last attempt only, and must not reach a client that would try anew under another number.
func settle(cmds []command.Command, results []command.Result, err error, unsure bool) error {
	if !unsure || onlyReads(cmds) {
		return err
	}
	if err != nil {
		return transport.Errorf(transport.CodeUncertain, "%v", err)
	}
	for i := range results {
		if c := &cmds[i]; c.Session != 0 && notDone(results[i].Code) {
			return transport.Errorf(transport.CodeUncertain, "it was tried before, and now: %v", results[i].Code)
		}
	}
	return nil
}

// notDone says whether a shard, or its leader for want of disk space, refused a command
// without carrying it out, and without remembering that.
func notDone(c command.Code) bool {
	switch c {
	case command.CodeSessionUnknown, command.CodeSessionExpired, command.CodeSessionFull, command.CodeWrongShard, command.CodeSlotsMoving, command.CodeUninitialized, command.CodeDiskFull:
		return true
	}
	return false
}

// OpenSession makes a session and returns its id, which is never given again. It is
// made by the shard of the key, whose first write then needs no more; without a key, by one
// led here, or whose leader is known.
func (n *Node) OpenSession(ctx context.Context, key []byte) (id uint64, err error) {
	if len(key) > 0 {
		if _, shard := n.Router().Locate(key); shard != sharding.NoShard && n.Leader(shard) != "" {
			soon, cancel := context.WithTimeout(ctx, openHere)
			id, err := n.openSession(soon, shard)
			cancel()
			if err == nil {
				return id, nil
			}
		}
	}
	return n.openSession(ctx, n.openingShard())
}

// openHere is how long the shard that is asked for first is tried: a session of any other does as
// well, and a client's writes to all shards wait for it.
const openHere = 500 * time.Millisecond

func (n *Node) openSession(ctx context.Context, shard sharding.ShardID) (id uint64, err error) {
	if shard == sharding.NoShard {
		return 0, transport.Errorf(transport.CodeUnavailable, "there is no shard yet")
	}
	r, err := n.Exec(ctx, shard, []command.Command{{Op: command.OpSessionOpen}})
	switch {
	case err != nil: // one that was opened all the same is forgotten in time
		return 0, transport.Errorf(transport.CodeTimeout, "open a session in shard %d: %v", shard, err)
	case r[0].Kind != command.KindInt:
		return 0, transport.Errorf(transport.CodeUnavailable, "open a session in shard %d: %v", shard, r[0].Code)
	}
	return uint64(r[0].Int), nil
}

func (n *Node) openingShard() sharding.ShardID {
	led, known, other := sharding.NoShard, sharding.NoShard, sharding.NoShard
	shards := n.Router().Map().Shards
	turn := int(n.opening.Add(1)) // sessions spread over the shards
	for i := range shards {
		sh := shards[(i+turn)%len(shards)]
		if sh.Founding != "" {
			continue // it may be founded anew, and make the same session again
		}
		id := sh.ID
		switch n.Leader(id) {
		case n.cfg.ID:
			led = id
		case "":
			other = id
		default:
			known = id
		}
	}
	for _, id := range []sharding.ShardID{led, known} {
		if id != sharding.NoShard {
			return id
		}
	}
	return other
}
