package transport

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

// The bytes on the wire, and strangers on the port: whatever is sent, the
// node goes on, bounded, and closes who does not speak the protocol.

func TestGoldenBytes(t *testing.T) {
	h := hello{kind: kindLane, lane: LaneLog, clock: 7, incarnation: 8, sequence: 9, cluster: "c1", from: "a", to: "b"}
	f := header{typ: frameRequest, number: 3, id: 4, sent: 5, deadline: 6}
	f.describe([]byte("body"))
	for _, g := range []struct {
		name string
		got  []byte
		want string
	}{
		{"hello", h.appendTo(nil), "41425054010101000000000000000007000000000000000800000000000000090263310161016253740a11"},
		{"accept", appendAnswer(nil, nil), "4142504101010000000072343031"},
		{"refuse", appendAnswer(nil, Errorf(CodeWrongNode, "me")), "414250410100000400026d6541d09ebd"},
		{"request", appendFrame(nil, &f, []byte("body")), "0000000401000003000000000000000400000000000000050000000000000006263fc950f5bc2f4d626f6479"},
	} {
		if got := hex.EncodeToString(g.got); got != g.want {
			t.Errorf("%s is\n%s, want\n%s", g.name, got, g.want)
		}
	}
	back, err := readHello(bytes.NewReader(h.appendTo(nil)))
	if err != nil || back != h {
		t.Errorf("hello came back as %+v, %v", back, err)
	}
	refusal, err := readAnswer(bytes.NewReader(appendAnswer(nil, Errorf(CodeWrongNode, "me"))))
	if err != nil || *refusal != (Error{Code: CodeWrongNode, Detail: "me"}) {
		t.Errorf("refusal came back as %v, %v", refusal, err)
	}
	r := bufio.NewReader(bytes.NewReader(appendFrame(nil, &f, []byte("body"))))
	fb, err := readHeader(r, 4)
	if err != nil || fb != f {
		t.Errorf("header came back as %+v, %v", fb, err)
	}
	if body, err := readPayload(r, fb); err != nil || string(body) != "body" {
		t.Errorf("payload came back as %q, %v", body, err)
	}
}

