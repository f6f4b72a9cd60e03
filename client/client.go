package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/transport/cert"
)

// Config says how to reach a cluster. Zero fields take the default.
type Config struct {
	// Addrs are client addresses (host:port) of one or more nodes. One is
	// enough to begin: the others are learnt. More survive a node that is down
	// when the client starts.
	Addrs []string
	// User and Token are who this client is, for clusters with users. The token alone is enough; with the user, another's token is refused.
	// A cluster without users takes any, so clients can be given theirs before users are turned on.
	User, Token string
	// Timeout bounds a call whose context has no deadline, all its attempts
	// together. Default 10 s.
	Timeout time.Duration
	// DialTimeout bounds one connection attempt. Default 1 s.
	DialTimeout time.Duration
	// Stall is the silence, while answers are due, after which a connection
	// counts as dead, so that a node that hangs leaves time to ask another. Nodes
	// answer within 3 s. Default 4 s.
	Stall time.Duration
	// Conns is how many connections to keep to each node for keyed commands.
	// One is enough but for load generators. Default 1.
	Conns int
	// MaxPendingBytes bounds what one connection holds queued or in flight;
	// callers wait at the bound. Default 32 MiB.
	MaxPendingBytes int
	// NoRouting sends everything to Addrs and lets the nodes forward it. For
	// networks that do not reach the cluster addresses.
	NoRouting bool
	// Stale has reads answered by the node that is asked, from what its own replica
	// has (of a shard that it holds none of, linearizable): they may miss what was
	// acknowledged before. With MaxStale they miss nothing that was acknowledged longer ago than
	// that: if the replica does not know that, the read is linearizable. To the millisecond,
	// 0: no bound. Writes are as ever. Nodes that do not know this read linearizable.
	Stale    bool
	MaxStale time.Duration
	// GiveUpRefused is how long to go on while every known address refuses
	// connections, after which a call fails with ErrUnavailable. For programs whose
	// user waits; a service outlives a restart of the whole cluster without it.
	// Default 0: no limit but the call's own.
	GiveUpRefused time.Duration
	// TLS, if it is set, has all connections speak TLS. Without ServerName, the certificate of a node must be for the host of the
	// address that is dialled.
	TLS *tls.Config
	// TLSFiles is TLS with certificates from files, which are read again when they change. Connections are then made anew, without a call that fails.
	TLSFiles *TLSFiles
	// Dial opens a connection; TLS comes on top of it. Default: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
}

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Timeout, 10*time.Second)
	def(&c.DialTimeout, time.Second)
	def(&c.Stall, 4*time.Second)
	if c.Conns == 0 {
		c.Conns = 1
	}
	if c.MaxPendingBytes == 0 {
		c.MaxPendingBytes = 32 << 20
	}
	if c.Dial == nil {
		c.Dial = dialTCP
	}
}

// validate reports every fault.
func (c *Config) validate() error {
	var faults []error
	if len(c.Addrs) == 0 {
		faults = append(faults, errors.New("no address given"))
	}
	for _, a := range c.Addrs {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" || port == "" {
			faults = append(faults, fmt.Errorf("address %q is not host:port, such as 127.0.0.1:7401", a))
		}
	}
	for name, d := range map[string]time.Duration{"Timeout": c.Timeout, "DialTimeout": c.DialTimeout, "Stall": c.Stall, "GiveUpRefused": c.GiveUpRefused} {
		if d < 0 {
			faults = append(faults, fmt.Errorf("field %s: %v is negative", name, d))
		}
	}
	if c.User != "" && c.Token == "" {
		faults = append(faults, fmt.Errorf("field User: %q without a Token", c.User))
	}
	if c.MaxStale != 0 && (!c.Stale || c.MaxStale < time.Millisecond) {
		faults = append(faults, fmt.Errorf("field MaxStale: %v is not at least 1ms, with Stale", c.MaxStale))
	}
	if c.Conns < 0 || c.Conns > 1024 {
		faults = append(faults, fmt.Errorf("field Conns: %d is not within 1..1024", c.Conns))
	}
	if c.TLS != nil && c.TLSFiles != nil {
		faults = append(faults, errors.New("fields TLS and TLSFiles: one of them"))
	}
	if c.MaxPendingBytes < 0 {
		faults = append(faults, fmt.Errorf("field MaxPendingBytes: %d is negative", c.MaxPendingBytes))
	}
	return errors.Join(faults...)
}

// Client is a connection to a cluster. It may be used by any number of
// goroutines at once.
type Client struct {
	cfg    Config
	seeds  seeds
	routes atomic.Pointer[routes]

	// refreshing holds a token while a refresh runs; its holder owns the two times.
	refreshing  chan struct{}
	refreshedAt time.Time
	learnedAt   time.Time

	spread atomic.Uint32 // numbers conns and private lanes

	// certs are those of Config.TLSFiles, nil without.
	certs *cert.Source

	numbers numbers // of writes
	stats   stats

	mu     sync.Mutex
	links  map[linkKey]*link
	closed bool

	life       context.Context // ends with Close
	end        context.CancelCauseFunc
	background sync.WaitGroup
}

