// Package sharding decides where things belong: which slot a key hashes to,
// which shard owns a slot, which nodes hold a shard's replicas, who should lead.
//
// It only decides. There are no sockets, files, clocks or goroutines here: each
// function is pure, so that a placement can be tested as a table and two nodes
// with one map come to one conclusion.
package sharding

// Slots is the number of hash slots, as in Redis Cluster.
const Slots = 16384

// Slot is a hash slot, 0..16383.
type Slot = uint16

// ShardID numbers a shard. Shard 0 also keeps the shard map and the job ledger.
type ShardID = uint32

// NodeID is the name that a node keeps for life.
type NodeID = string

// ReplicaID names one replica of one shard for ever: node id, a dot and the
// map epoch at which it was placed ("n2.7"). A replica that is removed never comes back
// under its old id, or it could vote twice in one term.
type ReplicaID = string

// SlotRange is a run of slots, both ends included.
type SlotRange struct {
	From Slot `json:"from"`
	To   Slot `json:"to"`
}

// Addrs are the addresses at which others reach a node (host:port).
type Addrs struct {
	Peer    string `json:"peer"`
	Client  string `json:"client"`
	Cluster string `json:"cluster"`
	HTTP    string `json:"http"`
}

// Node is a member of the cluster.
type Node struct {
	ID    NodeID `json:"id"`
	Addrs Addrs  `json:"addrs"`
	// Instance is the random name of the node's data directory: another
	// directory under the same id is another node. It can only come in place of one
	// that is gone, and then with new replicas.
	Instance string `json:"instance"`
	// Zone is where it stands: replicas of a shard are spread over zones before they are over nodes. Empty: a zone of its own.
	Zone string `json:"zone,omitempty"`
	// Cordoned nodes get no new replicas; Draining ones lose those that they have, too.
	Cordoned bool `json:"cordoned,omitempty"`
	Draining bool `json:"draining,omitempty"`
	// Dead nodes lose theirs, too, for they are silent: the leader of shard 0 says so, and not a person.
	Dead bool `json:"dead,omitempty"`
	// Successor is who gets what a draining node has, as far as it can. Empty: anybody.
	Successor NodeID `json:"successor,omitempty"`
}

// Replica is a place where a shard is kept.
type Replica struct {
	ID   ReplicaID `json:"id"`
	Node NodeID    `json:"node"`
}

// Shard is a Raft group and the slots it owns: none, if it is new or has given all.
type Shard struct {
	ID       ShardID     `json:"id"`
	Slots    []SlotRange `json:"slots"` // apart and in order
	Replicas []Replica   `json:"replicas"`
	// Move is under way, nil if none is. It is a value that does not change: a new one takes its place.
	Move *Move `json:"move,omitempty"`
	// Founding is the one replica that may make itself the first voter of a new, empty group. It is gone once that is done: nobody founds a group twice.
	Founding ReplicaID `json:"founding,omitempty"`
}

// Map is the shard map: an immutable value kept in shard 0, changed only by
// compare-and-set from one epoch to the next. Nodes and shards are sorted by id.
type Map struct {
	ClusterID string `json:"cluster_id"`
	Epoch     uint64 `json:"epoch"`
	// ReplicasWanted is how many replicas a shard should have once there are nodes enough.
	ReplicasWanted int `json:"replicas_wanted"`
	// Level is which features the cluster's log and map may make use of: all its nodes understand them. It only rises.
	Level   int     `json:"level,omitempty"`
	Balance Balance `json:"balance,omitempty"`
	// DeadAfterMillis is after how long a silent node is taken for dead; 0: never.
	DeadAfterMillis int64 `json:"dead_after_ms,omitempty"`
	// Users says that the cluster has users: a node that does not know them must let nobody in.
	Users  bool    `json:"users,omitempty"`
	Nodes  []Node  `json:"nodes"`
	Shards []Shard `json:"shards"`
	// SlotMoves are in order of their ids, and LastSlotMove is the last id that was given.
	SlotMoves    []SlotMove `json:"slot_moves,omitempty"`
	LastSlotMove uint64     `json:"last_slot_move,omitempty"`
}
