package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
)

// inboundKey names the only link that may carry a peer's lane to us.
type inboundKey struct {
	from string
	lane Lane
}

// inbound is the serving side of a link. Its reading loop (runRead) dispatches
// requests, its writing loop (runWrite) sends the answers that gathered.
type inbound struct {
	t      *TCP
	conn   *peerConn
	hello  hello
	limit  int // of a frame
	ctx    context.Context
	cancel context.CancelFunc
	offset *offset
	out    outbox
	done   chan struct{} // closed after the last dispatch
	// gone is what runWrite is writing; took fills it in. The loop's own.
	gone answers
	took func()

	// Guarded by out.mu.
	running  map[uint64]context.CancelFunc
	admitted int   // requests read whose answers are not written yet
	bytes    int64 // of them, and of their answers
	answers  int   // admitted requests whose answers are in the outbox ...
	size     int64 // ... and the bytes of these
	refused  int   // other answers in the outbox
	ponged   bool  // the outbox holds a pong
	closed   bool
}

// runAccept takes connections until Close.
func (t *TCP) runAccept() {
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			if t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: those in use come back.
			t.log.Warn("accept peer", "err", err)
			select {
			case <-t.ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		if !t.admit(conn) {
			t.stats.refused.Add(1)
			conn.Close()
			continue
		}
		t.wg.Go(func() {
			defer t.release()
			t.serve(conn)
		})
	}
}

// admit counts a connection in, if there is room.
func (t *TCP) admit(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.serving >= t.cfg.MaxConns || t.handshakes.Load() >= maxHandshakes {
		return false
	}
	t.serving++
	t.conns[conn] = struct{}{}
	return true
}

func (t *TCP) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.serving--
}

// serve greets a connection and serves it by its kind.
func (t *TCP) serve(raw net.Conn) {
	defer t.forget(raw)
	t.handshakes.Add(1)
	conn := t.newPeerConn(raw)
	h, refusal, err := t.greet(conn)
	if err == nil && refusal == nil {
		refusal = proven(&h, raw)
	}
	t.handshakes.Add(-1)
	if err != nil {
		t.stats.refused.Add(1)
		t.log.Debug("connection without hello", "remote", raw.RemoteAddr().String(), "err", err)
		if errors.Is(err, errMagic) {
			// A client that mistook the port, as a rule. Closed without a word it would
			// try again for long; this line no client takes for an answer.
			_ = writeAll(raw, []byte(strangerLine), t.cfg.DialTimeout)
		}
		return
	}
	if refusal != nil {
		t.stats.refused.Add(1)
		t.log.Debug("link refused", "from", h.from, "remote", raw.RemoteAddr().String(), "err", refusal)
		_ = writeAll(raw, appendAnswer(nil, refusal), t.cfg.DialTimeout)
		return
	}
	off := newOffset(h.clock, t.clock.now())
	if h.kind == kindStream {
		t.serveStream(conn, h, off)
		return
	}
	t.serveLink(conn, h, off)
}

// strangerLine is told to who does not speak the peer protocol. Its first letter
// begins no reply of RESP.
const strangerLine = "This is a peer port of Abacus, for nodes among themselves.\r\n"

// greet reads and judges a hello. A refusal is to be answered, an error not.
func (t *TCP) greet(conn *peerConn) (h hello, refusal *Error, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(t.cfg.DialTimeout)); err != nil {
		return h, nil, err
	}
	h, err = readHello(conn.r)
	if errors.As(err, &refusal) {
		return h, refusal, nil
	}
	if err != nil {
		return h, nil, err
	}
	return h, t.judge(&h), conn.SetReadDeadline(time.Time{})
}

func (t *TCP) judge(h *hello) *Error {
	own := t.cfg.ClusterID()
	switch {
	case h.to != "" && h.to != t.cfg.Self:
		return Errorf(CodeWrongNode, "this is node %s, not %s", t.cfg.Self, h.to)
	case h.kind != kindCall && h.from == "":
		return Errorf(CodeBadRequest, "no node id")
	case h.kind != kindCall && h.from == t.cfg.Self && h.incarnation != t.incarnation:
		return Errorf(CodeWrongNode, "node id %s is this node's", h.from)
	case h.cluster == own, h.kind == kindCall && (h.cluster == "" || own == ""):
		return nil // who is not in a cluster yet may call, and be called
	case own == "":
		return Errorf(CodeUnavailable, "node %s belongs to no cluster yet", t.cfg.Self)
	case withoutEra(h.cluster) == withoutEra(own) && h.kind == kindCall:
		return nil
	case withoutEra(h.cluster) == withoutEra(own):
		return Errorf(CodeWrongEra, "node %s is in era %s of its cluster, not in %s: the cluster was recovered without one of the two", t.cfg.Self, eraOf(own), eraOf(h.cluster))
	}
	return Errorf(CodeWrongCluster, "node %s belongs to cluster %q, not %q", t.cfg.Self, own, h.cluster)
}

func withoutEra(cluster string) string {
	id, _, _ := strings.Cut(cluster, "+")
	return id
}

