package proc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// Status is what a node says about the cluster at /v1/status, as far as this package
// and its users look.
type Status struct {
	ClusterID      string `json:"cluster_id"`
	Epoch          uint64 `json:"epoch"`
	Node           string `json:"node"`
	ReplicasWanted int    `json:"replicas_wanted"`
	// Balance is when replicas are moved for evenness: once, always, or only when somebody says so.
	Balance string        `json:"balance"`
	Nodes   []NodeStatus  `json:"nodes"`
	Shards  []ShardStatus `json:"shards"`
	// SlotMoves are slots that are to become another shard's.
	SlotMoves []SlotMoveStatus `json:"slot_moves"`
	Healthy   bool             `json:"healthy"`
	Problems  []string         `json:"problems"`
	// Notes are worth knowing and nothing is sick.
	Notes []string `json:"notes"`
}

// NodeStatus is one node as seen by the node that was asked.
type NodeStatus struct {
	ID       string `json:"id"`
	Alive    bool   `json:"alive"`
	Version  string `json:"version"`
	UptimeMS int64  `json:"uptime_ms"`
	Leads    int    `json:"leads"`
	Replicas int    `json:"replicas"`
	Draining bool   `json:"draining"`
}

// ShardStatus is one shard.
type ShardStatus struct {
	ID       uint32          `json:"id"`
	Slots    string          `json:"slots"`
	Leader   string          `json:"leader"`
	Term     uint64          `json:"term"`
	Records  int64           `json:"records"`
	Replicas []ReplicaStatus `json:"replicas"`
	Healthy  bool            `json:"healthy"`
	Problem  string          `json:"problem"`
	// Move is a replica on its way, nil if there is none.
	Move *MoveStatus `json:"move"`
}

// MoveStatus is a replica on its way to another node.
type MoveStatus struct {
	From  string `json:"from"`
	To    string `json:"to"`
	State string `json:"state"`
}

// SlotMoveStatus is slots on their way to another shard.
type SlotMoveStatus struct {
	ID        uint64 `json:"id"`
	From      uint32 `json:"from"`
	To        uint32 `json:"to"`
	Slots     string `json:"slots"`
	Paused    bool   `json:"paused"`
	Cancelled bool   `json:"cancelled"`
	State     string `json:"state"`
}

// ReplicaStatus is one replica of a shard. State is leader, follower, learner,
// missing or down.
type ReplicaStatus struct {
	ID        string `json:"id"`
	Node      string `json:"node"`
	State     string `json:"state"`
	Voter     bool   `json:"voter"`
	Applied   uint64 `json:"applied"`
	LastIndex uint64 `json:"last_index"`
	Lag       uint64 `json:"lag"`
}

// Status asks the node at /v1/status.
func (n *Node) Status(ctx context.Context) (*Status, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.URL("/v1/status"), nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its status: %w", n.ID(), err)
	}
	if token := os.Getenv("ABACUS_TOKEN"); token != "" { // of a cluster with users
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := n.c.HTTP(0).Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its status: %w", n.ID(), err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, fmt.Errorf("ask %s for its status: %w", n.ID(), err)
	}
	// A sick cluster may answer with another code than 200; what counts is a body.
	var s Status
	if err := json.Unmarshal(body, &s); err != nil || len(s.Shards) == 0 && resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask %s for its status: HTTP %d: %.200s", n.ID(), resp.StatusCode, body)
	}
	return &s, nil
}

// Status returns the answer of the first running node that gives one.
func (c *Cluster) Status(ctx context.Context) (*Status, error) {
	var errs []error
	for _, n := range c.nodes {
		if !n.Running() || n.Paused() {
			continue
		}
		s, err := n.Status(ctx)
		if err == nil {
			return s, nil
		}
		errs = append(errs, err)
	}
	if errs == nil {
		return nil, fmt.Errorf("no node of %s: %w", c.dir, ErrNotRunning)
	}
	return nil, errors.Join(errs...)
}

