package node

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// maxProposal is how many bytes of commands go into one proposal: a shard's
// entries are at most this long, or one command.
const maxProposal = 256 << 10

// Exec runs commands of one shard, in order, on the shard's leader wherever it
// is, and returns a result for each. The error says with transport.Certain
// whether nothing was done; otherwise the fate of the writes is unknown.
func (n *Node) Exec(ctx context.Context, shard sharding.ShardID, cmds []command.Command) ([]command.Result, error) {
	results, _, err := n.exec(ctx, shard, cmds)
	return results, err
}

// exec is Exec that also tells the log index of the last command; 0 if another shard has carried out some of them, whose slots
// have become its own.
func (n *Node) exec(ctx context.Context, shard sharding.ShardID, cmds []command.Command) (results []command.Result, index uint64, err error) {
	results, index, err = n.execIn(ctx, shard, cmds)
	if err != nil || !anyElsewhere(results) {
		return results, index, err
	}
	err = n.follow(ctx, cmds, results, func(ctx context.Context, to sharding.ShardID, part []command.Command) ([]command.Result, error) {
		if to == sharding.NoShard {
			return nil, transport.Errorf(transport.CodeUnavailable, "nobody owns slot %d", part[0].Slot)
		}
		if to != shard {
			part = unwatched(part)
		}
		rs, i, err := n.execIn(ctx, to, part)
		if to == shard && len(part) == len(cmds) {
			index = i
		} else {
			index = 0
		}
		return rs, err
	})
	if err != nil && transport.Certain(err) && len(n.refusedBy(n.Router(), cmds, results)) < len(cmds) && !onlyReads(cmds) {
		err = transport.Errorf(transport.CodeUncertain, "the pipeline was carried out in part: %v", err)
	}
	return results, index, err
}

// unwatched has transactions fail whose watched keys have come to another shard: the index to which nobody had
// changed them is one of the other log.
func unwatched(cmds []command.Command) []command.Command {
	for i := range cmds {
		if c := &cmds[i]; c.Op == command.OpMulti && len(c.Keys) > 0 {
			c.Values = [][]byte{c.Values[0], command.AppendIndexes(nil, make([]uint64, len(c.Keys)))}
		}
	}
	return cmds
}

// execIn is exec in one shard, whoever owns the slots.
func (n *Node) execIn(ctx context.Context, shard sharding.ShardID, cmds []command.Command) (results []command.Result, index uint64, err error) {
	if numbered(cmds) {
		return n.execAdopting(ctx, shard, cmds)
	}
	return n.execAll(ctx, shard, cmds)
}

// execAll cuts the commands into proposals.
func (n *Node) execAll(ctx context.Context, shard sharding.ShardID, cmds []command.Command) (results []command.Result, index uint64, err error) {
	if part := proposal(cmds); len(part) == len(cmds) {
		return n.execOne(ctx, shard, cmds)
	}
	all := cmds
	results = make([]command.Result, 0, len(cmds))
	for len(cmds) > 0 {
		part := proposal(cmds)
		r, i, err := n.execOne(ctx, shard, part)
		if err != nil {
			if len(results) > 0 && !onlyReads(all) { // the parts before this one were done
				err = transport.Errorf(transport.CodeUncertain, "the pipeline was carried out in part: %v", err)
			}
			return nil, 0, err
		}
		results, index, cmds = append(results, r...), i, cmds[len(part):]
		if anyElsewhere(r) { // what comes after it in the same slot must not be carried out before it
			for range cmds {
				results = append(results, command.Err(command.CodeSlotsMoving))
			}
			break
		}
	}
	return results, index, nil
}

// maxAnswers is how many values one proposal may be answered with: at 1 MiB each
// they must fit a frame between nodes, or the leader would carry out what it
// cannot answer.
const maxAnswers = 64

// proposal cuts off as many commands as fit one proposal, at least one.
func proposal(cmds []command.Command) []command.Command {
	size, values := 0, 0
	for i := range cmds {
		size += cmds[i].Size()
		values += answers(&cmds[i])
		if (size > maxProposal || values > maxAnswers) && i > 0 {
			return cmds[:i]
		}
	}
	return cmds
}

// answers is how many values a command may be answered with.
func answers(cmd *command.Command) int {
	switch {
	case cmd.Op == command.OpMGet:
		return len(cmd.Keys)
	case cmd.Op == command.OpGet, cmd.Op == command.OpGetDel, cmd.Op == command.OpGetEx, cmd.Flags&command.FlagGet != 0:
		return 1
	}
	return 0
}

