package wal

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
)

// memFS is a directory in memory whose power can be cut. What is written goes to its page cache; Sync
// makes a file's bytes durable, SyncDir the names. It is also what makes operations fail.
type memFS struct {
	mu      sync.Mutex
	names   map[string]*memInode // as the process sees them
	durable map[string]*memInode // as they are on the disk
	journal []dirOp              // what has happened since the last SyncDir
	life    int                  // handles are of a process: what was opened in an earlier life is void
	off     bool                 // no operation succeeds any more

	ops   int                              // how many there were
	cutAt int                              // 0, or the operation in whose middle everything ends
	fail  func(op fsOp, name string) error // an error is returned instead of doing it, or after half of a write
	hook  func(op fsOp, name string)       // called before each, without the lock
}

type fsOp string

const (
	opCreate  fsOp = "create"
	opOpen    fsOp = "open"
	opRename  fsOp = "rename"
	opRemove  fsOp = "remove"
	opSyncDir fsOp = "syncdir"
	opWrite   fsOp = "write"
	opSync    fsOp = "sync"
	opRead    fsOp = "read"
)

type dirOp struct {
	from, to string // from "": the file is new; to "": it is gone
	inode    *memInode
}

type memInode struct {
	name        string // the newest
	cache, disk []byte
	dirty       []dirtyWrite // since the last sync
}

type dirtyWrite struct {
	off  int64
	data []byte
}

const sectorBytes = 512

var errOff = errors.New("no power")

func newMemFS() *memFS {
	return &memFS{names: map[string]*memInode{}, durable: map[string]*memInode{}}
}

// begin begins an operation, with the lock held when it returns. cut says that everything ends in its middle.
func (m *memFS) begin(op fsOp, name string) (cut bool, err error) {
	m.mu.Lock()
	if hook := m.hook; hook != nil {
		m.mu.Unlock()
		hook(op, name)
		m.mu.Lock()
	}
	if m.off {
		return false, errOff
	}
	if m.fail != nil {
		if err := m.fail(op, name); err != nil {
			return false, &os.PathError{Op: string(op), Path: name, Err: err}
		}
	}
	if op == opRead || op == opOpen {
		return false, nil
	}
	m.ops++
	if m.ops == m.cutAt {
		m.off = true
		return true, nil
	}
	return false, nil
}

func (m *memFS) Names() ([]string, error) {
	defer m.mu.Unlock()
	if _, err := m.begin(opOpen, "."); err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(m.names)), nil
}

func (m *memFS) Open(name string, create bool) (File, error) {
	defer m.mu.Unlock()
	op := opOpen
	if create {
		op = opCreate
	}
	cut, err := m.begin(op, name)
	if err != nil {
		return nil, err
	}
	inode := m.names[name]
	switch {
	case create && inode != nil:
		return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrExist}
	case create:
		inode = &memInode{name: name}
		m.names[name] = inode
		m.journal = append(m.journal, dirOp{"", name, inode})
	case inode == nil:
		return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
	}
	if cut {
		return nil, errOff
	}
	return &memHandle{fs: m, inode: inode, life: m.life}, nil
}

func (m *memFS) Rename(from, to string) error {
	defer m.mu.Unlock()
	cut, err := m.begin(opRename, from)
	if err != nil {
		return err
	}
	inode := m.names[from]
	if inode == nil {
		return &os.PathError{Op: "rename", Path: from, Err: os.ErrNotExist}
	}
	delete(m.names, from)
	m.names[to], inode.name = inode, to
	m.journal = append(m.journal, dirOp{from, to, inode})
	if cut {
		return errOff
	}
	return nil
}

func (m *memFS) Remove(name string) error {
	defer m.mu.Unlock()
	cut, err := m.begin(opRemove, name)
	if err != nil {
		return err
	}
	if m.names[name] == nil {
		return &os.PathError{Op: "remove", Path: name, Err: os.ErrNotExist}
	}
	m.journal = append(m.journal, dirOp{name, "", m.names[name]})
	delete(m.names, name)
	if cut {
		return errOff
	}
	return nil
}

func (m *memFS) SyncDir() error {
	defer m.mu.Unlock()
	cut, err := m.begin(opSyncDir, ".")
	if err != nil {
		return err
	}
	if cut {
		return errOff
	}
	m.durable, m.journal = maps.Clone(m.names), nil
	return nil
}

// kill ends the process: its handles are void, what it wrote is in the page cache.
func (m *memFS) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = true
}

// restart is what a new process finds after a kill or the end of an operation that was cut.
func (m *memFS) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off, m.cutAt, m.fail, m.hook = false, 0, nil, nil
	m.life++
}

