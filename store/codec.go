package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/raft"
)

// The frames between replicas: a version byte, then fixed-width big-endian
// integers and length-prefixed bytes. What a length promises is checked against
// what is left before anything is allocated.
const wireVersion = 2

// entryOverhead is what an entry takes on the wire beside its data.
const entryOverhead = 8 + 8 + 1 + 8 + 4 + 4

var errWire = errors.New("malformed raft frame")

// address names the replica that a frame is for.
type address struct {
	shard   uint32
	replica raft.ServerID
}

// encoder appends to buf; sizes are checked by whoever fills it.
type encoder struct{ buf []byte }

func (e *encoder) u8(v uint8)   { e.buf = append(e.buf, v) }
func (e *encoder) u32(v uint32) { e.buf = binary.BigEndian.AppendUint32(e.buf, v) }
func (e *encoder) u64(v uint64) { e.buf = binary.BigEndian.AppendUint64(e.buf, v) }
func (e *encoder) bytes(b []byte) {
	if len(b) > math.MaxUint32 {
		panic("store: bytes too long for a raft frame")
	}
	e.u32(uint32(len(b)))
	e.buf = append(e.buf, b...)
}

func (e *encoder) flags(bits ...bool) {
	var f uint8
	for i, b := range bits {
		if b {
			f |= 1 << i
		}
	}
	e.u8(f)
}

// decoder reads what encoder wrote. After the first fault it yields zeros; end reports it.
type decoder struct {
	buf []byte
	err error
}

func (d *decoder) take(n int) []byte {
	if d.err != nil || n > len(d.buf) {
		d.err = errWire
		return nil
	}
	b := d.buf[:n:n]
	d.buf = d.buf[n:]
	return b
}

func (d *decoder) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// bytes aliases the input; empty is nil, as raft writes it.
func (d *decoder) bytes() []byte {
	n := d.u32()
	if uint64(n) > uint64(len(d.buf)) {
		d.err = errWire
		return nil
	}
	if n == 0 {
		return nil
	}
	return d.take(int(n))
}

// flags refuses bits that this version does not know.
func (d *decoder) flags(known int) (bits [8]bool) {
	f := d.u8()
	if f>>known != 0 {
		d.err = errWire
	}
	for i := range bits {
		bits[i] = f&(1<<i) != 0
	}
	return bits
}

func (d *decoder) version() {
	if v := d.u8(); d.err == nil && v != wireVersion {
		d.err = fmt.Errorf("raft frame of version %d, this program knows %d", v, wireVersion)
	}
}

func (d *decoder) end() error {
	if d.err == nil && len(d.buf) != 0 {
		d.err = errWire
	}
	return d.err
}

// begin writes the version, the address and the sender's header.
func begin(to address, h raft.RPCHeader, capacity int) *encoder {
	e := &encoder{buf: make([]byte, 0, capacity+64+len(to.replica)+len(h.ID)+len(h.Addr))}
	e.u8(wireVersion)
	e.u32(to.shard)
	e.bytes([]byte(to.replica))
	e.u8(uint8(h.ProtocolVersion))
	e.bytes(h.ID)
	e.bytes(h.Addr)
	return e
}

// open reads what begin wrote and leaves the rest in the decoder.
func open(frame []byte) (*decoder, address, raft.RPCHeader) {
	d := &decoder{buf: frame}
	d.version()
	to := address{shard: d.u32(), replica: raft.ServerID(d.bytes())}
	h := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(d.u8()), ID: d.bytes(), Addr: d.bytes()}
	return d, to, h
}

// isHeartbeat is what raft's own network transport asks: nothing but a term and a leader.
func isHeartbeat(r *raft.AppendEntriesRequest) bool {
	return r.Term != 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && len(r.Entries) == 0 && r.LeaderCommitIndex == 0
}

func encodeAppend(to address, r *raft.AppendEntriesRequest) []byte {
	size := 4*8 + 4
	for _, l := range r.Entries {
		size += entrySize(l)
	}
	e := begin(to, r.RPCHeader, size)
	e.u64(r.Term)
	e.u64(r.PrevLogEntry)
	e.u64(r.PrevLogTerm)
	e.u64(r.LeaderCommitIndex)
	e.u32(uint32(len(r.Entries)))
	for _, l := range r.Entries {
		e.u64(l.Index)
		e.u64(l.Term)
		e.u8(uint8(l.Type))
		var at int64
		if !l.AppendedAt.IsZero() {
			at = l.AppendedAt.UnixNano()
		}
		e.u64(uint64(at))
		e.bytes(l.Data)
		e.bytes(l.Extensions)
	}
	return e.buf
}

