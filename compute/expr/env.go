package expr

import (
	"fmt"
	"math"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/decls"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/functions"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/stdlib"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"

	"github.com/abacusdb/abacus/compute/job"
)

// environments are made when the first expression needs them: they take milliseconds.
var environments = map[string]func() (*cel.Env, error){
	job.AsRaw:    sync.OnceValues(func() (*cel.Env, error) { return newEnvironment(cel.BytesType) }),
	job.AsString: sync.OnceValues(func() (*cel.Env, error) { return newEnvironment(cel.StringType) }),
	job.AsInt:    sync.OnceValues(func() (*cel.Env, error) { return newEnvironment(cel.IntType) }),
	job.AsFloat:  sync.OnceValues(func() (*cel.Env, error) { return newEnvironment(cel.DoubleType) }),
	job.AsJSON:   sync.OnceValues(func() (*cel.Env, error) { return newEnvironment(cel.DynType) }),
}

// Limits of an expression's text, beside MaxSourceBytes. A user's expression is far below; they keep the recursion of parser, checker and planner
// from the end of the stack, and macros in macros from growing without bound.
const (
	maxNesting  = 100
	maxNodes    = 4000
	maxLoops    = 5    // of loops in loops, and of cel.bind in cel.bind
	maxPattern  = 1000 // instructions of a regular expression, and bytes of one from a record
	errorsShown = 4
	checkEvery  = 100 // steps of a loop between looks at the context
)

// newEnvironment declares what expressions over values of a type know. What is left out of CEL is what does not come to the same on every
// node: time zones by name (a node has its own list of them). There is no clock and no random number in it.
func newEnvironment(v *cel.Type) (*cel.Env, error) {
	var ours []*env.Function
	for name := range redeclared {
		ours = append(ours, env.NewFunction(name))
	}
	opts := []cel.EnvOption{
		cel.StdLib(cel.StdLibSubset(&env.LibrarySubset{ExcludeFunctions: ours})),
		cel.Variable("v", v),
		cel.Variable("key", cel.StringType),

		cel.OptionalTypes(cel.OptionalTypesVersion(2)),
		ext.Bindings(ext.BindingsVersion(0)),
		ext.Encoders(ext.EncodersVersion(1)),
		ext.Lists(ext.ListsVersion(3)),
		ext.Math(ext.MathVersion(2)),
		ext.Sets(),
		ext.Strings(ext.StringsVersion(5)),
		// Its cost is unbounded by CEL's own model. It comes with the version that has the costs of base64.
		cel.Function("json.encode", cel.Overload("json_encode_dyn", []*cel.Type{cel.DynType}, cel.StringType), cel.DisableDeclaration(true)),

		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(MaxSourceBytes),
		cel.ParserRecursionLimit(maxNesting),
		cel.ParserErrorRecoveryLimit(errorsShown),
		cel.ExpressionNodeLimit(maxNodes),
		cel.CostSizingStrategy(cost.AggregateSizingStrategy(types.SizeCalculatorMaxDepth(maxDepth), types.SizeCalculatorMaxTraversal(maxUnits))),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateRegexProgramSizeLimit(maxPattern), cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals()),
	}
	e, err := cel.NewCustomEnv(append(opts, redeclare()...)...)
	if err != nil {
		return nil, err
	}
	guarded, err := guards(e.Functions())
	if err != nil {
		return nil, err
	}
	return e.Extend(guarded...)
}

// redeclared are functions of the standard library that are bound to our own: arithmetic (numbers.go), and matches.
var redeclared = map[string]struct {
	bind  func(l, r ref.Val) ref.Val
	trait int  // that the left operand must have
	mixed bool // declared for an int beside a double
}{
	operators.Add:      {add, traits.AdderType, true},
	operators.Subtract: {subtract, traits.SubtractorType, true},
	operators.Multiply: {multiply, traits.MultiplierType, true},
	operators.Divide:   {divide, traits.DividerType, true},
	operators.Modulo:   {modulo, 0, false}, // doubles have no such trait, but whole ones may come from a document
	overloads.Matches:  {matches, traits.MatcherType, false},
}

