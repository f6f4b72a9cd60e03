package store

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

// How a replica knows how old its state is, for reads that may be stale up to a bound.
//
// A message from a leader does not tell: that leader may have been deposed, the message may have waited while
// this process stood still, and what it speaks of may not be applied here. So a follower's answer to a heartbeat carries the moment,
// by its own clock, in which it was given (stamp). Once a majority has confirmed the leader in a round that began
// after that answer came, the leader sends the moment back with its commit index (word): all that was
// acknowledged before that moment, by whomever, is in the log up to there. When the follower has applied
// it, its state has all that. Two clocks are never compared.
//
// It takes two to three heartbeats, so that an idle shard's follower knows that its state is 200 to 900 ms old,
// at a heartbeat time-out of one second. A replica whom nobody has asked for a while gives no stamps, and costs nothing.

// stamp is a moment in the life of one instance of a replica: at is in ns since it began, 0 for none, and
// process is a number that no other instance has.
type stamp struct{ process, at uint64 }

// word is what a leader tells a follower: all that was acknowledged before the stamp, which the follower
// once gave, is in the log up to covers. Without a stamp it says nothing.
type word struct {
	stamp  stamp
	covers uint64
}

const (
	stampSize = 2 * 8
	wordSize  = stampSize + 8
)

func (s stamp) appendTo(b []byte) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, s.process), s.at)
}

func (w word) appendTo(b []byte) []byte {
	return binary.BigEndian.AppendUint64(w.stamp.appendTo(b), w.covers)
}

// cutStamp splits a frame into the stamp in front of it and the rest.
func cutStamp(frame []byte) (stamp, []byte, error) {
	if len(frame) < stampSize {
		return stamp{}, nil, errWire
	}
	return stamp{binary.BigEndian.Uint64(frame), binary.BigEndian.Uint64(frame[8:])}, frame[stampSize:], nil
}

// cutWord splits a frame into the word in front of it and the rest.
func cutWord(frame []byte) (word, []byte, error) {
	s, rest, err := cutStamp(frame)
	if err != nil || len(rest) < 8 {
		return word{}, nil, errWire
	}
	return word{s, binary.BigEndian.Uint64(rest)}, rest[8:], nil
}

// stamps are those that a leader got from one follower, and that wait for a round that began after they came; in order.
type stamps struct {
	pending []stamped
}

type stamped struct {
	stamp stamp
	came  time.Time
}

// maxStamps bounds what waits. A heartbeat's round is over before the second next.
const maxStamps = 4

func (s *stamps) add(st stamp, came time.Time) {
	if st.at != 0 && len(s.pending) < maxStamps {
		s.pending = append(s.pending, stamped{st, came})
	}
}

// ripen is told that a majority has confirmed the leader in a round that began at some time, and returns the newest stamp that
// may be sent back, if there is one that was not yet.
func (s *stamps) ripen(confirmed time.Time) (ripe stamp) {
	for len(s.pending) > 0 && !s.pending[0].came.After(confirmed) {
		ripe = s.pending[0].stamp
		s.pending = slices.Delete(s.pending, 0, 1)
	}
	return ripe
}

// stamped notes that a follower has answered us in a term.
func (p *peers) stamped(id raft.ServerID, term uint64, st stamp) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f, ok := p.followers[id]; ok && f.term == term {
		f.stamps.add(st, time.Now())
		p.followers[id] = f
	}
}