func entrySize(l *raft.Log) int { return entryOverhead + len(l.Data) + len(l.Extensions) }

func decodeAppend(d *decoder, h raft.RPCHeader) (*raft.AppendEntriesRequest, error) {
	r := &raft.AppendEntriesRequest{RPCHeader: h, Term: d.u64(), PrevLogEntry: d.u64(), PrevLogTerm: d.u64(), LeaderCommitIndex: d.u64()}
	n := d.u32()
	if uint64(n)*entryOverhead > uint64(len(d.buf)) {
		return nil, errWire
	}
	if n > 0 {
		logs := make([]raft.Log, n)
		r.Entries = make([]*raft.Log, n)
		for i := range logs {
			l := &logs[i]
			l.Index, l.Term, l.Type = d.u64(), d.u64(), raft.LogType(d.u8())
			if at := int64(d.u64()); at != 0 {
				l.AppendedAt = time.Unix(0, at)
			}
			l.Data, l.Extensions = d.bytes(), d.bytes()
			r.Entries[i] = l
			// raft trusts the entries to be a run of known types: another type, or a
			// configuration that is none, would panic each replica that sees it.
			switch {
			case d.err != nil:
			case l.Index != r.PrevLogEntry+1+uint64(i):
				d.err = errWire
			case l.Type == raft.LogConfiguration:
				d.err = checkConfiguration(l.Data)
			case l.Type != raft.LogCommand && l.Type != raft.LogNoop:
				d.err = errWire
			}
		}
	}
	return r, d.end()
}

func encodeAppendResponse(r *raft.AppendEntriesResponse, rep report) []byte {
	e := &encoder{buf: make([]byte, 0, 34)}
	e.u8(wireVersion)
	e.flags(r.Success, r.NoRetryBackoff, rep.full)
	e.u64(r.Term)
	e.u64(r.LastLog)
	e.u64(uint64(rep.overlay))
	e.u64(rep.commit)
	return e.buf
}

func decodeAppendResponse(frame []byte, r *raft.AppendEntriesResponse) (rep report, err error) {
	d := &decoder{buf: frame}
	d.version()
	f := d.flags(3)
	// Whole, not field by field: raft's heartbeat loop hands in one response over and over.
	*r = raft.AppendEntriesResponse{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax},
		Success:   f[0], NoRetryBackoff: f[1], Term: d.u64(), LastLog: d.u64(),
	}
	rep = report{overlay: int64(d.u64()), full: f[2], commit: d.u64()}
	if rep.overlay < 0 {
		d.err = errWire
	}
	return rep, d.end()
}

func encodeVote(to address, r *raft.RequestVoteRequest) []byte {
	e := begin(to, r.RPCHeader, 25)
	e.flags(r.LeadershipTransfer)
	e.u64(r.Term)
	e.u64(r.LastLogIndex)
	e.u64(r.LastLogTerm)
	return e.buf
}

func decodeVote(d *decoder, h raft.RPCHeader) (*raft.RequestVoteRequest, error) {
	f := d.flags(1)
	r := &raft.RequestVoteRequest{RPCHeader: h, LeadershipTransfer: f[0], Term: d.u64(), LastLogIndex: d.u64(), LastLogTerm: d.u64()}
	return r, d.end()
}

func encodePreVote(to address, r *raft.RequestPreVoteRequest) []byte {
	e := begin(to, r.RPCHeader, 24)
	e.u64(r.Term)
	e.u64(r.LastLogIndex)
	e.u64(r.LastLogTerm)
	return e.buf
}

func decodePreVote(d *decoder, h raft.RPCHeader) (*raft.RequestPreVoteRequest, error) {
	r := &raft.RequestPreVoteRequest{RPCHeader: h, Term: d.u64(), LastLogIndex: d.u64(), LastLogTerm: d.u64()}
	return r, d.end()
}

// encodeGrant answers a vote or a pre-vote.
func encodeGrant(term uint64, granted bool) []byte {
	e := &encoder{buf: make([]byte, 0, 10)}
	e.u8(wireVersion)
	e.flags(granted)
	e.u64(term)
	return e.buf
}

func decodeGrant(frame []byte) (term uint64, granted bool, err error) {
	d := &decoder{buf: frame}
	d.version()
	f := d.flags(1)
	term = d.u64()
	return term, f[0], d.end()
}

func encodeTimeoutNow(to address, r *raft.TimeoutNowRequest) []byte {
	return begin(to, r.RPCHeader, 0).buf
}

