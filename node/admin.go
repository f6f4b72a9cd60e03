package node

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// What an administrator asks of the cluster, on any node: ABACUS.ADMIN, POST /v1/admin/…, and through them abacus node, shard and
// rebalance. Each is a change of the map, or a look at what one would bring; nothing here waits for a move to end.

// verb is one of them. Its arguments are words.
type verb struct {
	words []string // how it begins
	args  string   // what follows, for people
	least int      // how many arguments
	most  int
	run   func(n *Node, ctx context.Context, args []string) (answer any, err error)
}

// changed is the answer of what changes the map.
type changed struct {
	Epoch uint64 `json:"epoch"`
	// Unchanged: it is so already, or does not fit what there is.
	Unchanged bool `json:"unchanged,omitempty"`
}

var verbs = []verb{
	{words: []string{"node", "cordon"}, args: "NODE", least: 1, most: 1, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.change(ctx, func(m sharding.Map) (sharding.Map, bool, error) { return sharding.CordonNode(m, a[0]) })
	}},
	{words: []string{"node", "uncordon"}, args: "NODE", least: 1, most: 1, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.change(ctx, func(m sharding.Map) (sharding.Map, bool, error) { return sharding.UncordonNode(m, a[0]) })
	}},
	{words: []string{"node", "drain"}, args: "NODE [SUCCESSOR]", least: 1, most: 2, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		successor := append(a, "")[1]
		return n.change(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
			return sharding.DrainNode(m, a[0], successor, n.mayTake)
		})
	}},
	{words: []string{"node", "dead-after"}, args: "DURATION|off", least: 1, most: 1, run: setDeadAfter},
	{words: []string{"node", "remove"}, args: "NODE", least: 1, most: 1, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.change(ctx, func(m sharding.Map) (sharding.Map, bool, error) { return n.decideRemove(m, a[0]) })
	}},
	{words: []string{"shard", "move"}, args: "SHARD FROM TO", least: 3, most: 3, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.changeShard(ctx, a[0], func(m sharding.Map, sh sharding.Shard) (sharding.Map, bool, error) {
			return n.decideMove(m, sh, a[1], a[2])
		})
	}},
	{words: []string{"shard", "cancel"}, args: "SHARD", least: 1, most: 1, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.changeShard(ctx, a[0], n.decideCancel)
	}},
	{words: []string{"shard", "pause"}, args: "SHARD", least: 1, most: 1, run: pauseMove(true)},
	{words: []string{"shard", "resume"}, args: "SHARD", least: 1, most: 1, run: pauseMove(false)},
	{words: []string{"upgrade"}, run: func(n *Node, ctx context.Context, _ []string) (any, error) {
		return n.change(ctx, func(m sharding.Map) (sharding.Map, bool, error) { return sharding.RaiseLevel(m, n.levelOf) })
	}},
	{words: []string{"recover", "plan"}, args: "[LOST,LOST...|none [empty]]", most: 2, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.showRecovery(ctx, a)
	}},
	{words: []string{"recover", "run"}, args: "PHRASE [LOST,LOST...|none [empty]]", least: 1, most: 3, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.recover(ctx, a[0], a[1:])
	}},
	{words: []string{"rebalance", "plan"}, run: func(n *Node, ctx context.Context, _ []string) (any, error) { return n.planBalance(ctx) }},
	{words: []string{"rebalance", "once"}, run: setBalance(sharding.BalanceOnce)},
	{words: []string{"rebalance", "always"}, run: setBalance(sharding.BalanceAlways)},
	{words: []string{"rebalance", "stop"}, run: setBalance(sharding.BalanceNever)},
}

// Admin carries out what an administrator says, as "node drain n3", and returns the answer as JSON. CodeBadRequest: there is no such verb. CodeRefused: it
// would take a replica or a majority that is needed, and the error says of which shard. CodeConflict: not now.
func (n *Node) Admin(ctx context.Context, words []string) ([]byte, error) {
	verbs := slices.Concat(verbs, slotVerbs, checkVerbs, userVerbs)
	i := slices.IndexFunc(verbs, func(v verb) bool {
		return len(words) >= len(v.words) && slices.EqualFunc(v.words, words[:len(v.words)], strings.EqualFold)
	})
	if i < 0 {
		var all []string
		for _, v := range verbs {
			all = append(all, v.usage())
		}
		return nil, transport.Errorf(transport.CodeBadRequest, "%q: want one of: %s", strings.Join(words, " "), strings.Join(all, "; "))
	}
	v := verbs[i]
	args := words[len(v.words):]
	if len(args) < v.least || len(args) > v.most {
		return nil, transport.Errorf(transport.CodeBadRequest, "%d arguments: want %s", len(args), v.usage())
	}
	answer, err := v.run(n, ctx, args)
	if err != nil {
		return nil, err
	}
	return json.Marshal(answer)
}

