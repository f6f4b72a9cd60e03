package store

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"github.com/hashicorp/raft"
)

// LogRange is which entries a replica's log has: none, if Last is 0.
type LogRange struct{ First, Last uint64 }

// LogRange tells it, as of some moment during the call.
func (s *Store) LogRange() (r LogRange, err error) {
	if r.First, err = s.logs.FirstIndex(); err != nil {
		return r, err
	}
	r.Last, err = s.logs.LastIndex()
	return r, err
}

// LogDigest is a hash of the entries from one index to another, with their terms. Of entries that are
// committed all replicas say the same. It reads the log, beside everything else; an entry that is not there is an error.
func (s *Store) LogDigest(from, to uint64) (uint64, error) {
	h := fnv.New64a()
	var head [25]byte
	for i := from; i <= to; i++ {
		var e raft.Log
		if err := s.logs.GetLog(i, &e); err != nil {
			return 0, fmt.Errorf("digest of the log, entry %d: %w", i, err)
		}
		binary.BigEndian.PutUint64(head[:], e.Index)
		binary.BigEndian.PutUint64(head[8:], e.Term)
		head[16] = byte(e.Type)
		binary.BigEndian.PutUint64(head[17:], uint64(len(e.Data)))
		h.Write(head[:])
		h.Write(e.Data)
	}
	return h.Sum64(), nil
}
