package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/abacusdb/abacus/fsm/lookahead"
	"github.com/abacusdb/abacus/fsm/planted"
	bolt "go.etcd.io/bbolt"
)

// generation is one state file. A restored snapshot is the next generation; the
// file of the old one goes when its last user is done with it.
type generation struct {
	n    uint64
	path string
	db   *bolt.DB
	log  *slog.Logger
	// mapped is the address space that the file has at least, in bytes.
	mapped int64
	disk   lookahead.Disk

	mu      sync.Mutex
	users   int  // the FSM itself, views, streams
	retired bool // a newer generation took over

	ended    chan struct{} // closed once the file is closed
	closeErr error         // set before ended closes
}

// acquire counts one more user, or says false when the file is closed already.
func (g *generation) acquire() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.users == 0 {
		return false
	}
	g.users++
	return true
}

func (g *generation) release() {
	g.mu.Lock()
	g.users--
	last, retired := g.users == 0, g.retired
	g.mu.Unlock()
	if !last {
		return
	}
	g.closeErr = g.db.Close()
	if retired {
		removeQuietly(g.log, g.path)
	}
	close(g.ended)
}

func (g *generation) isRetired() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.retired
}

// retire is the FSM letting go of a generation that another has replaced.
func (g *generation) retire() {
	g.mu.Lock()
	g.retired = true
	g.mu.Unlock()
	g.release()
}

const tmpSuffix = ".tmp"

func generationPath(dir string, n uint64) string {
	return filepath.Join(dir, "state-"+strconv.FormatUint(n, 10)+".db")
}

// openLatest opens the highest generation in dir, or makes the first. A file
// under its final name is complete; what a crash left behind is removed.
func openLatest(dir string, mmap int, log *slog.Logger) (*generation, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	var latest uint64
	var old []uint64
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, pinPrefix) {
			removeQuietly(log, filepath.Join(dir, name))
			continue
		}
		if !strings.HasPrefix(name, "state-") {
			continue
		}
		if strings.HasSuffix(name, tmpSuffix) {
			removeQuietly(log, filepath.Join(dir, name))
			continue
		}
		num, ok := strings.CutSuffix(strings.TrimPrefix(name, "state-"), ".db")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(num, 10, 64)
		if err != nil || n == 0 {
			continue
		}
		old = append(old, n)
		latest = max(latest, n)
	}
	if latest == 0 {
		latest = 1
		if err := create(dir, latest); err != nil {
			return nil, fmt.Errorf("create state: %w", err)
		}
	}
	gen, err := openGeneration(dir, latest, mmap, log)
	if err != nil {
		return nil, err
	}
	for _, n := range old {
		if n != latest {
			removeQuietly(log, generationPath(dir, n))
		}
	}
	return gen, nil
}

func boltOptions(mmap int) *bolt.Options {
	return &bolt.Options{
		// Another process on this directory is an error, not something to wait out.
		Timeout:         time.Second,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: mmap,
		NoSync:          planted.Is(planted.NoSyncState),
		// The freelist stays synced: opening a large file without it reads all of it.
	}
}

// openBolt opens a state file that exists. bbolt panics or faults on a damaged
// one; here that is an error, for nothing runs yet that it could harm.
func openBolt(path string, mmap int) (db *bolt.DB, err error) {
	defer damageIsError(path, &err)()
	db, err = bolt.Open(path, 0o600, boltOptions(mmap))
	var sys syscall.Errno
	//lint:ignore SA1019 its new home is another package, and the import rules name what this one may import
	if err != nil && !errors.As(err, &sys) && !errors.Is(err, bolt.ErrTimeout) {
		// Neither the system nor the lock: it is what bbolt read.
		return nil, &CorruptError{Path: path, Reason: err.Error()}
	}
	return db, err
}

// damageIsError makes a panic or a fault of this goroutine a *CorruptError of that
// file: defer damageIsError(path, &err)().
func damageIsError(path string, err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = &CorruptError{Path: path, Reason: fmt.Sprint(p)}
		}
	}
}

// damagedSuffix marks a state file that was found to be damaged, so that no later
// start uses it.
const damagedSuffix = ".damaged"

// markDamaged leaves the mark. It is best effort: without it the damage is found again.
func markDamaged(path string, log *slog.Logger) {
	f, err := os.Create(path + damagedSuffix)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), syncDir(filepath.Dir(path)))
	}
	if err != nil {
		log.Error("mark damaged state file", "path", path, "err", err)
	}
}

