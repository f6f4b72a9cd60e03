package store

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

// A leader sends each follower ten heartbeats in a heartbeat time-out, whatever else it sends. With tens of shards on a
// node they are most of what an idle cluster does, so those of all shards to one peer travel together.
//
// Only what a follower answers at once travels so (peers.fastHeartbeat): a replica that has to think about a
// heartbeat holds up no other's, and is asked once more by a message of its own.

const (
	// beatFraction gives the least time between two messages with heartbeats to one peer, as a fraction of the heartbeat
	// time-out: as much later than raft wants, one may be.
	beatFraction = 20
	// maxBeats bounds the heartbeats of one message.
	maxBeats = 1024
)

// heartbeat sends a heartbeat with those of other shards; if the follower cannot answer at once, by itself.
func (p *peers) heartbeat(target raft.ServerAddress, frame []byte) ([]byte, error) {
	b, err := p.net.beats.send(p.ctx, target, frame, p.timing.Heartbeat)
	if b == nil && err == nil {
		b, err = p.call(target, transport.LaneControl, transport.MethodRaftAppend, frame, p.timing.Heartbeat)
	}
	return b, err
}

// beats is a node's heartbeats, of all its shards.
type beats struct {
	t transport.Transport

	mu    sync.Mutex
	peers map[raft.ServerAddress]*beatPeer
}

// beatPeer is the way to one node.
type beatPeer struct {
	waiting []*beat
	sent    time.Time // when the last message was
	armed   bool      // another is going to be
}

// beat is one heartbeat.
type beat struct {
	frame  []byte
	answer chan beatAnswer // takes one
}

// beatAnswer has neither bytes nor an error if the follower must be asked once more.
type beatAnswer struct {
	frame []byte
	err   error
}

func newBeats(t transport.Transport) *beats {
	return &beats{t: t, peers: make(map[raft.ServerAddress]*beatPeer)}
}

// send sends a heartbeat, at once or soon, and waits for its answer, which is nil if a message of its own is needed.
func (b *beats) send(ctx context.Context, node raft.ServerAddress, frame []byte, timeout time.Duration) ([]byte, error) {
	e := &beat{frame: frame, answer: make(chan beatAnswer, 1)}
	b.add(node, e, timeout)
	select { // bounded: it is sent within timeout/beatFraction, and the transport tells its end a timeout later
	case a := <-e.answer:
		return a.frame, a.err
	case <-ctx.Done():
		return nil, errStopping
	}
}

func (b *beats) add(node raft.ServerAddress, e *beat, timeout time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.peers[node]
	if p == nil {
		p = &beatPeer{}
		b.peers[node] = p
	}
	p.waiting = append(p.waiting, e)
	if p.armed {
		return
	}
	wait := timeout/beatFraction - time.Since(p.sent)
	if wait <= 0 {
		b.flush(node, p, timeout)
		return
	}
	p.armed = true
	time.AfterFunc(wait, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		p.armed = false
		b.flush(node, p, timeout)
	})
}

// flush sends what waits for a peer. The caller holds mu.
func (b *beats) flush(node raft.ServerAddress, p *beatPeer, timeout time.Duration) {
	p.sent = time.Now()
	for len(p.waiting) > 0 {
		n := min(len(p.waiting), maxBeats)
		sent := p.waiting[:n:n]
		p.waiting = p.waiting[n:]
		frames := make([][]byte, n)
		for i, e := range sent {
			frames[i] = e.frame
		}
		b.t.Go(string(node), transport.LaneControl, transport.MethodHeartbeats, encodeFrames(frames), p.sent.Add(timeout), func(resp []byte, err error) {
			var answers [][]byte
			if err == nil {
				if answers, err = decodeFrames(resp); err == nil && len(answers) != len(sent) {
					err = errWire
				}
			}
			for i, e := range sent {
				if err != nil {
					e.answer <- beatAnswer{err: err}
				} else {
					e.answer <- beatAnswer{frame: answers[i]}
				}
			}
		})
	}
	p.waiting = nil
}

// onHeartbeats answers heartbeats, those that can be answered at once. It runs on the link's reading loop.
func (n *Net) onHeartbeats(_ string, frame []byte, reply func([]byte, error)) {
	frames, err := decodeFrames(frame)
	if err != nil {
		reply(nil, badFrame(err))
		return
	}
	answers := make([][]byte, len(frames))
	for i, frame := range frames {
		d, to, h := open(frame)
		p, err := n.find(to)
		if err != nil {
			continue // whoever asks once more is told
		}
		req, err := decodeAppend(d, h)
		if err != nil || !isHeartbeat(req) {
			continue
		}
		answers[i] = p.answerHeartbeat(req)
	}
	reply(encodeFrames(answers), nil)
}
