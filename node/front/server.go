package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
	"github.com/abacusdb/abacus/transport/cert"
	"github.com/abacusdb/abacus/transport/resp"
)

// Config of one port. The zero value of a field means its default.
type Config struct {
	Mode Mode
	// Limits on keys and values, checked here too so that an oversized one is
	// refused before it travels. Default command.DefaultLimits.
	Limits command.Limits
	// MaxCommandBytes bounds one command. Default 64 MiB.
	MaxCommandBytes int
	// MaxClients bounds the connections; one more is told so and closed. Default 10,000.
	MaxClients int
	// MaxBufferedBytes bounds the request bytes held for all connections of
	// this port together; the connection that exceeds it is told so and closed.
	// Default 1 GiB.
	MaxBufferedBytes int64
	// MaxReplyBytes bounds the values held for replies of all connections of this
	// port together; commands that read wait for room. At least 256 MiB. Default 1 GiB.
	MaxReplyBytes int64
	// CommandTimeout is how long a command may take before its answer is an error. Default 3 s.
	CommandTimeout time.Duration
	// CompleteTimeout is how long a client may take to send one command from its
	// first byte to its last. Default 60 s.
	CompleteTimeout time.Duration
	// IdleAfter is how long a connection without a command keeps its buffers.
	// Default 10 s.
	IdleAfter time.Duration
	// WriteTimeout is how long a client may leave one piece of a reply (at most 1 MiB)
	// unread before it is cut off. Default 30 s.
	WriteTimeout time.Duration
	// Now is the wall clock, for what is told or asked in times of day. Default time.Now.
	Now func() time.Time
	// AuthTimeout is how long a connection that has not authenticated, where it must, may be silent before it is
	// cut off: it takes a place of MaxClients. Default 60 s.
	AuthTimeout time.Duration
	Log         *slog.Logger
}

func (c *Config) setDefaults() {
	if c.Limits == (command.Limits{}) {
		c.Limits = command.DefaultLimits()
	}
	defaults := []struct {
		v *time.Duration
		d time.Duration
	}{{&c.AuthTimeout, time.Minute}, {&c.CommandTimeout, 3 * time.Second}, {&c.CompleteTimeout, time.Minute}, {&c.WriteTimeout, 30 * time.Second}, {&c.IdleAfter, 10 * time.Second}}
	for _, f := range defaults {
		if *f.v <= 0 {
			*f.v = f.d
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxCommandBytes <= 0 {
		c.MaxCommandBytes = 64 << 20
	}
	if c.MaxClients <= 0 {
		c.MaxClients = 10_000
	}
	if c.MaxBufferedBytes <= 0 {
		c.MaxBufferedBytes = 1 << 30
	}
	if c.MaxReplyBytes <= 0 {
		c.MaxReplyBytes = 1 << 30
	}
	c.MaxReplyBytes = max(c.MaxReplyBytes, 256<<20) // a window and an MGET must fit
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Server serves one port.
type Server struct {
	cfg     Config
	backend Backend
	table   *table

	// ctx ends when Shutdown gives up waiting; every command's context is under it.
	ctx    context.Context
	cancel context.CancelFunc
	// stopping ends when Shutdown begins, for what may be long.
	stopping context.Context
	stop     context.CancelFunc

	closing  atomic.Bool
	replies  *semaphore.Weighted // bytes of answers not yet written
	buffered atomic.Int64        // request bytes charged by connections (connReader)
	stats    counters
	crew     *crew // runs the shards' parts of pipelines

	mu       sync.Mutex
	listener net.Listener
	conns    map[*conn]struct{}
	lastID   int64
	wg       sync.WaitGroup // one per connection
}

// NewServer returns a server for b; Serve starts it.
func NewServer(cfg Config, b Backend) *Server {
	cfg.setDefaults()
	s := &Server{cfg: cfg, backend: b, table: newTable(), conns: make(map[*conn]struct{}),
		replies: semaphore.NewWeighted(cfg.MaxReplyBytes), crew: newCrew()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.stopping, s.stop = context.WithCancel(s.ctx)
	return s
}

// Serve accepts connections from l until Shutdown, then returns nil. It may be
// called once.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closing.Load() || s.listener != nil {
		s.mu.Unlock()
		l.Close()
		return nil
	}
	s.listener = l
	s.mu.Unlock()
	pause := time.Duration(0)
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.admit(nc)
		case s.closing.Load():
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept clients: %w", err)
		default:
			// Mostly out of file descriptors: the clients that are here go on, and
			// one of them ending is what helps.
			if pause = min(max(2*pause, 5*time.Millisecond), time.Second); pause == time.Second {
				s.cfg.Log.Warn("cannot accept clients", "err", err)
			}
			select {
			case <-time.After(pause):
			case <-s.stopping.Done():
				return nil
			}
		}
	}
}

