package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"
)

// lane sends to one peer on one lane. Callers append whole frames to the
// outbox; run sends whatever has gathered in one write. Who finds the link idle
// writes without run. While there is no connection the outbox waits for run to make one.
type lane struct {
	t     *TCP
	to    string
	lane  Lane
	limit int // of a frame
	queue int // of the outbox
	out   outbox

	// Guarded by out.mu.
	conn    *peerConn        // nil while there is none
	pending map[uint64]*call // sent or in the outbox, unanswered
	lastID  uint64
	refusal *Error    // why the last attempt to connect failed ...
	until   time.Time // ... and until when calls fail with it at once
	backoff time.Duration
	closed  bool
	// renewing: run waits for a moment without a call under way.
	renewing bool
}

func newLane(t *TCP, to string, ln Lane) *lane {
	l := &lane{t: t, to: to, lane: ln, limit: t.cfg.MaxFrame, queue: maxQueueBytes, pending: make(map[uint64]*call)}
	if ln == LaneControl {
		l.limit, l.queue = maxControlFrame, maxControlQueue
	}
	l.out.wake = make(chan struct{}, 1)
	return l
}

// call is a request of ours under way. A call is finished once, by whoever
// takes it out of lane.pending.
type call struct {
	// done is told of the end of a Go; timer ends it at its deadline.
	done  func([]byte, error)
	timer *time.Timer
	// wake is sent to at the end of a Call, which reuses it; then resp and err are set.
	wake chan struct{}
	resp []byte
	err  error

	id   uint64
	gen  uint64 // the outbox it went into
	off  int    // where in that outbox
	size int    // of its frame
}

var waitPool = sync.Pool{New: func() any { return &call{wake: make(chan struct{}, 1)} }}

func (c *call) finish(resp []byte, err error) {
	if c.done != nil {
		c.timer.Stop()
		c.done(resp, err)
		return
	}
	c.resp, c.err = resp, err
	c.wake <- struct{}{}
}

// enqueue puts a request in the outbox, or says why not.
func (l *lane) enqueue(ctx context.Context, c *call, deadline time.Time, m Method, req []byte) error {
	if len(req) > l.limit {
		return Errorf(CodeTooLarge, "request of %d bytes, limit %d", len(req), l.limit)
	}
	h := header{typ: frameRequest, number: uint16(m), deadline: l.t.clock.at(deadline)}
	h.describe(req) // outside the lock: it reads the whole body
	conn, b, err := l.put(ctx, c, &h, deadline, req)
	if b != nil {
		l.t.stats.writes.Add(1)
		if l.out.write(conn, b) != nil {
			conn.Close() // the loops end the link, and with it the call
		}
	}
	return err
}

// put puts a request in the outbox. If nothing else is under way it returns what the caller
// is to write itself.
func (l *lane) put(ctx context.Context, c *call, h *header, deadline time.Time, req []byte) (conn *peerConn, direct []byte, err error) {
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, nil, Errorf(CodeTimeout, "call %s: %v", l.to, context.Cause(ctx))
	case l.closed:
		return nil, nil, Errorf(CodeClosed, "this node's transport is closed")
	case l.refusal != nil && time.Now().Before(l.until):
		return nil, nil, l.refusal
	case len(l.out.buf) > 0 && len(l.out.buf)+len(req) > l.queue:
		return nil, nil, Errorf(CodeUnavailable, "queue to %s is full", l.to)
	}
	l.lastID++
	h.id, h.sent = l.lastID, l.t.clock.now()
	c.id, c.gen, c.off, c.size = h.id, l.out.gen, len(l.out.buf), headerSize+len(req)
	l.out.buf = appendFrame(l.out.buf, h, req)
	l.pending[c.id] = c
	if c.done != nil {
		c.timer = time.AfterFunc(time.Until(deadline), func() { l.abandon(c, context.DeadlineExceeded, false) })
	}
	l.t.stats.sent.Add(1)
	if len(l.pending) > 1 { // who else is about to send shares the write
		l.out.signal()
		return nil, nil, nil
	}
	return l.conn, l.out.begin(l.conn), nil
}

