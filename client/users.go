package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/abacusdb/abacus/sharding/access"
)

// User is somebody who may use the cluster.
type User struct {
	Name     string  `json:"name"`
	Admin    bool    `json:"admin"` // may do everything
	Jobs     bool    `json:"jobs"`  // may run jobs over what he may read
	Disabled bool    `json:"disabled"`
	Rights   []Right `json:"rights"`
	Tokens   []Token `json:"tokens"` // the newest first
}

// Right is to the keys that begin with a prefix: to read them, or to write and read them.
type Right struct {
	Prefix string `json:"prefix"`
	Write  bool   `json:"write,omitempty"`
}

// Token is one that a user has; ID is the beginning of its SHA-256.
type Token struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

// UsersChange is what came of a change of users.
type UsersChange struct {
	Epoch uint64 `json:"epoch"` // of the list
	On    bool   `json:"on"`    // the list is checked, for there is an admin
	// NotHeard are nodes that are down or cut off, and go by an older list until they are back.
	NotHeard []string `json:"not_heard"`
}

// NewToken makes a token for a user, 256 random bits, and the hash that ChangeUsers takes. Nobody but whoever holds the token ever
// has it: it cannot be asked for again.
func NewToken() (token, hash string) {
	token = access.NewToken()
	return token, access.HashOf(token).String()
}

// Users lists the users of the cluster. It takes an admin.
func (c *Client) Users(ctx context.Context) ([]User, error) {
	text, err := c.Admin(ctx, "user", "list")
	if err != nil {
		return nil, err
	}
	var users []User
	if err := json.Unmarshal(text, &users); err != nil {
		return nil, fmt.Errorf("parse the list of users: %w", err)
	}
	return users, nil
}

// ChangeUsers changes the users: create NAME HASH RIGHT..., grant NAME RIGHT..., revoke NAME RIGHT..., rotate NAME HASH [now], rotated
// NAME, disable NAME, enable NAME, delete NAME, off; a RIGHT is admin, jobs, read:PREFIX or write:PREFIX, HASH is of NewToken. It
// returns when all living nodes go by the change, or after a second. It takes an admin, but while there is none.
func (c *Client) ChangeUsers(ctx context.Context, words ...string) (UsersChange, error) {
	var change UsersChange
	text, err := c.Admin(ctx, append([]string{"user"}, words...)...)
	if err != nil {
		return change, err
	}
	if err := json.Unmarshal(text, &change); err != nil {
		return change, fmt.Errorf("parse the answer to user %s: %w", words[0], err)
	}
	return change, nil
}
