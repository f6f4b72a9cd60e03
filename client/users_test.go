package client_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
)

// TestAuthenticates: each connection says who it is before anything else, and a token that the cluster does not know is an error at
// once, not a cluster that is not available.
func TestAuthenticates(t *testing.T) {
	c := clienttest.New(t, 3)
	var early atomic.Int32
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "AUTH" {
			return clienttest.Serve
		}
		switch strings.Join(r.Args[1:], " ") {
		case "bob good", "default good":
			early.Add(1)
			r.Reply.SimpleString("OK")
		case "default early":
			if early.Add(1) > 3 {
				r.Reply.SimpleString("OK")
			} else {
				r.Reply.Error("LOADING this node has not heard who the users of the cluster are yet")
			}
		default:
			r.Reply.Error("WRONGPASS invalid username-password pair or user is disabled.")
		}
		return clienttest.Done
	})
	with := func(user, token string) *client.Client {
		t.Helper()
		cl, err := client.Open(client.Config{Addrs: c.Addrs(), User: user, Token: token, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cl.Close() })
		return cl
	}
	for _, user := range []string{"", "bob"} {
		if _, err := with(user, "good").Do(t.Context(), "SET", "a", "1"); err != nil {
			t.Fatal(err)
		}
	}
	if early.Swap(0) == 0 {
		t.Fatal("nobody has authenticated")
	}
	begun := time.Now()
	_, err := with("eve", "good").Do(t.Context(), "SET", "a", "1")
	if !errors.Is(err, client.ErrAuth) || errors.Is(err, client.ErrUnavailable) || time.Since(begun) > 2*time.Second {
		t.Fatalf("after %v: %v", time.Since(begun), err)
	}
	if _, err := with("", "early").Do(t.Context(), "SET", "a", "1"); err != nil || early.Load() < 4 { // a node that has just joined
		t.Fatal(err)
	}
	if _, err := client.Open(client.Config{Addrs: c.Addrs(), User: "bob"}); err == nil || !strings.Contains(err.Error(), "without a Token") {
		t.Fatal(err)
	}
	if _, err := with("", "good").Do(t.Context(), "AUTH", "eve", "x"); err == nil || !strings.Contains(err.Error(), "shared") {
		t.Fatal(err)
	}
}

// TestDenied: what the cluster does not let a user do is told as such and not tried again, but if an earlier attempt of a write may
// have been carried out, nobody says that it was not.
func TestDenied(t *testing.T) {
	c := clienttest.New(t, 1)
	for _, tc := range []struct {
		reply string
		lose  bool
		want  error
	}{
		{"NOPERM No permissions to access a key", false, client.ErrNoPermission},
		{"NOAUTH Authentication required.", false, client.ErrAuth},
		{"NOPERM No permissions to access a key", true, client.ErrUncertain},
		{"NOAUTH Authentication required.", true, client.ErrUncertain},
	} {
		var sets atomic.Int32
		c.Hook(func(r *clienttest.Request) clienttest.Fate {
			if r.Args[0] != "SET" {
				return clienttest.Serve
			}
			if sets.Add(1) == 1 && tc.lose {
				return clienttest.Lose
			}
			r.Reply.Error(tc.reply)
			return clienttest.Done
		})
		cl, err := client.Open(client.Config{Addrs: c.Addrs(), Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		_, err = cl.Do(t.Context(), "SET", "a", "1")
		cl.Close()
		want := int32(1)
		if tc.lose {
			want = 2
		}
		if !errors.Is(err, tc.want) || sets.Load() != want {
			t.Errorf("%s, lost before: %v: %v after %d attempts", tc.reply, tc.lose, err, sets.Load())
		}
	}
}

// TestNewToken: its hash is its SHA-256.
func TestNewToken(t *testing.T) {
	token, hash := client.NewToken()
	sum := sha256.Sum256([]byte(token))
	if hash != hex.EncodeToString(sum[:]) || len(token) < 43 {
		t.Fatal(token, hash)
	}
}

// TestUsersAPI: the words that go to the cluster, and what comes back.
func TestUsersAPI(t *testing.T) {
	c := clienttest.New(t, 1)
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		switch strings.Join(r.Args, " ") {
		case "ABACUS.ADMIN user list":
			r.Reply.BulkString(`[{"name":"bob","admin":false,"jobs":true,"disabled":false,"rights":[{"prefix":"a","write":true}],"tokens":[{"id":"01234567","created":"2026-01-02T03:04:05Z"}]}]`)
		case "ABACUS.ADMIN user disable bob":
			r.Reply.BulkString(`{"epoch":7,"not_heard":["n3"]}`)
		default:
			return clienttest.Serve
		}
		return clienttest.Done
	})
	cl, err := client.Open(client.Config{Addrs: c.Addrs()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	users, err := cl.Users(context.Background())
	if err != nil || len(users) != 1 || !users[0].Jobs || users[0].Rights[0] != (client.Right{Prefix: "a", Write: true}) || users[0].Tokens[0].Created.Year() != 2026 {
		t.Fatal(users, err)
	}
	change, err := cl.ChangeUsers(context.Background(), "disable", "bob")
	if err != nil || change.Epoch != 7 || change.NotHeard[0] != "n3" {
		t.Fatal(change, err)
	}
}
