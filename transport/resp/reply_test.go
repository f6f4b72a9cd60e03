package resp

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"
)

func str(t Type, s string) Reply        { return Reply{Type: t, Str: []byte(s)} }
func num(n int64) Reply                 { return Reply{Type: TypeInt, Int: n} }
func tree(t Type, elems ...Reply) Reply { return Reply{Type: t, Elems: append([]Reply{}, elems...)} }
func readReply(in string) (Reply, error) {
	return NewReplyReader(strings.NewReader(in), ReplyLimits{}).ReadReply()
}

func TestReadsReplies(t *testing.T) {
	long := strings.Repeat("v", 300_000)
	for name, tc := range map[string]struct {
		in   string
		want Reply
	}{
		"simple":          {"+OK\r\n", str(TypeSimple, "OK")},
		"empty simple":    {"+\r\n", str(TypeSimple, "")},
		"error":           {"-ERR no\r\n", str(TypeError, "ERR no")},
		"long line":       {"-" + long[:60_000] + "\r\n", str(TypeError, long[:60_000])},
		"int":             {":-9223372036854775808\r\n", num(math.MinInt64)},
		"bulk":            {"$4\r\na\r\nb\r\n", str(TypeBulk, "a\r\nb")},
		"empty bulk":      {"$0\r\n\r\n", str(TypeBulk, "")},
		"long bulk":       {"$300000\r\n" + long + "\r\n", str(TypeBulk, long)},
		"null bulk":       {"$-1\r\n", Reply{Type: TypeNull}},
		"null array":      {"*-1\r\n", Reply{Type: TypeNull}},
		"null":            {"_\r\n", Reply{Type: TypeNull}},
		"true":            {"#t\r\n", Reply{Type: TypeBool, Int: 1}},
		"false":           {"#f\r\n", Reply{Type: TypeBool}},
		"double":          {",-1.5e3\r\n", Reply{Type: TypeDouble, Float: -1500}},
		"infinity":        {",-inf\r\n", Reply{Type: TypeDouble, Float: math.Inf(-1)}},
		"double too big":  {",1e999\r\n", Reply{Type: TypeDouble, Float: math.Inf(1)}},
		"big number":      {"(-123456789012345678901\r\n", str(TypeBigNumber, "-123456789012345678901")},
		"verbatim":        {"=7\r\ntxt:a\nb\r\n", str(TypeVerbatim, "a\nb")},
		"empty array":     {"*0\r\n", tree(TypeArray)},
		"array":           {"*2\r\n:1\r\n*1\r\n$1\r\na\r\n", tree(TypeArray, num(1), tree(TypeArray, str(TypeBulk, "a")))},
		"set":             {"~1\r\n:1\r\n", tree(TypeSet, num(1))},
		"push":            {">2\r\n+message\r\n:1\r\n", tree(TypePush, str(TypeSimple, "message"), num(1))},
		"map":             {"%2\r\n+a\r\n:1\r\n+b\r\n_\r\n", tree(TypeMap, str(TypeSimple, "a"), num(1), str(TypeSimple, "b"), Reply{Type: TypeNull})},
		"attribute":       {"|1\r\n+ttl\r\n:3\r\n+OK\r\n", str(TypeSimple, "OK")},
		"inner attribute": {"*1\r\n|1\r\n+ttl\r\n:3\r\n:7\r\n", tree(TypeArray, num(7))},
	} {
		for how, arrive := range arrivals {
			t.Run(name+" "+how, func(t *testing.T) {
				r := NewReplyReader(arrive(strings.NewReader(tc.in+":5\r\n")), ReplyLimits{})
				got, err := r.ReadReply()
				if err != nil || !reflect.DeepEqual(got, tc.want) {
					t.Fatalf("got %.200v, %v", got, err)
				}
				if next, err := r.ReadReply(); err != nil || next.Int != 5 {
					t.Errorf("the reply behind it: %v, %v", next, err)
				}
				if _, err := r.ReadReply(); err != io.EOF {
					t.Errorf("ended with %v", err)
				}
			})
		}
	}
}

