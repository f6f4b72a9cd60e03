package sim

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/sharding"
)

// disk is how slow a node's disk is. It delays the log and the votes of all its
// replicas, before and after each write, and checkpoints before, where no lock of a library is held: a
// crash in the second half finds what was written and not yet answered.
type disk struct {
	c    *cluster
	dead func() bool
	slow atomic.Int64 // ns in addition; see hang

	mu   sync.Mutex
	rng  *rand.Rand
	logs []*slowLog
}

func newDisk(c *cluster, rng *rand.Rand, dead func() bool) *disk {
	return &disk{c: c, rng: rng, dead: dead}
}

// wait is half a write.
func (d *disk) wait() {
	if d.dead() {
		return // what a dead node still writes, nobody sees
	}
	d.mu.Lock()
	t := time.Duration(50+d.rng.IntN(450)) * time.Microsecond
	d.mu.Unlock()
	time.Sleep(t + time.Duration(d.slow.Load())/2)
}

// slowLog is a replica's log on a disk. It also holds the log to being one: an entry
// follows the last. What is accepted before it is on the disk waits here, in order: a crash
// loses it.
type slowLog struct {
	raft.LogStore
	d       *disk
	shard   sharding.ShardID
	replica string

	mu      sync.Mutex
	pending []*raft.Log
	tail    chan struct{} // closed when the last of them is on the disk; nil: none was
}

func (d *disk) wrapLog(shard sharding.ShardID, replica string) func(raft.LogStore) raft.LogStore {
	return func(inner raft.LogStore) raft.LogStore {
		l := &slowLog{LogStore: inner, d: d, shard: shard, replica: replica}
		d.mu.Lock()
		d.logs = append(d.logs, l)
		d.mu.Unlock()
		return l
	}
}

func (l *slowLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l *slowLog) StoreLogs(entries []*raft.Log) error {
	done := make(chan error, 1)
	if err := l.AppendAsync(entries, func(err error) { done <- err }); err != nil {
		return err
	}
	return <-done
}

// AppendAsync implements store.AsyncLog.
func (l *slowLog) AppendAsync(entries []*raft.Log, done func(error)) error {
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	if first := entries[0].Index; last != 0 && first > last+1 {
		l.d.c.fault("shard %d, replica %s: its log has a hole: entry %d follows %d", l.shard, l.replica, first, last)
	}
	landed := make(chan struct{})
	l.mu.Lock()
	before := l.tail
	l.pending, l.tail = append(l.pending, entries...), landed
	l.mu.Unlock()
	go func() {
		if before != nil {
			<-before
		}
		l.d.wait()
		err := l.LogStore.StoreLogs(entries)
		l.mu.Lock()
		l.pending = l.pending[len(entries):]
		l.mu.Unlock()
		l.d.wait()
		done(err)
		close(landed)
	}()
	return nil
}

func (l *slowLog) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.pending); n > 0 {
		return l.pending[n-1].Index, nil
	}
	return l.LogStore.LastIndex()
}

func (l *slowLog) GetLog(index uint64, entry *raft.Log) error {
	l.mu.Lock()
	for _, p := range l.pending {
		if p.Index == index {
			*entry = *p
			l.mu.Unlock()
			return nil
		}
	}
	l.mu.Unlock()
	return l.LogStore.GetLog(index, entry)
}

func (l *slowLog) DeleteRange(lo, hi uint64) error {
	l.mu.Lock()
	tail := l.tail
	l.mu.Unlock()
	if tail != nil {
		<-tail
	}
	err := l.LogStore.DeleteRange(lo, hi)
	l.d.wait()
	return err
}

// slowStable is the votes and the term of a replica.
type slowStable struct {
	raft.StableStore
	d *disk
}

func (d *disk) wrapStable(inner raft.StableStore) raft.StableStore { return slowStable{inner, d} }

func (s slowStable) Set(key, val []byte) error {
	s.d.wait()
	err := s.StableStore.Set(key, val)
	s.d.wait()
	return err
}

func (s slowStable) SetUint64(key []byte, val uint64) error {
	s.d.wait()
	err := s.StableStore.SetUint64(key, val)
	s.d.wait()
	return err
}