func (n *Node) execOne(ctx context.Context, shard sharding.ShardID, cmds []command.Command) (results []command.Result, index uint64, err error) {
	if st := n.host.get(shard); st != nil && prompt(st, cmds) {
		if results, index, err = st.Read(ctx, cmds); err == nil {
			return results, index, nil
		}
	}
	var req []byte // encoded once, and only if it has to travel
	unsure := false
	err = n.atLeader(ctx, shard, repeatable(cmds), func(ctx context.Context, leader sharding.NodeID, st *store.Store) (err error) {
		defer func() { unsure = unsure || err != nil && !transport.Certain(err) }()
		if st != nil {
			results, index, err = carryOut(ctx, st, cmds)
			return err
		}
		if req == nil {
			req = command.AppendCommands(binary.BigEndian.AppendUint32([]byte{wireVersion}, shard), cmds)
		}
		raw, err := n.transport.Call(ctx, leader, transport.LaneCall, transport.MethodExec, req)
		if err != nil {
			return err
		}
		body, err := wireBody(raw)
		if err != nil || len(body) < 8 {
			return transport.Errorf(transport.CodeUncertain, "answer of %d bytes not understood: %v", len(raw), err)
		}
		index = binary.BigEndian.Uint64(body)
		results, err = command.DecodeResults(body[8:])
		if err == nil && len(results) != len(cmds) {
			return transport.Errorf(transport.CodeUncertain, "%d results to %d commands", len(results), len(cmds))
		}
		return err
	})
	if err = settle(cmds, results, err, unsure); err != nil {
		return nil, 0, err
	}
	return results, index, nil
}

// carryOut has the shard's leader answer commands: reads alone without the log;
// with writes among them as one proposal, so that a pipeline reads what it wrote.
func carryOut(ctx context.Context, st *store.Store, cmds []command.Command) ([]command.Result, uint64, error) {
	if onlyReads(cmds) {
		return st.Read(ctx, cmds)
	}
	if refused := st.Elsewhere(cmds); refused != nil {
		return refused, 0, nil
	}
	return st.Propose(ctx, cmds)
}

func onlyReads(cmds []command.Command) bool {
	for i := range cmds {
		if !cmds[i].Op.IsRead() {
			return false
		}
	}
	return true
}

// handleExec carries out forwarded commands. It does not forward again: a caller
// with an old idea of the leader is told, so that commands never go in circles.
func (n *Node) handleExec(ctx context.Context, _ string, req []byte) ([]byte, error) {
	body, err := wireBody(req)
	if err != nil || len(body) < 4 {
		return nil, transport.Errorf(transport.CodeBadRequest, "commands of %d bytes: %v", len(req), err)
	}
	st, err := n.hosted(binary.BigEndian.Uint32(body))
	if err != nil {
		return nil, err
	}
	cmds, err := command.DecodeCommands(body[4:])
	if err != nil {
		return nil, transport.Errorf(transport.CodeBadRequest, "%v", err)
	}
	ctx, cancel := withAnswerMargin(ctx)
	defer cancel()
	results, index, err := carryOut(ctx, st, cmds)
	if err != nil {
		return nil, err
	}
	return command.AppendResults(binary.BigEndian.AppendUint64([]byte{wireVersion}, index), results), nil
}

func (n *Node) hosted(shard sharding.ShardID) (*store.Store, error) {
	if st := n.host.get(shard); st != nil {
		return st, nil
	}
	return nil, transport.Errorf(transport.CodeNoReplica, "shard %d on node %s", shard, n.cfg.ID)
}

// leaderPoll is how soon a request looks again for a leader that it did not
// find. Elections take hundreds of milliseconds.
const leaderPoll = 10 * time.Millisecond

// harmlessTry bounds one attempt of what may be repeated.
const harmlessTry = time.Second

// hopelessTry is how long a request looks for a leader that this node cannot hear of: the client is to ask another node, which
// may be on the majority's side.
const hopelessTry = 300 * time.Millisecond

