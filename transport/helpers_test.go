package transport

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

const (
	mEcho Method = 1000 + iota
	mBlock
	mCount
	mStream
)

// cluster is a set of nodes that find each other.
type cluster struct {
	t  *testing.T
	mu sync.Mutex
	at map[string]string
}

func newCluster(t *testing.T) *cluster {
	checkGoroutines(t)
	return &cluster{t: t, at: map[string]string{}}
}

// checkGoroutines fails the test if it leaves goroutines behind.
func checkGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	})
}

// node starts a node; edit changes its configuration.
func (c *cluster) node(id string, edit func(*Config)) *TCP {
	c.t.Helper()
	tr := c.listen(id, edit)
	tr.Start()
	return tr
}

func (c *cluster) listen(id string, edit func(*Config)) *TCP {
	c.t.Helper()
	cfg := Config{
		Self: id, Addr: "127.0.0.1:0",
		ClusterID: func() string { return "c1" },
		Resolve: func(id string) (string, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if a, ok := c.at[id]; ok {
				return a, nil
			}
			return "", errors.New("no such node")
		},
	}
	if edit != nil {
		edit(&cfg)
	}
	tr, err := Listen(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { tr.Close() })
	c.mu.Lock()
	c.at[id] = tr.Addr().String()
	c.mu.Unlock()
	tr.Handle(mEcho, func(_ context.Context, from string, req []byte) ([]byte, error) {
		return append([]byte(from+":"), req...), nil
	})
	return tr
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(10 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			buf := make([]byte, 1<<20)
			t.Fatalf("not in time: %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}

func in(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func wantCode(t *testing.T, err error, want Code) {
	t.Helper()
	if CodeOf(err) != want {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// fault is a Dial seam whose connections a test can hold, freeze and break.
type fault struct {
	mu    sync.Mutex
	cond  *sync.Cond
	held  bool // bytes wait, in both directions
	conns []*faultConn
	dials int
}

func newFault() *fault {
	f := &fault{}
	f.cond = sync.NewCond(&f.mu)
	return f
}

func (f *fault) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials++
	if err != nil {
		return nil, err
	}
	fc := &faultConn{Conn: conn, f: f}
	f.conns = append(f.conns, fc)
	return fc, nil
}

func (f *fault) hold(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = on
	f.cond.Broadcast()
}

// kill breaks all connections, as a reset does.
func (f *fault) kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Conn.Close()
	}
}

type faultConn struct {
	net.Conn
	f       *fault
	queue   []byte // written while held
	closed  bool
	flushed chan struct{}
}

// Write takes what it gets at once, as a socket buffer does, and lets it out
// when nothing is held.
func (c *faultConn) Write(p []byte) (int, error) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if !c.f.held && c.flushed == nil { // or it would overtake what is still held
		return c.Conn.Write(p)
	}
	c.queue = append(c.queue, p...)
	if c.flushed == nil {
		c.flushed = make(chan struct{})
		go func() {
			defer close(c.flushed)
			c.f.mu.Lock()
			defer c.f.mu.Unlock()
			for c.f.held && !c.closed {
				c.f.cond.Wait()
			}
			if !c.closed {
				c.Conn.Write(c.queue)
			}
			c.queue, c.flushed = nil, nil
		}()
	}
	return len(p), nil
}

func (c *faultConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	for c.f.held && !c.closed {
		c.f.cond.Wait()
	}
	if c.closed {
		return 0, net.ErrClosed
	}
	return n, err
}

// SetDeadline wakes a held Read if the time is past, which is how the
// transport gives up a connection attempt.
func (c *faultConn) SetDeadline(t time.Time) error {
	if !t.IsZero() && t.Before(time.Now()) {
		c.f.mu.Lock()
		c.closed = true
		c.f.cond.Broadcast()
		c.f.mu.Unlock()
	}
	return c.Conn.SetDeadline(t)
}

func (c *faultConn) Close() error {
	c.f.mu.Lock()
	c.closed = true
	c.f.cond.Broadcast()
	c.f.mu.Unlock()
	return c.Conn.Close()
}

// pending is a request under way.
type pending struct {
	done chan struct{}
	resp []byte
	err  error
}

// send is Go with something to wait for. ctx gives the deadline.
func send(ctx context.Context, tr Transport, to string, lane Lane, m Method, req []byte) *pending {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(10 * time.Second)
	}
	p := &pending{done: make(chan struct{})}
	tr.Go(to, lane, m, req, deadline, func(resp []byte, err error) {
		p.resp, p.err = resp, err
		close(p.done)
	})
	return p
}

func (p *pending) Wait() ([]byte, error) { <-p.done; return p.resp, p.err }
