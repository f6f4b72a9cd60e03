package fsm

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/hashicorp/raft"
)

// model is the state machine once more, as plainly as it can be said: a map.
type model struct {
	clock   int64
	keys    map[string]modelValue // "slot/key"
	records map[string]modelRecord
	lastRev int64
}

type modelValue struct {
	value    string
	deadline int64
}

type modelRecord struct {
	value string
	rev   int64
}

func newModel() *model {
	return &model{keys: map[string]modelValue{}, records: map[string]modelRecord{}}
}

func (m *model) advance(ms uint64) {
	m.clock += int64(ms)
	maps.DeleteFunc(m.keys, func(_ string, v modelValue) bool { return v.deadline != 0 && v.deadline <= m.clock })
}

func (m *model) visible() map[string]string {
	out := map[string]string{}
	for k, v := range m.keys {
		out[k] = v.value
	}
	return out
}

func (m *model) apply(c command.Command) string {
	name := func(i int) string { return fmt.Sprintf("%d/%s", c.Slot, c.Keys[i]) }
	has := func(f command.Flags) bool { return c.Flags&f != 0 }
	count := func(n int) string { return strconv.Itoa(n) }
	quote := func(v modelValue, ok bool) string {
		if !ok {
			return "nil"
		}
		return fmt.Sprintf("%q", v.value)
	}
	var old modelValue
	var ok bool
	if len(c.Keys) > 0 {
		old, ok = m.keys[name(0)]
	}
	switch c.Op {
	case command.OpNoop:
		return "OK"
	case command.OpGet:
		return quote(old, ok)
	case command.OpTTL:
		switch {
		case !ok:
			return "-2"
		case old.deadline == 0:
			return "-1"
		}
		return strconv.FormatInt(old.deadline-m.clock, 10)
	case command.OpSet:
		answer := "OK"
		if has(command.FlagGet) {
			answer = quote(old, ok)
		}
		if has(command.FlagIfAbsent) && ok || has(command.FlagIfPresent) && !ok || has(command.FlagIfEqual) && (!ok || old.value != string(c.Values[1])) {
			if !has(command.FlagGet) {
				answer = "nil"
			}
			return answer
		}
		v := modelValue{value: string(c.Values[0])}
		if c.TTL > 0 {
			v.deadline = m.clock + c.TTL
		}
		if has(command.FlagKeepTTL) {
			v.deadline = old.deadline
		}
		m.keys[name(0)] = v
		return answer
	case command.OpMSet:
		if has(command.FlagIfAbsent) {
			for i := range c.Keys {
				if _, there := m.keys[name(i)]; there {
					return "0"
				}
			}
		}
		for i := range c.Keys {
			m.keys[name(i)] = modelValue{value: string(c.Values[i])}
		}
		if has(command.FlagIfAbsent) {
			return "1"
		}
		return "OK"
	case command.OpDel:
		n := len(m.keys)
		for i := range c.Keys {
			delete(m.keys, name(i))
		}
		return count(n - len(m.keys))
	case command.OpIncr:
		n, err := strconv.ParseInt(old.value, 10, 64)
		if ok && err != nil {
			return "!1"
		}
		n += c.Int
		m.keys[name(0)] = modelValue{strconv.FormatInt(n, 10), old.deadline}
		return strconv.FormatInt(n, 10)
	case command.OpAppend:
		old.value += string(c.Values[0])
		m.keys[name(0)] = old
		return count(len(old.value))
	case command.OpGetDel:
		delete(m.keys, name(0))
		return quote(old, ok)
	case command.OpGetEx:
		if ok && c.TTL > 0 {
			m.keys[name(0)] = modelValue{old.value, m.clock + c.TTL}
		} else if ok && has(command.FlagPersist) {
			m.keys[name(0)] = modelValue{old.value, 0}
		}
		return quote(old, ok)
	case command.OpExpire:
		if !ok {
			return "0"
		}
		if c.TTL <= 0 {
			delete(m.keys, name(0))
		} else {
			m.keys[name(0)] = modelValue{old.value, m.clock + c.TTL}
		}
		return "1"
	case command.OpPersist:
		if !ok || old.deadline == 0 {
			return "0"
		}
		m.keys[name(0)] = modelValue{old.value, 0}
		return "1"
	case command.OpRecordSet:
		r := m.records[string(c.Keys[0])]
		if r.rev != c.Int {
			return conflictText(r.rev)
		}
		m.lastRev++
		m.records[string(c.Keys[0])] = modelRecord{string(c.Values[0]), m.lastRev}
		return strconv.FormatInt(m.lastRev, 10)
	case command.OpRecordDelete:
		r, there := m.records[string(c.Keys[0])]
		switch {
		case !there:
			return "0"
		case c.Int >= 0 && c.Int != r.rev:
			return conflictText(r.rev)
		}
		delete(m.records, string(c.Keys[0]))
		return "1"
	}
	panic(c.Op)
}