func eraOf(cluster string) string {
	_, era, _ := strings.Cut(cluster, "+")
	return cmp.Or(era, "0")
}

func (t *TCP) serveLink(conn *peerConn, h hello, off *offset) {
	in := &inbound{
		t: t, conn: conn, hello: h, limit: t.cfg.MaxFrame,
		offset:  off,
		done:    make(chan struct{}),
		running: make(map[uint64]context.CancelFunc),
	}
	if h.lane == LaneControl {
		in.limit = maxControlFrame
	}
	in.out.wake = make(chan struct{}, 1)
	in.took = func() { in.gone = in.taken() } // made once: it is called for each write
	in.ctx, in.cancel = context.WithCancel(t.ctx)
	defer in.cancel()

	if refusal := t.adopt(in); refusal != nil {
		close(in.done)
		t.stats.refused.Add(1)
		_ = writeAll(conn, appendAnswer(nil, refusal), t.cfg.DialTimeout)
		return
	}
	// A live peer pings, so silence means that it is gone. Who makes a single
	// call does not.
	conn.idle = 2*t.cfg.DeadAfter + 2*t.cfg.PingEvery
	if h.kind == kindCall {
		conn.idle = max(conn.idle, callIdle)
	}
	err := writeAll(conn, appendAnswer(nil, nil), t.cfg.DialTimeout)
	written := make(chan struct{})
	go func() {
		defer close(written)
		in.runWrite()
	}()
	if err == nil {
		err = in.runRead()
	}
	close(in.done)
	t.disown(in)
	in.cancel()
	conn.Close()
	<-written
	in.out.mu.Lock()
	in.closed = true
	in.out.mu.Unlock()
	t.log.Debug("link ended", "from", h.from, "lane", h.lane, "err", err)
}

// adopt makes in the link of its lane. A link that it replaces is broken, and
// its last request dispatched, before the peer may send on the new one: so
// the order of a lane holds over a reconnection.
func (t *TCP) adopt(in *inbound) *Error {
	if in.hello.kind != kindLane {
		return nil
	}
	key := inboundKey{in.hello.from, in.hello.lane}
	t.mu.Lock()
	old := t.inbound[key]
	if old != nil && old.hello.incarnation == in.hello.incarnation && old.hello.sequence > in.hello.sequence {
		t.mu.Unlock()
		return Errorf(CodeRefused, "a later link is open")
	}
	t.inbound[key] = in
	t.mu.Unlock()
	if old == nil {
		return nil
	}
	old.cancel()
	old.conn.Close()
	wait := time.NewTimer(t.cfg.DialTimeout)
	defer wait.Stop()
	select {
	case <-old.done:
		return nil
	case <-wait.C:
	case <-in.ctx.Done():
	}
	t.mu.Lock()
	if t.inbound[key] == in {
		t.inbound[key] = old // or the next link would not wait for it
	}
	t.mu.Unlock()
	return Errorf(CodeBusy, "the link before still delivers")
}

func (t *TCP) disown(in *inbound) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := inboundKey{in.hello.from, in.hello.lane}
	if t.inbound[key] == in {
		delete(t.inbound, key)
	}
}

// runRead takes in requests.
func (in *inbound) runRead() error {
	for {
		h, err := readHeader(in.conn.r, in.limit)
		if err != nil {
			return err
		}
		if h.typ != frameRequest && h.typ != frameVoid && h.length > 0 {
			return fmt.Errorf("%w: type %d with a payload", errFrame, h.typ)
		}
		switch h.typ {
		case frameRequest:
			err = in.request(h)
		case frameVoid:
			_, err = in.conn.r.Discard(int(h.length))
		case frameCancel:
			in.out.mu.Lock()
			cancel := in.running[h.id]
			in.out.mu.Unlock()
			if cancel != nil {
				cancel()
			}
		case framePing:
			in.offset.translate(h.sent, in.t.clock.now(), 0)
			in.out.shrink() // pings come when nothing else does
			in.pong()
		default:
			err = fmt.Errorf("%w: type %d from the calling side", errFrame, h.typ)
		}
		if err != nil {
			return err
		}
	}
}

