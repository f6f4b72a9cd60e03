package store

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// instance is one raft.Raft and what lives and dies with it. A Store has one at
// a time; it makes another only when raft's own memory has gone wrong (reopen).
type instance struct {
	store *Store
	raft  *raft.Raft
	peers *peers

	// notify is unbuffered: raft waits here at the start and at the end of each
	// leadership, so that run sees all of them in order.
	notify chan bool
	// failed asks the supervisor to replace this instance. It is the instance's own,
	// so that a late request cannot hit a successor that is well.
	failed chan string
	// halting is closed once raft was told to shut down.
	halting chan struct{}
	// stopped is closed once raft has ended: nothing comes from notify any more.
	stopped chan struct{}
	wg      sync.WaitGroup
}

// newInstance starts raft over the store's log and state.
func newInstance(s *Store) (*instance, error) {
	in := &instance{store: s, notify: make(chan bool), failed: make(chan string, 1), halting: make(chan struct{}), stopped: make(chan struct{})}
	s.logs.ahead = in.needsOthers
	in.peers = newPeers(s.cfg.Net, s.self, s.cfg.Node, s.cfg.Timing, s.stable, s.stuckFor, s.logs.unsynced, s.exclusive, s.log)
	in.peers.report = func() report {
		rep := report{overlay: s.fsm.OverlayBytes(), full: s.cfg.DiskFull()}
		if r := in.peers.raft.Load(); r != nil {
			rep.commit = r.CommitIndex()
		}
		return rep
	}
	in.peers.logStart = func(prev uint64) logStart {
		if end, _ := s.logs.snapshotEnd(); prev >= end { // nearly always; a log of bbolt's would have to open a transaction
			return logStart{}
		}
		start := s.logs.start()
		if start.end > in.peers.floor() { // it is just being installed
			return logStart{}
		}
		return start
	}
	in.peers.fresh = newFreshness(s.fsm.Applied)
	in.peers.confirmed = func(term uint64) (time.Time, bool) {
		if l := s.lead.Load(); l != nil && l.in == in {
			return l.confirmed(term)
		}
		return time.Time{}, false
	}
	s.snaps.floor = in.peers.floor
	s.logs.emptied = func() {
		// We are on raft's main loop, in the middle of an install; it must not get to
		// act on a last index that its log does not have.
		in.reopen("raft would remember a log that it has deleted")
		<-in.halting
	}

	conf := raft.DefaultConfig()
	conf.LocalID = s.self.replica
	conf.HeartbeatTimeout = s.cfg.Timing.Heartbeat
	conf.ElectionTimeout = s.cfg.Timing.Election
	conf.LeaderLeaseTimeout = s.cfg.Timing.Lease
	conf.CommitTimeout = s.cfg.Timing.Commit
	// An entry holds many commands and up to maxBatchBytes; trim bounds the bytes.
	conf.MaxAppendEntries = 32
	// A time-out of Apply must mean that the entry was not taken.
	conf.BatchApplyCh = false
	// Removed replicas are closed by the node; raft closing itself would be a second owner.
	conf.ShutdownOnRemove = false
	// The state machine is durable by itself and knows its index.
	conf.NoSnapshotRestoreOnStart = true
	// Store.runSnapshots decides when; raft counts entries only, and must never take
	// one beside an install.
	conf.SnapshotInterval = 10 * 365 * 24 * time.Hour
	conf.SnapshotThreshold = math.MaxUint64
	conf.TrailingLogs = s.cfg.Snapshots.Trailing
	conf.NotifyCh = in.notify
	conf.Logger = s.raftLog
	conf.NoLegacyTelemetry = true

	r, err := startRaft(conf, s, in.peers)
	if err != nil {
		in.peers.stop()
		return nil, fmt.Errorf("start raft: %w", err)
	}
	in.raft = r
	in.wg.Go(in.run)
	in.peers.start(r)
	return in, nil
}

// startRaft is raft.NewRaft, which panics on a log that it cannot read. None of
// its loops run by then.
func startRaft(conf *raft.Config, s *Store, p *peers) (r *raft.Raft, err error) {
	defer faultsAre(ErrLogDamaged, &err)()
	return raft.NewRaft(conf, s.machine, s.logs, s.stable, s.snaps, p)
}

// needsOthers says whether raft leads here and cannot commit by its own vote alone. It is
// called on raft's main loop, which is the one that changes both.
func (in *instance) needsOthers() bool {
	r := in.peers.raft.Load()
	if r == nil || r.State() != raft.Leader {
		return false
	}
	voters := 0
	for _, srv := range r.GetConfiguration().Configuration().Servers {
		if srv.Suffrage == raft.Voter {
			voters++
		}
	}
	return voters > 1
}

// reopen asks the supervisor for another instance in place of this one. It does not wait.
func (in *instance) reopen(why string) {
	select {
	case in.failed <- why:
	default: // asked for already
	}
}

// run is the leadership loop: it opens a leadership when raft has won one and
// closes it when raft has lost it. Raft waits at its next election until we
// have closed the last one.
func (in *instance) run() {
	var l *leadership
	closeLeadership := func() {
		if l != nil {
			l.close()
			l = nil
		}
	}
	defer closeLeadership()
	for {
		select {
		case up := <-in.notify:
			closeLeadership()
			if up {
				l = newLeadership(in)
			}
		case <-in.stopped:
			return
		}
	}
}

// stop ends raft. Peers are cut off first: raft waits for its loops, and those
// for answers. If raft does not end in time (its disk hangs), stop returns ctx's
// error, and the files must stay open.
func (in *instance) stop(ctx context.Context) error {
	shutdown := in.raft.Shutdown()
	close(in.halting)
	in.peers.stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = shutdown.Error() // never fails
		close(in.stopped)
		in.wg.Wait()
		in.peers.wg.Wait()
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop raft: %w", ctx.Err())
	}
}
