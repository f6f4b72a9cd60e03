package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// The bytes on the disk, as docs/wal.md shows them. Integers are big-endian.

// ErrDamaged: the log cannot be read as it was written. Which replica's part is not
// known, so all of them are concerned.
var ErrDamaged = errors.New("log is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	formatVersion = 1
	segmentMagic  = 0x4142414357414c31 // "ABACWAL1"
	// headerBytes is a page: the header is synced before the segment has its name, and
	// no later write touches its page.
	headerBytes = 4096
	headerUsed  = 52

	commitMagic = 0x434f4d54 // "COMT"
	commitBytes = 44
	// alignBytes is where commits begin: a multiple of it.
	alignBytes = 8
	// maxCommitBytes bounds what a length may promise, and maxAppendBytes what one append may take of
	// it: as much again is copied, and one entry more.
	maxCommitBytes = 1 << 30
	maxAppendBytes = maxCommitBytes / 4
)

// segmentHeader begins a segment.
type segmentHeader struct {
	wal  uint64 // which WAL it is of
	seq  uint64 // its number
	salt uint64 // of this life of the file: goes into each checksum, so that what an earlier life left is never valid
	size uint64 // of the file
}

func (h *segmentHeader) encode() []byte {
	b := make([]byte, headerBytes)
	binary.BigEndian.PutUint64(b, segmentMagic)
	binary.BigEndian.PutUint32(b[8:], formatVersion)
	binary.BigEndian.PutUint32(b[12:], headerBytes)
	binary.BigEndian.PutUint64(b[16:], h.wal)
	binary.BigEndian.PutUint64(b[24:], h.seq)
	binary.BigEndian.PutUint64(b[32:], h.salt)
	binary.BigEndian.PutUint64(b[40:], h.size)
	binary.BigEndian.PutUint32(b[48:], crc32.Checksum(b[:48], castagnoli))
	return b
}

func decodeSegmentHeader(b []byte) (h segmentHeader, err error) {
	if len(b) < headerUsed || binary.BigEndian.Uint64(b) != segmentMagic || binary.BigEndian.Uint32(b[48:]) != crc32.Checksum(b[:48], castagnoli) {
		return h, damaged("segment header")
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != formatVersion {
		return h, fmt.Errorf("segment has format %d, this program knows %d", v, formatVersion)
	}
	h = segmentHeader{wal: binary.BigEndian.Uint64(b[16:]), seq: binary.BigEndian.Uint64(b[24:]), salt: binary.BigEndian.Uint64(b[32:]), size: binary.BigEndian.Uint64(b[40:])}
	if binary.BigEndian.Uint32(b[12:]) != headerBytes || h.size < headerBytes || h.size > 1<<32-1 {
		return h, damaged("segment header: size %d", h.size)
	}
	return h, nil
}

// position is a place in the log: after the last byte of a commit.
type position struct{ seq, off uint64 }

// commitHeader begins a commit. The checksum covers the segment's salt, the place, the
// rest of the header and the records.
type commitHeader struct {
	length uint32   // of the records
	number uint64   // one more than the commit before
	synced position // where the commit before ended: it was synced before this one was written
}

// sealCommit fills in the header of a commit that has room for it, records behind it.
func sealCommit(b []byte, salt uint64, off int64, h commitHeader) {
	binary.BigEndian.PutUint32(b, commitMagic)
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)-commitBytes))
	binary.BigEndian.PutUint64(b[8:], h.number)
	binary.BigEndian.PutUint64(b[16:], h.synced.seq)
	binary.BigEndian.PutUint64(b[24:], h.synced.off)
	binary.BigEndian.PutUint64(b[32:], uint64(off))
	binary.BigEndian.PutUint32(b[40:], commitSum(b, salt))
}

func commitSum(b []byte, salt uint64) uint32 {
	var s [8]byte
	binary.BigEndian.PutUint64(s[:], salt)
	sum := crc32.Update(crc32.Checksum(s[:], castagnoli), castagnoli, b[:40])
	return crc32.Update(sum, castagnoli, b[commitBytes:])
}

// openCommit returns the commit at an offset of a segment's bytes, or false if there is
// no whole and valid one.
func openCommit(seg []byte, salt uint64, off int64) (h commitHeader, records []byte, ok bool) {
	if off+commitBytes > int64(len(seg)) {
		return h, nil, false
	}
	b := seg[off:]
	h.length = binary.BigEndian.Uint32(b[4:])
	if binary.BigEndian.Uint32(b) != commitMagic || h.length > maxCommitBytes || int64(h.length) > int64(len(b)-commitBytes) ||
		binary.BigEndian.Uint64(b[32:]) != uint64(off) {
		return h, nil, false
	}
	b = b[:commitBytes+int(h.length)]
	h.number = binary.BigEndian.Uint64(b[8:])
	h.synced = position{binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:])}
	return h, b[commitBytes:], binary.BigEndian.Uint32(b[40:]) == commitSum(b, salt)
}

func align(n int64) int64 { return (n + alignBytes - 1) &^ (alignBytes - 1) }

