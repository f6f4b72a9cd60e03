package command

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func b(s string) []byte { return []byte(s) }

// Golden bytes: these are in logs for ever. If a test here fails, the format
// changed: it needs a new version number beside the old decoder.
func TestGoldenBytes(t *testing.T) {
	batch := Batch{ID: 300, ElapsedMillis: 7, Commands: []Command{
		{Op: OpNoop},
		{Op: OpSet, Flags: FlagIfAbsent | FlagGet, Slot: 12182, Keys: [][]byte{b("foo")}, Values: [][]byte{b("bar")}, TTL: 1500},
		{Op: OpMSet, Slot: 1, Keys: [][]byte{b("a"), b("b")}, Values: [][]byte{b("1"), {}}},
		{Op: OpIncr, Slot: 16383, Keys: [][]byte{{0}}, Int: -3},
		{Op: OpRecordDelete, Keys: [][]byte{b("job/1")}, Int: -1},
		{Op: OpDel, Slot: 5, Keys: [][]byte{b("k")}, Session: 3<<48 | 1, Seq: 300, Floor: 299},
		{Op: OpMulti, Slot: 5, Keys: [][]byte{b("w")}, Values: [][]byte{AppendCommands(nil, nil), AppendIndexes(nil, []uint64{128})}},
		{Op: OpPin, Int: 300, TTL: 60000},
		{Op: OpUnpin, Int: 300},
	}}
	in := Init{ClusterID: "c1", Shard: 3, Slots: []SlotRange{{0, 99}, {200, 16383}}, Limits: DefaultLimits()}
	results := []Result{Nil(), OK(), Int(-2), Bytes(b("v")), Bytes(nil), Array([]Result{Nil(), Bytes(b("x"))}),
		Err(CodeOverflow), {Kind: KindError, Code: CodeConflict, Int: 9, Bytes: b("why")}}
	for _, g := range []struct {
		name string
		got  []byte
		want string
	}{
		{"batch", batch.AppendTo(nil), "01ac020709" +
			"01000000000000" + "0000" +
			"090005" + "2f96" + "0103666f6f" + "0103626172" + "00" + "b817" +
			"0a0000" + "0001" + "0201610162" + "02013100" + "00" + "00" +
			"0c0000" + "3fff" + "010100" + "00" + "05" + "00" +
			"140000" + "0000" + "01056a6f622f31" + "00" + "01" + "00" +
			"0b8000" + "0005" + "01016b" + "00" + "00" + "00" + "818080808080c001" + "ac02" + "ab02" +
			"170000" + "0005" + "010177" + "02" + "020100" + "03018001" + "00" + "00" +
			"220000" + "0000" + "00" + "00" + "d804" + "c0a907" +
			"230000" + "0000" + "00" + "00" + "d804" + "00"},
		{"init", in.Encode(), "01" + "026331" + "03" + "02" + "00000063" + "00c83fff" + "8008" + "808040"},
		{"results", AppendResults(nil, results), "01" + "08" + "00" + "01" + "0203" + "030176" + "0300" + "0402" + "00" + "030178" +
			"0502" + "00" + "00" + "0507" + "12" + "03776879"},
	} {
		if got := hex.EncodeToString(g.got); got != g.want {
			t.Errorf("%s:\n got %s\nwant %s", g.name, got, g.want)
		}
	}
	// The numbers of ops, flags, kinds and codes are as fixed as the bytes.
	for _, n := range []struct{ got, want int }{
		{int(OpNoop), 1}, {int(OpInit), 2}, {int(OpGet), 3}, {int(OpTTL), 8}, {int(OpSet), 9}, {int(OpPersist), 18},
		{int(OpRecordSet), 19}, {int(OpRecordDelete), 20}, {int(OpSessionOpen), 21}, {int(OpMulti), 23}, {int(OpSlotsExpect), 24}, {int(OpSlotsClear), 32}, {int(OpSessionSkip), 33}, {int(OpPin), 34}, {int(OpUnpin), 35}, {int(FlagIfAbsent), 1}, {int(FlagIfShorter), 512},
		{int(KindError), 5}, {int(CodeNotInteger), 1}, {int(CodeBadCommand), 9}, {int(CodeSessionUnknown), 10}, {int(CodeSessionFull), 12},
		{int(CodeSlotsMoving), 14}, {int(CodeSlotsLeft), 15},
	} {
		if n.got != n.want {
			t.Errorf("a number changed: %d, was %d", n.got, n.want)
		}
	}
}

