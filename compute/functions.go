package compute

import (
	"context"
	"errors"
	"math"
	"strings"

	"github.com/abacusdb/abacus/compute/expr"
	"github.com/abacusdb/abacus/compute/fold"
	"github.com/abacusdb/abacus/compute/job"
)

// function is a compiled spec: it filters records, reads them, takes them apart, maps what there is and folds it. It
// belongs to one goroutine.
type function struct {
	tests  []test
	read   func(value []byte, it *fold.Value) bool                     // as
	flat   func(ctx context.Context, each func(*fold.Value) fate) fate // flat_map; nil for none
	mapTo  func(ctx context.Context, it *fold.Value) fate
	group  func(ctx context.Context) fate // of the record: sets name
	groups func(it *fold.Value) fate      // of each value, before it is mapped: sets name
	takes  func(k fold.Kind) bool         // which kinds the reduce can take
	fold   func(p *Partial, it *fold.Value) fate
	// careful: a value that flat_map has made may be bad, and all of a record's are tried before any is folded.
	careful bool
	// costly: a record may take milliseconds, whatever its size.
	costly bool

	// Of the present record; here, so that a record costs no allocation, and no call has to hand it on.
	key, value []byte
	item       fold.Value
	done       bool   // item was read, for the filter's sake
	name       []byte // its group
	why        string // what an expression says of a bad record
	// verdict is why the job cannot be answered, if that is known.
	verdict error
	text    []byte // holds texts that are not in the record
	json    document
	expr    *expr.Record // nil if there are no expressions
}

// test is a condition of a filter: it lets a record through (good), or not.
type test func(ctx context.Context) fate

// fate is what becomes of a record or of a value.
type fate uint8

const (
	good    fate = iota
	dropped      // by the filter
	bad          // it cannot be read, mapped, grouped or folded
	stop         // the job cannot be answered, or nobody wants the answer any more
)

