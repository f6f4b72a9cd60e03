package sharding

import (
	"errors"
	"fmt"
	"strings"
)

// ErrKnownNode: the node that joins is in the map already.
var ErrKnownNode = errors.New("node is in the shard map already")

// ErrNoMove: the move is over, or was another.
var ErrNoMove = errors.New("there is no such move under way")

// MapError lists what is wrong with a map, or with a step from one to the next.
type MapError struct{ Faults []string }

func (e *MapError) Error() string {
	return "bad shard map: " + strings.Join(e.Faults, "; ")
}

// VersionError: the map was encoded by a build that this one does not understand.
type VersionError struct{ Version byte }

func (e *VersionError) Error() string {
	return fmt.Sprintf("format version %d is unknown to this build, which writes %d", e.Version, mapVersion)
}

// faults gathers a MapError. It keeps the first few: a wholly wrong map has
// thousands, and nobody reads the second page.
type faults struct{ list []string }

func (f *faults) add(format string, args ...any) {
	if len(f.list) < 16 {
		f.list = append(f.list, fmt.Sprintf(format, args...))
	}
}

func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	return &MapError{Faults: f.list}
}
