package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// The changes of the list. Each returns a list that shares nothing with the one before which anybody may change, and whether
// it differs: said twice, a change is as if said once.

var (
	// ErrNoUser: there is no user of that name.
	ErrNoUser = errors.New("there is no such user")
	// ErrNoAdmin: nobody would be left who may change users.
	ErrNoAdmin = errors.New("an admin who is not disabled would not be left: make another user one first, or end the checks with user off")
	// ErrWords: what was said cannot be understood.
	ErrWords = errors.New("want admin, jobs, read:PREFIX or write:PREFIX")
)

// Rights are flags and prefixes, given or taken together.
type Rights struct {
	Admin, Jobs bool
	Prefixes    []Right
}

// ParseRights reads words: admin, jobs, read:PREFIX, write:PREFIX. An error is ErrWords.
func ParseRights(words []string) (r Rights, err error) {
	for _, w := range words {
		kind, prefix, named := strings.Cut(w, ":")
		switch {
		case w == "admin":
			r.Admin = true
		case w == "jobs":
			r.Jobs = true
		case named && (kind == "read" || kind == "write"):
			if len(prefix) > MaxPrefix || !utf8.ValidString(prefix) {
				return r, fmt.Errorf("prefix %q: must be text of at most %d bytes: %w", truncate(prefix), MaxPrefix, ErrWords)
			}
			r.Prefixes = append(r.Prefixes, Right{Prefix: prefix, Write: kind == "write"})
		default:
			return r, fmt.Errorf("%q: %w", truncate(w), ErrWords)
		}
	}
	return r, nil
}

// Create adds a user. One of that name is an error, unless it is this very one: then an answer was lost, and it is asked again.
func (u *Users) Create(name string, t Token, r Rights) (next *Users, changed bool, err error) {
	if err := CheckName(name); err != nil {
		return u, false, err
	}
	x := User{Name: name, Tokens: []Token{t}}
	x.give(r)
	at, exists := u.find(name)
	if exists {
		was := u.List[at]
		if len(was.Tokens) == 1 && was.Tokens[0].Hash == t.Hash && slices.Equal(was.Rights, x.Rights) && was.Admin == x.Admin && was.Jobs == x.Jobs && !was.Disabled {
			return u, false, nil
		}
		return u, false, fmt.Errorf("user %s exists: see user grant, user rotate and user delete", name)
	}
	next = u.next()
	next.List = slices.Insert(next.List, at, x)
	return next, true, next.validate()
}

// Grant gives rights to a user, and takes none: who may write goes on to when he is given the right to read.
func (u *Users) Grant(name string, r Rights) (*Users, bool, error) {
	return u.edit(name, func(x *User) { x.give(r) })
}

// Revoke takes rights from a user. read:P takes all that there is on the prefix P, write:P leaves reading. It is an error if he
// may do it all the same, by another of his rights.
func (u *Users) Revoke(name string, r Rights) (*Users, bool, error) {
	next, changed, err := u.edit(name, func(x *User) {
		x.Admin, x.Jobs = x.Admin && !r.Admin, x.Jobs && !r.Jobs
		for _, p := range r.Prefixes {
			i, ok := slices.BinarySearchFunc(x.Rights, p.Prefix, byPrefix)
			switch {
			case !ok:
			case p.Write:
				x.Rights[i].Write = false
			default:
				x.Rights = slices.Delete(x.Rights, i, i+1)
			}
		}
	})
	if err != nil {
		return u, false, err
	}
	now, _ := next.User(name)
	for _, p := range r.Prefixes {
		if now.Admin {
			return u, false, fmt.Errorf("user %s is an admin, and may read and write everything: revoke admin", name)
		}
		for _, other := range now.Rights {
			if strings.HasPrefix(p.Prefix, other.Prefix) && (other.Write || !p.Write) {
				return u, false, fmt.Errorf("user %s may %s %q all the same, by his right on the prefix %q: revoke that, and grant what shall be left", name, verbOf(p), p.Prefix, other.Prefix)
			}
		}
	}
	return next, changed, nil
}

func verbOf(r Right) string {
	if r.Write {
		return "write"
	}
	return "read"
}

// Rotate gives a user a new token. The one before stays valid until the next Rotate or EndRotation; not if only says so.
func (u *Users) Rotate(name string, t Token, only bool) (*Users, bool, error) {
	return u.edit(name, func(x *User) {
		if x.Tokens[0].Hash != t.Hash { // else it was said before
			x.Tokens = append([]Token{t}, x.Tokens...)
		}
		keep := MaxTokens
		if only {
			keep = 1
		}
		x.Tokens = x.Tokens[:min(keep, len(x.Tokens))]
	})
}

// EndRotation leaves a user the newest token only.
func (u *Users) EndRotation(name string) (*Users, bool, error) {
	return u.edit(name, func(x *User) { x.Tokens = x.Tokens[:1] })
}

// Disable lets nobody authenticate as the user, or lets him again.
func (u *Users) Disable(name string, disabled bool) (*Users, bool, error) {
	return u.edit(name, func(x *User) { x.Disabled = disabled })
}

// Delete takes a user out.
func (u *Users) Delete(name string) (*Users, bool, error) {
	at, ok := u.find(name)
	if !ok {
		return u, false, fmt.Errorf("user %q: %w", truncate(name), ErrNoUser)
	}
	next := u.next()
	next.List = slices.Delete(next.List, at, at+1)
	return u.to(next)
}

// Off takes all users out: from then on nothing is checked.
func (u *Users) Off() (*Users, bool, error) {
	if len(u.List) == 0 {
		return u, false, nil
	}
	next := u.next()
	next.List = nil
	return next, true, nil
}

// edit changes a copy of one user.
func (u *Users) edit(name string, change func(*User)) (*Users, bool, error) {
	at, ok := u.find(name)
	if !ok {
		return u, false, fmt.Errorf("user %q: %w", truncate(name), ErrNoUser)
	}
	next := u.next()
	x := &next.List[at]
	x.Tokens, x.Rights = slices.Clone(x.Tokens), slices.Clone(x.Rights)
	was := u.List[at]
	change(x)
	if slices.Equal(x.Tokens, was.Tokens) && slices.Equal(x.Rights, was.Rights) && x.Admin == was.Admin && x.Jobs == was.Jobs && x.Disabled == was.Disabled {
		return u, false, nil
	}
	return u.to(next)
}

// to is the step to a next list, which must not open the cluster to everybody by the way.
func (u *Users) to(next *Users) (*Users, bool, error) {
	if u.On() && !next.On() {
		return u, false, ErrNoAdmin
	}
	return next, true, next.validate()
}

func (u *Users) next() *Users { return &Users{Epoch: u.Epoch + 1, List: slices.Clone(u.List)} }

func (x *User) give(r Rights) {
	x.Admin, x.Jobs = x.Admin || r.Admin, x.Jobs || r.Jobs
	for _, p := range r.Prefixes {
		i, ok := slices.BinarySearchFunc(x.Rights, p.Prefix, byPrefix)
		if ok {
			x.Rights[i].Write = x.Rights[i].Write || p.Write
		} else {
			x.Rights = slices.Insert(x.Rights, i, p)
		}
	}
}

func byPrefix(r Right, prefix string) int { return strings.Compare(r.Prefix, prefix) }
