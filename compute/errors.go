package compute

import (
	"fmt"

	"github.com/abacusdb/abacus/compute/job"
)

// BadRecordsError fails a job with on_error fail, or count if there are more than max_errors.
type BadRecordsError struct {
	Bad, Records int64
	Spec         job.Spec
	Keys         []string // a sample
	Why          string   // what an expression says of the first of it; may be empty
}

func (e *BadRecordsError) Error() string {
	hint := "use --on-error skip to leave them out"
	if e.Spec.OnError == job.OnErrorCount {
		hint = fmt.Sprintf("at most %d may be left out: raise --max-errors, or use --on-error skip", e.Spec.MaxErrors)
	}
	switch {
	case e.wholeDocument():
		hint = "take a field of an object with --map json:PATH, or " + hint
	case e.Bad == e.Records && e.Records > 1: // to leave all of them out is hardly what is wanted
		hint = "it is so with all that were read: look at one first; " + hint
	}
	sample := e.Keys[0]
	if e.Why != "" {
		sample += ": " + e.Why
	}
	return fmt.Sprintf("%d of %d records %s, for example %s; %s", e.Bad, e.Records, e.fault(), sample, hint)
}

// wholeDocument says whether a number or a text was looked for in documents that may be objects.
func (e *BadRecordsError) wholeDocument() bool {
	return e.Spec.As == job.AsJSON && e.Spec.Map == job.MapValue && e.Spec.FlatMap == "" && e.wants() != "value"
}

// fault is what bad records have in common. A document may be well-formed and
// lack what the job looks for.
func (e *BadRecordsError) fault() string {
	s := e.Spec
	path, isPath := s.Path()
	switch {
	case e.Why != "":
		return "have no value in an expression"
	case s.FlatMap != "" || s.GroupBy != "":
		return "lack a value or the name of a group"
	case isPath:
		return fmt.Sprintf("have no JSON %s at the path %s", e.wants(), path)
	case e.wholeDocument():
		return "are no JSON " + e.wants() + " in themselves"
	}
	return fmt.Sprintf("do not parse as %s for map %s", s.As, s.Map)
}

// wants is what the reduce can take of a JSON document.
func (e *BadRecordsError) wants() string {
	r, _ := job.ParseReduce(e.Spec.Reduce)
	switch {
	case r.Name == job.ReduceCount:
		return "value"
	case r.NumbersOnly():
		return "number"
	}
	return "number or text"
}
