package transport

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/transport/cert"
)

// keys is a directory with CAs and certificates of nodes.
type keys struct {
	t   *testing.T
	dir string
	cas map[string]*cert.Authority
}

func newKeys(t *testing.T) *keys { return &keys{t, t.TempDir(), map[string]*cert.Authority{}} }

func (k *keys) path(name string) string { return filepath.Join(k.dir, name) }

func (k *keys) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

// issue writes name.crt and name.key of a node, from a CA that is made on first use.
func (k *keys) issue(ca, name, node string) {
	k.t.Helper()
	if k.cas[ca] == nil {
		a, err := cert.NewAuthority(k.dir, ca, 24*time.Hour)
		k.must(err)
		k.cas[ca] = a
	}
	k.must(k.cas[ca].Issue(k.dir, name, cert.Request{Name: node, Node: node, Server: true, Client: true, Valid: 12 * time.Hour}))
}

// copy replaces a file by others, one behind the other.
func (k *keys) copy(to string, from ...string) {
	k.t.Helper()
	var all []byte
	for _, f := range from {
		raw, err := os.ReadFile(k.path(f))
		k.must(err)
		all = append(all, raw...)
	}
	k.must(os.WriteFile(k.path(to), all, 0o600))
}

func (k *keys) open(ca, name, node string) *cert.Source {
	k.t.Helper()
	s, err := cert.Open(cert.Config{Files: cert.Files{Cert: k.path(name + ".crt"), Key: k.path(name + ".key"), CA: k.path(ca)}, Name: "peer", Node: node})
	k.must(err)
	return s
}

// source issues and opens.
func (k *keys) source(ca, node string) *cert.Source {
	k.t.Helper()
	k.issue(ca, ca+"-"+node, node)
	return k.open(ca+".crt", ca+"-"+node, node)
}

func secure(s *cert.Source) func(*Config) { return func(c *Config) { c.TLS = s } }

