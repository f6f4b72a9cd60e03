package fold

import (
	"encoding/binary"
	"maps"
	"math"
	"math/big"
	"slices"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/compute/wire"
)

// tableVersion is the first byte of an encoded table.
const tableVersion = 1

const (
	// maxCount bounds a number of values: more than any cluster holds, and 2^16 tables of so many do not wrap an int64.
	maxCount = 1 << 47
	// maxBigBytes bounds an encoded integer of a value: of maxDigits digits in package compute, or the square of one.
	maxBigBytes = 1024
	// maxSumBytes bounds an encoded sum: of squares of such integers and of floats, in units of 2^-2148, is 2,320, and of 2^63 of them 8 more.
	maxSumBytes = 4096
)

// DecodeError refuses bytes that AppendBinary cannot have written.
type DecodeError struct{ Reason string }

func (e *DecodeError) Error() string { return "decode job table: " + e.Reason }

// AppendBinary appends the table's bytes to b. Tables that have taken the same values have the same bytes, whatever the order of
// Add and Merge.
func (t *Table) AppendBinary(b []byte) []byte {
	b = append(b, tableVersion)
	if t.whole != nil {
		return t.whole.appendTo(b)
	}
	b = binary.AppendUvarint(b, uint64(len(t.groups)))
	for _, name := range slices.Sorted(maps.Keys(t.groups)) {
		b = wire.AppendBytes(b, []byte(name))
		b = t.groups[name].appendTo(b)
	}
	return b
}

// DecodeTable reads what AppendBinary of a table that NewTable made with the same arguments has written, and
// refuses anything else: a *DecodeError, or a *job.VersionError for a version that it does not know. What it allocates is
// bounded by maxGroups and MaxTableBytes, and by a small multiple of len(data) for a table without groups. The table keeps nothing of data.
func DecodeTable(data []byte, r job.Reduce, grouped bool, maxGroups int) (*Table, error) {
	d := &decoder{wire.Decoder{Data: data}}
	if v := d.Byte(); d.Reason == "" && v != tableVersion {
		return nil, &job.VersionError{What: "job table", Version: v}
	}
	t := NewTable(r, grouped, maxGroups)
	if grouped {
		t.readGroups(d)
	} else {
		t.whole.readFrom(d)
		t.charge(d, t.whole.size())
	}
	if len(d.Data) > 0 {
		d.Fail("bytes after the end")
	}
	if d.Reason != "" {
		return nil, &DecodeError{Reason: d.Reason}
	}
	return t, nil
}

func (t *Table) readGroups(d *decoder) {
	n := d.Uvarint()
	if n > uint64(t.maxGroups) {
		d.Fail("too many groups")
	}
	last := ""
	for i := uint64(0); i < n && d.Reason == ""; i++ {
		name := string(d.Take(d.Uvarint(), MaxTableBytes))
		if i > 0 && name <= last {
			d.Fail("groups out of order")
		}
		s := newState(t.reduce)
		if s.readFrom(d); s.empty() {
			d.Fail("a group of nothing")
		}
		t.groups[name] = s
		t.charge(d, len(name)+groupBytes+s.size())
		last = name
	}
}

// charge is called after each group: a few bytes can stand for a large sum.
func (t *Table) charge(d *decoder, bytes int) {
	if t.bytes += bytes; t.bytes > MaxTableBytes {
		d.Fail("larger than a table may be")
	}
}

// appendScaled writes an integer that mostly ends in many zero bits, as sums of floats do: how many, then the rest.
func appendScaled(b []byte, n *big.Int) []byte {
	zeros := n.TrailingZeroBits()
	b = binary.AppendUvarint(b, uint64(zeros))
	return wire.AppendBig(b, new(big.Int).Rsh(n, zeros)) // exact: only zeros are shifted out
}

// appendValue writes a number or a text.
func appendValue(b []byte, v *Value) []byte {
	b = append(b, byte(v.Kind))
	switch v.Kind {
	case Int:
		return binary.AppendVarint(b, v.Int)
	case Big:
		return wire.AppendBig(b, v.Big)
	case Float:
		return binary.BigEndian.AppendUint64(b, math.Float64bits(v.Float))
	case Text:
		return wire.AppendBytes(b, v.Text)
	}
	return b
}

// decoder also reads what this package writes.
type decoder struct{ wire.Decoder }

func (d *decoder) varint() int64 {
	u := d.Uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// count is a number of values.
func (d *decoder) count() int64 {
	v := d.Uvarint()
	if v > maxCount {
		d.Fail("count too large")
		return 0
	}
	return int64(v)
}

func (d *decoder) scaled() *big.Int {
	zeros := d.Uvarint()
	if zeros > 8*maxSumBytes {
		d.Fail("sum too large")
		return new(big.Int)
	}
	n := d.Big(maxSumBytes)
	if n.Bit(0) == 0 && (n.Sign() != 0 || zeros != 0) {
		d.Fail("sum not in its shortest form")
		return new(big.Int)
	}
	return n.Lsh(n, uint(zeros))
}

// value reads a number or a text; after a fault it is none.
func (d *decoder) value() Value {
	v := Value{Kind: Kind(d.Byte())}
	switch v.Kind {
	case Int:
		v.Int = d.varint()
	case Big:
		if v.SetBig(d.Big(maxBigBytes)); v.Kind != Big {
			d.Fail("a small integer written as a large one")
		}
	case Float:
		if b := d.Take(8, 8); b != nil {
			v.Float = math.Float64frombits(binary.BigEndian.Uint64(b))
		}
		if math.IsNaN(v.Float) || math.IsInf(v.Float, 0) || v.Float == 0 && math.Signbit(v.Float) {
			d.Fail("a float that no record is read as")
		}
	case Text:
		v.Text = slices.Clone(d.Take(d.Uvarint(), MaxTextBytes+1))
	default:
		d.Fail("unknown kind of value")
	}
	if d.Reason != "" {
		return Value{}
	}
	return v
}

// number is a value that must be one.
func (d *decoder) number() Value {
	v := d.value()
	if d.Reason == "" && v.Kind == Text {
		d.Fail("a text that must be a number")
		return Value{}
	}
	return v
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}
