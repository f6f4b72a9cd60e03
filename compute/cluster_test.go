package compute

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
	"github.com/abacusdb/abacus/transport/transporttest"
)

// cluster is a whole cluster as this package sees one, in memory: every shard
// has a replica on every node, a log of writes, and a leader that the test
// chooses. All of it runs in virtual time (testing/synctest).
type cluster struct {
	t      *testing.T
	net    *transporttest.Network
	ledger *memLedger

	mu      sync.Mutex
	nodes   map[string]*testNode
	first   int              // shards at the beginning
	leaders []string         // by shard; "" for none
	terms   []int            // by shard: how often that has changed
	writes  [][]write        // by shard; the log index of a write is its position plus one
	rows    []map[string]Row // by shard: system records
	revs    []int64          // by shard: the last revision
	level   int              // of features
	hooks   hooks
}

// write is an entry of a shard's log: a key's value, or if moved is set, slots that the shard owns from here on or no longer.
type write struct {
	slot  uint16
	key   string
	value string

	also *write // of the same entry

	moved *sharding.SlotRange
	owns  bool
}

// hooks let a test interfere. Each may be nil.
type hooks struct {
	// lag is how far a replica's applied index is behind its shard's log.
	lag func(node string, shard uint32) uint64
	// scan runs before each key that a scan yields.
	scan func(node string, shard uint32, key string) error
	// fence runs before a master takes its index.
	fence func(shard uint32)
	// pin runs when a shard is pinned, change when its rows change; under c.mu.
	pin    func(shard uint32)
	change func(shard uint32, rows []Row)
	// renew runs when a worker says that it needs a pin yet; under c.mu.
	renew func(node string, shard uint32, pin Pin)
	// late is how long a change takes, and whether who asks for it is told that it is uncertain by then.
	late func() (after time.Duration, uncertain bool)
	// view runs before a view is opened for a task.
	view func(ctx context.Context, node string, shard uint32) error
}

type testNode struct {
	c      *cluster
	id     string
	t      transport.Transport
	worker *Worker
	master *Master
	jobs   *Jobs
	open   int // views, under c.mu
	// pins are the views that this node's replicas keep: index by shard and id. Under c.mu.
	pins map[uint32]map[uint64]uint64
}

func newCluster(t *testing.T, nodes, shards int) *cluster {
	c := &cluster{t: t, net: transporttest.NewNetwork(), nodes: map[string]*testNode{}, first: shards, level: sharding.Level, writes: make([][]write, shards), leaders: make([]string, shards), terms: make([]int, shards), rows: make([]map[string]Row, shards), revs: make([]int64, shards)}
	c.ledger = newMemLedger()
	for i := range nodes {
		c.start(fmt.Sprintf("n%d", i+1))
	}
	for shard := range shards {
		c.leaders[shard] = fmt.Sprintf("n%d", shard%nodes+1)
	}
	t.Cleanup(func() {
		for _, id := range c.ids() {
			c.kill(id)
		}
		if n := c.ledger.waiters(); n != 0 {
			t.Errorf("%d ledger calls left", n)
		}
	})
	return c
}

func (c *cluster) start(id string) *testNode {
	n := &testNode{c: c, id: id, t: c.net.Join(id), pins: map[uint32]map[uint64]uint64{}}
	log := slog.New(slog.DiscardHandler)
	admission := testAdmission(2)
	n.worker, n.master = NewWorker(n, n.t, admission, log), NewMaster(n, n.t, admission, log)
	n.jobs = NewJobs(id, c.ledger, n, time.Now, log)
	c.mu.Lock()
	c.nodes[id] = n
	c.mu.Unlock()
	return n
}

// kill takes a node away as a crash does: first it is off the network, then everything in it ends.
func (c *cluster) kill(id string) {
	c.mu.Lock()
	n := c.nodes[id]
	delete(c.nodes, id)
	for shard, leader := range c.leaders {
		if leader == id {
			c.leaders[shard] = ""
			c.terms[shard]++
		}
	}
	c.mu.Unlock()
	if n == nil {
		return
	}
	_ = n.t.Close()
	n.master.Close()
	n.worker.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.open != 0 {
		c.t.Errorf("%d views of %s are open after Close", n.open, id)
	}
}

func (c *cluster) ids() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for id := range c.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (c *cluster) node(id string) *testNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

func (c *cluster) lead(shard uint32, node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaders[shard] != node {
		c.leaders[shard] = node
		c.terms[shard]++
	}
}

func (c *cluster) leader(shard uint32) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaders[shard]
}

