package fold

import (
	"math"
	"math/big"

	"github.com/abacusdb/abacus/compute/job"
)

// fineQuantile cuts every power of two into 64 buckets: the middle of one is off by at most 1/128 of a number in it.
const fineQuantile = 6

// quantileState is a sketch in the manner of DDSketch (Masson, Rim, Lee: VLDB 2019), with buckets that are read off the bits of the number.
// It answers with a number that is off by less than 1 % of the right one: of n numbers in
// order, the one at place floor(q*(n-1)), counted from 0. The smallest, the largest and integers below 128 are exact.
type quantileState struct {
	quantiles []float64
	buckets   buckets
	floats    bool  // some are no integers
	low, high Value // count only if there are buckets
}

func newQuantile(quantiles []float64) *quantileState {
	return &quantileState{quantiles: quantiles, buckets: make(buckets)}
}

func (s *quantileState) add(_ []byte, v *Value) (grown int, err error) {
	s.floats = s.floats || v.Kind == Float
	grown = s.buckets.add(bucketOf(v, fineQuantile))
	return grown + s.addEdge(&s.low, v, -1) + s.addEdge(&s.high, v, 1), nil
}

func (s *quantileState) addEdge(edge, v *Value, side int) (grown int) {
	if edge.Kind != None && !replaces(v, edge, side) {
		return 0
	}
	grown = -edge.size()
	*edge = v.keep()
	return grown + edge.size()
}

func (s *quantileState) merge(other state) error {
	o := other.(*quantileState)
	if o.empty() {
		return nil
	}
	s.floats = s.floats || o.floats
	s.buckets.merge(o.buckets)
	s.addEdge(&s.low, &o.low, -1)
	s.addEdge(&s.high, &o.high, 1)
	return nil
}

func (s *quantileState) size() int {
	return len(s.buckets)*bucketBytes + s.low.size() + s.high.size()
}

func (s *quantileState) empty() bool { return len(s.buckets) == 0 }

func (s *quantileState) appendTo(b []byte) []byte {
	b = s.buckets.appendTo(b)
	if s.empty() {
		return b
	}
	b = appendBool(b, s.floats)
	return appendValue(appendValue(b, &s.low), &s.high)
}

func (s *quantileState) readFrom(d *decoder) {
	if s.buckets.readFrom(d, fineQuantile); s.empty() {
		return
	}
	s.floats, s.low, s.high = d.Bool(), d.number(), d.number()
	if d.Reason != "" {
		return
	}
	order := s.buckets.sorted()
	if bucketOf(&s.low, fineQuantile) != order[0] || bucketOf(&s.high, fineQuantile) != order[len(order)-1] || CompareNumbers(&s.low, &s.high) > 0 {
		d.Fail("extremes of other numbers")
	}
	if !s.floats && (s.low.Kind == Float || s.high.Kind == Float) {
		d.Fail("a float among integers")
	}
}

func (s *quantileState) final() (answer, error) {
	if s.empty() {
		return answer{}, job.ErrNoRecords
	}
	order, n := s.buckets.sorted(), s.buckets.total()
	if len(s.quantiles) == 1 {
		return numberAnswer(s.at(s.quantiles[0], order, n))
	}
	doc := new(document)
	doc.raw("{")
	for i, q := range s.quantiles {
		doc.comma(i)
		doc.raw(`"` + FormatFloat(q) + `":` + s.at(q, order, n))
	}
	doc.raw("}")
	return answer{doc: doc}, nil
}

// at is the quantile q of n numbers in the buckets of order.
func (s *quantileState) at(q float64, order []int32, n int64) string {
	place := int64(math.Floor(q * float64(n-1)))
	bucket, seen := order[len(order)-1], int64(0)
	for _, b := range order {
		if seen += s.buckets[b]; seen > place {
			bucket = b
			break
		}
	}
	middle := s.middle(bucket)
	switch {
	case place <= 0 || middle.Cmp(s.low.rat()) <= 0:
		return s.low.Digits()
	case place >= n-1 || middle.Cmp(s.high.rat()) >= 0:
		return s.high.Digits()
	case !s.floats:
		return middle.Num().String()
	}
	return Decimal(middle)
}

// middle of a bucket; among integers an integer.
func (s *quantileState) middle(bucket int32) *big.Rat {
	if bucket == 0 {
		return new(big.Rat)
	}
	m := bucketEdge(max(bucket, -bucket), fineQuantile, 1)
	if !s.floats {
		m.SetInt(new(big.Int).Quo(m.Num(), m.Denom()))
	}
	if bucket < 0 {
		m.Neg(m)
	}
	return m
}
