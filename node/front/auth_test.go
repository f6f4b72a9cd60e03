package front

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/sharding/access"
	"github.com/abacusdb/abacus/transport/resp"
)

// usersOf makes a list of an admin "root" and users of the rights given. Each user's token is its name and "-token".
func usersOf(t *testing.T, rights map[string]string) *access.Users {
	t.Helper()
	u := new(access.Users)
	add := func(name, words string) {
		r, err := access.ParseRights(strings.Fields(words))
		if err != nil {
			t.Fatal(err)
		}
		if u, _, err = u.Create(name, access.Token{Hash: access.HashOf(name + "-token")}, r); err != nil {
			t.Fatal(err)
		}
	}
	add("root", "admin")
	for name, words := range rights {
		add(name, words)
	}
	return u
}

func (c *cluster) setUsers(u *access.Users) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users = u
}

func (c *cluster) takeEvents() (lines []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		lines = append(lines, fmt.Sprintf("%s %s %v %v", e.User, e.Verb, e.Args, e.Err))
	}
	c.events = nil
	return lines
}

// TestEveryCommandDeclaresItsRight walks over all that the front knows. A row that nobody has thought of is an admin's, and fails here.
func TestEveryCommandDeclaresItsRight(t *testing.T) {
	tab := newTable()
	for name, s := range tab.byName {
		switch {
		case s.never != "":
			if s.need != needUndeclared {
				t.Errorf("%s only refuses, and needs no right", name)
			}
		case s.need == needUndeclared:
			t.Errorf("%s: say in rights.go what it needs", name)
		case s.need == needKeys && s.first == 0:
			t.Errorf("%s needs its keys, and does not say where they are", name)
		case s.first != 0 && s.need != needKeys && s.need != needInner:
			t.Errorf("%s has keys, and does not need them", name)
		case s.plan != nil && s.need != needKeys && s.need != needInner:
			t.Errorf("%s is planned, and does not need its keys", name)
		case s.has(flagAdmin) && s.need != needAdmin && !strings.HasPrefix(name, "config"):
			t.Errorf("%s is flagged admin, and needs less", name)
		}
	}
	row := &spec{name: "new", run: (*conn).ping}
	bob := usersOf(t, map[string]string{"bob": "read: write: jobs"}).Resolve(access.NewLogin("bob", "bob-token"))
	if refused(bob, row, nil) == "" {
		t.Error("a command that nobody has thought of is open to all")
	}
}

// callOf is a call of a command that has the right shape, all keys of which are key.
func callOf(s *spec, key string) []string {
	name, sub, _ := strings.Cut(s.name, "|")
	call := []string{name}
	if sub != "" {
		call = append(call, sub)
	}
	least := s.arity
	if least < 0 {
		least = -least
	}
	for len(call) < least {
		call = append(call, "1")
	}
	for i := s.first; s.first > 0 && i < len(call); i += s.step {
		call[i] = key
		if s.last == s.first {
			break
		}
	}
	if s.name == "mset" || s.name == "msetnx" {
		call = []string{name, key, "1"}
	}
	return call
}

