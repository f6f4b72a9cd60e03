package resp

import (
	"bytes"
	"errors"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestWriter(t *testing.T) {
	for name, tc := range map[string]struct {
		write        func(*Writer)
		resp2, resp3 string
	}{
		"simple":            {func(w *Writer) { w.SimpleString("OK") }, "+OK\r\n", "+OK\r\n"},
		"simple line ends":  {func(w *Writer) { w.SimpleString("a\r\nb\nc") }, "+a  b c\r\n", "+a  b c\r\n"},
		"error":             {func(w *Writer) { w.Error("ERR no") }, "-ERR no\r\n", "-ERR no\r\n"},
		"error line ends":   {func(w *Writer) { w.Error("ERR '\r\n+OK\r\n'") }, "-ERR '  +OK  '\r\n", "-ERR '  +OK  '\r\n"},
		"int":               {func(w *Writer) { w.Int(-42) }, ":-42\r\n", ":-42\r\n"},
		"least int":         {func(w *Writer) { w.Int(math.MinInt64) }, ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"},
		"bulk":              {func(w *Writer) { w.Bulk([]byte("a\r\n\x00")) }, "$4\r\na\r\n\x00\r\n", "$4\r\na\r\n\x00\r\n"},
		"empty bulk":        {func(w *Writer) { w.Bulk(nil) }, "$0\r\n\r\n", "$0\r\n\r\n"},
		"bulk string":       {func(w *Writer) { w.BulkString("abc") }, "$3\r\nabc\r\n", "$3\r\nabc\r\n"},
		"null":              {func(w *Writer) { w.Null() }, "$-1\r\n", "_\r\n"},
		"null array":        {func(w *Writer) { w.NullArray() }, "*-1\r\n", "_\r\n"},
		"array":             {func(w *Writer) { w.Array(2); w.Int(1); w.Null() }, "*2\r\n:1\r\n$-1\r\n", "*2\r\n:1\r\n_\r\n"},
		"map":               {func(w *Writer) { w.Map(1); w.BulkString("k"); w.Int(1) }, "*2\r\n$1\r\nk\r\n:1\r\n", "%1\r\n$1\r\nk\r\n:1\r\n"},
		"set":               {func(w *Writer) { w.Set(1); w.Int(1) }, "*1\r\n:1\r\n", "~1\r\n:1\r\n"},
		"push":              {func(w *Writer) { w.Push(1); w.Int(1) }, "*1\r\n:1\r\n", ">1\r\n:1\r\n"},
		"true":              {func(w *Writer) { w.Bool(true) }, ":1\r\n", "#t\r\n"},
		"false":             {func(w *Writer) { w.Bool(false) }, ":0\r\n", "#f\r\n"},
		"double":            {func(w *Writer) { w.Double(0.1) }, "$3\r\n0.1\r\n", ",0.1\r\n"},
		"whole double":      {func(w *Writer) { w.Double(10) }, "$2\r\n10\r\n", ",10\r\n"},
		"infinity":          {func(w *Writer) { w.Double(math.Inf(1)) }, "$3\r\ninf\r\n", ",inf\r\n"},
		"minus infinity":    {func(w *Writer) { w.Double(math.Inf(-1)) }, "$4\r\n-inf\r\n", ",-inf\r\n"},
		"nan":               {func(w *Writer) { w.Double(math.NaN()) }, "$3\r\nnan\r\n", ",nan\r\n"},
		"big number":        {func(w *Writer) { w.BigNumber("123456789012345678901") }, "$21\r\n123456789012345678901\r\n", "(123456789012345678901\r\n"},
		"verbatim":          {func(w *Writer) { w.Verbatim("txt", "a\nb") }, "$3\r\na\nb\r\n", "=7\r\ntxt:a\nb\r\n"},
		"changing versions": {func(w *Writer) { w.SetProto(3); w.Null(); w.SetProto(2); w.Null() }, "_\r\n$-1\r\n", "_\r\n$-1\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			for proto, want := range map[int]string{2: tc.resp2, 3: tc.resp3} {
				var out bytes.Buffer
				w := NewWriter(&out)
				w.SetProto(proto)
				tc.write(w)
				if out.Len() > 0 {
					t.Errorf("RESP%d: written before Flush", proto)
				}
				if w.Buffered() != len(want) {
					t.Errorf("RESP%d: %d bytes wait, want %d", proto, w.Buffered(), len(want))
				}
				if err := w.Flush(); err != nil {
					t.Fatal(err)
				}
				if out.String() != want {
					t.Errorf("RESP%d: got %q, want %q", proto, out.String(), want)
				}
			}
		})
	}
}

