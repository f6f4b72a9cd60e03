package store

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

// delivery is a heartbeat that came to a node.
type delivery struct {
	node  string
	frame byte
	at    time.Time
}

// bundles is a transport on which messages of heartbeats are answered by a function.
type bundles struct {
	transport.Transport
	mu     sync.Mutex
	sent   []int // how many heartbeats each had
	got    []delivery
	answer func(frames [][]byte) ([][]byte, error)
}

func (b *bundles) Go(node string, lane transport.Lane, m transport.Method, req []byte, _ time.Time, done func([]byte, error)) {
	frames, err := decodeFrames(req)
	if err != nil || lane != transport.LaneControl || m != transport.MethodHeartbeats {
		panic("not heartbeats")
	}
	b.mu.Lock()
	b.sent = append(b.sent, len(frames))
	for _, f := range frames {
		b.got = append(b.got, delivery{node, f[0], time.Now()})
	}
	b.mu.Unlock()
	go func() {
		answers, err := b.answer(frames)
		done(encodeFrames(answers), err)
	}()
}

// TestHeartbeatsTravelTogether shows that a heartbeat that is alone goes at once, that those of many shards go in some
// ten messages per heartbeat time-out, and that each gets its own answer, or the failure of all.
func TestHeartbeatsTravelTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &bundles{answer: func(frames [][]byte) ([][]byte, error) {
			answers := make([][]byte, len(frames))
			for i, f := range frames {
				if f[0] != 7 { // has to think
					answers[i] = append([]byte("of "), f...)
				}
			}
			return answers, nil
		}}
		b := newBeats(net)
		const timeout = time.Second
		began := time.Now()
		if got, err := b.send(t.Context(), "n2", []byte{1}, timeout); err != nil || !bytes.Equal(got, []byte("of \x01")) || time.Since(began) != 0 {
			t.Fatalf("%q, %v after %v", got, err, time.Since(began))
		}
		time.Sleep(timeout)
		net.sent = nil
		const shards, each = 60, 10
		var wg sync.WaitGroup
		for shard := range byte(shards) {
			wg.Go(func() {
				for range each {
					time.Sleep(timeout / each)
					began := time.Now()
					got, err := b.send(t.Context(), "n2", []byte{shard}, timeout)
					want := append([]byte("of "), shard)
					if shard == 7 {
						want = nil
					}
					if err != nil || !bytes.Equal(got, want) || (got == nil) != (want == nil) || time.Since(began) > timeout/beatFraction {
						t.Errorf("shard %d: %q, %v after %v", shard, got, err, time.Since(began))
					}
				}
			})
			time.Sleep(timeout / 200)
		}
		wg.Wait()
		beats := 0
		for _, n := range net.sent {
			beats += n
		}
		if beats != shards*each || len(net.sent) > 3*beatFraction {
			t.Errorf("%d heartbeats in %d messages", beats, len(net.sent))
		}
		if want := (HeartbeatStats{uint64(beats) + 1, uint64(len(net.sent)) + 1}); b.stats != want {
			t.Errorf("counted %+v, want %+v", b.stats, want)
		}

		time.Sleep(timeout)
		net.answer = func([][]byte) ([][]byte, error) { return nil, errNotSent }
		for range 2 {
			if _, err := b.send(t.Context(), "n2", []byte{1}, timeout); !errors.Is(err, errNotSent) {
				t.Errorf("a message that failed: %v", err)
			}
		}
		net.answer = func(frames [][]byte) ([][]byte, error) { return frames[:0], nil }
		if _, err := b.send(t.Context(), "n2", []byte{1}, timeout); err == nil {
			t.Error("an answer without answers was taken")
		}
		net.answer = func([][]byte) ([][]byte, error) { time.Sleep(time.Hour); return nil, nil }
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		if _, err := b.send(ctx, "n2", []byte{1}, timeout); !errors.Is(err, errStopping) {
			t.Errorf("a replica that stops: %v", err)
		}
		time.Sleep(time.Hour) // the bubble ends with all its goroutines
	})
}

