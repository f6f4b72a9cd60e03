package fsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
)

// ErrSeedBehind: the copy of a state does not reach as far as it must.
var ErrSeedBehind = errors.New("state copy does not reach far enough")

// Seed says what the copy of another replica's state must be.
type Seed struct {
	ClusterID string
	Shard     uint32
	// MinIndex is how far it must have been applied: the log begins after that.
	MinIndex uint64
	// InitialMmapSize is Config's.
	InitialMmapSize int
	// Log; default: none.
	Log *slog.Logger
}

// Receive makes dir, which exists and is empty, a state for Open out of the stream r
// that OpenStream of another replica made, and returns what that was applied up to. It
// reads all of what it wrote: a sender may pass on damage that its own reads have not
// met, and here nothing waits for the answer.
func Receive(ctx context.Context, dir string, r io.Reader, want Seed) (index uint64, err error) {
	if want.Log == nil {
		want.Log = slog.New(slog.DiscardHandler)
	}
	path := generationPath(dir, 1)
	tmp := path + tmpSuffix
	if err := writeFile(tmp, r); err != nil {
		return 0, fmt.Errorf("receive state: %w", err)
	}
	h, err := inspect(tmp)
	switch {
	case err != nil:
		return 0, fmt.Errorf("receive state: %w", err)
	case h.init == nil || h.init.ClusterID != want.ClusterID || h.init.Shard != want.Shard:
		return 0, fmt.Errorf("receive state: %w", ErrForeignSnapshot)
	case h.applied < want.MinIndex:
		return 0, fmt.Errorf("receive state: %w: it is at index %d, the log begins after %d", ErrSeedBehind, h.applied, want.MinIndex)
	}
	if err := os.Rename(tmp, path); err != nil {
		return 0, fmt.Errorf("receive state: %w", err)
	}
	// What it finds is our answer and no reason to stop.
	f, err := Open(dir, Config{Log: want.Log, InitialMmapSize: want.InitialMmapSize, Fatal: func(error) {}})
	if err == nil {
		err = errors.Join(f.Scrub(ctx, nil), f.Close())
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return 0, fmt.Errorf("receive state: %w", err)
	}
	return h.applied, nil
}
