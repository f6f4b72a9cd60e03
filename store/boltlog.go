package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/abacusdb/abacus/fsm/planted"
)

// openBolt opens the file of the log and the term. bbolt panics or faults on a
// damaged file; here that is an error, for nothing runs yet that it could harm.
func openBolt(path string) (db *raftboltdb.BoltStore, err error) {
	defer faultsAre(fmt.Errorf("open raft log %s: %w", path, ErrLogDamaged), &err)()
	if err := checkBolt(path); err != nil {
		return nil, fmt.Errorf("open raft log %s: %w", path, err)
	}
	db, err = raftboltdb.New(raftboltdb.Options{
		Path:   path,
		NoSync: planted.Is(planted.NoSyncLog),
		BoltOptions: &bbolt.Options{
			// Another process has it: say so, rather than wait for ever.
			Timeout: time.Second,
			// A log frees pages with every compaction; writing the list of them at each
			// commit would cost more than finding them again when a file this small opens.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
	var sys syscall.Errno
	//lint:ignore SA1019 its new home is another package, and the import rules name what this one may import
	if err != nil && !errors.As(err, &sys) && !errors.Is(err, bbolt.ErrTimeout) {
		// Neither the system nor the lock: it is what bbolt read.
		return nil, fmt.Errorf("open raft log %s: %w: %w", path, ErrLogDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open raft log %s: %w", path, err)
	}
	return db, nil
}

// boltLog is a replica's log in a file of its own, with a checksum on each entry.
type boltLog struct{ *raftboltdb.BoltStore }

func (l boltLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l boltLog) StoreLogs(logs []*raft.Log) error {
	sealed := make([]*raft.Log, len(logs))
	for i, entry := range logs {
		sealed[i] = seal(entry)
	}
	return l.BoltStore.StoreLogs(sealed)
}

func (l boltLog) GetLog(index uint64, entry *raft.Log) error {
	if err := l.BoltStore.GetLog(index, entry); err != nil {
		return err
	}
	return unseal(index, entry)
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
