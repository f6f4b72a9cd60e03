// Package expr runs expressions in CEL over records: `v.qty > 2 && key.startsWith("de/")`.
//
// An expression knows two variables: v, the value of the record as the job reads it, and key. It can neither loop without end, nor
// take more than a fixed cost for a record, nor see a clock, a random number or anything but the record: so every
// replica and every attempt comes to the same result.
//
// What v is: with `as: string` a text, `raw` bytes, `int` an integer of 64 bits, `float` a double, and with `json` what the
// document is: null, bool, text, list or map, and a number without point and exponent is an int, any other a double (numbers.go
// says how they meet). A value that is none of its kind makes its record bad, if the expression uses v.
package expr

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"

	"github.com/abacusdb/abacus/compute/fold"
)

// Role is what an expression is for, and so what it has to result in.
type Role uint8

const (
	// Filter keeps or drops a record: a bool.
	Filter Role = iota
	// Map makes the value of a record: a number or a text. A bool, list or map is fold.Other, which can only be counted.
	Map
	// Key names the group of a record: a text, or a number, bool or timestamp, which becomes one (5 and 5.0 are both "5").
	Key
	// FlatMap makes any number of values of a record: a list of values, or a list of [key, value] pairs, where the key
	// (as of role Key) is the group of the value. A list has one or the other, not both.
	FlatMap
)

func (r Role) String() string { return [...]string{"filter", "map", "group_by", "flat_map"}[r] }

// Bounds of what an expression makes of one record.
const (
	MaxSourceBytes = 4 << 10   // of an expression
	MaxCost        = 2_000_000 // steps, of some ten nanoseconds to a microsecond
	MaxValues      = 10_000    // of a FlatMap
	maxText        = 64 << 10
	maxUnits       = 1 << 20 // of a value in the middle: elements of lists in lists, and ten bytes of text are one
	maxReason      = 200
)

// Program is a compiled expression. It never changes and may be used by many goroutines.
type Program struct {
	as    string
	run   cel.Program
	loops bool // it may run long, so it looks at its context
}

// Eval runs a program over a Record. It belongs to the goroutine of the record.
//
// All its methods may return a *RecordError (this record is bad, the next may be good: on_error decides), a *CostError (the
// expression takes more than is allowed for a record: the task fails, since another attempt would take the same), or the
// error of the context, if it ended in the middle. What they return may alias the record
// and is valid until the next Set or the next call.
type Eval struct {
	program *Program
	record  *Record
	made    []made // by Each
}

type made struct {
	group []byte
	value fold.Value
}

// NewEval makes an evaluator of p over r, which must read values as p was compiled for.
func (p *Program) NewEval(r *Record) *Eval {
	if p.as != r.as {
		panic(fmt.Sprintf("expr: a program over %s values gets a record of %s values", p.as, r.as))
	}
	return &Eval{program: p, record: r}
}

// Bool runs a Filter.
func (e *Eval) Bool(ctx context.Context) (bool, error) {
	out, err := e.eval(ctx)
	if err != nil {
		return false, err
	}
	b, ok := out.(types.Bool)
	if !ok {
		return false, bad("a filter must be true or false, this is %s", describe(out))
	}
	return bool(b), nil
}

// Value runs a Map. A missing value (null) is a *RecordError.
func (e *Eval) Value(ctx context.Context, out *fold.Value) error {
	v, err := e.eval(ctx)
	if err != nil {
		return err
	}
	return toValue(v, out)
}

// Key runs a Key.
func (e *Eval) Key(ctx context.Context) ([]byte, error) {
	v, err := e.eval(ctx)
	if err != nil {
		return nil, err
	}
	return toKey(v)
}

