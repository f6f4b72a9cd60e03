package transport

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/transport/cert"
)

// Config says who this node is and how it reaches the others.
type Config struct {
	// Self is this node's id: 1 to 255 bytes.
	Self string
	// ClusterID returns the id of this node's cluster, "" while it belongs to
	// none. It is asked on every connection, as a node that joins learns it late.
	// A + and what follows is its era: links and streams are refused to who is of another,
	// while a CallAddr may still ask what it has missed.
	ClusterID func() string
	// Addr is the host:port to listen on. Ignored with Listener.
	Addr string
	// Listener is listened on instead of Addr. The transport closes it.
	Listener net.Listener
	// Resolve returns the address of a node.
	Resolve func(node string) (addr string, err error)
	// Dial connects; nil is a net.Dialer.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// TLS, if it is set, has both sides of every connection between nodes prove themselves with certificates that are bound to node
	// ids. Default: nobody proves anything.
	TLS *cert.Source
	// AllowPlaintext, with TLS, takes nodes without TLS in, and calls them without: for the time in which TLS is turned on node by node.
	AllowPlaintext bool

	// MaxFrame bounds a request or an answer, in bytes (default 72 MiB, so that
	// a command of 64 MiB fits). On LaneControl the bound is 1 MiB.
	MaxFrame int
	// MaxInFlight bounds the requests of one peer on one lane that are being
	// served or whose answers are not sent yet (default 4096); more are refused
	// with CodeBusy. Their bytes are bounded too, by four times MaxFrame.
	MaxInFlight int
	// MaxConns bounds the accepted connections (default 1024).
	MaxConns int

	// DialTimeout bounds name, connection and hello together, and the hello of
	// who connects to us (default 2 s).
	DialTimeout time.Duration
	// PingEvery is how long a link may be silent before it is asked (default 1 s).
	PingEvery time.Duration
	// DeadAfter is how long a ping may go unanswered until the link is given up
	// (default 4 s).
	DeadAfter time.Duration
	// WriteTimeout is how long a peer may take none of our bytes until the link
	// is given up (default 10 s).
	WriteTimeout time.Duration

	// Log gets links found, lost and refused; nil discards.
	Log *slog.Logger
}

const (
	defaultTimeout  = 10 * time.Second // of a call whose context has no deadline
	maxControlFrame = 1 << 20
	maxQueueBytes   = 64 << 20 // requests that wait for one link; one larger request may wait alone
	maxControlQueue = 4 << 20
	readBufferBytes = 64 << 10
	keepBufferBytes = 4 << 20 // a larger write buffer is not kept
	maxBackoff      = 500 * time.Millisecond
	minBackoff      = 25 * time.Millisecond
	maxHandshakes   = 256
	callIdle        = time.Minute // of a CallAddr whose answer takes long
	maxStreams      = 64          // accepted at once
)

func (c *Config) setDefaults() {
	setDefault(&c.MaxFrame, 72<<20)
	setDefault(&c.MaxInFlight, 4096)
	setDefault(&c.MaxConns, 1024)
	setDefault(&c.DialTimeout, 2*time.Second)
	setDefault(&c.PingEvery, time.Second)
	setDefault(&c.DeadAfter, 4*time.Second)
	setDefault(&c.WriteTimeout, 10*time.Second)
	if c.ClusterID == nil {
		c.ClusterID = func() string { return "" }
	}
	if c.Dial == nil {
		var d net.Dialer
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c *Config) validate() error {
	var errs []error
	if len(c.Self) == 0 || len(c.Self) > maxIDBytes {
		errs = append(errs, fmt.Errorf("node id %q: want 1 to %d bytes", c.Self, maxIDBytes))
	}
	if c.Resolve == nil {
		errs = append(errs, errors.New("no Resolve function"))
	}
	if c.Addr == "" && c.Listener == nil {
		errs = append(errs, errors.New("no address to listen on"))
	}
	if c.MaxFrame < maxControlFrame || c.MaxFrame > 1<<30 {
		errs = append(errs, fmt.Errorf("MaxFrame %d: want %d to %d", c.MaxFrame, maxControlFrame, 1<<30))
	}
	if c.MaxInFlight < 0 || c.MaxConns < 0 {
		errs = append(errs, fmt.Errorf("MaxInFlight %d, MaxConns %d: want positive numbers", c.MaxInFlight, c.MaxConns))
	}
	for _, d := range []time.Duration{c.DialTimeout, c.PingEvery, c.DeadAfter, c.WriteTimeout} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("negative duration %s", d))
		}
	}
	return errors.Join(errs...)
}

