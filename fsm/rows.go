package fsm

import (
	"encoding/binary"

	"github.com/tidwall/btree"
)

// rows is one tree of a layer in memory, in the order of its keys.
//
// Each item has the beginning of its key with it: a search compares the keys of some ten items, and would
// have to wait for the memory of each. A key begins with its slot, so that hardly two begin alike.
type rows struct{ tree *btree.BTreeG[item] }

type item struct {
	prefix uint64
	key    string
	row    row
}

// treeDegree: small nodes, for a node is copied when it is written after
// somebody took a copy of the tree.
const treeDegree = 16

func newRows() rows {
	return rows{btree.NewBTreeGOptions(before, btree.Options{Degree: treeDegree, NoLocks: true})}
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

func (r rows) len() int { return r.tree.Len() }

// copy is cheap: the copies share what neither changes afterwards.
func (r rows) copy() rows { return rows{r.tree.Copy()} }

func (r rows) get(key string) (row, bool) {
	e, ok := r.tree.Get(item{prefix: prefixOf(key), key: key})
	return e.row, ok
}

// set sets a row, and returns the one that it replaces.
func (r rows) set(key string, to row) (row, bool) {
	e, ok := r.tree.Set(item{prefixOf(key), key, to})
	return e.row, ok
}

// delete takes a row out and returns it.
func (r rows) delete(key string) (row, bool) {
	e, ok := r.tree.Delete(item{prefix: prefixOf(key), key: key})
	return e.row, ok
}

// walk visits all rows in order until fn says false.
func (r rows) walk(fn func(key string, row row) bool) {
	r.tree.Scan(func(e item) bool { return fn(e.key, e.row) })
}

// rowsCursor walks rows.
type rowsCursor struct{ it btree.IterG[item] }

func (r rows) cursor() rowsCursor { return rowsCursor{r.tree.Iter()} }

// seek goes to the first key at or after one.
func (c *rowsCursor) seek(key string) bool {
	return c.it.Seek(item{prefix: prefixOf(key), key: key})
}

func (c *rowsCursor) next() bool  { return c.it.Next() }
func (c *rowsCursor) key() string { return c.it.Item().key }
func (c *rowsCursor) row() row    { return c.it.Item().row }
