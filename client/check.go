package client

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
)

// ShardCheck is a comparison of the replicas of a shard, all of them at one log index.
type ShardCheck struct {
	Check string `json:"check"` // its name; empty: there never was one
	Shard uint32 `json:"shard"`
	State string `json:"state,omitempty"` // waiting, running or done
	Index uint64 `json:"index,omitempty"` // at which they were looked at
	// BeganMillis is Unix time, as the leader's clock has it.
	BeganMillis  int64          `json:"began_ms,omitempty"`
	TookMillis   int64          `json:"took_ms,omitempty"`
	RecordsTotal int64          `json:"records_total,omitempty"` // about how many keys each replica has
	Result       string         `json:"result,omitempty"`        // equal, mismatch, or not compared
	Error        string         `json:"error,omitempty"`         // why there is no result
	Replicas     []ReplicaCheck `json:"replicas"`
}

// ReplicaCheck is what was found of one replica.
type ReplicaCheck struct {
	Replica string `json:"replica"`
	Node    string `json:"node"`
	Hash    string `json:"hash,omitempty"` // of its state; empty: it was not compared
	Records int64  `json:"records"`        // keys, so far
	// Result is equal; differs, from the majority of those compared; disagrees, with some of them where none are the majority; alone; or not compared.
	Result string        `json:"result,omitempty"`
	Why    string        `json:"why,omitempty"`   // it was not compared
	Alarm  *ReplicaAlarm `json:"alarm,omitempty"` // nil: it was never found different, or found equal since
}

// ReplicaAlarm is the last comparison that found a replica different.
type ReplicaAlarm struct {
	Result   string `json:"result"` // differs or disagrees
	Index    uint64 `json:"index"`
	AtMillis int64  `json:"at_ms"`
	Hash     string `json:"hash"`
}

// CheckShard has the replicas of a shard compared, unless that is under way already, and returns at once. It takes as long as to read the largest of them, at 32 MiB
// a second and node: look with ShardChecked until State is done and Check is the same. Another Check, that does not run, means that the shard's leader has changed and the
// comparison was lost: begin another.
func (c *Client) CheckShard(ctx context.Context, shard uint32) (ShardCheck, error) {
	return c.shardCheck(ctx, "check", shard)
}

// ShardChecked is the newest comparison of the replicas of a shard, which may be under way.
func (c *Client) ShardChecked(ctx context.Context, shard uint32) (ShardCheck, error) {
	return c.shardCheck(ctx, "checked", shard)
}

func (c *Client) shardCheck(ctx context.Context, verb string, shard uint32) (r ShardCheck, err error) {
	text, err := c.Admin(ctx, "shard", verb, strconv.FormatUint(uint64(shard), 10))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("parse the comparison of shard %d: %w", shard, err)
	}
	return r, nil
}
