package node

import (
	"context"
	"math/rand/v2"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/node/front"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// What reads more than named keys: pages of keys, counts, system records. Each
// is answered from a view at or above an index that the shard's leader gave, so
// that nobody answers from what an old leader has; but for who asked for less.

// scanRequest asks one of these questions about a shard.
type scanRequest struct {
	Shard sharding.ShardID `json:"shard"`
	// What is page, size, slot or random.
	What   string        `json:"what"`
	Cursor uint64        `json:"cursor,omitempty"`
	Count  int           `json:"count,omitempty"`
	Match  []byte        `json:"match,omitempty"` // a glob
	Slot   sharding.Slot `json:"slot,omitempty"`
}

type scanAnswer struct {
	Keys [][]byte `json:"keys,omitempty"`
	Next uint64   `json:"next,omitempty"`
	N    int64    `json:"n,omitempty"`
}

// maxPage bounds COUNT: a page is one frame and one burst of work.
const maxPage = 100_000

// scan asks this node's replica, if the reader is content with that, else the
// shard's leader.
func (n *Node) scan(ctx context.Context, q scanRequest, how front.Reading) (a scanAnswer, err error) {
	if st := n.host.get(q.Shard); st != nil && (how.Stale || how.Local) {
		if v, err := n.view(ctx, st, how); err == nil {
			defer v.Close()
			return scanView(v, q)
		}
	}
	err = n.atLeader(ctx, q.Shard, true, func(ctx context.Context, leader sharding.NodeID, st *store.Store) (err error) {
		if st != nil {
			a, err = scanLocal(ctx, st, q)
			return err
		}
		return n.callJSON(ctx, leader, transport.MethodScan, q, &a)
	})
	return a, err
}

func (n *Node) handleScan(ctx context.Context, _ string, raw []byte) ([]byte, error) {
	var q scanRequest
	if err := decodeWire(raw, &q); err != nil {
		return nil, transport.Errorf(transport.CodeBadRequest, "scan: %v", err)
	}
	st, err := n.hosted(q.Shard)
	if err != nil {
		return nil, err
	}
	a, err := scanLocal(ctx, st, q)
	if err != nil {
		return nil, err
	}
	return encodeWire(a)
}

func scanLocal(ctx context.Context, st *store.Store, q scanRequest) (a scanAnswer, err error) {
	v, err := st.ReadView(ctx)
	if err != nil {
		return a, err
	}
	defer v.Close()
	return scanView(v, q)
}

func scanView(v *fsm.View, q scanRequest) (a scanAnswer, err error) {
	switch q.What {
	case "page":
		pattern := string(q.Match)
		prefix := globPrefix(pattern)
		var match func([]byte) bool
		if pattern != "" && pattern != prefix+"*" {
			match = func(key []byte) bool { return globMatch(pattern, string(key)) }
		}
		a.Keys, a.Next = v.ScanPage(q.Cursor, min(max(q.Count, 1), maxPage), [2]uint16{0, sharding.Slots - 1}, match, []byte(prefix))
	case "size":
		a.N, _ = v.Counts()
	case "slot":
		a.N, _ = v.SlotCount(q.Slot)
	case "random":
		if key, ok := v.RandomKey(rand.Uint64()); ok {
			a.Keys = [][]byte{key}
		}
	default:
		err = transport.Errorf(transport.CodeBadRequest, "scan for %q", q.What)
	}
	return a, err
}

// recordsRequest reads the system records of a shard whose names begin with Prefix.
type recordsRequest struct {
	Shard  sharding.ShardID `json:"shard"`
	Prefix string           `json:"prefix"`
}

type record struct {
	Name     string `json:"name"`
	Value    []byte `json:"value"`
	Revision int64  `json:"revision"`
}

func (n *Node) records(ctx context.Context, q recordsRequest) (list []record, err error) {
	err = n.atLeader(ctx, q.Shard, true, func(ctx context.Context, leader sharding.NodeID, st *store.Store) (err error) {
		if st != nil {
			list, err = recordsLocal(ctx, st, q.Prefix)
			return err
		}
		list = nil
		return n.callJSON(ctx, leader, transport.MethodRecords, q, &list)
	})
	return list, err
}

func (n *Node) handleRecords(ctx context.Context, _ string, raw []byte) ([]byte, error) {
	var q recordsRequest
	if err := decodeWire(raw, &q); err != nil {
		return nil, transport.Errorf(transport.CodeBadRequest, "records: %v", err)
	}
	st, err := n.hosted(q.Shard)
	if err != nil {
		return nil, err
	}
	list, err := recordsLocal(ctx, st, q.Prefix)
	if err != nil {
		return nil, err
	}
	return encodeWire(list)
}

func recordsLocal(ctx context.Context, st *store.Store, prefix string) (list []record, err error) {
	v, err := st.ReadView(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	v.Records(prefix, func(name string, value []byte, revision int64) bool {
		list = append(list, record{Name: name, Value: append([]byte(nil), value...), Revision: revision})
		return true
	})
	return list, nil
}

// callJSON is a call whose request and answer are JSON.
func (n *Node) callJSON(ctx context.Context, to sharding.NodeID, m transport.Method, req, answer any) error {
	raw, err := encodeWire(req)
	if err != nil {
		return err
	}
	if raw, err = n.transport.Call(ctx, to, transport.LaneCall, m, raw); err != nil {
		return err
	}
	if err := decodeWire(raw, answer); err != nil {
		return transport.Errorf(transport.CodeBadRequest, "answer of node %s: %v", to, err)
	}
	return nil
}
