package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// Recovery from the loss of a majority: one survivor's data go on as another replica, the only voter of a new configuration. Raft has no part in it (raft.RecoverCluster would
// restore the state from a snapshot, and keep the replica's id): the whole log is applied, as if all of it were committed, and what comes out is written down as a snapshot whose
// configuration is ours. The old id has promised its votes and its log to a group that may live on without us, so nothing runs under it again; whoever still believes in the old configuration finds no replica
// here that it could count, and none that takes its entries.

// Remains is what a replica that does not run has on its disk.
type Remains struct {
	// Term is the newest that it knows of.
	Term uint64
	// LastTerm and LastIndex are the end of its log, or of its state if that is further.
	LastTerm, LastIndex uint64
	// Applied is how far the state is; what the log has above it may or may not be committed.
	Applied uint64
	Records int64
	// Voters are the ids that vote, by the newest configuration in the log.
	Voters []string
	// Empty: it has never learnt which shard it is of.
	Empty bool
}

// Inspect says what is left of a replica that is not open. It fails as Open does.
func Inspect(cfg Config) (r Remains, err error) {
	err = offline(cfg, func(s *Store) error {
		conf, err := s.newestConfiguration()
		if err != nil {
			return err
		}
		for _, srv := range conf.Servers {
			if srv.Suffrage == raft.Voter {
				r.Voters = append(r.Voters, string(srv.ID))
			}
		}
		_, known := s.fsm.Init()
		r.Term, r.Applied, r.Records, r.Empty = s.stable.term.Load(), s.fsm.Applied(), s.fsm.Stored(), !known
		r.LastTerm, r.LastIndex, err = s.end()
		return err
	})
	if err != nil {
		return Remains{}, fmt.Errorf("inspect replica %s of shard %d: %w", cfg.Replica, cfg.Shard, err)
	}
	return r, nil
}

// LastEntry is the term and the index of the last entry in the log, or of the snapshot if there is none behind it.
func (s *Store) LastEntry() (term, index uint64, err error) {
	for range 3 { // a new leader may cut the end off while we look
		if term, index, err = s.end(); err == nil {
			break
		}
	}
	return term, index, err
}

// end is the end of the log, or of what stands for it: a received state may be newer than its snapshot.
func (s *Store) end() (term, index uint64, err error) {
	if m := s.snaps.latest(); m != nil {
		term, index = m.Term, m.Index
	}
	last, err := s.logs.LastIndex()
	if err != nil {
		return 0, 0, fmt.Errorf("read log: %w", err)
	}
	if last > index {
		var entry raft.Log
		if err := s.logs.GetLog(last, &entry); err != nil {
			return 0, 0, fmt.Errorf("read log entry %d: %w", last, err)
		}
		term, index = entry.Term, last
	}
	if at := s.fsm.Applied(); at > index {
		term, index = max(term, s.fsm.LastTerm()), at
	}
	return term, index, nil
}

// termAt is the term of the last entry applied, from the log or from what stands for it.
func (s *Store) termAt(applied uint64) (uint64, error) {
	first, err := s.logs.FirstIndex()
	if err != nil {
		return 0, fmt.Errorf("read log: %w", err)
	}
	last, err := s.logs.LastIndex()
	if err != nil {
		return 0, fmt.Errorf("read log: %w", err)
	}
	if first > 0 && first <= applied && applied <= last {
		var entry raft.Log
		if err := s.logs.GetLog(applied, &entry); err != nil {
			return 0, fmt.Errorf("read log entry %d: %w", applied, err)
		}
		return entry.Term, nil
	}
	term := s.fsm.LastTerm()
	if m := s.snaps.latest(); m != nil {
		term = max(term, m.Term)
	}
	return term, nil
}

// newestConfiguration is the one that raft would go by.
func (s *Store) newestConfiguration() (conf raft.Configuration, err error) {
	var from uint64
	if m := s.snaps.latest(); m != nil {
		conf, from = m.Configuration, m.Index
	}
	err = s.eachEntry(from+1, func(entry *raft.Log) error {
		if entry.Type == raft.LogConfiguration {
			conf = raft.DecodeConfiguration(entry.Data)
		}
		return nil
	})
	return conf, err
}

// eachEntry reads the log from an index on.
func (s *Store) eachEntry(from uint64, f func(*raft.Log) error) error {
	first, err := s.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	last, err := s.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	for i := max(from, first); i <= last && last > 0; i++ {
		var entry raft.Log
		if err := s.logs.GetLog(i, &entry); err != nil {
			return fmt.Errorf("%w: read log entry %d: %w", ErrLogDamaged, i, err)
		}
		if err := f(&entry); err != nil {
			return err
		}
	}
	return nil
}

