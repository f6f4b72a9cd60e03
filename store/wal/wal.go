package wal

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/fsm/planted"
)

// Config says how to open a WAL. The zero Config is usable.
type Config struct {
	// SegmentBytes is the size of a segment, at least 16 KiB and at most 1 GiB; one that a
	// larger commit needs is larger. Default 16 MiB: a new one costs three syncs, and some
	// beyond those in use are kept to be used again.
	SegmentBytes int64
	// Path names the directory in messages about it.
	Path string
	// Fatal is told when the log could not be written or synced: what is on the disk,
	// nobody knows. It does not return; if it does, all that waits gets the error. Default: panic.
	Fatal func(error)
	// Log; default: none.
	Log *slog.Logger
}

// ErrClosed: the WAL is closed.
var ErrClosed = errors.New("log is closed")

const (
	// maxGroupBytes bounds what one commit takes from the queue, or one larger append.
	maxGroupBytes = 4 << 20
	// markAfter is how long the last commit stays unmarked when nothing follows it.
	markAfter = time.Second
	// keepSegments are never worth copying, whatever is alive in them: the smaller, the more is
	// copied for an idle log.
	keepSegments = 3
)

// WAL is the log of a node's replicas. Its methods may be called at any time.
type WAL struct {
	cfg Config
	fs  FS
	log *slog.Logger
	id  uint64

	mu     sync.Mutex
	logs   map[Name]*Log
	nextID uint32
	queue  []*request
	moved  []*Log // whose beginning was deleted since the last commit
	err    error  // no more requests
	wake   chan struct{}

	// The loop's own.
	segments []*segment // in order; the last one is written to
	off      int64      // where the next commit goes
	number   uint64     // of the last commit
	end      position   // of the last commit
	unmarked bool       // it says something, and no commit has followed it
	buf      []byte
	forward  forward

	prepare preparer

	began    atomic.Int64 // ns since epoch when the present commit began; 0: there is none
	epoch    time.Time
	counters counters
	ended    chan struct{}
	close    func() error // Close, once
}

type counters struct{ commits, requests, bytes, copied, segments, made, live, disk atomic.Int64 }

// Stats are of one WAL, since Open but for Segments, LiveBytes and DiskBytes.
type Stats struct {
	Commits       int64 // writes, each with one sync
	Requests      int64 // appends and deletions that shared them
	WrittenBytes  int64
	CopiedBytes   int64 // of those, entries copied forward from old segments
	SegmentsMade  int64 // and not used again
	SegmentsInUse int64
	DiskBytes     int64 // of the segments in use
	LiveBytes     int64 // of the entries in them that a log still has
}

// Stats may be called at any time.
func (w *WAL) Stats() Stats {
	c := &w.counters
	return Stats{Commits: c.commits.Load(), Requests: c.requests.Load(), WrittenBytes: c.bytes.Load(), CopiedBytes: c.copied.Load(),
		SegmentsMade: c.made.Load(), SegmentsInUse: c.segments.Load(), DiskBytes: c.disk.Load(), LiveBytes: c.live.Load()}
}

// request is what a log wants of the loop.
type request struct {
	log     *Log
	op      op
	index   uint64
	records []byte   // of opAppend: the entries, without their checksums
	sizes   []uint32 // of each
	at      int64    // where records lie in the segment
	// done is told the end, on the loop or where that ends; it does not wait.
	done func(error)
}

type op uint8

const (
	opAppend op = iota
	opTruncate
	opClear
	opDrop
)

// Open opens the WAL in a directory, or makes one in an empty directory. Close it.
func Open(fs FS, cfg Config) (*WAL, error) {
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = 16 << 20
	}
	if cfg.Fatal == nil {
		cfg.Fatal = func(err error) { panic(err) }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.SegmentBytes < 4*headerBytes || cfg.SegmentBytes > 1<<30 {
		return nil, fmt.Errorf("open log: segments of %d bytes: want 16 KiB to 1 GiB", cfg.SegmentBytes)
	}
	cfg.SegmentBytes = inPages(cfg.SegmentBytes)
	w := newWAL(fs, cfg)
	if err := w.open(); err != nil {
		w.closeFiles()
		return nil, fmt.Errorf("open log: %w", err)
	}
	go w.run()
	return w, nil
}

func newWAL(fs FS, cfg Config) *WAL {
	w := &WAL{cfg: cfg, fs: fs, log: cfg.Log, logs: map[Name]*Log{}, wake: make(chan struct{}, 1), epoch: time.Now(), ended: make(chan struct{})}
	w.close = sync.OnceValue(w.closeFiles)
	return w
}

