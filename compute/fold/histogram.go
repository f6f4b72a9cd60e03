package fold

import (
	"encoding/binary"
	"fmt"
	"math/big"
)

// histogramState counts the numbers between given bounds: below the first, from each on to the next, from the last on.
type histogramState struct {
	bounds []float64
	counts []int64 // one more than bounds
}

func newHistogram(bounds []float64) *histogramState {
	return &histogramState{bounds: bounds, counts: make([]int64, len(bounds)+1)}
}

func (s *histogramState) add(_ []byte, v *Value) (int, error) {
	low, high := 0, len(s.bounds) // v is not below a bound before low, and below every one from high on
	for bound := (Value{Kind: Float}); low < high; {
		middle := (low + high) / 2
		if bound.Float = s.bounds[middle]; CompareNumbers(v, &bound) < 0 {
			high = middle
		} else {
			low = middle + 1
		}
	}
	s.counts[low]++
	return 0, nil
}

func (s *histogramState) merge(o state) error {
	for i, n := range o.(*histogramState).counts {
		s.counts[i] += n
	}
	return nil
}

func (s *histogramState) size() int { return 8 * len(s.counts) }

func (s *histogramState) empty() bool {
	for _, n := range s.counts {
		if n > 0 {
			return false
		}
	}
	return true
}

func (s *histogramState) appendTo(b []byte) []byte {
	for _, n := range s.counts {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

func (s *histogramState) readFrom(d *decoder) {
	for i := range s.counts {
		s.counts[i] = d.count()
	}
}

func (s *histogramState) final() (answer, error) {
	doc := new(document)
	doc.raw("[")
	for i, n := range s.counts {
		doc.comma(i)
		doc.raw("{")
		if i > 0 {
			doc.raw(fmt.Sprintf(`"from":%s,`, FormatFloat(s.bounds[i-1])))
		}
		if i < len(s.bounds) {
			doc.raw(fmt.Sprintf(`"to":%s,`, FormatFloat(s.bounds[i])))
		}
		doc.raw(fmt.Sprintf(`"count":%d}`, n))
	}
	doc.raw("]")
	return answer{doc: doc}, nil
}

// log2State counts the numbers between powers of two.
type log2State struct{ buckets buckets }

func (s *log2State) add(_ []byte, v *Value) (int, error) { return s.buckets.add(bucketOf(v, 0)), nil }
func (s *log2State) merge(o state) error                 { s.buckets.merge(o.(*log2State).buckets); return nil }
func (s *log2State) size() int                           { return len(s.buckets) * bucketBytes }
func (s *log2State) empty() bool                         { return len(s.buckets) == 0 }
func (s *log2State) appendTo(b []byte) []byte            { return s.buckets.appendTo(b) }
func (s *log2State) readFrom(d *decoder)                 { s.buckets.readFrom(d, 0) }

func (s *log2State) final() (answer, error) {
	doc := new(document)
	doc.raw("[")
	for i, bucket := range s.buckets.sorted() {
		from, to := "0", "0"
		switch {
		case bucket > 0:
			from, to = powerDigits(bucketEdge(bucket, 0, 0)), powerDigits(bucketEdge(bucket, 0, 2))
		case bucket < 0:
			from, to = "-"+powerDigits(bucketEdge(-bucket, 0, 2)), "-"+powerDigits(bucketEdge(-bucket, 0, 0))
		}
		doc.comma(i)
		doc.raw(fmt.Sprintf(`{"from":%s,"to":%s,"count":%d}`, from, to, s.buckets[bucket]))
	}
	doc.raw("]")
	return answer{doc: doc}, nil
}

// powerDigits writes a power of two: every digit of an integer while people read that, else as a float.
func powerDigits(r *big.Rat) string {
	if r.IsInt() && r.Num().BitLen() <= 64 {
		return r.Num().String()
	}
	return Decimal(r)
}
