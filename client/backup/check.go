package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"

	"github.com/abacusdb/abacus/sharding"
)

// checker follows the blocks of one shard, when they are written and when they are read: each record is whole, its key belongs to the shard and comes
// behind the last one, so that none is there twice.
type checker struct {
	slots          *slotSet
	sum            hash.Hash
	blocks         uint32
	records, bytes int64
	slot           int // of the last key
	key            []byte
}

func newChecker(slots []sharding.SlotRange) *checker {
	return &checker{slots: newSlotSet(slots), sum: sha256.New(), slot: -1}
}

// block checks the next block and calls each, if there is one, for its records, which lie in the block.
func (c *checker) block(payload []byte, each func(Record) error) (records uint32, err error) {
	c.sum.Write(payload)
	c.blocks++
	for rest := payload; len(rest) > 0; records++ {
		var r Record
		if r, rest, err = cutRecord(rest); err != nil {
			return records, err
		}
		slot := sharding.SlotOf(r.Key)
		if !c.slots[slot] {
			return records, fmt.Errorf("key %q is of slot %d, which is not the shard's", r.Key, slot)
		}
		if int(slot) < c.slot || int(slot) == c.slot && bytes.Compare(r.Key, c.key) <= 0 {
			return records, fmt.Errorf("key %q of slot %d comes behind key %q of slot %d", r.Key, slot, c.key, c.slot)
		}
		c.slot, c.key = int(slot), append(c.key[:0], r.Key...)
		c.records++
		c.bytes += int64(len(r.Key) + len(r.Value))
		if each != nil {
			if err := each(r); err != nil {
				return records, &stop{err}
			}
		}
	}
	return records, nil
}

// stop is an error of who gets the records, and none of the backup.
type stop struct{ err error }

func (s *stop) Error() string { return s.err.Error() }

func (c *checker) hash() string { return hex.EncodeToString(c.sum.Sum(nil)) }

// agrees says what differs from what the manifest has of the shard.
func (c *checker) agrees(s Shard) error {
	switch {
	case c.blocks != s.Blocks:
		return fmt.Errorf("shard %d has %d blocks, its manifest says %d", s.ID, c.blocks, s.Blocks)
	case c.records != s.Records || c.bytes != s.Bytes:
		return fmt.Errorf("shard %d has %d records of %d bytes, its manifest says %d of %d", s.ID, c.records, c.bytes, s.Records, s.Bytes)
	case c.hash() != s.SHA256:
		return fmt.Errorf("the SHA-256 of shard %d does not match", s.ID)
	}
	return nil
}