// open does what Open does before the loop runs.
func (w *WAL) open() error {
	if err := w.recover(); err != nil {
		return err
	}
	w.count()
	w.prepare.start(w, w.active().seq+1)
	if w.off > headerBytes {
		return nil
	}
	// Each segment but the last must have a commit. This one gets its own now: the first that comes
	// might have no room in it.
	return w.commit(nil)
}

// Path is Config.Path.
func (w *WAL) Path() string { return w.cfg.Path }

// ID names this WAL among all others, for ever.
func (w *WAL) ID() uint64 { return w.id }

// Replica is a replica's log, an empty one if it has none yet.
func (w *WAL) Replica(name Name) *Log {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.logs[name]
	if l == nil {
		w.nextID++
		l = &Log{w: w, name: name, id: w.nextID}
		w.logs[name] = l
	}
	return l
}

// Names are those of the logs that it has, in order.
func (w *WAL) Names() []Name {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]Name, 0, len(w.logs))
	for n := range w.logs {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b Name) int { return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Replica, b.Replica)) })
	return list
}

// Drop forgets a replica's log, for good when it returns. Nobody may use that any more.
func (w *WAL) Drop(name Name) error {
	w.mu.Lock()
	l := w.logs[name]
	w.mu.Unlock()
	if l == nil {
		return nil
	}
	done := make(chan error, 1)
	r := &request{log: l, op: opDrop, done: func(err error) { done <- err }}
	l.mu.Lock()
	err := w.enqueue(r)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return <-done
}

// Writing is how long the commit under way has taken, 0 if there is none.
func (w *WAL) Writing() time.Duration {
	if began := w.began.Load(); began != 0 {
		return time.Since(w.epoch) - time.Duration(began)
	}
	return 0
}

// enqueue gives the loop a request. The caller holds the log's mu, which orders its requests.
func (w *WAL) enqueue(r *request) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if r.log.dropped {
		return fmt.Errorf("log %v was dropped", r.log.name)
	}
	r.log.dropped = r.op == opDrop
	w.queue = append(w.queue, r)
	w.kick()
	return nil
}

// kick wakes the loop.
func (w *WAL) kick() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// noteMoved has the next commit say where a log begins. The caller holds its mu, and has not
// taken anything out yet: what is gone must be known to be, before its segment can be.
func (w *WAL) noteMoved(l *Log) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && !l.moved {
		w.moved = append(w.moved, l)
		w.kick()
	}
	return w.err
}

// Close answers what waits, marks the last commit, so that a start can tell damage of it from a
// write that a crash cut short, and closes the files.
func (w *WAL) Close() error {
	w.mu.Lock()
	if w.err == nil {
		w.err = ErrClosed
	}
	w.kick()
	w.mu.Unlock()
	<-w.ended
	return w.close()
}

func (w *WAL) closeFiles() error {
	err := w.prepare.stop()
	for _, s := range w.segments {
		err = errors.Join(err, s.close())
	}
	w.segments = nil
	return err
}

func (w *WAL) active() *segment { return w.segments[len(w.segments)-1] }

// run is the loop.
func (w *WAL) run() {
	defer close(w.ended)
	idle := time.NewTimer(markAfter)
	defer idle.Stop()
	for {
		batch, closing := w.take()
		if len(batch) > 0 {
			if err := w.commit(batch); err != nil {
				w.fail(batch, err)
				return
			}
			idle.Reset(markAfter)
			continue
		}
		if !closing {
			select {
			case <-w.wake:
				idle.Reset(markAfter)
				continue
			case <-idle.C:
			}
		}
		if err := w.mark(); err != nil {
			w.fail(nil, err)
			return
		}
		if closing {
			return
		}
	}
}

// take takes what waits, up to maxGroupBytes.
func (w *WAL) take() (batch []*request, closing bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, size := 0, 0
	for n < len(w.queue) && (n == 0 || size+len(w.queue[n].records) <= maxGroupBytes) {
		size += len(w.queue[n].records)
		n++
	}
	batch = slices.Clone(w.queue[:n])
	clear(w.queue[:n])
	if w.queue = w.queue[n:]; len(w.queue) == 0 {
		w.queue = nil
	}
	return batch, w.err != nil
}

// fail ends the loop: the log cannot be trusted any more.
func (w *WAL) fail(batch []*request, err error) {
	err = fmt.Errorf("write log: %w", err)
	w.mu.Lock()
	w.err = err
	batch = append(batch, w.queue...)
	w.queue = nil
	w.mu.Unlock()
	w.cfg.Fatal(err)
	for _, r := range batch {
		r.done(err)
	}
}

// mark writes a commit that says nothing but that the one before it is on the disk.
func (w *WAL) mark() error {
	if !w.unmarked && !w.hasMoved() {
		return nil
	}
	return w.commit(nil)
}

// hasMoved says whether a beginning was deleted and the file does not say so yet.
func (w *WAL) hasMoved() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.moved) > 0
}

