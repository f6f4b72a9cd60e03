package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// Store is one node's replica of one shard.
type Store struct {
	cfg  Config
	log  *slog.Logger
	self address

	db      *raftboltdb.BoltStore
	logs    *logStore
	stable  *stableStore
	snaps   *snapshots
	fsm     *fsm.FSM
	machine *machine
	raftLog *raftLog

	// exclusive is held by an install or a snapshot under way.
	exclusive chan struct{}

	// inst is the present instance; nil while one is replaced by another, and after Close.
	inst atomic.Pointer[instance]
	// lead is the present leadership, or nil.
	lead     atomic.Pointer[leadership]
	wanted   *wanted
	inFlight tracker
	admit    admission
	behind   atomic.Pointer[logBytes] // of CopyBytes

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	closing atomic.Bool
	wg      sync.WaitGroup // run, runSnapshots, OnLeader

	// lastOnLeader is closed when the last OnLeader has returned. Used by the loop
	// of the present leadership only.
	lastOnLeader chan struct{}

	closeOnce sync.Once
	closeErr  error
}

// Open opens a replica: its state, its log, and Raft over both.
func Open(cfg Config) (*Store, error) {
	s, err := newStore(cfg)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := s.open(); err != nil {
		s.cancel()
		s.closeFiles()
		return nil, fmt.Errorf("open replica %s of shard %d: %w", cfg.Replica, cfg.Shard, err)
	}
	s.wg.Go(s.run)
	s.wg.Go(s.runSnapshots)
	cfg.Net.offer(s)
	return s, nil
}

// newStore has nothing open yet.
func newStore(cfg Config) (*Store, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, self: address{shard: cfg.Shard, replica: raft.ServerID(cfg.Replica)},
		log:       cfg.Log.With("shard", cfg.Shard, "replica", cfg.Replica),
		exclusive: make(chan struct{}, 1), wanted: newWanted(), lastOnLeader: make(chan struct{}),
	}
	close(s.lastOnLeader)
	s.raftLog = newRaftLog(s.log)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

func (s *Store) open() error {
	if err := s.openFiles(); err != nil {
		return err
	}
	if s.cfg.Bootstrap != nil {
		if err := s.bootstrap(); err != nil {
			return err
		}
	}
	in, err := newInstance(s)
	if err != nil {
		return err
	}
	s.inst.Store(in)
	return nil
}

// openFiles opens log, votes and state, and makes them fit. Raft does not run yet.
func (s *Store) openFiles() error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := finishSeed(s.cfg.Dir, s.log); err != nil {
		return err
	}
	var err error
	logPath := filepath.Join(s.cfg.Dir, logName)
	if s.cfg.WAL != nil {
		logPath = s.cfg.WAL.Path()
	}
	if s.db, err = openLogFile(s.cfg.Dir); err != nil {
		return err
	}
	logs := s.cfg.entries(s.db)
	if s.cfg.WrapLog != nil {
		logs = s.cfg.WrapLog(logs)
	}
	s.logs = newLogStore(logs, logPath, s.cfg.Fatal, s.log)
	var stable raft.StableStore = s.db
	if s.cfg.WrapStable != nil {
		stable = s.cfg.WrapStable(stable)
	}
	if s.stable, err = readLog(s.cfg, s.self, s.db, stable); err != nil {
		return err
	}
	if s.snaps, err = openSnapshots(filepath.Join(s.cfg.Dir, "snapshots"), s.cfg.Fatal, s.log); err != nil {
		return err
	}
	s.logs.snapshotEnd = func() (index, term uint64) {
		if m := s.snaps.latest(); m != nil {
			return m.Index, m.Term
		}
		return 0, 0
	}
	state := filepath.Join(s.cfg.Dir, stateName)
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	// Their names, and that of snapshots: what is in them is synced, and would be lost with them.
	if err := syncDir(s.cfg.Dir); err != nil {
		return err
	}
	s.fsm, err = fsm.Open(state, fsm.Config{
		Log: s.log, Wanted: s.wanted.has, OnRecord: s.cfg.OnRecord, InitialMmapSize: s.cfg.InitialMmapSize,
		CheckpointBytes: s.cfg.CheckpointBytes, Turn: s.cfg.Turn, OnCheckpoint: s.cfg.OnCheckpoint, Fatal: s.cfg.Fatal,
		Pins: s.cfg.Pins, Room: s.cfg.Room, PinTurn: s.cfg.PinTurn,
	})
	if err != nil {
		var damaged *fsm.CorruptError
		if errors.As(err, &damaged) {
			return fmt.Errorf("%w: %w", ErrStateDamaged, err)
		}
		return err
	}
	s.snaps.source = s.openStream
	if err := s.reconcile(); err != nil {
		return err
	}
	s.machine = newMachine(s.fsm, s.snaps, s.logs, s.cfg.Fatal)
	s.machine.wanted = s.wanted
	return nil
}

