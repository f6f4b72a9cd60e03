package front

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/abacusdb/abacus/sharding"
)

// CLUSTER SLOTS, SHARDS and NODES tell one story in three forms. Here a node
// leads some shards and follows in others. SLOTS says so slot range by slot
// range. NODES cannot: each node is a master with the ranges that it leads.
// SHARDS has one entry per leading node, because clients keep one entry per
// master address: a second entry of the same master would replace the first.
//
// A shard whose leader is not known is shown under the leader most likely next,
// for clients refuse a map with holes; whoever asks there is told what is true.

func clusterCommands() []*spec {
	plain := func(name string, arity int, summary string, run func(*conn, context.Context, [][]byte) error) *spec {
		return &spec{name: name, arity: arity, flags: flagLoading | flagStale, summary: summary, run: run}
	}
	const byOurselves = "Abacus places shards and elects leaders by itself: start a node with 'abacusd --join', and see 'abacus status'"
	subs := []*spec{
		plain("slots", 2, "Returns the mapping of cluster slots to nodes.", (*conn).clusterSlots),
		plain("shards", 2, "Returns the mapping of cluster slots to shards.", (*conn).clusterShards),
		plain("nodes", 2, "Returns the cluster configuration for a node.", (*conn).clusterNodes),
		plain("info", 2, "Returns information about the state of a node.", (*conn).clusterInfo),
		plain("myid", 2, "Returns the ID of a node.", func(c *conn, _ context.Context, _ [][]byte) error {
			c.w.BulkString(nodeHex(c.srv.backend.Leaders().Self))
			return nil
		}),
		plain("keyslot", 3, "Returns the hash slot for a key.", func(c *conn, _ context.Context, args [][]byte) error {
			c.w.Int(int64(sharding.SlotOf(args[2])))
			return nil
		}),
		plain("countkeysinslot", 3, "Returns the number of keys in a hash slot.", (*conn).countKeysInSlot),
	}
	for _, name := range []string{"addslots", "addslotsrange", "delslots", "delslotsrange", "setslot", "flushslots", "meet", "forget", "failover",
		"replicate", "reset", "bumpepoch", "set-config-epoch", "saveconfig", "migration"} {
		subs = append(subs, &spec{name: name, never: "ERR CLUSTER " + strings.ToUpper(name) + " is not supported: " + byOurselves})
	}
	return []*spec{container(spec{name: "cluster", arity: -2, flags: 0, group: "cluster", since: "3.0.0", summary: "A container for Redis Cluster commands."}, subs...)}
}

// nodeHex is a node's id as Redis Cluster writes them: 40 hex digits.
func nodeHex(id sharding.NodeID) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:20])
}

// topology is who serves what, for one reply.
type topology struct {
	m       sharding.Map
	leaders Leaders
	c       *conn
}

func (c *conn) topology() topology {
	return topology{m: c.srv.backend.Router().Map(), leaders: c.srv.backend.Leaders(), c: c}
}

