package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// backdate is how much earlier than now certificates are valid, for machines whose clocks are behind.
const backdate = time.Hour

// Authority is a CA for development and tests: a certificate and its key, in two files.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes a CA in dir: NAME.crt, and NAME.key for its owner only. It overwrites nothing.
func NewAuthority(dir, name string, valid time.Duration) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl, err := template(pkix.Name{Organization: []string{"Abacus"}, CommonName: fmt.Sprintf("%s %s", name, time.Now().UTC().Format("2006-01-02 15:04:05"))}, valid)
	if err != nil {
		return nil, err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	a := &Authority{key: key}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return a, save(dir, name, der, key)
}

// LoadAuthority reads what NewAuthority has made.
func LoadAuthority(dir, name string) (*Authority, error) {
	path := filepath.Join(dir, name)
	raw, err := os.ReadFile(path + ".crt")
	if err != nil {
		return nil, err
	}
	list, err := parseCertificates(raw)
	if err != nil {
		return nil, fmt.Errorf("%s.crt: %w", path, err)
	}
	if raw, err = os.ReadFile(path + ".key"); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s.key: no key in it (want PEM)", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s.key: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(list[0].PublicKey) {
		return nil, fmt.Errorf("%s.key is not the key of %s.crt", path, path)
	}
	return &Authority{cert: list[0], key: key}, nil
}

// Request is what a certificate shall say.
type Request struct {
	Name  string   // the subject's common name
	Node  string   // the node that it is bound to; empty: none
	Hosts []string // DNS names and IP addresses of a server
	// Server and Client are what it may be used as.
	Server, Client bool
	Valid          time.Duration
	// NotBefore is when it begins to be valid; zero: an hour ago.
	NotBefore time.Time
}

// Issue writes a certificate and its key to file.crt and file.key in dir. It overwrites nothing.
func (a *Authority) Issue(dir, file string, r Request) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl, err := template(pkix.Name{Organization: []string{"Abacus"}, CommonName: r.Name}, r.Valid)
	if err != nil {
		return err
	}
	if !r.NotBefore.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = r.NotBefore, r.NotBefore.Add(r.Valid)
	}
	if tmpl.NotAfter.After(a.cert.NotAfter) { // it would be good for nothing after that
		tmpl.NotAfter = a.cert.NotAfter
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	if r.Server {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if r.Node != "" {
		tmpl.URIs = []*url.URL{NodeURI(r.Node)}
	}
	for _, h := range r.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	return save(dir, file, der, key)
}

func template(name pkix.Name, valid time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: name, NotBefore: now.Add(-backdate), NotAfter: now.Add(valid)}, nil
}

// save writes the key first: a certificate without its key is of no use to anybody.
func save(dir, name string, der []byte, key *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path + ".crt"); err == nil {
		return fmt.Errorf("%s.crt is there already: it is not overwritten", path)
	}
	if err := create(path+".key", 0o600, "PRIVATE KEY", raw); err != nil {
		return err
	}
	return create(path+".crt", 0o644, "CERTIFICATE", der)
}

func create(path string, mode os.FileMode, kind string, der []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: it is not overwritten", path)
	}
	if err != nil {
		return err
	}
	return errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Close())
}
