package client_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
	"github.com/abacusdb/abacus/transport/cert"
)

// tlsFront puts TLS in front of the nodes of a cluster.
type tlsFront struct {
	dir   string
	src   *cert.Source
	at    map[string]string // of a node's address
	conns atomic.Int64
	mu    sync.Mutex
}

const saysTLS = "-ERR this port wants TLS: connect with it (abacus --tls, redis-cli --tls)\r\n"

func newTLSFront(t *testing.T) *tlsFront {
	t.Helper()
	f := &tlsFront{dir: t.TempDir(), at: map[string]string{}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ca, err := cert.NewAuthority(f.dir, "ca", time.Hour)
	must(err)
	_, err = cert.NewAuthority(f.dir, "other", time.Hour)
	must(err)
	must(ca.Issue(f.dir, "server", cert.Request{Name: "s", Hosts: []string{"127.0.0.1"}, Server: true, Valid: time.Hour}))
	must(ca.Issue(f.dir, "me", cert.Request{Name: "me", Client: true, Valid: time.Hour}))
	f.src, err = cert.Open(cert.Config{Files: cert.Files{Cert: f.path("server.crt"), Key: f.path("server.key"), CA: f.path("ca.crt")}, Name: "client"})
	must(err)
	t.Cleanup(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.at = nil
	})
	return f
}

func (f *tlsFront) path(name string) string { return filepath.Join(f.dir, name) }

// dial connects to what stands in front of an address, made on first use.
func (f *tlsFront) dial(t *testing.T, auth cert.Auth) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		f.mu.Lock()
		at := f.at[addr]
		if at == "" {
			raw, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				f.mu.Unlock()
				return nil, err
			}
			at = raw.Addr().String()
			f.at[addr] = at
			l := f.src.Listen(raw, cert.Options{Auth: auth, Hint: func([]byte) []byte { return []byte(saysTLS) }})
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					f.conns.Add(1)
					wg.Go(func() {
						defer c.Close()
						n, err := net.Dial("tcp", addr)
						if err != nil {
							return
						}
						defer n.Close()
						wg.Go(func() { io.Copy(n, c); n.Close() })
						io.Copy(c, n)
					})
				}
			})
			t.Cleanup(func() { l.Close() })
		}
		f.mu.Unlock()
		return new(net.Dialer).DialContext(ctx, "tcp", at)
	}
}

// TestTLS shows what a client with certificates gets, and what who has wrong ones, or none, is told: at once, and that nothing was done.
func TestTLS(t *testing.T) {
	c := clienttest.New(t, 2)
	// A node without TLS answers a handshake in words.
	words, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer words.Close()
	go func() {
		for {
			nc, err := words.Accept()
			if err != nil {
				return
			}
			nc.Write([]byte("-ERR this port does not speak TLS\r\n"))
		}
	}()
	plain := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", words.Addr().String())
	}
	for _, tc := range []struct {
		name  string
		auth  cert.Auth
		files func(f *tlsFront) *client.TLSFiles
		plain bool // the nodes have no TLS
		ok    bool
	}{
		{"the right CA", cert.AuthNone, func(f *tlsFront) *client.TLSFiles { return &client.TLSFiles{CA: f.path("ca.crt")} }, false, true},
		{"with a certificate", cert.AuthRequire, func(f *tlsFront) *client.TLSFiles {
			return &client.TLSFiles{CA: f.path("ca.crt"), Cert: f.path("me.crt"), Key: f.path("me.key")}
		}, false, true},
		{"without the certificate that is wanted", cert.AuthRequire, func(f *tlsFront) *client.TLSFiles { return &client.TLSFiles{CA: f.path("ca.crt")} }, false, false},
		{"another CA", cert.AuthNone, func(f *tlsFront) *client.TLSFiles { return &client.TLSFiles{CA: f.path("other.crt")} }, false, false},
		{"another name", cert.AuthNone, func(f *tlsFront) *client.TLSFiles {
			return &client.TLSFiles{CA: f.path("ca.crt"), ServerName: "db.example"}
		}, false, false},
		{"no TLS", cert.AuthNone, func(*tlsFront) *client.TLSFiles { return nil }, false, false},
		{"nodes without TLS", cert.AuthNone, func(f *tlsFront) *client.TLSFiles { return &client.TLSFiles{CA: f.path("ca.crt")} }, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newTLSFront(t)
			cl := open(t, c, func(cfg *client.Config) {
				cfg.TLSFiles, cfg.Dial, cfg.Timeout, cfg.GiveUpRefused = tc.files(f), f.dial(t, tc.auth), 15*time.Second, 100*time.Millisecond
				if tc.plain {
					cfg.Dial = plain
				}
			})
			begun := time.Now()
			_, err := cl.Incr(t.Context(), "k", 1)
			if took := time.Since(begun); took > 10*time.Second {
				t.Errorf("it took %v, want that it is known long before the time-out", took)
			}
			switch {
			case tc.ok && err != nil:
				t.Error(err)
			case !tc.ok && (!errors.Is(err, client.ErrTLS) || !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrUncertain)):
				t.Errorf("error %v, want that it is for TLS and nothing was done", err)
			}
		})
	}
	if _, err := client.Open(client.Config{Addrs: c.Addrs(), TLSFiles: &client.TLSFiles{CA: "none"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that there is no such file", err)
	}
}

// TestTLSFilesAreReadAgain shows that connections are made anew when the files have changed, while commands go on, none of which fails.
func TestTLSFilesAreReadAgain(t *testing.T) {
	c := clienttest.New(t, 2)
	f := newTLSFront(t)
	cl := open(t, c, func(cfg *client.Config) {
		cfg.TLSFiles, cfg.Dial = &client.TLSFiles{CA: f.path("ca.crt")}, f.dial(t, cert.AuthNone)
	})
	c.Hook(func(*clienttest.Request) (f clienttest.Fate) {
		time.Sleep(2 * time.Millisecond) // so that there is always something under way
		return f
	})
	ctx, cancel := context.WithCancel(t.Context())
	var users sync.WaitGroup
	defer users.Wait()
	defer cancel()
	var done atomic.Int64
	for i := range 8 {
		users.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := cl.Put(t.Context(), "k"+strconv.Itoa(i), []byte(strconv.Itoa(n))); err != nil {
					t.Errorf("put: %v", err)
					return
				}
				done.Add(1)
			}
		})
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("not in time: " + what)
			}
		}
	}
	wait("it works", func() bool { return done.Load() > 50 })
	before := f.conns.Load()
	both, err := os.ReadFile(f.path("other.crt"))
	if err != nil {
		t.Fatal(err)
	}
	one, err := os.ReadFile(f.path("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path("ca.crt"), append(one, both...), 0o600); err != nil {
		t.Fatal(err)
	}
	wait("connections are made anew", func() bool { return f.conns.Load() >= before+2 })
	then := done.Load()
	wait("it goes on", func() bool { return done.Load() > then+50 })
	if n := cl.Stats().Repeated; n > 0 {
		t.Errorf("%d writes lost their answers", n)
	}
}