// TestEveryCommandChecks runs every command: by a stranger, by a user without any right, and on keys by one who may only read, on his
// keys and on others. Whoever is refused changes nothing and is told so as Redis tells it.
func TestEveryCommandChecks(t *testing.T) {
	c := newCluster(t, 1, 2)
	c.setUsers(usersOf(t, map[string]string{"none": "", "reader": "read:r/", "writer": "write:w/"}))
	_, addr := serve(t, Config{}, c.node("n1"))
	as := func(user string) *client {
		cl := dial(t, addr)
		if user != "" {
			if got := cl.one("AUTH " + user + " " + user + "-token"); got != "+OK" {
				t.Fatal(got)
			}
		}
		return cl
	}
	for name, s := range newTable().byName {
		if s.never != "" || s.run == nil && s.plan == nil || name == "quit" || name == "auth" || name == "hello" || name == "reset" || name == "idem" {
			continue
		}
		one := func(user, key string) string { return as(user).one(strings.Join(callOf(s, key), " ")) }
		if got := one("", "r/k"); (got == "-"+errNoAuth) != (s.need != needNothing) {
			t.Errorf("%s by a stranger: %s", name, got)
		}
		denied := func(got string) bool { return strings.HasPrefix(got, "-NOPERM ") }
		if got := one("none", "r/k"); denied(got) != (s.need != needNothing && s.need != needUser) {
			t.Errorf("%s by a user without rights: %s", name, got)
		}
		if s.need != needKeys {
			continue
		}
		write := s.has(flagWrite)
		for _, tc := range []struct {
			user, key string
			may       bool
		}{{"reader", "r/k", !write}, {"reader", "w/k", false}, {"writer", "w/k", true}, {"writer", "r/k", false}, {"root", "x", true}} {
			if got := one(tc.user, tc.key); denied(got) == tc.may {
				t.Errorf("%s %s by %s: %s", name, tc.key, tc.user, got)
			}
		}
	}
	if len(c.takeExecs()) == 0 {
		t.Error("nobody has written anything: the test is empty")
	}
	for key := range c.keys {
		if !strings.HasPrefix(key, "w/") && key != "x" {
			t.Errorf("%s was written", key)
		}
	}
}

