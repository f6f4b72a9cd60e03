package front

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"path"
	"sort"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/sharding/access"
	"github.com/abacusdb/abacus/transport"
)

// cluster is a cluster in memory: one map that every node's Backend reads and
// writes, and a table of who leads what.
type cluster struct {
	mu      sync.Mutex
	router  *sharding.Router
	leaders map[sharding.ShardID]sharding.NodeID
	down    map[sharding.NodeID]bool
	keys    map[string]entry
	jobs    map[string]string
	// owners, if set, are who owns each slot; the map is only a hint then.
	owners []sharding.ShardID
	// onRead, if set, is called with the lock before a scan or count is answered.
	onRead func()
	execs  []exec // every call of Exec
	// readings are how each Read was asked for.
	readings []Reading

	index    uint64            // calls of Exec
	changed  map[string]uint64 // index at which a key was written last
	sessions map[uint64]*fakeSession

	users  *access.Users // nil: none
	events []access.Event

	// hook, if set, is called by Exec before it does anything, without the lock.
	hook func(ctx context.Context, node sharding.NodeID, shard sharding.ShardID, cmds []command.Command) error
}

type entry struct {
	value    []byte
	deadline int64 // Unix ms, 0 for none
}

type exec struct {
	node  sharding.NodeID
	shard sharding.ShardID
	cmds  int
}

// newCluster has n nodes n1, n2, ... with a replica of every shard on each.
// Shard i is led by node i modulo n.
func newCluster(t *testing.T, n, shards int) *cluster {
	t.Helper()
	m := sharding.Map{ClusterID: "c0ffee", Epoch: 7, ReplicasWanted: n}
	for i := range n {
		id := "n" + strconv.Itoa(i+1)
		m.Nodes = append(m.Nodes, sharding.Node{ID: id, Instance: "i" + id, Addrs: sharding.Addrs{
			Peer: fmt.Sprintf("10.0.0.%d:7501", i+1), Client: fmt.Sprintf("10.0.0.%d:7401", i+1), Cluster: fmt.Sprintf("10.0.0.%d:7701", i+1), HTTP: fmt.Sprintf("10.0.0.%d:7601", i+1)}})
	}
	c := &cluster{leaders: make(map[sharding.ShardID]sharding.NodeID), down: make(map[sharding.NodeID]bool), keys: make(map[string]entry),
		changed: make(map[string]uint64), sessions: make(map[uint64]*fakeSession), jobs: make(map[string]string)}
	for s := range shards {
		sh := sharding.Shard{ID: sharding.ShardID(s), Slots: []sharding.SlotRange{{From: uint16(s * sharding.Slots / shards), To: uint16((s+1)*sharding.Slots/shards - 1)}}}
		for _, nd := range m.Nodes {
			sh.Replicas = append(sh.Replicas, sharding.Replica{ID: nd.ID + ".1", Node: nd.ID})
		}
		m.Shards = append(m.Shards, sh)
		c.leaders[sh.ID] = m.Nodes[s%n].ID
	}
	c.router = sharding.NewRouter(m)
	return c
}

func (c *cluster) lead(shard sharding.ShardID, node sharding.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaders[shard] = node
}

func (c *cluster) setHook(h func(ctx context.Context, node sharding.NodeID, shard sharding.ShardID, cmds []command.Command) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hook = h
}

func (c *cluster) takeExecs() []exec {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.execs
	c.execs = nil
	return e
}

func (c *cluster) takeReadings() []Reading {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.readings
	c.readings = nil
	return r
}

func (c *cluster) node(id sharding.NodeID) Backend { return &fakeNode{cluster: c, id: id} }

// fakeNode is one node's Backend.
type fakeNode struct {
	*cluster
	id sharding.NodeID
}

func (n *fakeNode) Router() *sharding.Router {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.router
}

func (n *fakeNode) Self() sharding.NodeID { return n.id }

var noUsers = new(access.Users)

func (n *fakeNode) Users() *access.Users {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.users == nil {
		return noUsers
	}
	return n.users
}

func (n *fakeNode) Audit(e access.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, e)
}

func (n *fakeNode) Leader(shard sharding.ShardID) sharding.NodeID { return n.Leaders().Of[shard] }

