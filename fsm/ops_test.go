package fsm

import (
	"slices"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
)

// Every op, its answers and its refusals. A script is one machine; each line is
// one entry. The file's own book-keeping is checked at the end of each.
func TestOps(t *testing.T) {
	type step struct {
		c    command.Command
		want string
	}
	const (
		notInt   = "!1"
		overflow = "!2"
		notFloat = "!3"
		nan      = "!4"
	)
	pass := func(ms int64) step { return step{num(command.Command{}, ms), ""} } // no command: time passes
	for name, script := range map[string][]step{
		"get set": {
			{get("a"), "nil"}, {set("a", "1"), "OK"}, {get("a"), `"1"`}, {set("a", ""), "OK"}, {get("a"), `""`},
			{onSlot(get("a"), 6), "nil"}, {set("\x00\xff", "\r\n\x00"), "OK"}, {get("\x00\xff"), `"\r\n\x00"`},
		},
		"noop": {{command.Command{Op: command.OpNoop}, "OK"}},
		"mget": {
			{set("a", "1"), "OK"}, {set("c", ""), "OK"},
			{cmd(command.OpMGet, k("a", "b", "c", "a")), `["1" nil "" "1"]`},
		},
		"strlen type exists": {
			{cmd(command.OpStrlen, k("a")), "0"}, {cmd(command.OpType, k("a")), `"none"`}, {cmd(command.OpExists, k("a", "a")), "0"},
			{set("a", "four"), "OK"},
			{cmd(command.OpStrlen, k("a")), "4"}, {cmd(command.OpType, k("a")), `"string"`}, {cmd(command.OpExists, k("a", "b", "a")), "2"},
		},
		"set conditions": {
			{flags(set("a", "1"), command.FlagIfPresent), "nil"}, {get("a"), "nil"},
			{flags(set("a", "1"), command.FlagIfAbsent), "OK"}, {flags(set("a", "2"), command.FlagIfAbsent), "nil"}, {get("a"), `"1"`},
			{flags(set("a", "3"), command.FlagIfPresent), "OK"}, {get("a"), `"3"`},
			{flags(cmd(command.OpSet, k("a"), "4", "x"), command.FlagIfEqual), "nil"}, {get("a"), `"3"`},
			{flags(cmd(command.OpSet, k("a"), "4", "3"), command.FlagIfEqual), "OK"}, {get("a"), `"4"`},
			{flags(cmd(command.OpSet, k("none"), "4", ""), command.FlagIfEqual), "nil"}, {get("none"), "nil"},
		},
		"set get": {
			{flags(set("a", "1"), command.FlagGet), "nil"}, {flags(set("a", "2"), command.FlagGet), `"1"`},
			{flags(set("a", "3"), command.FlagGet|command.FlagIfAbsent), `"2"`}, {get("a"), `"2"`},
			{flags(set("b", "3"), command.FlagGet|command.FlagIfAbsent), "nil"}, {get("b"), `"3"`},
			{flags(set("c", "3"), command.FlagGet|command.FlagIfPresent), "nil"}, {get("c"), "nil"},
		},
		"set ttl": {
			{setTTL("a", "1", 100), "OK"}, {cmd(command.OpTTL, k("a")), "100"}, pass(40), {cmd(command.OpTTL, k("a")), "60"},
			{flags(set("a", "2"), command.FlagKeepTTL), "OK"}, {cmd(command.OpTTL, k("a")), "60"}, {get("a"), `"2"`},
			{set("a", "3"), "OK"}, {cmd(command.OpTTL, k("a")), "-1"}, {cmd(command.OpTTL, k("none")), "-2"},
			{setTTL("a", "4", -1), "OK"}, {get("a"), "nil"},
			{flags(set("b", "1"), command.FlagKeepTTL), "OK"}, {cmd(command.OpTTL, k("b")), "-1"},
		},
		"a key ends": {
			{setTTL("a", "1", 100), "OK"}, pass(99), {get("a"), `"1"`}, pass(1), {get("a"), "nil"},
			{cmd(command.OpTTL, k("a")), "-2"}, {cmd(command.OpDel, k("a")), "0"}, {flags(set("a", "2"), command.FlagIfAbsent), "OK"},
			{cmd(command.OpTTL, k("a")), "-1"}, pass(1000), {get("a"), `"2"`},
		},
		"mset": {
			{cmd(command.OpMSet, k("a", "b", "a"), "1", "2", "3"), "OK"}, {cmd(command.OpMGet, k("a", "b")), `["3" "2"]`},
			{flags(cmd(command.OpMSet, k("c", "b"), "4", "5"), command.FlagIfAbsent), "0"}, {get("c"), "nil"},
			{flags(cmd(command.OpMSet, k("c", "d", "c"), "4", "5", "6"), command.FlagIfAbsent), "1"}, {cmd(command.OpMGet, k("c", "d")), `["6" "5"]`},
			{setTTL("a", "x", 50), "OK"}, {cmd(command.OpMSet, k("a"), "y"), "OK"}, {cmd(command.OpTTL, k("a")), "-1"},
		},
		"del": {
			{cmd(command.OpMSet, k("a", "b"), "1", "2"), "OK"}, {cmd(command.OpDel, k("a", "a", "x", "b")), "2"}, {cmd(command.OpExists, k("a", "b")), "0"},
		},
		"incr": {
			{num(cmd(command.OpIncr, k("a")), 1), "1"}, {num(cmd(command.OpIncr, k("a")), -5), "-4"}, {get("a"), `"-4"`},
			{set("a", "9223372036854775806"), "OK"}, {num(cmd(command.OpIncr, k("a")), 1), "9223372036854775807"},
			{num(cmd(command.OpIncr, k("a")), 1), overflow}, {get("a"), `"9223372036854775807"`},
			{set("a", "-9223372036854775808"), "OK"}, {num(cmd(command.OpIncr, k("a")), -1), overflow},
			{num(cmd(command.OpIncr, k("a")), 0), "-9223372036854775808"},
			{set("a", "-1"), "OK"}, {num(cmd(command.OpIncr, k("a")), -9223372036854775808), overflow},
			{setTTL("t", "1", 100), "OK"}, {num(cmd(command.OpIncr, k("t")), 1), "2"}, {cmd(command.OpTTL, k("t")), "100"},
			{set("s", ""), "OK"}, {num(cmd(command.OpIncr, k("s")), 1), notInt},
			{set("s", "01"), "OK"}, {num(cmd(command.OpIncr, k("s")), 1), notInt},
			{set("s", "+1"), "OK"}, {num(cmd(command.OpIncr, k("s")), 1), notInt},
			{set("s", "-0"), "OK"}, {num(cmd(command.OpIncr, k("s")), 1), notInt},
			{set("s", " 1"), "OK"}, {num(cmd(command.OpIncr, k("s")), 1), notInt},
			{set("s", "1_0"), "OK"}, {num(cmd(command.OpIncr, k("s")), 1), notInt},
			{set("s", "1.0"), "OK"}, {num(cmd(command.OpIncr, k("s")), 1), notInt},
			{set("s", "9223372036854775808"), "OK"}, {num(cmd(command.OpIncr, k("s")), 1), notInt},
			{set("s", "0"), "OK"}, {num(cmd(command.OpIncr, k("s")), 1), "1"},
		},
		"incrfloat": {
			{cmd(command.OpIncrFloat, k("a"), "0.1"), `"0.1"`}, {cmd(command.OpIncrFloat, k("a"), "0.2"), `"0.3"`}, {get("a"), `"0.3"`},
			{cmd(command.OpIncrFloat, k("a"), "-0.3"), `"0"`}, {cmd(command.OpIncrFloat, k("a"), "5.0e3"), `"5000"`},
			{set("a", "3.0e3"), "OK"}, {cmd(command.OpIncrFloat, k("a"), "200"), `"3200"`}, {cmd(command.OpIncrFloat, k("a"), "1.5"), `"3201.5"`},
			{set("a", "10.50"), "OK"}, {cmd(command.OpIncrFloat, k("a"), "0.1"), `"10.6"`}, {cmd(command.OpIncrFloat, k("a"), "-5"), `"5.6"`},
			{cmd(command.OpIncrFloat, k("a"), "abc"), notFloat}, {cmd(command.OpIncrFloat, k("a"), ""), notFloat}, {cmd(command.OpIncrFloat, k("a"), "nan"), notFloat},
			{cmd(command.OpIncrFloat, k("a"), "inf"), notFloat}, {cmd(command.OpIncrFloat, k("a"), "0x10"), notFloat}, {cmd(command.OpIncrFloat, k("a"), "1e999999999"), notFloat},
			{cmd(command.OpIncrFloat, k("a"), "1e-999999999"), `"5.6"`}, {cmd(command.OpIncrFloat, k("a"), strings.Repeat("1", 600)), notFloat},
			{set("a", "1.7e308"), "OK"}, {cmd(command.OpIncrFloat, k("a"), "1.7e308"), nan},
			{set("a", "word"), "OK"}, {cmd(command.OpIncrFloat, k("a"), "1"), notFloat},
			{setTTL("t", "1", 100), "OK"}, {cmd(command.OpIncrFloat, k("t"), "1"), `"2"`}, {cmd(command.OpTTL, k("t")), "100"},
		},
		"append": {
			{cmd(command.OpAppend, k("a"), "ab"), "2"}, {cmd(command.OpAppend, k("a"), "c"), "3"}, {cmd(command.OpAppend, k("a"), ""), "3"}, {get("a"), `"abc"`},
			{cmd(command.OpExpire, k("a")), "1"}, {get("a"), "nil"}, {cmd(command.OpAppend, k("a"), "x"), "1"},
			{set("big", strings.Repeat("x", 4096)), "OK"}, {cmd(command.OpAppend, k("big"), "x"), "!5:4096"}, {cmd(command.OpStrlen, k("big")), "4096"},
		},
		"getdel": {
			{cmd(command.OpGetDel, k("a")), "nil"}, {set("a", "1"), "OK"}, {cmd(command.OpGetDel, k("a")), `"1"`}, {get("a"), "nil"},
		},
		"getex": {
			{ttl(cmd(command.OpGetEx, k("a")), 10), "nil"}, {set("a", "1"), "OK"}, {ttl(cmd(command.OpGetEx, k("a")), 10), `"1"`}, {cmd(command.OpTTL, k("a")), "10"},
			{cmd(command.OpGetEx, k("a")), `"1"`}, {cmd(command.OpTTL, k("a")), "10"},
			{flags(cmd(command.OpGetEx, k("a")), command.FlagPersist), `"1"`}, {cmd(command.OpTTL, k("a")), "-1"},
			{ttl(cmd(command.OpGetEx, k("a")), -1), `"1"`}, {get("a"), "nil"},
		},
		"expire": {
			{ttl(cmd(command.OpExpire, k("a")), 10), "0"}, {set("a", "1"), "OK"}, {ttl(cmd(command.OpExpire, k("a")), 10), "1"}, {cmd(command.OpTTL, k("a")), "10"}, {get("a"), `"1"`},
			{cmd(command.OpPersist, k("a")), "1"}, {cmd(command.OpPersist, k("a")), "0"}, {cmd(command.OpPersist, k("none")), "0"}, {cmd(command.OpTTL, k("a")), "-1"},
			// Without a TTL a key counts as one that never ends.
			{flags(ttl(cmd(command.OpExpire, k("a")), 10), command.FlagIfTTL), "0"}, {flags(ttl(cmd(command.OpExpire, k("a")), 10), command.FlagIfLonger), "0"},
			{flags(ttl(cmd(command.OpExpire, k("a")), 50), command.FlagIfShorter), "1"}, {flags(ttl(cmd(command.OpExpire, k("a")), 60), command.FlagIfShorter), "0"},
			{flags(ttl(cmd(command.OpExpire, k("a")), 50), command.FlagIfShorter), "0"}, {flags(ttl(cmd(command.OpExpire, k("a")), 50), command.FlagIfLonger), "0"},
			{flags(ttl(cmd(command.OpExpire, k("a")), 60), command.FlagIfLonger), "1"}, {cmd(command.OpTTL, k("a")), "60"},
			{flags(ttl(cmd(command.OpExpire, k("a")), 9), command.FlagIfNoTTL), "0"}, {flags(ttl(cmd(command.OpExpire, k("a")), 9), command.FlagIfTTL), "1"}, {cmd(command.OpTTL, k("a")), "9"},
			{flags(ttl(cmd(command.OpExpire, k("a")), -5), command.FlagIfNoTTL), "0"}, {ttl(cmd(command.OpExpire, k("a")), -5), "1"}, {get("a"), "nil"},
		},
		"limits of time": {
			{setTTL("a", "1", 1<<63-1), "OK"}, {ttl(cmd(command.OpExpire, k("a")), 1<<63-1), "1"}, {get("a"), `"1"`},
			{ttl(cmd(command.OpExpire, k("a")), -1<<63), "1"}, {get("a"), "nil"},
		},
		"records": {
			{num(cmd(command.OpRecordSet, k("r"), "v1"), 0), "1"}, {num(cmd(command.OpRecordSet, k("r"), "v2"), 0), "!7:1"},
			{num(cmd(command.OpRecordSet, k("r"), "v2"), 1), "2"}, {num(cmd(command.OpRecordSet, k("r"), "v3"), 1), "!7:2"},
			{num(cmd(command.OpRecordDelete, k("r")), 1), "!7:2"}, {num(cmd(command.OpRecordDelete, k("r")), 2), "1"}, {num(cmd(command.OpRecordDelete, k("r")), 2), "0"},
			{num(cmd(command.OpRecordSet, k("r"), "again"), 2), "!7"}, // a record that is not there has revision 0
			{num(cmd(command.OpRecordSet, k("r"), "again"), 0), "3"},  // and does not get an old revision again
			{num(cmd(command.OpRecordDelete, k("r")), -1), "1"}, {get("r"), "nil"},
			{num(onSlot(cmd(command.OpRecordSet, k("r"), "any slot"), 50), 0), "4"},
		},
		"refusals": {
			{onSlot(get("a"), 50), "!6"}, {onSlot(set("a", "1"), 10), "!6"}, {onSlot(set("a", "1"), 16384), "!6"}, {onSlot(set("a", "1"), 65535), "!6"}, {onSlot(set("a", "1"), 16383), "OK"},
			{set(strings.Repeat("k", 65), "v"), "!5:64"}, {set(strings.Repeat("k", 64), "v"), "OK"}, {set("k", strings.Repeat("v", 4097)), "!5:4096"}, {set("", "v"), "!9"},
			{command.Command{Op: command.OpGet, Slot: 5}, "!9"}, {cmd(command.OpMSet, k("a", "b"), "1"), "!9"}, {flags(set("a", "1"), command.FlagPersist), "!9"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, testConfig())
			for i, s := range script {
				if s.c.Op == 0 {
					m.pass(uint64(s.c.Int))
					continue
				}
				if got := m.one(s.c); got != s.want {
					t.Fatalf("step %d, %v %q %q: %s, want %s", i+1, s.c.Op, s.c.Keys, s.c.Values, got, s.want)
				}
			}
			m.checkFile()
		})
	}
}

