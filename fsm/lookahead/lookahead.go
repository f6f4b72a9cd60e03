// Package lookahead has the pages that a walk over a state file comes to next on their way before it is there: from the disk to
// memory, and from memory to the processor.
//
// bbolt asks for nothing in advance, and tells the system that its file is read at random. A walk so waits once for each leaf of a
// file that is in memory (half a microsecond, as long as it has work for two records), and for the disk once for each page that is not.
//
// All of it is hints. bbolt reads every page itself and is who judges it: what does not look like a page here is passed over.
package lookahead

import (
	"bytes"
	"unsafe"
)

// Leaves knows which leaf of a tree follows which, by the branch pages above them. It belongs to one goroutine, and is
// good for as long as its transaction. Its zero value knows nothing and does nothing.
//
// It reads the file where bbolt has mapped it, so what can be said of the pages that bbolt reads holds for it: a fault is a panic
// under [runtime/debug.SetPanicOnFault].
type Leaves struct {
	base     uintptr // where the file is mapped
	pages    uint64  // that the transaction may see
	pageSize uintptr
	root     uint64

	// The leaf that the walk is in: the pages begin..end.
	begin, end uintptr
	// children are of the branch page above it, the present leaf's is children[at]; nil when that is not known.
	children []branch
	at       int

	reads diskReads
}

// What the file consists of, as bbolt's internal/common has it since its first version.
type (
	page struct {
		id       uint64
		flags    uint16
		count    uint16
		overflow uint32 // pages that belong to this one, behind it
	}
	// branch is one of page.count that follow the page: the least key of a child, pos bytes from here, and where it is.
	branch struct {
		pos, keySize uint32
		child        uint64
	}
)

const (
	isBranch = 1
	maxDepth = 32 // more than a tree of 2^64 pages has
	// pageLines is how much of a leaf is asked for: its table and its first record. From there on the processor sees a
	// stream, and is quick enough; 16 or all 64 are no better (BenchmarkScanSum).
	pageLines = 8
)

// New looks ahead in the tree whose root is at a page, in a file of so many pages that is mapped at an address. A tree without pages of its own, as a
// small bucket is that lies within another, has root 0, and nothing to look for.
func New(disk *Disk, base uintptr, pages int64, pageSize int, root uint64) Leaves {
	return Leaves{base: base, pages: uint64(pages), pageSize: uintptr(pageSize), root: root, reads: newDiskReads(disk)}
}

// At tells that the walk has come to a key, which lies in the file. It is meant to be called for each: most are in the leaf of the one before.
func (l *Leaves) At(key []byte) {
	k := uintptr(unsafe.Pointer(unsafe.SliceData(key)))
	if k-l.begin < l.end-l.begin {
		return
	}
	l.enter(key, k)
}

// enter goes on to the leaf of a key, and asks for the one behind it.
func (l *Leaves) enter(key []byte, k uintptr) {
	if k-l.base >= uintptr(l.pages)*l.pageSize {
		return // not in the file
	}
	first := l.end == 0
	from := l.file(key, k)
	if l.at++; !l.holds(from, k) {
		l.begin = k - (k-l.base)%l.pageSize
		l.end = l.begin + l.pageSize
		if l.children = nil; first { // a look at one key ends here, mostly
			return
		}
		l.descend(from, key)
		if !l.holds(from, k) {
			l.children = nil
			return
		}
		l.reads.asked = false
	}
	if l.reads.due() {
		l.fetch()
	}
	if next := l.next(); next != 0 {
		prefetch(next, pageLines)
	}
}

// next is where the leaf behind the present one lies, 0 if that is not known.
func (l *Leaves) next() uintptr {
	if i := l.at + 1; i < len(l.children) && l.children[i].child < l.pages {
		return l.base + uintptr(l.children[i].child)*l.pageSize
	}
	return 0
}

// fetch has the system read what follows in this leaf and under this branch page.
func (l *Leaves) fetch() {
	if l.begin+l.pageSize < l.end {
		willNeed(l.begin+l.pageSize, l.end-l.begin-l.pageSize)
	}
	if l.reads.asked {
		return
	}
	l.reads.asked = true
	for i := l.at + 1; i < len(l.children); i++ {
		if c := l.children[i].child; c < l.pages {
			willNeed(l.base+uintptr(c)*l.pageSize, l.pageSize)
		}
	}
}

// inFile makes pointers of what is a place in the file.
type inFile struct {
	key unsafe.Pointer
	at  uintptr // where key points
}

func (l *Leaves) file(key []byte, k uintptr) inFile {
	return inFile{unsafe.Pointer(unsafe.SliceData(key)), k}
}

// page is nil if there is no such page.
func (l *Leaves) page(from inFile, id uint64) *page {
	if id >= l.pages {
		return nil
	}
	p := (*page)(unsafe.Add(from.key, int(l.base+uintptr(id)*l.pageSize-from.at)))
	if uint64(p.overflow) >= l.pages-id {
		return nil
	}
	return p
}

// holds says whether children[at] is the leaf that has an address in it, and notes where it lies.
func (l *Leaves) holds(from inFile, k uintptr) bool {
	if l.at >= len(l.children) {
		return false
	}
	id := l.children[l.at].child
	begin := l.base + uintptr(id)*l.pageSize
	if id >= l.pages || k < begin { // seen without a look at a page that may be on the disk
		return false
	}
	p := l.page(from, id)
	if p == nil {
		return false
	}
	end := begin + l.pageSize*(1+uintptr(p.overflow))
	if k >= end {
		return false
	}
	l.begin, l.end = begin, end
	return true
}

// descend looks for the branch page above the leaf of a key.
func (l *Leaves) descend(from inFile, key []byte) {
	id := l.root
	for range maxDepth {
		p := l.page(from, id)
		if p == nil || p.flags != isBranch {
			return
		}
		size := l.pageSize * (1 + uintptr(p.overflow))
		if unsafe.Sizeof(page{})+uintptr(p.count)*unsafe.Sizeof(branch{}) > size {
			return
		}
		children := unsafe.Slice((*branch)(unsafe.Add(unsafe.Pointer(p), unsafe.Sizeof(page{}))), int(p.count))
		// The last that begins at or before the key.
		lo, hi := 0, len(children)
		for lo < hi {
			mid := int(uint(lo+hi) / 2)
			c := &children[mid]
			if at := unsafe.Sizeof(page{}) + uintptr(mid)*unsafe.Sizeof(branch{}); uint64(at)+uint64(c.pos)+uint64(c.keySize) > uint64(size) {
				return
			}
			if least := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(c), c.pos)), c.keySize); bytes.Compare(least, key) <= 0 {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		if lo == 0 {
			return
		}
		l.children, l.at = children, lo-1
		id = children[lo-1].child
	}
}
