package fsm

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/hashicorp/raft"
)

// frozenSlot is one that is frozen for another shard now and then.
const frozenSlot = 16383

// pinWorld is what every replica must show of the pins, worked out without any.
type pinWorld struct {
	t     *testing.T
	r     *rand.Rand
	truth *machine // applies one entry at a time; its plain view after that is the hash that a pin must have
	mod   *model
	pins  []pinWant
	next  int64
	token int64 // of the attempt to move the slot; 0: it is not frozen
	asked int64
}

type pinWant struct {
	id, index uint64
	hash      uint64
	clock     int64
	contents  map[string]string
	slots     []command.SlotRange
}

// entry makes one of random commands, with a pin anywhere among them now and then.
func (w *pinWorld) entry() *raft.Log {
	elapsed := uint64(w.r.IntN(60))
	w.mod.advance(elapsed)
	var cmds []command.Command
	var pinned []uint64
	for range w.r.IntN(8) {
		switch c := randomOp(w.r, w.mod); {
		case w.r.IntN(12) == 0:
			w.next++
			pinned = append(pinned, uint64(w.next))
			cmds = append(cmds, pinCmd(w.next, minute))
		case w.r.IntN(30) == 0 && len(w.pins) > 0:
			w.unpin(&cmds, w.r.IntN(len(w.pins)))
		case c.Slot != frozenSlot || w.token == 0 || c.Op >= command.OpRecordSet:
			w.mod.apply(c)
			cmds = append(cmds, c)
		}
	}
	if w.r.IntN(10) == 0 {
		move := command.Command{Op: command.OpSlotsThaw, Int: 1, TTL: w.asked + 1}
		if w.token == 0 {
			w.asked++
			w.token = w.asked
			move = command.Command{Op: command.OpSlotsFreeze, Int: 1, TTL: w.token, Values: [][]byte{command.AppendSlots(nil, []command.SlotRange{{From: frozenSlot, To: frozenSlot}})}}
		} else {
			w.token = 0
		}
		cmds = append(cmds, move)
	}
	if len(w.pins) > 7 { // it takes time to look at each
		w.unpin(&cmds, 0)
	}
	l := w.truth.log(elapsed, cmds...)
	for _, res := range w.truth.f.Apply(l).(*Applied).Results {
		if res.Kind == command.KindError && (res.Code == command.CodeSlotsMoving || res.Code == command.CodeBadCommand) {
			w.t.Fatalf("entry %d: %s", l.Index, show(res))
		}
	}
	if len(pinned) == 0 {
		return l
	}
	v := w.truth.view()
	defer v.Close()
	want := pinWant{index: l.Index, hash: v.Hash(), clock: w.mod.clock, contents: w.mod.visible(), slots: slices.Clone(v.Slots())}
	if w.token != 0 {
		maps.DeleteFunc(want.contents, func(k, _ string) bool { return strings.HasPrefix(k, fmt.Sprint(frozenSlot, "/")) })
	}
	for _, want.id = range pinned {
		w.pins = append(w.pins, want)
	}
	return l
}

func (w *pinWorld) unpin(cmds *[]command.Command, i int) {
	*cmds = append(*cmds, unpin(int64(w.pins[i].id)))
	w.pins = slices.Delete(w.pins, i, i+1)
}

