package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/abacusdb/abacus/transport/cert"
)

// link is the way to one address: it dials when a conn is needed and there is
// none, one dial for all who wait, and after a failed dial it fails at once
// for a little while, so that the callers go elsewhere.
type link struct {
	addr string
	cfg  *Config

	mu      sync.Mutex
	conn    *conn
	noted   bool          // by noteEnd
	dialing chan struct{} // closed when the dial under way has ended; nil if there is none
	closed  bool

	failures int       // dials failed in a row
	retryAt  time.Time // no dial before this
	lastErr  error     // of the last dial
	// refusedAt is when the first of the dials in a row ended that were all refused.
	refusedAt time.Time
	// made is the generation of certs that conn was made with; drains are conns that end because there is a newer one.
	certs  *cert.Source // nil: none, or they never change
	made   uint64
	drains sync.WaitGroup
	quit   <-chan struct{} // closed when the client closes
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
			stale := l.made != l.generation()
			if !stale && !l.conn.failed() {
				c := l.conn
				l.mu.Unlock()
				return c, nil
			}
			old := l.conn
			l.noteEnd()
			if stale && !old.failed() {
				l.conn, l.failures, l.refusedAt = nil, 0, time.Time{}
				l.drains.Go(func() { old.drain(l.quit) })
				l.mu.Unlock()
				continue
			}
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
	defer cancel()
	var c *conn
	generation := l.generation()
	nc, err := l.cfg.Dial(ctx, l.addr)
	if err == nil {
		c = newConn(l.addr, nc, l.cfg.Stall, int64(l.cfg.MaxPendingBytes))
		if err = c.authenticate(ctx, l.cfg); err != nil {
			c.close()
		}
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.dialing = nil
	if err != nil {
		l.noteFailed(err)
		return
	}
	if l.closed {
		c.close()
		return
	}
	l.made, l.conn, l.noted = generation, c, false // failures stay until the conn has shown that it is good: noteEnd
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

// noteFailed has the next dial wait a little, the longer the more of them failed. Called with mu held.
func (l *link) noteFailed(err error) {
	l.failures++
	l.lastErr = fmt.Errorf("connect: %w", err)
	switch {
	case !isRefusal(err):
		l.refusedAt = time.Time{}
	case l.refusedAt.IsZero():
		l.refusedAt = time.Now()
	}
	l.retryAt = time.Now().Add(min(dialBackoffMin<<min(l.failures, 10), dialBackoffMax))
}

// noteEnd looks at how the conn ended, once. A node says what it thinks of a certificate after the dial, when TLS 1.3 has the
// handshake done for us: such a conn is a dial that was refused, and without that nobody would give up before the time-out.
// Called with mu held.
func (l *link) noteEnd() {
	if l.conn == nil || l.noted || !l.conn.failed() {
		return
	}
	l.noted = true
	if err := l.conn.cause(); errors.Is(err, ErrTLS) {
		l.noteFailed(err)
		return
	}
	l.failures, l.refusedAt = 0, time.Time{}
}

// authenticate says who we are, before anything else, and waits for the answer.
func (c *conn) authenticate(ctx context.Context, cfg *Config) error {
	if cfg.Token == "" {
		return nil
	}
	user := cfg.User
	if user == "" {
		user = "default" // whoever has the token
	}
	f := newFlight([]Cmd{Command("AUTH", user, cfg.Token)})
	if err := c.start(ctx, f); err != nil {
		return err
	}
	if err := c.wait(ctx, f); err != nil {
		return err
	}
	if text, refused := replyError(f.replies[0]); refused {
		return parseServerError(text)
	}
	return nil
}

// isRefusal says that nobody listens there, or that who does cannot prove himself, which is known at once: other
// failed dials may be those of a slow network.
func isRefusal(err error) bool {
	var name *net.DNSError
	return errors.Is(err, ErrTLS) || errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, &name) && name.IsNotFound
}

// refused says since when dials have been refused (zero: they were not), and
// whether there is a live conn.
func (l *link) refused() (since time.Time, up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noteEnd()
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
	l.drains.Wait()
	if dialing != nil {
		<-dialing // bounded by DialTimeout
	}
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}