func (v verb) usage() string { return strings.TrimSpace(strings.Join(v.words, " ") + " " + v.args) }

func (n *Node) change(ctx context.Context, decide decision) (any, error) {
	tried := false
	m, err := n.changeMap(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
		next, changes, err := decide(m)
		tried = tried || changes // and not found done already because an attempt of unknown outcome did it
		return next, changes, err
	})
	if err != nil {
		return nil, err
	}
	return changed{m.Epoch, !tried}, nil
}

// changeShard changes the shard of that number.
func (n *Node) changeShard(ctx context.Context, number string, decide func(sharding.Map, sharding.Shard) (sharding.Map, bool, error)) (any, error) {
	id, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return nil, transport.Errorf(transport.CodeBadRequest, "shard %q: want a number", number)
	}
	return n.change(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
		sh, ok := m.Shard(sharding.ShardID(id))
		if !ok {
			return m, false, transport.Errorf(transport.CodeNotFound, "there is no shard %d", id)
		}
		return decide(m, sh)
	})
}

// levelOf is the feature level that a node understands, -1 if it does not answer.
func (n *Node) levelOf(id sharding.NodeID) int {
	if id == n.cfg.ID {
		return sharding.Level
	}
	said, alive := n.peers.get(id)
	if !alive {
		return -1
	}
	return said.Level
}

// decideRemove takes a node out that holds nothing any more, neither in the map nor in a group nor on its disk.
func (n *Node) decideRemove(m sharding.Map, id sharding.NodeID) (sharding.Map, bool, error) {
	if _, in := m.Node(id); !in {
		return m, false, nil // said again, or taken for undone
	}
	next, changed, err := sharding.RemoveNode(m, id)
	if err != nil {
		return m, false, err
	}
	if err := n.letGoOf(m, id); err != nil {
		return m, false, err
	}
	return next, changed, nil
}

// letGoOf says, with CodeConflict, what still counts on a node that has no replicas in the map any more.
func (n *Node) letGoOf(m sharding.Map, id sharding.NodeID) error {
	said, alive := n.peers.get(id)
	if id == n.cfg.ID {
		said, alive = n.status(), true
	}
	if left := len(said.Replicas); alive && left > 0 {
		return transport.Errorf(transport.CodeConflict, "node %s still holds %d replicas that were moved: in some seconds it will have dropped them", id, left)
	}
	for _, sh := range m.Shards {
		leader, members := n.membersOf(sh.ID)
		if leader == "" {
			return transport.Errorf(transport.CodeConflict, "shard %d has no leader that is known here, which would have to say that it does not need node %s", sh.ID, id)
		}
		for _, o := range members {
			if o.Node == id {
				return transport.Errorf(transport.CodeConflict, "shard %d: replica %s is still being removed", sh.ID, o.Replica)
			}
		}
	}
	return nil
}

func (n *Node) decideMove(m sharding.Map, sh sharding.Shard, from, to sharding.NodeID) (sharding.Map, bool, error) {
	node, known := m.Node(to)
	_, knownFrom := m.Node(from)
	r, has := sh.On(from)
	arrived, there := sh.On(to)
	switch {
	case !knownFrom:
		return m, false, transport.Errorf(transport.CodeNotFound, "there is no node %q", from)
	case there && has && sh.Move != nil && sh.Move.From == r.ID && sh.Move.To == arrived.ID:
		return m, false, nil // it was asked for before, and is under way
	case there && !has:
		return m, false, transport.Errorf(transport.CodeRefused, "node %s has a replica of shard %d already, and node %s has none", to, sh.ID, from)
	case !has:
		return m, false, transport.Errorf(transport.CodeNotFound, "shard %d has no replica on node %q", sh.ID, from)
	case !known:
		return m, false, transport.Errorf(transport.CodeNotFound, "there is no node %q", to)
	case node.Dead:
		return m, false, transport.Errorf(transport.CodeConflict, "node %s is taken for dead, and takes nothing until it is heard again", to)
	case !node.Takes():
		return m, false, transport.Errorf(transport.CodeRefused, "node %s is cordoned, and takes nothing: uncordon it first", to)
	case !n.mayTake(to):
		return m, false, transport.Errorf(transport.CodeConflict, "node %s does not answer, or its disk is nearly full", to)
	}
	next, err := sharding.StartMove(m, sh.ID, r.ID, to)
	return next, err == nil, err
}

