package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
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

	mu       sync.RWMutex
	replicas map[address]*peers
}

// NewNet registers the raft methods with t, before t takes calls.
func NewNet(t transport.Transport, log *slog.Logger) *Net {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	n := &Net{t: t, log: log, installs: make(chan struct{}, installAtOnce), pacer: newPacer(), beats: newBeats(t), replicas: make(map[address]*peers)}
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
	queue := p.appends
	if isHeartbeat(req) {
		if resp, ok := p.fastHeartbeat(req); ok {
			p.hear(time.Now(), req, resp)
			reply(encodeAppendResponse(resp, p.report()), nil)
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

// peers is one replica's way to the others: raft.Transport over the node's
// transport. It owns the loops that feed raft's main loop (pump) and those of its
// pipelines. stop breaks everything that raft may be waiting for.
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
	// report is what this replica tells its leader of itself. Set before start.
	report func() report
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

	// began is when this was made; heard is when the last message came that we took
	// from a leader of our term, in ns since began, 0 for never.
	began time.Time
	heard atomic.Int64

	mu        sync.Mutex
	followers map[raft.ServerID]follower
	// someFull says whether any of them told that its disk is full.
	someFull atomic.Bool
}

// follower is what a leader knows of another replica.
type follower struct {
	term    uint64 // the term in which it was learnt
	match   uint64 // its log equals ours up to here
	contact time.Time
	// sent is when the newest request was sent that it answered: it was ours then.
	sent   time.Time
	report report // with its last answer
}

// inbound is an AppendEntries that waits for raft's main loop.
type inbound struct {
	req   *raft.AppendEntriesRequest
	reply func([]byte, error)
	at    time.Time
	// patience is how long its sender waits for the answer, at least.
	patience time.Duration
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

// stop breaks all calls in both directions. Wait for the loops with p.wg.
func (p *peers) stop() {
	p.net.remove(p)
	p.cancel()
}

var errStopping = transport.Errorf(transport.CodeClosed, "replica is stopping")

// --- requests that come in ---

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
			resp, err := p.dispatch(p.ctx, in.req, nil)
			if err == nil {
				// What it asks for we may have from a time when we led, and not on the disk yet.
				err = p.awaitSynced(p.ctx, math.MaxUint64)
			}
			if a, ok := resp.(*raft.AppendEntriesResponse); ok && err == nil {
				p.hear(in.at, in.req, a)
				in.reply(encodeAppendResponse(a, p.report()), nil)
			} else {
				in.reply(nil, err)
			}
		}
	}
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

// --- raft.Transport ---

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
		b, err = p.heartbeat(target, frame)
	} else {
		b, err = p.call(target, transport.LaneLog, transport.MethodRaftAppend, frame, appendTimeout(int64(len(frame))))
	}
	if err != nil {
		return err
	}
	rep, err := decodeAppendResponse(b, resp)
	if err != nil {
		return err
	}
	p.note(id, sent, req, resp, rep)
	return p.awaitSynced(p.ctx, lastIndex(req))
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
func (p *peers) note(id raft.ServerID, sent time.Time, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, rep report) {
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
	f.contact, f.report = time.Now(), rep
	if sent.After(f.sent) {
		f.sent = sent
	}
	if resp.Success && !isHeartbeat(req) {
		f.match = max(f.match, req.PrevLogEntry+uint64(len(req.Entries)))
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
	ctx, cancel := context.WithTimeout(p.ctx, installBase+transferTime(req.Size))
	defer cancel()
	select {
	case p.net.installs <- struct{}{}:
		defer func() { <-p.net.installs }()
	case <-ctx.Done():
		return ctx.Err()
	}
	b, err := p.net.t.Stream(ctx, string(target), transport.MethodRaftInstall, encodeInstall(p.to(id), req), data, req.Size)
	if err != nil {
		return err
	}
	return decodeInstallResponse(b, resp)
}
