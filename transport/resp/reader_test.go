package resp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

// readAll reads to the end and returns the commands, copied, and how it ended.
func readAll(r *Reader) (cmds [][]string, err error) {
	var got []Command
	for {
		if got, err = r.ReadPipeline(got[:0]); err != nil {
			return cmds, err
		}
		for _, c := range got {
			args := make([]string, len(c.Args))
			for i, a := range c.Args {
				args[i] = string(a)
			}
			cmds = append(cmds, args)
		}
	}
}

// Each way in which the bytes may arrive must give the same commands.
var arrivals = map[string]func(io.Reader) io.Reader{
	"at once":     func(r io.Reader) io.Reader { return r },
	"by the byte": iotest.OneByteReader,
	"by halves":   iotest.HalfReader,
	"with EOF":    iotest.DataErrReader,
}

func TestReadsCommands(t *testing.T) {
	long := strings.Repeat("v", 300_000)
	for name, tc := range map[string]struct {
		in   string
		want [][]string
	}{
		"nothing":          {"", nil},
		"one":              {"*1\r\n$4\r\nPING\r\n", [][]string{{"PING"}}},
		"binary":           {"*2\r\n$3\r\nGET\r\n$5\r\n\x00\r\n\xff \r\n", [][]string{{"GET", "\x00\r\n\xff "}}},
		"empty argument":   {"*2\r\n$3\r\nGET\r\n$0\r\n\r\n", [][]string{{"GET", ""}}},
		"a pipeline":       {"*1\r\n$1\r\na\r\n*2\r\n$1\r\nb\r\n$1\r\nc\r\n*1\r\n$1\r\nd\r\n", [][]string{{"a"}, {"b", "c"}, {"d"}}},
		"no commands":      {"*0\r\n*-1\r\n\r\n\n*-7\r\n*1\r\n$1\r\na\r\n", [][]string{{"a"}}},
		"long value":       {"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$300000\r\n" + long + "\r\n*1\r\n$1\r\na\r\n", [][]string{{"SET", "k", long}, {"a"}}},
		"inline":           {"PING\r\nGET  k \t x\nSET a b", [][]string{{"PING"}, {"GET", "k", "x"}}},
		"inline and not":   {"PING\r\n*1\r\n$1\r\na\r\nPONG\r\n", [][]string{{"PING"}, {"a"}, {"PONG"}}},
		"inline quotes":    {`SET "a b" 'c d' "" ''` + "\r\n", [][]string{{"SET", "a b", "c d", "", ""}}},
		"inline escapes":   {`"\x00\xfF\n\r\t\b\a\"\\\q\x4"` + "\n", [][]string{{"\x00\xff\n\r\t\b\a\"\\qx4"}}},
		"single quotes":    {`'it\'s' '\x41\n"'` + "\n", [][]string{{"it's", `\x41\n"`}}},
		"quotes in a word": {`a"b c"` + "\n" + `a'b c' d` + "\n", [][]string{{"ab c"}, {"ab c", "d"}}},
		"backslash alone":  {`a\nb` + "\n", [][]string{{`a\nb`}}},
		"blank lines":      {"   \r\n\t\n\v\f\n PING \n", [][]string{{"PING"}}},
		"get over http":    {"GET / HTTP/1.1\r\n", [][]string{{"GET", "/", "HTTP/1.1"}}},
	} {
		for how, arrive := range arrivals {
			t.Run(name+" "+how, func(t *testing.T) {
				got, err := readAll(NewReader(arrive(strings.NewReader(tc.in)), Limits{}))
				if want := io.EOF; err != want && !(name == "inline" && err == io.ErrUnexpectedEOF) {
					t.Errorf("ended with %v, want %v", err, want)
				}
				if !reflect.DeepEqual(got, tc.want) {
					t.Errorf("got  %.200q\nwant %.200q", got, tc.want)
				}
			})
		}
	}
}

