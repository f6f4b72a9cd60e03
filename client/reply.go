package client

import (
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/abacusdb/abacus/transport/resp"
)

// Reply is an answer of the cluster, as it came.
type Reply = resp.Reply

// replyLimits bound what one answer can make this process hold. A command is at
// most 64 MiB, a page of a scan and a job's record far less.
var replyLimits = resp.ReplyLimits{MaxBytes: 256 << 20}

func replyError(r Reply) (string, bool) { return string(r.Str), r.Type == resp.TypeError }
func replyNil(r Reply) bool             { return r.IsNull() }

// isTooManyClients knows the line by its text: it has no code of its own in Redis
// and so has none here.
func isTooManyClients(r Reply) bool {
	text, ok := replyError(r)
	return ok && text == "ERR max number of clients reached"
}

func isPush(r Reply) bool { return r.Type == resp.TypePush }

// replyBytes returns a string of any kind; false for null and all else.
func replyBytes(r Reply) ([]byte, bool) {
	switch r.Type {
	case resp.TypeBulk, resp.TypeSimple, resp.TypeVerbatim, resp.TypeBigNumber:
		return r.Str, true
	}
	return nil, false
}

func replyInt(r Reply) (int64, bool) { return r.Int, r.Type == resp.TypeInt }

func replyArray(r Reply) ([]Reply, bool) {
	return r.Elems, r.Type == resp.TypeArray || r.Type == resp.TypeSet
}

func wantInt(command string, r Reply) (int64, error) {
	n, ok := replyInt(r)
	if !ok {
		return 0, fmt.Errorf("%s: the answer is no integer: %s", command, describe(r))
	}
	return n, nil
}

func wantBytes(command string, r Reply) ([]byte, error) {
	b, ok := replyBytes(r)
	if !ok {
		return nil, fmt.Errorf("%s: the answer is no string: %s", command, describe(r))
	}
	return b, nil
}

func describe(r Reply) string {
	if s := r.Str; len(s) > 0 && utf8.Valid(s) {
		return fmt.Sprintf("type %q, %.60q", byte(r.Type), s)
	}
	return fmt.Sprintf("type %q", byte(r.Type))
}

func itoa(n int64) []byte { return strconv.AppendInt(nil, n, 10) }
