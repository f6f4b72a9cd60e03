package backup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// writer writes a backup under a temporary name beside the final one, which it gets when all of it is on the disk. Several goroutines may add
// blocks, each of another shard.
type writer struct {
	path string // the final name
	tmp  string
	dir  bool

	mu      sync.Mutex
	archive *file            // of all shards
	files   map[uint32]*file // one for each
}

// file is an output with its buffer.
type file struct {
	f *os.File
	w *bufio.Writer
	n int64
	// buf is a block on its way.
	buf []byte
}

func createFile(path string, kind byte) (*file, error) {
	// Values are whoever's: nobody else is to read them.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	o := &file{f: f, w: bufio.NewWriterSize(f, 1<<20)}
	return o, o.write(appendHead(nil, kind))
}

func (o *file) write(b []byte) error {
	n, err := o.w.Write(b)
	o.n += int64(n)
	return err
}

func (o *file) block(h header, payload []byte) error {
	o.buf = appendBlock(o.buf[:0], h, payload)
	return o.write(o.buf)
}

// finish puts all of it on the disk and closes it.
func (o *file) finish() error {
	err := o.w.Flush()
	if err == nil {
		err = o.f.Sync()
	}
	return errors.Join(err, o.f.Close())
}

// newWriter makes the temporary file or directory. A path that ends in a separator becomes a directory.
func newWriter(path string) (w *writer, err error) {
	w = &writer{path: filepath.Clean(path), dir: strings.HasSuffix(path, string(filepath.Separator)), files: map[uint32]*file{}}
	if _, err := os.Lstat(w.path); err == nil {
		return nil, fmt.Errorf("%s: %w", w.path, ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	parent, name := filepath.Split(w.path)
	if parent == "" {
		parent = "."
	}
	if w.tmp, err = os.MkdirTemp(parent, "."+name+".partial-*"); err != nil {
		return nil, err
	}
	if !w.dir {
		if w.archive, err = createFile(filepath.Join(w.tmp, name), kindArchive); err != nil {
			w.abort()
			return nil, err
		}
	}
	return w, nil
}

func shardFile(shard uint32) string { return fmt.Sprintf("shard-%04d.abk", shard) }

// block adds a block of records.
func (w *writer) block(h header, payload []byte) error {
	h.kind = blockRecords
	if !w.dir {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.archive.block(h, payload)
	}
	o, err := w.of(h.shard)
	if err != nil {
		return err
	}
	return o.block(h, payload)
}

func (w *writer) of(shard uint32) (*file, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o := w.files[shard]; o != nil {
		return o, nil
	}
	o, err := createFile(filepath.Join(w.tmp, shardFile(shard)), kindShard)
	if o != nil {
		w.files[shard] = o
	}
	return o, err
}

// commit adds the manifest, puts everything on the disk and gives it its name.
func (w *writer) commit(m *Manifest) error {
	if w.dir {
		for i := range m.Shards {
			m.Shards[i].File = shardFile(m.Shards[i].ID)
		}
	}
	text, err := m.encode()
	if err != nil {
		return err
	}
	from := w.tmp
	if w.dir {
		err = w.commitDir(m, text)
	} else {
		from = filepath.Join(w.tmp, filepath.Base(w.path))
		at := w.archive.n
		if err = w.archive.block(header{kind: blockManifest}, text); err == nil {
			err = w.archive.write(appendTrailer(nil, at))
		}
		if err == nil {
			err = w.archive.finish()
		}
	}
	if err != nil {
		return err
	}
	// Somebody may have been faster: a rename would take away what is there.
	if _, err := os.Lstat(w.path); err == nil {
		return fmt.Errorf("%s: %w", w.path, ErrExists)
	}
	if err := os.Rename(from, w.path); err != nil {
		return err
	}
	w.archive, w.files = nil, nil
	if !w.dir {
		if err := os.Remove(w.tmp); err != nil {
			return err
		}
	}
	// Or a crash leaves bytes without a name.
	return syncDir(filepath.Dir(w.path))
}

func (w *writer) commitDir(m *Manifest, text []byte) error {
	for _, s := range m.Shards {
		o, err := w.of(s.ID) // made here, for a shard without keys
		if err != nil {
			return err
		}
		if err := o.block(header{kind: blockEnd, shard: s.ID}, nil); err != nil {
			return err
		}
		if err := o.finish(); err != nil {
			return err
		}
	}
	for name, b := range map[string][]byte{manifestName: text, sumName: []byte(sumLine(text))} {
		f, err := os.OpenFile(filepath.Join(w.tmp, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		if err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return syncDir(w.tmp)
}

// abort takes away what was written. After commit it does nothing.
func (w *writer) abort() {
	if w.archive != nil {
		w.archive.f.Close()
	}
	for _, o := range w.files {
		o.f.Close()
	}
	if w.archive != nil || w.files != nil {
		os.RemoveAll(w.tmp)
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
