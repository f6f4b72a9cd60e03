package fold

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/abacusdb/abacus/compute/job"
)

// collectState is the different values themselves; of an integer and a float of one worth, the integer.
type collectState struct {
	limit      int
	values     []*Value // by worth
	valueBytes int
}

// TooManyValuesError: more different values than a collect may list.
type TooManyValuesError struct{ Max int }

func (e *TooManyValuesError) Error() string {
	return fmt.Sprintf("more than %d different values: raise the N of collect:N (at most %d), count them with distinct, or leave records out with a filter or a longer prefix", e.Max, job.MaxCollect)
}

// collectBytes is what a value takes beside what it says.
const collectBytes = 16

func (s *collectState) add(_ []byte, v *Value) (grown int, err error) {
	grown = -s.valueBytes
	if len(v.Text) > MaxTextBytes { // such a list has no answer, whether what is cut off differs or not
		short := *v
		short.Text = cut(v.Text)
		v = &short
	}
	i, found := slices.BinarySearchFunc(s.values, v, worth)
	switch {
	case !found && len(s.values) == s.limit:
		return 0, &TooManyValuesError{Max: s.limit}
	case !found:
		kept := v.keep()
		s.values = slices.Insert(s.values, i, &kept)
		s.valueBytes += collectBytes + kept.size()
	case s.values[i].Kind == Float && v.Kind != Float:
		kept := v.keep()
		s.values[i] = &kept
		s.valueBytes += kept.size()
	}
	return grown + s.valueBytes, nil
}

func (s *collectState) merge(other state) error {
	for _, v := range other.(*collectState).values {
		if _, err := s.add(nil, v); err != nil {
			return err
		}
	}
	return nil
}

func (s *collectState) size() int   { return s.valueBytes }
func (s *collectState) empty() bool { return len(s.values) == 0 }

func (s *collectState) appendTo(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s.values)))
	for _, v := range s.values {
		b = appendValue(b, v)
	}
	return b
}

func (s *collectState) readFrom(d *decoder) {
	n := d.Uvarint()
	if n > uint64(s.limit) {
		d.Fail("number of values")
	}
	for i := uint64(0); i < n && d.Reason == ""; i++ {
		v := d.value()
		if i > 0 && d.Reason == "" && worth(s.values[i-1], &v) >= 0 {
			d.Fail("values out of order")
		}
		s.values = append(s.values, &v)
		s.valueBytes += collectBytes + v.size()
	}
}

func (s *collectState) final() (answer, error) {
	doc := new(document)
	doc.raw("[")
	for i, v := range s.values {
		doc.comma(i)
		if err := doc.append(v); err != nil {
			return answer{}, err
		}
	}
	doc.raw("]")
	return answer{doc: doc}, nil
}
