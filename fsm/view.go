package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"github.com/abacusdb/abacus/fsm/command"
	bolt "go.etcd.io/bbolt"
)

// View is the state at one log index. Entries applied later do not show in it.
// It belongs to one goroutine; there may be many views. An open view keeps the
// file's old pages from being used again, so it should not stay open for long.
//
// Keys and values that a view hands out lie in the file: they are valid until
// Close and must not be changed.
type View struct {
	gen   *generation
	tx    *bolt.Tx // nil once closed
	index uint64
	clock int64
	head  header

	keys, slots *bolt.Bucket
	keyBuf      []byte
	// ended counts the keys that are stored but have ended, slot by slot; nil
	// until somebody asks for a count.
	ended      map[uint16]slotCount
	endedTotal slotCount
}

// View opens a view of the present state. Its index is at or above every index
// that was applied before the call.
func (f *FSM) View() (*View, error) {
	for {
		// Loaded before the transaction begins, so that the file is at least as new.
		st := f.st.Load()
		if !st.gen.acquire() {
			select {
			case <-f.done:
				return nil, ErrClosed
			default:
				continue // Restore has just put another generation in its place
			}
		}
		v, err := openView(st)
		if err != nil {
			st.gen.release()
			return nil, fmt.Errorf("open view: %w", err)
		}
		return v, nil
	}
}

func openView(st *state) (*View, error) {
	tx, err := st.gen.db.Begin(false)
	if err != nil {
		return nil, err
	}
	h, err := readHeader(tx, st.gen.path)
	if err != nil {
		_ = tx.Rollback()
		return nil, err
	}
	v := &View{gen: st.gen, tx: tx, index: h.applied, clock: h.clock, head: h}
	if h.applied == st.durable {
		// Nothing was committed since: the entries above, up to st.applied, had no
		// effect but on the clock.
		v.index, v.clock = st.applied, st.clock
	}
	v.keys, v.slots = tx.Bucket(bucketKeys), tx.Bucket(bucketSlots)
	return v, nil
}

// Close ends the view. It may be called twice.
func (v *View) Close() {
	if v.tx == nil {
		return
	}
	_ = v.tx.Rollback() // it only ever fails for a closed transaction
	v.tx = nil
	v.gen.release()
}

// Index is the log index that the view stands at.
func (v *View) Index() uint64 { return v.index }

// Clock is the shard's time at that index.
func (v *View) Clock() int64 { return v.clock }

// Get returns the value of a key.
func (v *View) Get(slot uint16, key []byte) ([]byte, bool) {
	v.keyBuf = appendKey(v.keyBuf[:0], slot, key)
	e := decodeEntry(v.keys.Get(v.keyBuf), v.clock)
	if !e.visible {
		return nil, false
	}
	return e.value, true
}

// Scan calls fn for every key in the slots from..to, both included, that begins
// with prefix, slot by slot in key order, until fn says false.
func (v *View) Scan(from, to uint16, prefix []byte, fn func(slot uint16, key, value []byte) bool) error {
	v.scan(from, to, prefix, func(slot uint16, key []byte, e entry) bool {
		return !e.visible || fn(slot, key, e.value)
	})
	return nil
}

// scan visits everything stored, keys that have ended included.
func (v *View) scan(from, to uint16, prefix []byte, fn func(slot uint16, key []byte, e entry) bool) {
	c := v.keys.Cursor()
	if len(prefix) == 0 {
		for k, val := c.Seek(appendKey(nil, from, nil)); k != nil; k, val = c.Next() {
			slot, key := splitKey(k)
			if slot > to || !fn(slot, key, decodeEntry(val, v.clock)) {
				return
			}
		}
		return
	}
	// One seek per slot that holds anything.
	sc := v.slots.Cursor()
	var seek []byte
	for s, _ := sc.Seek(appendKey(nil, from, nil)); s != nil; s, _ = sc.Next() {
		slot := binary.BigEndian.Uint16(s)
		if slot > to {
			return
		}
		seek = appendKey(seek[:0], slot, prefix)
		for k, val := c.Seek(seek); k != nil && bytes.HasPrefix(k, seek); k, val = c.Next() {
			if !fn(slot, k[2:], decodeEntry(val, v.clock)) {
				return
			}
		}
	}
}

