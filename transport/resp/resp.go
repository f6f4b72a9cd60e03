// Package resp speaks the Redis serialization protocol, versions 2 and 3: the
// server's side in Reader and Writer, the client's in AppendCommand and
// ReplyReader.
//
// Whoever connects may send anything, so every length is checked before memory
// is set aside for it, and memory grows only as bytes arrive: a header that
// promises 60 MiB costs its sender 60 MiB of traffic before it costs us 60 MiB
// of memory. The loop to read first is Reader.ReadPipeline, which hands over
// every complete command that has arrived, so that a pipeline can be executed as
// one. Nothing here starts a goroutine or sets a deadline; each value belongs to
// one goroutine and whoever owns the connection owns its time-outs.
package resp

import (
	"fmt"
	"strconv"
)

// ProtocolError says that the peer sent something that is not RESP, or more than
// is allowed. What follows on the connection cannot be understood: answer with
// the error and close.
type ProtocolError struct{ Reason string }

// Error uses Redis' wording, which clients and people know.
func (e *ProtocolError) Error() string { return "Protocol error: " + e.Reason }

func protocolErrorf(format string, args ...any) *ProtocolError {
	return &ProtocolError{Reason: fmt.Sprintf(format, args...)}
}

// AppendCommand appends a command in the form that every server reads: an array
// of bulk strings.
func AppendCommand(buf []byte, args ...[]byte) []byte {
	buf = appendHeader(buf, '*', int64(len(args)))
	for _, a := range args {
		buf = appendHeader(buf, '$', int64(len(a)))
		buf = append(buf, a...)
		buf = append(buf, '\r', '\n')
	}
	return buf
}

// AppendCommandStrings is AppendCommand for strings.
func AppendCommandStrings(buf []byte, args ...string) []byte {
	buf = appendHeader(buf, '*', int64(len(args)))
	for _, a := range args {
		buf = appendHeader(buf, '$', int64(len(a)))
		buf = append(buf, a...)
		buf = append(buf, '\r', '\n')
	}
	return buf
}

func appendHeader(buf []byte, kind byte, n int64) []byte {
	buf = append(buf, kind)
	buf = strconv.AppendInt(buf, n, 10)
	return append(buf, '\r', '\n')
}

// parseInt reads a decimal 64-bit integer in its one canonical form, as Redis
// does: no plus sign, no leading zeros, no blanks.
func parseInt(b []byte) (int64, bool) {
	digits := b
	negative := len(b) > 0 && b[0] == '-'
	if negative {
		digits = b[1:]
	}
	if len(digits) == 0 || len(digits) > 19 || (digits[0] == '0' && len(b) > 1) {
		return 0, false
	}
	var n uint64 // 19 digits fit
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	if negative {
		if n > 1<<63 {
			return 0, false
		}
		return -int64(n), true
	}
	return int64(n), n < 1<<63
}
