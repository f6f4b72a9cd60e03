package node

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/node/front"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// followerTry bounds a read by a follower's own state, before the leader is asked
// to answer it. A follower hears within some milliseconds that an entry is committed; one that does not is
// slow, and the leader has answered twice by then.
const followerTry = 30 * time.Millisecond

// read answers commands that only read, as the reader has asked for, and tells the
// log index of the state that the last one was answered from.
func (n *Node) read(ctx context.Context, shard sharding.ShardID, cmds []command.Command, how front.Reading) (results []command.Result, index uint64, err error) {
	if st := n.host.get(shard); st != nil {
		if how.Stale {
			if results, index, err = st.ReadStale(how.MaxAge, cmds); err == nil && !anyElsewhere(results) {
				return results, index, nil
			}
		}
		if how.Local && !st.IsLeader() {
			if results, index, err = n.readFollowing(ctx, st, cmds); err == nil && !anyElsewhere(results) {
				return results, index, nil
			}
		}
	}
	return n.exec(ctx, shard, cmds)
}

// readFollowing answers from a replica that does not lead, linearizable all the same.
func (n *Node) readFollowing(ctx context.Context, st *store.Store, cmds []command.Command) ([]command.Result, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, followerTry)
	defer cancel()
	index, err := n.readIndex(ctx, st.Shard())
	if err != nil {
		return nil, 0, err
	}
	return st.ReadAt(ctx, index, cmds)
}

// view is a view for a reader who asked for it in this way: of this node's replica
// if that leads, or may answer although it does not. Else the error is of the replica's leader.
func (n *Node) view(ctx context.Context, st *store.Store, how front.Reading) (*fsm.View, error) {
	if how.Stale {
		if v, err := st.StaleView(how.MaxAge); err == nil {
			return v, nil
		}
	}
	if how.Local && !st.IsLeader() {
		ctx, cancel := context.WithTimeout(ctx, followerTry)
		defer cancel()
		index, err := n.readIndex(ctx, st.Shard())
		if err != nil {
			return nil, err
		}
		return st.ViewAt(ctx, index)
	}
	return st.ReadView(ctx)
}

// readIndex asks a shard's leader how far a state must be to show everything
// acknowledged before the call. It asks once: a reader has others to turn to.
func (n *Node) readIndex(ctx context.Context, shard sharding.ShardID) (uint64, error) {
	leader := n.Leader(shard)
	switch leader {
	case "":
		return 0, transport.Errorf(transport.CodeUnavailable, "shard %d has no leader that is known here", shard)
	case n.cfg.ID:
		st, err := n.hosted(shard)
		if err != nil {
			return 0, err
		}
		return st.ReadIndex(ctx)
	}
	raw, err := n.transport.Call(ctx, leader, transport.LaneCall, transport.MethodReadIndex, binary.BigEndian.AppendUint32([]byte{wireVersion}, shard))
	if err != nil {
		return 0, err
	}
	body, err := wireBody(raw)
	if err != nil || len(body) != 8 {
		return 0, transport.Errorf(transport.CodeBadRequest, "answer of %d bytes not understood: %v", len(raw), err)
	}
	return binary.BigEndian.Uint64(body), nil
}

func (n *Node) handleReadIndex(ctx context.Context, _ string, req []byte) ([]byte, error) {
	body, err := wireBody(req)
	if err != nil || len(body) != 4 {
		return nil, transport.Errorf(transport.CodeBadRequest, "question of %d bytes: %v", len(req), err)
	}
	st, err := n.hosted(binary.BigEndian.Uint32(body))
	if err != nil {
		return nil, err
	}
	index, err := st.ReadIndex(ctx)
	if err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint64([]byte{wireVersion}, index), nil
}
