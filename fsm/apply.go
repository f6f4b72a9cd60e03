package fsm

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

// purgeLimit bounds how many ended keys one entry removes, so that a million
// keys ending at once do not stop the shard. Part of the replicated behaviour.
const purgeLimit = 1000

// maxMillis caps the clock and deadlines, so that no sum of them wraps.
const maxMillis = 1 << 62

// applier runs commands in one bbolt transaction. It belongs to the FSM
// goroutine and is used again for each batch.
type applier struct {
	f *FSM

	// As of the last entry applied.
	index    uint64
	term     uint64
	clock    int64
	revision int64
	total    slotCount
	init     *command.Init
	// deadline is at or below the earliest one; exact unless deadlineLoose.
	deadline      int64
	deadlineLoose bool

	// counts and owned are worked out from the file when it is loaded, and kept.
	counts  [command.Slots]slotCount
	owned   [command.Slots]bool
	changed []uint16 // slots whose counts must be written
	isDirty [command.Slots]bool

	tx              *bolt.Tx // nil until a command needs it
	keys, ttl, recs *bolt.Bucket
	effect          bool // something to commit
	wanted          bool // this entry's answers are read
	records         []recordChange

	keyBuf, ttlBuf, metaBuf []byte
	mem                     arena
}

type recordChange struct {
	name     string
	value    []byte // nil: deleted
	revision int64
}

// start prepares for a batch on top of st.
func (a *applier) start(st *state) {
	a.index, a.term, a.clock = st.applied, st.term, st.clock
	a.init, a.deadline, a.deadlineLoose = st.init, st.deadline, false
	a.effect, a.records = false, a.records[:0]
}

func (a *applier) begin() {
	if a.tx != nil {
		return
	}
	tx, err := a.f.st.Load().gen.db.Begin(true)
	if err != nil {
		panic(fmt.Errorf("fsm: begin transaction: %w", err))
	}
	a.tx = tx
	a.keys, a.ttl, a.recs = tx.Bucket(bucketKeys), tx.Bucket(bucketTTL), tx.Bucket(bucketRecords)
}

// abandon ends a transaction that was not committed: there was no effect, or a panic.
func (a *applier) abandon() {
	if a.tx != nil {
		_ = a.tx.Rollback() // it only ever fails for a closed transaction
		a.tx, a.keys, a.ttl, a.recs = nil, nil, nil, nil
	}
	a.mem.reset()
}

// finish commits what the batch did and returns the state after it.
func (a *applier) finish(st *state) *state {
	if a.deadlineLoose {
		a.findDeadline()
	}
	next := &state{
		gen: st.gen, applied: a.index, durable: st.durable, term: a.term,
		clock: a.clock, deadline: a.deadline, init: a.init,
	}
	if !a.effect {
		return next
	}
	a.must("write slot counts", a.writeCounts())
	a.must("write header", a.writeHeader(a.tx, next))
	a.must("commit", a.tx.Commit())
	a.tx, a.keys, a.ttl, a.recs = nil, nil, nil, nil
	next.durable = a.index
	return next
}

// flush commits the header alone.
func (a *applier) flush(st *state) error {
	return st.gen.db.Update(func(tx *bolt.Tx) error { return a.writeHeader(tx, st) })
}

func (a *applier) writeHeader(tx *bolt.Tx, st *state) error {
	h := header{applied: st.applied, term: st.term, clock: st.clock, total: a.total, revision: a.revision}
	a.metaBuf = h.encode(a.metaBuf[:0])
	return tx.Bucket(bucketMeta).Put(metaState, a.metaBuf)
}

func (a *applier) writeCounts() error {
	if len(a.changed) == 0 {
		return nil
	}
	b := a.tx.Bucket(bucketSlots)
	for _, slot := range a.changed {
		a.isDirty[slot] = false
		var k [2]byte
		binary.BigEndian.PutUint16(k[:], slot)
		var err error
		if c := a.counts[slot]; c.records == 0 {
			err = b.Delete(k[:])
		} else {
			err = b.Put(k[:], c.encode(a.mem.alloc(slotCountBytes)[:0]))
		}
		if err != nil {
			return err
		}
	}
	a.changed = a.changed[:0]
	return nil
}