// Every flipped bit is noticed, and every truncation.
func TestDamageIsNoticed(t *testing.T) {
	f := header{typ: frameAnswer, number: 3, id: 4, sent: 5, deadline: 6}
	f.describe([]byte("some body"))
	whole := map[string][]byte{
		"hello":  (&hello{kind: kindCall, clock: 7, cluster: "c1", from: "a"}).appendTo(nil),
		"answer": appendAnswer(nil, Errorf(CodeBusy, "try later")),
		"frame":  appendFrame(nil, &f, []byte("some body")),
	}
	read := func(name string, b []byte) (err error) {
		switch name {
		case "hello":
			_, err = readHello(bytes.NewReader(b))
		case "answer":
			_, err = readAnswer(bytes.NewReader(b))
		case "frame":
			r := bufio.NewReader(bytes.NewReader(b))
			var h header
			if h, err = readHeader(r, 1000); err == nil {
				_, err = readPayload(r, h)
			}
		}
		return err
	}
	for name, b := range whole {
		if err := read(name, b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range b {
			if read(name, b[:i]) == nil {
				t.Errorf("%s cut at %d of %d was taken", name, i, len(b))
			}
			for bit := range 8 {
				bad := bytes.Clone(b)
				bad[i] ^= 1 << bit
				if read(name, bad) == nil {
					t.Errorf("%s with bit %d of byte %d flipped was taken", name, bit, i)
				}
			}
		}
	}
}

// stranger is a bare connection to a node.
type stranger struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (c *cluster) stranger(id string) *stranger {
	c.t.Helper()
	conn, err := net.Dial("tcp", c.at[id])
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &stranger{c.t, conn, bufio.NewReader(conn)}
}

func (s *stranger) hello(h hello) *Error {
	s.t.Helper()
	if h.cluster == "" {
		h.cluster = "c1"
	}
	if _, err := s.Write(h.appendTo(nil)); err != nil {
		s.t.Fatal(err)
	}
	refusal, err := readAnswer(s.r)
	if err != nil {
		s.t.Fatalf("answer to hello: %v", err)
	}
	return refusal
}

// ends waits until the node closes the connection, which it does at once and
// not because the connection is idle.
func (s *stranger) ends() {
	s.t.Helper()
	s.SetDeadline(time.Now().Add(4 * time.Second))
	if n, err := io.Copy(io.Discard, s.r); errors.As(err, new(net.Error)) && err.(net.Error).Timeout() {
		s.t.Fatalf("the connection stays open after %d bytes", n)
	}
}

func request(id uint64, m Method, body []byte) []byte {
	h := header{typ: frameRequest, number: uint16(m), id: id, sent: 0, deadline: 1e12}
	h.describe(body)
	return appendFrame(nil, &h, body)
}

func TestGarbageOnThePort(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a", nil), c.node("b", nil)
	good := (&hello{kind: kindLane, cluster: "c1", from: "s"}).appendTo(nil)
	version2 := bytes.Clone(good)
	version2[4] = 2
	for name, bytes := range map[string][]byte{
		"http":     []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"tls":      {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3},
		"resp":     []byte("*1\r\n$4\r\nPING\r\n"),
		"zeros":    make([]byte, 4096),
		"ones":     bytes.Repeat([]byte{0xff}, 4096),
		"version":  version2,
		"badsum":   append(good[:len(good)-1:len(good)-1], good[len(good)-1]^1),
		"badkind":  (&hello{kind: 9, cluster: "c1", from: "s"}).appendTo(nil),
		"badlane":  (&hello{kind: kindLane, lane: 77, cluster: "c1", from: "s"}).appendTo(nil),
		"nobody":   (&hello{kind: kindLane, cluster: "c1"}).appendTo(nil),
		"other me": (&hello{kind: kindLane, cluster: "c1", from: "b"}).appendTo(nil),
	} {
		t.Run(name, func(t *testing.T) {
			s := c.stranger("b")
			if _, err := s.Write(bytes); err != nil {
				t.Fatal(err)
			}
			s.ends()
		})
	}
	if n := b.Stats().Refused; n != 11 {
		t.Errorf("%d connections were refused, want 11", n)
	}
	s := c.stranger("b")
	io.WriteString(s, "*2\r\n$3\r\nGET\r\n$1\r\nx\r\n")
	if line, err := io.ReadAll(s.r); err != nil || string(line) != strangerLine {
		t.Errorf("a client is told %q, %v", line, err)
	}
	s = c.stranger("b")
	s.Write(version2)
	if refusal, err := readAnswer(s.r); err != nil || refusal == nil || refusal.Code != CodeRefused || !strings.Contains(refusal.Detail, "version 2") {
		t.Errorf("another version is told %v, %v", refusal, err)
	}
	if _, err := a.Call(in(t, 5*time.Second), "b", LaneCall, mEcho, nil); err != nil {
		t.Errorf("call after the garbage: %v", err)
	}
}

func TestGarbageAfterHello(t *testing.T) {
	c := newCluster(t)
	a, _ := c.node("a", nil), c.node("b", nil)
	frame := func(edit func([]byte)) []byte {
		b := request(1, mEcho, []byte("0123456789"))
		edit(b)
		return b
	}
	for name, bytes := range map[string][]byte{
		"random":         bytes.Repeat([]byte("garbage!"), 100),
		"huge length":    frame(func(b []byte) { binary.BigEndian.PutUint32(b, 1<<32-1); resum(b) }),
		"over the limit": frame(func(b []byte) { binary.BigEndian.PutUint32(b, 1<<20+1); resum(b) }),
		"header sum":     frame(func(b []byte) { b[36]++ }),
		"payload":        frame(func(b []byte) { b[headerSize]++ }),
		"type":           frame(func(b []byte) { b[4] = 200; resum(b) }),
		"flags":          frame(func(b []byte) { b[5] = 1; resum(b) }),
		"an answer":      frame(func(b []byte) { b[4] = frameAnswer; resum(b) }),
		"ping with body": frame(func(b []byte) { b[4] = framePing; resum(b) }),
	} {
		t.Run(name, func(t *testing.T) {
			s := c.stranger("b")
			if r := s.hello(hello{kind: kindLane, lane: LaneControl, from: "s"}); r != nil {
				t.Fatal(r)
			}
			s.Write(bytes)
			s.ends()
		})
	}
	for name, bytes := range map[string][]byte{
		"request":       request(1, mEcho, nil),
		"negative size": frame(func(b []byte) { b[4] = frameStream; binary.BigEndian.PutUint64(b[8:], 1<<63); resum(b) }),
	} {
		t.Run("stream/"+name, func(t *testing.T) {
			s := c.stranger("b")
			if r := s.hello(hello{kind: kindStream, from: "s"}); r != nil {
				t.Fatal(r)
			}
			s.Write(bytes)
			s.ends()
		})
	}
	if _, err := a.Call(in(t, 5*time.Second), "b", LaneControl, mEcho, nil); err != nil {
		t.Errorf("call after the garbage: %v", err)
	}
}

// resum makes the checksum of a header right after it was changed.
func resum(b []byte) {
	binary.BigEndian.PutUint32(b[36:], crc32.Checksum(b[:36], castagnoli))
}

// A declared length without bytes costs next to nothing.
func TestDeclaredLengthIsNotAllocated(t *testing.T) {
	c := newCluster(t)
	b := c.node("b", nil)
	var before, after runtime.MemStats
	var strangers []*stranger
	runtime.ReadMemStats(&before)
	for range 20 {
		s := c.stranger("b")
		if r := s.hello(hello{kind: kindCall, lane: LaneCall}); r != nil {
			t.Fatal(r)
		}
		f := request(1, mEcho, nil)
		binary.BigEndian.PutUint32(f, 70<<20)
		resum(f)
		s.Write(append(f, make([]byte, 1000)...))
		strangers = append(strangers, s)
	}
	eventually(t, "the requests are being read", func() bool { return b.Stats().Served == 20 })
	runtime.ReadMemStats(&after)
	if grown := int64(after.TotalAlloc - before.TotalAlloc); grown > 20*(1<<20) {
		t.Errorf("20 declared lengths allocated %d bytes", grown)
	}
	for _, s := range strangers {
		s.Close()
	}
}

// A peer that sends and never reads loses its link; nobody else notices.
func TestPeerThatNeverReads(t *testing.T) {
	c := newCluster(t)
	a := c.node("a", nil)
	b := c.listen("b", func(cfg *Config) { cfg.WriteTimeout, cfg.MaxInFlight = 100*time.Millisecond, 64 })
	big := make([]byte, 1<<20)
	b.Handle(mBlock, func(context.Context, string, []byte) ([]byte, error) { return big, nil })
	b.Start()
	s := c.stranger("b")
	if r := s.hello(hello{kind: kindLane, lane: LaneCall, from: "s"}); r != nil {
		t.Fatal(r)
	}
	lost := false
	for i := range uint64(1_000_000) {
		if _, err := s.Write(request(i, mBlock, nil)); err != nil {
			lost = true
			break
		}
		if i == 1000 {
			if _, err := a.Call(in(t, 5*time.Second), "b", LaneCall, mEcho, nil); err != nil {
				t.Errorf("another peer: %v", err)
			}
		}
	}
	if !lost {
		t.Error("the link lives")
	}
}

// A stream whose chunks are not what was announced is never taken for whole.
func TestStreamOfBadChunks(t *testing.T) {
	c := newCluster(t)
	b := c.listen("b", nil)
	type read struct {
		n   int64
		err error
	}
	got := make(chan read, 1)
	b.HandleStream(mStream, func(_ context.Context, _ string, _ []byte, body io.Reader, _ int64) ([]byte, error) {
		n, err := io.Copy(io.Discard, body)
		got <- read{n, err}
		return nil, err
	})
	b.Start()
	chunk := func(body string, edit func([]byte)) []byte {
		h := header{typ: frameChunk}
		h.describe([]byte(body))
		f := appendFrame(nil, &h, []byte(body))
		if edit != nil {
			edit(f)
		}
		return f
	}
	for name, test := range map[string]struct {
		body []byte
		want error
	}{
		"whole":     {append(chunk("01234", nil), chunk("56789", nil)...), nil},
		"short":     {chunk("01234", nil), io.ErrUnexpectedEOF},
		"in chunk":  {chunk("0123456789", nil)[:headerSize+5], io.ErrUnexpectedEOF},
		"in header": {chunk("0123456789", nil)[:headerSize-5], io.ErrUnexpectedEOF},
		"too long":  {chunk("0123456789+", nil), errFrame},
		"empty":     {chunk("", nil), errFrame},
		"damaged":   {chunk("0123456789", func(b []byte) { b[headerSize]++ }), errChecksum},
		"no chunk":  {chunk("0123456789", func(b []byte) { b[4] = frameRequest; resum(b) }), errFrame},
	} {
		t.Run(name, func(t *testing.T) {
			s := c.stranger("b")
			if r := s.hello(hello{kind: kindStream, from: "s"}); r != nil {
				t.Fatal(r)
			}
			head := header{typ: frameStream, number: uint16(mStream), id: 10, deadline: 1e12}
			head.describe(nil)
			s.Write(append(appendFrame(nil, &head, nil), test.body...))
			s.Conn.(*net.TCPConn).CloseWrite()
			r := <-got
			if !errors.Is(r.err, test.want) || (r.err == nil) != (test.want == nil) {
				t.Errorf("the receiver read %d bytes and %v, want %v", r.n, r.err, test.want)
			}
		})
	}
}

// Refusals are answers, too: a peer over its share that does not read them
// loses its link long before a write would time out.
func TestRefusalsAreBounded(t *testing.T) {
	c := newCluster(t)
	b := c.listen("b", func(cfg *Config) { cfg.WriteTimeout, cfg.MaxInFlight = time.Hour, 2 })
	b.Handle(mBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) { <-ctx.Done(); return nil, nil })
	b.Start()
	s := c.stranger("b")
	if r := s.hello(hello{kind: kindLane, lane: LaneCall, from: "s"}); r != nil {
		t.Fatal(r)
	}
	burst := bytes.Repeat(request(1, mBlock, nil), 1000)
	for range 5000 {
		if _, err := s.Write(burst); err != nil {
			if err, ok := err.(net.Error); ok && err.Timeout() {
				t.Fatal("the node neither reads nor closes")
			}
			return
		}
	}
	t.Error("the link lives")
}

