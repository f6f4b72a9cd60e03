package store

import (
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

// held is a transport whose requests the test answers.
type held struct {
	transport.Transport
	mu    sync.Mutex
	asked []func([]byte, error)
}

func (h *held) Go(_ string, _ transport.Lane, _ transport.Method, _ []byte, _ time.Time, done func([]byte, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, done)
}

func (h *held) answer(t *testing.T, i int) {
	t.Helper()
	h.mu.Lock()
	done := h.asked[i]
	h.mu.Unlock()
	done(encodeAppendResponse(&raft.AppendEntriesResponse{Term: 2, Success: true}, report{}), nil)
}

// pipelined is a pipeline over a held transport, and what its leader's own disk does.
type pipelined struct {
	*pipeline
	net *held
	// wet are the indices from which on our own log is not on the disk, 0: it is; landed, whom to tell.
	wet    uint64
	landed []func()
}

func newPipelined(t *testing.T) *pipelined {
	t.Helper()
	p := &pipelined{net: &held{}}
	unsynced := func(index uint64, landed func()) bool {
		if p.wet == 0 || index < p.wet {
			return false
		}
		p.landed = append(p.landed, landed)
		return true
	}
	peers := newPeers(&Net{t: p.net}, address{3, "n1.1"}, "n1", DefaultTiming(), nil, func() time.Duration { return 0 }, unsynced, nil, slog.New(slog.DiscardHandler))
	l, err := peers.AppendEntriesPipeline("n2.1", "n2")
	if err != nil {
		t.Fatal(err)
	}
	p.pipeline = l.(*pipeline)
	t.Cleanup(func() {
		mustClose(t, p)
		peers.stop()
	})
	return p
}

// send sends an entry with its index.
func (p *pipelined) send(index uint64) error {
	_, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 2, PrevLogEntry: index - 1, PrevLogTerm: 2,
		Entries: []*raft.Log{{Index: index, Term: 2}}}, new(raft.AppendEntriesResponse))
	return err
}

// delivered fails unless raft has got exactly these entries' answers.
func (p *pipelined) delivered(t *testing.T, want ...uint64) {
	t.Helper()
	for _, index := range want {
		select {
		case f := <-p.Consumer():
			if got := lastIndex(f.Request()); got != index || !f.Response().Success || f.Response().Term != 2 {
				t.Fatalf("delivered %d: %+v, want %d", got, f.Response(), index)
			}
		default:
			t.Fatalf("%d is not delivered", index)
		}
	}
	select {
	case f := <-p.Consumer():
		t.Fatalf("%d is delivered", lastIndex(f.Request()))
	default:
	}
}

// TestPipelineOrder shows that answers are delivered in the order of their requests, whatever order they come in.
func TestPipelineOrder(t *testing.T) {
	p := newPipelined(t)
	for i := range uint64(4) {
		if err := p.send(i + 1); err != nil {
			t.Fatal(err)
		}
	}
	p.net.answer(t, 1)
	p.delivered(t)
	p.net.answer(t, 0)
	p.delivered(t, 1, 2)
	p.net.answer(t, 3)
	p.net.answer(t, 2)
	p.delivered(t, 3, 4)
	if f, ok := p.peers.follower("n2.1", 2); !ok || f.match != 4 {
		t.Errorf("follower %+v", f)
	}
}

// TestPipelineOwnDisk shows that raft does not hear of a follower's answer before our own log is on the disk as far:
// raft counts our vote with it.
func TestPipelineOwnDisk(t *testing.T) {
	p := newPipelined(t)
	p.wet = 2
	for i := range uint64(4) {
		if err := p.send(i + 1); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		p.net.answer(t, i)
	}
	p.delivered(t, 1)
	if len(p.landed) != 1 {
		t.Fatalf("%d wait for the disk", len(p.landed))
	}
	p.wet = 3
	p.landed[0]()
	p.delivered(t, 2)
	p.wet = 0
	p.landed[1]()
	p.delivered(t, 3)
	p.net.answer(t, 3)
	p.delivered(t, 4)
}

// TestPipelineEnds shows that the first failure, and Close, end a pipeline: nothing that was answered later or earlier in vain is
// delivered, and nothing more is sent.
func TestPipelineEnds(t *testing.T) {
	for what, end := range map[string]func(p *pipelined){
		"an error":     func(p *pipelined) { p.net.asked[1](nil, errNotSent) },
		"a bad answer": func(p *pipelined) { p.net.asked[1]([]byte{1}, nil) },
		"close":        func(p *pipelined) { p.Close() },
	} {
		p := newPipelined(t)
		p.wet = 1
		for i := range uint64(3) {
			if err := p.send(i + 1); err != nil {
				t.Fatal(err)
			}
		}
		p.net.answer(t, 0)
		if len(p.landed) != 1 {
			t.Fatalf("%d wait for the disk", len(p.landed))
		}
		end(p)
		p.net.answer(t, 2)
		p.wet = 0
		for _, landed := range p.landed {
			landed()
		}
		p.delivered(t)
		if err := p.send(4); !errors.Is(err, errPipelineBroken) || len(p.net.asked) != 3 {
			t.Errorf("%s: sent on: %v", what, err)
		}
	}
}

// TestPipelineIsBounded shows that raft waits while maxPipeline requests are unanswered, and that a raft that reads no
// answers ends the pipeline instead of holding up the link.
func TestPipelineIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipelined(t)
		sent := make(chan error)
		go func() {
			for i := range uint64(maxUnread + 1) {
				sent <- p.send(i + 1)
			}
			close(sent)
		}()
		for range maxPipeline {
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		select {
		case <-sent:
			t.Fatal("one more was sent")
		default:
		}
		for i := range maxUnread {
			p.net.answer(t, i)
			if i < maxUnread+1-maxPipeline {
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
			}
		}
		if p.ctx.Err() != nil {
			t.Fatal("ended, though there was room")
		}
		p.net.answer(t, maxUnread)
		if p.ctx.Err() == nil {
			t.Error("an answer for which there is no room was lost without a word")
		}
	})
}