// WaitNoticed waits until every other node that runs takes this one for dead (or,
// with alive, for alive). One that was killed counts as alive for a moment longer,
// and who looks at the cluster in that moment is told that all is well.
func (n *Node) WaitNoticed(ctx context.Context, alive bool) error {
	for {
		unaware := ""
		for _, other := range n.c.nodes {
			if other == n || !other.Running() || other.Paused() {
				continue
			}
			// A node that cannot be asked just now is one that has not noticed.
			if s, err := other.Status(ctx); err != nil || s.alive(n.ID()) != alive {
				unaware = other.ID()
			}
		}
		if unaware == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s has not noticed yet: %w", unaware, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// alive says whether the node that was asked takes another one for alive.
func (s *Status) alive(id string) bool {
	for _, n := range s.Nodes {
		if n.ID == id {
			return n.Alive
		}
	}
	return false
}

// Leader returns the node that leads a shard, nil if none is known.
func (c *Cluster) Leader(ctx context.Context, shard uint32) *Node {
	s, err := c.Status(ctx)
	if err != nil {
		return nil
	}
	for _, sh := range s.Shards {
		if sh.ID == shard {
			return c.ByID(sh.Leader)
		}
	}
	return nil
}

// Progress says how many shards have all their voters and a leader.
type Progress struct {
	Ready, Shards int
	// Waiting says in words what is missing.
	Waiting string
}

// WaitReady waits until all nodes run and are alive in the eyes of the first,
// every shard has as many voters as are wanted (or as there are nodes) and a
// leader, leaders are balanced, and no problem is reported. It fails early, with the end of the log, when a
// node's process ends. report, if not nil, is called on every change.
func (c *Cluster) WaitReady(ctx context.Context, report func(Progress)) error {
	return c.wait(ctx, c.progress, report)
}

// WaitCaughtUp waits until the cluster is ready and no replica lags behind its
// leader, which only comes when nobody writes.
func (c *Cluster) WaitCaughtUp(ctx context.Context) error {
	return c.wait(ctx, func(ctx context.Context) Progress {
		p := c.progress(ctx)
		if p.Waiting != "" {
			return p
		}
		s, err := c.Status(ctx)
		if err != nil {
			p.Waiting = err.Error()
			return p
		}
		for _, sh := range s.Shards {
			for _, r := range sh.Replicas {
				if r.Lag > 0 {
					p.Waiting = fmt.Sprintf("replica %s of shard %d is %d entries behind", r.ID, sh.ID, r.Lag)
				}
			}
		}
		return p
	}, nil)
}

func (c *Cluster) wait(ctx context.Context, progress func(context.Context) Progress, report func(Progress)) error {
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	var last Progress
	for {
		for _, n := range c.nodes {
			if !n.Running() {
				return fmt.Errorf("%s %w; its log %s ends with:\n%s", n.ID(), ErrExited, n.LogPath(), n.LogTail(15))
			}
		}
		p := progress(ctx)
		if p != last && report != nil {
			report(p)
		}
		last = p
		if p.Waiting == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the cluster to be ready: %s: %w", p.Waiting, ctx.Err())
		case <-poll.C:
		}
	}
}

// progress asks every node, so that "ready" holds whichever a user turns to.
func (c *Cluster) progress(ctx context.Context) Progress {
	p := Progress{Shards: c.fixed.Shards}
	for i, n := range c.nodes {
		s, err := n.Status(ctx)
		if err != nil {
			p.Waiting = n.ID() + " does not answer yet"
			return p
		}
		ready, waiting := s.ready(len(c.nodes), c.fixed.Replicas)
		if i == 0 || ready < p.Ready {
			p.Ready = ready
		}
		if waiting != "" {
			p.Waiting = waiting
			return p
		}
	}
	return p
}

// ready counts the shards that have what they should, and says what is missing.
func (s *Status) ready(nodes, replicas int) (ready int, waiting string) {
	alive := 0
	for _, n := range s.Nodes {
		if n.Alive {
			alive++
		}
	}
	if alive < nodes {
		waiting = fmt.Sprintf("%d of %d nodes have joined", alive, nodes)
	}
	if len(s.Shards) == 0 {
		return 0, "no shard is known yet"
	}
	want := min(replicas, nodes)
	for _, sh := range s.Shards {
		voters := 0
		for _, r := range sh.Replicas {
			if r.Voter && (r.State == "leader" || r.State == "follower") {
				voters++
			}
		}
		switch {
		case sh.Leader == "":
			waiting = fmt.Sprintf("shard %d has no leader", sh.ID)
		case voters < want:
			waiting = fmt.Sprintf("shard %d has %d of %d voters", sh.ID, voters, want)
		default:
			ready++
		}
	}
	if waiting == "" && want == nodes {
		// Every node holds every shard, so each can lead its part; until they do,
		// leaderships are being handed over.
		leads := map[string]int{}
		for _, sh := range s.Shards {
			leads[sh.Leader]++
		}
		for _, n := range s.Nodes {
			if l := leads[n.ID]; l < len(s.Shards)/nodes || l > (len(s.Shards)+nodes-1)/nodes {
				waiting = "leaders are not balanced yet"
			}
		}
	}
	if waiting == "" && !s.Healthy {
		waiting = "a problem is reported"
		if len(s.Problems) > 0 {
			waiting = s.Problems[0]
		}
	}
	return ready, waiting
}
