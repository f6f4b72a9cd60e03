package command

import (
	"encoding/binary"
	"fmt"
)

// The formats. Each value begins with its version byte; integers are varints
// (zig-zag where they may be negative), byte strings a length and the bytes,
// lists a count and the elements.
//
//	batch    1, id, elapsed ms, commands
//	commands 1, commands
//	command  op (1 byte), flags (2, big-endian), slot (2, big-endian), keys, values, int, ttl
//	         and, with the flag numbered, session, seq, floor
//	results  1, results
//	result   kind (1 byte), then: int: int · bytes: bytes · array: results · error: code (1 byte), int, bytes
//	indexes  1, index for each watched key
//	init     1, cluster id, shard, slot ranges (2 + 2 each), max key, max value
const (
	batchVersion    = 1
	commandsVersion = 1
	resultsVersion  = 1
	indexesVersion  = 1
	initVersion     = 1
)

// minCommandBytes is what the emptiest command takes. A count of commands above
// what is left divided by this is a lie, refused before anything is allocated.
const minCommandBytes = 1 + 2 + 2 + 1 + 1 + 1 + 1

// DecodeError says that bytes are no value of a format that this version knows.
// In a log entry it is fatal: a replica that guesses has diverged.
type DecodeError struct {
	What   string // the format: "batch", "commands", "results" or "init"
	Reason string
	Offset int // where in the input
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("decode %s at byte %d: %s", e.What, e.Offset, e.Reason)
}

// AppendTo appends the encoded batch to buf. An op or a flag that DecodeBatch
// would refuse panics here: better the proposer than every replica for ever.
func (b *Batch) AppendTo(buf []byte) []byte {
	buf = append(buf, batchVersion)
	buf = binary.AppendUvarint(buf, b.ID)
	buf = binary.AppendUvarint(buf, b.ElapsedMillis)
	return appendCommands(buf, b.Commands)
}

// DecodeBatch reads what AppendTo wrote. The slices of the batch alias data.
func DecodeBatch(data []byte) (Batch, error) {
	d := decoder{what: "batch", data: data}
	d.version(batchVersion)
	b := Batch{ID: d.uvarint(), ElapsedMillis: d.uvarint()}
	b.Commands = d.commands()
	d.end()
	if d.err != nil {
		return Batch{}, d.err
	}
	return b, nil
}

// AppendCommands appends commands as one node sends them to another.
func AppendCommands(buf []byte, cmds []Command) []byte {
	return appendCommands(append(buf, commandsVersion), cmds)
}

// DecodeCommands reads what AppendCommands wrote. The slices alias data.
func DecodeCommands(data []byte) ([]Command, error) {
	d := decoder{what: "commands", data: data}
	d.version(commandsVersion)
	cmds := d.commands()
	d.end()
	if d.err != nil {
		return nil, d.err
	}
	return cmds, nil
}

func appendCommands(buf []byte, cmds []Command) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(cmds)))
	for i := range cmds {
		buf = cmds[i].appendTo(buf)
	}
	return buf
}

func (c *Command) appendTo(buf []byte) []byte {
	if c.Op == 0 || c.Op >= opEnd || c.Flags&^allFlags != 0 {
		panic(fmt.Sprintf("command: encode op %d with flags %#x: unknown to this version", c.Op, c.Flags))
	}
	buf = append(buf, byte(c.Op))
	flags := c.Flags
	if c.Session != 0 {
		flags |= flagNumbered
	}
	buf = binary.BigEndian.AppendUint16(buf, uint16(flags))
	buf = binary.BigEndian.AppendUint16(buf, c.Slot)
	buf = appendList(buf, c.Keys)
	buf = appendList(buf, c.Values)
	buf = binary.AppendVarint(buf, c.Int)
	buf = binary.AppendVarint(buf, c.TTL)
	if c.Session != 0 {
		buf = binary.AppendUvarint(buf, c.Session)
		buf = binary.AppendUvarint(buf, c.Seq)
		buf = binary.AppendUvarint(buf, c.Floor)
	}
	return buf
}

// flagNumbered says in the format that session, seq and floor follow.
const flagNumbered Flags = 1 << 15

// Size is the number of bytes that the command takes in a batch.
func (c *Command) Size() int {
	n := 1 + 2 + 2 + listSize(c.Keys) + listSize(c.Values) + varintSize(c.Int) + varintSize(c.TTL)
	if c.Session != 0 {
		n += uvarintSize(c.Session) + uvarintSize(c.Seq) + uvarintSize(c.Floor)
	}
	return n
}

func appendList(buf []byte, list [][]byte) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(list)))
	for _, b := range list {
		buf = appendBytes(buf, b)
	}
	return buf
}

func appendBytes(buf, b []byte) []byte {
	return append(binary.AppendUvarint(buf, uint64(len(b))), b...)
}

