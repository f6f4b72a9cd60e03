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
	// ErrNoPin: the entry of the pin is applied here and there is no such pin: this replica got the state past it from another, or began
	// anew, or the pin has ended long ago. Another replica may have it.
	ErrNoPin = errors.New("this replica has no such pin")
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

// PinReason is why a replica has a pin no more. The words are labels of metrics.
type PinReason string

const (
	// PinUnpinned: an entry has ended it (command.OpUnpin).
	PinUnpinned PinReason = "unpinned"
	// PinIdle: nobody has used it for its time to live.
	PinIdle PinReason = "idle"
	// PinAge: it was as old as a pin may get.
	PinAge PinReason = "age"
	// PinNumber: there were as many as a replica may have. There never was a pin here.
	PinNumber PinReason = "number"
	// PinBytes: too much of the state's file was kept for it, faster than it could be copied.
	PinBytes PinReason = "bytes"
	// PinDisk: there was no room on the disk for what is kept for it.
	PinDisk PinReason = "disk"
	// PinFault: reading or copying the state failed; the log says how.
	PinFault PinReason = "fault"
)

// PinReasons are all of them.
var PinReasons = []PinReason{PinUnpinned, PinIdle, PinAge, PinNumber, PinBytes, PinDisk, PinFault}

var pinReasons = map[PinReason]string{
	PinUnpinned: "it was taken back",
	PinIdle:     "it was not used for its time to live",
	PinAge:      "it was as old as a pin may get",
	PinNumber:   "this replica had as many pins as it may have",
	PinBytes:    "too much of the state's file was kept for it",
	PinDisk:     "the disk has no room for what is kept for it",
	PinFault:    "the state could not be read or copied",
}

// PinGoneError: this replica had the pin, or should have, and has it no more. Another replica may have it; else pin again.
type PinGoneError struct {
	Pin, Index uint64
	Reason     PinReason
}

func (e *PinGoneError) Error() string {
	return fmt.Sprintf("SNAPSHOT_TOO_OLD: pin %d of index %d has ended here: %s", e.Pin, e.Index, pinReasons[e.Reason])
}
