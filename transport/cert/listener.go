package cert

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// handshakeTime is how long a handshake may take, from the connection on.
	handshakeTime = 5 * time.Second
	// maxHandshakes under way at once; more wait to be accepted.
	maxHandshakes = 512
	// revokeAfter is how long after a change of the files connections may go on whose certificates are not trusted any more: who has
	// new ones connects anew by itself meanwhile.
	revokeAfter = 10 * time.Second
	// readBuffer is how much of what is on its way a connection takes in at once: some tens of small commands.
	readBuffer = 8 << 10
	// tellEvery bounds what is logged of failed handshakes.
	tellEvery = 10 * time.Second
)

// Options of a port.
type Options struct {
	Auth Auth
	// Plaintext takes in who does not speak TLS, too.
	Plaintext bool
	// Hint is what who does not speak TLS is told, given the first bytes he sent. Nil: nothing.
	Hint func(first []byte) []byte
}

// Listener hands out connections whose handshake is done: *Conn, or plain ones if the options allow them. Close ends it and waits.
type Listener struct {
	net.Listener
	s      *Source
	opt    Options
	config *tls.Config
	ready  chan accepted
	begin  sync.Once
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed atomic.Uint64
	tell   quiet

	mu    sync.Mutex
	conns map[*Conn]struct{} // those that showed a certificate
}

type accepted struct {
	conn net.Conn
	err  error
}

// Listen has TLS spoken on l.
func (s *Source) Listen(l net.Listener, opt Options) *Listener {
	tl := &Listener{Listener: l, s: s, opt: opt, config: s.server(opt.Auth), ready: make(chan accepted), conns: map[*Conn]struct{}{}, tell: quiet{log: s.log}}
	tl.ctx, tl.cancel = context.WithCancel(context.Background())
	return tl
}

// Failed counts the handshakes that failed.
func (l *Listener) Failed() uint64 { return l.failed.Load() }

