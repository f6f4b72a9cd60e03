package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/fsm/crc32c"
	bolt "go.etcd.io/bbolt"
)

// The state file. Integers are big-endian, so that bytes sort as numbers.
//
//	keys      slot (2), key → crc (4), kind (1), changed (8), [deadline (8) if the kind has one], value
//	ttl       deadline (8), slot (2), key → nothing
//	records   name → crc (4), revision (8), value
//	slots     slot (2) → records (8), bytes (8), removed (8)
//	sessions  id (8) → crc (4), a session: see session.encode
//	meta      "format" → 2; "state" → the header; "init" → command.Init; "gone" → floors of sessions;
//	          "own" → crc (4), slots that change hands: see ownership.encode
//
// A slot range is a run of "keys": tasks and scans over slots read neighbours.
// changed is the log index of the entry that set the key, removed that of the
// last one that took a key out of the slot. A crc is CRC-32C of the row's key and of what
// follows it, so that a page which came to the wrong place shows too.
const format = 2

// The trees that are kept in layers, by number.
const (
	inKeys = iota
	inTTL
	inRecords
	treeCount
)

var (
	bucketKeys     = []byte("keys")
	bucketTTL      = []byte("ttl")
	bucketRecords  = []byte("records")
	bucketSlots    = []byte("slots")
	bucketSessions = []byte("sessions")
	bucketMeta     = []byte("meta")

	treeBuckets = [treeCount][]byte{inKeys: bucketKeys, inTTL: bucketTTL, inRecords: bucketRecords}
	buckets     = [][]byte{bucketKeys, bucketTTL, bucketRecords, bucketSlots, bucketSessions, bucketMeta}

	metaFormat = []byte("format")
	metaState  = []byte("state")
	metaInit   = []byte("init")
	metaGone   = []byte("gone")
	metaSum    = []byte("sum")
	metaOwn    = []byte("own")
)

// The kind of a stored value.
const (
	kindPlain   = 1 // the value follows
	kindExpires = 2 // 8 bytes of deadline, then the value
)

// row is what a layer holds for a key of one of the trees.
type row struct {
	// value is not changed once it is in a layer, so it may be handed out. In the
	// file's layer it lies in the file, and lives as long as the transaction.
	value    []byte
	deadline int64 // of a key; 0: none
	// changed is the index of the entry that set a key; a record's revision.
	changed uint64
	// dead hides what lies below: the key is not there.
	dead bool
	// below says that a layer below may hold the key, so that taking it out of this
	// one must leave a dead row.
	below bool
	// mapped says that value lies in the file.
	mapped bool
}

// entry is a key as the clock sees it.
type entry struct {
	row
	stored  bool // there is a row, perhaps one that has ended
	visible bool // the key exists
}

