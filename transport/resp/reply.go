package resp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
)

// Type is the first byte of a reply.
type Type byte

const (
	TypeSimple    Type = '+' // Str
	TypeError     Type = '-' // Str: code word, blank, message
	TypeInt       Type = ':' // Int
	TypeBulk      Type = '$' // Str
	TypeNull      Type = '_' // also RESP2's null string and null array
	TypeBool      Type = '#' // Int 1 or 0
	TypeDouble    Type = ',' // Float
	TypeBigNumber Type = '(' // Str: decimal digits
	TypeVerbatim  Type = '=' // Str, without its format
	TypeArray     Type = '*' // Elems
	TypeSet       Type = '~' // Elems
	TypePush      Type = '>' // Elems; answers no command
	TypeMap       Type = '%' // Elems: key, value, key, value …
)

// Reply is an answer of a server: a tree. Its bytes are its own.
type Reply struct {
	Type  Type
	Int   int64
	Float float64
	Str   []byte
	Elems []Reply
}

// IsNull says whether the reply is the absence of a value.
func (r Reply) IsNull() bool { return r.Type == TypeNull }

// Err returns the reply as a *ServerError if it is an error, else nil.
func (r Reply) Err() error {
	if r.Type != TypeError {
		return nil
	}
	return &ServerError{Text: string(r.Str)}
}

// ServerError is an error that a server answered.
type ServerError struct{ Text string }

func (e *ServerError) Error() string { return e.Text }

// Code is the first word of the error, such as ERR or MOVED.
func (e *ServerError) Code() string {
	code, _, _ := strings.Cut(e.Text, " ")
	return code
}

// ReplyLimits bound what one reply can make a client hold. A zero field takes its default.
type ReplyLimits struct {
	// MaxBytes bounds the strings of a reply together. Default 256 MiB.
	MaxBytes int
	// MaxElements bounds the values in a reply, at all depths together. Default 2,097,152.
	MaxElements int
	// MaxDepth bounds how deep arrays nest. Default 16.
	MaxDepth int
	// MaxLine bounds a simple string, an error or a number. Default 64 KiB.
	MaxLine int
}

// DefaultReplyLimits are the limits that zero fields stand for.
func DefaultReplyLimits() ReplyLimits {
	return ReplyLimits{MaxBytes: 256 << 20, MaxElements: 2 << 20, MaxDepth: 16, MaxLine: 64 << 10}
}

// maxCount bounds any length whatever the limits, so that twice a length fits an int.
const maxCount = 1 << 30

// ReplyReader reads replies from a server.
type ReplyReader struct {
	src *bufio.Reader
	lim ReplyLimits

	// What the reply being read may still use.
	bytes, elements int

	long []byte // a line that did not fit the buffer of src
	err  error  // every later call returns it
}

// NewReplyReader returns a ReplyReader of what arrives on src.
func NewReplyReader(src io.Reader, lim ReplyLimits) *ReplyReader {
	d := DefaultReplyLimits()
	if lim.MaxBytes <= 0 {
		lim.MaxBytes = d.MaxBytes
	}
	if lim.MaxElements <= 0 {
		lim.MaxElements = d.MaxElements
	}
	if lim.MaxDepth <= 0 {
		lim.MaxDepth = d.MaxDepth
	}
	if lim.MaxLine <= 0 {
		lim.MaxLine = d.MaxLine
	}
	return &ReplyReader{src: bufio.NewReaderSize(src, 16<<10), lim: lim}
}

// ReadReply reads one reply: the answer to the oldest command without one, or a
// push. Attributes are read over. An error that the server answered is a Reply
// (see Reply.Err), not an error.
//
// An error of the source before the first byte of a reply is passed on and
// reading may go on (after a time-out, say); io.EOF there is a clean end. After
// any other error the place in the stream is lost, and every later call returns
// that error.
func (r *ReplyReader) ReadReply() (Reply, error) {
	if r.err != nil {
		return Reply{}, r.err
	}
	if _, err := r.src.Peek(1); err != nil {
		return Reply{}, err
	}
	r.bytes, r.elements = r.lim.MaxBytes, r.lim.MaxElements
	reply, err := r.value(0)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	r.err = err
	return reply, err
}

// Buffered returns how many bytes have arrived that no returned reply covers.
func (r *ReplyReader) Buffered() int { return r.src.Buffered() }

func (r *ReplyReader) value(depth int) (Reply, error) {
	for {
		if r.elements--; r.elements < 0 {
			return Reply{}, protocolErrorf("reply of more than %d values", r.lim.MaxElements)
		}
		line, err := r.line()
		if err != nil {
			return Reply{}, err
		}
		if len(line) == 0 {
			return Reply{}, protocolErrorf("empty line in place of a reply")
		}
		if line[0] != '|' {
			return r.typed(Type(line[0]), line[1:], depth)
		}
		// An attribute: pairs that describe the value behind them.
		n, _, err := r.count(line[1:])
		if err != nil {
			return Reply{}, err
		}
		if _, err := r.elems(2*n, depth); err != nil {
			return Reply{}, err
		}
	}
}

