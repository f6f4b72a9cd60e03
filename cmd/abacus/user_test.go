package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/abacusdb/abacus/client/clienttest"
)

// TestUserCommands: the words that go to the cluster, what is printed, and that a token is on stdout alone and its hash on the wire alone.
func TestUserCommands(t *testing.T) {
	t.Setenv("ABACUS_TOKEN", "")
	c := clienttest.New(t, 1)
	var mu sync.Mutex
	var asked []string
	answer := `{"epoch":3,"on":true,"not_heard":[]}`
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "ABACUS.ADMIN" {
			return clienttest.Serve
		}
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, strings.Join(r.Args[1:], " "))
		switch {
		case r.Args[2] == "list":
			r.Reply.BulkString(`[{"name":"bob","admin":false,"jobs":true,"disabled":true,"rights":[{"prefix":""},{"prefix":"a b/","write":true}],"tokens":[{"id":"01234567","created":"2026-01-02T03:04:05Z"}]},{"name":"root","admin":true,"jobs":false,"disabled":false,"rights":[],"tokens":[{"id":"89abcdef","created":"2026-01-02T03:04:05Z"}]}]`)
		default:
			r.Reply.BulkString(answer)
		}
		return clienttest.Done
	})
	hashed := func(token string) string {
		sum := sha256.Sum256([]byte(strings.TrimSpace(token)))
		return hex.EncodeToString(sum[:])
	}
	last := func() string {
		mu.Lock()
		defer mu.Unlock()
		return asked[len(asked)-1]
	}
	r := abacus(t, c, "", "user", "create", "shop", "--write", "cart/", "--read", "", "--read", "price/", "--jobs")
	if want := "user create shop " + hashed(r.out) + " jobs read: read:price/ write:cart/"; r.code != 0 || last() != want || strings.Count(r.out, "\n") != 1 || strings.Contains(r.info, strings.TrimSpace(r.out)) ||
		!strings.Contains(r.info, "cannot be asked for again") || !strings.Contains(r.info, "ABACUS_TOKEN") {
		t.Fatalf("%+v, asked %q", r, last())
	}
	r = abacus(t, c, "", "user", "create", "root", "--admin", "-o", "json")
	var made struct {
		Token string `json:"token"`
		Epoch int    `json:"epoch"`
	}
	if err := json.Unmarshal([]byte(r.out), &made); err != nil || made.Epoch != 3 || last() != "user create root "+hashed(made.Token)+" admin" {
		t.Fatalf("%+v, %v", r, err)
	}
	r = abacus(t, c, "", "user", "rotate", "shop", "--now")
	if last() != "user rotate shop "+hashed(r.out)+" now" {
		t.Fatal(last())
	}
	answer = `{"epoch":3,"on":false,"not_heard":[]}`
	if r := abacus(t, c, "", "user", "create", "early"); !strings.Contains(r.info, "nothing is checked yet") {
		t.Errorf("%+v", r)
	}
	answer = `{"epoch":4,"on":true,"not_heard":["n2","n3"]}`
	for _, tc := range []struct{ args, asked string }{
		{"user grant shop --admin", "user grant shop admin"},
		{"user revoke shop --write cart/ --jobs", "user revoke shop jobs write:cart/"},
		{"user rotate shop --end", "user rotated shop"},
		{"user disable shop", "user disable shop"},
		{"user enable shop", "user enable shop"},
		{"user delete shop", "user delete shop"},
		{"user off --yes", "user off"},
	} {
		r := abacus(t, c, "", strings.Fields(tc.args)...)
		if r.code != 0 || last() != tc.asked || !strings.Contains(r.info, "not heard of it have: n2, n3") {
			t.Errorf("%s: %+v, asked %q", tc.args, r, last())
		}
	}
	check(t, c, "USER  STATE     MAY         READ  WRITE   TOKENS\nbob   DISABLED  run jobs    ''    'a b/'  1\nroot  enabled   everything  -     -       1\n", "", 0, "user", "list")
	if r := abacus(t, c, "", "user", "show", "bob"); r.code != 0 || !strings.Contains(r.out, "01234567…") || !strings.Contains(r.out, "'a b/'") {
		t.Errorf("%+v", r)
	}
	check(t, c, "", "there is no user eve", exitNotFound, "user", "show", "eve")
	check(t, c, "", "of what?", exitUsage, "user", "grant", "bob")
	check(t, c, "", "say --yes", exitUsage, "user", "off")
	check(t, c, "", "give one of them", exitUsage, "user", "rotate", "bob", "--now", "--end")
}

// TestTokens: where the token comes from, and what is said when it is refused.
func TestTokens(t *testing.T) {
	t.Setenv("ABACUS_TOKEN", "")
	c := clienttest.New(t, 1)
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		switch strings.Join(r.Args, " ") {
		case "AUTH default good", "AUTH bob good":
			r.Reply.SimpleString("OK")
		case "GET secret":
			r.Reply.Error("NOPERM No permissions to access a key")
		case "GET closed", "ABACUS.STATUS":
			r.Reply.Error("NOAUTH Authentication required.")
		case "PING":
			r.Reply.SimpleString("PONG")
		case "JOB.LIST", "ABACUS.ADMIN upgrade":
			r.Reply.Error("NOPERM User bob has no permissions to run the '" + strings.ToLower(r.Args[0]) + "' command")
		default:
			if r.Args[0] == "AUTH" {
				r.Reply.Error("WRONGPASS invalid username-password pair or user is disabled.")
				break
			}
			return clienttest.Serve
		}
		return clienttest.Done
	})
	c.Put("k", "v")
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check(t, c, "", "put the token of one into ABACUS_TOKEN", exitDenied, "get", "closed")
	check(t, c, "it answers\n", "", 0, "ping") // a health check has no token
	write("good\n")
	check(t, c, "v", "", 0, "get", "k", "--token-file", file)
	check(t, c, "v", "", 0, "get", "k", "--token-file", file, "--user", "bob")
	check(t, c, "", "not one of user eve", exitDenied, "get", "k", "--token-file", file, "--user", "eve")
	check(t, c, "", "user grant NAME --read PREFIX or --write PREFIX", exitDenied, "get", "secret", "--token-file", file)
	check(t, c, "", "user grant NAME --jobs", exitDenied, "job", "list", "--token-file", file)
	check(t, c, "", "only an admin may do that", exitDenied, "upgrade", "--token-file", file)
	check(t, c, "", "--user bob without a token", exitUsage, "get", "k", "--user", "bob")
	for _, bad := range []string{"", "\n", "two words", strings.Repeat("x", 5000)} {
		write(bad)
		if r := abacus(t, c, "", "get", "k", "--token-file", file); r.code != exitUsage {
			t.Errorf("%.20q: %+v", bad, r)
		}
	}
	check(t, c, "", "no such file", exitUsage, "get", "k", "--token-file", file+"s")
	t.Setenv("ABACUS_TOKEN", "good")
	check(t, c, "v", "", 0, "get", "k")
	t.Setenv("ABACUS_TOKEN", "bad")
	check(t, c, "", "the token in ABACUS_TOKEN is not one of a user", exitDenied, "get", "k")
	t.Setenv("ABACUS_USER", "bob")
	check(t, c, "", "not one of user bob", exitDenied, "get", "k")
}
