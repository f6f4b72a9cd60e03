package fsm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/fsm/planted"
	"github.com/hashicorp/raft"
)

// purgeLimit bounds how many ended keys one entry removes, so that a million
// keys ending at once do not stop the shard. Part of the replicated behaviour.
const purgeLimit = 1000

// maxMillis caps the clock and deadlines, so that no sum of them wraps.
const maxMillis = 1 << 62

// applier is the state in memory and runs commands on it. Behind FSM.mu; it
// is changed by the FSM goroutine, and by a checkpoint that moves layers.
type applier struct {
	f      *FSM
	layers layers

	// As of the last entry applied.
	index    uint64
	term     uint64
	clock    int64
	revision int64
	total    slotCount
	init     *command.Init
	// changed is the index of the last entry that changed what views show: keys, as far as they are there, or which slots are the shard's. A
	// key that ends is purged by the entry that moves the clock past its deadline, or others are, and that counts.
	// life is random and tells it from what another state had under the same index. Neither is replicated.
	changed, life uint64
	// deadline is at or below the earliest one; exact unless deadlineLoose.
	deadline      int64
	deadlineLoose bool

	counts slotTable
	own    ownership
	sess   *sessions

	// What changed since the last checkpoint froze the state.
	dirty      slotSet // slots whose counts did
	initIsNew  bool
	ownNew     bool
	sessFrozen uint64 // sessions used up to here were frozen

	answering bool // the answers of the command are read, or remembered
	records   []recordChange
	pins      []pinCommand // of the entry, for when the whole of it is applied

	keyBuf, ttlBuf []byte

	capture *Capture // notes what changes in some slots; nil as a rule
}

type recordChange struct {
	name     string
	value    []byte // nil: deleted
	revision int64
}

// header is what the file says of the state as it is now.
func (a *applier) header() header {
	return header{applied: a.index, term: a.term, clock: a.clock, total: a.total, revision: a.revision,
		opened: a.sess.opened, used: a.sess.used, init: a.init}
}

// state is what is published of it.
func (a *applier) state(durable uint64) *state {
	if a.deadlineLoose {
		a.findDeadline()
	}
	return &state{fileTx: a.layers.file.tx.ID(), fileSize: a.layers.file.tx.Size(), applied: a.index, durable: durable, term: a.term, clock: a.clock, deadline: a.deadline, records: a.total.records - a.own.hidden.records, file: a.layers.file.bytes, init: a.init, leaving: a.own.leaving(), opened: a.sess.opened}
}

// entry applies one log entry. It returns the batch's id if somebody waits for the results.
func (a *applier) entry(l *raft.Log) (results []command.Result, batch uint64) {
	b, err := command.DecodeBatch(l.Data)
	if err != nil {
		panic(fmt.Errorf("fsm: entry %d of term %d: %w", l.Index, l.Term, err))
	}
	a.term = l.Term
	a.clock = addMillis(a.clock, int64(min(b.ElapsedMillis, maxMillis)))
	if a.deadline <= a.clock {
		a.purge()
	}
	wanted := b.ID != 0 && a.f.cfg.Wanted != nil && a.f.cfg.Wanted(b.ID)
	if wanted {
		batch = b.ID
		results = make([]command.Result, len(b.Commands))
	}
	for i := range b.Commands {
		c := &b.Commands[i]
		if !wanted && c.Op.IsRead() {
			continue
		}
		a.answering = wanted || c.Session != 0 // what is remembered must be the same everywhere
		r := a.exec(c, l.Index)
		if wanted {
			results[i] = r
		}
	}
	return results, batch
}

// exec applies one command, after the checks that all have in common.
func (a *applier) exec(c *command.Command, index uint64) command.Result {
	switch c.Op {
	case command.OpNoop:
		return command.OK()
	case command.OpInit:
		return a.doInit(c, index)
	}
	if refused, ok := a.refuses(c); ok {
		return refused
	}
	if c.Session == 0 {
		return a.run(c, index)
	}
	s, answer, known := a.sess.find(c)
	switch {
	case !known:
		answer = a.run(c, index)
		a.sess.record(s, c, answer)
	case answer.Code < command.CodeSessionUnknown: // refusals are not remembered
		a.f.repeats.Add(1)
	}
	return answer
}

