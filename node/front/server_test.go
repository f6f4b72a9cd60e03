package front

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport/resp"
)

// TestBadInput: what no client library sends.
func TestBadInput(t *testing.T) {
	cl := newCluster(t, 1, 1)
	s, addr := serve(t, Config{MaxCommandBytes: 4 << 20, Limits: command.Limits{MaxKey: 10, MaxValue: 20}}, cl.node("n1"))
	for _, row := range []struct{ send, want string }{
		{"*1\r\n$4294967296\r\n", "-ERR Protocol error: invalid bulk length"},
		{"*1\r\n$-5\r\n", "-ERR Protocol error: invalid bulk length"},
		{"*-1x\r\n", "-ERR Protocol error: invalid multibulk length"},
		{"*2\r\n$3\r\nGET\r\n:1\r\n", "-ERR Protocol error: expected '$', got ':'"},
		{"GET \"a\r\n", "-ERR Protocol error: unbalanced quotes in request"},
		{strings.Repeat("x", 70<<10), "-ERR Protocol error: too big inline request"},
	} {
		c := dial(t, addr)
		if _, err := io.WriteString(c.nc, "PING\r\n"+row.send); err != nil {
			t.Fatal(err)
		}
		if got := c.read(); got != "+PONG" {
			t.Errorf("%.40q: the command before it: %q", row.send, got)
		}
		if got := c.read(); !strings.HasPrefix(got, row.want) {
			t.Errorf("%.40q: %q, want %q", row.send, got, row.want)
		}
		if _, err := c.r.ReadReply(); err == nil {
			t.Errorf("%.40q: the connection goes on", row.send)
		}
	}
	// A node that was told to join here need not wait for an answer.
	peer := dial(t, addr)
	io.WriteString(peer.nc, "ABPT\x01\x02\x01\x00 and so on")
	if got := peer.read(); got != "-ERR this is a client port, not a peer port" {
		t.Errorf("a peer is told %q", got)
	}
	c := dial(t, addr)
	c.want([]string{"SET 12345678901 x", "SET k 123456789012345678901", "APPEND k 123456789012345678901", "MSET a 1 12345678901 x", "MSET a 123456789012345678901", "SET k v IFEQ 123456789012345678901"},
		[]string{"-TOOLARGE key of 11 bytes, the limit is 10", "-TOOLARGE value of 21 bytes, the limit is 20", "-TOOLARGE value...", "-TOOLARGE key...", "-TOOLARGE value...", "-TOOLARGE value..."})
	if len(cl.keys) != 0 {
		t.Errorf("something was written: %v", cl.keys)
	}
	io.WriteString(c.nc, "*2\r\n$3\r\nGET\r\n$0\r\n\r\n*3\r\n$3\r\nDEL\r\n$1\r\na\r\n$0\r\n\r\nset \"x\\n\" 1\r\n*2\r\n$6\r\nno\r\nno\r\n$1\r\n\x00\r\n")
	for _, want := range []string{"-ERR the empty key is not allowed", "-ERR the empty key is not allowed", "+OK", "-ERR unknown command 'no  no', with args beginning with: '\x00' "} {
		if got := c.read(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if s.Stats().Errors["TOOLARGE"] != 6 {
		t.Errorf("counted %v", s.Stats().Errors)
	}
}

// TestMaxClients: one connection too many is told so, and there is room again
// when another has gone.
func TestMaxClients(t *testing.T) {
	s, addr := serve(t, Config{MaxClients: 2}, newCluster(t, 1, 1).node("n1"))
	a, b := dial(t, addr), dial(t, addr)
	a.one("PING")
	b.one("PING")
	c := dial(t, addr)
	if got := c.read(); got != "-ERR max number of clients reached" {
		t.Errorf("third client: %q", got)
	}
	b.nc.Close()
	until(t, "the second is gone", func() bool { return s.Stats().Clients == 1 })
	if got := dial(t, addr).one("PING"); got != "+PONG" {
		t.Error(got)
	}
	if st := s.Stats(); st.Refused != 1 || st.Accepted != 3 {
		t.Errorf("stats %+v", st)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// TestSlowSender: who does not finish a command in time is told so and closed;
// who is idle between commands is not.
func TestSlowSender(t *testing.T) {
	_, addr := serve(t, Config{CompleteTimeout: 100 * time.Millisecond}, newCluster(t, 1, 1).node("n1"))
	idle, slow, tail := dial(t, addr), dial(t, addr), dial(t, addr)
	idle.one("PING")
	io.WriteString(slow.nc, "*2\r\n$3\r\nGET\r\n$1")
	io.WriteString(tail.nc, "PING\r\n*2\r\n$3\r\nGE") // an unfinished one behind a whole one
	if got := tail.read(); got != "+PONG" {
		t.Error(got)
	}
	for _, c := range []*client{slow, tail} {
		if got := c.read(); !strings.HasPrefix(got, "-ERR Protocol error: the command did not arrive within 100ms") {
			t.Errorf("slow sender: %q", got)
		}
		if _, err := c.r.ReadReply(); err == nil {
			t.Error("not closed")
		}
	}
	idle.want([]string{"PING"}, []string{"+PONG"})
}

// TestIdle: an idle connection gives its buffers back and goes on as before.
func TestIdle(t *testing.T) {
	s, addr := serve(t, Config{IdleAfter: 20 * time.Millisecond}, newCluster(t, 1, 1).node("n1"))
	c := dial(t, addr)
	for range 3 {
		c.want([]string{"SET k 1", "GET k", "MGET k k"}, []string{"+OK", "1", "[1 1]"})
		until(t, "it is idle", func() bool { return s.list()[0].in.shrunk.Load() })
	}
}

// TestBufferBudget: bytes of unfinished requests are bounded over all
// connections, and given back.
func TestBufferBudget(t *testing.T) {
	s, addr := serve(t, Config{MaxBufferedBytes: 1 << 20}, newCluster(t, 1, 1).node("n1"))
	half := "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$900000\r\n" + strings.Repeat("x", 700_000)
	a := dial(t, addr)
	io.WriteString(a.nc, half)
	until(t, "the first half is there", func() bool { return s.Stats().Buffered > 500_000 })
	b := dial(t, addr)
	io.WriteString(b.nc, half)
	if got := b.read(); got != "-TRYAGAIN nothing was done: this node holds too many bytes of unfinished requests" {
		t.Errorf("second: %q", got)
	}
	io.WriteString(a.nc, strings.Repeat("x", 200_000)+"\r\n")
	if got := a.read(); got != "+OK" {
		t.Errorf("first: %.80q", got)
	}
	until(t, "the bytes are given back", func() bool { return s.Stats().Buffered == 0 })
}

// TestArgumentsAreCharged: arguments take more memory than they have bytes, and
// the budget counts that.
func TestArgumentsAreCharged(t *testing.T) {
	s, addr := serve(t, Config{MaxBufferedBytes: 8 << 20}, newCluster(t, 1, 1).node("n1"))
	c := dial(t, addr)
	go io.WriteString(c.nc, "*1000000\r\n"+strings.Repeat("$0\r\n\r\n", 300_000)) // under 2 MiB
	if got := c.read(); got != "-TRYAGAIN nothing was done: this node holds too many bytes of unfinished requests" {
		t.Errorf("got %q", got)
	}
	until(t, "the bytes are given back", func() bool { return s.Stats().Buffered == 0 })
}

// TestNeverReads: who sends and never reads is cut off, and its commands do not
// pile up.
func TestNeverReads(t *testing.T) {
	cl := newCluster(t, 1, 1)
	cl.keys["big"] = entry{value: []byte(strings.Repeat("x", 1<<20))}
	s, addr := serve(t, Config{WriteTimeout: 200 * time.Millisecond}, cl.node("n1"))
	c := dial(t, addr)
	line := string(resp.AppendCommandStrings(nil, "GET", "big"))
	for range 64 {
		if _, err := io.WriteString(c.nc, line); err != nil {
			break
		}
	}
	until(t, "the connection is cut", func() bool { return s.Stats().Clients == 0 })
}

// TestWritesNeedNoReplyRoom: while others' replies take all the room there is,
// reads wait for it in vain, and writes go on.
func TestWritesNeedNoReplyRoom(t *testing.T) {
	cl := newCluster(t, 1, 1)
	s, addr := serve(t, Config{CommandTimeout: 300 * time.Millisecond}, cl.node("n1"))
	if err := s.replies.Acquire(t.Context(), s.cfg.MaxReplyBytes); err != nil {
		t.Fatal(err)
	}
	defer s.replies.Release(s.cfg.MaxReplyBytes)
	reader, writer := dial(t, addr), dial(t, addr)
	reader.send("GET k")
	until(t, "the GET is in", func() bool { return s.Stats().Commands == 1 })
	if got := writer.one("SET k 1"); got != "+OK" {
		t.Errorf("SET: %s", got)
	}
	if got := reader.read(); !strings.HasPrefix(got, "-TRYAGAIN") {
		t.Errorf("GET: %s", got)
	}
}

// TestShutdown: what is in flight is answered, who is idle is closed, a job's
// waiter does not hold the node up, and a backend that hangs is cut off.
func TestShutdown(t *testing.T) {
	cl := newCluster(t, 1, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(Config{}, cl.node("n1"))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	var entered atomic.Int32
	release := make(chan struct{})
	cl.setHook(func(context.Context, sharding.NodeID, sharding.ShardID, []command.Command) error {
		entered.Add(1)
		<-release
		return nil
	})
	idle, busy, waiting := dial(t, l.Addr().String()), dial(t, l.Addr().String()), dial(t, l.Addr().String())
	idle.one("PING")
	busy.send("SET k 1")
	waiting.send("JOB.RESULT slow WAIT 60000")
	until(t, "the SET is in flight", func() bool { return entered.Load() == 1 })
	until(t, "all are in", func() bool { return s.Stats().Commands == 3 })
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done <- s.Shutdown(ctx)
	}()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if _, err := idle.r.ReadReply(); err != io.EOF {
		t.Errorf("idle connection: %v", err)
	}
	if got := waiting.read(); !strings.HasPrefix(got, "-TRYAGAIN") {
		t.Errorf("waiter: %q", got)
	}
	close(release)
	if got := busy.read(); got != "+OK" {
		t.Errorf("in flight: %q", got)
	}
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if nc, err := net.Dial("tcp", l.Addr().String()); err == nil {
		nc.Close()
		t.Error("still accepting")
	}

	cl.setHook(func(ctx context.Context, _ sharding.NodeID, _ sharding.ShardID, _ []command.Command) error {
		entered.Add(1)
		<-ctx.Done()
		return ctx.Err()
	})
	l2, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s2 := NewServer(Config{CommandTimeout: time.Minute}, cl.node("n1"))
	go func() { served <- s2.Serve(l2) }()
	dial(t, l2.Addr().String()).send("SET k 2")
	until(t, "the second SET is in flight", func() bool { return entered.Load() == 2 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s2.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown of a hung server: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

// FuzzServer sends anything to a whole server: it must answer or close, and be
// there for the next.
func FuzzServer(f *testing.F) {
	for _, seed := range []string{"PING\r\n", "*1\r\n$4\r\nPING\r\n", "SET a b EX 1\r\nGET a\r\nMGET a b c\r\nMSET a 1 b\r\n", "COMMAND DOCS\r\nCOMMAND INFO get x\r\nHELLO 3\r\nCLUSTER SLOTS\r\n", "SCAN 0 COUNT 1 MATCH [\r\nSCAN 281474976710656\r\n",
		"MGET\r\nMSETNX a b c d\r\nGETRANGE a -9223372036854775808 9223372036854775807\r\nEXPIRE a -9223372036854775808\r\nEXPIREAT a 2305843009213693951\r\n", "CLUSTER SHARDS\r\nCLUSTER NODES\r\nINFO all\r\nCLIENT LIST\r\nCONFIG GET *\r\nJOB.SUBMIT {}\r\nJOB.RESULT x WAIT 0\r\n", "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$99\r\nx"} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	var t0 testing.T
	cl := newCluster(&t0, 2, 2)
	b := cl.node("n1")
	f.Fuzz(func(t *testing.T, data []byte, clustered bool) {
		cfg := Config{}
		if clustered {
			cfg.Mode = ModeCluster
		}
		s := NewServer(cfg, b)
		here, there := net.Pipe()
		s.admit(there)
		here.SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			here.Write(data)
			io.WriteString(here, "\r\nQUIT\r\n")
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			s.Shutdown(ctx)
		}()
		if _, err := io.Copy(io.Discard, bufio.NewReader(here)); err != nil {
			t.Fatalf("%q: %v", data, err)
		}
	})
}
