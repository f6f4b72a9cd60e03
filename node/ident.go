package node

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/sharding/access"
)

// The data directory:
//
//	LOCK            held while a process uses the directory
//	ident.json      who this node is (ident)
//	map             the newest shard map seen, a cache
//	users           the newest list of users seen, a cache; no file if there never was one
//	wal/            the log of all replicas (with LogBolt, each has its own in raft.db)
//	shard-N/ID/     one replica: raft.db (term and vote), snapshots, state
//
// ident.json is the commit point of bootstrap and join: before it names a
// cluster, nothing else in the directory counts.

// ident is what a node must remember to be the same node after a restart.
type ident struct {
	Version int             `json:"version"`
	NodeID  sharding.NodeID `json:"node_id"`
	// Instance names this directory; see sharding.Node.
	Instance string `json:"instance"`
	// ClusterID is empty until the node has been let in.
	ClusterID string `json:"cluster_id"`
	// Founding is true from the start of a bootstrap until its shards have their
	// first entries. Only then may a replica without state make itself a voter:
	// later that would be a replica that forgot what it acknowledged.
	Founding bool `json:"founding,omitempty"`
	// Replicas are the replicas whose directory was made here. One that is
	// listed and gone was lost or put aside, and must not vote again under its id.
	Replicas []string `json:"replicas"` // "shard-0/n1.1"
	// Lost are replicas that lost their log or their votes and were taken out of the
	// map: a cached map that is older must not bring them back.
	Lost []string `json:"lost,omitempty"`

	// Era is the newest that this node knows to have begun: it deals with nobody of an earlier one. On the disk
	// before anything of that era serves.
	Era uint64 `json:"era,omitempty"`
	// Fenced are replicas that were stopped for a recovery: they never run again. They stay
	// listed above until the map has taken them out, for their logs are needed till then.
	Fenced []fenced `json:"fenced,omitempty"`
	// Anew are replicas that may begin without data, as Founding ones: an administrator has given up what their shards had.
	Anew []string `json:"anew,omitempty"`
}

const identVersion = 1

// dataDir is a locked data directory.
type dataDir struct {
	path string
	lock *os.File
	// fatal is told of each write that failed, once the node is open: what a start would
	// find, nobody knows. It does not return. nil: errors are returned only.
	fatal func(error)

	mu sync.Mutex // guards id and its file
	id ident
}

// openDataDir locks the directory, making it if there is none, and reads who
// lives there. id is the configured node id.
func openDataDir(path string, id sharding.NodeID) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, fmt.Errorf("data directory %s: %w; choose another --data-dir or mend its permissions", path, err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "LOCK"), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w; choose another --data-dir or mend its permissions", path, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another abacusd: stop that one, or choose another --data-dir", path)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", path, err)
	}
	d := &dataDir{path: path, lock: lock}
	if err := d.load(id); err != nil {
		lock.Close()
		return nil, err
	}
	return d, nil
}

// isMember says whether there is a node's identity in the directory.
func isMember(path string) bool {
	_, err := os.Stat(filepath.Join(path, "ident.json"))
	return !errors.Is(err, fs.ErrNotExist)
}

func (d *dataDir) load(id sharding.NodeID) error {
	raw, err := os.ReadFile(d.file("ident.json"))
	if errors.Is(err, fs.ErrNotExist) {
		if left, _ := filepath.Glob(d.file("shard-*")); len(left) > 0 {
			return fmt.Errorf("data directory %s has shards but no ident.json: it was damaged; restore the file, or start with an empty directory and --join", d.path)
		}
		return d.update(func(i *ident) { *i = ident{Version: identVersion, NodeID: id, Instance: randomID()} })
	}
	if err != nil {
		return fmt.Errorf("read node identity: %w", err)
	}
	if err := json.Unmarshal(raw, &d.id); err != nil {
		return fmt.Errorf("node identity %s is damaged: %w", d.file("ident.json"), err)
	}
	if d.id.Version != identVersion {
		return fmt.Errorf("node identity %s has format %d, this abacusd knows %d: use the version that wrote it", d.file("ident.json"), d.id.Version, identVersion)
	}
	if d.id.NodeID != id {
		return fmt.Errorf("data directory %s belongs to node %q, not %q: start it with --id %s, or choose another --data-dir", d.path, d.id.NodeID, id, d.id.NodeID)
	}
	return nil
}

// update changes ident.json so that a crash leaves the old or the new one.
func (d *dataDir) update(change func(*ident)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.id
	change(&next)
	if err := d.checked(next.save(d.file("ident.json"))); err != nil {
		return err
	}
	d.id = next
	return nil
}