// TestLinksWithTLS shows that all ways between nodes work with TLS, and who is told what if certificates do not fit.
func TestLinksWithTLS(t *testing.T) {
	k, c := newKeys(t), newCluster(t)
	a := c.node("a", secure(k.source("ca", "a")))
	b := c.listen("b", secure(k.source("ca", "b")))
	b.HandleStream(mStream, func(_ context.Context, from string, head []byte, body io.Reader, size int64) ([]byte, error) {
		raw, err := io.ReadAll(body)
		return append([]byte(from+":"), raw...), err
	})
	b.Start()
	call := func(from *TCP, to string) (string, error) {
		got, err := from.Call(in(t, 5*time.Second), to, LaneCall, mEcho, []byte("x"))
		return string(got), err
	}
	for ln := range Lanes {
		if got, err := a.Call(in(t, 5*time.Second), "b", ln, mEcho, []byte("x")); err != nil || string(got) != "a:x" {
			t.Fatalf("lane %d: %q, %v", ln, got, err)
		}
	}
	if got, err := call(a, "a"); err != nil || got != "a:x" {
		t.Errorf("itself: %q, %v", got, err)
	}
	big := bytes.Repeat([]byte("y"), 3<<20)
	if got, err := a.Stream(in(t, 5*time.Second), "b", mStream, nil, bytes.NewReader(big), int64(len(big))); err != nil || len(got) != len(big)+2 {
		t.Errorf("stream: %d bytes, %v", len(got), err)
	}
	// Of a call by address, the certificate says who calls.
	if got, err := a.CallAddr(in(t, 5*time.Second), c.at["b"], mEcho, []byte("x")); err != nil || string(got) != "a:x" {
		t.Errorf("by address: %q, %v", got, err)
	}

	wants := func(what, words string, err error) {
		t.Helper()
		if err == nil || !Certain(err) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: error %v, want a certain one with %q", what, err, words)
		}
	}
	// A node that has another's certificate: both sides say so.
	var log lockedBuffer
	thief := c.node("thief", secure(k.source("ca", "m")))
	_, err := call(thief, "b")
	wantCode(t, err, CodeWrongNode)
	wants("another's certificate", "bound to node m, and the hello is of node thief", err)
	_, err = thief.Stream(in(t, 5*time.Second), "b", mStream, nil, strings.NewReader(""), 0)
	wantCode(t, err, CodeWrongNode)
	_, err = call(a, "thief")
	wants("a node with another's certificate", "bound to node m, want thief", err)
	// Of another CA: it is told, once, and so is the log.
	foreign := c.node("f", func(cfg *Config) {
		cfg.TLS = k.source("foreign", "f")
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	refused := b.Stats().Untrusted
	_, err = call(foreign, "b")
	wants("a foreign CA", "unknown authority", err)
	if said := log.String(); !strings.Contains(said, "level=WARN") || !strings.Contains(said, "unknown authority") {
		t.Errorf("logged: %s", said)
	}
	// One whose CA only we do not trust: the other side's alert comes after the handshake.
	k.issue("foreign", "g", "g")
	k.copy("both.crt", "ca.crt", "foreign.crt")
	half := c.node("g", secure(k.open("both.crt", "g", "g")))
	_, err = call(half, "b")
	wants("a CA that only we trust", "remote error", err)
	eventually(t, "it is counted", func() bool { return b.Stats().Untrusted >= refused+2 })

	// With and without: each side learns what is wrong, at once.
	plain := c.node("p", nil)
	_, err = call(plain, "b")
	wantCode(t, err, CodeRefused)
	wants("a node without TLS", "wants TLS", err)
	_, err = call(a, "p")
	wants("to a node without TLS", "does not speak TLS", err)
	conn, err := net.Dial("tcp", c.at["b"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	if got, _ := io.ReadAll(conn); string(got) != strangerLine {
		t.Errorf("a stranger is told %q", got)
	}
}

// TestTLSNodeByNode shows the way from plain text to TLS with nodes that are restarted one by one.
func TestTLSNodeByNode(t *testing.T) {
	k, c := newKeys(t), newCluster(t)
	c.node("old", nil)
	optional := func(s *cert.Source) func(*Config) {
		return func(c *Config) { c.TLS, c.AllowPlaintext = s, true }
	}
	c.node("mid", optional(k.source("ca", "mid")))
	c.node("mid2", optional(k.source("ca", "mid2")))
	c.node("new", secure(k.source("ca", "new")))
	for _, p := range [][2]string{{"old", "mid"}, {"mid", "old"}, {"mid", "mid2"}, {"mid", "new"}, {"new", "mid"}} {
		from := c.node("x"+p[0]+p[1], nil)
		switch p[0] {
		case "mid":
			from = c.node("m"+p[1], optional(k.source("ca", "m"+p[1])))
		case "new":
			from = c.node("n"+p[1], secure(k.source("ca", "n"+p[1])))
		}
		for ln := range Lanes {
			if _, err := from.Call(in(t, 5*time.Second), p[1], ln, mEcho, nil); err != nil {
				t.Errorf("%s to %s: %v", p[0], p[1], err)
			}
		}
	}
}

// TestRotationUnderLoad shows that CA and certificates of two nodes are replaced by the three steps of the runbook while calls go on over
// every lane without a pause: no call fails, each step makes the links anew within seconds, and in the end nobody gets in
// with what the old CA has issued.
func TestRotationUnderLoad(t *testing.T) {
	k, c := newKeys(t), newCluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	var loops sync.WaitGroup
	var nodes []*TCP
	start := func(id string) *TCP {
		src := k.open(id+"-ca.crt", id, id)
		loops.Go(func() { src.Run(ctx) })
		tr := c.listen(id, secure(src))
		tr.Handle(mBlock, func(ctx context.Context, _ string, req []byte) ([]byte, error) {
			time.Sleep(time.Duration(req[0]) * time.Millisecond) // work, of different lengths
			return nil, nil
		})
		tr.Start()
		return tr
	}
	for _, id := range []string{"a", "b"} {
		k.issue("old", "old-"+id, id)
		k.issue("new", "new-"+id, id)
		k.copy(id+".crt", "old-"+id+".crt")
		k.copy(id+".key", "old-"+id+".key")
		k.copy(id+"-ca.crt", "old.crt")
		nodes = append(nodes, start(id))
	}
	var failed atomic.Pointer[error]
	var calls atomic.Int64
	for i := range 30 {
		from, to, ln := nodes[i%2], []string{"b", "a"}[i%2], Lane(i/2%int(Lanes))
		loops.Go(func() {
			for n := i; ctx.Err() == nil; n++ { // there is hardly a moment without a call under way
				if _, err := from.Call(context.Background(), to, ln, mBlock, []byte{byte(1 + n%97)}); err != nil && ln == LaneCall {
					failed.Store(&err)
				}
				calls.Add(1)
			}
		})
	}
	t.Cleanup(func() { cancel(); loops.Wait() })
	step := func(what string, do func(id string)) {
		t.Helper()
		before := []uint64{nodes[0].Stats().Links, nodes[1].Stats().Links}
		for _, id := range []string{"a", "b"} {
			do(id)
		}
		eventually(t, what+": links are made anew", func() bool {
			return nodes[0].Stats().Links >= before[0]+uint64(Lanes) && nodes[1].Stats().Links >= before[1]+uint64(Lanes)
		})
		if err := failed.Load(); err != nil {
			t.Fatalf("%s: a call failed: %v", what, *err)
		}
	}
	eventually(t, "the load runs", func() bool { return calls.Load() > 100 })
	step("the new CA is trusted", func(id string) { k.copy(id+"-ca.crt", "old.crt", "new.crt") })
	step("new certificates", func(id string) { k.copy(id+".crt", "new-"+id+".crt"); k.copy(id+".key", "new-"+id+".key") })
	step("the old CA is not trusted", func(id string) { k.copy(id+"-ca.crt", "new.crt") })
	k.issue("old", "late", "late")
	k.copy("late-ca.crt", "old.crt", "new.crt")
	late := start("late")
	if _, err := late.Call(in(t, 5*time.Second), "a", LaneCall, mEcho, nil); err == nil {
		t.Error("a certificate of the old CA still gets in")
	}
	t.Logf("%d calls", calls.Load())
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
