package store

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

var errPipelineBroken = errors.New("append pipeline is broken")

// pipeline sends AppendEntries to one follower without waiting for the answers,
// which it delivers in order. The first failure ends it: it is not delivered,
// for raft would take any delivery as a sign of life; the next send fails, and
// raft goes back to one request at a time.
type pipeline struct {
	peers  *peers
	id     raft.ServerID
	target raft.ServerAddress

	ctx      context.Context // ends with Close, a failure, or the peers
	cancel   context.CancelFunc
	inFlight chan *appendFuture
	// unanswered is the size of the requests in flight, in bytes: the link takes
	// them one after the other.
	unanswered atomic.Int64
	done       chan raft.AppendFuture
	ended      chan struct{}
}

// AppendEntriesPipeline implements raft.Transport.
func (p *peers) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if p.ctx.Err() != nil {
		return nil, errStopping
	}
	l := &pipeline{
		peers: p, id: id, target: target,
		inFlight: make(chan *appendFuture, maxPipeline), done: make(chan raft.AppendFuture, maxPipeline), ended: make(chan struct{}),
	}
	l.ctx, l.cancel = context.WithCancel(p.ctx)
	p.wg.Go(l.run)
	return l, nil
}

// appendFuture is one request in the pipeline. Raft looks at it only once it was delivered.
type appendFuture struct {
	start   time.Time
	req     *raft.AppendEntriesRequest
	size    int64 // of its frame, in bytes
	resp    *raft.AppendEntriesResponse
	pending *transport.Pending // nil: it need not be sent
	cancel  context.CancelFunc
}

func (f *appendFuture) Error() error                          { return nil }
func (f *appendFuture) Start() time.Time                      { return f.start }
func (f *appendFuture) Request() *raft.AppendEntriesRequest   { return f.req }
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.resp }

// AppendEntries sends a request; it waits while maxPipeline are unanswered. Raft
// calls it from one goroutine.
func (l *pipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if l.ctx.Err() != nil {
		return nil, errPipelineBroken
	}
	if !l.peers.mayLead() {
		return nil, errStuckDisk
	}
	f := &appendFuture{start: time.Now(), req: req, resp: resp, cancel: func() {}}
	if l.peers.knows(l.id, req) {
		*resp = agreed(req)
	} else {
		trim(req)
		frame := encodeAppend(l.peers.to(l.id), req)
		f.size = int64(len(frame))
		var ctx context.Context
		ctx, f.cancel = context.WithTimeout(l.ctx, appendTimeout(l.unanswered.Add(f.size)))
		f.pending = l.peers.net.t.Go(ctx, string(l.target), transport.LaneLog, transport.MethodRaftAppend, frame)
	}
	select {
	case l.inFlight <- f:
		return f, nil
	case <-l.ctx.Done():
		f.cancel()
		return nil, errPipelineBroken
	}
}

func (l *pipeline) Consumer() <-chan raft.AppendFuture { return l.done }

// run delivers answers until the first failure or Close.
func (l *pipeline) run() {
	defer close(l.ended)
	defer l.cancel()
	for {
		select {
		case <-l.ctx.Done():
			return
		case f := <-l.inFlight:
			if f.pending != nil && !l.receive(f) {
				return
			}
			// raft counts our own vote with its: ours is given when our disk has the entries.
			if err := l.peers.awaitSynced(l.ctx, lastIndex(f.req)); err != nil {
				return
			}
			select {
			case l.done <- f:
			case <-l.ctx.Done():
				return
			}
		}
	}
}

// receive waits for the answer of a request.
func (l *pipeline) receive(f *appendFuture) bool {
	defer f.cancel()
	select {
	case <-f.pending.Done():
	case <-l.ctx.Done():
		return false
	}
	b, err := f.pending.Wait()
	l.unanswered.Add(-f.size)
	var rep report
	if err == nil {
		rep, err = decodeAppendResponse(b, f.resp)
	}
	if err != nil {
		l.peers.log.Debug("append pipeline ends", "peer", l.id, "err", err)
		return false
	}
	l.peers.note(l.id, f.start, f.req, f.resp, rep)
	return true
}

// Close ends the pipeline and fails what is unanswered.
func (l *pipeline) Close() error {
	l.cancel()
	<-l.ended
	return nil
}
