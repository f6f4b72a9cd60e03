package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
)

// recovery is a start. It fills in the WAL, whose loop does not run yet.
type recovery struct {
	w     *WAL
	logs  map[uint32]*replayed
	names map[Name]bool // of these
	buf   []byte        // the segment being read
	last  place         // the last commit
}

// replayed is a log so far: entries first to last, 0 and 0 if there are none. A manifest promises
// entries that only later records place, and may promise what is deleted before any
// does: so what a start takes of memory follows from the records that it reads, not from the promise.
type replayed struct {
	id          uint32
	name        Name
	first, last uint64
	// places of entries. What it has outside first to last is gone, and is written over before
	// it could count again: entries come one after the other.
	places map[uint64]place
}

// recover reads what is there: each segment from its beginning, each commit in the order in
// which it was written. The last one may have been cut short by a crash: if there
// is no whole commit where the next should be, and none after that, the log ends here. All else is
// damage.
func (w *WAL) recover() error {
	// What the directory shows may not be durable, if it was the process that ended. A file that is
	// used anew must not come back under its old name, nor one that takes commits go.
	if err := w.fs.SyncDir(); err != nil {
		return err
	}
	v := &recovery{w: w, logs: map[uint32]*replayed{}, names: map[Name]bool{}}
	names, err := w.fs.Names()
	if err != nil {
		return err
	}
	var seqs []uint64
	for _, name := range names {
		seq, ok := parseSegmentName(name)
		switch {
		case ok:
			seqs = append(seqs, seq)
		case strings.HasSuffix(name, tmpSuffix):
			if err := w.fs.Remove(name); err != nil {
				return err
			}
		}
	}
	slices.Sort(seqs)
	h, err := readHead(w.fs)
	if errors.Is(err, fs.ErrNotExist) {
		return v.create(seqs)
	}
	if err != nil {
		return err
	}
	w.id = h.wal
	for i, seq := range seqs {
		if i > 0 && seq != seqs[i-1]+1 {
			return damaged("segment %s follows %s", segmentName(seq), segmentName(seqs[i-1]))
		}
	}
	if len(seqs) == 0 || seqs[len(seqs)-1] < h.seq {
		return damaged("segment %s is gone", segmentName(h.seq))
	}
	for i, seq := range seqs {
		commits, err := v.load(seq)
		if err != nil {
			return fmt.Errorf("%s: %w", segmentName(seq), err)
		}
		// The last one was named and power failed. What came before it goes only when it has a commit.
		if commits == 0 && (i+1 < len(seqs) || i == 0 && seq != 1) {
			return damaged("segment %s has no commit", segmentName(seq))
		}
	}
	if last := seqs[len(seqs)-1]; h.seq < last { // power failed between its name and the note
		if err := writeHead(w.fs, head{wal: w.id, seq: last}); err != nil {
			return err
		}
	}
	return v.complete()
}

// create makes a new WAL. A crash in its middle leaves at most one segment without a commit.
func (v *recovery) create(seqs []uint64) error {
	w := v.w
	for _, seq := range seqs {
		if seq != 1 {
			return damaged("%s is gone, and segment %s is there", headName, segmentName(seq))
		}
		if n, err := v.load(seq); err != nil || n > 0 {
			return errors.Join(err, damaged("%s is gone, and segment %s is not empty", headName, segmentName(seq)))
		}
		if err := errors.Join(w.active().file.Close(), w.fs.Remove(segmentName(seq))); err != nil {
			return err
		}
		w.segments = nil
	}
	w.id = rand.Uint64()
	w.prepare.w = w
	s, err := w.prepare.make(1)
	if err != nil {
		return err
	}
	w.segments, w.end = []*segment{s}, position{1, headerBytes}
	return w.install(s)
}

