package node

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/transport/cert"
)

// TestTLSSettings shows which settings of TLS cannot be meant, and that with TLS other addresses than loopback need nothing more.
func TestTLSSettings(t *testing.T) {
	pair := cert.Files{Cert: "c", Key: "k"}
	all := cert.Files{Cert: "c", Key: "k", CA: "a"}
	for _, tc := range []struct {
		tls  TLSConfig
		want string // "": it is good, also on 10.0.0.1
	}{
		{TLSConfig{Peer: all, Client: pair}, ""},
		{TLSConfig{Peer: all, Client: all, ClientAuth: "require"}, ""},
		{TLSConfig{Peer: pair, Client: pair}, "--peer-cert, --peer-key and --peer-ca come together"},
		{TLSConfig{Client: pair}, "--peer-addr 10.0.0.1:7501 is not a loopback address"},
		{TLSConfig{Peer: all}, "--http-addr 10.0.0.1:7601 is not a loopback address"},
		{TLSConfig{Peer: all, Client: pair, AllowPlaintext: []string{"peer"}}, "--peer-addr 10.0.0.1:7501 is not a loopback address"},
		{TLSConfig{Peer: all, Client: cert.Files{CA: "a"}}, "--tls-cert and --tls-key come together"},
		{TLSConfig{Peer: all, Client: pair, ClientAuth: "request"}, "name the CAs that vouch for clients"},
		{TLSConfig{Peer: all, Client: all}, "say request or require"},
		{TLSConfig{Peer: all, Client: pair, ClientAuth: "maybe"}, "want none, request or require"},
		{TLSConfig{Peer: all, Client: pair, AllowPlaintext: []string{"all"}}, "want peer, client or both"},
		{TLSConfig{AllowPlaintext: []string{"client"}}, "nothing but plain text"},
	} {
		cfg := DefaultConfig()
		cfg.ClientAddr, cfg.ClusterAddr, cfg.PeerAddr, cfg.HTTPAddr = "10.0.0.1:7401", "10.0.0.1:7701", "10.0.0.1:7501", "10.0.0.1:7601"
		cfg.TLS = tc.tls
		err := cfg.Validate()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%+v: error %v, want %q", tc.tls, err, tc.want)
		}
	}
}

// TestPortsTellAboutTLS shows that who comes to a port of clients with TLS where there is none, or without where there is, is told so at once.
func TestPortsTellAboutTLS(t *testing.T) {
	dir := t.TempDir()
	ca, err := cert.NewAuthority(dir, "ca", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []cert.Request{{Name: "n1-peer", Node: "n1", Client: true}, {Name: "n1-client", Hosts: []string{"127.0.0.1"}}} {
		r.Server, r.Valid = true, time.Hour
		if err := ca.Issue(dir, r.Name, r); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	start := func(secure bool) *Node {
		cfg := DefaultConfig()
		cfg.DataDir, cfg.Bootstrap, cfg.Shards = t.TempDir(), true, 1
		cfg.ClientAddr, cfg.ClusterAddr, cfg.PeerAddr, cfg.HTTPAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		if secure {
			cfg.TLS.Peer = cert.Files{Cert: file("n1-peer.crt"), Key: file("n1-peer.key"), CA: file("ca.crt")}
			cfg.TLS.Client = cert.Files{Cert: file("n1-client.crt"), Key: file("n1-client.key")}
		}
		n, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		return n
	}
	with, without := start(true), start(false)
	src, err := cert.Open(cert.Config{Files: cert.Files{CA: file("ca.crt")}, Name: "client"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	dial := func(addr string) net.Conn {
		t.Helper()
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(5 * time.Second))
		return c
	}
	for _, addr := range []string{without.Addrs().Client, without.Addrs().Cluster, without.Addrs().HTTP} {
		if _, err := src.DialServer(ctx, dial(addr), "127.0.0.1"); !cert.IsPlaintext(err) {
			t.Errorf("%s: error %v, want that it does not speak TLS", addr, err)
		}
	}
	for addr, words := range map[string]string{with.Addrs().Client: "PING\r\n", with.Addrs().Cluster: "*1\r\n$4\r\nPING\r\n", with.Addrs().HTTP: "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"} {
		c := dial(addr)
		io.WriteString(c, words)
		got, err := io.ReadAll(c)
		if err != nil || !strings.Contains(string(got), "this port wants TLS") {
			t.Errorf("%s: %q is answered %q, %v", addr, words, got, err)
		}
	}
	for addr, answer := range map[string]string{with.Addrs().Client: "+PONG", with.Addrs().Cluster: "+PONG", with.Addrs().HTTP: "HTTP/1.1 200"} {
		c, err := src.DialServer(ctx, dial(addr), "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, map[bool]string{true: "PING\r\n", false: "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"}[answer == "+PONG"])
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.HasPrefix(line, answer) || c.ConnectionState().Version != tls.VersionTLS13 {
			t.Errorf("%s: %q, %v; want %q", addr, line, err, answer)
		}
	}
}