// founded are the slots that a shard began with; none, if it came later.
func (c *cluster) founded(shard uint32) []sharding.SlotRange {
	if int(shard) >= c.first {
		return nil
	}
	return []sharding.SlotRange{{From: uint16(int(shard) * sharding.Slots / c.first), To: uint16((int(shard)+1)*sharding.Slots/c.first - 1)}}
}

// state replays a shard's log up to an index: what it owns, and its keys by name.
func (c *cluster) state(shard uint32, index uint64) (owned []bool, keys map[string]write) {
	owned, keys = make([]bool, sharding.Slots), map[string]write{}
	set := func(r sharding.SlotRange, own bool) {
		for slot := int(r.From); slot <= int(r.To); slot++ {
			owned[slot] = own
		}
	}
	for _, r := range c.founded(shard) {
		set(r, true)
	}
	for _, w := range c.writes[shard][:index] {
		if w.moved != nil {
			set(*w.moved, w.owns)
		} else {
			keys[w.key] = w
			if w.also != nil {
				keys[w.also.key] = *w.also
			}
		}
	}
	return owned, keys
}

// put writes a key, acknowledged at once.
func (c *cluster) put(key, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := sharding.SlotOf([]byte(key))
	shard := c.owner(slot)
	c.writes[shard] = append(c.writes[shard], write{slot: slot, key: key, value: value})
}

// owner is who owns a slot by the end of the logs.
func (c *cluster) owner(slot sharding.Slot) (owner int) {
	owner = -1
	for shard, log := range c.writes {
		owns := false
		if f := c.founded(uint32(shard)); f != nil {
			owns = f[0].From <= slot && slot <= f[0].To
		}
		for _, w := range log {
			if w.moved != nil && w.moved.From <= slot && slot <= w.moved.To {
				owns = w.owns
			}
		}
		if owns {
			owner = shard
		}
	}
	return owner
}

// move gives slots from one shard's log to another's. Between the two changes, in either order, are pause.
func (c *cluster) move(slots sharding.SlotRange, from, to uint32, giveFirst bool, pause time.Duration) {
	c.mu.Lock()
	_, keys := c.state(from, uint64(len(c.writes[from])))
	for _, w := range keys {
		if w.slot >= slots.From && w.slot <= slots.To {
			c.writes[to] = append(c.writes[to], w)
		}
	}
	c.mu.Unlock()
	give := func() { c.log(from, write{moved: &slots}) }
	take := func() { c.log(to, write{moved: &slots, owns: true}) }
	if !giveFirst {
		give, take = take, give
	}
	give()
	time.Sleep(pause)
	take()
}

func (c *cluster) log(shard uint32, w write) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes[shard] = append(c.writes[shard], w)
}

// fill writes n integers under a prefix and returns their sum.
func (c *cluster) fill(prefix string, n int) (sum int) {
	for i := range n {
		c.put(fmt.Sprintf("%s%d", prefix, i), fmt.Sprint(i))
		sum += i
	}
	return sum
}

func (c *cluster) hook(set func(h *hooks)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	set(&c.hooks)
}

// applied is the index that a replica has applied.
func (c *cluster) applied(node string, shard uint32) uint64 {
	index := uint64(len(c.writes[shard]))
	if c.hooks.lag != nil {
		index -= min(index, c.hooks.lag(node, shard))
	}
	return index
}

// The node as Views.

