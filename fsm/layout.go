package fsm

import (
	"encoding/binary"
	"fmt"

	"github.com/abacusdb/abacus/fsm/command"
	bolt "go.etcd.io/bbolt"
)

// The state file. Integers are big-endian, so that bytes sort as numbers.
//
//	keys     slot (2), key → kind (1), [deadline (8) if the kind has one], value
//	ttl      deadline (8), slot (2), key → nothing
//	slots    slot (2) → records (8), bytes (8); no row for an empty slot
//	records  name → revision (8), value
//	meta     "format" → 1; "state" → the header; "init" → command.Init
//
// A slot range is a run of "keys": tasks and scans over slots read neighbours.
const format = 1

var (
	bucketKeys    = []byte("keys")
	bucketTTL     = []byte("ttl")
	bucketSlots   = []byte("slots")
	bucketRecords = []byte("records")
	bucketMeta    = []byte("meta")

	buckets = [][]byte{bucketKeys, bucketTTL, bucketSlots, bucketRecords, bucketMeta}

	metaFormat = []byte("format")
	metaState  = []byte("state")
	metaInit   = []byte("init")
)

// The first byte of a stored value.
const (
	kindPlain   = 1 // the value follows
	kindExpires = 2 // 8 bytes of deadline, then the value
)

// entry is what is stored for a key. Its value lies in the transaction.
type entry struct {
	value    []byte
	deadline int64 // 0: none
	stored   bool  // there is a row, perhaps one that has ended
	visible  bool  // the key exists
}

// decodeEntry reads a stored value as the clock sees it.
func decodeEntry(v []byte, clock int64) entry {
	switch {
	case v == nil:
		return entry{}
	case len(v) >= 1 && v[0] == kindPlain:
		return entry{value: v[1:], stored: true, visible: true}
	case len(v) >= 9 && v[0] == kindExpires:
		deadline := int64(binary.BigEndian.Uint64(v[1:]))
		return entry{value: v[9:], deadline: deadline, stored: true, visible: deadline > clock}
	}
	panic(fmt.Sprintf("fsm: stored value of unknown kind, %d bytes", len(v)))
}

func appendKey(buf []byte, slot uint16, key []byte) []byte {
	return append(binary.BigEndian.AppendUint16(buf, slot), key...)
}

func splitKey(k []byte) (slot uint16, key []byte) {
	return binary.BigEndian.Uint16(k), k[2:]
}

// slotCount is how much is stored, ended but unpurged keys included: bytes are
// those of keys and values.
type slotCount struct{ records, bytes int64 }

const slotCountBytes = 16

func (c *slotCount) add(o slotCount) { c.records += o.records; c.bytes += o.bytes }

func (c slotCount) encode(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint64(buf, uint64(c.records))
	return binary.BigEndian.AppendUint64(buf, uint64(c.bytes))
}

func decodeSlotCount(v []byte) slotCount {
	return slotCount{int64(binary.BigEndian.Uint64(v)), int64(binary.BigEndian.Uint64(v[8:]))}
}

// header is what a state file says about itself.
type header struct {
	applied, term uint64
	clock         int64
	total         slotCount
	// revision is the last one given to a record. It never falls, so that a record
	// made anew does not look like the one that was deleted.
	revision int64
	init     *command.Init // kept apart, under "init"
}

const headerBytes = 6 * 8

func (h *header) encode(buf []byte) []byte {
	for _, v := range [...]uint64{h.applied, h.term, uint64(h.clock), uint64(h.total.records), uint64(h.total.bytes), uint64(h.revision)} {
		buf = binary.BigEndian.AppendUint64(buf, v)
	}
	return buf
}

func decodeHeader(v []byte) header {
	n := func(i int) uint64 { return binary.BigEndian.Uint64(v[i*8:]) }
	return header{
		applied: n(0), term: n(1), clock: int64(n(2)),
		total:    slotCount{int64(n(3)), int64(n(4))},
		revision: int64(n(5)),
	}
}

// readHeader checks the format of a file and reads its header.
func readHeader(tx *bolt.Tx, path string) (header, error) {
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return header{}, &CorruptError{Path: path, Reason: fmt.Sprintf("no bucket %q", name)}
		}
	}
	meta := tx.Bucket(bucketMeta)
	if v := meta.Get(metaFormat); len(v) != 1 || v[0] != format {
		var got byte
		if len(v) > 0 {
			got = v[0]
		}
		return header{}, &FormatError{Path: path, Got: got, Want: format}
	}
	v := meta.Get(metaState)
	if len(v) != headerBytes {
		return header{}, &CorruptError{Path: path, Reason: fmt.Sprintf("header of %d bytes", len(v))}
	}
	h := decodeHeader(v)
	if v := meta.Get(metaInit); v != nil {
		in, err := command.DecodeInit(v)
		if err != nil {
			return header{}, &CorruptError{Path: path, Reason: err.Error()}
		}
		h.init = &in
	}
	return h, nil
}

func decodeRecord(v []byte) (value []byte, revision int64) {
	return v[8:], int64(binary.BigEndian.Uint64(v))
}
