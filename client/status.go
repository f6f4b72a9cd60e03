package client

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/abacusdb/abacus/sharding"
)

// Status is the cluster as the node that was asked sees it; the JSON of
// ABACUS.STATUS and of GET /v1/status.
type Status struct {
	ClusterID      string `json:"cluster_id"`
	Epoch          uint64 `json:"epoch"`
	Node           string `json:"node"` // that answered
	ReplicasWanted int    `json:"replicas_wanted"`
	// Balance is "once" while replicas are moved for evenness, "always" if they are whenever it is needed, else empty.
	Balance string `json:"balance,omitempty"`
	// DeadAfterMillis is after how long a silent node is taken for dead, in milliseconds; 0: never.
	DeadAfterMillis int64         `json:"dead_after_ms,omitempty"`
	Nodes           []NodeStatus  `json:"nodes"`
	Shards          []ShardStatus `json:"shards"`
	// SlotMoves are slots that are to become another shard's, in the order in which they were asked for.
	SlotMoves []SlotMoveStatus `json:"slot_moves,omitempty"`
	Healthy   bool             `json:"healthy"`
	Problems  []string         `json:"problems"` // one sentence each, naming what is sick
	Notes     []string         `json:"notes"`    // worth knowing, and nothing is sick
}

// NodeStatus is one member.
type NodeStatus struct {
	ID           string         `json:"id"`
	Addrs        sharding.Addrs `json:"addrs"`
	Alive        bool           `json:"alive"`
	Version      string         `json:"version"`
	UptimeMillis int64          `json:"uptime_ms"`
	Leads        int            `json:"leads"`     // shards that it leads
	Replicas     int            `json:"replicas"`  // replicas that it holds
	DiskFree     uint64         `json:"disk_free"` // bytes
	Zone         string         `json:"zone,omitempty"`
	Cordoned     bool           `json:"cordoned,omitempty"`  // gets no more replicas
	Draining     bool           `json:"draining,omitempty"`  // loses those that it has
	Dead         bool           `json:"dead,omitempty"`      // was silent for so long that its replicas are made anew elsewhere
	Successor    string         `json:"successor,omitempty"` // who gets them; empty: anybody
}

// ShardStatus is one Raft group.
type ShardStatus struct {
	ID       uint32          `json:"id"`
	Slots    string          `json:"slots"`  // "0-2047", several ranges with commas
	Leader   string          `json:"leader"` // node, or empty
	Term     uint64          `json:"term"`
	Records  int64           `json:"records"`
	Bytes    int64           `json:"bytes"` // of the state's file in use: about what a copy takes
	Replicas []ReplicaStatus `json:"replicas"`
	Healthy  bool            `json:"healthy"`
	Problem  string          `json:"problem,omitempty"`
	Move     *MoveStatus     `json:"move,omitempty"` // nil: no replica is being moved
}

// MoveStatus is a replica on its way to another node.
type MoveStatus struct {
	From     string `json:"from"` // replica
	To       string `json:"to"`   // replica
	Paused   bool   `json:"paused,omitempty"`
	State    string `json:"state"`               // what it is at, or waits for
	CopySent int64  `json:"copy_sent,omitempty"` // bytes of the state, while they are sent
	CopySize int64  `json:"copy_size,omitempty"`
}

// ReplicaStatus is one replica of a shard.
type ReplicaStatus struct {
	ID        string `json:"id"`
	Node      string `json:"node"`
	State     string `json:"state"` // leader, follower, learner, missing, down
	Voter     bool   `json:"voter"`
	Applied   uint64 `json:"applied"`
	LastIndex uint64 `json:"last_index"`
	Lag       int64  `json:"lag"` // entries behind the leader
}

// Plan is what a rebalance would do.
type Plan struct {
	Epoch uint64        `json:"epoch"` // of the map that it is for
	Moves []PlannedMove `json:"moves"`
	Bytes int64         `json:"bytes"` // that would be copied
	// Unknown is for how many moves nobody said how large the shard is.
	Unknown int `json:"unknown,omitempty"`
}

// SlotMoveStatus is slots on their way to another shard.
type SlotMoveStatus struct {
	ID        uint64 `json:"id"`
	From      uint32 `json:"from"` // shard
	To        uint32 `json:"to"`   // shard
	Slots     string `json:"slots"`
	Paused    bool   `json:"paused,omitempty"`
	Cancelled bool   `json:"cancelled,omitempty"`
	State     string `json:"state"`           // what it is at, or waits for
	Sent      int64  `json:"sent,omitempty"`  // bytes of keys and values
	Total     int64  `json:"total,omitempty"` // about how many there are
}

// PlannedMove is a replica that would go to another node.
type PlannedMove struct {
	Shard uint32 `json:"shard"`
	From  string `json:"from"` // replica
	To    string `json:"to"`   // node
	Why   string `json:"why"`
	Bytes int64  `json:"bytes"` // -1: not known
}

// Admin changes nodes and moves replicas: node cordon|uncordon|drain|remove NODE, drain NODE SUCCESSOR, dead-after DURATION|off, shard move SHARD FROM TO, shard
// cancel|pause|resume SHARD, shard check|checked SHARD, shard split SHARD [SLOTS], shard split all, slots move FROM-TO SHARD, slots cancel|pause|resume MOVE, rebalance plan|once|always|stop, recover plan|run, upgrade. It returns the node's answer, JSON. What it begins goes on by itself, and shows in Status;
// said twice, each is as if said once. A *ServerError says why it is refused.
func (c *Client) Admin(ctx context.Context, words ...string) ([]byte, error) {
	cmd := Command(append([]string{"ABACUS.ADMIN"}, words...)...)
	cmd.Repeatable = true
	r := c.DoMulti(ctx, []Cmd{cmd})[0]
	if r.Err != nil {
		return nil, r.Err
	}
	return wantBytes("ABACUS.ADMIN", r.Reply)
}

// PlanRebalance asks what a rebalance would do now.
func (c *Client) PlanRebalance(ctx context.Context) (Plan, error) {
	text, err := c.Admin(ctx, "rebalance", "plan")
	if err != nil {
		return Plan{}, err
	}
	var p Plan
	if err := json.Unmarshal(text, &p); err != nil {
		return Plan{}, fmt.Errorf("parse the plan: %w", err)
	}
	return p, nil
}

// Status asks a node how the cluster is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	b, err := c.StatusJSON(ctx)
	if err != nil {
		return Status{}, err
	}
	return parseStatus(b)
}

// StatusJSON is Status as the node wrote it.
func (c *Client) StatusJSON(ctx context.Context) ([]byte, error) {
	r, err := c.Do(ctx, "ABACUS.STATUS")
	if err != nil {
		return nil, err
	}
	return wantBytes("ABACUS.STATUS", r)
}

func parseStatus(b []byte) (Status, error) {
	var s Status
	if err := json.Unmarshal(b, &s); err != nil {
		return Status{}, fmt.Errorf("parse the cluster's status: %w", err)
	}
	return s, nil
}