// refuses says whether the shard does not take the command at all. That depends
// on nothing but the command, the shard's identity and its slots.
func (a *applier) refuses(c *command.Command) (command.Result, bool) {
	if a.init == nil {
		return command.Err(command.CodeUninitialized), true
	}
	switch c.Op {
	case command.OpRecordSet, command.OpRecordDelete, command.OpSessionOpen, command.OpSessionCheck, command.OpSessionSkip:
	default:
		switch {
		case c.Op.IsSlots(), c.Op.IsPin():
		case int(c.Slot) >= len(a.own.of) || a.own.of[c.Slot] < owned:
			return command.Err(command.CodeWrongShard), true
		case a.own.of[c.Slot] == leaving && !planted.Is(planted.FreezeLate):
			return command.Err(command.CodeSlotsMoving), true
		}
	}
	if err := c.Validate(a.init.Limits); err != nil {
		if e, ok := err.(*command.LimitError); ok && e.Size > 0 {
			return tooLarge(e.Max), true
		}
		return command.Err(command.CodeBadCommand), true
	}
	return command.Result{}, false
}

// run carries out one command that is not refused.
func (a *applier) run(c *command.Command, index uint64) command.Result {
	switch c.Op {
	case command.OpSet:
		return a.doSet(c)
	case command.OpMSet:
		return a.doMSet(c)
	case command.OpDel:
		return a.doDel(c)
	case command.OpIncr:
		return a.doIncr(c)
	case command.OpIncrFloat:
		return a.doIncrFloat(c)
	case command.OpAppend:
		return a.doAppend(c)
	case command.OpGetDel:
		return a.doGetDel(c)
	case command.OpGetEx:
		return a.doGetEx(c)
	case command.OpExpire:
		return a.doExpire(c)
	case command.OpPersist:
		return a.doPersist(c)
	case command.OpRecordSet:
		return a.doRecordSet(c)
	case command.OpRecordDelete:
		return a.doRecordDelete(c)
	case command.OpSessionOpen:
		return a.sess.open(uint64(c.Int))
	case command.OpSessionSkip:
		return a.sess.skip(uint64(c.Int))
	case command.OpMulti:
		return a.doMulti(c, index)
	case command.OpPin:
		a.pins = append(a.pins, pinCommand{id: uint64(c.Int), ttl: time.Duration(c.TTL) * time.Millisecond})
		return command.Int(int64(index))
	case command.OpUnpin:
		a.pins = append(a.pins, pinCommand{id: uint64(c.Int), end: true})
		return command.OK()
	}
	if c.Op.IsSlots() {
		return a.doSlots(c)
	}
	if c.Op.IsRead() {
		return a.read(c)
	}
	panic(fmt.Sprintf("fsm: entry %d: op %v is not implemented", index, c.Op))
}

func tooLarge(limit int) command.Result {
	return command.Result{Kind: command.KindError, Code: command.CodeTooLarge, Int: int64(limit)}
}

// get reads a key as the clock sees it. Its value may lie in the file.
func (a *applier) get(slot uint16, key []byte) entry {
	e := a.load(slot, key)
	if !e.visible {
		return entry{}
	}
	return e
}

// load also returns what is stored of a key that has ended.
func (a *applier) load(slot uint16, key []byte) entry {
	a.keyBuf = appendKey(a.keyBuf[:0], slot, key)
	r, stored := a.layers.get(inKeys, a.keyBuf)
	return seen(r, stored, a.clock)
}

// put stores a key; old is what load returned for it. value is copied.
func (a *applier) put(slot uint16, key, value []byte, deadline int64, old entry) {
	a.keyBuf = appendKey(a.keyBuf[:0], slot, key)
	a.layers.put(inKeys, a.keyBuf, value, deadline, a.index, old.row)
	a.changed = a.index
	if a.capture != nil {
		a.capture.note(slot, a.keyBuf, len(value))
	}
	if old.stored {
		a.count(slot, 0, int64(len(value)-len(old.value)))
	} else {
		a.count(slot, 1, int64(len(key)+len(value)))
		old.deadline = 0
	}
	if old.deadline != deadline {
		if old.deadline != 0 {
			a.unschedule(old.deadline, slot, key)
		}
		if deadline != 0 {
			a.schedule(deadline, slot, key)
		}
	}
}

