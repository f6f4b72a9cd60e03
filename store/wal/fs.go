package wal

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// FS is the directory of a WAL. Tests have one that forgets what was not synced.
// Names are of files in it; errors are those of package os.
type FS interface {
	// Names lists the files.
	Names() ([]string, error)
	// Open opens a file for reading and writing, or with create makes an empty one.
	Open(name string, create bool) (File, error)
	// Rename, Remove and the names of new files are durable after SyncDir only.
	Rename(from, to string) error
	Remove(name string) error
	SyncDir() error
}

// File is an open file. Its methods may be called by several goroutines at once.
type File interface {
	io.ReaderAt
	io.WriterAt
	// WriteSync writes and returns when the bytes are durable. It is called by one goroutine at a
	// time, for places that follow each other but for alignBytes, and beside it nothing else writes.
	// What follows in the same page (of 4 KiB) may be overwritten with zeros.
	WriteSync(b []byte, off int64) error
	// Sync makes what was written durable (fdatasync).
	Sync() error
	Size() (int64, error)
	Close() error
}

// Dir is the FS of a directory, which exists.
func Dir(path string) FS { return dir(path) }

type dir string

func (d dir) path(name string) string { return filepath.Join(string(d), name) }

func (d dir) Names() ([]string, error) {
	list, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(list))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, nil
}

func (d dir) Open(name string, create bool) (File, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(d.path(name), flags, 0o600)
	if err != nil {
		return nil, err
	}
	return &osFile{File: f}, nil
}

func (d dir) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }
func (d dir) Remove(name string) error     { return os.Remove(d.path(name)) }

func (d dir) SyncDir() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

type osFile struct {
	*os.File
	direct direct
}

func (f *osFile) WriteSync(b []byte, off int64) error {
	if done, err := f.writeSync(b, off); done || err != nil {
		return err
	}
	if _, err := f.WriteAt(b, off); err != nil {
		return err
	}
	return f.Sync()
}

func (f *osFile) Sync() error { return datasync(f.File) }

func (f *osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f *osFile) Close() error { return errors.Join(f.closeDirect(), f.File.Close()) }
