package store

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

const (
	// MaxProposalBytes bounds one proposal: it is one log entry, which must fit a
	// frame between nodes.
	MaxProposalBytes = 65 << 20
	// maxQueueBytes bounds the proposals that wait for their entry, of one shard.
	maxQueueBytes = 32 << 20
	// maxQueued bounds their number.
	maxQueued = 1 << 16
	// defaultTimeout bounds a call whose context has no deadline.
	defaultTimeout = 10 * time.Second
)

// noLimits leaves sizes to the shard, which knows its limits.
var noLimits = command.Limits{MaxKey: math.MaxInt32, MaxValue: math.MaxInt32}

var errClosed = transport.Errorf(transport.CodeClosed, "replica is closed")

// Propose has the commands committed as one unit, in order, with nothing
// between them, and returns one result per command and the log index. It joins
// other proposals in one log entry. Errors are transport errors; if
// transport.Certain does not hold for one, the commands may have been applied,
// or may yet be. cmds may be reused when Propose returns.
//
// Where a disk is full, commands that add data are left out and answered with
// command.CodeDiskFull; the others are committed as one unit all the same.
func (s *Store) Propose(ctx context.Context, cmds []command.Command) ([]command.Result, uint64, error) {
	if len(cmds) == 0 {
		return nil, 0, transport.Errorf(transport.CodeBadRequest, "no commands")
	}
	for i := range cmds {
		// What cannot be encoded must not get as far as the loop that encodes it.
		var bad *command.BadCommandError
		if errors.As(cmds[i].Validate(noLimits), &bad) {
			return nil, 0, transport.Errorf(transport.CodeBadRequest, "%v", bad)
		}
	}
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	l, err := s.leadership(ctx)
	if err != nil {
		return nil, 0, err
	}
	if refused := l.refuseForSpace(cmds); refused != nil {
		rest := without(cmds, refused)
		if len(rest) == 0 {
			return weave(nil, refused), 0, nil
		}
		results, index, err := s.proposeTo(ctx, l, rest)
		if err != nil {
			return nil, 0, err
		}
		return weave(results, refused), index, nil
	}
	return s.proposeTo(ctx, l, cmds)
}

// proposeTo has commands that are let in committed by a leadership.
func (s *Store) proposeTo(ctx context.Context, l *leadership, cmds []command.Command) ([]command.Result, uint64, error) {
	p := newProposal(cmds)
	if p.size > MaxProposalBytes {
		return nil, 0, transport.Errorf(transport.CodeTooLarge, "%d bytes of commands, limit %d", p.size, MaxProposalBytes)
	}
	if err := l.queue.push(p); err != nil {
		return nil, 0, err
	}
	select {
	case a := <-p.answer:
		return a.results, a.index, a.err
	case <-ctx.Done():
	}
	if l.queue.forget(p) {
		return nil, 0, transport.Errorf(transport.CodeTimeout, "the deadline passed before the proposal was logged")
	}
	// It is being made into an entry, or the answer is here this moment. cmds are
	// the caller's again only when they were encoded.
	select {
	case <-p.encoded:
	case a := <-p.answer:
		return a.results, a.index, a.err
	}
	select {
	case a := <-p.answer:
		return a.results, a.index, a.err
	default:
		return nil, 0, transport.Errorf(transport.CodeUncertain, "no answer from the log before the deadline")
	}
}

// Fence returns an index such that a view at or above it shows everything
// acknowledged before the call: it commits a no-op, folded with its neighbours.
func (s *Store) Fence(ctx context.Context) (uint64, error) {
	_, index, err := s.Propose(ctx, []command.Command{{Op: command.OpNoop}})
	return index, err
}

// Probe tells whether this replica leads a majority that can commit.
func (s *Store) Probe(ctx context.Context) error {
	_, err := s.Fence(ctx)
	return err
}

