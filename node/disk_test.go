package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
)

// A filling disk is left by the leaders first and refuses data later; both end only
// with more room than they began with.
func TestSpaceMarks(t *testing.T) {
	const least = 100
	now := spaceNow{}
	for _, step := range []struct {
		free      uint64
		low, full bool
	}{
		{1000, false, false}, {150, false, false}, {149, true, false}, {100, true, false}, {99, true, true}, {0, true, true},
		{124, true, true}, {125, true, false}, {199, true, false}, {200, false, false}, {151, false, false}, {10, true, true}, {500, false, false},
	} {
		now = now.next(step.free, least)
		if now.low != step.low || now.full != step.full || now.free != step.free {
			t.Errorf("with %d free: %+v, want low %v, full %v", step.free, now, step.low, step.full)
		}
		if (now.problem() != "") != step.full {
			t.Errorf("with %d free it says %q", step.free, now.problem())
		}
	}
	var s space
	for _, c := range []struct {
		now   spaceNow
		bytes int64
		want  bool
	}{
		{spaceNow{free: 150, least: least}, 0, true}, {spaceNow{free: 149, least: least}, 0, false}, {spaceNow{free: 160, least: least}, 10, true},
		{spaceNow{free: 160, least: least}, 11, false}, {spaceNow{free: 190, least: least, low: true}, 0, false}, // it has yet to recover
	} {
		s.now.Store(&c.now)
		if s.room(c.bytes) != c.want {
			t.Errorf("%+v has room for %d bytes more: %v", c.now, c.bytes, !c.want)
		}
	}
	for total, want := range map[uint64]uint64{64 << 20: 64 << 20 / 100 * 5, 1 << 40: 256 << 20} {
		if got := leastFree(total); got != want {
			t.Errorf("of %d bytes, %d are to stay free, want %d", total, got, want)
		}
	}
}

// The last line says what failed and what to do about it.
func TestFatalSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("raft log /d/raft.db: %w", syscall.EIO), "had an error"},
		{fmt.Errorf("raft log /d/raft.db: %w", syscall.ENOSPC), "make room"},
		{fmt.Errorf("raft log /d/raft.db: %w", syscall.EROFS), "read-only"},
		{&store.HangError{Path: "/d/raft.db", Op: "a write", For: 12 * time.Second}, "--disk-timeout"},
		{&fsm.CorruptError{Path: "/d/state-1.db", Reason: "x"}, "marked"},
		{errors.New("raft log /d/raft.db: whatever"), "dmesg"},
	} {
		var said error
		n := &Node{cfg: Config{ID: "n1", DataDir: "/d", Fatal: func(err error) { said = err }}}
		n.fatal(c.err)
		if !errors.Is(said, c.err) || !strings.Contains(said.Error(), "/d/") || !strings.Contains(said.Error(), c.want) || strings.Contains(said.Error(), "\n") {
			t.Errorf("%v: %v", c.err, said)
		}
	}
}

// A bit flipped in a value that nobody reads is found by the scrub: the file is marked,
// and the process ends.
func TestScrubFindsDamage(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	n := open(t, cfg)
	untilHealthy(t, n)
	put(t, n, "quiet", "a value that nobody reads")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(cfg.DataDir, "shard-*", "*", "state", "state-*.db"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := ""
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(raw, []byte("a value that nobody reads"))
		if at < 0 {
			continue
		}
		damaged = path
		raw[at] ^= 1
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if damaged == "" {
		t.Fatal("the value is in no file")
	}

	fatal := make(chan error, 100)
	cfg.ScrubInterval, cfg.Fatal = time.Second, func(err error) {
		select {
		case fatal <- err:
		default:
		}
	}
	open(t, cfg)
	select {
	case err := <-fatal:
		var corrupt *fsm.CorruptError
		if !errors.As(err, &corrupt) || corrupt.Path != damaged {
			t.Errorf("it ends with %v, want the damage of %s", err, damaged)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the damage was not found")
	}
	if _, err := os.Stat(damaged + ".damaged"); err != nil {
		t.Errorf("not marked: %v", err)
	}
}

// Nothing is scrubbed right after a start, or twice in an interval.
func TestScrubDue(t *testing.T) {
	start := time.Now()
	const day = 24 * time.Hour
	stores := []*store.Store{{}} // of shard 0
	last := map[sharding.ShardID]time.Time{}
	due := func(after time.Duration) bool { return scrubDue(stores, last, start, start.Add(after), day) != nil }
	if due(59*time.Minute) || !due(time.Hour) {
		t.Error("the first is due an hour after the start")
	}
	last[0] = start.Add(time.Hour)
	if due(24*time.Hour) || !due(25*time.Hour) {
		t.Error("the next is due a day later")
	}
}
