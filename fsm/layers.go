package fsm

import (
	"bytes"
	"fmt"
	"math"
	"runtime/debug"
	"unsafe"

	bolt "go.etcd.io/bbolt"

	"github.com/abacusdb/abacus/fsm/lookahead"
)

// layers are the state, seen from above: what was applied since the last
// checkpoint began (active), what that checkpoint is writing (frozen, or nil), and
// the file. What a layer holds hides what lies below it.
//
// A checkpoint that has committed and not yet been told of changes nothing here:
// the file then holds what frozen says, too.
type layers struct {
	active, frozen *layer
	file           *fileLayer
}

// layer is one of those in memory.
type layer struct {
	trees [treeCount]rows
	// bytes is about what the layer costs in memory.
	bytes int64
}

// rowCost is what a row takes beside its key and its value: the row, the key's header, a place in the map and
// one in the tree, each with the room that is free there. Measured: 145 to 170.
const rowCost = 165

func newLayer() *layer {
	l := &layer{}
	for i := range l.trees {
		l.trees[i] = newRows()
	}
	return l
}

// copy is cheap: the copies share what neither changes afterwards.
func (l *layer) copy() *layer {
	c := &layer{bytes: l.bytes}
	for i := range l.trees {
		c.trees[i] = l.trees[i].copy()
	}
	return c
}

func (l *layers) frozenBytes() int64 {
	if l.frozen == nil {
		return 0
	}
	return l.frozen.bytes
}

// asString is for looking up: the string must not outlive b's bytes.
func asString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// asBytes is for reading.
func asBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// get returns the row of a key. If there is none, its below still tells whether a dead
// row is needed to keep it so.
func (l *layers) get(tree int, key []byte) (row, bool) {
	k := asString(key)
	if r, ok := l.active.trees[tree].get(k); ok {
		return r, !r.dead
	}
	if l.frozen != nil {
		if r, ok := l.frozen.trees[tree].get(k); ok {
			r.below = true
			return r, !r.dead
		}
	}
	return l.file.get(tree, key)
}

// put sets a row, with copies of key and value; old is what get returned for the key.
func (l *layers) put(tree int, key, value []byte, deadline int64, changed uint64, old row) {
	own := make([]byte, len(value))
	copy(own, value)
	r := row{value: own, deadline: deadline, changed: changed, below: old.below}
	if was, ok := l.active.trees[tree].set(asString(key), r); ok {
		l.active.bytes += int64(len(value) - len(was.value))
	} else {
		l.active.bytes += int64(len(key) + len(value) + rowCost)
	}
}

// remove takes a key out; old is what get returned for it.
func (l *layers) remove(tree int, key []byte, old row) {
	t := &l.active.trees[tree]
	if !old.below {
		if was, ok := t.delete(asString(key)); ok {
			l.active.bytes -= int64(len(key) + len(was.value) + rowCost)
		}
		return
	}
	if was, ok := t.set(asString(key), row{dead: true, below: true}); ok {
		l.active.bytes -= int64(len(was.value))
	} else {
		l.active.bytes += int64(len(key) + rowCost)
	}
}

// fileLayer is the state file as of one transaction. Several goroutines may
// read it at once: bbolt's reading transactions keep nothing of what was read.
type fileLayer struct {
	path string
	tx   *bolt.Tx
	disk *lookahead.Disk
	// bytes are its pages in use.
	bytes int64
	trees [treeCount]*bolt.Bucket
}

func openFileLayer(gen *generation) (f *fileLayer, err error) {
	tx, err := gen.db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("read state %s: %w", gen.path, err)
	}
	// Free since this transaction's checkpoint, and pending: no page of its tree.
	stats := gen.db.Stats()
	f = &fileLayer{path: gen.path, tx: tx, disk: &gen.disk, bytes: tx.Size() - int64(stats.FreePageN+stats.PendingPageN)*int64(gen.db.Info().PageSize)}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // or the file cannot be closed
		}
	}()
	defer damageIsError(gen.path, &err)()
	for i, name := range treeBuckets {
		if f.trees[i] = tx.Bucket(name); f.trees[i] == nil {
			return nil, &CorruptError{Path: gen.path, Reason: fmt.Sprintf("no bucket %q", name)}
		}
	}
	return f, nil
}

// fileNow is the state file as it is now, with a transaction of its own.
func (f *FSM) fileNow() (*fileLayer, func(), error) {
	f.mu.RLock()
	gen := f.gen
	ok := !f.closed && gen.acquire()
	f.mu.RUnlock()
	if !ok {
		return nil, nil, ErrClosed
	}
	file, err := openFileLayer(gen)
	if err != nil {
		gen.release()
		return nil, nil, err
	}
	return file, func() { file.close(); gen.release() }, nil
}

// leaves is for a walk over a tree, as long as the transaction.
func (f *fileLayer) leaves(tree int) lookahead.Leaves {
	info := f.tx.DB().Info()
	return lookahead.New(f.disk, info.Data, f.tx.Size()/int64(info.PageSize), info.PageSize, uint64(f.trees[tree].Root()))
}

func (f *fileLayer) close() { _ = f.tx.Rollback() } // it only ever fails for a closed transaction

// get reads and checks a row. Damage panics with a *CorruptError: see FSM.guard.
func (f *fileLayer) get(tree int, key []byte) (r row, found bool) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			panic(asDamage(f.path, p))
		}
	}()
	v := f.trees[tree].Get(key)
	if v == nil {
		return row{}, false
	}
	return f.decode(tree, key, v), true
}

