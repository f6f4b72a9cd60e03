package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/abacusdb/abacus/transport/cert"
)

// peerConn is a connection whose hello was accepted.
type peerConn struct {
	net.Conn
	r    *bufio.Reader   // of the peerConn itself
	raw  syscall.RawConn // to write without waiting; nil: it cannot be done
	try  attempt         // of who holds outbox.writing
	idle time.Duration   // a read that waits longer fails; 0 waits for ever
	last atomic.Int64    // when bytes last came in, since epoch
	// stats count its bytes; a pipe to ourselves has its own, which nobody reads.
	stats *counters
	// generation is that of the certificates that a connection we opened was made with; 0: none.
	generation uint64
}

// epoch is any moment of the monotonic clock.
var epoch = time.Now()

func (t *TCP) newPeerConn(conn net.Conn) *peerConn {
	c := &peerConn{Conn: conn, stats: &t.stats}
	if conn.LocalAddr().Network() == "pipe" {
		c.stats = &counters{}
	}
	if s, ok := conn.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
		c.try.run = c.try.write
	}
	if p, ok := conn.(*provenConn); ok {
		c.generation = p.generation
	}
	c.last.Store(int64(time.Since(epoch)))
	c.r = bufio.NewReaderSize(c, readBufferBytes)
	return c
}

func (c *peerConn) Read(p []byte) (int, error) {
	if c.idle > 0 {
		if err := c.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.last.Store(int64(time.Since(epoch)))
		c.stats.bytesIn.Add(uint64(n))
	}
	return n, err
}

func (c *peerConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.stats.bytesOut.Add(uint64(n))
	return n, err
}

func (c *peerConn) heard() time.Time { return epoch.Add(time.Duration(c.last.Load())) }

// dialer returns how to reach a node: for this node itself a pipe into the
// same serving code that sockets go to.
func (t *TCP) dialer(to string) func(context.Context) (net.Conn, error) {
	if to == t.cfg.Self {
		return t.dialSelf
	}
	return func(ctx context.Context) (net.Conn, error) {
		addr, err := t.cfg.Resolve(to)
		if err != nil {
			return nil, fmt.Errorf("resolve %s: %w", to, err)
		}
		return t.dial(ctx, addr, to)
	}
}

func (t *TCP) dialSelf(context.Context) (net.Conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.started || t.closed {
		return nil, Errorf(CodeUnavailable, "this node's transport is not running")
	}
	ours, theirs := net.Pipe()
	t.conns[theirs] = struct{}{}
	t.wg.Go(func() { t.serve(theirs) })
	return ours, nil
}

// open connects and says hello. Its errors are numbered, and all certain: no
// request was sent.
func (t *TCP) open(ctx context.Context, h hello, dial func(context.Context) (net.Conn, error)) (*peerConn, error) {
	if t.ctx.Err() != nil {
		return nil, t.openError(ctx, nil)
	}
	raw, err := dial(ctx)
	if err != nil {
		return nil, t.openError(ctx, err)
	}
	conn := t.newPeerConn(raw)
	if !t.remember(conn) {
		raw.Close()
		return nil, Errorf(CodeClosed, "this node's transport is closed")
	}
	ok := false
	defer func() {
		if !ok {
			t.forget(conn)
		}
	}()
	// Both end the exchange: the deadline of ctx and its being cancelled.
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	h.incarnation, h.sequence = t.incarnation, t.sequence.Add(1)
	h.cluster, h.clock = t.cfg.ClusterID(), t.clock.now()
	if h.kind != kindCall {
		h.from = t.cfg.Self
	}
	if len(h.cluster) > maxIDBytes {
		return nil, Errorf(CodeBadRequest, "cluster id of %d bytes", len(h.cluster))
	}
	if _, err := conn.Write(h.appendTo(nil)); err != nil {
		return nil, t.openError(ctx, fmt.Errorf("say hello: %w", err))
	}
	refusal, err := readAnswer(conn.r)
	if err != nil {
		return nil, t.openError(ctx, fmt.Errorf("read the answer to hello: %w", err))
	}
	if refusal != nil {
		return nil, refusal
	}
	if !stop() {
		return nil, t.openError(ctx, context.Cause(ctx))
	}
	ok = true
	return conn, nil
}