func randomBytes(r *rand.Rand, max int) []byte {
	out := make([]byte, r.IntN(max+1))
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	return out
}

func randomCommand(r *rand.Rand) Command {
	c := Command{Op: Op(1 + r.IntN(int(opEnd)-1)), Flags: Flags(r.Uint32()) & allFlags, Slot: uint16(r.Uint32())}
	for range r.IntN(4) {
		c.Keys = append(c.Keys, randomBytes(r, 200))
	}
	for range r.IntN(4) {
		c.Values = append(c.Values, randomBytes(r, 200))
	}
	c.Int = []int64{0, 1, -1, math.MaxInt64, math.MinInt64, r.Int64()}[r.IntN(6)]
	c.TTL = []int64{0, 1, -1, math.MaxInt64, math.MinInt64, r.Int64()}[r.IntN(6)]
	if r.IntN(2) == 0 {
		c.Session, c.Seq, c.Floor = 1+r.Uint64()>>r.IntN(64), r.Uint64()>>r.IntN(64), r.Uint64()>>r.IntN(64)
	}
	return c
}

// What goes in comes out, Size is what it takes, and every shorter input is an error.
func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		batch := Batch{ID: r.Uint64() >> r.IntN(64), ElapsedMillis: r.Uint64() >> r.IntN(64)}
		for range r.IntN(5) {
			c := randomCommand(r)
			if got, want := c.Size(), len(c.appendTo(nil)); got != want {
				t.Fatalf("Size() = %d, encoded %d bytes: %+v", got, want, c)
			}
			batch.Commands = append(batch.Commands, c)
		}
		data := batch.AppendTo([]byte("before"))[len("before"):]
		got, err := DecodeBatch(data)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, batch) {
			t.Fatalf("got  %+v\nwant %+v", got, batch)
		}
		cmds, err := DecodeCommands(AppendCommands(nil, batch.Commands))
		if err != nil || !reflect.DeepEqual(cmds, batch.Commands) {
			t.Fatalf("commands: got %+v, %v\nwant %+v", cmds, err, batch.Commands)
		}
		cut := r.IntN(len(data))
		if _, err := DecodeBatch(data[:cut]); !isDecodeError(err) {
			t.Fatalf("cut to %d of %d bytes: error is %v", cut, len(data), err)
		}
	}
	results := []Result{Nil(), OK(), Int(5), Bytes([]byte{}), Array([]Result{Int(1), Err(CodeNaN), Array([]Result{Nil()})}),
		{Kind: KindError, Code: CodeTooLarge, Int: 1024, Bytes: b("k")}}
	data := AppendResults(nil, results)
	got, err := DecodeResults(data)
	if err != nil || !reflect.DeepEqual(got, results) {
		t.Fatalf("results: got %+v, %v\nwant %+v", got, err, results)
	}
	for cut := range data {
		if _, err := DecodeResults(data[:cut]); !isDecodeError(err) {
			t.Fatalf("results cut to %d bytes: error is %v", cut, err)
		}
	}
}

func isDecodeError(err error) bool {
	var e *DecodeError
	return errors.As(err, &e)
}

// Decoded slices alias the input; appending to one must not write into its neighbour.
func TestDecodedSlicesDoNotOverlap(t *testing.T) {
	batch := Batch{Commands: []Command{
		{Op: OpDel, Keys: [][]byte{b("aa"), b("bb")}},
		{Op: OpDel, Keys: [][]byte{b("cc")}, Values: [][]byte{make([]byte, 100)}}, // long: lists share an array
	}}
	got, err := DecodeBatch(batch.AppendTo(nil))
	if err != nil {
		t.Fatal(err)
	}
	_ = append(got.Commands[0].Keys[0], "XXXXXXXX"...)
	_ = append(got.Commands[0].Keys, b("YY"))
	if string(got.Commands[0].Keys[1]) != "bb" || string(got.Commands[1].Keys[0]) != "cc" {
		t.Fatalf("append wrote over a neighbour: %v", got.Commands)
	}
}

