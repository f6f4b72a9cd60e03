package workload

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
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

// Registers is the workload of values that are set, compared, deleted and read,
// judged for linearizability key by key. Reads by followers are in the same history as all others.
type Registers struct {
	order *Order
	keys  Keys

	mu     sync.Mutex
	values int // given out
	active map[int][]*register
	all    []*register
}

// register is one key's life.
type register struct {
	key       string
	shard     int
	ops       int
	uncertain int      // writes without an answer, those under way among them
	recent    []string // values written last
	history   []porcupine.Operation
}

// NewRegisters returns one without keys yet.
func NewRegisters(o *Order, k Keys) *Registers {
	return &Registers{order: o, keys: k, active: map[int][]*register{}}
}

// registerOut is how an operation of a history ended.
type registerOut struct {
	value string // of a get
	done  bool   // the comparison held, the key was there
	open  bool   // not known
}

func (r *Registers) pick(rng *rand.Rand, shard int) *register {
	list := r.active[shard]
	if len(list) < activeKeys {
		list = append(list, nil)
		r.active[shard] = list
	}
	i := rng.IntN(len(list))
	if k := list[i]; k == nil || k.ops >= keyLife || k.uncertain >= keyUncertain {
		list[i] = &register{key: r.keys(shard), shard: shard}
		r.all = append(r.all, list[i])
	}
	return list[i]
}

func (r *Registers) Next(rng *rand.Rand, shard int, read bool) Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.pick(rng, shard)
	if read {
		return r.call(k, Op{Kind: Get, Reading: Reading(rng.IntN(2))}) // Linearizable or ByFollower
	}
	if rng.IntN(12) == 0 {
		return r.call(k, Op{Kind: Delete})
	}
	r.values++
	op := Op{Kind: Set, Value: fmt.Sprintf("v%d", r.values)}
	if len(k.recent) > 0 && rng.IntN(3) == 0 {
		op.Compare, op.Old = true, k.recent[rng.IntN(len(k.recent))]
	}
	k.recent = append(k.recent[max(0, len(k.recent)-2):], op.Value)
	return r.call(k, op)
}

// call is called with mu held.
func (r *Registers) call(k *register, in Op) Call {
	k.ops++
	in.Key = k.key
	if in.Kind != Get {
		k.uncertain++ // until it is known better
	}
	op := porcupine.Operation{ClientId: k.ops, Input: in, Call: r.order.next()}
	return Call{in, func(o Outcome, res Result) {
		op.Return = r.order.next()
		r.mu.Lock()
		defer r.mu.Unlock()
		if in.Kind != Get && o != Uncertain {
			k.uncertain--
		}
		switch {
		case o == Failed, o == Uncertain && in.Kind == Get:
			return // it did nothing, or nobody knows what it saw
		case o == Uncertain:
			op.Return, op.Output = Never, registerOut{open: true}
		default:
			op.Output = registerOut{value: res.Value, done: res.Done}
		}
		k.history = append(k.history, op)
	}}
}

func (r *Registers) Final() (list []Call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.all {
		list = append(list, r.call(k, Op{Kind: Get}))
	}
	return list
}

func (r *Registers) Check(f *Findings) (keys int) {
	for _, k := range r.all {
		if len(k.history) == 0 {
			continue
		}
		keys++
		verdict, info := porcupine.CheckOperationsVerbose(registerModel, k.history, judgeTimeout)
		if verdict == porcupine.Ok {
			continue
		}
		f.Add("key %s of shard %d: %d operations are not linearizable (%s)", k.key, k.shard, len(k.history), verdict)
		f.Save("history-"+k.key+".txt", historyText(k.history))
		f.SaveWith("history-"+k.key+".html", func(w io.Writer) error { return porcupine.Visualize(registerModel, info, w) })
	}
	return keys
}

// registerModel is one key: its value, "" if there is none.
var registerModel = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		now, in, out := state.(string), input.(Op), output.(registerOut)
		switch {
		case in.Kind == Get:
			return out.value == now, now
		case in.Kind == Delete:
			return out.open || out.done == (now != ""), ""
		case !in.Compare:
			return out.open || out.done, in.Value
		case now == in.Old:
			return out.open || out.done, in.Value
		}
		return out.open || !out.done, now
	},
	DescribeOperation: func(input, output any) string { return describe(input.(Op), output.(registerOut)) },
}

func describe(in Op, out registerOut) string {
	result := fmt.Sprint(out.done)
	if out.open {
		result = "?"
	}
	switch {
	case in.Kind == Get && in.Reading == ByFollower:
		return fmt.Sprintf("get by a follower -> %q", out.value)
	case in.Kind == Get:
		return fmt.Sprintf("get -> %q", out.value)
	case in.Kind == Delete:
		return "del -> " + result
	case in.Compare:
		return fmt.Sprintf("set %s if %s -> %s", in.Value, in.Old, result)
	}
	return fmt.Sprintf("set %s -> %s", in.Value, result)
}

func historyText(ops []porcupine.Operation) []byte {
	var b []byte
	for _, op := range ops {
		end := "never"
		if op.Return != Never {
			end = fmt.Sprint(op.Return)
		}
		b = fmt.Appendf(b, "%8d %8s  %s\n", op.Call, end, describe(op.Input.(Op), op.Output.(registerOut)))
	}
	return b
}
