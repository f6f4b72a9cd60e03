package fold

import (
	"encoding/binary"
	"math"
	"math/big"
	"slices"
	"strconv"

	"github.com/axiomhq/hyperloglog"
	"github.com/cespare/xxhash/v2"
)

// maxHashes is how many different values a distinct counts one by one.
const maxHashes = 1024

// sketchBytes is what the sketch takes: a byte for each of 2^14 registers.
const sketchBytes = 1 << 14

// distinctState counts different values: exactly up to maxHashes (but for two in 2^64 with one hash), above it with a HyperLogLog sketch of 2^14
// registers, whose standard error is 1.04/sqrt(2^14) = 0.81 %. Numbers of one worth are one value (1 and 1.0), a number and its digits
// as a text are two.
//
// The sketch is used only in its dense form, where it is the largest of each register and nothing else: the library's sparse
// form depends on the order in which values came.
type distinctState struct {
	hashes []uint64            // rising; nil when there is a sketch
	sketch *hyperloglog.Sketch // from maxHashes+1 hashes on
}

func (s *distinctState) add(_ []byte, v *Value) (grown int, err error) {
	grown = -s.size()
	s.addHash(hash(v))
	return grown + s.size(), nil
}

func (s *distinctState) addHash(h uint64) {
	if s.sketch != nil {
		s.sketch.InsertHash(h)
		return
	}
	i, found := slices.BinarySearch(s.hashes, h)
	if found {
		return
	}
	if s.hashes = slices.Insert(s.hashes, i, h); len(s.hashes) > maxHashes {
		s.toSketch()
	}
}

func (s *distinctState) toSketch() {
	s.sketch = hyperloglog.NewNoSparse()
	for _, h := range s.hashes {
		s.sketch.InsertHash(h)
	}
	s.hashes = nil
}

// hash is the same on every node and in every release: it is compared with those of others. Its seed is the kind and, for a large
// integer, the sign.
func hash(v *Value) uint64 {
	var (
		d   xxhash.Digest
		buf [8]byte
	)
	w := wholeNumber(v)
	d.ResetWithSeed(uint64(w.Kind))
	switch w.Kind {
	case Text:
		_, _ = d.Write(w.Text) // never fails
	case Big:
		d.ResetWithSeed(uint64(0x100 + w.Big.Sign()))
		_, _ = d.Write(w.Big.Bytes())
	case Int:
		_, _ = d.Write(binary.BigEndian.AppendUint64(buf[:0], uint64(w.Int)))
	default:
		_, _ = d.Write(binary.BigEndian.AppendUint64(buf[:0], math.Float64bits(w.Float)))
	}
	return d.Sum64()
}

// wholeNumber is v, as an integer if it is a float with the worth of one.
func wholeNumber(v *Value) Value {
	w := *v
	if v.Kind != Float || v.Float != math.Trunc(v.Float) {
		return w
	}
	if -1<<63 <= v.Float && v.Float < 1<<63 {
		w.SetInt(int64(v.Float))
	} else {
		n, _ := new(big.Float).SetFloat64(v.Float).Int(nil)
		w.SetBig(n)
	}
	return w
}

func (s *distinctState) merge(other state) error {
	o := other.(*distinctState)
	for _, h := range o.hashes {
		s.addHash(h)
	}
	if o.sketch == nil {
		return nil
	}
	if s.sketch == nil {
		s.toSketch()
	}
	if err := s.sketch.Merge(o.sketch); err != nil {
		panic("fold: merge sketches " + err.Error()) // all have the same number of registers
	}
	return nil
}

func (s *distinctState) size() int {
	if s.sketch != nil {
		return sketchBytes
	}
	return 8 * len(s.hashes)
}

func (s *distinctState) empty() bool { return s.sketch == nil && len(s.hashes) == 0 }

// emptySketch is the library's encoding of no values, whose head is that of all.
var emptySketch = encodeSketch(hyperloglog.NewNoSparse())

func encodeSketch(sk *hyperloglog.Sketch) []byte {
	b, err := sk.MarshalBinary()
	if err != nil {
		panic("fold: encode a sketch: " + err.Error()) // only one that was never made has no encoding
	}
	return b
}

// appendTo writes the number of hashes and the hashes, or one more than there can be and the registers.
func (s *distinctState) appendTo(b []byte) []byte {
	if s.sketch != nil {
		b = binary.AppendUvarint(b, maxHashes+1)
		return append(b, encodeSketch(s.sketch)[len(emptySketch)-sketchBytes:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(s.hashes)))
	for _, h := range s.hashes {
		b = binary.BigEndian.AppendUint64(b, h)
	}
	return b
}

func (s *distinctState) readFrom(d *decoder) {
	n := d.Uvarint()
	if n > maxHashes+1 {
		d.Fail("number of hashes")
		return
	}
	if n == maxHashes+1 {
		s.readSketch(d)
		return
	}
	data := d.Take(8*n, 8*maxHashes)
	for ; len(data) > 0; data = data[8:] {
		h := binary.BigEndian.Uint64(data)
		if last := len(s.hashes) - 1; last >= 0 && h <= s.hashes[last] {
			d.Fail("hashes out of order")
		}
		s.hashes = append(s.hashes, h)
	}
}

func (s *distinctState) readSketch(d *decoder) {
	registers := d.Take(sketchBytes, sketchBytes)
	if registers == nil {
		return
	}
	head := emptySketch[:len(emptySketch)-sketchBytes]
	sketch := hyperloglog.NewNoSparse()
	if err := sketch.UnmarshalBinary(slices.Concat(head, registers)); err != nil {
		d.Fail(err.Error())
		return
	}
	if !slices.ContainsFunc(registers, func(r byte) bool { return r > 0 }) {
		d.Fail("a sketch of nothing")
	}
	s.sketch = sketch
}

func (s *distinctState) final() (answer, error) {
	if s.sketch != nil {
		return numberAnswer(strconv.FormatUint(s.sketch.Estimate(), 10))
	}
	return numberAnswer(strconv.Itoa(len(s.hashes)))
}