// ident returns what is on disk.
func (d *dataDir) ident() ident {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.id
}

func (i *ident) save(path string) error {
	raw, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return writeFileSynced(path, append(raw, '\n'))
}

// replicaDir returns the directory of a replica, made and remembered before it
// holds anything, or errReplicaLost if it was here before.
func (d *dataDir) replicaDir(shard sharding.ShardID, id sharding.ReplicaID) (string, error) {
	key := replicaKey(shard, id)
	dir := d.file(key)
	known, founding := slices.Contains(d.ident().Replicas, key), d.ident().Founding
	if _, err := os.Stat(dir); known && !founding && errors.Is(err, fs.ErrNotExist) || slices.Contains(d.ident().Lost, key) {
		return "", fmt.Errorf("replica directory %s: %w", dir, errReplicaLost)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("make replica directory: %w", err)
	}
	if known {
		return dir, nil
	}
	for _, p := range []string{filepath.Dir(dir), d.path} {
		if err := d.checked(syncDir(p)); err != nil {
			return "", err
		}
	}
	return dir, d.update(func(id *ident) { id.Replicas = append(slices.Clip(id.Replicas), key) })
}

// replicas lists the replicas of a shard that were opened here and not removed.
func (d *dataDir) replicas(shard sharding.ShardID) (ids []sharding.ReplicaID) {
	for _, key := range d.ident().Replicas {
		if id, ok := strings.CutPrefix(key, replicaKey(shard, "")); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// removeReplica forgets a replica that was taken out, and deletes its files.
func (d *dataDir) removeReplica(shard sharding.ShardID, id sharding.ReplicaID) error {
	key := replicaKey(shard, id)
	// Forgotten first: one that is remembered and gone looks lost.
	err := d.update(func(id *ident) { id.Replicas = without(id.Replicas, key) })
	if err != nil {
		return err
	}
	if err := os.RemoveAll(d.file(key)); err != nil {
		return fmt.Errorf("remove replica directory: %w", err)
	}
	return nil
}

// lose notes that a replica is lost for good: it is not opened here again.
func (d *dataDir) lose(shard sharding.ShardID, id sharding.ReplicaID) error {
	key := replicaKey(shard, id)
	return d.update(func(id *ident) {
		id.Replicas, id.Lost = without(id.Replicas, key), append(without(id.Lost, key), key)
	})
}

func without(list []string, key string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == key })
}

// saveMap caches the shard map, so that the node finds its peers after all of
// them were down.
func (d *dataDir) saveMap(m sharding.Map) error {
	return d.checked(writeFileSynced(d.file("map"), m.Encode()))
}

// saveUsers caches the list of users, so that a node that is cut off checks them all the same.
func (d *dataDir) saveUsers(u *access.Users) error {
	return d.checked(writeFileSynced(d.file("users"), u.Encode()))
}

// loadUsers returns the cached list, nil if there is none.
func (d *dataDir) loadUsers() (*access.Users, error) {
	raw, err := os.ReadFile(d.file("users"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read cached users: %w", err)
	}
	u, err := access.Decode(raw)
	if err != nil {
		return nil, fmt.Errorf("cached users %s: %w", d.file("users"), err)
	}
	return u, nil
}

// checked hands a failed write to fatal.
func (d *dataDir) checked(err error) error {
	if err != nil && d.fatal != nil {
		d.fatal(err)
	}
	return err
}

// loadMap returns the cached map.
func (d *dataDir) loadMap() (sharding.Map, bool, error) {
	raw, err := os.ReadFile(d.file("map"))
	if errors.Is(err, fs.ErrNotExist) {
		return sharding.Map{}, false, nil
	}
	if err != nil {
		return sharding.Map{}, false, fmt.Errorf("read cached shard map: %w", err)
	}
	m, err := sharding.DecodeMap(raw)
	if err != nil {
		return sharding.Map{}, false, fmt.Errorf("cached shard map %s: %w", d.file("map"), err)
	}
	return m, true, nil
}

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

func (d *dataDir) close() error { return d.lock.Close() }

// replicaKey is a replica's path below the data directory.
func replicaKey(shard sharding.ShardID, id sharding.ReplicaID) string {
	return fmt.Sprintf("shard-%d/%s", shard, id)
}

// writeFileSynced replaces a file: the bytes are on disk before the name is,
// and the name before it returns.
func writeFileSynced(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
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
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}

func randomID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
