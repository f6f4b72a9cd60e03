package wal

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// Name says whose log it is: a replica's, which is a new one in each of its lives.
type Name struct {
	Shard   uint32
	Replica string
}

func (n Name) String() string { return fmt.Sprintf("shard-%d/%s", n.Shard, n.Replica) }

// Log is one replica's log. It is a raft.LogStore, and takes what raft does: one
// goroutine that appends and deletes the end, one that deletes the beginning, any
// number that read.
type Log struct {
	w    *WAL
	name Name
	id   uint32

	mu sync.RWMutex
	// places are where the entries from base on lie, and pending follow them: accepted, and
	// not on the disk yet. Base is 0 while there are neither.
	base    uint64
	places  []place
	pending []*raft.Log
	// moved: a beginning was deleted, and the file does not say so yet. A crash brings it
	// back, which does no harm.
	moved   bool
	dropped bool

	// The loop's own: defined says that the log's name is in the file.
	defined bool
}

// place is where an entry's record lies.
type place struct {
	seg  *segment
	off  uint32
	size uint32
}

// segment is one file.
type segment struct {
	name string
	segmentHeader
	file File
	// reading is held by readers, and for writing by whoever takes the file away.
	reading sync.RWMutex
	// live is how many bytes of entries in it some log still needs.
	live atomic.Int64
}

var (
	_ raft.LogStore          = (*Log)(nil)
	_ raft.MonotonicLogStore = (*Log)(nil)
)

// StoreLogs appends entries and returns when they are on the disk.
func (l *Log) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	done := make(chan error, 1)
	if err := l.Append(entries, func(err error) { done <- err }); err != nil {
		return err
	}
	return <-done
}

// StoreLog appends one entry.
func (l *Log) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// Append accepts entries, at least one, which must follow the last, and must not change any more.
// They can be read from now on. done is told nil when they are on the disk, in order, with everything that any
// log of the WAL has accepted before; or an error when they can no longer get there. It is called on the loop
// that writes for all logs, so it must not wait; not at all if Append returns an error.
func (l *Log) Append(entries []*raft.Log, done func(error)) error {
	r := &request{log: l, op: opAppend, sizes: make([]uint32, len(entries)), done: done}
	total := 0
	for i, e := range entries {
		n := entrySize(e)
		if total += n; total > maxAppendBytes {
			return fmt.Errorf("append to log %v: entries %d to %d have %d bytes or more, of at most %d", l.name, entries[0].Index, e.Index, total, maxAppendBytes)
		}
		r.sizes[i] = uint32(n)
	}
	r.records = make([]byte, 0, total)
	for _, e := range entries {
		r.records = appendEntry(r.records, recEntry, l.id, e)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.last() + 1
	if next == 1 { // empty: any index will do
		next = entries[0].Index
	}
	r.index = next
	for i, e := range entries {
		if e.Index != next+uint64(i) || e.Index == 0 {
			return fmt.Errorf("append to log %v: entry %d where %d should follow", l.name, e.Index, next+uint64(i))
		}
	}
	if err := l.w.enqueue(r); err != nil {
		return err
	}
	if l.base == 0 {
		l.base = next
	}
	l.pending = append(l.pending, entries...)
	return nil
}

// last is the last accepted index, 0 if the log is empty. The caller holds mu.
func (l *Log) last() uint64 {
	if n := len(l.places) + len(l.pending); n > 0 {
		return l.base + uint64(n) - 1
	}
	return 0
}

// next is the index after the last entry that is on the disk. The caller holds mu.
func (l *Log) next() uint64 { return l.base + uint64(len(l.places)) }

// FirstIndex is 0 if the log is empty.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.base, nil
}

// LastIndex is 0 if the log is empty.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last(), nil
}

// IsMonotonic: a log may not have gaps, so raft deletes all of it when it installs a
// snapshot.
func (l *Log) IsMonotonic() bool { return true }