// powerCut is what a new process finds after a power cut: of what was not synced, sectors at random; of
// the directory's changes a random beginning, or if not ordered any of them.
func (m *memFS) powerCut(rng *rand.Rand, ordered bool) {
	m.restart()
	m.mu.Lock()
	defer m.mu.Unlock()
	n := rng.IntN(len(m.journal) + 1)
	for i, op := range m.journal {
		if ordered && i >= n || !ordered && rng.IntN(2) == 0 {
			continue
		}
		delete(m.durable, op.from)
		if op.to != "" {
			m.durable[op.to] = op.inode
		}
	}
	m.names, m.journal = maps.Clone(m.durable), nil
	keep := []float64{0, 0.1, 0.5, 0.9, 1}[rng.IntN(5)]
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		f := m.names[name]
		for _, w := range f.dirty {
			for len(w.data) > 0 {
				n := min(int(sectorBytes-w.off%sectorBytes), len(w.data))
				if rng.Float64() < keep {
					f.disk = writeAt(f.disk, w.data[:n], w.off)
				}
				w.off, w.data = w.off+int64(n), w.data[n:]
			}
		}
		f.name, f.dirty, f.cache = name, nil, slices.Clone(f.disk)
	}
}

// clone is an independent copy of what is on the disk.
func (m *memFS) clone() *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := newMemFS()
	for name, f := range m.durable {
		n := &memInode{name: name, cache: slices.Clone(f.disk), disk: slices.Clone(f.disk)}
		c.names[name], c.durable[name] = n, n
	}
	return c
}

// edit changes a file behind everybody's back; nil removes it.
func (m *memFS) edit(name string, change func(b []byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.names[name]
	if f == nil {
		f = &memInode{name: name}
		m.names[name], m.durable[name] = f, f
	}
	b := change(f.cache)
	if b == nil {
		delete(m.names, name)
		delete(m.durable, name)
		return
	}
	f.cache, f.disk, f.dirty = b, slices.Clone(b), nil
}

// setHook sets what is called before each operation.
func (m *memFS) setHook(hook func(fsOp, string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = hook
}

// gate holds the next sync of a segment in use: held is closed when it has come, and it goes on when
// release is called.
func (m *memFS) gate() (held chan struct{}, release func()) {
	held, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.setHook(func(op fsOp, name string) {
		if _, ok := parseSegmentName(name); ok && op == opSync {
			once.Do(func() { close(held) })
			<-free
		}
	})
	return held, sync.OnceFunc(func() {
		m.setHook(nil)
		close(free)
	})
}

func (m *memFS) bytes(name string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.names[name]; f != nil {
		return slices.Clone(f.cache)
	}
	return nil
}

func writeAt(b, data []byte, off int64) []byte {
	if end := int(off) + len(data); end > len(b) {
		b = append(b, make([]byte, end-len(b))...)
	}
	copy(b[off:], data)
	return b
}

type memHandle struct {
	fs     *memFS
	inode  *memInode
	life   int
	closed bool
}

func (h *memHandle) begin(op fsOp) (cut bool, err error) {
	h.fs.mu.Lock()
	name := h.inode.name
	h.fs.mu.Unlock()
	cut, err = h.fs.begin(op, name)
	if err == nil && h.life != h.fs.life {
		return false, errOff
	}
	if err == nil && h.closed {
		return false, os.ErrClosed
	}
	return cut, err
}

func (h *memHandle) ReadAt(b []byte, off int64) (int, error) {
	defer h.fs.mu.Unlock()
	if _, err := h.begin(opRead); err != nil {
		return 0, err
	}
	if off > int64(len(h.inode.cache)) {
		return 0, io.EOF
	}
	n := copy(b, h.inode.cache[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *memHandle) WriteAt(b []byte, off int64) (int, error) {
	defer h.fs.mu.Unlock()
	cut, err := h.begin(opWrite)
	if err != nil {
		if errors.Is(err, errShort) {
			h.write(b[:len(b)/2], off)
			return len(b) / 2, err
		}
		return 0, err
	}
	h.write(b, off)
	if cut {
		return 0, errOff
	}
	return len(b), nil
}

func (h *memHandle) write(b []byte, off int64) {
	h.inode.cache = writeAt(h.inode.cache, b, off)
	h.inode.dirty = append(h.inode.dirty, dirtyWrite{off, slices.Clone(b)})
}

var errShort = errors.New("short write")

// Sync that fails leaves the page cache as it is, and clean: nothing of it gets to the disk by another
// Sync (as on Linux).
func (h *memHandle) Sync() error {
	defer h.fs.mu.Unlock()
	cut, err := h.begin(opSync)
	if err != nil {
		if !errors.Is(err, errOff) {
			h.inode.dirty = nil
		}
		return err
	}
	if cut {
		return errOff
	}
	for _, w := range h.inode.dirty {
		h.inode.disk = writeAt(h.inode.disk, w.data, w.off)
	}
	h.inode.dirty = nil
	return nil
}

func (h *memHandle) WriteSync(b []byte, off int64) error {
	if _, err := h.WriteAt(b, off); err != nil {
		return err
	}
	return h.Sync()
}

func (h *memHandle) Size() (int64, error) {
	defer h.fs.mu.Unlock()
	if _, err := h.begin(opRead); err != nil {
		return 0, err
	}
	return int64(len(h.inode.cache)), nil
}

func (h *memHandle) Close() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.closed {
		return os.ErrClosed
	}
	h.closed = true
	return nil
}

func (m *memFS) isDurable(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.durable[name] != nil
}
