package store

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// outgoing are the copies of states that a node sends to others' replicas: how fast they may go together, and how far each is. Part of Net.
type outgoing struct {
	limit *rate.Limiter // nil: as fast as it goes
	rate  int64         // bytes per second, 0 if there is no limit
	total atomic.Int64  // bytes of all copies

	mu    sync.Mutex
	under map[address]*sending
}

// sending is one of them.
type sending struct {
	size int64
	sent atomic.Int64
}

// copyBurst is how much goes at once: less than what would be felt by who waits for the link or the disk.
const copyBurst = 256 << 10

func newOutgoing(bytesPerSecond int64) *outgoing {
	o := &outgoing{rate: bytesPerSecond, under: map[address]*sending{}}
	if bytesPerSecond > 0 {
		o.limit = rate.NewLimiter(rate.Limit(bytesPerSecond), copyBurst)
	}
	return o
}

// time is what so many bytes may take on a link that is as slow as we put up with, others of the node's copies beside them.
func (o *outgoing) time(size int64) time.Duration {
	t := installBase + transferTime(size)
	if o.rate > 0 {
		t += time.Duration(float64(installAtOnce+seedsAtOnce) * float64(size) / float64(o.rate) * float64(time.Second))
	}
	return t
}

// begin counts and paces what is read of a copy for a replica, until end is called.
func (o *outgoing) begin(ctx context.Context, to address, size int64, body io.Reader) (r io.Reader, end func()) {
	s := &sending{size: size}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.under[to] = s
	return &pacedReader{ctx: ctx, r: body, s: s, o: o}, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.under[to] == s {
			delete(o.under, to)
		}
	}
}

// progress is how far the copy for a replica is; zeros if none is under way.
func (o *outgoing) progress(to address) (sent, size int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s := o.under[to]; s != nil {
		return s.sent.Load(), s.size
	}
	return 0, 0
}

type pacedReader struct {
	ctx context.Context
	r   io.Reader
	s   *sending
	o   *outgoing
}

func (p *pacedReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b[:min(len(b), copyBurst)])
	p.s.sent.Add(int64(n))
	p.o.total.Add(int64(n))
	if n > 0 && p.o.limit != nil {
		if late := p.o.limit.WaitN(p.ctx, n); late != nil && err == nil {
			err = late
		}
	}
	return n, err
}

// Pace waits until so many bytes of a copy may be sent beside the node's other copies.
func (n *Net) Pace(ctx context.Context, bytes int) error {
	o := n.outgoing
	o.total.Add(int64(bytes))
	for o.limit != nil && bytes > 0 {
		part := min(bytes, copyBurst)
		if err := o.limit.WaitN(ctx, part); err != nil {
			return err
		}
		bytes -= part
	}
	return nil
}

// CopiedBytes is how much of states and of slots was sent since NewNet: what copyRate bounds.
func (n *Net) CopiedBytes() int64 { return n.outgoing.total.Load() }

// CopyBytes is about how much a new replica would be sent until it has caught up, as of now: the whole log where its beginning is still there, for
// raft sends a state only where it must; else the state, and of the log what the newest snapshot does not cover. It asks nobody and does not wait.
func (s *Store) CopyBytes() int64 {
	log, err := s.LogRange()
	if err != nil {
		return s.fsm.FileBytes()
	}
	var covered uint64
	if m := s.snaps.latest(); m != nil && log.First != 1 {
		covered = m.Index
	}
	// All nodes ask, twice a second each: not counted anew while the shard rests.
	n := s.behind.Load()
	if n == nil || n.log != log || n.covered != covered {
		bytes, ok := s.logs.bytesAfter(covered)
		if !ok {
			return s.fsm.FileBytes() + s.fsm.OverlayBytes()
		}
		n = &logBytes{log, covered, bytes}
		s.behind.Store(n)
	}
	if log.First == 1 {
		return n.bytes
	}
	return s.fsm.FileBytes() + n.bytes
}

// logBytes is what the entries of a log take that no snapshot covers.
type logBytes struct {
	log     LogRange
	covered uint64
	bytes   int64
}