// load reads a segment and appends it to segments. It returns how many commits it holds.
func (v *recovery) load(seq uint64) (commits int, err error) {
	w := v.w
	name := segmentName(seq)
	f, err := w.fs.Open(name, false)
	if err != nil {
		return 0, err
	}
	s := &segment{name: name, file: f}
	w.segments = append(w.segments, s)
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	if size < headerBytes || size > 1<<32-1 {
		return 0, damaged("it has %d bytes", size)
	}
	v.buf = slices.Grow(v.buf[:0], int(size))
	b := v.buf[:size]
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if s.segmentHeader, err = decodeSegmentHeader(b); err != nil {
		return 0, err
	}
	if s.seq != seq || s.size != uint64(size) || w.id != 0 && s.wal != w.id {
		return 0, damaged("its header is that of segment %d of %d bytes of log %016x", s.seq, s.size, s.wal)
	}
	first := len(w.segments) == 1
	off := int64(headerBytes)
	for {
		h, records, ok := openCommit(b, s.salt, off)
		if !ok {
			break
		}
		if first && commits == 0 { // what came before is gone
			w.number, w.end = h.number-1, h.synced
		}
		if h.number != w.number+1 || h.synced != w.end {
			return commits, damaged("commit %d at %d, after commit %d, says that the one before it ended at %d of segment %d, which was at %d of segment %d",
				h.number, off, w.number, h.synced.off, h.synced.seq, w.end.off, w.end.seq)
		}
		if commits == 0 && (len(records) == 0 || records[0] != recManifest) {
			return commits, damaged("it does not begin with a manifest")
		}
		if err := v.replay(s, off+commitBytes, records, first && commits == 0); err != nil {
			return commits, fmt.Errorf("commit %d at %d: %w", h.number, off, err)
		}
		commits++
		v.last = place{s, uint32(off), uint32(commitBytes + len(records))}
		off += align(int64(commitBytes + len(records)))
		w.number, w.end, w.unmarked = h.number, position{seq, uint64(off)}, len(records) > 0
	}
	// What was begun and not synced when power failed may be there in part, but then it was the last.
	for at := off + alignBytes; at+commitBytes <= size; at += alignBytes {
		if binary.BigEndian.Uint32(b[at:]) != commitMagic {
			continue
		}
		if h, _, ok := openCommit(b, s.salt, at); ok {
			return commits, damaged("there is no commit at %d, and one (%d) follows at %d", off, h.number, at)
		}
	}
	if h, _, _ := openCommit(b, s.salt, off); h.number == w.number+1 {
		w.log.Warn("the end of the log was cut short: it is left out", "segment", name, "at", off)
	}
	w.off = off
	if first && commits == 0 {
		w.end = position{seq, headerBytes}
	}
	return commits, nil
}

// replay does in memory what a commit's records say. begins: they are the first that there are.
func (v *recovery) replay(s *segment, at int64, records []byte, begins bool) error {
	r := reader{b: records}
	for len(r.b) > 0 && !r.failed {
		lies := at + int64(len(records)-len(r.b))
		switch kind := r.b[0]; kind {
		case recEntry, recCopy:
			n, err := entryLength(r.b)
			if err != nil {
				return err
			}
			id, e, err := openEntry(r.take(n), s.salt)
			if err != nil {
				return err
			}
			if err := v.replayEntry(kind, id, &e, place{s, uint32(lies), uint32(n)}); err != nil {
				return err
			}
		case recManifest:
			r.u8()
			if err := v.replayManifest(&r, begins); err != nil {
				return err
			}
			begins = false
		case recDefine:
			r.u8()
			id := r.u32()
			name := r.name()
			if r.failed {
				break
			}
			if _, err := v.define(id, name); err != nil {
				return err
			}
		case recFirst, recTruncate, recClear, recDrop:
			r.u8()
			l, index := v.logs[r.u32()], r.u64()
			if r.failed || l == nil {
				return damaged("a record of a log that is not defined")
			}
			if err := v.replayMark(kind, l, index); err != nil {
				return err
			}
		default:
			return damaged("record of kind %d", kind)
		}
	}
	if r.failed {
		return damaged("record cut short")
	}
	return nil
}

func (v *recovery) define(id uint32, name Name) (*replayed, error) {
	if v.logs[id] != nil || v.names[name] {
		return nil, damaged("log %d, of %v, is defined twice", id, name)
	}
	l := &replayed{id: id, name: name, places: map[uint64]place{}}
	v.logs[id], v.names[name] = l, true
	v.w.nextID = max(v.w.nextID, id)
	return l, nil
}

func (v *recovery) replayEntry(kind byte, id uint32, e *raft.Log, p place) error {
	l := v.logs[id]
	switch {
	case l == nil:
		return damaged("an entry of log %d, which is not defined", id)
	case kind == recCopy:
		if l.first <= e.Index && e.Index <= l.last { // else it was deleted while it was copied
			l.places[e.Index] = p
		}
		return nil
	case e.Index == 0 || l.last != 0 && e.Index != l.last+1:
		return damaged("entry %d of log %v where %d should follow", e.Index, l.name, l.last+1)
	case l.last == 0:
		l.first = e.Index
	}
	l.last = e.Index
	l.places[e.Index] = p
	return nil
}

