package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
)

// Names in the directory. What ends with tmpSuffix holds nothing that anybody needs.
const (
	segmentSuffix = ".wal"
	tmpSuffix     = ".tmp"
	sparePrefix   = "spare-"
	headName      = "wal.id"
)

func segmentName(seq uint64) string { return fmt.Sprintf("%016x%s", seq, segmentSuffix) }

func parseSegmentName(name string) (seq uint64, ok bool) {
	hex, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	seq, err := strconv.ParseUint(hex, 16, 64)
	return seq, err == nil
}

// roll goes on in the next segment, which gets room for a commit of so many bytes.
func (w *WAL) roll(need int64) error {
	s, err := w.prepare.take()
	if err != nil {
		return err
	}
	w.segments = append(w.segments, s)
	if min := inPages(headerBytes + align(need)); min > int64(s.size) {
		if err := fill(s.file, int64(s.size), min); err != nil {
			return err
		}
		s.size = uint64(min)
		if err := writeHeader(s); err != nil {
			return err
		}
	}
	if err := w.install(s); err != nil {
		return err
	}
	w.prepare.order(s.seq + 1)
	return nil
}

// install makes a prepared segment the one that is written to. Its bytes are durable, then its
// name, and then the note that it exists: a start that finds the note looks for the segment.
func (w *WAL) install(s *segment) error {
	name := segmentName(s.seq)
	if err := w.fs.Rename(s.name, name); err != nil {
		return err
	}
	s.name = name
	if err := w.fs.SyncDir(); err != nil {
		return err
	}
	if err := writeHead(w.fs, head{wal: w.id, seq: s.seq}); err != nil {
		return err
	}
	w.off = headerBytes
	return nil
}

// trim lets go of the oldest segments in which nothing is alive.
func (w *WAL) trim() {
	for len(w.segments) > 1 && w.segments[0].live.Load() == 0 && !w.hasMoved() {
		// Dead by deletions that the file has: hasMoved was asked afterwards.
		w.prepare.retire(w.segments[0])
		w.segments = w.segments[1:]
	}
}

// count brings the numbers of Stats up to date.
func (w *WAL) count() {
	var live, disk int64
	for _, s := range w.segments {
		live += s.live.Load()
		disk += int64(s.size)
	}
	w.counters.live.Store(live)
	w.counters.disk.Store(disk)
	w.counters.segments.Store(int64(len(w.segments)))
}

// forward empties the oldest segment: what is alive in it is written once more, a piece with
// each commit that appends. So a log that stands still keeps no old segments.
type forward struct {
	from *segment // nil: none is being emptied
	todo []forwarded
	// credit is how many bytes may be copied: as many as were appended since from was begun with,
	// so copying at most doubles what is written and what an append waits for.
	credit int
	now    []forwarded // in the present commit
	size   int         // of these
}

type forwarded struct {
	log    *Log
	index  uint64
	place  place
	record []byte
	off    int64
}

// begin begins with the oldest segment if more than half of the log is dead: each byte that
// is copied then makes room for more than one.
func (f *forward) begin(w *WAL) {
	c := &w.counters
	if f.from != nil || len(w.segments) <= keepSegments || c.disk.Load() <= 2*c.live.Load()+keepSegments*w.cfg.SegmentBytes {
		return
	}
	f.from, f.credit = w.segments[0], min(f.credit, 0)
	for _, l := range w.list() {
		for _, i := range l.in(f.from) {
			f.todo = append(f.todo, forwarded{log: l, index: i})
		}
	}
}

// gather reads what the next commit copies, beside so many bytes that it appends.
func (f *forward) gather(appended int) error {
	f.now, f.size = f.now[:0], 0
	f.credit += appended
	for len(f.todo) > 0 && f.size < f.credit {
		e := f.todo[0]
		f.todo = f.todo[1:]
		var ok bool
		if e.place, ok = e.log.at(e.index); !ok || e.place.seg != f.from {
			continue // deleted since, or deleted and written anew
		}
		e.record = make([]byte, e.place.size)
		if _, err := f.from.file.ReadAt(e.record, int64(e.place.off)); err != nil {
			return fmt.Errorf("copy forward: %s: %w", f.from.name, err)
		}
		if _, _, err := openEntry(e.record, f.from.salt); err != nil {
			return fmt.Errorf("copy forward: %s at %d: %w", f.from.name, e.place.off, err)
		}
		f.now = append(f.now, e)
		f.size += len(e.record)
	}
	f.credit -= f.size
	return nil
}

func (f *forward) compose(b []byte, at int64, seg *segment) []byte {
	for i := range f.now {
		e := &f.now[i]
		e.record[0] = recCopy
		sealEntry(e.record, seg.salt)
		e.off = at + int64(len(b))
		b = append(b, e.record...)
	}
	return b
}

// land says where the copies are, and ends when there is nothing left to copy.
func (f *forward) land(w *WAL, seg *segment) {
	for _, e := range f.now {
		e.log.move(e.index, e.place, place{seg, uint32(e.off), e.place.size})
		w.counters.copied.Add(int64(len(e.record)))
	}
	clear(f.now)
	if len(f.todo) == 0 {
		f.from, f.todo = nil, nil
	}
}

