package lookahead

// diskReads decides when a walk has the system read ahead. Where all is in memory that would be a call for each page and for nothing, so it
// begins when the walk has had to wait for the disk, and goes on for a while.
type diskReads struct {
	missed missCount // when it was looked at
	left   int       // leaves for which is read ahead
	look   int       // leaves until the count is looked at
	fresh  bool      // the present branch page's leaves have not been asked for
}

// missCount is how many reads a thread has waited for. A goroutine changes threads now and then, and each has its own count.
type missCount struct {
	thread int
	n      int64
}

const (
	// lookEvery: so many leaves are read one by one before the walk notices, a hundred microseconds each.
	lookEvery = 32
	// readAhead is for how many leaves is read ahead after each such read: 4 MiB, some eight branch pages.
	readAhead = 1024
)

func newDiskReads() diskReads { return diskReads{missed: missed(), look: lookEvery} }

// branch tells that the walk has come to another branch page.
func (d *diskReads) branch() { d.fresh = true }

// due says of each leaf whether to read ahead.
func (d *diskReads) due() bool {
	d.left--
	if d.look--; d.look <= 0 {
		d.look = lookEvery
		now := missed()
		if now.thread == d.missed.thread && now.n != d.missed.n {
			d.fresh = d.fresh || d.left <= 0
			d.left = readAhead
		}
		d.missed = now
	}
	return d.left > 0
}

// begins says once for each branch page that its leaves are to be asked for.
func (d *diskReads) begins() bool {
	was := d.fresh
	d.fresh = false
	return was
}
