package front

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestTerm shows that windows share a context as long as it leaves them seven eighths of their time, that none gets more
// than its pipeline has left, and that nobody is left with a context that is over.
func TestTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent, stop := context.WithCancel(t.Context())
		const timeout = 8 * time.Second
		var m term
		var p pace
		p.begin(timeout)
		first := m.until(parent, &p)
		if ends, _ := first.Deadline(); ends != p.deadline {
			t.Errorf("the first ends at %v, want %v", ends, p.deadline)
		}
		time.Sleep(time.Second)
		p.begin(timeout)
		if m.until(parent, &p) != first {
			t.Error("a new context after an eighth of the time-out")
		}
		time.Sleep(time.Millisecond)
		p.begin(timeout)
		second := m.until(parent, &p)
		if ends, _ := second.Deadline(); ends != p.deadline || first.Err() == nil {
			t.Errorf("more than an eighth later it ends at %v, want %v; the one before: %v", ends, p.deadline, first.Err())
		}
		time.Sleep(timeout - time.Second)
		p.begin(timeout)
		p.done(true) // as much as it took, it gets no more
		time.Sleep(timeout)
		if last := m.until(parent, &p); last.Err() == nil {
			t.Error("a pipeline that missed its deadline has time")
		}
		p.begin(timeout)
		fresh := m.until(parent, &p)
		if fresh.Err() != nil {
			t.Error("the next pipeline has none")
		}
		m.end()
		if fresh.Err() == nil || m.until(parent, &p).Err() != nil {
			t.Error("end does not end it, or is for good")
		}
		stop()
		if m.until(parent, &p).Err() == nil {
			t.Error("a server that stops gives time")
		}
		m.end()
	})
}
