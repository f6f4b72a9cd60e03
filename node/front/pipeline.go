package front

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// plan is one window of a pipeline: its commands taken apart by shard, and
// after execute their results. It belongs to a connection and is used again.
type plan struct {
	c      *conn
	router *sharding.Router

	requests []request
	parts    []part
	places   []int32 // key numbers in the request, of parts of MGET
	groups   []group
	bySlot   map[sharding.Slot]int // of the request being planned: its part of a slot

	// values counts the values that the window will read, at most windowValues:
	// replies are held until the whole window is done.
	values int
}

// request is one client command in a window.
type request struct {
	spec    *spec
	args    [][]byte
	refused string  // not empty: the reply, and there are no parts
	reply   replier // writes the reply from the parts
	lo, hi  int     // parts[lo:hi]
	a, b    int64   // for reply
}

type replier func(p *plan, r *request)

// part is what one request wants of one slot: one command of a group.
type part struct {
	group, at int
	lo, hi    int // places[lo:hi]
}

// group is what a window wants of one shard: one Exec.
type group struct {
	shard   sharding.ShardID
	leader  sharding.NodeID // on a cluster port: who leads it, "" if that is not known
	cmds    []command.Command
	results []command.Result
	err     error
}

// init makes the plan as new: it holds nothing of earlier windows.
func (p *plan) init(c *conn) {
	*p = plan{c: c, bySlot: make(map[sharding.Slot]int)}
}

// reset makes room for the next window. It lets go of the bytes of this one and
// keeps what holds them, unless that has become large.
func (p *plan) reset() {
	const keep = 4096
	clear(p.requests)
	for i := range p.groups {
		g := &p.groups[i]
		clear(g.cmds)
		if g.results, g.err = nil, nil; cap(g.cmds) > keep {
			g.cmds = nil
		}
	}
	p.requests, p.parts, p.places, p.groups = p.requests[:0], p.parts[:0], p.places[:0], p.groups[:0]
	if max(cap(p.requests), cap(p.parts), cap(p.places)) > keep {
		p.requests, p.parts, p.places = nil, nil, nil
	}
	if len(p.bySlot) > keep/4 {
		p.bySlot = make(map[sharding.Slot]int)
	}
	p.values = 0
	p.router = nil
}

// windowValues bounds the values that a window reads. All of them, at 1 MiB each,
// must fit one answer between nodes, or a leader would carry out what it cannot answer.
const windowValues = 64

func (p *plan) refuse(text string) {
	p.requests = append(p.requests, request{refused: text})
}

// add plans a request. It is false, and nothing has changed, if the window has
// no room for it.
func (p *plan) add(spec *spec, args [][]byte) bool {
	if p.router == nil { // one map for the whole window
		p.router = p.c.srv.backend.Router()
	}
	p.requests = append(p.requests, request{spec: spec, args: args, lo: len(p.parts)})
	r := &p.requests[len(p.requests)-1]
	before, values := len(p.parts), p.values
	err := spec.plan(p, r)
	if err == nil && p.values > windowValues && len(p.requests) > 1 {
		p.undo(before)
		p.values = values
		p.requests = p.requests[:len(p.requests)-1]
		return false
	}
	if err == nil {
		err = p.misrouted(r)
	}
	r.hi = len(p.parts)
	if err != nil {
		p.undo(before)
		p.values = values
		r.hi = r.lo
		r.refused = err.Error()
	}
	return true
}

// undo takes back the parts of a request that is refused after all.
func (p *plan) undo(before int) {
	for i := len(p.parts) - 1; i >= before; i-- {
		g := &p.groups[p.parts[i].group]
		g.cmds = g.cmds[:len(g.cmds)-1]
	}
	p.parts = p.parts[:before]
}

// command adds a part for keys[0] and returns its command, with key and slot
// set, to be completed before the next call.
func (p *plan) command(op command.Op, keys [][]byte) (*command.Command, error) {
	key := keys[0]
	if err := p.checkKey(key); err != nil {
		return nil, err
	}
	slot, shard := p.router.Locate(key)
	if shard == sharding.NoShard {
		return nil, refusef("CLUSTERDOWN Hash slot not served: %d", slot)
	}
	gi := p.group(shard)
	g := &p.groups[gi]
	g.cmds = append(g.cmds, command.Command{Op: op, Slot: slot, Keys: keys[:1:1]})
	p.parts = append(p.parts, part{group: gi, at: len(g.cmds) - 1})
	return &g.cmds[len(g.cmds)-1], nil
}

