package fold

import (
	"encoding/binary"
	"math/big"
	"math/bits"

	"github.com/abacusdb/abacus/compute/job"
)

// varianceState is the variance of the whole population, the mean of the squares less the square of the mean, or its
// root. It adds numbers and their squares exactly, the squares of floats too, so that nothing cancels, and rounds once in the end.
type varianceState struct {
	root         bool
	ints, floats int64
	sum          accumulator // in units of 2^-1074, integers too
	squares      accumulator // in units of 2^-2148
}

func (s *varianceState) add(_ []byte, v *Value) (grown int, err error) {
	grown = -s.size()
	switch v.Kind {
	case Int:
		s.ints++
		m := magnitude(v.Int)
		s.sum.add(m, floatUnit, v.Int < 0)
		s.addSquare(m, floatUnit)
	case Float:
		s.floats++
		m, shift, negative := parts(v.Float)
		s.sum.add(m, shift, negative)
		s.addSquare(m, shift)
	case Big:
		s.ints++
		s.sum.addBig(v.Big, floatUnit)
		s.squares.addBig(new(big.Int).Mul(v.Big, v.Big), 2*floatUnit)
	}
	return grown + s.size(), nil
}

// addSquare adds the square of m * 2^(shift-1074).
func (s *varianceState) addSquare(m uint64, shift uint) {
	high, low := bits.Mul64(m, m)
	s.squares.add(low, 2*shift, false)
	if high != 0 {
		s.squares.add(high, 2*shift+64, false)
	}
}

func (s *varianceState) merge(other state) error {
	o := other.(*varianceState)
	s.ints += o.ints
	s.floats += o.floats
	s.sum.merge(&o.sum)
	s.squares.merge(&o.squares)
	return nil
}

func (s *varianceState) size() int   { return s.sum.size() + s.squares.size() }
func (s *varianceState) empty() bool { return s.ints+s.floats == 0 }

func (s *varianceState) appendTo(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(s.ints))
	b = binary.AppendUvarint(b, uint64(s.floats))
	if s.empty() {
		return b
	}
	b = appendScaled(b, s.sum.total())
	return appendScaled(b, s.squares.total())
}

func (s *varianceState) readFrom(d *decoder) {
	s.ints, s.floats = d.count(), d.count()
	if s.empty() {
		return
	}
	s.sum.addBig(d.scaled(), 0)
	s.squares.addBig(d.scaled(), 0)
	if s.spread().Sign() < 0 {
		d.Fail("the squares of no numbers with this sum")
	}
}

// spread is n times the sum of the squares less the square of the sum: n² variances in units of 2^-2148.
func (s *varianceState) spread() *big.Int {
	spread := big.NewInt(s.ints + s.floats)
	spread.Mul(spread, s.squares.total())
	sum := s.sum.total()
	return spread.Sub(spread, sum.Mul(sum, sum))
}

func (s *varianceState) final() (answer, error) {
	if s.empty() {
		return answer{}, job.ErrNoRecords
	}
	n := new(big.Int).Lsh(big.NewInt(s.ints+s.floats), floatUnit)
	variance := new(big.Rat).SetFrac(s.spread(), n.Mul(n, n))
	if s.root {
		return exactAnswer(root(variance), s.floats > 0)
	}
	return exactAnswer(variance, s.floats > 0)
}

// root is the square root of r >= 0: exactly if that has a finite binary form of up to 64 bits or is an integer, else something that every
// float64 is on the same side of as of the root, so that it rounds to the same one.
func root(r *big.Rat) *big.Rat {
	// root(p/q) = root(p*q)/q. With 2k more bits below the point, at least 128 of p*q in all, the integer root has 64 bits or more.
	square := new(big.Int).Mul(r.Num(), r.Denom())
	k := uint(max(0, 128-square.BitLen())+1) / 2
	square.Lsh(square, 2*k)
	whole := new(big.Int).Sqrt(square)
	rest := square.Sub(square, new(big.Int).Mul(whole, whole))
	whole.Lsh(whole, 1)
	if rest.Sign() != 0 { // half a unit more stands for what is cut off: no float64 has so many bits, so none lies between
		whole.SetBit(whole, 0, 1)
	}
	return new(big.Rat).SetFrac(whole, new(big.Int).Lsh(r.Denom(), k+1))
}
