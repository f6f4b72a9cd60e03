package compute

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"

	"github.com/abacusdb/abacus/compute/expr"
	"github.com/abacusdb/abacus/compute/fold"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/compute/wire"
	"github.com/abacusdb/abacus/transport"
)

// The first byte of an encoded Partial. Version 1 has all that v0.4 knew, and is written wherever it can say everything:
// nodes of two releases work on one job, which then asks for nothing newer.
const (
	partialVersion     = 1
	partialWideVersion = 2
)

// maxBigBytes bounds an encoded integer: a square of maxDigits digits is 831
// bytes, a float sum 270, and a sum of 2^63 of either 8 more.
const maxBigBytes = 1024

// Encode appends nothing and aliases nothing: it returns p's bytes. Equal partials have equal bytes.
func (p *Partial) Encode() []byte {
	buf := make([]byte, 0, 128+len(p.loText)+len(p.hiText))
	if !p.wide() {
		return p.appendClassic(append(buf, partialVersion))
	}
	buf = append(buf, partialWideVersion)
	kind, limit := verdictCode(p.verdict)
	buf = append(buf, kind)
	if kind != 0 {
		return binary.AppendUvarint(buf, limit)
	}
	buf = binary.AppendUvarint(buf, uint64(p.Records))
	buf = binary.AppendUvarint(buf, uint64(p.Filtered))
	buf = p.appendClassic(buf)
	for _, why := range p.badWhy {
		buf = wire.AppendBytes(buf, []byte(why))
	}
	if p.table == nil {
		return buf
	}
	buf = wire.AppendBytes(buf, []byte(p.shape.reduce))
	buf = append(buf, 0)
	if p.shape.grouped {
		buf[len(buf)-1] = 1
	}
	buf = binary.AppendUvarint(buf, uint64(p.shape.maxGroups))
	return p.table.AppendBinary(buf)
}

// wide says whether version 1 cannot say all of p.
func (p *Partial) wide() bool {
	return p.verdict != nil || p.table != nil || p.Filtered > 0 || p.Records != p.Bad+p.values() ||
		slices.ContainsFunc(p.badWhy, func(why string) bool { return why != "" })
}

// appendClassic writes all that version 1 has.
func (p *Partial) appendClassic(buf []byte) []byte {
	for _, n := range []int64{p.Bad, p.ints, p.floats, p.texts, p.others} {
		buf = binary.AppendUvarint(buf, uint64(n))
	}
	buf = binary.AppendUvarint(buf, uint64(len(p.badKeys)))
	for _, key := range p.badKeys {
		buf = wire.AppendBytes(buf, []byte(key))
	}
	buf = wire.AppendBig(buf, p.sum.Total())
	fsum := new(big.Int)
	if p.fsum != nil {
		fsum = p.fsum.Total()
	}
	buf = wire.AppendBig(buf, fsum)
	buf = appendNumber(buf, &p.lo)
	buf = appendNumber(buf, &p.hi)
	buf = wire.AppendBytes(buf, p.loText)
	return wire.AppendBytes(buf, p.hiText)
}

func appendNumber(buf []byte, it *fold.Value) []byte {
	buf = append(buf, byte(it.Kind))
	switch it.Kind {
	case fold.Int:
		return binary.AppendVarint(buf, it.Int)
	case fold.Big:
		return wire.AppendBig(buf, it.Big)
	case fold.Float:
		return binary.BigEndian.AppendUint64(buf, math.Float64bits(it.Float))
	}
	return buf
}

// DecodeError refuses bytes that Encode cannot have written.
type DecodeError struct{ What, Reason string }

func (e *DecodeError) Error() string { return "decode " + e.What + ": " + e.Reason }

// verdictCode numbers a verdict, with the bound that it names. The numbers are written to the wire.
func verdictCode(err error) (kind byte, limit uint64) {
	switch e := err.(type) { //nolint:errorlint // decide is given these as they are
	case nil:
		return 0, 0
	case *fold.TooManyGroupsError:
		return 1, uint64(e.Max)
	case *fold.TooLargeError:
		return 2, uint64(e.Max)
	case *fold.TooManyValuesError:
		return 3, uint64(e.Max)
	case *expr.CostError:
		return 4, e.Limit
	}
	return 5, 0
}

func verdictOf(kind byte, limit uint64) error {
	switch kind {
	case 1:
		return &fold.TooManyGroupsError{Max: int(limit)}
	case 2:
		return &fold.TooLargeError{Max: int(limit)}
	case 3:
		return &fold.TooManyValuesError{Max: int(limit)}
	case 4:
		return &expr.CostError{Limit: limit}
	}
	return &MismatchError{}
}