// checkKey checks a key's size before it travels.
func (p *plan) checkKey(key []byte) error {
	if len(key) == 0 {
		return errEmptyKey
	}
	if limit := p.c.srv.cfg.Limits.MaxKey; uint64(len(key)) > uint64(limit) {
		return refusef("TOOLARGE key of %d bytes, the limit is %d", len(key), limit)
	}
	return nil
}

// sized checks a value's size before it travels.
func (p *plan) sized(v []byte) error {
	if limit := p.c.srv.cfg.Limits.MaxValue; uint64(len(v)) > uint64(limit) {
		return refusef("TOOLARGE value of %d bytes, the limit is %d", len(v), limit)
	}
	return nil
}

func (p *plan) group(shard sharding.ShardID) int {
	for i := range p.groups { // a node has few shards
		if p.groups[i].shard == shard {
			return i
		}
	}
	n := len(p.groups)
	if n < cap(p.groups) { // an earlier window's, emptied by reset
		p.groups = p.groups[:n+1]
		g := &p.groups[n]
		g.shard, g.cmds = shard, g.cmds[:0]
	} else {
		p.groups = append(p.groups, group{shard: shard})
	}
	if p.c.srv.cfg.Mode == ModeCluster {
		p.groups[n].leader = p.c.srv.backend.Leader(shard)
	}
	return n
}

// keyed adds one part per slot of the keys, which are every step-th of args,
// with all keys of the slot and, if step is 2, the values that follow them.
func (p *plan) keyed(op command.Op, args [][]byte, step int) error {
	clear(p.bySlot)
	for i := 0; i < len(args); i += step {
		slot := sharding.SlotOf(args[i])
		at, again := p.bySlot[slot]
		var cmd *command.Command
		if again {
			if err := p.checkKey(args[i]); err != nil {
				return err
			}
			cmd = p.cmd(&p.parts[at])
			cmd.Keys = append(cmd.Keys, args[i])
		} else {
			var err error
			if cmd, err = p.command(op, args[i:]); err != nil {
				return err
			}
			p.bySlot[slot] = len(p.parts) - 1
		}
		if step == 2 {
			if err := p.sized(args[i+1]); err != nil {
				return err
			}
			if again {
				cmd.Values = append(cmd.Values, args[i+1])
			} else {
				cmd.Values = args[i+1 : i+2 : i+2]
			}
		}
	}
	return nil
}

// place notes for each part which keys of the request it answers.
func (p *plan) place(first int, keys [][]byte) {
	for i := first; i < len(p.parts); i++ {
		part := &p.parts[i]
		part.lo = len(p.places)
		part.hi = part.lo // filled below
		p.places = append(p.places, make([]int32, len(p.cmd(part).Keys))...)
	}
	for i, key := range keys {
		part := &p.parts[p.bySlot[sharding.SlotOf(key)]]
		p.places[part.hi] = int32(i)
		part.hi++
	}
}

func (p *plan) cmd(part *part) *command.Command { return &p.groups[part.group].cmds[part.at] }

// misrouted is the refusal of a request whose keys this port does not serve.
func (p *plan) misrouted(r *request) error {
	if p.c.srv.cfg.Mode != ModeCluster {
		return nil
	}
	parts := p.parts[r.lo:]
	self := p.c.srv.backend.Self()
	for i := range parts {
		g := &p.groups[parts[i].group]
		if g.leader == "" {
			p.awaitLeader(g)
		}
		shard := g.shard
		if g.leader == self || p.readable(shard, p.cmd(&parts[i]).Op) {
			continue
		}
		slot := p.cmd(&parts[0]).Slot
		for j := range parts {
			if p.groups[parts[j].group].shard != shard {
				return refusal("CROSSSLOT Keys in request don't hash to the same slot, and this node does not lead all of theirs: " +
					quoted(p.cmd(&parts[i]).Keys[0]) + " and " + quoted(p.cmd(&parts[j]).Keys[0]) +
					"; give keys that belong together one {tag}, or use a client port, which splits such commands")
			}
		}
		if moved := p.c.movedTo(p.router.Map(), slot, g.leader); moved != "" {
			return refusal(moved)
		}
		return refusef("CLUSTERDOWN nothing was done, try again: the leader of shard %d is not known", shard)
	}
	return nil
}