func (s *Server) admit(nc net.Conn) {
	s.mu.Lock()
	if s.closing.Load() {
		s.mu.Unlock()
		nc.Close()
		return
	}
	if len(s.conns) >= s.cfg.MaxClients {
		s.mu.Unlock()
		s.stats.refused.Add(1)
		// A fresh socket's buffer takes one line at once; the deadline is for form.
		nc.SetWriteDeadline(time.Now().Add(time.Second))
		io.WriteString(nc, "-ERR max number of clients reached\r\n")
		nc.Close()
		return
	}
	s.lastID++
	c := newConn(s, nc, s.lastID)
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	s.stats.accepted.Add(1)
	go func() {
		defer s.wg.Done()
		c.serve()
		nc.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
}

// Shutdown stops accepting, lets every connection finish the pipeline it is
// executing, and closes them. If ctx ends first, what is still running is cut
// off, and ctx's error returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing.Store(true)
	s.stop()
	if s.listener != nil {
		s.listener.Close()
	}
	for c := range s.conns {
		// Wakes those that wait for a command. connReader looks at closing after
		// it sets a deadline of its own, so none can miss both.
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.wg.Wait(); s.crew.close(); close(done) }()
	select {
	case <-done:
		s.cancel()
		return nil
	case <-ctx.Done():
	}
	s.cancel()
	s.mu.Lock()
	for c := range s.conns {
		c.nc.Close()
	}
	s.mu.Unlock()
	<-done // the Backend returns when its context ends
	return ctx.Err()
}

// list returns the connections by age.
func (s *Server) list() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	return all
}

func (s *Server) clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// conn is one client connection, owned by the goroutine that runs serve.
type conn struct {
	srv     *Server
	nc      net.Conn
	id      int64
	in      connReader
	r       *resp.Reader
	w       *resp.Writer
	plan    plan
	pace    pace
	term    term
	created time.Time
	// reading is what READONLY and CLIENT CONSISTENCY have asked for.
	reading Reading
	// tx is what MULTI and WATCH have begun, nil if there is none.
	tx *transaction
	// quit: the connection ends after the replies written so far.
	quit bool
	auth authed

	// What CLIENT LIST shows of other connections.
	lastSpec   atomic.Pointer[spec]
	lastActive atomic.Int64 // Unix ns
	mu         sync.Mutex
	// Behind mu for who else reads them; written by the owner only.
	name, libName, libVer string
	user                  string
	proto                 int
}

func newConn(s *Server, nc net.Conn, id int64) *conn {
	c := &conn{srv: s, nc: nc, id: id, proto: 2, created: time.Now()}
	c.lastActive.Store(c.created.UnixNano())
	c.in.c = c
	c.r = resp.NewReader(&c.in, resp.Limits{MaxCommandBytes: s.cfg.MaxCommandBytes})
	c.w = resp.NewWriter(&connWriter{nc: nc, timeout: s.cfg.WriteTimeout})
	c.plan.init(c)
	c.lookUpUsers()
	return c
}