// A shard without identity refuses all but OpInit, and the first OpInit holds.
func TestInit(t *testing.T) {
	m := emptyMachine(t, testConfig())
	for _, c := range []command.Command{get("a"), set("a", "1"), num(cmd(command.OpRecordSet, k("r"), "v"), 0)} {
		if got := m.one(c); got != "!8" {
			t.Errorf("%v before init: %s", c.Op, got)
		}
	}
	if _, ok := m.f.Init(); ok {
		t.Error("it has an identity")
	}
	in := testInit()
	if got := m.one(command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}}); got != "OK" {
		t.Fatal(got)
	}
	other := in
	other.ClusterID = "other"
	if got := m.one(command.Command{Op: command.OpInit, Values: [][]byte{other.Encode()}}); got != "OK" {
		t.Fatal(got)
	}
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	m.reopen(len(m.logs))
	if got, ok := m.f.Init(); !ok || got.ClusterID != "test" || got.Shard != 1 {
		t.Errorf("identity is %+v", got)
	}
	if got := m.one(set("a", "1")); got != "OK" {
		t.Error(got)
	}
}

// TestSlotSet has slots added and listed, once each and in order.
func TestSlotSet(t *testing.T) {
	var s slotSet
	for _, slot := range []uint16{16383, 0, 64, 63, 64, 8191} {
		s.add(slot)
	}
	if got, want := slices.Collect(s.all), []uint16{0, 63, 64, 8191, 16383}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for slot := range s.all {
		if slot != 0 {
			t.Fatalf("went on to %d after the end", slot)
		}
		break
	}
}
