package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
)

const (
	// activeKeys are in use at once in a shard; few, so that clients meet.
	activeKeys = 3
	// keyLife and keyUncertain bound a key's history, in operations and in open ends:
	// the search for an order is exponential in what overlaps.
	keyLife      = 150
	keyUncertain = 8
	// judgeTimeout bounds that search for one key; not to know is a failure.
	judgeTimeout = 60 * time.Second
)

// registers is the workload of values that are set, compared, deleted and read,
// judged for linearizability key by key.
type registers struct {
	order *order
	keys  *keys

	mu     sync.Mutex
	values int // given out
	active map[sharding.ShardID][]*register
	all    []*register
}

// register is one key's life.
type register struct {
	key       string
	shard     sharding.ShardID
	ops       int
	uncertain int
	recent    []string // values written last
	history   []porcupine.Operation
}

func newRegisters(o *order, k *keys) *registers {
	return &registers{order: o, keys: k, active: map[sharding.ShardID][]*register{}}
}

// registerIn and registerOut are an operation of a history; "" is no value.
type registerIn struct {
	op       command.Op // OpGet, OpSet or OpDel
	old, new string     // old: compare first, if compare is set
	compare  bool
}

type registerOut struct {
	value string // of a get
	done  bool   // the comparison held, the key was there
	open  bool   // not known
}

func (r *registers) pick(rng *rand.Rand, shard sharding.ShardID) *register {
	list := r.active[shard]
	if len(list) < activeKeys {
		list = append(list, nil)
		r.active[shard] = list
	}
	i := rng.IntN(len(list))
	if k := list[i]; k == nil || k.ops >= keyLife || k.uncertain >= keyUncertain {
		list[i] = &register{key: r.keys.make(shard), shard: shard}
		r.all = append(r.all, list[i])
	}
	return list[i]
}

func (r *registers) next(rng *rand.Rand, shard sharding.ShardID, read bool) ask {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.pick(rng, shard)
	if read {
		return r.ask(k, registerIn{op: command.OpGet})
	}
	if rng.IntN(12) == 0 {
		return r.ask(k, registerIn{op: command.OpDel})
	}
	r.values++
	in := registerIn{op: command.OpSet, new: fmt.Sprintf("v%d", r.values)}
	if len(k.recent) > 0 && rng.IntN(3) == 0 {
		in.compare, in.old = true, k.recent[rng.IntN(len(k.recent))]
	}
	k.recent = append(k.recent[max(0, len(k.recent)-2):], in.new)
	return r.ask(k, in)
}

// ask is called with mu held.
func (r *registers) ask(k *register, in registerIn) ask {
	k.ops++
	op := porcupine.Operation{ClientId: k.ops, Input: in, Call: r.order.next()}
	var cmd command.Command
	switch in.op {
	case command.OpSet:
		cmd = on(command.OpSet, k.key, in.new)
		if in.compare {
			cmd = on(command.OpSet, k.key, in.new, in.old)
			cmd.Flags = command.FlagIfEqual
		}
	default:
		cmd = on(in.op, k.key)
	}
	return ask{cmd, func(o outcome, res command.Result) {
		op.Return = r.order.next()
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case o == failed, o == uncertain && in.op == command.OpGet:
			return // it did nothing, or nobody knows what it saw
		case o == uncertain:
			k.uncertain++
			op.Return, op.Output = never, registerOut{open: true}
		case in.op == command.OpGet:
			op.Output = registerOut{value: string(res.Bytes)}
		case in.op == command.OpDel:
			op.Output = registerOut{done: res.Int == 1}
		default:
			op.Output = registerOut{done: res.Kind == command.KindOK}
		}
		k.history = append(k.history, op)
	}}
}

func (r *registers) final() (list []ask) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.all {
		list = append(list, r.ask(k, registerIn{op: command.OpGet}))
	}
	return list
}

func (r *registers) check(f *failure) (keys int) {
	for _, k := range r.all {
		if len(k.history) == 0 {
			continue
		}
		keys++
		verdict, info := porcupine.CheckOperationsVerbose(registerModel, k.history, judgeTimeout)
		if verdict == porcupine.Ok {
			continue
		}
		f.add("key %s of shard %d: %d operations are not linearizable (%s)", k.key, k.shard, len(k.history), verdict)
		f.save("history-"+k.key+".txt", historyText(k.history))
		f.saveWith("history-"+k.key+".html", func(file *os.File) error { return porcupine.Visualize(registerModel, info, file) })
	}
	return keys
}

// registerModel is one key: its value, "" if there is none.
var registerModel = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		now, in, out := state.(string), input.(registerIn), output.(registerOut)
		switch {
		case in.op == command.OpGet:
			return out.value == now, now
		case in.op == command.OpDel:
			return out.open || out.done == (now != ""), ""
		case !in.compare:
			return out.open || out.done, in.new
		case now == in.old:
			return out.open || out.done, in.new
		}
		return out.open || !out.done, now
	},
	DescribeOperation: func(input, output any) string { return describe(input.(registerIn), output.(registerOut)) },
}

func describe(in registerIn, out registerOut) string {
	result := fmt.Sprint(out.done)
	if out.open {
		result = "?"
	}
	switch {
	case in.op == command.OpGet:
		return fmt.Sprintf("get -> %q", out.value)
	case in.op == command.OpDel:
		return "del -> " + result
	case in.compare:
		return fmt.Sprintf("set %s if %s -> %s", in.new, in.old, result)
	}
	return fmt.Sprintf("set %s -> %s", in.new, result)
}

func historyText(ops []porcupine.Operation) []byte {
	var b []byte
	for _, op := range ops {
		end := "never"
		if op.Return != never {
			end = fmt.Sprint(op.Return)
		}
		b = fmt.Appendf(b, "%8d %8s  %s\n", op.Call, end, describe(op.Input.(registerIn), op.Output.(registerOut)))
	}
	return b
}