// serve is the connection's loop.
func (c *conn) serve() {
	var cmds []resp.Command
	var err error
	for !c.quit && !c.srv.closing.Load() {
		c.in.begin()
		cmds, err = c.r.ReadPipeline(cmds[:0])
		if errors.Is(err, os.ErrDeadlineExceeded) && !c.r.Partial() && !c.srv.closing.Load() {
			if c.auth.grant == nil && c.in.shrunk.Load() {
				break // it was told to authenticate, and says nothing
			}
			c.shrink() // idle: most connections are, most of the time
			cmds = nil
			continue
		}
		if err != nil {
			c.hangUp(err)
			break
		}
		c.run(cmds)
		if c.w.Flush() != nil {
			break
		}
	}
	c.endTx()
	c.term.end()
	c.in.release()
}

// shrink gives back what busier times needed.
func (c *conn) shrink() {
	c.r.Shrink()
	c.w.Shrink()
	c.plan.init(c)
	c.term.end()
	c.in.shrunk.Store(true)
}

// hangUp tells the client why, if it can still hear it.
func (c *conn) hangUp(err error) {
	var bad *resp.ProtocolError
	switch {
	case errors.As(err, &bad):
		c.err("ERR " + bad.Error())
	case errors.Is(err, errPeer):
		c.err("ERR this is a client port, not a peer port")
	case errors.Is(err, errTLS):
		c.err("ERR this port does not speak TLS")
	case errors.Is(err, errBuffers):
		c.err("TRYAGAIN nothing was done: this node holds too many bytes of unfinished requests")
	case errors.Is(err, os.ErrDeadlineExceeded) && !c.srv.closing.Load():
		c.err("ERR Protocol error: the command did not arrive within " + c.srv.cfg.CompleteTimeout.String())
	default:
		return // the client went away, or we are stopping
	}
	// What it sent is of no use any more, and it may take its time to read this.
	c.r = nil
	c.in.release()
	if c.w.Flush() != nil {
		return
	}
	// Closing a socket with unread bytes resets it, and the reset overtakes
	// the reply: take in what the client is still sending, for a moment.
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		c.nc.SetReadDeadline(time.Now().Add(time.Second))
		io.CopyN(io.Discard, c.nc, 4<<20)
	}
}

var (
	errBuffers = errors.New("front: too many request bytes buffered")
	errClosing = errors.New("front: closing")
	errPeer    = errors.New("front: a peer's hello")
	errTLS     = errors.New("front: a TLS handshake")
)

// freeBytes of a request are not charged to the server's budget: ordinary
// pipelines stay below it and touch no shared counter.
const freeBytes = 64 << 10

// argumentBytes is about what each argument of a long command takes beside its
// own bytes, until it is answered: a million empty ones are six megabytes on the
// wire and a hundred here.
const argumentBytes = 96

// connReader reads from the socket under the rules of the port: wait for a
// command as long as it takes, for the rest of one only so long, and hold only
// so many bytes.
type connReader struct {
	c       *conn
	begun   time.Time   // when the unfinished command began; zero if there is none
	charged int64       // to Server.buffered
	shrunk  atomic.Bool // the buffers have been given back since the last command
	met     bool        // the first bytes have come
	until   time.Time   // the deadline that the socket has
	partial bool        // it is that of an unfinished command
}

func (r *connReader) setDeadline(t time.Time) {
	r.until = t
	r.c.nc.SetReadDeadline(t)
}

// begin is called when a pipeline was executed and the next is awaited.
func (r *connReader) begin() {
	r.release()
	r.begun = time.Time{}
}

func (r *connReader) release() {
	if r.charged > 0 {
		r.c.srv.buffered.Add(-r.charged)
		r.charged = 0
	}
}