// GetLog reads an entry. Its bytes are the caller's, unless the entry is not on the disk
// yet: then they are shared, and nobody may change them.
func (l *Log) GetLog(index uint64, e *raft.Log) error {
	l.mu.RLock()
	if last := l.last(); last == 0 || index < l.base || index > last {
		l.mu.RUnlock()
		return raft.ErrLogNotFound
	}
	if next := l.next(); index >= next {
		*e = *l.pending[index-next]
		l.mu.RUnlock()
		return nil
	}
	p := l.places[index-l.base]
	p.seg.reading.RLock() // before mu is free, or the file might be used anew
	l.mu.RUnlock()
	defer p.seg.reading.RUnlock()
	b := make([]byte, p.size)
	if _, err := p.seg.file.ReadAt(b, int64(p.off)); err != nil {
		return fmt.Errorf("read entry %d of log %v: %s: %w", index, l.name, p.seg.name, err)
	}
	id, got, err := openEntry(b, p.seg.salt)
	if err == nil && (id != l.id || got.Index != index) {
		err = damaged("entry %d of log %d is at the place of entry %d of log %d", got.Index, id, index, l.id)
	}
	if err != nil {
		return fmt.Errorf("read entry %d of log %v: %s at %d: %w", index, l.name, p.seg.name, p.off, err)
	}
	*e = got
	return nil
}

// BytesAfter is what the entries after an index take in the log.
func (l *Log) BytesAfter(index uint64) (n int64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	next := l.next()
	if first := max(index+1, l.base); first < next {
		for _, p := range l.places[first-l.base:] {
			n += int64(p.size)
		}
	}
	for i, e := range l.pending {
		if next+uint64(i) > index {
			n += int64(entrySize(e))
		}
	}
	return n
}

// DeleteRange deletes the beginning, the end or all of the log. The end, and all, are
// gone for good when it returns; the beginning may come back after a crash.
func (l *Log) DeleteRange(lo, hi uint64) error {
	l.mu.Lock()
	last := l.last()
	if last == 0 || hi < l.base || lo > last || lo > hi {
		l.mu.Unlock()
		return nil
	}
	done := make(chan error, 1)
	r := &request{log: l, done: func(err error) { done <- err }}
	switch {
	case lo > l.base && hi < last:
		l.mu.Unlock()
		return fmt.Errorf("delete entries %d to %d of log %v, which has %d to %d: a hole", lo, hi, l.name, l.base, last)
	case lo > l.base:
		r.op, r.index = opTruncate, lo
	case hi >= last:
		r.op = opClear
	default:
		defer l.mu.Unlock()
		if hi >= l.next() { // raft keeps entries behind what it has not applied yet
			return fmt.Errorf("delete entries %d to %d of log %v: entries from %d on are not on the disk yet", lo, hi, l.name, l.next())
		}
		if err := l.w.noteMoved(l); err != nil {
			return err
		}
		l.moved = true
		l.rise(hi + 1)
		return nil
	}
	err := l.w.enqueue(r)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return <-done
}

// rise drops the entries before base. The caller holds mu.
func (l *Log) rise(base uint64) {
	n := base - l.base
	for _, p := range l.places[:n] {
		p.seg.live.Add(-int64(p.size))
	}
	l.places, l.base = l.places[n:], base
}

// cut drops the entries from an index on, of those on the disk. The caller holds mu.
func (l *Log) cut(index uint64) {
	end := l.next()
	index = min(max(index, l.base), end) // base may have risen since the cut was asked for
	for _, p := range l.places[index-l.base:] {
		p.seg.live.Add(-int64(p.size))
	}
	clear(l.places[index-l.base:])
	if l.places = l.places[:index-l.base]; len(l.places) > 0 {
		return
	}
	// What was accepted meanwhile still follows.
	if l.places, l.base = nil, end; len(l.pending) == 0 {
		l.base = 0
	}
}

// landed is called by the loop when entries from index on are on the disk.
func (l *Log) landed(index uint64, seg *segment, off int64, sizes []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range sizes {
		l.places = append(l.places, place{seg, uint32(off), n})
		seg.live.Add(int64(n))
		off += int64(n)
	}
	clear(l.pending[:len(sizes)])
	if l.pending = l.pending[len(sizes):]; len(l.pending) == 0 {
		l.pending = nil
	}
}

// at is where an entry lies, if it is on the disk.
func (l *Log) at(index uint64) (place, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if index < l.base || index >= l.next() {
		return place{}, false
	}
	return l.places[index-l.base], true
}

// move says that an entry's copy lies elsewhere, unless the entry is gone meanwhile.
func (l *Log) move(index uint64, from, to place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if index < l.base || index >= l.next() || l.places[index-l.base] != from {
		return
	}
	l.places[index-l.base] = to
	to.seg.live.Add(int64(to.size))
	from.seg.live.Add(-int64(from.size))
}

// in lists the entries that lie in a segment.
func (l *Log) in(seg *segment) (list []uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for i, p := range l.places {
		if p.seg == seg {
			list = append(list, l.base+uint64(i))
		}
	}
	return list
}