// must ends the process on a storage error: what the file holds is unknown now.
func (a *applier) must(what string, err error) {
	if err != nil {
		panic(fmt.Errorf("fsm: %s at index %d: %w", what, a.index, err))
	}
}

// entry applies one log entry.
func (a *applier) entry(l *raft.Log) []command.Result {
	b, err := command.DecodeBatch(l.Data)
	if err != nil {
		panic(fmt.Errorf("fsm: entry %d of term %d: %w", l.Index, l.Term, err))
	}
	a.term = l.Term
	a.clock = addMillis(a.clock, int64(min(b.ElapsedMillis, maxMillis)))
	if a.deadline <= a.clock {
		a.purge()
	}
	a.wanted = b.ID != 0 && a.f.cfg.Wanted != nil && a.f.cfg.Wanted(b.ID)
	var results []command.Result
	if a.wanted {
		results = make([]command.Result, len(b.Commands))
	}
	for i := range b.Commands {
		c := &b.Commands[i]
		if !a.wanted && c.Op.IsRead() {
			continue
		}
		r := a.exec(c, l.Index)
		if a.wanted {
			results[i] = r
		}
	}
	return results
}

// exec applies one command, after the checks that all have in common.
func (a *applier) exec(c *command.Command, index uint64) command.Result {
	switch c.Op {
	case command.OpNoop:
		return command.OK()
	case command.OpInit:
		return a.doInit(c, index)
	}
	if a.init == nil {
		return command.Err(command.CodeUninitialized)
	}
	isRecord := c.Op == command.OpRecordSet || c.Op == command.OpRecordDelete
	if !isRecord && (int(c.Slot) >= len(a.owned) || !a.owned[c.Slot]) {
		return command.Err(command.CodeWrongShard)
	}
	if err := c.Validate(a.init.Limits); err != nil {
		if e, ok := err.(*command.LimitError); ok && e.Size > 0 {
			return tooLarge(e.Max)
		}
		return command.Err(command.CodeBadCommand)
	}
	a.begin()
	switch c.Op {
	case command.OpGet:
		return a.answer(a.get(c.Slot, c.Keys[0]))
	case command.OpMGet:
		return a.doMGet(c)
	case command.OpStrlen:
		return command.Int(int64(len(a.get(c.Slot, c.Keys[0]).value)))
	case command.OpExists:
		return a.doExists(c)
	case command.OpType:
		if a.get(c.Slot, c.Keys[0]).visible {
			return command.Bytes([]byte("string"))
		}
		return command.Bytes([]byte("none"))
	case command.OpTTL:
		return a.doTTL(c)
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
	}
	panic(fmt.Sprintf("fsm: entry %d: op %v is not implemented", index, c.Op))
}

func tooLarge(limit int) command.Result {
	return command.Result{Kind: command.KindError, Code: command.CodeTooLarge, Int: int64(limit)}
}

// get reads a key as the clock sees it. What it returns lies in the transaction.
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
	return decodeEntry(a.keys.Get(a.keyBuf), a.clock)
}

// put stores a key; old is what load returned for it. value may lie in the
// transaction or in the entry: it is copied.
func (a *applier) put(slot uint16, key, value []byte, deadline int64, old entry) {
	head := 1
	if deadline != 0 {
		head = 9
	}
	v := a.mem.alloc(head + len(value))
	v[0] = kindPlain
	if deadline != 0 {
		v[0] = kindExpires
		binary.BigEndian.PutUint64(v[1:], uint64(deadline))
	}
	copy(v[head:], value)
	a.store(slot, key, v, len(value), deadline, old)
}