// SlotCount is how many keys a slot has, and the bytes of those keys and their values.
func (v *View) SlotCount(slot uint16) (records, bytes int64) {
	v.countEnded()
	c := v.stored(slot)
	e := v.ended[slot]
	return c.records - e.records, c.bytes - e.bytes
}

// Counts are the same for the whole shard.
func (v *View) Counts() (records, bytes int64) {
	v.countEnded()
	return v.head.total.records - v.endedTotal.records, v.head.total.bytes - v.endedTotal.bytes
}

// Stored is the number of keys in the file, with those that have ended and are
// not purged yet: it takes no walk over them.
func (v *View) Stored() int64 { return v.head.total.records }

func (v *View) stored(slot uint16) slotCount {
	var k [2]byte
	binary.BigEndian.PutUint16(k[:], slot)
	if b := v.slots.Get(k[:]); b != nil {
		return decodeSlotCount(b)
	}
	return slotCount{}
}

// countEnded finds the keys that have ended and are not purged yet. Usually
// there are none, and the first deadline tells.
func (v *View) countEnded() {
	if v.ended != nil {
		return
	}
	v.ended = map[uint16]slotCount{}
	c := v.tx.Bucket(bucketTTL).Cursor()
	for k, _ := c.First(); k != nil && int64(binary.BigEndian.Uint64(k)) <= v.clock; k, _ = c.Next() {
		slot, key := splitKey(k[8:])
		e := decodeEntry(v.keys.Get(k[8:]), v.clock)
		d := slotCount{1, int64(len(key) + len(e.value))}
		n := v.ended[slot]
		n.add(d)
		v.ended[slot] = n
		v.endedTotal.add(d)
	}
}

// Record returns a system record and its revision.
func (v *View) Record(name string) (value []byte, revision int64, ok bool) {
	b := v.tx.Bucket(bucketRecords).Get([]byte(name))
	if b == nil {
		return nil, 0, false
	}
	value, revision = decodeRecord(b)
	return value, revision, true
}

// Records calls fn for each system record whose name begins with prefix, in
// order of their names, until fn says false.
func (v *View) Records(prefix string, fn func(name string, value []byte, revision int64) bool) {
	c := v.tx.Bucket(bucketRecords).Cursor()
	p := []byte(prefix)
	for k, b := c.Seek(p); k != nil && bytes.HasPrefix(k, p); k, b = c.Next() {
		value, revision := decodeRecord(b)
		if !fn(string(k), value, revision) {
			return
		}
	}
}

// RandomKey returns a copy of some key; equal seeds give equal keys of one state.
func (v *View) RandomKey(seed uint64) ([]byte, bool) {
	total, _ := v.Counts()
	if total == 0 {
		return nil, false
	}
	at := int64(seed % uint64(total))
	c := v.slots.Cursor()
	for s, _ := c.First(); s != nil; s, _ = c.Next() {
		slot := binary.BigEndian.Uint16(s)
		n, _ := v.SlotCount(slot)
		if at >= n {
			at -= n
			continue
		}
		var found []byte
		v.scan(slot, slot, nil, func(_ uint16, key []byte, e entry) bool {
			if !e.visible {
				return true
			}
			if at == 0 {
				found = clone(key)
			}
			at--
			return found == nil
		})
		return found, found != nil
	}
	return nil, false
}

// Hash sums up all that is replicated: replicas at one index have one hash. It
// does not depend on what was purged already.
func (v *View) Hash() uint64 {
	h := fnv.New64a()
	var n [8]byte
	number := func(x uint64) {
		binary.BigEndian.PutUint64(n[:], x)
		h.Write(n[:])
	}
	text := func(b []byte) {
		number(uint64(len(b)))
		h.Write(b)
	}
	number(uint64(v.clock))
	number(uint64(v.head.revision))
	if v.head.init != nil {
		text(v.head.init.Encode())
	}
	v.scan(0, command.Slots-1, nil, func(slot uint16, key []byte, e entry) bool {
		if e.visible {
			number(uint64(slot))
			text(key)
			number(uint64(e.deadline))
			text(e.value)
		}
		return true
	})
	v.Records("", func(name string, value []byte, revision int64) bool {
		text([]byte(name))
		text(value)
		number(uint64(revision))
		return true
	})
	return h.Sum64()
}
