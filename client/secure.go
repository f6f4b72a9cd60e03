package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/abacusdb/abacus/transport/cert"
)

// TLSFiles says how to speak TLS with certificates from PEM files.
type TLSFiles struct {
	// CA is a bundle of the CAs that vouch for the nodes. Empty: those of the system.
	CA string
	// Cert and Key prove who this client is, where nodes ask for it. Empty: nothing is shown.
	Cert, Key string
	// ServerName is what the certificates of the nodes must be for. Empty: the host of each address.
	ServerName string
}

// secure puts TLS on top of Dial.
func (c *Client) secure() error {
	var config func() *tls.Config
	name := ""
	switch files := c.cfg.TLSFiles; {
	case c.cfg.TLS != nil:
		base := c.cfg.TLS
		name = base.ServerName
		config = base.Clone
	case files != nil:
		src, err := cert.Open(cert.Config{Files: cert.Files{CA: files.CA, Cert: files.Cert, Key: files.Key}, Name: "client"})
		if err != nil {
			return err
		}
		c.certs = src
		name = files.ServerName
		config = func() *tls.Config { return src.Client("") }
		c.goBackground(src.Run)
	default:
		return nil
	}
	dial := c.cfg.Dial
	c.cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		tlsConfig := config()
		if tlsConfig.ServerName = name; name == "" {
			if tlsConfig.ServerName, _, err = net.SplitHostPort(addr); err != nil {
				conn.Close()
				return nil, err
			}
		}
		tc := tls.Client(conn, tlsConfig)
		if err := tc.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, tlsError(err)
		}
		return tc, nil
	}
	return nil
}

// tlsError puts ErrTLS into the chain of an error of a handshake, or of the first read after it.
func tlsError(err error) error {
	switch {
	case cert.IsPlaintext(err):
		return fmt.Errorf("%w: the node does not speak TLS there", ErrTLS)
	case cert.IsRefusal(err):
		return fmt.Errorf("%w: %w", ErrTLS, err)
	}
	return err
}

// wantsTLS knows the line by which a port says that it takes nothing without TLS.
func wantsTLS(r Reply) bool {
	text, ok := replyError(r)
	return ok && text == "ERR this port wants TLS: connect with it (abacus --tls, redis-cli --tls)"
}

var errReplaced = errors.New("the connection was made anew, with new certificates")

// generation is that of the certificates a conn would be made with now.
func (l *link) generation() uint64 {
	if l.certs == nil {
		return 0
	}
	return l.certs.Generation()
}

// drain ends the conn when its last flight has its answers, or quit ends. Nothing new is taken meanwhile; that it is not is certain.
func (c *conn) drain(quit <-chan struct{}) {
	c.mu.Lock()
	c.ending = true
	idle := c.idleLocked()
	c.mu.Unlock()
	if idle {
		c.fail(errReplaced)
	}
	select {
	case <-c.dead:
	case <-quit:
	}
	c.fail(errReplaced)
	c.loops.Wait()
}

func (c *conn) idleLocked() bool { return len(c.queue) == 0 && len(c.inflight) == 0 }
