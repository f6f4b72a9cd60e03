package sharding

import (
	"math"
	"sync"
)

// NoShard is the owner of a slot that nobody owns.
const NoShard ShardID = math.MaxUint32

// Router finds the shard of a key under one map. It is immutable: who learns of
// a newer map builds a new one and swaps the pointer. What it says is a hint;
// whether a shard owns a slot is state inside that shard.
type Router struct {
	m       Map
	table   [Slots]ShardID
	leaders func() map[ShardID]NodeID
}

// NewRouter builds the table for a map, which must not change afterwards.
func NewRouter(m Map) *Router {
	r := &Router{m: m, leaders: sync.OnceValue(func() map[ShardID]NodeID { return PreferredLeaders(m) })}
	for i := range r.table {
		r.table[i] = NoShard
	}
	for _, s := range m.Shards {
		for _, rng := range s.Slots {
			for slot := int(rng.From); slot <= int(rng.To) && slot < Slots; slot++ {
				r.table[slot] = s.ID
			}
		}
	}
	return r
}

// PreferredLeader is the map's PreferredLeaders of a shard, "" for one that it does not have.
func (r *Router) PreferredLeader(id ShardID) NodeID { return r.leaders()[id] }

// Locate returns the slot of a key and the shard that owns it.
func (r *Router) Locate(key []byte) (Slot, ShardID) {
	slot := SlotOf(key)
	return slot, r.table[slot]
}

// ShardOf returns the owner of a slot, NoShard for a slot that is none.
func (r *Router) ShardOf(slot Slot) ShardID {
	if slot >= Slots {
		return NoShard
	}
	return r.table[slot]
}

// Map returns the map that the router was built from. Do not change it.
func (r *Router) Map() Map { return r.m }
