package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
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

// An entry is stored with a checksum in Extensions, which nobody else here uses:
// raft-boltdb has none, and an entry with a flipped bit may well decode.
const sealBytes = 1 + 4

const sealVersion = 1

func seal(entry *raft.Log) *raft.Log {
	sealed := *entry
	sealed.Extensions = binary.BigEndian.AppendUint32([]byte{sealVersion}, entrySum(entry))
	return &sealed
}

// unseal checks an entry that was read and takes the checksum off. One without is
// of a version before there was any.
func unseal(index uint64, entry *raft.Log) error {
	if entry.Index != index {
		return fmt.Errorf("%w: entry %d is at the place of %d", ErrLogDamaged, entry.Index, index)
	}
	if len(entry.Extensions) == 0 {
		return nil
	}
	x := entry.Extensions
	if len(x) != sealBytes || x[0] != sealVersion || binary.BigEndian.Uint32(x[1:]) != entrySum(entry) {
		return fmt.Errorf("%w: the checksum of entry %d does not match", ErrLogDamaged, index)
	}
	entry.Extensions = nil
	return nil
}

func entrySum(entry *raft.Log) uint32 {
	var head [17]byte
	binary.BigEndian.PutUint64(head[:], entry.Index)
	binary.BigEndian.PutUint64(head[8:], entry.Term)
	head[16] = byte(entry.Type)
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, entry.Data)
}

// keyIdentity is ours: whose log and votes the file holds.
const keyIdentity = "Identity"

const logName = "raft.db"

// logMark is a file beside raft.db that says that raft.db exists. The state need not tell:
// it is durable only now and then. Without the mark, a replica whose raft.db is gone or was emptied
// would look like a new one, and vote again in terms that it has voted in.
const logMark = "raft.id"

// openLogFile opens the file of log and votes, or makes it. Raft runs only once the mark
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

// claimLog makes the file of log and votes this replica's, or finds that it was and
// is not the one that it made.
func claimLog(dir string, self address, db *raftboltdb.BoltStore) error {
	mark := filepath.Join(dir, logMark)
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
		if err := db.Set([]byte(keyIdentity), []byte(name)); err != nil {
			return fmt.Errorf("name raft log: %w", err)
		}
	case err != nil:
		return fmt.Errorf("%w: read the name of the log: %w", ErrLogDamaged, err)
	case string(is) != name:
		return fmt.Errorf("%w: raft.db is that of %s", ErrLogLost, is)
	}
	if marked {
		return nil
	}
	return writeDurably(mark, []byte(name+"\n"))
}

// readLog checks the file of log and votes of a replica, and returns its term and
// vote; votes is the file, or what a test has put around it.
func readLog(cfg Config, self address, db *raftboltdb.BoltStore, votes raft.StableStore) (stable *stableStore, err error) {
	defer faultsAre(ErrLogDamaged, &err)()
	if err := claimLog(cfg.Dir, self, db); err != nil {
		return nil, err
	}
	if stable, err = newStableStore(votes, filepath.Join(cfg.Dir, logName), cfg.Fatal); err != nil {
		return nil, err
	}
	if term := stable.term.Load(); stable.voteTerm > term {
		// A vote is written after its term: one of the two is not what was written.
		return nil, fmt.Errorf("%w: the vote is of term %d, our term is %d", ErrLogDamaged, stable.voteTerm, term)
	}
	return stable, verifyLog(db, stable.term.Load())
}

// verifyLog reads the whole log: raft reads entries behind its snapshot only when
// a follower needs them, and to find damage then is to find it at the worst time.
func verifyLog(logs raft.LogStore, term uint64) error {
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
		var entry raft.Log
		if err := logs.GetLog(i, &entry); err != nil {
			return fmt.Errorf("%w: read log entry %d: %w", ErrLogDamaged, i, err)
		}
		if err := unseal(i, &entry); err != nil {
			return err
		}
		if entry.Term < before || entry.Term > term {
			return fmt.Errorf("%w: entry %d is of term %d, the one before of %d, and our term is %d", ErrLogDamaged, i, entry.Term, before, term)
		}
		before = entry.Term
	}
	return nil
}