// remove deletes what is stored of a key.
func (a *applier) remove(slot uint16, key []byte, old entry) {
	if !old.stored {
		return
	}
	a.keyBuf = appendKey(a.keyBuf[:0], slot, key)
	a.layers.remove(inKeys, a.keyBuf, old.row)
	a.changed = a.index
	if a.capture != nil {
		a.capture.note(slot, a.keyBuf, 0)
	}
	if old.deadline != 0 {
		a.unschedule(old.deadline, slot, key)
	}
	a.count(slot, -1, -int64(len(key)+len(old.value)))
	a.counts.at(slot).removed = a.index
}

func (a *applier) count(slot uint16, records, bytes int64) {
	a.counts.at(slot).add(records, bytes)
	a.total.add(records, bytes)
	if a.own.of[slot] < owned {
		a.own.hidden.add(records, bytes)
	}
	a.dirty.add(slot)
}

func (a *applier) ttlKey(deadline int64, slot uint16, key []byte) []byte {
	a.ttlBuf = binary.BigEndian.AppendUint64(a.ttlBuf[:0], uint64(deadline))
	a.ttlBuf = appendKey(a.ttlBuf, slot, key)
	return a.ttlBuf
}

func (a *applier) schedule(deadline int64, slot uint16, key []byte) {
	k := a.ttlKey(deadline, slot, key)
	old, _ := a.layers.get(inTTL, k)
	a.layers.put(inTTL, k, nil, 0, 0, old)
	a.deadline = min(a.deadline, deadline)
}

func (a *applier) unschedule(deadline int64, slot uint16, key []byte) {
	k := a.ttlKey(deadline, slot, key)
	old, _ := a.layers.get(inTTL, k)
	a.layers.remove(inTTL, k, old)
	if deadline == a.deadline {
		a.deadlineLoose = true // others may end at the same time
	}
}

// purge removes keys that have ended, the earliest first.
func (a *applier) purge() {
	ended := make([][]byte, 0, 16)
	a.walkTTL(func(k []byte, deadline int64) bool {
		if deadline > a.clock || len(ended) == purgeLimit {
			return false
		}
		ended = append(ended, bytes.Clone(k))
		return true
	})
	for _, k := range ended {
		slot, key := splitKey(k[8:])
		e := a.load(slot, key)
		if !e.stored {
			panic(fmt.Sprintf("fsm: deadline without a key in slot %d after index %d", slot, a.index))
		}
		a.remove(slot, key, e)
	}
	a.findDeadline()
}

func (a *applier) findDeadline() {
	from := a.deadline
	a.deadline, a.deadlineLoose = noDeadline, false
	a.walkTTLFrom(from, func(_ []byte, deadline int64) bool {
		a.deadline = deadline
		return false
	})
}

func (a *applier) walkTTL(fn func(k []byte, deadline int64) bool) { a.walkTTLFrom(a.deadline, fn) }

// walkTTLFrom visits the deadlines from one on. Nothing ends before a.deadline, and
// seeking there spares the walk over dead rows of what has ended.
func (a *applier) walkTTLFrom(from int64, fn func(k []byte, deadline int64) bool) {
	c := a.layers.cursor(inTTL)
	defer c.guard()()
	c.seek(binary.BigEndian.AppendUint64(nil, uint64(from)))
	for k, _, ok := c.next(); ok && fn(k, int64(binary.BigEndian.Uint64(k))); k, _, ok = c.next() {
	}
}

// deadlineIn is the deadline of a key that lives for ttl from now, 0 for ttl 0.
func (a *applier) deadlineIn(ttl int64) int64 {
	if ttl == 0 {
		return 0
	}
	return addMillis(a.clock, ttl)
}

func addMillis(a, b int64) int64 {
	if b > math.MaxInt64-a || a+b > maxMillis {
		return maxMillis
	}
	return a + b
}

// answer is the value of a key, if anybody will read it.
func (a *applier) answer(e entry) command.Result {
	if !e.visible || !a.answering {
		return command.Nil()
	}
	return valueOf(e)
}