func conflictText(rev int64) string {
	return show(command.Result{Kind: command.KindError, Code: command.CodeConflict, Int: rev})
}

// randomOp makes a command over few keys, so that commands meet.
func randomOp(r *rand.Rand, m *model) command.Command {
	key := func() string { return "k" + strconv.Itoa(r.IntN(25)) }
	value := func() string {
		switch r.IntN(4) {
		case 0:
			return strconv.Itoa(r.IntN(1000))
		case 1:
			return ""
		default:
			return fmt.Sprintf("%0*d", 1+r.IntN(300), r.IntN(10))
		}
	}
	slots := []uint16{0, 5, 9, 100, 16383}
	c := command.Command{Slot: slots[r.IntN(len(slots))], Keys: keysOf(key())}
	life := func() int64 { return int64(1 + r.IntN(300)) }
	switch r.IntN(16) {
	case 0:
		c.Op, c.Keys = command.OpNoop, nil
	case 1:
		c.Op = command.OpGet
	case 2:
		c.Op = command.OpTTL
	case 3, 4, 5:
		c.Op, c.Values = command.OpSet, keysOf(value())
		switch r.IntN(6) {
		case 0:
			c.Flags = command.FlagIfAbsent | command.FlagGet
		case 1:
			c.Flags = command.FlagIfPresent
		case 2:
			c.Flags = command.FlagKeepTTL
		case 3:
			c.TTL = life()
		case 4:
			c.Flags, c.Values = command.FlagIfEqual, keysOf(value(), m.keys[fmt.Sprintf("%d/%s", c.Slot, c.Keys[0])].value)
		}
	case 6:
		c.Op, c.Keys, c.Values = command.OpMSet, keysOf(key(), key(), key()), keysOf(value(), value(), value())
		if r.IntN(3) == 0 {
			c.Flags = command.FlagIfAbsent
		}
	case 7:
		c.Op, c.Keys = command.OpDel, keysOf(key(), key())
	case 8:
		c.Op, c.Int = command.OpIncr, int64(r.IntN(100)-50)
		if v, ok := m.keys[fmt.Sprintf("%d/%s", c.Slot, c.Keys[0])]; ok {
			if n, err := strconv.ParseInt(v.value, 10, 64); err == nil && strconv.FormatInt(n, 10) != v.value {
				c.Op = command.OpGet // the model does not know that 007 is no number
			}
		}
	case 9:
		c.Op, c.Values = command.OpAppend, keysOf("x")
	case 10:
		c.Op = command.OpGetDel
	case 11:
		c.Op = command.OpGetEx
		if r.IntN(2) == 0 {
			c.TTL = life()
		} else {
			c.Flags = command.FlagPersist
		}
	case 12:
		c.Op, c.TTL = command.OpExpire, life()-30
	case 13:
		c.Op = command.OpPersist
	case 14:
		c.Op, c.Keys, c.Values = command.OpRecordSet, keysOf("r"+strconv.Itoa(r.IntN(3))), keysOf(value())
		c.Int = m.records[string(c.Keys[0])].rev + int64(r.IntN(3)/2)
	case 15:
		c.Op, c.Keys = command.OpRecordDelete, keysOf("r"+strconv.Itoa(r.IntN(3)))
		c.Int = int64(r.IntN(5)) - 2
	}
	return c
}

