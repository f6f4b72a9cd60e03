package access

import (
	"log/slog"
	"strings"
	"unicode/utf8"
)

// What may be found in Event.Verb beside the words of an administrator and the paths of HTTP.
const (
	VerbAuth   = "auth"   // somebody failed to authenticate
	VerbDenied = "denied" // a user was refused what he has no right to
)

// Event is one line of the audit log. No token and no value of a key is ever in it.
type Event struct {
	User   string // who; empty: nobody that we know
	Remote string // address and port
	Via    string // resp, http
	Verb   string
	Args   []string
	Err    error // nil: done
}

// MaxAuditArgs and MaxAuditArg bound what of a stranger's words gets into a line.
const (
	MaxAuditArgs = 16
	MaxAuditArg  = 128 // bytes
)

// Minor says that a stranger can make as many such events as he likes, so that only some of them are written.
func (e Event) Minor() bool { return e.Verb == VerbAuth || e.Verb == VerbDenied }

// Attrs are the fields of the line, in their order, but for the time and the node.
func (e Event) Attrs() []slog.Attr {
	args := e.Args[:min(len(e.Args), MaxAuditArgs)]
	shown := make([]string, len(args))
	for i, a := range args {
		shown[i] = clip(a)
	}
	outcome := []slog.Attr{slog.String("outcome", "done")}
	if e.Err != nil {
		outcome = []slog.Attr{slog.String("outcome", "failed"), slog.String("error", clip(e.Err.Error()))}
	}
	return append([]slog.Attr{slog.String("user", e.User), slog.String("remote", e.Remote), slog.String("via", e.Via), slog.String("verb", e.Verb),
		slog.Any("args", shown)}, outcome...)
}

func clip(s string) string {
	if len(s) > MaxAuditArg {
		s = s[:MaxAuditArg] + "…"
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}