// leaderWait is how long a pipeline on a cluster port waits, once, for a shard to
// get a leader; clients repeat CLUSTERDOWN a few times within tenths of a second
// only, so that a leadership on its way from one node to another would be an error to users.
const leaderWait = time.Second

// awaitLeader looks again for a shard's leader, unless this pipeline has waited in vain.
func (p *plan) awaitLeader(g *group) {
	if p.c.pace.waited {
		return
	}
	deadline := time.Now().Add(leaderWait)
	if p.c.pace.deadline.Before(deadline) {
		deadline = p.c.pace.deadline
	}
	ctx, cancel := context.WithDeadline(p.c.srv.ctx, deadline)
	defer cancel()
	p.c.pace.waited = !p.c.srv.backend.AwaitLeader(ctx, g.shard)
	g.leader = p.c.srv.backend.Leader(g.shard)
}

// readable says whether a connection that takes reads from any replica may read
// the shard here: if the node has a replica of it.
func (p *plan) readable(shard sharding.ShardID, op command.Op) bool {
	if !p.c.reading.Local && !p.c.reading.Stale || !op.IsRead() {
		return false
	}
	s, ok := p.router.Map().Shard(shard)
	if !ok {
		return false
	}
	_, here := s.On(p.c.srv.backend.Self())
	return here
}

var errRepliesFull = transport.Errorf(transport.CodeBusy, "this node holds too many bytes of replies")

// execute runs the groups when there is room for their answers. It returns how
// many bytes of answers are held, for the caller to release when they are written.
func (p *plan) execute(ctx context.Context) (held int64) {
	replies := p.c.srv.replies
	most := int64(p.values) * int64(p.c.srv.cfg.Limits.MaxValue)
	if most > 0 { // what reads nothing does not queue behind those who wait for room
		if err := replies.Acquire(ctx, most); err != nil {
			for i := range p.groups {
				p.groups[i].err = errRepliesFull
			}
			return 0
		}
	}
	p.exec(ctx)
	p.c.pace.done(ctx.Err() != nil)
	for i := range p.groups {
		for j := range p.groups[i].results {
			r := &p.groups[i].results[j]
			held += int64(len(r.Bytes))
			for k := range r.Array {
				held += int64(len(r.Array[k].Bytes))
			}
		}
	}
	held = min(held, most)
	replies.Release(most - held)
	return held
}

// exec runs the groups, all at once.
func (p *plan) exec(ctx context.Context) {
	var others sync.WaitGroup
	for i := range p.groups {
		g := &p.groups[i]
		switch {
		case len(g.cmds) == 0:
		case i < len(p.groups)-1:
			others.Add(1)
			p.c.srv.crew.do(func() {
				defer others.Done()
				g.exec(ctx, p.c.srv.backend, p.c.reads())
			})
		default:
			g.exec(ctx, p.c.srv.backend, p.c.reads())
		}
	}
	others.Wait()
}

func (g *group) exec(ctx context.Context, b Backend, how Reading) {
	if slices.ContainsFunc(g.cmds, func(c command.Command) bool { return !c.Op.IsRead() }) {
		g.results, g.err = b.Exec(ctx, g.shard, g.cmds)
	} else {
		g.results, g.err = b.Read(ctx, g.shard, g.cmds, how)
	}
	if g.err == nil && len(g.results) != len(g.cmds) {
		g.err = transport.Errorf(transport.CodeUncertain, "%d answers to %d commands", len(g.results), len(g.cmds))
	}
}

func (p *plan) reply(r *request) {
	if r.refused != "" {
		p.c.err(r.refused)
		return
	}
	if text := p.failed(r); text != "" {
		p.c.err(text)
		return
	}
	r.reply(p, r)
}

// result returns the i-th part's result, after failed said that there is one.
func (p *plan) result(r *request, i int) *command.Result {
	part := &p.parts[r.lo+i]
	return &p.groups[part.group].results[part.at]
}

