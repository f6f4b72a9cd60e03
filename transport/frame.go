package transport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// The bytes on the wire, all integers big-endian.
//
//	hello   "ABPT" version kind lane 0 · clock(8) incarnation(8) sequence(8) · cluster from to (each length(1) bytes) · crc32c(4)
//	answer  "ABPA" version verdict code(2) · detail (length(2) bytes) · crc32c(4)
//	frame   length(4) type flags number(2) id(8) sent(8) deadline(8) · crc32c of the payload(4) · crc32c of the header before it(4) · payload
//
// clock, sent and deadline are microseconds on the sender's own clock; see
// clock.go. number is the method of a request or the code of an error. The
// header has a checksum of its own, so that a length is only believed, and
// nothing allocated, when the header is whole.
const (
	helloMagic  = "ABPT"
	answerMagic = "ABPA"
	version     = 1
	headerSize  = 40
	maxIDBytes  = 255
	maxDetail   = 4096
	growBytes   = 256 << 10 // a body over this is allocated as its bytes arrive
)

// The types of frames.
const (
	frameRequest = 1 + iota
	frameAnswer
	frameError
	frameCancel // the caller of request id gave up
	framePing
	framePong
	frameVoid   // a request taken back before it was sent
	frameStream // id is the size of the body
	frameChunk
	frameTypes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errMagic    = errors.New("not a peer port (7501 by default): it does not speak the peer protocol")
	errChecksum = errors.New("checksum mismatch")
	errFrame    = errors.New("malformed frame")
)

// kind says what a connection is for.
type kind uint8

const (
	kindLane   kind = 1 + iota // requests of one lane
	kindCall                   // one request of a caller that knows only an address
	kindStream                 // one stream
)

// hello opens every connection.
type hello struct {
	kind        kind
	lane        Lane
	clock       int64
	incarnation uint64 // of the sending process
	sequence    uint64 // of the link: a higher one replaces a lower one
	cluster     string
	from        string
	to          string // "" is whoever listens
}

const helloFixed = 32

// IsHello says whether bytes are the beginning of a peer's hello, so that other
// ports may tell a node at once that it mistook them.
func IsHello(b []byte) bool { return len(b) >= 4 && string(b[:4]) == helloMagic }

func (h *hello) appendTo(b []byte) []byte {
	start := len(b)
	b = append(b, helloMagic...)
	b = append(b, version, byte(h.kind), byte(h.lane), 0)
	b = binary.BigEndian.AppendUint64(b, uint64(h.clock))
	b = binary.BigEndian.AppendUint64(b, h.incarnation)
	b = binary.BigEndian.AppendUint64(b, h.sequence)
	for _, s := range []string{h.cluster, h.from, h.to} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// readHello reads at most 804 bytes, and only four from a stranger.
func readHello(r io.Reader) (hello, error) {
	var fixed [helloFixed]byte
	if _, err := io.ReadFull(r, fixed[:4]); err != nil {
		return hello{}, err
	}
	if string(fixed[:4]) != helloMagic {
		return hello{}, errMagic
	}
	if _, err := io.ReadFull(r, fixed[4:]); err != nil {
		return hello{}, err
	}
	if fixed[4] != version {
		return hello{}, Errorf(CodeRefused, "peer protocol version %d, this node speaks %d", fixed[4], version)
	}
	h := hello{
		kind:        kind(fixed[5]),
		lane:        Lane(fixed[6]),
		clock:       int64(binary.BigEndian.Uint64(fixed[8:])),
		incarnation: binary.BigEndian.Uint64(fixed[16:]),
		sequence:    binary.BigEndian.Uint64(fixed[24:]),
	}
	sum := crc32.Checksum(fixed[:], castagnoli)
	var buf [maxIDBytes]byte
	for _, s := range []*string{&h.cluster, &h.from, &h.to} {
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return hello{}, err
		}
		sum = crc32.Update(sum, castagnoli, buf[:1])
		part := buf[:buf[0]]
		if _, err := io.ReadFull(r, part); err != nil {
			return hello{}, err
		}
		sum = crc32.Update(sum, castagnoli, part)
		*s = string(part)
	}
	if _, err := io.ReadFull(r, buf[:4]); err != nil {
		return hello{}, err
	}
	if binary.BigEndian.Uint32(buf[:4]) != sum {
		return hello{}, errChecksum
	}
	if h.kind < kindLane || h.kind > kindStream || h.lane >= Lanes {
		return hello{}, errFrame
	}
	return h, nil
}