// check reads every pin of a replica, twice: those that it has are exact, and it has all but those that it cannot have.
func (w *pinWorld) check(m *machine, who string, cannot map[uint64]bool) {
	w.t.Helper()
	for _, want := range w.pins {
		if want.index > m.f.Applied() {
			continue
		}
		if cannot[want.index] {
			if _, err := m.f.Pinned(want.id, want.index); err != ErrNoPin {
				w.t.Fatalf("%s: pin at %d, which it cannot have: %v", who, want.index, err)
			}
			continue
		}
		for range 2 {
			v := m.pinned(want.id, want.index)
			if v.Index() != want.index || v.Clock() != want.clock || !slices.Equal(v.Slots(), want.slots) {
				w.t.Fatalf("%s: pin at %d stands at %d, at %d ms of %d, with slots %v of %v", who, want.index, v.Index(), v.Clock(), want.clock, v.Slots(), want.slots)
			}
			if got := contents(v); !maps.Equal(got, want.contents) {
				w.t.Fatalf("%s: pin at %d, applied %d: contents are %v\nwant %v", who, want.index, m.f.Applied(), got, want.contents)
			}
			if got := v.Hash(); got != want.hash {
				w.t.Fatalf("%s: pin at %d, applied %d: hash %x, want %x", who, want.index, m.f.Applied(), got, want.hash)
			}
			if n, _ := v.Counts(); n != int64(len(want.contents)) {
				w.t.Fatalf("%s: pin at %d counts %d keys of %d", who, want.index, n, len(want.contents))
			}
			v.Close()
		}
	}
}

// restart reopens a replica, on which pins are gone but for those in what the log replays.
func (w *pinWorld) restart(m *machine, logs []*raft.Log, cannot map[uint64]bool) {
	w.t.Helper()
	applied := m.f.Applied()
	if err := m.f.Close(); err != nil {
		w.t.Fatal(err)
	}
	m.open()
	for i := uint64(1); i <= applied; i++ {
		cannot[i] = i <= m.f.DurableIndex()
	}
	m.f.ApplyBatch(logs[w.r.IntN(int(m.f.DurableIndex())+1):applied])
}

// Random entries with pins among them go to two replicas, in batches of any size, while checkpoints run, the replicas start again, and one of them gets its state from the
// other now and then. Every pin that a replica has shows what a third replica without pins had at that index, to the bit, and what a plain map
// says, time and frozen slots included; and a replica has all pins but those at entries that it skipped.
func TestPinsAgainstModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			cfg := testConfig()
			cfg.CheckpointBytes = 3000 // now and then by itself
			cfg.Pins.Number = 1000     // who skips an entry that ends a pin keeps it longer
			w := &pinWorld{t: t, r: rand.New(rand.NewPCG(seed, 7)), truth: newMachine(t, testConfig()), mod: newModel()}
			a, b := emptyMachine(t, cfg), emptyMachine(t, cfg)
			noA, noB := map[uint64]bool{}, map[uint64]bool{}
			checked := 0
			for range 80 {
				for range 1 + w.r.IntN(6) {
					w.entry()
				}
				logs := w.truth.logs
				for at := int(a.f.Applied()); at < len(logs); {
					to := min(at+1+w.r.IntN(5), len(logs))
					a.f.ApplyBatch(logs[max(at-w.r.IntN(3), 0):to])
					at = to
				}
				switch w.r.IntN(8) {
				case 0:
					w.restart(a, logs, noA)
				case 1:
					if err := a.f.Flush(); err != nil {
						t.Fatal(err)
					}
				}
				w.check(a, "a", noA)
				checked += len(w.pins)

				if w.r.IntN(3) == 0 { // b lags, then catches up by the state or by the log
					if w.r.IntN(3) == 0 {
						before := b.f.Applied()
						_, _, stream, err := a.f.OpenStream(StreamSparse)
						if err != nil {
							t.Fatal(err)
						}
						if b.f.Restore(stream) == nil {
							for i := before + 1; i <= b.f.Applied(); i++ {
								noB[i] = true
							}
						}
						w.check(b, "b after a restore", noB)
					}
					at := int(b.f.Applied())
					b.f.ApplyBatch(logs[max(at-w.r.IntN(3), 0):])
					if w.r.IntN(4) == 0 {
						w.restart(b, logs, noB)
					}
					w.check(b, "b", noB)
				}
			}
			if checked < 100 {
				t.Fatalf("only %d pins were looked at", checked)
			}
			for _, m := range []*machine{a, b} {
				if s := m.f.Pins(); s.Ended[PinNumber]+s.Ended[PinFault]+s.Ended[PinIdle]+s.Ended[PinAge] > 0 {
					t.Errorf("pins have ended: %+v", s)
				}
			}
		})
	}
}
