package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"
)

// Which pages of a bbolt file are in use as of a transaction. bbolt itself tells only a writer. The list of free pages that the transaction's checkpoint wrote has
// every page that its trees do not reach, and stays as it is while the transaction is open, for a page that a later one frees is not used again before. Where
// anything is not as it should be, all pages count as used: a copy is larger then, and as good.

// run is a part of a file, up to but without to.
type run struct{ from, to int64 }

const (
	boltMagic      = 0xED0CDAED
	boltFormat     = 2
	boltPageHead   = 16
	boltMetaBytes  = 64
	flagFreelist   = 0x10
	noFreelist     = ^uint64(0)
	countIsInFirst = 0xFFFF // more ids than the count has room for
)

// usedRuns are the parts of the file that a copy needs.
func usedRuns(f *fileLayer) []run {
	all := []run{{0, f.tx.Size()}}
	file, err := os.Open(f.path)
	if err != nil {
		return all
	}
	defer file.Close()
	pageSize := int64(f.tx.DB().Info().PageSize)
	metas, err := metaPages(f.tx)
	if err != nil {
		return all
	}
	list, ok := freelistOf(bytes.NewReader(metas), pageSize, uint64(f.tx.ID()))
	if !ok {
		return all
	}
	free, ok := freePages(file, pageSize, list, f.tx.Size()/pageSize)
	if !ok {
		return all
	}
	var runs []run
	at := int64(0)
	for _, id := range free {
		if from := int64(id) * pageSize; from > at {
			runs = append(runs, run{at, from})
		}
		at = int64(id+1) * pageSize
	}
	if at < f.tx.Size() {
		runs = append(runs, run{at, f.tx.Size()})
	}
	return runs
}

// freelistOf is the page of the list of free pages that a transaction's meta page names. The metas are those of the transaction: in the file they may be another's by now.
func freelistOf(file io.ReaderAt, pageSize int64, txid uint64) (page uint64, ok bool) {
	for i := range int64(2) {
		var m [boltMetaBytes]byte
		if _, err := file.ReadAt(m[:], i*pageSize+boltPageHead); err != nil {
			return 0, false
		}
		le := binary.LittleEndian
		sum := fnv.New64a() // it may be just being written
		sum.Write(m[:boltMetaBytes-8])
		if le.Uint32(m[0:]) == boltMagic && le.Uint32(m[4:]) == boltFormat && le.Uint64(m[48:]) == txid && le.Uint64(m[56:]) == sum.Sum64() {
			page = le.Uint64(m[32:])
			return page, page != noFreelist
		}
	}
	return 0, false
}

// freePages reads a list of free pages; it must be in order, and within the file.
func freePages(file io.ReaderAt, pageSize int64, page uint64, pages int64) (free []uint64, ok bool) {
	le := binary.LittleEndian
	var head [boltPageHead + 8]byte
	if _, err := file.ReadAt(head[:], int64(page)*pageSize); err != nil {
		return nil, false
	}
	if le.Uint64(head[0:]) != page || le.Uint16(head[8:])&flagFreelist == 0 {
		return nil, false
	}
	count, at := int64(le.Uint16(head[10:])), int64(boltPageHead)
	if count == countIsInFirst {
		count, at = int64(le.Uint64(head[boltPageHead:])), boltPageHead+8
	}
	if count < 0 || count > pages {
		return nil, false
	}
	raw := make([]byte, 8*count)
	if _, err := file.ReadAt(raw, int64(page)*pageSize+at); err != nil {
		return nil, false
	}
	free = make([]uint64, count)
	for i := range free {
		free[i] = le.Uint64(raw[8*i:])
		if free[i] < 2 || free[i] >= uint64(pages) || free[i] == page || i > 0 && free[i] <= free[i-1] {
			return nil, false
		}
	}
	return free, slices.IsSorted(free)
}

// runWriter is written a file from its beginning, and writes the runs of it.
type runWriter struct {
	w    io.Writer
	runs []run
	at   int64
}

func (r *runWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 && len(r.runs) > 0 {
		next := &r.runs[0]
		if skip := min(int64(len(b)), next.from-r.at); skip > 0 && r.at < next.from {
			b, n, r.at = b[skip:], n+int(skip), r.at+skip
			continue
		}
		if r.at == next.from {
			head := binary.BigEndian.AppendUint64(nil, uint64(next.from))
			if _, err := r.w.Write(binary.BigEndian.AppendUint64(head, uint64(next.to-next.from))); err != nil {
				return n, err
			}
		}
		part := b[:min(int64(len(b)), next.to-r.at)]
		k, err := r.w.Write(part)
		b, n, r.at = b[k:], n+k, r.at+int64(k)
		if err != nil {
			return n, err
		}
		if r.at == next.to {
			r.runs = r.runs[1:]
		}
	}
	r.at += int64(len(b))
	return n + len(b), nil
}

// readRuns writes the runs of a stream where they belong in a file of that size.
func readRuns(f *os.File, r io.Reader, size int64) error {
	buf := make([]byte, 256<<10)
	for at := int64(0); ; {
		var head [runHead]byte
		if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: the stream ends in its runs", errRuns)
		} else if err != nil {
			return err
		}
		from, n := int64(binary.BigEndian.Uint64(head[:])), int64(binary.BigEndian.Uint64(head[8:]))
		if n == 0 && from == 0 {
			return f.Truncate(size)
		}
		if n <= 0 || from < at || n > size || from > size-n {
			return fmt.Errorf("%w: a run of %d bytes at %d of %d", errRuns, n, from, size)
		}
		// The struct hides the file's ReadFrom, which would ignore the buffer.
		if k, err := io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(f, from)}, io.LimitReader(r, n), buf); err != nil || k != n {
			if err == nil {
				err = fmt.Errorf("%w: the stream ends in a run", errRuns)
			}
			return err
		}
		at = from + n
	}
}

// errRuns: the runs of a stream are not what they can be.
var errRuns = errors.New("malformed runs")