// preparer has the next segment ready before it is needed, from a file that is no longer in use
// if there is one: what was written once is quicker to write again.
type preparer struct {
	w       *WAL
	orders  chan uint64
	retired chan *segment
	ready   chan prepared
	quit    chan struct{}
	wg      sync.WaitGroup

	// The goroutine's own.
	spares []*segment
	failed error // an old segment could not be put aside: nothing more is done
}

type prepared struct {
	seg *segment
	err error
}

// maxSpares is how many files that are no longer in use are kept: as many as come at once when the one
// that held them up is empty.
const maxSpares = keepSegments + 1

func (p *preparer) start(w *WAL, seq uint64) {
	p.w = w
	p.orders, p.retired, p.ready, p.quit = make(chan uint64, 1), make(chan *segment, 16), make(chan prepared, 1), make(chan struct{})
	p.order(seq)
	p.wg.Go(p.run)
}

// stop ends the goroutine, if it was started, and closes its files.
func (p *preparer) stop() (err error) {
	if p.quit != nil {
		close(p.quit)
		p.wg.Wait()
	}
	for {
		var s *segment
		select {
		case next := <-p.ready:
			s = next.seg
		case s = <-p.retired:
		default:
			for _, s := range p.spares {
				err = errors.Join(err, s.close())
			}
			return err
		}
		if s != nil {
			err = errors.Join(err, s.close())
		}
	}
}

// order asks for a segment; take returns it.
func (p *preparer) order(seq uint64) { p.orders <- seq }

func (p *preparer) take() (*segment, error) {
	next := <-p.ready
	return next.seg, next.err
}

// retire takes over a segment that nobody needs any more.
func (p *preparer) retire(s *segment) { p.retired <- s }

func (p *preparer) run() {
	for {
		select {
		case <-p.quit:
			return
		case s := <-p.retired:
			if p.failed != nil {
				s.close()
			} else if p.failed = p.putAside(s); p.failed != nil {
				p.failed = fmt.Errorf("put old segment of the log aside: %w", p.failed)
				p.w.cfg.Fatal(p.failed)
			}
		case seq := <-p.orders:
			s, err := p.make(seq)
			if err != nil {
				err = fmt.Errorf("prepare segment %d of the log: %w", seq, err)
			}
			p.ready <- prepared{s, err}
		}
	}
}

// putAside makes a file a spare one, or removes it. The directory is synced before the file can
// be written to and before the next one goes: a start finds a row of whole segments.
func (p *preparer) putAside(s *segment) error {
	s.reading.Lock() // nobody begins to read any more: its entries are elsewhere or gone
	defer s.reading.Unlock()
	if len(p.spares) >= maxSpares || s.size != uint64(p.w.cfg.SegmentBytes) {
		if err := errors.Join(s.file.Close(), p.w.fs.Remove(s.name)); err != nil {
			return err
		}
		return p.w.fs.SyncDir()
	}
	// A value of its own: who still has the old one must not see it change.
	spare := &segment{name: fmt.Sprintf("%s%016x%s", sparePrefix, s.seq, tmpSuffix), file: s.file}
	p.spares = append(p.spares, spare)
	if err := p.w.fs.Rename(s.name, spare.name); err != nil {
		return err
	}
	return p.w.fs.SyncDir()
}

// close waits for those who read.
func (s *segment) close() error {
	s.reading.Lock()
	defer s.reading.Unlock()
	return s.file.Close()
}

// make has a segment ready under a temporary name.
func (p *preparer) make(seq uint64) (*segment, error) {
	if p.failed != nil {
		return nil, p.failed
	}
	var s *segment
	if n := len(p.spares); n > 0 {
		s = p.spares[n-1]
		p.spares = p.spares[:n-1]
	} else {
		name := fmt.Sprintf("%016x%s", seq, tmpSuffix)
		f, err := p.w.fs.Open(name, true)
		if err != nil {
			return nil, err
		}
		s = &segment{name: name, file: f}
		if err := fill(f, 0, p.w.cfg.SegmentBytes); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		p.w.counters.made.Add(1)
	}
	s.segmentHeader = segmentHeader{wal: p.w.id, seq: seq, salt: rand.Uint64(), size: uint64(p.w.cfg.SegmentBytes)}
	if err := writeHeader(s); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

// inPages rounds up to whole pages: the end of a file is written as one.
func inPages(n int64) int64 { return (n + headerBytes - 1) / headerBytes * headerBytes }

// fill writes zeros: only then is writing to the file later a matter of its bytes alone. The header,
// which follows, is synced, and they with it.
func fill(f File, from, to int64) error {
	zeros := make([]byte, min(256<<10, to-from))
	for from < to {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-from)], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

func writeHeader(s *segment) error {
	if _, err := s.file.WriteAt(s.encode(), 0); err != nil {
		return err
	}
	return s.file.Sync()
}
