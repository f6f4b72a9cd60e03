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
	"github.com/abacusdb/abacus/store/wal"
	"github.com/abacusdb/abacus/transport"
)

// Config says which replica to open, where and how.
type Config struct {
	// Shard and Replica name the replica for ever; Node is where it is kept, and
	// how others reach it.
	Shard   uint32
	Replica string
	Node    string
	// Dir holds everything that the replica keeps. It is made if need be, and may
	// be removed after Close.
	Dir string
	// Net carries its Raft traffic.
	Net *Net
	// WAL is the node's log, which its replicas share. nil: the replica has one of its own, a
	// raft-boltdb file in Dir. A replica keeps the kind that it was made with.
	WAL *wal.WAL
	// Bootstrap makes this the first replica of a new shard with that identity: the
	// one voter, if nothing is kept here yet. It does no harm later.
	Bootstrap *command.Init
	// OnRecord is told of changed system records, on the FSM goroutine: see fsm.Config.
	OnRecord func(name string, value []byte, revision int64)
	// OnLeader runs while this replica leads, from its opening entry on, in a
	// goroutine of its own; ctx ends with the leadership. It never runs twice at once.
	OnLeader func(ctx context.Context, term uint64)
	// Timing is Raft's. The zero value is DefaultTiming.
	Timing Timing
	// Snapshots says when the log is cut. The zero value is DefaultSnapshots.
	Snapshots Snapshots
	// WrapLog wraps the log, so that a test can make it slow or fail.
	WrapLog func(raft.LogStore) raft.LogStore
	// WrapStable does the same for the term and the votes.
	WrapStable func(raft.StableStore) raft.StableStore
	// InitialMmapSize is the address space of the state file: see fsm.Config.
	InitialMmapSize int
	// CheckpointBytes, Turn and OnCheckpoint are the state's: see fsm.Config. Turn is
	// shared by all replicas of a node.
	CheckpointBytes int64
	Turn            *fsm.Turn
	OnCheckpoint    func()
	// WholeCopies says whether copies of the state must go in the form that v0.4 understands, in which they are as large as the file. nil: never.
	WholeCopies func() bool
	// MaxOverlayBytes is how much state may lie in memory, not in the file yet, here or
	// on any voter, before a leader takes no more writes into the log: they wait, and are
	// refused at their deadline. Default 32 MiB, four checkpoints' worth: a start after a
	// kill reads it all from the log again.
	MaxOverlayBytes int64
	// DiskFull says whether this node's disk has no room for more data; nil: never. It
	// is asked for each proposal, and must not wait.
	DiskFull func() bool
	// Fatal is told of an error or a hang of the disk, after which nobody knows what
	// is on it. It ends the process and does not return. Default: panic.
	Fatal func(error)
	// Log; default: none.
	Log *slog.Logger
}

// Timing is when Raft loses patience. Zero fields take their default.
type Timing struct {
	// Heartbeat is how long a follower goes without hearing from a leader before it
	// asks for votes; the leader sends ten times as often. Default 1 s.
	Heartbeat time.Duration
	// Election is how long a candidate waits for votes; at least Heartbeat. Default 1 s.
	Election time.Duration
	// Lease is how long a leader goes without hearing from a majority before it
	// steps down; at most Heartbeat. Default 1 s: as long as a follower goes without
	// hearing from it. No read and no write rests on it. When it is shorter, a leader that waits for
	// a processor steps down before anybody asked for votes.
	Lease time.Duration
	// Tell is how long no entry follows before a leader tells followers that what they have is committed. A client
	// that waits for each of its writes before the next is quicker. Default 5 ms.
	Tell time.Duration
	// Commit is how often a leader tells idle followers the commit index, at least, and asks those again that
	// a broken link has kept from answering. Default 200 ms.
	Commit time.Duration
	// Stuck is how long one write of the log or of the state may take before a
	// leader stops to claim that it leads. Default 3 s.
	Stuck time.Duration
}

// DefaultTiming is what hashicorp/raft defaults to, patience enough for a slow fsync, but for a longer
// lease (docs/decisions/0011-fail-stop.md has the measurement) and a Commit four times as long (0018-processor-time.md).
func DefaultTiming() Timing {
	return Timing{Heartbeat: time.Second, Election: time.Second, Lease: time.Second, Tell: 5 * time.Millisecond, Commit: 200 * time.Millisecond, Stuck: 3 * time.Second}
}