func encodeInstall(to address, r *raft.InstallSnapshotRequest) []byte {
	e := begin(to, r.RPCHeader, 64+len(r.Configuration))
	e.u8(uint8(r.SnapshotVersion))
	e.u64(r.Term)
	e.u64(r.LastLogIndex)
	e.u64(r.LastLogTerm)
	e.u64(r.ConfigurationIndex)
	e.bytes(r.Configuration)
	e.u64(uint64(r.Size))
	return e.buf
}

func decodeInstall(d *decoder, h raft.RPCHeader) (*raft.InstallSnapshotRequest, error) {
	r := &raft.InstallSnapshotRequest{
		RPCHeader: h, Leader: h.Addr, SnapshotVersion: raft.SnapshotVersion(d.u8()), Term: d.u64(), LastLogIndex: d.u64(),
		LastLogTerm: d.u64(), ConfigurationIndex: d.u64(), Configuration: d.bytes(), Size: int64(d.u64()),
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	if r.Size < 0 || r.LastLogIndex == 0 {
		return nil, errWire
	}
	return r, checkConfiguration(r.Configuration)
}

// checkConfiguration keeps bytes that raft would panic on away from it.
func checkConfiguration(b []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed raft configuration: %v", p)
		}
	}()
	raft.DecodeConfiguration(b)
	return nil
}

func encodeInstallResponse(r *raft.InstallSnapshotResponse) []byte {
	return encodeGrant(r.Term, r.Success)
}

func decodeInstallResponse(frame []byte, r *raft.InstallSnapshotResponse) (err error) {
	r.Term, r.Success, err = decodeGrant(frame)
	return err
}

// maxConfirms bounds the replicas that one message asks: with the longest ids it
// still fits a control frame.
const maxConfirms = 1024

// maxReplicaID bounds a replica's id in such a message.
const maxReplicaID = 512

// encodeConfirm asks for the terms of replicas on the receiver's node.
func encodeConfirm(id uint64, to []address) []byte {
	e := &encoder{buf: make([]byte, 0, 16+24*len(to))}
	e.u8(wireVersion)
	e.u64(id)
	e.u32(uint32(len(to)))
	for _, a := range to {
		e.u32(a.shard)
		e.bytes([]byte(a.replica))
	}
	return e.buf
}

func decodeConfirm(frame []byte) (id uint64, to []address, err error) {
	d := &decoder{buf: frame}
	d.version()
	id = d.u64()
	n := d.u32()
	if n > maxConfirms || uint64(n)*8 > uint64(len(d.buf)) {
		return 0, nil, errWire
	}
	to = make([]address, n)
	for i := range to {
		to[i] = address{shard: d.u32(), replica: raft.ServerID(d.bytes())}
		if len(to[i].replica) > maxReplicaID {
			d.err = errWire
		}
	}
	return id, to, d.end()
}

// encodeTerms answers encodeConfirm: a term for each replica asked for, in order,
// 0 for one that does not run here.
func encodeTerms(id uint64, terms []uint64) []byte {
	e := &encoder{buf: make([]byte, 0, 16+8*len(terms))}
	e.u8(wireVersion)
	e.u64(id)
	e.u32(uint32(len(terms)))
	for _, t := range terms {
		e.u64(t)
	}
	return e.buf
}

func decodeTerms(frame []byte) (id uint64, terms []uint64, err error) {
	d := &decoder{buf: frame}
	d.version()
	id = d.u64()
	n := d.u32()
	if n > maxConfirms || uint64(n)*8 != uint64(len(d.buf)) {
		return 0, nil, errWire
	}
	terms = make([]uint64, n)
	for i := range terms {
		terms[i] = d.u64()
	}
	return id, terms, d.end()
}

// encodeFrames joins frames, of heartbeats or of the answers to them, in order; an empty one is none.
func encodeFrames(frames [][]byte) []byte {
	size := 8
	for _, f := range frames {
		size += 4 + len(f)
	}
	e := &encoder{buf: make([]byte, 0, size)}
	e.u8(wireVersion)
	e.u32(uint32(len(frames)))
	for _, f := range frames {
		e.bytes(f)
	}
	return e.buf
}

func decodeFrames(frame []byte) ([][]byte, error) {
	d := &decoder{buf: frame}
	d.version()
	n := d.u32()
	if n > maxBeats || uint64(n)*4 > uint64(len(d.buf)) {
		return nil, errWire
	}
	frames := make([][]byte, n)
	for i := range frames {
		frames[i] = d.bytes()
	}
	return frames, d.end()
}