// TestHeartbeatsToSeveralPeers shows that each peer gets its own heartbeats, all at the same moments.
func TestHeartbeatsToSeveralPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &bundles{answer: func(frames [][]byte) ([][]byte, error) { return frames, nil }}
		b := newBeats(net)
		const timeout = time.Second
		var wg sync.WaitGroup
		for shard := range byte(20) {
			for i, node := range []raft.ServerAddress{"n1", "n2", "n3"} {
				wg.Go(func() {
					time.Sleep(time.Duration(shard)*time.Millisecond + time.Duration(i)*100*time.Microsecond)
					frame := []byte{shard*3 + byte(i)}
					if got, err := b.send(t.Context(), node, frame, timeout); err != nil || !bytes.Equal(got, frame) {
						t.Errorf("heartbeat %d to %s: %q, %v", frame[0], node, got, err)
					}
				})
			}
		}
		wg.Wait()
		moments := map[time.Time]bool{}
		for _, d := range net.got {
			if want := []string{"n1", "n2", "n3"}[d.frame%3]; d.node != want {
				t.Errorf("heartbeat %d went to %s, want %s", d.frame, d.node, want)
			}
			moments[d.at] = true
		}
		if len(net.got) != 60 || len(moments) != 2 || len(net.sent) != 4 {
			t.Errorf("%d heartbeats in %d messages at %d moments, want 60, 4 and 2", len(net.got), len(net.sent), len(moments))
		}
	})
}

// TestHungReplicaHoldsUpNoHeartbeat shows that in one message a replica that cannot answer at once, one that is not there and
// one that can get what is theirs.
func TestHungReplicaHoldsUpNoHeartbeat(t *testing.T) {
	synctest.Test(t, testHungReplicaHoldsUpNoHeartbeat)
}

func testHungReplicaHoldsUpNoHeartbeat(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.converge()
	l, fs := c.waitLeader(), c.followers()
	f := fs[0]
	net, st := f.store.cfg.Net, f.store.Status()
	beat := func(to address, term uint64) []byte {
		return encodeAppend(to, &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.replica), Addr: []byte(l.replica + "\x00" + l.id)}, Term: term})
	}
	ask := func(frames ...[]byte) (answers [][]byte, err error) {
		for i, frame := range frames {
			frames[i] = append(word{}.appendTo(nil), frame...)
		}
		net.onHeartbeats(l.id, encodeFrames(frames), func(b []byte, e error) {
			if err = e; err == nil {
				answers, err = decodeFrames(b)
			}
			for i, a := range answers {
				if a != nil && err == nil {
					_, answers[i], err = cutStamp(a)
				}
			}
		})
		return answers, err
	}
	here := f.store.self
	gone := address{shard: here.shard, replica: "gone"}
	answers, err := ask(beat(gone, st.Term), beat(here, st.Term), beat(here, st.Term+1))
	if err != nil || len(answers) != 3 || answers[0] != nil || answers[2] != nil {
		t.Fatalf("%q, %v", answers, err)
	}
	var resp raft.AppendEntriesResponse
	if _, err := decodeAppendResponse(answers[1], &resp); err != nil || !resp.Success || resp.Term != st.Term {
		t.Errorf("%+v, %v", resp, err)
	}
	half := beat(here, st.Term)
	for what, frame := range map[string][]byte{"entries": encodeAppend(here, testAppend()), "half a heartbeat": half[:len(half)-3]} {
		if answers, err := ask(frame, beat(here, st.Term)); err != nil || answers[0] != nil || answers[1] == nil {
			t.Errorf("%s before a heartbeat: %q, %v", what, answers, err)
		}
	}
	f.store.stable.rising.Lock() // its disk hangs with a new term
	answers, err = ask(beat(here, st.Term))
	f.store.stable.rising.Unlock()
	if err != nil || answers[0] != nil {
		t.Errorf("a replica that hangs: %q, %v", answers, err)
	}
	// What cannot be answered at once is asked once more, by itself, and takes the way through raft's main loop.
	f.store.stable.rising.Lock()
	b, err := l.store.inst.Load().peers.heartbeat(raft.ServerID(f.replica), raft.ServerAddress(f.id), st.Term, beat(here, st.Term))
	f.store.stable.rising.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeAppendResponse(b, &resp); err != nil || !resp.Success {
		t.Errorf("asked once more: %+v, %v", resp, err)
	}
}
