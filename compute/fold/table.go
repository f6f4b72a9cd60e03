package fold

import (
	"fmt"
	"maps"
	"slices"

	"github.com/abacusdb/abacus/compute/job"
)

// Bounds of a table and of its answer.
const (
	// MaxGroups is the most groups that a job can ask for; a table is given its own limit.
	MaxGroups = 10_000
	// MaxTableBytes bounds what a table's groups and values take, about as much as they do when encoded.
	MaxTableBytes = 8 << 20
	// MaxTextBytes is the longest text a job can answer. A state keeps one byte more, which is
	// enough to tell that a text is too long and to order it rightly among all that fit.
	MaxTextBytes = 64 << 10
	// MaxResultBytes bounds a structured answer as it is stored: half of job.MaxRecordBytes, the rest is for the record around it.
	MaxResultBytes = job.MaxRecordBytes / 2
)

// Table is what a reduce has made of the values of a part of the keys: one state, or one for each group. Tables of the
// parts merge, in any order and any grouping, to the same bytes as one table over everything.
// It belongs to one goroutine.
type Table struct {
	reduce    job.Reduce
	takes     uint8            // a bit for each Kind
	whole     state            // without groups
	groups    map[string]state // with groups, else nil; every state has taken a value
	maxGroups int
	bytes     int // of the groups' names and of what the states say they take
}

// TooManyGroupsError: more groups than the job allows.
type TooManyGroupsError struct{ Max int }

func (e *TooManyGroupsError) Error() string {
	text := fmt.Sprintf("more than %d groups: group by something coarser, or leave records out with a filter or a longer prefix", e.Max)
	if e.Max < MaxGroups {
		text += fmt.Sprintf("; or raise max_groups, which is at most %d", MaxGroups)
	}
	return text
}

// TooLargeError: groups and values take more than a table may. Of values that get smaller as others come in (the smallest of long texts),
// a part of the keys can be refused although the whole would have fitted; an answer is never other than the right one.
type TooLargeError struct{ Max int }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("groups and values take more than %d bytes: group by something coarser, or leave records out with a filter or a longer prefix", e.Max)
}

// NewTable makes an empty table of a reduce that ParseReduce has returned. maxGroups counts only if it is grouped.
func NewTable(r job.Reduce, grouped bool, maxGroups int) *Table {
	t := &Table{reduce: r, takes: kindsOf(r), maxGroups: maxGroups}
	if grouped {
		t.groups = make(map[string]state)
	} else {
		t.whole = newState(r)
	}
	return t
}

// kindsOf is a bit for each kind that r takes.
func kindsOf(r job.Reduce) uint8 {
	const numbers, texts, others = 1<<Int | 1<<Big | 1<<Float, 1 << Text, 1 << Other
	switch {
	case r.Name == job.ReduceCount:
		return numbers | texts | others
	case r.NumbersOnly():
		return numbers
	}
	return numbers | texts
}

// Add takes a record's value; group counts only if the table is grouped. It says false if this reduce cannot take a value of the
// kind: a bad record, which leaves no trace here. After an error (a *TooManyGroupsError, *TooLargeError or
// *TooManyValuesError, nothing else) the table is of no use: the job has failed. Nothing of the arguments is kept.
func (t *Table) Add(group, key []byte, v *Value) (ok bool, err error) {
	if t.takes>>v.Kind&1 == 0 || v.Kind == Big && v.Big.BitLen() > 8*maxBigBytes {
		return false, nil
	}
	s := t.whole
	if s == nil {
		if s, err = t.group(group); err != nil {
			return true, err
		}
	}
	grown, err := s.add(key, v)
	if t.bytes += grown; t.bytes > MaxTableBytes && err == nil {
		err = &TooLargeError{Max: MaxTableBytes}
	}
	return true, err
}

// groupBytes is what a group takes beside its name and what its state says.
const groupBytes = 16

// group returns the state of a group, new if need be.
func (t *Table) group(name []byte) (state, error) {
	if s, ok := t.groups[string(name)]; ok {
		return s, nil
	}
	if len(t.groups) >= t.maxGroups {
		return nil, &TooManyGroupsError{Max: t.maxGroups}
	}
	s := newState(t.reduce)
	t.groups[string(name)] = s
	t.bytes += len(name) + groupBytes + s.size()
	return s, nil
}

// Merge adds o, a table of the same reduce, to t. o stays usable. Its errors are those of Add.
func (t *Table) Merge(o *Table) error {
	if t.whole != nil {
		return t.mergeState(t.whole, o.whole)
	}
	for name, theirs := range o.groups { // the order is of no account: it decides at most which bound is hit first
		ours, err := t.group([]byte(name))
		if err == nil {
			err = t.mergeState(ours, theirs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) mergeState(ours, theirs state) error {
	before := ours.size()
	err := ours.merge(theirs)
	if t.bytes += ours.size() - before; t.bytes > MaxTableBytes && err == nil {
		err = &TooLargeError{Max: MaxTableBytes}
	}
	return err
}

// Bytes is what the groups' names and the values take, as MaxTableBytes counts them.
func (t *Table) Bytes() int { return t.bytes }

// Groups is how many groups there are; 0 for a table without groups.
func (t *Table) Groups() int { return len(t.groups) }

// Final is the answer, with a note for people if there is something to say. Its error is job.ErrNoRecords, a
// *MixedKindsError or a *ResultTooLargeError, for a grouped table inside a *GroupError.
//
// Without groups:
//
//	sum, count, mean, variance, stddev   a number
//	min, max, first, last                a number or a text
//	distinct                             a number
//	quantile of one                      a number
//	quantile of several                  {"0.5":12,"0.99":80}, in the order they were asked for
//	histogram:0,10                       [{"to":0,"count":3},{"from":0,"to":10,"count":7},{"from":10,"count":1}]:
//	                                     a bucket has from and all up to to, without that
//	histogram:log2                       [{"from":-4,"to":-2,"count":1},{"from":0,"to":0,"count":2},{"from":1,"to":2,"count":5}]:
//	                                     only buckets with a count, each with its end nearer to 0, and one for 0 itself
//	top                                  [{"value":12,"key":"a"},{"value":11,"key":"z"}], the largest first
//	collect                              [1,2.5,"a"], numbers first, then texts, each in order
//
// With groups it is a list, in the order of the groups' bytes, of
//
//	{"group":"a","value":...}
//
// with any of the above as value. Texts in a list or an object that are not UTF-8 are shown as {"base64":"/w=="}; a
// text that is the answer is then shown in base64, and the note says so.
func (t *Table) Final() (result job.Value, note string, err error) {
	if t.whole != nil {
		a, err := t.whole.final()
		if err != nil {
			return job.Value{}, "", err
		}
		return a.value()
	}
	doc := new(document)
	doc.raw("[")
	for i, name := range slices.Sorted(maps.Keys(t.groups)) {
		if doc.full() {
			break // value says so
		}
		a, err := t.groups[name].final()
		if err != nil {
			return job.Value{}, "", &GroupError{Group: name, Err: err}
		}
		doc.comma(i)
		doc.raw(`{"group":`)
		doc.text([]byte(name))
		doc.raw(`,"value":`)
		a.appendTo(doc)
		doc.raw("}")
	}
	doc.raw("]")
	return doc.value()
}
