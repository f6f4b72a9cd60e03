package store

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/fsm/planted"
	"github.com/abacusdb/abacus/transport"
)

const (
	// enqueueTimeout is how long raft's main loop may take to accept an entry.
	enqueueTimeout = time.Second
	// transferWedged is how long raft may refuse entries because of a transfer of
	// leadership before we take it for stuck (hashicorp/raft#696).
	transferWedged = 10 * time.Second
	// dueSpacing is the least time between two entries made only to end keys.
	dueSpacing = 20 * time.Millisecond
	// dueRetry is the wait after such an entry could not be made.
	dueRetry = 200 * time.Millisecond
)

// leadership is one time in office. Its loop is the only caller of raft.Apply,
// so elapsed time is counted in one place and goes into the log in order.
type leadership struct {
	store *Store
	in    *instance

	// ctx ends with the leadership; close waits for done, the end of the loop.
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	queue *queue

	// ready is closed when the opening no-op was applied; term is set before.
	ready chan struct{}
	term  uint64

	// base is when the opening no-op was made, by the monotonic clock; counted is
	// how many milliseconds since then went into entries. The loop's own.
	base    time.Time
	counted int64
	lastDue time.Time

	// refusedSince is when raft began to refuse entries for a transfer, in ns since
	// began; 0 if it does not.
	began        time.Time
	refusedSince atomic.Int64

	// heldSince is when writes began to be held back, zero if they are not;
	// heldWarned, whether that was said. The loop's own.
	heldSince  time.Time
	heldWarned bool
}

func newLeadership(in *instance) *leadership {
	l := &leadership{
		store: in.store, in: in, done: make(chan struct{}), ready: make(chan struct{}),
		queue: newQueue(in.store.cfg.Net.pacer), began: time.Now(),
	}
	l.ctx, l.cancel = context.WithCancel(in.store.ctx)
	in.store.lead.Store(l)
	go l.run()
	return l
}

// close ends the leadership. The loop ends soon: raft answers Apply also when
// it is no leader. OnLeader's function is not waited for here, lest it hold up
// an election; the next one waits for it.
func (l *leadership) close() {
	l.store.lead.CompareAndSwap(l, nil)
	l.cancel()
	<-l.done
}

// isReady says whether the opening no-op was applied and the leadership goes on.
func (l *leadership) isReady() bool {
	select {
	case <-l.ready:
		return l.ctx.Err() == nil
	default:
		return false
	}
}

func (l *leadership) run() {
	defer close(l.done)
	defer l.hold(false)
	defer func() {
		// Whoever still waits was never given to raft.
		err := l.store.notLeader()
		if l.store.closing.Load() {
			err = errClosed
		}
		l.queue.close(err)
	}()
	if !l.open() {
		return
	}
	l.store.log.Info("leading", "term", l.term)
	l.store.startOnLeader(l)

	due := time.NewTimer(time.Hour)
	defer due.Stop()
	for {
		over := l.overlayFull()
		l.hold(over)
		for {
			batch, cmds, round := l.queue.next()
			if len(batch) == 0 {
				break
			}
			l.propose(&pending{l: l, batch: batch, round: round}, cmds)
		}
		if over { // keys end later: taking them out costs memory, too
			due.Reset(overlayPoll)
		} else if l.queue.idle() {
			wait, now := l.nextDue()
			if now {
				l.queue.begin()
				l.lastDue = time.Now()
				l.propose(&pending{l: l}, []command.Command{{Op: command.OpNoop}})
			} else {
				due.Reset(wait)
			}
		}
		select {
		case <-l.ctx.Done():
			return
		case <-l.queue.wake:
		case <-due.C:
		}
	}
}

