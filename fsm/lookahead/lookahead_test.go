package lookahead

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"

	bolt "go.etcd.io/bbolt"

	"github.com/abacusdb/abacus/fsm/guardpage"
)

// tree makes a file with a bucket of so many keys, some of them with values that take pages of their own, and returns what a walk needs.
func tree(t testing.TB, keys int) (*bolt.Tx, *bolt.Bucket) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bolt.Options{NoSync: true})
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	name := []byte("bucket")
	for i := 0; i < keys; i += 1000 { // in several transactions, so that leaves do not lie in order
		must(t, db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(name)
			for j := i; j < min(i+1000, keys) && err == nil; j++ {
				size := 100
				if j%500 == 0 {
					size = 20_000
				}
				err = b.Put(fmt.Appendf(nil, "k%09d", j*7919%keys), make([]byte, size))
			}
			return err
		}))
	}
	tx, err := db.Begin(false)
	must(t, err)
	t.Cleanup(func() { must(t, tx.Rollback()) })
	return tx, tx.Bucket(name)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func leavesOf(tx *bolt.Tx, b *bolt.Bucket) Leaves {
	info := tx.DB().Info()
	return New(new(Disk), info.Data, tx.Size()/int64(info.PageSize), info.PageSize, uint64(b.Root()))
}

// Whichever leaf a walk comes to, it has been asked for, but for the first under each branch page.
func TestEachLeafIsAskedFor(t *testing.T) {
	tx, b := tree(t, 50_000)
	l := leavesOf(tx, b)
	var asked, begin uintptr
	leaves, unknown := 0, 0
	c := b.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		l.At(k)
		if at := uintptr(unsafe.Pointer(unsafe.SliceData(k))); at < l.begin || at >= l.end {
			t.Fatalf("key %s is at %x, in the leaf at %x..%x", k, at, l.begin, l.end)
		}
		if len(v) > 10_000 && len(l.children) > 0 && uintptr(unsafe.Pointer(unsafe.SliceData(v))) >= l.end {
			t.Fatalf("value of %s is behind its leaf", k)
		}
		if l.begin != begin {
			if leaves++; asked == 0 {
				unknown++
			} else if asked != l.begin {
				t.Fatalf("leaf %d is at %x, asked was for %x", leaves, l.begin, asked)
			}
			begin = l.begin
		}
		asked = l.next()
	}
	s := b.Stats()
	if leaves < s.LeafPageN || unknown > s.BranchPageN+2 || s.BranchPageN < 5 {
		t.Errorf("%d leaves, %d not asked for; the tree has %d under %d branch pages", leaves, unknown, s.LeafPageN, s.BranchPageN)
	}
}

// A walk may go anywhere, and over trees that have no branch page or no page at all.
func TestAnyOrder(t *testing.T) {
	tx, b := tree(t, 20_000)
	l := leavesOf(tx, b)
	c := b.Cursor()
	for i := range 5000 {
		k, _ := c.Seek(fmt.Appendf(nil, "k%09d", i*7907%20_000))
		l.At(k)
		if at := uintptr(unsafe.Pointer(unsafe.SliceData(k))); at < l.begin || at >= l.end || i > 0 && l.children == nil {
			t.Fatalf("key %s is at %x, in the leaf at %x..%x, %d children", k, at, l.begin, l.end, len(l.children))
		}
	}
	l.At([]byte("in no file"))

	tx, b = tree(t, 1) // the root is a leaf
	for _, root := range []uint64{uint64(b.Root()), 0} {
		l := leavesOf(tx, b)
		l.root = root
		k, _ := b.Cursor().First()
		l.At(k)
		l.begin, l.end = 1, 1 // as if it came from another leaf
		l.At(k)
		if l.next() != 0 {
			t.Error("a leaf behind the only one")
		}
	}
	new(Leaves).At([]byte("nothing is known"))
}

// Walks over a file have the system read ahead after one of them has waited for the disk, what lies behind the present leaf under its branch
// page, and then for a while; and not otherwise.
func TestReadsAheadWhereItWaited(t *testing.T) {
	tx, b := tree(t, 60_000)
	info := tx.DB().Info()
	count, asked, thread := int64(0), map[uintptr]int{}, 1
	defer func(m func() missCount, w func(uintptr, uintptr)) { missed, willNeed = m, w }(missed, willNeed)
	missed = func() missCount { return missCount{thread, count} }
	willNeed = func(addr, size uintptr) {
		for p := addr; p < addr+size; p += uintptr(info.PageSize) {
			asked[p]++
		}
	}

	disk := new(Disk)
	walk := func(touch func(leaf int)) (leaves []uintptr) {
		clear(asked)
		l := leavesOf(tx, b)
		l.reads = newDiskReads(disk)
		c := b.Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			if l.At(k); len(leaves) == 0 || leaves[len(leaves)-1] != l.begin {
				touch(len(leaves))
				leaves = append(leaves, l.begin)
			}
		}
		return leaves
	}
	if walk(func(int) {}); len(asked) != 0 {
		t.Errorf("%d pages asked for where nothing was waited for", len(asked))
	}
	// A goroutine that changes its thread has not waited for anything.
	if walk(func(leaf int) { thread, count = leaf, int64(leaf) }); len(asked) != 0 {
		t.Errorf("%d pages asked for by who only changed threads", len(asked))
	}

	thread = 1
	got := func(leaves []uintptr) (which []int) {
		for i, leaf := range leaves {
			if n := asked[leaf]; n > 1 {
				t.Fatalf("leaf %d is asked for %d times", i, n)
			} else if n == 1 {
				which = append(which, i)
			}
		}
		return which
	}
	leaves := walk(func(leaf int) {
		if leaf == 10 {
			count++
		}
	})
	branches := b.Stats().BranchPageN
	// All behind where it was noticed, but the first of each branch page.
	if got := got(leaves); len(got) < len(leaves)-branches-lookEvery-10 || got[0] <= 10 || got[0] > 10+lookEvery+1 {
		t.Errorf("of %d leaves under %d branch pages, %d were asked for, from %d on", len(leaves), branches, len(got), got[0])
	}
	// The pages behind a leaf's first are its values'.
	if large := len(asked) - len(got(leaves)); large < 5 {
		t.Errorf("%d pages of large values asked for", large)
	}
	if left := disk.left.Load(); left > readAhead-int64(len(leaves))+lookEvery+10 {
		t.Errorf("to be read ahead are %d more leaves, after %d", left, len(leaves))
	}
	// The next walk over this file reads ahead from its second leaf on, until that is used up.
	disk.left.Store(100)
	leaves = walk(func(int) {})
	if got := got(leaves); got[0] > 2 || got[len(got)-1] < 100 || got[len(got)-1] > 1000 {
		t.Errorf("the next walk asked for leaves %d to %d", got[0], got[len(got)-1])
	}
	if walk(func(int) {}); len(asked) != 0 {
		t.Errorf("%d pages asked for long after a wait", len(asked))
	}
}

