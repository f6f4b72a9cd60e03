package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/sharding/access"
)

// told runs a verb on a node and returns which nodes have not heard of what it changed.
func told(t *testing.T, n *Node, words ...string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	raw, err := n.Admin(ctx, words)
	if err != nil {
		t.Fatalf("%v: %v", words, err)
	}
	var a usersChanged
	if err := json.Unmarshal(raw, &a); err != nil {
		t.Fatal(err)
	}
	return a.NotHeard
}

func hash(token string) string { return access.HashOf(token).String() }

// who is the name under which a node lets a login in, "" if it does not.
func who(n *Node, name, token string) string {
	if g := n.Users().Resolve(access.NewLogin(name, token)); g != nil {
		return g.Name()
	}
	return ""
}

// asks sends a request to a node's HTTP port, as a user if auth is not empty, and returns the status.
func asks(t *testing.T, n *Node, method, path, auth, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.Addrs().HTTP+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestUsersReachEveryNode: a change of users that was answered holds on every living node, on the one that joins later from its first
// moment, and on one without the others, after a restart too: it asks nobody.
func TestUsersReachEveryNode(t *testing.T) {
	t.Parallel()
	nodes, cfgs := three(t)
	for _, n := range nodes {
		if who(n, "", "") != access.Default || asks(t, n, "GET", "/v1/status", "", "") != 200 {
			t.Fatal("a cluster without users keeps somebody out")
		}
	}
	slow := 0
	for _, step := range []struct {
		words    string
		bob, old string // what lets bob in afterwards, and what does not
	}{
		{"user create root " + hash("root's") + " admin", "", "bob's"},
		{"user create bob " + hash("bob's") + " read:a/ write:b/", "bob's", "root's"},
		{"user disable bob", "", "bob's"},
		{"user enable bob", "bob's", "new"},
		{"user rotate bob " + hash("new"), "bob's", "newer"},
		{"user rotated bob", "new", "bob's"},
		{"user rotate bob " + hash("newer") + " now", "newer", "new"},
		{"user revoke bob read:a/", "newer", "new"},
	} {
		knownTo := func() error {
			for _, n := range nodes {
				if who(n, "root", "root's") != "root" {
					return fmt.Errorf("%s does not let root in", n.cfg.ID)
				}
				if step.bob != "" && who(n, "bob", step.bob) != "bob" || who(n, "bob", step.old) != "" {
					return fmt.Errorf("%s does not know of it", n.cfg.ID)
				}
			}
			return nil
		}
		if deaf := told(t, nodes[1], strings.Fields(step.words)...); len(deaf) > 0 { // a node that stood still for a second, which is said
			if slow++; slow > 1 {
				t.Fatalf("%s: %v have not heard of it, and not for the first time", step.words, deaf)
			}
			until(t, step.words, knownTo)
		} else if err := knownTo(); err != nil {
			t.Fatalf("%s: %v", step.words, err)
		}
	}
	g := nodes[0].Users().Resolve(access.NewLogin("bob", "newer"))
	if g.MayRead([]byte("a/x")) || !g.MayWrite([]byte("b/x")) {
		t.Fatal("bob has other rights than he was given")
	}

	// The map says that there are users, so that whoever joins lets nobody in before it knows them.
	until(t, "the map says so", func() error {
		if !nodes[0].Router().Map().Users {
			return errors.New("it does not")
		}
		return nil
	})
	cfg := testConfig(t, "n4")
	cfg.Join = []string{nodes[0].Addrs().Peer}
	n4 := open(t, cfg)
	if who(n4, "", "") != "" || asks(t, n4, "GET", "/v1/status", "", "") == 200 {
		t.Fatal("a node that has just joined lets strangers in")
	}
	until(t, "it hears of the users", func() error {
		if who(n4, "bob", "newer") != "bob" {
			return errors.New("it does not know bob")
		}
		return nil
	})

	// One alone: shard 0 has no leader, and the node checks all the same.
	for _, n := range []*Node{n4, nodes[1], nodes[2]} {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	alone := func(n *Node) {
		t.Helper()
		until(t, "shard 0 has no leader", func() error {
			if l := n.Leader(metaShard); l != "" {
				return fmt.Errorf("it is led by %s", l)
			}
			return nil
		})
		if who(n, "bob", "newer") != "bob" || who(n, "bob", "new") != "" || who(n, "", "") != "" {
			t.Fatal("a node that is alone does not know who is who")
		}
		if asks(t, n, "GET", "/v1/status", "", "") != 401 || asks(t, n, "GET", "/v1/status", "Bearer bob:newer", "") != 200 {
			t.Fatal("its HTTP port does not either")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := n.Admin(ctx, []string{"user", "disable", "bob"}); err == nil {
			t.Fatal("users were changed without a majority")
		}
	}
	alone(nodes[0])
	if err := nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(cfgs[0].DataDir, "users"))
	if err != nil {
		t.Fatal(err)
	}
	if u, err := access.Decode(raw); err != nil || u.Epoch != nodes[0].usersEpoch() {
		t.Fatalf("its file has epoch %d, %v", u.Epoch, err)
	}
	again := open(t, cfgs[0])
	alone(again)
}

// TestUsersOfADamagedFile: a node that cannot read whom it knew lets nobody in, until it is told.
func TestUsersOfADamagedFile(t *testing.T) {
	t.Parallel()
	nodes, cfgs := several(t, 1)
	told(t, nodes[0], "user", "create", "root", hash("root's"), "admin")
	path := filepath.Join(cfgs[0].DataDir, "users")
	until(t, "the users are in a file", func() error { _, err := os.Stat(path); return err })
	if err := nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw[:len(raw)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	n := &Node{dir: &dataDir{path: cfgs[0].DataDir}, log: slog.New(slog.DiscardHandler)}
	n.router.Store(sharding.NewRouter(sharding.Map{}))
	if n.loadUsers(); !n.Users().IsLocked() || who(n, "", "") != "" {
		t.Fatal("strangers are let in")
	}
	again := open(t, cfgs[0])
	until(t, "shard 0 tells who they are", func() error {
		if who(again, "root", "root's") != "root" {
			return errors.New("root is not known")
		}
		return nil
	})
	if who(again, "", "") != "" {
		t.Fatal("strangers are let in")
	}
}

// TestUsersNeedTheLevel: while an older node may be in the cluster, which would let everybody in, there are no users.
func TestUsersNeedTheLevel(t *testing.T) {
	n := &Node{cfg: Config{Now: time.Now}}
	n.router.Store(sharding.NewRouter(sharding.Map{Level: sharding.LevelUsers - 1}))
	_, err := n.Admin(t.Context(), []string{"user", "create", "root", hash("x"), "admin"})
	if err == nil || !strings.Contains(err.Error(), "abacus upgrade") {
		t.Fatal(err)
	}
}

// TestUserVerbs: what they refuse, and what a list of users tells.
func TestUserVerbs(t *testing.T) {
	t.Parallel()
	nodes, _ := several(t, 1)
	n := nodes[0]
	for _, tc := range []struct{ words, err string }{
		{"user create root secret admin", "64 lower-case hex digits"},
		{"user create root " + hash("r") + " exec:x", "want admin, jobs, read:PREFIX or write:PREFIX"},
		{"user create root " + hash("r") + " admin", ""},
		{"user create root " + hash("r") + " admin", ""},
		{"user create root " + hash("other") + " admin", "user root exists"},
		{"user create bob " + hash("r"), "one token twice"},
		{"user create bob " + hash("b") + " read:a write:b/ jobs", ""},
		{"user grant eve admin", "no such user"},
		{"user delete root", "an admin who is not disabled would not be left"},
		{"user rotate bob " + hash("c") + " later", "want now"},
		{"user bless bob", "want one of"},
		{"user delete bob", ""},
		{"user delete bob", "no such user"},
		{"user off", ""},
		{"user create bob " + hash("b"), ""},
		{"user create root " + hash("r") + " admin", ""},
	} {
		_, err := n.Admin(t.Context(), strings.Fields(tc.words))
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %v, want %q", tc.words, err, tc.err)
		}
	}
	list, err := n.Admin(t.Context(), []string{"user", "list"})
	if err != nil || strings.Contains(string(list), hash("r")) || !strings.Contains(string(list), hash("r")[:8]) || !strings.Contains(string(list), `"name":"root","admin":true`) {
		t.Fatalf("%s, %v", list, err)
	}
	told(t, n, "user", "off")
	if who(n, "", "") != access.Default {
		t.Fatal("users are off, and somebody is kept out")
	}
}

// TestHTTPRights: who may what over HTTP, as a table; and that what nobody has thought of is an administrator's.
func TestHTTPRights(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	cfg.AuditLog = filepath.Join(t.TempDir(), "audit.log")
	n := open(t, cfg)
	untilHealthy(t, n)
	put(t, n, "b/1", "x")
	told(t, n, "user", "create", "root", hash("r"), "admin")
	told(t, n, "user", "create", "bob", hash("b"), "read:b/", "write:w/", "jobs")
	told(t, n, "user", "create", "none", hash("n"))
	for _, tc := range []struct {
		request                   string
		stranger, none, bob, root int
	}{
		{"GET /livez", 200, 200, 200, 200},
		{"GET /readyz", 200, 200, 200, 200},
		{"GET /metrics", 401, 200, 200, 200},
		{"GET /", 401, 200, 200, 200},
		{"GET /v1/status", 401, 200, 200, 200},
		{"GET /v1/kv/b/1", 401, 403, 200, 200},
		{"GET /v1/kv/b%2F1", 401, 403, 200, 200},
		{"HEAD /v1/kv/b/1", 401, 403, 200, 200},
		{"GET /v1/kv/c/1", 401, 403, 403, 404},
		{"GET /v1/kv/", 401, 403, 403, 400},
		{"PUT /v1/kv/b/1", 401, 403, 403, 204},
		{"PUT /v1/kv/w/1", 401, 403, 204, 204},
		{"GET /v1/kv/w/../b/1", 401, 403, 404, 404}, // a key is not a path
		{"DELETE /v1/kv/b/none", 401, 403, 403, 404},
		{"PATCH /v1/kv/b/1", 401, 403, 403, 405},
		{"POST /v1/sessions", 401, 403, 200, 200},
		{"GET /v1/jobs", 401, 403, 200, 200},
		{"GET /v1/jobs/none", 401, 403, 404, 404},
		{`POST /v1/jobs {"prefix":"b/"}`, 401, 403, 202, 202},
		{`POST /v1/jobs {"prefix":"b"}`, 401, 403, 403, 202},
		{`POST /v1/jobs {"prefix":`, 401, 403, 400, 400},
		{"POST /v1/admin/rebalance/plan", 401, 403, 403, 200},
		{"POST /v1/admin/user/grant/none/read:x%2Fy", 401, 403, 403, 200},
		{"POST /v1/admin/user/revoke/none/read:x%2Fy", 401, 403, 403, 200},
		{"GET /v1/shards/0/replica", 401, 403, 403, 200},
		{"POST /v1/shards/0/leader?node=n9", 401, 403, 403, 404},
		{"GET /debug/pprof/", 401, 403, 403, 404},
		{"GET /v2/new", 401, 403, 403, 404},
	} {
		request, body, _ := strings.Cut(tc.request, " {")
		if body != "" {
			body = "{" + body
		}
		method, path, _ := strings.Cut(request, " ")
		for auth, want := range map[string]int{"": tc.stranger, "Bearer n": tc.none, "Bearer bob:b": tc.bob, "bearer r": tc.root, "Basic cm9vdDpy": tc.root} {
			if got := asks(t, n, method, path, auth, body); got != want {
				t.Errorf("%s as %q: %d, want %d", tc.request, auth, got, want)
			}
		}
	}
	for _, auth := range []string{"Bearer x", "Bearer root:b", "Bearer", "Basic x", "Basic Ym9iOnI=", "Bearer eve:r", "Bearer " + hash("r")} {
		if got := asks(t, n, "GET", "/v1/status", auth, ""); got != 401 {
			t.Errorf("%q: %d", auth, got)
		}
	}
	known := n.Users()
	n.users.Store(access.Locked) // as after it has joined
	for path, want := range map[string]int{"/livez": 200, "/readyz": 503, "/v1/status": 503} {
		if got := asks(t, n, "GET", path, "Bearer r", ""); got != want {
			t.Errorf("%s while the users are not known: %d, want %d", path, got, want)
		}
	}
	n.users.Store(known)
	if err := n.Close(); err != nil { // writes what is left of the audit log
		t.Fatal(err)
	}
	st, err := os.Stat(cfg.AuditLog)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	lines := auditLines(t, cfg.AuditLog)
	has := func(want map[string]string) bool {
		return slices.ContainsFunc(lines, func(l map[string]any) bool {
			for k, v := range want {
				if fmt.Sprint(l[k]) != v {
					return false
				}
			}
			return l["time"] != nil && l["remote"] != "" && l["node"] == "n1"
		})
	}
	for _, want := range []map[string]string{
		{"user": "root", "verb": "admin", "args": "[rebalance plan]", "outcome": "done", "via": "http"},
		{"user": "root", "verb": "admin", "args": "[user grant none read:x/y]", "outcome": "done"},
		{"user": "bob", "verb": "denied", "args": "[POST /v1/admin/rebalance/plan]", "outcome": "failed"},
		{"user": "eve", "verb": "auth", "outcome": "failed"},
	} {
		if !has(want) {
			t.Errorf("the audit log has no line of %v", want)
		}
	}
}

func auditLines(t *testing.T, path string) (lines []map[string]any) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var l map[string]any
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			t.Fatalf("%s: %v", s.Text(), err)
		}
		lines = append(lines, l)
	}
	return lines
}

