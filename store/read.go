package store

import (
	"context"
	"errors"
	"time"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/fsm/planted"
	"github.com/abacusdb/abacus/transport"
)

// Reads without the log (Raft thesis 6.4). A linearizable read needs an index
// that covers all that was acknowledged before it began, and a state at or above it.
//
//	the leadership is ready     its own first entry was applied, or the commit
//	                            index might not yet be as far as the last leader's (R3)
//	the round is sealed         the commit index and the voters are taken, after the
//	                            read began and before the first question is sent
//	a majority confirms         of voters, in a term not above ours (confirm.go)
//	we are still who we were    our own vote, given after the others'
//	the state has the index     by the state machine's own word: raft counts an entry
//	                            as applied when it has put it into a queue (R4)
//
// It rests on terms that are on disk before a vote is given and that never fall:
// see stableStore and peers.fastHeartbeat.

// ReadIndex returns an index such that a state at or above it holds everything
// that was acknowledged before the call, on whichever replica. This replica must lead.
func (s *Store) ReadIndex(ctx context.Context) (uint64, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	return s.readIndex(ctx)
}

func (s *Store) readIndex(ctx context.Context) (uint64, error) {
	l, term, err := s.reading(ctx)
	if err != nil {
		return 0, err
	}
	switch {
	case planted.Is(planted.LocalRead):
		return l.in.raft.CommitIndex(), nil
	case planted.Is(planted.VerifyLeaderRead):
		index := l.in.raft.CommitIndex()
		return index, l.in.raft.VerifyLeader().Error()
	}
	index, err := s.cfg.Net.confirms.confirm(ctx, l, term)
	if err != nil {
		return 0, err
	}
	// Our own vote comes last: had it been counted before, we might have given it
	// to another since. The leadership's end is no proof that there is another, but
	// who has lost it must not go on to answer for it.
	if s.stable.term.Load() != term || s.lead.Load() != l || l.ctx.Err() != nil {
		return 0, s.ended()
	}
	return index, nil
}

// reading returns the present leadership, ready to be read from, and its term.
func (s *Store) reading(ctx context.Context) (*leadership, uint64, error) {
	if planted.Is(planted.NoTermBarrier) {
		if l := s.lead.Load(); l != nil {
			return l, l.in.raft.CurrentTerm(), nil
		}
	}
	l, err := s.leadership(ctx)
	if err != nil {
		return nil, 0, err
	}
	return l, l.term, nil
}

// ended is why a leadership does not answer any more.
func (s *Store) ended() error {
	if s.closing.Load() {
		return errClosed
	}
	return s.notLeader()
}

// Read answers commands that only read, all from one state that holds everything
// acknowledged before the call, and returns its index. This replica must lead.
// Errors are transport errors; after any of them the read may be repeated.
func (s *Store) Read(ctx context.Context, cmds []command.Command) ([]command.Result, uint64, error) {
	if err := checkReads(cmds); err != nil {
		return nil, 0, err
	}
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	index, err := s.readIndex(ctx)
	if err != nil {
		return nil, 0, err
	}
	results, index, err := s.readAt(ctx, index, cmds)
	if err == nil && tellsTime(cmds, results) {
		// The shard's clock moves with its entries only. While no key ends it may stand
		// for hours, and what it says is left of a key would be that much too long.
		return s.Propose(ctx, cmds)
	}
	return results, index, err
}

// Prompt says whether a read that begins now waits for the other voters only: this replica leads, and has applied
// all that is committed.
func (s *Store) Prompt() bool {
	l := s.lead.Load()
	return l != nil && l.isReady() && s.fsm.Applied() >= l.in.raft.CommitIndex()
}

// ReadAt is Read on any replica, with an index that the leader's ReadIndex
// returned after the caller's read began. How long a key has yet to live only the
// leader can tell: then the error is CodeNotLeader.
func (s *Store) ReadAt(ctx context.Context, index uint64, cmds []command.Command) ([]command.Result, uint64, error) {
	if err := checkReads(cmds); err != nil {
		return nil, 0, err
	}
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	results, at, err := s.readAt(ctx, index, cmds)
	if err == nil && tellsTime(cmds, results) {
		return nil, 0, s.notLeader()
	}
	return results, at, err
}

// ReadView is a view of the state with everything acknowledged before the call.
// This replica must lead.
func (s *Store) ReadView(ctx context.Context) (*fsm.View, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	index, err := s.readIndex(ctx)
	if err != nil {
		return nil, err
	}
	return s.ViewAt(ctx, index)
}

// ViewAt is a view of the state at or above an index, on any replica.
func (s *Store) ViewAt(ctx context.Context, index uint64) (*fsm.View, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	if err := s.await(ctx, index); err != nil {
		return nil, err
	}
	v, err := s.fsm.View()
	return v, stateError(err)
}

// ReadStale answers from the state as it is here, if that has everything that was acknowledged longer than
// maxAge ago, as far as is known here (FreshAt); 0: whatever its age. What is left of a key's time is as
// of the last entry applied.
func (s *Store) ReadStale(maxAge time.Duration, cmds []command.Command) ([]command.Result, uint64, error) {
	if err := checkReads(cmds); err != nil {
		return nil, 0, err
	}
	if err := s.fresh(maxAge); err != nil {
		return nil, 0, err
	}
	results, index, err := s.fsm.Query(cmds)
	return results, index, stateError(err)
}

// StaleView is a view of the state as it is here, under the same condition.
func (s *Store) StaleView(maxAge time.Duration) (*fsm.View, error) {
	if err := s.fresh(maxAge); err != nil {
		return nil, err
	}
	v, err := s.fsm.View()
	return v, stateError(err)
}

// readAt waits for an index and answers from the state.
func (s *Store) readAt(ctx context.Context, index uint64, cmds []command.Command) ([]command.Result, uint64, error) {
	if err := s.await(ctx, index); err != nil {
		return nil, 0, err
	}
	results, index, err := s.fsm.Query(cmds)
	return results, index, stateError(err)
}

// await waits until the state has applied the entry at index.
func (s *Store) await(ctx context.Context, index uint64) error {
	if planted.Is(planted.AppliedIndexWait) {
		for r := s.raft(); r != nil && r.AppliedIndex() < index && ctx.Err() == nil; {
			time.Sleep(time.Millisecond)
		}
		return nil
	}
	err := s.fsm.WaitApplied(ctx, index)
	if err != nil && ctx.Err() != nil {
		return transport.Errorf(transport.CodeTimeout, "the state is at index %d, a read waits for %d", s.fsm.Applied(), index)
	}
	return stateError(err)
}

// stateError turns an error of the state machine into one that crosses the wire.
func stateError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fsm.ErrClosed):
		return errClosed
	}
	return transport.Errorf(transport.CodeUnavailable, "%v", err)
}

func checkReads(cmds []command.Command) error {
	if len(cmds) == 0 {
		return transport.Errorf(transport.CodeBadRequest, "no commands")
	}
	for i := range cmds {
		if !cmds[i].Op.IsRead() {
			return transport.Errorf(transport.CodeBadRequest, "%v is no read", cmds[i].Op)
		}
	}
	return nil
}

// tellsTime says whether an answer is how long a key has yet to live.
func tellsTime(cmds []command.Command, results []command.Result) bool {
	for i := range cmds {
		if cmds[i].Op == command.OpTTL && results[i].Kind == command.KindInt && results[i].Int >= 0 {
			return true
		}
	}
	return false
}
