// Package cert holds what a port or a client proves itself with: a certificate, its key and the CAs to trust, from files
// that are read again when they change. It also makes certificates, for development and tests (authority.go).
//
// A Source owns what was read last, one immutable value, swapped whole. Its only loop is Run. A Listener has one accepting
// loop, a goroutine for each handshake under way, and one that looks again at who is connected when the files have changed.
//
// All connections speak TLS 1.3. Nothing is resumed: every connection shows its certificates to what is trusted now.
package cert

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Files are PEM files. Cert and Key come together; Cert holds the certificate first, then any intermediate ones. CA is a
// bundle of one CA or more, all of which are trusted.
type Files struct{ Cert, Key, CA string }

// Config of a Source.
type Config struct {
	Files
	// Name is what logs call it: peer, or client.
	Name string
	// Node, if it is not empty, is the id that the certificate must be bound to. The certificate must then also
	// be one that CA vouches for, or no other node would take it.
	Node string
	// Log gets what was read, and why something was not; nil discards.
	Log *slog.Logger
}

const (
	// Period is how often the files are looked at. What is new is taken when it was the same twice:
	// a file that is being written is not whole yet, and a key comes after its certificate.
	Period = time.Second
	// maxFile bounds a file: a bundle of all the world's CAs is smaller.
	maxFile = 4 << 20
	// expiresSoon is when Run begins to say that a certificate expires, or when two thirds of its time are over.
	expiresSoon = 14 * 24 * time.Hour
)

// Source is a certificate, its key and the CAs to trust. Its methods may be used concurrently.
type Source struct {
	cfg  Config
	log  *slog.Logger
	now  atomic.Pointer[held]
	mu   sync.Mutex // one look at a time
	last look       // guarded by mu

	reads, refusals atomic.Uint64
}

// held is what was read. Never changed.
type held struct {
	raw        contents
	generation uint64
	cert       *tls.Certificate // nil: none
	roots      *x509.CertPool   // nil: none were named
}

// contents are those of the files: certificate, key, CA.
type contents [3][]byte

func (a contents) equal(b contents) bool {
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// look is what the last look has found.
type look struct {
	raw    contents
	err    string    // why it was not taken, as it was told
	warned time.Time // that the certificate expires
}

// Open reads the files. What is wrong with them is an error now, and later a warning.
func Open(cfg Config) (*Source, error) {
	if (cfg.Cert == "") != (cfg.Key == "") {
		return nil, errors.New("a certificate and its key come together")
	}
	s := &Source{cfg: cfg, log: cfg.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("tls", cfg.Name)
	raw, err := s.read()
	if err != nil {
		return nil, err
	}
	h, err := s.parse(raw)
	if err != nil {
		return nil, err
	}
	h.generation = 1
	s.now.Store(h)
	s.last.raw = raw
	return s, nil
}

// Run looks at the files every Period until ctx ends.
func (s *Source) Run(ctx context.Context) {
	tick := time.NewTicker(Period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.look()
		}
	}
}

// look takes what is new in the files, if the look before has found the same and it is good.
func (s *Source) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnOfExpiry()
	raw, err := s.read()
	if err == nil {
		settled := raw.equal(s.last.raw)
		s.last.raw = raw
		if raw.equal(s.now.Load().raw) {
			s.last.err = ""
			return
		}
		if !settled {
			return
		}
		var h *held
		if h, err = s.parse(raw); err == nil {
			h.generation = s.now.Load().generation + 1
			s.now.Store(h)
			s.reads.Add(1)
			s.last.err, s.last.warned = "", time.Time{}
			s.log.Info("certificate files read again", s.describe(h)...)
			return
		}
	}
	if s.last.err != err.Error() { // once for each fault
		s.last.err = err.Error()
		s.refusals.Add(1)
		s.log.Warn("certificate files not taken; those read before stay in use", "err", err)
	}
}

func (s *Source) describe(h *held) []any {
	if h.cert == nil {
		return nil
	}
	return []any{"subject", h.cert.Leaf.Subject.String(), "serial", h.cert.Leaf.SerialNumber.Text(16), "expires", h.cert.Leaf.NotAfter.UTC().Format(time.RFC3339)}
}

// warnOfExpiry says once a day that the certificate is about to expire.
func (s *Source) warnOfExpiry() {
	h := s.now.Load()
	if h.cert == nil || time.Since(s.last.warned) < 24*time.Hour {
		return
	}
	if leaf := h.cert.Leaf; time.Until(leaf.NotAfter) > min(expiresSoon, leaf.NotAfter.Sub(leaf.NotBefore)/3) {
		return
	}
	s.last.warned = time.Now()
	s.log.Warn("certificate expires soon: put a new one in its place, it is read without a restart", append(s.describe(h), "file", s.cfg.Cert)...)
}

