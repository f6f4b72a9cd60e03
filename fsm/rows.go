package fsm

import (
	"encoding/binary"
	"strings"

	"github.com/tidwall/btree"
)

// rows is one tree of a layer in memory: its rows by key, which is how they are nearly always asked for, and in the
// order of their keys.
//
// A row that no copy knows of is changed where it lies, without a look at the tree: one that finds its way by comparing
// keys waits for memory a dozen times.
type rows struct {
	tree *btree.BTreeG[item]
	// byKey is nil in a copy, which is read in order, mostly.
	byKey map[string]*stored
	// era is how often the tree was copied: what was stored in an earlier one, a copy may share.
	era uint64
}

type stored struct {
	key string
	row row
	era uint64
}

// item is a place in the tree. The beginning of its key is with it: a search compares some ten items in every node, and would
// have to wait for the memory of each. A key begins with its slot, so that few
// begin alike, but for those of one {tag}.
type item struct {
	prefix uint64
	*stored
}

// treeDegree: small nodes, for a node is copied when it is written after
// somebody took a copy of the tree.
const treeDegree = 16

func newRows() rows {
	return rows{
		tree:  btree.NewBTreeGOptions(before, btree.Options{Degree: treeDegree, NoLocks: true}),
		byKey: make(map[string]*stored),
	}
}

func before(a, b item) bool {
	if a.prefix != b.prefix {
		return a.prefix < b.prefix
	}
	return a.key < b.key
}

// prefixOf is the order of keys as far as eight bytes tell it: a key that ends before has zeros there.
func prefixOf(key string) uint64 {
	if len(key) >= 8 {
		return binary.BigEndian.Uint64(asBytes(key[:8]))
	}
	var b [8]byte
	copy(b[:], key)
	return binary.BigEndian.Uint64(b[:])
}

func (r *rows) len() int { return r.tree.Len() }

// copy is cheap: the copies share what neither changes afterwards. The copy is only to be read.
func (r *rows) copy() rows {
	r.era++
	return rows{tree: r.tree.Copy()}
}

func (r *rows) get(key string) (row, bool) {
	if r.byKey == nil {
		if e, ok := r.tree.Get(item{prefixOf(key), &stored{key: key}}); ok {
			return e.row, true
		}
		return row{}, false
	}
	if e, ok := r.byKey[key]; ok {
		return e.row, true
	}
	return row{}, false
}

// set sets a row, and returns the one that it replaces. The key may change afterwards.
func (r *rows) set(key string, to row) (row, bool) {
	e, ok := r.byKey[key]
	if ok && e.era == r.era {
		old := e.row
		e.row = to
		return old, true
	}
	var old row
	if ok {
		key, old = e.key, e.row
	} else {
		key = strings.Clone(key)
	}
	e = &stored{key: key, row: to, era: r.era}
	r.byKey[key] = e
	r.tree.Set(item{prefixOf(key), e})
	return old, ok
}

// delete takes a row out and returns it.
func (r *rows) delete(key string) (row, bool) {
	e, ok := r.byKey[key]
	if !ok {
		return row{}, false
	}
	delete(r.byKey, key)
	r.tree.Delete(item{prefixOf(key), e})
	return e.row, true
}

// walk visits all rows in order until fn says false.
func (r *rows) walk(fn func(key string, row row) bool) {
	r.tree.Scan(func(e item) bool { return fn(e.key, e.row) })
}

// rowsCursor walks rows.
type rowsCursor struct {
	it    btree.IterG[item]
	probe stored // what is sought
}

func (r *rows) cursor() rowsCursor { return rowsCursor{it: r.tree.Iter()} }

// seek goes to the first key at or after one.
func (c *rowsCursor) seek(key string) bool {
	c.probe.key = key
	ok := c.it.Seek(item{prefixOf(key), &c.probe})
	c.probe.key = "" // the caller's
	return ok
}

func (c *rowsCursor) next() bool     { return c.it.Next() }
func (c *rowsCursor) key() string    { return c.it.Item().key }
func (c *rowsCursor) prefix() uint64 { return c.it.Item().prefix }
func (c *rowsCursor) row() row       { return c.it.Item().row }
