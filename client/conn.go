package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/abacusdb/abacus/transport/resp"
)

// flight is a group of commands that goes to one node in one piece, and its
// answers. It is the unit that a conn queues, writes and completes.
type flight struct {
	buf     []byte  // the encoded commands
	replies []Reply // one for each command, filled by the reading loop
	want    int     // how many commands

	weight  int64         // what it holds of the conn's budget
	written time.Time     // when the last byte went out; guarded by conn.mu
	done    chan struct{} // closed when replies are complete or err is set
	err     error         // *linkError
}

func newFlight(cmds []Cmd) *flight {
	size := 0
	for _, c := range cmds {
		size += 16
		for _, a := range c.Args {
			size += len(a) + 16
		}
	}
	f := &flight{buf: make([]byte, 0, size), want: len(cmds), replies: make([]Reply, 0, len(cmds)), done: make(chan struct{})}
	for _, c := range cmds {
		f.buf = resp.AppendCommand(f.buf, c.Args...)
	}
	return f
}

// partingWait is how long a failed write leaves the reading loop to find the
// node's last word, which may say that nothing was executed.
const partingWait = 100 * time.Millisecond

// errStalled: the node took commands and answers nothing at all.
var errStalled = errors.New("the node does not answer")

// conn is one connection and its two loops. Any number of callers share it.
type conn struct {
	addr  string
	nc    net.Conn
	stall time.Duration       // silence, while answers are due, after which the connection counts as dead
	room  *semaphore.Weighted // bytes queued or in flight: the bound on this conn's memory
	max   int64
	wake  chan struct{} // tells the writing loop that the queue is not empty
	dead  chan struct{} // closed by fail

	mu       sync.Mutex
	queue    []*flight // not yet taken by the writing loop: certainly not sent
	inflight []*flight // taken, in the order of the answers to come
	heard    time.Time // when the node last sent anything
	err      error     // set once; nothing is queued after that
	ending   bool      // nothing is queued any more; the last answer ends it

	loops sync.WaitGroup
}

func newConn(addr string, nc net.Conn, stall time.Duration, maxBytes int64) *conn {
	c := &conn{
		addr: addr, nc: nc, stall: stall, max: maxBytes,
		room: semaphore.NewWeighted(maxBytes),
		wake: make(chan struct{}, 1), dead: make(chan struct{}),
	}
	c.loops.Add(2)
	go c.runWriter()
	go c.runReader()
	return c
}

// start queues a flight. An error is certain: nothing of it was sent. It blocks
// while the conn holds too much already.
func (c *conn) start(ctx context.Context, f *flight) error {
	f.weight = min(int64(len(f.buf))+256, c.max)
	if !c.room.TryAcquire(f.weight) {
		if err := c.room.Acquire(ctx, f.weight); err != nil {
			return &linkError{addr: c.addr, err: fmt.Errorf("wait for room on the connection: %w", context.Cause(ctx))}
		}
	}
	c.mu.Lock()
	if err := c.err; err != nil || c.ending {
		if err == nil {
			err = errReplaced
		}
		c.mu.Unlock()
		c.room.Release(f.weight)
		return &linkError{addr: c.addr, err: err}
	}
	c.queue = append(c.queue, f)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

// wait waits for the flight's answers or the end of ctx. When ctx ends first,
// a flight that the writing loop has not taken yet is withdrawn, which makes
// its failure certain; the answers to another are dropped when they come.
func (c *conn) wait(ctx context.Context, f *flight) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	for i, q := range c.queue {
		if q == f {
			c.queue = append(c.queue[:i], c.queue[i+1:]...)
			c.mu.Unlock()
			c.room.Release(f.weight)
			return &linkError{addr: c.addr, err: context.Cause(ctx)}
		}
	}
	c.mu.Unlock()
	select {
	case <-f.done: // the answer came in the meantime
		return f.err
	default:
		return &linkError{addr: c.addr, sent: true, err: context.Cause(ctx)}
	}
}

// failed says whether the conn is of no use any more.
func (c *conn) failed() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}

// cause is why the conn failed; nil if it has not.
func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// fail ends the conn: queued flights certainly were not sent, taken ones may
// have been executed, unless the node never took the conn.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	queue, inflight := c.queue, c.inflight
	c.queue, c.inflight = nil, nil
	c.mu.Unlock()

	close(c.dead)
	c.nc.Close() // wakes both loops
	sent := !errors.Is(err, ErrTooManyClients) && !errors.Is(err, ErrNotClientPort) && !errors.Is(err, ErrTLS)
	for _, f := range inflight {
		c.finish(f, &linkError{addr: c.addr, sent: sent, err: err})
	}
	for _, f := range queue {
		c.finish(f, &linkError{addr: c.addr, err: err})
	}
}

func (c *conn) finish(f *flight, err error) {
	f.err = err
	c.room.Release(f.weight)
	close(f.done)
}

// close ends the conn and waits for its loops.
func (c *conn) close() {
	c.fail(ErrClosed)
	c.loops.Wait()
}

// copyBelow: smaller flights are gathered into one buffer and one write.
const copyBelow = 32 << 10