// valueOf is the value of a visible key, good for ever: one in memory is never
// changed, one in the file is copied.
func valueOf(e entry) command.Result {
	if e.mapped {
		return command.Bytes(clone(e.value))
	}
	return command.Bytes(e.value)
}

// clone never returns nil: an empty value is a value.
func clone(b []byte) []byte { return append(make([]byte, 0, len(b)), b...) }

func (a *applier) doInit(c *command.Command, index uint64) command.Result {
	if a.init != nil {
		return command.OK() // a second proposal of the same; the first one holds
	}
	if len(c.Values) != 1 {
		panic(fmt.Sprintf("fsm: entry %d: init with %d values", index, len(c.Values)))
	}
	in, err := command.DecodeInit(c.Values[0])
	if err != nil {
		panic(fmt.Errorf("fsm: entry %d: %w", index, err))
	}
	a.setInit(&in)
	a.initIsNew = true
	return command.OK()
}

func (a *applier) setInit(in *command.Init) {
	a.init, a.changed = in, a.index
	if in != nil {
		a.sess.shard = in.Shard
		a.own.mark(in.Slots, owned)
	}
}

func (a *applier) doRecordSet(c *command.Command) command.Result {
	old, stored := a.layers.get(inRecords, c.Keys[0])
	if present := revision(old, stored); present != c.Int {
		return conflict(present)
	}
	a.revision++
	a.layers.put(inRecords, c.Keys[0], c.Values[0], 0, uint64(a.revision), old)
	a.records = append(a.records, recordChange{string(c.Keys[0]), clone(c.Values[0]), a.revision})
	return command.Int(a.revision)
}

func (a *applier) doRecordDelete(c *command.Command) command.Result {
	old, stored := a.layers.get(inRecords, c.Keys[0])
	if !stored {
		return command.Int(0)
	}
	if present := revision(old, stored); c.Int >= 0 && c.Int != present {
		return conflict(present)
	}
	a.layers.remove(inRecords, c.Keys[0], old)
	a.records = append(a.records, recordChange{name: string(c.Keys[0])})
	return command.Int(1)
}

// revision is 0 for a record that is not there.
func revision(r row, stored bool) int64 {
	if !stored {
		return 0
	}
	return int64(r.changed)
}

func conflict(present int64) command.Result {
	return command.Result{Kind: command.KindError, Code: command.CodeConflict, Int: present}
}

// load reads what a generation holds into the applier, whose layers it replaces, and
// returns it as a state.
func (f *FSM) load(gen *generation) (_ *state, _ []recordChange, err error) {
	defer damageIsError(gen.path, &err)()
	file, err := openFileLayer(gen)
	if err != nil {
		return nil, nil, err
	}
	keep := false
	defer func() {
		if !keep {
			file.close()
		}
	}()
	corrupt := func(err error) error { return &CorruptError{Path: gen.path, Reason: err.Error()} }
	h, err := readHeader(file.tx, gen.path)
	if err != nil {
		return nil, nil, err
	}
	shard := uint32(0)
	if h.init != nil {
		shard = h.init.Shard
	}
	sess, err := readSessions(file.tx, shard, h)
	if err != nil {
		return nil, nil, corrupt(err)
	}
	counts, err := readCounts(file.tx)
	if err != nil {
		return nil, nil, corrupt(err)
	}
	a := &f.ap
	if a.capture != nil { // its owner has lost the lead, and more
		a.capture.lost = true
	}
	*a = applier{
		f: f, layers: layers{active: newLayer(), file: file}, index: h.applied, term: h.term, clock: h.clock, revision: h.revision,
		total: h.total, counts: counts, sess: sess, sessFrozen: sess.used, keyBuf: a.keyBuf, ttlBuf: a.ttlBuf,
		life: rand.Uint64(),
	}
	a.setInit(h.init)
	if err := a.own.restore(h.init, h.own); err != nil {
		return nil, nil, corrupt(err)
	}
	a.countHidden()
	a.findDeadline() // from 0 on
	var records []recordChange
	a.layers.walk(inRecords, nil, func(k []byte, r row) bool {
		records = append(records, recordChange{string(k), clone(r.value), int64(r.changed)})
		return true
	})
	keep = true
	return a.state(h.applied), records, nil
}
