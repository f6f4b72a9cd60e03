package cert

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
	"testing"
	"testing/synctest"
	"time"
)

// bench is a directory with CAs and what they have issued.
type bench struct {
	t   *testing.T
	dir string
	cas map[string]*Authority
}

func newBench(t *testing.T) *bench { return &bench{t, t.TempDir(), map[string]*Authority{}} }

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) ca(name string) *Authority {
	b.t.Helper()
	if b.cas[name] == nil {
		a, err := NewAuthority(b.dir, name, 24*time.Hour)
		if err != nil {
			b.t.Fatal(err)
		}
		b.cas[name] = a
	}
	return b.cas[name]
}

// issue makes a certificate, and says where it and its key are, with the CA to trust.
func (b *bench) issue(ca, file string, r Request) Files {
	b.t.Helper()
	if r.Valid == 0 {
		r.Valid = time.Hour
	}
	if err := b.ca(ca).Issue(b.dir, file, r); err != nil {
		b.t.Fatal(err)
	}
	return Files{Cert: b.path(file + ".crt"), Key: b.path(file + ".key"), CA: b.path(ca + ".crt")}
}

func (b *bench) node(ca, file, id string) Files {
	return b.issue(ca, file, Request{Name: id, Node: id, Server: true, Client: true})
}

