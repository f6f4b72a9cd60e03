package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/abacusdb/abacus/transport/cert"
)

// Links between nodes with TLS: cert makes the handshakes, here is who may say what on them, and how a link that stays for weeks gets
// to new certificates without a call that fails.

// wantsTLS answers a node that does not speak TLS as a refused hello, which it understands, and anybody else in words.
func wantsTLS(first []byte) []byte {
	if IsHello(first) {
		return appendAnswer(nil, Errorf(CodeRefused, "this peer port wants TLS: start the node with --peer-cert, --peer-key and --peer-ca"))
	}
	return []byte(strangerLine)
}

// proven holds a hello against the certificate of who says it. Of a call by address the certificate is all that says who calls.
func proven(h *hello, conn net.Conn) *Error {
	c, ok := conn.(*cert.Conn)
	switch {
	case !ok: // no TLS, or this node itself
		return nil
	case h.kind == kindCall && h.from == "":
		h.from = c.Node()
		return nil
	}
	if err := c.Claim(h.from); err != nil {
		return Errorf(CodeWrongNode, "%v", err)
	}
	return nil
}

// provenConn is a connection with TLS that we opened.
type provenConn struct {
	*tls.Conn
	generation uint64 // of the certificates
}

// dial connects to an address; to is the node that must be there, "" if that is not known.
func (t *TCP) dial(ctx context.Context, addr, to string) (net.Conn, error) {
	conn, err := t.cfg.Dial(ctx, addr)
	if err != nil || t.cfg.TLS == nil {
		return conn, err
	}
	generation := t.cfg.TLS.Generation() // before: if the files change meanwhile, the link is made once more
	tc, err := t.cfg.TLS.DialPeer(ctx, conn, to)
	switch {
	case err == nil:
		return &provenConn{tc, generation}, nil
	case !cert.IsPlaintext(err):
		return nil, err
	case t.cfg.AllowPlaintext:
		return t.cfg.Dial(ctx, addr)
	}
	return nil, fmt.Errorf("%s does not speak TLS: is it a peer port, of a node with --peer-cert? (%w)", addr, err)
}

const (
	// renewWait is how long a link with old certificates waits for a moment without a call under way, in which nobody notices that it is
	// made anew.
	renewWait = 2 * time.Second
	// holdWait is how long it then holds back what comes, until the calls under way have ended. What has not by then is in
	// doubt, as ever when a link breaks.
	holdWait = time.Second
)

var errRenewed = errors.New("made anew with new certificates")

// renewal is the state of making a link anew.
type renewal struct {
	since time.Time // when the certificates were found to be old; zero: they are not
	holds bool      // nothing more is sent over the old one
}

// renew says whether a link is to be given up now because its certificates are not those in use any more. A node that has new ones so
// comes to use them everywhere within seconds, and what one CA too many vouches for ends as fast.
//
// Only calls wait: a heartbeat must not, and raft sends again what was lost.
func (l *lane) renew(conn *peerConn, r *renewal) bool {
	if conn.generation == 0 || conn.generation == l.t.cfg.TLS.Generation() {
		return false
	}
	if r.since.IsZero() {
		r.since = time.Now()
	}
	waited := time.Since(r.since)
	r.holds = l.lane == LaneCall && waited >= renewWait
	limit := renewWait
	if l.lane == LaneCall {
		limit += holdWait
	}
	l.out.writing.Lock()
	defer l.out.writing.Unlock()
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	l.renewing = true
	if waited < limit {
		if l.out.rest != nil {
			return false
		}
		for _, c := range l.pending {
			if c.gen != l.out.gen { // it was sent
				return false
			}
		}
	}
	l.renewing, l.conn = false, nil
	return true
}
