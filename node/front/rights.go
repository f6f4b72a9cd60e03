package front

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/abacusdb/abacus/sharding/access"
)

// Who may do what on a RESP port. permit is asked before every command; it knows what each one needs from the table below. A
// command that is not there needs an administrator, and fails a test.

// need is what a command needs.
type need uint8

const (
	needUndeclared need = iota // nobody has thought of it: an admin
	needNothing                // nothing, not even AUTH
	needUser                   // anybody who has authenticated
	needKeys                   // its keys: to write them if it writes, else to read them
	needReads                  // to read something: it shows no more than that
	needWrites                 // to write something
	needEverything             // to read all keys
	needJobs                   // to run jobs; over which keys is checked where the job is known
	needInner                  // what the command behind it needs
	needAdmin                  // an admin
)

var needs = []struct {
	need     need
	commands string
}{
	{needNothing, "auth hello ping quit reset"},
	// The state of the connection, and what says nothing of single keys.
	{needUser, "echo select time lolwut wait readonly readwrite asking multi exec discard unwatch dbsize info abacus.status acl acl|help acl|whoami job.help " +
		"client client|consistency client|getname client|help client|id client|info client|no-evict client|no-touch client|setinfo client|setname " +
		"command command|count command|docs command|getkeys command|help command|info command|list config config|get config|help " +
		"cluster cluster|help cluster|info cluster|keyslot cluster|myid cluster|nodes cluster|shards cluster|slots idem|help"},
	{needKeys, "append decr decrby del exists expire expireat expiretime get getdel getex getrange getset incr incrby incrbyfloat mget mset msetnx persist " +
		"pexpire pexpireat pexpiretime psetex pttl set setex setnx strlen substr touch ttl type unlink watch"},
	{needReads, "scan"},
	// A session is state of the whole cluster, and pushes out the oldest.
	{needWrites, "idem|open"},
	// A count of one slot tells whether a key that is in it by its tag is there.
	{needEverything, "randomkey cluster|countkeysinslot"},
	{needJobs, "job.submit job.status job.result job.cancel job.list job.explain job.retry job.delete"},
	{needInner, "idem"},
	{needAdmin, "abacus.admin abacus.backup client|list"},
}

// declareNeeds notes in each row what it needs.
func (t *table) declareNeeds() {
	for _, d := range needs {
		for _, name := range strings.Fields(d.commands) {
			if s := t.byName[name]; s != nil {
				s.need = d.need
			} else {
				panic("front: there is no command " + name)
			}
		}
	}
}

const (
	errNoAuth    = "NOAUTH Authentication required."
	errHelloAuth = refusal("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time")
	errWrongPass = refusal("WRONGPASS invalid username-password pair or user is disabled.")
	errLocked    = refusal("LOADING this node has not heard who the users of the cluster are yet")
	errNoPermKey = "NOPERM No permissions to access a key"
)

// permit is the refusal of a command, empty if the connection may run it. Everything that a client asks goes through here.
func (c *conn) permit(s *spec, args [][]byte) string {
	g := c.auth.grant
	switch {
	case g == access.Everyone || s.need == needNothing:
		return ""
	case g == nil && c.auth.users.IsLocked():
		return string(errLocked)
	case g == nil:
		return errNoAuth
	}
	if s.need == needInner && len(args) > 3 {
		inner, bad := c.srv.table.resolve(args[3:])
		if bad != "" || inner.need == needInner {
			return "" // it will be refused for what it is
		}
		return c.permit(inner, args[3:])
	}
	text := refused(g, s, args)
	if text != "" {
		c.denied(s.name, text)
	}
	return text
}

// refused is the decision of permit about a user.
func refused(g *access.Grant, s *spec, args [][]byte) string {
	ok := false
	switch s.need {
	case needUser, needInner:
		ok = true
	case needKeys:
		if !mayKeys(g, s, args) {
			return errNoPermKey
		}
		ok = true
	case needReads:
		ok = g.MayReadSome()
	case needWrites:
		ok = g.MayWriteSome()
	case needEverything:
		ok = g.MayReadPrefix("")
	case needJobs:
		ok = g.Jobs()
	default:
		ok = g.Admin()
	}
	if ok {
		return ""
	}
	return fmt.Sprintf("NOPERM User %s has no permissions to run the '%s' command", g.Name(), s.name)
}

func mayKeys(g *access.Grant, s *spec, args [][]byte) bool {
	may := g.MayRead
	if s.has(flagWrite) {
		may = g.MayWrite
	}
	last := s.last
	if last < 0 {
		last += len(args)
	}
	for i := s.first; i <= last && i < len(args); i += s.step {
		if !may(args[i]) {
			return false
		}
	}
	return true
}

// deniedSince is the refusal of EXEC if the user has lost, since they were queued, a right that one of the commands needs.
func (c *conn) deniedSince(p *plan) string {
	for i := range p.requests {
		if text := c.permit(p.requests[i].spec, p.requests[i].args); text != "" {
			return text
		}
	}
	return ""
}

// readable leaves of keys those that may be read.
func (a *authed) readable(keys [][]byte) [][]byte {
	if a.grant == access.Everyone {
		return keys
	}
	kept := keys[:0]
	for _, k := range keys {
		if a.grant.MayRead(k) {
			kept = append(kept, k)
		}
	}
	return kept
}

// A job has no owner: who may read what it computes over may see it, cancel it, try it again and delete it.

// jobPrefix is the prefix of the job of a record.
func jobPrefix(record []byte) (string, error) {
	var r struct {
		Spec struct {
			Prefix string `json:"prefix"`
		} `json:"spec"`
	}
	err := json.Unmarshal(record, &r)
	return r.Spec.Prefix, err
}

// MayJob says whether a user may see the job of a record and do something to it, or submit one like it.
func MayJob(g *access.Grant, record []byte) bool {
	if g.Admin() {
		return true
	}
	prefix, err := jobPrefix(record)
	return err == nil && g.Jobs() && g.MayReadPrefix(prefix)
}

// VisibleJobs leaves of a list of records those that a user may see.
func VisibleJobs(g *access.Grant, list []byte) ([]byte, error) {
	if g.Admin() {
		return list, nil
	}
	var records []json.RawMessage
	if err := json.Unmarshal(list, &records); err != nil {
		return nil, err
	}
	kept := []json.RawMessage{}
	for _, r := range records {
		if MayJob(g, r) {
			kept = append(kept, r)
		}
	}
	return json.Marshal(kept)
}

func (c *conn) jobDenied(name, prefix string) error {
	if c.auth.grant.MayReadPrefix(prefix) {
		return nil
	}
	c.denied(name, errNoPermKey)
	return refusal(errNoPermKey)
}

// jobReply writes the record of a job that the user may see, now: he may have waited for it.
func (c *conn) jobReply(name string, record []byte, err error) error {
	if c.lookUpUsers(); c.auth.grant == nil {
		return refusal(errNoAuth)
	}
	if err == nil && !MayJob(c.auth.grant, record) {
		c.denied(name, errNoPermKey)
		return refusal(errNoPermKey)
	}
	return c.jsonReply(record, err)
}

// mayTouch says whether the user may do something to a job.
func (c *conn) mayTouch(ctx context.Context, command, id string) error {
	if c.auth.grant.Admin() { // a record need not be fetched for that
		return nil
	}
	record, err := c.srv.backend.JobStatus(ctx, id)
	switch {
	case err != nil:
		return jobError(err)
	case !MayJob(c.auth.grant, record):
		c.denied(command, errNoPermKey)
		return refusal(errNoPermKey)
	}
	return nil
}
