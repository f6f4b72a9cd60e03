package front

import (
	"context"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/sharding/access"
)

// Backend is the node as the front end sees it. All methods may be called
// concurrently and return when ctx ends, which it always does.
type Backend interface {
	// Exec runs commands of one shard in order, wherever its leader is, and
	// returns one result per command. Errors are transport errors;
	// transport.Certain ones say that nothing was done. cmds and the bytes they
	// point to are the caller's again as soon as Exec returns: Exec must not keep
	// them.
	Exec(ctx context.Context, shard sharding.ShardID, cmds []command.Command) ([]command.Result, error)
	// Read is Exec for commands that only read, answered as the client has asked.
	Read(ctx context.Context, shard sharding.ShardID, cmds []command.Command, how Reading) ([]command.Result, error)
	// OpenSession makes a session for numbered commands, best in the shard of the key, if one
	// is given. An error says that no session is known to have been made.
	OpenSession(ctx context.Context, key []byte) (id uint64, err error)
	// Index returns an index of the shard's log at or below which is everything that was
	// acknowledged before the call, and above which is everything begun after its end.
	Index(ctx context.Context, shard sharding.ShardID) (uint64, error)
	// Router is the present shard map; immutable, replaced whole.
	Router() *sharding.Router
	// Self is this node. Leader is who leads a shard, "" if that is not known; Leaders is all of
	// that. They are hints: nothing but an extra hop depends on them.
	Self() sharding.NodeID
	Leader(shard sharding.ShardID) sharding.NodeID
	Leaders() Leaders
	// AwaitLeader waits until a leader of the shard is known, and says whether one is.
	AwaitLeader(ctx context.Context, shard sharding.ShardID) bool

	// ScanPage returns about count keys of a shard that match (a glob; empty
	// matches all), from cursor on and within slots, and the cursor to go on at: in slots, or
	// in the slot behind the last that it has seen whole, which is behind slots or sooner. A cursor's upper bits
	// (>> 48) are a slot. CodeSlotsMoved if the shard does not own the cursor's slot.
	ScanPage(ctx context.Context, shard sharding.ShardID, slots sharding.SlotRange, cursor uint64, count int, match string, how Reading) (keys [][]byte, next uint64, err error)
	// Size counts the keys of a shard, and tells the slots that it owned then.
	Size(ctx context.Context, shard sharding.ShardID, how Reading) (int64, []sharding.SlotRange, error)
	// SlotKeys counts the keys of a slot; CodeSlotsMoved if the shard does not own it.
	SlotKeys(ctx context.Context, shard sharding.ShardID, slot sharding.Slot, how Reading) (int64, error)
	// RandomKey returns some key of a shard, false if it has none.
	RandomKey(ctx context.Context, shard sharding.ShardID, how Reading) ([]byte, bool, error)

	// SubmitJob queues the job of a JSON spec and returns its id. A spec that is
	// wrong is a *job.SpecError or transport.CodeBadRequest, too many jobs are
	// transport.CodeBusy.
	SubmitJob(ctx context.Context, spec []byte) (id string, err error)
	// JobStatus returns a job's record as JSON; no such job is transport.CodeNotFound.
	JobStatus(ctx context.Context, id string) ([]byte, error)
	// JobResult is JobStatus after the job's end, or as it stands after wait.
	JobResult(ctx context.Context, id string, wait time.Duration) ([]byte, error)
	CancelJob(ctx context.Context, id string) error
	// DeleteJob forgets a job that has ended; one that has not is transport.CodeRefused.
	DeleteJob(ctx context.Context, id string) error
	// RetryJob is SubmitJob with the spec of a job that has ended, under newID or an id that is made up.
	RetryJob(ctx context.Context, id, newID string) (string, error)
	// ExplainJob returns what the job of a spec would do, as JSON.
	ExplainJob(ctx context.Context, spec []byte) ([]byte, error)
	// ListJobs returns a JSON array of records.
	ListJobs(ctx context.Context) ([]byte, error)

	// StatusJSON is the cluster's state, the same document as GET /v1/status.
	StatusJSON(ctx context.Context) ([]byte, error)
	// Admin carries out an administrator's words, as node drain n3, and returns the answer as JSON.
	Admin(ctx context.Context, words []string) ([]byte, error)
	// Backup opens, reads, keeps or closes a view for a backup: OPEN shard, READ view, KEEP view, CLOSE view.
	Backup(ctx context.Context, words []string) ([]byte, error)
	Info() Info

	// Users is the present list of users; immutable, replaced whole.
	Users() *access.Users
	// Audit takes a line for the audit log. It does not wait.
	Audit(access.Event)
}

// Reading is how a client wants its reads answered. The zero value: linearizable,
// by the shard's leader.
type Reading struct {
	// Local lets a replica on this node answer that does not lead, linearizable all
	// the same (READONLY).
	Local bool
	// Stale lets a replica on this node answer from what it has, if it knows that this has everything that was acknowledged longer than
	// MaxAge ago (0: in any case). Otherwise the answer is linearizable.
	Stale  bool
	MaxAge time.Duration
}

// MaxStale is the longest MaxAge that can be asked for: who wants more wants none.
const MaxStale = 30 * 24 * time.Hour

// Leaders is who leads each shard, as far as a node knows.
type Leaders struct {
	Self sharding.NodeID
	// Of has no entry (or "") for a shard whose leader is not known.
	Of map[sharding.ShardID]sharding.NodeID
	// Down are the nodes that do not answer this one; they are shown as failed.
	Down map[sharding.NodeID]bool
}

// Leads says whether this node leads the shard.
func (l Leaders) Leads(s sharding.ShardID) bool { return l.Self != "" && l.Of[s] == l.Self }

// Info is what INFO shows of the node.
type Info struct {
	Version   string // our own
	NodeID    sharding.NodeID
	ClusterID string
	Uptime    time.Duration
	Replicas  int   // replicas wanted per shard
	Records   int64 // keys in the shards led here, as last known
	// Counters are shown under "# Abacus", sorted by name.
	Counters map[string]int64
}

// Mode is what a port is for.
type Mode int

const (
	// ModeForward serves any client for the whole cluster.
	ModeForward Mode = iota
	// ModeCluster serves cluster-aware clients for what this node leads, and
	// tells them MOVED for the rest.
	ModeCluster
)
