package fsm

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Pins that have too much kept in the state's file are given a copy of what they read: a file beside the state that nobody else knows of. Then their
// transaction can end. The copy is not synced, for a start removes it.

// pinPrefix begins the names of these files.
const pinPrefix = "pin-"

// copyChunk is copied between two breaths, less if that would take more than a quarter of a second.
const copyChunk = 256 << 10

// errNoRoom: a copy would take more room than the disk has.
var errNoRoom = errors.New("the disk has no room for it")

// errPinGone: the pins have ended while their file was copied.
var errPinGone = errors.New("the pins have ended")

// copyOut begins to copy a source, for its pins. The caller holds mu, and is run, so that Close waits for what begins here.
func (p *pins) copyOut(src *source) {
	src.copying = true
	src.users++
	p.f.wg.Go(func() {
		defer p.release(src)
		began := time.Now()
		own, err := p.makeCopy(src)
		log := p.f.log.With("from", src.file.path, "took", time.Since(began))
		p.mu.Lock()
		defer p.mu.Unlock()
		src.copying = false
		pins := p.of(src)
		switch {
		case err == nil:
			p.open[own] = struct{}{}
			p.drop = append(p.drop, own) // that it was made
			for _, pn := range pins {
				own.users++
				p.drop = append(p.drop, src)
				pn.src = own
			}
			p.copied += uint64(len(pins))
			log.Info("pins read a copy of the state: too much of the file was kept for them", "pins", len(pins))
		case errors.Is(err, errPinGone) || errors.Is(err, ErrClosed):
		default:
			why := PinFault
			if errors.Is(err, errNoRoom) || errors.Is(err, syscall.ENOSPC) {
				why = PinDisk
			}
			for _, pn := range pins {
				p.end(pn, why)
			}
			log.Warn("copy the state for pins: they have ended", "pins", len(pins), "err", err)
		}
		p.wake()
	})
}

// makeCopy copies what a source reads. It has one user, who made it.
func (p *pins) makeCopy(src *source) (*source, error) {
	if !p.f.cfg.PinTurn.take(p.f.done) {
		return nil, ErrClosed
	}
	defer p.f.cfg.PinTurn.give()
	path := filepath.Join(p.f.dir, fmt.Sprintf("%s%d-%d.db", pinPrefix, src.gen.n, src.file.tx.ID()))
	if err := p.writeCopy(path, src); err != nil {
		removeQuietly(p.f.log, path)
		return nil, err
	}
	gen, err := openCopy(path, p.f.log)
	if err != nil {
		removeQuietly(p.f.log, path)
		return nil, fmt.Errorf("open copy %s: %w", path, err)
	}
	file, err := openFileLayer(gen)
	if err != nil {
		gen.release()
		return nil, err
	}
	return &source{gen: gen, file: file, copy: true, users: 1}, nil
}

// openCopy opens a copy. Its file goes with its last user.
func openCopy(path string, log *slog.Logger) (_ *generation, err error) {
	defer damageIsError(path, &err)()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	return &generation{path: path, db: db, log: log, users: 1, retired: true, ended: make(chan struct{})}, nil
}

// writeCopy writes the pages that the transaction of a file has in use, no faster than it may.
func (p *pins) writeCopy(path string, src *source) (err error) {
	file := src.file
	metas, err := metaPages(file.tx)
	if err != nil {
		return fmt.Errorf("read %s: %w", file.path, err)
	}
	runs, total := usedRuns(file), int64(0)
	for _, r := range runs {
		total += r.to - r.from
	}
	if !p.f.cfg.Room(total) {
		return errNoRoom
	}
	in, err := os.Open(file.path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := out.WriteAt(metas, 0); err != nil {
		return err
	}
	began, done, buf := time.Now(), int64(0), make([]byte, max(1, min(copyChunk, p.f.cfg.Pins.CopyBytes/4)))
	for _, r := range runs {
		for at := max(r.from, int64(len(metas))); at < r.to; {
			part := buf[:min(int64(len(buf)), r.to-at)]
			if _, err := in.ReadAt(part, at); err != nil {
				return fmt.Errorf("read %s: %w", file.path, err)
			}
			if _, err := out.WriteAt(part, at); err != nil {
				return err
			}
			at += int64(len(part))
			done += int64(len(part))
			if err := p.pace(src, began, done); err != nil {
				return err
			}
		}
	}
	return out.Truncate(file.tx.Size())
}

// pace waits until so many bytes may be written since a copy began, and says whether it may go on.
func (p *pins) pace(src *source, began time.Time, done int64) error {
	due := time.Duration(float64(done) / float64(p.f.cfg.Pins.CopyBytes) * float64(time.Second))
	pause := time.NewTimer(due - time.Since(began))
	defer pause.Stop()
	select {
	case <-p.f.done:
		return ErrClosed
	case <-pause.C:
	}
	p.mu.Lock()
	gone := len(p.of(src)) == 0
	p.mu.Unlock()
	switch {
	case gone:
		return errPinGone
	case !p.f.cfg.Room(0):
		return errNoRoom
	}
	return nil
}

// metaPages are the two pages that a copy of a file begins with: they name the trees of the transaction, where those in the file may be of checkpoints since.
func metaPages(tx *bolt.Tx) ([]byte, error) {
	w := headWriter{left: 2 * tx.DB().Info().PageSize}
	if _, err := tx.WriteTo(&w); err != nil && !errors.Is(err, errHead) {
		return nil, err
	}
	if w.left > 0 {
		return nil, io.ErrUnexpectedEOF
	}
	return w.head, nil
}

// headWriter keeps the beginning of what is written, and then wants no more.
type headWriter struct {
	head []byte
	left int
}

var errHead = errors.New("enough")

func (w *headWriter) Write(b []byte) (int, error) {
	n := min(len(b), w.left)
	w.head, w.left = append(w.head, b[:n]...), w.left-n
	if n < len(b) {
		return n, errHead
	}
	return n, nil
}