// Pages are read as they are in the file, damage and all: no address outside of it is touched, and every walk ends.
func FuzzDamaged(f *testing.F) {
	tx, b := tree(f, 5_000)
	info := tx.DB().Info()
	file, err := os.ReadFile(tx.DB().Path())
	must(f, err)
	file = file[:tx.Size()]
	branches := []int{int(b.Root()) * info.PageSize} // where they lie, the root first
	for i := range int(binary.LittleEndian.Uint16(file[branches[0]+10:])) {
		at := int(binary.LittleEndian.Uint64(file[branches[0]+16+16*i+8:])) * info.PageSize
		if binary.LittleEndian.Uint16(file[at+8:]) == isBranch {
			branches = append(branches, at)
		}
	}
	var keys []int
	c := b.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		keys = append(keys, int(uintptr(unsafe.Pointer(unsafe.SliceData(k)))-info.Data))
	}
	for page := range uint16(2) {
		f.Add(page, uint16(10), uint64(0xffff), uint16(0))         // count
		f.Add(page, uint16(10), uint64(0xffff_ffff), uint16(0))    // and overflow
		f.Add(page, uint16(12), uint64(0x00ff_ffff), uint16(3))    // overflow
		f.Add(page, uint16(16+16), uint64(0xffff_fff0), uint16(0)) // pos
		f.Add(page, uint16(16+20), uint64(0xffff_fff0), uint16(0)) // keySize
		f.Add(page, uint16(16+8), uint64(1)<<40, uint16(0))        // child
		f.Add(page, uint16(16+16+8), uint64(1)<<40, uint16(0))     // the next one
	}
	guarded := guardpage.Bytes(f, len(file))
	f.Fuzz(func(t *testing.T, page, at uint16, with uint64, start uint16) {
		copy(guarded, file)
		where := branches[int(page)%len(branches)] + int(at)%(info.PageSize-8)
		binary.LittleEndian.PutUint64(guarded[where:], binary.LittleEndian.Uint64(guarded[where:])^with)
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		l := New(new(Disk), uintptr(unsafe.Pointer(unsafe.SliceData(guarded))), int64(len(file)/info.PageSize), info.PageSize, uint64(b.Root()))
		from := int(start) % len(keys)
		for _, k := range keys[from:min(from+1000, len(keys))] {
			l.At(guarded[k : k+10 : k+10])
		}
		if !strings.HasPrefix(string(guarded[keys[0]:]), "k0") {
			t.Fatal("the file was written to")
		}
	})
}

// The same by hand, with the root as the last page, behind which nothing is.
func TestDamagedRoot(t *testing.T) {
	const size = 4096
	file := guardpage.Bytes(t, 2*size)
	key := file[100:110:110]
	copy(key, "k000000001")
	le := binary.LittleEndian
	for name, damage := range map[string]func(root []byte){
		"count":              func(root []byte) { le.PutUint16(root[10:], 0xffff) },
		"count and overflow": func(root []byte) { le.PutUint16(root[10:], 0xffff); le.PutUint32(root[12:], 100) },
		"position":           func(root []byte) { le.PutUint32(root[16:], size) },
		"size of a key":      func(root []byte) { le.PutUint32(root[20:], 1<<20) },
		"a child":            func(root []byte) { le.PutUint64(root[24:], 2) },
		"a loop":             func(root []byte) { le.PutUint64(root[24:], 1) },
		"no branch":          func(root []byte) { le.PutUint16(root[8:], 2) },
		"no children":        func(root []byte) { le.PutUint16(root[10:], 0) },
	} {
		root := file[size:]
		clear(root)
		le.PutUint16(root[8:], isBranch)
		le.PutUint16(root[10:], 1) // count
		le.PutUint32(root[16:], 16)
		le.PutUint32(root[20:], 4)
		copy(root[32:], "k000") // the least key of page 0
		damage(root)
		func() {
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("%s: %v", name, p)
				}
			}()
			l := New(new(Disk), uintptr(unsafe.Pointer(unsafe.SliceData(file))), 2, size, 1)
			l.begin, l.end = 1, 1 // not the walk's first leaf
			if l.At(key); l.children != nil {
				t.Errorf("%s: believed", name)
			}
		}()
	}
}
