package front

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Transactions: what is queued between MULTI and EXEC goes to its shard as one
// command of the log, together with the watched keys and the index up to which the
// client knows them. Nobody holds a lock, and a client that goes away leaves nothing.

// transaction is what a connection has watched and queued. It is nil on a
// connection that does neither.
type transaction struct {
	open   bool // MULTI was called
	broken bool // a command was refused when it was queued, so EXEC will be
	plan   plan // the queued commands, planned as those of a window
	slot   int  // of all keys; -1: none yet

	watched [][]byte
	indexes []uint64 // of watched: a change above it stops EXEC
	// shards are whose log the indexes are of: slots may have come to another since.
	shards []sharding.ShardID
	size   int64 // what is held, charged to Server.buffered
}

const (
	errExecAlone = refusal("ERR EXEC without MULTI")
	errExecAbort = refusal("EXECABORT Transaction discarded because of previous errors.")
	// maxIdemReads bounds the values that a numbered transaction reads: they are
	// remembered, and a value is up to 1 MiB.
	maxIdemReads = 8
)

func multiCommands() []*spec {
	row := func(name string, arity int, since, summary string, run func(*conn, context.Context, [][]byte) error) *spec {
		return &spec{name: name, arity: arity, flags: flagNoScript | flagLoading | flagStale | flagFast, group: "transactions", since: since, summary: summary, run: run}
	}
	watch := row("watch", -2, "2.2.0", "Stops the next EXEC if one of the keys has been changed by then. All keys in one slot.", (*conn).watch)
	watch.first, watch.last, watch.step = 1, -1, 1
	exec := row("exec", 1, "1.2.0", "Carries out the queued commands with nothing between them.", func(c *conn, ctx context.Context, _ [][]byte) error { return c.exec(ctx, Tag{}) })
	exec.flags &^= flagFast
	return []*spec{
		row("multi", 1, "1.2.0", "Starts a transaction: commands on keys of one slot are queued until EXEC.", func(c *conn, _ context.Context, _ [][]byte) error {
			if c.tx != nil && c.tx.open {
				return refusal("ERR MULTI calls can not be nested")
			}
			c.begin().open = true
			c.w.SimpleString("OK")
			return nil
		}),
		exec,
		row("discard", 1, "2.0.0", "Drops the queued commands and the watched keys.", func(c *conn, _ context.Context, _ [][]byte) error {
			if c.tx == nil || !c.tx.open {
				return refusal("ERR DISCARD without MULTI")
			}
			c.endTx()
			c.w.SimpleString("OK")
			return nil
		}),
		watch,
		row("unwatch", 1, "2.2.0", "Forgets the watched keys.", func(c *conn, _ context.Context, _ [][]byte) error {
			c.endTx()
			c.w.SimpleString("OK")
			return nil
		}),
	}
}

func (c *conn) begin() *transaction {
	if c.tx == nil {
		c.tx = &transaction{slot: -1}
		c.tx.plan.init(c)
	}
	return c.tx
}

// endTx drops the transaction, if there is one.
func (c *conn) endTx() {
	if c.tx != nil {
		c.srv.buffered.Add(-c.tx.size)
		c.tx = nil
	}
}

// queue takes a command that comes between MULTI and EXEC; bad is its refusal, if it
// has one. It is false for those that are carried out there too.
func (c *conn) queue(spec *spec, args [][]byte, bad string) bool {
	if c.tx == nil || !c.tx.open {
		return false
	}
	var err error
	switch {
	case bad != "":
		err = refusal(bad)
	case spec.name == "multi" || spec.name == "exec" || spec.name == "discard" || spec.name == "watch" || spec.name == "reset" || spec.name == "quit":
		return false
	case spec.name == "idem":
		if len(args) == 4 && string(lower(nil, args[3])) == "exec" {
			t, bad := parseTag(args[1], args[2])
			if bad == nil {
				c.alone(c.srv.table.byName["exec"], func(ctx context.Context) error { return c.exec(ctx, t) })
				return true
			}
			err = bad
		} else {
			err = refusal("ERR IDEM inside MULTI numbers the whole of it: IDEM client seq EXEC")
		}
	case spec.plan == nil:
		err = refusal("ERR " + quoted(args[0]) + " inside MULTI is not supported: only commands on keys are")
	default:
		err = c.enqueue(spec, args)
	}
	if err != nil {
		c.tx.broken = true
		c.err(err.Error())
		return true
	}
	c.w.SimpleString("QUEUED")
	return true
}