// redeclare declares them with all their overloads in the standard library, and the mixed ones.
func redeclare() []cel.EnvOption {
	var opts []cel.EnvOption
	for _, fn := range stdlib.Functions() {
		def, ours := redeclared[fn.Name()]
		if !ours {
			continue
		}
		var fopts []cel.FunctionOpt
		for _, o := range fn.OverloadDecls() {
			fopts = append(fopts, declare(o))
		}
		if def.mixed {
			fopts = append(fopts,
				cel.Overload(fn.Name()+"int_double", []*cel.Type{cel.IntType, cel.DoubleType}, cel.DoubleType),
				cel.Overload(fn.Name()+"double_int", []*cel.Type{cel.DoubleType, cel.IntType}, cel.DoubleType))
		}
		opts = append(opts, cel.Function(fn.Name(), append(fopts, cel.SingletonBinaryBinding(def.bind, def.trait))...))
	}
	return append(opts, cel.Function(quotientFunction,
		cel.Overload(quotientOverload, []*cel.Type{cel.DynType, cel.DynType}, cel.DynType, cel.BinaryBinding(quotient))))
}

func declare(o *decls.OverloadDecl, binding ...cel.OverloadOpt) cel.FunctionOpt {
	if o.IsMemberFunction() {
		return cel.MemberOverload(o.ID(), o.ArgTypes(), o.ResultType(), binding...)
	}
	return cel.Overload(o.ID(), o.ArgTypes(), o.ResultType(), binding...)
}

// matches is for patterns that come with the record; one in the expression is compiled once, with it. CEL would bound what a
// pattern compiles to, but not how long it is, and would look twice at it: of calls in calls at 2^n.
func matches(text, pattern ref.Val) ref.Val {
	s, isText := text.(types.String)
	p, isPattern := pattern.(types.String)
	if !isText || !isPattern {
		return types.MaybeNoSuchOverloadErr(pattern)
	}
	if len(p) > maxPattern {
		return types.NewErr("a regular expression of %d bytes, at most %d are allowed", len(p), maxPattern)
	}
	if len(s) > job.MaxMatch/maxPattern { // else no program is too much for it
		size, err := job.PatternSize(string(p))
		if err == nil && size*len(s) > job.MaxMatch {
			return types.NewErr("a text of %d bytes is too long for a regular expression of %d instructions", len(s), size)
		}
	}
	re, err := types.CompileRegexWithLimit(string(p), maxPattern)
	if err != nil {
		return types.WrapErr(err)
	}
	return types.Bool(re.MatchString(string(s)))
}

// A guard looks at the arguments of a function and refuses what would take long or make much. CEL charges a call after it was
// made, and cannot stop it; these are the ones that take more than a small multiple of their arguments.
type guard func(args []ref.Val) ref.Val

var guarded = []struct {
	function string
	guard    guard
}{
	{"replace", func(args []ref.Val) ref.Val {
		s, old, repl := lengthOf(args[0]), lengthOf(args[1]), lengthOf(args[2])
		return textGuard(s + (s/max(old, 1)+1)*max(0, repl-old))
	}},
	{"join", func(args []ref.Val) ref.Val {
		n := lengthOf(args[0])
		if len(args) > 1 {
			n *= max(1, lengthOf(args[1]))
		}
		return textGuard(n)
	}},
	{"indexOf", func(args []ref.Val) ref.Val { return workGuard(lengthOf(args[0]) * lengthOf(args[1])) }},
	{"lastIndexOf", func(args []ref.Val) ref.Val { return workGuard(lengthOf(args[0]) * lengthOf(args[1])) }},
	{"lists.range", func(args []ref.Val) ref.Val {
		if n, ok := args[0].(types.Int); ok && n > MaxValues {
			return types.NewErr("it makes a list of %d, at most %d are allowed", int64(n), MaxValues)
		}
		return nil
	}},
	{"distinct", func(args []ref.Val) ref.Val { return workGuard(lengthOf(args[0]) * partsOf(args[0])) }},
	{"sets.contains", setsGuard},
	{"sets.equivalent", setsGuard},
	{"sets.intersects", setsGuard},
	{overloads.TimeGetFullYear, zoneGuard},
	{overloads.TimeGetMonth, zoneGuard},
	{overloads.TimeGetDayOfYear, zoneGuard},
	{overloads.TimeGetDayOfMonth, zoneGuard},
	{overloads.TimeGetDate, zoneGuard},
	{overloads.TimeGetDayOfWeek, zoneGuard},
	{overloads.TimeGetHours, zoneGuard},
	{overloads.TimeGetMinutes, zoneGuard},
	{overloads.TimeGetSeconds, zoneGuard},
	{overloads.TimeGetMilliseconds, zoneGuard},
}

