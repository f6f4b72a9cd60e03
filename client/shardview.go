package client

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// ShardView is one shard's keys at one log index, which a node holds open for a backup. The node lets go of it when nobody has
// asked for a minute, and in any case when it has grown old or costs too much of the disk: then Next fails, and a new view has to be opened.
//
// Next and Close belong to one goroutine; Keep may be called beside them.
type ShardView struct {
	Node      string `json:"node"`
	Shard     uint32 `json:"shard"`
	Slots     string `json:"slots"` // that the shard owned at Index: "0-2047", several ranges with commas
	Index     uint64 `json:"index"`
	Term      uint64 `json:"term"`
	Records   int64  `json:"records"`
	Bytes     int64  `json:"bytes"` // of keys and values
	ClusterID string `json:"cluster_id"`
	Epoch     uint64 `json:"epoch"`
	Level     int    `json:"level"`
	ID        uint64 `json:"view"`

	c    *Client
	addr string
}

// viewTimeout bounds one question about a view. The node answers within its own time-out for commands, which is shorter.
const viewTimeout = 10 * time.Second

// OpenView has the node at a client address open a view of its replica of a shard. Everything acknowledged before the call is in it.
// It asks once: who is refused, or gets no answer, has other replicas to turn to.
func (c *Client) OpenView(ctx context.Context, addr string, shard uint32) (*ShardView, error) {
	text, err := c.askBackup(ctx, addr, "OPEN", strconv.FormatUint(uint64(shard), 10))
	if err != nil {
		return nil, err
	}
	v := &ShardView{c: c, addr: addr}
	if err := json.Unmarshal(text, v); err != nil {
		return nil, fmt.Errorf("parse the answer of %s: %w", addr, err)
	}
	return v, nil
}

// Next returns the next records, as backup.AppendRecord writes them, in order of slots and keys, perhaps none; last says that these were all.
// After an error the view is of no more use: what it was to answer with is lost.
func (v *ShardView) Next(ctx context.Context) (records []byte, last bool, err error) {
	b, err := v.c.askBackup(ctx, v.addr, "READ", v.id())
	if err != nil {
		return nil, false, err
	}
	if len(b) == 0 || b[0] > 1 {
		return nil, false, fmt.Errorf("node %s: an answer of %d bytes that is no part of a view", v.Node, len(b))
	}
	return b[1:], b[0] == 1, nil
}

// Keep tells the node that the view is wanted although nobody reads it.
func (v *ShardView) Keep(ctx context.Context) error {
	_, err := v.c.askBackup(ctx, v.addr, "KEEP", v.id())
	return err
}

// Close lets the node let go of the view. It is a courtesy: without it the node does so by itself.
func (v *ShardView) Close(ctx context.Context) {
	v.c.askBackup(ctx, v.addr, "CLOSE", v.id())
}

func (v *ShardView) id() string { return strconv.FormatUint(v.ID, 10) }

func (c *Client) askBackup(ctx context.Context, addr string, words ...string) ([]byte, error) {
	r, err := c.ask(ctx, addr, Command(append([]string{"ABACUS.BACKUP"}, words...)...), viewTimeout)
	if err != nil {
		return nil, err
	}
	return wantBytes("ABACUS.BACKUP", r)
}