func (n *testNode) View(ctx context.Context, shard uint32, minIndex uint64) (View, error) {
	n.c.mu.Lock()
	before := n.c.hooks.view
	n.c.mu.Unlock()
	if before != nil {
		if err := before(ctx, n.id, shard); err != nil {
			return nil, err
		}
	}
	for {
		n.c.mu.Lock()
		if index := n.c.applied(n.id, shard); index >= minIndex {
			v := n.openLocked(shard, index)
			n.c.mu.Unlock()
			return v, nil
		}
		n.c.mu.Unlock()
		select {
		case <-time.After(5 * time.Millisecond): // virtual time: the replica applies meanwhile
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (n *testNode) Pinned(ctx context.Context, shard uint32, pin Pin) (View, error) {
	n.c.mu.Lock()
	index, ok := n.pins[shard][pin.ID]
	n.c.mu.Unlock()
	if !ok {
		return nil, transport.Errorf(transport.CodeNoPin, "%d", pin.ID)
	}
	v, err := n.View(ctx, shard, index)
	if err != nil {
		return nil, err
	}
	v.Close()
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.openLocked(shard, index), nil
}

func (n *testNode) Renew(shard uint32, pin Pin) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.c.hooks.renew != nil {
		n.c.hooks.renew(n.id, shard, pin)
	}
}

func (n *testNode) Hosts(uint32) bool { return true }

func (n *testNode) openLocked(shard uint32, index uint64) *memView {
	n.open++
	v := &memView{n: n, shard: shard, index: index, scan: n.c.hooks.scan, rows: maps.Clone(n.c.rows[shard])}
	owned, keys := n.c.state(shard, index)
	for slot, own := range owned {
		switch last := len(v.slots) - 1; {
		case !own:
		case last >= 0 && int(v.slots[last].To)+1 == slot:
			v.slots[last].To++
		default:
			v.slots = append(v.slots, sharding.SlotRange{From: uint16(slot), To: uint16(slot)})
		}
	}
	for _, w := range keys {
		if owned[w.slot] { // what a shard does not own does not show
			v.records = append(v.records, w)
		}
	}
	slices.SortFunc(v.records, func(a, b write) int {
		return cmp.Or(cmp.Compare(a.slot, b.slot), cmp.Compare(a.key, b.key))
	})
	return v
}

type memView struct {
	n       *testNode
	shard   uint32
	index   uint64
	slots   []sharding.SlotRange
	records []write
	rows    map[string]Row
	scan    func(node string, shard uint32, key string) error
}

func (v *memView) Records(prefix string, fn func(name string, value []byte, revision int64) bool) {
	for _, name := range slices.Sorted(maps.Keys(v.rows)) {
		if strings.HasPrefix(name, prefix) && !fn(name, v.rows[name].Value, v.rows[name].Revision) {
			return
		}
	}
}

func (v *memView) Index() uint64 { return v.index }

func (v *memView) Version() [2]uint64 { return [2]uint64{1, v.index} }

func (v *memView) Slots() []sharding.SlotRange { return v.slots }

func (v *memView) Scan(from, to uint16, prefix []byte, fn func(slot uint16, key, value []byte) bool) error {
	for _, r := range v.records {
		if r.slot < from || r.slot > to || !strings.HasPrefix(r.key, string(prefix)) {
			continue
		}
		if v.scan != nil {
			if err := v.scan(v.n.id, v.shard, r.key); err != nil {
				return err
			}
		}
		key, value := []byte(r.key), []byte(r.value)
		if !fn(r.slot, key, value) {
			return nil
		}
		clear(key) // as a map under the view would: what is kept must have been copied
		clear(value)
	}
	return nil
}

func (v *memView) SlotCount(slot uint16) (records, bytes int64) {
	i, _ := slices.BinarySearchFunc(v.records, slot, func(w write, slot uint16) int { return cmp.Compare(w.slot, slot) })
	for ; i < len(v.records) && v.records[i].slot == slot; i++ {
		records++
		bytes += int64(len(v.records[i].key) + len(v.records[i].value))
	}
	return records, bytes
}

func (v *memView) Close() {
	v.n.c.mu.Lock()
	defer v.n.c.mu.Unlock()
	v.n.open--
}

// The node as Shards.

func (n *testNode) Master(_ context.Context, shard uint32) (Shard, error) {
	if leader := n.c.leader(shard); leader != n.id {
		return nil, transport.Errorf(transport.CodeNotLeader, "%s", leader)
	}
	return &memShard{n, shard}, nil
}

type memShard struct {
	n     *testNode
	shard uint32
}

func (s *memShard) Fence(ctx context.Context) (uint64, error) {
	if leader := s.n.c.leader(s.shard); leader != s.n.id {
		return 0, transport.Errorf(transport.CodeNotLeader, "%s", leader)
	}
	s.n.c.mu.Lock()
	before := s.n.c.hooks.fence
	s.n.c.mu.Unlock()
	if before != nil {
		before(s.shard)
	}
	s.n.c.mu.Lock()
	defer s.n.c.mu.Unlock()
	return uint64(len(s.n.c.writes[s.shard])), nil
}

func (s *memShard) View() (View, error) {
	s.n.c.mu.Lock()
	defer s.n.c.mu.Unlock()
	return s.n.openLocked(s.shard, uint64(len(s.n.c.writes[s.shard]))), nil
}

func (s *memShard) Replicas() (states []ReplicaState) {
	leader := s.n.c.leader(s.shard)
	for _, id := range s.n.c.ids() {
		states = append(states, ReplicaState{Node: id, Leader: id == leader, Alive: true})
	}
	return states
}

func (s *memShard) Pinning() bool { return s.n.Level() >= sharding.LevelPins }

func (s *memShard) Pin(_ context.Context, id uint64, _ time.Duration) (uint64, error) {
	c := s.n.c
	if leader := c.leader(s.shard); leader != s.n.id {
		return 0, transport.Errorf(transport.CodeNotLeader, "%s", leader)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hooks.pin != nil {
		c.hooks.pin(s.shard)
	}
	index := uint64(len(c.writes[s.shard]))
	for _, n := range c.nodes {
		if n.pins[s.shard] == nil {
			n.pins[s.shard] = map[uint64]uint64{}
		}
		n.pins[s.shard][id] = index
	}
	return index, nil
}

func (s *memShard) Change(ctx context.Context, rows []Row, drop []string, unpin []uint64) error {
	c := s.n.c
	c.mu.Lock()
	late, term := c.hooks.late, c.terms[s.shard]
	c.mu.Unlock()
	if late == nil {
		return s.change(rows, drop, unpin)
	}
	after, uncertain := late()
	done := make(chan error, 1)
	time.AfterFunc(after, func() { // as what is in a leader's log: it may yet come, but not after another has led
		c.mu.Lock()
		same := c.terms[s.shard] == term
		c.mu.Unlock()
		if !same {
			done <- transport.Errorf(transport.CodeUncertain, "%s led", s.n.id)
			return
		}
		done <- s.change(rows, drop, unpin)
	})
	if uncertain {
		return transport.Errorf(transport.CodeUncertain, "%s", s.n.id)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return transport.Errorf(transport.CodeUncertain, "%v", ctx.Err())
	}
}

func (s *memShard) change(rows []Row, drop []string, unpin []uint64) error {
	if leader := s.n.c.leader(s.shard); leader != s.n.id {
		return transport.Errorf(transport.CodeNotLeader, "%s", leader)
	}
	c := s.n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hooks.change != nil {
		c.hooks.change(s.shard, rows)
	}
	if c.rows[s.shard] == nil {
		c.rows[s.shard] = map[string]Row{}
	}
	conflict := false
	for _, row := range rows {
		if _, there := c.rows[s.shard][row.Name]; there {
			conflict = true
			continue
		}
		c.revs[s.shard]++
		row.Revision = c.revs[s.shard]
		c.rows[s.shard][row.Name] = row
	}
	for _, name := range drop {
		delete(c.rows[s.shard], name)
	}
	for _, n := range c.nodes {
		for _, id := range unpin {
			delete(n.pins[s.shard], id)
		}
	}
	if conflict {
		return transport.Errorf(transport.CodeConflict, "row")
	}
	return nil
}

// The node as Env.

func (n *testNode) Shards() (shards []uint32) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	for shard := range n.c.writes {
		shards = append(shards, uint32(shard))
	}
	return shards
}

func (n *testNode) Level() int {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.c.level
}

func (n *testNode) CallLeader(ctx context.Context, shard uint32, m transport.Method, req []byte) ([]byte, error) {
	leader := n.c.leader(shard)
	if leader == "" {
		return nil, transport.Errorf(transport.CodeUnavailable, "no leader")
	}
	return n.t.Call(ctx, leader, transport.LaneCall, m, req)
}

// run runs one job from a node, without the ledger.
// instances counts the runs of tests, which all have one id.
var instances atomic.Int64

func (c *cluster) run(ctx context.Context, node string, s job.Spec) job.Record {
	rec := job.Record{ID: "j1", Instance: fmt.Sprint(instances.Add(1)), Spec: s.WithDefaults(), State: job.Running, Epoch: 1}
	return c.coordinate(ctx, rec, savedNowhere{c.node(node)})
}

func (c *cluster) coordinate(ctx context.Context, rec job.Record, env CoordinatorEnv) job.Record {
	return NewCoordinator(time.Now, slog.New(slog.DiscardHandler)).Run(ctx, rec, env)
}

type savedNowhere struct{ Env }

func (savedNowhere) Save(context.Context, job.Record) error { return nil }

// memLedger is the ledger, with failures that a test can order.
type memLedger struct {
	mu      sync.Mutex
	records map[string][]byte
	revs    map[string]int64
	changed []func(id string)
	// uncertain says whether a Put is answered as uncertain, and whether it is done all the same.
	uncertain func() (answer, done bool)
	// away, if set, is what Put and Get fail with.
	away  error
	calls int
}

func newMemLedger() *memLedger {
	return &memLedger{records: map[string][]byte{}, revs: map[string]int64{}}
}

func (l *memLedger) waiters() int { l.mu.Lock(); defer l.mu.Unlock(); return l.calls }

func (l *memLedger) Get(ctx context.Context, id string) (job.Record, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away != nil {
		return job.Record{}, 0, l.away
	}
	data, ok := l.records[id]
	if !ok {
		return job.Record{}, 0, transport.Errorf(transport.CodeNotFound, "job %s", id)
	}
	rec, err := job.DecodeRecord(data)
	return rec, l.revs[id], err
}

func (l *memLedger) Put(ctx context.Context, rec job.Record, expectRev int64) (int64, error) {
	if ctx.Err() != nil {
		return 0, transport.Errorf(transport.CodeTimeout, "%v", ctx.Err())
	}
	data, err := rec.Encode()
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	if l.away != nil {
		l.mu.Unlock()
		return 0, l.away
	}
	answer, done := false, true
	if l.uncertain != nil {
		answer, done = l.uncertain()
	}
	rev := l.revs[rec.ID]
	if done {
		if rev != expectRev {
			l.mu.Unlock()
			return 0, transport.Errorf(transport.CodeConflict, "revision is %d", rev)
		}
		rev++
		l.records[rec.ID], l.revs[rec.ID] = data, rev
	}
	hear := slices.Clone(l.changed)
	l.mu.Unlock()
	if done {
		for _, f := range hear {
			f(rec.ID)
		}
	}
	if answer {
		return 0, transport.Errorf(transport.CodeUncertain, "")
	}
	return rev, nil
}

func (l *memLedger) List(context.Context) (recs []job.Record, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, data := range l.records {
		rec, err := job.DecodeRecord(data)
		if err != nil {
			return nil, err
		}
		recs = append(recs, rec)
	}
	return recs, nil
}

func (l *memLedger) Unfinished(ctx context.Context) ([]job.Record, error) {
	recs, err := l.List(ctx)
	return slices.DeleteFunc(recs, func(rec job.Record) bool { return rec.State.Finished() }), err
}

func (l *memLedger) Delete(_ context.Context, id string, rev int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rev >= 0 && l.revs[id] != rev {
		return transport.Errorf(transport.CodeConflict, "revision is %d", l.revs[id])
	}
	delete(l.records, id)
	delete(l.revs, id)
	return nil
}

// listen has every node hear of changes at once, as replicas of shard 0 do.
func (c *cluster) listen() {
	c.ledger.mu.Lock()
	defer c.ledger.mu.Unlock()
	for _, id := range c.ids() {
		c.ledger.changed = append(c.ledger.changed, c.node(id).jobs.Changed)
	}
}

func sumOf(prefix string) job.Spec {
	return job.Spec{Prefix: prefix, As: job.AsInt, Map: job.MapValue, Reduce: job.ReduceSum, OnError: job.OnErrorFail, TasksPerReplica: 3, Cache: job.CacheOff}
}

func wantResult(t *testing.T, rec job.Record, want any) {
	t.Helper()
	if rec.State != job.Succeeded || rec.Result.String() != fmt.Sprint(want) {
		t.Fatalf("job %s: result %v, error %q (%s); want %v", rec.State, rec.Result, rec.Error, rec.Code, want)
	}
	wantComplete(t, rec)
}

// wantComplete checks the report: every slot in exactly one task, every task done by somebody.
func wantComplete(t *testing.T, rec job.Record) {
	t.Helper()
	var ranges []sharding.SlotRange
	records := int64(0)
	for _, s := range rec.Shards {
		if !s.Done || s.Master == "" {
			t.Errorf("shard %d: %+v", s.Shard, s)
		}
		for _, task := range s.Tasks {
			ranges = append(ranges, sharding.SlotRange{From: task.From, To: task.To})
			records += task.Records
			if !task.Done || task.Node == "" || task.Attempts < 1 || task.Index < s.Index || slices.Contains(task.FailedOn, task.Node) && len(task.FailedOn) < 3 {
				t.Errorf("shard %d: task %+v", s.Shard, task)
			}
			// What another master accepted was in a role beside that one.
			if role := task.Role == job.RoleLeader; s.Attempts <= 1 && role != (task.Node == s.Master) {
				t.Errorf("shard %d led by %s: task %+v", s.Shard, s.Master, task)
			}
		}
	}
	if err := checkCovered(ranges); err != nil {
		t.Error(err)
	}
	if records != rec.Records {
		t.Errorf("tasks read %d records, the job %d", records, rec.Records)
	}
}

// nodesOf lists which nodes did a shard's tasks.
func nodesOf(s job.ShardReport) map[string]int {
	nodes := map[string]int{}
	for _, task := range s.Tasks {
		nodes[task.Node]++
	}
	return nodes
}
