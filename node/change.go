package node

import (
	"context"
	"errors"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// decision works out the next shard map from the present one. It may be asked several times, for others change the map too, and says that
// nothing changes when what it is about is there already. Its errors are about the map.
type decision func(sharding.Map) (next sharding.Map, changed bool, err error)

// changeMap changes the shard map from any node and returns what it is then: read from shard 0, decided on, put back if nobody was faster, else
// decided on anew. If it is not known whether a change was made, it looks: a decision that finds its change there changes nothing.
// An error of the decision that has no number is CodeRefused.
func (n *Node) changeMap(ctx context.Context, decide decision) (sharding.Map, error) {
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	for {
		m, rev, err := n.readMap(ctx)
		if mine := n.Router().Map(); (err == nil || errors.Is(err, errNoMap)) && sharding.Era(mine.Epoch) > sharding.Era(m.Epoch) {
			// Shard 0 was recovered, with the map of an earlier era in it or none.
			if err = n.putMap(ctx, mine, rev); err == nil || transport.CodeOf(err) == transport.CodeConflict {
				continue
			}
		}
		if err != nil {
			return sharding.Map{}, err
		}
		next, changed, err := decide(m)
		if err != nil {
			if transport.CodeOf(err) == transport.CodeUnknown {
				err = transport.Errorf(transport.CodeRefused, "%v", err)
			}
			return sharding.Map{}, err
		}
		if !changed {
			n.offerMap(m)
			return m, nil
		}
		err = n.writeMap(ctx, m, next, rev)
		switch code := transport.CodeOf(err); {
		case err == nil:
			n.offerMap(next)
			return next, nil
		case code == transport.CodeConflict, !transport.Certain(err):
		default:
			return sharding.Map{}, err
		}
		select {
		case <-ctx.Done():
			return sharding.Map{}, err
		case <-time.After(leaderPoll): // a leader was lost, or several change it at once
		}
	}
}

// readMap reads the map from shard 0, linearizable, and the revision of its record.
func (n *Node) readMap(ctx context.Context) (sharding.Map, int64, error) {
	list, err := n.records(ctx, recordsRequest{Shard: metaShard, Prefix: mapRecord})
	if err != nil {
		return sharding.Map{}, 0, err
	}
	for _, r := range list {
		if r.Name == mapRecord {
			m, err := sharding.DecodeMap(r.Value)
			if err != nil {
				return m, 0, transport.Errorf(transport.CodeRefused, "%v", err)
			}
			return m, r.Revision, nil
		}
	}
	return sharding.Map{}, 0, errNoMap
}

var errNoMap = transport.Errorf(transport.CodeUnavailable, "the cluster is still being set up")

// writeMap replaces the map if nobody else did since revision rev.
func (n *Node) writeMap(ctx context.Context, old, next sharding.Map, rev int64) error {
	if err := sharding.ValidateTransition(old, next); err != nil {
		return transport.Errorf(transport.CodeRefused, "%v", err)
	}
	return n.putMap(ctx, next, rev)
}

func (n *Node) putMap(ctx context.Context, next sharding.Map, rev int64) error {
	results, err := n.Exec(ctx, metaShard, []command.Command{recordSet(mapRecord, next.Encode(), rev)})
	if err != nil {
		return err
	}
	return recordError(mapRecord, results[0])
}