// word is what we as the leader of a term can tell a follower now.
func (p *peers) word(id raft.ServerID, term uint64) word {
	if f, ok := p.follower(id, term); !ok || len(f.stamps.pending) == 0 {
		return word{}
	}
	confirmed, ok := p.confirmed(term)
	if !ok {
		return word{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.followers[id]
	if f.term != term {
		return word{}
	}
	ripe := f.stamps.ripen(confirmed)
	p.followers[id] = f
	return word{ripe, p.raft.Load().CommitIndex()}
}

// freshness is a follower's.
type freshness struct {
	process uint64        // of our stamps
	applied func() uint64 // how far the state is
	wanted  atomic.Int64  // when it was last asked for, in ns since the replica's peers began; 0: never

	mu      sync.Mutex
	at      uint64 // the newest stamp before which everything acknowledged is applied here; 0: none
	waiting []word // not applied yet
}

// maxWords bounds the words that wait for the state. A newer one that finds no room is lost, and there will be others.
const maxWords = 64

func newFreshness(applied func() uint64) *freshness {
	return &freshness{process: rand.Uint64(), applied: applied}
}

// stampsFor is how long stamps are given after somebody has asked how old the state is.
const stampsFor = 30 * time.Second

// stamp is now, if anybody wants to know.
func (p *peers) stamp() stamp {
	now := time.Since(p.began)
	if wanted := p.fresh.wanted.Load(); wanted == 0 || now-time.Duration(wanted) > stampsFor {
		return stamp{}
	}
	return stamp{p.fresh.process, uint64(now) | 1}
}

// trust takes a leader's word. It needs no look at his term: a majority has confirmed him after the stamp.
func (f *freshness) trust(w word) {
	if w.stamp.at == 0 || w.stamp.process != f.process { // that of an earlier process here, for one
		return
	}
	f.newest() // makes room
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.waiting) < maxWords {
		f.waiting = append(f.waiting, w)
	}
}

// newest returns the newest stamp before which everything acknowledged is in the state; 0 for none.
func (f *freshness) newest() uint64 {
	applied := f.applied()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = slices.DeleteFunc(f.waiting, func(w word) bool {
		if w.covers > applied {
			return false
		}
		f.at = max(f.at, w.stamp.at)
		return true
	})
	return f.at
}

// FreshAt is a moment, by this node's monotonic clock, such that the state here has everything that was acknowledged before it,
// wherever: the newest that is known, and the zero time if none is. A follower learns new ones for half a minute after the call.
func (s *Store) FreshAt() time.Time {
	in := s.inst.Load()
	if in == nil {
		return time.Time{}
	}
	in.peers.fresh.wanted.Store(int64(time.Since(in.peers.began)) | 1)
	var known time.Time
	if at := in.peers.fresh.newest(); at != 0 {
		known = in.peers.began.Add(time.Duration(at))
	}
	if l := s.lead.Load(); l != nil && l.in == in && l.isReady() {
		// A leader has applied what it has acknowledged. What followers have shown it may be behind with.
		if confirmed, ok := l.confirmed(l.term); ok && confirmed.After(known) && s.fsm.Applied() >= in.raft.CommitIndex() {
			return confirmed
		}
	}
	return known
}

// fresh says whether the state here lacks nothing that was acknowledged longer than maxAge ago. 0: any age will do.
func (s *Store) fresh(maxAge time.Duration) error {
	if maxAge == 0 {
		return nil
	}
	if at := s.FreshAt(); at.IsZero() || time.Since(at) > maxAge {
		return transport.Errorf(transport.CodeUnavailable, "the state here may lack what was acknowledged %v ago", maxAge)
	}
	return nil
}

// confirmed returns a moment at which nobody can have been elected after us: a majority of the voters has answered what we sent then or later, and
// knew of no term above the given one, which is ours. It is false if we do not lead in that term, or have not applied our own first entry.
func (l *leadership) confirmed(term uint64) (at time.Time, ok bool) {
	if !l.isReady() || l.term != term {
		return time.Time{}, false
	}
	at = time.Now() // no later than our look at who votes
	others, self := l.voters()
	if need := majority(len(others), self); need > 0 {
		var sent []time.Time
		for _, v := range others {
			if f, ok := l.in.peers.follower(v.id, term); ok {
				sent = append(sent, f.sent)
			}
		}
		if len(sent) < need {
			return time.Time{}, false
		}
		slices.SortFunc(sent, func(a, b time.Time) int { return b.Compare(a) })
		if sent[need-1].Before(at) {
			at = sent[need-1]
		}
	}
	// Our own vote comes last: had it been counted before, we might have given it to another since.
	return at, l.store.stable.term.Load() == term
}