// Random operations against the model. Entries come in batches of random size;
// now and then the process restarts, with or without a flush before, and raft
// replays from anywhere at or below the durable index. Every answer and, after
// each batch, all that is visible must agree. A second replica that wants no
// answers, gets other batches and takes snapshots of the first now and then must
// come to the same state hash.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 42))
			cfg := testConfig()
			cfg.CheckpointBytes = 3000 // now and then by itself
			m := newMachine(t, cfg)
			follower := emptyMachine(t, Config{InitialMmapSize: 64 << 20})
			mod := newModel()
			for range 60 {
				before := len(m.logs)
				var want [][]string
				for range 1 + r.IntN(4) {
					if r.IntN(8) == 0 { // a configuration entry: it only has an index
						m.logs = append(m.logs, &raft.Log{Index: uint64(len(m.logs) + 1), Term: 1, Type: raft.LogConfiguration, Data: []byte("?")})
						want = append(want, nil)
						continue
					}
					elapsed := uint64(r.IntN(60))
					mod.advance(elapsed)
					var cmds []command.Command
					var answers []string
					for range r.IntN(8) {
						c := randomOp(r, mod)
						cmds = append(cmds, c)
						answers = append(answers, mod.apply(c))
					}
					m.log(elapsed, cmds...)
					want = append(want, answers)
				}
				for i, resp := range m.f.ApplyBatch(m.logs[before:]) {
					var got []string
					for _, res := range resp.(*Applied).Results {
						got = append(got, show(res))
					}
					if !slices.Equal(got, want[i]) {
						b, _ := command.DecodeBatch(m.logs[before+i].Data)
						t.Fatalf("entry %d: answers %q\nwant %q\ncommands %+v", before+i+1, got, want[i], b.Commands)
					}
				}
				switch r.IntN(6) {
				case 0:
					m.reopen(r.IntN(int(m.f.DurableIndex()) + 1))
				case 1:
					if err := m.f.Flush(); err != nil {
						t.Fatal(err)
					}
					m.reopen(len(m.logs))
				case 2:
					if err := m.f.Flush(); err != nil {
						t.Fatal(err)
					}
				}
				if got := m.f.Applied(); got != uint64(len(m.logs)) {
					t.Fatalf("applied %d of %d entries", got, len(m.logs))
				}
				if m.f.Clock() != mod.clock {
					t.Fatalf("clock is %d, want %d", m.f.Clock(), mod.clock)
				}
				m.wantContents(mod.visible())
				m.checkCounts(mod)

				if r.IntN(4) > 0 {
					continue
				}
				if r.IntN(4) == 0 {
					_, _, stream, err := m.f.OpenStream(StreamSparse)
					if err != nil {
						t.Fatal(err)
					}
					// Stale if the follower is as far as our file: then it goes on by the log.
					_ = follower.f.Restore(stream)
				}
				for at := int(follower.f.Applied()); at < len(m.logs); {
					to := min(at+1+r.IntN(20), len(m.logs))
					follower.f.ApplyBatch(m.logs[max(at-r.IntN(3), 0):to])
					at = to
				}
				if a, b := m.hash(), follower.hash(); a != b {
					t.Fatalf("hashes at index %d: %x and %x", len(m.logs), a, b)
				}
				follower.checkFile()
				m.checkFile()
			}
		})
	}
}

// checkCounts compares counts, records and the next deadline.
func (m *machine) checkCounts(mod *model) {
	m.t.Helper()
	v := m.view()
	defer v.Close()
	var want slotCount
	next := int64(noDeadline)
	for k, val := range mod.keys {
		_, key, _ := cutSlot(k)
		want.add(1, int64(len(key)+len(val.value)))
		if val.deadline != 0 {
			next = min(next, val.deadline)
		}
	}
	if records, bytes := v.Counts(); records != want.records || bytes != want.bytes {
		m.t.Fatalf("counts are %d and %d, want %+v", records, bytes, want)
	}
	if got, ok := m.f.NextDeadline(); ok != (next != noDeadline) || ok && got != next {
		m.t.Fatalf("next deadline is %d, want %d", got, next)
	}
	records := map[string]modelRecord{}
	v.Records("", func(name string, value []byte, rev int64) bool {
		records[name] = modelRecord{string(value), rev}
		return true
	})
	if !maps.Equal(records, mod.records) {
		m.t.Fatalf("records are %v, want %v", records, mod.records)
	}
}

func cutSlot(s string) (slot, key string, ok bool) {
	for i := range s {
		if s[i] == '/' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}