func (r *connReader) Read(p []byte) (int, error) {
	srv := r.c.srv
	now := time.Now()
	switch {
	case r.c.r.Partial():
		if r.begun.IsZero() {
			r.begun = now
		}
		r.setDeadline(r.begun.Add(srv.cfg.CompleteTimeout))
	case r.shrunk.Load() && r.c.auth.grant == nil:
		r.setDeadline(now.Add(srv.cfg.AuthTimeout))
	case r.shrunk.Load():
		r.setDeadline(time.Time{})
	case r.partial || r.until.Sub(now) < srv.cfg.IdleAfter/2: // not at each read: it costs as much as the rest
		r.setDeadline(now.Add(srv.cfg.IdleAfter))
	}
	r.partial = r.c.r.Partial()
	if srv.closing.Load() {
		return 0, errClosing
	}
	n, err := r.c.nc.Read(p)
	if n > 0 && !r.met {
		// A node that was told to join here would wait for an answer as long as we for
		// the end of its line.
		if r.met = true; transport.IsHello(p[:n]) {
			return 0, errPeer
		}
		if cert.IsHello(p[:n]) {
			return 0, errTLS
		}
	}
	if n > 0 && r.shrunk.Load() {
		r.shrunk.Store(false)
	}
	if over := int64(r.c.r.Buffered()+argumentBytes*r.c.r.Arguments()+n-freeBytes) - r.charged; over > 0 {
		r.charged += over
		if srv.buffered.Add(over) > srv.cfg.MaxBufferedBytes {
			srv.stats.refused.Add(1)
			return 0, errBuffers
		}
	}
	return n, err
}

// connWriter gives each write a deadline, so that a client that never reads is
// cut off instead of holding its replies for ever.
type connWriter struct {
	nc      net.Conn
	timeout time.Duration
	until   time.Time // the deadline that the socket has
}

func (w *connWriter) Write(p []byte) (int, error) {
	const piece = 1 << 20
	done := 0
	for {
		n := min(len(p)-done, piece)
		if now := time.Now(); w.until.Sub(now) < w.timeout/2 { // not at each write
			w.until = now.Add(w.timeout)
			w.nc.SetWriteDeadline(w.until)
		}
		m, err := w.nc.Write(p[done : done+n])
		if done += m; err != nil || done == len(p) {
			return done, err
		}
	}
}

// counters of one server.
type counters struct {
	accepted, refused, commands, pipelines atomic.Uint64
	authFailed, denied                     atomic.Uint64
	errors                                 [len(errorPrefixes)]atomic.Uint64
	reads, writes                          timing
}

// Stats are the counters of a port since it was opened.
type Stats struct {
	Clients   int    // connected now
	Accepted  uint64 // connections
	Refused   uint64 // connections over MaxClients or MaxBufferedBytes
	Commands  uint64 // executed or refused
	Pipelines uint64 // read
	// AuthFailed counts what was no user's name and token; Denied, commands that somebody had no right to.
	AuthFailed, Denied uint64
	Buffered           int64             // request bytes held now, beyond 64 KiB per connection
	Errors             map[string]uint64 // replies by prefix: ERR, MOVED, CLUSTERDOWN, ...
	// Reads and Writes are the times of commands on keys from when they are there to when they are answered; a transaction is one write.
	Reads, Writes Latency
}

// Stats may be called at any time.
func (s *Server) Stats() Stats {
	st := Stats{Clients: s.clients(), Accepted: s.stats.accepted.Load(), Refused: s.stats.refused.Load(), Commands: s.stats.commands.Load(),
		Pipelines: s.stats.pipelines.Load(), AuthFailed: s.stats.authFailed.Load(), Denied: s.stats.denied.Load(), Buffered: s.buffered.Load(), Errors: make(map[string]uint64, len(errorPrefixes)), Reads: s.stats.reads.load(), Writes: s.stats.writes.load()}
	for i, p := range errorPrefixes {
		st.Errors[p] = s.stats.errors[i].Load()
	}
	return st
}
