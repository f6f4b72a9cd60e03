package fsm

import (
	"fmt"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
)

func numbered(c command.Command, session, seq, floor uint64) command.Command {
	c.Session, c.Seq, c.Floor = session, seq, floor
	return c
}

func incr(key string) command.Command { return num(cmd(command.OpIncr, k(key)), 1) }

// opens makes a session.
func (m *machine) opens() uint64 {
	m.t.Helper()
	r := m.apply(0, command.Command{Op: command.OpSessionOpen})[0]
	if r.Kind != command.KindInt || r.Int == 0 {
		m.t.Fatalf("open: %s", show(r))
	}
	return uint64(r.Int)
}

// wants applies one command and checks its answer.
func (m *machine) wants(c command.Command, want string) {
	m.t.Helper()
	if got := m.one(c); got != want {
		m.t.Errorf("%v of session %d number %d: %s, want %s", c.Op, c.Session, c.Seq, got, want)
	}
}

const (
	unknown = "!10"
	expired = "!11"
	full    = "!12"
)

// A repeated command is carried out once and answered alike, errors and
// conditions included, by every replica, over restarts and installs, whatever came in between.
func TestSessionsAnswerOnce(t *testing.T) {
	m := newMachine(t, testConfig())
	s := m.opens()
	if command.SessionOrigin(s) != 1 {
		t.Errorf("session %d is of shard %d", s, command.SessionOrigin(s))
	}
	m.apply(0, set("text", "x"), set("old", "value"))
	commands := []struct {
		c    command.Command
		want string
	}{
		{numbered(incr("n"), s, 1, 0), "1"},
		{numbered(incr("n"), s, 5, 0), "2"}, // numbers may come in any order, and with holes
		{numbered(incr("n"), s, 3, 0), "3"},
		{numbered(incr("text"), s, 6, 0), "!1"},
		{numbered(cmd(command.OpGetDel, k("old")), s, 7, 0), `"value"`},
		{numbered(flags(set("nx", "1"), command.FlagIfAbsent), s, 8, 0), "OK"},
		{numbered(onSlot(set("a", "1"), 100), s, 9, 0), "OK"}, // two parts of one request
		{numbered(onSlot(incr("other"), 101), s, 9, 0), "1"},
	}
	for _, tc := range commands {
		m.wants(tc.c, tc.want)
	}
	m.apply(0, set("text", "7"), set("old", "again"), incr("n"), cmd(command.OpDel, k("nx")))
	again := func() {
		t.Helper()
		for _, tc := range commands {
			m.wants(tc.c, tc.want)
		}
		m.wants(get("n"), `"4"`)
		m.wants(get("text"), `"7"`)
		m.wants(get("old"), `"again"`)
		m.wants(get("nx"), "nil")
	}
	again()
	follower := emptyMachine(t, Config{InitialMmapSize: 64 << 20}) // wants no answers
	follower.f.ApplyBatch(m.logs)
	if follower.hash() != m.hash() {
		t.Error("a replica that waits for nothing remembers other answers")
	}
	m.reopen(0) // from the log alone
	again()
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	m.reopen(len(m.logs)) // from the checkpoint alone
	again()
	data, _ := readStream(t, m.f)
	fresh := emptyMachine(t, testConfig())
	if err := fresh.f.Restore(reader(data)); err != nil {
		t.Fatal(err)
	}
	if fresh.hash() != m.hash() {
		t.Error("an installed replica has another state")
	}
	fresh.logs, m.f, fresh.f = m.logs, fresh.f, m.f
	again()
}

// What a session gave up, and what it never was, is refused and not carried out.
func TestSessionsRefuse(t *testing.T) {
	m := newMachine(t, testConfig())
	s := m.opens()
	m.wants(numbered(incr("n"), s, 1, 0), "1")
	m.wants(numbered(incr("n"), s, 4, 3), "2") // gives up what is below 3
	m.wants(numbered(incr("n"), s, 1, 0), expired)
	m.wants(numbered(incr("n"), s, 2, 0), expired)
	m.wants(numbered(incr("n"), s, 3, 0), "3")
	m.wants(numbered(incr("n"), s, 4, 3), "2")
	m.wants(numbered(incr("n"), s+1, 1, 0), unknown)
	m.wants(numbered(incr("n"), 7<<originBits|1, 1, 0), unknown)
	m.wants(command.Command{Op: command.OpSessionCheck, Int: int64(s)}, "1")
	m.wants(command.Command{Op: command.OpSessionCheck, Int: int64(s + 1)}, unknown)
	m.wants(command.Command{Op: command.OpSessionOpen, Int: int64(s + 1)}, unknown) // this shard never made it
	for _, bad := range []command.Command{numbered(incr("n"), s, 0, 0), numbered(incr("n"), s, 9, 10), numbered(get("n"), s, 9, 0)} {
		m.wants(bad, "!9")
	}
	m.wants(get("n"), `"3"`)

	// Another shard's session is taken in, once and again.
	foreign := uint64(7<<originBits | 3)
	for range 2 {
		m.wants(command.Command{Op: command.OpSessionOpen, Int: int64(foreign)}, fmt.Sprint(foreign))
	}
	m.wants(numbered(incr("n"), foreign, 1, 0), "4")
	m.wants(numbered(incr("n"), foreign, 1, 0), "4")

	// A session with too many answers that it did not give up is stopped, until it does.
	greedy := m.opens()
	for i := range uint64(maxAnswers) {
		m.apply(0, numbered(incr("g"), greedy, i+1, 0))
	}
	m.wants(numbered(incr("g"), greedy, maxAnswers+1, 0), full)
	m.wants(numbered(incr("g"), greedy, 5, 0), "5")
	m.wants(get("g"), fmt.Sprintf("%q", fmt.Sprint(maxAnswers)))
	m.wants(numbered(incr("g"), greedy, maxAnswers+1, 2), fmt.Sprint(maxAnswers+1))
}

