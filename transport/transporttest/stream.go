package transporttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/abacusdb/abacus/transport"
)

const (
	streamTimeout = 10 * time.Minute // of a stream whose context has no deadline
	chunkBytes    = 64 << 10
)

var errBroken = errors.New("stream broken")

// Stream pipes body to the peer's handler. Cutting the link in either
// direction breaks the stream, as it would end a connection.
func (nd *node) Stream(ctx context.Context, to string, m transport.Method, header []byte, body io.Reader, size int64) ([]byte, error) {
	if size < 0 || len(header) > maxControl {
		return nil, transport.Errorf(transport.CodeBadRequest, "stream of %d bytes with a header of %d", size, len(header))
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, streamTimeout)
		defer cancel()
	}
	nd.mu.Lock()
	if nd.closed {
		nd.mu.Unlock()
		return nil, transport.Errorf(transport.CodeClosed, "node %s is closed", nd.id)
	}
	nd.wg.Add(1)
	nd.mu.Unlock()
	defer nd.wg.Done()

	// Reaching the peer: a connection that is not answered fails for certain.
	wait(ctx, nd.net.delay(nd.id, to))
	if nd.net.lost(nd.id, to) || nd.net.lost(to, nd.id) {
		wait(ctx, DeadAfter)
		return nil, transport.Errorf(transport.CodeUnavailable, "connect to %s: no answer", to)
	}
	if err := ctx.Err(); err != nil {
		return nil, transport.Errorf(transport.CodeTimeout, "connect to %s: %v", to, err)
	}
	peer := nd.net.node(to)
	if peer == nil {
		return nil, transport.Errorf(transport.CodeUnavailable, "no node %s", to)
	}
	peer.mu.Lock()
	h, ok := peer.handlers[m].(transport.StreamHandler)
	if peer.closed || !ok {
		closed := peer.closed
		peer.mu.Unlock()
		if closed {
			return nil, transport.Errorf(transport.CodeUnavailable, "no node %s", to)
		}
		return nil, transport.Errorf(transport.CodeNoMethod, "stream method %d", m)
	}
	peer.wg.Add(1)
	peer.mu.Unlock()

	// The stream ends with the caller, with either node, or with its link.
	ctx, brk := context.WithCancelCause(ctx)
	defer brk(nil)
	for _, n := range []*node{nd, peer} {
		defer context.AfterFunc(n.ctx, func() { brk(errBroken) })()
	}
	deadline, _ := ctx.Deadline()
	pr, pw := io.Pipe()
	defer context.AfterFunc(ctx, func() {
		pw.CloseWithError(io.ErrUnexpectedEOF)
	})()

	type answer struct {
		resp []byte
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		defer peer.wg.Done()
		hctx, cancel := context.WithDeadline(peer.ctx, deadline)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		resp, err := h(hctx, nd.id, append([]byte(nil), header...), &exactReader{r: pr, left: size}, size)
		pr.CloseWithError(io.ErrClosedPipe) // a sender that still writes stops
		answers <- answer{resp, err}
	}()

	sendErr := nd.sendBody(ctx, brk, peer, pw, body, size)
	select {
	case a := <-answers:
		if sendErr != nil && !errors.Is(sendErr, io.ErrClosedPipe) {
			return nil, sendErr
		}
		// The end of the caller ends the handler too, which then may answer before this is seen.
		if ctx.Err() != nil {
			return nil, transport.Errorf(transport.CodeLinkLost, "stream to %s: %v", to, context.Cause(ctx))
		}
		if nd.net.lost(to, nd.id) {
			return nil, transport.Errorf(transport.CodeLinkLost, "stream to %s: no answer", to)
		}
		if e := transport.AsError(a.err); e != nil {
			return nil, e
		}
		return a.resp, nil
	case <-ctx.Done():
		if sendErr != nil {
			return nil, sendErr
		}
		return nil, transport.Errorf(transport.CodeLinkLost, "stream to %s: %v", to, context.Cause(ctx))
	}
}

// sendBody copies exactly size bytes; if it cannot, it breaks the stream.
func (nd *node) sendBody(ctx context.Context, brk context.CancelCauseFunc, peer *node, pw *io.PipeWriter, body io.Reader, size int64) error {
	buf := make([]byte, min(size, chunkBytes))
	for left := size; left > 0; {
		chunk := buf[:min(left, chunkBytes)]
		if _, err := io.ReadFull(body, chunk); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			pw.CloseWithError(io.ErrUnexpectedEOF)
			brk(err)
			return fmt.Errorf("read stream body: %w", err)
		}
		if nd.net.lost(nd.id, peer.id) || nd.net.lost(peer.id, nd.id) {
			pw.CloseWithError(io.ErrUnexpectedEOF)
			brk(errBroken)
			return transport.Errorf(transport.CodeLinkLost, "stream to %s: %v", peer.id, errBroken)
		}
		if _, err := pw.Write(chunk); err != nil {
			if errors.Is(err, io.ErrClosedPipe) && ctx.Err() == nil {
				return err // the handler has its answer already
			}
			return transport.Errorf(transport.CodeLinkLost, "stream to %s: %v", peer.id, context.Cause(ctx))
		}
		left -= int64(len(chunk))
	}
	return nil
}

// exactReader ends after the announced number of bytes.
type exactReader struct {
	r    io.Reader
	left int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