func (n *fakeNode) Leaders() Leaders {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := Leaders{Self: n.id, Of: make(map[sharding.ShardID]sharding.NodeID), Down: make(map[sharding.NodeID]bool)}
	for s, id := range n.leaders {
		l.Of[s] = id
	}
	for id, d := range n.down {
		l.Down[id] = d
	}
	return l
}

func (n *fakeNode) AwaitLeader(ctx context.Context, shard sharding.ShardID) bool {
	for n.Leaders().Of[shard] == "" {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
	return true
}

func (n *fakeNode) Exec(ctx context.Context, shard sharding.ShardID, cmds []command.Command) ([]command.Result, error) {
	n.mu.Lock()
	hook := n.hook
	n.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, n.id, shard, cmds); err != nil {
			return nil, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.execs = append(n.execs, exec{n.id, shard, len(cmds)})
	n.index++
	results := make([]command.Result, len(cmds))
	for i := range cmds {
		results[i] = n.once(shard, &cmds[i])
	}
	return results, nil
}

func (n *fakeNode) Read(ctx context.Context, shard sharding.ShardID, cmds []command.Command, how Reading) ([]command.Result, error) {
	n.mu.Lock()
	n.readings = append(n.readings, how)
	n.mu.Unlock()
	return n.Exec(ctx, shard, cmds)
}

// fakeSession is a session, known to all shards at once.
type fakeSession struct {
	floor   uint64
	answers map[fakeNumber]command.Result
}

type fakeNumber struct {
	seq  uint64
	slot uint16
}

func (n *fakeNode) OpenSession(_ context.Context, key []byte) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := uint64(len(n.sessions) + 1)
	n.sessions[id] = &fakeSession{answers: map[fakeNumber]command.Result{}}
	return id, nil
}

func (n *fakeNode) Index(context.Context, sharding.ShardID) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.index, nil
}

// once carries a numbered command out once.
func (c *cluster) once(shard sharding.ShardID, cmd *command.Command) command.Result {
	if cmd.Session == 0 {
		return c.apply(shard, cmd)
	}
	s := c.sessions[cmd.Session]
	if s == nil {
		return command.Err(command.CodeSessionUnknown)
	}
	key := fakeNumber{cmd.Seq, cmd.Slot}
	if r, ok := s.answers[key]; ok {
		return r
	}
	if cmd.Seq < s.floor {
		return command.Err(command.CodeSessionExpired)
	}
	s.floor = max(s.floor, cmd.Floor)
	for k := range s.answers {
		if k.seq < s.floor {
			delete(s.answers, k)
		}
	}
	s.answers[key] = c.apply(shard, cmd)
	return s.answers[key]
}

func (c *cluster) multi(shard sharding.ShardID, cmd *command.Command) command.Result {
	indexes, err1 := command.DecodeIndexes(cmd.Values[1], len(cmd.Keys))
	inner, err2 := command.DecodeCommands(cmd.Values[0])
	if err1 != nil || err2 != nil {
		panic(fmt.Sprint(err1, err2))
	}
	for i, k := range cmd.Keys {
		if c.changed[string(k)] > indexes[i] {
			return command.Nil()
		}
	}
	results := make([]command.Result, len(inner))
	for i := range inner {
		results[i] = c.apply(shard, &inner[i])
	}
	return command.Array(results)
}

func (c *cluster) get(key []byte) (entry, bool) {
	e, ok := c.keys[string(key)]
	if ok && e.deadline != 0 && e.deadline <= time.Now().UnixMilli() {
		delete(c.keys, string(key))
		return entry{}, false
	}
	return e, ok
}

func valueOf(e entry, ok bool) command.Result {
	if !ok {
		return command.Nil()
	}
	return command.Bytes(e.value)
}

