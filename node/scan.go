package node

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"

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
	// Slots are those of a page; nil, from a node of an older version: all.
	Slots *sharding.SlotRange `json:"slots,omitempty"`
}

type scanAnswer struct {
	Keys [][]byte `json:"keys,omitempty"`
	// Next is 0 behind the last slot asked for.
	Next uint64 `json:"next,omitempty"`
	N    int64  `json:"n,omitempty"`
	// Slots are those that N is of. An older version does not tell.
	Slots []sharding.SlotRange `json:"slots"`
}

// maxPage bounds COUNT: a page is one frame and one burst of work.
const maxPage = 100_000

// scan asks this node's replica, if the reader is content with that, else the
// shard's leader.
func (n *Node) scan(ctx context.Context, q scanRequest, how front.Reading) (a scanAnswer, err error) {
	if st := n.host.get(q.Shard); st != nil && (how.Stale || how.Local) {
		if v, err := n.view(ctx, st, how); err == nil {
			a, err = scanView(v, q)
			v.Close()
			if transport.CodeOf(err) != transport.CodeSlotsMoved { // it may only be behind
				return a, err
			}
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

// scanView answers a question about slots only if the shard owned them at the view's index: what it has
// of others, it has no longer or not yet, and another shard answers for them.
func scanView(v *fsm.View, q scanRequest) (a scanAnswer, err error) {
	owned := ownedSlots(v)
	switch q.What {
	case "page":
		slots := sharding.SlotRange{To: sharding.Slots - 1}
		if q.Slots != nil {
			slots = *q.Slots
			if slots, err = clipRun(owned, slots, q.Cursor); err != nil {
				return a, err
			}
		}
		pattern := string(q.Match)
		prefix := globPrefix(pattern)
		var match func([]byte) bool
		if pattern != "" && pattern != prefix+"*" {
			match = func(key []byte) bool { return globMatch(pattern, string(key)) }
		}
		a.Keys, a.Next = v.ScanPage(q.Cursor, min(max(q.Count, 1), maxPage), [2]uint16{slots.From, slots.To}, match, []byte(prefix))
		if a.Next == 0 && q.Slots != nil && slots.To < q.Slots.To {
			a.Next = (uint64(slots.To) + 1) << 48 // what follows is not ours
		}
	case "size":
		a.N, _ = v.Counts()
		a.Slots = owned
	case "slot":
		if _, ok := sharding.RunFrom(owned, q.Slot); !ok {
			return a, transport.Errorf(transport.CodeSlotsMoved, "shard %d does not own slot %d", q.Shard, q.Slot)
		}
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

// clipRun cuts slots to the run of owned ones that begins where a scan has got to in them.
func clipRun(owned []sharding.SlotRange, slots sharding.SlotRange, cursor uint64) (sharding.SlotRange, error) {
	slots.From = max(slots.From, sharding.Slot(min(cursor>>48, sharding.Slots)))
	last, ok := sharding.RunFrom(owned, slots.From)
	if !ok {
		return slots, transport.Errorf(transport.CodeSlotsMoved, "the shard does not own slot %d", slots.From)
	}
	slots.To = min(slots.To, last)
	return slots, nil
}

// ownedSlots are the slots that the shard owned at a view's index; never nil.
func ownedSlots(v *fsm.View) []sharding.SlotRange {
	slots := make([]sharding.SlotRange, 0, len(v.Slots()))
	for _, r := range v.Slots() {
		slots = append(slots, sharding.SlotRange{From: r.From, To: r.To})
	}
	return slots
}

// recordsRequest reads the system records of a shard whose names begin with Prefix.
type recordsRequest struct {
	Shard  sharding.ShardID `json:"shard"`
	Prefix string           `json:"prefix"`
	// Exact: the one record of that name is enough. A node before v0.5 sends those that begin with it.
	Exact bool `json:"exact,omitempty"`
	// After and Then: only those in whose value one of Then follows the first After. A node before v0.5 sends all.
	After string   `json:"after,omitempty"`
	Then  []string `json:"then,omitempty"`
}

type record struct {
	Name     string `json:"name"`
	Value    []byte `json:"value"`
	Revision int64  `json:"revision"`
}

func (n *Node) records(ctx context.Context, q recordsRequest) (list []record, err error) {
	err = n.atLeader(ctx, q.Shard, true, func(ctx context.Context, leader sharding.NodeID, st *store.Store) (err error) {
		if st != nil {
			list, err = recordsLocal(ctx, st, q)
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
	list, err := recordsLocal(ctx, st, q)
	if err != nil {
		return nil, err
	}
	return encodeWire(list)
}

func (q *recordsRequest) wants(value []byte) bool {
	if q.After == "" {
		return true
	}
	_, rest, _ := bytes.Cut(value, []byte(q.After))
	return slices.ContainsFunc(q.Then, func(text string) bool { return bytes.HasPrefix(rest, []byte(text)) })
}

func recordsLocal(ctx context.Context, st *store.Store, q recordsRequest) (list []record, err error) {
	v, err := st.ReadView(ctx)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	if q.Exact {
		if value, revision, ok := v.Record(q.Prefix); ok {
			list = []record{{Name: q.Prefix, Value: append([]byte(nil), value...), Revision: revision}}
		}
		return list, nil
	}
	v.Records(q.Prefix, func(name string, value []byte, revision int64) bool {
		if q.wants(value) {
			list = append(list, record{Name: name, Value: append([]byte(nil), value...), Revision: revision})
		}
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