func openGeneration(dir string, n uint64, mmap int, log *slog.Logger) (*generation, error) {
	path := generationPath(dir, n)
	if _, err := os.Stat(path + damagedSuffix); err == nil {
		return nil, &CorruptError{Path: path, Reason: "it was found damaged before"}
	}
	// A checkpoint that outgrows the map waits until nobody reads the file, and we do
	// ourselves (layers.file): it would hang, and the process end for it. The next start must
	// not run into the same wall.
	if info, err := os.Stat(path); err == nil {
		mmap = max(mmap, int(2*info.Size()))
	}
	db, err := openBolt(path, mmap)
	if err != nil {
		var corrupt *CorruptError // names the file
		if errors.As(err, &corrupt) {
			return nil, err
		}
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	return &generation{n: n, path: path, db: db, log: log, mapped: int64(mmap), users: 1, ended: make(chan struct{})}, nil
}

// create makes an empty state file. It gets its name only when it is whole.
func create(dir string, n uint64) error {
	path := generationPath(dir, n)
	db, err := bolt.Open(path+tmpSuffix, 0o600, boltOptions(0))
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		if err := meta.Put(metaFormat, []byte{format}); err != nil {
			return err
		}
		return meta.Put(metaState, (&header{}).encode(nil))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+tmpSuffix, path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a rename last: without it a crash may bring back the old name.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// receive writes a stream to the file of generation n, asks accept about it and
// opens it under its final name.
func receive(dir string, n uint64, r io.Reader, mmap int, log *slog.Logger, accept func(header) error) (*generation, error) {
	path := generationPath(dir, n)
	tmp := path + tmpSuffix
	if err := writeFile(tmp, r); err != nil {
		removeQuietly(log, tmp)
		return nil, err
	}
	h, err := inspect(tmp)
	if err == nil {
		err = accept(h)
	}
	if err != nil {
		removeQuietly(log, tmp)
		return nil, err
	}
	if err := os.Rename(tmp, path); err != nil {
		removeQuietly(log, tmp)
		return nil, err
	}
	// The name is there: a restart would open this file, so a failure from here on
	// cannot be answered by going on with the old one.
	if err := syncDir(dir); err != nil {
		return nil, &switchError{fmt.Errorf("sync directory %s after an install: %w", dir, err)}
	}
	gen, err := openGeneration(dir, n, mmap, log)
	if err != nil {
		return nil, &switchError{fmt.Errorf("open installed state: %w", err)}
	}
	return gen, nil
}

// switchError is a failure after the new file got its name.
type switchError struct{ error }

func (e *switchError) Unwrap() error { return e.error }

// writeFile writes the file in a stream, see OpenStream, and syncs it.
func writeFile(path string, r io.Reader) (err error) {
	var head [streamHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read stream head: %w", err)
	}
	form := StreamForm(head[0])
	if form != StreamWhole && form != StreamSparse {
		return &FormatError{Path: "(stream)", Got: head[0], Want: byte(StreamSparse)}
	}
	size := int64(binary.BigEndian.Uint64(head[1:]))
	if size < 0 {
		return &CorruptError{Path: path, Reason: "negative stream size"}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := crc32.New(castagnoli)
	if form == StreamSparse {
		err = readRuns(f, io.TeeReader(r, sum), size)
	} else {
		err = readWhole(f, io.TeeReader(io.LimitReader(r, size), sum), size)
	}
	if errors.Is(err, errRuns) {
		return &CorruptError{Path: path, Reason: err.Error()}
	}
	if err != nil {
		return err
	}
	var tail [streamTail]byte
	if _, err := io.ReadFull(r, tail[:]); err != nil {
		return &CorruptError{Path: path, Reason: "stream ends before its checksum"}
	}
	if binary.BigEndian.Uint32(tail[:]) != sum.Sum32() {
		return &CorruptError{Path: path, Reason: "stream checksum differs"}
	}
	return f.Sync()
}

// readWhole writes a file of that size.
func readWhole(f *os.File, r io.Reader, size int64) error {
	// The struct hides the file's ReadFrom, which would ignore the buffer.
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, r, make([]byte, 256<<10))
	if err == nil && n != size {
		err = fmt.Errorf("%w: the stream ends after %d of %d bytes", errRuns, n, size)
	}
	return err
}

// inspect checks a received file as far as it can be without reading all of it.
func inspect(path string) (h header, err error) {
	defer damageIsError(path, &err)()
	db, err := openBolt(path, 0)
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bolt.Tx) error {
		h, err = readHeader(tx, path)
		if err != nil {
			return err
		}
		counts, err := readCounts(tx)
		if err != nil {
			return &CorruptError{Path: path, Reason: err.Error()}
		}
		var sum slotCount
		for s, c, ok := counts.next(0); ok; s, c, ok = counts.next(int(s) + 1) {
			sum.add(c.records, c.bytes)
		}
		if sum != h.total {
			return &CorruptError{Path: path, Reason: "slot counts do not add up"}
		}
		return nil
	})
	return h, err
}
