package resp

import (
	"io"
	"math"
	"strconv"
)

const (
	// flushAt is how many bytes of replies gather before they are written.
	flushAt = 32 << 10
	// directAt is the length from which a bulk is written from where it is: below,
	// a copy costs less than a second system call.
	directAt = 64 << 10
	// keepWritten is the largest buffer kept after a flush.
	keepWritten = 2 * (flushAt + directAt)
)

// Writer writes replies to a client, in the protocol version that the client
// chose. Replies gather in a buffer that is written when it is full and by
// Flush. An aggregate (Array, Map, Set, Push) is announced by its length; its
// elements are the replies that follow. After an error of the destination
// everything else is dropped and Flush returns the error.
type Writer struct {
	dst   io.Writer
	proto int
	buf   []byte
	err   error
}

// NewWriter returns a Writer that speaks RESP2 until SetProto.
func NewWriter(dst io.Writer) *Writer { return &Writer{dst: dst, proto: 2} }

// SetProto chooses RESP 2 or 3 for the replies that follow.
func (w *Writer) SetProto(version int) {
	if version != 2 && version != 3 {
		panic("resp: protocol version " + strconv.Itoa(version))
	}
	w.proto = version
}

// Proto returns the version in use.
func (w *Writer) Proto() int { return w.proto }

// Flush writes what has gathered.
func (w *Writer) Flush() error {
	if w.err == nil && len(w.buf) > 0 {
		n, err := w.dst.Write(w.buf)
		w.wrote(n, len(w.buf), err)
	}
	if w.buf = w.buf[:0]; cap(w.buf) > keepWritten {
		w.buf = nil
	}
	return w.err
}

// Buffered returns how many bytes wait for Flush.
func (w *Writer) Buffered() int { return len(w.buf) }

// Shrink gives the buffer back if it is empty; see Reader.Shrink.
func (w *Writer) Shrink() {
	if len(w.buf) == 0 {
		w.buf = nil
	}
}

// SimpleString writes a short text such as OK. It cannot hold line ends: they
// become blanks, for behind one the client would read the text as a reply.
func (w *Writer) SimpleString(s string) { w.line('+', s) }

// Error writes an error: a code word such as ERR, a blank and a message. Line
// ends become blanks.
func (w *Writer) Error(msg string) { w.line('-', msg) }

// Int writes an integer.
func (w *Writer) Int(n int64) {
	w.buf = appendHeader(w.buf, ':', n)
	w.spill()
}

// Bulk writes a string of any bytes. A nil slice is an empty string; absence is Null.
func (w *Writer) Bulk(b []byte) {
	w.buf = appendHeader(w.buf, '$', int64(len(b)))
	if len(b) >= directAt {
		if w.Flush() == nil {
			n, err := w.dst.Write(b)
			w.wrote(n, len(b), err)
		}
	} else {
		w.buf = append(w.buf, b...)
	}
	w.buf = append(w.buf, '\r', '\n')
	w.spill()
}

// BulkString is Bulk for a string.
func (w *Writer) BulkString(s string) {
	w.buf = appendHeader(w.buf, '$', int64(len(s)))
	if len(s) >= directAt {
		if w.Flush() == nil {
			n, err := io.WriteString(w.dst, s)
			w.wrote(n, len(s), err)
		}
	} else {
		w.buf = append(w.buf, s...)
	}
	w.buf = append(w.buf, '\r', '\n')
	w.spill()
}

// Null writes the absence of a value.
func (w *Writer) Null() {
	if w.proto == 3 {
		w.raw("_\r\n")
	} else {
		w.raw("$-1\r\n")
	}
}

// NullArray writes the absence of an array, which RESP2 tells from that of a string.
func (w *Writer) NullArray() {
	if w.proto == 3 {
		w.raw("_\r\n")
	} else {
		w.raw("*-1\r\n")
	}
}

// Array announces n elements.
func (w *Writer) Array(n int) { w.aggregate('*', '*', n, n) }

// Map announces n pairs of key and value; in RESP2 an array of 2n.
func (w *Writer) Map(n int) { w.aggregate('%', '*', n, 2*n) }

// Set announces n distinct elements; in RESP2 an array.
func (w *Writer) Set(n int) { w.aggregate('~', '*', n, n) }

// Push announces a message of n elements that answers nothing; in RESP2 an array.
func (w *Writer) Push(n int) { w.aggregate('>', '*', n, n) }

// Bool writes a truth value; in RESP2 the integer 1 or 0.
func (w *Writer) Bool(b bool) {
	switch {
	case w.proto == 3 && b:
		w.raw("#t\r\n")
	case w.proto == 3:
		w.raw("#f\r\n")
	case b:
		w.raw(":1\r\n")
	default:
		w.raw(":0\r\n")
	}
}

// Double writes a floating-point number in the shortest form that reads back
// the same; in RESP2 a string.
func (w *Writer) Double(f float64) {
	var text [32]byte
	s := text[:0]
	switch {
	case math.IsInf(f, 1):
		s = append(s, "inf"...)
	case math.IsInf(f, -1):
		s = append(s, "-inf"...)
	case math.IsNaN(f):
		s = append(s, "nan"...)
	default:
		s = strconv.AppendFloat(s, f, 'g', -1, 64)
	}
	if w.proto != 3 {
		w.Bulk(s)
		return
	}
	w.buf = append(w.buf, ',')
	w.buf = append(w.buf, s...)
	w.raw("\r\n")
}

// BigNumber writes an integer of any size, given in decimal; in RESP2 a string.
func (w *Writer) BigNumber(digits string) {
	if w.proto != 3 {
		w.BulkString(digits)
		return
	}
	w.line('(', digits)
}

// Verbatim writes text to be shown as it is, with its format in three letters
// (txt, mkd); in RESP2 a string without the format.
func (w *Writer) Verbatim(format, text string) {
	if w.proto != 3 {
		w.BulkString(text)
		return
	}
	if len(format) != 3 {
		panic("resp: verbatim format " + strconv.Quote(format))
	}
	w.buf = appendHeader(w.buf, '=', int64(len(text)+4))
	w.buf = append(w.buf, format...)
	w.buf = append(w.buf, ':')
	w.buf = append(w.buf, text...)
	w.raw("\r\n")
}

func (w *Writer) aggregate(kind3, kind2 byte, n3, n2 int) {
	if w.proto == 3 {
		w.buf = appendHeader(w.buf, kind3, int64(n3))
	} else {
		w.buf = appendHeader(w.buf, kind2, int64(n2))
	}
	w.spill()
}

func (w *Writer) line(kind byte, s string) {
	w.buf = append(w.buf, kind)
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\r' || c == '\n' {
			c = ' '
		}
		w.buf = append(w.buf, c)
	}
	w.raw("\r\n")
}

func (w *Writer) raw(s string) {
	w.buf = append(w.buf, s...)
	w.spill()
}

// spill writes the buffer when it is full, so that a reply of many elements does
// not gather whole in memory.
func (w *Writer) spill() {
	if len(w.buf) >= flushAt {
		_ = w.Flush() // kept in w.err
	}
}

// wrote takes the outcome of a write: n of all bytes.
func (w *Writer) wrote(n, all int, err error) {
	if err == nil && n < all {
		err = io.ErrShortWrite
	}
	w.err = err
}