// offline has the files of a replica open, without Raft, while f runs.
func offline(cfg Config, f func(*Store) error) (err error) {
	if _, err := os.Stat(cfg.Dir); err != nil { // opening would make an empty one
		return err
	}
	cfg.Bootstrap, cfg.OnRecord, cfg.OnLeader, cfg.SessionsAbove = nil, nil, nil, nil
	s, err := newStore(cfg)
	if err != nil {
		return err
	}
	defer s.cancel()
	defer func() { err = errors.Join(err, s.closeFiles()) }()
	if err := s.openFiles(); err != nil {
		return err
	}
	return f(s)
}

// Heir is the replica as which another goes on.
type Heir struct {
	// Replica is its id, which nothing was ever kept under.
	Replica string
	// Dir is where it is to be, on the file system of the other one.
	Dir string
	// Term is one that it is to know of; it goes on above that.
	Term uint64
}

// Recover makes what a replica, which is not open and must never be opened again, has on its disk that of its heir, whose only voter is the heir itself. All that is in
// the log counts as committed. It can be repeated after a crash at any point; once the heir's directory is there, it is whole, and there is nothing left to do.
func Recover(cfg Config, to Heir) error {
	in := &inheritance{cfg: cfg, to: to, staging: to.Dir + ".recovering"}
	steps, err := in.steps()
	for _, step := range steps {
		if err = cmp.Or(err, step()); err != nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("recover replica %s of shard %d as %s: %w", cfg.Replica, cfg.Shard, to.Replica, err)
	}
	return nil
}

// inheritance is the way from a replica to its heir, which is put together beside.
type inheritance struct {
	cfg     Config
	to      Heir
	staging string
	term    uint64 // the heir's
}

// steps are those that are left. Up to the third, all is where it was.
func (in *inheritance) steps() ([]func() error, error) {
	switch whole, err := exists(in.to.Dir); {
	case err != nil:
		return nil, err
	case whole:
		return nil, nil
	}
	moved, err := exists(filepath.Join(in.staging, stateName))
	if err != nil {
		return nil, err
	}
	steps := []func() error{func() error { return in.move("snapshots") }, in.publish}
	if !moved {
		steps = append([]func() error{in.settle, in.prepare, func() error { return in.move(stateName) }}, steps...)
	}
	return steps, nil
}

// settle brings the state to the end of the log and writes the snapshot from which the heir begins.
func (in *inheritance) settle() error {
	return offline(in.cfg, func(s *Store) error {
		if _, known := s.fsm.Init(); !known {
			return errors.New("it is empty")
		}
		before := s.fsm.Applied()
		err := s.eachEntry(before+1, func(entry *raft.Log) error {
			if entry.Type == raft.LogCommand || entry.Type == raft.LogConfiguration { // what raft hands to a state machine
				s.machine.Apply(entry)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := s.fsm.Flush(); err != nil {
			return err
		}
		at := s.fsm.Applied()
		term, err := s.termAt(at)
		if err != nil {
			return err
		}
		s.log.Warn("recovering: the whole log counts as committed", "heir", in.to.Replica, "applied_before", before, "applied", at, "term", term)
		in.term = max(in.to.Term, s.stable.term.Load())
		s.snaps.mu.Lock()
		defer s.snaps.mu.Unlock()
		return s.snaps.save(&raft.SnapshotMeta{
			Version: raft.SnapshotVersionMax, ID: snapshotID(at, term), Index: at, Term: term, ConfigurationIndex: at,
			Configuration: raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(in.to.Replica), Address: raft.ServerAddress(in.cfg.Node)}}},
		})
	})
}

// prepare makes the heir's log and votes: none, and the term.
func (in *inheritance) prepare() (err error) {
	if err := os.RemoveAll(in.staging); err != nil {
		return err
	}
	if err := os.Mkdir(in.staging, 0o750); err != nil {
		return err
	}
	cfg := in.cfg
	cfg.setDefaults()
	cfg.Replica, cfg.Dir = in.to.Replica, in.staging
	db, err := openLogFile(cfg.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	stable, err := readLog(cfg, address{cfg.Shard, raft.ServerID(cfg.Replica)}, db, db)
	if err != nil {
		return err
	}
	if last, err := cfg.entries(db).LastIndex(); err != nil || last > 0 {
		return errors.Join(err, fmt.Errorf("there is a log of %s, up to entry %d", cfg.Replica, last))
	}
	if err := stable.SetUint64([]byte(keyCurrentTerm), in.term); err != nil {
		return err
	}
	return syncDir(in.staging)
}

// move takes a part of the replica over.
func (in *inheritance) move(name string) error {
	err := os.Rename(filepath.Join(in.cfg.Dir, name), filepath.Join(in.staging, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // it was moved before a crash
		return err
	}
	return errors.Join(syncDir(in.staging), syncDir(in.cfg.Dir))
}

// publish gives the heir its name.
func (in *inheritance) publish() error {
	if err := os.Rename(in.staging, in.to.Dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(in.to.Dir))
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