func (b *bench) open(f Files, node string, log io.Writer) *Source {
	b.t.Helper()
	s, err := Open(Config{Files: f, Name: "peer", Node: node, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) write(path string, parts ...[]byte) {
	b.t.Helper()
	if err := os.WriteFile(path, bytes.Join(parts, nil), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) read(name string) []byte {
	b.t.Helper()
	raw, err := os.ReadFile(b.path(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return raw
}

// syncBuffer is a log that two goroutines use.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestFilesAreReadAgain shows that new files are taken without a restart, once they have been the same for a Period, and that what is
// half-written or wrong is told once, counted, and leaves what was read before in use.
func TestFilesAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		f := b.node("ca", "n1", "n1")
		b.node("ca", "n1new", "n1")
		b.node("ca", "n2", "n2")
		b.node("other", "n1other", "n1")
		b.issue("ca", "old", Request{Name: "n1", Node: "n1", Server: true, Client: true, Valid: time.Minute, NotBefore: time.Now().Add(-time.Hour)})
		b.issue("ca", "client", Request{Name: "n1", Client: true})
		oldCert, oldKey, ca := b.read("n1.crt"), b.read("n1.key"), b.read("ca.crt")
		var log syncBuffer
		s := b.open(f, "n1", &log)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.Run(ctx)
		pass := func(periods int) { time.Sleep(time.Duration(periods) * Period); synctest.Wait() }

		for _, c := range []struct {
			name string
			do   func()
			says string
		}{
			{"a bundle cut off in the middle", func() { b.write(f.CA, ca, b.read("other.crt")[:200]) }, "not whole"},
			{"an empty bundle", func() { b.write(f.CA) }, "no certificate in it"},
			{"a key in a bundle", func() { b.write(f.CA, oldKey) }, "private key"},
			{"a leaf as a CA", func() { b.write(f.CA, oldCert) }, "not the certificate of a CA"},
			{"a CA that does not vouch for ours", func() { b.write(f.CA, b.read("other.crt")) }, "do not vouch"},
			{"a certificate without its key", func() { b.write(f.Cert, b.read("n1new.crt")) }, "does not match"},
			{"half a certificate", func() { b.write(f.Cert, oldCert[:len(oldCert)/2]) }, "not whole"},
			{"another node's certificate", func() { b.write(f.Cert, b.read("n2.crt")); b.write(f.Key, b.read("n2.key")) }, "bound to node n2"},
			{"a client's certificate", func() { b.write(f.Cert, b.read("client.crt")); b.write(f.Key, b.read("client.key")) }, "not a node's certificate"},
			{"one of another CA", func() { b.write(f.Cert, b.read("n1other.crt")); b.write(f.Key, b.read("n1other.key")) }, "do not vouch"},
			{"one that has expired", func() { b.write(f.Cert, b.read("old.crt")); b.write(f.Key, b.read("old.key")) }, "expired"},
			{"no file", func() { os.Remove(f.Key) }, "no such file"},
		} {
			_, before := s.Stats()
			was := len(log.String())
			c.do()
			pass(10)
			if _, n := s.Stats(); s.Generation() != 1 || n != before+1 {
				t.Errorf("%s: generation %d, %d refusals; want 1 and %d", c.name, s.Generation(), n, before+1)
			}
			if said := log.String()[was:]; strings.Count(said, "level=WARN") != 1 || !strings.Contains(said, c.says) {
				t.Errorf("%s: it says %q, want one warning with %q", c.name, said, c.says)
			}
			b.write(f.Cert, oldCert)
			b.write(f.Key, oldKey)
			b.write(f.CA, ca)
			pass(3)
		}

		// Files that change all the time are not whole yet; nor is a pair of which one half is there.
		_, before := s.Stats()
		for i := range 4 {
			b.write(f.CA, ca, bytes.Repeat([]byte("\n"), i+1))
			pass(1)
		}
		if s.Generation() != 1 {
			t.Error("a file was taken while it was being written")
		}
		pass(1)
		if s.Generation() != 2 {
			t.Errorf("generation %d, want 2", s.Generation())
		}
		b.write(f.Cert, b.read("n1new.crt"))
		pass(1)
		b.write(f.Key, b.read("n1new.key"))
		pass(2)
		if _, n := s.Stats(); s.Generation() != 3 || n != before {
			t.Errorf("generation %d, %d refusals more; want 3 and none", s.Generation(), n-before)
		}
		// A bundle of two trusts both.
		b.write(f.CA, ca, b.read("other.crt"))
		pass(2)
		b.write(f.Cert, b.read("n1other.crt"))
		b.write(f.Key, b.read("n1other.key"))
		pass(2)
		if s.Generation() != 5 {
			t.Errorf("generation %d, want 5", s.Generation())
		}
		// Near its end it says so, once a day.
		if strings.Contains(log.String(), "expires soon") {
			t.Error("told too early")
		}
		time.Sleep(50 * time.Minute)
		if n := strings.Count(log.String(), "expires soon"); n != 1 {
			t.Errorf("told %d times that it expires", n)
		}
		cancel()
		synctest.Wait()
	})
}

// TestOpenRefuses shows that a wrong file is an error at the start that names it.
func TestOpenRefuses(t *testing.T) {
	b := newBench(t)
	f := b.node("ca", "n1", "n1")
	future := b.issue("ca", "future", Request{Name: "n1", Node: "n1", Server: true, Client: true, NotBefore: time.Now().Add(time.Hour)})
	for _, c := range []struct {
		f    Files
		node string
		want string
	}{
		{Files{Cert: f.Cert, CA: f.CA}, "n1", "come together"},
		{Files{Cert: f.Cert, Key: f.Key, CA: b.path("none")}, "n1", "none"},
		{f, "n2", "bound to node n1, and this is node n2"},
		{future, "n1", "not valid before"},
		{Files{Cert: f.Key, Key: f.Key, CA: f.CA}, "", "n1.key: it holds a private key"},
	} {
		if _, err := Open(Config{Files: c.f, Node: c.node}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q", c.f, err, c.want)
		}
	}
}

// TestReadTakesAllThatIsThere shows that one Read returns what many writes have sent, as that of a socket does, and does not wait for more.
func TestReadTakesAllThatIsThere(t *testing.T) {
	b := newBench(t)
	s := b.open(b.node("ca", "n1", "n1"), "n1", io.Discard)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := s.Listen(raw, Options{Auth: AuthNode})
	defer l.Close()
	nc, err := net.Dial("tcp", raw.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	sent := make(chan error, 1)
	go func() {
		c, err := s.DialPeer(t.Context(), nc, "n1")
		for i := 0; i < 40 && err == nil; i++ {
			_, err = c.Write([]byte("command\n"))
		}
		sent <- err
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	got, reads := 0, 0
	for p := make([]byte, 64<<10); got < 40*8; reads++ {
		n, err := c.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	if reads > 10 { // what has come when the first looks may not be all; one Read for each write would be 40
		t.Errorf("%d reads for what 40 writes have sent", reads)
	}
}

// TestAuthority shows what a development CA makes, that keys are for their owner only, and that it overwrites nothing.
func TestAuthority(t *testing.T) {
	b := newBench(t)
	f := b.issue("ca", "n1", Request{Name: "n1", Node: "n1", Hosts: []string{"10.0.0.1", "db.example"}, Server: true, Client: true})
	if info, err := os.Stat(f.Key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", info.Mode(), err)
	}
	a, err := LoadAuthority(b.dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	before := b.read("n1.crt")
	if err := a.Issue(b.dir, "n1", Request{Name: "n1", Valid: time.Hour}); err == nil || !strings.Contains(err.Error(), "not overwritten") {
		t.Errorf("error %v, want that it is there", err)
	}
	if _, err := NewAuthority(b.dir, "ca", time.Hour); err == nil || !strings.Contains(err.Error(), "not overwritten") {
		t.Errorf("error %v, want that it is there", err)
	}
	if !bytes.Equal(before, b.read("n1.crt")) {
		t.Error("overwritten")
	}
	list, err := parseCertificates(before)
	if err != nil || len(list) != 1 {
		t.Fatal(err)
	}
	leaf := list[0]
	if id, err := NodeID(leaf); err != nil || id != "n1" {
		t.Errorf("bound to %q, %v", id, err)
	}
	for _, host := range []string{"10.0.0.1", "db.example"} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	other, err := NewAuthority(t.TempDir(), "ca", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := other.Issue(dir, "x", Request{Name: "x", Valid: 24 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	raw, _ := os.ReadFile(filepath.Join(dir, "x.crt"))
	if list, err = parseCertificates(raw); err != nil || list[0].NotAfter.After(other.cert.NotAfter) {
		t.Errorf("it outlives its CA: %v", err)
	}
}

// FuzzBundle shows that no bundle, however broken, does more than be refused.
func FuzzBundle(f *testing.F) {
	dir := f.TempDir()
	if _, err := NewAuthority(dir, "ca", time.Hour); err != nil {
		f.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(append(bytes.Clone(raw), raw[:100]...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseCertificates(b)
		if (len(list) == 0) != (err != nil) && err == nil {
			t.Errorf("%d certificates, no error", len(list))
		}
	})
}

func eventually(t *testing.T, ok func() bool, why func() string) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(10 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Error(why())
			return
		}
	}
}