// serving returns the nodes of a shard, its leader first. If that is not known,
// it is the first replica's node that answers.
func (t topology) serving(s sharding.Shard) []sharding.Node {
	leader := t.leaders.Of[s.ID]
	if _, ok := t.m.Node(leader); !ok {
		leader = ""
		for _, r := range s.Replicas {
			if leader == "" || t.leaders.Down[leader] && !t.leaders.Down[r.Node] {
				leader = r.Node
			}
		}
	}
	var nodes []sharding.Node
	if n, ok := t.m.Node(leader); ok {
		nodes = append(nodes, n)
	}
	for _, r := range s.Replicas {
		if n, ok := t.m.Node(r.Node); ok && r.Node != leader {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// endpoint splits a node's cluster address. A host that says nothing to a
// client elsewhere becomes the one that this client dialled.
func (c *conn) endpoint(n sharding.Node) (host string, port int) {
	host, port = splitHostPort(n.Addrs.Cluster)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host, _ = splitHostPort(c.nc.LocalAddr().String())
	}
	return host, port
}

func splitHostPort(addr string) (host string, port int) {
	host, p, err := net.SplitHostPort(addr)
	if err == nil {
		port, _ = strconv.Atoi(p)
	}
	return host, port
}

// movedTo is the MOVED error for a slot of another node, "" if that is unknown.
func (c *conn) movedTo(m sharding.Map, slot sharding.Slot, leader sharding.NodeID) string {
	n, ok := m.Node(leader)
	if !ok {
		return ""
	}
	host, port := c.endpoint(n)
	return fmt.Sprintf("MOVED %d %s", slot, net.JoinHostPort(host, strconv.Itoa(port)))
}

func (c *conn) clusterSlots(_ context.Context, _ [][]byte) error {
	type row struct {
		slots sharding.SlotRange
		nodes []sharding.Node
	}
	t := c.topology()
	var rows []row
	for _, s := range t.m.Shards {
		nodes := t.serving(s)
		if len(nodes) == 0 {
			continue
		}
		for _, r := range s.Slots {
			rows = append(rows, row{r, nodes})
		}
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].slots.From < rows[j].slots.From })
	w := c.w
	w.Array(len(rows))
	for _, r := range rows {
		w.Array(2 + len(r.nodes))
		w.Int(int64(r.slots.From))
		w.Int(int64(r.slots.To))
		for _, n := range r.nodes {
			host, port := c.endpoint(n)
			w.Array(4)
			w.BulkString(host)
			w.Int(int64(port))
			w.BulkString(nodeHex(n.ID))
			w.Array(0)
		}
	}
	return nil
}

// led returns the slot ranges shown under a node, merged where they touch, and the shards.
func (t topology) led(id sharding.NodeID) (ranges []sharding.SlotRange, shards []sharding.Shard) {
	for _, s := range t.m.Shards {
		if nodes := t.serving(s); len(nodes) > 0 && nodes[0].ID == id {
			shards = append(shards, s)
			ranges = append(ranges, s.Slots...)
		}
	}
	slices.SortFunc(ranges, func(a, b sharding.SlotRange) int { return int(a.From) - int(b.From) })
	merged := ranges[:0]
	for _, r := range ranges {
		if n := len(merged); n > 0 && merged[n-1].To+1 == r.From {
			merged[n-1].To = r.To
		} else {
			merged = append(merged, r)
		}
	}
	return merged, shards
}

func (c *conn) clusterShards(_ context.Context, _ [][]byte) error {
	t := c.topology()
	type entry struct {
		slots []sharding.SlotRange
		nodes []sharding.Node
	}
	var entries []entry
	for _, n := range t.m.Nodes {
		slots, shards := t.led(n.ID)
		if len(slots) == 0 {
			continue
		}
		e := entry{slots: slots, nodes: []sharding.Node{n}}
		for _, other := range t.m.Nodes {
			if other.ID != n.ID && slices.ContainsFunc(shards, func(s sharding.Shard) bool { _, ok := s.On(other.ID); return ok }) {
				e.nodes = append(e.nodes, other)
			}
		}
		entries = append(entries, e)
	}
	w := c.w
	w.Array(len(entries))
	for _, e := range entries {
		w.Map(2)
		w.BulkString("slots")
		w.Array(2 * len(e.slots))
		for _, r := range e.slots {
			w.Int(int64(r.From))
			w.Int(int64(r.To))
		}
		w.BulkString("nodes")
		w.Array(len(e.nodes))
		for i, n := range e.nodes {
			host, port := c.endpoint(n)
			role, health := "replica", "online"
			if i == 0 {
				role = "master"
			}
			if t.leaders.Down[n.ID] {
				health = "failed"
			}
			w.Map(7)
			for _, f := range []struct{ name, value string }{{"id", nodeHex(n.ID)}, {"ip", host}, {"endpoint", host}, {"role", role}, {"health", health}} {
				w.BulkString(f.name)
				w.BulkString(f.value)
			}
			w.BulkString("port")
			w.Int(int64(port))
			w.BulkString("replication-offset")
			w.Int(0)
		}
	}
	return nil
}

