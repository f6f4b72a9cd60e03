package store

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

// Net is a node's Raft traffic: one for all its replicas. It registers the
// raft methods of the transport and finds the replica that a frame is for.
type Net struct {
	t        transport.Transport
	log      *slog.Logger
	installs chan struct{} // a token per snapshot being sent
	confirms *confirms     // the rounds of reads
	pacer    *pacer        // the rounds of entries
	beats    *beats        // the heartbeats
	seeds    *seeds
	outgoing *outgoing
	began    time.Time

	mu       sync.RWMutex
	replicas map[address]*peers
}

// NewNet registers the raft methods with t, before t takes calls. It begins a goroutine, which ends with Close. copyRate bounds what the
// copies of states that are sent to others take together, in bytes per second; 0: as fast as it goes.
func NewNet(t transport.Transport, copyRate int64, log *slog.Logger) *Net {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	n := &Net{t: t, log: log, began: time.Now(), installs: make(chan struct{}, installAtOnce), pacer: newPacer(), beats: newBeats(t), outgoing: newOutgoing(copyRate), replicas: make(map[address]*peers)}
	n.confirms = newConfirms(n)
	t.HandleInOrder(transport.MethodRaftAppend, n.onAppend)
	t.HandleInOrder(transport.MethodHeartbeats, n.onHeartbeats)
	t.HandleInOrder(transport.MethodConfirm, n.onConfirm)
	t.Handle(transport.MethodRaftVote, n.onVote)
	t.Handle(transport.MethodRaftPreVote, n.onPreVote)
	t.Handle(transport.MethodRaftTimeoutNow, n.onTimeoutNow)
	t.HandleStream(transport.MethodRaftInstall, n.onInstall)
	t.HandleEnded(n.onEnded)
	n.initSeeds(t)
	return n
}

// Close ends what Net itself has under way, after the replicas were closed.
func (n *Net) Close() { n.confirms.close() }

// add makes a replica reachable.
func (n *Net) add(p *peers) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replicas[p.self] = p
}

func (n *Net) remove(p *peers) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.replicas[p.self] == p {
		delete(n.replicas, p.self)
	}
}

func (n *Net) find(to address) (*peers, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if p := n.replicas[to]; p != nil {
		return p, nil
	}
	return nil, transport.Errorf(transport.CodeNoReplica, "shard %d replica %s", to.shard, to.replica)
}

func badFrame(err error) error { return transport.Errorf(transport.CodeBadRequest, "%v", err) }

// onAppend runs on the link's reading loop, so it never waits: not for a disk,
// not for raft's main loop.
func (n *Net) onAppend(_ string, frame []byte, reply func([]byte, error)) {
	d, to, h := open(frame)
	p, err := n.find(to)
	if err != nil {
		reply(nil, err)
		return
	}
	req, err := decodeAppend(d, h)
	if err != nil {
		reply(nil, badFrame(err))
		return
	}
	if last := lastTerm(req); last > req.Term {
		reply(nil, transport.Errorf(transport.CodeRefused, "entries of term %d from a leader of term %d", last, req.Term))
		return
	}
	// raft takes what is committed for that up to the end of its own log, also behind the last entry that the request vouches for, where there may
	// still be entries of a deposed leader: it would apply them. A leader tells of more than it vouches for if its commit index
	// rises while it makes an empty request. (Raft paper, figure 2: "index of last new entry".)
	req.LeaderCommitIndex = min(req.LeaderCommitIndex, req.PrevLogEntry+uint64(len(req.Entries)))
	queue := p.appends
	if isHeartbeat(req) {
		if answer := p.answerHeartbeat(req); answer != nil {
			reply(answer, nil)
			return
		}
		queue = p.heartbeats
	}
	select {
	case queue <- inbound{req: req, reply: reply, at: time.Now(), patience: appendTimeout(int64(len(frame)))}:
	default:
		reply(nil, transport.Errorf(transport.CodeBusy, "shard %d replica %s is behind with its log", to.shard, to.replica))
	}
}

// lastTerm is the latest term of the entries that a request is about. Above the
// request's own term it comes from a replication of raft's that outlived its
// leadership and goes on sending, in its old term, what its log has got from later
// leaders. Appended, these entries would be of a term that we never stored, and look at the
// next start as if our votes were lost (ErrLogLost).
func lastTerm(req *raft.AppendEntriesRequest) uint64 {
	if n := len(req.Entries); n > 0 {
		return req.Entries[n-1].Term
	}
	return req.PrevLogTerm
}

func (n *Net) onVote(ctx context.Context, _ string, frame []byte) ([]byte, error) {
	d, to, h := open(frame)
	req, err := decodeVote(d, h)
	if err != nil {
		return nil, badFrame(err)
	}
	resp, err := dispatchTo[*raft.RequestVoteResponse](ctx, n, to, req)
	if err != nil {
		return nil, err
	}
	return encodeGrant(resp.Term, resp.Granted), nil
}

func (n *Net) onPreVote(ctx context.Context, _ string, frame []byte) ([]byte, error) {
	d, to, h := open(frame)
	req, err := decodePreVote(d, h)
	if err != nil {
		return nil, badFrame(err)
	}
	resp, err := dispatchTo[*raft.RequestPreVoteResponse](ctx, n, to, req)
	if err != nil {
		return nil, err
	}
	return encodeGrant(resp.Term, resp.Granted), nil
}

func (n *Net) onTimeoutNow(ctx context.Context, _ string, frame []byte) ([]byte, error) {
	d, to, h := open(frame)
	if err := d.end(); err != nil {
		return nil, badFrame(err)
	}
	_, err := dispatchTo[*raft.TimeoutNowResponse](ctx, n, to, &raft.TimeoutNowRequest{RPCHeader: h})
	return nil, err
}

func dispatchTo[R any](ctx context.Context, n *Net, to address, cmd any) (R, error) {
	var none R
	p, err := n.find(to)
	if err != nil {
		return none, err
	}
	resp, err := p.dispatch(ctx, cmd, nil)
	if err != nil {
		return none, err
	}
	r, ok := resp.(R)
	if !ok {
		return none, transport.Errorf(transport.CodeUnknown, "raft answered %T", resp)
	}
	return r, nil
}

func (n *Net) onInstall(ctx context.Context, _ string, header []byte, body io.Reader, size int64) ([]byte, error) {
	d, to, h := open(header)
	req, err := decodeInstall(d, h)
	if err != nil {
		return nil, badFrame(err)
	}
	if req.Size != size {
		return nil, transport.Errorf(transport.CodeBadRequest, "snapshot of %d bytes in a stream of %d", req.Size, size)
	}
	p, err := n.find(to)
	if err != nil {
		return nil, err
	}
	resp, err := p.install(ctx, req, body)
	if err != nil {
		return nil, err
	}
	return encodeInstallResponse(resp), nil
}