func seen(r row, stored bool, clock int64) entry {
	return entry{row: r, stored: stored, visible: stored && (r.deadline == 0 || r.deadline > clock)}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is that of a row: its key and what follows the checksum in its value.
func checksum(key, rest []byte) uint32 {
	return crc32c.Checksum(key, rest)
}

// encodeRow appends the row as it is stored in a tree's bucket.
func encodeRow(buf []byte, tree int, key []byte, r row) []byte {
	if tree == inTTL {
		return buf
	}
	start := len(buf)
	buf = append(buf, 0, 0, 0, 0)
	switch {
	case tree == inRecords:
		buf = binary.BigEndian.AppendUint64(buf, r.changed)
	case r.deadline == 0:
		buf = append(buf, kindPlain)
		buf = binary.BigEndian.AppendUint64(buf, r.changed)
	default:
		buf = append(buf, kindExpires)
		buf = binary.BigEndian.AppendUint64(buf, r.changed)
		buf = binary.BigEndian.AppendUint64(buf, uint64(r.deadline))
	}
	buf = append(buf, r.value...)
	binary.BigEndian.PutUint32(buf[start:], checksum(key, buf[start+4:]))
	return buf
}

// encodedSize is the length of what encodeRow appends.
func encodedSize(tree int, r row) int {
	switch {
	case tree == inTTL:
		return 0
	case tree == inRecords:
		return 4 + 8 + len(r.value)
	case r.deadline == 0:
		return 4 + 1 + 8 + len(r.value)
	}
	return 4 + 1 + 8 + 8 + len(r.value)
}

// decode reads a stored row and checks it; the value lies in v. In place: a scan reads millions.
func (r *row) decode(tree int, key, v []byte) error {
	*r = row{below: true, mapped: true}
	if tree == inTTL {
		if len(v) != 0 {
			return fmt.Errorf("deadline %x has a value", key)
		}
		return nil
	}
	if len(v) < 4+8 || binary.BigEndian.Uint32(v) != checksum(key, v[4:]) {
		return fmt.Errorf("the checksum of key %x does not match", key)
	}
	v = v[4:]
	if tree == inRecords {
		r.changed, r.value = binary.BigEndian.Uint64(v), v[8:]
		return nil
	}
	switch kind := v[0]; {
	case kind == kindPlain && len(v) >= 9:
		r.changed, r.value = binary.BigEndian.Uint64(v[1:]), v[9:]
	case kind == kindExpires && len(v) >= 17:
		r.changed, r.deadline, r.value = binary.BigEndian.Uint64(v[1:]), int64(binary.BigEndian.Uint64(v[9:])), v[17:]
	default:
		return fmt.Errorf("key %x has a value of unknown kind %d, %d bytes", key, kind, len(v))
	}
	return nil
}

func appendKey(buf []byte, slot uint16, key []byte) []byte {
	return append(binary.BigEndian.AppendUint16(buf, slot), key...)
}

func splitKey(k []byte) (slot uint16, key []byte) {
	return binary.BigEndian.Uint16(k), k[2:]
}

// header is what a state file says about itself.
type header struct {
	applied, term uint64
	clock         int64
	total         slotCount // removed is not used
	// revision is the last one given to a record. It never falls, so that a record
	// made anew does not look like the one that was deleted.
	revision int64
	// opened is how many sessions this shard has made, used how often any was used.
	opened, used uint64
	init         *command.Init // kept apart, under "init", as is
	own          []byte        // under "own"; nil if slots never changed hands
}

const headerBytes = 8 * 8

func (h *header) encode(buf []byte) []byte {
	for _, v := range [...]uint64{h.applied, h.term, uint64(h.clock), uint64(h.total.records), uint64(h.total.bytes), uint64(h.revision), h.opened, h.used} {
		buf = binary.BigEndian.AppendUint64(buf, v)
	}
	return buf
}

func decodeHeader(v []byte) header {
	n := func(i int) uint64 { return binary.BigEndian.Uint64(v[i*8:]) }
	return header{
		applied: n(0), term: n(1), clock: int64(n(2)),
		total:    slotCount{records: int64(n(3)), bytes: int64(n(4))},
		revision: int64(n(5)), opened: n(6), used: n(7),
	}
}

// headerSum is the checksum of a file's format and header, and the transaction that wrote both: v0.4 writes no checksum, and leaves an older one
// where it is.
func headerSum(tx *bolt.Tx, head []byte) []byte {
	v := binary.BigEndian.AppendUint32(nil, checksum([]byte{format}, head))
	return binary.BigEndian.AppendUint64(v, uint64(tx.ID()))
}

// readHeader checks the format of a file and reads its header.
func readHeader(tx *bolt.Tx, path string) (header, error) {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return header{}, &CorruptError{Path: path, Reason: `no bucket "meta"`}
	}
	want := headerSum(tx, meta.Get(metaState))
	sum := meta.Get(metaSum)
	summed := len(sum) == len(want) && bytes.Equal(sum[4:], want[4:])
	sound := bytes.Equal(sum, want)
	if v := meta.Get(metaFormat); len(v) != 1 || v[0] != format {
		if sound { // it was ours when it was written
			return header{}, &CorruptError{Path: path, Reason: fmt.Sprintf("format %v, and the checksum is of format %d", v, format)}
		}
		var got byte
		if len(v) > 0 {
			got = v[0]
		}
		return header{}, &FormatError{Path: path, Got: got, Want: format}
	}
	if summed && !sound {
		return header{}, &CorruptError{Path: path, Reason: "the checksum of the header does not match"}
	}
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return header{}, &CorruptError{Path: path, Reason: fmt.Sprintf("no bucket %q", name)}
		}
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
	if v := meta.Get(metaOwn); v != nil {
		if len(v) < 5 || binary.BigEndian.Uint32(v) != checksum(metaOwn, v[4:]) {
			return header{}, &CorruptError{Path: path, Reason: "the checksum of the slots that change hands does not match"}
		}
		h.own = clone(v[4:])
	}
	return h, nil
}

// appendChecked appends a value after its checksum, which is also that of its name.
func appendChecked(buf, name, v []byte) []byte {
	buf = binary.BigEndian.AppendUint32(buf, checksum(name, v))
	return append(buf, v...)
}
