package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// tokenPrefix begins every token, so that tools which look for secrets in sources and logs know one.
const tokenPrefix = "abacus_"

// NewToken makes a token: 256 random bits, as text without blanks or colons.
func NewToken() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// Hash is the SHA-256 of a token: all that is kept of it. As text it is 64 hex digits.
type Hash [sha256.Size]byte

// HashOf returns a token's hash.
func HashOf(token string) Hash { return sha256.Sum256([]byte(token)) }

// ParseHash reads 64 hex digits.
func ParseHash(s string) (h Hash, err error) { return h, h.UnmarshalText([]byte(s)) }

// MarshalText writes hex digits.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads them.
func (h *Hash) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(h) || strings.ToLower(string(text)) != string(text) {
		return fmt.Errorf("a token's hash is 64 lower-case hex digits, the SHA-256 of the token")
	}
	copy(h[:], raw)
	return nil
}

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ID names a token in lists: the first digits of its hash.
func (h Hash) ID() string { return h.String()[:8] }

// Token is what is known of a user's token.
type Token struct {
	Hash Hash `json:"hash"`
	// Created is when, by the clock of the node that was asked; ms since 1970.
	Created int64 `json:"created_ms"`
}

// Login is what somebody has authenticated with, and is kept to ask again when the list has changed. The zero value is nobody's.
type Login struct {
	Name string // empty, or Default: whoever has the token
	Hash Hash
}

// NewLogin hashes the token.
func NewLogin(name, token string) Login {
	if name == Default {
		name = ""
	}
	return Login{Name: name, Hash: HashOf(token)}
}

// Resolve says what a login may do: nil if it is nobody's, or the user is disabled. While nothing is checked, Everyone.
// All tokens that come into question are compared, in constant time.
func (u *Users) Resolve(l Login) *Grant {
	switch {
	case u.locked:
		return nil
	case !u.On():
		return Everyone
	case l.Hash == Hash{}:
		return nil
	}
	candidates := u.List
	if l.Name != "" {
		i, known := u.find(l.Name)
		if !known {
			return nil
		}
		candidates = u.List[i : i+1]
	}
	var match *User
	for i := range candidates {
		for _, t := range candidates[i].Tokens {
			if subtle.ConstantTimeCompare(t.Hash[:], l.Hash[:]) == 1 {
				match = &candidates[i]
			}
		}
	}
	if match == nil || match.Disabled {
		return nil
	}
	return &Grant{user: *match}
}