// enqueue plans a command as a window would: what is wrong with it is told now.
func (c *conn) enqueue(spec *spec, args [][]byte) error {
	tx, p := c.tx, &c.tx.plan
	if len(p.requests) == command.MaxMulti {
		return refusef("ERR a transaction has at most %d commands", command.MaxMulti)
	}
	kept, err := c.keep(args)
	if err != nil {
		return err
	}
	parts := len(p.parts)
	p.router = nil // the map and the leaders as they are now
	fits := p.add(spec, kept)
	if !fits || p.values > windowValues {
		if fits {
			p.undo(parts)
			p.requests = p.requests[:len(p.requests)-1]
		}
		return refusef("ERR a transaction reads at most %d values", windowValues)
	}
	r := &p.requests[len(p.requests)-1]
	if r.refused != "" {
		err = refusal(r.refused)
	} else {
		err = tx.settle(p.parts[r.lo:], p)
	}
	if err != nil {
		p.undo(parts)
		p.requests = p.requests[:len(p.requests)-1]
	}
	return err
}

// settle sees to it that all keys are in one slot.
func (tx *transaction) settle(parts []part, p *plan) error {
	slot := tx.slot
	for i := range parts {
		cmd := p.cmd(&parts[i])
		if slot < 0 {
			slot = int(cmd.Slot)
		}
		if slot != int(cmd.Slot) {
			return refusal("CROSSSLOT Keys in request don't hash to the same slot: a transaction is one entry of one shard's log, so " + quoted(cmd.Keys[0]) +
				" and the keys before it, watched ones included, must share a {tag}")
		}
	}
	tx.slot = slot
	return nil
}

// keep copies arguments, which are in the connection's buffer, and charges them.
func (c *conn) keep(args [][]byte) ([][]byte, error) {
	size := int64(0)
	for _, a := range args {
		size += int64(len(a)) + argumentBytes
	}
	if most := int64(c.srv.cfg.MaxCommandBytes); c.tx.size+size > most {
		return nil, refusef("TOOLARGE a transaction of more than %d bytes", most)
	}
	if c.srv.buffered.Add(size) > c.srv.cfg.MaxBufferedBytes {
		c.srv.buffered.Add(-size)
		return nil, refusal("ERR this node holds too many bytes of unfinished requests")
	}
	c.tx.size += size
	kept := make([][]byte, len(args))
	for i, a := range args {
		kept[i] = append(make([]byte, 0, len(a)), a...)
	}
	return kept, nil
}

// watchKeys routes and checks the keys of WATCH as those of a read.
var watchKeys = spec{name: "watch", flags: onRead, plan: func(p *plan, r *request) error { return p.keyed(command.OpExists, r.args[1:], 1) }}

// watch is WATCH key ...: the transaction is stopped by any change of the keys in an
// entry above an index that is taken now, through the log or a read barrier.
func (c *conn) watch(ctx context.Context, args [][]byte) (err error) {
	if c.tx != nil && c.tx.open {
		return refusal("ERR WATCH inside MULTI is not allowed")
	}
	tx := c.begin()
	slot := tx.slot
	defer func() {
		if err != nil {
			tx.slot = slot
		}
	}()
	if len(tx.watched)+len(args)-1 > command.MaxMulti {
		return refusef("ERR a transaction watches at most %d keys", command.MaxMulti)
	}
	var p plan
	p.init(c)
	p.add(&watchKeys, args)
	if text := p.requests[0].refused; text != "" {
		return refusal(text)
	}
	if err := tx.settle(p.parts, &p); err != nil {
		return err
	}
	shard := p.groups[p.parts[0].group].shard
	index, err := c.srv.backend.Index(ctx, shard)
	if err != nil {
		return err
	}
	keys, err := c.keep(args[1:])
	if err != nil {
		return err
	}
	for _, key := range keys {
		if !slices.ContainsFunc(tx.watched, func(k []byte) bool { return bytes.Equal(k, key) }) { // the older index holds
			tx.watched, tx.indexes, tx.shards = append(tx.watched, key), append(tx.indexes, index), append(tx.shards, shard)
		}
	}
	c.w.SimpleString("OK")
	return nil
}

