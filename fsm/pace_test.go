package fsm

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
)

// The replicas of a shard apply the same entries, and do not write them at the same moment: each draws anew how much
// is to gather.
func TestCheckpointsAreStaggered(t *testing.T) {
	cfg := testConfig()
	cfg.CheckpointBytes = 1 << 20
	m := newMachine(t, cfg)
	seen := map[int64]bool{}
	for i := range 20 {
		due := m.f.due.Load()
		if due < cfg.CheckpointBytes*6/10-1 || due > cfg.CheckpointBytes {
			t.Fatalf("a checkpoint is due at %d bytes, want 60 to 100 %% of %d", due, cfg.CheckpointBytes)
		}
		seen[due] = true
		m.apply(0, set("k", string(rune('a'+i))))
		if err := m.f.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) < 15 {
		t.Errorf("%d different sizes in 20 checkpoints", len(seen))
	}
}

// What gathered before the writes stopped goes to the file, too: not before they stop, and not for a few rows, over and over.
func TestCheckpointAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.CheckpointBytes = 64 << 10
		m := newMachine(t, cfg)
		defer func() {
			if err := m.f.Close(); err != nil {
				t.Error(err)
			}
		}()
		written := func(want uint64, rows uint64, after time.Duration, what string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if n, r := m.f.Checkpoints(); n != want || r != rows {
				t.Fatalf("%s: %d checkpoints of %d rows, want %d of %d", what, n, r, want, rows)
			}
		}
		put := func(key string) { m.apply(0, set(key, string(make([]byte, 1000)))) }
		rest := restLook + time.Millisecond
		for i := range 3 {
			put(string(rune('a' + i)))
		}
		written(0, 0, 10*rest, "three rows")
		for i := range 6 { // as few at a time, and more than is worth a checkpoint in the end
			put(string(rune('d' + i)))
			put(string(rune('D' + i)))
			written(0, 0, rest, "while rows come")
		}
		m.apply(0, cmd(command.OpDel, k("none"))) // an entry that changes nothing
		at := m.f.Applied()
		written(1, 15, rest, "when they stop")
		if d := m.f.DurableIndex(); d != at {
			t.Errorf("durable to %d of %d", d, at)
		}
		for _, key := range []string{"v", "w", "x", "y"} {
			put(key)
		}
		written(1, 15, rest, "while as many come as are worth one")
		written(2, 19, rest, "when they stop")
		written(2, 19, 100*rest, "for ever after")
		put("z")
		written(2, 19, 10*rest, "one row")

		// What is only overwritten, or taken out again, makes a layer no larger, and is no rest.
		for _, key := range []string{"v", "w", "x", "y"} {
			put(key)
		}
		for range 10 {
			put("v")
			written(2, 19, rest, "while a row is overwritten")
		}
		for range 10 {
			put("new")
			m.apply(0, cmd(command.OpDel, k("new")))
			written(2, 19, rest, "while a row comes and goes")
		}
		written(3, 24, rest, "when that stops")
		// Nor is a layer that is smaller for a flush between two looks.
		for i := range 8 {
			put(string(rune('0' + i)))
		}
		written(3, 24, 0, "at once")
		if err := m.f.Flush(); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			put(string(rune('0' + i)))
		}
		written(4, 32, rest, "flushed, and written since")
		written(5, 37, rest, "when they stop")
	})
}

// A checkpoint leaves two thirds of its time to others: not while somebody waits for it, nor when
// much has gathered already.
func TestCheckpointBreathes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.CheckpointBytes, cfg.Turn = 1<<10, NewTurn()
		m := newMachine(t, cfg)
		defer func() {
			if err := m.f.Close(); err != nil {
				t.Error(err)
			}
		}()
		work := time.Millisecond
		paused := func() time.Duration {
			breathe := m.f.breather()
			time.Sleep(work)
			began := time.Now()
			breathe()
			return time.Since(began)
		}
		if d := paused(); d != 2*time.Millisecond {
			t.Errorf("after 1 ms of work it pauses for %v, want 2 ms", d)
		}
		work = 15 * time.Second // the process was stopped
		if d := paused(); d != mostPause {
			t.Errorf("after 15 s it pauses for %v, want %v", d, mostPause)
		}
		work = time.Millisecond
		m.f.hurried.Add(1)
		if d := paused(); d != 0 {
			t.Errorf("it pauses for %v while somebody waits", d)
		}
		m.f.hurried.Add(-1)
		ended := make(chan struct{})
		cfg.Turn.take(ended)
		go cfg.Turn.take(ended) // another shard of the node, whose turn comes next
		synctest.Wait()
		if d := paused(); d != 0 {
			t.Errorf("it pauses for %v while another waits for its turn", d)
		}
		close(ended)
		synctest.Wait()
		cfg.Turn.give()
		m.apply(0, set("k", string(make([]byte, 400)))) // more than half of what is due, whatever that is
		if d := paused(); d != 0 {
			t.Errorf("it pauses for %v with %d bytes gathered of %d", d, m.f.activeBytes(), m.f.due.Load())
		}
	})
}
