package fsm

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/hashicorp/raft"
)

// What checkpoints of 1,000 random overwrites of 20,000 keys, cost under a pin that is held over forty of them: how many pages are kept in relation to those
// in use, how much the file has grown, and how long one takes. With free pages of half as many, as many, and twice as many as are in use, before.
func BenchmarkCheckpointsUnderPin(b *testing.B) {
	for _, bc := range []struct {
		name     string
		pinned   bool
		headroom float64 // free pages before, in relation to those in use
	}{{"no pin", false, 0}, {"no headroom", true, 0}, {"headroom 0.5", true, 0.5}, {"headroom 1", true, 1}, {"headroom 2", true, 2}} {
		b.Run(bc.name, func(b *testing.B) {
			for b.Loop() {
				checkpointsUnderPin(b, bc.pinned, bc.headroom)
			}
		})
	}
}

func checkpointsUnderPin(b *testing.B, pinned bool, headroom float64) {
	const keys, rounds, each = 20_000, 40, 1_000
	f, err := Open(b.TempDir(), Config{Pins: PinLimits{HeldBytes: 1 << 40, Age: time.Hour}})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	index := uint64(0)
	apply := func(cmds ...command.Command) {
		index++
		batch := command.Batch{Commands: cmds}
		f.ApplyBatch([]*raft.Log{{Index: index, Type: raft.LogCommand, Data: batch.AppendTo(nil)}})
	}
	in := testInit()
	apply(command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
	r, value := rand.New(rand.NewPCG(1, 1)), make([]byte, 200)
	write := func(n int, key func(i int) int) {
		var cmds []command.Command
		for i := range n {
			h := uint64(key(i)) * 0x9e3779b97f4a7c15
			cmds = append(cmds, command.Command{Op: command.OpSet, Slot: 100 + uint16(h>>52), Keys: [][]byte{binary.BigEndian.AppendUint64(nil, h)}, Values: [][]byte{value}})
		}
		apply(cmds...)
		if err := f.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	random := func(int) int { return r.IntN(keys) }
	write(keys, func(i int) int { return i })
	page := int64(f.gen.db.Info().PageSize)
	if headroom > 0 { // what a pin has kept is free when it has ended
		apply(pinCmd(1, minute))
		for float64(int64(f.gen.db.Stats().PendingPageN)*page) < headroom*float64(f.FileBytes()) {
			write(each/4, random)
		}
		apply(unpin(1))
		for f.openSources() > 0 {
			time.Sleep(time.Millisecond)
		}
		write(1, random)
	}
	if pinned {
		apply(pinCmd(2, minute))
	}
	before, began := f.st.Load().fileSize, time.Now()
	for range rounds {
		write(each, random)
	}
	took := time.Since(began)
	live := float64(f.FileBytes())
	b.ReportMetric(float64(int64(f.gen.db.Stats().PendingPageN)*page)/live, "kept/live")
	b.ReportMetric(float64(f.st.Load().fileSize-before)/live, "growth/live")
	b.ReportMetric(live/(1<<20), "live-MiB")
	b.ReportMetric(float64(took.Milliseconds())/rounds, "ms/checkpoint")
	apply(unpin(2))
}

func (f *FSM) openSources() int {
	f.pins.mu.Lock()
	defer f.pins.mu.Unlock()
	return len(f.pins.open)
}