// atLeader calls attempt with the shard's leader, and with its store if that is
// this node. It tries again, until ctx ends, when the attempt certainly did
// nothing because the leader was elsewhere, gone or unknown, or whatever
// happened if the attempt is harmless to repeat.
func (n *Node) atLeader(ctx context.Context, shard sharding.ShardID, harmless bool, attempt func(ctx context.Context, leader sharding.NodeID, st *store.Store) error) error {
	var hint sharding.NodeID // who the last one that we asked said it is
	var last error           // nil: no leader was known
	began := time.Now()
	for {
		leader := hint
		if leader == "" {
			leader = n.Leader(shard)
		}
		hint = ""
		if leader != "" {
			var st *store.Store
			if leader == n.cfg.ID {
				st = n.host.get(shard)
			}
			actx, cancel := ctx, context.CancelFunc(func() {})
			if harmless { // a paused leader must not hold it until its deadline
				actx, cancel = context.WithTimeout(ctx, harmlessTry)
			}
			err := attempt(actx, leader, st)
			cancel()
			if err == nil || (!harmless && !transport.Certain(err)) {
				return err
			}
			switch code := transport.CodeOf(err); code {
			case transport.CodeNotLeader:
				var e *transport.Error
				if errors.As(err, &e) && e.Detail != leader {
					hint = e.Detail
				}
			case transport.CodeUnavailable, transport.CodeNoReplica, transport.CodeClosed, transport.CodeBusy,
				transport.CodeLinkLost, transport.CodeUncertain, transport.CodeTimeout:
			default:
				return err
			}
			last = err
			if ctx.Err() != nil {
				break
			}
			if hint != "" {
				if _, known := n.Router().Map().Node(hint); !known {
					hint = ""
				}
			}
		}
		if time.Since(began) > hopelessTry && n.hopeless(shard) {
			break
		}
		n.retries.Inc()
		t := time.NewTimer(leaderPoll)
		select {
		case <-ctx.Done():
		case <-n.ctx.Done():
			t.Stop()
			return transport.Errorf(transport.CodeClosed, "node %s is stopping", n.cfg.ID)
		case <-t.C:
			continue
		}
		t.Stop()
		break
	}
	if last == nil {
		return transport.Errorf(transport.CodeTimeout, "shard %d has no leader", shard)
	}
	if harmless || transport.Certain(last) {
		return transport.Errorf(transport.CodeTimeout, "shard %d: no answer from a leader in time (%v)", shard, last)
	}
	return last
}

// hopeless says that no majority of a shard's voters has said anything lately, so that nobody whom this node could find
// leads it: it is cut off with a minority, or the others are down.
func (n *Node) hopeless(shard sharding.ShardID) bool {
	sh, ok := n.Router().Map().Shard(shard)
	if !ok {
		return false
	}
	var voters []sharding.NodeID
	if st := n.host.get(shard); st != nil {
		for _, m := range st.Status().Members {
			if m.Voter {
				voters = append(voters, m.Node)
			}
		}
	}
	if len(voters) == 0 { // none of them is ours, and the map is what we know
		for _, r := range sh.Replicas {
			voters = append(voters, r.Node)
		}
	}
	there, now := 0, time.Now()
	for _, id := range voters {
		if id == n.cfg.ID || !n.peers.silent(id, now) {
			there++
		}
	}
	return there < sharding.Majority(len(voters))
}

// prompt says whether our own replica answers without waiting for anything but other voters. Such a wait ends with the
// leadership, so it needs no bound of its own.
func prompt(st *store.Store, cmds []command.Command) bool {
	// What tells time may have to go through the log.
	tellsTime := func(c command.Command) bool { return c.Op == command.OpTTL }
	return onlyReads(cmds) && !slices.ContainsFunc(cmds, tellsTime) && st.Prompt()
}

// AwaitLeader waits until it is known who leads a shard.
func (n *Node) AwaitLeader(ctx context.Context, shard sharding.ShardID) bool {
	tick := time.NewTicker(leaderPoll)
	defer tick.Stop()
	for began := time.Now(); n.Leader(shard) == ""; {
		if time.Since(began) > hopelessTry && n.hopeless(shard) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// Leader returns the node that leads a shard as far as is known here: what
// our own replica's Raft says, or a peer's claim in a newer term.
func (n *Node) Leader(shard sharding.ShardID) sharding.NodeID {
	claim, claimTerm := n.peers.claim(shard)
	if st := n.host.get(shard); st != nil {
		if leader, term := st.Leader(); leader != "" && term >= claimTerm {
			return leader
		}
	}
	return claim
}
