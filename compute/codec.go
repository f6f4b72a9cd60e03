package compute

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// partialVersion is the first byte of an encoded Partial.
const partialVersion = 1

// maxBigBytes bounds an encoded integer: a square of maxDigits digits is 831
// bytes, a float sum 270, and a sum of 2^63 of either 8 more.
const maxBigBytes = 1024

// Encode appends nothing and aliases nothing: it returns p's bytes. Equal partials have equal bytes.
func (p *Partial) Encode() []byte {
	buf := make([]byte, 0, 128+len(p.loText)+len(p.hiText))
	buf = append(buf, partialVersion)
	for _, n := range []int64{p.Bad, p.ints, p.floats, p.texts, p.others} {
		buf = binary.AppendUvarint(buf, uint64(n))
	}
	buf = binary.AppendUvarint(buf, uint64(len(p.badKeys)))
	for _, key := range p.badKeys {
		buf = appendBytes(buf, []byte(key))
	}
	buf = appendBig(buf, p.sum.total())
	fsum := new(big.Int)
	if p.fsum != nil {
		fsum = p.fsum.total()
	}
	buf = appendBig(buf, fsum)
	buf = appendNumber(buf, &p.lo)
	buf = appendNumber(buf, &p.hi)
	buf = appendBytes(buf, p.loText)
	return appendBytes(buf, p.hiText)
}

func appendBytes(buf, b []byte) []byte {
	return append(binary.AppendUvarint(buf, uint64(len(b))), b...)
}

// appendBig writes twice the length plus the sign, then the magnitude.
func appendBig(buf []byte, n *big.Int) []byte {
	magnitude := n.Bytes()
	head := uint64(len(magnitude)) << 1
	if n.Sign() < 0 {
		head |= 1
	}
	return append(binary.AppendUvarint(buf, head), magnitude...)
}

func appendNumber(buf []byte, it *item) []byte {
	buf = append(buf, byte(it.kind))
	switch it.kind {
	case kindInt:
		return binary.AppendVarint(buf, it.int)
	case kindBig:
		return appendBig(buf, it.big)
	case kindFloat:
		return binary.BigEndian.AppendUint64(buf, math.Float64bits(it.float))
	}
	return buf
}

// DecodeError refuses bytes that Encode cannot have written.
type DecodeError struct{ What, Reason string }

func (e *DecodeError) Error() string { return "decode " + e.What + ": " + e.Reason }

// DecodePartial reads what Encode wrote, and refuses anything else: a
// *DecodeError, or a *job.VersionError for a version it does not know.
func DecodePartial(data []byte) (*Partial, error) {
	d := &decoder{data: data}
	if v := d.byte(); d.reason == "" && v != partialVersion {
		return nil, &job.VersionError{What: "job partial", Version: v}
	}
	p := &Partial{Bad: d.count(), ints: d.count(), floats: d.count(), texts: d.count(), others: d.count()}
	p.Records = p.Bad + p.ints + p.floats + p.texts + p.others
	n := d.uvarint()
	if n > maxBadKeys || int64(n) > p.Bad || (p.Bad > 0 && n == 0) {
		d.fail("number of bad keys")
	}
	for range min(n, maxBadKeys) {
		p.badKeys = append(p.badKeys, string(d.bytes(maxBadKeyBytes)))
	}
	if !slices.IsSorted(p.badKeys) {
		d.fail("bad keys out of order")
	}
	p.sum.addBig(d.big())
	if fsum := d.big(); p.floats > 0 {
		p.fsum = new(floatSum)
		p.fsum.base.Set(fsum)
	} else if fsum.Sign() != 0 {
		d.fail("a sum of no floats")
	}
	if p.ints == 0 && p.sum.big.Sign() != 0 {
		d.fail("a sum of no integers")
	}
	p.lo, p.hi = d.number(), d.number()
	if (p.lo.kind == kindNone) != (p.hi.kind == kindNone) || p.lo.kind != kindNone && p.ints+p.floats == 0 {
		d.fail("extremes of no numbers")
	}
	if p.lo.kind != kindNone && d.reason == "" && compareNumbers(&p.lo, &p.hi) > 0 {
		d.fail("minimum above maximum")
	}
	p.loText, p.hiText = d.bytes(maxTextBytes+1), d.bytes(maxTextBytes+1)
	if p.texts == 0 && len(p.loText)+len(p.hiText) > 0 || bytes.Compare(p.loText, p.hiText) > 0 {
		d.fail("extremes of no texts")
	}
	if len(d.data) > 0 {
		d.fail("bytes after the end")
	}
	if d.reason != "" {
		return nil, &DecodeError{What: "job partial", Reason: d.reason}
	}
	return p, nil
}

// decoder reads fields off data and remembers the first fault; after it, every field is empty.
type decoder struct {
	data   []byte
	reason string
}

func (d *decoder) fail(reason string) {
	if d.reason == "" {
		d.reason = reason
	}
	d.data = nil
}