// runWriter sends what is queued. Everything that waits when it comes round
// goes out in one write; that is all there is to pipelining.
func (c *conn) runWriter() {
	defer c.loops.Done()
	var (
		taken  []*flight
		gather []byte
	)
	for {
		select {
		case <-c.wake:
		case <-c.dead:
			return
		}
		// Other callers that are ready to run get to queue first: a write then
		// carries several times as many commands under load, and costs nothing without.
		runtime.Gosched()
		c.mu.Lock()
		taken = append(taken[:0], c.queue...)
		clear(c.queue)
		c.queue = c.queue[:0]
		if c.err != nil { // fail() has taken the queue
			c.mu.Unlock()
			return
		}
		c.inflight = append(c.inflight, taken...)
		c.mu.Unlock()

		gather = gather[:0]
		sent := 0 // of taken
		for i, f := range taken {
			if len(gather)+len(f.buf) > copyBelow && len(gather) > 0 {
				if !c.write(gather) {
					return
				}
				c.markWritten(taken[sent:i])
				sent, gather = i, gather[:0]
			}
			if len(f.buf) > copyBelow {
				if !c.write(f.buf) {
					return
				}
				c.markWritten(taken[sent : i+1])
				sent = i + 1
				continue
			}
			gather = append(gather, f.buf...)
		}
		if len(gather) > 0 && !c.write(gather) {
			return
		}
		c.markWritten(taken[sent:])
		clear(taken)
	}
}

// write sends b in pieces, each with the full patience: a big command over a
// slow network is progress.
func (c *conn) write(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), 256<<10)
		c.nc.SetWriteDeadline(time.Now().Add(c.stall))
		if _, err := c.nc.Write(b[:n]); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				// The node has closed; the reading loop comes to the end of what it said.
				select {
				case <-c.dead:
				case <-time.After(partingWait):
				}
			}
			c.fail(fmt.Errorf("send: %w", stalled(err)))
			return false
		}
		b = b[n:]
	}
	return true
}

// markWritten notes that flights went out whole: from now on an answer is due
// to the oldest of them.
func (c *conn) markWritten(flights []*flight) {
	now := time.Now()
	c.mu.Lock()
	for _, f := range flights {
		f.written = now
	}
	c.nc.SetReadDeadline(c.patience())
	c.mu.Unlock()
}

// patience is when a node that stays silent counts as dead: not before it has
// had the whole of the oldest command for as long as stall, and said nothing for
// as long. Zero: it owes no answer, and may be silent for ever. Other callers' commands
// that go out meanwhile prolong nothing. Called with mu held.
func (c *conn) patience() time.Time {
	if len(c.inflight) == 0 || c.inflight[0].written.IsZero() {
		return time.Time{}
	}
	since := c.inflight[0].written
	if c.heard.After(since) {
		since = c.heard
	}
	return since.Add(c.stall)
}

// runReader gives each answer to the oldest flight that waits.
func (c *conn) runReader() {
	defer c.loops.Done()
	r := resp.NewReplyReader(patient{c}, replyLimits)
	for first := true; ; first = false {
		reply, err := r.ReadReply()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the node closed the connection")
			}
			var garbled *resp.ProtocolError
			if first && errors.As(err, &garbled) {
				err = fmt.Errorf("%w: %w", ErrNotClientPort, err)
			}
			if first { // what a node says to a client's certificate comes after the handshake
				err = tlsError(err)
			}
			c.fail(fmt.Errorf("receive: %w", stalled(err)))
			return
		}
		if first && wantsTLS(reply) {
			c.fail(fmt.Errorf("%w: the node takes nothing without it", ErrTLS))
			return
		}
		if first && isTooManyClients(reply) {
			// The node says so before it reads anything, and closes. Commands are in
			// flight already as a rule: this is no answer to the oldest.
			c.fail(ErrTooManyClients)
			return
		}
		if isPush(reply) {
			continue
		}
		c.mu.Lock()
		if len(c.inflight) == 0 {
			c.mu.Unlock()
			// An error before any command is the node's parting word.
			if text, ok := replyError(reply); ok {
				c.fail(parseServerError(text))
			} else {
				c.fail(errors.New("the node sent an answer that nobody asked for"))
			}
			return
		}
		f := c.inflight[0]
		f.replies = append(f.replies, reply)
		complete := len(f.replies) == f.want
		if complete {
			c.inflight[0] = nil
			c.inflight = c.inflight[1:]
		}
		last := c.ending && c.idleLocked()
		c.mu.Unlock()
		if complete {
			c.finish(f, nil)
		}
		if last {
			c.fail(errReplaced)
			return
		}
	}
}

// patient reads from the socket for as long as the node deserves.
type patient struct{ c *conn }

func (p patient) Read(b []byte) (int, error) {
	c := p.c
	for {
		c.mu.Lock()
		c.nc.SetReadDeadline(c.patience())
		c.mu.Unlock()
		n, err := c.nc.Read(b)
		c.mu.Lock()
		if n > 0 {
			c.heard = time.Now()
		}
		until := c.patience()
		c.mu.Unlock()
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && (until.IsZero() || time.Now().Before(until)) {
			continue // a deadline for what has been answered since
		}
		return n, err
	}
}

func stalled(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errStalled
	}
	return err
}
