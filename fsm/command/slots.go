package command

import (
	"encoding/binary"
	"fmt"
)

// Row is what a slot that changes hands has under a key, as it travels.
type Row struct {
	Slot uint16
	Key  []byte
	// Gone: there is no such key (any more); it may be there from an earlier part.
	Gone  bool
	Value []byte
	// TTL is how long the key has to live, in milliseconds from when it is loaded; 0: for ever. The two
	// shards have clocks of their own.
	TTL int64
}

// What Values[0] of an OpSlotsLoad says of each key: slot (2, big-endian), kind (1), and for rowExpires the TTL.
const (
	rowsVersion  = 1
	slotsVersion = 1

	rowGone    = 0
	rowPlain   = 1
	rowExpires = 2
)

// LoadRows makes an OpSlotsLoad: part n of an attempt. It shares the rows' slices.
func LoadRows(token, n int64, rows []Row) Command {
	c := Command{Op: OpSlotsLoad, Int: token, TTL: n, Keys: make([][]byte, len(rows)), Values: make([][]byte, 1, 1+len(rows))}
	head := []byte{rowsVersion}
	for i := range rows {
		r := &rows[i]
		c.Keys[i] = r.Key
		head = binary.BigEndian.AppendUint16(head, r.Slot)
		switch {
		case r.Gone:
			head = append(head, rowGone)
			c.Values = append(c.Values, nil)
			continue
		case r.TTL == 0:
			head = append(head, rowPlain)
		default:
			head = binary.AppendUvarint(append(head, rowExpires), uint64(r.TTL))
		}
		c.Values = append(c.Values, r.Value)
	}
	c.Values[0] = head
	return c
}

// Rows reads what LoadRows made of the rows. They alias the command.
func (c *Command) Rows() ([]Row, error) {
	if len(c.Values) != len(c.Keys)+1 {
		return nil, c.bad("wrong number of values")
	}
	d := decoder{what: "rows", data: c.Values[0]}
	d.version(rowsVersion)
	rows := make([]Row, len(c.Keys))
	for i := range rows {
		r := &rows[i]
		r.Key, r.Slot = c.Keys[i], d.uint16()
		switch kind := d.byte(); kind {
		case rowGone:
			r.Gone = true
		case rowPlain:
		case rowExpires:
			if r.TTL = int64(d.uvarint()); r.TTL <= 0 {
				d.fail("a time to live that is none")
			}
		default:
			d.fail(fmt.Sprintf("row of unknown kind %d", kind))
		}
		if r.Slot >= Slots {
			d.fail(fmt.Sprintf("slot %d", r.Slot))
		}
		if d.err != nil {
			return nil, d.err
		}
		if !r.Gone {
			r.Value = c.Values[1+i]
		}
	}
	d.end()
	return rows, d.err
}

// AppendSlots appends slot ranges, for OpSlotsExpect and OpSlotsFreeze.
func AppendSlots(buf []byte, slots []SlotRange) []byte {
	buf = append(buf, slotsVersion)
	return appendRanges(buf, slots)
}

// DecodeSlots reads what AppendSlots wrote: at least one range, in order.
func DecodeSlots(data []byte) ([]SlotRange, error) {
	d := decoder{what: "slots", data: data}
	d.version(slotsVersion)
	slots := d.ranges()
	d.end()
	if d.err == nil && len(slots) == 0 {
		d.fail("no slots")
	}
	if d.err == nil {
		if reason := rangesFault(slots); reason != "" {
			d.fail(reason)
		}
	}
	if d.err != nil {
		return nil, d.err
	}
	return slots, nil
}

func appendRanges(buf []byte, slots []SlotRange) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(slots)))
	for _, r := range slots {
		buf = binary.BigEndian.AppendUint16(buf, r.From)
		buf = binary.BigEndian.AppendUint16(buf, r.To)
	}
	return buf
}

func (d *decoder) ranges() (slots []SlotRange) {
	if n := d.count(4); n > 0 {
		slots = make([]SlotRange, n)
		for i := range slots {
			slots[i] = SlotRange{From: d.uint16(), To: d.uint16()}
		}
	}
	return slots
}

// rangesFault says what is wrong with a list of ranges, or nothing.
func rangesFault(slots []SlotRange) string {
	next := 0
	for _, r := range slots {
		if int(r.From) < next || r.To < r.From || r.To >= Slots {
			return fmt.Sprintf("slot range %d-%d is out of order or out of bounds", r.From, r.To)
		}
		next = int(r.To) + 1
	}
	return ""
}