// appendAnswer answers a hello: nil accepts.
func appendAnswer(b []byte, refusal *Error) []byte {
	start := len(b)
	b = append(b, answerMagic...)
	if refusal == nil {
		b = append(b, version, 1, 0, 0, 0, 0)
	} else {
		detail := refusal.Detail[:min(len(refusal.Detail), maxDetail)]
		b = append(b, version, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(refusal.Code))
		b = binary.BigEndian.AppendUint16(b, uint16(len(detail)))
		b = append(b, detail...)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// readAnswer returns the peer's refusal, or nil.
func readAnswer(r io.Reader) (refusal *Error, err error) {
	var fixed [10]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return nil, err
	}
	if string(fixed[:4]) != answerMagic {
		return nil, errMagic
	}
	n := int(binary.BigEndian.Uint16(fixed[8:]))
	if n > maxDetail {
		return nil, errFrame
	}
	rest := make([]byte, n+4)
	if _, err := io.ReadFull(r, rest); err != nil {
		return nil, err
	}
	sum := crc32.Update(crc32.Checksum(fixed[:], castagnoli), castagnoli, rest[:n])
	if binary.BigEndian.Uint32(rest[n:]) != sum {
		return nil, errChecksum
	}
	if fixed[5] == 1 {
		return nil, nil
	}
	return &Error{Code: Code(binary.BigEndian.Uint16(fixed[6:])), Detail: string(rest[:n])}, nil
}

// header is the fixed part of a frame.
type header struct {
	length   uint32
	typ      byte
	number   uint16
	id       uint64
	sent     int64
	deadline int64
	sum      uint32 // of the payload
}

// describe fills in the length and the checksum of a payload.
func (h *header) describe(payload []byte) {
	h.length = uint32(len(payload))
	h.sum = crc32.Checksum(payload, castagnoli)
}

// check compares a payload that was read with the header.
func (h *header) check(payload []byte) error {
	if crc32.Checksum(payload, castagnoli) != h.sum {
		return errChecksum
	}
	return nil
}

// appendFrame appends a frame whose header describes payload.
func appendFrame(b []byte, h *header, payload []byte) []byte {
	b = slices.Grow(b, headerSize+len(payload))
	n := len(b)
	b = b[:n+headerSize]
	h.put(b[n:])
	return append(b, payload...)
}

func (h *header) put(b []byte) {
	_ = b[headerSize-1]
	binary.BigEndian.PutUint32(b[0:], h.length)
	b[4], b[5] = h.typ, 0
	binary.BigEndian.PutUint16(b[6:], h.number)
	binary.BigEndian.PutUint64(b[8:], h.id)
	binary.BigEndian.PutUint64(b[16:], uint64(h.sent))
	binary.BigEndian.PutUint64(b[24:], uint64(h.deadline))
	binary.BigEndian.PutUint32(b[32:], h.sum)
	binary.BigEndian.PutUint32(b[36:], crc32.Checksum(b[:36], castagnoli))
}

// parseHeader checks a header; limit bounds the length.
func parseHeader(b []byte, limit int) (header, error) {
	_ = b[headerSize-1]
	if binary.BigEndian.Uint32(b[36:]) != crc32.Checksum(b[:36], castagnoli) {
		return header{}, errChecksum
	}
	h := header{
		length:   binary.BigEndian.Uint32(b[0:]),
		typ:      b[4],
		number:   binary.BigEndian.Uint16(b[6:]),
		id:       binary.BigEndian.Uint64(b[8:]),
		sent:     int64(binary.BigEndian.Uint64(b[16:])),
		deadline: int64(binary.BigEndian.Uint64(b[24:])),
		sum:      binary.BigEndian.Uint32(b[32:]),
	}
	if h.typ == 0 || h.typ >= frameTypes || b[5] != 0 {
		return header{}, fmt.Errorf("%w: type %d flags %d", errFrame, h.typ, b[5])
	}
	if int64(h.length) > int64(limit) {
		return header{}, fmt.Errorf("%w: %d bytes, limit %d", errFrame, h.length, limit)
	}
	return h, nil
}

func readHeader(r *bufio.Reader, limit int) (header, error) {
	b, err := r.Peek(headerSize)
	if err != nil {
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return header{}, err
	}
	h, err := parseHeader(b, limit)
	if err != nil {
		return header{}, err
	}
	_, err = r.Discard(headerSize)
	return h, err
}

// readPayload returns a body that the caller may keep. A long one grows with
// the bytes that really arrive: a declared length alone costs nothing.
func readPayload(r io.Reader, h header) ([]byte, error) {
	if h.length == 0 {
		return nil, nil
	}
	total := int(h.length)
	b := make([]byte, min(total, growBytes))
	for have := 0; ; {
		n, err := io.ReadFull(r, b[have:])
		have += n
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if have == total {
			break
		}
		b = append(b, make([]byte, min(total-have, have))...)
	}
	if err := h.check(b); err != nil {
		return nil, err
	}
	return b, nil
}
