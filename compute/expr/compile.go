package expr

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
)

// Compile checks an expression for a role over values that are read as (job.AsString and so on).
// The error is an *Error. It takes a bounded time and memory, whatever the text.
func Compile(src string, role Role, as string) (p *Program, err error) {
	fault := func(reason, hint string) (*Program, error) {
		return nil, &Error{Source: src, Reason: reason, Hint: hint}
	}
	// The text comes from strangers, and a library of this size has its faults: one that panics must not end the node.
	defer func() {
		if r := recover(); r != nil {
			p, err = nil, &Error{Source: src, Reason: fmt.Sprintf("the expression cannot be compiled: %v", r)}
		}
	}()
	newEnv, ok := environments[as]
	switch {
	case !ok:
		return fault(fmt.Sprintf("values cannot be read as %q", as), "known are raw, string, int, float, json")
	case strings.TrimSpace(src) == "":
		return fault("the expression is empty", "v is the value as it is")
	case len(src) > MaxSourceBytes:
		return nil, &Error{Reason: fmt.Sprintf("the expression has %d bytes, at most %d are allowed", len(src), MaxSourceBytes)}
	case !utf8.ValidString(src):
		return nil, &Error{Reason: "the expression is not UTF-8"}
	}
	e, err := newEnv()
	if err != nil {
		return nil, &Error{Source: src, Reason: "expressions cannot be used: " + err.Error()}
	}
	parsed, issues := e.Parse(src)
	if issues.Err() != nil {
		return nil, firstFault(src, issues, e, as)
	}
	if err := checkLoops(src, parsed.NativeRep()); err != nil {
		return nil, err
	}
	checked, issues := e.Check(parsed)
	if issues.Err() != nil {
		return nil, firstFault(src, issues, e, as)
	}
	if err := checkResult(src, role, checked); err != nil {
		return nil, err
	}
	if least, err := e.EstimateCost(checked, noHints{}); err == nil && least.Min > MaxCost {
		return fault(fmt.Sprintf("the expression takes at least %d steps for one record, at most %d are allowed", least.Min, MaxCost), "")
	}
	useQuotients(checked.NativeRep())
	return plan(src, as, e, checked)
}

func plan(src, as string, e *cel.Env, checked *cel.Ast) (*Program, error) {
	opts := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize), cel.InterruptCheckFrequency(checkEvery), cel.CustomDecoratorV2(makeOrdered)}
	needs := watches(checked.NativeRep())
	if needs.cost {
		opts = append(opts, cel.CostLimit(MaxCost), cel.CostTracking(dynPrices))
	}
	if needs.memory {
		opts = append(opts, cel.MemoryLimit(maxUnits), cel.MemoryTracking(
			types.MemoryTrackerSizeCalculator(dynPrices.sizes), types.MemoryTrackerSampleInterval(sampleEvery)))
	}
	run, err := e.Program(checked, opts...)
	if err != nil {
		return nil, &Error{Source: src, Reason: err.Error()}
	}
	return &Program{as: as, run: run, loops: needs.context}, nil
}

// sampleEvery is how often the value that a loop makes is measured: it is whole at its end, where it is measured too.
const sampleEvery = 64

// watch is what of an expression is watched while it runs. Watching takes longer than running, so it is only done where there is
// something to see: without loops and costly functions, what a text of MaxSourceBytes can do is bounded by itself.
type watch struct {
	cost    bool // loops, and functions that may take long
	context bool // loops
	memory  bool // lists and maps that are made: in a few steps they hold themselves a million times over
}

func watches(a *ast.AST) (w watch) {
	ast.PostOrderVisit(a.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.ComprehensionKind:
			w.cost, w.context = true, true
		case ast.ListKind:
			if !slices.ContainsFunc(e.AsList().Elements(), func(e ast.Expr) bool { return e.Kind() != ast.LiteralKind }) {
				return // as in: v.country in ["de", "at"]
			}
			w.cost, w.memory = true, true
		case ast.MapKind, ast.StructKind:
			w.cost, w.memory = true, true
		case ast.CallKind:
			if name := e.AsCall().FunctionName(); !slices.Contains(quick, name) {
				w.cost = true
			}
		}
	}))
	return w
}

