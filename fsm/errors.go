package fsm

import (
	"errors"
	"fmt"
)

var (
	// ErrClosed: the state machine is closed.
	ErrClosed = errors.New("state machine is closed")
	// ErrStaleSnapshot: the stream holds nothing that this replica has not
	// applied. Our own state was kept. The error is a *StaleSnapshotError.
	ErrStaleSnapshot = errors.New("snapshot is not newer than the state")
	// ErrForeignSnapshot: the stream is of another cluster or shard.
	ErrForeignSnapshot = errors.New("snapshot belongs to another cluster or shard")
	// ErrViewsOpen: Close gave up waiting for somebody's view or stream. The file
	// stays open and locked until that ends.
	ErrViewsOpen = errors.New("views are still open")
)

// FormatError says that a state file has another format than this program's.
type FormatError struct {
	Path      string
	Got, Want byte
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("state file %s has format %d, this program knows format %d", e.Path, e.Got, e.Want)
}

// StaleSnapshotError is an ErrStaleSnapshot with both indexes. If they are equal
// the two states are equal too: nothing is missing here but what the log holds.
type StaleSnapshotError struct {
	Applied  uint64 // what this replica has applied
	Snapshot uint64 // what the stream holds
}

func (e *StaleSnapshotError) Error() string {
	return fmt.Sprintf("snapshot at index %d is not newer than the state at index %d", e.Snapshot, e.Applied)
}

func (e *StaleSnapshotError) Is(target error) bool { return target == ErrStaleSnapshot }

// CorruptError says that a state file contradicts itself.
type CorruptError struct {
	Path   string
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("state file %s is damaged: %s", e.Path, e.Reason)
}