// A second link for a lane replaces the first; a link from before it does not.
func TestLinkIsReplacedInOrder(t *testing.T) {
	c := newCluster(t)
	c.node("b", nil)
	link := func(incarnation, sequence uint64) (*stranger, *Error) {
		s := c.stranger("b")
		return s, s.hello(hello{kind: kindLane, lane: LaneLog, from: "s", incarnation: incarnation, sequence: sequence})
	}
	first, refusal := link(1, 5)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if _, refusal = link(1, 4); refusal == nil || refusal.Code != CodeRefused {
		t.Errorf("an older link: %v", refusal)
	}
	second, refusal := link(1, 6)
	if refusal != nil {
		t.Fatal(refusal)
	}
	first.ends()
	third, refusal := link(2, 1) // the peer was started again
	if refusal != nil {
		t.Fatal(refusal)
	}
	second.ends()
	third.Write(request(1, mEcho, []byte("x")))
	if body, err := readOneAnswer(third.r, 100); err != nil || string(body) != "s:x" {
		t.Errorf("got %q, %v", body, err)
	}
}

// Who does not finish the hello in time is cut, however slowly it goes on.
func TestSlowHello(t *testing.T) {
	c := newCluster(t)
	c.node("b", func(cfg *Config) { cfg.DialTimeout = 150 * time.Millisecond })
	c.stranger("b").ends()
	s := c.stranger("b")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	hello := (&hello{kind: kindLane, cluster: "c1", from: "s"}).appendTo(nil)
	for i := range hello {
		<-tick.C
		if _, err := s.Write(hello[i : i+1]); err != nil {
			return
		}
	}
	t.Error("a hello that took a second was taken")
}

