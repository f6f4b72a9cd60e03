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
	ClusterID      string        `json:"cluster_id"`
	Epoch          uint64        `json:"epoch"`
	Node           string        `json:"node"` // that answered
	ReplicasWanted int           `json:"replicas_wanted"`
	Nodes          []NodeStatus  `json:"nodes"`
	Shards         []ShardStatus `json:"shards"`
	Healthy        bool          `json:"healthy"`
	Problems       []string      `json:"problems"` // one sentence each, naming what is sick
}

// NodeStatus is one member.
type NodeStatus struct {
	ID           string         `json:"id"`
	Addrs        sharding.Addrs `json:"addrs"`
	Alive        bool           `json:"alive"`
	Version      string         `json:"version"`
	UptimeMillis int64          `json:"uptime_ms"`
	Leads        int            `json:"leads"`    // shards that it leads
	Replicas     int            `json:"replicas"` // replicas that it holds
}

// ShardStatus is one Raft group.
type ShardStatus struct {
	ID       uint32          `json:"id"`
	Slots    string          `json:"slots"`  // "0-2047", several ranges with commas
	Leader   string          `json:"leader"` // node, or empty
	Term     uint64          `json:"term"`
	Records  int64           `json:"records"`
	Replicas []ReplicaStatus `json:"replicas"`
	Healthy  bool            `json:"healthy"`
	Problem  string          `json:"problem,omitempty"`
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
