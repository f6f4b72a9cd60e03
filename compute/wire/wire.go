// Package wire reads and writes the fields of what jobs send and keep: bytes of one form for each value, so that equal contents have equal bytes,
// and a reader that believes nothing.
package wire

import (
	"encoding/binary"
	"math/big"
	"slices"
)

// AppendBytes writes a length and the bytes.
func AppendBytes(b, text []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// AppendBig writes twice the length plus the sign, then the magnitude.
func AppendBig(b []byte, n *big.Int) []byte {
	magnitude := n.Bytes()
	head := uint64(len(magnitude)) << 1
	if n.Sign() < 0 {
		head |= 1
	}
	return append(binary.AppendUvarint(b, head), magnitude...)
}

// Decoder reads fields off Data and remembers the first fault; after it, every field is empty.
type Decoder struct {
	Data   []byte
	Reason string // the fault; empty if there is none
}

// Fail notes a fault.
func (d *Decoder) Fail(reason string) {
	if d.Reason == "" {
		d.Reason = reason
	}
	d.Data = nil
}

// Byte reads one.
func (d *Decoder) Byte() byte {
	if len(d.Data) == 0 {
		d.Fail("truncated")
		return 0
	}
	b := d.Data[0]
	d.Data = d.Data[1:]
	return b
}

// Bool reads a byte that is 0 or 1.
func (d *Decoder) Bool() bool {
	b := d.Byte()
	if b > 1 {
		d.Fail("neither yes nor no")
	}
	return b == 1
}

// Uvarint reads a number in its shortest form.
func (d *Decoder) Uvarint() uint64 {
	v, n := binary.Uvarint(d.Data)
	if n <= 0 || n > 1 && d.Data[n-1] == 0 { // the second: a longer form than needed
		d.Fail("bad number")
		return 0
	}
	d.Data = d.Data[n:]
	return v
}

// Take returns the next n bytes, checked before anything is allocated. They are Data's own.
func (d *Decoder) Take(n uint64, limit int) []byte {
	if n > uint64(limit) || n > uint64(len(d.Data)) {
		d.Fail("length beyond the limit or the end")
		return nil
	}
	b := d.Data[:n]
	d.Data = d.Data[n:]
	return b
}

// Bytes reads what AppendBytes wrote, as a copy.
func (d *Decoder) Bytes(limit int) []byte { return slices.Clone(d.Take(d.Uvarint(), limit)) }

// Big reads what AppendBig wrote, of at most limit bytes.
func (d *Decoder) Big(limit int) *big.Int {
	head := d.Uvarint()
	magnitude := d.Take(head>>1, limit)
	n := new(big.Int).SetBytes(magnitude)
	if len(magnitude) > 0 && magnitude[0] == 0 || head == 1 {
		d.Fail("integer not in its shortest form")
	}
	if head&1 == 1 {
		n.Neg(n)
	}
	return n
}
