package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

var errPipelineBroken = errors.New("append pipeline is broken")

// pipeline sends AppendEntries to one follower without waiting for the answers,
// which it delivers in order. The first failure ends it: it is not delivered,
// for raft would take any delivery as a sign of life; the next send fails, and
// raft goes back to one request at a time.
//
// It has no goroutine. Who reads an answer from the link, or has put our own log on the disk, delivers.
type pipeline struct {
	peers  *peers
	id     raft.ServerID
	target raft.ServerAddress

	ctx    context.Context // ends with Close, a failure, or the peers
	cancel context.CancelFunc
	slots  chan struct{} // holds a token for each request that is not delivered
	done   chan raft.AppendFuture

	mu    sync.Mutex
	queue []*appendFuture // not delivered yet, in order
	// unanswered is the size of the requests in flight, in bytes: the link takes
	// them one after the other.
	unanswered int64
	landing    bool // landed is going to be called
	ended      bool
}

// maxUnread is how many answers raft may leave unread: it does nothing that waits between two.
const maxUnread = 8 * maxPipeline

// AppendEntriesPipeline implements raft.Transport.
func (p *peers) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if p.ctx.Err() != nil {
		return nil, errStopping
	}
	l := &pipeline{peers: p, id: id, target: target, slots: make(chan struct{}, maxPipeline), done: make(chan raft.AppendFuture, maxUnread)}
	l.ctx, l.cancel = context.WithCancel(p.ctx)
	return l, nil
}

// appendFuture is one request in the pipeline. Raft looks at it only once it was delivered.
type appendFuture struct {
	start    time.Time
	req      *raft.AppendEntriesRequest
	size     int64 // of its frame, in bytes
	resp     *raft.AppendEntriesResponse
	answered bool
}

func (f *appendFuture) Error() error                          { return nil }
func (f *appendFuture) Start() time.Time                      { return f.start }
func (f *appendFuture) Request() *raft.AppendEntriesRequest   { return f.req }
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.resp }

// AppendEntries sends a request; it waits while maxPipeline are unanswered. Raft
// calls it from one goroutine.
func (l *pipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.ctx.Done():
	}
	if l.ctx.Err() != nil {
		return nil, errPipelineBroken
	}
	if !l.peers.mayLead() {
		return nil, errStuckDisk
	}
	f := &appendFuture{start: time.Now(), req: req, resp: resp}
	if l.peers.knows(l.id, req) {
		*resp = agreed(req)
		f.answered = true
		l.mu.Lock()
		defer l.mu.Unlock()
		l.queue = append(l.queue, f)
		l.deliver()
		return f, nil
	}
	trim(req)
	frame := encodeAppend(l.peers.to(l.id), req)
	l.peers.sending(req)
	f.size = int64(len(frame))
	l.mu.Lock()
	l.queue = append(l.queue, f)
	l.unanswered += f.size
	deadline := f.start.Add(appendTimeout(l.unanswered))
	l.mu.Unlock()
	l.peers.net.t.Go(string(l.target), transport.LaneLog, transport.MethodRaftAppend, frame, deadline, func(b []byte, err error) {
		l.answer(f, b, err)
	})
	return f, nil
}

func (l *pipeline) Consumer() <-chan raft.AppendFuture { return l.done }

// answer is told of the end of a request.
func (l *pipeline) answer(f *appendFuture, b []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	var rep report
	if err == nil {
		rep, err = decodeAppendResponse(b, f.resp)
	}
	if err != nil {
		l.peers.log.Debug("append pipeline ends", "peer", l.id, "err", err)
		l.end()
		return
	}
	l.unanswered -= f.size
	l.peers.note(l.id, l.target, f.start, f.req, f.resp, rep)
	f.answered = true
	l.deliver()
}

// landed is told that our own log is on the disk as far as the oldest answer says that the follower's is.
func (l *pipeline) landed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.landing = false
	l.deliver()
}

// deliver gives raft what was answered, in order. The caller holds mu.
func (l *pipeline) deliver() {
	for !l.ended && !l.landing && len(l.queue) > 0 && l.queue[0].answered {
		f := l.queue[0]
		// raft counts our own vote with its: ours is given when our disk has the entries.
		if l.peers.unsynced(lastIndex(f.req), l.landed) {
			l.landing = true
			return
		}
		select {
		case l.done <- f:
		default: // raft reads no more
			l.end()
			return
		}
		l.queue[0] = nil
		l.queue = l.queue[1:]
		<-l.slots
	}
}

// end ends the pipeline. The link gives up what is unanswered at its deadline; nobody waits for that. The caller holds mu.
func (l *pipeline) end() {
	for _, f := range l.queue {
		f.req, f.resp = nil, nil // they may be large
	}
	l.ended, l.queue = true, nil
	l.cancel()
}

// Close ends the pipeline: what is unanswered is never delivered.
func (l *pipeline) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end()
	return nil
}