// abandon ends the wait for a call whose caller gave up or whose deadline passed. A request that is
// still in the outbox is taken back, which makes its fate certain; of one that was given up early the peer is told.
func (l *lane) abandon(c *call, why error, early bool) {
	l.out.mu.Lock()
	if l.pending[c.id] != c {
		l.out.mu.Unlock()
		return
	}
	delete(l.pending, c.id)
	code := CodeLinkLost
	if c.gen == l.out.gen {
		code = CodeTimeout
		if c.off+c.size == len(l.out.buf) {
			l.out.buf = l.out.buf[:c.off]
		} else {
			voidFrame(l.out.buf[c.off:])
		}
	} else if early {
		// A deadline travels with the request; giving up early must be told.
		h := header{typ: frameCancel, id: c.id, sent: l.t.clock.now()}
		l.out.buf = appendFrame(l.out.buf, &h, nil)
		l.out.signal()
	}
	l.out.mu.Unlock()
	c.finish(nil, Errorf(code, "call %s: %v", l.to, why))
}

// voidFrame makes the receiver skip a frame that is already encoded.
func voidFrame(frame []byte) {
	frame[4] = frameVoid
	binary.BigEndian.PutUint32(frame[36:], crc32.Checksum(frame[:36], castagnoli))
}

// run connects when there is something to send, and sends, until Close.
func (l *lane) run() {
	ctx := l.t.ctx
	var broke time.Time // when a link just did: is the peer's process still there?
	for {
		if broke.IsZero() {
			select {
			case <-ctx.Done():
				l.fail(true, nil, nil)
				return
			case <-l.out.wake:
			}
			if l.out.empty() {
				continue
			}
		}
		conn, err := l.connect(ctx)
		if err != nil {
			l.refuse(err)
			switch {
			case broke.IsZero():
			case refused(err):
				l.t.ended(l.to)
				broke = time.Time{}
			case time.Since(broke) > endingTime:
				broke = time.Time{}
			default:
				select {
				case <-ctx.Done():
					broke = time.Time{} // we are the one that ends
				case <-time.After(minBackoff):
				}
			}
			continue
		}
		l.connected()
		err = l.serve(ctx, conn)
		if errors.Is(err, errRenewed) {
			l.fail(false, nil, Errorf(CodeLinkLost, "link to %s: %v", l.to, err))
			broke = time.Time{}
			l.out.signal() // what waits goes over the next
			continue
		}
		if broke = (time.Time{}); ctx.Err() == nil && l.lane == LaneControl { // one lane tells it for all
			broke = time.Now()
		}
		l.t.log.Debug("link lost", "peer", l.to, "lane", l.lane, "err", err)
		l.fail(false,
			Errorf(CodeUnavailable, "link to %s was lost before the request was sent", l.to),
			Errorf(CodeLinkLost, "link to %s: %v", l.to, err))
	}
}

// endingTime is how long a process may take to end: its links break before it stops to listen.
const endingTime = time.Second

// refused says whether nobody listens at an address: the machine is there, and says so.
func refused(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.refused
}

// ended tells that a peer's process has ended.
func (t *TCP) ended(peer string) {
	t.log.Info("peer's process has ended", "peer", peer)
	for _, f := range t.handlers.Load().ended {
		f(peer)
	}
}

func (l *lane) connect(ctx context.Context) (*peerConn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.t.cfg.DialTimeout)
	defer cancel()
	return l.t.open(ctx, hello{kind: kindLane, lane: l.lane, to: l.to}, l.t.dialer(l.to))
}

// refuse fails everything that waits, and for a while what follows.
func (l *lane) refuse(err error) {
	refusal := AsError(err)
	l.t.stats.linkErrors.Add(1)
	l.out.mu.Lock()
	known := l.refusal != nil && l.refusal.Code == refusal.Code && l.refusal.untrusted == refusal.untrusted
	l.backoff = min(max(2*l.backoff, minBackoff), maxBackoff)
	// Jitter, so that nodes that lost a peer together do not return together.
	l.until = time.Now().Add(l.backoff/2 + rand.N(l.backoff/2))
	l.refusal = refusal
	l.out.mu.Unlock()
	if !known && (refusal.Code == CodeWrongCluster || refusal.Code == CodeWrongNode || refusal.Code == CodeWrongEra || refusal.untrusted) {
		l.t.log.Warn("peer refused the link", "peer", l.to, "lane", l.lane, "err", refusal)
	} else if !known {
		l.t.log.Debug("peer not reached", "peer", l.to, "lane", l.lane, "err", refusal)
	}
	l.fail(false, refusal, refusal)
}

func (l *lane) connected() {
	l.t.stats.links.Add(1)
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	l.refusal, l.backoff = nil, 0
}

