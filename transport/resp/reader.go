package resp

import (
	"bytes"
	"errors"
	"io"
)

// Limits bound what one client can make a server hold. A zero field takes its default.
type Limits struct {
	// MaxCommandBytes bounds a command as it is on the wire. Default 64 MiB.
	MaxCommandBytes int
	// MaxArgs bounds the arguments of a command, its name included. Default 1,048,576.
	MaxArgs int
	// MaxInline bounds the line of an inline command. Default 64 KiB.
	MaxInline int
	// MaxPipeline bounds the commands that one ReadPipeline returns. Default 4096.
	MaxPipeline int
	// MaxPipelineBytes ends a pipeline once its commands have this many bytes
	// together; the last may go over. Default 8 MiB.
	MaxPipelineBytes int
}

// DefaultLimits are the limits that zero fields stand for.
func DefaultLimits() Limits {
	return Limits{
		MaxCommandBytes:  64 << 20,
		MaxArgs:          1 << 20,
		MaxInline:        64 << 10,
		MaxPipeline:      4096,
		MaxPipelineBytes: 8 << 20,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	for _, f := range []struct {
		field *int
		def   int
	}{
		{&l.MaxCommandBytes, d.MaxCommandBytes},
		{&l.MaxArgs, d.MaxArgs},
		{&l.MaxInline, d.MaxInline},
		{&l.MaxPipeline, d.MaxPipeline},
		{&l.MaxPipelineBytes, d.MaxPipelineBytes},
	} {
		if *f.field <= 0 {
			*f.field = f.def
		}
	}
	return l
}

// Command is what a client asked: the name in Args[0], then its arguments.
// There is at least one.
type Command struct {
	Args [][]byte
}

const (
	// minBuffer is what a connection starts with, most of ten thousand being idle.
	minBuffer = 4 << 10
	// keepBuffer is how far the buffer grows to read ahead, and what is kept
	// after a larger command has gone through.
	keepBuffer = 64 << 10
	// keepArgs bounds the argument slices kept between pipelines: enough for a
	// full buffer of small commands.
	keepArgs = 8192
	// maxHeader bounds a line with a count or a length. 19 digits, a sign, the
	// type and CR LF are 23 bytes.
	maxHeader = 32
)

// Reader reads commands from a client. Its bytes stay in one buffer and the
// arguments of the commands point into it.
type Reader struct {
	src io.Reader
	lim Limits

	// buf[begin:pos] is the parsed part of the unfinished command (or nothing),
	// buf[pos:end] has not been parsed. Invariant: begin <= pos <= end.
	buf             []byte
	begin, pos, end int
	readAhead       bool // the last read filled the buffer: there may be more

	// The unfinished command.
	want    int    // arguments still to come; 0 between commands
	bulk    int    // length of the next argument if its header has been read, else -1
	spans   []span // where the arguments so far are, from begin
	scanned int    // an inline line is known to have no end before begin+scanned

	args    [][]byte // backs Command.Args of the pipeline handed over last
	err     error    // a protocol error: every later call returns it
	readErr error    // a read error that came along with bytes
}

type span struct{ off, n int }

// NewReader returns a Reader of what arrives on src.
func NewReader(src io.Reader, lim Limits) *Reader {
	return &Reader{src: src, lim: lim.withDefaults(), bulk: -1}
}

// SetLimits replaces the limits, between two calls of ReadPipeline. They hold for what has not been parsed yet: with a
// MaxPipeline of 1 that is everything behind the command handed over last.
func (r *Reader) SetLimits(lim Limits) { r.lim = lim.withDefaults() }

// ReadPipeline waits for one complete command and appends it to dst together
// with every other one that has arrived complete, up to the limits. It never
// waits for a second. The arguments stay valid until the next call, so dst is
// usually the last result cut to [:0].
//
// Commands in front of a malformed one are returned first; the next call returns
// the *ProtocolError, as does each one after it. An error of the source is
// passed on as it is and what has arrived is kept, so reading can go on after a
// time-out. The end is io.EOF between commands and io.ErrUnexpectedEOF within one.
func (r *Reader) ReadPipeline(dst []Command) ([]Command, error) {
	if r.err != nil {
		return dst, r.err
	}
	r.args = r.args[:0]
	for {
		n := 0
		for start := r.begin; n < r.lim.MaxPipeline && r.begin-start < r.lim.MaxPipelineBytes; n++ {
			complete, err := r.parse()
			if err != nil {
				r.err = err
				if n > 0 {
					return dst, nil
				}
				return dst, err
			}
			if !complete {
				break
			}
			dst = append(dst, r.take())
		}
		if n > 0 {
			return dst, nil
		}
		if err := r.fill(dst); err != nil {
			return dst, err
		}
	}
}

// Buffered returns how many bytes have arrived that no returned command covers.
func (r *Reader) Buffered() int { return r.end - r.begin }

// Arguments returns how many arguments of the unfinished command have arrived.
// Each costs memory beside its bytes, which may be none.
func (r *Reader) Arguments() int {
	if r.want == 0 {
		return 0
	}
	return len(r.spans)
}

// Partial says whether ReadPipeline, called now, would first look at bytes that
// it holds already. Between calls, and inside the source's Read, it means that a
// command has begun and not ended: the moment to start the clock on a slow client.
func (r *Reader) Partial() bool { return r.end > r.begin }

// Shrink gives back the memory that earlier commands needed, as far as it is not
// in use. Call it for a connection that has been idle for a while, between two
// calls of ReadPipeline; the commands of the last one end with it.
func (r *Reader) Shrink() {
	if len(r.buf) > minBuffer {
		var buf []byte
		if held := r.buf[r.begin:r.end]; len(held) > 0 {
			buf = make([]byte, max(minBuffer, len(held)))
			copy(buf, held)
		}
		r.buf = buf
		r.pos -= r.begin
		r.end -= r.begin
		r.begin = 0
	}
	r.args = nil
	if r.want == 0 {
		r.spans = nil
	}
}

// take makes a command of the spans that parse found.
func (r *Reader) take() Command {
	first := len(r.args)
	for _, s := range r.spans {
		at := r.begin + s.off
		r.args = append(r.args, r.buf[at:at+s.n:at+s.n])
	}
	r.begin = r.pos
	return Command{Args: r.args[first:len(r.args):len(r.args)]}
}

// parse goes on with the unfinished command, or begins the next. It returns
// false when bytes are missing; it keeps its place, so that a command of many
// arguments that arrives slowly is gone through once and not once per read.
func (r *Reader) parse() (complete bool, err error) {
	for r.want == 0 {
		if r.pos == r.end {
			return false, nil
		}
		r.spans = r.spans[:0]
		if r.buf[r.pos] != '*' {
			if ok, err := r.parseInline(); !ok || err != nil {
				return false, err
			}
			if len(r.spans) > 0 {
				return true, nil
			}
		} else {
			n, ok, err := r.header("too big mbulk count string", "invalid multibulk length")
			if !ok || err != nil {
				return false, err
			}
			if n > int64(r.lim.MaxArgs) {
				return false, protocolErrorf("invalid multibulk length")
			}
			r.want = max(0, int(n))
		}
		if r.want == 0 { // an empty line or *0: nothing to answer
			r.begin = r.pos
		}
	}
	for r.want > 0 {
		if r.bulk < 0 {
			if r.pos == r.end {
				return false, nil
			}
			if c := r.buf[r.pos]; c != '$' {
				return false, protocolErrorf("expected '$', got %s", printable(c))
			}
			n, ok, err := r.header("too big bulk count string", "invalid bulk length")
			if !ok || err != nil {
				return false, err
			}
			if n < 0 || n > int64(r.lim.MaxCommandBytes) {
				return false, protocolErrorf("invalid bulk length")
			}
			if int(n) > r.lim.MaxCommandBytes-(r.pos-r.begin)-2 {
				return false, protocolErrorf("too big request: the limit is %d bytes", r.lim.MaxCommandBytes)
			}
			r.bulk = int(n)
		}
		if r.end-r.pos < r.bulk+2 {
			return false, nil
		}
		after := r.pos + r.bulk
		if r.buf[after] != '\r' || r.buf[after+1] != '\n' {
			// Redis skips two bytes unseen; from there on it would read the
			// client's values as commands.
			return false, protocolErrorf("expected CR LF after a bulk of %d bytes", r.bulk)
		}
		r.spans = append(r.spans, span{off: r.pos - r.begin, n: r.bulk})
		r.pos = after + 2
		r.bulk = -1
		r.want--
	}
	return true, nil
}

// header reads a count or length line whose first byte is its type.
func (r *Reader) header(tooLong, invalid string) (n int64, ok bool, err error) {
	line := r.buf[r.pos:min(r.end, r.pos+maxHeader)]
	nl := bytes.IndexByte(line, '\n')
	if nl < 0 {
		if len(line) == maxHeader {
			return 0, false, protocolErrorf("%s", tooLong)
		}
		return 0, false, nil
	}
	if line[nl-1] != '\r' { // nl > 0: the type byte is in front
		return 0, false, protocolErrorf("%s", invalid)
	}
	n, ok = parseInt(line[1 : nl-1])
	if !ok {
		return 0, false, protocolErrorf("%s", invalid)
	}
	r.pos += nl + 1
	return n, true, nil
}

// fill reads once from the source. It is called only when no command is
// complete, so nothing but the unfinished one has to be kept.
func (r *Reader) fill(dst []Command) error {
	if err := r.readErr; err != nil {
		r.readErr = nil
		return r.ended(err)
	}
	r.makeRoom(dst)
	for range 100 {
		n, err := r.src.Read(r.buf[r.end:])
		if n < 0 || n > len(r.buf)-r.end {
			return errors.New("resp: source returned an impossible count")
		}
		r.end += n
		if n > 0 {
			r.readAhead = r.end == len(r.buf)
			r.readErr = err
			return nil
		}
		if err != nil {
			return r.ended(err)
		}
	}
	return io.ErrNoProgress
}

func (r *Reader) ended(err error) error {
	if err == io.EOF && r.Partial() {
		return io.ErrUnexpectedEOF
	}
	return err
}

// makeRoom moves the unfinished command to the front of the buffer and sees to
// it that there is space behind it.
func (r *Reader) makeRoom(dst []Command) {
	held := r.end - r.begin
	size := len(r.buf)
	used := max(held, r.need())
	switch {
	case size > keepBuffer && used <= size/4:
		// A large command has gone. Its arguments must not keep the buffer alive.
		size = max(keepBuffer, 2*used)
		clear(dst[len(dst):cap(dst)])
		r.args = nil
	case size == 0:
		size = minBuffer
	case held == size:
		size = r.grown(size)
	case r.readAhead && size < keepBuffer:
		size *= 2
	}
	if cap(r.args) > keepArgs {
		r.args = nil
	}
	if cap(r.spans) > keepArgs && r.want == 0 {
		r.spans = nil
	}
	if size != len(r.buf) {
		buf := make([]byte, size)
		copy(buf, r.buf[r.begin:r.end])
		r.buf = buf
	} else if r.begin > 0 {
		copy(r.buf, r.buf[r.begin:r.end])
	}
	r.pos -= r.begin
	r.end = held
	r.begin = 0
}

// need is how long the unfinished command will be at least, as far as its headers say.
func (r *Reader) need() int {
	if r.want == 0 || r.bulk < 0 {
		return 0
	}
	return r.pos - r.begin + r.bulk + 2
}

// grown is the next size of a full buffer: double, so that copying stays in
// proportion to what arrives, but not beyond where the unfinished command ends.
func (r *Reader) grown(size int) int {
	most := max(r.lim.MaxCommandBytes, r.lim.MaxInline) + maxHeader
	if n := r.need(); n > 0 && r.want == 1 {
		most = min(most, n+minBuffer)
	}
	return max(min(2*size, most), size+maxHeader)
}

// printable shows a byte in an error message.
func printable(c byte) string {
	if c >= ' ' && c <= '~' {
		return "'" + string(rune(c)) + "'"
	}
	const hex = "0123456789abcdef"
	return `'\x` + string(hex[c>>4]) + string(hex[c&15]) + "'"
}
