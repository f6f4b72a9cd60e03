package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
)

// Two state machines, a giver and a receiver, between which slots go back and forth while clients read and write, time passes, the
// machines restart, the driver dies at any step and others go on, and what it has sent arrives late, twice, or after all. At every step
// one machine at most serves a slot; what is read is what was written last; a numbered write that is sent again is answered as it was;
// a key that has ended stays ended. In the end every slot has one owner and nothing of others' slots is stored.
func TestHandover(t *testing.T) {
	moved := 0
	for seed := range uint64(60) {
		w := newWorld(t, seed)
		for move := uint64(1); move <= 4; move++ {
			moved += w.move(move)
		}
		w.settle()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if moved < 60 {
		t.Errorf("%d moves succeeded: too few to say anything", moved)
	}
}

var errStruck = errors.New("struck")

// movedSlots go back and forth; the rest stays where it is.
var movedSlots = []command.SlotRange{{From: 100, To: 109}, {From: 200, To: 201}}

type world struct {
	t    *testing.T
	seed uint64
	r    *rand.Rand
	now  int64 // ms
	ab   [2]*oneShard
	from int // which of them gives

	faults float64
	late   []func() // what is still on its way to the receiver
	keys   map[string]*oneKey

	session, seq uint64
	sent         []command.Command // numbered, the last ones
	answers      []string
	in           bool // between: what it does does not call it again
}

type oneKey struct {
	slot     uint16
	value    string
	there    bool
	deadline int64 // of the world's clock; 0: none
	ended    bool  // and seen to
}

type oneShard struct {
	w    *world
	name string
	dir  string
	f    *fsm.FSM
	logs []*raft.Log
	told int64 // the world's clock as of its last entry
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, r: rand.New(rand.NewPCG(seed, 7)), keys: map[string]*oneKey{}}
	for i, slots := range [][]command.SlotRange{{{From: 0, To: 8191}}, {{From: 8192, To: 16383}}} {
		s := &oneShard{w: w, name: string(rune('A' + i)), dir: t.TempDir()}
		s.open()
		in := command.Init{ClusterID: "c", Shard: uint32(i), Slots: slots, Limits: command.DefaultLimits()}
		s.apply(command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
		w.ab[i] = s
		t.Cleanup(func() { _ = s.f.Close() })
	}
	for _, r := range movedSlots {
		for slot := r.From; slot <= r.To; slot++ {
			for i := range 6 {
				w.keys[fmt.Sprintf("k%d.%d", slot, i)] = &oneKey{slot: slot}
			}
		}
	}
	w.keys["stays"] = &oneKey{slot: 5}
	w.session = uint64(w.ab[0].apply(command.Command{Op: command.OpSessionOpen})[0].Int)
	w.ab[1].apply(command.Command{Op: command.OpSessionOpen, Int: int64(w.session)})
	for range 100 {
		w.clients()
	}
	return w
}

func (s *oneShard) open() {
	f, err := fsm.Open(s.dir, fsm.Config{Wanted: func(uint64) bool { return true }, InitialMmapSize: 64 << 20, Fatal: func(err error) { s.w.t.Fatal(err) }})
	if err != nil {
		s.w.t.Fatal(err)
	}
	s.f = f
	f.ApplyBatch(s.logs)
}

func (s *oneShard) apply(cmds ...command.Command) []command.Result {
	b := command.Batch{ID: 1, ElapsedMillis: uint64(s.w.now - s.told), Commands: cmds}
	s.told = s.w.now
	l := &raft.Log{Index: uint64(len(s.logs) + 1), Term: 1, Type: raft.LogCommand, Data: b.AppendTo(nil)}
	s.logs = append(s.logs, l)
	return s.f.Apply(l).(*fsm.Applied).Results
}

func (s *oneShard) Propose(_ context.Context, cmds []command.Command) ([]command.Result, uint64, error) {
	s.w.between()
	if s.w.strikes() {
		return nil, 0, errStruck
	}
	rs := s.apply(cmds...)
	if s.w.strikes() {
		return nil, 0, errStruck
	}
	return rs, uint64(len(s.logs)), nil
}

func (s *oneShard) Capture(slots []command.SlotRange) (*fsm.Capture, error) {
	return s.f.Capture(slots)
}
func (s *oneShard) SlotAnswers(slots []command.SlotRange, n int) [][]byte {
	return s.f.SlotAnswers(slots, n)
}
func (s *oneShard) Leaving() (uint64, []command.SlotRange) { return s.f.Leaving() }
func (s *oneShard) Clock() int64                           { return s.f.Clock() }

func (w *world) strikes() bool { return w.r.Float64() < w.faults }

// receive is what the driver calls: the commands are one entry, which may be lost, or arrive again or later.
func (w *world) receive(to *oneShard) func(context.Context, []command.Command) ([]command.Result, error) {
	return func(_ context.Context, cmds []command.Command) ([]command.Result, error) {
		w.between()
		owns := cmds[len(cmds)-1].Op == command.OpSlotsOwn // where most depends on what becomes of it
		if w.strikes() || owns && w.faults > 0 && w.r.IntN(3) == 0 {
			if w.r.IntN(2) == 0 {
				w.late = append(w.late, func() { to.apply(cmds...) })
			}
			return nil, errStruck
		}
		rs := to.apply(cmds...)
		if w.r.IntN(20) == 0 {
			w.late = append(w.late, func() { to.apply(cmds...) })
		}
		if w.strikes() {
			return nil, errStruck
		}
		return rs, nil
	}
}

// move makes attempts until the move is decided, and returns 1 if the slots were moved.
func (w *world) move(id uint64) int {
	giver, receiver := w.ab[w.from], w.ab[1-w.from]
	w.faults = []float64{0, 0.02, 0.1, 0.3}[w.r.IntN(4)]
	cancel := w.r.IntN(4) == 0
	for try := 0; ; try++ {
		if try > 20 {
			w.faults = 0
		}
		h := &handover{move: id, slots: movedSlots, giver: giver, receive: w.receive(receiver), pace: func(context.Context, int) error { return nil }, ready: func(context.Context) error { return nil }}
		h.say = func(phase string) {
			if move, _ := giver.Leaving(); phase == "copying" && move != 0 {
				w.t.Fatalf("seed %d: nobody serves the slots while they are copied", w.seed)
			}
		}
		var err error
		if cancel && try == 3 {
			w.faults = 0
			r, err := h.one(context.Background(), command.Command{Op: command.OpSlotsAbort, Int: int64(id)})
			if err != nil || r.Kind != command.KindInt {
				w.t.Fatalf("abort: %v %v", r, err)
			}
			if r.Int == 0 {
				w.done(h, command.OpSlotsThaw)
				w.clear(receiver)
				return 0
			}
		} else {
			err = h.run(context.Background(), context.Background())
		}
		if err == nil {
			w.done(h, command.OpSlotsRelease)
			w.clear(giver)
			w.from = 1 - w.from
			return 1
		}
		if errors.Is(err, errOutdated) {
			w.t.Fatalf("seed %d move %d: %v", w.seed, id, err)
		}
		// The one that goes on may be another, on another replica.
		if w.r.IntN(3) == 0 {
			w.ab[w.r.IntN(2)].restart()
		}
	}
}

func (w *world) done(h *handover, op command.Op) {
	for {
		if err := h.propose(context.Background(), command.Command{Op: op, Int: int64(h.move), TTL: math.MaxInt64}); err == nil {
			return
		} else if !errors.Is(err, errStruck) {
			w.t.Fatal(err)
		}
	}
}

func (w *world) clear(s *oneShard) {
	for !s.f.Cleared() {
		w.between()
		s.apply(command.Command{Op: command.OpSlotsClear, Int: 7})
	}
}

func (s *oneShard) restart() {
	if s.w.r.IntN(2) == 0 {
		if err := s.f.Flush(); err != nil {
			s.w.t.Fatal(err)
		}
	}
	before := s.hash()
	if err := s.f.Close(); err != nil {
		s.w.t.Fatal(err)
	}
	s.open()
	if after := s.hash(); after != before {
		s.w.t.Fatalf("seed %d: shard %s is another after a restart", s.w.seed, s.name)
	}
}

func (s *oneShard) hash() uint64 {
	v, err := s.f.View()
	if err != nil {
		s.w.t.Fatal(err)
	}
	defer v.Close()
	return v.Hash()
}

// between is what others do between two steps of the driver.
func (w *world) between() {
	if w.in {
		return
	}
	w.in = true
	defer func() { w.in = false }()
	w.now += int64(w.r.IntN(30))
	for range w.r.IntN(6) {
		w.clients()
	}
	for len(w.late) > 0 && w.r.IntN(3) == 0 {
		i := w.r.IntN(len(w.late))
		w.late[i]()
		w.late = slices.Delete(w.late, i, i+1)
	}
	for _, r := range movedSlots {
		for slot := r.From; slot <= r.To; slot++ {
			w.ask(command.Command{Op: command.OpGet, Slot: slot, Keys: [][]byte{[]byte("none")}}, true)
		}
	}
}

// ask has both shards answer, and returns what the one said that serves the slot; ok is false if none does.
func (w *world) ask(c command.Command, query bool) (r command.Result, ok bool) {
	for _, s := range w.ab {
		var rs []command.Result
		if query {
			var err error
			if rs, _, err = s.f.Query([]command.Command{c}); err != nil {
				w.t.Fatal(err)
			}
		} else {
			rs = s.apply(c)
		}
		if elsewhere(rs[0].Code) {
			continue
		}
		if ok {
			w.t.Fatalf("seed %d: both shards serve slot %d", w.seed, c.Slot)
		}
		r, ok = rs[0], true
	}
	return r, ok
}

func (w *world) clients() {
	names := make([]string, 0, len(w.keys))
	for name := range w.keys {
		names = append(names, name)
	}
	slices.Sort(names)
	name := names[w.r.IntN(len(names))]
	k := w.keys[name]
	c := command.Command{Slot: k.slot, Keys: [][]byte{[]byte(name)}}
	value := strconv.Itoa(w.r.IntN(1000))
	switch w.r.IntN(7) {
	case 0, 1:
		c.Op, c.Values = command.OpSet, [][]byte{[]byte(value)}
		if w.r.IntN(3) == 0 {
			c.TTL = int64(1 + w.r.IntN(200))
		}
		if _, ok := w.ask(c, false); ok {
			*k = oneKey{slot: k.slot, value: value, there: true}
			if c.TTL > 0 {
				k.deadline = w.now + c.TTL
			}
		}
	case 2:
		c.Op = command.OpDel
		if _, ok := w.ask(c, false); ok {
			*k = oneKey{slot: k.slot}
		}
	case 3: // a numbered write, and its answer again
		if k.deadline != 0 {
			return
		}
		w.seq++
		c.Op, c.Int, c.Session, c.Seq, c.Floor = command.OpIncr, 1, w.session, w.seq, max(w.seq, 3)-2
		if r, ok := w.ask(c, false); ok {
			n := 0
			if k.there {
				n, _ = strconv.Atoi(k.value)
			}
			k.value, k.there = strconv.Itoa(n+1), true
			w.sent, w.answers = append(w.sent, c), append(w.answers, show(r))
			if show(r) != k.value {
				w.t.Fatalf("seed %d: %s incremented is %s, want %s", w.seed, name, show(r), k.value)
			}
		}
	case 4:
		n := min(len(w.sent), 12)
		if n == 0 {
			return
		}
		i := len(w.sent) - 1 - w.r.IntN(n)
		again := w.sent[i]
		r, ok := w.ask(again, false)
		expired := r.Code == command.CodeSessionExpired && again.Seq < w.seq-2 // it was given up
		if ok && !expired && show(r) != w.answers[i] {
			w.t.Fatalf("seed %d: number %d of %d sent again is answered %s, was %s", w.seed, again.Seq, w.seq, show(r), w.answers[i])
		}
	default:
		c.Op = command.OpGet
		r, ok := w.ask(c, w.r.IntN(2) == 0)
		if !ok {
			return
		}
		switch gone := r.Kind == command.KindNil; {
		case k.there && k.deadline == 0 && (gone || string(r.Bytes) != k.value), !k.there && !gone:
			w.t.Fatalf("seed %d: %s is %q (gone: %v), want %q (there: %v)", w.seed, name, r.Bytes, gone, k.value, k.there)
		case k.deadline != 0 && gone && w.now < k.deadline:
			w.t.Fatalf("seed %d: %s has ended %d ms early", w.seed, name, k.deadline-w.now)
		case k.deadline != 0 && !gone && k.ended:
			w.t.Fatalf("seed %d: %s had ended, and is there again", w.seed, name)
		case k.deadline != 0 && !gone && string(r.Bytes) != k.value:
			w.t.Fatalf("seed %d: %s is %q, want %q", w.seed, name, r.Bytes, k.value)
		}
		k.ended = k.ended || r.Kind == command.KindNil
	}
}

func show(r command.Result) string {
	if r.Kind == command.KindInt {
		return strconv.FormatInt(r.Int, 10)
	}
	return fmt.Sprintf("%v %v %q", r.Kind, r.Code, r.Bytes)
}

// settle is the end: all that was late has come, and every slot has one owner.
func (w *world) settle() {
	for _, f := range w.late {
		f()
	}
	w.late = nil
	w.between()
	owners := [command.Slots]int{}
	for _, s := range w.ab {
		w.clear(s)
		s.restart()
		in, _ := s.f.Init()
		for _, r := range in.Slots {
			for slot := int(r.From); slot <= int(r.To); slot++ {
				owners[slot]++
			}
		}
		v, err := s.f.View()
		if err != nil {
			w.t.Fatal(err)
		}
		records, _ := v.Counts()
		seen := int64(0)
		_ = v.Scan(0, command.Slots-1, nil, func(uint16, []byte, []byte) bool { seen++; return true })
		v.Close()
		if records != seen {
			w.t.Errorf("shard %s counts %d keys and shows %d", s.name, records, seen)
		}
	}
	for slot, n := range owners {
		if n != 1 {
			w.t.Fatalf("seed %d: slot %d has %d owners", w.seed, slot, n)
		}
	}
	for range 300 {
		w.clients()
	}
}
