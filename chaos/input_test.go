package chaos_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/transport/resp"
)

// wire is a bare connection to a node's RESP port.
type wire struct {
	net.Conn
	r *resp.ReplyReader
}

func dial(t *testing.T, addr string) *wire {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	return &wire{conn, resp.NewReplyReader(conn, resp.DefaultReplyLimits())}
}

func (w *wire) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// answer is a reply as text: an error with its sign, a null as "(nil)".
func (w *wire) answer(t *testing.T) string {
	t.Helper()
	r, err := w.r.ReadReply()
	if err != nil {
		t.Fatalf("read a reply: %v", err)
	}
	return text(r)
}

func text(r resp.Reply) string {
	switch {
	case r.IsNull():
		return "(nil)"
	case r.Type == resp.TypeError:
		return "-" + string(r.Str)
	case r.Type == resp.TypeInt:
		return strconv.FormatInt(r.Int, 10)
	case r.Elems != nil:
		var parts []string
		for _, e := range r.Elems {
			parts = append(parts, text(e))
		}
		return "[" + strings.Join(parts, " ") + "]"
	}
	return string(r.Str)
}

func encode(args ...string) string {
	var b [][]byte
	for _, a := range args {
		b = append(b, []byte(a))
	}
	return string(resp.AppendCommand(nil, b...))
}

// TestBadCommands sends commands that are well formed and wrong. Each gets a
// typed error, and the connection goes on.
func TestBadCommands(t *testing.T) {
	c := sharedCluster(t)
	w := dial(t, c.Node(1).Addrs().Client)
	key, value := strings.Repeat("k", 1<<10), strings.Repeat("v", 1<<20)
	for _, tc := range []struct {
		name string
		args []string
		want string // how the answer begins
	}{
		{"a key of 1 KiB", []string{"SET", key, "1"}, "OK"},
		{"one byte more", []string{"SET", key + "k", "1"}, "-TOOLARGE"},
		{"an empty key", []string{"SET", "", "1"}, "-ERR"},
		{"a value of 1 MiB", []string{"SET", "bad:value", value}, "OK"},
		{"one byte more", []string{"SET", "bad:value2", value + "v"}, "-TOOLARGE"},
		{"nothing was stored of it", []string{"EXISTS", "bad:value2"}, "0"},
		{"an append beyond", []string{"APPEND", "bad:value", "v"}, "-TOOLARGE"},
		{"the value is as it was", []string{"STRLEN", "bad:value"}, "1048576"},
		{"too few arguments", []string{"GET"}, "-ERR wrong number of arguments for 'get' command"},
		{"too many", []string{"GET", "a", "b"}, "-ERR wrong number of arguments for 'get' command"},
		{"an odd MSET", []string{"MSET", "a", "1", "b"}, "-ERR wrong number of arguments for 'mset' command"},
		{"an unknown command", []string{"NOSUCH", "a"}, "-ERR unknown command"},
		{"bytes as a command", []string{"\x00\xff\r\n"}, "-ERR unknown command"},
		{"an unknown sub-command", []string{"CLUSTER", "NOSUCH"}, "-ERR"},
		{"an option that there is not", []string{"SET", "bad:a", "1", "NOSUCH"}, "-ERR syntax error"},
		{"options that exclude each other", []string{"SET", "bad:a", "1", "NX", "XX"}, "-ERR syntax error"},
		{"no number", []string{"SET", "bad:a", "1", "EX", "soon"}, "-ERR value is not an integer"},
		{"a time of zero", []string{"SET", "bad:a", "1", "EX", "0"}, "-ERR invalid expire time"},
		{"a time without end", []string{"SET", "bad:a", "1", "EX", "9223372036854775807"}, "-ERR invalid expire time"},
		{"a word", []string{"SET", "bad:word", "word"}, "OK"},
		{"is no number", []string{"INCR", "bad:word"}, "-ERR value is not an integer or out of range"},
		{"is no float", []string{"INCRBYFLOAT", "bad:word", "1"}, "-ERR value is not a valid float"},
		{"the largest", []string{"SET", "bad:max", "9223372036854775807"}, "OK"},
		{"does not wrap", []string{"INCR", "bad:max"}, "-ERR increment or decrement would overflow"},
		{"and stays", []string{"GET", "bad:max"}, "9223372036854775807"},
		{"another database", []string{"SELECT", "1"}, "-ERR"},
		{"all keys", []string{"KEYS", "*"}, "-ERR"},
		{"everything away", []string{"FLUSHALL"}, "-ERR"},
		{"a script", []string{"EVAL", "return 1", "0"}, "-ERR"},
		{"a job that is no JSON", []string{"JOB.SUBMIT", "{"}, "-BADJOB"},
		{"a job with a field that there is not", []string{"JOB.SUBMIT", `{"prefix":"a","colour":"red"}`}, "-BADJOB"},
		{"a job that there is not", []string{"JOB.STATUS", "none"}, "-NOTFOUND"},
		{"a cursor that is none", []string{"SCAN", "x"}, "-ERR invalid cursor"},
		{"still there", []string{"PING"}, "PONG"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.send(t, encode(tc.args...))
			if got := w.answer(t); !strings.HasPrefix(got, tc.want) {
				t.Errorf("%.60q: got %.200q, want %q", tc.args, got, tc.want)
			}
		})
	}
}

