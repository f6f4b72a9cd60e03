package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/client/backup"
	"github.com/abacusdb/abacus/client/clienttest"
)

// What is no backup, or is none any more, is exit code 1, and says what to do; a cluster is not asked.
func TestBackupThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("some text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(dir, "cut")
	golden := []byte("ABACUSBK\x00\x01\x01\x00\x69\xf3\x75\x36")
	if err := os.WriteFile(cut, golden, 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, nil, "", "not a backup", 1, "backup", "verify", text)
	check(t, nil, "", "not a backup: there is no manifest.json", 1, "backup", "verify", dir)
	check(t, nil, "", "the backup is cut off; take another copy", 1, "backup", "verify", cut)
	check(t, nil, "", "no such file", 1, "backup", "verify", filepath.Join(dir, "nosuch"))
	check(t, nil, "", "usage:", 2, "backup", "verify")
	check(t, nil, "", "the name is empty", 2, "backup", "create", "")
	check(t, nil, "", "it must be 0 or more", 2, "backup", "create", "x", "--rate", "-1")
	check(t, nil, "", "unknown command", 2, "backup", "nosuch")
	c := clienttest.New(t, 1)
	check(t, c, "", "it exists already", 1, "backup", "create", text)
	check(t, c, "", "not a backup", 1, "backup", "restore", text)
	c.Put("a", "1")
	check(t, c, "", "the cluster has 1 key; to go on", 1, "backup", "restore", text)
	check(t, c, "", "not a backup", 1, "backup", "restore", text, "--overwrite")
	if v, ok := c.Value("a"); !ok || v != "1" {
		t.Errorf("a is %q", v)
	}
}

// The time since the backup counts, unless it is paused; nothing with a time to live becomes for ever.
func TestRestoredTTL(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		left  int64
		since time.Duration
		pause bool
		want  int64
		alive bool
	}{
		{0, time.Hour, false, 0, true},
		{5000, 2 * time.Second, false, 3000, true},
		{5000, 5 * time.Second, false, 0, false},
		{5000, time.Hour, false, 0, false},
		{5000, time.Hour, true, 5000, true},
		{5000, -time.Hour, false, 5000, true},
		{1 << 62, time.Hour, false, maxTTL, true},
	} {
		r := &restoring{pauseTTL: tc.pause, now: func() time.Time { return at.Add(tc.since) }}
		ttl, alive := r.ttl(tc.left, at)
		if alive != tc.alive || alive && ttl != tc.want {
			t.Errorf("%+v: %d, %v", tc, ttl, alive)
		}
	}
}

func TestProgressLine(t *testing.T) {
	if got, want := progressLine("backing up", 3<<20, 9<<20, 2*time.Second), "backing up: 3.0 MiB of 9.0 MiB, 1.5 MiB/s, 4s left"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := progressLine("x", 0, 5, time.Second), "x: 0 bytes of 5 bytes"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// Not on a terminal: a line every five seconds.
	var out bytes.Buffer
	p := newProgress(&out, "x")
	p.to(1, 2)
	p.last = p.last.Add(-progressEvery)
	p.to(1, 2)
	p.to(2, 2)
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "x: 1 byte of 2 bytes") {
		t.Errorf("%q", got)
	}
}

// That the cluster could not be read is as if it were not there.
func TestBackupExitCodes(t *testing.T) {
	for err, want := range map[error]int{backup.ErrUneven: exitUnavailable, backup.ErrSnapshotLost: exitUnavailable, backup.ErrDamaged: exitFailed, backup.ErrTruncated: exitFailed, backup.ErrExists: exitFailed} {
		if got := exitCode(errors.Join(err)); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}