// openError numbers what went wrong before a request could be sent.
func (t *TCP) openError(ctx context.Context, err error) *Error {
	switch {
	case t.ctx.Err() != nil:
		return Errorf(CodeClosed, "this node's transport is closed")
	case ctx.Err() != nil:
		return Errorf(CodeUnavailable, "connect: %v", context.Cause(ctx))
	}
	e := Errorf(CodeUnavailable, "connect: %v", err)
	e.refused = errors.Is(err, syscall.ECONNREFUSED)
	e.untrusted = t.cfg.TLS != nil && cert.IsRefusal(err)
	return e
}

// outbox gathers frames for the one loop that writes them. On a link that is idle, whoever
// has a frame to send writes it without the loop, which would have to be woken for it.
type outbox struct {
	mu    sync.Mutex
	buf   []byte
	spare []byte
	gen   uint64        // counts the buffers taken
	wake  chan struct{} // holds one: there is something to take

	// writing is held by who writes to the socket. It is taken before mu, or tried.
	writing sync.Mutex
	// rest is what a write that did not wait has left over: it goes first. Guarded by writing.
	rest []byte
}

// begin takes what has gathered if nobody writes and nothing is left over; the caller, who
// holds mu, then calls write. Otherwise the loop is told.
func (o *outbox) begin(conn *peerConn) []byte {
	if conn != nil && conn.raw != nil && o.writing.TryLock() {
		if o.rest == nil {
			return o.takeLocked()
		}
		o.writing.Unlock()
	}
	o.signal()
	return nil
}

// write sends what begin took, as far as the socket takes it without waiting. The loop
// sends the rest.
func (o *outbox) write(conn *peerConn, b []byte) error {
	defer o.writing.Unlock()
	n, err := conn.tryWrite(b)
	if n < len(b) && err == nil {
		o.rest = b[n:]
		o.signal()
		return nil
	}
	o.giveBack(b)
	return err
}

// flush sends what is left over and what has gathered, and says whether there was anything.
// took, if not nil, is called with mu held when it takes what has gathered.
func (o *outbox) flush(conn *peerConn, timeout time.Duration, took func()) (any bool, err error) {
	o.writing.Lock()
	defer o.writing.Unlock()
	if rest := o.rest; rest != nil {
		o.rest = nil
		if err := writeAll(conn, rest, timeout); err != nil {
			return true, err
		}
		any = true
	}
	o.mu.Lock()
	b := o.takeLocked()
	if len(b) > 0 && took != nil {
		took()
	}
	o.mu.Unlock()
	if len(b) == 0 {
		return any, nil
	}
	err = writeAll(conn, b, timeout)
	o.giveBack(b)
	return true, err
}

// attempt is a write that does not wait; it is used again, so that it costs no memory.
type attempt struct {
	run func(fd uintptr) bool
	b   []byte
	n   int
	err error
}

func (a *attempt) write(fd uintptr) bool {
	a.n, a.err = syscall.Write(int(fd), a.b)
	return true
}

// tryWrite writes what the socket takes at once.
func (c *peerConn) tryWrite(b []byte) (n int, err error) {
	c.try.b, c.try.n, c.try.err = b, 0, nil
	err = c.raw.Write(c.try.run)
	n, c.try.b = max(c.try.n, 0), nil
	c.stats.bytesOut.Add(uint64(n))
	if err == nil {
		err = c.try.err
	}
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) || errors.Is(err, os.ErrDeadlineExceeded) {
		return n, nil
	}
	return n, err
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) empty() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.buf) == 0
}

// takeLocked returns all frames gathered; what is in them counts as sent. The caller holds mu.
func (o *outbox) takeLocked() []byte {
	if len(o.buf) == 0 {
		return nil
	}
	b := o.buf
	o.buf, o.spare = o.spare[:0], nil
	o.gen++
	return b
}

// giveBack returns the buffer of take for reuse.
func (o *outbox) giveBack(b []byte) {
	if cap(b) > keepBufferBytes {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spare = b[:0]
}

// shrink lets go of the buffers of an outbox that is idle.
func (o *outbox) shrink() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.buf) == 0 {
		o.buf, o.spare = nil, nil
	}
}

// writeAll writes in pieces, each of which must make progress in time.
func writeAll(conn net.Conn, b []byte, timeout time.Duration) error {
	const piece = 256 << 10
	for len(b) > 0 {
		n := min(len(b), piece)
		if err := conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		if _, err := conn.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return conn.SetWriteDeadline(time.Time{}) // or it would end a write that does not wait
}
