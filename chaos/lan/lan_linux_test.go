//go:build system

package lan

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// create makes a network that goes with the test.
func create(t *testing.T, hosts int) *LAN {
	t.Helper()
	l, err := Create(hosts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// pings sends so many packets from one host to another, and returns how many came back.
func pings(t *testing.T, l *LAN, from, to, n int) int {
	t.Helper()
	args := append(l.Enter(from), "ping", "-n", "-q", "-i", "0.002", "-W", "0.2", "-c", strconv.Itoa(n), l.Addr(to))
	out, _ := exec.Command(args[0], args[1:]...).Output() // it fails when nothing comes back
	var sent, received int
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "packets transmitted") {
			_, _ = fmt.Sscanf(line, "%d packets transmitted, %d received", &sent, &received)
		}
	}
	if sent != n {
		t.Fatalf("ping sent %d of %d: %s", sent, n, out)
	}
	return received
}

// TestCut shows that links are cut in one direction or in both, that others are not touched, that what was dropped is counted, and
// that all is well after Heal.
func TestCut(t *testing.T) {
	l := create(t, 3)
	reach := func(from, to, want int) {
		t.Helper()
		if got := pings(t, l, from, to, 20); got != want {
			t.Errorf("%d of 20 packets came back from %d to %d and back, want %d", got, from, to, want)
		}
	}
	dropped := func(link Link) uint64 {
		t.Helper()
		d, err := l.Dropped()
		if err != nil {
			t.Fatal(err)
		}
		return d[link]
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	reach(1, 2, 20)
	must(l.Cut(Link{1, 2}))
	reach(1, 2, 0)
	reach(2, 1, 0) // the answers do not come
	reach(1, 3, 20)
	reach(2, 3, 20)
	if n, back := dropped(Link{1, 2}), dropped(Link{2, 1}); n < 40 || n > 45 || back > 5 { // there may be a few that are not ours
		t.Errorf("dropped %d and %d, want 40 and none", n, back)
	}
	must(l.Cut(Both(1, 3)...))
	reach(1, 3, 0)
	must(l.Heal(Link{1, 2}))
	reach(1, 2, 20)
	must(l.Lose(30, Both(1, 3)...)) // out of one set, into another
	if got := pings(t, l, 1, 3, 1000); got < 390 || got > 590 {
		t.Errorf("with a loss of 30 percent each way %d of 1000 came back, want some 490", got)
	}
	if n := dropped(Link{1, 3}); n < 200+20 || n > 400+20 {
		t.Errorf("dropped %d, want some 300 and 20", n)
	}
	must(l.Heal())
	reach(1, 3, 20)
	if err := l.Cut(Link{1, 4}); err == nil {
		t.Error("a host that is not there was cut off")
	}
	if err := l.Lose(33, Link{1, 2}); err == nil {
		t.Error("a loss that there is no set for was taken")
	}
}

// TestRouter shows that this machine reaches every host, whatever is cut between them.
func TestRouter(t *testing.T) {
	l := create(t, 2)
	if err := l.Cut(Both(1, 2)...); err != nil {
		t.Fatal(err)
	}
	args := append(l.Enter(1), os.Args[0], "-test.run=^TestEcho$")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "LAN_ECHO="+l.Addr(1)+":7000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	var c net.Conn
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, err = net.DialTimeout("tcp", l.Addr(1)+":7000", time.Second); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestEcho is what TestRouter runs on a host.
func TestEcho(t *testing.T) {
	addr := os.Getenv("LAN_ECHO")
	if addr == "" {
		return // only there
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(c, c)
}

// TestSweep shows that what a test that was killed has left goes when the next one begins, and that what another test
// has that runs does not.
func TestSweep(t *testing.T) {
	other := create(t, 1)
	left := create(t, 2)
	if err := ip("link", "set", left.bridge(), "alias", owner(1<<22-1, "1")); err != nil {
		t.Fatal(err)
	}
	create(t, 1)
	if _, err := os.Stat("/run/netns/" + left.namespace(2)); !os.IsNotExist(err) {
		t.Errorf("a namespace was left: %v", err)
	}
	if _, err := os.Stat("/sys/class/net/" + left.bridge()); !os.IsNotExist(err) {
		t.Errorf("a bridge was left: %v", err)
	}
	if _, err := os.Stat("/sys/class/net/" + other.bridge()); err != nil {
		t.Errorf("the network of a test that runs is gone: %v", err)
	}
}
