package store

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

// What comes in for a replica, and how it gets to raft's main loop or past it.

// inbound is an AppendEntries that waits for raft's main loop.
type inbound struct {
	req   *raft.AppendEntriesRequest
	reply func([]byte, error)
	at    time.Time
	// patience is how long its sender waits for the answer, at least.
	patience time.Duration
}

// answerHeartbeat is the frame that answers a heartbeat at once, nil if raft's main loop has to.
func (p *peers) answerHeartbeat(req *raft.AppendEntriesRequest) []byte {
	resp, ok := p.fastHeartbeat(req)
	if !ok {
		return nil
	}
	return encodeAppendResponse(resp, p.report())
}

// fastHeartbeat answers a heartbeat without raft's main loop, which may be
// waiting for a disk. raft's handler would take any term here and set it beside
// the main loop, so that the term can fall after a vote (hazard R22). So: only as
// a follower, only of our own term, and the term cannot rise meanwhile.
func (p *peers) fastHeartbeat(req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, bool) {
	// Held while the new term is being written; never wait for a disk here.
	if !p.stable.rising.TryRLock() {
		return nil, false
	}
	defer p.stable.rising.RUnlock()
	r := p.raft.Load()
	if r == nil || r.State() != raft.Follower || req.Term != p.stable.term.Load() {
		return nil, false
	}
	answer := make(chan raft.RPCResponse, 1)
	p.onBeat(raft.RPC{Command: req, RespChan: answer})
	select {
	case a := <-answer:
		resp, ok := a.Response.(*raft.AppendEntriesResponse)
		return resp, ok && a.Error == nil
	default: // raft is shutting down
		return nil, false
	}
}

// pump hands queued requests to raft one by one, as its main loop takes them.
func (p *peers) pump(queue <-chan inbound) {
	for {
		select {
		case <-p.ctx.Done():
			for {
				select {
				case in := <-queue:
					in.reply(nil, errStopping)
				default:
					return
				}
			}
		case in := <-queue:
			if time.Since(in.at) > in.patience {
				in.reply(nil, transport.Errorf(transport.CodeTimeout, "waited too long for the log"))
				continue
			}
			resp, err := p.dispatch(p.ctx, afterSnapshot(in.req, p.logStart(in.req.PrevLogEntry)), nil)
			if err == nil {
				// What it asks for we may have from a time when we led, and not on the disk yet.
				err = p.awaitSynced(p.ctx, math.MaxUint64)
			}
			if a, ok := resp.(*raft.AppendEntriesResponse); ok && err == nil {
				in.reply(encodeAppendResponse(a, p.report()), nil)
			} else {
				in.reply(nil, err)
			}
		}
	}
}

// logStart is where a replica's log begins, as far as it matters for a request about the entry after prev (zero: it does not): with the entry first (0: it is empty), behind a snapshot whose last entry is end, of term.
type logStart struct{ first, end, term uint64 }

// afterSnapshot leaves out of a request what the replica's snapshot has, if its log does not begin before that any more. A leader that has not heard our answers,
// while we took its entries, made a snapshot and cut our log, asks for an entry that is not there. Raft would say no, and be asked for an older one; then be sent
// a snapshot that lies below ours, which is done already; and be asked for the same entry again, as long as that leader leads. What a snapshot has is committed, so whoever may lead
// has the same entries there (Raft thesis, 3.6.3).
func afterSnapshot(req *raft.AppendEntriesRequest, log logStart) *raft.AppendEntriesRequest {
	if isHeartbeat(req) || req.PrevLogEntry >= log.end || log.first > 0 && max(req.PrevLogEntry, 1) >= log.first {
		return req
	}
	rest := *req
	rest.PrevLogEntry, rest.PrevLogTerm = log.end, log.term
	for len(rest.Entries) > 0 && rest.Entries[0].Index <= log.end {
		rest.Entries = rest.Entries[1:]
	}
	return &rest
}

