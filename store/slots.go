package store

import (
	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
)

// Slots that change hands: what this replica's state machine knows of them. See fsm's ownership.

// Capture notes what changes in the slots from now on, in this replica.
func (s *Store) Capture(slots []command.SlotRange) (*fsm.Capture, error) { return s.fsm.Capture(slots) }

// SlotAnswers is what numbered commands on the slots were answered.
func (s *Store) SlotAnswers(slots []command.SlotRange, partBytes int) [][]byte {
	return s.fsm.SlotAnswers(slots, partBytes)
}

// Leaving is the move whose slots are frozen here, 0 if there is none.
func (s *Store) Leaving() (move uint64, slots []command.SlotRange) { return s.fsm.Leaving() }

// Cleared says that nothing is stored here of slots that are another shard's.
func (s *Store) Cleared() bool { return s.fsm.Cleared() }

// Elsewhere is the answer to commands whose slots are all another shard's, nil if any may be served here.
func (s *Store) Elsewhere(cmds []command.Command) []command.Result { return s.fsm.Elsewhere(cmds) }

// Clock is the shard's time, in milliseconds, as of the last entry applied.
func (s *Store) Clock() int64 { return s.fsm.Clock() }
