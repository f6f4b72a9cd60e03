//go:build system

package chaos_test

import (
	"errors"
	"fmt"
	"time"
)

// The moments of a cut.
const (
	cutUnderLoad = iota
	cutAtStart
	cutAtStop
	cutMoments
)

var cutNames = [cutMoments]string{"under load", "at a start", "at a stop"}

// powerReport counts what a run did.
type powerReport struct {
	took time.Duration
	cuts [cutMoments]int
	// stopping: cuts at a stop that came before every node had ended.
	stopping int
	// dirty: cuts under processes that stood still with pages written and not synced.
	dirty int
	// bit: cuts that are seen to have lost bytes that were not synced, on every disk.
	bit int
	// compared are the cuts before and after which all files were read; of those, reverted had
	// lost pages of the database's files, lostPages in all.
	compared, reverted, lostPages int
	// acked writes; unanswered ones that the next start still had, or had not.
	acked, survived, vanished int64
	// checked: keys and counters that were judged after a start; reads under load.
	checked, reads int64
	starts         int
	snapshots      int           // of Raft: each cut the log
	slowest        time.Duration // start, until everything was read
}

func (r *powerReport) allCuts() (n int) {
	for _, c := range r.cuts {
		n += c
	}
	return n
}

func (r *powerReport) String() string {
	n := r.allCuts()
	return fmt.Sprintf("%d cuts in %v, %.1f a second (%d under load, %d at a start, %d at a stop and %d of these before its end); %d stood still with pages unsynced; %d of all lost unsynced bytes; of %d whose files were compared %d lost pages of the database, %d in all\n"+
		"%d writes acknowledged, none lost unless said below; of those without an answer %d survived and %d did not; %d values judged after %d starts, %d reads under load; %d times a log was cut; the slowest start took %v",
		n, r.took.Round(time.Second), float64(n)/r.took.Seconds(), r.cuts[cutUnderLoad], r.cuts[cutAtStart], r.cuts[cutAtStop], r.stopping, r.dirty, r.bit, r.compared, r.reverted, r.lostPages,
		r.acked, r.survived, r.vanished, r.checked, r.starts, r.reads, r.snapshots, r.slowest.Round(time.Millisecond))
}

func (r *powerReport) add(o *powerReport) {
	for m := range r.cuts {
		r.cuts[m] += o.cuts[m]
	}
	r.stopping += o.stopping
	r.dirty += o.dirty
	r.bit += o.bit
	r.compared += o.compared
	r.reverted += o.reverted
	r.lostPages += o.lostPages
	r.acked += o.acked
	r.survived += o.survived
	r.vanished += o.vanished
	r.checked += o.checked
	r.reads += o.reads
	r.starts += o.starts
	r.snapshots += o.snapshots
	r.slowest = max(r.slowest, o.slowest)
}

// convincing refuses a run in which little was at stake.
func (r *powerReport) convincing() error {
	const ackedPerCut = 50
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("this run shows nothing: "+format, args...))
		}
	}
	n := r.allCuts()
	check(r.acked >= int64(n*ackedPerCut), "%d writes were acknowledged before %d cuts", r.acked, n)
	// The canary is dirty for a moment only, but the kernel may write it out in that moment.
	check(r.bit >= n-n/100, "%d of %d cuts lost unsynced bytes", r.bit, n)
	check(r.reverted > 0, "none of %d compared cuts lost a page of the database", r.compared)
	check(r.vanished > 0, "no write without an answer was gone after a cut")
	check(r.checked > 0 && r.starts > 0, "%d values judged after %d starts", r.checked, r.starts)
	check(r.stopping > 0, "every cut at a stop came after its end")
	for m, c := range r.cuts {
		check(c > 0, "no cut %s", cutNames[m])
	}
	return errors.Join(errs...)
}
