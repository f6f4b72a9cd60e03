package access

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func rights(t *testing.T, words ...string) Rights {
	t.Helper()
	r, err := ParseRights(words)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// made is a list with an admin and a user of these rights, whose token is "t".
func made(t *testing.T, words ...string) *Users {
	t.Helper()
	u := must(t)(new(Users).Create("root", Token{Hash: HashOf("root's")}, Rights{Admin: true}))
	return must(t)(u.Create("bob", Token{Hash: HashOf("t")}, rights(t, words...)))
}

func must(t *testing.T) func(*Users, bool, error) *Users {
	t.Helper()
	return func(u *Users, changed bool, err error) *Users {
		t.Helper()
		if err != nil || !changed {
			t.Fatalf("changed %v, %v", changed, err)
		}
		return u
	}
}

// TestGrant: what rights allow, as a table.
func TestGrant(t *testing.T) {
	for _, tc := range []struct {
		rights, key string
		read, write bool
	}{
		{"", "a", false, false},
		{"read:app/", "app/x", true, false},
		{"read:app/", "app/", true, false},
		{"read:app/", "app", false, false},
		{"read:app/", "App/x", false, false},
		{"read:app/", "", false, false},
		{"write:app/", "app/x", true, true},
		{"write:app/", "apq/x", false, false},
		{"read: write:a", "b", true, false},
		{"read: write:a", "ab", true, true},
		{"read:", "\xff\x00", true, false},
		{"write:", "", true, true},
		{"read:ab write:a", "abc", true, true},
		{"read:a write:ab", "ac", true, false},
		{"jobs", "a", false, false},
		{"admin", "anything", true, true},
	} {
		t.Run(tc.rights+"|"+tc.key, func(t *testing.T) {
			g := made(t, strings.Fields(tc.rights)...).Resolve(NewLogin("bob", "t"))
			if g.MayRead([]byte(tc.key)) != tc.read || g.MayWrite([]byte(tc.key)) != tc.write {
				t.Fatalf("read %v, write %v", g.MayRead([]byte(tc.key)), g.MayWrite([]byte(tc.key)))
			}
		})
	}
	g := made(t, "jobs", "read:a").Resolve(NewLogin("", "t"))
	if !g.Jobs() || g.Admin() || !g.MayReadSome() || g.MayWriteSome() || g.MayReadPrefix("") || !g.MayReadPrefix("ab") {
		t.Fatalf("%+v", g)
	}
}

// TestResolve: who is let in with what.
func TestResolve(t *testing.T) {
	u := made(t, "read:")
	disabled := must(t)(u.Disable("bob", true))
	rotated := must(t)(u.Rotate("bob", Token{Hash: HashOf("t2")}, false))
	for _, tc := range []struct {
		what        string
		u           *Users
		name, token string
		want        string // the user's name, "" for nobody
	}{
		{"name and token", u, "bob", "t", "bob"},
		{"token alone", u, "", "t", "bob"},
		{"token alone, as libraries say it", u, Default, "t", "bob"},
		{"another's token", u, "bob", "root's", ""},
		{"wrong token", u, "bob", "T", ""},
		{"empty token", u, "bob", "", ""},
		{"unknown user", u, "eve", "t", ""},
		{"the hash is no token", u, "bob", HashOf("t").String(), ""},
		{"disabled", disabled, "bob", "t", ""},
		{"disabled, by token", disabled, "", "t", ""},
		{"the old token while it is rotated", rotated, "bob", "t", "bob"},
		{"the new one", rotated, "bob", "t2", "bob"},
		{"the old one afterwards", must(t)(rotated.EndRotation("bob")), "bob", "t", ""},
		{"two rotations on", must(t)(rotated.Rotate("bob", Token{Hash: HashOf("t3")}, false)), "bob", "t", ""},
		{"rotated at once", must(t)(u.Rotate("bob", Token{Hash: HashOf("t2")}, true)), "bob", "t", ""},
		{"deleted", must(t)(u.Delete("bob")), "bob", "t", ""},
		{"nobody has users", new(Users), "eve", "x", Default},
		{"there is no admin yet", &Users{List: []User{{Name: "bob", Tokens: []Token{{Hash: HashOf("t")}}}}}, "", "", Default},
		{"users are off again", must(t)(u.Off()), "bob", "x", Default},
		{"the list is not known", Locked, "root", "root's", ""},
	} {
		t.Run(tc.what, func(t *testing.T) {
			got := ""
			if g := tc.u.Resolve(NewLogin(tc.name, tc.token)); g != nil {
				got = g.Name()
			}
			if got != tc.want {
				t.Fatalf("got %q, want %q", got, tc.want)
			}
		})
	}
	if u.Resolve(Login{}) != nil || u.Resolve(Login{Name: "bob"}) != nil {
		t.Fatal("let in without a token")
	}
	if new(Users).Resolve(Login{}) != Everyone {
		t.Fatal("a cluster without users keeps somebody out")
	}
}

// TestNewToken: 256 bits, no blank and no colon, and the hash is what sha256sum says.
func TestNewToken(t *testing.T) {
	a, b := NewToken(), NewToken()
	if a == b || len(a) != len(tokenPrefix)+43 || !strings.HasPrefix(a, tokenPrefix) || strings.ContainsAny(a, ": \t\n") {
		t.Fatal(a, b)
	}
	if got := HashOf("abc").String(); got != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Fatal(got)
	}
	for _, bad := range []string{"", "ba78", strings.Repeat("g", 64), strings.Repeat("A", 64), strings.Repeat("a", 66)} {
		if _, err := ParseHash(bad); err == nil {
			t.Errorf("%q was taken for a hash", bad)
		}
	}
}

