package cert

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// serve echoes one byte of each connection.
func serve(t *testing.T, l net.Listener) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	}()
	t.Cleanup(func() { l.Close(); <-done; wg.Wait() })
}

// echo says whether a connection answers.
func echo(c net.Conn) error {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	defer c.SetDeadline(time.Time{})
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// TestHandshakes is the matrix of who may talk to whom on a port for nodes, over real sockets, as seen by who connects; what the port
// logs is why.
func TestHandshakes(t *testing.T) {
	b := newBench(t)
	b.ca("peer-ca")
	b.ca("client-ca")
	b.ca("foreign")
	var log syncBuffer
	n1 := b.open(b.node("peer-ca", "n1", "n1"), "n1", &log)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := n1.Listen(raw, Options{Auth: AuthNode, Hint: func([]byte) []byte { return []byte("TLS here\n") }})
	serve(t, l)
	good := b.open(b.node("peer-ca", "n2", "n2"), "n2", io.Discard)
	dial := func(ctx context.Context) net.Conn {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	// show connects with a certificate, whatever it is, and trusts the port whatever it shows.
	show := func(f Files, min, max uint16) error {
		c := &tls.Config{InsecureSkipVerify: true, MinVersion: min, MaxVersion: max}
		if f.Cert != "" {
			pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
			if err != nil {
				t.Fatal(err)
			}
			// Not by Certificates: crypto/tls would keep back what the port does not ask for.
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		tc := tls.Client(dial(t.Context()), c)
		defer tc.Close()
		return echo(tc)
	}
	expired := b.issue("peer-ca", "expired", Request{Name: "n3", Node: "n3", Server: true, Client: true, Valid: time.Minute, NotBefore: time.Now().Add(-2 * time.Hour)})
	for _, c := range []struct {
		name string
		f    Files
		max  uint16
		logs string
	}{
		{"none", Files{}, 0, "didn't provide a certificate"},
		{"expired", expired, 0, "expired"},
		{"of a foreign CA", b.node("foreign", "nf", "n2"), 0, "unknown authority"},
		{"of the clients' CA", b.node("client-ca", "nc", "n2"), 0, "unknown authority"},
		{"of no node", b.issue("peer-ca", "app", Request{Name: "app", Client: true}), 0, "not a node's certificate"},
		{"of a server only", b.issue("peer-ca", "so", Request{Name: "n2", Node: "n2", Server: true}), 0, "incompatible key usage"},
		{"TLS 1.2", b.node("peer-ca", "n4", "n4"), tls.VersionTLS12, "unsupported versions"},
	} {
		l.tell.mu.Lock()
		l.tell.next = time.Time{}
		l.tell.mu.Unlock()
		was, failed := len(log.String()), l.Failed()
		err := show(c.f, tls.VersionTLS12, c.max)
		if err == nil || !IsRefusal(err) {
			t.Errorf("%s: error %v, want a refusal", c.name, err)
		}
		eventually(t, func() bool { return l.Failed() == failed+1 && strings.Contains(log.String()[was:], c.logs) }, func() string { return c.name + ": the port logs " + log.String()[was:] })
	}
	// What is logged is bounded.
	was := len(log.String())
	for range 5 {
		show(Files{}, tls.VersionTLS13, 0)
	}
	if said := log.String()[was:]; strings.Contains(said, "handshake failed") {
		t.Errorf("told again: %s", said)
	}
	// Plain text gets a hint, whatever it is.
	c := dial(t.Context())
	c.Write([]byte("PING\r\n"))
	if got, _ := io.ReadAll(c); string(got) != "TLS here\n" {
		t.Errorf("plain text is told %q", got)
	}
	// Who is right gets in, and looks at whom it has met.
	tc, err := good.DialPeer(t.Context(), dial(t.Context()), "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := echo(tc); err != nil || tc.ConnectionState().Version != tls.VersionTLS13 {
		t.Errorf("a good node: %v", err)
	}
	if _, err := good.DialPeer(t.Context(), dial(t.Context()), "n9"); err == nil || !strings.Contains(err.Error(), "bound to node n1, want n9") {
		t.Errorf("another node than it wants: %v", err)
	}
	foreign := b.open(b.node("foreign", "n5", "n5"), "n5", io.Discard)
	if _, err := foreign.DialPeer(t.Context(), dial(t.Context()), "n1"); !IsRefusal(err) {
		t.Errorf("a port of another CA: %v", err)
	}
}

// TestPlaintextPort shows that a client with TLS finds out at once that a port has none.
func TestPlaintextPort(t *testing.T) {
	b := newBench(t)
	s := b.open(b.node("ca", "n1", "n1"), "n1", io.Discard)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, raw) // it echoes the client's own words, which are no server's
	c, err := net.Dial("tcp", raw.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.DialPeer(t.Context(), c, ""); err == nil {
		t.Fatal("a handshake with nobody")
	}
	says, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer says.Close()
	go func() {
		if c, err := says.Accept(); err == nil {
			c.Read(make([]byte, 4))
			c.Write([]byte("-ERR what?\r\n"))
		}
	}()
	if c, err = net.Dial("tcp", says.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if _, err = s.DialPeer(t.Context(), c, ""); !IsPlaintext(err) {
		t.Errorf("error %v, want that it does not speak TLS", err)
	}
}

// pipes is a listener in memory, for virtual time.
type pipes struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newPipes() *pipes { return &pipes{ch: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.ch:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.done) }); return nil }

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func (p *pipes) dial() net.Conn {
	a, b := net.Pipe()
	p.ch <- b
	return a
}

// TestSlowHandshakes shows that whoever connects and says nothing, or too little, takes a bounded room for a bounded time.
func TestSlowHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.open(b.node("ca", "n1", "n1"), "n1", io.Discard)
		other := b.open(b.node("ca", "n2", "n2"), "n2", io.Discard)
		p := newPipes()
		l := s.Listen(p, Options{Auth: AuthNode})
		serve(t, l)
		var slow []net.Conn
		for i := range maxHandshakes {
			c := p.dial()
			slow = append(slow, c)
			if i%2 == 0 { // a record that never ends
				go c.Write([]byte{0x16, 3, 1, 2, 0, 1})
			}
		}
		began := time.Now()
		c, err := other.DialPeer(t.Context(), p.dial(), "n1") // it has to wait
		if err != nil {
			t.Fatal(err)
		}
		if err := echo(c); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != handshakeTime {
			t.Errorf("it waited %v, want the %v of a handshake", took, handshakeTime)
		}
		synctest.Wait()
		if l.Failed() != maxHandshakes {
			t.Errorf("%d handshakes failed, want %d", l.Failed(), maxHandshakes)
		}
		for _, c := range slow {
			c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Fatalf("a slow one is still connected: %v", err)
			}
		}
		c.NetConn().Close()
		l.Close()
	})
}

