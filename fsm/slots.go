package fsm

import (
	"encoding/binary"
	"math/bits"

	"github.com/abacusdb/abacus/fsm/command"
)

// slotCount is how much is stored in a slot, ended but unpurged keys included:
// bytes are those of keys and values.
type slotCount struct {
	records, bytes int64
	// removed is the index of the last entry that took a key out of the slot.
	removed uint64
}

const slotCountBytes = 24

func (c *slotCount) add(records, bytes int64) { c.records += records; c.bytes += bytes }

func (c slotCount) encode(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint64(buf, uint64(c.records))
	buf = binary.BigEndian.AppendUint64(buf, uint64(c.bytes))
	return binary.BigEndian.AppendUint64(buf, c.removed)
}

func decodeSlotCount(v []byte) slotCount {
	return slotCount{int64(binary.BigEndian.Uint64(v)), int64(binary.BigEndian.Uint64(v[8:])), binary.BigEndian.Uint64(v[16:])}
}

// slotTable holds the counts of all slots, in blocks that are copied when they
// are written after somebody else was given the table (share).
type slotTable struct {
	blocks [slotBlocks]*slotBlock
	own    [slotBlocks]bool // nobody else has the block
}

const (
	slotBlockSize = 256
	slotBlocks    = command.Slots / slotBlockSize
)

type slotBlock [slotBlockSize]slotCount

func (t *slotTable) get(slot uint16) slotCount {
	if b := t.blocks[slot/slotBlockSize]; b != nil {
		return b[slot%slotBlockSize]
	}
	return slotCount{}
}

// at returns a slot's count to be changed.
func (t *slotTable) at(slot uint16) *slotCount {
	i := slot / slotBlockSize
	switch b := t.blocks[i]; {
	case b == nil:
		t.blocks[i], t.own[i] = new(slotBlock), true
	case !t.own[i]:
		c := *b
		t.blocks[i], t.own[i] = &c, true
	}
	return &t.blocks[i][slot%slotBlockSize]
}

// share returns the table as it is now; what changes later does not show in it.
func (t *slotTable) share() slotTable {
	t.own = [slotBlocks]bool{}
	return *t
}

// next returns the first slot from a given one on that holds anything.
func (t *slotTable) next(from int) (slot uint16, c slotCount, ok bool) {
	for i := from; i < command.Slots; {
		b := t.blocks[i/slotBlockSize]
		if b == nil {
			i = (i/slotBlockSize + 1) * slotBlockSize
			continue
		}
		if c := b[i%slotBlockSize]; c.records > 0 {
			return uint16(i), c, true
		}
		i++
	}
	return 0, slotCount{}, false
}

// slotSet is some of the slots. A put adds one, so it is no map.
type slotSet [command.Slots / 64]uint64

func (s *slotSet) add(slot uint16) { s[slot/64] |= 1 << (slot % 64) }

func (s *slotSet) has(slot uint16) bool { return s[slot/64]&(1<<(slot%64)) != 0 }

// all goes through the set in order.
func (s *slotSet) all(yield func(slot uint16) bool) {
	for i, word := range s {
		for ; word != 0; word &= word - 1 {
			if !yield(uint16(i*64 + bits.TrailingZeros64(word))) {
				return
			}
		}
	}
}
