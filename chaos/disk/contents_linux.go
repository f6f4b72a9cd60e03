package disk

import (
	"errors"
	"hash/maphash"
	"os"
	"runtime/debug"
	"syscall"
)

// Witness sees the files of a disk as those who write to them do, what is only in
// the page cache included, and goes on to see that when the power is cut: it has
// mapped them before.
type Witness struct {
	disk *Disk
	maps map[string][]byte
}

// Witness maps the files that are there now. Release must follow, before Restore.
func (d *Disk) Witness() (*Witness, error) {
	w := &Witness{disk: d, maps: map[string][]byte{}}
	err := d.walk(func(path string, size int64) error {
		if size == 0 {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		m, err := syscall.Mmap(int(f.Fd()), 0, int(size), syscall.PROT_READ, syscall.MAP_SHARED)
		if err == nil {
			w.maps[path] = m
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, w.Release())
	}
	return w, nil
}

// Release lets go of the files.
func (w *Witness) Release() error {
	var errs []error
	for _, m := range w.maps {
		errs = append(errs, syscall.Munmap(m))
	}
	w.maps = nil
	return errors.Join(errs...)
}

// Contents is a hash of each page of each file, by path.
type Contents map[string][]uint64

var hashSeed = maphash.MakeSeed()

// Contents returns what the files hold.
func (w *Witness) Contents() Contents {
	c := Contents{}
	for path, m := range w.maps {
		c[path] = hashPages(m)
	}
	return c
}

// hashPages stops where the file has become shorter than it was when it was mapped.
func hashPages(m []byte) (hashes []uint64) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { _ = recover() }()
	for at := 0; at < len(m); at += pageBytes {
		hashes = append(hashes, maphash.Bytes(hashSeed, m[at:min(at+pageBytes, len(m))]))
	}
	return hashes
}

// Lost counts the pages of before that are not what they were, or not there.
func (before Contents) Lost(after Contents) (pages int) {
	for path, hashes := range before {
		now := after[path]
		for i, h := range hashes {
			if i >= len(now) || now[i] != h {
				pages++
			}
		}
	}
	return pages
}
