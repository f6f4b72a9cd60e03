package store

import (
	"sync"
	"sync/atomic"
	"time"
)

// The leaders of a node propose together, in rounds. An entry costs a node about as much, whatever is in it: a write
// to its log and one to each peer, and a row of goroutines that are woken one after the other.
// Entries of one moment share the writes, and while they are under way more gathers for
// the next round. docs/decisions/0017-rounds.md has the measurements.

const (
	// roundTime is how old a round gets before the next may open beside it: one shard whose
	// followers are slow does not hold up the others for longer.
	roundTime = 5 * time.Millisecond
	// gatherTime is how long the next round waits for as many proposals as were unanswered at one time during
	// the last: who has just been answered is about to come back, and would else find that the
	// others have left without him. Who is alone does not wait.
	gatherTime = 300 * time.Microsecond
)

// pacer opens the rounds of a node. It has no goroutine: whoever changes something acts on it.
type pacer struct {
	mu sync.Mutex
	// waiting are the turns with proposals that are in no round yet, and how many those are.
	waiting []*turn
	count   int

	round  uint64    // the number of the last one opened
	opened time.Time // when that was
	flying int       // its entries that are not settled yet
	// unanswered are the proposals in those.
	unanswered int
	// most is how many proposals were unanswered at one time since it was opened, in it or waiting.
	most int
	// until when, after the end of a round, as many are waited for, and whether any did wait.
	until  time.Time
	waited bool

	timer *time.Timer
	armed time.Time // what timer is set to
	stats RoundStats
}

// RoundStats count the rounds of a node's leaders since its start.
type RoundStats struct {
	Rounds  uint64
	Entries uint64 // that they were opened for
	// Beside are rounds that were opened beside an older one, which took too long; Short, those that had waited
	// in vain for as many proposals as the last.
	Beside, Short uint64
}

// RoundStats may be called at any time.
func (n *Net) RoundStats() RoundStats { return n.pacer.counted() }

func (p *pacer) counted() RoundStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// turn is the place of one leadership in its node's rounds.
type turn struct {
	p    *pacer
	wake chan<- struct{} // is sent to, without waiting, when it is this one's turn
	// granted is the number of the round that it is to propose an entry in, 0 if in none. Whoever
	// swaps it for 0 calls done.
	granted atomic.Uint64

	// Guarded by p.mu.
	count int
	asked bool // it is in waiting
	busy  bool // granted, and not done
}

func newPacer() *pacer { return &pacer{} }

func (p *pacer) turn(wake chan<- struct{}) *turn { return &turn{p: p, wake: wake} }

// add says that so many more proposals wait, or less.
func (t *turn) add(n int) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.changed(n, 0)
	t.p.act(time.Now())
}

// took says that so many proposals went into an entry, of a round or (0) of none.
func (t *turn) took(round uint64, n int) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if round != 0 && round == t.p.round {
		t.changed(-n, n)
	} else {
		t.changed(-n, 0)
	}
}

// changed says that so many more proposals wait, and so many more of the last round are unanswered. The caller
// holds p.mu.
func (t *turn) changed(waiting, unanswered int) {
	p := t.p
	t.count += waiting
	p.count += waiting
	p.unanswered += unanswered
	p.most = max(p.most, p.count+p.unanswered)
	if t.count > 0 && !t.asked {
		t.asked = true
		p.waiting = append(p.waiting, t)
	}
}

// leave says that nothing comes any more. What is under way is done all the same.
func (t *turn) leave() {
	t.p.mu.Lock()
	t.changed(-t.count, 0)
	t.p.mu.Unlock()
	if round := t.granted.Swap(0); round != 0 {
		t.done(round, 0)
	}
}

// done ends a turn that was granted: its entry with so many proposals is settled, or it had none.
func (t *turn) done(round uint64, n int) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.busy = false
	now := time.Now()
	if round == t.p.round {
		t.p.unanswered -= n
		if t.p.flying--; t.p.flying == 0 {
			t.p.until = now.Add(gatherTime)
		}
	}
	t.p.act(now)
}

// act opens a round if it is time. The caller holds mu.
func (p *pacer) act(now time.Time) {
	open, at := p.next(now)
	if !open {
		p.waited = p.waited || p.count > 0 && p.flying == 0
		if !at.IsZero() && !at.Equal(p.armed) {
			p.armed = at
			if p.timer == nil {
				p.timer = time.AfterFunc(at.Sub(now), p.tick)
			} else {
				p.timer.Reset(at.Sub(now))
			}
		}
		return
	}
	keep := p.waiting[:0]
	granted := 0
	for _, t := range p.waiting {
		switch {
		case t.busy: // in a round before, still
			keep = append(keep, t)
			continue
		case t.count > 0:
			if granted++; granted == 1 {
				p.round++
			}
			t.busy = true
			t.granted.Store(p.round)
			select {
			case t.wake <- struct{}{}:
			default:
			}
		}
		t.asked = false
	}
	clear(p.waiting[len(keep):])
	p.waiting = keep
	if granted > 0 {
		p.stats.Rounds++
		p.stats.Entries += uint64(granted)
		switch {
		case p.flying > 0:
			p.stats.Beside++
		case p.waited && p.count < p.most:
			p.stats.Short++
		}
		p.waited = false
		p.opened, p.flying, p.unanswered, p.most = now, granted, 0, p.count
	}
}

// next says whether a round may open, or when, if nothing happens before.
func (p *pacer) next(now time.Time) (open bool, at time.Time) {
	switch {
	case p.count <= 0:
		return false, time.Time{}
	case p.flying > 0:
		at = p.opened.Add(roundTime)
	case p.count < p.most:
		at = p.until
	default:
		return true, time.Time{}
	}
	return !now.Before(at), at
}

func (p *pacer) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = time.Time{}
	p.act(time.Now())
}
