package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"github.com/abacusdb/abacus/fsm/command"
)

// View is the state at one log index. Entries applied later do not show in it.
// It belongs to one goroutine; there may be many views. An open view keeps the
// file's old pages from being used again, so it should not stay open for long.
//
// Keys and values that a view hands out are valid until Close and must not be changed.
type View struct {
	f      *FSM
	gen    *generation
	open   bool
	layers layers
	index  uint64
	clock  int64
	head   header
	counts slotTable
	sess   uint64 // hash of the session table

	keyBuf []byte
	// ended counts the keys that are stored but have ended, slot by slot; nil
	// until somebody asks for a count.
	ended      map[uint16]slotCount
	endedTotal slotCount
}

// View opens a view of the present state. Its index is at or above every index
// that was applied before the call.
func (f *FSM) View() (v *View, err error) {
	f.mu.Lock() // to copy trees, which writes to them
	defer f.mu.Unlock()
	if f.closed || !f.gen.acquire() {
		return nil, ErrClosed
	}
	file, err := openFileLayer(f.gen)
	if err != nil {
		f.gen.release()
		return nil, fmt.Errorf("open view: %w", err)
	}
	a := &f.ap
	return &View{
		f: f, gen: f.gen, open: true, layers: layers{active: a.layers.active.copy(), frozen: a.layers.frozen, file: file},
		index: a.index, clock: a.clock, head: a.header(), counts: a.counts.share(), sess: a.sess.hash,
	}, nil
}

// Close ends the view. It may be called twice.
func (v *View) Close() {
	if !v.open {
		return
	}
	v.open = false
	v.layers.file.close()
	v.gen.release()
}

// Index is the log index that the view stands at.
func (v *View) Index() uint64 { return v.index }

// Clock is the shard's time at that index.
func (v *View) Clock() int64 { return v.clock }

// Get returns the value of a key.
func (v *View) Get(slot uint16, key []byte) ([]byte, bool) {
	defer v.f.guard(nil)
	e := v.load(slot, key)
	return e.value, e.visible
}

func (v *View) load(slot uint16, key []byte) entry {
	v.keyBuf = appendKey(v.keyBuf[:0], slot, key)
	r, stored := v.layers.get(inKeys, v.keyBuf)
	return seen(r, stored, v.clock)
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
	defer v.f.guard(nil)
	c := v.layers.cursor(inKeys)
	defer c.guard()()
	if len(prefix) == 0 {
		c.seek(appendKey(nil, from, nil))
		for k, r, ok := c.next(); ok; k, r, ok = c.next() {
			slot, key := splitKey(k)
			if slot > to || !fn(slot, key, seen(r, true, v.clock)) {
				return
			}
		}
		return
	}
	// One seek per slot that holds anything.
	var start []byte
	for slot, _, ok := v.counts.next(int(from)); ok && slot <= to; slot, _, ok = v.counts.next(int(slot) + 1) {
		start = appendKey(start[:0], slot, prefix)
		c.seek(start)
		for k, r, ok := c.next(); ok && bytes.HasPrefix(k, start); k, r, ok = c.next() {
			if !fn(slot, k[2:], seen(r, true, v.clock)) {
				return
			}
		}
	}
}

// SlotCount is how many keys a slot has, and the bytes of those keys and their values.
func (v *View) SlotCount(slot uint16) (records, bytes int64) {
	v.countEnded()
	c, e := v.counts.get(slot), v.ended[slot]
	return c.records - e.records, c.bytes - e.bytes
}

// Counts are the same for the whole shard.
func (v *View) Counts() (records, bytes int64) {
	v.countEnded()
	return v.head.total.records - v.endedTotal.records, v.head.total.bytes - v.endedTotal.bytes
}

// countEnded finds the keys that have ended and are not purged yet. Usually
// there are none, and the first deadline tells.
func (v *View) countEnded() {
	if v.ended != nil {
		return
	}
	v.ended = map[uint16]slotCount{}
	defer v.f.guard(nil)
	v.layers.walk(inTTL, nil, func(k []byte, _ row) bool {
		if int64(binary.BigEndian.Uint64(k)) > v.clock {
			return false
		}
		slot, key := splitKey(k[8:])
		size := int64(len(key) + len(v.load(slot, key).value))
		n := v.ended[slot]
		n.add(1, size)
		v.ended[slot] = n
		v.endedTotal.add(1, size)
		return true
	})
}

// Record returns a system record and its revision.
func (v *View) Record(name string) (value []byte, revision int64, ok bool) {
	defer v.f.guard(nil)
	r, ok := v.layers.get(inRecords, []byte(name))
	if !ok {
		return nil, 0, false
	}
	return r.value, int64(r.changed), true
}

// Records calls fn for each system record whose name begins with prefix, in
// order of their names, until fn says false.
func (v *View) Records(prefix string, fn func(name string, value []byte, revision int64) bool) {
	defer v.f.guard(nil)
	v.layers.walk(inRecords, []byte(prefix), func(k []byte, r row) bool {
		return fn(string(k), r.value, int64(r.changed))
	})
}

// RandomKey returns a copy of some key; equal seeds give equal keys of one state.
func (v *View) RandomKey(seed uint64) ([]byte, bool) {
	total, _ := v.Counts()
	if total == 0 {
		return nil, false
	}
	at := int64(seed % uint64(total))
	for slot, _, ok := v.counts.next(0); ok; slot, _, ok = v.counts.next(int(slot) + 1) {
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
	number(v.head.opened)
	number(v.head.used)
	number(v.sess)
	for s := range command.Slots {
		if c := v.counts.get(uint16(s)); c.removed != 0 {
			number(uint64(s))
			number(c.removed)
		}
	}
	if v.head.init != nil {
		text(v.head.init.Encode())
	}
	v.scan(0, command.Slots-1, nil, func(slot uint16, key []byte, e entry) bool {
		if e.visible {
			number(uint64(slot))
			text(key)
			number(uint64(e.deadline))
			number(e.changed)
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
