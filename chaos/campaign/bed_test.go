//go:build linux

package campaign

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
)

// The end of a process is explained by what was done to its disk, and by nothing else.
func TestKeeperExplainsExits(t *testing.T) {
	now := time.Now()
	noRoom := "abacusd: write the log: " + syscall.ENOSPC.Error()
	for _, c := range []struct {
		name    string
		code    int
		said    string
		excused time.Time
		want    bool
	}{
		{"its disk fails", exitFatal, "abacusd: sync: EIO", now.Add(time.Second), true},
		{"its disk failed long ago", exitFatal, "abacusd: sync: EIO", now.Add(-time.Second), false},
		{"nothing was done to it", exitFatal, "abacusd: sync: EIO", time.Time{}, false},
		{"it starts on a full disk", 1, noRoom, now.Add(time.Second), true},
		{"it starts on a full disk, and nobody filled it", 1, noRoom, time.Time{}, false},
		{"it does not start, and says why", 1, "abacusd: --join: no such host", now.Add(time.Second), false},
		{"it panics while its disk fails", 2, noLastWords, now.Add(time.Second), false},
		{"it stops by itself", 0, noLastWords, now.Add(time.Second), false},
		{"somebody kills it", -1, noLastWords, now.Add(time.Second), false},
	} {
		h := host{started: now.Add(-time.Second), backoff: firstBackoff, excused: c.excused}
		if got := h.ended(c.code, c.said, now); got != c.want {
			t.Errorf("%s: explained %v, want %v", c.name, got, c.want)
		}
		if !h.again.Equal(now.Add(firstBackoff)) {
			t.Errorf("%s: started again in %v, want %v", c.name, h.again.Sub(now), firstBackoff)
		}
	}
}

// One that ends again and again is started ever later, up to a bound; one that has lived for a while, soon.
func TestKeeperBacksOff(t *testing.T) {
	now := time.Now()
	h := host{started: now, backoff: firstBackoff}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		h.ended(exitFatal, "", now)
		if got := h.again.Sub(now); got != want*time.Second {
			t.Errorf("started again in %v, want %v", got, want*time.Second)
		}
		now = h.again
		h.started = now
	}
	now = now.Add(wellAfter + time.Second)
	h.ended(exitFatal, "", now)
	if got := h.again.Sub(now); got != firstBackoff {
		t.Errorf("after a long life started again in %v, want %v", got, firstBackoff)
	}
}

// A leadership has moved when another leads in a later term; that a node said yes is nothing.
func TestHandedOver(t *testing.T) {
	before := proc.ShardStatus{Leader: "n1", Term: 4}
	for _, c := range []struct {
		after proc.ShardStatus
		want  bool
	}{
		{proc.ShardStatus{Leader: "n2", Term: 5}, true},
		{proc.ShardStatus{Leader: "n1", Term: 4}, false},
		{proc.ShardStatus{Leader: "n1", Term: 6}, false}, // it has it back
		{proc.ShardStatus{Leader: "n2", Term: 4}, false}, // what somebody remembers
		{proc.ShardStatus{Leader: "", Term: 5}, false},
	} {
		if got := handedOver(before, c.after); got != c.want {
			t.Errorf("%+v: %v", c.after, got)
		}
	}
	sh := proc.ShardStatus{Leader: "n1", Replicas: []proc.ReplicaStatus{{Node: "n1", Voter: true}, {Node: "n2"}, {Node: "n3", Voter: true}}}
	for range 20 {
		if to := successor(sh, rand.New(rand.NewPCG(1, 1))); to != "n3" {
			t.Errorf("moves to %q", to)
		}
	}
}

// A power cut counts only if all disks have lost what was not synced, and the power of all comes back whatever one says.
func TestRestoreAll(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		disks []bool
		err   error
		want  bool
	}{
		{[]bool{true, true, true}, nil, true},
		{[]bool{false, true, true}, nil, false},
		{[]bool{true, true, false}, broken, false},
	} {
		asked := 0
		got, err := restoreAll(c.disks, func(d bool) (bool, error) { asked++; return d, c.err })
		if got != c.want || !errors.Is(err, c.err) || asked != len(c.disks) {
			t.Errorf("%v: lost %v, %v, %d asked", c.disks, got, err, asked)
		}
	}
}

// A clock is wrong by what the node was told, give or take what it gains meanwhile: the right time is no proof.
func TestIsOff(t *testing.T) {
	for _, off := range []time.Duration{-time.Hour, -time.Minute, time.Minute, 365 * 24 * time.Hour} {
		if !isOff(off+9*time.Second, off) || isOff(0, off) || isOff(-off, off) {
			t.Errorf("told %v", off)
		}
	}
}

// Damage waits for a file to spoil, not for ever, and then says that it had no effect.
func TestDamageEnds(t *testing.T) {
	c := noCluster(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		s := &siege{ctx: ctx, b: &bed{c: c, hosts: make([]host, 3)}, rng: rand.New(rand.NewPCG(1, 1))}
		began := time.Now()
		f, err := s.damageState()
		if err != nil {
			t.Fatal(err)
		}
		if bit, err := f.bit(); bit || err != nil {
			t.Errorf("damage of nothing has an effect: %v, %v", bit, err)
		}
		if waited := time.Since(began); waited > 2*damageWait {
			t.Errorf("waited %v", waited)
		}
	})
}

// What the nodes had stored is kept when something is wrong, up to a bound, and what was left out is said.
func TestKeepData(t *testing.T) {
	dir, to := t.TempDir(), filepath.Join(t.TempDir(), "n1.tar.gz")
	for name, size := range map[string]int{"shard-1/r/state.db": 4000, "wal/1.wal": 1000, "wal/2.wal": 50_000} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Repeat(name[:1], size)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	left, err := pack(to, dir, 10_000)
	if err != nil || !strings.Contains(left, "1 files") {
		t.Errorf("left out %q, %v", left, err)
	}
	if got, want := unpack(t, to), map[string]int{"shard-1/r/state.db": 4000, "wal/1.wal": 1000}; !maps.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
}

func unpack(t *testing.T, path string) map[string]int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return sizes
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || slices.ContainsFunc(data, func(b byte) bool { return b != h.Name[0] }) {
			t.Errorf("%s holds something else, %v", h.Name, err)
		}
		sizes[h.Name] = len(data)
	}
}