// TCP is the transport over sockets.
//
// It has one accepting loop; per peer and lane one sending loop (lane.run),
// which connects when there is something to send; per accepted connection a
// reading and a writing loop (inbound). A lane owns the calls that wait for an
// answer, an inbound link the requests that wait to be answered; TCP owns only
// the tables of them, and Close waits for all.
type TCP struct {
	cfg         Config
	log         *slog.Logger
	clock       clock
	incarnation uint64
	listener    net.Listener
	ctx         context.Context // ends with Close
	stop        context.CancelFunc
	wg          sync.WaitGroup // every loop and every handler
	sequence    atomic.Uint64  // of the links we opened
	handshakes  atomic.Int32
	streams     atomic.Int32
	stats       counters

	handlers atomic.Pointer[handlers] // replaced whole

	mu      sync.RWMutex
	started bool
	closed  bool
	lanes   map[string]*[Lanes]*lane // what we send, by peer
	inbound map[inboundKey]*inbound  // what we serve
	conns   map[net.Conn]struct{}    // all of them, for Close
	serving int                      // accepted ones
}

// handlers are the methods served. Values are never changed.
type handlers struct {
	ended   []func(peer string)
	calls   map[Method]Handler
	inOrder map[Method]InOrderHandler
	streams map[Method]StreamHandler
}

// Listen binds the address. Peers are served from Start on.
func Listen(cfg Config) (*TCP, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("transport config: %w", err)
	}
	l := cfg.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", cfg.Addr); err != nil {
			return nil, fmt.Errorf("listen for peers on %s: %w", cfg.Addr, err)
		}
	}
	if cfg.TLS != nil {
		l = cfg.TLS.Listen(l, cert.Options{Auth: cert.AuthNode, Plaintext: cfg.AllowPlaintext, Hint: wantsTLS})
	}
	var seed [8]byte
	rand.Read(seed[:])
	t := &TCP{
		cfg: cfg, log: cfg.Log, listener: l,
		clock:       clock{began: time.Now()},
		incarnation: binary.BigEndian.Uint64(seed[:]),
		lanes:       make(map[string]*[Lanes]*lane),
		inbound:     make(map[inboundKey]*inbound),
		conns:       make(map[net.Conn]struct{}),
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.handlers.Store(&handlers{})
	return t, nil
}

// Start begins to accept; the handlers are set.
func (t *TCP) Start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.started || t.closed {
		return
	}
	t.started = true
	t.wg.Go(t.runAccept)
}

// Addr is the address listened on.
func (t *TCP) Addr() net.Addr { return t.listener.Addr() }

// Self is this node's id.
func (t *TCP) Self() string { return t.cfg.Self }

// Call sends a request and waits for the answer.
func (t *TCP) Call(ctx context.Context, to string, ln Lane, m Method, req []byte) ([]byte, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(defaultTimeout)
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	l, err := t.lane(to, ln)
	if err != nil {
		return nil, err
	}
	c := waitPool.Get().(*call)
	if err := l.enqueue(ctx, c, deadline, m, req); err != nil {
		waitPool.Put(c)
		return nil, err
	}
	select {
	case <-c.wake:
	case <-ctx.Done():
		l.abandon(c, context.Cause(ctx), errors.Is(ctx.Err(), context.Canceled))
		<-c.wake // abandoned, or answered at the same moment
	}
	resp, err := c.resp, c.err
	c.resp, c.err = nil, nil
	waitPool.Put(c)
	return resp, err
}

// Go sends a request and returns at once.
func (t *TCP) Go(to string, ln Lane, m Method, req []byte, deadline time.Time, done func([]byte, error)) {
	l, err := t.lane(to, ln)
	if err == nil {
		err = l.enqueue(context.Background(), &call{done: done}, deadline, m, req)
	}
	if err != nil {
		go done(nil, err) // whoever calls Go may hold what done wants
	}
}

// CallAddr sends one request over a connection of its own.
func (t *TCP) CallAddr(ctx context.Context, addr string, m Method, req []byte) ([]byte, error) {
	if len(req) > t.cfg.MaxFrame {
		return nil, Errorf(CodeTooLarge, "request of %d bytes, limit %d", len(req), t.cfg.MaxFrame)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(defaultTimeout)
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := t.open(ctx, hello{kind: kindCall, lane: LaneCall}, func(ctx context.Context) (net.Conn, error) {
		return t.dial(ctx, addr, "")
	})
	if err != nil {
		return nil, err
	}
	defer t.forget(conn)
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	h := header{typ: frameRequest, number: uint16(m), id: 1, sent: t.clock.now(), deadline: t.clock.at(deadline)}
	h.describe(req)
	if err := writeAll(conn, appendFrame(nil, &h, req), t.cfg.WriteTimeout); err != nil {
		return nil, lostError(ctx, addr, err)
	}
	resp, err := readOneAnswer(conn.r, t.cfg.MaxFrame)
	if err != nil && CodeOf(err) == CodeUnknown && !errors.As(err, new(*Error)) {
		err = lostError(ctx, addr, err)
	}
	return resp, err
}

// readOneAnswer reads up to the answer of the only request of a connection.
func readOneAnswer(r *bufio.Reader, limit int) ([]byte, error) {
	for {
		h, err := readHeader(r, limit)
		if err != nil {
			return nil, err
		}
		body, err := readPayload(r, h)
		if err != nil {
			return nil, err
		}
		switch h.typ {
		case frameAnswer:
			return body, nil
		case frameError:
			return nil, &Error{Code: Code(h.number), Detail: string(body)}
		case framePong:
		default:
			return nil, fmt.Errorf("%w: type %d in an answer", errFrame, h.typ)
		}
	}
}

func lostError(ctx context.Context, peer string, err error) *Error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return Errorf(CodeLinkLost, "call %s: %v", peer, err)
}