// Every row has a good command in front, which must be returned before the error.
func TestMalformed(t *testing.T) {
	lim := Limits{MaxCommandBytes: 1000, MaxArgs: 10, MaxInline: 100}
	for name, tc := range map[string]struct{ in, want string }{
		"count no number":       {"*x\r\n", "invalid multibulk length"},
		"count missing":         {"*\r\n", "invalid multibulk length"},
		"count with blank":      {"* 1\r\n", "invalid multibulk length"},
		"count with plus":       {"*+1\r\n", "invalid multibulk length"},
		"count leading zero":    {"*01\r\n", "invalid multibulk length"},
		"count minus zero":      {"*-0\r\n", "invalid multibulk length"},
		"count without CR":      {"*1\n$1\na\n", "invalid multibulk length"},
		"two digits, no CR":     {"*12\n$1\r\na\r\n", "invalid multibulk length"},
		"length without CR":     {"*1\r\n$12\na\r\n", "invalid bulk length"},
		"count over the limit":  {"*11\r\n", "invalid multibulk length"},
		"count of 2^31":         {"*2147483648\r\n", "invalid multibulk length"},
		"count of 2^63-1":       {"*9223372036854775807\r\n", "invalid multibulk length"},
		"count of 2^63":         {"*9223372036854775808\r\n", "invalid multibulk length"},
		"count of 2^64+1":       {"*18446744073709551617\r\n", "invalid multibulk length"},
		"count without end":     {"*" + strings.Repeat("1", 40), "too big mbulk count string"},
		"no bulk":               {"*1\r\n:1\r\n", "expected '$', got ':'"},
		"no bulk but a byte":    {"*1\r\n\x01", `expected '$', got '\x01'`},
		"no bulk but a line":    {"*2\r\n$1\r\na\r\n\r\n", `expected '$', got '\x0d'`},
		"length no number":      {"*1\r\n$x\r\n", "invalid bulk length"},
		"length missing":        {"*1\r\n$\r\n", "invalid bulk length"},
		"length negative":       {"*1\r\n$-1\r\n", "invalid bulk length"},
		"length of -2^63":       {"*1\r\n$-9223372036854775808\r\n", "invalid bulk length"},
		"length over the limit": {"*1\r\n$1001\r\n", "invalid bulk length"},
		"length of 4 GiB":       {"*1\r\n$4294967296\r\n", "invalid bulk length"},
		"length of 2^63-1":      {"*1\r\n$9223372036854775807\r\n", "invalid bulk length"},
		"length of 2^63-3":      {"*1\r\n$9223372036854775805\r\n", "invalid bulk length"},
		"length of 2^63":        {"*1\r\n$9223372036854775808\r\n", "invalid bulk length"},
		"length without end":    {"*1\r\n$" + strings.Repeat("1", 40), "too big bulk count string"},
		"together over":         {"*3\r\n$400\r\n" + strings.Repeat("a", 400) + "\r\n$600\r\n", "too big request: the limit is 1000 bytes"},
		"bulk too short":        {"*1\r\n$3\r\nab\r\n*1\r\n", "expected CR LF after a bulk of 3 bytes"},
		"bulk too long":         {"*1\r\n$1\r\nab\r\n", "expected CR LF after a bulk of 1 bytes"},
		"inline too long":       {strings.Repeat("a", 101), "too big inline request"},
		"inline line too long":  {strings.Repeat("a", 101) + "\r\n", "too big inline request"},
		"inline too many":       {strings.Repeat("a ", 11) + "\r\n", "too big inline request"},
		"double quote open":     {"SET \"a\r\n", "unbalanced quotes in request"},
		"single quote open":     {"SET 'a\r\n", "unbalanced quotes in request"},
		"quote escaped at end":  {`SET "a\` + "\r\n", "unbalanced quotes in request"},
		"quote followed":        {`SET "a"b` + "\r\n", "unbalanced quotes in request"},
		"http post":             {"POST / HTTP/1.1\r\n", "this is an HTTP request, and not a port for HTTP"},
		"http host":             {"hOsT: localhost\r\n", "this is an HTTP request, and not a port for HTTP"},
	} {
		for how, arrive := range arrivals {
			t.Run(name+" "+how, func(t *testing.T) {
				r := NewReader(arrive(strings.NewReader("*1\r\n$4\r\nPING\r\n"+tc.in)), lim)
				got, err := readAll(r)
				if !reflect.DeepEqual(got, [][]string{{"PING"}}) {
					t.Errorf("in front of the error: %q", got)
				}
				var pe *ProtocolError
				if !errors.As(err, &pe) || err.Error() != "Protocol error: "+tc.want {
					t.Fatalf("got %v, want %q", err, tc.want)
				}
				if _, again := r.ReadPipeline(nil); again != err {
					t.Errorf("the next call says %v", again)
				}
			})
		}
	}
}

func TestTruncated(t *testing.T) {
	const whole = "*2\r\n$3\r\nGET\r\n$2\r\nkk\r\n"
	for n := 1; n < len(whole); n++ {
		got, err := readAll(NewReader(strings.NewReader(whole[:n]), Limits{}))
		if err != io.ErrUnexpectedEOF || got != nil {
			t.Errorf("%q: %q, %v", whole[:n], got, err)
		}
	}
}

// At the limits and not over.
func TestLimitsAreInclusive(t *testing.T) {
	cmd := AppendCommandStrings(nil, "SET", "k", strings.Repeat("v", 500))
	r := NewReader(bytes.NewReader(cmd), Limits{MaxCommandBytes: len(cmd), MaxArgs: 3, MaxInline: 1})
	if got, err := readAll(r); err != io.EOF || len(got) != 1 {
		t.Errorf("command of the limit: %d commands, %v", len(got), err)
	}
	r = NewReader(bytes.NewReader(cmd), Limits{MaxCommandBytes: len(cmd) - 1})
	if got, err := readAll(r); err == io.EOF || len(got) != 0 {
		t.Errorf("command over the limit: %d commands, %v", len(got), err)
	}
	r = NewReader(strings.NewReader("PING abcd\n"), Limits{MaxInline: 9})
	if got, err := readAll(r); err != io.EOF || len(got) != 1 {
		t.Errorf("line of the limit: %d commands, %v", len(got), err)
	}
}

// A pipeline is everything that has arrived and nothing that has not: the third
// command is only half there, and the second call must not be needed for the first two.
func TestPipelineDoesNotWait(t *testing.T) {
	client, server := io.Pipe()
	defer client.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		server.Write([]byte("*1\r\n$1\r\na\r\n*1\r\n$1\r\nb\r\n*1\r\n$1"))
	}()
	r := NewReader(client, Limits{})
	got, err := r.ReadPipeline(nil)
	if err != nil || len(got) != 2 {
		t.Fatalf("got %q, %v", got, err)
	}
	<-sent
	if !r.Partial() || r.Buffered() != len("*1\r\n$1") {
		t.Errorf("partial %v, %d bytes", r.Partial(), r.Buffered())
	}
	go server.Write([]byte("\r\nc\r\n"))
	if got, err = r.ReadPipeline(got[:0]); err != nil || len(got) != 1 || string(got[0].Args[0]) != "c" {
		t.Fatalf("got %q, %v", got, err)
	}
	if r.Partial() || r.Buffered() != 0 {
		t.Errorf("partial %v, %d bytes", r.Partial(), r.Buffered())
	}
}

func TestPipelineIsBounded(t *testing.T) {
	one := AppendCommandStrings(nil, "SET", "key", strings.Repeat("v", 80))
	for name, tc := range map[string]struct {
		lim  Limits
		most int
	}{
		"by commands": {Limits{MaxPipeline: 7}, 7},
		"by bytes":    {Limits{MaxPipelineBytes: 10*len(one) - 1}, 10},
		"by default":  {Limits{}, 4096},
	} {
		t.Run(name, func(t *testing.T) {
			const total = 1000
			r := NewReader(bytes.NewReader(bytes.Repeat(one, total)), tc.lim)
			seen, largest := 0, 0
			var cmds []Command
			for {
				var err error
				if cmds, err = r.ReadPipeline(cmds[:0]); err != nil {
					break
				}
				seen += len(cmds)
				largest = max(largest, len(cmds))
			}
			if seen != total {
				t.Errorf("%d commands of %d", seen, total)
			}
			if largest > tc.most || tc.most < total && largest < tc.most {
				t.Errorf("largest pipeline %d, limit %d", largest, tc.most)
			}
		})
	}
}

// slowly returns a time-out between any two bytes, as a read deadline does.
type slowly struct {
	data string
	gap  bool
}

func (s *slowly) Read(p []byte) (int, error) {
	if s.gap = !s.gap; s.gap {
		return 0, os.ErrDeadlineExceeded
	}
	if s.data == "" {
		return 0, io.EOF
	}
	n := copy(p[:1], s.data)
	s.data = s.data[n:]
	return n, nil
}

func TestGoesOnAfterTimeouts(t *testing.T) {
	for _, shrink := range []bool{false, true} {
		r := NewReader(&slowly{data: "*2\r\n$3\r\nGET\r\n$9\r\nsome key!\r\nPING 'x y'\r\n"}, Limits{})
		var got [][]string
		for {
			cmds, err := r.ReadPipeline(nil)
			if err == io.EOF {
				break
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			for _, c := range cmds {
				got = append(got, strings.Split(string(bytes.Join(c.Args, []byte("|"))), "|"))
			}
			if shrink {
				r.Shrink()
			}
		}
		if want := [][]string{{"GET", "some key!"}, {"PING", "x y"}}; !reflect.DeepEqual(got, want) {
			t.Errorf("shrink %v: got %q", shrink, got)
		}
	}
}

func TestSourceThatGivesNothing(t *testing.T) {
	if _, err := NewReader(iotest.ErrReader(nil), Limits{}).ReadPipeline(nil); err != io.ErrNoProgress {
		t.Errorf("got %v", err)
	}
}

func TestParseInt(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "7": 7, "-7": -7, "10": 10, "9223372036854775807": math.MaxInt64, "-9223372036854775808": math.MinInt64,
	} {
		if got, ok := parseInt([]byte(in)); !ok || got != want {
			t.Errorf("%q: %d, %v", in, got, ok)
		}
	}
	for _, in := range []string{
		"", "-", "--1", "+1", "01", "-0", "-01", "1 ", " 1", "1x", "0x1", "1_0",
		"9223372036854775808", "-9223372036854775809", "9999999999999999999", "18446744073709551616", "-18446744073709551615",
	} {
		if got, ok := parseInt([]byte(in)); ok {
			t.Errorf("%q: accepted as %d", in, got)
		}
	}
}

// A read may return its last bytes and an error together: the bytes come first
// and the error is not lost.
func TestErrorThatComesWithBytes(t *testing.T) {
	broken := errors.New("broken")
	r := NewReader(&lastWords{data: "*1\r\n$1\r\na\r\n", err: broken}, Limits{})
	if got, err := r.ReadPipeline(nil); err != nil || len(got) != 1 {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := r.ReadPipeline(nil); err != broken {
		t.Errorf("then %v", err)
	}
	if _, err := r.ReadPipeline(nil); err != io.EOF {
		t.Errorf("then %v", err)
	}
}

type lastWords struct {
	data string
	err  error
}

func (l *lastWords) Read(p []byte) (int, error) {
	if l.data == "" {
		return 0, io.EOF
	}
	n := copy(p, l.data)
	l.data = ""
	return n, l.err
}

// Who appends to an argument must not write over what follows it in the buffer.
func TestArgumentsAreClipped(t *testing.T) {
	r := NewReader(strings.NewReader("*2\r\n$1\r\na\r\n$1\r\nb\r\n*1\r\n$1\r\nc\r\n"), Limits{})
	got, err := r.ReadPipeline(nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(got[0].Args[0], "XXXXXXXX"...)
	_ = append(got[0].Args[1], "XXXXXXXX"...)
	_ = append(got[0].Args, []byte("XXXXXXXX"))
	if string(got[0].Args[1]) != "b" {
		t.Errorf("second argument %q", got[0].Args[1])
	}
	if string(got[1].Args[0]) != "c" {
		t.Errorf("second command %q", got[1].Args)
	}
}

// held is how many bytes of memory live after f, which returns what keeps them.
func held(f func() any) int {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	keep := f()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(keep)
	return int(after.HeapAlloc) - int(before.HeapAlloc)
}

// A promise of much costs nothing until it is kept.
func TestMemoryGrowsWithBytesOnly(t *testing.T) {
	for name, tc := range map[string]struct {
		sent string
		most int
	}{
		"60 MiB promised":         {"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$62914560\r\n", 64 << 10},
		"a million args promised": {"*1000000\r\n$3\r\nDEL\r\n", 64 << 10},
		"60 MiB promised, 1 sent": {"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$62914560\r\n" + strings.Repeat("x", 1<<20), 5 << 20},
		"a line without end":      {strings.Repeat("x", 60_000), 256 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(strings.NewReader(tc.sent), Limits{})
			got := allocated(func() {
				if _, err := r.ReadPipeline(nil); err != io.ErrUnexpectedEOF {
					t.Errorf("ended with %v", err)
				}
			})
			if got > tc.most {
				t.Errorf("allocated %d bytes, want at most %d", got, tc.most)
			}
		})
	}
}

// The largest command goes through, the buffer never holds much more than it, and
// what it needed is given back, even if the caller reuses its slice of commands.
func TestLargestCommand(t *testing.T) {
	const size = 64 << 20
	value := strings.Repeat("0123456789abcdef", size/16)[:size-100]
	in := io.MultiReader(strings.NewReader(fmt.Sprintf("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n", len(value))), strings.NewReader(value),
		strings.NewReader("\r\n*1\r\n$4\r\nPING\r\n"), &slowly{})
	r := NewReader(in, Limits{})
	var cmds []Command
	got := held(func() any {
		var err error
		cmds, err = r.ReadPipeline(cmds[:0])
		if err != nil || len(cmds[0].Args) != 3 || string(cmds[0].Args[2]) != value {
			t.Fatalf("%d commands, %v", len(cmds), err)
		}
		if len(r.buf) > size+minBuffer {
			t.Errorf("buffer of %d bytes for a command of %d", len(r.buf), size)
		}
		for len(cmds) > 0 {
			if cmds, err = r.ReadPipeline(cmds[:0]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
		return r
	})
	runtime.KeepAlive(value) // or its memory would be counted as given back
	if got > 256<<10 {
		t.Errorf("still holds %d bytes", got)
	}
	runtime.KeepAlive(cmds)
	r.Shrink()
	if len(r.buf) != 0 {
		t.Errorf("after Shrink a buffer of %d bytes", len(r.buf))
	}
}

// The buffer ends about where the command does, if that is known.
func TestBufferFitsTheCommand(t *testing.T) {
	cmd := AppendCommandStrings(nil, "SET", "k", strings.Repeat("v", 5<<20))
	r := NewReader(bytes.NewReader(cmd), Limits{})
	if got, err := r.ReadPipeline(nil); err != nil || len(got) != 1 {
		t.Fatalf("%d commands, %v", len(got), err)
	}
	if len(r.buf) > len(cmd)+minBuffer {
		t.Errorf("buffer of %d bytes for a command of %d", len(r.buf), len(cmd))
	}
}

// A large command of small arguments has gone, and a good part of the next has
// arrived with its end: more than the buffer that is usually kept.
func TestShrinkKeepsALongUnfinished(t *testing.T) {
	many := func(n int) (cmd []byte, args []string) {
		for i := range n {
			args = append(args, fmt.Sprintf("key:%08d", i))
		}
		return AppendCommandStrings(nil, args...), args
	}
	first, want1 := many(45_000)
	second, want2 := many(20_000)
	size := 1 << 20
	if len(first) >= size || len(first)+len(second) <= size {
		t.Fatalf("commands of %d and %d bytes do not straddle %d", len(first), len(second), size)
	}
	got, err := readAll(NewReader(bytes.NewReader(append(first, second...)), Limits{}))
	if err != io.EOF || !reflect.DeepEqual(got, [][]string{want1, want2}) {
		t.Errorf("%d commands, %v", len(got), err)
	}
}

// A large value behind which a part of the next command has arrived: giving the
// buffer back must not lose that part.
func TestShrinkKeepsTheUnfinished(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		var in []byte
		var want [][]string
		for range 20 {
			args := []string{"SET", strings.Repeat("k", rng.IntN(20)), strings.Repeat(string(rune('a'+rng.IntN(26))), 1<<rng.IntN(20))}
			in = AppendCommandStrings(in, args...)
			want = append(want, args)
		}
		chunk := 1 << (8 + rng.IntN(14))
		got, err := readAll(NewReader(&chunks{data: in, size: chunk}, Limits{MaxPipeline: 1 + rng.IntN(5)}))
		if err != io.EOF || !reflect.DeepEqual(got, want) {
			t.Fatalf("chunks of %d: %d commands of %d, %v", chunk, len(got), len(want), err)
		}
	}
}

type chunks struct {
	data []byte
	size int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.data)
	c.data = c.data[n:]
	return n, nil
}

// A command of very many arguments that arrives in small pieces is gone through
// once, and copied few times: the bytes allocated stay in proportion.
func TestManyArgumentsArriveSlowly(t *testing.T) {
	for _, tc := range []struct{ n, size int }{{500_000, 1}, {5000, 992}} {
		arg := fmt.Sprintf("$%d\r\n%s\r\n", tc.size, strings.Repeat("k", tc.size))
		in := []byte(fmt.Sprintf("*%d\r\n", tc.n) + strings.Repeat(arg, tc.n))
		r := NewReader(&chunks{data: in, size: 100}, Limits{})
		spent := allocated(func() {
			got, err := r.ReadPipeline(nil)
			if err != nil || len(got) != 1 || len(got[0].Args) != tc.n {
				t.Fatalf("%d commands, %v", len(got), err)
			}
		})
		// Twice the bytes, and for each argument a span and a slice, grown by steps.
		if most := 4*len(in) + tc.n*6*40; spent > most {
			t.Errorf("%d arguments of %d bytes: allocated %d bytes, want at most %d", tc.n, tc.size, spent, most)
		}
	}
}

// allocated is how many bytes f allocates, given back or not.
func allocated(f func()) int {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int(after.TotalAlloc - before.TotalAlloc)
}

// repeat gives the same bytes over and over.
type repeat struct {
	data []byte
	at   int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m := copy(p[n:], r.data[r.at:])
		n += m
		r.at = (r.at + m) % len(r.data)
	}
	return n, nil
}

func TestReadingAllocatesNothing(t *testing.T) {
	for name, one := range map[string][]byte{
		"bulk":   AppendCommandStrings(nil, "SET", "key:000012345678", "0123456789abcdef"),
		"inline": []byte("SET key:000012345678 \"0123456789abcdef\"\r\n"),
	} {
		r := NewReader(&repeat{data: one}, Limits{})
		var cmds []Command
		read := func() { cmds, _ = r.ReadPipeline(cmds[:0]) }
		for range 100 {
			read() // the buffers grow
		}
		if n := testing.AllocsPerRun(1000, read); n != 0 {
			t.Errorf("%s: %v allocations per pipeline", name, n)
		}
	}
}

func BenchmarkReader(b *testing.B) {
	for name, one := range map[string][]byte{
		"set16":  AppendCommandStrings(nil, "SET", "key:000012345678", "0123456789abcdef"),
		"set1k":  AppendCommandStrings(nil, "SET", "key:000012345678", strings.Repeat("v", 1024)),
		"inline": []byte("SET key:000012345678 0123456789abcdef\r\n"),
	} {
		b.Run(name, func(b *testing.B) {
			r := NewReader(&repeat{data: one}, Limits{})
			b.SetBytes(int64(len(one)))
			b.ReportAllocs()
			var cmds []Command
			for n := 0; n < b.N; n += len(cmds) {
				var err error
				if cmds, err = r.ReadPipeline(cmds[:0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
