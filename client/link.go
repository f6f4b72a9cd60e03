package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// link is the way to one address: it dials when a conn is needed and there is
// none, one dial for all who wait, and after a failed dial it fails at once
// for a little while, so that the callers go elsewhere.
type link struct {
	addr string
	cfg  *Config

	mu      sync.Mutex
	conn    *conn
	dialing chan struct{} // closed when the dial under way has ended; nil if there is none
	closed  bool

	failures int       // dials failed in a row
	retryAt  time.Time // no dial before this
	lastErr  error     // of the last dial
	// refusedAt is when the first of the dials in a row ended that were all refused.
	refusedAt time.Time
}

const (
	dialBackoffMin = 20 * time.Millisecond
	dialBackoffMax = 500 * time.Millisecond
)

// get returns a live conn. Its errors are certain: nothing was sent.
func (l *link) get(ctx context.Context) (*conn, error) {
	for {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return nil, &linkError{addr: l.addr, err: ErrClosed}
		}
		if l.conn != nil {
			if !l.conn.failed() {
				c := l.conn
				l.mu.Unlock()
				return c, nil
			}
			old := l.conn
			l.conn = nil
			l.mu.Unlock()
			old.close() // waits for its loops, which have been told already
			continue
		}
		if ch := l.dialing; ch != nil {
			l.mu.Unlock()
			select {
			case <-ch:
				continue
			case <-ctx.Done():
				return nil, &linkError{addr: l.addr, err: context.Cause(ctx)}
			}
		}
		if time.Now().Before(l.retryAt) {
			err := l.lastErr
			l.mu.Unlock()
			return nil, &linkError{addr: l.addr, err: err}
		}
		done := make(chan struct{})
		l.dialing = done
		l.mu.Unlock()
		l.dial(done)
	}
}

// dial opens a conn for everybody who waits. It does not end with the context
// of the caller that happens to run it, only with the time allowed for a dial.
func (l *link) dial(done chan struct{}) {
	defer close(done)
	ctx, cancel := context.WithTimeout(context.Background(), l.cfg.DialTimeout)
	nc, err := l.cfg.Dial(ctx, l.addr)
	cancel()

	l.mu.Lock()
	defer l.mu.Unlock()
	l.dialing = nil
	if err != nil {
		l.failures++
		l.lastErr = fmt.Errorf("connect: %w", err)
		switch {
		case !isRefusal(err):
			l.refusedAt = time.Time{}
		case l.refusedAt.IsZero():
			l.refusedAt = time.Now()
		}
		l.retryAt = time.Now().Add(min(dialBackoffMin<<min(l.failures, 10), dialBackoffMax))
		return
	}
	if l.closed {
		nc.Close()
		return
	}
	l.failures, l.refusedAt = 0, time.Time{}
	l.conn = newConn(l.addr, nc, l.cfg.Stall, int64(l.cfg.MaxPendingBytes))
	if l.cfg.Stale {
		// Before all others. Nobody waits for the answer: a node that refuses it gives
		// more than was asked for.
		mode := Command("CLIENT", "CONSISTENCY", "stale")
		if ms := l.cfg.MaxStale.Milliseconds(); ms > 0 {
			mode.Args = append(mode.Args, itoa(ms))
		}
		l.conn.start(context.Background(), newFlight([]Cmd{mode}))
	}
}

// isRefusal says that nobody listens there, which is known at once: other
// failed dials may be those of a slow network.
func isRefusal(err error) bool {
	var name *net.DNSError
	return errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, &name) && name.IsNotFound
}

// refused says since when dials have been refused (zero: they were not), and
// whether there is a live conn.
func (l *link) refused() (since time.Time, up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refusedAt, l.conn != nil && !l.conn.failed()
}

func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	c, dialing := l.conn, l.dialing
	l.conn = nil
	l.mu.Unlock()
	if c != nil {
		c.close()
	}
	if dialing != nil {
		<-dialing // bounded by DialTimeout
	}
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}
