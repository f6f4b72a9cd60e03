package fsm

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	bolt "go.etcd.io/bbolt"
)

// A checkpoint folds what was applied since the last one into the file, in one
// transaction that also carries the applied index and the sessions, and is synced. It
// runs beside ApplyBatch: what it writes was frozen, and new entries go to a new
// layer above.
//
// One transaction, for a file between two of them would hold some entries' effects
// without their index, and replaying an INCR twice is not what was acknowledged.

// frozen is what one checkpoint writes.
type frozen struct {
	gen    *generation // in use until the checkpoint ends
	layer  *layer
	head   header
	init   []byte // nil: not new
	counts map[uint16]slotCount
	// sessions are encoded, or nil if they are to be deleted.
	sessions map[uint64][]byte
	gone     []byte // nil: not new
	own      []byte // nil: not new
}

// checkpointing is what others may know of a checkpoint under way. Immutable.
type checkpointing struct {
	began time.Time
	bytes int64 // of the layer that it writes
	rows  int   // in it
}

// runCheckpoints writes a checkpoint when the layer in memory has grown so large, or rests.
func (f *FSM) runCheckpoints() {
	look := time.NewTicker(restLook)
	defer look.Stop()
	var seen uint64 // what had changed when we last looked
	for {
		select {
		case <-f.done:
			return
		case <-f.kick:
			if f.activeBytes() < f.due.Load() {
				continue
			}
		case <-look.C:
			gathered, changed := f.activeBytes(), f.changed()
			rests := changed == seen
			seen = changed
			if !rests || gathered < f.cfg.CheckpointBytes/restShare {
				continue
			}
		}
		// Its error has gone to Fatal, but for that of a state machine that closes.
		_ = f.checkpoint()
	}
}

// A state machine rests when no key has changed between two looks. What is in memory then would stay there, and a scan pays for each row that
// is not in the file; fewer than a part of what makes a checkpoint due are not worth one. A shard that is written all the time, however little, never rests.
const (
	restLook  = 5 * time.Second
	restShare = 16
)

// changed is the index of the last entry that changed a key.
func (f *FSM) changed() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.ap.changed
}

// Flush makes durable what has been applied before the call, without leaving the processor to others meanwhile.
func (f *FSM) Flush() error {
	f.hurried.Add(1)
	defer f.hurried.Add(-1)
	return f.flush()
}

func (f *FSM) flush() error {
	want := f.Applied()
	select {
	case <-f.done:
		return ErrClosed
	default:
	}
	for f.DurableIndex() < want {
		if err := f.checkpoint(); err != nil {
			return fmt.Errorf("flush state at index %d: %w", want, err)
		}
	}
	return nil
}

// Turn lets one at a time write a checkpoint: those of a state machine, and of all of a node.
type Turn struct {
	// A channel and no lock, so that whoever waits does not stop virtual time.
	token   chan struct{}
	waiting atomic.Int64
}

// NewTurn returns one that nobody has.
func NewTurn() *Turn { return &Turn{token: make(chan struct{}, 1)} }

// take waits for it, or until done closes.
func (t *Turn) take(done <-chan struct{}) bool {
	t.waiting.Add(1)
	defer t.waiting.Add(-1)
	select {
	case t.token <- struct{}{}:
		return true
	case <-done:
		return false
	}
}

func (t *Turn) give() { <-t.token }

// stagger draws how much is to gather before the next checkpoint, anew each time. The replicas of a shard apply the same
// entries: with one threshold they would all write at the same moment, and no majority be left whose disks and
// processors are there for the log.
func (f *FSM) stagger() {
	f.due.Store(f.cfg.CheckpointBytes - rand.Int64N(f.cfg.CheckpointBytes*2/5+1))
}

const (
	// paceRows are written between two breaths: some 0.6 ms of work.
	paceRows = 64
	// mostPause bounds a breath: what was no work, but a process that was stopped or a disk that did not answer, is not to be
	// rested from, least of all with the node's turn in hand.
	mostPause = 10 * time.Millisecond
)