// A node that does not serve more connections closes them, and serves again
// when others end.
func TestMaxConns(t *testing.T) {
	c := newCluster(t)
	b := c.node("b", func(cfg *Config) { cfg.MaxConns = 2 })
	s1, s2 := c.stranger("b"), c.stranger("b")
	for _, s := range []*stranger{s1, s2} {
		if r := s.hello(hello{kind: kindCall}); r != nil {
			t.Fatal(r)
		}
	}
	c.stranger("b").ends()
	if b.Stats().Refused != 1 {
		t.Errorf("%d refused", b.Stats().Refused)
	}
	s1.Close()
	eventually(t, "a place is free", func() bool {
		s := c.stranger("b")
		defer s.Close()
		s.Write((&hello{kind: kindCall, cluster: "c1"}).appendTo(nil))
		refusal, err := readAnswer(s.r)
		return err == nil && refusal == nil
	})
}

// A peer that went away without a word is let go of, with its requests.
func TestSilentCallerIsLetGo(t *testing.T) {
	c := newCluster(t)
	b := c.listen("b", func(cfg *Config) { cfg.PingEvery, cfg.DeadAfter = 10*time.Millisecond, time.Second })
	ended := make(chan struct{})
	b.Handle(mBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		<-ctx.Done()
		close(ended)
		return nil, nil
	})
	b.Start()
	s := c.stranger("b")
	if r := s.hello(hello{kind: kindLane, from: "s"}); r != nil {
		t.Fatal(r)
	}
	s.Write(request(1, mBlock, nil))
	<-ended
	s.ends()
}

