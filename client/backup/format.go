package backup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The bytes of a backup; docs/backup.md says the same for who writes another reader. Integers are big-endian.
//
//	head     "ABACUSBK" (8), format (2), kind (1), 0 (1), crc (4)
//	block    type (1), 0 (3), shard (4), attempt (4), number (4), records (4), length (4), crc (4), length bytes
//	trailer  offset of the manifest's block (8), crc (4), "ABACUSND" (8)
//
// A crc is CRC-32C of the bytes of the head, block or trailer without the crc itself; a block's is also of the bytes that follow its header.
const (
	// Format is the version that is written, and the highest that is read.
	Format = 1

	magicHead    = "ABACUSBK"
	magicTrailer = "ABACUSND"

	headBytes    = 16
	blockBytes   = 28
	trailerBytes = 20

	// maxBlock bounds the bytes of one block: a node sends some hundred KiB, or one record that is larger.
	maxBlock = 16 << 20
)

// The kind of a file.
const (
	kindArchive = 1 // all shards, the manifest, a trailer
	kindShard   = 2 // one shard, and an end
)

// The type of a block.
const (
	blockRecords  = 1
	blockManifest = 2 // the manifest, JSON, in an archive
	blockEnd      = 3 // of a shard's file; nothing follows
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendHead(buf []byte, kind byte) []byte {
	start := len(buf)
	buf = append(buf, magicHead...)
	buf = binary.BigEndian.AppendUint16(buf, Format)
	buf = append(buf, kind, 0)
	return binary.BigEndian.AppendUint32(buf, crc32.Checksum(buf[start:], castagnoli))
}

// header is what stands before the bytes of a block.
type header struct {
	kind byte // type
	// shard, attempt and number say which shard's, read in which attempt, and the how manieth of that, from 0.
	shard, attempt, number uint32
	records, length        uint32
}

func appendBlock(buf []byte, h header, payload []byte) []byte {
	start := len(buf)
	buf = append(buf, h.kind, 0, 0, 0)
	for _, n := range [...]uint32{h.shard, h.attempt, h.number, h.records, uint32(len(payload))} {
		buf = binary.BigEndian.AppendUint32(buf, n)
	}
	sum := crc32.Update(crc32.Checksum(buf[start:], castagnoli), castagnoli, payload)
	return append(binary.BigEndian.AppendUint32(buf, sum), payload...)
}

func appendTrailer(buf []byte, manifest int64) []byte {
	at := binary.BigEndian.AppendUint64(nil, uint64(manifest))
	sum := crc32.Update(crc32.Checksum(at, castagnoli), castagnoli, []byte(magicTrailer))
	buf = append(buf, at...)
	buf = binary.BigEndian.AppendUint32(buf, sum)
	return append(buf, magicTrailer...)
}

// parseTrailer returns the offset of the manifest's block.
func parseTrailer(path string, b []byte) (int64, error) {
	if len(b) != trailerBytes || string(b[12:]) != magicTrailer {
		return 0, fmt.Errorf("%s: %w", path, ErrTruncated)
	}
	if crc32.Update(crc32.Checksum(b[:8], castagnoli), castagnoli, b[12:]) != binary.BigEndian.Uint32(b[8:]) {
		return 0, &DamageError{path, -1, "the checksum of its trailer does not match"}
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}

// blockReader reads the head of a file and then its blocks.
type blockReader struct {
	path string
	r    io.Reader
	at   int64 // bytes read
	buf  []byte
}

// head reads and checks the head.
func (b *blockReader) head(kind byte) error {
	var h [headBytes]byte
	n, err := io.ReadFull(b.r, h[:])
	switch {
	case err != nil && !ended(err):
		return fmt.Errorf("read %s: %w", b.path, err)
	case n < len(magicHead) || !bytes.HasPrefix(h[:n], []byte(magicHead)):
		return fmt.Errorf("%s: %w", b.path, ErrNotBackup)
	case n < headBytes:
		return fmt.Errorf("%s: %w", b.path, ErrTruncated)
	case crc32.Checksum(h[:12], castagnoli) != binary.BigEndian.Uint32(h[12:]):
		return &DamageError{b.path, 0, "the checksum of its head does not match"}
	}
	b.at = headBytes
	if got := int(binary.BigEndian.Uint16(h[8:])); got != Format {
		return &VersionError{b.path, got, Format}
	}
	if h[10] != kind {
		return &DamageError{b.path, 0, fmt.Sprintf("a file of kind %d, it should be %d", h[10], kind)}
	}
	return nil
}

// next reads a block. The bytes are good until the next call. The file's end is ErrTruncated: something always has to
// follow a block, until one says that it is the last.
func (b *blockReader) next() (h header, payload []byte, at int64, err error) {
	at = b.at
	var raw [blockBytes]byte
	if err := b.full(raw[:]); err != nil {
		return h, nil, at, err
	}
	n := func(i int) uint32 { return binary.BigEndian.Uint32(raw[4+4*i:]) }
	h = header{kind: raw[0], shard: n(0), attempt: n(1), number: n(2), records: n(3), length: n(4)}
	if h.length > maxBlock {
		return h, nil, at, &DamageError{b.path, at, fmt.Sprintf("a block of %d bytes", h.length)}
	}
	if cap(b.buf) < int(h.length) {
		b.buf = make([]byte, h.length)
	}
	payload = b.buf[:h.length]
	if err := b.full(payload); err != nil {
		return h, nil, at, err
	}
	if crc32.Update(crc32.Checksum(raw[:24], castagnoli), castagnoli, payload) != n(5) {
		return h, nil, at, &DamageError{b.path, at, "the checksum of a block does not match"}
	}
	return h, payload, at, nil
}

func (b *blockReader) full(p []byte) error {
	n, err := io.ReadFull(b.r, p)
	b.at += int64(n)
	switch {
	case ended(err):
		return fmt.Errorf("%s: %w", b.path, ErrTruncated)
	case err != nil:
		return fmt.Errorf("read %s: %w", b.path, err)
	}
	return nil
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