// dispatch gives raft's main loop a request and waits for its answer. Until the
// main loop takes it, the request ends with ctx.
func (p *peers) dispatch(ctx context.Context, cmd any, body io.Reader) (any, error) {
	answer := make(chan raft.RPCResponse, 1)
	if ctx.Err() != nil {
		return nil, transport.Errorf(transport.CodeTimeout, "the caller gave up")
	}
	select {
	case p.rpcs <- raft.RPC{Command: cmd, Reader: body, RespChan: answer}:
	case <-ctx.Done():
		return nil, transport.Errorf(transport.CodeTimeout, "the caller gave up")
	case <-p.ctx.Done():
		return nil, errStopping
	}
	select {
	case a := <-answer:
		return a.Response, a.Error
	case <-p.ctx.Done():
	}
	// The main loop answers what it took before it ends. A leader that does not
	// hear of a finished install sends it again.
	select {
	case a := <-answer:
		return a.Response, a.Error
	case <-time.After(time.Second):
		return nil, transport.Errorf(transport.CodeLinkLost, "replica stopped before it answered")
	}
}

// install receives a snapshot. Raft reads it on its main loop, so the body comes
// through a pipe that stop can break, whatever the link is doing.
func (p *peers) install(ctx context.Context, req *raft.InstallSnapshotRequest, body io.Reader) (*raft.InstallSnapshotResponse, error) {
	if req.LastLogTerm > req.Term {
		// A replication of raft's outlives its leadership and then sends, in its old term,
		// the newest snapshot that there is. Installed, it would be of a term that we never
		// stored, and look at the next start as if our votes were lost (ErrLogLost).
		return nil, transport.Errorf(transport.CodeRefused, "snapshot of term %d from a leader of term %d", req.LastLogTerm, req.Term)
	}
	select {
	case p.exclusive <- struct{}{}:
		defer func() { <-p.exclusive }()
	case <-ctx.Done():
		return nil, transport.Errorf(transport.CodeTimeout, "the caller gave up")
	case <-p.ctx.Done():
		return nil, errStopping
	}
	if req.LastLogIndex <= p.floor() && req.Term == p.stable.term.Load() {
		// Installed before, and the answer got lost. Installing it again would take
		// back what came after it (hazard R23); refusing it would go on for ever.
		_, err := io.Copy(io.Discard, body)
		return &raft.InstallSnapshotResponse{Term: req.Term, Success: true}, err
	}
	pr, pw := io.Pipe()
	defer context.AfterFunc(p.ctx, func() { pr.CloseWithError(errStopping) })()

	var wg sync.WaitGroup
	wg.Go(func() {
		// The transport's body fails when the sender gives up or the link breaks; a
		// sender that merely stalls must not hold our main loop either.
		stall := time.AfterFunc(installStall, func() { pw.CloseWithError(errors.New("snapshot stalled")) })
		defer stop(stall)
		_, err := io.Copy(&progress{w: pw, timer: stall}, body)
		pw.CloseWithError(err) // nil is io.EOF
	})
	resp, err := p.dispatch(ctx, req, pr)
	pr.CloseWithError(errStopping) // if raft did not take it, nobody reads
	wg.Wait()
	if err != nil {
		return nil, err
	}
	r, ok := resp.(*raft.InstallSnapshotResponse)
	if !ok {
		return nil, transport.Errorf(transport.CodeUnknown, "raft answered %T", resp)
	}
	return r, nil
}

func stop(t *time.Timer) { t.Stop() }

// progress puts off a timer with each write.
type progress struct {
	w     io.Writer
	timer *time.Timer
}

func (w *progress) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	w.timer.Reset(installStall)
	return n, err
}

// floor is the index up to which this replica surely has what is committed.
func (p *peers) floor() uint64 {
	r := p.raft.Load()
	if r == nil {
		return 0
	}
	return max(r.AppliedIndex(), r.CommitIndex())
}