// TestMalformedRESP sends bytes that are no RESP to both ports of a node. What
// came before is answered, then there is one protocol error and the connection ends; the node
// neither dies nor takes memory for lengths that were only declared.
func TestMalformedRESP(t *testing.T) {
	c := sharedCluster(t)
	n := c.Node(2)
	before := rss(t, n)
	for _, tc := range []struct{ name, send, want string }{
		{"a bulk of 4 GiB without a body", "*2\r\n$3\r\nGET\r\n$4294967296\r\n", "-ERR Protocol error: invalid bulk length"},
		{"a bulk near 2^63", "*2\r\n$3\r\nGET\r\n$9223372036854775807\r\n", "-ERR Protocol error: invalid bulk length"},
		{"a bulk beyond 2^64", "*2\r\n$3\r\nGET\r\n$99999999999999999999999\r\n", "-ERR Protocol error: invalid bulk length"},
		{"a negative bulk", "*2\r\n$3\r\nGET\r\n$-5\r\n", "-ERR Protocol error: invalid bulk length"},
		{"a bulk that is no number", "*2\r\n$3\r\nGET\r\n$abc\r\n", "-ERR Protocol error: invalid bulk length"},
		{"too many arguments", "*2147483647\r\n", "-ERR Protocol error: invalid multibulk length"},
		{"arguments near 2^63", "*9223372036854775807\r\n", "-ERR Protocol error: invalid multibulk length"},
		{"arguments that are no number", "*x\r\n", "-ERR Protocol error: invalid multibulk length"},
		{"an integer for a bulk", "*2\r\n:3\r\n", "-ERR Protocol error: expected '$', got ':'"},
		{"an inline command without end", strings.Repeat("x", 70<<10), "-ERR Protocol error: too big inline request"},
		{"a quote without end", "SET \"a b\r\n", "-ERR Protocol error: unbalanced quotes in request"},
		{"HTTP", "POST / HTTP/1.1\r\nHost: x\r\n\r\n", "-ERR"},
	} {
		for _, addr := range []string{n.Addrs().Client, n.Addrs().Cluster} {
			t.Run(tc.name, func(t *testing.T) {
				w := dial(t, addr)
				w.send(t, encode("PING")+tc.send)
				if got := w.answer(t); got != "PONG" {
					t.Errorf("the command before: %q", got)
				}
				if got := w.answer(t); !strings.HasPrefix(got, tc.want) {
					t.Errorf("got %q, want %q", got, tc.want)
				}
				if tc.want != "-ERR" {
					if r, err := w.r.ReadReply(); err == nil {
						t.Errorf("after the error the connection goes on: %s", text(r))
					}
				}
			})
		}
	}
	// Truncated anywhere, and then gone: nothing is to be executed.
	whole := encode("SET", "truncated", "x")
	for cut := 1; cut < len(whole); cut++ {
		w := dial(t, n.Addrs().Client)
		w.send(t, whole[:cut])
		_ = w.Close()
	}
	w := dial(t, n.Addrs().Client)
	w.send(t, encode("EXISTS", "truncated"))
	if got := w.answer(t); got != "0" {
		t.Errorf("a truncated SET was executed: %s", got)
	}
	if after := rss(t, n); after > before+256<<20 {
		t.Errorf("memory went from %d to %d MiB", before>>20, after>>20)
	}
	healthy(t, c)
}

