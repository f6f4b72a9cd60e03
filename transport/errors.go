package transport

import (
	"errors"
	"fmt"
)

// Code numbers the errors that cross the wire. Do not reorder this list.
type Code uint16

const (
	CodeUnknown Code = iota
	// CodeUnavailable: the request was certainly not delivered (no link, refused, queue full).
	CodeUnavailable
	// CodeLinkLost: the request was sent and the link broke, or the wait ended;
	// whether the peer acted on it is unknown.
	CodeLinkLost
	// CodeWrongCluster: the peer belongs to another cluster.
	CodeWrongCluster
	// CodeWrongNode: the address is another node's.
	CodeWrongNode
	// CodeNoMethod: the peer does not know the method.
	CodeNoMethod
	// CodeTooLarge: a frame over the limit.
	CodeTooLarge
	// CodeBadRequest: the peer could not decode the request.
	CodeBadRequest
	// CodeNotLeader: certainly not executed; Detail is the leader's node id, or empty.
	CodeNotLeader
	// CodeNoReplica: the peer holds no such replica; certainly not executed.
	CodeNoReplica
	// CodeBusy: refused for load; certainly not executed.
	CodeBusy
	// CodeUncertain: a write was proposed and its fate is unknown.
	CodeUncertain
	// CodeRefused: refused for a reason that is in Detail; retrying will not help.
	CodeRefused
	// CodeClosed: the peer (or this transport) is stopping; certainly not executed.
	CodeClosed
	// CodeConflict: somebody else changed it first; certainly not executed.
	CodeConflict
	// CodeTimeout: the deadline passed before the request was acted on; certainly not executed.
	CodeTimeout
	// CodeNotFound: there is no such thing (a job, a record).
	CodeNotFound
	// CodeSlotsMoved: the shard does not own all slots that were asked about, or does not yet; certainly
	// not executed. The same question to their present owner will be answered.
	CodeSlotsMoved
	// CodeWrongEra: the peer belongs to this cluster in another era: one of the two has missed a recovery.
	CodeWrongEra
	// CodeNoPin: the replica does not hold the pinned view that was asked for; certainly not executed.
	CodeNoPin
)

// Error is an error with a number. It compares by Code with errors.Is.
type Error struct {
	Code   Code
	Detail string
	// refused: nobody listens at the peer's address.
	refused bool
	// untrusted: one side does not take the other's certificate, or has none.
	untrusted bool
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Code.String()
	}
	return e.Code.String() + ": " + e.Detail
}

// Is makes errors.Is(err, &Error{Code: c}) compare codes.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && (t.Detail == "" || t.Detail == e.Detail)
}

// Errorf builds a numbered error.
func Errorf(c Code, format string, args ...any) *Error {
	return &Error{Code: c, Detail: fmt.Sprintf(format, args...)}
}

// CodeOf returns the number of err, CodeUnknown if it has none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeUnknown
}

// Certain says whether err proves that the request had no effect, so that it
// may be sent again without asking anybody.
func Certain(err error) bool {
	switch CodeOf(err) {
	case CodeUnavailable, CodeWrongCluster, CodeWrongNode, CodeNoMethod, CodeTooLarge, CodeBadRequest,
		CodeNotLeader, CodeNoReplica, CodeBusy, CodeRefused, CodeClosed, CodeConflict, CodeTimeout, CodeNotFound, CodeSlotsMoved, CodeWrongEra, CodeNoPin:
		return true
	}
	return false
}

var codeNames = [...]string{"unknown error", "peer unavailable", "link lost", "wrong cluster", "wrong node", "no such method",
	"too large", "bad request", "not leader", "no such replica", "busy", "uncertain", "refused", "closed", "conflict", "timeout", "not found", "slots moved", "wrong era", "no such pin"}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error %d", uint16(c))
}

// AsError is how an error of a handler crosses the wire: with its number and
// detail if it has one anywhere in its chain, else as CodeUnknown with its
// text. It is nil for nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: CodeUnknown, Detail: err.Error()}
}
