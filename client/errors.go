package client

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNotFound: there is no such key, or no such job.
	ErrNotFound = errors.New("not found")

	// ErrUncertain: a write left this process and its fate is unknown: it may
	// have been executed, it may yet be, or never. Read the key to find out; a
	// job has an id, and may be submitted again with it.
	ErrUncertain = errors.New("outcome unknown")

	// ErrUnavailable: the cluster did not take the command before the deadline.
	// It was certainly not executed.
	ErrUnavailable = errors.New("cluster unavailable")

	// ErrBusy: too many jobs wait already, and this one was not queued. The message says when to try again.
	ErrBusy = errors.New("too many jobs wait")

	// ErrTimeout is in the chain, beside ErrUncertain or ErrUnavailable, when
	// the caller's deadline ended the attempts.
	ErrTimeout = errors.New("deadline passed")

	// ErrTooManyClients is in the chain, beside ErrUnavailable, when the node that
	// was asked last had as many clients as it takes.
	ErrTooManyClients = errors.New("the node has as many clients as it takes")

	// ErrTLS is in the chain, beside ErrUnavailable, when a node that was asked speaks TLS and we do not, or the other way round, or
	// when one side's certificate was not taken.
	ErrTLS = errors.New("no agreement on TLS")

	// ErrNotClientPort is in the chain, beside ErrUnavailable, when what listens at
	// the address does not speak the protocol of a node's client port.
	ErrNotClientPort = errors.New("not a client port of a node")

	// ErrClosed: the client was closed. What was not yet sent was not executed.
	ErrClosed = errors.New("client is closed")

	// ErrTooLarge: a key, value or command over the cluster's limit.
	ErrTooLarge = errors.New("too large")

	// ErrDiskFull: a disk of the cluster has no room for more data. The command was
	// certainly not executed, and is not worth repeating until somebody has made room.
	ErrDiskFull = errors.New("disk full")

	// ErrAuth: the cluster does not know the user and token, or was not given any.
	ErrAuth = errors.New("not authenticated")

	// ErrNoPermission: the user has no right to the command, or to a key of it. It was not executed.
	ErrNoPermission = errors.New("no permission")

	// ErrBadJob: the job's specification was refused.
	ErrBadJob = errors.New("bad job")
)

// ServerError is an error that the cluster answered: the command was refused.
type ServerError struct {
	Code    string // first word of the answer: ERR, WRONGTYPE, TOOLARGE ...
	Message string // the rest
}

func (e *ServerError) Error() string {
	if e.Code == "ERR" {
		return e.Message
	}
	return e.Code + " " + e.Message
}

// Is ties the codes that callers ask about to this package's sentinels.
func (e *ServerError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Code == "NOTFOUND"
	case ErrTooLarge:
		return e.Code == "TOOLARGE"
	case ErrDiskFull:
		return e.Code == "DISKFULL"
	case ErrAuth:
		return e.Code == "NOAUTH" || e.Code == "WRONGPASS"
	case ErrNoPermission:
		return e.Code == "NOPERM"
	case ErrBadJob:
		return e.Code == "BADJOB"
	case ErrBusy:
		return e.Code == "BUSY"
	case ErrUncertain:
		return e.Code == "UNCERTAIN"
	}
	return false
}

// refused says that the server answered "not now, and certainly not executed".
func (e *ServerError) refused() bool {
	switch e.Code {
	case "MOVED", "TRYAGAIN", "CLUSTERDOWN", "LOADING":
		return true
	}
	return false
}

// lost says that the server does not find who would execute it. It may be cut off from the others, and not know for how
// long: it tells its old routes, too. So another one is asked.
func (e *ServerError) lost() bool { return e.Code == "CLUSTERDOWN" || e.Code == "TRYAGAIN" }

func parseServerError(text string) *ServerError {
	code, rest, _ := strings.Cut(text, " ")
	if code == "" || strings.ToUpper(code) != code {
		return &ServerError{Code: "ERR", Message: text}
	}
	if code == "BADJOB" { // a tab begins a line, as those that show the place of a fault
		rest = strings.ReplaceAll(rest, "\t", "\n")
	}
	return &ServerError{Code: code, Message: rest}
}

// CommandError is a command that this client gave up. Kind is ErrUncertain,
// ErrUnavailable or ErrClosed; Cause is what the last attempt met, and the one before if the
// deadline cut off the last.
type CommandError struct {
	Command  string // the command's name
	Kind     error
	Cause    error
	Attempts int
}

func (e *CommandError) Error() string {
	hint := ""
	switch e.Kind {
	case ErrUncertain:
		hint = " (it may have been executed: read the key before repeating it)"
		switch e.Command {
		case "JOB.SUBMIT":
			hint = " (it may have been submitted: look at the list of jobs, or submit it again with the same id)"
		case "JOB.RETRY":
			hint = " (it may have been submitted: look at the list of jobs, or try it again with the same new id)"
		case "JOB.DELETE":
			hint = " (it may have been deleted: look at the list of jobs, or delete it again)"
		case "JOB.CANCEL":
			hint = " (it may have been cancelled: look at its status, or cancel it again)"
		}
	case ErrUnavailable:
		hint = " (it was not executed)"
	}
	if e.Cause == nil {
		return fmt.Sprintf("%s: %v%s", e.Command, e.Kind, hint)
	}
	return fmt.Sprintf("%s: %v%s: %v", e.Command, e.Kind, hint, e.Cause)
}

func (e *CommandError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

// linkError is an attempt that brought no answer. Sent says whether the command
// may have reached the node.
type linkError struct {
	addr string
	sent bool
	err  error
}

func (e *linkError) Error() string { return fmt.Sprintf("%s: %v", e.addr, e.err) }
func (e *linkError) Unwrap() error { return e.err }
