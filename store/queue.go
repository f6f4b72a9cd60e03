package store

import (
	"slices"
	"sync"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

const (
	// maxBatchBytes bounds an entry, or one larger proposal.
	maxBatchBytes = 256 << 10
	// maxInFlight is how many entries may be between raft and an answer: one, in which the next
	// gathers meanwhile, for an entry costs as much as tens of commands in it. Against two at any time that
	// was 1.3 times as many puts with 64 clients, 1.1 times with 256. With so much
	// waiting that it would fill an entry, secondBytes, one is written while the other travels.
	maxInFlight = 2
	secondBytes = 64 << 10
)

// queue holds the proposals of one leadership until they go into an entry, and says when they may.
type queue struct {
	// wake has a token when there may be an entry to propose, or neither is one under way nor does anything wait.
	wake chan struct{}
	turn *turn

	mu    sync.Mutex
	items []*proposal // in order; some are no longer queued
	live  int         // how many still are
	light int         // how many of those add nothing
	bytes int         // their size
	// inFlight are the entries under way. held: only what is light is proposed, whoever's turn it is.
	inFlight int
	held     bool
	err      error // set by close
}

func newQueue(p *pacer) *queue {
	q := &queue{wake: make(chan struct{}, 1)}
	q.turn = p.turn(q.wake)
	return q
}

// push appends a proposal, or refuses it; a refusal is certain.
func (q *queue) push(p *proposal) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.err != nil:
		return q.err
	case q.live > 0 && q.bytes+p.size > maxQueueBytes, q.live >= maxQueued:
		return transport.Errorf(transport.CodeBusy, "%d proposals of %d bytes wait already", q.live, q.bytes)
	}
	if len(q.items) > 64 && q.live < len(q.items)/2 {
		keep := q.items[:0]
		for _, old := range q.items {
			if old.queued {
				keep = append(keep, old)
			}
		}
		clear(q.items[len(keep):])
		q.items = keep
	}
	p.queued = true
	q.items = append(q.items, p)
	q.live++
	q.bytes += p.size
	if p.light {
		q.light++
	}
	q.turn.add(1)
	if q.held && p.light || q.secondMay() {
		q.signal()
	}
	return nil
}

// secondMay says whether an entry may be proposed beside the one that is under way. The caller holds mu.
func (q *queue) secondMay() bool {
	return q.inFlight > 0 && q.inFlight < maxInFlight && q.bytes >= secondBytes
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// hold says whether writes are held back. What is light is proposed all the same.
func (q *queue) hold(held bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held = held
}

// next begins an entry if one may be proposed now: of the oldest proposals up to maxBatchBytes. Whoever
// gets one calls settled, with the round that it is of; 0: of none.
func (q *queue) next() (batch []*proposal, cmds []command.Command, round uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.inFlight >= maxInFlight || q.err != nil:
		return nil, nil, 0
	case q.held:
		if q.inFlight > 0 {
			return nil, nil, 0
		}
	default:
		if round = q.turn.granted.Swap(0); round == 0 && !q.secondMay() {
			return nil, nil, 0
		}
	}
	batch, cmds = q.take(maxBatchBytes, q.held)
	switch {
	case len(batch) > 0:
		q.inFlight++
		q.turn.took(round, len(batch))
	case round != 0: // all were forgotten
		q.turn.done(round, 0)
	}
	return batch, cmds, round
}

// begin begins an entry that needs no proposal and no turn. Whoever takes is the only one to begin any, and looks
// whether the queue is idle.
func (q *queue) begin() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.inFlight++
}

// settled ends an entry with so many proposals, which are answered next: who is back at once must not be
// counted twice.
func (q *queue) settled(round uint64, n int) {
	q.mu.Lock()
	q.inFlight--
	// Else whoever takes is woken when it is its turn. Without a proposal it has to look when keys end.
	if q.live == 0 || q.held || q.inFlight == maxInFlight-1 || q.secondMay() {
		q.signal()
	}
	q.mu.Unlock()
	if round != 0 {
		q.turn.done(round, n)
	}
}

// idle says whether nothing is under way.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.inFlight == 0
}

// take removes the oldest proposals up to a size, at least one, and joins their commands:
// of all, or with light of those that add nothing. They pass others, which nobody can
// tell: all of them are still unanswered. The caller holds mu.
func (q *queue) take(maxBytes int, light bool) (batch []*proposal, cmds []command.Command) {
	size, commands := 0, 0
	for _, p := range q.items {
		if light && q.light == 0 {
			break
		}
		if !p.queued || light && !p.light {
			continue
		}
		if len(batch) > 0 && size+p.size > maxBytes {
			break
		}
		q.drop(p)
		batch = append(batch, p)
		size += p.size
		commands += len(p.cmds)
	}
	// What was taken from the middle, push clears away.
	n := slices.IndexFunc(q.items, func(p *proposal) bool { return p.queued })
	if n < 0 {
		clear(q.items)
		q.items = q.items[:0]
	} else {
		clear(q.items[:n])
		q.items = q.items[n:]
	}
	if len(batch) == 0 {
		return nil, nil
	}
	cmds = make([]command.Command, 0, commands)
	for _, p := range batch {
		cmds = append(cmds, p.cmds...)
	}
	return batch, cmds
}

func (q *queue) drop(p *proposal) {
	p.queued = false
	q.live--
	q.bytes -= p.size
	if p.light {
		q.light--
	}
}

// forget takes a proposal out; false if it is not in the queue any more.
func (q *queue) forget(p *proposal) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !p.queued {
		return false
	}
	q.drop(p)
	q.turn.add(-1)
	if q.live == 0 && q.inFlight == 0 { // no turn comes that would wake it
		q.signal()
	}
	return true
}

// close refuses what is queued and all that comes.
func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return
	}
	q.err = err
	for _, p := range q.items {
		if p.queued {
			p.queued = false
			p.answer <- answer{err: err}
		}
	}
	q.items, q.live, q.light, q.bytes = nil, 0, 0, 0
	q.turn.leave()
}
