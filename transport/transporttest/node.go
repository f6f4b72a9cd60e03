package transporttest

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/transport"
)

const (
	defaultTimeout = 10 * time.Second // of a call whose context has no deadline
	maxQueue       = 8192             // requests that wait on one link
	maxRunning     = 4096             // handlers at once for one calling node
	maxFrame       = 72 << 20
	maxControl     = 1 << 20
)

// node is one member's transport.
type node struct {
	net  *Network
	id   string
	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup // link loops, handlers, streams

	mu       sync.Mutex
	closed   bool
	handlers map[transport.Method]any // Handler, InOrderHandler or StreamHandler
	links    map[linkKey]*link
	calls    map[*call]struct{} // ours, unanswered
	serving  map[*call]struct{} // of others, handed to one of our handlers
	running  map[string]int     // handlers at work, by caller
	ended    []func(peer string)
}

type linkKey struct {
	to   string
	lane transport.Lane
}

func newNode(net *Network, id string) *node {
	ctx, stop := context.WithCancel(context.Background())
	return &node{
		net: net, id: id, ctx: ctx, stop: stop,
		handlers: make(map[transport.Method]any),
		links:    make(map[linkKey]*link),
		calls:    make(map[*call]struct{}),
		serving:  make(map[*call]struct{}),
		running:  make(map[string]int),
	}
}

// call is a request under way.
type call struct {
	origin   *node
	to       string
	from     string // what the handler sees: "" for CallAddr
	method   transport.Method
	req      []byte
	ctx      context.Context
	cancel   context.CancelFunc
	deadline time.Time
	at       time.Time // not delivered earlier
	limit    int       // of a frame

	complete func([]byte, error)
	answered atomic.Bool
	stopCtx  func() bool
}

// finish completes the call; only the first one counts.
func (c *call) finish(resp []byte, err error) {
	if !c.answered.CompareAndSwap(false, true) {
		return
	}
	c.origin.mu.Lock()
	delete(c.origin.calls, c)
	stop := c.stopCtx
	c.origin.mu.Unlock()
	if stop != nil {
		stop()
	}
	c.complete(resp, err)
	c.cancel()
}

// expire ends the wait of a caller whose context ended. The request may be
// on its way or at work: its fate is unknown.
func (c *call) expire() {
	c.finish(nil, transport.Errorf(transport.CodeLinkLost, "wait for %s: %v", c.to, context.Cause(c.ctx)))
}

func (nd *node) Self() string { return nd.id }

func (nd *node) Call(ctx context.Context, to string, lane transport.Lane, m transport.Method, req []byte) ([]byte, error) {
	return nd.call(ctx, nd.id, to, lane, m, req)
}

func (nd *node) Go(to string, lane transport.Lane, m transport.Method, req []byte, deadline time.Time, done func([]byte, error)) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	nd.send(ctx, nd.id, to, lane, m, req, func(resp []byte, err error) {
		cancel()
		go done(resp, err) // whoever calls Go may hold what done wants
	})
}

func (nd *node) CallAddr(ctx context.Context, addr string, m transport.Method, req []byte) ([]byte, error) {
	return nd.call(ctx, "", addr, transport.LaneCall, m, req)
}

func (nd *node) call(ctx context.Context, from, to string, lane transport.Lane, m transport.Method, req []byte) (resp []byte, err error) {
	done := make(chan struct{})
	nd.send(ctx, from, to, lane, m, req, func(r []byte, e error) {
		resp, err = r, e
		close(done)
	})
	<-done
	return resp, err
}