// Snapshots says when the log is cut and what is left of it. Entries are batches
// of up to 256 KiB, so both are bounded by bytes too. Zero fields take their default.
type Snapshots struct {
	// Entries since the last snapshot that make another due. Default 4096: a start
	// reads them all.
	Entries uint64
	// Bytes of entries since the last snapshot that make another due. Default 64 MiB.
	Bytes uint64
	// Trailing is how many entries stay behind a snapshot for followers that are
	// behind, at most and at least MinTrailing. Default 2048.
	Trailing uint64
	// TrailingBytes bounds the trailing entries in bytes. Default 32 MiB.
	TrailingBytes uint64
	// Interval is how often to look. Default 1 s.
	Interval time.Duration
}

// MinTrailing is how many entries always stay behind a snapshot.
const MinTrailing = 16

// DefaultSnapshots are the defaults.
func DefaultSnapshots() Snapshots {
	return Snapshots{Entries: 4096, Bytes: 64 << 20, Trailing: 2048, TrailingBytes: 32 << 20, Interval: time.Second}
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c *Config) setDefaults() {
	t, dt := &c.Timing, DefaultTiming()
	orDefault(&t.Heartbeat, dt.Heartbeat)
	orDefault(&t.Election, max(dt.Election, t.Heartbeat))
	orDefault(&t.Lease, min(dt.Lease, t.Heartbeat))
	orDefault(&t.Tell, dt.Tell)
	orDefault(&t.Commit, dt.Commit)
	orDefault(&t.Stuck, dt.Stuck)
	s, ds := &c.Snapshots, DefaultSnapshots()
	orDefault(&s.Entries, ds.Entries)
	orDefault(&s.Bytes, ds.Bytes)
	orDefault(&s.Trailing, ds.Trailing)
	orDefault(&s.TrailingBytes, ds.TrailingBytes)
	orDefault(&s.Interval, ds.Interval)
	s.Trailing = max(s.Trailing, MinTrailing)
	orDefault(&c.MaxOverlayBytes, 32<<20)
	if c.DiskFull == nil {
		c.DiskFull = func() bool { return false }
	}
	if c.Fatal == nil {
		c.Fatal = func(err error) { panic(err) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

func (c *Config) validate() error {
	var errs []error
	check := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	check(c.Replica != "", "Replica is empty")
	check(c.Node != "", "Node is empty")
	check(c.Dir != "", "Dir is empty")
	check(c.Net != nil, "Net is nil")
	check(c.Timing.Election >= c.Timing.Heartbeat, fmt.Sprintf("Timing.Election %v is below Timing.Heartbeat %v", c.Timing.Election, c.Timing.Heartbeat))
	check(c.Timing.Lease <= c.Timing.Heartbeat, fmt.Sprintf("Timing.Lease %v is above Timing.Heartbeat %v", c.Timing.Lease, c.Timing.Heartbeat))
	if b := c.Bootstrap; b != nil {
		check(b.Shard == c.Shard, fmt.Sprintf("Bootstrap is of shard %d, not %d", b.Shard, c.Shard))
	}
	return errors.Join(errs...)
}

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
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		cfg: cfg, self: address{shard: cfg.Shard, replica: raft.ServerID(cfg.Replica)},
		log:       cfg.Log.With("shard", cfg.Shard, "replica", cfg.Replica),
		exclusive: make(chan struct{}, 1), wanted: newWanted(), lastOnLeader: make(chan struct{}),
	}
	close(s.lastOnLeader)
	s.raftLog = newRaftLog(s.log)
	s.ctx, s.cancel = context.WithCancel(context.Background())
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

func (s *Store) open() error {
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
	if s.cfg.Bootstrap != nil {
		if err := s.bootstrap(); err != nil {
			return err
		}
	}
	s.machine = newMachine(s.fsm, s.snaps, s.logs, s.cfg.Fatal)
	s.machine.wanted = s.wanted
	in, err := newInstance(s)
	if err != nil {
		return err
	}
	s.inst.Store(in)
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