// store puts v, an encoded value of the given length, where the arena keeps it.
func (a *applier) store(slot uint16, key, v []byte, length int, deadline int64, old entry) {
	a.keyBuf = appendKey(a.keyBuf[:0], slot, key)
	oldLength, oldDeadline := len(old.value), old.deadline
	a.must("put", a.keys.Put(a.keyBuf, v))
	if oldDeadline != deadline {
		if oldDeadline != 0 {
			a.unschedule(oldDeadline, slot, key)
		}
		if deadline != 0 {
			a.schedule(deadline, slot, key)
		}
	}
	if old.stored {
		a.count(slot, 0, int64(length-oldLength))
	} else {
		a.count(slot, 1, int64(len(key)+length))
	}
}

// remove deletes what is stored of a key.
func (a *applier) remove(slot uint16, key []byte, old entry) {
	if !old.stored {
		return
	}
	length := len(old.value)
	a.keyBuf = appendKey(a.keyBuf[:0], slot, key)
	a.must("delete", a.keys.Delete(a.keyBuf))
	if old.deadline != 0 {
		a.unschedule(old.deadline, slot, key)
	}
	a.count(slot, -1, -int64(len(key)+length))
}

func (a *applier) count(slot uint16, records, bytes int64) {
	a.effect = true
	d := slotCount{records, bytes}
	a.counts[slot].add(d)
	a.total.add(d)
	if !a.isDirty[slot] && d != (slotCount{}) {
		a.isDirty[slot] = true
		a.changed = append(a.changed, slot)
	}
}

func (a *applier) ttlKey(deadline int64, slot uint16, key []byte) []byte {
	a.ttlBuf = binary.BigEndian.AppendUint64(a.ttlBuf[:0], uint64(deadline))
	a.ttlBuf = appendKey(a.ttlBuf, slot, key)
	return a.ttlBuf
}

func (a *applier) schedule(deadline int64, slot uint16, key []byte) {
	a.must("put deadline", a.ttl.Put(a.ttlKey(deadline, slot, key), nil))
	a.deadline = min(a.deadline, deadline)
}

func (a *applier) unschedule(deadline int64, slot uint16, key []byte) {
	a.must("delete deadline", a.ttl.Delete(a.ttlKey(deadline, slot, key)))
	if deadline == a.deadline {
		a.deadlineLoose = true // others may end at the same time
	}
}

// purge removes keys that have ended, the earliest first.
func (a *applier) purge() {
	a.begin()
	ended := make([][]byte, 0, 16)
	c := a.ttl.Cursor()
	for k, _ := c.First(); k != nil && len(ended) < purgeLimit; k, _ = c.Next() {
		if int64(binary.BigEndian.Uint64(k)) > a.clock {
			break
		}
		ended = append(ended, k)
	}
	for _, k := range ended {
		slot, key := splitKey(k[8:])
		e := decodeEntry(a.keys.Get(k[8:]), a.clock)
		if !e.stored {
			panic(fmt.Sprintf("fsm: deadline without a key in slot %d after index %d", slot, a.index))
		}
		length := len(e.value)
		a.must("purge", a.keys.Delete(k[8:]))
		a.must("purge deadline", a.ttl.Delete(k))
		a.count(slot, -1, -int64(len(key)+length))
	}
	a.findDeadline()
}

