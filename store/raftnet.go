package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

const (
	// appendBase and a second for each slowRate bytes bound one AppendEntries: an
	// answer may wait for a slow disk, and one entry may be as large as a proposal.
	appendBase = 10 * time.Second
	// slowRate is the slowest link, in bytes per second, that we put up with.
	slowRate = 512 << 10
	// maxAppendBytes bounds the entries of one request (or one larger entry). raft
	// counts entries only, and ours may be large.
	maxAppendBytes = 4 << 20
	// maxPipeline is how many AppendEntries to one follower may be unanswered.
	maxPipeline = 8
	// inboxSize is how many appends may wait for one replica's main loop: a leader
	// sends maxPipeline, a deposed one may have left as many.
	inboxSize = 4 * maxPipeline
	// installAtOnce bounds how many snapshots a node sends at once.
	installAtOnce = 2
	// A snapshot gets installBase and a second for each slowRate bytes; the
	// receiver gives up when nothing came for installStall.
	installBase  = time.Minute
	installStall = 30 * time.Second
)

// transferTime is what a slow link may take for so many bytes.
func transferTime(sizeBytes int64) time.Duration {
	return time.Duration(sizeBytes/slowRate) * time.Second
}

// appendTimeout bounds an AppendEntries that is answered once so many bytes
// have passed, its own and those before it. Were it fixed, an entry too large for it would be sent for
// ever and never arrive.
func appendTimeout(sizeBytes int64) time.Duration { return appendBase + transferTime(sizeBytes) }

// peers is one replica's way to the others: raft.Transport over the node's
// transport. It owns the loops that feed raft's main loop (pump). stop breaks everything
// that raft may be waiting for.
type peers struct {
	net  *Net
	self address
	node raft.ServerAddress
	log  *slog.Logger

	timing Timing
	stable *stableStore
	// stuckFor is how long our disk has been at one write, of the log or the state.
	stuckFor func() time.Duration
	// unsynced says whether our own log is not on the disk up to an index yet, and calls landed when it is.
	unsynced func(index uint64, landed func()) bool
	// report is what this replica tells its leader of itself, logStart where its log begins, confirmed is leadership.confirmed of the present one, fresh how old the state
	// is. Set before start.
	report    func() report
	logStart  func(prev uint64) logStart
	confirmed func(term uint64) (time.Time, bool)
	fresh     *freshness
	// exclusive is held while a snapshot is installed or taken: raft lets the one
	// finish inside the other and then believes the older one (hazard R26).
	exclusive chan struct{}

	ctx    context.Context // ends with stop
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// rpcs is what raft's main loop reads; unbuffered, so that a request whose
	// caller gave up can be held back until the very last moment.
	rpcs       chan raft.RPC
	appends    chan inbound
	heartbeats chan inbound

	raft   atomic.Pointer[raft.Raft]
	onBeat func(raft.RPC)

	began time.Time

	// telling: tell is going to run. entriesSent is when entries were last sent to anybody, in ns since began.
	telling     atomic.Bool
	entriesSent atomic.Int64

	mu        sync.Mutex
	followers map[raft.ServerID]follower
	// someFull says whether any of them told that its disk is full.
	someFull atomic.Bool
}

// follower is what a leader knows of another replica.
type follower struct {
	term uint64 // the term in which it was learnt
	node raft.ServerAddress
	// Its log equals ours up to match, an entry of matchTerm; header is that of the request which it answered so.
	match, matchTerm uint64
	header           raft.RPCHeader
	contact          time.Time
	// sent is when the newest request was sent that it answered: it was ours then.
	sent   time.Time
	report report // with its last answer
	stamps stamps
	// told is set while a message of tell is unanswered.
	told bool
}

