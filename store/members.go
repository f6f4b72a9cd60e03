package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

const (
	// maxLag is how many entries behind the leader still counts as caught up.
	maxLag = 32
	// freshContact is how long ago a follower that counts as alive answered.
	freshContact = 2 * time.Second
	// transferTimeout bounds the transfer of a leadership.
	transferTimeout = 3 * time.Second
)

// Status is what a replica knows of its group.
type Status struct {
	Shard   uint32
	Replica string
	Node    string
	// State is raft's: Follower, Candidate, Leader or Shutdown; "Restarting" while
	// raft is being replaced.
	State string
	// Leader is the leading node, LeaderReplica its replica; empty if unknown.
	Leader        string
	LeaderReplica string
	Term          uint64
	LastIndex     uint64 // of the log
	Commit        uint64
	Applied       uint64 // here
	Durable       uint64 // from where a restart would go on
	Records       int64  // keys stored here, with those that have ended and are not purged yet
	// FileBytes is how much of the state's file is in use.
	FileBytes int64
	// OverlayBytes is about how much memory the state takes that is not in its file yet.
	OverlayBytes int64
	// CheckpointingRows is how many rows the checkpoint under way writes, 0 if there is none. Checkpoints and
	// CheckpointRows count those since the replica was opened, and the rows that they wrote.
	CheckpointingRows           int
	Checkpoints, CheckpointRows uint64
	// Held: this leader holds writes back until a checkpoint has made room, here or at a voter.
	Held bool
	// Holds is how often that began; RefusedFull, how many commands this leader refused
	// because a disk was full.
	Holds, RefusedFull uint64
	// LastContact is how long ago a follower heard of the leader; -1 for never.
	LastContact time.Duration
	Members     []Member
}

// Member is one replica of the group.
type Member struct {
	Replica string
	Node    string
	Voter   bool
	// The rest is known to the leader only.

	// LastContact is how long ago it answered the leader; -1 for not in this term, 0 for the leader itself.
	LastContact time.Duration
	// Match is up to where its log is known to equal the leader's.
	Match uint64
	// CaughtUp: it answered lately and has, but for a few entries, all of the log.
	CaughtUp bool `json:",omitempty"`
	// CopySent of CopySize bytes of the state were sent to it; both 0 if no copy is on its way.
	CopySent, CopySize int64 `json:",omitempty"`
}

// Committed lists the replicas of the newest configuration that is committed and
// applied here, which may be older than Status's. What a ready leader's list lacks was
// taken out for good: no majority will need it.
func (s *Store) Committed() (replicas []string) {
	for _, srv := range s.machine.conf.Load().servers {
		replicas = append(replicas, string(srv.ID))
	}
	return replicas
}

// Shard is the shard that this is a replica of.
func (s *Store) Shard() uint32 { return s.cfg.Shard }

// Status reports. It asks nobody and does not wait.
func (s *Store) Status() Status {
	st := Status{
		Shard: s.cfg.Shard, Replica: s.cfg.Replica, Node: s.cfg.Node, State: "Restarting",
		Applied: s.fsm.Applied(), Durable: s.fsm.DurableIndex(), Records: s.fsm.Stored(), Term: s.stable.term.Load(), LastContact: -1,
		FileBytes: s.fsm.FileBytes(), OverlayBytes: s.fsm.OverlayBytes(), Held: s.admit.held.Load(), Holds: s.admit.holds.Load(), RefusedFull: s.admit.refused.Load(),
	}
	st.CheckpointingRows = s.fsm.CheckpointingRows()
	st.Checkpoints, st.CheckpointRows = s.fsm.Checkpoints()
	in := s.inst.Load()
	if in == nil {
		return st
	}
	r := in.raft
	addr, id := r.LeaderWithID()
	st.State, st.Leader, st.LeaderReplica = r.State().String(), string(addr), string(id)
	st.Term, st.LastIndex, st.Commit = r.CurrentTerm(), r.LastIndex(), r.CommitIndex()
	leads := r.State() == raft.Leader
	ready := s.ready(in) != nil
	if leads {
		st.LastContact = 0
	} else if t := r.LastContact(); !t.IsZero() {
		st.LastContact = time.Since(t)
	}
	for _, srv := range r.GetConfiguration().Configuration().Servers {
		m := Member{Replica: string(srv.ID), Node: string(srv.Address), Voter: srv.Suffrage == raft.Voter, LastContact: -1}
		if leads {
			if srv.ID == s.self.replica {
				m.LastContact, m.Match, m.CaughtUp = 0, st.LastIndex, ready
			} else if f, ok := in.peers.follower(srv.ID, st.Term); ok {
				m.LastContact, m.Match, m.CaughtUp = time.Since(f.contact), f.match, ready && f.caughtUp(st.LastIndex)
			}
			m.CopySent, m.CopySize = in.peers.net.outgoing.progress(in.peers.to(srv.ID))
		}
		st.Members = append(st.Members, m)
	}
	return st
}