func (v *recovery) replayMark(kind byte, l *replayed, index uint64) error {
	switch {
	case kind == recDrop:
		delete(v.logs, l.id)
		delete(v.names, l.name)
	case l.last == 0:
	case kind == recClear, kind == recTruncate && index <= l.first, kind == recFirst && index == l.last+1:
		l.first, l.last = 0, 0
		clear(l.places)
	case index > l.last:
		return damaged("a deletion at entry %d of log %v, which has %d to %d", index, l.name, l.first, l.last)
	case kind == recTruncate:
		l.last = index - 1
	case kind == recFirst:
		l.first = max(l.first, index)
	}
	return nil
}

// replayManifest compares what is known with what the beginning of a segment says, or takes it
// from there: where the entries lie, later records say.
func (v *recovery) replayManifest(r *reader, begins bool) error {
	n := r.u32()
	if !begins && int(n) != len(v.logs) {
		return damaged("a manifest of %d logs, there are %d", n, len(v.logs))
	}
	for range n {
		m := manifestLog{id: r.u32(), name: r.name(), first: r.u64(), last: r.u64()}
		if r.failed {
			return damaged("manifest cut short")
		}
		if m.first > m.last || m.first == 0 && m.last != 0 {
			return damaged("a manifest with entries %d to %d", m.first, m.last)
		}
		if begins {
			l, err := v.define(m.id, m.name)
			if err != nil {
				return err
			}
			l.first, l.last = m.first, m.last
			continue
		}
		l := v.logs[m.id]
		switch {
		case l == nil || l.name != m.name:
			return damaged("a manifest with log %v, which is not defined", m.name)
		case m.first != 0 && (m.last != l.last || m.first < l.first):
			return damaged("log %v has entries %d to %d, by the manifest %d to %d", m.name, l.first, l.last, m.first, m.last)
		}
		l.first, l.last = m.first, m.last // the beginning may have been deleted meanwhile, up to all that there was
	}
	return nil
}

// complete is the end of a recovery: all that should be there is, and what was read is durable.
func (v *recovery) complete() error {
	w := v.w
	for _, r := range v.logs {
		l := &Log{w: w, name: r.name, id: r.id, defined: true, base: r.first}
		for i := r.first; i != 0 && uint64(len(l.places)) < r.last-r.first+1; i++ {
			p, ok := r.places[i]
			if !ok {
				return damaged("entry %d of log %v is gone", i, r.name)
			}
			l.places = append(l.places, p)
			p.seg.live.Add(int64(p.size))
		}
		w.logs[r.name] = l
	}
	// The last commit may be in the page cache only, if it was the process that ended; after a
	// sync that failed, another one would not write it. What was written before it was synced before it.
	if v.last.seg == nil {
		return nil
	}
	b, f := make([]byte, v.last.size), v.last.seg.file
	if _, err := f.ReadAt(b, int64(v.last.off)); err != nil {
		return err
	}
	if _, err := f.WriteAt(b, int64(v.last.off)); err != nil {
		return err
	}
	return f.Sync()
}

// head is the file that says that there is a WAL, and how far it goes at least.
type head struct{ wal, seq uint64 }

const (
	headMagic = 0x41424157414c4944 // "ABAWALID"
	headBytes = 8 + 4 + 8 + 8 + 4
)

func writeHead(fsys FS, h head) error {
	b := make([]byte, 0, headBytes)
	b = binary.BigEndian.AppendUint64(b, headMagic)
	b = binary.BigEndian.AppendUint32(b, formatVersion)
	b = binary.BigEndian.AppendUint64(b, h.wal)
	b = binary.BigEndian.AppendUint64(b, h.seq)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	tmp := headName + tmpSuffix
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := fsys.Open(tmp, true)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, headName); err != nil {
		return err
	}
	return fsys.SyncDir()
}

func readHead(fsys FS) (h head, err error) {
	f, err := fsys.Open(headName, false)
	if err != nil {
		return h, err
	}
	b := make([]byte, headBytes)
	n, err := f.ReadAt(b, 0)
	if err = errors.Join(err, f.Close()); err != nil && !errors.Is(err, io.EOF) {
		return h, err
	}
	if n < headBytes || binary.BigEndian.Uint64(b) != headMagic || binary.BigEndian.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli) {
		return h, damaged("%s", headName)
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != formatVersion {
		return h, fmt.Errorf("log has format %d, this program knows %d", v, formatVersion)
	}
	return head{binary.BigEndian.Uint64(b[12:]), binary.BigEndian.Uint64(b[20:])}, nil
}
