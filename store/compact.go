package store

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
)

// runSnapshots cuts the log when enough has gathered. A snapshot is metadata
// only and costs two syncs; what it bounds is the time of a start, which reads
// all entries after it, and the size of the log.
func (s *Store) runSnapshots() {
	tick := time.NewTimer(s.untilLook())
	defer tick.Stop()
	var entries, bytes uint64 // appended in all, at the last snapshot
	due := s.entriesDue()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
			tick.Reset(s.untilLook())
		}
		nowEntries, nowBytes := s.logs.appendedEntries.Load(), s.logs.appendedBytes.Load()
		if s.snapshot(due, nowEntries-entries, nowBytes-bytes) {
			entries, bytes, due = nowEntries, nowBytes, s.entriesDue()
		}
	}
}

// lookPhases is how many moments in an interval a node's shards look at, each shard at the same one every time. Fewer than
// shards, for each is a wake-up of an idle node; several, so that not all cut their logs at once.
const lookPhases = 16

// untilLook is how long it is until the shard's next moment.
func (s *Store) untilLook() time.Duration {
	every := s.cfg.Snapshots.Interval
	phase := every / lookPhases * time.Duration(s.cfg.Shard%lookPhases)
	wait := (phase - time.Since(s.cfg.Net.began)) % every
	if wait <= 0 {
		wait += every
	}
	return wait
}

// entriesDue is how many entries make the next snapshot due, 60 to 100 % of what is set. Drawn anew each time: a snapshot
// writes the state, and the replicas of a shard have the same entries; see fsm's stagger.
func (s *Store) entriesDue() uint64 {
	most := s.cfg.Snapshots.Entries
	return most - rand.Uint64N(most*2/5+1)
}

// snapshot takes one if so many entries have gathered, or enough bytes; entries and bytes were appended since the last.
func (s *Store) snapshot(due, entries, bytes uint64) bool {
	r := s.raft()
	if r == nil {
		return false
	}
	var at uint64
	if m := s.snaps.latest(); m != nil {
		at = m.Index
	}
	applied := r.AppliedIndex()
	if applied <= at || applied-at < due && bytes < s.cfg.Snapshots.Bytes {
		return false
	}
	select {
	case s.exclusive <- struct{}{}:
		defer func() { <-s.exclusive }()
	default:
		return false // one is being installed
	}
	// Raft keeps a number of entries; ours differ in size by four orders of magnitude.
	trailing := s.cfg.Snapshots.Trailing
	if entries > 0 && bytes > 0 {
		trailing = max(min(trailing, s.cfg.Snapshots.TrailingBytes*entries/bytes), MinTrailing)
	}
	conf := r.ReloadableConfig()
	conf.TrailingLogs = trailing
	if err := r.ReloadConfig(conf); err != nil {
		s.log.Warn("set trailing log entries", "err", err)
	}
	if err := r.Snapshot().Error(); err != nil {
		// A change of members, or a transfer, is under way: next time.
		if !errors.Is(err, raft.ErrNothingNewToSnapshot) {
			s.log.Debug("no snapshot now", "err", err)
		}
		return false
	}
	s.log.Debug("snapshot taken", "index", s.snaps.latest().Index, "trailing", trailing)
	return true
}