// apply has the meaning that package command gives to each Op.
func (c *cluster) apply(shard sharding.ShardID, cmd *command.Command) command.Result {
	for _, k := range cmd.Keys {
		if slot, s := c.router.Locate(k); s != shard || slot != cmd.Slot {
			return command.Err(command.CodeWrongShard)
		}
	}
	if err := cmd.Validate(command.Limits{MaxKey: 1 << 10, MaxValue: 1 << 20}); err != nil {
		// A store would refuse the whole pipeline for one such command.
		panic(fmt.Sprintf("the front end made a command that is none: %v", err))
	}
	if cmd.Op == command.OpMulti {
		return c.multi(shard, cmd)
	}
	if !cmd.Op.IsRead() {
		for _, k := range cmd.Keys {
			c.changed[string(k)] = c.index
		}
	}
	now := time.Now().UnixMilli()
	key := cmd.Keys[0]
	e, ok := c.get(key)
	put := func(v []byte, deadline int64) { c.keys[string(key)] = entry{bytes.Clone(v), deadline} }
	switch cmd.Op {
	case command.OpGet:
		return valueOf(e, ok)
	case command.OpMGet:
		var all []command.Result
		for _, k := range cmd.Keys {
			all = append(all, valueOf(c.get(k)))
		}
		return command.Array(all)
	case command.OpStrlen:
		return command.Int(int64(len(e.value)))
	case command.OpExists, command.OpDel:
		n := int64(0)
		for _, k := range cmd.Keys {
			if _, ok := c.get(k); ok {
				n++
				if cmd.Op == command.OpDel {
					delete(c.keys, string(k))
				}
			}
		}
		return command.Int(n)
	case command.OpType:
		if ok {
			return command.Bytes([]byte("string"))
		}
		return command.Bytes([]byte("none"))
	case command.OpTTL:
		switch {
		case !ok:
			return command.Int(-2)
		case e.deadline == 0:
			return command.Int(-1)
		}
		return command.Int(e.deadline - now)
	case command.OpSet:
		f := cmd.Flags
		held := f&command.FlagIfAbsent != 0 && ok || f&command.FlagIfPresent != 0 && !ok ||
			f&command.FlagIfEqual != 0 && (!ok || !bytes.Equal(e.value, cmd.Values[1]))
		if !held {
			deadline := int64(0)
			if cmd.TTL > 0 {
				deadline = now + cmd.TTL
			} else if f&command.FlagKeepTTL != 0 {
				deadline = e.deadline
			}
			put(cmd.Values[0], deadline)
		}
		switch {
		case f&command.FlagGet != 0:
			return valueOf(e, ok)
		case held:
			return command.Nil()
		}
		return command.OK()
	case command.OpMSet:
		if cmd.Flags&command.FlagIfAbsent != 0 {
			for _, k := range cmd.Keys {
				if _, ok := c.get(k); ok {
					return command.Int(0)
				}
			}
		}
		for i, k := range cmd.Keys {
			c.keys[string(k)] = entry{value: bytes.Clone(cmd.Values[i])}
		}
		if cmd.Flags&command.FlagIfAbsent != 0 {
			return command.Int(1)
		}
		return command.OK()
	case command.OpIncr:
		old := int64(0)
		if ok {
			var good bool
			if old, good = parseInt(e.value); !good {
				return command.Err(command.CodeNotInteger)
			}
		}
		if cmd.Int > 0 && old > math.MaxInt64-cmd.Int || cmd.Int < 0 && old < math.MinInt64-cmd.Int {
			return command.Err(command.CodeOverflow)
		}
		put(strconv.AppendInt(nil, old+cmd.Int, 10), e.deadline)
		return command.Int(old + cmd.Int)
	case command.OpIncrFloat:
		old := 0.0
		if ok {
			var err error
			if old, err = strconv.ParseFloat(string(e.value), 64); err != nil {
				return command.Err(command.CodeNotFloat)
			}
		}
		add, _ := strconv.ParseFloat(string(cmd.Values[0]), 64)
		put(strconv.AppendFloat(nil, old+add, 'f', -1, 64), e.deadline)
		return command.Bytes(c.keys[string(key)].value)
	case command.OpAppend:
		put(append(bytes.Clone(e.value), cmd.Values[0]...), e.deadline)
		return command.Int(int64(len(e.value) + len(cmd.Values[0])))
	case command.OpGetDel:
		delete(c.keys, string(key))
		return valueOf(e, ok)
	case command.OpGetEx:
		if ok && cmd.TTL > 0 {
			put(e.value, now+cmd.TTL)
		} else if ok && cmd.Flags&command.FlagPersist != 0 {
			put(e.value, 0)
		}
		return valueOf(e, ok)
	case command.OpExpire:
		f, deadline := cmd.Flags, now+cmd.TTL
		switch {
		case !ok, f&command.FlagIfNoTTL != 0 && e.deadline != 0, f&command.FlagIfTTL != 0 && e.deadline == 0,
			f&command.FlagIfLonger != 0 && (e.deadline == 0 || deadline <= e.deadline), f&command.FlagIfShorter != 0 && e.deadline != 0 && deadline >= e.deadline:
			return command.Int(0)
		case cmd.TTL <= 0:
			delete(c.keys, string(key))
		default:
			put(e.value, deadline)
		}
		return command.Int(1)
	case command.OpPersist:
		if ok && e.deadline != 0 {
			put(e.value, 0)
			return command.Int(1)
		}
		return command.Int(0)
	}
	return command.Err(command.CodeBadCommand)
}

