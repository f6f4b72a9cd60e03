package fold

import "github.com/abacusdb/abacus/compute/job"

// state is one reduce over the values of one group.
type state interface {
	// add takes a value of a kind that the reduce takes, and says by how much size has grown. It keeps nothing of key
	// and v without copying it.
	add(key []byte, v *Value) (grown int, err error)
	// merge takes what o has taken, a state of the same reduce, and shares nothing with it afterwards.
	merge(o state) error
	// size is what the state takes beyond a fixed part, in bytes, roughly.
	size() int
	// empty says whether it has taken nothing.
	empty() bool
	// appendTo writes the state in its one form.
	appendTo(b []byte) []byte
	// readFrom reads into a new state what appendTo wrote, and fails d for anything else.
	readFrom(d *decoder)
	// final is the answer; its error is job.ErrNoRecords, a *MixedKindsError or a *ResultTooLargeError.
	final() (answer, error)
}

// newState makes the state of a reduce that job.ParseReduce has returned.
func newState(r job.Reduce) state {
	switch r.Name {
	case job.ReduceCount:
		return new(countState)
	case job.ReduceSum:
		return new(sumState)
	case job.ReduceMean:
		return &sumState{mean: true}
	case job.ReduceMin:
		return &extremeState{side: -1}
	case job.ReduceMax:
		return &extremeState{side: 1}
	case job.ReduceVariance:
		return new(varianceState)
	case job.ReduceStddev:
		return &varianceState{root: true}
	case job.ReduceHistogram:
		if r.Bounds == nil {
			return &log2State{buckets: make(buckets)}
		}
		return newHistogram(r.Bounds)
	case job.ReduceQuantile:
		return newQuantile(r.Quantiles)
	case job.ReduceTop:
		return &topState{limit: r.Limit}
	case job.ReduceDistinct:
		return new(distinctState)
	case job.ReduceFirst:
		return &endState{side: -1}
	case job.ReduceLast:
		return &endState{side: 1}
	case job.ReduceCollect:
		return &collectState{limit: r.Limit}
	}
	panic("fold: no reduce " + r.Name) // the spec was validated
}