// TestAuditFileIsBounded: a full file becomes the old one, and each line is whole.
func TestAuditFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	w := &auditFile{path: path, max: 1000}
	for i := range 100 {
		if err := w.write(fmt.Appendf(nil, `{"i":%d,"pad":%q}`+"\n", i, strings.Repeat("x", 80))); err != nil {
			t.Fatal(err)
		}
	}
	w.close()
	last := auditLines(t, path)
	before := auditLines(t, path+".1")
	if st, err := os.Stat(path); err != nil || st.Size() > 1000 || fmt.Sprint(last[len(last)-1]["i"]) != "99" {
		t.Fatal(st, err)
	}
	if all := append(before, last...); fmt.Sprint(all[0]["i"]) != fmt.Sprint(100-len(all)) {
		t.Fatalf("lines are missing: the first of %d is %v", len(all), all[0]["i"])
	}
}

// TestAuditOfAFullDisk: nobody waits and nothing stops, each line is in the node's log, and what the file has not is counted.
func TestAuditOfAFullDisk(t *testing.T) {
	var log strings.Builder
	a, err := openAudit("/dev/full", "n1", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		a.record(access.Event{User: "root", Verb: "admin", Args: []string{"rebalance", "plan"}})
	}
	a.close()
	a.record(access.Event{User: "late", Verb: "admin"})
	if a.lost.Load() != 21 || strings.Count(log.String(), "msg=audit user=root") != 20 || strings.Count(log.String(), "cannot write the audit log") != 1 || !strings.Contains(log.String(), "user=late") {
		t.Fatalf("%d lost:\n%s", a.lost.Load(), log.String())
	}
	if _, err := openAudit(filepath.Join(t.TempDir(), "no", "such", "directory"), "n1", nil); err == nil || !strings.Contains(err.Error(), "--audit-log") {
		t.Fatal(err)
	}
}

