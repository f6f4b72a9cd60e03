//go:build tools

package chaos_test

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
)

// TestToolsUsers shows users as an administrator and a program meet them: turned on while clients write, without an error to those that had
// their token before; rights, rotation and revocation by the command line, redis-cli, go-redis and HTTP; a node that was killed meanwhile; the way
// back in when all tokens are lost; and that the audit log tells all of it and no token.
func TestToolsUsers(t *testing.T) {
	dir := t.TempDir()
	c := startCluster(t, proc.Config{Shards: 4, NodeArgs: map[int][]string{1: {"--audit-log", filepath.Join(dir, "audit")}}})
	t.Setenv("ABACUS_TOKEN", "")
	var tokens []string
	// as runs abacus with a token, from a file as people would.
	as := func(token string, n *proc.Node, args ...string) result {
		t.Helper()
		file := filepath.Join(dir, "token")
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		return cli(t, n, append([]string{"--token-file", file}, args...)...)
	}
	made := func(r result) string {
		t.Helper()
		token := strings.TrimSpace(r.must(t))
		tokens = append(tokens, token)
		return token
	}
	denied := func(r result, want string) {
		t.Helper()
		if r.code != 7 || !strings.Contains(r.stderr, want) {
			t.Errorf("exit code %d, want 7: %s, want %q", r.code, r.stderr, want)
		}
	}
	// unknown runs abacus without a token.
	unknown := func(n *proc.Node, args ...string) result {
		t.Helper()
		return command(t, "", "env", append([]string{"ABACUS_TOKEN=", abacus, "--addr", n.Addrs().Client}, args...)...)
	}
	rc := func(n *proc.Node, args ...string) string {
		t.Helper()
		r := command(t, "", "redis-cli", append([]string{"-p", port(n.Addrs().Client), "--no-auth-warning"}, args...)...)
		return strings.TrimSpace(r.stdout + r.stderr)
	}

	// A program has its token and writes before anything is checked, and goes on when it is: no error, no connection lost.
	shop := made(cli(t, c.Node(1), "user", "create", "shop", "--write", "shop/", "--read", "price/", "--jobs"))
	cl, err := client.Open(client.Config{Addrs: c.ClientAddrs(), Timeout: 20 * time.Second, Token: shop})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	l := load.Start(cl, load.Config{Prefix: "shop/load/", Writers: 4})
	t.Cleanup(l.Stop)
	progress(t, l, "while nothing is checked", 200, 30*time.Second)
	cli(t, c.Node(3), "put", "price/a", "7").must(t)
	l.Tally(true)
	admin := made(cli(t, c.Node(1), "user", "create", "admin", "--admin"))
	denied(cli(t, c.Node(3), "put", "price/a", "8"), "ABACUS_TOKEN")
	t.Setenv("ABACUS_TOKEN", admin) // for the status of nodes
	progress(t, l, "as the user shop", 200, 30*time.Second)
	within(t, l)
	l.Stop()
	as(shop, c.Node(2), "put", "shop/x", "1").must(t)
	if got := as(shop, c.Node(3), "get", "price/a").must(t); got != "7" {
		t.Errorf("price/a is %q", got)
	}
	denied(as(shop, c.Node(3), "put", "price/a", "8"), "user grant")
	denied(as(shop, c.Node(1), "get", "other"), "NOPERM")
	denied(as(shop, c.Node(1), "user", "list"), "abacus.admin")
	denied(as("wrong", c.Node(1), "get", "shop/x"), "WRONGPASS")
	as(admin, c.Node(1), "put", "other", "1").must(t)
	if got := as(shop, c.Node(1), "scan").must(t); strings.Contains(got, "other") || !strings.Contains(got, "shop/x") || !strings.Contains(got, "price/a") {
		t.Errorf("scan shows %.300s", got)
	}
	as(shop, c.Node(1), "job", "run", "--prefix", "shop/", "--reduce", "count").must(t)
	denied(as(shop, c.Node(1), "job", "run", "--reduce", "count"), "NOPERM")

	// redis-cli and go-redis.
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"GET", "shop/x"}, "NOAUTH Authentication required."},
		{[]string{"PING"}, "PONG"},
		{[]string{"-a", shop, "GET", "shop/x"}, "1"},
		{[]string{"--user", "shop", "-a", shop, "GET", "shop/x"}, "1"},
		{[]string{"-3", "--user", "shop", "-a", shop, "GET", "shop/x"}, "1"},
		{[]string{"--user", "shop", "-a", shop, "ACL", "WHOAMI"}, "shop"},
		{[]string{"--user", "shop", "-a", shop, "SET", "price/a", "1"}, "NOPERM No permissions to access a key"},
		{[]string{"--user", "shop", "-a", "wrong", "PING"}, "WRONGPASS"},
	} {
		if got := rc(c.Node(2), tc.args...); !strings.Contains(got, tc.want) {
			t.Errorf("redis-cli %s: %q, want %q", tc.args[len(tc.args)-2:], got, tc.want)
		}
	}
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{c.Node(1).Addrs().Cluster}, Username: "shop", Password: shop})
	defer rdb.Close()
	if err := rdb.Set(t.Context(), "shop/go", "1", 0).Err(); err != nil {
		t.Error(err)
	}
	if err := rdb.Set(t.Context(), "price/go", "1", 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
		t.Error(err)
	}

	// A node that is killed goes by the users in its file when it is back, and hears of what was changed meanwhile.
	if err := c.Node(3).Kill(); err != nil {
		t.Fatal(err)
	}
	r := as(admin, c.Node(1), "user", "rotate", "shop")
	newer := made(r)
	if !strings.Contains(r.stderr, "n3") {
		t.Errorf("n3 is dead, and is not named: %s", r.stderr)
	}
	as(shop, c.Node(2), "get", "shop/x").must(t)
	as(newer, c.Node(2), "get", "shop/x").must(t)
	as(admin, c.Node(2), "user", "rotate", "shop", "--end").must(t)
	denied(as(shop, c.Node(2), "get", "shop/x"), "WRONGPASS")
	if err := c.Node(3).Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	denied(unknown(c.Node(3), "get", "shop/x"), "NOAUTH")
	eventually(t, 10*time.Second, "n3 hears of the rotation", func() bool { return as(newer, c.Node(3), "get", "shop/x").code == 0 })
	denied(as(shop, c.Node(3), "get", "shop/x"), "WRONGPASS")

	// What is taken from a user is taken from its open connections, too.
	if err := rdb.Get(t.Context(), "shop/go").Err(); err == nil || !strings.HasPrefix(err.Error(), "NOAUTH") && !strings.HasPrefix(err.Error(), "WRONGPASS") {
		t.Errorf("with a token that was rotated away: %v", err)
	}
	as(admin, c.Node(3), "user", "disable", "shop").must(t)
	for n := 1; n <= 3; n++ {
		denied(as(newer, c.Node(n), "get", "shop/x"), "WRONGPASS")
	}

	// All tokens of admins are lost: one node is started so that it checks nobody.
	if err := c.Node(2).Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	c.UseArgs([]string{"--no-auth"})
	if err := c.Node(2).Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	eventually(t, 10*time.Second, "the status says so", func() bool { return strings.Contains(unknown(c.Node(2), "status").stdout, "--no-auth") })
	found := made(unknown(c.Node(2), "user", "rotate", "admin", "--now"))
	denied(as(admin, c.Node(1), "user", "list"), "WRONGPASS")
	t.Setenv("ABACUS_TOKEN", found)
	as(found, c.Node(1), "user", "delete", "shop").must(t)

	// The audit log of n1.
	f, err := os.Open(filepath.Join(dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := map[string]bool{}
	for s := bufio.NewScanner(f); s.Scan(); {
		var line struct {
			User, Remote, Verb, Outcome string
			Args                        []string
		}
		if err := json.Unmarshal(s.Bytes(), &line); err != nil || line.Remote == "" {
			t.Fatalf("%s: %v", s.Text(), err)
		}
		seen[line.User+" "+strings.Join(append([]string{line.Verb}, line.Args[:min(len(line.Args), 3)]...), " ")+" "+line.Outcome] = true
		for _, token := range tokens {
			if strings.Contains(s.Text(), token) {
				t.Errorf("a token is in the audit log: %s", s.Text())
			}
		}
	}
	for _, want := range []string{"default admin user create admin done", "admin admin user rotate shop done", "shop denied job.submit failed", "shop denied abacus.admin failed", "'default' auth failed", "admin admin user delete shop done"} {
		if !seen[want] {
			t.Errorf("the audit log has no %q, but %v", want, seen)
		}
	}
	for n := 1; n <= 3; n++ { // nor in what is on the disks, logs included
		for _, token := range tokens {
			if out := command(t, "", "grep", "-rlF", token, c.Dir()); out.stdout != "" {
				t.Errorf("a token is in %s", out.stdout)
			}
		}
	}
}