// TestRevoked shows that who is connected with a certificate that is not trusted any more is cut off some seconds after its CA was taken
// out, that the others stay, and that it does not get in again.
func TestRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.ca("old")
		b.ca("new")
		f := b.issue("new", "server", Request{Name: "s", Server: true})
		f.CA = b.path("bundle")
		b.write(f.CA, b.read("old.crt"), b.read("new.crt"))
		s := b.open(f, "", io.Discard)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.Run(ctx)
		p := newPipes()
		l := s.Listen(p, Options{Auth: AuthRequest})
		serve(t, l)
		connect := func(f Files) (net.Conn, error) {
			f.CA = b.path("new.crt")
			pair := Config{Files: f, Name: "client"}
			src, err := Open(pair)
			if err != nil {
				t.Fatal(err)
			}
			conf := src.Client("")         // it shows what it has, also what the server does not ask for
			conf.InsecureSkipVerify = true // the server has no name here
			c := tls.Client(p.dial(), conf)
			t.Cleanup(func() { c.NetConn().Close() })
			return c, echo(c)
		}
		oldFiles := b.issue("old", "a", Request{Name: "a", Client: true})
		a, errA := connect(oldFiles)
		n, errN := connect(b.issue("new", "b", Request{Name: "b", Client: true}))
		none, errNone := connect(Files{})
		if errA != nil || errN != nil || errNone != nil {
			t.Fatal(errA, errN, errNone)
		}
		b.write(f.CA, b.read("new.crt"))
		time.Sleep(2*Period + revokeAfter/2)
		if s.Generation() != 2 || echo(a) != nil {
			t.Fatalf("generation %d; cut off before its time", s.Generation())
		}
		if _, err := connect(oldFiles); err == nil {
			t.Error("an old certificate still gets in")
		}
		time.Sleep(revokeAfter)
		if echo(a) == nil {
			t.Error("an old certificate is still connected")
		}
		if err := echo(n); err != nil {
			t.Errorf("a new one: %v", err)
		}
		if err := echo(none); err != nil {
			t.Errorf("one without a certificate: %v", err)
		}
		cancel()
		n.(*tls.Conn).NetConn().Close()
		none.(*tls.Conn).NetConn().Close()
		l.Close()
	})
}