func lengthOf(v ref.Val) int {
	switch v := v.(type) {
	case types.String:
		return len(v)
	case traits.Lister:
		n, _ := v.Size().(types.Int)
		return int(n)
	}
	return 0
}

// partsOf counts what is in a list in all its depth, which is what comparing with it takes.
func partsOf(v ref.Val) int { return int(dynPrices.sizes.AggregateSize(v)) }

func textGuard(n int) ref.Val {
	if n > maxText {
		return errTooLong()
	}
	return nil
}

func workGuard(n int) ref.Val {
	if n > MaxCost {
		return types.NewErr("it takes %d steps, at most %d are allowed", n, MaxCost)
	}
	return nil
}

func setsGuard(args []ref.Val) ref.Val {
	return workGuard(max(lengthOf(args[0])*partsOf(args[1]), lengthOf(args[1])*partsOf(args[0])))
}

func zoneGuard(args []ref.Val) ref.Val {
	if len(args) < 2 {
		return nil
	}
	if zone, ok := args[1].(types.String); ok && zone != "UTC" && !strings.Contains(string(zone), ":") {
		return types.NewErr("time zones have no names here, since not every node knows them: write an offset, for example +02:00")
	}
	return nil
}

// guards binds the guarded functions anew, with their guards before them.
func guards(known map[string]*decls.FunctionDecl) ([]cel.EnvOption, error) {
	var opts []cel.EnvOption
	for _, g := range guarded {
		fn, ok := known[g.function]
		if !ok {
			return nil, fmt.Errorf("guard %s: no such function", g.function)
		}
		bindings, err := fn.Bindings()
		if err != nil {
			return nil, err
		}
		bound := make(map[string]*functions.Overload)
		for _, b := range bindings {
			bound[b.Operator] = b
		}
		var fopts []cel.FunctionOpt
		for _, o := range fn.OverloadDecls() {
			b := bound[o.ID()]
			if b == nil {
				return nil, fmt.Errorf("guard %s: overload %s is not bound by itself", g.function, o.ID())
			}
			fopts = append(fopts, declare(o, bind(g.guard, b)))
		}
		opts = append(opts, cel.Function(g.function, fopts...))
	}
	return opts, nil
}

func bind(check guard, b *functions.Overload) cel.OverloadOpt {
	switch {
	case b.Unary != nil:
		return cel.UnaryBinding(func(arg ref.Val) ref.Val {
			if err := check([]ref.Val{arg}); err != nil {
				return err
			}
			return b.Unary(arg)
		})
	case b.Binary != nil:
		return cel.BinaryBinding(func(l, r ref.Val) ref.Val {
			if err := check([]ref.Val{l, r}); err != nil {
				return err
			}
			return b.Binary(l, r)
		})
	}
	return cel.FunctionBinding(func(args ...ref.Val) ref.Val {
		if err := check(args); err != nil {
			return err
		}
		return b.Function(args...)
	})
}

// prices charges for calls of which CEL knows only at run time what they are called with (v.name + v.name): for them it would charge
// one step, however long the text.
type prices struct{ sizes *types.SizeCalculator }

var dynPrices = prices{types.NewSizeCalculator(types.SizeCalculatorMaxDepth(maxDepth), types.SizeCalculatorMaxTraversal(maxUnits))}

// CallCost implements cost.ActualCostEstimator.
func (p prices) CallCost(function, overload string, args []ref.Val, result ref.Val) *uint64 {
	if overload != "" && overload != quotientOverload {
		return nil
	}
	var units uint64
	for _, arg := range args {
		switch arg := arg.(type) {
		case types.Int, types.Double, types.Bool:
		case types.String:
			units += uint64(len(arg)) / 10
		case types.Bytes:
			units += uint64(len(arg)) / 10
		case traits.Lister:
			if function == operators.In {
				units += uint64(p.sizes.AggregateSize(arg))
			}
		}
	}
	if units == 0 {
		return nil // one step, without a pointer to it
	}
	units = min(units+1, math.MaxInt64)
	return &units
}