// breather returns what to call every paceRows: it has a checkpoint leave two thirds of a processor to others, unless
// somebody waits for it, another shard of the node for its turn, or what gathers meanwhile is half of what makes the next one due.
func (f *FSM) breather() func() {
	since := time.Now()
	return func() {
		others := f.cfg.Turn != nil && f.cfg.Turn.waiting.Load() > 0
		if f.hurried.Load() == 0 && !others && f.activeBytes() < f.due.Load()/2 {
			pause := time.NewTimer(min(2*time.Since(since), mostPause))
			select {
			case <-f.done:
			case <-pause.C:
			}
			pause.Stop()
		}
		since = time.Now()
	}
}

// checkpoint writes one, if anything was applied since the last. Any failure
// but ErrClosed has gone to Fatal: nobody knows what is in the file then.
func (f *FSM) checkpoint() error {
	for _, turn := range []*Turn{f.turn, f.cfg.Turn} {
		if turn == nil {
			continue
		}
		if !turn.take(f.done) {
			return ErrClosed
		}
		defer turn.give()
	}
	fz, err := f.freeze()
	if fz == nil {
		return err
	}
	defer fz.gen.release()
	under := &checkpointing{began: time.Now(), bytes: fz.layer.bytes}
	for _, t := range fz.layer.trees {
		under.rows += t.len()
	}
	f.checkpointing.Store(under)
	defer f.checkpointing.Store(nil)
	if f.cfg.OnCheckpoint != nil {
		f.cfg.OnCheckpoint()
	}
	if err := fz.write(f.breather()); err != nil {
		err = fmt.Errorf("checkpoint of state %s at index %d: %w", fz.gen.path, fz.head.applied, err)
		f.cfg.Fatal(err)
		return err
	}
	f.checkpoints.Add(1)
	f.checkpointRows.Add(uint64(under.rows))
	return f.thaw(fz)
}

// freeze takes what is to be written; nil if there is nothing.
func (f *FSM) freeze() (*frozen, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &f.ap
	if f.closed {
		return nil, ErrClosed
	}
	if f.durable == a.index || !f.gen.acquire() {
		return nil, nil
	}
	fz := &frozen{
		gen: f.gen, layer: a.layers.active, head: a.header(),
		counts: map[uint16]slotCount{}, sessions: map[uint64][]byte{},
	}
	if a.initIsNew {
		fz.init, a.initIsNew = a.init.Encode(), false
	}
	if a.ownNew {
		fz.own, a.ownNew = a.own.encode(), false
	}
	for slot := range a.dirty.all {
		fz.counts[slot] = a.counts.get(slot)
	}
	clear(a.dirty[:])
	for s := a.sess.newest; s != nil && s.used > a.sessFrozen; s = s.older {
		if s.changed {
			fz.sessions[s.id], s.changed = s.encode(nil), false
		}
	}
	a.sessFrozen = a.sess.used
	for id := range a.sess.forgotten {
		fz.sessions[id] = nil
	}
	clear(a.sess.forgotten)
	if a.sess.goneChanged {
		fz.gone, a.sess.goneChanged = a.sess.encodeGone(), false
	}
	a.layers.frozen, a.layers.active = a.layers.active, newLayer()
	f.stagger()
	f.overlay.Store(fz.layer.bytes)
	return fz, nil
}

// thaw lets go of what is in the file now.
func (f *FSM) thaw(fz *frozen) error {
	file, err := openFileLayer(fz.gen)
	if err != nil {
		err = fmt.Errorf("after a checkpoint: %w", err)
		f.cfg.Fatal(err)
		return err
	}
	f.mu.Lock()
	if f.gen != fz.gen || f.closed { // Restore has put another file in its place
		f.mu.Unlock()
		file.close()
		return nil
	}
	a := &f.ap
	old := a.layers.file
	a.layers.file, a.layers.frozen = file, nil
	st := *f.st.Load()
	f.durable = fz.head.applied
	st.durable = min(f.durable, st.applied) // a batch may be half applied
	st.file, st.fileSize, st.fileTx = file.bytes, file.tx.Size(), file.tx.ID()
	f.publish(&st)
	f.overlay.Store(a.layers.active.bytes)
	f.mu.Unlock()
	old.close() // point reads used it under mu only
	return nil
}

