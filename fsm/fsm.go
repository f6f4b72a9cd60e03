// Package fsm is the replicated state machine of one shard: committed commands
// in, answers and one bbolt file out, views at one log index beside it.
//
// # Its loops
//
// Raft calls ApplyBatch, Snapshot and Restore from one goroutine, and what they do
// is a function of the entries and of the state before them: no clock, no chance, no
// map order, no flag of this node. So two replicas that applied the same entries hold
// the same state. ApplyBatch changes memory only: it never waits for a disk, but to
// read what is not in memory.
//
// FSM.runCheckpoints is the second loop. It folds what was applied into the file, in
// one large, sorted, synced transaction that also holds the applied index and the
// sessions. What is not in the file yet, the log has: raft may forget an entry only when
// Persist has seen a checkpoint at or above it.
//
// pins.run is the third. It ends the views that an entry has had this replica keep (command.OpPin), when their time is over or they
// hold too much. Whether a replica has a pin is no part of its state, and nothing that is applied depends on it.
//
// # Who owns what
//
//	FSM        mu guards the state in memory: writers are ApplyBatch, entry by entry,
//	           and a checkpoint that moves layers; point reads (Query) share it
//	applier    the state in memory: layers, counts, sessions, clock
//	layers     active over frozen over the file: what is above hides what is below
//	frozen     what one checkpoint writes
//	state      what is published after each batch: an immutable value, swapped whole
//	generation one state file and how many use it; Restore makes the next one, and
//	           the last user of an old one removes it
//	View       copies of the layers and a transaction of its own, at one index
//	pins       mu guards the views that are kept for jobs, who reads them, and why they ended
//
// # Time
//
// The shard's clock counts milliseconds and moves only by what entries carry. A
// key is visible while its deadline is above the clock, whether or not it was
// purged yet.
//
// # Fail-stop
//
// An error of bbolt goes to Config.Fatal: after a failed sync nobody knows what is
// in the file. A row whose checksum does not match, or a page that bbolt cannot read, marks
// the file as damaged first, so that the next start takes it out of use. An entry that
// cannot be decoded panics: a replica that went on would have diverged.
package fsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/fsm/planted"
	"github.com/hashicorp/raft"
)

// Config says how to open a state machine. The zero Config is usable.
type Config struct {
	// Log gets warnings; default: none.
	Log *slog.Logger
	// Wanted says whether this replica waits for the answers of the batch, so
	// that answers are worked out only where they are read. nil: never. It is
	// called on the FSM goroutine and cannot change the state.
	Wanted func(batchID uint64) bool
	// OnRecord is told of each system record that an entry changed, after the
	// commit and before WaitApplied returns for that entry; value is nil if the
	// record was deleted. It is also told of every record by Open and Restore. It
	// runs on the FSM goroutine and must not block; value is its own copy.
	OnRecord func(name string, value []byte, revision int64)
	// InitialMmapSize is how much address space the file is given, in bytes.
	// Default 16 GiB, which costs nothing until it is used. When the file outgrows
	// it, the next checkpoint waits for all views to close.
	InitialMmapSize int
	// CheckpointBytes is how much may gather in memory before a checkpoint begins, which it does at 60 to 100 % of it, and at a sixteenth once no key changes.
	// Default 10 MiB: what it writes costs several times as much heap while it does.
	CheckpointBytes int64
	// Turn, if not nil, is shared by the state machines of a node, so that
	// one at a time writes a checkpoint: each takes memory and disk.
	Turn *Turn
	// OnCheckpoint is called when a checkpoint is about to be written, without any lock
	// held. A test makes the disk slow with it.
	OnCheckpoint func()
	// Fatal is told of an error after which the state in memory or in the file
	// cannot be trusted. It does not return. Default: panic.
	Fatal func(error)
	// CloseTimeout bounds how long Close waits for views; default 5 s.
	CloseTimeout time.Duration
	// Pins bounds what pins cost this replica.
	Pins PinLimits
	// Room says whether so many bytes more may be written beside the state, for the sake of a pin. It must not wait. nil: yes.
	Room func(bytes int64) bool
	// PinTurn, if not nil, is shared by the state machines of a node, so that one at a time copies what a pin reads.
	PinTurn *Turn
}

// Applied is what ApplyBatch returns for an entry.
type Applied struct {
	Index uint64
	// Batch is the batch's id, 0 if nobody waits for its answers or it had been applied before.
	Batch uint64
	// Results has one result per command, or is nil if the batch was not wanted
	// or had been applied before.
	Results []command.Result
}