// TestAuth: the words of AUTH and HELLO, as Redis says them.
func TestAuth(t *testing.T) {
	c := newCluster(t, 1, 1)
	c.setUsers(usersOf(t, map[string]string{"bob": "read:b/ write:w/"}))
	_, addr := serve(t, Config{}, c.node("n1"))
	cl := dial(t, addr)
	cl.want([]string{"PING", "GET b/x", "HELLO", "HELLO 3", "HELLO 3 AUTH bob wrong", "AUTH wrong", "AUTH bob root-token", "AUTH a b c", "FOO", "GET"},
		[]string{"+PONG", "-" + errNoAuth, "-" + errHelloAuth.Error(), "-" + errHelloAuth.Error(), "-" + errWrongPass.Error(), "-" + errWrongPass.Error(), "-" + errWrongPass.Error(), "-ERR syntax error",
			"-ERR unknown command 'FOO'...", "-ERR wrong number of arguments for 'get' command"})
	cl.want([]string{"AUTH bob bob-token", "ACL WHOAMI", "GET b/x", "GET w/x", "SET b/x 1", "SET w/x 1", "MSET w/x 1 b/y 2", "MGET b/x w/x other", "DBSIZE", "RANDOMKEY", "ABACUS.ADMIN upgrade", "ACL LIST",
		"IDEM OPEN", "IDEM 1 1 SET b/x 1", "IDEM 1 1 GET", "JOB.LIST", "CLIENT LIST", "CLIENT ID"},
		[]string{"+OK", "bob", "(nil)", "(nil)", "-NOPERM No permissions to access a key", "+OK", "-NOPERM No permissions to access a key", "-NOPERM No permissions to access a key", "1",
			"-NOPERM User bob has no permissions to run the 'randomkey' command", "-NOPERM User bob has no permissions to run the 'abacus.admin' command", "-ERR ACL is not how...",
			"...", "-NOPERM No permissions to access a key", "-ERR wrong number of arguments for 'get' command", "-NOPERM User bob has no permissions to run the 'job.list' command", "-NOPERM User bob...", "..."})
	cl.want([]string{"CLIENT INFO"}, []string{"..."})
	if got := cl.one("CLIENT INFO"); !strings.Contains(got, " user=bob ") {
		t.Error(got)
	}
	// A failed attempt leaves who the connection was; RESET does not.
	cl.want([]string{"AUTH root bob-token", "ACL WHOAMI", "RESET", "ACL WHOAMI", "AUTH default root-token", "ACL WHOAMI", "RESET"},
		[]string{"-" + errWrongPass.Error(), "bob", "+RESET", "-" + errNoAuth, "+OK", "root", "+RESET"})
	// The fifth wrong one is the last.
	if got := cl.one("AUTH x"); got != "-"+errWrongPass.Error() {
		t.Fatal(got)
	}
	if _, err := cl.r.ReadReply(); err == nil || isTimeout(err) {
		t.Fatalf("after five wrong attempts the connection is open: %v", err)
	}
	three := dial(t, addr)
	if got := three.one("HELLO 3 AUTH default bob-token SETNAME me"); !strings.Contains(got, "proto 3") {
		t.Fatal(got)
	}
	three.want([]string{"ACL WHOAMI", "CLIENT GETNAME"}, []string{"bob", "me"})
	events := strings.Join(c.takeEvents(), "\n")
	if strings.Contains(events, "-token") || !strings.Contains(events, "'bob' auth") || !strings.Contains(events, "bob denied [set]") {
		t.Errorf("audited:\n%s", events)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// TestRightsFollowTheList: what is changed in the list holds for connections that are open, in a transaction too.
func TestRightsFollowTheList(t *testing.T) {
	c := newCluster(t, 1, 1)
	_, addr := serve(t, Config{}, c.node("n1"))
	early, bob := dial(t, addr), dial(t, addr)
	early.want([]string{"SET a 1", "ACL WHOAMI"}, []string{"+OK", "default"})
	bob.want([]string{"HELLO 3 AUTH bob bob-token", "SET a 1"}, []string{"[server...", "+OK"}) // before there are users
	u := usersOf(t, map[string]string{"bob": "write:a"})
	c.setUsers(u)
	early.want([]string{"SET a 1", "PING"}, []string{"-" + errNoAuth, "+PONG"})
	bob.want([]string{"SET a 2", "SET b 2", "MULTI", "SET a 3"}, []string{"+OK", "-NOPERM...", "+OK", "+QUEUED"})

	change := func(next *access.Users, _ bool, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		u = next
		c.setUsers(u)
	}
	change(u.Revoke("bob", access.Rights{Prefixes: []access.Right{{Prefix: "a", Write: true}}}))
	bob.want([]string{"EXEC", "GET a", "SET a 4"}, []string{"-NOPERM No permissions to access a key", "2", "-NOPERM..."})
	change(u.Disable("bob", true))
	bob.want([]string{"GET a", "AUTH bob bob-token"}, []string{"-" + errNoAuth, "-" + errWrongPass.Error()})
	change(u.Disable("bob", false))
	bob.want([]string{"GET a"}, []string{"2"})
	change(u.Rotate("bob", access.Token{Hash: access.HashOf("new")}, false))
	bob.want([]string{"GET a"}, []string{"2"})
	change(u.EndRotation("bob"))
	bob.want([]string{"GET a", "AUTH new", "GET a"}, []string{"-" + errNoAuth, "+OK", "2"})
	change(u.Off())
	bob.want([]string{"SET b 1"}, []string{"+OK"})
	early.want([]string{"SET b 1"}, []string{"+OK"})
}

// TestNobodyKnowsTheUsers: a node that has not heard of the list lets nobody in, and clients try again.
func TestNobodyKnowsTheUsers(t *testing.T) {
	c := newCluster(t, 1, 1)
	c.setUsers(access.Locked)
	_, addr := serve(t, Config{}, c.node("n1"))
	cl := dial(t, addr)
	cl.want([]string{"PING", "GET a", "AUTH root root-token", "HELLO 3 AUTH root root-token", "HELLO 3"}, []string{"+PONG", "-LOADING...", "-LOADING...", "-LOADING...", "-LOADING..."})
	c.setUsers(usersOf(t, nil))
	cl.want([]string{"AUTH root root-token", "GET a"}, []string{"+OK", "(nil)"})
}

// TestScanShowsWhatMayBeRead: others' keys are not in it, and it ends.
func TestScanShowsWhatMayBeRead(t *testing.T) {
	c := newCluster(t, 1, 3)
	for i := range 300 {
		c.keys[fmt.Sprintf("%c/%d", "abc"[i%3], i)] = entry{value: []byte("v")}
	}
	c.setUsers(usersOf(t, map[string]string{"bob": "read:b/", "none": "jobs"}))
	_, addr := serve(t, Config{}, c.node("n1"))
	cl := dial(t, addr)
	cl.want([]string{"AUTH none none-token", "SCAN 0", "AUTH bob bob-token"}, []string{"+OK", "-NOPERM User none has no permissions to run the 'scan' command", "+OK"})
	var found []string
	cursor := "0"
	for range 1000 {
		cl.send("SCAN " + cursor + " COUNT 7")
		r, err := cl.r.ReadReply()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range r.Elems[1].Elems {
			found = append(found, string(k.Str))
		}
		if cursor = string(r.Elems[0].Str); cursor == "0" {
			break
		}
	}
	slices.Sort(found)
	found = slices.Compact(found)
	if cursor != "0" || len(found) != 100 || slices.ContainsFunc(found, func(k string) bool { return !strings.HasPrefix(k, "b/") }) {
		t.Fatalf("cursor %s, %d keys: %v", cursor, len(found), found)
	}
}

// TestJobRights: over which keys a job computes decides who may submit, see and cancel it.
func TestJobRights(t *testing.T) {
	c := newCluster(t, 1, 1)
	c.setUsers(usersOf(t, map[string]string{"bob": "read:b/ jobs", "ann": "read:", "eve": "read:e/ jobs"}))
	_, addr := serve(t, Config{}, c.node("n1"))
	bob, ann, eve, root := dial(t, addr), dial(t, addr), dial(t, addr), dial(t, addr)
	for name, cl := range map[string]*client{"bob": bob, "ann": ann, "eve": eve, "root": root} {
		cl.want([]string{"AUTH " + name + "-token"}, []string{"+OK"})
	}
	ann.want([]string{`JOB.SUBMIT {"prefix":"b/"}`}, []string{"-NOPERM User ann..."})
	bob.want([]string{`JOB.SUBMIT {"prefix":"b"}`, `JOB.SUBMIT {"prefix":"a"}`, `JOB.SUBMIT {}`, `JOB.SUBMIT {"prefix":"b/x"}`}, []string{"-NOPERM...", "-NOPERM...", "-NOPERM...", "job1"})
	c.mu.Lock()
	c.jobs["job1"] = `{"id":"job1","spec":{"prefix":"b/x"}}`
	c.jobs["job2"] = `{"id":"job2","spec":{"prefix":""}}`
	c.mu.Unlock()
	eve.want([]string{"JOB.STATUS job1", "JOB.RESULT job1", "JOB.CANCEL job1", "JOB.CANCEL job9", "JOB.LIST"},
		[]string{"-NOPERM No permissions to access a key", "-NOPERM...", "-NOPERM...", "-NOTFOUND...", "[]"})
	eve.want([]string{"JOB.DELETE job1", "JOB.DELETE job9", "JOB.RETRY job1", `JOB.EXPLAIN {"prefix":"b/"}`, `JOB.EXPLAIN {"prefix":"e/"}`},
		[]string{"-NOPERM...", "-NOTFOUND...", "-NOPERM...", "-NOPERM...", `{"spec":...`})
	ann.want([]string{"JOB.DELETE job1", "JOB.RETRY job1", "JOB.EXPLAIN {}"}, []string{"-NOPERM User ann...", "-NOPERM User ann...", "-NOPERM User ann..."})
	bob.want([]string{"JOB.STATUS job1", "JOB.STATUS job2", "JOB.LIST", "JOB.CANCEL job2", "JOB.CANCEL job1", "JOB.RETRY job2", "JOB.RETRY job1", "JOB.DELETE job2"},
		[]string{`{"id":"job1"...`, "-NOPERM...", `[{"id":"job1","spec":{"prefix":"b/x"}}]`, "-NOPERM...", "+OK", "-NOPERM...", "job1again", "-NOPERM..."})
	root.want([]string{"JOB.STATUS job2", "JOB.CANCEL job2"}, []string{`{"id":"job2"...`, "+OK"})
	bob.want([]string{"JOB.DELETE job1"}, []string{"+OK"})
	events := strings.Join(c.takeEvents(), "\n")
	if !strings.Contains(events, "bob job cancel [job1] <nil>") || !strings.Contains(events, "root job cancel [job2] <nil>") || !strings.Contains(events, "eve denied [job.cancel]") ||
		!strings.Contains(events, "bob job delete [job1] <nil>") || !strings.Contains(events, "eve denied [job.delete]") || !strings.Contains(events, "eve denied [job.retry]") || !strings.Contains(events, "eve denied [job.explain]") {
		t.Errorf("audited:\n%s", events)
	}
}

// TestStrangersHoldLittle: before AUTH a connection may send little, whatever it declares, and nothing behind AUTH is held to that.
func TestStrangersHoldLittle(t *testing.T) {
	c := newCluster(t, 1, 1)
	c.setUsers(usersOf(t, nil))
	srv, addr := serve(t, Config{AuthTimeout: 2 * time.Second, IdleAfter: 100 * time.Millisecond}, c.node("n1"))
	for what, sent := range map[string]string{
		"a large value":  "*2\r\n$4\r\nAUTH\r\n$60000000\r\n",
		"many arguments": "*1000000\r\n$4\r\nAUTH\r\n",
		"a long line":    strings.Repeat("x", 64<<10),
		"a long token":   "*2\r\n$4\r\nAUTH\r\n$9000\r\n" + strings.Repeat("x", 9000) + "\r\n",
	} {
		t.Run(what, func(t *testing.T) {
			cl := dial(t, addr)
			cl.nc.Write([]byte(sent))
			if got := cl.read(); !strings.HasPrefix(got, "-ERR Protocol error: ") {
				t.Fatal(got)
			}
		})
	}
	t.Run("a million commands", func(t *testing.T) { // one after the other: none is held
		cl := dial(t, addr)
		go cl.nc.Write(bytes.Repeat([]byte("*2\r\n$3\r\nGET\r\n$1\r\na\r\n"), 100_000))
		for range 100_000 {
			if got := cl.read(); got != "-"+errNoAuth {
				t.Fatal(got)
			}
		}
		until(t, "the bytes are given back", func() bool { return srv.Stats().Buffered == 0 }) // it counts after it has answered
	})
	t.Run("behind AUTH", func(t *testing.T) {
		cl := dial(t, addr)
		value := strings.Repeat("v", 1<<20)
		sent := resp.AppendCommandStrings(nil, "AUTH", "root", "root-token")
		sent = resp.AppendCommandStrings(sent, "SET", "k", value)
		sent = resp.AppendCommandStrings(sent, "STRLEN", "k")
		go cl.nc.Write(sent)
		for _, want := range []string{"+OK", "+OK", "1048576"} {
			if got := cl.read(); got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
	})
	t.Run("silence", func(t *testing.T) {
		stranger, root := dial(t, addr), dial(t, addr)
		root.want([]string{"AUTH root-token"}, []string{"+OK"})
		if _, err := stranger.r.ReadReply(); err == nil || isTimeout(err) {
			t.Fatalf("a silent stranger keeps his place: %v", err)
		}
		root.want([]string{"PING"}, []string{"+PONG"})
	})
	if n := srv.Stats().AuthFailed; n != 0 {
		t.Errorf("%d failed attempts counted", n)
	}
}
