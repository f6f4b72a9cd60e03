package transporttest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/transport"
)

func TestStream(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		serve := func(_ context.Context, from string, header []byte, body io.Reader, size int64) ([]byte, error) {
			if string(header) == "refuse" {
				return nil, transport.Errorf(transport.CodeRefused, "stale")
			}
			n, err := io.Copy(io.Discard, body)
			if err != nil || n != size {
				return nil, fmt.Errorf("read %d of %d: %w", n, size, err)
			}
			return fmt.Appendf(nil, "%s sent %s and %d", from, header, n), nil
		}
		p.a.HandleStream(methodStream, serve)
		p.b.HandleStream(methodStream, serve)
		p.start()
		ctx := deadline(t, 20*time.Second)
		for _, size := range []int64{0, 1, 256 << 10, 256<<10 + 1, 9<<20 + 7} {
			for _, to := range []string{"b", "a"} {
				// The reader holds more than size: only size is sent.
				got, err := p.a.Stream(ctx, to, methodStream, []byte("head"), &endless{}, size)
				if want := fmt.Sprintf("a sent head and %d", size); err != nil || string(got) != want {
					t.Fatalf("stream of %d bytes to %s: %q, %v", size, to, got, err)
				}
			}
		}
		// An answer that comes before the body is through.
		_, err := p.a.Stream(ctx, "b", methodStream, []byte("refuse"), &endless{}, 64<<20)
		wantCode(t, err, transport.CodeRefused)
		_, err = p.a.Stream(ctx, "b", methodMissing, nil, &endless{}, 64<<20)
		wantCode(t, err, transport.CodeNoMethod)
		_, err = p.a.Stream(ctx, "nobody", methodStream, nil, &endless{}, 1)
		wantCode(t, err, transport.CodeUnavailable)
	})
}

type endless struct{ n byte }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.n
		e.n++
	}
	return len(p), nil
}

// However a sender stops, the receiver does not take what it has for whole.
func TestStreamBroken(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		got := make(chan error, 1)
		started := make(chan struct{}, 1)
		p.b.HandleStream(methodStream, func(ctx context.Context, _ string, _ []byte, body io.Reader, size int64) ([]byte, error) {
			started <- struct{}{}
			_, err := io.Copy(io.Discard, body)
			got <- err
			return nil, err
		})
		p.start()

		// The body ends early.
		_, err := p.a.Stream(deadline(t, 10*time.Second), "b", methodStream, nil, io.LimitReader(&endless{}, 700<<10), 1<<20)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("sender of a short body got %v", err)
		}
		<-started
		if err := <-got; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("receiver of a short body got %v", err)
		}

		// The body fails.
		broken := errors.New("disk gone")
		_, err = p.a.Stream(deadline(t, 10*time.Second), "b", methodStream, nil,
			io.MultiReader(io.LimitReader(&endless{}, 700<<10), errReader{broken}), 1<<20)
		if !errors.Is(err, broken) {
			t.Errorf("sender of a failing body got %v", err)
		}
		<-started
		if err := <-got; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("receiver of a failing body got %v", err)
		}

		// The sender gives up in the middle.
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-started
			cancel()
		}()
		_, err = p.a.Stream(ctx, "b", methodStream, nil, &endless{}, 1<<40)
		wantCode(t, err, transport.CodeLinkLost)
		if err := <-got; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("receiver of a cancelled stream got %v", err)
		}

		// The deadline passes.
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = p.a.Stream(ctx, "b", methodStream, nil, &endless{}, 1<<40)
		wantCode(t, err, transport.CodeLinkLost)
		<-started
		if err := <-got; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("receiver of an overdue stream got %v", err)
		}
	})
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// The end of the sender ends the context of a handler that has read the body
// and works on.
func TestStreamCancelReachesTheHandler(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		ended := make(chan struct{})
		read := make(chan struct{})
		p.b.HandleStream(methodStream, func(ctx context.Context, _ string, _ []byte, body io.Reader, size int64) ([]byte, error) {
			if _, err := io.Copy(io.Discard, body); err != nil {
				t.Error(err)
			}
			close(read)
			<-ctx.Done()
			close(ended)
			return nil, nil
		})
		p.start()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-read
			cancel()
		}()
		_, err := p.a.Stream(ctx, "b", methodStream, nil, &endless{}, 1000)
		wantCode(t, err, transport.CodeLinkLost)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the handler's context goes on")
		}
	})
}

// A receiver that takes its time slows the sender down and loses nothing.
func TestStreamSlowReceiver(t *testing.T) {
	conform(t, func(t *testing.T, p *pair) {
		gate := make(chan struct{})
		p.b.HandleStream(methodStream, func(_ context.Context, _ string, _ []byte, body io.Reader, size int64) ([]byte, error) {
			<-gate
			n, err := io.Copy(io.Discard, body)
			return binary.BigEndian.AppendUint64(nil, uint64(n)), err
		})
		p.start()
		src := &counting{gate: gate}
		const size = 32 << 20
		got, err := p.a.Stream(deadline(t, 20*time.Second), "b", methodStream, nil, src, size)
		if err != nil || binary.BigEndian.Uint64(got) != size {
			t.Fatalf("got %x, %v", got, err)
		}
	})
}

// counting opens the gate when the sending has begun.
type counting struct {
	gate chan struct{}
	once sync.Once
}

func (c *counting) Read(p []byte) (int, error) {
	c.once.Do(func() { close(c.gate) })
	return len(p), nil
}