// CaughtUp says whether a follower of ours answered lately and has, but for a
// few entries, all of the log. False if this replica does not lead.
func (s *Store) CaughtUp(replica string) bool {
	in := s.inst.Load()
	if in == nil {
		return false
	}
	l := s.ready(in)
	if l == nil || replica == s.cfg.Replica {
		return l != nil
	}
	f, ok := in.peers.follower(raft.ServerID(replica), l.term)
	return ok && f.caughtUp(in.raft.LastIndex())
}

// ready is our leadership in an instance, nil if we do not lead there or have not applied the opening entry.
func (s *Store) ready(in *instance) *leadership {
	if l := s.lead.Load(); l != nil && l.isReady() && l.in == in {
		return l
	}
	return nil
}

func (f follower) caughtUp(last uint64) bool {
	return time.Since(f.contact) < freshContact && f.match > 0 && f.match+maxLag >= last
}

// AddLearner makes a replica a member without a vote, which receives the log.
// Adding a member again is no error. Membership changes need the leader; one
// that others got in before fails with CodeConflict.
func (s *Store) AddLearner(ctx context.Context, replica, node string) error {
	return s.changeMembers(ctx, "add learner", func(r *raft.Raft, conf *configuration, timeout time.Duration) (raft.IndexFuture, error) {
		if srv, ok := conf.find(replica); ok {
			if string(srv.Address) != node {
				return nil, transport.Errorf(transport.CodeRefused, "replica %s is on node %s", replica, srv.Address)
			}
			return nil, nil
		}
		if _, ok := s.fsm.Init(); !ok {
			// It would never learn it from us: only the bootstrapped replica proposes it.
			return nil, transport.Errorf(transport.CodeRefused, "shard %d has no identity yet", s.cfg.Shard)
		}
		return r.AddNonvoter(raft.ServerID(replica), raft.ServerAddress(node), conf.index, timeout), nil
	})
}

// Promote gives a caught-up learner its vote. Promoting a voter is no error.
func (s *Store) Promote(ctx context.Context, replica, node string) error {
	return s.changeMembers(ctx, "promote", func(r *raft.Raft, conf *configuration, timeout time.Duration) (raft.IndexFuture, error) {
		srv, ok := conf.find(replica)
		switch {
		case !ok:
			return nil, transport.Errorf(transport.CodeNotFound, "replica %s is no member", replica)
		case string(srv.Address) != node:
			return nil, transport.Errorf(transport.CodeRefused, "replica %s is on node %s", replica, srv.Address)
		case srv.Suffrage == raft.Voter:
			return nil, nil
		case !s.CaughtUp(replica):
			// A voter that is far behind counts for the majority and cannot help it.
			return nil, transport.Errorf(transport.CodeBusy, "replica %s has not caught up", replica)
		}
		return r.AddVoter(srv.ID, srv.Address, conf.index, timeout), nil
	})
}

// Remove takes a member out. Its id must never be used again. Removing a
// replica that is no member is no error; the leader does not remove itself.
func (s *Store) Remove(ctx context.Context, replica string) error {
	return s.changeMembers(ctx, "remove", func(r *raft.Raft, conf *configuration, timeout time.Duration) (raft.IndexFuture, error) {
		srv, ok := conf.find(replica)
		switch {
		case !ok:
			return nil, nil
		case srv.ID == s.self.replica:
			return nil, transport.Errorf(transport.CodeRefused, "replica %s leads: transfer the leadership first", replica)
		case srv.Suffrage == raft.Voter && !s.knownWithout(r, conf, srv.ID):
			return nil, transport.Errorf(transport.CodeBusy, "of the voters that would stay no majority knows the present members yet")
		}
		return r.RemoveServer(srv.ID, conf.index, timeout), nil
	})
}

