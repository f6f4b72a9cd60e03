package transport

import (
	"sync"
	"time"
)

// clock measures microseconds since a transport began, on the monotonic clock.
type clock struct{ began time.Time }

func (c clock) now() int64           { return time.Since(c.began).Microseconds() }
func (c clock) at(t time.Time) int64 { return t.Sub(c.began).Microseconds() }
func (c clock) time(micros int64) time.Time {
	return c.began.Add(time.Duration(micros) * time.Microsecond)
}

// offset translates a peer's clock to ours without trusting wall clocks. Every
// frame carries when it was sent; the least difference to when it arrived is
// the offset of the clocks plus the quickest way here. A frame that waited (in
// a socket while this process was stopped, behind a full buffer) shows as late
// by as much, so a request is not dispatched after its caller gave up, whenever
// it is read.
//
// The two clocks drift, so the least difference is taken over the last two
// windows only. A window changes when a frame arrives, never by time alone:
// the first frame after a long stop must not set the measure for itself.
type offset struct {
	mu            sync.Mutex
	last, current int64
	since         int64 // begin of the current window, our clock
}

const offsetWindow = 10 * 1000 * 1000 // µs

func newOffset(theirs, ours int64) *offset {
	d := ours - theirs
	return &offset{last: d, current: d, since: ours}
}

// translate notes that a frame of time sent (theirs) arrived now (ours) and
// returns deadline (theirs) on our clock.
func (o *offset) translate(sent, now, deadline int64) int64 {
	d := now - sent
	o.mu.Lock()
	defer o.mu.Unlock()
	if now-o.since >= offsetWindow {
		o.last, o.current, o.since = o.current, d, now
	} else {
		o.current = min(o.current, d)
	}
	return deadline + min(o.last, o.current)
}