func newPeers(n *Net, self address, node string, timing Timing, stable *stableStore, stuckFor func() time.Duration, unsynced func(uint64, func()) bool, exclusive chan struct{}, log *slog.Logger) *peers {
	p := &peers{
		net: n, self: self, node: raft.ServerAddress(node), log: log, timing: timing, stable: stable, stuckFor: stuckFor, unsynced: unsynced, exclusive: exclusive,
		rpcs: make(chan raft.RPC), appends: make(chan inbound, inboxSize), heartbeats: make(chan inbound, inboxSize),
		followers: make(map[raft.ServerID]follower), began: time.Now(),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// start lets requests in; raft is running.
func (p *peers) start(r *raft.Raft) {
	p.raft.Store(r)
	p.wg.Go(func() { p.pump(p.appends) })
	p.wg.Go(func() { p.pump(p.heartbeats) })
	p.net.add(p)
}

// stop takes no more requests and fails those that raft waits for. What a pipeline has sent may still arrive. Wait for the loops
// with p.wg.
func (p *peers) stop() {
	p.net.remove(p)
	p.cancel()
}

var errStopping = transport.Errorf(transport.CodeClosed, "replica is stopping")

var _ raft.Transport = (*peers)(nil)
var _ raft.WithPreVote = (*peers)(nil)

func (p *peers) Consumer() <-chan raft.RPC     { return p.rpcs }
func (p *peers) LocalAddr() raft.ServerAddress { return p.node }

// SetHeartbeatHandler is called by raft before anything can come in.
func (p *peers) SetHeartbeatHandler(h func(raft.RPC)) { p.onBeat = h }

// EncodePeer names the replica with its node: votes are compared by these bytes,
// and a node may hold one replica after another.
func (p *peers) EncodePeer(id raft.ServerID, addr raft.ServerAddress) []byte {
	return append(append([]byte(id), 0), addr...)
}

func (p *peers) DecodePeer(b []byte) raft.ServerAddress {
	return raft.ServerAddress(b[bytes.LastIndexByte(b, 0)+1:])
}

func (p *peers) to(id raft.ServerID) address { return address{shard: p.self.shard, replica: id} }

// call sends one request and decodes its answer.
func (p *peers) call(target raft.ServerAddress, lane transport.Lane, m transport.Method, frame []byte, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	return p.net.t.Call(ctx, string(target), lane, m, frame)
}

var errStuckDisk = errors.New("our disk has been writing for too long to lead")

// mayLead is false when our disk hangs. In the log, raft's main loop then neither
// commits nor steps down; in the state, nothing is answered. The heartbeats have
// loops of their own and would keep the others from electing one that works
// (hashicorp/raft#503). Nor may such a replica stand for election.
func (p *peers) mayLead() bool { return p.stuckFor() < p.timing.Stuck }

func (p *peers) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if !p.mayLead() {
		return errStuckDisk
	}
	if p.knows(id, req) {
		*resp = agreed(req)
		return nil
	}
	trim(req)
	frame := encodeAppend(p.to(id), req)
	sent := time.Now()
	var b []byte
	var err error
	if isHeartbeat(req) {
		b, err = p.heartbeat(id, target, req.Term, frame)
	} else {
		p.sending(req)
		b, err = p.call(target, transport.LaneLog, transport.MethodRaftAppend, frame, appendTimeout(int64(len(frame))))
	}
	if err != nil {
		return err
	}
	rep, err := decodeAppendResponse(b, resp)
	if err != nil {
		return err
	}
	p.note(id, target, sent, req, resp, rep)
	return p.awaitSynced(p.ctx, lastIndex(req))
}

// sending notes that a request goes out.
func (p *peers) sending(req *raft.AppendEntriesRequest) {
	if len(req.Entries) > 0 {
		p.entriesSent.Store(int64(time.Since(p.began)))
	}
}

// awaitSynced waits until our own log is on the disk up to an index.
func (p *peers) awaitSynced(ctx context.Context, index uint64) error {
	landed := make(chan struct{})
	if !p.unsynced(index, func() { close(landed) }) {
		return nil
	}
	select {
	case <-landed:
		return nil
	case <-ctx.Done():
		return errStopping
	}
}

// lastIndex is that of the last entry that a request brings, 0 if it brings none.
func lastIndex(req *raft.AppendEntriesRequest) uint64 {
	if n := len(req.Entries); n > 0 {
		return req.Entries[n-1].Index
	}
	return 0
}

// trim cuts a request to maxAppendBytes. raft takes what it finds in the request
// afterwards as sent, and sends the rest next.
func trim(req *raft.AppendEntriesRequest) {
	size := 0
	for i, l := range req.Entries {
		if size += entrySize(l); i > 0 && size > maxAppendBytes {
			req.Entries = req.Entries[:i]
			return
		}
	}
}

// note remembers how far a follower is.
func (p *peers) note(id raft.ServerID, node raft.ServerAddress, sent time.Time, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, rep report) {
	if resp.Term > req.Term {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.followers[id]
	if f.term > req.Term {
		return
	}
	if f.term < req.Term {
		f = follower{term: req.Term}
	}
	f.node, f.contact, f.report = node, time.Now(), rep
	if sent.After(f.sent) {
		f.sent = sent
	}
	if match := req.PrevLogEntry + uint64(len(req.Entries)); resp.Success && !isHeartbeat(req) && match >= f.match {
		f.match, f.matchTerm, f.header = match, lastTerm(req), req.RPCHeader
		if rep.commit < match {
			p.tellSoon()
		}
	}
	p.followers[id] = f
	if rep.full || p.someFull.Load() {
		full := false
		for _, f := range p.followers {
			full = full || f.report.full
		}
		p.someFull.Store(full)
	}
}

func (p *peers) follower(id raft.ServerID, term uint64) (follower, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, ok := p.followers[id]
	return f, ok && f.term == term
}

func (p *peers) RequestVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if !p.mayLead() {
		return errStuckDisk
	}
	b, err := p.call(target, transport.LaneControl, transport.MethodRaftVote, encodeVote(p.to(id), req), p.timing.Election)
	if err != nil {
		return err
	}
	resp.Term, resp.Granted, err = decodeGrant(b)
	return err
}

func (p *peers) RequestPreVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if !p.mayLead() {
		return errStuckDisk
	}
	b, err := p.call(target, transport.LaneControl, transport.MethodRaftPreVote, encodePreVote(p.to(id), req), p.timing.Election)
	if err != nil {
		return err
	}
	resp.Term, resp.Granted, err = decodeGrant(b)
	return err
}

func (p *peers) TimeoutNow(id raft.ServerID, target raft.ServerAddress, req *raft.TimeoutNowRequest, _ *raft.TimeoutNowResponse) error {
	_, err := p.call(target, transport.LaneControl, transport.MethodRaftTimeoutNow, encodeTimeoutNow(p.to(id), req), p.timing.Election)
	return err
}

func (p *peers) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	ctx, cancel := context.WithTimeout(p.ctx, p.net.outgoing.time(req.Size))
	defer cancel()
	select {
	case p.net.installs <- struct{}{}:
		defer func() { <-p.net.installs }()
	case <-ctx.Done():
		return ctx.Err()
	}
	data, end := p.net.outgoing.begin(ctx, p.to(id), req.Size, data)
	defer end()
	b, err := p.net.t.Stream(ctx, string(target), transport.MethodRaftInstall, encodeInstall(p.to(id), req), data, req.Size)
	if err != nil {
		return err
	}
	return decodeInstallResponse(b, resp)
}
