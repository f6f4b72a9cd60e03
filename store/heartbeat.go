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
	// beatFraction gives the least time between two moments at which messages with heartbeats go to the peers, as a
	// fraction of the heartbeat time-out: as much later than raft wants, one may be. So a follower hears
	// of its leader every 100 to 300 ms, at a time-out of one second.
	beatFraction = 10
	// maxBeats bounds the heartbeats of one message.
	maxBeats = 1024
)

// heartbeat sends a heartbeat of ours in a term with those of other shards; if the follower cannot answer at once, by itself.
func (p *peers) heartbeat(id raft.ServerID, target raft.ServerAddress, term uint64, frame []byte) ([]byte, error) {
	b, err := p.net.beats.send(p.ctx, target, append(p.word(id, term).appendTo(make([]byte, 0, wordSize+len(frame))), frame...), p.timing.Heartbeat)
	switch {
	case err != nil:
		return nil, err
	case b == nil:
		return p.call(target, transport.LaneControl, transport.MethodRaftAppend, frame, p.timing.Heartbeat)
	}
	st, b, err := cutStamp(b)
	if err == nil {
		p.stamped(id, term, st)
	}
	return b, err
}

// beats is a node's heartbeats, of all its shards.
type beats struct {
	t transport.Transport

	mu      sync.Mutex
	waiting map[raft.ServerAddress][]*beat // by the node that they go to
	sent    time.Time                      // when the last messages were
	armed   bool                           // more are going to be
	stats   HeartbeatStats
}

// HeartbeatStats count what the leaders of a node sent since its start.
type HeartbeatStats struct{ Heartbeats, Messages uint64 }

// HeartbeatStats may be called at any time.
func (n *Net) HeartbeatStats() HeartbeatStats {
	n.beats.mu.Lock()
	defer n.beats.mu.Unlock()
	return n.beats.stats
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
	return &beats{t: t, waiting: make(map[raft.ServerAddress][]*beat)}
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
	b.waiting[node] = append(b.waiting[node], e)
	if b.armed {
		return
	}
	wait := timeout/beatFraction - time.Since(b.sent)
	if wait <= 0 {
		b.flush(timeout)
		return
	}
	b.armed = true
	time.AfterFunc(wait, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.armed = false
		b.flush(timeout)
	})
}

// flush sends what waits. The caller holds mu.
func (b *beats) flush(timeout time.Duration) {
	b.sent = time.Now()
	for node, waiting := range b.waiting {
		delete(b.waiting, node)
		b.sendTo(node, waiting, timeout)
	}
}

func (b *beats) sendTo(node raft.ServerAddress, waiting []*beat, timeout time.Duration) {
	for len(waiting) > 0 {
		n := min(len(waiting), maxBeats)
		sent := waiting[:n:n]
		waiting = waiting[n:]
		b.stats.Messages++
		b.stats.Heartbeats += uint64(n)
		frames := make([][]byte, n)
		for i, e := range sent {
			frames[i] = e.frame
		}
		b.t.Go(string(node), transport.LaneControl, transport.MethodHeartbeats, encodeFrames(frames), b.sent.Add(timeout), func(resp []byte, err error) {
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
		w, frame, err := cutWord(frame)
		if err != nil {
			continue
		}
		d, to, h := open(frame)
		p, err := n.find(to)
		if err != nil {
			continue // whoever asks once more is told
		}
		req, err := decodeAppend(d, h)
		if err != nil || !isHeartbeat(req) {
			continue
		}
		if answer := p.answerHeartbeat(req); answer != nil {
			p.fresh.trust(w)
			answers[i] = append(p.stamp().appendTo(make([]byte, 0, stampSize+len(answer))), answer...)
		}
	}
	reply(encodeFrames(answers), nil)
}
