package front

import (
	"context"
	"strconv"
	"strings"

	"github.com/abacusdb/abacus/fsm/command"
)

// Exactly-once writes over RESP: IDEM OPEN makes a session, IDEM client seq command …
// numbers a write in it, and the shards answer a repeated number as they did the first time.

const (
	// defaultWindow is how many numbers a session has open if the client names no
	// floor: number n gives up the answers to those below n-255, so that a pipeline of
	// up to so many works without a thought.
	defaultWindow = 256
	// maxIdemParts bounds the slots of one numbered command: each part has an answer of its
	// own, and a shard remembers 1024 of a session.
	maxIdemParts = 512
)

// Tag numbers a command; the zero value does not.
type Tag struct{ Session, Seq, Floor uint64 }

func (t Tag) put(c *command.Command) { c.Session, c.Seq, c.Floor = t.Session, t.Seq, t.Floor }

func idemCommand() *spec {
	s := container(spec{name: "idem", flags: flagWrite | flagDenyOOM, first: 4, last: 4, step: 1, group: "generic", since: "1.0.0",
		summary: "IDEM client seq[/floor] command ...: carries a write out once, however often it is sent.", plan: planIdem},
		&spec{name: "open", arity: -2, flags: flagWrite, summary: "IDEM OPEN [key]: makes a session and returns its id, the client of IDEM.", run: (*conn).idemOpen})
	return s
}

func (c *conn) idemOpen(ctx context.Context, args [][]byte) error {
	if len(args) > 3 {
		return refusal("ERR wrong number of arguments for 'idem|open' command")
	}
	var key []byte
	if len(args) == 3 {
		key = args[2]
	}
	id, err := c.srv.backend.OpenSession(ctx, key)
	if err != nil {
		return err
	}
	c.w.BulkString(strconv.FormatUint(id, 10))
	return nil
}

// ParseTag reads a session, a number in it, and the lowest number whose answer is
// still wanted. Without a session there is no tag, without a floor the default one.
func ParseTag(session, seq, floor string) (t Tag, err error) {
	if session == "" && seq == "" && floor == "" {
		return Tag{}, nil
	}
	if t.Session, err = strconv.ParseUint(session, 10, 64); err != nil || t.Session == 0 {
		return Tag{}, refusal("ERR " + quoted([]byte(session)) + " is not a session's id")
	}
	if t.Seq, err = strconv.ParseUint(seq, 10, 64); err != nil || t.Seq == 0 {
		return Tag{}, refusal("ERR " + quoted([]byte(seq)) + " is not a number from 1 on")
	}
	switch {
	case floor == "" && t.Seq >= defaultWindow:
		t.Floor = t.Seq - (defaultWindow - 1)
	case floor != "":
		if t.Floor, err = strconv.ParseUint(floor, 10, 64); err != nil || t.Floor > t.Seq {
			return Tag{}, refusal("ERR " + quoted([]byte(floor)) + " is not a floor: a number up to the command's own")
		}
	}
	return t, nil
}

// parseTag reads client and seq[/floor]; neither is left out.
func parseTag(client, number []byte) (Tag, error) {
	seq, floor, named := strings.Cut(string(number), "/")
	if named && floor == "" {
		floor = "/" // no number either
	}
	if len(client) == 0 {
		client = []byte("0")
	}
	return ParseTag(string(client), seq, floor)
}

// planIdem is IDEM client seq[/floor] command …: the command's own plan, its writes
// numbered. Reads need no number.
func planIdem(p *plan, r *request) error {
	if len(r.args) < 4 {
		return refusal("ERR wrong number of arguments for 'idem' command")
	}
	t, err := parseTag(r.args[1], r.args[2])
	if err != nil {
		return err
	}
	inner, text := p.c.srv.table.resolve(r.args[3:])
	switch {
	case text != "":
		return refusal(text)
	case inner.name == "exec":
		return errExecAlone
	case inner.plan == nil || inner.name == "idem":
		return refusal("ERR IDEM takes a command on keys or EXEC, not " + quoted(r.args[3]))
	case inner.rounds != nil && len(r.args)-4 > windowValues:
		return refusef("ERR IDEM does nothing for reads: send %s without it", quoted(r.args[3]))
	}
	r.spec, r.args = inner, r.args[3:]
	if err := inner.plan(p, r); err != nil {
		return err
	}
	if n := len(p.parts) - r.lo; n > maxIdemParts {
		return refusef("ERR IDEM: the keys are of %d slots, of at most %d a command can be numbered", n, maxIdemParts)
	}
	for i := r.lo; i < len(p.parts); i++ {
		if cmd := p.cmd(&p.parts[i]); !cmd.Op.IsRead() {
			t.put(cmd)
		}
	}
	return nil
}