func TestMalformed(t *testing.T) {
	huge := binary.AppendUvarint(nil, math.MaxUint64)
	head := []byte{batchVersion, 0, 0}
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	cmd := func(op, f1, f2 byte, rest ...byte) []byte { return append([]byte{op, f1, f2, 0, 0}, rest...) }
	for _, tc := range []struct {
		name string
		data []byte
		want string
	}{
		{"nothing", nil, "ends early"},
		{"version 0", []byte{0, 0, 0, 0}, "version 0 is unknown"},
		{"version 2", []byte{2, 0, 0, 0}, "version 2 is unknown"},
		{"endless varint", cat([]byte{1}, bytes.Repeat([]byte{0xff}, 11)), "no varint"},
		{"count over the rest", cat(head, []byte{2}, cmd(1, 0, 0, 0, 0, 0, 0)), "cannot fit"},
		{"count of 2^64-1", cat(head, huge, bytes.Repeat([]byte{1}, 64)), "cannot fit"},
		{"op 0", cat(head, []byte{1}, cmd(0, 0, 0, 0, 0, 0, 0)), "op 0"},
		{"op from the future", cat(head, []byte{1}, cmd(byte(opEnd), 0, 0, 0, 0, 0, 0)), "unknown to this version"},
		{"flag from the future", cat(head, []byte{1}, cmd(9, 0x40, 0, 0, 0, 0, 0)), "unknown to this version"},
		{"numbered in session 0", cat(head, []byte{1}, cmd(9, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 1)), "session 0"},
		{"key count 2^64-1", cat(head, []byte{1}, cmd(3, 0, 0), huge, []byte{0, 0, 0}), "cannot fit"},
		{"key length 2^64-1", cat(head, []byte{1}, cmd(3, 0, 0, 1), huge, []byte{0, 0, 0}), "cannot fit"},
		{"bytes after the end", cat(head, []byte{0, 9}), "1 bytes too many"},
	} {
		_, err := DecodeBatch(tc.data)
		if !isDecodeError(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error is %v, want one with %q", tc.name, err, tc.want)
		}
	}
	for _, tc := range []struct {
		name string
		data []byte
		want string
	}{
		{"version", []byte{2, 0}, "version 2 is unknown"},
		{"unknown kind", []byte{1, 1, 6}, "unknown kind 6"},
		{"arrays too deep", []byte{1, 1, 4, 1, 4, 1, 4, 0}, "arrays too deep"},
		{"count of 2^64-1", cat([]byte{1}, huge), "cannot fit"},
		{"array of 2^64-1", cat([]byte{1, 1, 4}, huge), "cannot fit"},
		{"length of 2^64-1", cat([]byte{1, 1, 3}, huge), "cannot fit"},
	} {
		_, err := DecodeResults(tc.data)
		if !isDecodeError(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("results, %s: error is %v, want one with %q", tc.name, err, tc.want)
		}
	}
	if _, err := DecodeCommands([]byte{7, 0}); !isDecodeError(err) {
		t.Errorf("commands of version 7: error is %v", err)
	}
}

// A small input that claims much costs little memory.
func TestDecodeAllocatesByInput(t *testing.T) {
	data := append([]byte{batchVersion, 0, 0}, binary.AppendUvarint(nil, 1<<40)...)
	data = append(data, make([]byte, 1000)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		if _, err := DecodeBatch(data); err == nil {
			t.Fatal("decoded")
		}
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Fatalf("100 refusals of 1 KB allocated %d bytes", got)
	}
}