// Replies larger than the buffer reach the reader whole and in order, and the
// memory that a large one took is not kept.
func TestWriterLargeReplies(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out)
	var want []string
	for _, n := range []int{0, 1, flushAt - 5, flushAt, directAt - 1, directAt, 1 << 20, 3} {
		for _, c := range []string{"b", "s", "v"} {
			want = append(want, strings.Repeat(c, n))
		}
		w.Bulk([]byte(want[len(want)-3]))
		w.BulkString(want[len(want)-2])
		w.SetProto(3)
		w.Verbatim("txt", want[len(want)-1])
		w.SetProto(2)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if cap(w.buf) > keepWritten {
		t.Errorf("keeps a buffer of %d bytes", cap(w.buf))
	}
	w.Shrink()
	if w.buf != nil {
		t.Error("keeps a buffer after Shrink")
	}
	r := NewReplyReader(&out, ReplyLimits{})
	for i, s := range want {
		reply, err := r.ReadReply()
		if err != nil || string(reply.Str) != s {
			t.Fatalf("reply %d: %d bytes of %d, %v", i, len(reply.Str), len(s), err)
		}
	}
}

type failing struct{ writes int }

func (f *failing) Write(p []byte) (int, error) {
	f.writes++
	return 0, errors.New("gone")
}

// After the connection broke, replies cost no memory and no further writes.
func TestWriterAfterAnError(t *testing.T) {
	dst := &failing{}
	w := NewWriter(dst)
	big := make([]byte, 1<<20)
	for range 100 {
		w.Bulk(big)
		w.BulkString(string(big[:flushAt]))
	}
	if err := w.Flush(); err == nil || err.Error() != "gone" {
		t.Errorf("got %v", err)
	}
	if dst.writes != 1 || cap(w.buf) > keepWritten {
		t.Errorf("%d writes, buffer of %d", dst.writes, cap(w.buf))
	}
}

type short struct{}

func (short) Write(p []byte) (int, error) { return len(p) - 1, nil }

func TestWriterShortWrite(t *testing.T) {
	w := NewWriter(short{})
	w.Int(1)
	if err := w.Flush(); err != io.ErrShortWrite {
		t.Errorf("got %v", err)
	}
}

func TestWriterRefusesUnknownVersions(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("RESP4 was accepted")
		}
	}()
	NewWriter(io.Discard).SetProto(4)
}

// What a command writes, a Reader reads.
func TestAppendCommand(t *testing.T) {
	args := []string{"SET", "", "a\r\n\x00", strings.Repeat("x", 100_000)}
	raw := make([][]byte, len(args))
	for i, a := range args {
		raw[i] = []byte(a)
	}
	buf := AppendCommand(AppendCommandStrings(nil, args...), raw...)
	got, err := readAll(NewReader(bytes.NewReader(buf), Limits{}))
	if err != io.EOF || !reflect.DeepEqual(got, [][]string{args, args}) {
		t.Fatalf("got %.100q, %v", got, err)
	}
}

// Whatever text goes into replies, the client finds as many replies as were
// written, with that text.
func FuzzWriter(f *testing.F) {
	f.Add("OK", 3)
	f.Add("a\r\n+OK\r\n", 2)
	f.Add("\x00\xff\n", 3)
	f.Fuzz(func(t *testing.T, text string, proto int) {
		if len(text) > 60_000 { // the reader's longest line
			return
		}
		var out bytes.Buffer
		w := NewWriter(&out)
		w.SetProto(2 + proto&1)
		w.SimpleString(text)
		w.Error(text)
		w.Bulk([]byte(text))
		w.BulkString(text)
		w.Verbatim("txt", text)
		w.Int(7)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		line := strings.NewReplacer("\r", " ", "\n", " ").Replace(text)
		r := NewReplyReader(&out, ReplyLimits{})
		for i, want := range []string{line, line, text, text, text} {
			if reply, err := r.ReadReply(); err != nil || string(reply.Str) != want {
				t.Fatalf("reply %d of %q: got %q, %v", i, text, reply.Str, err)
			}
		}
		if reply, err := r.ReadReply(); err != nil || reply.Int != 7 {
			t.Fatalf("last reply after %q: %+v, %v", text, reply, err)
		}
		if _, err := r.ReadReply(); err != io.EOF {
			t.Fatalf("after the last reply: %v", err)
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	value := []byte("0123456789abcdef")
	w := NewWriter(io.Discard)
	b.ReportAllocs()
	for b.Loop() {
		w.Bulk(value)
		w.Int(12345)
		w.SimpleString("OK")
	}
}
