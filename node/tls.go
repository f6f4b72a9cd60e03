package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/abacusdb/abacus/transport/cert"
)

// TLSConfig is what the ports prove themselves with. The files are read again when they change.
type TLSConfig struct {
	// Peer is for the peer port, on which both sides prove themselves; its certificate must be bound to the node's id, by the URI
	// SAN abacus://node/ID. Its CAs should vouch for nodes and nobody else. Empty: plain text.
	Peer cert.Files
	// Client is for the ports of clients; its CAs, if there are any, vouch for these. Empty: plain text.
	Client cert.Files
	// ClientAuth is which certificates clients show: none (default), request or require.
	ClientAuth string
	// AllowPlaintext lists what takes plain text beside TLS, for the time in which a cluster changes over: peer, client.
	AllowPlaintext []string
}

const (
	plaintextPeer   = "peer"
	plaintextClient = "client"
)

func (c *TLSConfig) plaintext(what string) bool { return slices.Contains(c.AllowPlaintext, what) }

// missing names the flags without which an address must not be reached from elsewhere, empty if TLS keeps it.
func (c *TLSConfig) missing(peer bool) string {
	switch {
	case peer && (c.Peer == cert.Files{}):
		return "--peer-cert, --peer-key and --peer-ca"
	case !peer && (c.Client == cert.Files{}):
		return "--tls-cert and --tls-key"
	case peer && c.plaintext(plaintextPeer), !peer && c.plaintext(plaintextClient):
		return "without --allow-plaintext"
	}
	return ""
}

func (c *TLSConfig) validate(fault func(format string, args ...any)) {
	if p := c.Peer; (p != cert.Files{}) && (p.Cert == "" || p.Key == "" || p.CA == "") {
		fault("--peer-cert, --peer-key and --peer-ca come together: nodes prove themselves to each other")
	}
	if cl := c.Client; (cl != cert.Files{}) && (cl.Cert == "" || cl.Key == "") {
		fault("--tls-cert and --tls-key come together, and --tls-ca only with them")
	}
	auth, err := cert.ParseAuth(c.auth())
	if err != nil {
		fault("--tls-client-auth %w", err)
	}
	if auth != cert.AuthNone && c.Client.CA == "" {
		fault("--tls-client-auth %s: name the CAs that vouch for clients with --tls-ca", c.ClientAuth)
	}
	if auth == cert.AuthNone && err == nil && c.Client.CA != "" {
		fault("--tls-ca %s vouches for clients, and --tls-client-auth is none: say request or require", c.Client.CA)
	}
	for _, what := range c.AllowPlaintext {
		switch {
		case what != plaintextPeer && what != plaintextClient:
			fault("--allow-plaintext %q: want peer, client or both", what)
		case what == plaintextPeer && (c.Peer == cert.Files{}), what == plaintextClient && (c.Client == cert.Files{}):
			fault("--allow-plaintext %s: there is nothing but plain text without certificates", what)
		}
	}
}

func (c *TLSConfig) auth() string {
	if c.ClientAuth == "" {
		return "none"
	}
	return c.ClientAuth
}

// tlsPorts are the certificates in use. Nil ones: plain text.
type tlsPorts struct {
	peer, client *cert.Source
	opt          cert.Options // of the clients' ports
	ports        []*cert.Listener
	peerFailed   func() uint64 // handshakes of peers
}

func openTLS(cfg Config, log *slog.Logger) (p tlsPorts, err error) {
	c := cfg.TLS
	if cfg.Transport != nil {
		return p, nil
	}
	if (c.Peer != cert.Files{}) {
		if p.peer, err = cert.Open(cert.Config{Files: c.Peer, Name: "peer", Node: string(cfg.ID), Log: log}); err != nil {
			return p, fmt.Errorf("--peer-cert, --peer-key, --peer-ca: %w", err)
		}
	}
	if (c.Client != cert.Files{}) {
		if p.client, err = cert.Open(cert.Config{Files: c.Client, Name: "client", Log: log}); err != nil {
			return p, fmt.Errorf("--tls-cert, --tls-key, --tls-ca: %w", err)
		}
	}
	p.opt.Plaintext = c.plaintext(plaintextClient)
	p.opt.Auth, err = cert.ParseAuth(c.auth())
	if len(c.AllowPlaintext) > 0 {
		log.Warn("plain text is taken beside TLS: take --allow-plaintext out when all nodes and clients have TLS", "allow_plaintext", c.AllowPlaintext)
	}
	return p, err
}

// run looks at the files as long as the node runs.
func (p *tlsPorts) run(n *Node) {
	for _, s := range []*cert.Source{p.peer, p.client} {
		if s != nil {
			n.run(func(ctx context.Context) error { s.Run(ctx); return nil })
		}
	}
}

// listen has a port of clients speak TLS, if there is any; hint is what who does not is told.
func (p *tlsPorts) listen(l net.Listener, hint string) net.Listener {
	if p.client == nil {
		return l
	}
	opt := p.opt
	opt.Hint = func([]byte) []byte { return []byte(hint) }
	tl := p.client.Listen(l, opt)
	p.ports = append(p.ports, tl)
	return tl
}

// What who speaks plain text to a port with TLS is told.
const (
	respWantsTLS = "-ERR this port wants TLS: connect with it (abacus --tls, redis-cli --tls)\r\n"
	httpWantsTLS = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nthis port wants TLS: use https://\n"
)

// tlsCollector tells of certificates and handshakes.
type tlsCollector struct{ n *Node }

var (
	descCertExpires  = prometheus.NewDesc("abacus_tls_certificate_expires_seconds", "When the certificate in use expires, in seconds since 1970.", []string{"tls"}, nil)
	descCertReads    = prometheus.NewDesc("abacus_tls_reads_total", "Times that changed certificate files were read again and taken.", []string{"tls"}, nil)
	descCertRefusals = prometheus.NewDesc("abacus_tls_read_failures_total", "Times that certificate files were not taken because something is wrong with them.", []string{"tls"}, nil)
	descHandshakes   = prometheus.NewDesc("abacus_tls_handshake_failures_total", "Connections that did not prove themselves, or spoke no TLS.", []string{"tls"}, nil)
)

func (c tlsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descCertExpires, descCertReads, descCertRefusals, descHandshakes} {
		ch <- d
	}
}

func (c tlsCollector) Collect(ch chan<- prometheus.Metric) {
	p := &c.n.tls
	tell := func(name string, s *cert.Source, failed uint64) {
		reads, refusals := s.Stats()
		ch <- prometheus.MustNewConstMetric(descCertExpires, prometheus.GaugeValue, float64(s.Expires().Unix()), name)
		ch <- prometheus.MustNewConstMetric(descCertReads, prometheus.CounterValue, float64(reads), name)
		ch <- prometheus.MustNewConstMetric(descCertRefusals, prometheus.CounterValue, float64(refusals), name)
		ch <- prometheus.MustNewConstMetric(descHandshakes, prometheus.CounterValue, float64(failed), name)
	}
	if p.peer != nil {
		tell("peer", p.peer, p.peerFailed())
	}
	if p.client != nil {
		failed := uint64(0)
		for _, l := range p.ports {
			failed += l.Failed()
		}
		tell("client", p.client, failed)
	}
}
