package fold

import (
	"encoding/binary"
	"math/big"
	"strconv"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/compute/wire"
)

// countState counts values of every kind.
type countState struct{ n int64 }

func (s *countState) add([]byte, *Value) (int, error) { s.n++; return 0, nil }
func (s *countState) merge(o state) error             { s.n += o.(*countState).n; return nil }
func (s *countState) size() int                       { return 0 }
func (s *countState) empty() bool                     { return s.n == 0 }
func (s *countState) appendTo(b []byte) []byte        { return binary.AppendUvarint(b, uint64(s.n)) }
func (s *countState) readFrom(d *decoder)             { s.n = d.count() }
func (s *countState) final() (answer, error)          { return numberAnswer(strconv.FormatInt(s.n, 10)) }

// sumState adds numbers exactly. It is also the mean: the sum, divided once.
type sumState struct {
	mean         bool
	ints, floats int64
	isum         IntSum
	fsum         FloatSum
}

func (s *sumState) add(_ []byte, v *Value) (grown int, err error) {
	switch v.Kind {
	case Int:
		s.ints++
		s.isum.Add(v.Int)
		return 0, nil // what it spills at times is of no account
	case Big:
		s.ints++
		grown -= s.isum.size()
		s.isum.AddBig(v.Big)
		return grown + s.isum.size(), nil
	}
	s.floats++
	grown -= s.fsum.exact.size()
	s.fsum.Add(v.Float)
	return grown + s.fsum.exact.size(), nil
}

func (s *sumState) merge(other state) error {
	o := other.(*sumState)
	s.ints += o.ints
	s.floats += o.floats
	s.isum.AddBig(o.isum.Total())
	s.fsum.exact.merge(&o.fsum.exact)
	return nil
}

func (s *sumState) size() int   { return s.isum.size() + s.fsum.exact.size() }
func (s *sumState) empty() bool { return s.ints+s.floats == 0 }

func (s *sumState) appendTo(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(s.ints))
	b = binary.AppendUvarint(b, uint64(s.floats))
	if s.ints > 0 {
		b = wire.AppendBig(b, s.isum.Total())
	}
	if s.floats > 0 {
		b = appendScaled(b, s.fsum.Total())
	}
	return b
}

func (s *sumState) readFrom(d *decoder) {
	s.ints, s.floats = d.count(), d.count()
	if s.ints > 0 {
		s.isum.AddBig(d.Big(maxSumBytes))
	}
	if s.floats > 0 {
		s.fsum.AddTotal(d.scaled())
	}
}

func (s *sumState) final() (answer, error) {
	n := int64(1)
	if s.mean {
		if n = s.ints + s.floats; n == 0 {
			return answer{}, job.ErrNoRecords
		}
	}
	return exactAnswer(Ratio(s.isum.Total(), s.fsum.Total(), n), s.floats > 0)
}

// exactAnswer writes a number that is rounded once, and not at all if it is an integer made of integers, however large.
func exactAnswer(r *big.Rat, floats bool) (answer, error) {
	if !floats && r.IsInt() {
		return numberAnswer(r.Num().String())
	}
	return numberAnswer(Decimal(r))
}