// exec is EXEC, numbered if t says so.
func (c *conn) exec(ctx context.Context, t Tag) error {
	tx := c.tx
	if tx == nil || !tx.open {
		return errExecAlone
	}
	defer c.endTx()
	p := &tx.plan
	if text := c.deniedSince(p); text != "" {
		return refusal(text)
	}
	switch {
	case tx.broken:
		return errExecAbort
	case len(p.requests) == 0 && len(tx.watched) == 0:
		c.w.Array(0)
		return nil
	case t.Session != 0 && p.values > maxIdemReads:
		return refusef("ERR a numbered transaction reads at most %d values: they are remembered", maxIdemReads)
	}
	cmd := command.Command{Op: command.OpMulti, Slot: uint16(tx.slot), Keys: tx.watched}
	t.put(&cmd)
	var queued []command.Command
	write := false
	for i := range p.requests {
		write = write || p.requests[i].spec.has(flagWrite)
	}
	for i := range p.groups {
		if len(p.groups[i].cmds) == 0 { // of a command that was refused
			continue
		}
		// More than one if the slot came to another shard between two of them, which were queued in this order; unless it
		// has come back.
		if queued != nil && changes(p.parts) > 1 {
			return refusal("TRYAGAIN nothing was done: the slot has moved to another shard and back")
		}
		queued = append(queued[:len(queued):len(queued)], p.groups[i].cmds...)
	}
	shard := c.srv.backend.Router().ShardOf(sharding.Slot(tx.slot))
	if shard == sharding.NoShard {
		return refusef("CLUSTERDOWN Hash slot not served: %d", tx.slot)
	}
	for i := range tx.indexes {
		if tx.shards[i] != shard { // its log says nothing of who changed the key before
			tx.indexes[i] = 0
		}
	}
	cmd.Values = [][]byte{command.AppendCommands(nil, queued), command.AppendIndexes(nil, tx.indexes)}
	if most := int64(p.values) * int64(c.srv.cfg.Limits.MaxValue); most > 0 {
		if err := c.srv.replies.Acquire(ctx, most); err != nil {
			return errRepliesFull
		}
		defer c.srv.replies.Release(most)
	}
	began := time.Now()
	results, err := c.srv.backend.Exec(ctx, shard, []command.Command{cmd})
	c.srv.stats.writes.add(time.Since(began), 1)
	if err == nil && len(results) != 1 {
		err = transport.Errorf(transport.CodeUncertain, "%d answers to a transaction", len(results))
	}
	if err != nil {
		return refusal(errorText(err, write || t.Session != 0))
	}
	switch res := results[0]; {
	case res.Kind == command.KindError:
		return refusal(resultError(&res))
	case res.Kind != command.KindArray: // a watched key has changed
		c.w.NullArray()
	case len(res.Array) != len(queued):
		return refusal(errUnknownFate + "the answers are not as many as the commands")
	default:
		for i := range p.groups {
			n := len(p.groups[i].cmds)
			p.groups[i].results, res.Array = res.Array[:n], res.Array[n:]
		}
		c.w.Array(len(p.requests))
		for i := range p.requests {
			p.reply(&p.requests[i])
		}
	}
	return nil
}

// reads is how the connection reads now: between WATCH and EXEC never less than
// linearizable, or what is read could be older than the index that is watched, and its change
// go unnoticed.
func (c *conn) reads() Reading {
	r := c.reading
	if c.tx != nil && len(c.tx.watched) > 0 {
		r.Stale = false
	}
	return r
}

// changes is how often neighbours of the parts are of different groups.
func changes(parts []part) (n int) {
	for i := 1; i < len(parts); i++ {
		if parts[i].group != parts[i-1].group {
			n++
		}
	}
	return n
}
