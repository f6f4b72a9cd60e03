package load

import (
	"bufio"
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/transport/resp"
)

// store is a server that remembers SETs and INCRs, and breaks its promises as
// told: the checks must find out.
type store struct {
	mu     sync.Mutex
	values map[string]string
	// tamper changes what a command does; it returns the answer, "" for the right one.
	tamper func(values map[string]string, args []string) string
}

func (s *store) serve(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() { s.talk(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

func (s *store) talk(conn net.Conn) {
	defer conn.Close()
	r := resp.NewReplyReader(bufio.NewReader(conn), resp.DefaultReplyLimits())
	for {
		cmd, err := r.ReadReply() // a command has the form of an array reply
		if err != nil {
			return
		}
		var args []string
		for _, e := range cmd.Elems {
			args = append(args, string(e.Str))
		}
		if _, err := conn.Write([]byte(s.answer(args))); err != nil {
			return
		}
	}
}

func (s *store) answer(args []string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	bulk := func(key string) string {
		v, ok := s.values[key]
		if !ok {
			return "$-1\r\n"
		}
		return "$" + strconv.Itoa(len(v)) + "\r\n" + v + "\r\n"
	}
	if args[0] == "IDEM" { // it carries out again what is sent again: the checks must bear that for SETs
		if args[1] == "OPEN" {
			return "$1\r\n1\r\n"
		}
		args = args[3:]
	}
	if s.tamper != nil {
		if a := s.tamper(s.values, args); a != "" {
			return a
		}
	}
	switch strings.ToUpper(args[0]) {
	case "SET":
		s.values[args[1]] = args[2]
		return "+OK\r\n"
	case "INCRBY", "INCR":
		n, _ := strconv.Atoi(s.values[args[1]])
		s.values[args[1]] = strconv.Itoa(n + 1)
		return ":" + strconv.Itoa(n+1) + "\r\n"
	case "GET":
		return bulk(args[1])
	case "MGET":
		out := "*" + strconv.Itoa(len(args)-1) + "\r\n"
		for _, k := range args[1:] {
			out += bulk(k)
		}
		return out
	}
	return "-ERR unknown command\r\n"
}

// TestCheck lets the server lose, invent and mix up writes, and expects each to
// be found; and the same server to be found in order when it only says that
// it does not know.
func TestCheck(t *testing.T) {
	nth := func(n int, f func(map[string]string, []string) string) func(map[string]string, []string) string {
		seen := 0
		return func(v map[string]string, args []string) string {
			if seen++; seen%n == 0 {
				return f(v, args)
			}
			return ""
		}
	}
	only := func(verb, part string, f func(map[string]string, []string) string) func(map[string]string, []string) string {
		return func(v map[string]string, args []string) string {
			if strings.HasPrefix(args[0], verb) && strings.Contains(args[1], part) {
				return f(v, args)
			}
			return ""
		}
	}
	unsure := func(map[string]string, []string) string { return "-UNCERTAIN who knows\r\n" }
	for _, tc := range []struct {
		name   string
		tamper func(map[string]string, []string) string
		want   string // part of a fault, "" for none
	}{
		{"an honest server", nil, ""},
		{"uncertain and not done", nth(7, unsure), ""},
		{"uncertain and done", only("SET", "", nth(5, func(v map[string]string, a []string) string { v[a[1]] = a[2]; return unsure(v, a) })), ""},
		{"a lost key", only("SET", "key/", nth(40, func(map[string]string, []string) string { return "+OK\r\n" })), "is gone"},
		{"an altered key", only("SET", "key/", nth(40, func(v map[string]string, a []string) string { v[a[1]] = "other"; return "+OK\r\n" })), "holds \"other\""},
		{"a register that stands still", only("SET", "register/0", func(v map[string]string, a []string) string { v[a[1]] = "value 0/0"; return "+OK\r\n" }), "last acknowledged value"},
		{"a lost increment", only("INCR", "", nth(40, func(v map[string]string, a []string) string { return ":1\r\n" })), "the counter is"},
		{"a doubled increment", only("INCR", "", nth(40, func(v map[string]string, a []string) string {
			n, _ := strconv.Atoi(v[a[1]])
			v[a[1]] = strconv.Itoa(n + 2)
			return ":1\r\n"
		})), "the counter is"},
		{"an unknown error", nth(50, func(map[string]string, []string) string { return "-ERR what\r\n" }), "neither done"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &store{values: map[string]string{}, tamper: tc.tamper}
			c, err := client.Open(client.Config{Addrs: []string{s.serve(t)}, NoRouting: true})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			l := Start(c, Config{Prefix: "p/", Writers: 3, Timeout: 5 * time.Second})
			deadline := time.Now().Add(20 * time.Second)
			enough := func() bool {
				for _, w := range l.writers {
					w.mu.Lock()
					n, failed := len(w.keys), w.failure != nil
					w.mu.Unlock()
					if failed {
						return true
					}
					if n < 100 {
						return false
					}
				}
				return true
			}
			for !enough() {
				if time.Now().After(deadline) {
					t.Fatalf("the writers are slow: %+v", l.Tally(false))
				}
				time.Sleep(time.Millisecond)
			}
			l.Stop()
			s.mu.Lock()
			s.tamper = nil
			s.mu.Unlock()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			r, err := l.Check(ctx, c)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(r.Faults, "\n")
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("faults: %q, want %q", got, tc.want)
			}
			if tc.name == "an honest server" && (r.Keys < 300 || r.Registers != 3 || r.Counter == 0) {
				t.Errorf("read back: %+v", r)
			}
		})
	}
}