// knownWithout says whether a majority of the voters but for one have the newest committed configuration in their
// logs. raft gives no vote to who is no voter by its own configuration: if one that stays had none but an older one, and
// we failed before it got the next two, it would refuse those that it does not know, and they it,
// for its log is behind; and who has both is no voter any more. It costs no time: without these voters the removal could not be committed.
func (s *Store) knownWithout(r *raft.Raft, conf *configuration, id raft.ServerID) bool {
	in := s.inst.Load()
	if in == nil {
		return false
	}
	voters, know := 0, 0
	for _, srv := range conf.servers {
		if srv.ID == id || srv.Suffrage != raft.Voter {
			continue
		}
		voters++
		if f, ok := in.peers.follower(srv.ID, r.CurrentTerm()); srv.ID == s.self.replica || ok && f.match >= conf.index {
			know++
		}
	}
	return know > voters/2
}

func (c *configuration) find(replica string) (raft.Server, bool) {
	for _, srv := range c.servers {
		if string(srv.ID) == replica {
			return srv, true
		}
	}
	return raft.Server{}, false
}

// changeMembers has one change of members committed. change decides on the
// newest applied configuration; raft refuses if there is a newer one.
func (s *Store) changeMembers(ctx context.Context, what string, change func(*raft.Raft, *configuration, time.Duration) (raft.IndexFuture, error)) error {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	l, err := s.leadership(ctx)
	if err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	result := make(chan error, 1)
	s.inFlight.run(func() {
		// Raft takes no change while an earlier one is uncommitted.
		f, err := change(l.in.raft, s.machine.conf.Load(), max(time.Until(deadline), time.Millisecond))
		if f != nil {
			if err = f.Error(); err != nil {
				err = s.changeError(f, err)
			}
		}
		result <- err
	})
	select {
	case err := <-result:
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, transport.Errorf(transport.CodeUncertain, "not committed before the deadline"))
	}
}

func (s *Store) changeError(f raft.IndexFuture, err error) error {
	if f.Index() != 0 {
		return transport.Errorf(transport.CodeUncertain, "%v", err)
	}
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress),
		errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrRaftShutdown):
		return s.applyError(f, err)
	}
	// Raft has no sentinel for a configuration that has moved on, or that would be illegal.
	return transport.Errorf(transport.CodeConflict, "%v", err)
}

// TransferLeadership hands the leadership to a caught-up voter.
func (s *Store) TransferLeadership(ctx context.Context, replica string) error {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	if _, err := s.leadership(ctx); err != nil {
		return err
	}
	srv, ok := s.machine.conf.Load().find(replica)
	switch {
	case replica == s.cfg.Replica:
		return nil
	case !ok || srv.Suffrage != raft.Voter:
		return transport.Errorf(transport.CodeRefused, "transfer leadership: replica %s is no voter", replica)
	case !s.CaughtUp(replica):
		return transport.Errorf(transport.CodeBusy, "transfer leadership: replica %s has not caught up", replica)
	}
	return s.transfer(ctx, srv)
}

func (s *Store) transfer(ctx context.Context, to raft.Server) error {
	r := s.raft()
	if r == nil {
		return s.notLeader()
	}
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	result := make(chan error, 1)
	s.inFlight.run(func() { result <- r.LeadershipTransferToServer(to.ID, to.Address).Error() })
	select {
	case err := <-result:
		switch {
		case err == nil:
			return nil
		case errors.Is(err, raft.ErrNotLeader):
			return s.notLeader()
		}
		return fmt.Errorf("transfer leadership to %s: %w", to.ID, transport.Errorf(transport.CodeBusy, "%v", err))
	case <-ctx.Done():
		return fmt.Errorf("transfer leadership to %s: %w", to.ID, ctx.Err())
	}
}

// handOver gives the leadership to the voter that is furthest, if there is one:
// the others then need not wait for an election.
func (s *Store) handOver(ctx context.Context) {
	in := s.inst.Load()
	if in == nil || in.raft.State() != raft.Leader {
		return
	}
	var best raft.Server
	var most uint64
	for _, srv := range s.machine.conf.Load().servers {
		f, ok := in.peers.follower(srv.ID, in.raft.CurrentTerm())
		if srv.ID == s.self.replica || srv.Suffrage != raft.Voter || !ok || time.Since(f.contact) > freshContact {
			continue
		}
		if f.match > most {
			best, most = srv, f.match
		}
	}
	if most == 0 {
		return
	}
	if err := s.transfer(ctx, best); err != nil {
		s.log.Debug("no hand-over before closing", "err", err)
	}
}