// Accept returns the next connection that has proved itself.
func (l *Listener) Accept() (net.Conn, error) {
	l.begin.Do(func() {
		l.wg.Go(l.runAccept)
		l.wg.Go(l.runRevoke)
	})
	select {
	case a := <-l.ready:
		return a.conn, a.err
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close stops to accept and breaks handshakes under way. Connections that were handed out stay.
func (l *Listener) Close() error {
	l.begin.Do(func() {}) // an Accept that comes later starts nothing
	l.cancel()
	err := l.Listener.Close()
	l.wg.Wait()
	return err
}

func (l *Listener) runAccept() {
	room := make(chan struct{}, maxHandshakes)
	for {
		select {
		case room <- struct{}{}:
		case <-l.ctx.Done():
			return
		}
		raw, err := l.Listener.Accept()
		if err != nil {
			<-room
			if !l.hand(accepted{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		l.wg.Go(func() {
			ctx, cancel := context.WithTimeout(l.ctx, handshakeTime)
			defer cancel()
			stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
			conn, err := l.shake(ctx, raw, stop)
			if err != nil {
				farewell(ctx, raw)
			}
			stop()
			<-room // before it is handed out: for that it may wait
			if err != nil {
				raw.Close()
				if l.ctx.Err() == nil {
					l.failed.Add(1)
					l.tell.warn("TLS handshake failed", "remote", raw.RemoteAddr().String(), "err", err)
				}
				return
			}
			if !l.hand(accepted{conn: conn}) {
				conn.Close()
			}
		})
	}
}

// hand gives to Accept; false: the listener is closed.
func (l *Listener) hand(a accepted) bool {
	select {
	case l.ready <- a:
		return true
	case <-l.ctx.Done():
		return false
	}
}

var errPlaintext = errors.New("whoever connected does not speak TLS")

// shake finds out what a connection speaks, and makes the handshake.
func (l *Listener) shake(ctx context.Context, raw net.Conn, stop func() bool) (net.Conn, error) {
	begun := &begunConn{Conn: raw}
	var first [4]byte
	n, err := io.ReadAtLeast(raw, first[:], 2)
	if err != nil {
		return nil, err
	}
	begun.first = first[:n]
	if !IsHello(begun.first) {
		if l.opt.Plaintext {
			if !stop() {
				return nil, ctx.Err()
			}
			return begun, nil
		}
		if l.opt.Hint != nil {
			raw.Write(l.opt.Hint(begun.first))
		}
		return nil, errPlaintext
	}
	tc := tls.Server(begun, l.config)
	if err := tc.Handshake(); err != nil { // not HandshakeContext, which would close the socket
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	begun.buf = bufio.NewReaderSize(raw, readBuffer)
	c := &Conn{Conn: tc, l: l, below: begun}
	if len(tc.ConnectionState().PeerCertificates) > 0 {
		l.mu.Lock()
		l.conns[c] = struct{}{}
		l.mu.Unlock()
	}
	return c, nil
}

// farewell gives what was said last the time to be read: to close a socket with unread bytes resets it, and the reset may overtake an
// alert.
func farewell(ctx context.Context, raw net.Conn) {
	if ctx.Err() != nil {
		return
	}
	raw.SetReadDeadline(time.Now().Add(time.Second))
	if half, ok := raw.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		io.CopyN(io.Discard, raw, 64<<10)
	}
}

// runRevoke closes connections whose certificates are not trusted any more, revokeAfter a change of the files.
func (l *Listener) runRevoke() {
	tick := time.NewTicker(Period)
	defer tick.Stop()
	done, seen, since := l.s.Generation(), l.s.Generation(), time.Time{}
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-tick.C:
		}
		if g := l.s.Generation(); g != seen {
			seen, since = g, time.Now()
		}
		if seen != done && time.Since(since) >= revokeAfter {
			done = seen
			l.revoke()
		}
	}
}

func (l *Listener) revoke() {
	l.mu.Lock()
	var gone []*Conn
	for c := range l.conns {
		if l.s.trusts(c.ConnectionState().PeerCertificates) != nil {
			gone = append(gone, c)
		}
	}
	l.mu.Unlock()
	for _, c := range gone {
		leaf := c.ConnectionState().PeerCertificates[0]
		l.s.log.Warn("connection closed: its certificate is not trusted any more", "remote", c.RemoteAddr().String(),
			"subject", leaf.Subject.String(), "serial", leaf.SerialNumber.Text(16), "issuer", leaf.Issuer.String())
		// Not by Close, which waits for a writer that hangs to say goodbye.
		c.NetConn().Close()
	}
}

// Conn is a connection that has proved itself.
type Conn struct {
	*tls.Conn
	l     *Listener
	below *begunConn
}

// Read reads all that is there, like a socket, and not one record only: a port that answers what it has read before it reads on, would
// else do one command at a time of a client that has sent many.
func (c *Conn) Read(p []byte) (n int, err error) {
	n, err = c.Conn.Read(p)
	if err != nil || n == 0 {
		return n, err
	}
	c.below.noWait = true
	for n < len(p) && err == nil {
		var m int
		m, err = c.Conn.Read(p[n:])
		n += m
	}
	c.below.noWait = false
	return n, nil // crypto/tls says an error again, but for errNotYet
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// Node is the id of the node that has connected. Only for a port with AuthNode.
func (c *Conn) Node() string {
	id, _ := NodeID(c.ConnectionState().PeerCertificates[0]) // the handshake has looked at it
	return id
}

// Claim checks that the node that has connected is the one that it says it is.
func (c *Conn) Claim(id string) error {
	node := c.Node()
	if node == id {
		return nil
	}
	c.l.failed.Add(1)
	c.l.tell.warn("a node says that it is another one", "certificate", node, "says", id, "remote", c.RemoteAddr().String())
	return fmt.Errorf("the certificate is bound to node %s, and the hello is of node %s", node, id)
}

// begunConn is a connection of which the first bytes were read.
type begunConn struct {
	net.Conn
	first []byte
	// buf is what is read from after the handshake, and noWait has a Read fail that would have to wait. Of whoever reads.
	buf    *bufio.Reader
	noWait bool
}

// errNotYet is for crypto/tls what a deadline is that has passed: it may be asked again.
var errNotYet net.Error = notYet{}

type notYet struct{}

func (notYet) Error() string   { return "nothing more is there yet" }
func (notYet) Timeout() bool   { return true }
func (notYet) Temporary() bool { return true }

func (c *begunConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	switch {
	case c.buf == nil:
		return c.Conn.Read(p)
	case c.noWait && c.buf.Buffered() == 0:
		return 0, errNotYet
	}
	return c.buf.Read(p)
}

// CloseWrite is that of the connection below, if it has one.
func (c *begunConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// quiet logs at most one warning in tellEvery, and how many were left out: whoever can connect could fill the log.
type quiet struct {
	log  *slog.Logger
	mu   sync.Mutex
	next time.Time
	left int
}

func (q *quiet) warn(msg string, args ...any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if now.Before(q.next) {
		q.left++
		return
	}
	if q.left > 0 {
		args = append(args, "like_this_before", q.left)
	}
	q.next, q.left = now.Add(tellEvery), 0
	q.log.Warn(msg, args...)
}