func (s *Source) read() (raw contents, err error) {
	for i, path := range []string{s.cfg.Cert, s.cfg.Key, s.cfg.CA} {
		if path == "" {
			continue
		}
		if raw[i], err = readFile(path); err != nil {
			return raw, err
		}
	}
	return raw, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err // it names the file
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxFile)
	}
	return b, nil
}

// parse judges what was read.
func (s *Source) parse(raw contents) (*held, error) {
	h := &held{raw: raw}
	if s.cfg.CA != "" {
		h.roots = x509.NewCertPool()
		list, err := parseCertificates(raw[2])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.cfg.CA, err)
		}
		for _, c := range list {
			if !c.IsCA {
				return nil, fmt.Errorf("%s: %s is not the certificate of a CA", s.cfg.CA, c.Subject)
			}
			h.roots.AddCert(c)
		}
	}
	if s.cfg.Cert == "" {
		return h, nil
	}
	if _, err := parseCertificates(raw[0]); err != nil {
		return nil, fmt.Errorf("%s: %w", s.cfg.Cert, err)
	}
	pair, err := tls.X509KeyPair(raw[0], raw[1])
	if err != nil {
		return nil, fmt.Errorf("%s with the key %s: %w", s.cfg.Cert, s.cfg.Key, err)
	}
	h.cert = &pair
	if err := s.judge(h); err != nil {
		return nil, fmt.Errorf("%s: %w", s.cfg.Cert, err)
	}
	return h, nil
}

// judge says what others would say of our certificate.
func (s *Source) judge(h *held) error {
	leaf, now := h.cert.Leaf, time.Now()
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("it expired at %s: issue a new one", leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("it is not valid before %s, and this machine's clock says %s", leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if s.cfg.Node == "" {
		return nil
	}
	id, err := NodeID(leaf)
	if err != nil {
		return err
	}
	if id != s.cfg.Node {
		return fmt.Errorf("it is bound to node %s, and this is node %s", id, s.cfg.Node)
	}
	chain := make([]*x509.Certificate, 0, len(h.cert.Certificate))
	for _, der := range h.cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, c)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} { // a node calls, and is called
		if err := verify(h.roots, chain, usage, ""); err != nil {
			return fmt.Errorf("the CAs in %s do not vouch for it, so that no other node would: %w", s.cfg.CA, err)
		}
	}
	return nil
}

// parseCertificates is strict where x509.CertPool is not: a bundle that was cut off in the middle must not pass for a
// shorter one.
func parseCertificates(b []byte) (list []*x509.Certificate, err error) {
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		b = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %s, want certificates only", strings.ToLower(block.Type))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	if bytes.Contains(b, []byte("-----")) {
		return nil, errors.New("a certificate in it is not whole")
	}
	if len(list) == 0 {
		return nil, errors.New("there is no certificate in it (want PEM)")
	}
	return list, nil
}

// Generation counts what was taken from the files: it changes when they do.
func (s *Source) Generation() uint64 { return s.now.Load().generation }

// Expires is when the certificate does; zero if there is none.
func (s *Source) Expires() time.Time {
	if h := s.now.Load(); h.cert != nil {
		return h.cert.Leaf.NotAfter
	}
	return time.Time{}
}

// Stats are how often files were read again, and how often new ones were not taken.
func (s *Source) Stats() (reads, refusals uint64) { return s.reads.Load(), s.refusals.Load() }

// verify says whether roots (nil: the system's) vouch for a chain, the leaf first.
func verify(roots *x509.CertPool, chain []*x509.Certificate, usage x509.ExtKeyUsage, host string) error {
	if len(chain) == 0 {
		return errors.New("no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}, DNSName: host})
	return err
}

// The name of a node in its certificate is a URI, beside whatever else is there.
const nodeScheme, nodeHost = "abacus", "node"

// NodeURI is the URI SAN that binds a certificate to a node: abacus://node/n1.
func NodeURI(id string) *url.URL {
	return &url.URL{Scheme: nodeScheme, Host: nodeHost, Path: "/" + id}
}

// NodeID returns the node that a certificate is bound to.
func NodeID(leaf *x509.Certificate) (string, error) {
	id := ""
	for _, u := range leaf.URIs {
		if u.Scheme != nodeScheme || u.Host != nodeHost {
			continue
		}
		if id != "" {
			return "", errors.New("the certificate is bound to more than one node")
		}
		id = strings.TrimPrefix(u.Path, "/")
	}
	if id == "" {
		return "", fmt.Errorf("%s is not a node's certificate: it has no URI SAN %s", leaf.Subject, NodeURI("ID"))
	}
	return id, nil
}