func TestMalformedReplies(t *testing.T) {
	lim := ReplyLimits{MaxBytes: 1000, MaxElements: 10, MaxDepth: 3, MaxLine: 100}
	for name, tc := range map[string]struct{ in, want string }{
		"unknown type":       {"!5\r\nERR x\r\n", "unknown reply type '!'"},
		"not RESP":           {"HTTP/1.1 400 Bad Request\r\n", "unknown reply type 'H'"},
		"empty line":         {"\r\n", "empty line in place of a reply"},
		"line without CR":    {"+OK\n", "line without CR LF at its end"},
		"CR within a line":   {"+a\rb\r\n", "line without CR LF at its end"},
		"line too long":      {"+" + strings.Repeat("a", 101) + "\r\n", "line longer than 100 bytes"},
		"line without end":   {"+" + strings.Repeat("a", 40_000), "line longer than 100 bytes"},
		"int":                {":1x\r\n", "invalid integer"},
		"int over":           {":9223372036854775808\r\n", "invalid integer"},
		"null with text":     {"_x\r\n", "invalid null"},
		"bool":               {"#true\r\n", "invalid boolean"},
		"double":             {",abc\r\n", "invalid double"},
		"big number":         {"(12e4\r\n", "invalid big number"},
		"no big number":      {"(-\r\n", "invalid big number"},
		"bulk length":        {"$x\r\n", "invalid length"},
		"bulk negative":      {"$-2\r\n", "invalid length"},
		"bulk of 2^63-1":     {"$9223372036854775807\r\n", "invalid length"},
		"bulk of 2^63":       {"$9223372036854775808\r\n", "invalid length"},
		"bulk streamed":      {"$?\r\n", "invalid length"},
		"bulk over":          {"$1001\r\n", "reply of more than 1000 bytes"},
		"bulks over":         {"*2\r\n$600\r\n" + strings.Repeat("a", 600) + "\r\n$600\r\n", "reply of more than 1000 bytes"},
		"lines over":         {"*10\r\n" + strings.Repeat("+"+strings.Repeat("a", 100)+"\r\n", 9) + "(" + strings.Repeat("1", 101) + "\r\n", "reply of more than 10 values"},
		"bulk too long":      {"$1\r\nabc\r\n", "expected CR LF after a bulk of 1 bytes"},
		"verbatim too short": {"=3\r\ntxt\r\n", "invalid verbatim string"},
		"verbatim no colon":  {"=5\r\ntxt-a\r\n", "invalid verbatim string"},
		"array length":       {"*1.5\r\n", "invalid length"},
		"array over":         {"*10\r\n", "reply of more than 10 values"},
		"array of 2^63-1":    {"*9223372036854775807\r\n", "invalid length"},
		"map over":           {"%5\r\n", "reply of more than 10 values"},
		"map of 2^62":        {"%4611686018427387904\r\n", "invalid length"},
		"nested over":        {"*4\r\n*4\r\n:1\r\n:1\r\n:1\r\n:1\r\n*4\r\n:1\r\n:1\r\n", "reply of more than 10 values"},
		"too deep":           {"*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", "reply nested deeper than 3"},
		"attributes over":    {strings.Repeat("|0\r\n", 20) + "+OK\r\n", "reply of more than 10 values"},
		"attribute length":   {"|x\r\n", "invalid length"},
	} {
		for how, arrive := range arrivals {
			t.Run(name+" "+how, func(t *testing.T) {
				r := NewReplyReader(arrive(strings.NewReader(tc.in)), lim)
				_, err := r.ReadReply()
				var pe *ProtocolError
				if !errors.As(err, &pe) || pe.Reason != tc.want {
					t.Fatalf("got %v, want %q", err, tc.want)
				}
				if _, again := r.ReadReply(); again != err {
					t.Errorf("the next call says %v", again)
				}
			})
		}
	}
}