// TestJunk throws bytes at every port of a node: it lives, and serves.
func TestJunk(t *testing.T) {
	c := sharedCluster(t)
	a := c.Node(3).Addrs()
	pid := c.Node(3).Pid()
	junk := make([]byte, 64<<10)
	for i := range junk {
		junk[i] = byte(i*7 + i>>8)
	}
	for _, addr := range []string{a.Client, a.Cluster, a.Peer, a.HTTP} {
		for _, text := range [][]byte{junk, bytes.Repeat([]byte{0}, 4096), bytes.Repeat([]byte{0xff}, 4096), []byte("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"), []byte("*1\r\n$4\r\nPING\r\n")} {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
			_, _ = conn.Write(text)
			_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1<<20)) // whatever it says, until it hangs up or falls silent
			_ = conn.Close()
		}
	}
	if c.Node(3).Pid() != pid {
		t.Fatal("the node died")
	}
	healthy(t, c)
}

// TestHTTPRefusals shows that the HTTP port answers no page of a browser: other
// names for the host, other origins.
func TestHTTPRefusals(t *testing.T) {
	c := sharedCluster(t)
	for _, tc := range []struct {
		method, host, origin string
		want                 int
	}{
		{"GET", "", "", 200},
		{"GET", "evil.example", "", 403},
		{"GET", "", "http://evil.example", 403},
		{"PUT", "", "http://evil.example", 403},
	} {
		path := "/v1/status"
		if tc.method == "PUT" {
			path = "/v1/kv/evil"
		}
		req, err := http.NewRequestWithContext(timeout(t, 10*time.Second), tc.method, "http://"+c.Node(1).Addrs().HTTP+path, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = tc.host
		if tc.origin != "" {
			req.Header.Set("Origin", tc.origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if (tc.want == 200) != (resp.StatusCode == 200) || resp.StatusCode >= 500 {
			t.Errorf("%s with host %q and origin %q: %s, want %d", tc.method, tc.host, tc.origin, resp.Status, tc.want)
		}
	}
	if got := cli(t, c.Node(1), "get", "evil"); got.code != 1 {
		t.Errorf("a refused PUT was executed: %q", got.stdout)
	}
}

// TestReaderThatNeverReads asks for much and reads nothing. The node must bound
// what it holds for such a client, cut it in the end, and serve others meanwhile.
func TestReaderThatNeverReads(t *testing.T) {
	c := startCluster(t, proc.Config{Nodes: 1, Shards: 1})
	n := c.Node(1)
	w := dial(t, n.Addrs().Client)
	w.send(t, encode("SET", "large", strings.Repeat("x", 1<<20)))
	if got := w.answer(t); got != "OK" {
		t.Fatal(got)
	}
	before := rss(t, n)
	_ = w.SetDeadline(time.Now().Add(90 * time.Second))
	gets := strings.Repeat(encode("GET", "large"), 1000)
	var asked int
	var cut error
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		// Until the sockets' buffers are full and the node takes no more, which it
		// must at some point: this asks for 400 GB.
		for ; asked < 400_000 && cut == nil; asked += 1000 {
			_, cut = io.WriteString(w, gets)
		}
	}()
	other := dial(t, n.Addrs().Client)
	_ = other.SetDeadline(time.Now().Add(90 * time.Second))
	most := before
	eventually(t, 80*time.Second, "the node cuts the client that never reads", func() bool {
		other.send(t, encode("PING"))
		if got := other.answer(t); got != "PONG" {
			t.Errorf("another client gets %q", got)
		}
		most = max(most, rss(t, n))
		select {
		case <-sent:
			return true
		default:
			return false
		}
	})
	if cut == nil {
		t.Error("the node took it all")
	}
	if most > before+400<<20 {
		t.Errorf("memory went from %d to %d MiB", before>>20, most>>20)
	}
	t.Logf("after asking %d times for 1 MiB: %v; memory went from %d to at most %d MiB", asked, cut, before>>20, most>>20)
	healthy(t, c)
}

// TestSlowLoris keeps many commands half sent. They cost little, and others are served.
func TestSlowLoris(t *testing.T) {
	c := startCluster(t, proc.Config{Nodes: 1, Shards: 1})
	n := c.Node(1)
	before := rss(t, n)
	for i := range 500 {
		w := dial(t, n.Addrs().Client)
		if i%2 == 0 {
			w.send(t, "*3\r\n$3\r\nSET\r\n$5\r\nloris\r\n$60000000\r\nx") // 60 MB declared, one byte sent
		} else {
			w.send(t, "SET loris ")
		}
	}
	w := dial(t, n.Addrs().Client)
	for range 50 {
		w.send(t, encode("INCR", "loris:count"))
		if got := w.answer(t); strings.HasPrefix(got, "-") {
			t.Fatal(got)
		}
	}
	after := rss(t, n)
	if after > before+64<<20 {
		t.Errorf("500 half-sent commands took memory from %d to %d MiB", before>>20, after>>20)
	}
	t.Logf("500 half-sent commands: memory from %d to %d MiB", before>>20, after>>20)
	healthy(t, c)
}

// TestIdleConnections opens ten thousand connections that say nothing. The last
// over the limit is refused with an error, others are served, and memory is bounded.
func TestIdleConnections(t *testing.T) {
	const limit = 10_000
	var rlimit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &rlimit); err != nil {
		t.Fatal(err)
	}
	if rlimit.Cur < limit+2000 {
		rlimit.Cur = min(rlimit.Max, limit+2000)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &rlimit); err != nil {
			t.Fatal(err)
		}
	}
	count := limit
	if rlimit.Cur < limit+2000 {
		// A machine that allows no more files per process: then as many as it
		// allows, with a node that is told so.
		count = int(rlimit.Cur) - 1000
	}
	c := startCluster(t, proc.Config{Nodes: 1, Shards: 2, Args: []string{"--max-clients", strconv.Itoa(count)}})
	n := c.Node(1)
	before := rss(t, n)
	conns := make([]net.Conn, count-1) // one is left for the test
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				_ = conn.Close()
			}
		}
	}()
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := w; i < len(conns); i += 20 {
				conn, err := net.DialTimeout("tcp", n.Addrs().Client, 20*time.Second)
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
				conns[i] = conn
			}
		})
	}
	wg.Wait()
	w := dial(t, n.Addrs().Client)
	w.send(t, encode("SET", "idle", "1"))
	if got := w.answer(t); got != "OK" {
		t.Errorf("the last client within the limit gets %q", got)
	}
	if after := rss(t, n); after > before+600<<20 {
		t.Errorf("%d idle connections took memory from %d to %d MiB", count, before>>20, after>>20)
	} else {
		t.Logf("%d idle connections: memory from %d to %d MiB", count, before>>20, after>>20)
	}
	over := dial(t, n.Addrs().Client)
	if r, err := over.r.ReadReply(); err != nil || !strings.HasPrefix(text(r), "-ERR max number of clients reached") {
		t.Errorf("a client over the limit gets %q, %v", text(r), err)
	}
}

