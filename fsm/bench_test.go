package fsm

import (
	"encoding/binary"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/hashicorp/raft"
)

// One entry of a hundred writes to random keys, synced: what a busy shard does.
func BenchmarkApplyBatch(b *testing.B) {
	f, err := Open(b.TempDir(), Config{Wanted: always})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	in := testInit()
	apply := func(index uint64, cmds ...command.Command) {
		batch := command.Batch{ID: 1, Commands: cmds}
		f.ApplyBatch([]*raft.Log{{Index: index, Type: raft.LogCommand, Data: batch.AppendTo(nil)}})
	}
	apply(1, command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
	cmds := make([]command.Command, 100)
	value := make([]byte, 100)
	n, index := uint64(0), uint64(1)
	b.ReportAllocs()
	for b.Loop() {
		for i := range cmds {
			n++
			h := n % 200_000 * 0x9e3779b97f4a7c15
			key := binary.BigEndian.AppendUint64(nil, h)
			cmds[i] = command.Command{Op: command.OpSet, Slot: 100 + uint16(h>>52), Keys: [][]byte{key}, Values: [][]byte{value}}
		}
		index++
		apply(index, cmds...)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n), "µs/key")
}

func BenchmarkReadOnlyBatch(b *testing.B) {
	f, err := Open(b.TempDir(), Config{Wanted: always})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	in := testInit()
	index := uint64(0)
	apply := func(cmds ...command.Command) {
		index++
		batch := command.Batch{ID: 1, Commands: cmds}
		f.ApplyBatch([]*raft.Log{{Index: index, Type: raft.LogCommand, Data: batch.AppendTo(nil)}})
	}
	apply(command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
	apply(set("a", "1"))
	cmds := make([]command.Command, 100)
	for i := range cmds {
		cmds[i] = get("a")
	}
	b.ReportAllocs()
	for b.Loop() {
		apply(cmds...)
	}
}
