package store

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose process has ended is missed at once, not after the election time-out: the kernel closes
// its sockets, and the transport finds nobody at its address (transport.Transport, HandleEnded).
// raft has no way to be told, but it knows a request that makes a follower stand for election: TimeoutNow,
// which a leader sends to its successor. It is safe at any time; a leader that is alive after all is disturbed
// at most by one election, as it is by any candidate.

// successorEvery is how much later each voter stands than the one before it, in the order
// of the configuration: one after the other, so that they do not split the votes.
const successorEvery = 150 * time.Millisecond

// onEnded has all replicas here whose leader was on a node stand for election.
func (n *Net) onEnded(node string) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, p := range n.replicas {
		p.wg.Go(func() { p.succeed(raft.ServerAddress(node)) })
	}
}

// succeed stands for election if the leader was on the node, after those before us in turn.
func (p *peers) succeed(node raft.ServerAddress) {
	r := p.raft.Load()
	if r == nil || r.State() != raft.Follower {
		return
	}
	if leader, _ := r.LeaderWithID(); leader != node {
		return
	}
	turn, votes := 0, false
	for _, srv := range r.GetConfiguration().Configuration().Servers {
		if srv.ID == p.self.replica {
			votes = srv.Suffrage == raft.Voter
			break
		}
		if srv.Suffrage == raft.Voter && srv.Address != node {
			turn++
		}
	}
	if !votes {
		return
	}
	select {
	case <-time.After(time.Duration(turn) * successorEvery):
	case <-p.ctx.Done():
		return
	}
	// No leader: who stood before us was not elected, for want of entries that we may have.
	if leader, _ := r.LeaderWithID(); leader != node && leader != "" || r.State() != raft.Follower || !p.mayLead() {
		return
	}
	p.log.Info("the leader's process has ended: standing for election", "node", node, "turn", turn)
	ctx, cancel := context.WithTimeout(p.ctx, p.timing.Election)
	defer cancel()
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(p.self.replica), Addr: p.EncodePeer(p.self.replica, p.node)}
	if _, err := p.dispatch(ctx, &raft.TimeoutNowRequest{RPCHeader: header}, nil); err != nil {
		p.log.Debug("stand for election", "err", err)
	}
}
