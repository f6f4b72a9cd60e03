package compute

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// Shard is a shard that this node leads, as its master sees it.
type Shard interface {
	// Fence returns a log index: whoever has applied it has applied every write
	// acknowledged before Fence was called.
	Fence(ctx context.Context) (index uint64, err error)
	// View opens a view at or above every index that Fence has returned, which shows what Change has done.
	View() (View, error)
	// Replicas lists the replicas that hold the shard's data, and who leads, in the order of the nodes' names.
	Replicas() []ReplicaState

	// Pinning says whether what follows can be used: not where a member of the cluster may not know it.
	Pinning() bool
	// Pin has every replica keep a view at one index of the shard's log, which it returns. id must be new. Replicas let
	// go of a view that nobody has used for ttl.
	Pin(ctx context.Context, id uint64, ttl time.Duration) (index uint64, err error)
	// Change makes rows, which must not be there (CodeConflict), removes those named drop, and lets go of the
	// pins unpin; all in one entry of the shard's log or in several, in that order.
	Change(ctx context.Context, rows []Row, drop []string, unpin []uint64) error
}

// Shards finds shards on this node.
type Shards interface {
	Views
	// Master returns the shard if this node leads it, else CodeNotLeader or CodeNoReplica.
	Master(ctx context.Context, shard uint32) (Shard, error)
}

// maxRuns bounds the shard parts that one node masters at once.
const maxRuns = 1024

// Master runs shards' parts of jobs on the shards that this node leads. Each part is a
// shardRun, on the goroutine of the request that asked for it.
type Master struct {
	shards    Shards
	t         transport.Transport
	log       *slog.Logger
	cache     cache
	admission *Admission

	mu     sync.Mutex
	runs   map[shardOfJob]*shardRun // at most one for a shard of a job: the newest
	closed bool
	wg     sync.WaitGroup // runs, and the cancels they send
}

type shardOfJob struct {
	Job   string `json:"job"`
	Shard uint32 `json:"shard"`
}

// NewMaster serves MethodShardJob, MethodShardJobStatus, MethodShardJobCancel, MethodShardJobForget and MethodTaskFetch on t.
func NewMaster(shards Shards, t transport.Transport, admission *Admission, log *slog.Logger) *Master {
	m := &Master{shards: shards, t: t, log: log, admission: admission, runs: make(map[shardOfJob]*shardRun)}
	t.Handle(transport.MethodShardJob, m.serveShardJob)
	t.Handle(transport.MethodShardJobStatus, m.serveStatus)
	t.Handle(transport.MethodShardJobCancel, m.serveCancel)
	t.Handle(transport.MethodShardJobForget, m.serveForget)
	t.Handle(transport.MethodTaskFetch, m.serveFetch)
	return m
}

// Close ends all runs and waits for them.
func (m *Master) Close() {
	m.mu.Lock()
	m.closed = true
	for _, r := range m.runs {
		r.cancel(transport.Errorf(transport.CodeClosed, "master is stopping"))
	}
	m.mu.Unlock()
	m.wg.Wait()
}

func (m *Master) serveShardJob(ctx context.Context, _ string, data []byte) ([]byte, error) {
	var req shardRequest
	if _, err := decodeMessage(data, &req); err != nil {
		return nil, badRequest(err)
	}
	if err := req.Spec.Validate(); err != nil {
		return nil, badRequest(err)
	}
	r, err := m.begin(ctx, req)
	if err != nil {
		return nil, err
	}
	defer m.end(r)
	reply, partial, err := r.run()
	if err != nil {
		return nil, err
	}
	return encodeMessage(reply, partial)
}