func TestTruncatedReplies(t *testing.T) {
	const whole = "*4\r\n$2\r\nab\r\n%1\r\n+a\r\n:1\r\n=5\r\ntxt:a\r\n|1\r\n+a\r\n+b\r\n,1.5\r\n"
	if _, err := readReply(whole); err != nil {
		t.Fatal(err)
	}
	for n := 1; n < len(whole); n++ {
		if _, err := readReply(whole[:n]); err != io.ErrUnexpectedEOF {
			t.Errorf("%q: %v", whole[:n], err)
		}
	}
}

// A time-out between replies is not the end, one within a reply is: its first
// part is lost.
func TestRepliesAfterTimeouts(t *testing.T) {
	r := NewReplyReader(&gaps{parts: []string{"", "+a\r\n", "", "+b", "", "\r\n"}}, ReplyLimits{})
	for i, want := range []string{"timeout", "a", "timeout", "timeout", "timeout"} {
		reply, err := r.ReadReply()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			reply.Str = []byte("timeout")
		}
		if string(reply.Str) != want {
			t.Fatalf("call %d: %q, %v; want %s", i, reply.Str, err, want)
		}
	}
}

// gaps gives one part a read; an empty one is a time-out.
type gaps struct{ parts []string }

func (g *gaps) Read(p []byte) (int, error) {
	if len(g.parts) == 0 {
		return 0, io.EOF
	}
	part := g.parts[0]
	g.parts = g.parts[1:]
	if part == "" {
		return 0, os.ErrDeadlineExceeded
	}
	return copy(p, part), nil
}

func TestReplyMemoryGrowsWithBytesOnly(t *testing.T) {
	for name, in := range map[string]string{
		"200 MiB promised":       "$209715200\r\nabc",
		"a million promised":     "*1000000\r\n:1\r\n",
		"promises within others": strings.Repeat("*1000\r\n", 15),
		"a map of many":          "%1000000\r\n:1\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReplyReader(strings.NewReader(in), ReplyLimits{})
			got := allocated(func() {
				if _, err := r.ReadReply(); err != io.ErrUnexpectedEOF {
					t.Errorf("ended with %v", err)
				}
			})
			if got > 256<<10 {
				t.Errorf("allocated %d bytes", got)
			}
		})
	}
}

// Replies belong to whoever gets them.
func TestRepliesDoNotShareMemory(t *testing.T) {
	r := NewReplyReader(strings.NewReader("$3\r\nabc\r\n+def\r\n-ghi\r\n(123\r\n$3\r\nxyz\r\n"), ReplyLimits{})
	var got []Reply
	for {
		reply, err := r.ReadReply()
		if err != nil {
			break
		}
		got = append(got, reply)
	}
	if s := fmt.Sprintf("%s %s %s %s %s", got[0].Str, got[1].Str, got[2].Str, got[3].Str, got[4].Str); s != "abc def ghi 123 xyz" {
		t.Error(s)
	}
}

func TestServerError(t *testing.T) {
	reply, err := readReply("-MOVED 12182 127.0.0.1:7701\r\n")
	if err != nil {
		t.Fatal(err)
	}
	var se *ServerError
	if !errors.As(reply.Err(), &se) || se.Code() != "MOVED" || se.Error() != "MOVED 12182 127.0.0.1:7701" {
		t.Errorf("got %v", reply.Err())
	}
	if (&ServerError{Text: "ERR"}).Code() != "ERR" {
		t.Error("an error of one word has no code")
	}
	if err := str(TypeBulk, "ERR").Err(); err != nil {
		t.Errorf("a bulk is an error: %v", err)
	}
	if !(Reply{Type: TypeNull}).IsNull() || num(0).IsNull() {
		t.Error("IsNull")
	}
}

func BenchmarkReplyReader(b *testing.B) {
	for name, one := range map[string]string{
		"ok":     "+OK\r\n",
		"int":    ":12345\r\n",
		"bulk16": "$16\r\n0123456789abcdef\r\n",
		"array":  "*3\r\n$3\r\nabc\r\n$3\r\ndef\r\n$-1\r\n",
	} {
		b.Run(name, func(b *testing.B) {
			r := NewReplyReader(&repeat{data: []byte(one)}, ReplyLimits{})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.ReadReply(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