// request reads a request and dispatches it, if there is room and time.
func (in *inbound) request(h header) error {
	t := in.t
	t.stats.served.Add(1)
	n := int64(h.length)
	in.out.mu.Lock()
	busy := in.admitted >= t.cfg.MaxInFlight || in.bytes > 0 && in.bytes+n > 4*int64(t.cfg.MaxFrame)
	if !busy {
		in.admitted++
		in.bytes += n
	}
	in.out.mu.Unlock()
	if busy {
		t.stats.busy.Add(1)
		if _, err := in.conn.r.Discard(int(h.length)); err != nil {
			return err
		}
		return in.refuse(h.id, Errorf(CodeBusy, "node %s has too many requests of %s", t.cfg.Self, in.hello.from))
	}
	now := t.clock.now()
	deadline := in.offset.translate(h.sent, now, h.deadline)
	body, err := readPayload(in.conn.r, h)
	if err != nil {
		return err
	}
	if now = t.clock.now(); deadline <= now {
		t.stats.late.Add(1)
		in.answer(h.id, n, nil, Errorf(CodeTimeout, "the deadline passed before node %s began", t.cfg.Self))
		return nil
	}
	hs := t.handlers.Load()
	if serve := hs.inOrder[Method(h.number)]; serve != nil {
		var replied atomic.Bool
		serve(in.hello.from, body, func(resp []byte, err error) {
			if replied.CompareAndSwap(false, true) {
				in.answer(h.id, n, resp, err)
			}
		})
		return nil
	}
	serve := hs.calls[Method(h.number)]
	if serve == nil {
		in.answer(h.id, n, nil, Errorf(CodeNoMethod, "method %d", h.number))
		return nil
	}
	// No peer needs a day; a sum of times must not overflow.
	ctx, cancel := context.WithDeadline(in.ctx, t.clock.time(min(deadline, now+24*3600*1e6)))
	in.out.mu.Lock()
	in.running[h.id] = cancel
	in.out.mu.Unlock()
	t.wg.Go(func() {
		defer cancel()
		if ctx.Err() != nil {
			t.stats.late.Add(1)
			in.answer(h.id, n, nil, Errorf(CodeTimeout, "the caller gave up before node %s began", t.cfg.Self))
			return
		}
		resp, err := serve(ctx, in.hello.from, body)
		in.answer(h.id, n, resp, err)
	})
	return nil
}

// answer puts the answer of an admitted request of n bytes in the outbox.
func (in *inbound) answer(id uint64, n int64, resp []byte, err error) {
	h := header{typ: frameAnswer, id: id}
	if err == nil && len(resp) > in.limit {
		// Not CodeTooLarge: that would say that the request had no effect.
		err = Errorf(CodeUnknown, "answer of %d bytes, limit %d", len(resp), in.limit)
	}
	if e := AsError(err); e != nil {
		h.typ, h.number = frameError, uint16(e.Code)
		resp = []byte(e.Detail[:min(len(e.Detail), maxDetail)])
	}
	h.describe(resp)
	size := int64(headerSize + len(resp))
	in.out.mu.Lock()
	if in.closed {
		in.out.mu.Unlock()
		return
	}
	delete(in.running, id)
	in.bytes += size - n
	in.answers++
	in.size += size
	in.out.buf = appendFrame(in.out.buf, &h, resp)
	if in.admitted > 1 { // handlers about to answer share the write
		in.out.signal()
		in.out.mu.Unlock()
		return
	}
	b := in.out.begin(in.conn)
	if b == nil {
		in.out.mu.Unlock()
		return
	}
	gone := in.taken()
	in.out.mu.Unlock()
	in.t.stats.writes.Add(1)
	if in.out.write(in.conn, b) != nil {
		in.conn.Close() // the reading loop ends the link
		return
	}
	in.sent(gone)
}

// answers are those that are being written.
type answers struct {
	count int
	size  int64
}

// taken notes that what has gathered was taken to be written. The caller holds out.mu.
func (in *inbound) taken() (a answers) {
	a = answers{in.answers, in.size}
	in.answers, in.size, in.refused, in.ponged = 0, 0, 0, false
	return a
}

// sent notes that answers were written: their requests are not admitted any more.
func (in *inbound) sent(a answers) {
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	in.admitted -= a.count
	in.bytes -= a.size
}

// refuse answers a request that was not admitted. A peer that goes on without
// reading these answers loses its link: nothing else bounds them.
func (in *inbound) refuse(id uint64, e *Error) error {
	h := header{typ: frameError, number: uint16(e.Code), id: id}
	detail := []byte(e.Detail)
	h.describe(detail)
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	if in.refused++; in.refused > 4*in.t.cfg.MaxInFlight {
		return errors.New("peer sends requests and reads no answers")
	}
	in.out.buf = appendFrame(in.out.buf, &h, detail)
	in.out.signal()
	return nil
}

func (in *inbound) pong() {
	h := header{typ: framePong}
	in.out.mu.Lock()
	defer in.out.mu.Unlock()
	if !in.ponged {
		in.ponged = true
		in.out.buf = appendFrame(in.out.buf, &h, nil)
		in.out.signal()
	}
}

// runWrite sends what gathers in the outbox.
func (in *inbound) runWrite() {
	for {
		any, err := in.flush()
		switch {
		case err != nil:
			in.conn.Close() // the reading loop ends the link
			return
		case any:
			continue
		}
		select {
		case <-in.ctx.Done():
			return
		case <-in.out.wake:
			runtime.Gosched() // handlers about to answer share the write
		}
	}
}

func (in *inbound) flush() (any bool, err error) {
	in.gone = answers{}
	any, err = in.out.flush(in.conn, in.t.cfg.WriteTimeout, in.took)
	if any {
		in.t.stats.writes.Add(1)
	}
	if in.gone.count > 0 && err == nil {
		in.sent(in.gone)
	}
	return any, err
}