// The table is bounded: who was used least lately is forgotten, at the same
// entry everywhere, and is never taken in again: its old commands are refused.
func TestSessionsAreForgotten(t *testing.T) {
	m := newMachine(t, testConfig())
	first, second, foreign := m.opens(), m.opens(), uint64(7<<originBits|9)
	m.wants(command.Command{Op: command.OpSessionOpen, Int: int64(foreign)}, fmt.Sprint(foreign))
	m.wants(numbered(incr("n"), second, 1, 0), "1")
	m.wants(numbered(incr("n"), foreign, 1, 0), "2")
	m.wants(numbered(incr("n"), first, 1, 0), "3")
	opens := make([]command.Command, 1000)
	for i := range opens {
		opens[i].Op = command.OpSessionOpen
	}
	for i := 0; i < maxSessions; i += len(opens) {
		m.apply(0, numbered(incr("n"), first, uint64(i+2), 0)) // keeps the first in use
		m.apply(0, opens...)
		if i == 5000 { // some of it in the file
			if err := m.f.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, gone := range []uint64{second, foreign} {
		m.wants(numbered(incr("n"), gone, 1, 0), expired)
		m.wants(numbered(incr("n"), gone, 2, 0), expired)
		m.wants(command.Command{Op: command.OpSessionOpen, Int: int64(gone)}, expired)
		m.wants(command.Command{Op: command.OpSessionCheck, Int: int64(gone)}, expired)
	}
	// Nor is one that is older than what was forgotten, for it may have been here.
	m.wants(command.Command{Op: command.OpSessionOpen, Int: int64(foreign - 1)}, expired)
	m.wants(command.Command{Op: command.OpSessionOpen, Int: int64(foreign + 1)}, fmt.Sprint(foreign+1))
	m.wants(numbered(incr("n"), first, 1, 0), "3")
	if n := len(m.f.ap.sess.byID); n != maxSessions {
		t.Errorf("%d sessions are known", n)
	}
	hash := m.hash()
	m.reopen(0)
	if m.hash() != hash {
		t.Error("the log brings another table")
	}
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	m.reopen(len(m.logs))
	if m.hash() != hash {
		t.Error("the checkpoint holds another table")
	}
	m.apply(0, opens...)
	other := emptyMachine(t, testConfig())
	other.f.ApplyBatch(m.logs)
	if other.hash() != m.hash() {
		t.Error("a replica that read its table from a file forgets others")
	}

	// Large answers count by their size.
	big := m.opens()
	m.apply(0, set("big", string(make([]byte, 4000))))
	for i := range uint64(maxAnswersBytes / 4000) {
		m.apply(0, numbered(flags(set("big", string(make([]byte, 4000))), command.FlagGet), big, i+1, 0))
	}
	m.wants(numbered(incr("n"), big, 99999, 0), full)
	if m.f.ap.sess.bytes > maxSessionsBytes {
		t.Errorf("the table takes %d bytes", m.f.ap.sess.bytes)
	}
}

// A session's table takes part in the random test's state hash; here its own
// encoding comes back as it was, and what is damaged is refused.
func TestSessionCodec(t *testing.T) {
	s := &session{id: 5, floor: 3, used: 9, bytes: sessionCost, answers: map[answerKey]command.Result{
		{3, 7}: command.OK(), {4, 7}: command.Array([]command.Result{command.Nil(), command.Bytes([]byte("x"))}), {4, 8}: command.Err(command.CodeNaN),
	}}
	for _, r := range s.answers {
		s.bytes += answerSize(r)
	}
	data := s.encode(nil)
	got, err := decodeSession(5, data)
	if err != nil {
		t.Fatal(err)
	}
	if got.floor != 3 || got.used != 9 || got.bytes != s.bytes || len(got.answers) != 3 {
		t.Errorf("got %+v", got)
	}
	for k, r := range s.answers {
		if resultHash(got.answers[k]) != resultHash(r) {
			t.Errorf("%v: %s, want %s", k, show(got.answers[k]), show(r))
		}
	}
	for cut := range data {
		if _, err := decodeSession(5, data[:cut]); err == nil {
			t.Errorf("cut to %d bytes: decoded", cut)
		}
	}
	if _, err := decodeSession(5, append(data, 0)); err == nil {
		t.Error("with a byte too many: decoded")
	}
}

func FuzzDecodeSession(f *testing.F) {
	s := &session{id: 5, floor: 3, answers: map[answerKey]command.Result{{3, 7}: command.OK(), {4, 8}: command.Bytes([]byte("abc"))}}
	f.Add(s.encode(nil))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeSession(5, data)
		if err != nil {
			return
		}
		again, err := decodeSession(5, s.encode(nil))
		if err != nil || len(again.answers) != len(s.answers) || again.floor != s.floor {
			t.Fatalf("%+v came back as %+v, %v", s, again, err)
		}
	})
}

