package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm"
)

const (
	snapshotVersion = 1
	metaFile        = "snapshot.json"
	incomingPrefix  = "incoming-"
)

// ErrStaleSnapshot refuses a received snapshot that this replica's log is
// already past.
var ErrStaleSnapshot = errors.New("snapshot is not ahead of this replica")

// stateSource streams the state machine's file: size, index of the state, bytes.
type stateSource func() (size int64, index uint64, r io.ReadCloser, err error)

// openStream is the source of a replica's copies.
func (s *Store) openStream() (size int64, index uint64, r io.ReadCloser, err error) {
	form := fsm.StreamSparse
	if s.cfg.WholeCopies != nil && s.cfg.WholeCopies() {
		form = fsm.StreamWhole
	}
	return s.fsm.OpenStream(form)
}

// snapshots is raft's snapshot store. Our own snapshots are metadata only: the
// state machine keeps its state durable by itself, and Open streams what it holds
// by then, which may be newer than the metadata, never older. A received snapshot
// is a file that raft hands to the state machine's Restore; only when that has
// succeeded does its metadata count (installed).
type snapshots struct {
	dir    string
	source stateSource
	log    *slog.Logger
	// floor is the index up to which raft has applied or knows committed. raft never
	// compares it with what it is told to install (hazard R23).
	floor func() uint64
	// fatal is told when metadata could not be written: what a start would find
	// there, nobody knows. It does not return.
	fatal  func(error)
	saving stopwatch // of the write under way

	mu     sync.Mutex
	newest *raft.SnapshotMeta // nil: none yet
	// incoming is the one received file that raft is about to restore.
	incoming *sink
	seq      uint64
}

// savedMeta is snapshot.json: one line of JSON, one line with its CRC32C in hex.
type savedMeta struct {
	Version            int           `json:"version"`
	Index              uint64        `json:"index"`
	Term               uint64        `json:"term"`
	ConfigurationIndex uint64        `json:"configuration_index"`
	Servers            []savedServer `json:"servers"`
}

type savedServer struct {
	ID       string `json:"id"`
	Address  string `json:"address"`
	Suffrage string `json:"suffrage"` // "voter" or "nonvoter"
}

func openSnapshots(dir string, fatal func(error), log *slog.Logger) (*snapshots, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	for _, f := range left {
		if strings.HasPrefix(f.Name(), incomingPrefix) || strings.HasSuffix(f.Name(), ".tmp") {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return nil, fmt.Errorf("remove half-received snapshot: %w", err)
			}
		}
	}
	s := &snapshots{dir: dir, log: log, floor: func() uint64 { return 0 }, fatal: fatal, saving: newStopwatch()}
	path := filepath.Join(dir, metaFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read snapshot metadata: %w", err)
	}
	if s.newest, err = decodeMeta(data); err != nil {
		return nil, fmt.Errorf("read snapshot metadata %s: %w", path, err)
	}
	return s, nil
}

func snapshotID(index, term uint64) string { return fmt.Sprintf("%d-%d", term, index) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeMeta(m *raft.SnapshotMeta) ([]byte, error) {
	saved := savedMeta{Version: snapshotVersion, Index: m.Index, Term: m.Term, ConfigurationIndex: m.ConfigurationIndex}
	for _, srv := range m.Configuration.Servers {
		suffrage := "nonvoter"
		if srv.Suffrage == raft.Voter {
			suffrage = "voter"
		}
		saved.Servers = append(saved.Servers, savedServer{ID: string(srv.ID), Address: string(srv.Address), Suffrage: suffrage})
	}
	line, err := json.Marshal(saved)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(line, "\n%08x\n", crc32.Checksum(line, castagnoli)), nil
}

func decodeMeta(data []byte) (*raft.SnapshotMeta, error) {
	line, sum, ok := bytes.Cut(data, []byte("\n"))
	if !ok || string(sum) != fmt.Sprintf("%08x\n", crc32.Checksum(line, castagnoli)) {
		return nil, fmt.Errorf("%w: checksum does not match", ErrStateDamaged)
	}
	var saved savedMeta
	if err := json.Unmarshal(line, &saved); err != nil {
		return nil, err
	}
	if saved.Version != snapshotVersion {
		return nil, fmt.Errorf("version %d, this program knows %d", saved.Version, snapshotVersion)
	}
	m := &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: snapshotID(saved.Index, saved.Term), Index: saved.Index, Term: saved.Term,
		ConfigurationIndex: saved.ConfigurationIndex,
	}
	for _, srv := range saved.Servers {
		suffrage := raft.Nonvoter
		switch srv.Suffrage {
		case "voter":
			suffrage = raft.Voter
		case "nonvoter":
		default:
			return nil, fmt.Errorf("unknown suffrage %q", srv.Suffrage)
		}
		m.Configuration.Servers = append(m.Configuration.Servers,
			raft.Server{ID: raft.ServerID(srv.ID), Address: raft.ServerAddress(srv.Address), Suffrage: suffrage})
	}
	return m, nil
}

