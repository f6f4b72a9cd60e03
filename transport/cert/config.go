package cert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
)

// Auth is what a port wants to see of who connects.
type Auth int

const (
	AuthNone    Auth = iota // no certificate
	AuthRequest             // one may be shown, and must then be good
	AuthRequire             // one must be shown
	AuthNode                // that of a node, bound to its id
)

// ParseAuth is for flags: none, request or require.
func ParseAuth(s string) (Auth, error) {
	for i, name := range []string{"none", "request", "require"} {
		if s == name {
			return Auth(i), nil
		}
	}
	return 0, fmt.Errorf("%q: want none, request or require", s)
}

// base is what all our connections have in common. Session tickets would let in who was trusted once.
func base() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
}

// server returns the configuration of a port; each handshake uses what is there then.
func (s *Source) server(auth Auth) *tls.Config {
	outer := base()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		h := s.now.Load()
		c := base()
		c.Certificates = []tls.Certificate{*h.cert}
		c.ClientCAs = h.roots
		switch auth {
		case AuthRequest:
			c.ClientAuth = tls.VerifyClientCertIfGiven
		case AuthRequire, AuthNode:
			c.ClientAuth = tls.RequireAndVerifyClientCert
		}
		if auth == AuthNode {
			c.VerifyConnection = func(cs tls.ConnectionState) error {
				_, err := NodeID(cs.PeerCertificates[0])
				return err
			}
		}
		return c, nil
	}
	return outer
}

// trusts says whether a client's certificates would be taken now.
func (s *Source) trusts(chain []*x509.Certificate) error {
	return verify(s.now.Load().roots, chain, x509.ExtKeyUsageClientAuth, "")
}

// DialPeer makes the handshake of a connection to a node; to is its id, empty if it is not known yet. Addresses do not count: a node may
// have a new one. conn is closed if there is an error.
func (s *Source) DialPeer(ctx context.Context, conn net.Conn, to string) (*tls.Conn, error) {
	h := s.now.Load()
	c := base()
	show(c, h.cert)
	c.InsecureSkipVerify = true // of names: VerifyConnection looks at the rest, and at the node's id
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(h.roots, cs.PeerCertificates, x509.ExtKeyUsageServerAuth, ""); err != nil {
			return err
		}
		id, err := NodeID(cs.PeerCertificates[0])
		if err == nil && to != "" && id != to {
			err = fmt.Errorf("the certificate there is bound to node %s, want %s", id, to)
		}
		return err
	}
	return shake(ctx, conn, c)
}

// DialServer makes the handshake of a client's connection; name is what the server's certificate must be for, a DNS name or
// an IP address. conn is closed if there is an error.
func (s *Source) DialServer(ctx context.Context, conn net.Conn, name string) (*tls.Conn, error) {
	return shake(ctx, conn, s.Client(name))
}

// Client returns the configuration of a client's connections, with what is there now.
func (s *Source) Client(name string) *tls.Config {
	h := s.now.Load()
	c := base()
	c.RootCAs = h.roots
	c.ServerName = name
	show(c, h.cert)
	return c
}

// show has a client send its certificate whatever CAs the server names: kept back, as crypto/tls does, the server could only say that
// there is none, and not what is wrong with it.
func show(c *tls.Config, cert *tls.Certificate) {
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
}

func shake(ctx context.Context, conn net.Conn, c *tls.Config) (*tls.Conn, error) {
	tc := tls.Client(conn, c)
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return tc, nil
}

// IsPlaintext says whether a handshake failed because the other side does not speak TLS.
func IsPlaintext(err error) bool { return errors.As(err, new(tls.RecordHeaderError)) }

// IsRefusal says whether a handshake, or the first read after it, failed for what one side showed to the other: trying again
// does not help until certificates change.
func IsRefusal(err error) bool {
	return errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, new(tls.AlertError)) || IsPlaintext(err) || errors.As(err, new(x509.UnknownAuthorityError)) ||
		errors.As(err, new(x509.CertificateInvalidError)) || errors.As(err, new(x509.HostnameError)) || isAlert(err)
}

// isAlert finds what the other side said of us: crypto/tls reports its alerts as an operation "remote error".
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// IsHello says whether bytes are the beginning of a TLS connection: ports without TLS then say so, instead of waiting for
// the end of a line.
func IsHello(b []byte) bool { return len(b) > 1 && b[0] == 0x16 && b[1] == 3 }