// lane returns the sending side of a lane, made on first use.
func (t *TCP) lane(to string, ln Lane) (*lane, error) {
	if ln >= Lanes || len(to) == 0 || len(to) > maxIDBytes {
		return nil, Errorf(CodeBadRequest, "call to %q on lane %d", to, ln)
	}
	t.mu.RLock()
	p := t.lanes[to]
	if p != nil && p[ln] != nil && !t.closed {
		l := p[ln]
		t.mu.RUnlock()
		return l, nil
	}
	t.mu.RUnlock()

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, Errorf(CodeClosed, "this node's transport is closed")
	}
	if p = t.lanes[to]; p == nil {
		p = new([Lanes]*lane)
		t.lanes[to] = p
	}
	if p[ln] == nil {
		l := newLane(t, to, ln)
		p[ln] = l
		t.wg.Go(l.run)
	}
	return p[ln], nil
}

// Handle serves a method, each request on a goroutine of its own.
func (t *TCP) Handle(m Method, h Handler) {
	t.register(func(hs *handlers) bool { return !added(&hs.calls, m, h) || hs.inOrder[m] != nil })
}

// HandleInOrder serves a method on the reading loop of its link.
func (t *TCP) HandleInOrder(m Method, h InOrderHandler) {
	t.register(func(hs *handlers) bool { return !added(&hs.inOrder, m, h) || hs.calls[m] != nil })
}

// HandleStream serves a method's streams.
func (t *TCP) HandleStream(m Method, h StreamHandler) {
	t.register(func(hs *handlers) bool { return !added(&hs.streams, m, h) })
}

// HandleEnded has f told of peers whose process has ended.
func (t *TCP) HandleEnded(f func(peer string)) {
	t.register(func(hs *handlers) bool { hs.ended = append(slices.Clip(hs.ended), f); return false })
}

// register swaps in a changed copy; add reports a method that has a handler,
// which is a mistake of the program.
func (t *TCP) register(add func(*handlers) (taken bool)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := *t.handlers.Load()
	if add(&next) {
		panic("transport: a method has two handlers")
	}
	t.handlers.Store(&next)
}

func added[H any](table *map[Method]H, m Method, h H) bool {
	if _, taken := (*table)[m]; taken {
		return false
	}
	next := maps.Clone(*table)
	if next == nil {
		next = make(map[Method]H)
	}
	next[m] = h
	*table = next
	return true
}

// Close breaks all links, fails what is pending and waits for the loops and
// for the handlers, whose contexts end.
func (t *TCP) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		t.wg.Wait()
		return nil
	}
	t.closed = true
	conns := maps.Clone(t.conns)
	t.mu.Unlock()

	err := t.listener.Close() // nobody new
	for c := range conns {
		// Before the handlers' contexts end: what they say of that would
		// only confuse callers, who see a lost link.
		c.Close()
	}
	t.stop() // lanes fail their calls and end
	t.wg.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close peer listener: %w", err)
	}
	return nil
}

// remember adds a connection to those that Close breaks.
func (t *TCP) remember(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.conns[conn] = struct{}{}
	return true
}

// forget closes a connection.
func (t *TCP) forget(conn net.Conn) {
	conn.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, conn)
}

// Stats are counts since Listen.
type Stats struct {
	Sent       uint64 // requests put on a link
	Served     uint64 // requests that arrived
	Writes     uint64 // system calls for both, and for answers
	Late       uint64 // requests refused because their deadline had passed
	Busy       uint64 // requests refused for load
	Links      uint64 // connections opened to peers
	LinkErrors uint64 // connections that failed or were refused
	Refused    uint64 // accepted connections that were turned away
	Untrusted  uint64 // connections to us whose certificate was not taken, or that had none

	// BytesIn and BytesOut are what came from and went to others, before TLS.
	BytesIn, BytesOut uint64
}

type counters struct {
	sent, served, writes, late, busy, links, linkErrors, refused, bytesIn, bytesOut atomic.Uint64
}

// Stats returns the counts.
func (t *TCP) Stats() Stats {
	c := &t.stats
	s := Stats{c.sent.Load(), c.served.Load(), c.writes.Load(), c.late.Load(), c.busy.Load(),
		c.links.Load(), c.linkErrors.Load(), c.refused.Load(), 0, c.bytesIn.Load(), c.bytesOut.Load()}
	if l, ok := t.listener.(*cert.Listener); ok {
		s.Untrusted = l.Failed()
	}
	return s
}
