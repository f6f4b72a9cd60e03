package store

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"
)

// HangError goes to Config.Fatal when a disk does not answer. Whoever waits for
// it, waits in the kernel: no deadline ends that, only the process's end does. A
// replica that hangs there still holds its followers' votes, its clients'
// connections and its place in the group (hazard R7).
type HangError struct {
	Path string // the file
	Op   string // what is being done to it
	For  time.Duration
}

func (e *HangError) Error() string {
	return fmt.Sprintf("%s: %s has not returned for %v", e.Path, e.Op, e.For.Round(time.Millisecond))
}

const (
	// DefaultDiskTimeout is how long one operation of the log or of the votes may
	// take. A sync takes milliseconds, on a bad day of a busy disk a second.
	DefaultDiskTimeout = 10 * time.Second
	// slowestDisk is how long a checkpoint or an install may take for each MiB of
	// state, on top of the time-out. A checkpoint writes much more than it was given:
	// a MiB of small rows is 6,000 of them, each in a page of its own at worst, 25 MiB
	// of file. So this puts up with a disk that writes 13 MiB a second.
	slowestDisk = 2 * time.Second
	// slowestApply times the time-out is what applying one batch may take. It waits for a
	// disk only to read, and on a machine with more work than processors it is long
	// without anything being wrong.
	slowestApply = 6
)

// Watch ends the process, by calling fatal, when an operation of any replica takes
// longer than limit (checkpoints: in proportion to what they write). It returns when
// ctx ends. One of it watches all replicas of a node.
func Watch(ctx context.Context, limit time.Duration, stores func() []*Store, fatal func(error)) {
	every := min(limit/10, time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := time.Now()
	// since is from when on we know that we were running. A process that was stopped
	// (SIGSTOP, a suspended machine) finds old operations under way when it goes on, and
	// the disk had no chance to end them.
	since := last
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		if now.Sub(last) > 3*every+time.Second {
			since = now
		}
		last = now
		for _, s := range stores() {
			if err := s.hung(limit, now.Sub(since)); err != nil {
				fatal(err)
			}
		}
	}
}

// hung says which operation has been under way for longer than it may, if any;
// awake is for how long at most anything counts as under way.
func (s *Store) hung(limit, awake time.Duration) error {
	perMiB := func(bytes int64) time.Duration {
		return limit + time.Duration(float64(slowestDisk)*float64(bytes)/(1<<20))
	}
	state := filepath.Join(s.cfg.Dir, stateName)
	checkpoint, writes := s.fsm.Checkpointing()
	raftFile := filepath.Join(s.cfg.Dir, logName)
	log, committing := raftFile, time.Duration(0)
	if w := s.cfg.WAL; w != nil {
		log, committing = w.Path(), w.Writing()
	}
	for _, op := range []struct {
		path, what string
		took       time.Duration
		limit      time.Duration
	}{
		{log, "a write of the log", max(s.logs.writing.running(), committing), limit},
		{log, "a read of the log", s.logs.reading.running(), limit},
		{raftFile, "a write of the term or the vote", s.stable.writing.running(), limit},
		{filepath.Join(s.snaps.dir, metaFile), "a write of the snapshot's metadata", s.snaps.saving.running(), limit},
		{state, "a checkpoint", checkpoint, perMiB(writes)},
		{state, "an install", s.machine.restoring.running(), perMiB(s.machine.restoreBytes.Load())},
		{state, "applying entries", s.machine.applying.running(), slowestApply * limit},
	} {
		if took := min(op.took, awake); took > op.limit {
			return &HangError{Path: op.path, Op: op.what, For: took}
		}
	}
	return nil
}

// stopwatch tells others how long what is under way has been, the longest of
// several. Beyond its places nothing is timed; those in them hang as well then.
type stopwatch struct {
	epoch time.Time
	began *[8]atomic.Int64 // ns since epoch; 0: the place is free
}

func newStopwatch() stopwatch { return stopwatch{epoch: time.Now(), began: new([8]atomic.Int64)} }

// begin returns the place to end.
func (w stopwatch) begin() int {
	now := int64(time.Since(w.epoch)) | 1
	for i := range w.began {
		if w.began[i].CompareAndSwap(0, now) {
			return i
		}
	}
	return -1
}

func (w stopwatch) end(place int) {
	if place >= 0 {
		w.began[place].Store(0)
	}
}

// running is 0 if nothing is under way.
func (w stopwatch) running() (longest time.Duration) {
	now := time.Since(w.epoch)
	for i := range w.began {
		if began := w.began[i].Load(); began != 0 {
			longest = max(longest, now-time.Duration(began))
		}
	}
	return longest
}
