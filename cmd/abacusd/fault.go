package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
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
}

// faultFile is what is in it.
type faultFile struct {
	// DelayMS is what bytes to a peer wait, by its address: at least and at most.
	DelayMS map[string][2]int `json:"delay_ms"`
	// Cut are the addresses of peers whom nothing reaches, as when the network between is cut: what is written waits.
	Cut           []string `json:"cut"`
	ClockOffsetMS int64    `json:"clock_offset_ms"`
	ClockRate     float64  `json:"clock_rate"` // 0: as it should be

	since time.Time // read
}

// faultsEvery is how often it is looked whether the file has changed.
const faultsEvery = 100 * time.Millisecond

func newFaults(path string, log *slog.Logger) (*faults, error) {
	f := &faults{path: path, log: log}
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
	f.now.Store(next)
	return info.ModTime(), os.WriteFile(f.path+".seen", strconv.AppendInt(nil, info.ModTime().UnixNano(), 10), 0o644)
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
	delay := func() time.Duration {
		span, ok := f.now.Load().DelayMS[addr]
		if !ok {
			return 0
		}
		return time.Duration(span[0]+rand.IntN(max(1, span[1]-span[0]+1))) * time.Millisecond
	}
	return newLateConn(c, delay, func() bool { return f.cut(addr) }), nil
}

func (f *faults) cut(addr string) bool { return slices.Contains(f.now.Load().Cut, addr) }

// lateConn writes in the background, each piece when its time has come and none before the one ahead of it.
type lateConn struct {
	net.Conn
	delay func() time.Duration
	cut   func() bool
	queue chan latePiece
	done  chan struct{}
	once  sync.Once
	err   atomic.Pointer[error] // of the background's write
}

type latePiece struct {
	due  time.Time
	data []byte
}

// cutEvery is how often it is looked whether a link is whole again.
const cutEvery = 10 * time.Millisecond

func lookAgain(wait time.Duration) time.Duration {
	if wait > 0 {
		return wait
	}
	return cutEvery
}

// latePieces wait at most; a writer then waits itself.
const latePieces = 1024

func newLateConn(c net.Conn, delay func() time.Duration, cut func() bool) *lateConn {
	l := &lateConn{Conn: c, delay: delay, cut: cut, queue: make(chan latePiece, latePieces), done: make(chan struct{})}
	go l.run()
	return l
}

func (l *lateConn) run() {
	for {
		select {
		case <-l.done:
			return
		case p := <-l.queue:
			for wait := time.Until(p.due); wait > 0 || l.cut(); wait = time.Until(p.due) {
				select {
				case <-l.done:
					return
				case <-time.After(lookAgain(wait)):
				}
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
	case l.queue <- latePiece{time.Now().Add(l.delay()), append([]byte(nil), p...)}:
		return len(p), nil
	case <-l.done:
		return 0, errors.Join(net.ErrClosed, io.ErrClosedPipe)
	}
}

func (l *lateConn) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Conn.Close()
}