// FSM is one shard's state machine. It implements raft.FSM and raft.BatchingFSM.
type FSM struct {
	cfg Config
	log *slog.Logger
	dir string

	mu     sync.RWMutex // guards closed, gen, ap and durable; st is stored under it
	closed bool
	gen    *generation
	ap     applier
	// durable is what the newest checkpoint holds.
	durable uint64

	st   atomic.Pointer[state]
	done chan struct{} // closed by Close
	wg   sync.WaitGroup

	// overlay is what the layers in memory take, in bytes.
	overlay atomic.Int64
	repeats atomic.Uint64
	// checkpoints written since Open, and the rows of them.
	checkpoints, checkpointRows atomic.Uint64
	kick                        chan struct{} // has a token when a checkpoint may be due
	turn                        *Turn         // had by the checkpoint under way
	due                         atomic.Int64  // bytes in memory that make a checkpoint due: see stagger
	hurried                     atomic.Int64  // how many wait for a checkpoint
	// checkpointing is the checkpoint under way, nil if there is none.
	checkpointing atomic.Pointer[checkpointing]

	waitMu  sync.Mutex
	waiters []waiter

	pins *pins
}

var _ raft.BatchingFSM = (*FSM)(nil)

// state is what the FSM goroutine publishes after each batch. Immutable.
type state struct {
	applied  uint64
	durable  uint64 // Invariant: durable <= applied; the log has what is between
	term     uint64 // of the last entry applied
	clock    int64
	deadline int64 // the earliest; noDeadline if there is none
	records  int64 // stored, with those that have ended and are not purged yet
	file     int64 // bytes of the file's pages in use
	fileSize int64 // bytes of all its pages
	fileTx   int   // the transaction that wrote them
	init     *command.Init
	leaving  []command.SlotRange // frozen
	opened   uint64              // sessions, by their count
}

const noDeadline = math.MaxInt64

type waiter struct {
	index uint64
	ready chan struct{}
}

// Open opens the state in dir, which exists, or makes an empty one.
func Open(dir string, cfg Config) (*FSM, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.InitialMmapSize <= 0 {
		cfg.InitialMmapSize = 16 << 30
	}
	if cfg.CheckpointBytes <= 0 {
		cfg.CheckpointBytes = 10 << 20
	}
	if cfg.Fatal == nil {
		cfg.Fatal = func(err error) { panic(err) }
	}
	if cfg.CloseTimeout <= 0 {
		cfg.CloseTimeout = 5 * time.Second
	}
	gen, err := openLatest(dir, cfg.InitialMmapSize, cfg.Log)
	if err != nil {
		return nil, err
	}
	f := &FSM{cfg: cfg, log: cfg.Log, dir: dir, gen: gen, done: make(chan struct{}), kick: make(chan struct{}, 1),
		turn: NewTurn()}
	f.pins = newPins(f)
	st, records, err := f.load(gen)
	if err != nil {
		gen.release()
		return nil, err
	}
	f.durable = st.applied
	f.st.Store(st)
	f.stagger()
	f.tell(records)
	f.wg.Go(f.runCheckpoints)
	f.wg.Go(f.pins.run)
	return f, nil
}

// ApplyBatch applies committed entries. Entries at or below the applied index are
// skipped: after a restart raft replays what it has no snapshot of.
func (f *FSM) ApplyBatch(logs []*raft.Log) []any {
	defer f.guard(nil)
	out := make([]any, len(logs))
	applied := make([]Applied, len(logs))
	var records []recordChange
	for i, l := range logs {
		applied[i].Index = l.Index
		out[i] = &applied[i]
		applied[i].Results, applied[i].Batch, records = f.apply(l, records)
	}
	// Told before the index is published: who waits for it finds the record known.
	f.tell(records)
	f.mu.Lock()
	if f.ap.index > f.Applied() {
		f.publish(f.ap.state(f.durable))
	}
	active := f.ap.layers.active.bytes
	f.overlay.Store(active + f.ap.layers.frozenBytes())
	f.mu.Unlock()
	if active >= f.due.Load() {
		select {
		case f.kick <- struct{}{}:
		default:
		}
	}
	return out
}