// write calls breathe every paceRows.
func (z *frozen) write(breathe func()) (err error) {
	defer damageIsError(z.gen.path, &err)()
	return z.gen.db.Update(func(tx *bolt.Tx) error {
		for tree, rows := range z.layer.trees {
			if err := writeRows(tx.Bucket(treeBuckets[tree]), tree, rows.walk, breathe); err != nil {
				return err
			}
		}
		if err := z.writeCounts(tx.Bucket(bucketSlots)); err != nil {
			return err
		}
		if err := z.writeSessions(tx.Bucket(bucketSessions)); err != nil {
			return err
		}
		meta := tx.Bucket(bucketMeta)
		if z.init != nil {
			if err := meta.Put(metaInit, z.init); err != nil {
				return err
			}
		}
		if z.own != nil {
			if err := meta.Put(metaOwn, appendChecked(nil, metaOwn, z.own)); err != nil {
				return err
			}
		}
		if z.gone != nil {
			if err := meta.Put(metaGone, z.gone); err != nil {
				return err
			}
		}
		head := z.head.encode(nil)
		if err := meta.Put(metaState, head); err != nil {
			return err
		}
		return meta.Put(metaSum, headerSum(tx, head))
	})
}

func writeRows(b *bolt.Bucket, tree int, scan func(func(string, row) bool), breathe func()) (err error) {
	var mem arena // bbolt keeps the values until the commit
	n := 0
	scan(func(key string, r row) bool {
		if n++; n%paceRows == 0 {
			breathe()
		}
		if r.dead {
			err = b.Delete([]byte(key))
		} else {
			err = b.Put(asBytes(key), encodeRow(mem.alloc(encodedSize(tree, r))[:0], tree, asBytes(key), r))
		}
		return err == nil
	})
	return err
}

func (z *frozen) writeCounts(b *bolt.Bucket) error {
	for slot, c := range z.counts {
		k := binary.BigEndian.AppendUint16(nil, slot)
		if err := b.Put(k, c.encode(nil)); err != nil {
			return err
		}
	}
	return nil
}

func (z *frozen) writeSessions(b *bolt.Bucket) error {
	for id, data := range z.sessions {
		k := binary.BigEndian.AppendUint64(nil, id)
		if data == nil {
			if err := b.Delete(k); err != nil {
				return err
			}
			continue
		}
		v := binary.BigEndian.AppendUint32(nil, checksum(k, data))
		if err := b.Put(k, append(v, data...)); err != nil {
			return err
		}
	}
	return nil
}

// readSessions reads the session table of a file.
func readSessions(tx *bolt.Tx, shard uint32, h header) (*sessions, error) {
	t := newSessions(shard)
	t.opened, t.used = h.opened, h.used
	if v := tx.Bucket(bucketMeta).Get(metaGone); v != nil {
		if err := t.decodeGone(v); err != nil {
			return nil, err
		}
	}
	var list []*session
	err := tx.Bucket(bucketSessions).ForEach(func(k, v []byte) error {
		if len(k) != 8 || len(v) < 4 || binary.BigEndian.Uint32(v) != checksum(k, v[4:]) {
			return fmt.Errorf("the checksum of session %x does not match", k)
		}
		s, err := decodeSession(binary.BigEndian.Uint64(k), v[4:])
		if err == nil {
			list = append(list, s)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	t.take(list)
	return t, nil
}

// readCounts reads the counts of a file's slots.
func readCounts(tx *bolt.Tx) (t slotTable, err error) {
	err = tx.Bucket(bucketSlots).ForEach(func(k, v []byte) error {
		if len(k) != 2 || len(v) != slotCountBytes || binary.BigEndian.Uint16(k) >= command.Slots {
			return fmt.Errorf("malformed slot count")
		}
		*t.at(binary.BigEndian.Uint16(k)) = decodeSlotCount(v)
		return nil
	})
	return t, err
}

// arena hands out memory in few allocations.
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
