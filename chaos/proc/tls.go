package proc

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/abacusdb/abacus/transport/cert"
)

// A cluster with TLS has a directory certs, with the two CAs and, per node n, the files that its process is given: n<n>-peer and
// n<n>-client, each .crt and .key, and the bundles n<n>-peer-ca.crt and ca.crt, so that they can be replaced while it runs.
const (
	peerAuthority   = "peer-ca"
	clientAuthority = "client-ca"
	validity        = 10 * 365 * 24 * time.Hour
)

// CertDir is where the certificates are.
func (c *Cluster) CertDir() string { return filepath.Join(c.dir, "certs") }

// TLS says whether the cluster speaks it.
func (c *Cluster) TLS() bool { return c.fixed.TLS }

// CA is the bundle of who vouches for the ports of clients; empty without TLS.
func (c *Cluster) CA() string {
	if !c.fixed.TLS {
		return ""
	}
	return filepath.Join(c.CertDir(), "ca.crt")
}

// makeCerts makes CAs and certificates of all nodes.
func (c *Cluster) makeCerts() error {
	dir := c.CertDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make certificates: %w", err)
	}
	var cas [2]*cert.Authority
	for i, name := range []string{peerAuthority, clientAuthority} {
		var err error
		if cas[i], err = cert.NewAuthority(dir, name, validity); err != nil {
			return fmt.Errorf("make certificates: %w", err)
		}
	}
	errs := []error{copyFile(filepath.Join(dir, clientAuthority+".crt"), c.CA())}
	for _, n := range c.nodes {
		host, _, err := net.SplitHostPort(n.Addrs().Client)
		errs = append(errs, err,
			cas[0].Issue(dir, n.ID()+"-peer", cert.Request{Name: n.ID(), Node: n.ID(), Server: true, Client: true, Valid: validity}),
			cas[1].Issue(dir, n.ID()+"-client", cert.Request{Name: n.ID(), Hosts: []string{host, "localhost"}, Server: true, Valid: validity}),
			copyFile(filepath.Join(dir, peerAuthority+".crt"), filepath.Join(dir, n.ID()+"-peer-ca.crt")))
	}
	return errors.Join(errs...)
}

func copyFile(from, to string) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, raw, 0o644)
}

// tlsFlags are what a node is started with.
func (n *Node) tlsFlags() []string {
	if !n.c.fixed.TLS {
		return nil
	}
	file := func(name string) string { return filepath.Join(n.c.CertDir(), n.ID()+name) }
	return []string{"--peer-cert", file("-peer.crt"), "--peer-key", file("-peer.key"), "--peer-ca", file("-peer-ca.crt"),
		"--tls-cert", file("-client.crt"), "--tls-key", file("-client.key")}
}

// URL is the address of something on the node's HTTP port.
func (n *Node) URL(path string) string {
	scheme := "http://"
	if n.c.fixed.TLS {
		scheme = "https://"
	}
	return scheme + n.Addrs().HTTP + path
}

// tlsConfig trusts who vouches for the nodes' ports now; nil without TLS.
func (c *Cluster) tlsConfig() (*tls.Config, error) {
	if !c.fixed.TLS {
		return nil, nil
	}
	src, err := cert.Open(cert.Config{Files: cert.Files{CA: c.CA()}, Name: "client"})
	if err != nil {
		return nil, err
	}
	return src.Client(""), nil
}

// HTTP returns a client for the nodes' HTTP ports, which gives up after some time (0: 3 s).
func (c *Cluster) HTTP(timeout time.Duration) *http.Client {
	cl := &http.Client{Timeout: cmp.Or(timeout, 3*time.Second)}
	if !c.fixed.TLS {
		return cl
	}
	// One connection for each request: a pool would outlive this client.
	cl.Transport = &http.Transport{DisableKeepAlives: true, DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return c.Dial(ctx, addr) }}
	return cl
}

// Dial connects to a port of clients, with TLS if the cluster has it.
func (c *Cluster) Dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conf, err := c.tlsConfig()
	if err != nil {
		conn.Close()
		return nil, err
	}
	if conf == nil {
		return conn, nil
	}
	if conf.ServerName, _, err = net.SplitHostPort(addr); err != nil {
		conn.Close()
		return nil, err
	}
	tc := tls.Client(conn, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}