// TestChanges: what is refused, and what is as if said once.
func TestChanges(t *testing.T) {
	u := made(t, "read:a", "write:b")
	tok := Token{Hash: HashOf("new")}
	for _, tc := range []struct {
		what    string
		change  func() (*Users, bool, error)
		changed bool
		err     string // part of it, "" for none
	}{
		{"create one that is there", func() (*Users, bool, error) { return u.Create("bob", tok, Rights{}) }, false, "user bob exists"},
		{"create again, as before", func() (*Users, bool, error) {
			return u.Create("bob", Token{Hash: HashOf("t"), Created: 7}, rights(t, "write:b", "read:a"))
		}, false, ""},
		{"create with another's token", func() (*Users, bool, error) { return u.Create("eve", Token{Hash: HashOf("t")}, Rights{}) }, true, "one token twice"},
		{"create with a bad name", func() (*Users, bool, error) { return u.Create("a:b", tok, Rights{}) }, false, "is not allowed"},
		{"create default", func() (*Users, bool, error) { return u.Create("default", tok, Rights{}) }, false, "stands for whoever"},
		{"create a first one who is no admin", func() (*Users, bool, error) {
			next, changed, err := (&Users{Epoch: u.Epoch}).Create("x", tok, Rights{})
			if next.On() || next.Resolve(Login{}) != Everyone {
				t.Error("checked without an admin")
			}
			return next, changed, err
		}, true, ""},
		{"delete nobody", func() (*Users, bool, error) { return u.Delete("eve") }, false, "no such user"},
		{"delete the last admin", func() (*Users, bool, error) { return u.Delete("root") }, true, "an admin who is not disabled"},
		{"disable the last admin", func() (*Users, bool, error) { return u.Disable("root", true) }, true, "an admin who is not disabled"},
		{"revoke the last admin", func() (*Users, bool, error) { return u.Revoke("root", Rights{Admin: true}) }, false, "an admin who is not disabled"},
		{"disable", func() (*Users, bool, error) { return u.Disable("bob", true) }, true, ""},
		{"enable who is", func() (*Users, bool, error) { return u.Disable("bob", false) }, false, ""},
		{"grant what he has", func() (*Users, bool, error) { return u.Grant("bob", rights(t, "read:a", "read:b")) }, false, ""},
		{"grant more", func() (*Users, bool, error) { return u.Grant("bob", rights(t, "write:a", "jobs")) }, true, ""},
		{"revoke", func() (*Users, bool, error) { return u.Revoke("bob", rights(t, "read:b")) }, true, ""},
		{"revoke writing", func() (*Users, bool, error) { return u.Revoke("bob", rights(t, "write:b")) }, true, ""},
		{"revoke what he has not", func() (*Users, bool, error) { return u.Revoke("bob", rights(t, "read:c")) }, false, ""},
		{"revoke part of a right", func() (*Users, bool, error) { return u.Revoke("bob", rights(t, "read:ab")) }, false, `by his right on the prefix "a"`},
		{"revoke of an admin", func() (*Users, bool, error) { return u.Revoke("root", rights(t, "read:ab")) }, false, "is an admin"},
		{"rotate again, as before", func() (*Users, bool, error) { return u.Rotate("bob", Token{Hash: HashOf("t"), Created: 9}, false) }, false, ""},
		{"end of no rotation", func() (*Users, bool, error) { return u.EndRotation("bob") }, false, ""},
		{"off", func() (*Users, bool, error) { return u.Off() }, true, ""},
		{"off again", func() (*Users, bool, error) { return new(Users).Off() }, false, ""},
	} {
		t.Run(tc.what, func(t *testing.T) {
			before := u.Encode()
			next, changed, err := tc.change()
			switch {
			case tc.err != "":
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("%v, want %q", err, tc.err)
				}
			case err != nil || changed != tc.changed:
				t.Fatalf("changed %v, %v", changed, err)
			case changed && next.Epoch != u.Epoch+1:
				t.Fatalf("epoch %d after %d", next.Epoch, u.Epoch)
			}
			if !bytes.Equal(before, u.Encode()) {
				t.Fatal("the list itself was changed")
			}
		})
	}
	for _, bad := range []string{"", "read", "write", "Admin", "read=x", "exec:x", "read:\xff", "read:" + strings.Repeat("x", MaxPrefix+1)} {
		if _, err := ParseRights([]string{bad}); !errors.Is(err, ErrWords) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestBounds: a list that is too large is refused, and the largest fits a record.
func TestBounds(t *testing.T) {
	u := made(t)
	var r Rights
	for i := range MaxRights {
		r.Prefixes = append(r.Prefixes, Right{Prefix: fmt.Sprint("p", i)})
	}
	u = must(t)(u.Grant("bob", r))
	if _, _, err := u.Grant("bob", rights(t, "read:more")); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Fatal(err)
	}
	full := &Users{Epoch: 1, List: []User{u.List[1]}}
	for i := range MaxUsers {
		full.List = append(full.List, User{Name: fmt.Sprintf("u%06d", i), Tokens: []Token{{Hash: HashOf(fmt.Sprint(i))}}})
	}
	slices.SortFunc(full.List, func(a, b User) int { return strings.Compare(a.Name, b.Name) })
	if err := full.validate(); err == nil || !strings.Contains(err.Error(), "at most 1000") {
		t.Fatal(err)
	}
	long := strings.Repeat("x", MaxPrefix-10)
	for i := range full.List {
		for j := range 10 {
			full.List[i].Rights = append(full.List[i].Rights, Right{Prefix: fmt.Sprint(long, j)})
		}
	}
	full.List = full.List[:900]
	if err := full.validate(); err == nil || !strings.Contains(err.Error(), "bytes: at most") {
		t.Fatal(err)
	}
}

