package backup

import (
	"errors"
	"fmt"
)

var (
	// ErrNotBackup: what is there is no backup.
	ErrNotBackup = errors.New("not a backup")

	// ErrTruncated: the backup's end is missing, because its making or a copy of it was cut off.
	ErrTruncated = errors.New("the backup is cut off")

	// ErrDamaged is in the chain of every *DamageError.
	ErrDamaged = errors.New("the backup is damaged")

	// ErrExists: there is something under the name that the backup is to get.
	ErrExists = errors.New("it exists already")

	// ErrUneven: the slots of the shards never were those of all keys, each once, for slots went from shard to shard
	// all the time. Nothing was written; it may be tried again.
	ErrUneven = errors.New("slots are moving between shards")

	// ErrSnapshotLost: a shard could not be read to its end at one index, at any of its replicas.
	ErrSnapshotLost = errors.New("no replica could be read to its end")
)

// DamageError says where a backup is not as it was written.
type DamageError struct {
	Path   string
	Offset int64 // of the block, in bytes; -1 if it is about the whole
	Reason string
}

func (e *DamageError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("%s: %s", e.Path, e.Reason)
	}
	return fmt.Sprintf("%s, at byte %d: %s", e.Path, e.Offset, e.Reason)
}

func (e *DamageError) Unwrap() error { return ErrDamaged }

// VersionError is a backup that a newer version has written.
type VersionError struct {
	Path      string
	Got, Want int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s: a backup of format %d, and this version reads %d: use a newer abacus", e.Path, e.Got, e.Want)
}
