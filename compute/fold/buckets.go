package fold

import (
	"encoding/binary"
	"maps"
	"math/big"
	"math/bits"
	"slices"
)

// buckets counts numbers by their size. A bucket is a power of two, or one of 2^fine equal parts between two of them; its number is read off
// the bits of an integer or a float, of any size, so that every processor finds the same one (a logarithm can differ in its
// last bit). A negative number has minus the bucket of its magnitude, and 0 has bucket 0: buckets are in the order of the numbers.
type buckets map[int32]int64

// bucketBias makes the bucket of the smallest float, 2^-1074, number 1<<fine.
const bucketBias = floatUnit + 1

// bucketOf is the number of v's bucket.
func bucketOf(v *Value, fine uint) int32 {
	var (
		m        uint64 // with the highest bit set
		exponent int    // of that bit
		negative bool
	)
	switch v.Kind {
	case Int:
		m, negative = magnitude(v.Int), v.Int < 0
		exponent = bits.Len64(m) - 1
	case Float:
		var shift uint
		m, shift, negative = parts(v.Float)
		exponent = bits.Len64(m) - 1 + int(shift) - floatUnit
	case Big: // of 64 bits or more, or it were an Int
		negative = v.Big.Sign() < 0
		exponent = v.Big.BitLen() - 1
		m = new(big.Int).Rsh(new(big.Int).Abs(v.Big), uint(exponent-63)).Uint64()
	}
	if m == 0 {
		return 0
	}
	m <<= bits.LeadingZeros64(m)
	bucket := int32(exponent+bucketBias)<<fine | int32(m<<1>>(64-fine))
	if negative {
		return -bucket
	}
	return bucket
}

// bucketEdge is the edge of a positive bucket that is nearer to 0, and half way to the other: part is 0, 1 or 2 halves.
func bucketEdge(bucket int32, fine uint, part int64) *big.Rat {
	exponent := int(bucket>>fine) - bucketBias
	place := int64(1)<<fine + int64(bucket)&(1<<fine-1) // in units of 2^(exponent-fine)
	return power2(2*place+part, exponent-int(fine)-1)
}

// power2 is m * 2^exponent.
func power2(m int64, exponent int) *big.Rat {
	n := big.NewInt(m)
	if exponent >= 0 {
		return new(big.Rat).SetInt(n.Lsh(n, uint(exponent)))
	}
	return new(big.Rat).SetFrac(n, new(big.Int).Lsh(big.NewInt(1), uint(-exponent)))
}

// bucketBytes is what a bucket takes.
const bucketBytes = 8

// add counts v and says by how much it has grown.
func (b buckets) add(bucket int32) (grown int) {
	n := len(b)
	b[bucket]++
	return (len(b) - n) * bucketBytes
}

func (b buckets) merge(o buckets) {
	for bucket, n := range o {
		b[bucket] += n
	}
}

func (b buckets) sorted() []int32 { return slices.Sorted(maps.Keys(b)) }

func (b buckets) total() (n int64) {
	for _, in := range b {
		n += in
	}
	return n
}

// appendTo writes how many buckets there are, then for each how far it is from the one before and its count.
func (b buckets) appendTo(out []byte) []byte {
	out = binary.AppendUvarint(out, uint64(len(b)))
	last := int32(0)
	for i, bucket := range b.sorted() {
		if i == 0 {
			out = binary.AppendVarint(out, int64(bucket))
		} else {
			out = binary.AppendUvarint(out, uint64(bucket-last))
		}
		out = binary.AppendUvarint(out, uint64(b[bucket]))
		last = bucket
	}
	return out
}

// readFrom reads what appendTo wrote: only buckets that a number can be in.
func (b buckets) readFrom(d *decoder, fine uint) {
	const highest = 8*maxBigBytes + bucketBias // the power of two of the largest integer
	n := d.Uvarint()
	bucket := int64(0)
	for i := uint64(0); i < n && d.Reason == ""; i++ {
		if i == 0 {
			bucket = d.varint()
		} else if step := d.Uvarint(); step == 0 || step > 2*highest<<fine+2 {
			d.Fail("buckets out of order")
		} else {
			bucket += int64(step)
		}
		if up := max(bucket, -bucket) >> fine; up >= highest || up == 0 && bucket != 0 || bucket < -1<<31 {
			d.Fail("a bucket of no number")
			return
		}
		in := d.count()
		if in == 0 {
			d.Fail("an empty bucket")
		}
		b[int32(bucket)] = in
	}
}
