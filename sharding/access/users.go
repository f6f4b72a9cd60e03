package access

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of the list. They keep it far below what a system record may have (8 MiB), and the check of a key short.
const (
	MaxUsers  = 1000
	MaxRights = 64      // of a user
	MaxTokens = 2       // of a user: the present one and, while it is rotated, the one before
	MaxName   = 64      // bytes
	MaxPrefix = 1 << 10 // bytes
	MaxBytes  = 4 << 20 // of the whole list, encoded
)

// usersVersion is the first byte of an encoded list.
const usersVersion = 1

// Default is the name that clients send who give a token only. Nobody can be called so.
const Default = "default"

// Right lets a user read the keys that begin with a prefix, or read and write them. The empty prefix is that of all keys.
type Right struct {
	Prefix string `json:"prefix"`
	Write  bool   `json:"write,omitempty"`
}

// User is one row of the list.
type User struct {
	Name string `json:"name"`
	// Tokens are what is known of the valid ones, the newest first.
	Tokens []Token `json:"tokens"`
	// Rights are in order of their prefixes, and each prefix is there once.
	Rights []Right `json:"rights,omitempty"`
	// Admin may do everything, for he could give himself every right.
	Admin bool `json:"admin,omitempty"`
	// Jobs may submit jobs over the prefixes that he may read, and see and cancel them.
	Jobs     bool `json:"jobs,omitempty"`
	Disabled bool `json:"disabled,omitempty"`
}

// Users is the list, in order of names. The zero value is that of a cluster without users.
type Users struct {
	// Epoch counts the changes. Of two lists that of the higher epoch is the newer.
	Epoch uint64 `json:"epoch"`
	List  []User `json:"users"`

	locked bool // nobody knows the list
}

// Locked stands for a list that is not known: nobody can authenticate.
var Locked = &Users{locked: true}

// On says whether anything is checked: from the first admin on, so that all others can be made before. It ends with Off only, not
// with the last admin: that one cannot be taken away.
func (u *Users) On() bool {
	return u.locked || slices.ContainsFunc(u.List, func(x User) bool { return x.Admin && !x.Disabled })
}

// IsLocked says that the list is not known, so that nobody can be let in yet.
func (u *Users) IsLocked() bool { return u.locked }

// User returns the user of a name.
func (u *Users) User(name string) (User, bool) {
	i, ok := u.find(name)
	if !ok {
		return User{}, false
	}
	return u.List[i], true
}

func (u *Users) find(name string) (int, bool) {
	return slices.BinarySearchFunc(u.List, name, func(x User, name string) int { return strings.Compare(x.Name, name) })
}

// Encode returns the list as it is stored and sent: a version byte, then JSON.
func (u *Users) Encode() []byte {
	raw, err := json.Marshal(u)
	if err != nil {
		panic(fmt.Sprintf("encode users: %v", err)) // strings and numbers only: cannot be
	}
	return append([]byte{usersVersion}, raw...)
}

// Decode reads what Encode wrote and validates it. A field that this build does not know is an error: it might take a right
// away, and would be lost when the list is next changed.
func Decode(data []byte) (*Users, error) {
	switch {
	case len(data) == 0:
		return nil, fmt.Errorf("decode users: %w", io.ErrUnexpectedEOF)
	case data[0] != usersVersion:
		return nil, fmt.Errorf("decode users: format %d, this build knows %d", data[0], usersVersion)
	}
	d := json.NewDecoder(bytes.NewReader(data[1:]))
	d.DisallowUnknownFields()
	u := new(Users)
	if err := d.Decode(u); err != nil {
		return nil, fmt.Errorf("decode users: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("decode users: bytes after the end")
	}
	if err := u.validate(); err != nil {
		return nil, fmt.Errorf("decode users: %w", err)
	}
	return u, nil
}

// CheckName says whether a user can be called so: 1 to 64 letters, digits, '-', '_' and '.', and not "default". It stands in
// log lines, and before a colon in HTTP.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("user name %q: must have 1 to %d characters", truncate(name), MaxName)
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return fmt.Errorf("user name %q: %q is not allowed: use letters, digits, '-', '_' and '.'", name, c)
		}
	}
	if name == Default {
		return fmt.Errorf("user name %q: it stands for whoever has the token; choose another", name)
	}
	return nil
}

// validate reports the first fault of the list.
func (u *Users) validate() error {
	if u.Epoch == 0 || len(u.List) > MaxUsers {
		return fmt.Errorf("epoch %d, %d users: must be at least 1, at most %d", u.Epoch, len(u.List), MaxUsers)
	}
	seen := map[Hash]string{}
	for i, x := range u.List {
		if err := CheckName(x.Name); err != nil {
			return err
		}
		if i > 0 && u.List[i-1].Name >= x.Name {
			return fmt.Errorf("user %q follows %q: names must be unique and in order", x.Name, u.List[i-1].Name)
		}
		if len(x.Tokens) == 0 || len(x.Tokens) > MaxTokens {
			return fmt.Errorf("user %s has %d tokens: must be 1 to %d", x.Name, len(x.Tokens), MaxTokens)
		}
		for _, t := range x.Tokens {
			if other, again := seen[t.Hash]; again {
				return fmt.Errorf("users %s and %s: one token twice", other, x.Name)
			}
			seen[t.Hash] = x.Name
		}
		if len(x.Rights) > MaxRights {
			return fmt.Errorf("user %s has %d rights: at most %d; give one on a shorter prefix", x.Name, len(x.Rights), MaxRights)
		}
		for j, r := range x.Rights {
			if len(r.Prefix) > MaxPrefix || !utf8.ValidString(r.Prefix) {
				return fmt.Errorf("user %s: prefix %q: must be text of at most %d bytes", x.Name, truncate(r.Prefix), MaxPrefix)
			}
			if j > 0 && x.Rights[j-1].Prefix >= r.Prefix {
				return fmt.Errorf("user %s: prefix %q follows %q: must be unique and in order", x.Name, truncate(r.Prefix), truncate(x.Rights[j-1].Prefix))
			}
		}
	}
	if size := len(u.Encode()); size > MaxBytes {
		return fmt.Errorf("the list of users has %d bytes: at most %d", size, MaxBytes)
	}
	return nil
}

func truncate(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
