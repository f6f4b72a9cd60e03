package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// Keys of raft's stable store, which it does not export.
const (
	keyCurrentTerm  = "CurrentTerm"
	keyLastVoteTerm = "LastVoteTerm"
	keyLastVoteCand = "LastVoteCand"
	// keyVote is ours: a version byte, term (8 bytes) and candidate as one value.
	keyVote = "Vote"
)

// voteVersion begins a stored vote.
const voteVersion = 1

// stableStore keeps the term and the vote.
//
// Raft writes a vote as two values. A crash between the two leaves the new term
// with the old candidate, who then gets a vote that was never examined
// (hazard R25). Here the term is held back and written with the candidate.
type stableStore struct {
	inner raft.StableStore
	path  string
	fatal func(error)

	writing stopwatch // of a write under way

	// rising is held, for writing, while the term rises, and for reading by a
	// heartbeat that bypasses raft's main loop: see instance.fastHeartbeat.
	rising sync.RWMutex
	term   atomic.Uint64

	mu       sync.Mutex
	voteTerm uint64
	voteCand []byte // nil: never voted
	held     uint64 // LastVoteTerm waiting for its candidate
}

func newStableStore(inner raft.StableStore, path string, fatal func(error)) (*stableStore, error) {
	s := &stableStore{inner: inner, path: path, fatal: fatal, writing: newStopwatch()}
	term, err := inner.GetUint64([]byte(keyCurrentTerm))
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, fmt.Errorf("%w: read term: %w", ErrLogDamaged, err)
	}
	s.term.Store(term)
	vote, err := inner.Get([]byte(keyVote))
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, fmt.Errorf("%w: read vote: %w", ErrLogDamaged, err)
	}
	if err == nil {
		d := decoder{buf: vote}
		version := d.u8()
		s.voteTerm = d.u64()
		if d.err != nil {
			return nil, fmt.Errorf("%w: read vote: %d bytes are no vote", ErrLogDamaged, len(vote))
		}
		if version != voteVersion {
			return nil, fmt.Errorf("read vote: it has format %d, this program knows format %d", version, voteVersion)
		}
		s.voteCand = append([]byte{}, d.buf...)
	}
	return s, nil
}

// voted says whether this replica ever voted.
func (s *stableStore) voted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.voteCand != nil
}

// write times a write, for Watch.
func (s *stableStore) write(f func() error) error {
	defer s.writing.end(s.writing.begin())
	return f()
}

func (s *stableStore) SetUint64(key []byte, v uint64) error {
	switch string(key) {
	case keyCurrentTerm:
		return s.setTerm(v)
	case keyLastVoteTerm:
		s.mu.Lock()
		s.held = v
		s.mu.Unlock()
		return nil
	}
	if err := s.write(func() error { return s.inner.SetUint64(key, v) }); err != nil {
		s.fatal(fmt.Errorf("raft votes %s: set %s: %w", s.path, key, err))
		return err
	}
	return nil
}

func (s *stableStore) setTerm(v uint64) error {
	// Before the lock: the fast path holds it for reading, and sets the term we have.
	if v == s.term.Load() {
		return nil
	}
	s.rising.Lock()
	defer s.rising.Unlock()
	if now := s.term.Load(); v < now {
		// Elections are only safe, and reads only fresh, if this never happens.
		err := fmt.Errorf("raft votes %s: term falls from %d to %d", s.path, now, v)
		s.fatal(err)
		return err
	} else if v == now {
		return nil
	}
	if err := s.write(func() error { return s.inner.SetUint64([]byte(keyCurrentTerm), v) }); err != nil {
		s.fatal(fmt.Errorf("raft votes %s: set term %d: %w", s.path, v, err))
		return err
	}
	s.term.Store(v)
	return nil
}

func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	switch string(key) {
	case keyCurrentTerm:
		return s.term.Load(), nil
	case keyLastVoteTerm:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.voteTerm, nil
	}
	return s.inner.GetUint64(key)
}

func (s *stableStore) Set(key, v []byte) error {
	if string(key) != keyLastVoteCand {
		if err := s.write(func() error { return s.inner.Set(key, v) }); err != nil {
			s.fatal(fmt.Errorf("raft votes %s: set %s: %w", s.path, key, err))
			return err
		}
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.voteCand != nil && s.held <= s.voteTerm {
		err := fmt.Errorf("raft votes %s: vote of term %d after one of term %d", s.path, s.held, s.voteTerm)
		s.fatal(err)
		return err
	}
	e := &encoder{}
	e.u8(voteVersion)
	e.u64(s.held)
	vote := append(e.buf, v...)
	if err := s.write(func() error { return s.inner.Set([]byte(keyVote), vote) }); err != nil {
		s.fatal(fmt.Errorf("raft votes %s: set vote of term %d: %w", s.path, s.held, err))
		return err
	}
	s.voteTerm, s.voteCand = s.held, append([]byte{}, v...)
	return nil
}

func (s *stableStore) Get(key []byte) ([]byte, error) {
	if string(key) == keyLastVoteCand {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.voteCand == nil {
			return nil, nil
		}
		return append([]byte{}, s.voteCand...), nil
	}
	return s.inner.Get(key)
}