// open commits the leadership's first entry, a no-op of ours. Once it is
// applied, so is everything that earlier leaders committed, and its term is our
// term. The first replica of a new shard gives the shard its identity with it.
func (l *leadership) open() bool {
	cmds := []command.Command{{Op: command.OpNoop}}
	if in := l.store.cfg.Bootstrap; in != nil {
		if _, ok := l.store.machine.Init(); !ok {
			cmds = append(cmds, command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
		}
	}
	if above := l.store.cfg.SessionsAbove; above != nil && above() > l.store.machine.SessionCount() {
		cmds = append(cmds, command.Command{Op: command.OpSessionSkip, Int: int64(above())})
	}
	for l.ctx.Err() == nil {
		l.queue.begin() // nothing else is under way
		l.base, l.counted = time.Now(), 0
		p := newProposal(nil)
		l.propose(&pending{l: l, batch: []*proposal{p}}, cmds)
		var a answer
		select {
		case a = <-p.answer:
		case <-l.ctx.Done():
			return false
		}
		if a.err == nil {
			l.term = a.term
			close(l.ready)
			return true
		}
		// Once more does no harm, wherever the first one got to: neither no-op carries
		// time, and a shard takes its identity once.
		l.store.log.Debug("opening entry failed", "err", a.err)
		select {
		case <-l.ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return false
}

// nextDue says how long to wait before a key may end, or that one must end now.
func (l *leadership) nextDue() (wait time.Duration, now bool) {
	deadline, ok := l.store.machine.NextDeadline()
	if !ok {
		return time.Hour, false
	}
	clock := l.store.machine.Clock() + time.Since(l.base).Milliseconds() - l.counted
	wait = min(time.Duration(max(deadline-clock, 0))*time.Millisecond, time.Hour)
	spacing := dueSpacing
	if l.refusedSince.Load() != 0 {
		spacing = dueRetry
	}
	wait = max(wait, time.Until(l.lastDue.Add(spacing)))
	return wait, wait <= 0
}

// elapsed is the shard's time that the next entry carries. What goes into an
// entry that raft then refuses is lost: late, never early.
func (l *leadership) elapsed() uint64 {
	total := time.Since(l.base).Milliseconds()
	d := total - l.counted
	l.counted = total
	return uint64(max(d, 0))
}

// propose gives raft one entry and has its outcome handed out.
func (l *leadership) propose(p *pending, cmds []command.Command) {
	s := l.store
	p.id = s.wanted.add(p) // before raft has the entry, or it might be applied without answers
	b := command.Batch{ID: p.id, ElapsedMillis: l.elapsed(), Commands: cmds}
	size := 32
	for i := range cmds {
		size += cmds[i].Size()
	}
	data := b.AppendTo(make([]byte, 0, size))
	for _, q := range p.batch {
		close(q.encoded)
	}
	if planted.Is(planted.AckBeforeCommit) && onlySets(cmds) {
		deliver(p.batch, &outcome{results: slices.Repeat([]command.Result{command.OK()}, len(cmds))}, nil)
		p.batch = nil
	}
	s.inFlight.begin()
	p.watch(l.in.raft.ApplyLog(raft.Log{Data: data}, enqueueTimeout))
}

// onlySets says whether all commands are answered with OK, whatever is there.
func onlySets(cmds []command.Command) bool {
	return !slices.ContainsFunc(cmds, func(c command.Command) bool { return c.Op != command.OpSet || c.Flags != 0 })
}

// await waits for an entry's fate.
func (l *leadership) await(f raft.ApplyFuture) (*outcome, error) {
	err := f.Error()
	if err == nil {
		out, ok := f.Response().(*outcome)
		if !ok {
			return nil, transport.Errorf(transport.CodeUncertain, "committed, answer lost")
		}
		return out, nil
	}
	if errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		l.refused()
	}
	return nil, l.store.applyError(f, err)
}

// refused notes that raft refuses entries because it hands over leadership. It
// can keep doing so for ever; then only a new instance helps.
func (l *leadership) refused() {
	now := int64(time.Since(l.began)) | 1
	if since := l.refusedSince.Load(); since == 0 {
		l.refusedSince.CompareAndSwap(0, now)
	} else if time.Duration(now-since) > transferWedged {
		l.in.reopen("a transfer of leadership does not end")
	}
}

// applyError turns raft's error about an entry into ours: certain only if no
// log can have it. An entry that raft took has an index.
func (s *Store) applyError(f raft.IndexFuture, err error) error {
	if f.Index() == 0 {
		switch {
		case errors.Is(err, raft.ErrNotLeader):
			return s.notLeader()
		case errors.Is(err, raft.ErrLeadershipTransferInProgress):
			return &transport.Error{Code: transport.CodeNotLeader}
		case errors.Is(err, raft.ErrEnqueueTimeout):
			return transport.Errorf(transport.CodeBusy, "the log does not keep up")
		case errors.Is(err, raft.ErrRaftShutdown):
			return errClosed
		}
	}
	return transport.Errorf(transport.CodeUncertain, "%v", err)
}