// TestAuditOfAFlood: what strangers can cause is bounded, and what was left out is counted; what administrators do is not left out.
func TestAuditOfAFlood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a, err := openAudit(path, "n1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for range 10_000 {
		a.record(access.Event{Verb: access.VerbAuth, Err: errors.New("no")})
	}
	a.record(access.Event{User: "root", Verb: "admin"})
	a.minor.SetBurst(10_000) // as if time had passed
	a.minor.SetLimit(1e9)
	until(t, "lines are written again", func() error {
		if a.record(access.Event{Verb: access.VerbAuth}); a.suppressed.Load() > 0 {
			return errors.New("they are not")
		}
		return nil
	})
	a.close()
	lines := auditLines(t, path)
	if len(lines) > 300 || !slices.ContainsFunc(lines, func(l map[string]any) bool { return l["user"] == "root" }) ||
		!slices.ContainsFunc(lines, func(l map[string]any) bool { n, _ := l["suppressed"].(float64); return n > 9000 }) {
		t.Fatalf("%d lines, the last is %v", len(lines), lines[len(lines)-1])
	}
}

// TestNoAuthIsForThisMachine: a node that checks nobody listens for nobody else.
func TestNoAuthIsForThisMachine(t *testing.T) {
	cfg := DefaultConfig()
	cfg.NoAuth, cfg.Insecure = true, true
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	cfg.PeerAddr = "10.0.0.1:7501" // of peers alone
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	cfg.ClientAddr, cfg.HTTPAddr, cfg.Advertise.Cluster = "10.0.0.1:7401", "0.0.0.0:7601", "10.0.0.1:7701"
	err := cfg.Validate()
	for _, flag := range []string{"--client-addr", "--http-addr", "--cluster-addr"} {
		if err == nil || !strings.Contains(err.Error(), "--no-auth lets everybody in, so "+flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	n := &Node{cfg: Config{NoAuth: true}}
	n.users.Store(access.Locked)
	if n.Users().On() {
		t.Error("--no-auth keeps somebody out")
	}
}

// TestHTTPJobRights: over which keys a job computes decides over HTTP, too, who may see it and do something to it.
func TestHTTPJobRights(t *testing.T) {
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	n := open(t, cfg)
	untilHealthy(t, n)
	told(t, n, "user", "create", "root", hash("r"), "admin")
	told(t, n, "user", "create", "bob", hash("b"), "read:b/", "jobs")
	for _, tc := range []struct {
		request   string
		bob, root int
	}{
		{`POST /v1/jobs {"id":"hers","prefix":"c/"}`, 403, 202},
		{`POST /v1/jobs {"id":"his","prefix":"b/"}`, 202, 202},
		{`POST /v1/jobs?explain=1 {"prefix":"b/"}`, 200, 200},
		{`POST /v1/jobs?explain=1 {"prefix":"b"}`, 403, 200},
		{"GET /v1/jobs/hers/tasks", 403, 200},
		{"GET /v1/jobs/hers/events", 403, 200},
		{"GET /v1/jobs/his/events", 200, 200},
		{"GET /v1/jobs/hers/result?wait=20s", 403, 200}, // it has ended then
		{"GET /v1/jobs/his/result?wait=20s", 200, 200},
		{"GET /v1/jobs/his/tasks", 200, 200},
		{"POST /v1/jobs/hers/retry?id=a", 403, 202},
		{"POST /v1/jobs/his/retry?id=b", 202, 202},
		{"POST /v1/jobs/hers/cancel", 403, 409}, // it has ended
		{"DELETE /v1/jobs/hers", 403, 409},
		{"DELETE /v1/jobs/his", 409, 409},
		{"DELETE /v1/jobs/none/record", 404, 404},
		{"DELETE /v1/jobs/hers/record", 403, 204},
		{"DELETE /v1/jobs/his/record", 204, 404},
	} {
		request, body, _ := strings.Cut(tc.request, " {")
		if body != "" {
			body = "{" + body
		}
		method, path, _ := strings.Cut(request, " ")
		for _, as := range []struct {
			auth string
			want int
		}{{"Bearer b", tc.bob}, {"Bearer r", tc.root}} {
			if got := asks(t, n, method, path, as.auth, body); got != as.want {
				t.Errorf("%s as %q: %d, want %d", tc.request, as.auth, got, as.want)
			}
		}
	}
}
