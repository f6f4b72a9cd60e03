package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	streamTimeout   = 10 * time.Minute // of a stream whose context has no deadline
	streamIdle      = 30 * time.Second // a body that stands still longer is given up
	maxStreamHeader = 1 << 20
	chunkBytes      = 256 << 10
)

// Stream sends a header and size bytes of body over a connection of its own.
//
// While the receiver works it sends pongs, so that a peer that is slow and one
// that is gone differ. body is read on the caller's goroutine: Stream returns
// no sooner than a Read that blocks.
func (t *TCP) Stream(ctx context.Context, to string, m Method, head []byte, body io.Reader, size int64) ([]byte, error) {
	if size < 0 || len(head) > maxStreamHeader || len(to) == 0 || len(to) > maxIDBytes {
		return nil, Errorf(CodeBadRequest, "stream to %q of %d bytes with a header of %d", to, size, len(head))
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(streamTimeout)
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	dialCtx, dialed := context.WithTimeout(ctx, t.cfg.DialTimeout)
	conn, err := t.open(dialCtx, hello{kind: kindStream, lane: LaneCall, to: to}, t.dialer(to))
	dialed()
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	type answer struct {
		resp []byte
		err  error
	}
	answers := make(chan answer, 1)
	conn.idle = t.cfg.DeadAfter + 2*t.cfg.PingEvery
	go func() {
		resp, err := readOneAnswer(conn.r, t.cfg.MaxFrame)
		conn.Close() // a write that still goes on is in vain
		answers <- answer{resp, err}
	}()
	bodyErr := t.sendStream(conn, m, head, body, size, deadline)
	if bodyErr != nil {
		conn.Close()
	}
	a := <-answers
	t.forget(conn)
	var numbered *Error
	switch {
	case a.err == nil || errors.As(a.err, &numbered):
		return a.resp, a.err // the receiver may answer before it has read all
	case bodyErr != nil:
		return nil, bodyErr
	}
	return nil, lostError(ctx, to, a.err)
}

// sendStream returns an error only if the body failed; if the connection
// does, the reading side knows more.
func (t *TCP) sendStream(conn net.Conn, m Method, head []byte, body io.Reader, size int64, deadline time.Time) error {
	h := header{typ: frameStream, number: uint16(m), id: uint64(size), sent: t.clock.now(), deadline: t.clock.at(deadline)}
	h.describe(head)
	frame := appendFrame(make([]byte, 0, headerSize+max(len(head), int(min(size, chunkBytes)))), &h, head)
	if _, err := conn.Write(frame); err != nil {
		return nil
	}
	for left := size; left > 0; {
		n := min(left, chunkBytes)
		frame = append(frame[:0], make([]byte, headerSize+n)...)
		if _, err := io.ReadFull(body, frame[headerSize:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read stream body: %w", err)
		}
		h := header{typ: frameChunk}
		h.describe(frame[headerSize:])
		h.put(frame)
		if _, err := conn.Write(frame); err != nil {
			return nil
		}
		left -= n
	}
	return nil
}

// serveStream reads the head of a stream and runs its handler.
func (t *TCP) serveStream(conn *peerConn, hi hello, off *offset) {
	var refusal *Error
	if t.streams.Add(1) > maxStreams {
		refusal = Errorf(CodeBusy, "node %s receives %d streams", t.cfg.Self, maxStreams)
	}
	defer t.streams.Add(-1)
	if err := writeAll(conn, appendAnswer(nil, refusal), t.cfg.DialTimeout); err != nil || refusal != nil {
		return
	}
	conn.idle = streamIdle
	h, err := readHeader(conn.r, maxStreamHeader)
	if err != nil || h.typ != frameStream || int64(h.id) < 0 {
		t.log.Debug("stream without head", "from", hi.from, "err", err)
		return
	}
	head, err := readPayload(conn.r, h)
	if err != nil {
		t.log.Debug("stream without head", "from", hi.from, "err", err)
		return
	}
	now := t.clock.now()
	deadline := off.translate(h.sent, now, h.deadline)
	ctx, cancel := context.WithDeadline(t.ctx, t.clock.time(min(deadline, now+24*3600*1e6)))
	defer cancel()
	// A handler that waits in the body's Read must see the end of its context.
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	// From here on the connection is written by the pongs and the answer.
	var writing sync.Mutex
	write := func(h header, payload []byte) error {
		writing.Lock()
		defer writing.Unlock()
		return writeAll(conn, appendFrame(nil, &h, payload), t.cfg.WriteTimeout)
	}
	working := make(chan struct{})
	alive := make(chan struct{})
	go func() {
		defer close(alive)
		tick := time.NewTicker(t.cfg.PingEvery)
		defer tick.Stop()
		for {
			select {
			case <-working:
				return
			case <-tick.C:
				if write(header{typ: framePong}, nil) != nil {
					cancel() // the sender is gone
					return
				}
			}
		}
	}()
	resp, err := t.runStream(ctx, hi.from, Method(h.number), head, &streamBody{conn: conn, left: int64(h.id)}, int64(h.id))
	close(working)
	<-alive

	a := header{typ: frameAnswer}
	if err == nil && len(resp) > t.cfg.MaxFrame {
		err = Errorf(CodeUnknown, "answer of %d bytes, limit %d", len(resp), t.cfg.MaxFrame)
	}
	if e := AsError(err); e != nil {
		a.typ, a.number = frameError, uint16(e.Code)
		resp = []byte(e.Detail[:min(len(e.Detail), maxDetail)])
	}
	a.describe(resp)
	if write(a, resp) != nil {
		return
	}
	// Closing with unread bytes would reset the connection and may take the
	// answer with it: read until the sender, who has the answer, closes.
	conn.idle = 0
	if conn.SetReadDeadline(time.Now().Add(2*time.Second)) == nil {
		_, _ = io.Copy(io.Discard, conn.r)
	}
}

func (t *TCP) runStream(ctx context.Context, from string, m Method, head []byte, body io.Reader, size int64) ([]byte, error) {
	serve := t.handlers.Load().streams[m]
	if serve == nil {
		return nil, Errorf(CodeNoMethod, "stream method %d", m)
	}
	if ctx.Err() != nil {
		t.stats.late.Add(1)
		return nil, Errorf(CodeTimeout, "the deadline passed before node %s began", t.cfg.Self)
	}
	return serve(ctx, from, head, body, size)
}

// streamBody yields the chunks of a stream; io.EOF only after all of them.
type streamBody struct {
	conn  *peerConn
	left  int64 // not read from the connection yet
	chunk []byte
	buf   []byte
	err   error
}

func (s *streamBody) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(s.chunk) == 0 && s.err == nil {
		s.err = s.next()
	}
	if len(s.chunk) == 0 {
		return 0, s.err
	}
	n := copy(p, s.chunk)
	s.chunk = s.chunk[n:]
	return n, nil
}

// next reads a chunk. A connection that fails is a sender that gave up.
func (s *streamBody) next() error {
	if s.left == 0 {
		return io.EOF
	}
	h, err := readHeader(s.conn.r, chunkBytes)
	if err != nil {
		return io.ErrUnexpectedEOF
	}
	if h.typ != frameChunk || h.length == 0 || int64(h.length) > s.left {
		return fmt.Errorf("%w in a stream", errFrame)
	}
	if cap(s.buf) < int(h.length) {
		s.buf = make([]byte, h.length)
	}
	b := s.buf[:h.length]
	if _, err := io.ReadFull(s.conn.r, b); err != nil {
		return io.ErrUnexpectedEOF
	}
	if h.check(b) != nil {
		return fmt.Errorf("stream body: %w", errChecksum)
	}
	s.left -= int64(len(b))
	s.chunk = b
	return nil
}
