package fold

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/compute/wire"
)

// maxKeyBytes bounds a key that bytes from another node bring.
const maxKeyBytes = job.MaxPrefixBytes

// keyed is a value and the key of its record.
type keyed struct {
	key   []byte
	value Value
}

func (k *keyed) keep() keyed { return keyed{key: bytes.Clone(k.key), value: k.value.keep()} }

// keyedBytes is what a keyed value takes beside its key and what its value says.
const keyedBytes = 16

func (k *keyed) size() int { return keyedBytes + len(k.key) + k.value.size() }

func (k *keyed) appendTo(b []byte) []byte { return appendValue(wire.AppendBytes(b, k.key), &k.value) }

func (k *keyed) readFrom(d *decoder) {
	k.key = slices.Clone(d.Take(d.Uvarint(), maxKeyBytes))
	k.value = d.value()
}

// endState is the value of the smallest or the largest key; of several values of one record, the smallest or the largest of
// them, numbers before texts.
type endState struct {
	side int // -1: of the smallest key, 1: of the largest
	kept bool
	end  keyed
}

func (s *endState) add(key []byte, v *Value) (grown int, err error) {
	return s.take(&keyed{key: key, value: *v}), nil
}

func (s *endState) take(k *keyed) (grown int) {
	if s.kept && cmp.Or(bytes.Compare(k.key, s.end.key), order(&k.value, &s.end.value)) != s.side {
		return 0
	}
	grown = -s.size()
	s.kept, s.end = true, k.keep()
	return grown + s.size()
}

func (s *endState) merge(other state) error {
	if o := other.(*endState); o.kept {
		s.take(&o.end)
	}
	return nil
}

func (s *endState) size() int {
	if !s.kept {
		return 0
	}
	return s.end.size()
}

func (s *endState) empty() bool { return !s.kept }

func (s *endState) appendTo(b []byte) []byte {
	b = appendBool(b, s.kept)
	if s.kept {
		b = s.end.appendTo(b)
	}
	return b
}

func (s *endState) readFrom(d *decoder) {
	if s.kept = d.Bool(); s.kept {
		s.end.readFrom(d)
	}
}

func (s *endState) final() (answer, error) {
	if !s.kept {
		return answer{}, job.ErrNoRecords
	}
	return valueAnswer(&s.end.value)
}