// TestEncode: the bytes of the first format, and that nothing else is read.
func TestEncode(t *testing.T) {
	u := made(t, "read:a", "write:b", "jobs")
	want := "\x01" + `{"epoch":2,"users":[` +
		`{"name":"bob","tokens":[{"hash":"e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8","created_ms":0}],"rights":[{"prefix":"a"},{"prefix":"b","write":true}],"jobs":true},` +
		`{"name":"root","tokens":[{"hash":"` + HashOf("root's").String() + `","created_ms":0}],"admin":true}]}`
	if got := string(u.Encode()); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	again, err := Decode([]byte(want))
	if err != nil || !bytes.Equal(again.Encode(), u.Encode()) {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "\x02{}", "\x01{}", "\x01null", want + "{}", strings.Replace(want, `"jobs"`, `"deny"`, 1),
		strings.Replace(want, `"bob"`, `"zed"`, 1), strings.Replace(want, `"a"`, `"c"`, 1), strings.Replace(want, "e3b9", "E3B9", 1)} {
		if _, err := Decode([]byte(bad)); err == nil {
			t.Errorf("decoded %q", bad)
		}
	}
}

// FuzzDecode: what is read is valid and is written back as it means.
func FuzzDecode(f *testing.F) {
	u := &Users{Epoch: 3, List: []User{{Name: "root", Tokens: []Token{{Hash: HashOf("x")}}, Admin: true}}}
	f.Add(u.Encode())
	f.Add([]byte("\x01{\"epoch\":1,\"users\":[]}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Decode(u.Encode())
		if err != nil || !bytes.Equal(again.Encode(), u.Encode()) {
			t.Fatalf("%q: %v", data, err)
		}
	})
}

// TestEventClips: a line of the audit log is bounded and text, whatever a stranger sends.
func TestEventClips(t *testing.T) {
	e := Event{User: "bob", Verb: VerbDenied, Args: append(slices.Repeat([]string{"x"}, 50), "secret"), Err: errors.New(strings.Repeat("\xff", 5000))}
	e.Args[0] = strings.Repeat("y", 5000)
	text := fmt.Sprint(e.Attrs())
	if len(text) > 1500 || strings.Contains(text, "secret") || strings.Contains(text, "\xff") {
		t.Fatalf("%d bytes: %q", len(text), text)
	}
}
