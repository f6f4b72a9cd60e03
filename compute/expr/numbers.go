package expr

import (
	"math"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// CEL adds no int to a double. A JSON document has only numbers: whether 2 or 2.5 comes is the data's choice, record by
// record, so `v.qty * 2` would work on some records and fail on the others. Here arithmetic takes both kinds:
//
//   - int with int stays int, and an overflow is an error;
//   - an int beside a double becomes a double if that keeps all its digits, else it is an error;
//   - `/` with an operand that comes from a document is the division of numbers: 5 / 2 is 2.5 and 6 / 2 is 3, since a
//     document may say 5 or 5.0 and mean the same. Of two ints by type (`as: int`, int(…), literals) it is CEL's, without the fraction;
//   - `%` takes a double that is whole.
//
// Comparisons across int and double are CEL's own. See docs/decisions/0028-expressions.md.

// quotientOverload is what `/` becomes where an operand is dyn. Its function cannot be written in an expression.
const (
	quotientFunction = "@quotient"
	quotientOverload = "quotient_dyn"
)

// useQuotients makes every `/` with a dyn operand one of numbers.
func useQuotients(a *ast.AST) {
	ast.PostOrderVisit(a.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != operators.Divide {
			return
		}
		for _, arg := range e.AsCall().Args() {
			if a.GetType(arg.ID()).Kind() == types.DynKind {
				a.SetReference(e.ID(), &ast.ReferenceInfo{OverloadIDs: []string{quotientOverload}})
			}
		}
	}))
}

// widen returns both as doubles, if one is a double and the other is an int; mixed says so. err is set for an int that a double
// would round.
func widen(l, r ref.Val) (x, y types.Double, mixed bool, err ref.Val) {
	switch a := l.(type) {
	case types.Int:
		if b, ok := r.(types.Double); ok {
			x, err = toDouble(a)
			return x, b, true, err
		}
	case types.Double:
		if b, ok := r.(types.Int); ok {
			y, err = toDouble(b)
			return a, y, true, err
		}
	}
	return 0, 0, false, nil
}

func toDouble(n types.Int) (types.Double, ref.Val) {
	f := float64(n)
	// 2^63 itself is what the largest ints are rounded to, and does not convert back.
	if f == 1<<63 || types.Int(f) != n {
		return 0, types.NewErr("integer %d has more digits than a double holds", int64(n))
	}
	return types.Double(f), nil
}

func add(l, r ref.Val) ref.Val {
	x, y, mixed, err := widen(l, r)
	switch {
	case err != nil:
		return err
	case mixed:
		return x + y
	}
	if err := checkSum(l, r); err != nil {
		return err
	}
	return explain("+", l, r, l.(traits.Adder).Add(r))
}

// checkSum bounds what a concatenation makes, before it is made.
func checkSum(l, r ref.Val) ref.Val {
	switch a := l.(type) {
	case types.String:
		if b, ok := r.(types.String); ok && len(a)+len(b) > maxText {
			return errTooLong()
		}
	case types.Bytes:
		if b, ok := r.(types.Bytes); ok && len(a)+len(b) > maxText {
			return errTooLong()
		}
	}
	return nil
}

func subtract(l, r ref.Val) ref.Val {
	x, y, mixed, err := widen(l, r)
	switch {
	case err != nil:
		return err
	case mixed:
		return x - y
	}
	return explain("-", l, r, l.(traits.Subtractor).Subtract(r))
}

func multiply(l, r ref.Val) ref.Val {
	x, y, mixed, err := widen(l, r)
	switch {
	case err != nil:
		return err
	case mixed:
		return x * y
	}
	return explain("*", l, r, l.(traits.Multiplier).Multiply(r))
}

func divide(l, r ref.Val) ref.Val {
	x, y, mixed, err := widen(l, r)
	switch {
	case err != nil:
		return err
	case mixed:
		return x / y
	}
	return explain("/", l, r, l.(traits.Divider).Divide(r))
}

// quotient divides numbers of a document, which are not told apart by having a point.
func quotient(l, r ref.Val) ref.Val {
	a, aInt := l.(types.Int)
	b, bInt := r.(types.Int)
	if !aInt || !bInt {
		if divider, ok := l.(traits.Divider); ok {
			return divide(divider.(ref.Val), r)
		}
		return types.NewErr("no operator / for %s and %s", l.Type().TypeName(), r.Type().TypeName())
	}
	if b == 0 || a%b == 0 {
		return a.Divide(b) // which knows of zero and of overflow
	}
	x, err := toDouble(a)
	if err != nil {
		return err
	}
	y, err := toDouble(b)
	if err != nil {
		return err
	}
	return x / y
}

func modulo(l, r ref.Val) ref.Val {
	l, r = whole(l), whole(r)
	m, ok := l.(traits.Modder)
	if !ok {
		return types.NewErr("no operator %% for %s and %s", l.Type().TypeName(), r.Type().TypeName())
	}
	return explain("%", l, r, m.Modulo(r))
}

// whole makes an int of a double that is one.
func whole(v ref.Val) ref.Val {
	if f, ok := v.(types.Double); ok && f == types.Double(math.Trunc(float64(f))) && math.Abs(float64(f)) < 1<<63 {
		return types.Int(f)
	}
	return v
}

// explain says which types have no operator; CEL says only that there is no overload. Times of different types do
// have some, and their errors are of what came out.
func explain(op string, l, r, result ref.Val) ref.Val {
	if !types.IsError(result) || l.Type() == r.Type() || isTime(l) || isTime(r) {
		return result
	}
	return types.NewErr("no operator %s for %s and %s", op, l.Type().TypeName(), r.Type().TypeName())
}

func isTime(v ref.Val) bool { return v.Type() == types.TimestampType || v.Type() == types.DurationType }
