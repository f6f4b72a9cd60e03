package store

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/abacusdb/abacus/fsm/planted"
)

// The cache spares a leader one read of each entry per follower, and everybody
// the read before applying.
const (
	cacheEntries = 512
	cacheBytes   = 4 << 20
)

// openBolt opens the file of the log and the term. bbolt panics or faults on a
// damaged file; here that is an error, for nothing runs yet that it could harm.
func openBolt(path string) (db *raftboltdb.BoltStore, err error) {
	defer faultsAre(fmt.Errorf("open raft log %s: %w", path, ErrLogDamaged), &err)()
	if err := checkBolt(path); err != nil {
		return nil, fmt.Errorf("open raft log %s: %w", path, err)
	}
	db, err = raftboltdb.New(raftboltdb.Options{
		Path:   path,
		NoSync: planted.Is(planted.NoSyncLog),
		BoltOptions: &bbolt.Options{
			// Another process has it: say so, rather than wait for ever.
			Timeout: time.Second,
			// A log frees pages with every compaction; writing the list of them at each
			// commit would cost more than finding them again when a file this small opens.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
	var sys syscall.Errno
	//lint:ignore SA1019 its new home is another package, and the import rules name what this one may import
	if err != nil && !errors.As(err, &sys) && !errors.Is(err, bbolt.ErrTimeout) {
		// Neither the system nor the lock: it is what bbolt read.
		return nil, fmt.Errorf("open raft log %s: %w: %w", path, ErrLogDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open raft log %s: %w", path, err)
	}
	return db, nil
}

// logStore is the log as raft sees it. Writes come from raft's main loop, and
// deletions of old entries from its snapshot loop; never two at once, for store
// lets no snapshot be taken while one is installed, and bbolt orders the rest.
type logStore struct {
	inner raft.LogStore
	path  string
	log   *slog.Logger
	// fatal does not return.
	fatal func(error)

	// emptied is called by the deletion that follows an install if raft's own idea
	// of its last entry is wrong from then on (hazard R24). It blocks raft's main
	// loop until the instance is told to end.
	emptied func()
	// snapshotEnd is the newest snapshot's last entry. After an install the log
	// lacks it, and a leader that asks whether we have it must not be told no: it
	// would go back further, and install for ever.
	snapshotEnd func() (index, term uint64)
	// installed is the index of a snapshot that was installed and whose old log
	// raft has not deleted yet; 0 if there is none.
	installed atomic.Uint64

	writing stopwatch // of a write under way
	reading stopwatch // of what the cache does not have

	// appended counts what was stored, to know when a snapshot is worth its while.
	appendedEntries, appendedBytes atomic.Uint64

	mu    sync.Mutex
	ring  [cacheEntries]raft.Log // entry i is at i % cacheEntries
	bytes int
	low   uint64 // entries below are not cached
}

func newLogStore(inner raft.LogStore, path string, fatal func(error), log *slog.Logger) *logStore {
	return &logStore{inner: inner, path: path, log: log, fatal: fatal, emptied: func() {},
		snapshotEnd: func() (uint64, uint64) { return 0, 0 }, writing: newStopwatch(), reading: newStopwatch()}
}

// IsMonotonic makes raft delete the whole old log when it installs a snapshot.
// Otherwise entries that were never committed survive below the snapshot and
// are sent to others as if they had been (hazard R5).
func (l *logStore) IsMonotonic() bool { return !planted.Is(planted.LogNotMonotonic) }

func (l *logStore) FirstIndex() (uint64, error) { return l.inner.FirstIndex() }
func (l *logStore) LastIndex() (uint64, error)  { return l.inner.LastIndex() }

func (l *logStore) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l *logStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	// An install is over once raft appends again.
	l.installed.Store(0)
	sealed := make([]*raft.Log, len(logs))
	for i, entry := range logs {
		sealed[i] = seal(entry)
	}
	writing := l.writing.begin()
	err := l.inner.StoreLogs(sealed)
	l.writing.end(writing)
	if err != nil {
		l.fatal(fmt.Errorf("raft log %s: store entries %d to %d: %w", l.path, logs[0].Index, logs[len(logs)-1].Index, err))
		return err
	}
	l.mu.Lock()
	for _, entry := range logs {
		l.remember(entry)
		l.appendedBytes.Add(uint64(len(entry.Data)))
	}
	l.mu.Unlock()
	l.appendedEntries.Add(uint64(len(logs)))
	return nil
}

func (l *logStore) GetLog(index uint64, entry *raft.Log) error {
	l.mu.Lock()
	if c := &l.ring[index%cacheEntries]; c.Index == index && index >= l.low && index > 0 {
		*entry = *c
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	reading := l.reading.begin()
	err := l.inner.GetLog(index, entry)
	l.reading.end(reading)
	if errors.Is(err, raft.ErrLogNotFound) {
		// Raft asks for it only to compare terms: nobody sends an entry whose
		// predecessor he cannot read, but for the first.
		if at, term := l.snapshotEnd(); at == index && at > 1 {
			*entry = raft.Log{Index: at, Term: term, Type: raft.LogNoop}
			return nil
		}
	}
	if err == nil {
		if err = unseal(index, entry); err != nil {
			// To pass it on or to apply it would be to diverge.
			l.fatal(fmt.Errorf("raft log: %w", err))
		}
	}
	return err
}

func (l *logStore) DeleteRange(lo, hi uint64) error {
	l.mu.Lock()
	// The cache must not outlive what it holds: a truncated suffix would be sent on.
	clear(l.ring[:])
	l.bytes, l.low = 0, 0
	l.mu.Unlock()

	writing := l.writing.begin()
	err := l.inner.DeleteRange(lo, hi)
	l.writing.end(writing)
	first, last := uint64(0), uint64(0)
	if err == nil {
		first, err = l.inner.FirstIndex()
	}
	if err == nil {
		last, err = l.inner.LastIndex()
	}
	// Raft deletes a prefix or a suffix: what is left lies on one side.
	if err == nil && first != 0 && last >= lo && first <= hi {
		err = fmt.Errorf("entries %d to %d are left", max(lo, first), min(hi, last))
	}
	if err != nil {
		// raft only logs this and goes on, with entries that must not be there.
		l.fatal(fmt.Errorf("raft log %s: delete entries %d to %d: %w", l.path, lo, hi, err))
		return err
	}
	if last == 0 {
		if snap := l.installed.Swap(0); snap != 0 && hi > snap {
			l.emptied()
		}
	}
	return nil
}

// remember puts an entry in the ring. The caller holds mu.
func (l *logStore) remember(entry *raft.Log) {
	size := entrySize(entry)
	slot := &l.ring[entry.Index%cacheEntries]
	if slot.Index != 0 {
		l.bytes -= entrySize(slot)
	}
	*slot = *entry
	l.bytes += size
	if l.low == 0 || entry.Index < l.low {
		l.low = entry.Index
	}
	if entry.Index >= cacheEntries {
		l.low = max(l.low, entry.Index-cacheEntries+1)
	}
	for l.bytes > cacheBytes && l.low < entry.Index {
		if old := &l.ring[l.low%cacheEntries]; old.Index == l.low {
			l.bytes -= entrySize(old)
			*old = raft.Log{}
		}
		l.low++
	}
}

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