// fail ends all calls: those in the outbox with unsent, the others with sent. Without unsent, those in the outbox stay there.
func (l *lane) fail(closed bool, unsent, sent *Error) {
	if closed {
		unsent = Errorf(CodeClosed, "this node's transport is closed")
		sent = Errorf(CodeLinkLost, "this node's transport was closed")
	}
	l.out.mu.Lock()
	l.closed = l.closed || closed
	var ended []*call
	gen := l.out.gen
	for id, c := range l.pending {
		if c.gen == gen && unsent == nil {
			continue
		}
		ended = append(ended, c)
		delete(l.pending, id)
	}
	if unsent != nil {
		l.out.buf = l.out.buf[:0]
	}
	l.out.mu.Unlock()
	for _, c := range ended {
		if c.gen == gen {
			c.finish(nil, unsent)
		} else {
			c.finish(nil, sent)
		}
	}
}

// serve uses a connection until it fails.
func (l *lane) serve(ctx context.Context, conn *peerConn) error {
	var readErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		readErr = l.runRead(conn.r)
	}()
	l.setConn(conn)
	err := l.runWrite(ctx, conn, done)
	l.setConn(nil)
	l.t.forget(conn)
	<-done
	if err == nil {
		err = readErr
	}
	return err
}

func (l *lane) setConn(conn *peerConn) {
	l.out.writing.Lock() // nobody writes to the one before any more
	defer l.out.writing.Unlock()
	l.out.rest = nil
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	l.conn, l.renewing = conn, false
}

// runWrite sends what gathers in the outbox, and asks a silent peer whether it
// is alive.
func (l *lane) runWrite(ctx context.Context, conn *peerConn, readerDone <-chan struct{}) error {
	tick := time.NewTicker(l.t.cfg.PingEvery)
	defer tick.Stop()
	var asked time.Time // when the ping was sent that is not answered yet
	var renew renewal
	for {
		select {
		case <-readerDone: // what is in the outbox would be sent into the void
			return nil
		default:
		}
		if l.renew(conn, &renew) {
			return errRenewed
		}
		if renew.holds {
			// Nothing more goes out.
		} else if any, err := l.out.flush(conn, l.t.cfg.WriteTimeout, nil); err != nil {
			return fmt.Errorf("write: %w", err)
		} else if any {
			l.t.stats.writes.Add(1)
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-readerDone:
			return nil
		case <-l.out.wake:
			runtime.Gosched() // who else is about to send shares the write
		case <-tick.C:
			if renew.holds {
				continue
			}
			heard := conn.heard()
			switch {
			case !asked.IsZero() && heard.After(asked):
				asked = time.Time{}
			case !asked.IsZero() && time.Since(asked) >= l.t.cfg.DeadAfter:
				return fmt.Errorf("no sign of life for %s", l.t.cfg.DeadAfter)
			}
			if asked.IsZero() && time.Since(heard) >= l.t.cfg.PingEvery {
				l.out.shrink()
				// Noted before the write: the answer may be heard before the write returns,
				// and would then seem older than the question.
				asked = time.Now()
				h := header{typ: framePing, sent: l.t.clock.now()}
				l.out.mu.Lock()
				l.out.buf = appendFrame(l.out.buf, &h, nil)
				l.out.mu.Unlock()
				if _, err := l.out.flush(conn, l.t.cfg.WriteTimeout, nil); err != nil {
					return fmt.Errorf("write: %w", err)
				}
			}
		}
	}
}

// runRead takes in the answers.
func (l *lane) runRead(r *bufio.Reader) error {
	for {
		h, err := readHeader(r, l.limit)
		if err != nil {
			return err
		}
		body, err := readPayload(r, h)
		if err != nil {
			return err
		}
		switch h.typ {
		case frameAnswer:
			l.answered(h.id, body, nil)
		case frameError:
			l.answered(h.id, nil, &Error{Code: Code(h.number), Detail: string(body)})
		case framePong:
		default:
			return fmt.Errorf("%w: type %d from the serving side", errFrame, h.typ)
		}
	}
}

func (l *lane) answered(id uint64, body []byte, err error) {
	l.out.mu.Lock()
	c := l.pending[id]
	delete(l.pending, id)
	if l.renewing {
		l.out.signal()
	}
	l.out.mu.Unlock()
	if c != nil { // else its caller gave up
		c.finish(body, err)
	}
}
