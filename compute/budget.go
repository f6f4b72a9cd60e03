package compute

import (
	"math"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/abacusdb/abacus/transport"
)

const (
	// Group tables and the like may take an eighth of the process's memory limit where tasks make them, and another where masters merge
	// them: a quarter in all. The two do not share one budget, for masters wait for tasks: full of masters it would wait for ever.
	budgetShare = 8
	// noLimit stands for the memory limit where there is none.
	noLimit = 2 << 30
	// memoryStep is what a lease grows by at least.
	memoryStep = 1 << 20
)

// budget bounds what several hold in memory together. Nobody waits in it: who does not fit is refused with CodeBusy and is tried again, here or
// on another node. The one that has been there longest always fits, whatever it needs: so one gets done at any time, and what is too
// large even alone is told by the bound of the table itself (fold.TooLargeError), on every node alike.
type budget struct {
	limit func() int64 // bytes; it changes with the process's memory limit

	mu      sync.Mutex
	used    int64
	leases  []*lease // the oldest first
	refused uint64
}

// lease is what one task or one master's part holds. One goroutine uses it.
type lease struct {
	budget *budget
	bytes  int64
}

func (b *budget) open() *lease {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := &lease{budget: b}
	b.leases = append(b.leases, l)
	return l
}

// grow makes the lease one of so many bytes, if it is less. CodeBusy: they are not there now.
func (l *lease) grow(bytes int64) error {
	if bytes <= l.bytes {
		return nil
	}
	bytes = (bytes + memoryStep - 1) / memoryStep * memoryStep
	b := l.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	used, limit := b.used+bytes-l.bytes, b.limit()
	if used > limit && b.leases[0] != l {
		b.refused++
		return transport.Errorf(transport.CodeBusy, "jobs hold %d of %d bytes that they may have on this node together, and this one needs %d", b.used, limit, bytes)
	}
	b.used, l.bytes = used, bytes
	return nil
}

func (l *lease) close() {
	b := l.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= l.bytes
	i := slices.Index(b.leases, l)
	b.leases = slices.Delete(b.leases, i, i+1)
}

func (b *budget) counts() (used int64, refused uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.refused
}

// memoryBudget is what may be held on one of the two sides.
func memoryBudget() int64 {
	limit := debug.SetMemoryLimit(-1) // only asks
	if limit == math.MaxInt64 {
		limit = noLimit
	}
	return limit / budgetShare
}

// heapBytes is about what a byte that a table says it takes is in memory: its groups are entries of a map, each with a state of its own.
const heapBytes = 4

// memory is about what p takes in memory. What is not a table is small, whatever it has read.
func (p *Partial) memory() int64 {
	if p.table == nil {
		return 0
	}
	return heapBytes * int64(p.table.Bytes())
}