// compile makes the function of a spec. Its error is a *job.SpecError, also for a fault in an expression.
func compile(spec job.Spec) (*function, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	reduce, _ := job.ParseReduce(spec.Reduce)
	f := &function{fold: foldOf(spec, reduce), takes: kindsOf(reduce), costly: slow(spec)}
	c := &compiler{function: f, spec: spec}
	for _, step := range []func() error{c.filter, c.flatMap, c.mapTo, c.groupBy} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// step folds one record into p, of which it keeps nothing. It says false when there is no use in going on: the
// job cannot be answered, as p says, or ctx has ended.
func (f *function) step(ctx context.Context, p *Partial, key, value []byte) (more bool) {
	f.key, f.value = key, value
	f.done, f.why, f.json.valid, f.text = false, "", false, f.text[:0]
	if f.expr != nil {
		f.expr.Set(key, value)
	}
	switch f.run(ctx, p) {
	case good:
		p.Records++
	case dropped:
		p.Records++
		p.Filtered++
	case bad:
		p.addBad(key, f.why)
	case stop:
		if f.verdict != nil {
			p.decide(f.verdict)
		}
		return false
	}
	return true
}

func (f *function) run(ctx context.Context, p *Partial) fate {
	for _, passes := range f.tests {
		if fate := passes(ctx); fate != good {
			return fate
		}
	}
	if !f.done && !f.read(f.value, &f.item) {
		return bad
	}
	if f.group != nil {
		if fate := f.group(ctx); fate != good {
			return fate
		}
	}
	if f.flat == nil {
		return f.take(ctx, p, &f.item)
	}
	if f.careful {
		if fate := f.flat(ctx, func(it *fold.Value) fate { return f.take(ctx, nil, it) }); fate != good {
			return fate
		}
	}
	return f.flat(ctx, func(it *fold.Value) fate { return f.take(ctx, p, it) })
}

// take maps one value and folds it into p; without p it only says what would become of it.
func (f *function) take(ctx context.Context, p *Partial, it *fold.Value) fate {
	if f.groups != nil {
		if fate := f.groups(it); fate != good {
			return fate
		}
	}
	if f.mapTo != nil {
		if fate := f.mapTo(ctx, it); fate != good {
			return fate
		}
	}
	if !f.takes(it.Kind) {
		return bad
	}
	if p == nil {
		return good
	}
	return f.fold(p, it)
}

// foldOf returns what takes a value: the sums and extremes that a Partial has always had, or its table.
func foldOf(spec job.Spec, r job.Reduce) func(p *Partial, it *fold.Value) fate {
	shape := shapeOf(spec)
	if shape.table() {
		return nil // set by groupBy, which has the group's name
	}
	switch r.Name {
	case job.ReduceSum, job.ReduceMean:
		return func(p *Partial, it *fold.Value) fate { p.count(it.Kind); p.addSum(it); return good }
	case job.ReduceMin, job.ReduceMax:
		return func(p *Partial, it *fold.Value) fate { p.count(it.Kind); p.addExtreme(it); return good }
	}
	return func(p *Partial, it *fold.Value) fate { p.count(it.Kind); return good }
}

func kindsOf(r job.Reduce) func(fold.Kind) bool {
	switch {
	case r.Name == job.ReduceCount:
		return func(fold.Kind) bool { return true }
	case r.NumbersOnly():
		return fold.Kind.IsNumber
	}
	return func(k fold.Kind) bool { return k.IsNumber() || k == fold.Text }
}

// compiler fills in a function, field by field of the spec.
type compiler struct {
	*function
	spec job.Spec
}

func (c *compiler) filter() error {
	conditions, _ := job.ParseFilter(c.spec.Filter)
	for _, cond := range conditions {
		t, err := c.test(cond)
		if err != nil {
			return err
		}
		c.tests = append(c.tests, t)
	}
	return nil
}

func (c *compiler) flatMap() error {
	flat, _ := c.spec.FlatMapFunc()
	f := c.function
	pairs := c.spec.GroupBy == job.GroupPair
	switch flat.Word {
	case "":
	case job.FlatMapWords:
		f.flat = func(_ context.Context, each func(*fold.Value) fate) fate {
			return eachWord(f.value, &f.item, each)
		}
	default:
		eval, err := c.program("flat_map", flat.Arg, expr.FlatMap)
		if err != nil {
			return err
		}
		f.flat = func(ctx context.Context, each func(*fold.Value) fate) fate {
			last := good
			err := eval.Each(ctx, func(group []byte, hasGroup bool, v *fold.Value) error {
				if hasGroup != pairs {
					f.why = "flat_map makes values, and group_by pair needs [key, value] pairs"
					if hasGroup {
						f.why = "flat_map makes [key, value] pairs: set group_by to pair, or make values alone"
					}
					last = bad
					return errStop
				}
				if pairs {
					f.name = group
				}
				f.item = *v
				if last = each(&f.item); last != good {
					return errStop
				}
				return nil
			})
			if errors.Is(err, errStop) {
				return last
			}
			return f.failed(ctx, err)
		}
		f.careful = true
	}
	return nil
}

var errStop = errors.New("stop")

func (c *compiler) mapTo() error {
	m, _ := c.spec.MapFunc()
	f := c.function
	path := ""
	switch m.Word {
	case job.MapValue:
	case job.MapKey:
		f.mapTo = func(_ context.Context, it *fold.Value) fate { it.SetText(f.key); return good }
	case job.MapLen: // of the raw value, whatever it is read as, or of the texts that flat_map makes
		f.mapTo = func(_ context.Context, it *fold.Value) fate {
			it.SetInt(int64(len(f.value)))
			return good
		}
		if f.flat != nil {
			f.mapTo = func(_ context.Context, it *fold.Value) fate { return goodIf(textLen(it)) }
		}
	case job.MapSquare:
		f.mapTo = func(_ context.Context, it *fold.Value) fate { return goodIf(it.Square()) }
	case job.MapParse:
		f.mapTo = func(_ context.Context, it *fold.Value) fate {
			return goodIf(it.Kind == fold.Text && readNumber(it.Text, it))
		}
	case job.MapLower:
		f.mapTo = func(_ context.Context, it *fold.Value) fate { return goodIf(f.lower(it)) }
	case job.MapJSON:
		path = m.Arg
	case job.FuncGo:
		mapped, err := registeredMap(m.Arg)
		if err != nil {
			return err
		}
		f.mapTo = func(_ context.Context, it *fold.Value) fate {
			*it = fold.Value{}
			return goodIf(mapped(f.key, f.value, it) && !(it.Kind == fold.Float && (math.IsNaN(it.Float) || math.IsInf(it.Float, 0))))
		}
	default:
		eval, err := c.program("map", m.Arg, expr.Map)
		if err != nil {
			return err
		}
		f.mapTo = func(ctx context.Context, it *fold.Value) fate { return f.failed(ctx, eval.Value(ctx, it)) }
	}
	f.careful = f.careful || m.Word == job.MapParse && f.flat != nil
	f.read = c.reader(compilePath(path))
	return nil
}

// reader reads values as the spec says; of a JSON document the scalar at path.
func (c *compiler) reader(path jsonPath) func(value []byte, it *fold.Value) bool {
	switch c.spec.As {
	case job.AsInt:
		return readInt
	case job.AsFloat:
		return readFloat
	case job.AsJSON:
		return func(value []byte, it *fold.Value) bool { return c.json.read(value, &path, it) }
	}
	return readString
}

func (c *compiler) groupBy() error {
	g, _ := c.spec.GroupByFunc()
	f := c.function
	switch g.Word {
	case "":
	case job.GroupKey:
		f.group = func(context.Context) fate { f.name = f.key; return good }
	case job.GroupKeyPart:
		sep := []byte(g.Arg)
		f.group = func(context.Context) (found fate) {
			f.name, found = keyPart(f.key, sep, g.Part)
			return found
		}
	case job.GroupJSON:
		path := compilePath(g.Arg)
		f.group = func(context.Context) fate { return goodIf(f.json.name(f.value, &path, f)) }
	case job.GroupValue:
		f.groups = func(it *fold.Value) fate { return goodIf(f.nameOf(it)) }
	case job.GroupLower:
		f.groups = func(it *fold.Value) fate {
			text := *it // map has it as it is
			return goodIf(f.lower(&text) && f.nameOf(&text))
		}
	case job.GroupPair: // flat_map sets the name
	default:
		eval, err := c.program("group_by", g.Arg, expr.Key)
		if err != nil {
			return err
		}
		f.group = func(ctx context.Context) (fate fate) {
			name, err := eval.Key(ctx)
			// The next expression may have the bytes: map runs after this.
			f.text = append(f.text, name...)
			f.name = f.text[len(f.text)-len(name):]
			return f.failed(ctx, err)
		}
	}
	if shape := shapeOf(c.spec); shape.table() {
		f.fold = func(p *Partial, it *fold.Value) fate { return p.addToTable(shape, f.name, f.key, it) }
	}
	return nil
}

// program compiles an expression.
func (c *compiler) program(field, source string, role expr.Role) (*expr.Eval, error) {
	p, err := expr.Compile(source, role, c.spec.As)
	if err != nil {
		return nil, expressionError(field, err)
	}
	if c.expr == nil {
		c.expr = expr.NewRecord(c.spec.As)
	}
	return p.NewEval(c.expr), nil
}

func expressionError(field string, err error) error {
	var wrong *expr.Error
	if !errors.As(err, &wrong) {
		return &job.SpecError{Field: field, Reason: err.Error()}
	}
	e := &job.SpecError{Field: field, Reason: wrong.Reason, Hint: wrong.Hint}
	if lines := strings.Split(wrong.Source, "\n"); wrong.Line > 0 && wrong.Line <= len(lines) {
		line := []rune(lines[wrong.Line-1])
		e.Where = job.Caret(string(line), len(string(line[:min(max(wrong.Column-1, 0), len(line))])))
	}
	return e
}

// failed turns the error of an expression into the record's fate. One that takes too much ends the job: another attempt would take the same.
func (f *function) failed(ctx context.Context, err error) fate {
	if err == nil {
		return good
	}
	if cost := (*expr.CostError)(nil); errors.As(err, &cost) {
		f.verdict = cost
		return stop
	}
	if ctx.Err() != nil {
		return stop
	}
	f.why = err.Error()
	return bad
}

func goodIf(ok bool) fate {
	if ok {
		return good
	}
	return bad
}