// apply applies one entry, as a whole: nobody sees half of it.
func (f *FSM) apply(l *raft.Log, records []recordChange) (results []command.Result, batch uint64, _ []recordChange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		panic("fsm: apply after close")
	}
	a := &f.ap
	if l.Index <= a.index && !planted.Is(planted.DropAppliedSkip) {
		return nil, 0, records
	}
	a.index = l.Index
	if l.Type != raft.LogCommand {
		return nil, 0, records
	}
	a.records = records
	results, batch = a.entry(l)
	if len(a.pins) > 0 {
		f.pins.applied(f.gen, a)
		a.pins = a.pins[:0]
	}
	records, a.records = a.records, nil
	return results, batch, records
}

// Apply applies one entry.
func (f *FSM) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// Applied is the index of the last entry applied, in memory.
func (f *FSM) Applied() uint64 { return f.st.Load().applied }

// DurableIndex is the index from which a restart would go on.
func (f *FSM) DurableIndex() uint64 { return f.st.Load().durable }

// LastTerm is the term of the last command entry applied.
func (f *FSM) LastTerm() uint64 { return f.st.Load().term }

// Stored is the number of keys, with those that have ended and are not purged yet.
func (f *FSM) Stored() int64 { return f.st.Load().records }

// FileBytes is how much of the state's file is in use, in bytes: about what a copy takes. It grows with checkpoints.
func (f *FSM) FileBytes() int64 { return f.st.Load().file }

// Clock is the shard's time in milliseconds.
func (f *FSM) Clock() int64 { return f.st.Load().clock }

// NextDeadline is when, by the shard's clock, the next key ends. It may lie in
// the past when more keys ended at once than one entry purges.
func (f *FSM) NextDeadline() (ms int64, ok bool) {
	d := f.st.Load().deadline
	return d, d != noDeadline
}

// Init is the shard's identity, if it has one yet.
func (f *FSM) Init() (command.Init, bool) {
	if in := f.st.Load().init; in != nil {
		return *in, true
	}
	return command.Init{}, false
}

// SessionCount is the count of the last session that the shard made: the lower 48 bits of its id.
func (f *FSM) SessionCount() uint64 { return f.st.Load().opened }

// Repeats is how many commands were answered from the session table, because they had
// been carried out before, since Open.
func (f *FSM) Repeats() uint64 { return f.repeats.Load() }

// OverlayBytes is about how much memory the state takes that is not in the file yet.
func (f *FSM) OverlayBytes() int64 { return f.overlay.Load() }

// Checkpointing is how long the checkpoint under way has taken, and about how many bytes
// of state it has to write; 0 if there is none. What is applied meanwhile is not counted.
func (f *FSM) Checkpointing() (took time.Duration, bytes int64) {
	c := f.checkpointing.Load()
	if c == nil {
		return 0, 0
	}
	return time.Since(c.began), c.bytes
}

// CheckpointingRows is how many rows the checkpoint under way writes, 0 if there is none.
func (f *FSM) CheckpointingRows() int {
	if c := f.checkpointing.Load(); c != nil {
		return c.rows
	}
	return 0
}

// Checkpoints is how many checkpoints were written since Open, and how many rows in all.
func (f *FSM) Checkpoints() (count, rows uint64) {
	return f.checkpoints.Load(), f.checkpointRows.Load()
}

func (f *FSM) activeBytes() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.ap.layers.active.bytes
}

// WaitApplied returns when the entry at index is applied, or with the context's error.
func (f *FSM) WaitApplied(ctx context.Context, index uint64) error {
	if f.Applied() >= index {
		return nil
	}
	w := waiter{index: index, ready: make(chan struct{})}
	f.waitMu.Lock()
	f.waiters = append(f.waiters, w)
	f.waitMu.Unlock()
	// publish stores the state before it looks for waiters: whoever comes too late
	// for that look sees the state here.
	if f.Applied() >= index {
		f.forget(w)
		return nil
	}
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		f.forget(w)
		return fmt.Errorf("wait for index %d to be applied: %w", index, ctx.Err())
	case <-f.done:
		f.forget(w)
		return ErrClosed
	}
}

func (f *FSM) forget(w waiter) {
	f.waitMu.Lock()
	defer f.waitMu.Unlock()
	for i := range f.waiters {
		if f.waiters[i].ready == w.ready {
			last := len(f.waiters) - 1
			f.waiters[i] = f.waiters[last]
			f.waiters[last] = waiter{}
			f.waiters = f.waiters[:last]
			return
		}
	}
}

