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

// ErrNoSlotMove: the slot move is over, or never was.
var ErrNoSlotMove = errors.New("there is no such slot move")

// SlotsError says why slots are not moved, or a shard is not split.
type SlotsError struct{ Op, Why string }

func (e *SlotsError) Error() string { return e.Op + ": " + e.Why }

// NodeError says why something is not done to a node, and which shards forbid it.
type NodeError struct {
	Verb   string
	Node   NodeID
	Faults []string
}

func (e *NodeError) Error() string {
	return fmt.Sprintf("%s node %s: %s", e.Verb, e.Node, strings.Join(e.Faults, "; "))
}

// RecoveryError says why a recovery must not be made.
type RecoveryError struct{ Faults []string }

func (e *RecoveryError) Error() string { return "recover: " + strings.Join(e.Faults, "; ") }

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

// maxFaults is how many faults an error names: a wholly wrong map has
// thousands, and nobody reads the second page.
const maxFaults = 16

// faults gathers a MapError.
type faults struct{ list []string }

func (f *faults) add(format string, args ...any) {
	if len(f.list) < maxFaults {
		f.list = append(f.list, fmt.Sprintf(format, args...))
	}
}

func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	return &MapError{Faults: f.list}
}