// multi joins commands on slot 5, with watched keys and their indexes.
func multi(watched []string, indexes []uint64, cmds ...command.Command) command.Command {
	return command.Command{Op: command.OpMulti, Slot: 5, Keys: keysOf(watched...),
		Values: [][]byte{command.AppendCommands(nil, cmds), command.AppendIndexes(nil, indexes)}}
}

// A MULTI is carried out whole, with answers in order; an error of one command
// stops no other; a change of a watched key, whatever it was, stops all.
func TestMulti(t *testing.T) {
	m := newMachine(t, testConfig())
	m.apply(0, set("a", "1"), set("text", "x"), set("same", "1"), setTTL("ends", "1", 50))
	m.wants(multi(nil, nil, incr("a"), incr("text"), get("a"), cmd(command.OpMGet, k("a", "none"))), `[2 !1 "2" ["2" nil]]`)
	m.wants(multi(nil, nil), "[]")

	at := m.f.Applied()
	watch := func(keys ...string) command.Command {
		indexes := make([]uint64, len(keys))
		for i := range indexes {
			indexes[i] = at
		}
		return multi(keys, indexes, incr("done"))
	}
	m.wants(watch("a", "text", "absent", "ends"), "[1]")
	m.apply(0, onSlot(set("a", "other slot"), 6), get("a"))
	m.wants(watch("a", "absent"), "[2]")
	m.apply(0, set("same", "2"))
	m.apply(0, set("same", "1")) // what it was: somebody may have read the 2
	m.wants(watch("same"), "nil")
	m.wants(watch("a", "same"), "nil")
	m.apply(0, set("absent", "1"))
	m.wants(watch("absent"), "nil")
	m.apply(0, cmd(command.OpDel, k("absent"))) // absent again
	m.wants(watch("absent"), "nil")
	m.wants(watch("never"), "nil") // it may have been there and removed: better once too often
	m.wants(watch("ends"), "[3]")
	m.pass(60)
	m.wants(watch("ends"), "nil")
	at = m.f.Applied()
	m.wants(watch("a", "absent", "never", "ends", "same"), "[4]")
	m.checkFile()
	m.reopen(len(m.logs)) // the indexes are in the file
	m.wants(watch("a", "absent", "never", "ends", "same"), "[5]")

	for name, bad := range map[string]command.Command{
		"another slot":    multi(nil, nil, onSlot(set("a", "1"), 6)),
		"a MULTI":         multi(nil, nil, multi(nil, nil)),
		"a record":        multi(nil, nil, num(cmd(command.OpRecordSet, k("r"), "v"), 0)),
		"numbered inside": multi(nil, nil, numbered(incr("a"), 1, 1, 0)),
		"few indexes":     {Op: command.OpMulti, Slot: 5, Keys: keysOf("a"), Values: [][]byte{command.AppendCommands(nil, nil), {1}}},
		"no commands":     {Op: command.OpMulti, Slot: 5, Values: [][]byte{{9}, {1}}},
	} {
		if got := m.one(bad); got != "!9" {
			t.Errorf("%s: %s", name, got)
		}
	}
	s := m.opens()
	once := numbered(multi(nil, nil, incr("once")), s, 1, 0)
	m.wants(once, "[1]")
	m.wants(once, "[1]")
}

// After a recovery the shard gives no id again that it may have given before.
func TestSessionSkip(t *testing.T) {
	m := newMachine(t, testConfig())
	first := m.opens()
	m.wants(num(command.Command{Op: command.OpSessionSkip}, 1<<32), "4294967296")
	m.wants(num(command.Command{Op: command.OpSessionSkip}, 5), "4294967296") // never back
	if got := m.f.SessionCount(); got != 1<<32 {
		t.Errorf("count %d", got)
	}
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	m.reopen(len(m.logs))
	if second := m.opens(); second != 1<<48|1<<32+1 || second == first {
		t.Errorf("session %x after %x", second, first)
	}
}
