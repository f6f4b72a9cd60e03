package expr

import (
	"slices"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// orderedMap is a map that an expression makes, in the order of its keys. CEL's own is Go's, which differs from run to
// run, and so would {'a': 1, 'b': 2}.map(k, k)[0] on two replicas.
type orderedMap struct {
	traits.Mapper
	keys []ref.Val
}

// Iterator implements traits.Iterable.
func (m orderedMap) Iterator() traits.Iterator {
	return types.NewRefValList(types.DefaultTypeAdapter, m.keys).Iterator()
}

// AggregateSize implements types.AggregateSizeVisitor: the map beneath remembers its size.
func (m orderedMap) AggregateSize(sizer types.AggregateSizer) uint32 {
	if visitor, ok := m.Mapper.(types.AggregateSizeVisitor); ok {
		return visitor.AggregateSize(sizer)
	}
	return sizer.AggregateSize(m.Mapper)
}

func newOrderedMap(m traits.Mapper) orderedMap {
	var keys []ref.Val
	for it := m.Iterator(); it.HasNext() == types.True; {
		keys = append(keys, it.Next())
	}
	slices.SortFunc(keys, func(a, b ref.Val) int {
		if c := strings.Compare(a.Type().TypeName(), b.Type().TypeName()); c != 0 {
			return c
		}
		if comparer, ok := a.(traits.Comparer); ok {
			if c, ok := comparer.Compare(b).(types.Int); ok {
				return int(c)
			}
		}
		return 0
	})
	return orderedMap{m, keys}
}

// makeOrdered is a decorator: it gives an order to what {…} makes.
func makeOrdered(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	if c, ok := i.(interpreter.InterpretableConstructor); ok && c.Type() == types.MapType {
		return orderedConstructor{c}, nil
	}
	return i, nil
}

type orderedConstructor struct {
	interpreter.InterpretableConstructor
}

// Exec implements interpreter.InterpretableV2.
func (c orderedConstructor) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	v := c.InterpretableConstructor.Exec(frame)
	if m, ok := v.(traits.Mapper); ok {
		return newOrderedMap(m)
	}
	return v
}

// Eval implements interpreter.Interpretable.
func (c orderedConstructor) Eval(vars interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(vars, c.Exec)
}
