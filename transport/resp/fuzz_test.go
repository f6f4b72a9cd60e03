package resp

import (
	"bytes"
	"errors"
	"io"
	"math"
	"reflect"
	"strconv"
	"testing"
	"testing/iotest"
)

// Small, so that the fuzzer reaches them.
var fuzzLimits = Limits{MaxCommandBytes: 256, MaxArgs: 8, MaxInline: 64, MaxPipeline: 3, MaxPipelineBytes: 128}

// Any bytes whatever: no panic, the same commands and the same end however the
// bytes arrive, nothing over a limit, and what was read survives being sent again.
func FuzzReader(f *testing.F) {
	f.Add([]byte("*2\r\n$3\r\nGET\r\n$1\r\nk\r\nPING \"a b\"\r\n"))
	f.Add([]byte("*1\r\n$9223372036854775807\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		want, end := readAll(NewReader(bytes.NewReader(data), fuzzLimits))
		var pe *ProtocolError
		if end != io.EOF && end != io.ErrUnexpectedEOF && !errors.As(end, &pe) {
			t.Fatalf("ended with %v", end)
		}
		for _, src := range []io.Reader{
			iotest.OneByteReader(bytes.NewReader(data)),
			iotest.HalfReader(bytes.NewReader(data)),
			iotest.DataErrReader(&chunks{data: data, size: 7}),
		} {
			got, err := readAll(NewReader(src, fuzzLimits))
			if !reflect.DeepEqual(got, want) || err.Error() != end.Error() {
				t.Fatalf("at once %q and %v, in pieces %q and %v", want, end, got, err)
			}
		}
		var again []byte
		for _, args := range want {
			if len(args) == 0 || len(args) > fuzzLimits.MaxArgs {
				t.Fatalf("command of %d arguments", len(args))
			}
			again = AppendCommandStrings(again, args...)
		}
		got, err := readAll(NewReader(bytes.NewReader(again), Limits{}))
		if !reflect.DeepEqual(got, want) || err != io.EOF {
			t.Fatalf("sent again %q becomes %q, %v", want, got, err)
		}
	})
}

var fuzzReplyLimits = ReplyLimits{MaxBytes: 256, MaxElements: 32, MaxDepth: 4, MaxLine: 64}

// Any bytes whatever: no panic, the same replies and end however they arrive,
// nothing over a limit, and each reply written out reads back the same.
func FuzzReplyReader(f *testing.F) {
	f.Add([]byte("*2\r\n$1\r\na\r\n%1\r\n+k\r\n,1.5\r\n"))
	f.Add([]byte("|1\r\n+a\r\n#t\r\n=5\r\ntxt:x\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		want, end := readReplies(bytes.NewReader(data))
		var pe *ProtocolError
		if end != io.EOF && end != io.ErrUnexpectedEOF && !errors.As(end, &pe) {
			t.Fatalf("ended with %v", end)
		}
		for _, src := range []io.Reader{iotest.OneByteReader(bytes.NewReader(data)), &chunks{data: data, size: 7}} {
			got, err := readReplies(src)
			if !reflect.DeepEqual(got, want) || err.Error() != end.Error() {
				t.Fatalf("at once %v and %v, in pieces %v and %v", want, end, got, err)
			}
		}
		var out bytes.Buffer
		w := NewWriter(&out)
		w.SetProto(3)
		for _, r := range want {
			values, depth := size(r)
			if values > fuzzReplyLimits.MaxElements || depth > fuzzReplyLimits.MaxDepth {
				t.Fatalf("reply of %d values, %d deep", values, depth)
			}
			writeReply(w, r)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		again, err := readReplies(&out)
		if err != io.EOF || !reflect.DeepEqual(again, want) {
			t.Fatalf("%v becomes %v, %v", want, again, err)
		}
	})
}

// readReplies reads to the end; NaN becomes a number, to be comparable.
func readReplies(src io.Reader) (replies []Reply, err error) {
	r := NewReplyReader(src, fuzzReplyLimits)
	for {
		reply, err := r.ReadReply()
		if err != nil {
			return replies, err
		}
		denan(&reply)
		replies = append(replies, reply)
	}
}

func denan(r *Reply) {
	if math.IsNaN(r.Float) {
		r.Float = 4711
	}
	for i := range r.Elems {
		denan(&r.Elems[i])
	}
}

func size(r Reply) (values, depth int) {
	values = 1
	for _, e := range r.Elems {
		v, d := size(e)
		values += v
		depth = max(depth, d)
	}
	if r.Elems != nil {
		depth++
	}
	return values, depth
}

func writeReply(w *Writer, r Reply) {
	switch r.Type {
	case TypeSimple:
		w.SimpleString(string(r.Str))
	case TypeError:
		w.Error(string(r.Str))
	case TypeInt:
		w.Int(r.Int)
	case TypeBulk:
		w.Bulk(r.Str)
	case TypeNull:
		w.Null()
	case TypeBool:
		w.Bool(r.Int == 1)
	case TypeDouble:
		w.Double(r.Float)
	case TypeBigNumber:
		w.BigNumber(string(r.Str))
	case TypeVerbatim:
		w.Verbatim("txt", string(r.Str))
	case TypeArray:
		w.Array(len(r.Elems))
	case TypeSet:
		w.Set(len(r.Elems))
	case TypePush:
		w.Push(len(r.Elems))
	case TypeMap:
		w.Map(len(r.Elems) / 2)
	default:
		panic("reply of type " + strconv.Itoa(int(r.Type)))
	}
	for _, e := range r.Elems {
		writeReply(w, e)
	}
}
