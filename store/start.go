package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

var (
	// ErrStateBehind: the state lacks entries that the log no longer has. Part of
	// the replica's directory is missing or is from another time: Reseed.
	ErrStateBehind = errors.New("state is behind its snapshot")
	// ErrLogLost: there is state or a snapshot, but the term is older or unknown: the
	// log and the votes are gone, or from another time. A replica that forgot its
	// votes must not vote under its old id again.
	ErrLogLost = errors.New("log and votes are lost")
	// ErrLogGap: the log begins after the entry that should follow the snapshot.
	ErrLogGap = errors.New("log does not reach back to the snapshot")
)

// reconcile makes log, snapshot and state fit before raft sees them. Raft would
// believe whatever it finds (hazards R5 and R11).
func (s *Store) reconcile() error {
	var snapIndex, snapTerm uint64
	if m := s.snaps.latest(); m != nil {
		snapIndex, snapTerm = m.Index, m.Term
	}
	durable := s.fsm.DurableIndex()
	if durable < snapIndex {
		return fmt.Errorf("%w: state at index %d, snapshot at %d", ErrStateBehind, durable, snapIndex)
	}
	first, err := s.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	last, err := s.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	// A term is on the disk before any entry or snapshot of it, so this also lets a
	// replica pass that crashed in the middle of its first install.
	if term := s.stable.term.Load(); term < snapTerm || term == 0 && max(durable, snapIndex) > 0 {
		return fmt.Errorf("%w: state at index %d, snapshot at %d of term %d, but our term is %d", ErrLogLost, durable, snapIndex, snapTerm, term)
	}
	if last == 0 {
		return nil
	}
	stale := last < snapIndex
	if !stale && first <= snapIndex {
		var entry raft.Log
		if err := s.logs.GetLog(snapIndex, &entry); err != nil {
			return fmt.Errorf("read log entry %d: %w", snapIndex, err)
		}
		stale = entry.Term != snapTerm
	}
	if stale {
		// A snapshot was installed over it and the crash came before raft deleted it.
		s.log.Warn("deleting a log that a snapshot has replaced", "first", first, "last", last, "snapshot", snapIndex)
		return s.logs.DeleteRange(first, last)
	}
	if first > snapIndex+1 {
		return fmt.Errorf("%w: log begins at %d, snapshot at %d", ErrLogGap, first, snapIndex)
	}
	return nil
}

// bootstrap gives an empty replica a configuration with itself as the one
// voter. Unlike raft's own it can be repeated after a crash halfway.
func (s *Store) bootstrap() error {
	last, err := s.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if last > 0 || s.snaps.latest() != nil || s.stable.term.Load() > 1 || s.stable.voted() {
		return nil
	}
	if applied := s.fsm.Applied(); applied > 0 {
		return fmt.Errorf("%w: state at index %d", ErrLogLost, applied)
	}
	if err := s.stable.SetUint64([]byte(keyCurrentTerm), 1); err != nil {
		return err
	}
	conf := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: s.self.replica, Address: raft.ServerAddress(s.cfg.Node),
	}}}
	return s.logs.StoreLog(&raft.Log{
		Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(conf), AppendedAt: time.Now(),
	})
}
