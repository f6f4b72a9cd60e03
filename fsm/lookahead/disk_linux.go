package lookahead

import "syscall"

const rusageThread = 1 // RUSAGE_THREAD of getrusage(2)

// missed counts the pages that this thread has waited for: that were not in memory when it touched them.
var missed = func() missCount {
	var u syscall.Rusage
	if syscall.Getrusage(rusageThread, &u) != nil {
		return missCount{}
	}
	return missCount{syscall.Gettid(), u.Majflt}
}

// willNeed has the system read pages, and does not wait for them.
var willNeed = func(addr, size uintptr) {
	// The address is of a mapped file, no object of Go's that could move.
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, addr, size, syscall.MADV_WILLNEED)
}
