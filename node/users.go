package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/sharding/access"
	"github.com/abacusdb/abacus/transport"
)

// Users are a system record of shard 0, changed by compare-and-set like the shard map, and like it known to every node: replicas of
// shard 0 see each change as they apply it, the others hear its epoch with the next exchange and fetch the list. Each node goes by
// the newest that it has heard of, and keeps that in a file, so that it needs nobody to check a token.
//
// The list is checked where a client's command arrives, and nowhere else: what one node asks of another was checked there.

const (
	usersRecord = "users"
	// usersHeardWithin is how long a change of users waits for all living nodes to have heard of it.
	usersHeardWithin = time.Second
	usersEvery       = time.Second // see runUsers
)

var noUsers = new(access.Users)

// Users is the list that this node goes by; immutable, replaced whole.
func (n *Node) Users() *access.Users {
	u := n.users.Load()
	switch {
	case n.cfg.NoAuth:
		return noUsers
	case u != nil:
		return u
	case n.Router().Map().Users: // there are some, and we have joined since
		return access.Locked
	}
	return noUsers
}

// usersEpoch is that of the list known here, 0 if there is none.
func (n *Node) usersEpoch() uint64 {
	if u := n.users.Load(); u != nil {
		return u.Epoch
	}
	return 0
}

// offerUsers takes a list if it is newer than ours.
func (n *Node) offerUsers(u *access.Users) {
	for {
		old := n.users.Load()
		if old != nil && u.Epoch <= old.Epoch {
			return
		}
		if n.users.CompareAndSwap(old, u) {
			break
		}
	}
	n.log.Info("users", "epoch", u.Epoch, "users", len(u.List))
	n.noteMapChanged() // runReconcile keeps it in a file, too
	n.tell()
}

// takeUsers offers a list as it is stored and sent.
func (n *Node) takeUsers(raw []byte, from string) {
	u, err := access.Decode(raw)
	if err != nil {
		n.log.Error("users not understood", "from", from, "err", err)
		return
	}
	n.offerUsers(u)
}

func (n *Node) fetchUsers(ctx context.Context, peer sharding.NodeID) {
	raw, err := n.transport.Call(ctx, peer, transport.LaneCall, transport.MethodUsers, nil)
	if err != nil {
		n.log.Debug("fetch users", "peer", peer, "err", err)
		return
	}
	n.takeUsers(raw, peer)
}

func (n *Node) handleUsers(context.Context, string, []byte) ([]byte, error) {
	u := n.users.Load()
	if u == nil || u.IsLocked() {
		return nil, transport.Errorf(transport.CodeNotFound, "node %s knows of no users", n.cfg.ID)
	}
	return u.Encode(), nil
}

// loadUsers takes the list that this node knew when it stopped. If that is damaged nobody is let in until another node, or shard 0,
// has told the list.
func (n *Node) loadUsers() {
	u, err := n.dir.loadUsers()
	if err != nil {
		n.log.Error("the cached users are damaged: nobody is let in before they are heard of again", "err", err)
		u = access.Locked
	}
	n.users.Store(u)
}

// saveUsers is called by runReconcile only.
func (n *Node) saveUsers() error {
	u := n.users.Load()
	if u == nil || u.IsLocked() || u == n.saved {
		return nil
	}
	if err := n.dir.saveUsers(u); err != nil {
		return err
	}
	n.saved = u
	return nil
}