// save makes a snapshot the newest. The caller holds mu.
func (s *snapshots) save(m *raft.SnapshotMeta) error {
	data, err := encodeMeta(m)
	if err != nil {
		return fmt.Errorf("encode snapshot metadata: %w", err)
	}
	path := filepath.Join(s.dir, metaFile)
	saving := s.saving.begin()
	err = writeDurably(path, data)
	s.saving.end(saving)
	if err != nil {
		err = fmt.Errorf("write snapshot metadata %s: %w", path, err)
		s.fatal(err)
		return err
	}
	s.newest = m
	return nil
}

// writeDurably replaces a file. Sync before rename, or a crash leaves a name
// without bytes; sync the directory, or it leaves the old name.
func writeDurably(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// latest returns the newest snapshot's metadata, or nil.
func (s *snapshots) latest() *raft.SnapshotMeta {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest
}

// Create begins a snapshot. Which kind it is shows later: what is written to was
// received, for our own Persist writes nothing.
func (s *snapshots) Create(_ raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	return &sink{
		store: s,
		path:  filepath.Join(s.dir, fmt.Sprintf("%s%d", incomingPrefix, s.seq)),
		meta: raft.SnapshotMeta{
			Version: raft.SnapshotVersionMax, ID: snapshotID(index, term), Index: index, Term: term,
			Configuration: conf.Clone(), ConfigurationIndex: confIndex,
		},
	}, nil
}

// List returns the newest snapshot; one is all that anybody needs.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	m := s.latest()
	if m == nil {
		return nil, nil
	}
	c := *m
	return []*raft.SnapshotMeta{&c}, nil
}

// Open returns a received file, or streams our state with the newest metadata:
// if the one that was asked for was replaced since, the newer serves as well.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	in, own := s.incoming, s.newest
	s.mu.Unlock()
	if in != nil && in.ID() == id {
		f, err := os.Open(in.path)
		if err != nil {
			return nil, nil, fmt.Errorf("open received snapshot: %w", err)
		}
		m := in.meta
		return &m, f, nil
	}
	if own == nil {
		return nil, nil, fmt.Errorf("open snapshot %s: there is none", id)
	}
	size, index, r, err := s.source()
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot %s: %w", own.ID, err)
	}
	if index < own.Index {
		r.Close()
		return nil, nil, fmt.Errorf("open snapshot %s: the state is at index %d only", own.ID, index)
	}
	m := *own
	m.Size = size
	return &m, r, nil
}

// incomingBytes is the size of the received snapshot.
func (s *snapshots) incomingBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.incoming == nil {
		return 0
	}
	return s.incoming.meta.Size
}

// restored is told how the restore of the received snapshot went. covered says
// whether the state is now at or above the snapshot's index. It returns the
// snapshot's index once its metadata is durable.
func (s *snapshots) restored(covered func(index uint64) bool) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.incoming
	if in == nil {
		return 0, errors.New("restore: no snapshot was received")
	}
	s.incoming = nil
	in.remove()
	if !covered(in.meta.Index) {
		return 0, nil
	}
	m := in.meta
	if err := s.save(&m); err != nil {
		return 0, err
	}
	return m.Index, nil
}

// sink receives one snapshot.
type sink struct {
	store *snapshots
	meta  raft.SnapshotMeta
	path  string
	file  *os.File // nil until something is written
	done  bool
}

func (k *sink) ID() string { return k.meta.ID }

func (k *sink) Write(p []byte) (int, error) {
	if k.file == nil {
		if err := k.checkFloor(); err != nil {
			return 0, err
		}
		f, err := os.OpenFile(k.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return 0, fmt.Errorf("receive snapshot: %w", err)
		}
		k.file = f
	}
	n, err := k.file.Write(p)
	k.meta.Size += int64(n)
	return n, err
}

func (k *sink) checkFloor() error {
	if floor := k.store.floor(); k.meta.Index <= floor {
		return fmt.Errorf("%w: it is at index %d, we are at %d", ErrStaleSnapshot, k.meta.Index, floor)
	}
	return nil
}

// Close ends the writing. Our own snapshot counts from here on; a received one
// waits for its restore.
func (k *sink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	s := k.store
	if k.file == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.newest != nil && k.meta.Index <= s.newest.Index {
			return fmt.Errorf("snapshot at index %d: there is one at %d", k.meta.Index, s.newest.Index)
		}
		m := k.meta
		return s.save(&m)
	}
	err := k.file.Close()
	if err == nil {
		err = k.checkFloor()
	}
	if err != nil {
		k.remove()
		return fmt.Errorf("receive snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.incoming != nil {
		s.incoming.remove()
	}
	s.incoming = k
	return nil
}

// Cancel drops what was received.
func (k *sink) Cancel() error {
	if k.done {
		return nil
	}
	k.done = true
	if k.file != nil {
		k.file.Close()
		k.remove()
	}
	return nil
}

// remove drops the file. Whoever has it open reads on; what is left of a failure
// goes at the next start.
func (k *sink) remove() {
	if err := os.Remove(k.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		k.store.log.Warn("remove received snapshot", "path", k.path, "err", err)
	}
}
