package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/store/wal"
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
	// SessionsAbove, if not nil, is asked as a leadership begins: sessions are given counts above it from then on. For logs that may have lost their end, with
	// sessions in it that other shards know.
	SessionsAbove func() uint64
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
	// Pins, Room and PinTurn are the state's, too: what pins may cost. PinTurn is shared by all replicas of a node.
	Pins    fsm.PinLimits
	Room    func(bytes int64) bool
	PinTurn *fsm.Turn
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