// begin registers a run. A newer one takes the place of an older one, whose
// coordinator no longer waits for it.
func (m *Master) begin(ctx context.Context, req shardRequest) (*shardRun, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := shardOfJob{req.Job, req.Shard}
	old := m.runs[id]
	switch {
	case m.closed:
		return nil, transport.Errorf(transport.CodeClosed, "master is stopping")
	case old != nil && !old.req.newerThan(req.runKey) && !req.newerThan(old.req.runKey):
		return nil, transport.Errorf(transport.CodeConflict, "shard %d of job %s is running already", req.Shard, req.Job)
	case old != nil && old.req.newerThan(req.runKey):
		return nil, transport.Errorf(transport.CodeConflict, "shard %d of job %s runs for a newer coordinator", req.Shard, req.Job)
	case old == nil && len(m.runs) >= maxRuns:
		return nil, transport.Errorf(transport.CodeBusy, "%d shard parts are running", len(m.runs))
	}
	if old != nil {
		old.cancel(transport.Errorf(transport.CodeConflict, "superseded by a newer attempt"))
	}
	r := &shardRun{m: m, req: req, start: time.Now(), memory: m.admission.masters.open(), idle: make(chan string, maxFetches), ended: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	if old != nil {
		r.after = old.ended
	}
	m.runs[id] = r
	m.wg.Add(1)
	return r, nil
}

func (m *Master) end(r *shardRun) {
	r.cancel(nil)
	r.memory.close()
	if r.after != nil {
		<-r.after // who waits for this one waits for that one, too. It was called off, and ends soon
	}
	close(r.ended)
	m.mu.Lock()
	if id := (shardOfJob{r.req.Job, r.req.Shard}); m.runs[id] == r {
		delete(m.runs, id)
	}
	m.mu.Unlock()
	m.wg.Done()
}

// newerThan orders the attempts at one shard's part of one job.
func (k runKey) newerThan(o runKey) bool {
	return k.Epoch > o.Epoch || k.Epoch == o.Epoch && k.Try > o.Try
}

func (m *Master) serveStatus(_ context.Context, _ string, data []byte) ([]byte, error) {
	var key runKey
	if _, err := decodeMessage(data, &key); err != nil {
		return nil, badRequest(err)
	}
	m.mu.Lock()
	r := m.runs[shardOfJob{key.Job, key.Shard}]
	m.mu.Unlock()
	if r == nil || r.req.runKey != key {
		return nil, transport.Errorf(transport.CodeNotFound, "shard %d of job %s is not running here", key.Shard, key.Job)
	}
	reply := shardReply{runKey: key, Report: job.ShardReport{Shard: key.Shard, Master: m.t.Self()}}
	if report := r.published.Load(); report != nil {
		reply.Report = *report
	}
	return encodeMessage(reply, nil)
}

// serveCancel ends the run of the given attempt or an older one.
func (m *Master) serveCancel(_ context.Context, _ string, data []byte) ([]byte, error) {
	var key runKey
	if _, err := decodeMessage(data, &key); err != nil {
		return nil, badRequest(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.runs[shardOfJob{key.Job, key.Shard}]; r != nil && !r.req.newerThan(key) {
		r.cancel(transport.Errorf(transport.CodeRefused, "job cancelled"))
	}
	return nil, nil
}

// serveForget lets go of what the shard's log remembers of a job, which has ended.
func (m *Master) serveForget(ctx context.Context, _ string, data []byte) ([]byte, error) {
	var req shardOfJob
	if _, err := decodeMessage(data, &req); err != nil {
		return nil, badRequest(err)
	}
	m.mu.Lock()
	r := m.runs[req]
	m.mu.Unlock()
	if r != nil {
		r.cancel(transport.Errorf(transport.CodeRefused, "job has ended"))
		select { // or it would write more
		case <-r.ended:
		case <-ctx.Done():
			return nil, ended(ctx)
		}
	}
	return nil, m.Forget(ctx, req.Shard, req.Job)
}

// Forget removes the rows of a job that has ended from the log of a shard that this node leads.
func (m *Master) Forget(ctx context.Context, shard uint32, jobKey string) error {
	s, err := m.shards.Master(ctx, shard)
	if err != nil {
		return err
	}
	if _, err := s.Fence(ctx); err != nil { // or a new leader would not see the last rows of the old one
		return err
	}
	view, err := s.View()
	if err != nil {
		return err
	}
	names, pins := rowsBut(view, jobKey, "")
	view.Close()
	if len(names) == 0 {
		return nil
	}
	return s.Change(ctx, nil, names, pins)
}

// Load is how many tasks of a shard's parts wait on this node for somebody to run them.
type Load struct {
	Shard  uint32 `json:"shard"`
	Queued int    `json:"queued"`
}

// Loads are the shards here whose tasks an idle node could take, the most loaded first. Any goroutine may ask.
func (m *Master) Loads() []Load {
	m.mu.Lock()
	defer m.mu.Unlock()
	queued := map[uint32]int{}
	for id, r := range m.runs {
		if n := r.open.Load(); n > 0 {
			queued[id.Shard] += int(n)
		}
	}
	list := make([]Load, 0, len(queued))
	for shard, n := range queued {
		list = append(list, Load{shard, n})
	}
	slices.SortFunc(list, func(a, b Load) int { return cmp.Or(cmp.Compare(b.Queued, a.Queued), cmp.Compare(a.Shard, b.Shard)) })
	return list
}

// fetchRequest says that a node has nothing to do and would take tasks of a shard.
type fetchRequest struct {
	Shard uint32 `json:"shard"`
}

// serveFetch notes that the caller is idle: the shard's parts here send it what waits, or a tail of what is slow.
func (m *Master) serveFetch(_ context.Context, from string, data []byte) ([]byte, error) {
	var req fetchRequest
	if _, err := decodeMessage(data, &req); err != nil {
		return nil, badRequest(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, r := range m.runs {
		if id.Shard == req.Shard {
			r.fetch(from)
		}
	}
	return nil, nil
}

// cancelTask tells a worker that an attempt is not wanted any more. It is sent
// on the control lane, past whatever bulk is under way, and nobody waits for the answer
// but Close: a worker that does not hear it finishes a task whose result is not taken.
func (m *Master) cancelTask(node string, key taskKey) {
	req, err := encodeMessage(key, nil)
	if err != nil {
		return
	}
	m.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := m.t.Call(ctx, node, transport.LaneControl, transport.MethodTaskCancel, req); err != nil {
			m.log.Debug("task cancel not delivered", "job", key.Job, "shard", key.Shard, "task", key.Task, "node", node, "err", err)
		}
	})
}