// Each runs a FlatMap and calls fn for each value in the order of the list; hasGroup says that the list is one of pairs. It stops
// at the first error of fn and returns it. Values are handed out after the whole list was found good, so a bad
// record gives none.
func (e *Eval) Each(ctx context.Context, fn func(group []byte, hasGroup bool, v *fold.Value) error) error {
	out, err := e.eval(ctx)
	if err != nil {
		return err
	}
	list, ok := out.(traits.Lister)
	if !ok {
		return bad("a flat_map must make a list, this is %s", describe(out))
	}
	if n, _ := list.Size().(types.Int); n > MaxValues {
		return bad("it makes %d values of one record, at most %d are allowed", int64(n), MaxValues)
	}
	e.made = e.made[:0]
	var pairs bool
	for it := list.Iterator(); it.HasNext() == types.True; {
		item := it.Next()
		var m made
		pair, isPair := item.(traits.Lister)
		if len(e.made) > 0 && isPair != pairs {
			return bad("a list has either values or [key, value] pairs, this has both")
		}
		if pairs = isPair; isPair {
			if pair.Size() != types.Int(2) {
				return bad("a list in the list must be a pair [key, value], this has %v elements", pair.Size().Value())
			}
			if m.group, err = toKey(pair.Get(types.IntZero)); err != nil {
				return err
			}
			item = pair.Get(types.IntOne)
		}
		if err := toValue(item, &m.value); err != nil {
			return err
		}
		e.made = append(e.made, m)
	}
	for i := range e.made {
		if err := fn(e.made[i].group, pairs, &e.made[i].value); err != nil {
			return err
		}
	}
	return nil
}

func (e *Eval) eval(ctx context.Context) (ref.Val, error) {
	var out ref.Val
	var err error
	if e.program.loops && ctx.Done() != nil { // what a context costs is more than most expressions do
		out, _, err = e.program.run.ContextEval(ctx, e.record)
	} else {
		out, _, err = e.program.run.Eval(e.record)
	}
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil && errors.Is(err, interpreter.InterruptError{}) {
		return nil, context.Cause(ctx)
	}
	var cancelled interpreter.EvalCancelledError
	if errors.As(err, &cancelled) {
		return nil, &CostError{Limit: MaxCost}
	}
	return nil, bad("%s", err.Error())
}

func bad(format string, args ...any) *RecordError {
	return &RecordError{Reason: shorten(strings.ToValidUTF8(fmt.Sprintf(format, args...), "?"))}
}

// shorten cuts a text that may come from a record, since reasons are kept and shown.
func shorten(s string) string {
	if len(s) <= maxReason {
		return s
	}
	cut := maxReason
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// toValue makes a value of a result.
func toValue(v ref.Val, out *fold.Value) error {
	switch v := v.(type) {
	case types.Int:
		out.SetInt(int64(v))
	case types.Uint:
		out.SetBig(new(big.Int).SetUint64(uint64(v)))
	case types.Double:
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return bad("the result is %v, which is no number to count with", float64(v))
		}
		out.SetFloat(float64(v))
	case types.String:
		if len(v) > maxText {
			return errTextResult(len(v))
		}
		out.SetText(bytesOf(string(v)))
	case types.Bytes:
		if len(v) > maxText {
			return errTextResult(len(v))
		}
		out.SetText(v)
	case types.Bool:
		*out = fold.Value{Kind: fold.Other}
	default:
		if _, list := v.(traits.Lister); !list {
			if _, mapper := v.(traits.Mapper); !mapper {
				return bad("the result is %s, which is no value", describe(v))
			}
		}
		*out = fold.Value{Kind: fold.Other}
	}
	return nil
}

// toKey makes the text of a group of a result.
func toKey(v ref.Val) ([]byte, error) {
	switch v := v.(type) {
	case types.String:
		if len(v) > maxText {
			return nil, errTextResult(len(v))
		}
		return bytesOf(string(v)), nil
	case types.Bytes:
		if len(v) > maxText {
			return nil, errTextResult(len(v))
		}
		return v, nil
	case types.Int:
		return strconv.AppendInt(nil, int64(v), 10), nil
	case types.Uint:
		return strconv.AppendUint(nil, uint64(v), 10), nil
	case types.Bool:
		return strconv.AppendBool(nil, bool(v)), nil
	case types.Double:
		var f fold.Value // which writes -0 as 0
		if err := toValue(v, &f); err != nil {
			return nil, err
		}
		return []byte(f.Digits()), nil
	case types.Timestamp:
		if s, ok := v.ConvertToType(types.StringType).(types.String); ok {
			return []byte(s), nil
		}
	}
	return nil, bad("a group is named by a text, number or bool, this is %s", describe(v))
}

func errTextResult(n int) error {
	return bad("the result is a text of %d bytes, at most %d are allowed", n, maxText)
}

// errTooLong stops a function that would make a text longer than maxText.
func errTooLong() ref.Val { return types.NewErr("it makes a text of more than %d bytes", maxText) }

func describe(v ref.Val) string {
	switch v.(type) {
	case types.Null:
		return "null"
	case *types.Optional:
		return "optional: write .orValue(…) after it"
	case types.Bool:
		return "a bool"
	}
	return typeName(v.Type().TypeName())
}
