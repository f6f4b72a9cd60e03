package compute

import (
	"bytes"
	"context"
	"fmt"
	"regexp"

	"github.com/abacusdb/abacus/compute/expr"
	"github.com/abacusdb/abacus/compute/fold"
	"github.com/abacusdb/abacus/compute/job"
)

// test makes one condition of a filter. The conditions run in their order, before the record is read: what one drops need not parse.
func (c *compiler) test(cond job.Condition) (test, error) {
	f := c.function
	switch cond.Op {
	case job.FuncGo:
		passes, err := registeredFilter(cond.Arg)
		if err != nil {
			return nil, err
		}
		return func(context.Context) fate { return goodOrDropped(passes(f.key, f.value)) }, nil
	case job.FuncCEL:
		eval, err := c.program("filter", cond.Arg, expr.Filter)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) fate {
			passes, err := eval.Bool(ctx)
			if err != nil {
				return f.failed(ctx, err)
			}
			return goodOrDropped(passes)
		}, nil
	case job.FilterRange:
		return f.rangeTest(c.spec, cond), nil
	}
	matches := matcher(cond)
	switch cond.Subject {
	case job.SubjectKey:
		return func(context.Context) fate { return matches(f, f.key) }, nil
	case job.SubjectValue: // the bytes, whatever they are read as
		return func(context.Context) fate { return matches(f, f.value) }, nil
	}
	path := compilePath(cond.Path)
	return func(context.Context) fate {
		kind, raw, ok := f.json.lookup(f.value, &path)
		if !ok {
			return bad
		}
		if kind != jsonString {
			return dropped
		}
		return matches(f, unquote(raw))
	}, nil
}

func matcher(cond job.Condition) func(f *function, b []byte) fate {
	arg := []byte(cond.Arg)
	switch cond.Op {
	case job.FilterPrefix:
		return func(_ *function, b []byte) fate { return goodOrDropped(bytes.HasPrefix(b, arg)) }
	case job.FilterSuffix:
		return func(_ *function, b []byte) fate { return goodOrDropped(bytes.HasSuffix(b, arg)) }
	}
	re := regexp.MustCompile(cond.Arg) // the spec was validated
	size, _ := job.PatternSize(cond.Arg)
	most := job.MaxMatch / max(size, 1)
	return func(f *function, b []byte) fate {
		if len(b) > most {
			f.why = fmt.Sprintf("a text of %d bytes is too long for a regular expression of %d instructions", len(b), size)
			return bad
		}
		return goodOrDropped(re.Match(b))
	}
}

// rangeTest lets numbers within a range through. What is no number is dropped; but a value that a job reads as a number, and is none, is bad.
func (f *function) rangeTest(spec job.Spec, cond job.Condition) test {
	in := newInterval(cond.Range)
	path := compilePath(cond.Path)
	switch {
	case cond.Subject == job.SubjectJSON || cond.Subject == job.SubjectValue && spec.As == job.AsJSON:
		return func(context.Context) fate {
			kind, raw, ok := f.json.lookup(f.value, &path)
			if !ok {
				return bad
			}
			var it fold.Value
			return goodOrDropped(kind == jsonNumber && readNumber(raw, &it) && in.holds(&it))
		}
	case cond.Subject == job.SubjectValue && (spec.As == job.AsInt || spec.As == job.AsFloat):
		return func(context.Context) fate {
			if !f.done && !f.read(f.value, &f.item) {
				return bad
			}
			f.done = true
			return goodOrDropped(in.holds(&f.item))
		}
	}
	return func(context.Context) fate {
		text := f.value
		if cond.Subject == job.SubjectKey {
			text = f.key
		}
		var it fold.Value
		return goodOrDropped(readNumber(text, &it) && in.holds(&it))
	}
}

// interval is a range of numbers; an end of Kind None is open.
type interval struct {
	from, to fold.Value
	below    bool // to itself is not in it
}

func newInterval(r job.Range) *interval {
	in := &interval{below: r.Below}
	readNumber([]byte(r.From), &in.from) // an open end, which is empty, leaves None
	readNumber([]byte(r.To), &in.to)
	return in
}

func (in *interval) holds(it *fold.Value) bool {
	if in.from.Kind != fold.None && fold.CompareNumbers(it, &in.from) < 0 {
		return false
	}
	if in.to.Kind == fold.None {
		return true
	}
	c := fold.CompareNumbers(it, &in.to)
	return c < 0 || c == 0 && !in.below
}

func goodOrDropped(passes bool) fate {
	if passes {
		return good
	}
	return dropped
}
