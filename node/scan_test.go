package node

import (
	"fmt"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// viewOf is a view of a shard that owns some slots and has one key in each of two.
func viewOf(t *testing.T, keys []string, owned ...command.SlotRange) *fsm.View {
	t.Helper()
	f, err := fsm.Open(t.TempDir(), fsm.Config{InitialMmapSize: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	in := command.Init{ClusterID: "test", Shard: 1, Slots: owned, Limits: command.DefaultLimits()}
	cmds := []command.Command{{Op: command.OpInit, Values: [][]byte{in.Encode()}}}
	for _, k := range keys {
		cmds = append(cmds, command.Command{Op: command.OpSet, Slot: sharding.SlotOf([]byte(k)), Keys: [][]byte{[]byte(k)}, Values: [][]byte{[]byte("x")}})
	}
	for i, cmd := range cmds {
		b := command.Batch{ID: uint64(i + 1), Commands: []command.Command{cmd}}
		f.Apply(&raft.Log{Index: uint64(i + 1), Term: 1, Type: raft.LogCommand, Data: b.AppendTo(nil)})
	}
	v, err := f.View()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// A page is cut to the owned slots that the scan has got to, and the answer says where to go on, with whoever owns
// that; of a slot that is not owned nothing is told but that.
func TestScanOnlyOwned(t *testing.T) {
	var keys []string
	for i := range 200 {
		if k := fmt.Sprint("k", i); sharding.SlotOf([]byte(k)) < 8000 {
			keys = append(keys, k)
		}
	}
	v := viewOf(t, keys, command.SlotRange{From: 0, To: 7999}, command.SlotRange{From: 9000, To: 9999})
	all := &sharding.SlotRange{To: sharding.Slots - 1}
	for _, c := range []struct {
		slots  *sharding.SlotRange
		cursor uint64
		keys   int
		next   uint64
		moved  bool
	}{
		{all, 0, len(keys), 8000 << 48, false},
		{&sharding.SlotRange{To: 7999}, 0, len(keys), 0, false},
		{all, 7999<<48 | 5, 0, 8000 << 48, false},
		{all, 8000 << 48, 0, 0, true},
		{all, 9000 << 48, 0, 10_000 << 48, false},
		{&sharding.SlotRange{From: 9500, To: 9600}, 0, 0, 0, false},
		{all, (sharding.Slots - 1) << 48, 0, 0, true},
		{&sharding.SlotRange{From: 8500, To: 9600}, 0, 0, 0, true},
		{nil, 0, len(keys), 0, false}, // an older version asks
	} {
		a, err := scanView(v, scanRequest{What: "page", Slots: c.slots, Cursor: c.cursor, Count: 1000})
		if moved := transport.CodeOf(err) == transport.CodeSlotsMoved; moved != c.moved || (err != nil) != moved {
			t.Errorf("%+v from %d: %v", c.slots, c.cursor>>48, err)
		}
		if len(a.Keys) != c.keys || a.Next != c.next {
			t.Errorf("%+v from %d: %d keys, next %d; want %d, %d", c.slots, c.cursor>>48, len(a.Keys), a.Next>>48, c.keys, c.next>>48)
		}
	}
	if _, err := scanView(v, scanRequest{What: "slot", Slot: 8000}); transport.CodeOf(err) != transport.CodeSlotsMoved {
		t.Errorf("count of a slot that is not owned: %v", err)
	}
	if a, err := scanView(v, scanRequest{What: "size"}); err != nil || a.N != int64(len(keys)) || len(a.Slots) != 2 {
		t.Errorf("size: %+v, %v", a, err)
	}
}

// The size of a shard without slots says that it has none, which is not the silence of an older version.
func TestSizeOfNothing(t *testing.T) {
	raw, err := encodeWire(scanAnswer{Slots: ownedSlots(&fsm.View{})})
	if err != nil {
		t.Fatal(err)
	}
	var a scanAnswer
	if err := decodeWire(raw, &a); err != nil || a.Slots == nil || len(a.Slots) != 0 {
		t.Errorf("%s: %+v, %v", raw, a, err)
	}
	var old scanAnswer
	if err := decodeWire([]byte("\x01{\"n\":3}"), &old); err != nil || old.Slots != nil {
		t.Errorf("an older version's answer: %+v, %v", old, err)
	}
}