// send puts a request on its link.
func (nd *node) send(ctx context.Context, from, to string, lane transport.Lane, m transport.Method, req []byte, complete func([]byte, error)) {
	c := &call{origin: nd, to: to, from: from, method: m, limit: maxFrame, complete: complete}
	var ok bool
	if c.deadline, ok = ctx.Deadline(); !ok {
		c.deadline = time.Now().Add(defaultTimeout)
	}
	c.ctx, c.cancel = context.WithDeadline(ctx, c.deadline)
	if lane == transport.LaneControl {
		c.limit = maxControl
	}
	switch {
	case lane >= transport.Lanes:
		c.finish(nil, transport.Errorf(transport.CodeBadRequest, "lane %d", lane))
		return
	case len(req) > c.limit:
		c.finish(nil, transport.Errorf(transport.CodeTooLarge, "request of %d bytes, limit %d", len(req), c.limit))
		return
	case ctx.Err() != nil:
		c.finish(nil, transport.Errorf(transport.CodeTimeout, "call %s: %v", to, ctx.Err()))
		return
	}
	// As over a socket, the receiver gets bytes of its own.
	c.req = bytes.Clone(req)
	c.at = time.Now().Add(nd.net.delay(nd.id, to))

	nd.mu.Lock()
	if nd.closed {
		nd.mu.Unlock()
		c.finish(nil, transport.Errorf(transport.CodeClosed, "node %s is closed", nd.id))
		return
	}
	key := linkKey{to, lane}
	l := nd.links[key]
	if l == nil {
		l = &link{origin: nd, queue: make(chan *call, maxQueue)}
		nd.links[key] = l
		nd.wg.Go(l.run)
	}
	select {
	case l.queue <- c: // under the lock, so that the order of calls is the order of the queue
		nd.calls[c] = struct{}{}
		c.stopCtx = context.AfterFunc(c.ctx, c.expire)
		nd.mu.Unlock()
	default:
		nd.mu.Unlock()
		c.finish(nil, transport.Errorf(transport.CodeUnavailable, "queue to %s is full", to))
	}
}

func (nd *node) Handle(m transport.Method, h transport.Handler) { nd.register(m, h) }

func (nd *node) HandleInOrder(m transport.Method, h transport.InOrderHandler) { nd.register(m, h) }

func (nd *node) HandleStream(m transport.Method, h transport.StreamHandler) { nd.register(m, h) }

func (nd *node) HandleEnded(f func(peer string)) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	nd.ended = append(nd.ended, f)
}

// left tells of a node that has left the network.
func (nd *node) left(id string) {
	nd.mu.Lock()
	ended := nd.ended
	if nd.closed {
		ended = nil
	}
	nd.mu.Unlock()
	for _, f := range ended {
		f(id)
	}
}

func (nd *node) register(m transport.Method, h any) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	if _, used := nd.handlers[m]; used {
		panic("transporttest: a method has two handlers")
	}
	nd.handlers[m] = h
}

// Close takes the node off the network, fails its calls and those of others
// that it was serving, and waits for its loops and handlers.
func (nd *node) Close() error {
	nd.mu.Lock()
	if nd.closed {
		nd.mu.Unlock()
		nd.wg.Wait()
		return nil
	}
	nd.closed = true
	var calls, serving []*call
	for c := range nd.calls {
		calls = append(calls, c)
	}
	for c := range nd.serving {
		serving = append(serving, c)
	}
	nd.mu.Unlock()

	for _, other := range nd.net.leave(nd) {
		other.left(nd.id)
	}
	// Before the handlers' contexts end, as a socket would: what they say of
	// that does not leave this node.
	for _, c := range serving {
		nd.breakOff(c)
	}
	nd.stop()
	for _, c := range calls {
		c.finish(nil, transport.Errorf(transport.CodeLinkLost, "node %s closed", nd.id))
	}
	nd.wg.Wait()
	return nil
}

// breakOff tells the caller of a request that this node closed.
func (nd *node) breakOff(c *call) {
	if !nd.net.lost(nd.id, c.origin.id) {
		c.finish(nil, transport.Errorf(transport.CodeLinkLost, "node %s closed", nd.id))
		return
	}
	c.finishLater(nd.id)
}

// finishLater ends a wait over a cut link, as a keepalive would.
func (c *call) finishLater(peer string) {
	time.AfterFunc(DeadAfter, func() {
		c.finish(nil, transport.Errorf(transport.CodeLinkLost, "no answer from %s", peer))
	})
}
