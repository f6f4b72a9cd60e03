package fsm

import (
	"encoding/binary"
	"fmt"
	"hash"
	"hash/fnv"
	"math"

	"github.com/abacusdb/abacus/fsm/command"
)

// Hash sums up all that is replicated: replicas at one index have one hash. It
// does not depend on what was purged already.
func (v *View) Hash() uint64 {
	defer v.f.guard(nil)
	s, _, err := v.hashOn(HashState{}, math.MaxInt)
	if err != nil {
		panic(err) // it was just begun
	}
	return s.Sum
}

// HashState is how far the hashing of a view has come. The zero value is its beginning. It means the same to every view of that
// index of the shard's log, on whatever replica: a view that is opened anew goes on with it.
type HashState struct {
	// Sum is of what was read; of all, the view's Hash.
	Sum uint64 `json:"sum"`
	// Records are the keys that were counted.
	Records int64 `json:"records"`
	Done    bool  `json:"done,omitempty"`
	// Tree is 1 while keys are read and 2 for system records; From is where to go on in it.
	Tree int    `json:"tree,omitempty"`
	From []byte `json:"from,omitempty"`
}

// hashRow is what a row costs beside its bytes, in bytes: what takes about as long to read.
const hashRow = 100

// hashTrees are hashed in this order, from HashState.Tree 1 on.
var hashTrees = [...]int{inKeys, inRecords}

// HashOn goes on with Hash, until about so many bytes were read, 100 for each row among them. It returns how many; a row is read whole, however long. Damage that is met
// goes to Config.Fatal, as everywhere. An error says that the state s is none.
func (v *View) HashOn(s HashState, bytes int) (next HashState, read int, err error) {
	defer v.f.guard(&err)
	return v.hashOn(s, bytes)
}

func (v *View) hashOn(s HashState, bytes int) (_ HashState, read int, err error) {
	if s.Tree < 0 || s.Tree > len(hashTrees) {
		return s, 0, fmt.Errorf("hash state of tree %d", s.Tree)
	}
	h := hasher{sum: resumeFNV(s.Sum)}
	if s.Tree == 0 {
		h.sum = fnv.New64a()
		v.hashHead(&h)
		s.Tree, s.Records = 1, 0
	}
	for !s.Done && read < bytes {
		n, counted := 0, int64(0)
		s.From, n, counted = v.hashTree(&h, hashTrees[s.Tree-1], s.From, bytes-read)
		read, s.Records = read+n, s.Records+counted
		switch {
		case s.From != nil:
		case s.Tree == len(hashTrees):
			s.Done = true
		default:
			s.Tree++
		}
	}
	s.Sum = h.sum.Sum64()
	return s, read, nil
}

// hashHead is what is small.
func (v *View) hashHead(h *hasher) {
	h.number(uint64(v.clock))
	h.number(uint64(v.head.revision))
	h.number(v.head.opened)
	h.number(v.head.used)
	h.number(v.sess)
	for s := range command.Slots {
		if c := v.counts.get(uint16(s)); c.removed != 0 {
			h.number(uint64(s))
			h.number(c.removed)
		}
	}
	if v.head.init != nil {
		h.text(v.head.init.Encode())
	}
	if v.own != nil {
		h.text(v.own)
	}
}

// hashTree reads rows of a tree. It returns where to go on, nil at the end, what was read, and the keys among it.
func (v *View) hashTree(h *hasher, tree int, from []byte, bytes int) (next []byte, read int, keys int64) {
	c := v.layers.cursor(tree)
	defer c.guard()()
	c.seek(from)
	for k, r, ok := c.next(); ok; k, r, ok = c.next() {
		switch {
		case tree == inRecords:
			h.text(k)
			h.text(r.value)
			h.number(r.changed)
		case seen(r, true, v.clock).visible:
			slot, key := splitKey(k)
			h.number(uint64(slot))
			h.text(key)
			h.number(uint64(r.deadline))
			h.number(r.changed)
			h.text(r.value)
			keys++
		}
		if read += hashRow + len(k) + len(r.value); read >= bytes {
			return append(clone(k), 0), read, keys // the first key behind it
		}
	}
	return nil, read, keys
}

// hasher feeds a hash, so that no two inputs look alike.
type hasher struct {
	sum hash.Hash64
	n   [8]byte
}

func (h *hasher) number(x uint64) {
	binary.BigEndian.PutUint64(h.n[:], x)
	h.sum.Write(h.n[:])
}

func (h *hasher) text(b []byte) {
	h.number(uint64(len(b)))
	h.sum.Write(b)
}

// resumeFNV is the FNV-1a hash that has come to sum: that is all it knows.
func resumeFNV(sum uint64) hash.Hash64 {
	h := fnv.New64a()
	raw := binary.BigEndian.AppendUint64([]byte("fnv\x04"), sum)
	if err := h.(interface{ UnmarshalBinary([]byte) error }).UnmarshalBinary(raw); err != nil {
		panic(fmt.Sprintf("fsm: resume a hash: %v", err)) // the form is promised by hash/fnv: a test would not get this far
	}
	return h
}