func (r *ReplyReader) typed(t Type, line []byte, depth int) (Reply, error) {
	reply := Reply{Type: t}
	switch t {
	case TypeSimple, TypeError:
		if r.bytes -= len(line); r.bytes < 0 {
			return Reply{}, r.tooBig()
		}
		reply.Str = bytes.Clone(line)
		return reply, nil
	case TypeBigNumber:
		if r.bytes -= len(line); r.bytes < 0 {
			return Reply{}, r.tooBig()
		}
		if !isDecimal(line) {
			return Reply{}, protocolErrorf("invalid big number")
		}
		reply.Str = bytes.Clone(line)
		return reply, nil
	case TypeInt:
		n, ok := parseInt(line)
		if !ok {
			return Reply{}, protocolErrorf("invalid integer")
		}
		reply.Int = n
		return reply, nil
	case TypeNull:
		if len(line) != 0 {
			return Reply{}, protocolErrorf("invalid null")
		}
		return reply, nil
	case TypeBool:
		if len(line) != 1 || line[0] != 't' && line[0] != 'f' {
			return Reply{}, protocolErrorf("invalid boolean")
		}
		if line[0] == 't' {
			reply.Int = 1
		}
		return reply, nil
	case TypeDouble:
		f, err := strconv.ParseFloat(string(line), 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) { // out of range: infinity or zero
			return Reply{}, protocolErrorf("invalid double")
		}
		reply.Float = f
		return reply, nil
	case TypeBulk, TypeVerbatim:
		n, null, err := r.count(line)
		if err != nil {
			return Reply{}, err
		}
		if null {
			return Reply{Type: TypeNull}, nil
		}
		if reply.Str, err = r.bulk(n); err != nil {
			return Reply{}, err
		}
		if t == TypeVerbatim {
			if n < 4 || reply.Str[3] != ':' {
				return Reply{}, protocolErrorf("invalid verbatim string")
			}
			reply.Str = reply.Str[4:]
		}
		return reply, nil
	case TypeArray, TypeSet, TypePush, TypeMap:
		n, null, err := r.count(line)
		if err != nil {
			return Reply{}, err
		}
		if null {
			return Reply{Type: TypeNull}, nil
		}
		if t == TypeMap {
			n *= 2 // cannot overflow: see maxCount
		}
		reply.Elems, err = r.elems(n, depth)
		return reply, err
	}
	return Reply{}, protocolErrorf("unknown reply type %s", printable(byte(t)))
}

// elems reads n values one level down. Space is made as they arrive.
func (r *ReplyReader) elems(n, depth int) ([]Reply, error) {
	if depth >= r.lim.MaxDepth {
		return nil, protocolErrorf("reply nested deeper than %d", r.lim.MaxDepth)
	}
	if n > r.elements {
		return nil, protocolErrorf("reply of more than %d values", r.lim.MaxElements)
	}
	elems := make([]Reply, 0, min(n, 64))
	for range n {
		e, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		elems = append(elems, e)
	}
	return elems, nil
}

// bulk reads n bytes and the line end behind them. Space is made as they arrive.
func (r *ReplyReader) bulk(n int) ([]byte, error) {
	if r.bytes -= n; r.bytes < 0 {
		return nil, r.tooBig()
	}
	const step = 64 << 10
	b := make([]byte, min(n, step))
	for got := 0; ; {
		m, err := io.ReadFull(r.src, b[got:])
		if err != nil {
			return nil, err
		}
		if got += m; got == n {
			break
		}
		more := make([]byte, min(n, 2*got))
		copy(more, b)
		b = more
	}
	end, err := r.src.Peek(2)
	if err != nil {
		return nil, err
	}
	if end[0] != '\r' || end[1] != '\n' {
		return nil, protocolErrorf("expected CR LF after a bulk of %d bytes", n)
	}
	_, err = r.src.Discard(2)
	return b, err
}

// count parses the length in a header; null is RESP2's -1.
func (r *ReplyReader) count(line []byte) (n int, null bool, err error) {
	v, ok := parseInt(line)
	switch {
	case ok && v == -1:
		return 0, true, nil
	case !ok || v < 0 || v >= maxCount:
		return 0, false, protocolErrorf("invalid length")
	}
	return int(v), false, nil
}

// line reads up to CR LF, which it cuts off. It is valid until the next read.
func (r *ReplyReader) line() ([]byte, error) {
	b, err := r.src.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		r.long = r.long[:0]
		for err == bufio.ErrBufferFull && len(r.long) <= r.lim.MaxLine {
			r.long = append(r.long, b...)
			b, err = r.src.ReadSlice('\n')
		}
		r.long = append(r.long, b...)
		b = r.long
	}
	if len(b) > r.lim.MaxLine+3 { // the type byte and CR LF
		return nil, protocolErrorf("line longer than %d bytes", r.lim.MaxLine)
	}
	if err != nil {
		return nil, err
	}
	if cr := bytes.IndexByte(b, '\r'); cr < 0 || cr != len(b)-2 {
		return nil, protocolErrorf("line without CR LF at its end")
	}
	return b[:len(b)-2], nil
}

func (r *ReplyReader) tooBig() error {
	return protocolErrorf("reply of more than %d bytes", r.lim.MaxBytes)
}

func isDecimal(b []byte) bool {
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		b = b[1:]
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0
}