func (n *Node) decideCancel(m sharding.Map, sh sharding.Shard) (sharding.Map, bool, error) {
	if sh.Move == nil {
		return m, false, transport.Errorf(transport.CodeNotFound, "no replica of shard %d is being moved", sh.ID)
	}
	// A plan that is made anew takes another way if this one is barred.
	i := slices.IndexFunc(sh.Replicas, func(r sharding.Replica) bool { return r.ID == sh.Move.To })
	if to, _ := m.Node(sh.Replicas[i].Node); !to.Takes() || !n.mayTake(to.ID) {
		next, err := sharding.CancelMove(m, sh.ID, *sh.Move)
		return next, err == nil, err
	}
	for _, r := range sh.Replicas {
		if node, _ := m.Node(r.Node); r.ID == sh.Move.From && node.Draining {
			return m, false, transport.Errorf(transport.CodeRefused, "node %s drains, and the move would begin anew: uncordon it first", node.ID)
		} else if r.ID == sh.Move.From && node.Dead {
			return m, false, transport.Errorf(transport.CodeRefused, "node %s is taken for dead, and the move would begin anew: have no node taken for dead with abacus node dead-after off", node.ID)
		}
	}
	if m.Balance != sharding.BalanceNever {
		return m, false, transport.Errorf(transport.CodeRefused, "the cluster is being rebalanced, and the move would begin anew: stop that first")
	}
	next, err := sharding.CancelMove(m, sh.ID, *sh.Move)
	return next, err == nil, err
}

func pauseMove(paused bool) func(*Node, context.Context, []string) (any, error) {
	return func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.changeShard(ctx, a[0], func(m sharding.Map, sh sharding.Shard) (sharding.Map, bool, error) {
			switch {
			case sh.Move == nil:
				return m, false, transport.Errorf(transport.CodeNotFound, "no replica of shard %d is being moved", sh.ID)
			case sh.Move.Paused == paused:
				return m, false, nil
			}
			next, err := sharding.PauseMove(m, sh.ID, *sh.Move, paused)
			return next, err == nil, err
		})
	}
}

func setBalance(b sharding.Balance) func(*Node, context.Context, []string) (any, error) {
	return func(n *Node, ctx context.Context, _ []string) (any, error) {
		return n.change(ctx, func(m sharding.Map) (sharding.Map, bool, error) { return sharding.SetBalance(m, b) })
	}
}

// balancePlan is what a rebalance would do.
type balancePlan struct {
	Epoch uint64        `json:"epoch"`
	Moves []plannedMove `json:"moves"`
	// Bytes is how much would be copied.
	Bytes int64 `json:"bytes"`
	// Unknown is for how many moves nobody said how large the shard is.
	Unknown int `json:"unknown,omitempty"`
}

type plannedMove struct {
	Shard sharding.ShardID   `json:"shard"`
	From  sharding.ReplicaID `json:"from"`
	To    sharding.NodeID    `json:"to"`
	Why   string             `json:"why"`
	// Bytes that the new replica will be sent, as the shard's leader has them now: its state, or its log where this is all there; -1 if it is not known.
	Bytes int64 `json:"bytes"`
}

// copyBytes is how much a new replica of a shard would be sent, as its leader says.
func (n *Node) copyBytes(shard sharding.ShardID) (int64, bool) {
	leader := n.Leader(shard)
	said, alive := n.peers.get(leader)
	if leader == n.cfg.ID {
		said, alive = n.status(), true
	}
	for _, r := range said.Replicas {
		if alive && r.Shard == shard {
			return cmp.Or(r.Copy, r.File), true // one of v0.4 does not tell
		}
	}
	return 0, false
}

// planBalance is what "rebalance once" would do now.
func (n *Node) planBalance(ctx context.Context) (balancePlan, error) {
	m, _, err := n.readMap(ctx)
	if err != nil {
		return balancePlan{}, err
	}
	p := balancePlan{Epoch: m.Epoch, Moves: []plannedMove{}}
	for _, w := range sharding.PlanAll(m, n.mayTake) {
		mv := plannedMove{Shard: w.Shard, From: w.From, To: w.To, Why: w.Why, Bytes: -1}
		if bytes, ok := n.copyBytes(w.Shard); ok {
			mv.Bytes = bytes
			p.Bytes += bytes
		} else {
			p.Unknown++
		}
		p.Moves = append(p.Moves, mv)
	}
	return p, nil
}