func verdictLess(a, b error) bool {
	kindA, limitA := verdictCode(a)
	kindB, limitB := verdictCode(b)
	return cmp.Or(cmp.Compare(kindA, kindB), cmp.Compare(limitA, limitB)) < 0
}

// DecodePartial reads what Encode wrote, and refuses anything else: a
// *DecodeError, or a *job.VersionError for a version it does not know.
func DecodePartial(data []byte) (*Partial, error) {
	d := &decoder{wire.Decoder{Data: data}}
	p := new(Partial)
	var table []byte
	switch v := d.Byte(); {
	case v == partialVersion:
		d.classic(p)
		p.Records = p.Bad + p.values()
		p.badWhy = make([]string, len(p.badKeys))
	case v == partialWideVersion:
		table = d.wide(p)
	case d.Reason == "":
		return nil, &job.VersionError{What: "job partial", Version: v}
	}
	if len(d.Data) > 0 {
		d.Fail("bytes after the end")
	}
	if d.Reason != "" {
		return nil, &DecodeError{What: "job partial", Reason: d.Reason}
	}
	if table != nil {
		r, _ := job.ParseReduce(p.shape.reduce)
		var err error
		if p.table, err = fold.DecodeTable(table, r, p.shape.grouped, p.shape.maxGroups); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// wide reads into p what version 2 has, but for the bytes of a table, which it returns.
func (d *decoder) wide(p *Partial) (table []byte) {
	if kind := d.Byte(); kind != 0 {
		limit := d.Uvarint()
		if kind > 5 || limit > math.MaxInt32 || kind == 5 && limit > 0 {
			d.Fail("unknown verdict")
			return nil
		}
		p.verdict = verdictOf(kind, limit)
		return nil
	}
	p.Records, p.Filtered = d.count(), d.count()
	d.classic(p)
	if p.Filtered+p.Bad > p.Records {
		d.Fail("more records than there were")
	}
	for range p.badKeys {
		p.badWhy = append(p.badWhy, string(d.Bytes(maxBadKeyBytes)))
	}
	if len(d.Data) > 0 {
		p.shape.reduce = string(d.Bytes(job.MaxSpecBytes))
		p.shape.grouped = d.Bool()
		p.shape.maxGroups = int(min(d.Uvarint(), job.MaxMaxGroups+1))
		if _, err := job.ParseReduce(p.shape.reduce); err != nil || !p.shape.table() || p.shape.maxGroups > job.MaxMaxGroups || p.shape.grouped != (p.shape.maxGroups > 0) {
			d.Fail("unknown kind of table")
		}
		if table, d.Data = d.Data, nil; len(table) == 0 {
			d.Fail("no table after its head")
		}
		return table
	}
	if d.Reason == "" && !p.wide() {
		d.Fail("version 2 without need")
	}
	return nil
}

// classic reads into p what version 1 has.
func (d *decoder) classic(p *Partial) {
	p.Bad, p.ints, p.floats, p.texts, p.others = d.count(), d.count(), d.count(), d.count(), d.count()
	n := d.Uvarint()
	if n > maxBadKeys || int64(n) > p.Bad || (p.Bad > 0 && n == 0) {
		d.Fail("number of bad keys")
	}
	for range min(n, maxBadKeys) {
		p.badKeys = append(p.badKeys, string(d.Bytes(maxBadKeyBytes)))
	}
	if !slices.IsSorted(p.badKeys) {
		d.Fail("bad keys out of order")
	}
	p.sum.AddBig(d.Big(maxBigBytes))
	if fsum := d.Big(maxBigBytes); p.floats > 0 {
		p.fsum = new(fold.FloatSum)
		p.fsum.AddTotal(fsum)
	} else if fsum.Sign() != 0 {
		d.Fail("a sum of no floats")
	}
	if p.ints == 0 && p.sum.Total().Sign() != 0 {
		d.Fail("a sum of no integers")
	}
	p.lo, p.hi = d.number(), d.number()
	if (p.lo.Kind == fold.None) != (p.hi.Kind == fold.None) || p.lo.Kind != fold.None && p.ints+p.floats == 0 {
		d.Fail("extremes of no numbers")
	}
	if p.lo.Kind != fold.None && d.Reason == "" && fold.CompareNumbers(&p.lo, &p.hi) > 0 {
		d.Fail("minimum above maximum")
	}
	p.loText, p.hiText = d.Bytes(maxTextBytes+1), d.Bytes(maxTextBytes+1)
	if p.texts == 0 && len(p.loText)+len(p.hiText) > 0 || bytes.Compare(p.loText, p.hiText) > 0 {
		d.Fail("extremes of no texts")
	}
}

// decoder also reads what this package writes.
type decoder struct{ wire.Decoder }

// count is a number of records: so bounded that five of them cannot wrap.
func (d *decoder) count() int64 {
	v := d.Uvarint()
	if v > math.MaxInt64/8 {
		d.Fail("count too large")
		return 0
	}
	return int64(v)
}

func (d *decoder) number() fold.Value {
	switch k := fold.Kind(d.Byte()); k {
	case fold.None:
		return fold.Value{}
	case fold.Int:
		v, n := binary.Varint(d.Data)
		if n <= 0 || n > 1 && d.Data[n-1] == 0 {
			d.Fail("bad number")
			return fold.Value{}
		}
		d.Data = d.Data[n:]
		return fold.Value{Kind: fold.Int, Int: v}
	case fold.Big:
		var it fold.Value
		if it.SetBig(d.Big(maxBigBytes)); it.Kind != fold.Big {
			d.Fail("a small integer written as a large one")
		}
		return it
	case fold.Float:
		b := d.Take(8, 8)
		if b == nil {
			return fold.Value{}
		}
		f := math.Float64frombits(binary.BigEndian.Uint64(b))
		if math.IsNaN(f) || math.IsInf(f, 0) || f == 0 && math.Signbit(f) {
			d.Fail("a float that no record is read as")
			return fold.Value{}
		}
		return fold.Value{Kind: fold.Float, Float: f}
	}
	d.Fail("unknown kind of number")
	return fold.Value{}
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
	buf := wire.AppendBytes([]byte{messageVersion}, text)
	if partial != nil {
		buf = append(buf, partial.Encode()...)
	}
	return buf, nil
}

// decodeMessage reads the head and returns what follows it. Unknown fields are
// refused: one that a newer node relies on must not be ignored quietly.
func decodeMessage(data []byte, head any) (rest []byte, err error) {
	d := &decoder{wire.Decoder{Data: data}}
	if v := d.Byte(); d.Reason == "" && v != messageVersion {
		return nil, &job.VersionError{What: "job message", Version: v}
	}
	text := d.Take(d.Uvarint(), maxHeadBytes)
	if d.Reason != "" {
		return nil, &DecodeError{What: "job message", Reason: d.Reason}
	}
	r := json.NewDecoder(bytes.NewReader(text))
	r.DisallowUnknownFields()
	if err := r.Decode(head); err != nil {
		return nil, fmt.Errorf("decode job message: %w", err)
	}
	if _, err := r.Token(); !errors.Is(err, io.EOF) {
		return nil, &DecodeError{What: "job message", Reason: "more than one head"}
	}
	return d.Data, nil
}

func badRequest(err error) error { return transport.Errorf(transport.CodeBadRequest, "%v", err) }

// runKey names one master's attempt at one shard's part of a job.
type runKey struct {
	Job   string `json:"job"` // its record's Key
	Epoch uint64 `json:"epoch"`
	Shard uint32 `json:"shard"`
	// Try rises with the calls that this epoch's coordinator makes.
	Try int `json:"try"`
	// Round is which time the coordinator asks all shards: what a shard's log remembers counts within one.
	Round int `json:"round,omitempty"`
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

// taskRequest asks a replica to run a task on a view at or above Index; at exactly that, with a Pin.
type taskRequest struct {
	taskKey
	Index uint64 `json:"index"`
	Pin   uint64 `json:"pin,omitempty"`
	// WantBytes: the master understands a reply that says how many were read, which one of v0.4 refuses.
	WantBytes bool     `json:"want_bytes,omitempty"`
	From      uint16   `json:"from"`
	To        uint16   `json:"to"`
	Spec      job.Spec `json:"spec"`
}

// statusRequest asks how far a task is. Cut: its worker is to leave the tail to others.
type statusRequest struct {
	taskKey
	Cut bool `json:"cut,omitempty"`
}

// statusReply is how far a task is: it will answer for the slots up to To.
type statusReply struct {
	At      uint16 `json:"at,omitempty"` // the slot that it reads
	To      uint16 `json:"to"`
	Running bool   `json:"running"` // it has its turn
	Records int64  `json:"records"`
	Bytes   int64  `json:"bytes"`
}

// taskReply is followed by the task's Partial. It repeats the request's key and
// range, so that an answer is never taken for another task's; To is lower if the tail was left to others.
type taskReply struct {
	taskKey
	Index uint64 `json:"index"`
	From  uint16 `json:"from"`
	To    uint16 `json:"to"`
	Bytes int64  `json:"bytes,omitempty"` // keys and values that were read; older workers do not say
}
