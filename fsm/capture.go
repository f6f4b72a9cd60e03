package fsm

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/fsm/planted"
)

// Capture notes which keys of some slots change, so that who copies the slots can copy what has changed meanwhile. It is this replica's own, and no
// replicated state: who begins to lead copies anew.
type Capture struct {
	f     *FSM
	slots slotSet
	keys  map[string]struct{} // slot (2), key: of what changed since the last Take. Behind FSM.mu
	bytes int
	lost  bool
}

var (
	// ErrCaptureFull: more changed between two calls of Take than a Capture remembers.
	ErrCaptureFull = errors.New("too much changes in the slots to keep up with it")
	// ErrCaptureLost: the state was replaced by another replica's.
	ErrCaptureLost = errors.New("the state was replaced while its changes were noted")
	// ErrCapturing: one at a time.
	ErrCapturing = errors.New("slots of this shard are being copied already")
)

// CaptureMost is how many bytes a Capture notes at most: Take has to be called before.
const CaptureMost = 64 << 20

// Capture begins to note. There is one at a time (ErrCapturing); the caller closes it.
func (f *FSM) Capture(slots []command.SlotRange) (*Capture, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, ErrClosed
	case f.ap.capture != nil:
		return nil, ErrCapturing
	}
	c := &Capture{f: f, keys: map[string]struct{}{}}
	for _, r := range slots {
		for s := int(r.From); s <= int(r.To); s++ {
			c.slots.add(uint16(s))
		}
	}
	f.ap.capture = c
	return c, nil
}

// note is called under FSM.mu; k is the row's key, size that of its value.
func (c *Capture) note(slot uint16, k []byte, size int) {
	if !c.slots.has(slot) || c.bytes > CaptureMost || planted.Is(planted.LoseChanges) {
		return
	}
	if _, there := c.keys[string(k)]; there {
		return
	}
	c.keys[string(k)] = struct{}{}
	c.bytes += len(k) + size + 64
}

// Bytes is about how much there is to copy, and more than the noted keys take.
func (c *Capture) Bytes() int {
	c.f.mu.RLock()
	defer c.f.mu.RUnlock()
	return c.bytes
}

// Take returns a view of the present state and the keys that have changed since the last Take, or since the
// beginning, up to that same state; in order.
func (c *Capture) Take() (*View, [][]byte, error) {
	v, changed, err := c.take()
	if err != nil {
		return nil, nil, err
	}
	keys := make([][]byte, 0, len(changed)) // without the lock: they may be many
	for k := range changed {
		keys = append(keys, []byte(k))
	}
	slices.SortFunc(keys, slices.Compare)
	return v, keys, nil
}

func (c *Capture) take() (*View, map[string]struct{}, error) {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, nil, ErrClosed
	case c.lost || f.ap.capture != c:
		return nil, nil, ErrCaptureLost
	case c.bytes > CaptureMost:
		return nil, nil, ErrCaptureFull
	case !f.gen.acquire():
		return nil, nil, ErrClosed
	}
	file, err := openFileLayer(f.gen)
	if err != nil {
		f.gen.release()
		return nil, nil, err
	}
	changed := c.keys
	c.keys, c.bytes = map[string]struct{}{}, 0
	return f.ap.view(f.gen, file), changed, nil
}

// Close ends it. It may be called twice.
func (c *Capture) Close() {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.f.ap.capture == c {
		c.f.ap.capture = nil
	}
}

// Rows calls fn for each key of the slots from..to that can be read, from after (slot, key; nil: the first) on and in order, as it is to
// travel, until fn says false. Rows are copies: they go into proposals, which may outlive the view.
func (v *View) Rows(from, to uint16, after []byte, fn func(command.Row) bool) {
	defer v.f.guard(nil)
	c := v.layers.cursor(inKeys)
	defer c.guard()()
	start := appendKey(nil, from, nil)
	if after != nil {
		start = append(clone(after), 0) // the next key there could be
	}
	c.seek(start)
	for k, r, ok := c.next(); ok; k, r, ok = c.next() {
		slot, key := splitKey(k)
		if slot > to {
			return
		}
		if e := seen(r, true, v.clock); e.visible && !fn(v.row(slot, key, e)) {
			return
		}
	}
}

// Row is what a key (slot, key) is in the view, as a copy.
func (v *View) Row(k []byte) command.Row {
	defer v.f.guard(nil)
	slot, key := splitKey(k)
	return v.row(slot, key, v.load(slot, key))
}

func (v *View) row(slot uint16, key []byte, e entry) command.Row {
	r := command.Row{Slot: slot, Key: clone(key), Gone: !e.visible}
	if r.Gone {
		return r
	}
	r.Value = clone(e.value)
	if e.deadline != 0 {
		r.TTL = e.deadline - v.clock
	}
	return r
}

// Ended are the keys (slot, key) in the slots that have ended and are stored all the same.
func (v *View) Ended(slots []command.SlotRange) (keys [][]byte) {
	defer v.f.guard(nil)
	var of ownership
	of.mark(slots, owned)
	v.layers.walk(inTTL, nil, func(k []byte, _ row) bool {
		if int64(binary.BigEndian.Uint64(k)) > v.clock {
			return false
		}
		if slot, _ := splitKey(k[8:]); of.of[slot] == owned {
			keys = append(keys, clone(k[8:]))
		}
		return true
	})
	return keys
}

// Leaving is the move whose slots are frozen, and the slots; 0 if there is none.
func (f *FSM) Leaving() (move uint64, slots []command.SlotRange) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if out := f.ap.own.out; out != nil {
		return out.move, out.slots
	}
	return 0, nil
}

// Cleared says that no rows are stored but those of slots that are owned, or may be soon.
func (f *FSM) Cleared() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.ap.own.hidden.records == 0 || f.ap.own.in != nil
}

// Elsewhere is the answer to commands whose slots are all another shard's, or will be in a moment; nil if any may be served here. It is what applying them
// would say: who waits for slots that move and asks again and again need not go through the log each time.
func (f *FSM) Elsewhere(cmds []command.Command) []command.Result {
	st := f.st.Load()
	if st.init == nil {
		return nil
	}
	in := func(slots []command.SlotRange, slot uint16) bool {
		return slices.ContainsFunc(slots, func(r command.SlotRange) bool { return r.From <= slot && slot <= r.To })
	}
	var refused []command.Result
	for i := range cmds {
		c := &cmds[i]
		switch {
		case c.Op < command.OpGet || c.Op > command.OpPersist && c.Op != command.OpMulti:
			return nil
		case in(st.leaving, c.Slot):
			refused = append(refused, command.Err(command.CodeSlotsMoving))
		case !in(st.init.Slots, c.Slot):
			refused = append(refused, command.Err(command.CodeWrongShard))
		default:
			return nil
		}
	}
	return refused
}