// publish makes a state the present one. The caller holds mu.
func (f *FSM) publish(st *state) {
	f.st.Store(st)
	f.waitMu.Lock()
	defer f.waitMu.Unlock()
	keep := f.waiters[:0]
	for _, w := range f.waiters {
		if w.index <= st.applied {
			close(w.ready)
		} else {
			keep = append(keep, w)
		}
	}
	clear(f.waiters[len(keep):])
	f.waiters = keep
}

func (f *FSM) tell(records []recordChange) {
	if f.cfg.OnRecord == nil {
		return
	}
	for _, r := range records {
		f.cfg.OnRecord(r.name, r.value, r.revision)
	}
}

// Close ends the state machine and waits for a checkpoint, views and streams to
// end. It does not Flush: what is not durable, the log replays.
func (f *FSM) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	close(f.done)
	gen, file := f.gen, f.ap.layers.file
	f.mu.Unlock()

	f.wg.Wait()
	f.pins.close()
	file.close()
	gen.release()
	timeout := time.NewTimer(f.cfg.CloseTimeout)
	defer timeout.Stop()
	select {
	case <-gen.ended:
		return gen.closeErr
	case <-timeout.C:
		return fmt.Errorf("close state %s: %w", gen.path, ErrViewsOpen)
	}
}

// guard is deferred where the state is read or changed. Damage of the file, which
// comes as a panic with a *CorruptError, is noted beside the file and goes to Fatal; if that
// returns, as it may in a test, *err is the damage. Other panics go on.
func (f *FSM) guard(err *error) {
	p := recover()
	if p == nil {
		return
	}
	c, ok := p.(*CorruptError)
	if !ok {
		panic(p)
	}
	markDamaged(c.Path, f.log)
	f.cfg.Fatal(c)
	if err == nil {
		panic(p)
	}
	*err = c
}

// removeQuietly removes a file that nothing needs any more.
func removeQuietly(log *slog.Logger, path string) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		log.Warn("remove old state file", "path", path, "err", err)
	}
}

// Restore replaces the state by the stream's, which OpenStream of another
// replica made. It refuses a stream that is not newer (ErrStaleSnapshot): raft
// itself never compares, and a late or repeated snapshot would take back what
// this replica has acknowledged.
func (f *FSM) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	st := f.st.Load()
	f.mu.RLock()
	n := f.gen.n + 1
	f.mu.RUnlock()
	gen, err := receive(f.dir, n, rc, f.cfg.InitialMmapSize, f.log, func(h header) error {
		if h.applied <= st.applied {
			return &StaleSnapshotError{Applied: st.applied, Snapshot: h.applied}
		}
		if st.init != nil && (h.init == nil || h.init.ClusterID != st.init.ClusterID || h.init.Shard != st.init.Shard) {
			return ErrForeignSnapshot
		}
		return nil
	})
	if err != nil {
		if switched := (*switchError)(nil); errors.As(err, &switched) {
			f.cfg.Fatal(err)
		}
		return fmt.Errorf("restore snapshot: %w", err)
	}
	old, records, err := f.replace(gen)
	if err != nil {
		return err
	}
	f.tell(records)
	f.mu.Lock()
	f.publish(f.ap.state(f.durable))
	f.overlay.Store(0)
	f.mu.Unlock()
	old.retire()
	f.log.Info("restored snapshot", "index", f.Applied(), "from_index", st.applied)
	return nil
}

// replace puts a new generation in the place of the present one, with all that
// is in memory above that. A checkpoint under way ends in the old file and is ignored.
func (f *FSM) replace(gen *generation) (old *generation, records []recordChange, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		gen.release()
		return nil, nil, ErrClosed
	}
	gone := map[string]bool{}
	f.ap.layers.walk(inRecords, nil, func(k []byte, _ row) bool {
		gone[string(k)] = true
		return true
	})
	old, file := f.gen, f.ap.layers.file
	// From here the new file is the one that a restart opens: there is no way back.
	f.gen = gen
	if _, records, err = f.load(gen); err != nil {
		f.cfg.Fatal(fmt.Errorf("load restored state: %w", err))
		return nil, nil, err
	}
	f.durable = f.ap.index
	file.close()
	for _, r := range records {
		delete(gone, r.name)
	}
	for name := range gone {
		records = append(records, recordChange{name: name})
	}
	return old, records, nil
}
