package front

import (
	"context"
	"errors"

	"github.com/abacusdb/abacus/sharding/access"
	"github.com/abacusdb/abacus/transport/resp"
)

// authed is who a connection is. It belongs to the connection's goroutine.
type authed struct {
	// users is the list that grant was made of. The connection looks whether there is a newer one before each pipeline, so that
	// what is taken from a user is taken from his open connections too.
	users *access.Users
	login access.Login
	grant *access.Grant // nil: it has to authenticate first

	failures int
}

// maxAuthFailures is how often one connection may be wrong before it is closed. There is nothing to guess; but each attempt
// makes a line in a log.
const maxAuthFailures = 5

// strangerLimits are what a connection may send before it has authenticated. One command at a time: what a client sends behind its
// AUTH is not even parsed before that is answered.
var strangerLimits = resp.Limits{MaxCommandBytes: 8 << 10, MaxArgs: 32, MaxInline: 4 << 10, MaxPipeline: 1}

// lookUpUsers takes the newest list of users, if there is a newer one.
func (c *conn) lookUpUsers() {
	if u := c.srv.backend.Users(); u != c.auth.users {
		c.auth.users = u
		c.setGrant(u.Resolve(c.auth.login))
	}
}

func (c *conn) setGrant(g *access.Grant) {
	c.auth.grant = g
	lim, user := strangerLimits, ""
	if g != nil {
		lim, user = resp.Limits{MaxCommandBytes: c.srv.cfg.MaxCommandBytes}, g.Name()
	}
	c.r.SetLimits(lim)
	c.mu.Lock()
	c.user = user
	c.mu.Unlock()
}

// logOut is for RESET.
func (c *conn) logOut() {
	c.auth.login = access.Login{}
	c.setGrant(c.auth.users.Resolve(c.auth.login))
}

// authenticate is AUTH [user] token.
func (c *conn) authenticate(_ context.Context, args [][]byte) error {
	switch {
	case len(args) > 3:
		return errSyntax
	case len(args) == 2 && !c.auth.users.On():
		return refusal("ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?")
	}
	user := []byte(access.Default)
	if len(args) == 3 {
		user = args[1]
	}
	if err := c.logIn(user, args[len(args)-1]); err != nil {
		return err
	}
	c.w.SimpleString("OK")
	return nil
}

// helloAuth is the AUTH of HELLO, nil if it has none.
func (c *conn) helloAuth(login [][]byte) error {
	switch {
	case login != nil:
		return c.logIn(login[0], login[1])
	case c.auth.grant == nil && c.auth.users.IsLocked():
		return errLocked
	case c.auth.grant == nil:
		return errHelloAuth
	}
	return nil
}

// logIn makes the connection a user's. While the cluster has no users any login will do, and is kept: so clients can be
// given their tokens before users are turned on, and lose no connection then.
func (c *conn) logIn(user, token []byte) error {
	login := access.NewLogin(string(user), string(token))
	g := c.auth.users.Resolve(login)
	if g == nil && c.auth.users.IsLocked() {
		return errLocked
	}
	if g == nil {
		c.srv.stats.authFailed.Add(1)
		c.srv.backend.Audit(access.Event{User: quoted(user), Remote: c.nc.RemoteAddr().String(), Via: "resp", Verb: access.VerbAuth, Err: errors.New("no such user and token, or the user is disabled")})
		if c.auth.failures++; c.auth.failures >= maxAuthFailures {
			c.quit = true
		}
		return errWrongPass
	}
	c.auth.login = login
	c.setGrant(g)
	return nil
}

// audit notes what the connection's user has done, or tried to.
func (c *conn) audit(verb string, args []string, err error) {
	c.srv.backend.Audit(access.Event{User: c.auth.grant.Name(), Remote: c.nc.RemoteAddr().String(), Via: "resp", Verb: verb, Args: args, Err: err})
}

// denied counts and notes that the user has no right to something.
func (c *conn) denied(command, text string) {
	c.srv.stats.denied.Add(1)
	c.audit(access.VerbDenied, []string{command}, refusal(text))
}

// aclCommand is all of ACL that there is.
func aclCommand() *spec {
	subs := []*spec{{name: "whoami", arity: 2, flags: flagLoading | flagStale, summary: "Returns the name of the user of this connection.",
		run: func(c *conn, _ context.Context, _ [][]byte) error { c.w.BulkString(c.auth.grant.Name()); return nil }}}
	for _, name := range []string{"cat", "deluser", "dryrun", "genpass", "getuser", "list", "load", "log", "save", "setuser", "users"} {
		subs = append(subs, &spec{name: name, never: "ERR ACL is not how users are kept here: see 'abacus user --help', and docs/users.md"})
	}
	return container(spec{name: "acl", flags: flagLoading | flagStale, group: "server", since: "6.0.0", summary: "A container for what Redis tells about users."}, subs...)
}
