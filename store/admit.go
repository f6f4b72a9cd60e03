package store

import (
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/command"
)

// What a leader lets into the log. It asks two things of itself and of its voters,
// who tell it with each answer to AppendEntries: how much state lies in memory, and
// whether the disk is full. Both are decided before the log, for an entry that is
// committed must be applied, whatever it takes: a state machine that waits for its
// disk stops raft's main loop, its votes and its lease.

// overlayPoll is how often a leader that holds writes back looks again.
const overlayPoll = 10 * time.Millisecond

// heldWarning is how long writes are held back before the log says so; a moment now
// and then is how a bound works.
const heldWarning = time.Second

// report is what a replica tells its leader with each answer.
type report struct {
	overlay int64  // bytes of state that are in memory only
	full    bool   // no room for more data
	commit  uint64 // its commit index
}

// admission counts what a leader held back or refused.
type admission struct {
	held    atomic.Bool   // writes wait for a checkpoint, here or at a voter
	holds   atomic.Uint64 // how often that began
	refused atomic.Uint64 // commands, for a full disk
}

// addsNothing says whether a command leaves the state about as large as it was: reads,
// and the cluster's own records, without which it could not heal.
func addsNothing(c *command.Command) bool {
	switch c.Op {
	case command.OpInit, command.OpRecordSet, command.OpRecordDelete, command.OpSessionSkip, command.OpPin, command.OpUnpin,
		// Slots that wait for these are served by nobody.
		command.OpSlotsExpect, command.OpSlotsOwn, command.OpSlotsAbort, command.OpSlotsFreeze, command.OpSlotsThaw, command.OpSlotsRelease:
		return true
	}
	return c.Op.IsRead()
}

// needsRoom says whether a command adds data, and so is refused when the disk is
// full. What makes data less or end sooner is not; nor what sessions need to write that.
func needsRoom(c *command.Command) bool {
	switch c.Op {
	case command.OpDel, command.OpGetDel, command.OpExpire, command.OpPersist, command.OpGetEx, command.OpSessionOpen, command.OpSlotsClear:
		return false
	case command.OpMulti:
		inner, err := command.DecodeCommands(c.Values[0])
		if err != nil {
			return true
		}
		for i := range inner {
			if needsRoom(&inner[i]) {
				return true
			}
		}
		return false
	}
	return !addsNothing(c)
}

// refuseForSpace says which commands are refused because a disk is full; nil: none.
func (l *leadership) refuseForSpace(cmds []command.Command) (refused []bool) {
	full := false
	for i := range cmds {
		if !needsRoom(&cmds[i]) {
			continue
		}
		if !full {
			if full = l.noRoom(); !full {
				return nil
			}
			refused = make([]bool, len(cmds))
		}
		refused[i] = true
		l.store.admit.refused.Add(1)
	}
	return refused
}

// without leaves out the refused commands; weave puts the answers of the others in
// their places.
func without(cmds []command.Command, refused []bool) (rest []command.Command) {
	for i := range cmds {
		if !refused[i] {
			rest = append(rest, cmds[i])
		}
	}
	return rest
}

func weave(results []command.Result, refused []bool) []command.Result {
	out := make([]command.Result, len(refused))
	for i := range out {
		if refused[i] {
			out[i] = command.Err(command.CodeDiskFull)
		} else {
			out[i], results = results[0], results[1:]
		}
	}
	return out
}

// noRoom says whether more data would have to go to a full disk: ours, or so
// many voters' that no majority is left without one.
func (l *leadership) noRoom() bool {
	if l.store.cfg.DiskFull() {
		return true
	}
	if !l.in.peers.someFull.Load() { // as a rule: asked for each proposal
		return false
	}
	voters, room, full := 0, 0, 0
	l.eachReplica(func(f follower, voter, heard, self bool) {
		if !voter {
			return
		}
		voters++
		switch {
		case self, heard && !f.report.full, !heard && time.Since(l.began) < freshContact: // has had no time to say
			room++
		case heard:
			full++
		}
	})
	majority := voters/2 + 1
	// Without a majority at all nothing is committed, and that is not for want of room.
	return room < majority && room+full >= majority
}

// learnersShare is how many times a voter's bound a learner may have in memory: writes
// should not wait for one that catches up, but its memory has an end, too.
const learnersShare = 4

// overlayFull says whether writes must wait for a checkpoint. A replica that has not
// been heard of lately does not count: it may be dead, and has much to catch up with anyway.
func (l *leadership) overlayFull() bool {
	limit := l.store.cfg.MaxOverlayBytes
	over := l.store.fsm.OverlayBytes() > limit
	if !over {
		l.eachReplica(func(f follower, voter, heard, self bool) {
			limit := limit
			if !voter {
				limit *= learnersShare
			}
			over = over || !self && heard && f.report.overlay > limit
		})
	}
	return over
}

// eachReplica visits voters and learners, with what is known of them.
func (l *leadership) eachReplica(visit func(f follower, voter, heard, self bool)) {
	for _, srv := range l.store.machine.conf.Load().servers {
		f, ok := l.in.peers.follower(srv.ID, l.term)
		visit(f, srv.Suffrage == raft.Voter, ok && time.Since(f.contact) < freshContact, srv.ID == l.store.self.replica)
	}
}

// hold holds writes back, or lets them go on, and notes since when.
func (l *leadership) hold(over bool) {
	now, log := time.Now(), l.store.log
	l.queue.hold(over)
	switch {
	case over && l.heldSince.IsZero():
		l.heldSince = now
		l.store.admit.held.Store(true)
		l.store.admit.holds.Add(1)
	case over && !l.heldWarned && now.Sub(l.heldSince) > heldWarning:
		l.heldWarned = true
		log.Warn("writes wait for a checkpoint: the state in memory is over its bound, here or at a voter",
			"overlay_bytes", l.store.fsm.OverlayBytes(), "limit_bytes", l.store.cfg.MaxOverlayBytes)
	case !over && !l.heldSince.IsZero():
		if l.heldWarned {
			log.Info("writes go on", "waited", now.Sub(l.heldSince))
		}
		l.heldSince, l.heldWarned = time.Time{}, false
		l.store.admit.held.Store(false)
	}
}