// run is the supervisor: it replaces the Raft instance when somebody found that
// nothing else helps.
func (s *Store) run() {
	for {
		old := s.inst.Load()
		if old == nil { // Close has it
			return
		}
		select {
		case <-s.ctx.Done():
			return
		case why := <-old.failed:
			if !s.inst.CompareAndSwap(old, nil) { // Close has it
				return
			}
			s.log.Warn("restarting raft", "why", why)
			// Without a deadline: there is no going on before it has ended, and Close does
			// not wait for us longer than its context.
			if err := old.stop(context.Background()); err != nil {
				panic(err) // Background has no end
			}
			if s.ctx.Err() != nil {
				return
			}
			err := s.reconcile()
			if err == nil {
				var in *instance
				if in, err = newInstance(s); err == nil {
					s.inst.Store(in)
					continue
				}
			}
			// The log and the state of a running replica do not fit together: only a
			// start from the disk can tell.
			s.cfg.Fatal(fmt.Errorf("%s: restart raft of replica %s of shard %d: %w", s.cfg.Dir, s.cfg.Replica, s.cfg.Shard, err))
			return
		}
	}
}

// raft returns the present Raft, or nil while there is none.
func (s *Store) raft() *raft.Raft {
	if in := s.inst.Load(); in != nil {
		return in.raft
	}
	return nil
}

// stuckFor is how long our disk has been at one write.
func (s *Store) stuckFor() time.Duration {
	return max(s.logs.writing.running(), s.machine.applying.running())
}

// startOnLeader runs OnLeader beside a leadership's loop, after the one before it has returned.
func (s *Store) startOnLeader(l *leadership) {
	if s.cfg.OnLeader == nil {
		return
	}
	before, done := s.lastOnLeader, make(chan struct{})
	s.lastOnLeader = done
	s.wg.Go(func() {
		defer close(done)
		<-before
		if l.ctx.Err() == nil {
			s.cfg.OnLeader(l.ctx, l.term)
		}
	})
}

// View returns the state as it is here, now: ReadView and ViewAt are for those who
// must not miss anything.
func (s *Store) View() (*fsm.View, error) { return s.fsm.View() }

// WaitApplied waits until this replica has applied the entry at index.
func (s *Store) WaitApplied(ctx context.Context, index uint64) error {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	return s.fsm.WaitApplied(ctx, index)
}

// Applied is the index of the last entry applied here.
func (s *Store) Applied() uint64 { return s.fsm.Applied() }

// Repeats is how many commands this replica answered from the session table.
func (s *Store) Repeats() uint64 { return s.fsm.Repeats() }

// Init is the shard's identity, if this replica has learnt it.
func (s *Store) Init() (command.Init, bool) { return s.fsm.Init() }

// IsLeader says whether this replica leads and has applied everything from
// before its term.
func (s *Store) IsLeader() bool {
	l := s.lead.Load()
	return l != nil && l.isReady()
}

