package front

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// errorPrefixes are the first words that our errors can have; libraries decide
// by them whether to retry. The last counts all others.
var errorPrefixes = [...]string{"ERR", "MOVED", "CLUSTERDOWN", "TRYAGAIN", "UNCERTAIN", "CROSSSLOT", "TOOLARGE", "SESSIONEXPIRED", "EXECABORT", "BUSY", "NOTFOUND", "BADJOB", "DISKFULL", "NOPROTO", "WRONGPASS", "NOAUTH", "NOPERM", "LOADING", "other"}

// refusal is an error reply: its prefix and text.
type refusal string

func (r refusal) Error() string { return string(r) }

func refusef(format string, args ...any) refusal { return refusal(fmt.Sprintf(format, args...)) }

// The wording of Redis, which libraries and their users match.
const (
	errSyntax      = refusal("ERR syntax error")
	errNotInteger  = refusal("ERR value is not an integer or out of range")
	errNotFloat    = refusal("ERR value is not a valid float")
	errOverflow    = refusal("ERR increment or decrement would overflow")
	errNaN         = refusal("ERR increment would produce NaN or Infinity")
	errEmptyKey    = refusal("ERR the empty key is not allowed")
	errBadCursor   = refusal("ERR invalid cursor")
	errBadSlot     = refusal("ERR Invalid or out of range slot")
	errUncertain   = "UNCERTAIN the command may or may not have been carried out"
	errUnknownFate = errUncertain + ": "
)

// err writes an error reply and counts it.
func (c *conn) err(text string) {
	prefix, _, _ := strings.Cut(text, " ")
	i := len(errorPrefixes) - 1
	for j, p := range errorPrefixes {
		if p == prefix {
			i = j
			break
		}
	}
	c.srv.stats.errors[i].Add(1)
	c.w.Error(text)
}

// fail writes the reply for an error of a handler. write says whether the
// command changes anything: a read that came to nothing may always be retried.
func (c *conn) fail(err error, write bool) { c.err(errorText(err, write)) }

// errorText turns an error into a reply. Only what certainly had no effect, or
// could have none, becomes an error that client libraries retry by themselves.
func errorText(err error, write bool) string {
	var ref refusal
	if errors.As(err, &ref) {
		return string(ref)
	}
	var spec *job.SpecError
	if errors.As(err, &spec) {
		return badJob(spec)
	}
	var e *transport.Error
	detail := err.Error()
	if errors.As(err, &e) && e.Detail != "" {
		detail = e.Detail
	}
	if !transport.Certain(err) && write {
		if errors.Is(err, context.DeadlineExceeded) {
			detail = "no answer in time"
		}
		return errUnknownFate + detail
	}
	switch transport.CodeOf(err) {
	case transport.CodeNotLeader, transport.CodeUnavailable, transport.CodeNoReplica:
		return "CLUSTERDOWN nothing was done, try again: " + err.Error()
	case transport.CodeTooLarge:
		return "TOOLARGE " + detail
	case transport.CodeNotFound:
		return "NOTFOUND " + detail
	case transport.CodeWrongCluster, transport.CodeBadRequest, transport.CodeRefused:
		return "ERR " + err.Error()
	}
	// Busy, closed, conflict, timeout, a node whose address is another's now or that is older than
	// we are; and for reads whatever else befell them.
	return "TRYAGAIN nothing was done: " + err.Error()
}

func badJob(e *job.SpecError) string {
	text := "BADJOB " + e.Field + ": " + e.Reason
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	if e.Where != "" { // an error is one line: tabs, which Where has not, take the place of its line ends
		text += "\t" + strings.ReplaceAll(e.Where, "\n", "\t")
	}
	return text
}

// resultError turns a command's own error into a reply.
func resultError(r *command.Result) string {
	switch r.Code {
	case command.CodeNotInteger:
		return string(errNotInteger)
	case command.CodeOverflow:
		return string(errOverflow)
	case command.CodeNotFloat:
		return string(errNotFloat)
	case command.CodeNaN:
		return string(errNaN)
	case command.CodeTooLarge:
		return "TOOLARGE key or value over the limit of " + strconv.FormatInt(r.Int, 10) + " bytes"
	case command.CodeDiskFull:
		return "DISKFULL nothing was done: " + r.Code.String() + "; deletes and reads go on"
	case command.CodeWrongShard, command.CodeSlotsMoving:
		return "TRYAGAIN nothing was done: the slot is moving to another shard"
	case command.CodeSessionUnknown, command.CodeSessionExpired:
		return "SESSIONEXPIRED not carried out now: the session, or this number of it, is forgotten; whether an earlier attempt was carried out is not known"
	case command.CodeSessionFull:
		return "TRYAGAIN nothing was done: the session has too many answers at or above its floor, raise the floor"
	case command.CodeUninitialized:
		return "CLUSTERDOWN nothing was done, try again: the shard is being set up"
	}
	return fmt.Sprintf("ERR the shard refused the command (code %d)", r.Code)
}

// quoted shows an argument in an error, shortened: what a client sends may be
// anything and of any length.
func quoted(arg []byte) string {
	const most = 64
	if len(arg) > most {
		return "'" + string(arg[:most]) + "...'"
	}
	return "'" + string(arg) + "'"
}
