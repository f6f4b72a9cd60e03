// Package fsm is the replicated state machine of one shard: committed commands
// in, one bbolt file and the answers out, views at one log index beside it.
//
// # Its one loop
//
// There is no goroutine here. Raft calls ApplyBatch, Snapshot and Restore from
// one goroutine, and what they do is a function of the entries and of the state
// before them: no clock, no chance, no map order, no flag of this node. So two
// replicas that applied the same entries hold the same state.
//
// ApplyBatch runs all commands of all entries it was given in one bbolt
// transaction, which also carries the applied index, and commits it once,
// synced. Entries without effect (reads, no-ops) commit nothing: the index
// and the clock move in memory alone, for the log still has those entries.
// Flush makes them durable, which Persist does before raft may forget them.
//
// # Who owns what
//
//	FSM        the only writer; mu orders ApplyBatch, Flush, Restore and Close
//	state      what many read and one changes: an immutable value, swapped whole
//	generation one state file and how many use it; Restore makes the next one, and
//	           the last user of an old one removes it
//	View       one bbolt read transaction with the index and the clock it stands at
//
// # Time
//
// The shard's clock counts milliseconds and moves only by what entries carry. A
// key is visible while its deadline is above the clock, whether or not it was
// purged yet.
//
// An error of bbolt, or an entry that cannot be decoded, panics: a replica that
// went on would have diverged.
package fsm

import (
	"context"
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
	// it, the next commit waits for all views to close.
	InitialMmapSize int
	// CloseTimeout bounds how long Close waits for views; default 5 s.
	CloseTimeout time.Duration
}

// Applied is what ApplyBatch returns for an entry.
type Applied struct {
	Index uint64
	// Results has one result per command, or is nil if the batch was not wanted
	// or had been applied before.
	Results []command.Result
}

// FSM is one shard's state machine. It implements raft.FSM and raft.BatchingFSM.
type FSM struct {
	cfg Config
	log *slog.Logger
	dir string

	// mu orders the writers. Nobody who only reads takes it.
	mu     sync.Mutex
	closed bool
	ap     applier

	st   atomic.Pointer[state]
	done chan struct{} // closed by Close

	waitMu  sync.Mutex
	waiters []waiter
}

var _ raft.BatchingFSM = (*FSM)(nil)

// state is what the FSM goroutine publishes after each batch. Immutable.
type state struct {
	gen *generation
	// Invariant: durable <= applied, and no entry between them had an effect.
	applied, durable uint64
	term             uint64 // of the last entry applied
	clock            int64
	deadline         int64 // the earliest; noDeadline if there is none
	init             *command.Init
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
	if cfg.CloseTimeout <= 0 {
		cfg.CloseTimeout = 5 * time.Second
	}
	gen, err := openLatest(dir, cfg.InitialMmapSize, cfg.Log)
	if err != nil {
		return nil, err
	}
	f := &FSM{cfg: cfg, log: cfg.Log, dir: dir, done: make(chan struct{})}
	f.ap.f = f
	st, records, err := f.load(gen)
	if err != nil {
		gen.release()
		return nil, err
	}
	f.st.Store(st)
	f.tell(records)
	return f, nil
}

// ApplyBatch applies committed entries, all in one transaction. Entries at or
// below the applied index are skipped: after a restart raft replays what it has
// no snapshot of.
func (f *FSM) ApplyBatch(logs []*raft.Log) []any {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		panic("fsm: apply after close")
	}
	st := f.st.Load()
	a := &f.ap
	a.start(st)
	defer a.abandon()

	out := make([]any, len(logs))
	applied := make([]Applied, len(logs))
	for i, l := range logs {
		applied[i].Index = l.Index
		out[i] = &applied[i]
		if l.Index <= a.index && !planted.Is(planted.DropAppliedSkip) {
			continue
		}
		if l.Type == raft.LogCommand {
			applied[i].Results = a.entry(l)
		}
		a.index = l.Index
	}
	if a.index > st.applied {
		next := a.finish(st)
		f.tell(a.records)
		f.publish(next)
	}
	return out
}

// Apply applies one entry.
func (f *FSM) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// Flush makes the applied index and the clock durable.
func (f *FSM) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	st := f.st.Load()
	if st.durable == st.applied {
		return nil
	}
	if err := f.ap.flush(st); err != nil {
		return fmt.Errorf("flush state at index %d: %w", st.applied, err)
	}
	next := *st
	next.durable = st.applied
	f.publish(&next)
	return nil
}

// Applied is the index of the last entry applied, in memory.
func (f *FSM) Applied() uint64 { return f.st.Load().applied }

// DurableIndex is the index from which a restart would go on.
func (f *FSM) DurableIndex() uint64 { return f.st.Load().durable }

// LastTerm is the term of the last command entry applied.
func (f *FSM) LastTerm() uint64 { return f.st.Load().term }

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

// Close ends the state machine and waits for views and streams to end. It does
// not Flush: what is not durable, the log replays.
func (f *FSM) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	close(f.done)
	gen := f.st.Load().gen
	f.mu.Unlock()

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
	gen, err := receive(f.dir, st.gen.n+1, rc, f.cfg.InitialMmapSize, f.log, func(h header) error {
		if h.applied <= st.applied {
			return &StaleSnapshotError{Applied: st.applied, Snapshot: h.applied}
		}
		if st.init != nil && (h.init == nil || h.init.ClusterID != st.init.ClusterID || h.init.Shard != st.init.Shard) {
			return ErrForeignSnapshot
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		gen.release()
		return ErrClosed
	}
	gone, err := recordNames(st.gen)
	if err != nil {
		panic(fmt.Errorf("fsm: read records before restore: %w", err))
	}
	// From here the new file is the one that a restart opens: there is no way back.
	next, records, err := f.load(gen)
	if err != nil {
		panic(fmt.Errorf("fsm: load restored state: %w", err))
	}
	for _, r := range records {
		delete(gone, r.name)
	}
	for name := range gone {
		records = append(records, recordChange{name: name})
	}
	f.tell(records)
	f.publish(next)
	st.gen.retire()
	f.log.Info("restored snapshot", "index", next.applied, "from_index", st.applied)
	return nil
}
