package node

import (
	"context"
	"encoding/json"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/node/front"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/sharding/access"
)

// backend is the node as the RESP front end sees it.
type backend struct{ n *Node }

var _ front.Backend = backend{}

func (n *Node) frontConfig(mode front.Mode) front.Config {
	return front.Config{
		Mode:            mode,
		Limits:          command.DefaultLimits(),
		MaxCommandBytes: n.cfg.MaxCommandBytes,
		MaxClients:      n.cfg.MaxClients,
		CommandTimeout:  n.cfg.CommandTimeout,
		Now:             n.cfg.Now,
		Log:             n.log,
	}
}

func (b backend) Exec(ctx context.Context, shard sharding.ShardID, cmds []command.Command) ([]command.Result, error) {
	return b.n.Exec(ctx, shard, cmds)
}

func (b backend) Read(ctx context.Context, shard sharding.ShardID, cmds []command.Command, how front.Reading) ([]command.Result, error) {
	results, _, err := b.n.read(ctx, shard, cmds, how)
	return results, err
}

func (b backend) OpenSession(ctx context.Context, key []byte) (uint64, error) {
	return b.n.OpenSession(ctx, key)
}

// Index is of a state that shows everything acknowledged before the call: a no-op alone is answered as
// a read is. Nothing begun after it can be at that index or below.
func (b backend) Index(ctx context.Context, shard sharding.ShardID) (uint64, error) {
	_, index, err := b.n.exec(ctx, shard, []command.Command{{Op: command.OpNoop}})
	return index, err
}

func (b backend) Router() *sharding.Router { return b.n.Router() }

func (b backend) Self() sharding.NodeID { return b.n.cfg.ID }

func (b backend) Leader(shard sharding.ShardID) sharding.NodeID { return b.n.Leader(shard) }

func (b backend) Leaders() front.Leaders {
	m := b.n.Router().Map()
	l := front.Leaders{Self: b.n.cfg.ID, Of: make(map[sharding.ShardID]sharding.NodeID, len(m.Shards)), Down: map[sharding.NodeID]bool{}}
	for _, sh := range m.Shards {
		l.Of[sh.ID] = b.n.Leader(sh.ID)
	}
	for _, nd := range m.Nodes {
		if nd.ID == b.n.cfg.ID {
			continue
		}
		if _, alive := b.n.peers.get(nd.ID); !alive {
			l.Down[nd.ID] = true
		}
	}
	return l
}

func (b backend) AwaitLeader(ctx context.Context, shard sharding.ShardID) bool {
	return b.n.AwaitLeader(ctx, shard)
}

func (b backend) ScanPage(ctx context.Context, shard sharding.ShardID, slots sharding.SlotRange, cursor uint64, count int, match string, how front.Reading) (keys [][]byte, next uint64, err error) {
	a, err := b.n.scan(ctx, scanRequest{Shard: shard, What: "page", Slots: &slots, Cursor: cursor, Count: count, Match: []byte(match)}, how)
	if err == nil && a.Next == 0 {
		a.Next = (uint64(slots.To) + 1) << 48
	}
	return a.Keys, a.Next, err
}

func (b backend) Size(ctx context.Context, shard sharding.ShardID, how front.Reading) (int64, []sharding.SlotRange, error) {
	a, err := b.n.scan(ctx, scanRequest{Shard: shard, What: "size"}, how)
	if a.Slots == nil { // of an older version, under which slots do not change hands
		s, _ := b.n.Router().Map().Shard(shard)
		a.Slots = s.Slots
	}
	return a.N, a.Slots, err
}

func (b backend) SlotKeys(ctx context.Context, shard sharding.ShardID, slot sharding.Slot, how front.Reading) (int64, error) {
	a, err := b.n.scan(ctx, scanRequest{Shard: shard, What: "slot", Slot: slot}, how)
	return a.N, err
}

func (b backend) RandomKey(ctx context.Context, shard sharding.ShardID, how front.Reading) ([]byte, bool, error) {
	a, err := b.n.scan(ctx, scanRequest{Shard: shard, What: "random"}, how)
	if err != nil || len(a.Keys) == 0 {
		return nil, false, err
	}
	return a.Keys[0], true, nil
}

func (b backend) SubmitJob(ctx context.Context, spec []byte) (string, error) {
	parsed, err := job.ParseSpec(spec)
	if err != nil {
		return "", err
	}
	return b.n.jobs.Submit(ctx, parsed)
}

func (b backend) JobStatus(ctx context.Context, id string) ([]byte, error) {
	rec, err := b.n.jobs.Status(ctx, id)
	if err != nil {
		return nil, err
	}
	return json.Marshal(rec)
}

func (b backend) JobResult(ctx context.Context, id string, wait time.Duration) ([]byte, error) {
	rec, err := b.n.jobs.Result(ctx, id, wait)
	if err != nil {
		return nil, err
	}
	return json.Marshal(rec)
}

func (b backend) CancelJob(ctx context.Context, id string) error { return b.n.jobs.Cancel(ctx, id) }

func (b backend) DeleteJob(ctx context.Context, id string) error { return b.n.jobs.Delete(ctx, id) }

func (b backend) RetryJob(ctx context.Context, id, newID string) (string, error) {
	return b.n.jobs.Retry(ctx, id, newID)
}

func (b backend) ExplainJob(_ context.Context, spec []byte) ([]byte, error) {
	parsed, err := job.ParseSpec(spec)
	if err != nil {
		return nil, err
	}
	e, err := b.n.jobs.Explain(parsed, b.n.shardFacts())
	if err != nil {
		return nil, err
	}
	return json.Marshal(e)
}

func (b backend) ListJobs(ctx context.Context) ([]byte, error) {
	list, err := b.n.jobs.List(ctx)
	if err != nil {
		return nil, err
	}
	return json.Marshal(list)
}

func (b backend) StatusJSON(ctx context.Context) ([]byte, error) { return b.n.StatusJSON(ctx) }

func (b backend) Admin(ctx context.Context, words []string) ([]byte, error) {
	return b.n.Admin(ctx, words)
}

func (b backend) Users() *access.Users { return b.n.Users() }

func (b backend) Audit(e access.Event) { b.n.audit.record(e) }

func (b backend) Backup(ctx context.Context, words []string) ([]byte, error) {
	return b.n.Backup(ctx, words)
}

func (b backend) Info() front.Info {
	m := b.n.Router().Map()
	info := front.Info{Version: b.n.cfg.Version, NodeID: b.n.cfg.ID, ClusterID: m.ClusterID, Uptime: b.n.uptime(), Replicas: m.ReplicasWanted, Counters: map[string]int64{}}
	for _, r := range b.n.status().Replicas {
		if r.Leads {
			info.Records += r.Records
			info.Counters["shards_led"]++
		}
		info.Counters["replicas"]++
	}
	return info
}