// failed returns the error to reply if any part of the request failed.
func (p *plan) failed(r *request) string {
	write := r.spec.has(flagWrite)
	done, text := 0, ""
	for i := r.lo; i < r.hi; i++ {
		part := &p.parts[i]
		g := &p.groups[part.group]
		switch {
		case g.err != nil:
			t := p.routeError(g, part, write)
			if text == "" || !transport.Certain(g.err) { // the worst one counts
				text = t
			}
		case g.results[part.at].Kind == command.KindError:
			if text == "" {
				text = resultError(&g.results[part.at])
			}
		default:
			done++
		}
	}
	if text != "" && done > 0 && write {
		return fmt.Sprintf("UNCERTAIN done for the keys of %d of %d slots only, the rest said: %s", done, r.hi-r.lo, text)
	}
	return text
}

// routeError is errorText, but on a cluster port a known new leader is MOVED.
func (p *plan) routeError(g *group, part *part, write bool) string {
	if p.c.srv.cfg.Mode == ModeCluster && transport.CodeOf(g.err) == transport.CodeNotLeader {
		if leader := p.c.srv.backend.Leader(g.shard); leader != p.c.srv.backend.Self() {
			if moved := p.c.movedTo(p.router.Map(), p.cmd(part).Slot, leader); moved != "" {
				return moved
			}
		}
	}
	return errorText(g.err, write)
}

// The repliers.

func replyResult(p *plan, r *request) { p.c.value(p.result(r, 0)) }

// replyZeroOne is 1 for done and 0 for refused by a condition (SETNX).
func replyZeroOne(p *plan, r *request) {
	n := int64(0)
	if res := p.result(r, 0); res.Kind == command.KindOK || res.Int == 1 {
		n = 1
	}
	p.c.w.Int(n)
}

func replySimple(p *plan, r *request) { p.c.w.SimpleString(string(p.result(r, 0).Bytes)) }

func replySum(p *plan, r *request) {
	n := int64(0)
	for i := range r.hi - r.lo {
		n += p.result(r, i).Int
	}
	p.c.w.Int(n)
}

func replyOK(p *plan, r *request) { p.c.w.SimpleString("OK") }

// replyArray is the values of a MGET.
func replyArray(p *plan, r *request) {
	values := p.inOrder(r)
	p.c.w.Array(len(values))
	for _, v := range values {
		p.c.value(v)
	}
}

var nothing = command.Nil()

// inOrder puts the values of the parts of a MGET where their keys were.
func (p *plan) inOrder(r *request) []*command.Result {
	values := make([]*command.Result, len(r.args)-1)
	for i := range values {
		values[i] = &nothing
	}
	for i := r.lo; i < r.hi; i++ {
		part := &p.parts[i]
		res := &p.groups[part.group].results[part.at]
		for k, place := range p.places[part.lo:part.hi] {
			if k < len(res.Array) {
				values[place] = &res.Array[k]
			}
		}
	}
	return values
}

// replyTTL is milliseconds (a == 1) or seconds, rounded; b == 1: the time of
// day, not the time left.
func replyTTL(p *plan, r *request) {
	ms := p.result(r, 0).Int
	if ms < 0 {
		p.c.w.Int(ms)
		return
	}
	if r.b == 1 {
		ms += p.c.srv.cfg.Now().UnixMilli()
	}
	if r.a != 1 {
		ms = (ms + 500) / 1000
	}
	p.c.w.Int(ms)
}

// replyRange is the bytes a..b of a value, counted from the end if negative.
func replyRange(p *plan, r *request) {
	v := p.result(r, 0).Bytes
	n := int64(len(v))
	from, to := r.a, r.b
	if from < 0 {
		from = max(from+n, 0)
	}
	if to < 0 {
		to = max(to+n, 0)
		if r.b < -n {
			to = -1
		}
	}
	if to = min(to, n-1); from > to {
		p.c.w.Bulk(nil)
		return
	}
	p.c.w.Bulk(v[from : to+1])
}

// value writes a result as it is.
func (c *conn) value(r *command.Result) {
	switch r.Kind {
	case command.KindOK:
		c.w.SimpleString("OK")
	case command.KindInt:
		c.w.Int(r.Int)
	case command.KindBytes:
		c.w.Bulk(r.Bytes)
	case command.KindError:
		c.err(resultError(r))
	case command.KindArray:
		c.w.Array(len(r.Array))
		for i := range r.Array {
			c.value(&r.Array[i])
		}
	default:
		c.w.Null()
	}
}