// shardKeys returns a shard's keys by slot and name.
func (c *cluster) shardKeys(shard sharding.ShardID) []string {
	var keys []string
	for k := range c.keys {
		if c.owner(sharding.SlotOf([]byte(k))) == shard {
			if _, ok := c.get([]byte(k)); ok {
				keys = append(keys, k)
			}
		}
	}
	sort.Slice(keys, func(i, j int) bool {
		a, b := sharding.SlotOf([]byte(keys[i])), sharding.SlotOf([]byte(keys[j]))
		return a < b || a == b && keys[i] < keys[j]
	})
	return keys
}

func (n *fakeNode) ScanPage(_ context.Context, shard sharding.ShardID, slots sharding.SlotRange, cursor uint64, count int, match string, _ Reading) (found [][]byte, next uint64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.onRead != nil {
		n.onRead()
	}
	at := max(slots.From, uint16(cursor>>48))
	to, ok := sharding.RunFrom(n.ownedBy(shard), at)
	if !ok {
		return nil, 0, transport.Errorf(transport.CodeSlotsMoved, "slot %d", at)
	}
	to = min(to, slots.To)
	last := -1
	for _, k := range n.shardKeys(shard) {
		slot := int(sharding.SlotOf([]byte(k)))
		if slot < int(at) || slot > int(to) {
			continue
		}
		if len(found) >= count && slot != last {
			return found, uint64(slot) << 48, nil
		}
		if ok, _ := path.Match(match, k); ok || match == "" {
			found = append(found, []byte(k))
		}
		last = slot
	}
	return found, (uint64(to) + 1) << 48, nil
}

func (n *fakeNode) Size(_ context.Context, shard sharding.ShardID, _ Reading) (int64, []sharding.SlotRange, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.onRead != nil {
		n.onRead()
	}
	return int64(len(n.shardKeys(shard))), n.ownedBy(shard), nil
}

// owner is who owns a slot by the shards' own word: by the map, unless the test says otherwise.
func (c *cluster) owner(slot sharding.Slot) sharding.ShardID {
	if c.owners != nil {
		return c.owners[slot]
	}
	return c.router.ShardOf(slot)
}

func (c *cluster) ownedBy(shard sharding.ShardID) (slots []sharding.SlotRange) {
	for slot := range sharding.Slots {
		if c.owner(sharding.Slot(slot)) == shard {
			slots = append(slots, sharding.SlotRange{From: uint16(slot), To: uint16(slot)})
		}
	}
	return slots
}

func (n *fakeNode) SlotKeys(_ context.Context, shard sharding.ShardID, slot sharding.Slot, _ Reading) (int64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.owner(slot) != shard {
		return 0, transport.Errorf(transport.CodeSlotsMoved, "slot %d", slot)
	}
	count := int64(0)
	for _, k := range n.shardKeys(shard) {
		if sharding.SlotOf([]byte(k)) == slot {
			count++
		}
	}
	return count, nil
}

func (n *fakeNode) RandomKey(_ context.Context, shard sharding.ShardID, _ Reading) ([]byte, bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.onRead != nil {
		n.onRead()
	}
	keys := n.shardKeys(shard)
	if len(keys) == 0 {
		return nil, false, nil
	}
	return []byte(keys[0]), true, nil
}