func listSize(list [][]byte) int {
	n := uvarintSize(uint64(len(list)))
	for _, b := range list {
		n += uvarintSize(uint64(len(b))) + len(b)
	}
	return n
}

func uvarintSize(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

func varintSize(v int64) int { return uvarintSize(uint64(v)<<1 ^ uint64(v>>63)) }

// maxDepth is how deep arrays may lie in arrays: an OpMulti answers with one
// array, in which an OpMGet's lies.
const maxDepth = 2

// AppendResults appends results as the leader's node sends them back. Arrays
// deeper than maxDepth panic.
func AppendResults(buf []byte, rs []Result) []byte {
	buf = append(buf, resultsVersion)
	return appendResults(buf, rs, 0)
}

func appendResults(buf []byte, rs []Result, depth int) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(rs)))
	for i := range rs {
		r := &rs[i]
		buf = append(buf, byte(r.Kind))
		switch r.Kind {
		case KindNil, KindOK:
		case KindInt:
			buf = binary.AppendVarint(buf, r.Int)
		case KindBytes:
			buf = appendBytes(buf, r.Bytes)
		case KindArray:
			if depth == maxDepth {
				panic("command: encode results: arrays too deep")
			}
			buf = appendResults(buf, r.Array, depth+1)
		case KindError:
			buf = append(buf, byte(r.Code))
			buf = binary.AppendVarint(buf, r.Int)
			buf = appendBytes(buf, r.Bytes)
		default:
			panic(fmt.Sprintf("command: encode results: unknown kind %d", r.Kind))
		}
	}
	return buf
}

// DecodeResults reads what AppendResults wrote. The slices alias data.
func DecodeResults(data []byte) ([]Result, error) {
	d := decoder{what: "results", data: data}
	d.version(resultsVersion)
	rs := d.results(0)
	d.end()
	if d.err != nil {
		return nil, d.err
	}
	return rs, nil
}

// Encode returns the payload of an OpInit.
func (in *Init) Encode() []byte {
	buf := appendBytes([]byte{initVersion}, []byte(in.ClusterID))
	buf = binary.AppendUvarint(buf, uint64(in.Shard))
	buf = appendRanges(buf, in.Slots)
	buf = binary.AppendUvarint(buf, uint64(in.Limits.MaxKey))
	return binary.AppendUvarint(buf, uint64(in.Limits.MaxValue))
}

// DecodeInit reads what Encode wrote and checks that a shard can live by it.
func DecodeInit(data []byte) (Init, error) {
	d := decoder{what: "init", data: data}
	d.version(initVersion)
	var in Init
	in.ClusterID = string(d.bytes())
	in.Shard = d.uint32()
	in.Slots = d.ranges()
	in.Limits.MaxKey = d.uint32()
	in.Limits.MaxValue = d.uint32()
	d.end()
	if d.err == nil {
		if reason := in.fault(); reason != "" {
			d.fail(reason)
		}
	}
	if d.err != nil {
		return Init{}, d.err
	}
	return in, nil
}

// fault says what makes the identity unusable, or nothing.
func (in *Init) fault() string {
	if reason := rangesFault(in.Slots); reason != "" {
		return reason
	}
	if in.Limits.MaxKey == 0 || in.Limits.MaxKey > MaxKeyLimit {
		return fmt.Sprintf("key limit %d is not in 1..%d", in.Limits.MaxKey, MaxKeyLimit)
	}
	if in.Limits.MaxValue == 0 || in.Limits.MaxValue > MaxValueLimit {
		return fmt.Sprintf("value limit %d is not in 1..%d", in.Limits.MaxValue, MaxValueLimit)
	}
	return ""
}

// decoder reads one value. The first error stays and ends all further reading.
type decoder struct {
	what string
	data []byte
	off  int
	err  error
	// parts is where the lists of keys and values of all commands lie, in runs,
	// so that a batch costs a few allocations and not two per command.
	parts [][]byte
	ahead int // how many commands are not read yet: most have a key and a value
}

func (d *decoder) fail(reason string) {
	if d.err == nil {
		d.err = &DecodeError{What: d.what, Reason: reason, Offset: d.off}
	}
}

func (d *decoder) left() int { return len(d.data) - d.off }

func (d *decoder) version(want byte) {
	if got := d.byte(); d.err == nil && got != want {
		d.off = 0
		d.fail(fmt.Sprintf("version %d is unknown, this program knows %d", got, want))
	}
}

func (d *decoder) end() {
	if d.err == nil && d.left() > 0 {
		d.fail(fmt.Sprintf("%d bytes too many", d.left()))
	}
}

func (d *decoder) byte() byte {
	if d.err != nil || d.left() < 1 {
		d.fail("input ends early")
		return 0
	}
	b := d.data[d.off]
	d.off++
	return b
}

