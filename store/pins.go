package store

import (
	"context"
	"errors"
	"time"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// Pins: views of the state at exactly one index, on every replica that applies the entry that asks for them. See fsm's pins.

// Pin has every replica keep a view of the state at one index, which it returns, until it is taken back or not used for ttl (1 ms to an hour). id is above 0 and of no
// other pin: after an error for which transport.Certain does not hold, which may or may not have pinned, go on with another; what was pinned ends by
// ttl. This replica must lead, and the cluster be at feature level sharding.LevelPins, which is for the caller to see to. Errors are transport errors.
//
// A replica that cannot keep it (too many pins, a state received from another) says so to whoever asks for it, Pinned; this one too.
func (s *Store) Pin(ctx context.Context, id uint64, ttl time.Duration) (index uint64, err error) {
	r, err := s.proposeOne(ctx, command.Command{Op: command.OpPin, Int: int64(id), TTL: ttl.Milliseconds()})
	return uint64(r.Int), err
}

// Unpin ends a pin on all replicas; who reads it, reads on. This replica must lead. Errors are those of Pin; to ask again does no harm.
func (s *Store) Unpin(ctx context.Context, id uint64) error {
	_, err := s.proposeOne(ctx, command.Command{Op: command.OpUnpin, Int: int64(id)})
	return err
}

// proposeOne proposes a command that is answered with an error only if it cannot be carried out.
func (s *Store) proposeOne(ctx context.Context, c command.Command) (command.Result, error) {
	results, _, err := s.Propose(ctx, []command.Command{c})
	if err != nil {
		return command.Result{}, err
	}
	if r := results[0]; r.Kind != command.KindError {
		return r, nil
	}
	return command.Result{}, transport.Errorf(transport.CodeRefused, "%v: %v", c.Op, results[0].Code)
}

// Pinned waits until this replica has applied the entry at index, which is what Pin returned, and is a view of the pin, for one goroutine, which
// closes it soon; others may have theirs at the same time. Each use of the pin begins its time to live anew. Errors: fsm.ErrNoPin and *fsm.PinGoneError, if this replica does
// not have it (another may); transport errors, if index was not reached before the deadline, by default 10 s, or the replica is closed.
func (s *Store) Pinned(ctx context.Context, id, index uint64) (*fsm.View, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	if err := s.await(ctx, index); err != nil {
		return nil, err
	}
	v, err := s.fsm.Pinned(id, index)
	if errors.Is(err, fsm.ErrClosed) {
		return nil, errClosed
	}
	return v, err
}

// RenewPin begins the pin's time to live anew on this replica, if it has the pin: somebody will use it, who waits yet.
func (s *Store) RenewPin(id, index uint64) { s.fsm.RenewPin(id, index) }

// Pins is what pins cost this replica.
func (s *Store) Pins() fsm.PinStats { return s.fsm.Pins() }