// The offset follows the quickest frame, forgets by windows, and is not fooled
// by the first frame after a stop.
func TestOffset(t *testing.T) {
	const sec = 1000 * 1000
	o := newOffset(100, 5100) // theirs 5000 behind, if the hello took no time
	step := func(sent, now, want int64) {
		t.Helper()
		if got := o.translate(sent, now, 1000) - 1000; got != want {
			t.Errorf("offset at %d is %d, want %d", now, got, want)
		}
	}
	step(200, 5190, 4990)           // quicker than the hello
	step(300, 9000, 4990)           // late by 3710
	step(20*sec, 60*sec, 4990)      // after a stop: late by 40 s, and a new window
	step(61*sec-4000, 61*sec, 4000) // the clocks drift
	step(71*sec, 71*sec+7000, 4000) // next window: the last one still counts
	step(82*sec, 82*sec+8000, 7000) // only these two
}

func FuzzReadHello(f *testing.F) {
	f.Add((&hello{kind: kindLane, lane: LaneLog, clock: 7, cluster: "c1", from: "a", to: "b"}).appendTo(nil))
	f.Add([]byte("ABPT"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := readHello(bytes.NewReader(data))
		if err != nil {
			return
		}
		again := h.appendTo(nil)
		if back, err := readHello(bytes.NewReader(again)); err != nil || back != h {
			t.Fatalf("%+v became %+v, %v", h, back, err)
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	f.Add(appendAnswer(nil, nil))
	f.Add(appendAnswer(nil, Errorf(CodeWrongCluster, "this is another")))
	f.Fuzz(func(t *testing.T, data []byte) {
		refusal, err := readAnswer(bytes.NewReader(data))
		if err == nil && refusal != nil && len(refusal.Detail) > maxDetail {
			t.Fatalf("detail of %d bytes", len(refusal.Detail))
		}
	})
}

// FuzzFrames reads frames whose checksums were made right, so that the fuzzer
// gets past them.
func FuzzFrames(f *testing.F) {
	f.Add(request(1, mEcho, []byte("hello")))
	f.Add(append(request(1, mEcho, nil), request(2, mEcho, []byte("x"))...))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, right := range []bool{false, true} {
			b := bytes.Clone(data)
			if right && len(b) >= headerSize {
				resum(b)
			}
			r := bufio.NewReader(bytes.NewReader(b))
			for {
				h, err := readHeader(r, 1<<16)
				if err != nil {
					break
				}
				body, err := readPayload(r, h)
				if err != nil {
					break
				}
				if len(body) != int(h.length) || h.length > 1<<16 {
					t.Fatalf("%d bytes for a length of %d", len(body), h.length)
				}
			}
		}
	})
}

// FuzzServe sends what the fuzzer makes up to a node, after a good hello.
func FuzzServe(f *testing.F) {
	f.Add(request(1, mEcho, []byte("hello")), uint8(kindLane))
	f.Add(request(1, 1, nil), uint8(kindCall))
	f.Add(request(1, mStream, []byte("head")), uint8(kindStream))
	tr, err := Listen(Config{Self: "b", Addr: "127.0.0.1:0", Resolve: func(string) (string, error) { return "", errors.New("none") }})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { tr.Close() })
	tr.Handle(mEcho, func(_ context.Context, _ string, req []byte) ([]byte, error) { return req, nil })
	tr.HandleInOrder(mCount, func(_ string, req []byte, reply func([]byte, error)) { reply(req, nil) })
	tr.HandleStream(mStream, func(_ context.Context, _ string, _ []byte, body io.Reader, _ int64) ([]byte, error) {
		n, err := io.Copy(io.Discard, body)
		return binary.BigEndian.AppendUint64(nil, uint64(n)), err
	})
	tr.Start()
	f.Fuzz(func(t *testing.T, data []byte, k uint8) {
		ours, theirs := net.Pipe()
		served := make(chan struct{})
		go func() { defer close(served); tr.serve(theirs) }()
		go io.Copy(io.Discard, ours)
		ours.SetDeadline(time.Now().Add(5 * time.Second))
		h := hello{kind: kind(1 + k%3), from: "s", sequence: 1}
		ours.Write(h.appendTo(nil))
		for b := bytes.Clone(data); len(b) > 0; {
			if len(b) >= headerSize {
				resum(b)
			}
			n := min(len(b), headerSize)
			if len(b) >= headerSize {
				n = int(min(uint64(len(b)), headerSize+uint64(binary.BigEndian.Uint32(b))))
			}
			if _, err := ours.Write(b[:n]); err != nil {
				break
			}
			b = b[n:]
		}
		ours.Close()
		<-served
	})
}