func (d *decoder) uint16() uint16 {
	if d.err != nil || d.left() < 2 {
		d.fail("input ends early")
		return 0
	}
	v := binary.BigEndian.Uint16(d.data[d.off:])
	d.off += 2
	return v
}

func (d *decoder) uvarint() uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.data[d.off:])
	if n <= 0 {
		d.fail("no varint here")
		return 0
	}
	d.off += n
	return v
}

func (d *decoder) varint() int64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Varint(d.data[d.off:])
	if n <= 0 {
		d.fail("no varint here")
		return 0
	}
	d.off += n
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.fail("number over 32 bits")
		return 0
	}
	return uint32(v)
}

// count reads a number of elements of at least min bytes each.
func (d *decoder) count(min int) int {
	v := d.uvarint()
	if v > uint64(d.left()/min) {
		d.fail(fmt.Sprintf("%d elements cannot fit in %d bytes", v, d.left()))
		return 0
	}
	return int(v)
}

// bytes reads a byte string. It is never nil and cannot be appended to in place.
func (d *decoder) bytes() []byte {
	n := d.count(1)
	if d.err != nil {
		return nil
	}
	b := d.data[d.off : d.off+n : d.off+n]
	d.off += n
	return b
}

// list reads a list of byte strings; an empty one is nil.
func (d *decoder) list() [][]byte {
	n := d.count(1)
	if n == 0 || d.err != nil {
		return nil
	}
	if cap(d.parts)-len(d.parts) < n {
		// Earlier lists keep the array that they are in.
		d.parts = make([][]byte, 0, max(n, min(256, 2*d.ahead, d.left())))
	}
	start := len(d.parts)
	for range n {
		b := d.bytes()
		if d.err != nil {
			return nil
		}
		d.parts = append(d.parts, b)
	}
	return d.parts[start:len(d.parts):len(d.parts)]
}

func (d *decoder) commands() []Command {
	n := d.count(minCommandBytes)
	if n == 0 || d.err != nil {
		return nil
	}
	cmds := make([]Command, n)
	for i := range cmds {
		d.ahead = n - i
		c := &cmds[i]
		c.Op = Op(d.byte())
		c.Flags = Flags(d.uint16())
		numbered := c.Flags&flagNumbered != 0
		c.Flags &^= flagNumbered
		if d.err == nil && (c.Op == 0 || c.Op >= opEnd || c.Flags&^allFlags != 0) {
			d.fail(fmt.Sprintf("op %d with flags %#x is unknown to this version", c.Op, c.Flags))
		}
		c.Slot = d.uint16()
		c.Keys = d.list()
		c.Values = d.list()
		c.Int = d.varint()
		c.TTL = d.varint()
		if numbered {
			if c.Session = d.uvarint(); c.Session == 0 {
				d.fail("numbered in session 0")
			}
			c.Seq, c.Floor = d.uvarint(), d.uvarint()
		}
		if d.err != nil {
			return nil
		}
	}
	return cmds
}

// AppendIndexes appends the indexes of watched keys, for OpMulti.
func AppendIndexes(buf []byte, indexes []uint64) []byte {
	buf = append(buf, indexesVersion)
	for _, i := range indexes {
		buf = binary.AppendUvarint(buf, i)
	}
	return buf
}

// DecodeIndexes reads n indexes that AppendIndexes wrote.
func DecodeIndexes(data []byte, n int) ([]uint64, error) {
	d := decoder{what: "indexes", data: data}
	d.version(indexesVersion)
	if n > d.left() {
		d.fail(fmt.Sprintf("%d indexes cannot fit in %d bytes", n, d.left()))
	}
	if d.err != nil {
		return nil, d.err
	}
	indexes := make([]uint64, n)
	for i := range indexes {
		indexes[i] = d.uvarint()
	}
	d.end()
	if d.err != nil {
		return nil, d.err
	}
	return indexes, nil
}

func (d *decoder) results(depth int) []Result {
	n := d.count(1)
	if n == 0 || d.err != nil {
		return nil
	}
	rs := make([]Result, n)
	for i := range rs {
		r := &rs[i]
		r.Kind = Kind(d.byte())
		switch r.Kind {
		case KindNil, KindOK:
		case KindInt:
			r.Int = d.varint()
		case KindBytes:
			r.Bytes = d.bytes()
		case KindArray:
			if depth == maxDepth {
				d.fail("arrays too deep")
			} else {
				r.Array = d.results(depth + 1)
			}
		case KindError:
			r.Code = Code(d.byte())
			r.Int = d.varint()
			if b := d.bytes(); len(b) > 0 {
				r.Bytes = b
			}
		default:
			d.fail(fmt.Sprintf("unknown kind %d", r.Kind))
		}
		if d.err != nil {
			return nil
		}
	}
	return rs
}
