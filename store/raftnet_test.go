package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
	"github.com/abacusdb/abacus/transport/transporttest"
)

// timed remembers how long the last request was given, and does not send it.
type timed struct {
	transport.Transport
	got time.Duration
}

var errNotSent = errors.New("not sent")

func (r *timed) note(ctx context.Context) {
	d, _ := ctx.Deadline()
	r.got = time.Until(d)
}

func (r *timed) Call(ctx context.Context, _ string, _ transport.Lane, _ transport.Method, _ []byte) ([]byte, error) {
	r.note(ctx)
	return nil, errNotSent
}

func (r *timed) Go(to string, lane transport.Lane, m transport.Method, req []byte, deadline time.Time, done func([]byte, error)) {
	r.got = time.Until(deadline) // and nothing is answered
}

// An entry is given time by its size, alone and behind others in a pipeline: with
// a fixed time-out, a large one would never pass a slow link.
func TestAppendTimeoutGrowsWithSize(t *testing.T) {
	inner := transporttest.NewNetwork().Join("n1")
	defer inner.Close()
	tr := &timed{Transport: inner}
	p := newPeers(&Net{t: tr}, address{3, "n1.1"}, "n1", DefaultTiming(), nil, func() time.Duration { return 0 }, func(uint64, func()) bool { return false }, nil, slog.New(slog.DiscardHandler))
	defer p.wg.Wait()
	defer p.stop()
	req := func(size int) *raft.AppendEntriesRequest {
		return &raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 1, PrevLogTerm: 1, Entries: []*raft.Log{{Index: 2, Term: 2, Data: bytes.Repeat([]byte("x"), size)}}}
	}
	check := func(what string, want time.Duration) {
		t.Helper()
		if tr.got > want || tr.got < want-5*time.Second {
			t.Errorf("%s is given %v, want %v", what, tr.got, want)
		}
	}
	const large = 32 << 20 // 64 s
	for size, want := range map[int]time.Duration{10: appendBase, large: appendBase + 64*time.Second} {
		if err := p.AppendEntries("n2.1", "n2", req(size), new(raft.AppendEntriesResponse)); !errors.Is(err, errNotSent) {
			t.Fatal(err)
		}
		check("a request", want)
	}
	l, err := p.AppendEntriesPipeline("n2.1", "n2")
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, l)
	for i, want := range []time.Duration{64 * time.Second, 128 * time.Second, 128 * time.Second} {
		if _, err := l.AppendEntries(req([]int{large, large, 10}[i]), new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		check("a request in a pipeline", appendBase+want)
	}
}