// leadership returns the present leadership once its opening no-op was applied.
func (s *Store) leadership(ctx context.Context) (*leadership, error) {
	if s.closing.Load() {
		return nil, errClosed
	}
	l := s.lead.Load()
	if l == nil {
		return nil, s.notLeader()
	}
	select {
	case <-l.ready:
	default:
		select {
		case <-l.ready:
		case <-l.ctx.Done():
			return nil, s.notLeader()
		case <-ctx.Done():
			return nil, transport.Errorf(transport.CodeTimeout, "the new leader could not commit yet")
		}
	}
	return l, nil
}

func withDefaultTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, defaultTimeout)
}

// proposal is one call of Propose.
type proposal struct {
	cmds []command.Command
	size int
	// answer gets one value, from whoever settles the proposal's fate.
	answer chan answer
	// encoded is closed when cmds are no longer read.
	encoded chan struct{}
	queued  bool // guarded by the queue
	light   bool // adds nothing to the state
}

type answer struct {
	results []command.Result
	index   uint64
	term    uint64
	err     error
}

func newProposal(cmds []command.Command) *proposal {
	p := &proposal{cmds: cmds, answer: make(chan answer, 1), encoded: make(chan struct{}), light: true}
	for i := range cmds {
		p.size += cmds[i].Size()
		p.light = p.light && addsNothing(&cmds[i])
	}
	return p
}

// deliver hands an entry's outcome to its proposals, each its own results.
func deliver(batch []*proposal, out *outcome, err error) {
	if err == nil {
		n := 0
		for _, p := range batch {
			n += len(p.cmds)
		}
		if n != 0 && n != len(out.results) {
			err = transport.Errorf(transport.CodeUncertain, "entry %d was applied, its answers are lost", out.index)
		}
	}
	at := 0
	for _, p := range batch {
		if err != nil {
			p.answer <- answer{err: err}
			continue
		}
		next := at + len(p.cmds)
		p.answer <- answer{results: out.results[at:next:next], index: out.index, term: out.term}
		at = next
	}
}

// pending is an entry of ours under way. Its proposals are answered once: by the state machine when it
// has applied it, or by who waits for raft, which may know that it will not be.
type pending struct {
	l     *leadership
	batch []*proposal
	round uint64 // of the node in which it was proposed
	id    uint64 // of the batch, among wanted

	mu      sync.Mutex
	settled bool
	late    *time.Timer // asks raft; nil while raft is being given the entry
}

// lateAfter is how long an entry's outcome may take to come from the state machine until raft is asked for its
// fate, which costs a goroutine. So long it takes, too, to hear that there is no outcome.
const lateAfter = 20 * time.Millisecond

// watch has raft asked for an entry's fate if the state machine does not tell it soon.
func (p *pending) watch(f raft.ApplyFuture) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.settled {
		p.late = time.AfterFunc(lateAfter, func() { p.settle(p.l.await(f)) })
	}
}

// settle hands out an entry's fate, unless that was done. It does not wait.
func (p *pending) settle(out *outcome, err error) {
	p.mu.Lock()
	was, late := p.settled, p.late
	p.settled = true
	p.mu.Unlock()
	if was {
		return
	}
	if late != nil {
		late.Stop()
	}
	s := p.l.store
	s.wanted.remove(p.id)
	if err == nil && p.l.refusedSince.Load() != 0 {
		p.l.refusedSince.Store(0)
	}
	p.l.queue.settled(p.round, len(p.batch))
	deliver(p.batch, out, err)
	s.inFlight.end()
}

// wanted knows the batches whose answers this replica waits for. The ids begin
// at random with each start, so that the replay of our own old entries, and other
// leaders' entries, are not taken for ours.
type wanted struct {
	mu   sync.Mutex
	next uint64
	ids  map[uint64]*pending
}

func newWanted() *wanted {
	return &wanted{next: rand.Uint64(), ids: make(map[uint64]*pending)}
}

func (w *wanted) add(p *pending) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	if w.next == 0 { // means that nobody waits
		w.next++
	}
	w.ids[w.next] = p
	return w.next
}

func (w *wanted) remove(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.ids, id)
}

// get returns who waits for a batch, nil for nobody.
func (w *wanted) get(id uint64) *pending {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ids[id]
}

// has is called on the FSM goroutine.
func (w *wanted) has(id uint64) bool { return w.get(id) != nil }
