package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// Bytes come late, whole and in order, and what was written when the delay was over comes no earlier than what was before it.
func TestLateConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		delay := 300 * time.Millisecond
		c := newLateConn(near, func() time.Duration { return delay })
		began := time.Now()
		for _, s := range []string{"one ", "two "} {
			if n, err := c.Write([]byte(s)); n != 4 || err != nil {
				t.Fatal(n, err)
			}
		}
		delay = 0
		if _, err := c.Write([]byte("three")); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("a writer waited %v", took)
		}
		got := make([]byte, 13)
		if _, err := io.ReadFull(far, got); err != nil || string(got) != "one two three" {
			t.Errorf("%q, %v", got, err)
		}
		if took := time.Since(began); took != 300*time.Millisecond {
			t.Errorf("they came after %v", took)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("a closed connection takes bytes")
		}
	})
}

// A connection that breaks tells its writer.
func TestLateConnBreaks(t *testing.T) {
	near, far := net.Pipe()
	c := newLateConn(near, func() time.Duration { return 0 })
	far.Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("its writer was not told")
		}
	}
}

// The file says how wrong the clock is and how late bytes come, and the process says that it has read it.
func TestFaultFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{}`)
	f, err := newFaults(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(f.clock()); d < -time.Second || d > time.Second {
		t.Errorf("without a fault the clock is wrong by %v", d)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	write(`{"clock_offset_ms":3600000,"clock_rate":2,"delay_ms":{"` + l.Addr().String() + `":[150,150]}}`)
	if _, err := f.read(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if d := time.Until(f.clock()); d < time.Hour-time.Second || d > time.Hour+time.Minute {
		t.Errorf("the clock is wrong by %v, want an hour", d)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if seen, err := os.ReadFile(path + ".seen"); err != nil || string(seen) != strconv.FormatInt(info.ModTime().UnixNano(), 10) {
		t.Errorf("seen: %q, %v", seen, err)
	}
	c, err := f.dial(context.Background(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	began := time.Now()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 1)); err != nil || time.Since(began) < 150*time.Millisecond {
		t.Errorf("a byte came after %v (%v), want 150 ms", time.Since(began), err)
	}
	// Of a peer that nothing is done to, the connection is the system's own; when that changes, it goes.
	write(`{}`)
	if _, err := f.read(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		if _, err = peer.Read(make([]byte, 1)); err == nil {
			t.Error("a connection that was late is still there")
		}
	}
	plain, err := f.dial(context.Background(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, ok := plain.(*net.TCPConn); !ok {
		t.Errorf("a connection that nothing is done to is a %T", plain)
	}
	write(`{"clock_offset_ms":3600000,"clock_rate":2}`)
	if _, err := f.read(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if closed(plain) {
		t.Error("a connection was closed, though nothing has changed for its peer")
	}
	write(`{`)
	if _, err := f.read(time.Time{}); err == nil {
		t.Error("half a file was taken")
	}
	if d := time.Until(f.clock()); d < time.Hour-time.Second {
		t.Error("half a file has changed the clock")
	}
}