// clusterNodes: <id> <host:port@busport> <flags> <master> <ping> <pong> <epoch> <link> <slots>...
func (c *conn) clusterNodes(_ context.Context, _ [][]byte) error {
	t := c.topology()
	var b strings.Builder
	for _, n := range t.m.Nodes {
		host, port := c.endpoint(n)
		_, bus, _ := net.SplitHostPort(n.Addrs.Peer)
		flags, link := "master", "connected"
		switch {
		case n.ID == t.leaders.Self:
			flags = "myself,master"
		case t.leaders.Down[n.ID]:
			flags, link = "master,fail", "disconnected"
		}
		fmt.Fprintf(&b, "%s %s:%d@%s %s - 0 0 %d %s", nodeHex(n.ID), host, port, orElse(bus, "0"), flags, t.m.Epoch, link)
		slots, _ := t.led(n.ID)
		for _, r := range slots {
			if r.From == r.To {
				fmt.Fprintf(&b, " %d", r.From)
			} else {
				fmt.Fprintf(&b, " %d-%d", r.From, r.To)
			}
		}
		b.WriteByte('\n')
	}
	c.w.Verbatim("txt", b.String())
	return nil
}

func (c *conn) clusterInfo(_ context.Context, _ [][]byte) error {
	t := c.topology()
	assigned, ok, leading := 0, 0, make(map[sharding.NodeID]bool)
	for _, s := range t.m.Shards {
		n := 0
		for _, r := range s.Slots {
			n += int(r.To) - int(r.From) + 1
		}
		assigned += n
		if l := t.leaders.Of[s.ID]; l != "" && n > 0 {
			ok += n
			leading[l] = true
		}
	}
	state := "ok"
	if ok < sharding.Slots {
		state = "fail"
	}
	lines := []string{"cluster_enabled:1", "cluster_state:" + state, "cluster_slots_assigned:" + strconv.Itoa(assigned), "cluster_slots_ok:" + strconv.Itoa(ok),
		"cluster_slots_pfail:" + strconv.Itoa(assigned-ok), "cluster_slots_fail:0", "cluster_known_nodes:" + strconv.Itoa(len(t.m.Nodes)),
		"cluster_size:" + strconv.Itoa(len(leading)), "cluster_current_epoch:" + strconv.FormatUint(t.m.Epoch, 10),
		"cluster_my_epoch:" + strconv.FormatUint(t.m.Epoch, 10), "cluster_stats_messages_sent:0", "cluster_stats_messages_received:0",
		"total_cluster_links_buffer_limit_exceeded:0"}
	c.w.Verbatim("txt", strings.Join(lines, "\r\n")+"\r\n")
	return nil
}

func (c *conn) countKeysInSlot(ctx context.Context, args [][]byte) error {
	n, ok := parseInt(args[2])
	if !ok || n < 0 || n >= sharding.Slots {
		return errBadSlot
	}
	slot := sharding.Slot(n)
	var keys int64
	err := c.settled(ctx, func(router *sharding.Router, how Reading) (err error) {
		shard := router.ShardOf(slot)
		if shard == sharding.NoShard {
			return refusef("CLUSTERDOWN Hash slot not served: %d", slot)
		}
		keys, err = c.srv.backend.SlotKeys(ctx, shard, slot, how)
		return err
	})
	if err == nil {
		c.w.Int(keys)
	}
	return err
}

// clusterEnabled is 1 on cluster ports: plain clients must not be made to think
// that they have to route.
func (c *conn) clusterEnabled() string {
	if c.srv.cfg.Mode == ModeCluster {
		return "1"
	}
	return "0"
}

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }
