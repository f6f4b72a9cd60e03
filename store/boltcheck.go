package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"syscall"
)

// bbolt finds the free pages of a file without a stored list by walking it, in a
// goroutine of its own, and panics there on the first damage: nobody can recover
// that, and the process would die at each start. So the file is walked here first, with plain
// reads, which do not fault beyond its end either.
//
// The format (bbolt's version 2, native byte order): pages begin with id (8), flags (2), count (2)
// and overflow (4), the number of pages that follow as part of it. Pages 0 and 1 are metas; the
// newer valid one names the root. Elements of a branch are pos, ksize (4 each), page (8); those of a leaf
// flags, pos, ksize, vsize (4 each); pos counts from the element. A leaf element with the bucket
// flag holds the bucket's root page (8) and a sequence (8); root 0 means that its page follows.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader = 16
	branchPage = 0x01
	leafPage   = 0x02
	bucketLeaf = 0x01
)

// checkBolt walks a bbolt file that nobody has open. A file that is not there, is empty or is
// locked is left to bbolt.
func checkBolt(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	// Somebody who writes would make it look damaged.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		return nil
	}
	defer func() { _ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return nil
	}
	w := &boltWalk{f: f, size: info.Size(), seen: map[uint64]bool{}}
	root, err := w.metas()
	if err == nil {
		_, err = w.tree(root, nil, nil, 0)
	}
	return err
}

type boltWalk struct {
	f        *os.File
	size     int64
	pageSize int64
	end      uint64 // the first page beyond those in use
	seen     map[uint64]bool
}

func damagedBolt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrLogDamaged, fmt.Sprintf(format, args...))
}

// metas reads both metas. One that is damaged condemns the file: bbolt would go back to
// the other, and with it to before the last commit, which may have been a vote. (A write of a meta
// lies within one sector, which disks write whole.)
func (w *boltWalk) metas() (root uint64, err error) {
	w.pageSize = int64(os.Getpagesize())
	var newest uint64
	for i := range int64(2) {
		if i == 1 && w.size < 2*w.pageSize {
			return 0, damagedBolt("%d bytes are too few", w.size)
		}
		b := make([]byte, pageHeader+64)
		if err := w.read(b, i*w.pageSize); err != nil {
			return 0, err
		}
		m := b[pageHeader:]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:56])
		u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
		if u32(m) != boltMagic || u32(m[4:]) != boltVersion || u64(m[56:]) != sum.Sum64() {
			return 0, damagedBolt("meta page %d", i)
		}
		if i == 0 {
			w.pageSize = int64(u32(m[8:])) // of the machine that made the file
			if w.pageSize < 512 || w.pageSize > 1<<20 {
				return 0, damagedBolt("pages of %d bytes", w.pageSize)
			}
		}
		if txid := u64(m[48:]); i == 0 || txid > newest {
			newest, root, w.end = txid, u64(m[16:]), u64(m[40:])
		}
	}
	// bbolt grows the file before a commit uses the new pages. Of one that is shorter than that, a part
	// is gone, be it only free pages: whatever cut it may have cut later commits off before.
	if w.end > uint64(w.size/w.pageSize) {
		return 0, damagedBolt("it ends at byte %d, with %d pages in use", w.size, w.end)
	}
	return root, nil
}

func (w *boltWalk) read(b []byte, at int64) error {
	if at < 0 || at+int64(len(b)) > w.size {
		return damagedBolt("it ends at byte %d, within a page", w.size)
	}
	_, err := w.f.ReadAt(b, at)
	return err
}

// tree checks the pages from a root on and returns the last key.
func (w *boltWalk) tree(id uint64, least, below []byte, depth int) (last []byte, err error) {
	if id < 2 || id >= w.end || depth > 64 {
		return nil, damagedBolt("page %d is referred to, %d are in use", id, w.end)
	}
	head := make([]byte, pageHeader)
	at := int64(id) * w.pageSize
	if err := w.read(head, at); err != nil {
		return nil, err
	}
	more := uint64(binary.NativeEndian.Uint32(head[12:]))
	if got := binary.NativeEndian.Uint64(head); got != id || id+more >= w.end {
		return nil, damagedBolt("page %d calls itself %d, with %d more", id, got, more)
	}
	for i := id; i <= id+more; i++ {
		if w.seen[i] {
			return nil, damagedBolt("page %d is used twice", i)
		}
		w.seen[i] = true
	}
	page := make([]byte, int64(more+1)*w.pageSize)
	if err := w.read(page, at); err != nil {
		return nil, err
	}
	return w.page(page, least, below, depth)
}

// page checks one page, or an inline bucket, and what is below it. least and below bound its keys.
func (w *boltWalk) page(b, least, below []byte, depth int) (last []byte, err error) {
	if len(b) < pageHeader {
		return nil, damagedBolt("a bucket of %d bytes", len(b))
	}
	id, flags, count := binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint16(b[8:]), int(binary.NativeEndian.Uint16(b[10:]))
	if flags != branchPage && flags != leafPage || flags == branchPage && count == 0 || len(b) < pageHeader+16*count {
		return nil, damagedBolt("page %d has flags %x and %d elements", id, flags, count)
	}
	type element struct {
		key, value []byte
		bucket     bool
		child      uint64
	}
	list := make([]element, count)
	for i := range list {
		at := pageHeader + 16*i
		n := func(j int) uint64 { return uint64(binary.NativeEndian.Uint32(b[at+4*j:])) }
		pos, ksize, vsize := n(1), n(2), n(3)
		e := &list[i]
		if flags == branchPage {
			pos, ksize, vsize = n(0), n(1), 0
			e.child = binary.NativeEndian.Uint64(b[at+8:])
		} else if e.bucket = n(0) == bucketLeaf; n(0)&^bucketLeaf != 0 {
			return nil, damagedBolt("page %d: element %d has flags %x", id, i, n(0))
		}
		from := uint64(at) + pos
		if from+ksize+vsize > uint64(len(b)) {
			return nil, damagedBolt("page %d: element %d lies outside", id, i)
		}
		e.key, e.value = b[from:from+ksize], b[from+ksize:from+ksize+vsize]
		switch order := bytes.Compare(e.key, last); {
		case i == 0 && bytes.Compare(e.key, least) < 0, i > 0 && order <= 0, below != nil && bytes.Compare(e.key, below) >= 0:
			return nil, damagedBolt("page %d: key %d is out of order", id, i)
		}
		last = e.key
	}
	for i, e := range list {
		switch {
		case flags == branchPage:
			bound := below
			if i+1 < count {
				bound = list[i+1].key
			}
			if last, err = w.tree(e.child, e.key, bound, depth+1); err != nil {
				return nil, err
			}
		case e.bucket:
			if len(e.value) < 16 {
				return nil, damagedBolt("page %d: bucket %q of %d bytes", id, e.key, len(e.value))
			}
			if root := binary.NativeEndian.Uint64(e.value); root != 0 {
				_, err = w.tree(root, nil, nil, depth+1)
			} else {
				_, err = w.page(e.value[16:], nil, nil, depth+1)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return last, nil
}