func (a *applier) findDeadline() {
	a.begin()
	a.deadline, a.deadlineLoose = noDeadline, false
	if k, _ := a.ttl.Cursor().First(); k != nil {
		a.deadline = int64(binary.BigEndian.Uint64(k))
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

// answer copies a value out of the transaction, if anybody will read it.
func (a *applier) answer(e entry) command.Result {
	if !e.visible || !a.wanted {
		return command.Nil()
	}
	return command.Bytes(clone(e.value))
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
	a.begin()
	a.must("put init", a.tx.Bucket(bucketMeta).Put(metaInit, clone(c.Values[0])))
	a.setInit(&in)
	a.effect = true
	return command.OK()
}

func (a *applier) setInit(in *command.Init) {
	a.init = in
	clear(a.owned[:])
	if in == nil {
		return
	}
	for _, r := range in.Slots {
		for s := int(r.From); s <= int(r.To); s++ {
			a.owned[s] = true
		}
	}
}

func (a *applier) doRecordSet(c *command.Command) command.Result {
	if present, _ := a.recordRevision(c.Keys[0]); present != c.Int {
		return conflict(present)
	}
	a.revision++
	v := a.mem.alloc(8 + len(c.Values[0]))
	binary.BigEndian.PutUint64(v, uint64(a.revision))
	copy(v[8:], c.Values[0])
	a.must("put record", a.recs.Put(c.Keys[0], v))
	a.effect = true
	a.records = append(a.records, recordChange{string(c.Keys[0]), clone(c.Values[0]), a.revision})
	return command.Int(a.revision)
}

func (a *applier) doRecordDelete(c *command.Command) command.Result {
	present, ok := a.recordRevision(c.Keys[0])
	if !ok {
		return command.Int(0)
	}
	if c.Int >= 0 && c.Int != present {
		return conflict(present)
	}
	a.must("delete record", a.recs.Delete(c.Keys[0]))
	a.effect = true
	a.records = append(a.records, recordChange{name: string(c.Keys[0])})
	return command.Int(1)
}

// recordRevision is 0 for a record that is not there.
func (a *applier) recordRevision(name []byte) (int64, bool) {
	v := a.recs.Get(name)
	if v == nil {
		return 0, false
	}
	_, rev := decodeRecord(v)
	return rev, true
}

func conflict(present int64) command.Result {
	return command.Result{Kind: command.KindError, Code: command.CodeConflict, Int: present}
}

// load reads what a generation holds into the applier and returns it as a state.
func (f *FSM) load(gen *generation) (_ *state, _ []recordChange, err error) {
	defer damageIsError(gen.path, &err)()
	tx, err := gen.db.Begin(false)
	if err != nil {
		return nil, nil, fmt.Errorf("read state %s: %w", gen.path, err)
	}
	defer tx.Rollback()
	h, err := readHeader(tx, gen.path)
	if err != nil {
		return nil, nil, err
	}
	a := &f.ap
	a.total, a.revision = h.total, h.revision
	a.setInit(h.init)
	clear(a.counts[:])
	err = tx.Bucket(bucketSlots).ForEach(func(k, v []byte) error {
		if len(k) != 2 || len(v) != slotCountBytes || binary.BigEndian.Uint16(k) >= command.Slots {
			return &CorruptError{Path: gen.path, Reason: "malformed slot count"}
		}
		a.counts[binary.BigEndian.Uint16(k)] = decodeSlotCount(v)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	st := &state{gen: gen, applied: h.applied, durable: h.applied, term: h.term, clock: h.clock, deadline: noDeadline, init: h.init}
	if k, _ := tx.Bucket(bucketTTL).Cursor().First(); k != nil {
		st.deadline = int64(binary.BigEndian.Uint64(k))
	}
	var records []recordChange
	err = tx.Bucket(bucketRecords).ForEach(func(k, v []byte) error {
		value, rev := decodeRecord(v)
		records = append(records, recordChange{string(k), clone(value), rev})
		return nil
	})
	return st, records, err
}

// recordNames lists the records of a generation.
func recordNames(gen *generation) (map[string]bool, error) {
	names := map[string]bool{}
	err := gen.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketRecords).ForEach(func(k, _ []byte) error {
			names[string(k)] = true
			return nil
		})
	})
	return names, err
}

// arena hands out memory that lives until the transaction ends: bbolt keeps the
// values it is given, and does not copy them, until the commit.
type arena struct {
	chunk []byte
}

const arenaChunk = 256 << 10

func (m *arena) alloc(n int) []byte {
	if n > arenaChunk/8 {
		return make([]byte, n)
	}
	if cap(m.chunk)-len(m.chunk) < n {
		m.chunk = make([]byte, 0, arenaChunk)
	}
	start := len(m.chunk)
	m.chunk = m.chunk[:start+n]
	return m.chunk[start : start+n : start+n]
}

func (m *arena) reset() { m.chunk = m.chunk[:0] }
