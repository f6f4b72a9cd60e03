package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/abacusdb/abacus/store/wal"
)

// ErrLogDamaged: the log or the votes cannot be read as they were written. Like a
// replica whose log is lost (ErrLogLost), this one must not vote under its id again.
var ErrLogDamaged = errors.New("log or votes are damaged")

// Damage is what an error of Open says about the replica's files.
type Damage int

const (
	// DamageNone: the error is about something else.
	DamageNone Damage = iota
	// DamageState: the state must be replaced by a peer's. Log and votes are sound, so the
	// replica stays who it is: Reseed.
	DamageState
	// DamageLog: what this replica has promised is not known any more. It must be
	// replaced by another under a new id.
	DamageLog
)

// DamageOf classifies an error of Open or of Reseed.
func DamageOf(err error) Damage {
	switch {
	case err == nil:
		return DamageNone
	case errors.Is(err, ErrLogDamaged), errors.Is(err, ErrLogLost), errors.Is(err, ErrLogGap):
		return DamageLog
	case errors.Is(err, ErrStateDamaged), errors.Is(err, ErrStateBehind):
		return DamageState
	}
	return DamageNone
}

// faultsAre makes a panic or a fault of this goroutine, as bbolt has them on a
// damaged file, an error: defer faultsAre(ErrLogDamaged, &err)().
func faultsAre(kind error, err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = fmt.Errorf("%w: %v", kind, p)
		}
	}
}

// Keys of ours in the stable store: whose votes the file holds, and where the log is that
// belongs to them.
const (
	keyIdentity = "Identity"
	keyLog      = "Log"
)

// logName is the file of the votes, and of the log if that is not the node's (Config.WAL).
const logName = "raft.db"

// logMark is a file beside raft.db that says that raft.db exists. The state need not tell:
// it is durable only now and then. Without the mark, a replica whose raft.db is gone or was emptied
// would look like a new one, and vote again in terms that it has voted in.
const logMark = "raft.id"

// ErrOtherLog: the replica's log is of the other kind (Config.WAL).
var ErrOtherLog = errors.New("the log is of another kind")

// entries are the replica's log.
func (c *Config) entries(db *raftboltdb.BoltStore) raft.LogStore {
	if c.WAL == nil {
		return boltLog{db}
	}
	return walLog{c.WAL.Replica(wal.Name{Shard: c.Shard, Replica: c.Replica})}
}

// logID says which log the replica's entries are in.
func (c *Config) logID() string {
	if c.WAL == nil {
		return "raft.db"
	}
	return fmt.Sprintf("wal %016x", c.WAL.ID())
}

// openLogFile opens the file of the votes, or makes it. Raft runs only once the mark
// is there: what a crash left of a file without one holds nothing, and is made anew.
func openLogFile(dir string) (*raftboltdb.BoltStore, error) {
	path := filepath.Join(dir, logName)
	db, err := openBolt(path)
	if !errors.Is(err, ErrLogDamaged) {
		return db, err
	}
	if _, merr := os.Stat(filepath.Join(dir, logMark)); !errors.Is(merr, fs.ErrNotExist) {
		return nil, err
	}
	if rerr := os.Rename(path, path+".unborn"); rerr != nil {
		return nil, errors.Join(err, rerr)
	}
	return openBolt(path)
}

// claimLog makes log and votes this replica's, or finds that they were and
// are not those that it made.
func claimLog(cfg *Config, self address, db *raftboltdb.BoltStore) error {
	mark := filepath.Join(cfg.Dir, logMark)
	name := fmt.Sprintf("shard-%d/%s", self.shard, self.replica)
	_, err := os.Stat(mark)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open raft log: %w", err)
	}
	marked := err == nil
	switch is, err := db.Get([]byte(keyIdentity)); {
	case errors.Is(err, raftboltdb.ErrKeyNotFound):
		if marked {
			return fmt.Errorf("%w: raft.db was made anew", ErrLogLost)
		}
		// Which log it is first: a replica with a name has one.
		if err := db.Set([]byte(keyLog), []byte(cfg.logID())); err != nil {
			return fmt.Errorf("name raft log: %w", err)
		}
		if err := db.Set([]byte(keyIdentity), []byte(name)); err != nil {
			return fmt.Errorf("name raft log: %w", err)
		}
	case err != nil:
		return fmt.Errorf("%w: read the name of the log: %w", ErrLogDamaged, err)
	case string(is) != name:
		return fmt.Errorf("%w: raft.db is that of %s", ErrLogLost, is)
	}
	if err := cfg.checkLog(db); err != nil {
		return err
	}
	if marked {
		return nil
	}
	return writeDurably(mark, []byte(name+"\n"))
}

// checkLog says whether the log that we are given is the one that the replica has
// written to so far.
func (c *Config) checkLog(db *raftboltdb.BoltStore) error {
	raw, err := db.Get([]byte(keyLog))
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return fmt.Errorf("%w: read which log it is: %w", ErrLogDamaged, err)
	}
	is := string(raw)
	if err != nil { // of a version before there was another
		is = "raft.db"
	}
	switch want := c.logID(); {
	case is == want:
		return nil
	case is == "raft.db" || want == "raft.db":
		return fmt.Errorf("%w: it is in %s, and not in %s", ErrOtherLog, is, want)
	default:
		// The node's log was made anew, or its directory is that of another node.
		return fmt.Errorf("%w: it was in %s, and %s is there", ErrLogLost, is, want)
	}
}

// readLog checks log and votes of a replica, and returns its term and
// vote; votes is the file of both, or what a test has put around it.
func readLog(cfg Config, self address, db *raftboltdb.BoltStore, votes raft.StableStore) (stable *stableStore, err error) {
	defer faultsAre(ErrLogDamaged, &err)()
	if err := claimLog(&cfg, self, db); err != nil {
		return nil, err
	}
	if stable, err = newStableStore(votes, filepath.Join(cfg.Dir, logName), cfg.Fatal); err != nil {
		return nil, err
	}
	if term := stable.term.Load(); stable.voteTerm > term {
		// A vote is written after its term: one of the two is not what was written.
		return nil, fmt.Errorf("%w: the vote is of term %d, our term is %d", ErrLogDamaged, stable.voteTerm, term)
	}
	return stable, verifyLog(cfg.entries(db), stable.term.Load(), cfg.WAL != nil)
}

// verifyLog reads the whole log: raft reads entries behind its snapshot only when
// a follower needs them, and to find damage then is to find it at the worst time.
// With wasRead somebody has done so already, and the terms of the ends are all that is looked at.
func verifyLog(logs raft.LogStore, term uint64, wasRead bool) error {
	first, err := logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("%w: read log: %w", ErrLogDamaged, err)
	}
	last, err := logs.LastIndex()
	if err != nil {
		return fmt.Errorf("%w: read log: %w", ErrLogDamaged, err)
	}
	var before uint64
	for i := first; i <= last && last > 0; i++ {
		if wasRead && i != first {
			i = last
		}
		var entry raft.Log
		if err := logs.GetLog(i, &entry); err != nil {
			return fmt.Errorf("%w: read log entry %d: %w", ErrLogDamaged, i, err)
		}
		if entry.Term < before || entry.Term > term {
			return fmt.Errorf("%w: entry %d is of term %d, one before it of %d, and our term is %d", ErrLogDamaged, i, entry.Term, before, term)
		}
		before = entry.Term
	}
	return nil
}
