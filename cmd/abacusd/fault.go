package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// faults are what a test has this process suffer and the machine cannot be made to do: bytes to peers that come late, and a
// wall clock that is wrong for this process alone. They are read from a file (--fault-file) whenever it changes.
type faults struct {
	path string
	log  *slog.Logger
	now  atomic.Pointer[faultFile]

	mu sync.Mutex
	// conns are the connections to each peer. They are closed when what the file says of it changes: one that nothing is done to is the
	// system's own, and taken by whoever writes to it for what it is.
	conns map[string][]net.Conn
}

// faultFile is what is in it.
type faultFile struct {
	// DelayMS is what bytes to a peer wait, by its address, on connections that we have made; AnswerDelayMS, by its host, on those that it
	// has made: answers.
	DelayMS       map[string]span `json:"delay_ms"`
	AnswerDelayMS map[string]span `json:"answer_delay_ms"`
	// Cut are the addresses of peers whom nothing reaches, as when the network between is cut.
	Cut           []string `json:"cut"`
	ClockOffsetMS int64    `json:"clock_offset_ms"`
	ClockRate     float64  `json:"clock_rate"` // 0: as it should be

	since time.Time // read
}

// span is a delay in ms: at least, at most; and if the third is not 0, it grows from the one to the other in so many ms, and does
// not vary.
type span [3]int

func (s span) now(since time.Duration) time.Duration {
	least, most, grows := time.Duration(s[0])*time.Millisecond, time.Duration(s[1])*time.Millisecond, time.Duration(s[2])*time.Millisecond
	if grows > 0 {
		return least + time.Duration(float64(most-least)*min(1, float64(since)/float64(grows)))
	}
	return least + rand.N(most-least+1)
}

// of is what bytes to a peer wait: dialled ones have an address, accepted ones a host.
func (ff *faultFile) of(peer string) (span, bool) {
	if s, ok := ff.DelayMS[peer]; ok {
		return s, true
	}
	s, ok := ff.AnswerDelayMS[peer]
	return s, ok
}

// faultsEvery is how often it is looked whether the file has changed.
const faultsEvery = 100 * time.Millisecond

func newFaults(path string, log *slog.Logger) (*faults, error) {
	f := &faults{path: path, log: log, conns: map[string][]net.Conn{}}
	f.now.Store(&faultFile{})
	_, err := f.read(time.Time{})
	return f, err
}

// watch reads the file when it changes, until ctx ends.
func (f *faults) watch(ctx context.Context) {
	tick := time.NewTicker(faultsEvery)
	defer tick.Stop()
	var seen time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		at, err := f.read(seen)
		if err != nil {
			f.log.Error("read the fault file", "err", err)
			continue
		}
		seen = at
	}
}

// read reads the file if it is newer than what was seen, and leaves a file beside it that says so.
func (f *faults) read(seen time.Time) (time.Time, error) {
	info, err := os.Stat(f.path)
	if err != nil || info.ModTime().Equal(seen) {
		return seen, err
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		return seen, err
	}
	next := &faultFile{since: time.Now()}
	if err := json.Unmarshal(data, next); err != nil {
		return seen, err
	}
	f.renew(f.now.Swap(next), next)
	return info.ModTime(), os.WriteFile(f.path+".seen", strconv.AppendInt(nil, info.ModTime().UnixNano(), 10), 0o644)
}

// renew closes the connections to peers of whom the file says something else now.
func (f *faults) renew(old, next *faultFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for addr, list := range f.conns {
		was, _ := old.of(addr)
		if is, _ := next.of(addr); was == is && slices.Contains(old.Cut, addr) == slices.Contains(next.Cut, addr) {
			continue
		}
		for _, c := range list {
			_ = c.Close()
		}
		delete(f.conns, addr)
	}
}

// clock is the wall clock, as wrong as the file says.
func (f *faults) clock() time.Time {
	now, ff := time.Now(), f.now.Load()
	wrong := time.Duration(ff.ClockOffsetMS) * time.Millisecond
	if ff.ClockRate != 0 {
		wrong += time.Duration((ff.ClockRate - 1) * float64(now.Sub(ff.since)))
	}
	return now.Add(wrong)
}

// dial connects to a peer, and has what is written come late if the file says so.
func (f *faults) dial(ctx context.Context, addr string) (net.Conn, error) {
	if f.cut(addr) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return f.late(addr, c), nil
}

// accept has what is written to a peer that has connected come late if the file says so.
func (f *faults) accept(c net.Conn) net.Conn {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c
	}
	return f.late(host, c)
}

func (f *faults) late(peer string, c net.Conn) net.Conn {
	f.mu.Lock()
	f.conns[peer] = append(slices.DeleteFunc(f.conns[peer], closed), c)
	f.mu.Unlock()
	if _, late := f.now.Load().of(peer); !late {
		return c
	}
	return newLateConn(c, func() time.Duration {
		ff := f.now.Load()
		if s, ok := ff.of(peer); ok {
			return s.now(time.Since(ff.since))
		}
		return 0
	})
}

// closed says whether we have closed a connection.
func closed(c net.Conn) bool {
	raw, err := c.(*net.TCPConn).SyscallConn()
	return err != nil || errors.Is(raw.Control(func(uintptr) {}), net.ErrClosed)
}

func (f *faults) cut(addr string) bool { return slices.Contains(f.now.Load().Cut, addr) }

// lateConn writes in the background, each piece when its time has come and none before the one ahead of it.
type lateConn struct {
	net.Conn
	delay func() time.Duration
	queue chan latePiece
	done  chan struct{}
	once  sync.Once
	err   atomic.Pointer[error] // of the background's write
}

type latePiece struct {
	due  time.Time
	data []byte
}

// latePieces wait at most; a writer then waits itself.
const latePieces = 1024

func newLateConn(c net.Conn, delay func() time.Duration) *lateConn {
	l := &lateConn{Conn: c, delay: delay, queue: make(chan latePiece, latePieces), done: make(chan struct{})}
	go l.run()
	return l
}

func (l *lateConn) run() {
	for {
		select {
		case <-l.done:
			return
		case p := <-l.queue:
			select {
			case <-l.done:
				return
			case <-time.After(time.Until(p.due)):
			}
			if _, err := l.Conn.Write(p.data); err != nil {
				l.err.Store(&err)
				_ = l.Close()
				return
			}
		}
	}
}

func (l *lateConn) Write(p []byte) (int, error) {
	if err := l.err.Load(); err != nil {
		return 0, *err
	}
	select {
	case <-l.done:
		return 0, net.ErrClosed
	default:
	}
	select {
	case l.queue <- latePiece{time.Now().Add(l.delay()), append([]byte(nil), p...)}:
		return len(p), nil
	case <-l.done:
		return 0, net.ErrClosed
	}
}

func (l *lateConn) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Conn.Close()
}
