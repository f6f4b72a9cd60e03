package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"

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
	life   uint64 // see applier
	change uint64
	head   header
	counts slotTable
	sess   uint64 // hash of the session table
	own    []byte // slots that change hands, as they are stored; nil if none ever did
	// hides are slots whose rows are not the shard's to show: not yet, or not any more. nil: there are none.
	hides  *slotSet
	hidden slotCount // what is in them
	slots  []command.SlotRange
	// pin is what the view is one reader of, with the file and the transaction that it reads for it; nil: they are its own.
	pin *pin
	src *source

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
	return f.ap.view(f.gen, file), nil
}

// view makes a view of the state as it is now. The caller holds FSM.mu for writing.
func (a *applier) view(gen *generation, file *fileLayer) *View {
	v := &View{
		f: a.f, gen: gen, open: true, layers: layers{active: a.layers.active.copy(), frozen: a.layers.frozen, file: file},
		index: a.index, clock: a.clock, life: a.life, change: a.changed, head: a.header(), counts: a.counts.share(), sess: a.sess.hash, own: a.own.changed(),
	}
	if a.init != nil {
		v.slots = a.init.Slots
	}
	if a.own.out != nil {
		v.slots = a.own.ranges(owned)
	}
	if a.own.hidden.records == 0 && a.own.out == nil {
		return v
	}
	v.hides = new(slotSet)
	for s, c, ok := v.counts.next(0); ok; s, c, ok = v.counts.next(int(s) + 1) {
		if a.own.of[s] != owned {
			v.hides.add(s)
			v.hidden.add(c.records, c.bytes)
		}
	}
	return v
}

// shows says whether what is stored in a slot is the shard's.
func (v *View) shows(slot uint16) bool { return v.hides == nil || !v.hides.has(slot) }

// Close ends the view. It may be called twice.
func (v *View) Close() {
	if !v.open {
		return
	}
	v.open = false
	if v.pin != nil {
		v.f.pins.leave(v.pin, v.src)
		return
	}
	v.layers.file.close()
	v.gen.release()
}

// Index is the log index that the view stands at.
func (v *View) Index() uint64 { return v.index }

// Version is the same for views of this state machine that show the same keys and values, of the same slots: nothing has changed between
// them. It means nothing to another replica, or after a restart.
func (v *View) Version() [2]uint64 { return [2]uint64{v.life, v.change} }

// Clock is the shard's time at that index.
func (v *View) Clock() int64 { return v.clock }

// Slots are the slots that the shard served at that index, in order: what it owned but for what was frozen, whose
// state may have been another shard's already. The view shows the keys of these slots and no others. Do not change them.
func (v *View) Slots() []command.SlotRange { return v.slots }

// Get returns the value of a key.
func (v *View) Get(slot uint16, key []byte) ([]byte, bool) {
	defer v.f.guard(nil)
	e := v.load(slot, key)
	return e.value, e.visible && v.shows(slot)
}

func (v *View) load(slot uint16, key []byte) entry {
	v.keyBuf = appendKey(v.keyBuf[:0], slot, key)
	r, stored := v.layers.get(inKeys, v.keyBuf)
	return seen(r, stored, v.clock)
}

// Scan calls fn for every key in the slots from..to, both included, that begins
// with prefix, slot by slot in key order, until fn says false.
func (v *View) Scan(from, to uint16, prefix []byte, fn func(slot uint16, key, value []byte) bool) error {
	v.scan(from, to, prefix, func(slot uint16, key []byte, r *row) bool {
		return !v.visible(r) || !v.shows(slot) || fn(slot, key, r.value)
	})
	return nil
}

// visible says whether a row that is stored has not ended.
func (v *View) visible(r *row) bool { return r.deadline == 0 || r.deadline > v.clock }

// scan visits everything stored, keys that have ended included.
func (v *View) scan(from, to uint16, prefix []byte, fn func(slot uint16, key []byte, r *row) bool) {
	defer v.f.guard(nil)
	c := v.layers.cursor(inKeys)
	defer c.guard()()
	if len(prefix) > 0 {
		v.scanPrefix(c, from, to, prefix, fn)
		return
	}
	c.seek(appendKey(nil, from, nil))
	for c.advance() {
		slot, key := splitKey(c.key)
		if slot > to || !fn(slot, key, &c.row) {
			return
		}
	}
}

// scanPrefix seeks once in each slot that holds anything, but where the cursor is already at the first key that could be meant.
func (v *View) scanPrefix(c *cursor, from, to uint16, prefix []byte, fn func(slot uint16, key []byte, r *row) bool) {
	var start []byte
	on := false     // the cursor has come to a row that is not visited yet
	passed := false // or it stands, unread, before one behind those that were looked for
	for slot, _, ok := v.counts.next(int(from)); ok && slot <= to; slot, _, ok = v.counts.next(int(slot) + 1) {
		start = appendKey(start[:0], slot, prefix)
		if !on || bytes.Compare(c.key, start) < 0 {
			if !passed || bytes.Compare(c.k, start) < 0 {
				c.seek(start)
			}
			if passed = c.lacks(start); passed {
				continue
			}
			on = c.advance()
		}
		for on && bytes.HasPrefix(c.key, start) {
			if !fn(slot, c.key[2:], &c.row) {
				return
			}
			on = c.advance()
		}
		if !on { // nor is there anything in a later slot
			return
		}
	}
}

// SlotCount is how many keys a slot has, and the bytes of those keys and their values.
func (v *View) SlotCount(slot uint16) (records, bytes int64) {
	if !v.shows(slot) {
		return 0, 0
	}
	v.countEnded()
	c, e := v.counts.get(slot), v.ended[slot]
	return c.records - e.records, c.bytes - e.bytes
}

// Counts are the same for the whole shard.
func (v *View) Counts() (records, bytes int64) {
	v.countEnded()
	return v.head.total.records - v.hidden.records - v.endedTotal.records, v.head.total.bytes - v.hidden.bytes - v.endedTotal.bytes
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
		if !v.shows(slot) {
			return true
		}
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
		v.scan(slot, slot, nil, func(_ uint16, key []byte, r *row) bool {
			if !v.visible(r) {
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