func (d *decoder) byte() byte {
	if len(d.data) == 0 {
		d.fail("truncated")
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return b
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.data)
	if n <= 0 || n > 1 && d.data[n-1] == 0 { // the second: a longer form than needed
		d.fail("bad number")
		return 0
	}
	d.data = d.data[n:]
	return v
}

// count is a number of records: so bounded that five of them cannot wrap.
func (d *decoder) count() int64 {
	v := d.uvarint()
	if v > math.MaxInt64/8 {
		d.fail("count too large")
		return 0
	}
	return int64(v)
}

// take returns the next n bytes, checked before anything is allocated.
func (d *decoder) take(n uint64, limit int) []byte {
	if n > uint64(limit) || n > uint64(len(d.data)) {
		d.fail("length beyond the limit or the end")
		return nil
	}
	b := d.data[:n]
	d.data = d.data[n:]
	return b
}

func (d *decoder) bytes(limit int) []byte { return slices.Clone(d.take(d.uvarint(), limit)) }

func (d *decoder) big() *big.Int {
	head := d.uvarint()
	magnitude := d.take(head>>1, maxBigBytes)
	n := new(big.Int).SetBytes(magnitude)
	if len(magnitude) > 0 && magnitude[0] == 0 || head == 1 {
		d.fail("integer not in its shortest form")
	}
	if head&1 == 1 {
		n.Neg(n)
	}
	return n
}

func (d *decoder) number() item {
	switch k := kind(d.byte()); k {
	case kindNone:
		return item{}
	case kindInt:
		v, n := binary.Varint(d.data)
		if n <= 0 || n > 1 && d.data[n-1] == 0 {
			d.fail("bad number")
			return item{}
		}
		d.data = d.data[n:]
		return item{kind: kindInt, int: v}
	case kindBig:
		var it item
		if it.setBig(d.big()); it.kind != kindBig {
			d.fail("a small integer written as a large one")
		}
		return it
	case kindFloat:
		b := d.take(8, 8)
		if b == nil {
			return item{}
		}
		f := math.Float64frombits(binary.BigEndian.Uint64(b))
		if math.IsNaN(f) || math.IsInf(f, 0) || f == 0 && math.Signbit(f) {
			d.fail("a float that no record is read as")
			return item{}
		}
		return item{kind: kindFloat, float: f}
	}
	d.fail("unknown kind of number")
	return item{}
}

// Requests and replies between coordinator, master and worker: a version byte,
// the length of a JSON head, the head, and for replies an encoded Partial.
const messageVersion = 1

const maxHeadBytes = 4 << 20

func encodeMessage(head any, partial *Partial) ([]byte, error) {
	text, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("encode job message: %w", err)
	}
	buf := appendBytes([]byte{messageVersion}, text)
	if partial != nil {
		buf = append(buf, partial.Encode()...)
	}
	return buf, nil
}

// decodeMessage reads the head and returns what follows it. Unknown fields are
// refused: one that a newer node relies on must not be ignored quietly.
func decodeMessage(data []byte, head any) (rest []byte, err error) {
	d := &decoder{data: data}
	if v := d.byte(); d.reason == "" && v != messageVersion {
		return nil, &job.VersionError{What: "job message", Version: v}
	}
	text := d.take(d.uvarint(), maxHeadBytes)
	if d.reason != "" {
		return nil, &DecodeError{What: "job message", Reason: d.reason}
	}
	r := json.NewDecoder(bytes.NewReader(text))
	r.DisallowUnknownFields()
	if err := r.Decode(head); err != nil {
		return nil, fmt.Errorf("decode job message: %w", err)
	}
	if _, err := r.Token(); !errors.Is(err, io.EOF) {
		return nil, &DecodeError{What: "job message", Reason: "more than one head"}
	}
	return d.data, nil
}

func badRequest(err error) error { return transport.Errorf(transport.CodeBadRequest, "%v", err) }

// runKey names one master's attempt at one shard's part of a job.
type runKey struct {
	Job   string `json:"job"`
	Epoch uint64 `json:"epoch"`
	Shard uint32 `json:"shard"`
	// Try counts the calls of this epoch's coordinator for this shard.
	Try int `json:"try"`
}

// shardRequest asks a shard's leader for the shard's part.
type shardRequest struct {
	runKey
	Spec job.Spec `json:"spec"`
}

// shardReply is followed by the shard's Partial. Slots says what it covers.
type shardReply struct {
	runKey
	Slots  [][2]uint16     `json:"slots"`
	Report job.ShardReport `json:"report"`
}

// taskKey names one attempt at one task.
type taskKey struct {
	runKey
	Task    int `json:"task"`
	Attempt int `json:"attempt"`
}

// taskRequest asks a replica to run a task on a view at or above Index.
type taskRequest struct {
	taskKey
	Index uint64   `json:"index"`
	From  uint16   `json:"from"`
	To    uint16   `json:"to"`
	Spec  job.Spec `json:"spec"`
}

// taskReply is followed by the task's Partial. It repeats the request's key and
// range, so that an answer is never taken for another task's.
type taskReply struct {
	taskKey
	Index uint64 `json:"index"`
	From  uint16 `json:"from"`
	To    uint16 `json:"to"`
}
