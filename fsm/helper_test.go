package fsm

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/hashicorp/raft"
)

// machine drives one FSM as raft would, and keeps the log.
type machine struct {
	t    *testing.T
	dir  string
	cfg  Config
	f    *FSM
	logs []*raft.Log
}

func always(uint64) bool { return true }

// testConfig wants every answer. The map is larger than any file here: a test
// that holds a view while it writes would wait for itself when the file outgrows it.
func testConfig() Config {
	return Config{Wanted: always, InitialMmapSize: 64 << 20, CloseTimeout: 10 * time.Second}
}

var testLimits = command.Limits{MaxKey: 64, MaxValue: 4096}

func testInit() command.Init {
	return command.Init{ClusterID: "test", Shard: 1, Slots: []command.SlotRange{{From: 0, To: 9}, {From: 100, To: 16383}}, Limits: testLimits}
}

// newMachine opens an FSM in a new directory and gives it its identity.
func newMachine(t *testing.T, cfg Config) *machine {
	t.Helper()
	m := emptyMachine(t, cfg)
	in := testInit()
	m.apply(0, command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
	return m
}

func emptyMachine(t *testing.T, cfg Config) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), cfg: cfg}
	m.open()
	t.Cleanup(func() {
		if err := m.f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

func (m *machine) open() {
	m.t.Helper()
	f, err := Open(m.dir, m.cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	m.f = f
}

// reopen is a restart: the file as it is, then the log from any entry that raft
// might begin with.
func (m *machine) reopen(from int) {
	m.t.Helper()
	if err := m.f.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.open()
	if len(m.logs) > from {
		m.f.ApplyBatch(m.logs[from:])
	}
}

// log makes the next entry.
func (m *machine) log(elapsed uint64, cmds ...command.Command) *raft.Log {
	b := command.Batch{ID: uint64(len(m.logs) + 1), ElapsedMillis: elapsed, Commands: cmds}
	l := &raft.Log{Index: uint64(len(m.logs) + 1), Term: 1, Type: raft.LogCommand, Data: b.AppendTo(nil)}
	m.logs = append(m.logs, l)
	return l
}

func (m *machine) apply(elapsed uint64, cmds ...command.Command) []command.Result {
	m.t.Helper()
	return m.f.Apply(m.log(elapsed, cmds...)).(*Applied).Results
}

// one applies one command and returns its answer as text.
func (m *machine) one(c command.Command) string {
	m.t.Helper()
	return show(m.apply(0, c)[0])
}

// pass lets time pass.
func (m *machine) pass(ms uint64) { m.apply(ms) }

func (m *machine) view() *View {
	m.t.Helper()
	v, err := m.f.View()
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(v.Close)
	return v
}

func (m *machine) hash() uint64 {
	m.t.Helper()
	v := m.view()
	defer v.Close()
	return v.Hash()
}

// contents are all visible keys as "slot/key" → value.
func contents(v *View) map[string]string {
	out := map[string]string{}
	_ = v.Scan(0, command.Slots-1, nil, func(slot uint16, key, value []byte) bool {
		out[fmt.Sprintf("%d/%s", slot, key)] = string(value)
		return true
	})
	return out
}

func (m *machine) wantContents(want map[string]string) {
	m.t.Helper()
	v := m.view()
	defer v.Close()
	if got := contents(v); !maps.Equal(got, want) {
		m.t.Fatalf("contents are %v, want %v", got, want)
	}
}

// checkFile verifies all that the state says twice, counts and deadlines, as it
// is now and as a checkpoint leaves it in the file, and that the two are one state.
func (m *machine) checkFile() {
	m.t.Helper()
	before := m.checkState()
	if err := m.f.Flush(); err != nil {
		m.t.Fatal(err)
	}
	if after := m.checkState(); after != before {
		m.t.Fatal("the checkpoint changed the state")
	}
	if err := m.f.Scrub(context.Background(), nil); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) checkState() (hash uint64) {
	m.t.Helper()
	v := m.view()
	defer v.Close()
	counts := map[uint16]slotCount{}
	var total slotCount
	deadlines := map[string]bool{}
	v.scan(0, command.Slots-1, nil, func(slot uint16, key []byte, r *row) bool {
		size := int64(len(key) + len(r.value))
		n := counts[slot]
		n.add(1, size)
		counts[slot] = n
		total.add(1, size)
		if r.deadline != 0 {
			deadlines[string(new(applier).ttlKey(r.deadline, slot, key))] = true
		}
		return true
	})
	for slot := range uint16(command.Slots) {
		got := v.counts.get(slot)
		got.removed = 0
		if got != counts[slot] {
			m.t.Fatalf("slot %d counts %+v, it holds %+v", slot, got, counts[slot])
		}
	}
	if v.head.total != total {
		m.t.Fatalf("header counts %+v, the file holds %+v", v.head.total, total)
	}
	n := 0
	v.layers.walk(inTTL, nil, func(k []byte, _ row) bool {
		n++
		if !deadlines[string(k)] {
			m.t.Fatalf("deadline row %x has no key", k)
		}
		return true
	})
	if n != len(deadlines) {
		m.t.Fatalf("%d deadline rows for %d keys with a deadline", n, len(deadlines))
	}
	return v.Hash()
}

// show writes a result as text: nil, OK, 5, "bytes", [..], !code or !code:int.
func show(r command.Result) string {
	switch r.Kind {
	case command.KindNil:
		return "nil"
	case command.KindOK:
		return "OK"
	case command.KindInt:
		return fmt.Sprint(r.Int)
	case command.KindBytes:
		return fmt.Sprintf("%q", r.Bytes)
	case command.KindArray:
		var b bytes.Buffer
		for i, e := range r.Array {
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(show(e))
		}
		return "[" + b.String() + "]"
	default:
		if r.Int != 0 {
			return fmt.Sprintf("!%d:%d", r.Code, r.Int)
		}
		return fmt.Sprintf("!%d", r.Code)
	}
}

func keysOf(s ...string) (out [][]byte) {
	for _, k := range s {
		out = append(out, []byte(k))
	}
	return out
}

// cmd builds a command on slot 5.
func cmd(op command.Op, keys []string, values ...string) command.Command {
	return command.Command{Op: op, Slot: 5, Keys: keysOf(keys...), Values: keysOf(values...)}
}

func set(key, value string) command.Command { return cmd(command.OpSet, k(key), value) }

func setTTL(key, value string, ttl int64) command.Command {
	c := set(key, value)
	c.TTL = ttl
	return c
}

func get(key string) command.Command { return cmd(command.OpGet, k(key)) }

func k(keys ...string) []string { return keys }

func with(c command.Command, change func(*command.Command)) command.Command {
	change(&c)
	return c
}

func flags(c command.Command, f command.Flags) command.Command {
	return with(c, func(c *command.Command) { c.Flags = f })
}

func ttl(c command.Command, ms int64) command.Command {
	return with(c, func(c *command.Command) { c.TTL = ms })
}

func num(c command.Command, n int64) command.Command {
	return with(c, func(c *command.Command) { c.Int = n })
}

func onSlot(c command.Command, slot uint16) command.Command {
	return with(c, func(c *command.Command) { c.Slot = slot })
}

func sorted(keys [][]byte) []string {
	var out []string
	for _, k := range keys {
		out = append(out, string(k))
	}
	slices.Sort(out)
	return out
}