// linkKey names a link: wide commands have one of their own, so that a GET
// does not wait behind a SCAN.
type linkKey struct {
	addr string
	wide bool
	n    int // which of an address's conns; for wide ones 0 or the number of a private lane
}

// Open makes a client. It connects when the first command needs it, so a
// cluster that is down shows there, as ErrUnavailable.
func Open(cfg Config) (*Client, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("open client: %w", err)
	}
	c := &Client{cfg: cfg, refreshing: make(chan struct{}, 1), links: map[linkKey]*link{}}
	for _, a := range cfg.Addrs {
		c.seeds.add(a)
	}
	c.life, c.end = context.WithCancelCause(context.Background())
	if err := c.secure(); err != nil {
		return nil, fmt.Errorf("open client: %w", err)
	}
	return c, nil
}

// Close breaks the connections and waits for what runs. Commands under way
// fail: those already sent with ErrUncertain, the others with ErrClosed.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	links := c.links
	c.links = nil
	c.mu.Unlock()
	c.end(ErrClosed)
	for _, l := range links {
		l.close()
	}
	c.background.Wait()
	return nil
}

// goBackground runs f until it is done or the client closes.
func (c *Client) goBackground(f func(ctx context.Context)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.background.Add(1)
	go func() {
		defer c.background.Done()
		f(c.life)
	}()
}

// link returns the link to an address, for keyed or for wide commands.
func (c *Client) link(addr string, wide bool, private int) (*link, error) {
	key := linkKey{addr: addr, wide: wide, n: private}
	if !wide && c.cfg.Conns > 1 {
		key.n = int(c.spread.Add(1)) % c.cfg.Conns
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, &linkError{addr: addr, err: ErrClosed}
	}
	l := c.links[key]
	if l == nil {
		l = &link{addr: addr, cfg: &c.cfg, certs: c.certs, quit: c.life.Done()}
		c.links[key] = l
	}
	return l, nil
}

// dropPrivate closes the links of a private lane.
func (c *Client) dropPrivate(private int) {
	var drop []*link
	c.mu.Lock()
	for key, l := range c.links {
		if key.wide && key.n == private {
			drop = append(drop, l)
			delete(c.links, key)
		}
	}
	c.mu.Unlock()
	for _, l := range drop {
		l.close()
	}
}

// allRefuse says whether every known address has refused connections for as
// long as the configuration allows. One that takes them, or does not answer at
// all, may have a cluster behind it that is electing a leader.
func (c *Client) allRefuse() bool {
	if c.cfg.GiveUpRefused == 0 {
		return false
	}
	refused := map[string]bool{} // and false: connected
	c.mu.Lock()
	for key, l := range c.links {
		switch since, up := l.refused(); {
		case up:
			refused[key.addr] = false
		case !since.IsZero() && time.Since(since) >= c.cfg.GiveUpRefused:
			if _, known := refused[key.addr]; !known {
				refused[key.addr] = true
			}
		}
	}
	c.mu.Unlock()
	for _, addr := range c.routeSources() {
		if !refused[addr] {
			return false
		}
	}
	return true
}

// Do runs one command and returns its answer. An error that the cluster
// answered comes as *ServerError.
func (c *Client) Do(ctx context.Context, args ...string) (Reply, error) {
	r := c.DoMulti(ctx, []Cmd{Command(args...)})[0]
	return r.Reply, r.Err
}

// Result is what came of one command of a batch.
type Result struct {
	Reply Reply
	Err   error
}

// DoMulti runs a batch of commands, pipelined to all the nodes concerned at
// once, and returns a result for each. Commands of one node go in one piece.
func (c *Client) DoMulti(ctx context.Context, cmds []Cmd) []Result {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.cfg.Timeout, ErrTimeout)
		defer cancel()
	}
	return c.run(ctx, cmds, 0)
}

// seeds are the client addresses: given ones first, then learnt ones, with the
// one that is in use in front.
type seeds struct {
	mu    sync.Mutex
	addrs []string
	cur   int
}

const maxSeeds = 64

func (s *seeds) add(addr string) {
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "0" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.addrs {
		if a == addr {
			return
		}
	}
	if len(s.addrs) < maxSeeds {
		s.addrs = append(s.addrs, addr)
	}
}

// list returns all addresses, the one in use first.
func (s *seeds) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.addrs))
	out = append(out, s.addrs[s.cur:]...)
	return append(out, s.addrs[:s.cur]...)
}

func (s *seeds) current() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addrs[s.cur]
}

// bad moves on from an address that failed, if it is still the one in use.
func (s *seeds) bad(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.addrs[s.cur] == addr {
		s.cur = (s.cur + 1) % len(s.addrs)
	}
}