// runUsers runs while this node leads shard 0: it reads the list once, for after a restore nobody else may know it, and
// sees to it that the map says whether there are users. Who turned them on may have died before that.
func (n *Node) runUsers(ctx context.Context) {
	tick := time.NewTicker(usersEvery)
	defer tick.Stop()
	for read := false; ; {
		if !read {
			u, _, err := n.readUsers(ctx)
			if read = err == nil; read && u.Epoch > 0 {
				n.offerUsers(u)
			}
		}
		u := n.users.Load()
		on := u != nil && u.On()
		if read && n.Router().Map().Users != on {
			_, err := n.changeMap(ctx, func(m sharding.Map) (sharding.Map, bool, error) { return sharding.SetUsers(m, on) })
			if err != nil && ctx.Err() == nil {
				n.log.Warn("note in the map whether there are users", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// readUsers reads the list from shard 0, linearizable, and the revision of its record: the empty list and 0 if there is none.
func (n *Node) readUsers(ctx context.Context) (*access.Users, int64, error) {
	list, err := n.records(ctx, recordsRequest{Shard: metaShard, Prefix: usersRecord})
	if err != nil {
		return nil, 0, err
	}
	for _, r := range list {
		if r.Name == usersRecord {
			u, err := access.Decode(r.Value)
			if err != nil {
				return nil, 0, transport.Errorf(transport.CodeRefused, "%v", err)
			}
			return u, r.Revision, nil
		}
	}
	return noUsers, 0, nil
}

type usersDecision func(*access.Users) (next *access.Users, changed bool, err error)

// changeUsers changes the list from any node, as changeMap does the map, and returns what it is then.
func (n *Node) changeUsers(ctx context.Context, decide usersDecision) (*access.Users, error) {
	if has := n.Router().Map().Level; has < sharding.LevelUsers {
		return nil, transport.Errorf(transport.CodeRefused, "%v", &sharding.LevelError{Has: has, Needs: sharding.LevelUsers})
	}
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	for {
		u, rev, err := n.readUsers(ctx)
		if err != nil {
			return nil, err
		}
		next, changed, err := decide(u)
		if err != nil {
			return nil, usersError(err)
		}
		if !changed {
			if u.Epoch > 0 {
				n.offerUsers(u)
			}
			return u, nil
		}
		// Above what any node goes by, even if shard 0 was restored from an older state.
		next.Epoch = max(next.Epoch, n.usersEpoch()+1)
		results, err := n.Exec(ctx, metaShard, []command.Command{recordSet(usersRecord, next.Encode(), rev)})
		if err == nil {
			err = recordError(usersRecord, results[0])
		}
		switch code := transport.CodeOf(err); {
		case err == nil:
			n.offerUsers(next)
			return next, nil
		case code == transport.CodeConflict, !transport.Certain(err): // somebody else was faster, or it may have been done
		default:
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(leaderPoll):
		}
	}
}

// usersError gives the errors of access their numbers.
func usersError(err error) error {
	code := transport.CodeRefused
	switch {
	case errors.Is(err, access.ErrNoUser):
		code = transport.CodeNotFound
	case errors.Is(err, access.ErrWords):
		code = transport.CodeBadRequest
	}
	return transport.Errorf(code, "%v", err)
}

// heard waits until all living nodes go by a list at least as new, and returns those that do not.
func (n *Node) heard(ctx context.Context, epoch uint64) []sharding.NodeID {
	ctx, cancel := context.WithTimeout(ctx, usersHeardWithin)
	defer cancel()
	for {
		deaf, waiting := []sharding.NodeID{}, false
		for _, m := range n.Router().Map().Nodes {
			if said, alive := n.peers.get(m.ID); m.ID != n.cfg.ID && (said.Users < epoch || !alive) {
				deaf, waiting = append(deaf, m.ID), waiting || alive
			}
		}
		if !waiting {
			return deaf
		}
		select {
		case <-ctx.Done():
			return deaf
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// usersChanged is the answer of what changes users.
type usersChanged struct {
	Epoch uint64 `json:"epoch"`
	// On: the list is checked, for there is an admin.
	On bool `json:"on"`
	// NotHeard are the nodes that do not go by this list yet: they are down, or cut off. They will when they are back.
	NotHeard []sharding.NodeID `json:"not_heard"`
}

func (n *Node) changeUsersAndTell(ctx context.Context, decide usersDecision) (any, error) {
	u, err := n.changeUsers(ctx, decide)
	if err != nil {
		return nil, err
	}
	return usersChanged{u.Epoch, u.On(), n.heard(ctx, u.Epoch)}, nil
}

// userView is a user as administrators see one.
type userView struct {
	Name     string         `json:"name"`
	Admin    bool           `json:"admin"`
	Jobs     bool           `json:"jobs"`
	Disabled bool           `json:"disabled"`
	Rights   []access.Right `json:"rights"`
	Tokens   []tokenView    `json:"tokens"`
}

// tokenView is a token without what it could be known by.
type tokenView struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

func viewUser(u access.User) userView {
	v := userView{Name: u.Name, Admin: u.Admin, Jobs: u.Jobs, Disabled: u.Disabled, Rights: append([]access.Right{}, u.Rights...)}
	for _, t := range u.Tokens {
		v.Tokens = append(v.Tokens, tokenView{t.Hash.ID(), time.UnixMilli(t.Created).UTC()})
	}
	return v
}

// The verbs. They take the hash of a token, never a token: whoever is given one makes it.
var userVerbs = []verb{
	{words: []string{"user", "list"}, run: func(n *Node, ctx context.Context, _ []string) (any, error) {
		u, _, err := n.readUsers(ctx)
		if err != nil {
			return nil, err
		}
		views := []userView{}
		for _, x := range u.List {
			views = append(views, viewUser(x))
		}
		return views, nil
	}},
	{words: []string{"user", "show"}, args: "NAME", least: 1, most: 1, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		u, _, err := n.readUsers(ctx)
		if err != nil {
			return nil, err
		}
		x, ok := u.User(a[0])
		if !ok {
			return nil, transport.Errorf(transport.CodeNotFound, "there is no user %q", a[0])
		}
		return viewUser(x), nil
	}},
	{words: []string{"user", "create"}, args: "NAME TOKEN-SHA256 [admin] [jobs] [read:PREFIX ...] [write:PREFIX ...]", least: 2, most: 2 + 2 + access.MaxRights, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		t, err := n.newToken(a[1])
		if err != nil {
			return nil, err
		}
		return n.withRights(ctx, a[2:], func(u *access.Users, r access.Rights) (*access.Users, bool, error) { return u.Create(a[0], t, r) })
	}},
	{words: []string{"user", "grant"}, args: "NAME admin|jobs|read:PREFIX|write:PREFIX ...", least: 2, most: 1 + 2 + access.MaxRights, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.withRights(ctx, a[1:], func(u *access.Users, r access.Rights) (*access.Users, bool, error) { return u.Grant(a[0], r) })
	}},
	{words: []string{"user", "revoke"}, args: "NAME admin|jobs|read:PREFIX|write:PREFIX ...", least: 2, most: 1 + 2 + access.MaxRights, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.withRights(ctx, a[1:], func(u *access.Users, r access.Rights) (*access.Users, bool, error) { return u.Revoke(a[0], r) })
	}},
	{words: []string{"user", "rotate"}, args: "NAME TOKEN-SHA256 [now]", least: 2, most: 3, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		t, err := n.newToken(a[1])
		if err != nil {
			return nil, err
		}
		now := slices.Equal(a[2:], []string{"now"})
		if len(a) == 3 && !now {
			return nil, transport.Errorf(transport.CodeBadRequest, "%q: want now, or nothing", a[2])
		}
		return n.changeUsersAndTell(ctx, func(u *access.Users) (*access.Users, bool, error) { return u.Rotate(a[0], t, now) })
	}},
	{words: []string{"user", "rotated"}, args: "NAME", least: 1, most: 1, run: userVerb(func(u *access.Users, name string) (*access.Users, bool, error) { return u.EndRotation(name) })},
	{words: []string{"user", "disable"}, args: "NAME", least: 1, most: 1, run: userVerb(func(u *access.Users, name string) (*access.Users, bool, error) { return u.Disable(name, true) })},
	{words: []string{"user", "enable"}, args: "NAME", least: 1, most: 1, run: userVerb(func(u *access.Users, name string) (*access.Users, bool, error) { return u.Disable(name, false) })},
	{words: []string{"user", "delete"}, args: "NAME", least: 1, most: 1, run: userVerb(func(u *access.Users, name string) (*access.Users, bool, error) { return u.Delete(name) })},
	{words: []string{"user", "off"}, run: func(n *Node, ctx context.Context, _ []string) (any, error) {
		return n.changeUsersAndTell(ctx, func(u *access.Users) (*access.Users, bool, error) { return u.Off() })
	}},
}

func userVerb(change func(u *access.Users, name string) (*access.Users, bool, error)) func(*Node, context.Context, []string) (any, error) {
	return func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.changeUsersAndTell(ctx, func(u *access.Users) (*access.Users, bool, error) { return change(u, a[0]) })
	}
}

func (n *Node) withRights(ctx context.Context, words []string, change func(*access.Users, access.Rights) (*access.Users, bool, error)) (any, error) {
	r, err := access.ParseRights(words)
	if err != nil {
		return nil, usersError(err)
	}
	return n.changeUsersAndTell(ctx, func(u *access.Users) (*access.Users, bool, error) { return change(u, r) })
}

// newToken is one of that hash, made now.
func (n *Node) newToken(hash string) (access.Token, error) {
	h, err := access.ParseHash(strings.TrimSpace(hash))
	if err != nil {
		return access.Token{}, transport.Errorf(transport.CodeBadRequest, "%v", err)
	}
	return access.Token{Hash: h, Created: n.cfg.Now().UnixMilli()}, nil
}
