//go:build linux

package campaign

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// evidenceBytes bounds what is kept of each node's data, before it is packed.
const evidenceBytes = 512 << 20

// keepData packs the data directories and logs of all nodes into a directory, when nobody writes there any more: their disks go with the run.
func (b *bed) keepData(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, n := range b.c.Nodes() {
		to := filepath.Join(dir, n.ID()+"-data.tar.gz")
		left, err := pack(to, n.DataDir(), evidenceBytes)
		if err != nil {
			errs = append(errs, fmt.Errorf("keep the data of %s: %w", n.ID(), err))
		}
		b.log("the data of %s is kept in %s%s", n.ID(), to, left)
	}
	return errors.Join(errs...)
}

// pack writes the files below a directory into a compressed archive, as long as they have no more than so many bytes together. It says in words what
// it has left out. A file that cannot be read is no reason to do without the others.
func pack(to, dir string, mostBytes int64) (left string, err error) {
	f, err := os.Create(to)
	if err != nil {
		return "", err
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed) // mostly zeros
	if err != nil {
		return "", errors.Join(err, f.Close())
	}
	t := tar.NewWriter(z)
	files, bytes := 0, int64(0)
	var errs []error
	walked := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			errs = append(errs, err)
			return nil
		}
		info, err := e.Info()
		if err != nil {
			errs = append(errs, err)
			return nil
		}
		if info.Size() > mostBytes {
			files, bytes = files+1, bytes+info.Size()
			return nil
		}
		mostBytes -= info.Size()
		name, err := filepath.Rel(dir, path)
		if err == nil {
			err = packFile(t, path, name, info)
		}
		return err // the archive is broken from here on
	})
	if files > 0 {
		left = fmt.Sprintf(", but for %d files of %d MiB", files, bytes>>20)
	}
	return left, errors.Join(append(errs, walked, t.Close(), z.Close(), f.Close())...)
}

func packFile(t *tar.Writer, path, name string, info fs.FileInfo) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	h.Name = name
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(t, f, info.Size())
	return err
}