// commit writes what a batch wants, syncs it, and answers.
func (w *WAL) commit(batch []*request) error {
	w.began.Store(int64(time.Since(w.epoch)) | 1)
	defer w.began.Store(0)
	records, err := w.compose(batch)
	if err != nil {
		return err
	}
	seg := w.active()
	b := w.buf
	w.number++
	sealCommit(b, seg.salt, w.off, commitHeader{number: w.number, synced: w.end})
	if planted.Is(planted.NoSyncLog) {
		_, err = seg.file.WriteAt(b, w.off)
	} else {
		err = seg.file.WriteSync(b, w.off)
	}
	if err != nil {
		return fmt.Errorf("commit to %s: %w", seg.name, err)
	}
	w.off += align(int64(len(b)))
	w.end = position{seg.seq, uint64(w.off)}
	w.unmarked = records
	w.counters.commits.Add(1)
	w.counters.requests.Add(int64(len(batch)))
	w.counters.bytes.Add(int64(len(b)))
	for _, r := range batch {
		w.land(r, seg)
	}
	w.forward.land(w, seg)
	w.trim()
	w.count()
	w.forward.begin(w)
	if cap(w.buf) > 2*maxGroupBytes {
		w.buf = nil
	}
	return nil
}

// compose makes the commit of a batch in buf, but for its header, in a segment that has
// room for it. It says whether there is any record in it.
func (w *WAL) compose(batch []*request) (records bool, err error) {
	w.mu.Lock()
	moved := w.moved
	w.moved = nil
	w.mu.Unlock()
	need := int64(commitBytes + len(moved)*markBytes)
	appended := 0
	for _, r := range batch {
		appended += len(r.records)
		need += int64(len(r.records)) + markBytes + 32 + int64(len(r.log.name.Replica))
	}
	if err := w.forward.gather(appended); err != nil {
		return false, err
	}
	need += int64(w.forward.size)
	b := append(w.buf[:0], make([]byte, commitBytes)...)
	full := w.off+need > int64(w.active().size)
	if full || w.off == headerBytes { // each segment begins with one, so that those before it can go
		b = appendManifest(b, w.manifest())
		need += int64(len(b))
	}
	if full || w.off+need > int64(w.active().size) {
		if err := w.roll(need); err != nil {
			return false, err
		}
	}
	seg := w.active()
	b = w.forward.compose(b, w.off, seg) // first: what a batch takes away, a copy must not bring back
	for _, l := range moved {
		l.mu.Lock()
		switch { // also of one about to be dropped: its segments may go before that is written
		case !l.moved || !l.defined:
		case len(l.places) > 0:
			b = appendMark(b, recFirst, l.id, l.base)
		default: // the end was cut meanwhile
			b = appendMark(b, recClear, l.id, 0)
		}
		l.moved = false
		l.mu.Unlock()
	}
	for _, r := range batch {
		if !r.log.defined {
			b = appendDefine(b, r.log.id, r.log.name)
			r.log.defined = true
		}
		switch r.op {
		case opAppend:
			r.at = w.off + int64(len(b))
			at := 0
			for _, n := range r.sizes {
				sealEntry(r.records[at:at+int(n)], seg.salt)
				at += int(n)
			}
			b = append(b, r.records...)
		case opTruncate:
			b = appendMark(b, recTruncate, r.log.id, r.index)
		case opClear:
			b = appendMark(b, recClear, r.log.id, 0)
		case opDrop:
			b = appendMark(b, recDrop, r.log.id, 0)
		}
	}
	w.buf = b
	return len(b) > commitBytes, nil
}

// land makes true in memory what is now on the disk, and answers.
func (w *WAL) land(r *request, seg *segment) {
	l := r.log
	switch r.op {
	case opAppend:
		l.landed(r.index, seg, r.at, r.sizes)
	case opTruncate:
		l.mu.Lock()
		l.cut(r.index)
		l.mu.Unlock()
	case opClear, opDrop:
		l.mu.Lock()
		l.cut(0)
		l.mu.Unlock()
	}
	if r.op == opDrop {
		l.defined = false
		w.mu.Lock()
		delete(w.logs, l.name)
		w.mu.Unlock()
	}
	r.done(nil)
}

// manifest is the state of all logs as the file has it by now.
func (w *WAL) manifest() (list []manifestLog) {
	for _, l := range w.list() {
		if !l.defined {
			continue
		}
		l.mu.RLock()
		m := manifestLog{id: l.id, name: l.name}
		if len(l.places) > 0 {
			m.first, m.last = l.base, l.next()-1
		}
		l.mu.RUnlock()
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b manifestLog) int { return cmp.Compare(a.id, b.id) })
	return list
}

// list has all logs, in no order.
func (w *WAL) list() []*Log {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.logs))
}
