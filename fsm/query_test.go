package fsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
)

// A query answers what an entry of the same commands would have been answered,
// at the same index, refusals included, and changes nothing.
func TestQuery(t *testing.T) {
	m := emptyMachine(t, testConfig())
	same := func(cmds ...command.Command) {
		t.Helper()
		got, index, err := m.f.Query(cmds)
		if err != nil || index != m.f.Applied() {
			t.Fatalf("query at %d, applied is %d: %v", index, m.f.Applied(), err)
		}
		for i, want := range m.apply(0, cmds...) {
			if show(got[i]) != show(want) {
				t.Errorf("%v of %q in slot %d: query %s, entry %s", cmds[i].Op, cmds[i].Keys, cmds[i].Slot, show(got[i]), show(want))
			}
		}
	}
	in := testInit()
	same(command.Command{Op: command.OpNoop}, command.Command{Op: command.OpGet, Keys: keysOf("a")})
	m.apply(0, command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})

	long := string(make([]byte, testLimits.MaxKey+1))
	reads := func(slot uint16, keys ...string) (cmds []command.Command) {
		for _, op := range []command.Op{command.OpGet, command.OpMGet, command.OpStrlen, command.OpExists, command.OpType, command.OpTTL} {
			some := keys
			if op != command.OpMGet && op != command.OpExists {
				some = keys[:1]
			}
			cmds = append(cmds, command.Command{Op: op, Slot: slot, Keys: keysOf(some...)})
		}
		return cmds
	}
	r := rand.New(rand.NewPCG(1, 2))
	mod := newModel()
	for range 200 {
		m.apply(uint64(r.IntN(60)), randomOp(r, mod))
		slot := []uint16{0, 5, 9, 50, 100, 16383, 16384}[r.IntN(7)]
		k := fmt.Sprint("k", r.IntN(25))
		same(slices.Concat(reads(slot, k, fmt.Sprint("k", r.IntN(25)), k), reads(0, long), reads(0, ""),
			[]command.Command{{Op: command.OpNoop}, {Op: command.OpGet, Slot: 0}, {Op: command.OpExists, Slot: 0}})...)
	}
	if res, _, _ := m.f.Query([]command.Command{{Op: command.OpDel, Slot: 0, Keys: keysOf("k1")}}); res[0].Code != command.CodeBadCommand {
		t.Errorf("a write as a query: %v", res[0])
	}
	// Answers are copies: they outlive the view.
	m.apply(0, command.Command{Op: command.OpSet, Slot: 0, Keys: keysOf("c"), Values: keysOf("before")})
	res, _, err := m.f.Query([]command.Command{{Op: command.OpGet, Slot: 0, Keys: keysOf("c")}})
	if err != nil {
		t.Fatal(err)
	}
	m.apply(0, command.Command{Op: command.OpSet, Slot: 0, Keys: keysOf("c"), Values: keysOf("after!")})
	if string(res[0].Bytes) != "before" {
		t.Errorf("an answer changed to %q", res[0].Bytes)
	}
}