// TestBigCommand shows the limit of 64 MiB for one command, just below and just above.
func TestBigCommand(t *testing.T) {
	c := sharedCluster(t)
	n := c.Node(1)
	value := strings.Repeat("v", 1<<20)
	mset := func(values int) string {
		args := []string{"MSET"}
		for i := range values {
			args = append(args, fmt.Sprintf("big:%d", i), value)
		}
		return encode(args...)
	}
	w := dial(t, n.Addrs().Client)
	_ = w.SetDeadline(time.Now().Add(60 * time.Second))
	w.send(t, mset(20))
	if got := w.answer(t); got != "OK" && !strings.HasPrefix(got, "-UNCERTAIN") {
		t.Errorf("20 MiB: %q", got)
	}
	w = dial(t, n.Addrs().Client)
	_ = w.SetDeadline(time.Now().Add(60 * time.Second))
	go func() { _, _ = io.WriteString(w, mset(65)) }() // it may be cut off in the middle of sending
	r, err := w.r.ReadReply()
	if err == nil && !strings.HasPrefix(text(r), "-ERR Protocol error") && !strings.HasPrefix(text(r), "-TOOLARGE") {
		t.Errorf("65 MiB: %.100q", text(r))
	}
	if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
		t.Errorf("65 MiB: %v", err)
	}
	healthy(t, c)
}

// healthy shows that all nodes still are the processes that they were, well, and serving.
func healthy(t *testing.T, c *proc.Cluster) {
	t.Helper()
	waitReady(t, c)
	for _, n := range c.Nodes() {
		if got := cli(t, n, "incr", "healthy"); got.code != 0 {
			t.Errorf("%s does not serve: %s", n.ID(), got.stderr)
		}
	}
}

// rss is the memory that a node's process has in use.
func rss(t *testing.T, n *proc.Node) int64 {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", n.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Anonymous memory: pages of the mapped state file come and go as the kernel likes.
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "RssAnon:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no RssAnon in /proc/PID/status")
	return 0
}