func (f *fileLayer) decode(tree int, key, v []byte) row {
	var r row
	f.decodeTo(&r, tree, key, v)
	return r
}

func (f *fileLayer) decodeTo(r *row, tree int, key, v []byte) {
	if err := r.decode(tree, key, v); err != nil {
		panic(&CorruptError{Path: f.path, Reason: err.Error()})
	}
}

// asDamage is what bbolt does with a damaged file, which is to panic or to
// fault, as an error.
func asDamage(path string, p any) *CorruptError {
	if c, ok := p.(*CorruptError); ok {
		return c
	}
	return &CorruptError{Path: path, Reason: fmt.Sprint(p)}
}

// cursor walks one tree through all layers, in order of the keys. Whoever uses
// one begins with: defer c.guard()().
type cursor struct {
	tree int
	file *fileLayer
	mem  [2]memCursor // active, frozen
	b    *bolt.Cursor
	// leaves are told what b comes to, row by row.
	leaves lookahead.Leaves
	// least is prefixOf the smallest key that a mem stands at, the largest number if none does.
	least uint64
	// What b stands at; k is nil at its end.
	k, v []byte
	// What advance has come to. The key and the value are good for as long as the layers are.
	key []byte
	row row
	// inFile: bbolt is at work, and a panic is its.
	inFile bool
}

type memCursor struct {
	it  rowsCursor
	any bool // the tree has rows
	ok  bool // it stands at one
}

// cursor returns a cursor to be sought.
func (l *layers) cursor(tree int) *cursor {
	c := &cursor{tree: tree, file: l.file, b: l.file.trees[tree].Cursor(), leaves: l.file.leaves(tree)}
	for i, m := range []*layer{l.active, l.frozen} {
		if m != nil && m.trees[tree].len() > 0 {
			c.mem[i] = memCursor{it: m.trees[tree].cursor(), any: true}
		}
	}
	return c
}

// walk visits the rows of a tree whose keys begin with prefix, until fn says false.
func (l *layers) walk(tree int, prefix []byte, fn func(key []byte, r row) bool) {
	c := l.cursor(tree)
	defer c.guard()()
	c.seek(prefix)
	for k, r, ok := c.next(); ok && bytes.HasPrefix(k, prefix) && fn(k, r); k, r, ok = c.next() {
	}
}

// guard makes a panic or a fault in the file one with a *CorruptError. Other
// panics, of a scan's callback for one, are not touched.
func (c *cursor) guard() func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			if c.inFile {
				panic(asDamage(c.file.path, p))
			}
			panic(p)
		}
	}
}

// seek goes to the first key at or after one.
func (c *cursor) seek(key []byte) {
	for i := range c.mem {
		if m := &c.mem[i]; m.any {
			m.ok = m.it.seek(asString(key))
		}
	}
	c.noteLeast()
	c.inFile = true
	c.k, c.v = c.b.Seek(key)
	c.inFile = false
}

// lacks says that the next key does not begin with prefix, if that can be told by what the file has, without a look at the row. False
// tells nothing.
func (c *cursor) lacks(prefix []byte) bool {
	if c.k == nil || prefixOf(asString(c.k)) >= c.least || bytes.HasPrefix(c.k, prefix) {
		return false
	}
	c.inFile = true
	c.leaves.At(c.k)
	c.inFile = false
	return true
}

func (c *cursor) noteLeast() {
	c.least = math.MaxUint64
	for i := range c.mem {
		if m := &c.mem[i]; m.ok {
			c.least = min(c.least, m.it.prefix())
		}
	}
}

// next is advance for who has a use for a copy.
func (c *cursor) next() (key []byte, r row, ok bool) {
	if !c.advance() {
		return nil, row{}, false
	}
	return c.key, c.row, true
}

// advance goes on to the next row, and says whether there is one.
func (c *cursor) advance() bool {
	// Most rows are in the file alone, and come before what is in memory: mostly eight bytes tell.
	if c.k != nil && prefixOf(asString(c.k)) < c.least {
		c.takeOfFile()
		return true
	}
	for {
		at := -1 // which of mem has the smallest key, the upper one if both have
		for i := range c.mem {
			if c.mem[i].ok && (at < 0 || c.mem[i].it.key() < c.mem[at].it.key()) {
				at = i
			}
		}
		if at < 0 {
			if c.k == nil {
				return false
			}
			c.takeOfFile()
			return true
		}
		k := c.mem[at].it.key()
		if c.k != nil {
			switch d := bytes.Compare(c.k, asBytes(k)); {
			case d < 0:
				c.takeOfFile()
				return true
			case d == 0:
				c.step()
			}
		}
		c.key, c.row = asBytes(k), c.mem[at].it.row()
		for i := range c.mem {
			if m := &c.mem[i]; m.ok && m.it.key() == k {
				m.ok = m.it.next()
			}
		}
		c.noteLeast()
		if !c.row.dead {
			c.row.below = true // as far as the cursor's user can tell
			return true
		}
	}
}

func (c *cursor) takeOfFile() {
	c.key = c.k
	c.file.decodeTo(&c.row, c.tree, c.k, c.v)
	c.step()
}

func (c *cursor) step() {
	c.inFile = true
	c.k, c.v = c.b.Next()
	if c.k != nil {
		c.leaves.At(c.k)
	}
	c.inFile = false
}