// Leader is the leading replica's node as far as is known here, or "", and the
// present term. Only a hint.
func (s *Store) Leader() (node string, term uint64) {
	r := s.raft()
	if r == nil {
		return "", s.stable.term.Load()
	}
	addr, _ := r.LeaderWithID()
	return string(addr), r.CurrentTerm()
}

// notLeader says who leads, if it is another.
func (s *Store) notLeader() error {
	node, _ := s.Leader()
	if node == s.cfg.Node {
		node = ""
	}
	return &transport.Error{Code: transport.CodeNotLeader, Detail: node}
}

// graceful is how long Close tries to hand things over.
const graceful = 2 * time.Second

// Close stops proposals, hands over the leadership, and closes everything. If
// ctx ends first, what hangs (a disk) is left open and ctx's error returned.
// Views must be closed by then.
func (s *Store) Close(ctx context.Context) error {
	s.closeOnce.Do(func() { s.closeErr = s.close(ctx) })
	return s.closeErr
}

func (s *Store) close(ctx context.Context) error {
	s.closing.Store(true)
	l := s.lead.Load()
	wasLeader := l != nil && l.isReady()
	// No new proposals, no due keys, no OnLeader, no restart of raft.
	s.cancel()
	soon, cancel := context.WithTimeout(ctx, graceful)
	defer cancel()
	if l != nil {
		select {
		case <-l.done:
		case <-soon.Done():
		}
	}
	// What raft has taken is answered while it still runs: committed, or lost with
	// the leadership. Afterwards nobody could say.
	s.inFlight.wait(soon)
	if wasLeader {
		s.handOver(soon)
	}
	s.inFlight.wait(soon)

	// The supervisor may be in the middle of replacing the instance.
	if in := s.inst.Load(); in != nil {
		if err := s.stopInstance(ctx, in); err != nil {
			return err
		}
	}
	ended := make(chan struct{})
	go func() { s.wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		return fmt.Errorf("close replica %s of shard %d: %w", s.cfg.Replica, s.cfg.Shard, ctx.Err())
	}
	if in := s.inst.Load(); in != nil {
		if err := s.stopInstance(ctx, in); err != nil {
			return err
		}
	}
	if n := s.inFlight.count(); n > 0 {
		s.log.Warn("raft left entries unanswered", "entries", n)
	}
	// What raft did not wait for must not come after the log was closed.
	landed := make(chan struct{})
	if s.logs.landing(math.MaxUint64, func() { close(landed) }) {
		select {
		case <-landed:
		case <-ctx.Done():
			return fmt.Errorf("close replica %s of shard %d: %w", s.cfg.Replica, s.cfg.Shard, ctx.Err())
		}
	}
	err := s.fsm.Flush()
	return errors.Join(err, s.closeFiles())
}

// stopInstance stops an instance once.
func (s *Store) stopInstance(ctx context.Context, in *instance) error {
	if !s.inst.CompareAndSwap(in, nil) {
		return nil
	}
	if err := in.stop(ctx); err != nil {
		return fmt.Errorf("close replica %s of shard %d: %w", s.cfg.Replica, s.cfg.Shard, err)
	}
	return nil
}

// closeFiles closes what open has opened, the state before the log that it is made from.
func (s *Store) closeFiles() error {
	var errs []error
	if s.fsm != nil {
		errs = append(errs, s.fsm.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close replica %s of shard %d: %w", s.cfg.Replica, s.cfg.Shard, err)
	}
	return nil
}

// tracker counts what raft has and whose fate is open. Unlike a WaitGroup it
// can be waited for with a deadline and while others begin.
type tracker struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n falls to 0; nil if nobody waits
}

func (t *tracker) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
}

func (t *tracker) run(f func()) {
	t.begin()
	go func() {
		defer t.end()
		f()
	}()
}

func (t *tracker) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

func (t *tracker) wait(ctx context.Context) {
	t.mu.Lock()
	if t.n == 0 {
		t.mu.Unlock()
		return
	}
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

func (t *tracker) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}