// quick are the functions that take at most a pass over what they are given, and make no more than that.
var quick = []string{
	operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.Conditional, operators.Index, operators.In,
	operators.Equals, operators.NotEquals, operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals,
	operators.Add, operators.Subtract, operators.Multiply, operators.Divide, operators.Modulo, operators.Negate,
	overloads.Size, overloads.StartsWith, overloads.EndsWith, overloads.Contains,
	overloads.TypeConvertInt, overloads.TypeConvertDouble, overloads.TypeConvertString, overloads.TypeConvertDyn,
	"lowerAscii", "upperAscii", "trim",
}

// checkLoops counts loops in loops. It comes before the types are checked, since a chain of cel.bind can make a type whose name has 2^n parts.
func checkLoops(src string, a *ast.AST) error {
	var deepest ast.Expr
	var walk func(e ast.NavigableExpr, depth int)
	walk = func(e ast.NavigableExpr, depth int) {
		if e.Kind() == ast.ComprehensionKind {
			if depth++; depth > maxLoops && deepest == nil {
				deepest = e
			}
		}
		for _, child := range e.Children() {
			walk(child, depth)
		}
	}
	walk(ast.NavigateAST(a), 0)
	if deepest == nil {
		return nil
	}
	return faultAt(src, a, deepest.ID(), fmt.Sprintf("more than %d loops in loops", maxLoops), "cel.bind counts as one")
}

// checkResult says whether an expression makes what its role needs. dyn is decided record by record.
func checkResult(src string, role Role, checked *cel.Ast) error {
	a, t := checked.NativeRep(), checked.OutputType()
	at := func(reason, hint string) error { return faultAt(src, a, a.Expr().ID(), reason, hint) }
	name := typeName(cel.FormatCELType(t))
	if t.Kind() == types.OpaqueKind && t.TypeName() == "optional_type" {
		return at(fmt.Sprintf("a %s must not be optional", role), "write .orValue(…) after it")
	}
	kind := t.Kind()
	switch role {
	case Filter:
		if kind != types.BoolKind && kind != types.DynKind {
			hint := "compare it with something"
			if kind == types.IntKind || kind == types.DoubleKind || kind == types.UintKind {
				hint += ", for example " + example(src) + " != 0"
			}
			return at("a filter must be true or false, this is "+name, hint)
		}
	case Map:
		switch kind {
		case types.IntKind, types.UintKind, types.DoubleKind, types.StringKind, types.BytesKind, types.BoolKind, types.DynKind:
		case types.ListKind:
			return at("a map makes one value of a record, this is "+name, "use flat_map to make several")
		default:
			return at("a map makes a number or a text, this is "+name, "int(…) and string(…) convert")
		}
	case Key:
		switch kind {
		case types.IntKind, types.UintKind, types.DoubleKind, types.StringKind, types.BytesKind, types.BoolKind, types.DynKind, types.TimestampKind:
		default:
			return at("a group is named by a text, number or bool, this is "+name, "")
		}
	case FlatMap:
		if kind != types.ListKind && kind != types.DynKind {
			return at("a flat_map makes a list, this is "+name, "write ["+example(src)+"], or use map")
		}
	}
	return nil
}

// example is src, if it is short enough to be quoted in a hint.
func example(src string) string {
	if len(src) > 20 {
		return "…"
	}
	return src
}

func faultAt(src string, a *ast.AST, id int64, reason, hint string) error {
	at := a.SourceInfo().GetStartLocation(id)
	return place(&Error{Source: src, Reason: reason, Hint: hint}, at.Line(), at.Column())
}

// noHints knows nothing of the records to come.
type noHints struct{}

// EstimateCallCost implements cost.Estimator.
func (noHints) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// EstimateSize implements cost.Estimator.
func (noHints) EstimateSize(cost.AstNode) *cost.SizeEstimate { return nil }