// The kinds of records.
const (
	recManifest = 1 + iota // of all logs: begins each segment
	recDefine              // a log's number and name
	recEntry               // a new entry, after the last one of its log
	recCopy                // an entry again, as it was: it changes where the entry lies and nothing else
	recFirst               // entries before an index are gone
	recTruncate            // entries from an index on are gone
	recClear               // all entries are gone: the next may have any index
	recDrop                // the log is gone
)

// entryHead is what precedes an entry's bytes: kind, log, index, term, type, time, two
// lengths, checksum.
const entryHead = 1 + 4 + 8 + 8 + 1 + 8 + 4 + 4 + 4

// appendEntry encodes an entry; its checksum is filled in by sealEntry, which knows
// the salt of the segment that it goes to.
func appendEntry(b []byte, kind byte, log uint32, e *raft.Log) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint32(b, log)
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.Term)
	b = append(b, byte(e.Type))
	var at int64
	if !e.AppendedAt.IsZero() {
		at = e.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Data)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Extensions)))
	b = append(b, 0, 0, 0, 0)
	b = append(b, e.Data...)
	return append(b, e.Extensions...)
}

func entrySize(e *raft.Log) int { return entryHead + len(e.Data) + len(e.Extensions) }

// entrySum does not cover the kind: a copy has the checksum of what it copies, but for the salt.
func entrySum(b []byte, salt uint64) uint32 {
	var s [8]byte
	binary.BigEndian.PutUint64(s[:], salt)
	sum := crc32.Update(crc32.Checksum(s[:], castagnoli), castagnoli, b[1:entryHead-4])
	return crc32.Update(sum, castagnoli, b[entryHead:])
}

func sealEntry(b []byte, salt uint64) {
	binary.BigEndian.PutUint32(b[entryHead-4:], entrySum(b, salt))
}

// openEntry reads an entry's record, of exactly these bytes. The entry aliases them.
func openEntry(b []byte, salt uint64) (log uint32, e raft.Log, err error) {
	n, err := entryLength(b)
	if err != nil || n != len(b) {
		return 0, e, damaged("entry of %d bytes", len(b))
	}
	if binary.BigEndian.Uint32(b[entryHead-4:]) != entrySum(b, salt) {
		return 0, e, damaged("the checksum of entry %d does not match", binary.BigEndian.Uint64(b[5:]))
	}
	data := int(binary.BigEndian.Uint32(b[30:]))
	e = raft.Log{Index: binary.BigEndian.Uint64(b[5:]), Term: binary.BigEndian.Uint64(b[13:]), Type: raft.LogType(b[21])}
	if at := int64(binary.BigEndian.Uint64(b[22:])); at != 0 {
		e.AppendedAt = time.Unix(0, at)
	}
	if data > 0 {
		e.Data = b[entryHead : entryHead+data : entryHead+data]
	}
	if len(b) > entryHead+data {
		e.Extensions = b[entryHead+data:]
	}
	return binary.BigEndian.Uint32(b[1:]), e, nil
}

// entryLength is how long the entry's record is that begins b.
func entryLength(b []byte) (int, error) {
	if len(b) < entryHead {
		return 0, damaged("entry cut short")
	}
	n := uint64(entryHead) + uint64(binary.BigEndian.Uint32(b[30:])) + uint64(binary.BigEndian.Uint32(b[34:]))
	if n > uint64(len(b)) {
		return 0, damaged("entry cut short")
	}
	return int(n), nil
}

func appendMark(b []byte, kind byte, log uint32, index uint64) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint32(b, log)
	return binary.BigEndian.AppendUint64(b, index)
}

const markBytes = 1 + 4 + 8

func appendDefine(b []byte, log uint32, name Name) []byte {
	b = append(b, recDefine)
	b = binary.BigEndian.AppendUint32(b, log)
	return appendName(b, name)
}

func appendName(b []byte, name Name) []byte {
	b = binary.BigEndian.AppendUint32(b, name.Shard)
	b = binary.BigEndian.AppendUint16(b, uint16(len(name.Replica)))
	return append(b, name.Replica...)
}

// manifestLog is a log as the manifest of a segment has it.
type manifestLog struct {
	id          uint32
	name        Name
	first, last uint64 // 0 and 0: empty
}

func appendManifest(b []byte, logs []manifestLog) []byte {
	b = append(b, recManifest)
	b = binary.BigEndian.AppendUint32(b, uint32(len(logs)))
	for _, l := range logs {
		b = binary.BigEndian.AppendUint32(b, l.id)
		b = appendName(b, l.name)
		b = binary.BigEndian.AppendUint64(b, l.first)
		b = binary.BigEndian.AppendUint64(b, l.last)
	}
	return b
}

// reader takes records apart. After the first fault it yields zeros.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if r.failed || n > len(r.b) {
		r.failed = true
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) name() Name {
	shard := r.u32()
	n := r.take(2)
	if n == nil {
		return Name{}
	}
	return Name{Shard: shard, Replica: string(r.take(int(binary.BigEndian.Uint16(n))))}
}