func (n *fakeNode) SubmitJob(_ context.Context, spec []byte) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if bytes.Contains(spec, []byte(`"name":"unsure"`)) {
		return "", fmt.Errorf("submit job j7: %w", transport.Errorf(transport.CodeUncertain, "the leader was lost"))
	}
	if len(n.jobs) == 2 {
		return "", transport.Errorf(transport.CodeBusy, "2 jobs are queued, try again in 1s")
	}
	id := "job" + strconv.Itoa(len(n.jobs)+1)
	n.jobs[id] = `{"id":"` + id + `","state":"succeeded","result":285}`
	return id, nil
}

func (n *fakeNode) JobStatus(_ context.Context, id string) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.jobs[id] == "" {
		return nil, transport.Errorf(transport.CodeNotFound, "job %s", id)
	}
	return []byte(n.jobs[id]), nil
}

func (n *fakeNode) JobResult(ctx context.Context, id string, wait time.Duration) ([]byte, error) {
	if id == "slow" {
		select {
		case <-time.After(wait):
			return []byte(`{"id":"slow","state":"running"}`), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return n.JobStatus(ctx, id)
}

func (n *fakeNode) CancelJob(ctx context.Context, id string) error {
	_, err := n.JobStatus(ctx, id)
	return err
}

func (n *fakeNode) DeleteJob(ctx context.Context, id string) error {
	if _, err := n.JobStatus(ctx, id); err != nil {
		return err
	}
	if id == "job2" {
		return transport.Errorf(transport.CodeRefused, "job job2 has not ended, it is running: cancel it first")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.jobs, id)
	return nil
}

func (n *fakeNode) RetryJob(ctx context.Context, id, newID string) (string, error) {
	if _, err := n.JobStatus(ctx, id); err != nil {
		return "", err
	}
	if newID == "unsure" {
		return "", fmt.Errorf("submit job unsure: %w", transport.Errorf(transport.CodeUncertain, "the leader was lost"))
	}
	return orElse(newID, id+"again"), nil
}

func (n *fakeNode) ExplainJob(_ context.Context, spec []byte) ([]byte, error) {
	return []byte(`{"spec":` + string(spec) + `}`), nil
}

func (n *fakeNode) ListJobs(context.Context) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []json.RawMessage
	for i := range len(n.jobs) {
		list = append(list, json.RawMessage(n.jobs["job"+strconv.Itoa(i+1)]))
	}
	return json.Marshal(list)
}

func (n *fakeNode) Backup(_ context.Context, words []string) ([]byte, error) {
	if words[0] == "READ" {
		return nil, transport.Errorf(transport.CodeNotFound, "view %s is gone", words[1])
	}
	return []byte(fmt.Sprint(words)), nil
}

func (n *fakeNode) Admin(_ context.Context, words []string) ([]byte, error) {
	if words[0] == "nosuch" {
		return nil, transport.Errorf(transport.CodeBadRequest, "no such verb")
	}
	return json.Marshal(words)
}

func (n *fakeNode) StatusJSON(context.Context) ([]byte, error) {
	return []byte(`{"healthy":true}`), nil
}

func (n *fakeNode) Info() Info {
	n.mu.Lock()
	defer n.mu.Unlock()
	info := Info{Version: "0.1.0-test", NodeID: n.id, ClusterID: "c0ffee", Uptime: 90 * time.Second, Replicas: 3, Counters: map[string]int64{"replicas": 8, "leads": 3}}
	for s, id := range n.leaders {
		if id == n.id {
			info.Records += int64(len(n.shardKeys(s)))
		}
	}
	return info
}

// serve starts a server for a node and returns its address.
func serve(t *testing.T, cfg Config, b Backend) (*Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, cfg, b, l), l.Addr().String()
}

func serveOn(t *testing.T, cfg Config, b Backend, l net.Listener) *Server {
	t.Helper()
	s := NewServer(cfg, b)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// serveCluster starts the cluster ports of all nodes, and advertises them.
func serveCluster(t *testing.T, c *cluster) []string {
	t.Helper()
	m := c.router.Map().Clone()
	var addrs []string
	var listeners []net.Listener
	for i := range m.Nodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		m.Nodes[i].Addrs.Cluster = l.Addr().String()
		addrs = append(addrs, l.Addr().String())
		listeners = append(listeners, l)
	}
	c.router = sharding.NewRouter(m)
	for i, l := range listeners {
		serveOn(t, Config{Mode: ModeCluster}, c.node(m.Nodes[i].ID), l)
	}
	return addrs
}
