package backup

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Names in a directory.
const (
	manifestName = "manifest.json"
	// sumName has the SHA-256 of the manifest, as sha256sum -c reads it.
	sumName = "manifest.json.sha256"
)

// Backup is a backup that was opened: its manifest is read and checked, its records are not yet. It holds no file open.
type Backup struct {
	Path     string
	Dir      bool // a directory with a file for each shard
	Manifest *Manifest
}

// Open reads the manifest of the backup at path, a file or a directory.
func Open(path string) (*Backup, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err // it names the file
	}
	b := &Backup{Path: path, Dir: info.IsDir()}
	if b.Dir {
		b.Manifest, err = readDirManifest(path)
	} else {
		b.Manifest, err = readFileManifest(path)
	}
	if err != nil {
		return nil, err
	}
	for _, s := range b.Manifest.Shards {
		if b.Dir != (s.File != "") {
			return nil, &DamageError{path, -1, fmt.Sprintf("the manifest: shard %d has file %q", s.ID, s.File)}
		}
	}
	return b, nil
}

func readDirManifest(path string) (*Manifest, error) {
	name := filepath.Join(path, manifestName)
	text, err := readSmall(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: there is no %s in it", path, ErrNotBackup, manifestName)
	} else if err != nil {
		return nil, err
	}
	sum, err := readSmall(filepath.Join(path, sumName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: there is no %s in it", path, ErrTruncated, sumName)
	} else if err != nil {
		return nil, err
	}
	if string(sum) != sumLine(text) {
		return nil, &DamageError{name, -1, "its SHA-256 is not that in " + sumName}
	}
	return parseManifest(name, text)
}

// sumLine is what stands in sumName.
func sumLine(manifest []byte) string {
	return fmt.Sprintf("%x  %s\n", sha256.Sum256(manifest), manifestName)
}

// readSmall reads a file that is no longer than a manifest may be.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(b) > maxManifest {
		err = &DamageError{path, -1, fmt.Sprintf("it is longer than %d bytes", maxManifest)}
	}
	return b, err
}

func readFileManifest(path string) (*Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return archiveManifest(path, f, info.Size())
}

// archiveManifest reads the manifest of an archive of that size.
func archiveManifest(path string, f io.ReaderAt, size int64) (*Manifest, error) {
	if err := (&blockReader{path: path, r: io.NewSectionReader(f, 0, size)}).head(kindArchive); err != nil {
		return nil, err
	}
	end := size - trailerBytes
	if end < headBytes {
		return nil, fmt.Errorf("%s: %w", path, ErrTruncated)
	}
	var trailer [trailerBytes]byte
	if _, err := f.ReadAt(trailer[:], end); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	at, err := parseTrailer(path, trailer[:])
	if err != nil {
		return nil, err
	}
	if at < headBytes || at > end-blockBytes {
		return nil, &DamageError{path, -1, fmt.Sprintf("its trailer has the manifest at byte %d", at)}
	}
	h, text, _, err := (&blockReader{path: path, r: io.NewSectionReader(f, at, end-at), at: at}).next()
	if err != nil {
		return nil, err
	}
	if h.kind != blockManifest || at+blockBytes+int64(h.length) != end || h.length > maxManifest {
		return nil, &DamageError{path, at, "no manifest where the trailer has it"}
	}
	return parseManifest(path, text)
}

// Each reads the whole backup, checks all of it, and calls each for every record, in the order of the file: the shards' records come mixed, those of one
// in the order of their slots and keys. A record's bytes are good during the call only. An error of each ends it and is returned as
// it is. read is told how many bytes of the files were read so far, before each block is handed out; both may be nil. Without an error everything
// was there and right; the records that were handed out before one are right, too, but not all.
func (b *Backup) Each(ctx context.Context, read func(bytes int64), each func(Shard, Record) error) error {
	if read == nil {
		read = func(int64) {}
	}
	p := &pass{b: b, ctx: ctx, read: read, each: each, shards: map[uint32]*part{}}
	for _, s := range b.Manifest.Shards {
		slots, err := parseSlots(s.Slots)
		if err != nil {
			return &DamageError{b.Path, -1, err.Error()}
		}
		p.shards[s.ID] = &part{s, newChecker(slots)}
	}
	if !b.Dir {
		return p.file(b.Path, kindArchive)
	}
	for _, s := range b.Manifest.Shards {
		if err := p.file(filepath.Join(b.Path, s.File), kindShard); err != nil {
			return err
		}
	}
	return p.agree(b.Path)
}

// Verify is Each for who wants no records.
func (b *Backup) Verify(ctx context.Context, read func(bytes int64)) error {
	return b.Each(ctx, read, nil)
}

// Size is how many bytes its files have.
func (b *Backup) Size() (total int64, err error) {
	if !b.Dir {
		info, err := os.Stat(b.Path)
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	}
	for _, s := range b.Manifest.Shards {
		info, err := os.Stat(filepath.Join(b.Path, s.File))
		if err != nil {
			return 0, err
		}
		total += info.Size()
	}
	return total, nil
}

// pass is one reading of a whole backup.
type pass struct {
	b      *Backup
	ctx    context.Context
	before int64 // bytes of the files that were read before this one
	read   func(int64)
	each   func(Shard, Record) error
	shards map[uint32]*part
}

type part struct {
	Shard
	*checker
}

func (p *pass) file(path string, kind byte) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w: the file of a shard is missing", path, ErrTruncated)
	} else if err != nil {
		return err
	}
	defer f.Close()
	r := &blockReader{path: path, r: bufio.NewReaderSize(f, 1<<20)}
	if err := r.head(kind); err != nil {
		return err
	}
	if err := p.blocks(r, kind); err != nil {
		return err
	}
	p.before += r.at
	if kind == kindArchive {
		return p.agree(path)
	}
	return nil
}

// blocks reads blocks to the last one.
func (p *pass) blocks(r *blockReader, kind byte) error {
	for {
		if err := context.Cause(p.ctx); err != nil {
			return err
		}
		h, payload, at, err := r.next()
		if err != nil {
			return err
		}
		p.read(p.before + r.at)
		last := byte(blockEnd)
		if kind == kindArchive {
			last = blockManifest
		}
		switch h.kind {
		case last:
			return nil
		case blockRecords:
		default:
			return &DamageError{r.path, at, fmt.Sprintf("a block of type %d", h.kind)}
		}
		s := p.shards[h.shard]
		if s == nil {
			return &DamageError{r.path, at, fmt.Sprintf("a block of shard %d, which is not in the manifest", h.shard)}
		}
		if h.attempt != s.Attempt {
			continue // a replica was lost while it was read, and this is what had come of it
		}
		if h.number != s.blocks {
			return &DamageError{r.path, at, fmt.Sprintf("block %d of shard %d where block %d should be", h.number, h.shard, s.blocks)}
		}
		var each func(Record) error
		if p.each != nil {
			each = func(rec Record) error { return p.each(s.Shard, rec) }
		}
		records, err := s.block(payload, each)
		var stopped *stop
		switch {
		case errors.As(err, &stopped):
			return stopped.err
		case err != nil:
			return &DamageError{r.path, at, err.Error()}
		case records != h.records:
			return &DamageError{r.path, at, fmt.Sprintf("%d records in a block of %d", records, h.records)}
		}
	}
}

// agree compares what was read with the manifest.
func (p *pass) agree(path string) error {
	for _, s := range p.b.Manifest.Shards {
		if err := p.shards[s.ID].agrees(s); err != nil {
			return &DamageError{path, -1, err.Error()}
		}
	}
	p.read(p.before)
	return nil
}