func TestEncodeRefusesTheUnknown(t *testing.T) {
	for name, f := range map[string]func(){
		"op 0":         func() { AppendCommands(nil, []Command{{}}) },
		"unknown op":   func() { AppendCommands(nil, []Command{{Op: opEnd}}) },
		"unknown flag": func() { AppendCommands(nil, []Command{{Op: OpSet, Flags: 1 << 15}}) },
		"deep array":   func() { AppendResults(nil, []Result{Array([]Result{Array([]Result{Array(nil)})})}) },
		"unknown kind": func() { AppendResults(nil, []Result{{Kind: 77}}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was encoded", name)
				}
			}()
			f()
		}()
	}
}

func TestDecodeInit(t *testing.T) {
	good := Init{ClusterID: "cluster", Shard: 7, Slots: []SlotRange{{0, 0}, {5, 9}, {10, 16383}}, Limits: Limits{MaxKey: MaxKeyLimit, MaxValue: MaxValueLimit}}
	got, err := DecodeInit(good.Encode())
	if err != nil || !reflect.DeepEqual(got, good) {
		t.Fatalf("got %+v, %v", got, err)
	}
	data := good.Encode()
	for cut := range data {
		if _, err := DecodeInit(data[:cut]); !isDecodeError(err) {
			t.Fatalf("cut to %d bytes: error is %v", cut, err)
		}
	}
	for name, change := range map[string]func(*Init){
		"overlap":       func(in *Init) { in.Slots = []SlotRange{{0, 5}, {5, 9}} },
		"backwards":     func(in *Init) { in.Slots = []SlotRange{{9, 5}} },
		"out of order":  func(in *Init) { in.Slots = []SlotRange{{5, 9}, {0, 1}} },
		"slot 16384":    func(in *Init) { in.Slots = []SlotRange{{0, 16384}} },
		"no key limit":  func(in *Init) { in.Limits.MaxKey = 0 },
		"key limit":     func(in *Init) { in.Limits.MaxKey = MaxKeyLimit + 1 },
		"no value size": func(in *Init) { in.Limits.MaxValue = 0 },
		"value limit":   func(in *Init) { in.Limits.MaxValue = MaxValueLimit + 1 },
	} {
		in := good
		change(&in)
		if _, err := DecodeInit(in.Encode()); !isDecodeError(err) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	data[0] = 2
	if _, err := DecodeInit(data); !isDecodeError(err) {
		t.Errorf("version 2: error is %v", err)
	}
}

func TestValidate(t *testing.T) {
	limits := Limits{MaxKey: 4, MaxValue: 6}
	keys := func(s ...string) (out [][]byte) {
		for _, k := range s {
			out = append(out, b(k))
		}
		return out
	}
	const ok, bad, large = "ok", "bad", "large"
	for _, tc := range []struct {
		name string
		c    Command
		want string
	}{
		{"get", Command{Op: OpGet, Keys: keys("k")}, ok},
		{"get of nothing", Command{Op: OpGet}, bad},
		{"get of two", Command{Op: OpGet, Keys: keys("a", "b")}, bad},
		{"get with a value", Command{Op: OpGet, Keys: keys("a"), Values: keys("v")}, bad},
		{"get with a flag", Command{Op: OpGet, Keys: keys("a"), Flags: FlagGet}, bad},
		{"key at the limit", Command{Op: OpGet, Keys: keys("1234")}, ok},
		{"key over the limit", Command{Op: OpGet, Keys: keys("12345")}, large},
		{"empty key", Command{Op: OpGet, Keys: keys("")}, large},
		{"value at the limit", Command{Op: OpSet, Keys: keys("k"), Values: keys("123456")}, ok},
		{"value over the limit", Command{Op: OpSet, Keys: keys("k"), Values: keys("1234567")}, large},
		{"empty value", Command{Op: OpSet, Keys: keys("k"), Values: keys("")}, ok},
		{"set nx get", Command{Op: OpSet, Flags: FlagIfAbsent | FlagGet, Keys: keys("k"), Values: keys("v")}, ok},
		{"set nx xx", Command{Op: OpSet, Flags: FlagIfAbsent | FlagIfPresent, Keys: keys("k"), Values: keys("v")}, bad},
		{"set ifeq", Command{Op: OpSet, Flags: FlagIfEqual, Keys: keys("k"), Values: keys("v", "w")}, ok},
		{"set ifeq of nothing", Command{Op: OpSet, Flags: FlagIfEqual, Keys: keys("k"), Values: keys("v")}, bad},
		{"set ifeq nx", Command{Op: OpSet, Flags: FlagIfEqual | FlagIfAbsent, Keys: keys("k"), Values: keys("v", "w")}, bad},
		{"set keepttl ex", Command{Op: OpSet, Flags: FlagKeepTTL, TTL: 1, Keys: keys("k"), Values: keys("v")}, bad},
		{"set persist", Command{Op: OpSet, Flags: FlagPersist, Keys: keys("k"), Values: keys("v")}, bad},
		{"mset", Command{Op: OpMSet, Keys: keys("a", "a"), Values: keys("1", "2")}, ok},
		{"mset odd", Command{Op: OpMSet, Keys: keys("a", "b"), Values: keys("1")}, bad},
		{"mset of nothing", Command{Op: OpMSet}, bad},
		{"mset nx", Command{Op: OpMSet, Flags: FlagIfAbsent, Keys: keys("a"), Values: keys("1")}, ok},
		{"del", Command{Op: OpDel, Keys: keys("a", "b", "c")}, ok},
		{"getex persist ex", Command{Op: OpGetEx, Flags: FlagPersist, TTL: 5, Keys: keys("a")}, bad},
		{"expire gt xx", Command{Op: OpExpire, Flags: FlagIfLonger | FlagIfTTL, Keys: keys("a")}, ok},
		{"expire gt lt", Command{Op: OpExpire, Flags: FlagIfLonger | FlagIfShorter, Keys: keys("a")}, bad},
		{"expire nx xx", Command{Op: OpExpire, Flags: FlagIfNoTTL | FlagIfTTL, Keys: keys("a")}, bad},
		{"noop", Command{Op: OpNoop}, ok},
		{"noop with a key", Command{Op: OpNoop, Keys: keys("a")}, bad},
		{"record over the value limit", Command{Op: OpRecordSet, Keys: keys("r"), Values: keys("longer than a value")}, ok},
		{"record over its limit", Command{Op: OpRecordSet, Keys: keys("r"), Values: [][]byte{make([]byte, MaxRecord+1)}}, large},
		{"too many keys", Command{Op: OpDel, Keys: make([][]byte, MaxParts+1)}, large},
		{"op 0", Command{}, bad},
		{"unknown op", Command{Op: opEnd}, bad},
	} {
		err := tc.c.Validate(limits)
		var limit *LimitError
		var shape *BadCommandError
		got := ok
		switch {
		case errors.As(err, &limit):
			got = large
		case errors.As(err, &shape):
			got = bad
		case err != nil:
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.want)
		}
	}
}

// Every op and code has its name and its shape: a new one cannot be forgotten.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for op := OpNoop; op < opEnd; op++ {
		if s := op.String(); s == "" || seen[s] {
			t.Errorf("op %d has the name %q", op, s)
		} else {
			seen[s] = true
		}
	}
	for c := CodeNone; c <= CodeBadCommand; c++ {
		if s := c.String(); strings.HasPrefix(s, "code(") || seen[s] {
			t.Errorf("code %d says %q", c, s)
		} else {
			seen[s] = true
		}
	}
}

func BenchmarkDecodeBatch(bm *testing.B) {
	var batch Batch
	for i := range 100 {
		batch.Commands = append(batch.Commands, Command{Op: OpSet, Slot: uint16(i), Keys: [][]byte{b("key:0000000001")}, Values: [][]byte{make([]byte, 100)}})
	}
	data := batch.AppendTo(nil)
	bm.ReportAllocs()
	for bm.Loop() {
		if _, err := DecodeBatch(data); err != nil {
			bm.Fatal(err)
		}
	}
}
