//go:build tools

package chaos_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/transport/cert"
	"github.com/abacusdb/abacus/transport/resp"
)

// TestToolsRotateCertificates shows that both CAs and all certificates of a cluster are replaced as docs/security.md says, with what `abacus cert` makes, while numbered
// writes of our client and unnumbered ones of plain connections go on: no operation fails, no node restarts, and who then comes with what the old CAs have issued is refused.
func TestToolsRotateCertificates(t *testing.T) {
	c := startCluster(t, proc.Config{Nodes: 3, Shards: 4, TLS: true})
	old := map[string][]byte{}
	for _, name := range []string{"n1-peer.crt", "n1-peer.key", "n1-client.crt", "n1-client.key", "peer-ca.crt", "client-ca.crt"} {
		old[name] = readAll(t, filepath.Join(c.CertDir(), name))
	}
	pids := []int{c.Node(1).Pid(), c.Node(2).Pid(), c.Node(3).Pid()}
	l := load.Start(open(t, c), load.Config{Prefix: "rotate/", Writers: 4})
	t.Cleanup(l.Stop)
	plain := startPlain(t, c)
	progress(t, l, "before", 300, 30*time.Second)

	renewed := t.TempDir()
	command(t, "", abacus, "cert", "ca", renewed).must(t)
	for _, n := range c.Nodes() {
		command(t, "", abacus, "cert", "node", renewed, "--id", n.ID(), "--host", "127.0.0.1").must(t)
	}
	newPeer, newClient := readAll(t, filepath.Join(renewed, "peer-ca.crt")), readAll(t, filepath.Join(renewed, "client-ca.crt"))
	put := func(name string, parts ...[]byte) {
		t.Helper()
		path := filepath.Join(c.CertDir(), name)
		var all []byte
		for _, p := range parts {
			all = append(all, p...)
		}
		if err := os.WriteFile(path+".new", all, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	// step does something at one node after the other, as somebody with a shell would, and waits until all have read it.
	step := func(what string, kinds []string, do func(n *proc.Node)) {
		t.Helper()
		before := map[string]int{}
		for _, n := range c.Nodes() {
			for _, kind := range kinds {
				before[n.ID()+kind] = certReads(t, c, n, kind)
			}
		}
		for _, n := range c.Nodes() {
			do(n)
		}
		for _, n := range c.Nodes() {
			for _, kind := range kinds {
				eventually(t, 20*time.Second, n.ID()+" has read its files again: "+what, func() bool { return certReads(t, c, n, kind) > before[n.ID()+kind] })
			}
		}
		time.Sleep(5 * time.Second) // links are made anew meanwhile, and calls must not fail for it
		progress(t, l, what, 300, 30*time.Second)
		plain.check(t, what)
	}
	put("ca.crt", old["client-ca.crt"], newClient) // of clients
	step("the new CAs are trusted", []string{"peer"}, func(n *proc.Node) { put(n.ID()+"-peer-ca.crt", old["peer-ca.crt"], newPeer) })
	step("new certificates", []string{"peer", "client"}, func(n *proc.Node) {
		for _, kind := range []string{"-peer", "-client"} {
			put(n.ID()+kind+".crt", readAll(t, filepath.Join(renewed, n.ID()+kind+".crt")))
			put(n.ID()+kind+".key", readAll(t, filepath.Join(renewed, n.ID()+kind+".key")))
		}
	})
	put("ca.crt", newClient)
	step("the old CAs are not trusted", []string{"peer"}, func(n *proc.Node) { put(n.ID()+"-peer-ca.crt", newPeer) })
	time.Sleep(12 * time.Second) // who was still connected with an old certificate is cut off by now
	progress(t, l, "afterwards", 300, 30*time.Second)
	plain.check(t, "afterwards")

	tally := l.Tally(false)
	if tally.Refused > 0 || tally.Uncertain > 0 {
		t.Errorf("%d writes were refused, %d are uncertain: %v", tally.Refused, tally.Uncertain, tally.LastError)
	}
	for i, n := range c.Nodes() {
		if n.Pid() != pids[i] {
			t.Errorf("%s was restarted", n.ID())
		}
	}
	// The old certificate of n1 on the peer port of n2.
	pair, err := tls.X509KeyPair(old["n1-peer.crt"], old["n1-peer.key"])
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", c.Node(2).Addrs().Peer, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }})
	if err == nil { // what the port says of it comes after the handshake
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if !cert.IsRefusal(err) {
		t.Errorf("an old certificate on a peer port: %v", err)
	}
	// A client that trusts the old CA only.
	if err := os.WriteFile(filepath.Join(renewed, "old.crt"), old["client-ca.crt"], 0o600); err != nil {
		t.Fatal(err)
	}
	if r := command(t, "", abacus, "--addr", c.Node(1).Addrs().Client, "--ca", filepath.Join(renewed, "old.crt"), "get", "x"); r.code != 5 || !strings.Contains(r.stderr, "unknown authority") {
		t.Errorf("a client of the old CA: exit code %d, %s", r.code, r.stderr)
	}
	check(t, c, l)
}

// plainLoad is connections whose writes have no numbers, as those of any Redis client: an answer that is lost is lost.
type plainLoad struct {
	mu     sync.Mutex
	ok     int
	failed error
}

func startPlain(t *testing.T, c *proc.Cluster) *plainLoad {
	p := &plainLoad{}
	ctx, cancel := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	t.Cleanup(func() { cancel(); loops.Wait() })
	for i, addr := range c.ClientAddrs() {
		nc, err := c.Dial(timeout(t, 10*time.Second), addr)
		if err != nil {
			t.Fatal(err)
		}
		loops.Go(func() {
			defer nc.Close()
			r := resp.NewReplyReader(nc, resp.DefaultReplyLimits())
			for n := 0; ctx.Err() == nil; n++ {
				_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
				_, err := nc.Write(resp.AppendCommandStrings(nil, "INCR", fmt.Sprintf("plain/%d/%d", i, n%50)))
				var reply resp.Reply
				if err == nil {
					reply, err = r.ReadReply()
				}
				if err == nil {
					err = reply.Err()
				}
				p.mu.Lock()
				if p.ok++; err != nil && p.failed == nil {
					p.failed = err
				}
				p.mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	return p
}

// check fails if an operation has failed, or none was answered since the last time.
func (p *plainLoad) check(t *testing.T, when string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil || p.ok < 100 {
		t.Fatalf("%s: of %d commands on plain connections one failed: %v", when, p.ok, p.failed)
	}
	t.Logf("%s: %d commands on plain connections, none failed", when, p.ok)
	p.ok = 0
}

// certReads is how often a node has read changed files.
func certReads(t *testing.T, c *proc.Cluster, n *proc.Node, kind string) int {
	t.Helper()
	resp, err := c.HTTP(5 * time.Second).Get(n.URL("/metrics"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`abacus_tls_reads_total\{tls="` + kind + `"\} (\d+)`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no such metric: %.300s", text)
	}
	v, _ := strconv.Atoi(string(m[1]))
	return v
}

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
