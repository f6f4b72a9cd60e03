package lookahead

import "sync/atomic"

// Disk is what all walks over one file know together: whether it is in memory. Where it is, to have the system read ahead would be a call for each leaf
// and for nothing, so that begins when a walk has had to wait for the disk, and goes on for a while. Its zero value is for a file of which
// nothing is known. It is safe for concurrent use.
type Disk struct {
	left atomic.Int64 // leaves for which is read ahead
}

// readAhead is for how many leaves walks read ahead after each wait: 16 MiB.
const readAhead = 4096

// diskReads decides for one walk when to have the system read ahead.
type diskReads struct {
	disk   *Disk
	missed missCount // when it was looked at
	look   int       // leaves until it is looked at
	asked  bool      // the leaves of the present branch page have been asked for
}

// missCount is how many pages a thread has waited for. A goroutine changes threads now and then, and each has its own count.
type missCount struct {
	thread int
	n      int64
}

// lookEvery: so many leaves are read one by one before a walk notices, a hundred microseconds each. To look costs two
// calls into the system.
const lookEvery = 32

func newDiskReads(d *Disk) diskReads { return diskReads{disk: d, missed: missed(), look: lookEvery} }

// due is asked for each leaf, and says whether to read ahead.
func (d *diskReads) due() bool {
	if d.look--; d.look <= 0 {
		d.look = lookEvery
		now := missed()
		if now.thread == d.missed.thread && now.n != d.missed.n {
			d.disk.left.Store(readAhead)
		}
		d.missed = now
	}
	return d.disk.left.Load() > 0 && d.disk.left.Add(-1) >= 0
}
