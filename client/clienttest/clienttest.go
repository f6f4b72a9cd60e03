// Package clienttest is a cluster in memory that speaks RESP, for tests of the
// client and of programs over it: nodes with a client and a cluster port, slots
// that somebody leads, and a hook through which a test makes any command fail
// in any way. It has one map for all nodes and keeps no promise about time or disks.
package clienttest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport/resp"
)

// Fate is what a hook wants done with a command.
type Fate int

const (
	Serve  Fate = iota // execute and answer
	Done               // the hook has written the answer
	Refuse             // break the connection without executing
	Lose               // execute, then break the connection without an answer
	Hang               // neither execute nor answer, and read no further
)

// Request is a command that arrived.
type Request struct {
	Node    *Node
	Cluster bool     // at the cluster port
	Args    []string // Args[0] in upper case; of a numbered command, what is behind the number
	Reply   *resp.Writer

	Session, Seq, Floor uint64 // of a numbered command; else 0
}

// Cluster is the whole of it.
type Cluster struct {
	t     testing.TB
	Nodes []*Node

	mu     sync.Mutex
	data   map[string]string
	leader []int // per slot: index of a node, -1 for none
	hook   func(*Request) Fate
	counts map[string]int // commands that arrived, by name

	sessions map[uint64]*session
	opened   uint64
	repeats  int // commands answered as before
}

// session is one of numbered commands, known to all shards at once.
type session struct {
	floor   uint64
	answers map[uint64][]byte // as they went over the wire
}

// Node is one member. Its addresses stay when it is stopped and started.
type Node struct {
	c       *Cluster
	n       int
	Client  string
	Cluster string

	mu        sync.Mutex
	listeners []net.Listener
	conns     map[net.Conn]bool
	wg        sync.WaitGroup
	hanging   atomic.Int64
}

// New starts a cluster whose slots are led in equal parts. It ends with the test.
func New(t testing.TB, nodes int) *Cluster {
	c := &Cluster{t: t, data: map[string]string{}, leader: make([]int, sharding.Slots), counts: map[string]int{}, sessions: map[uint64]*session{}}
	for i := range nodes {
		n := &Node{c: c, n: i, Client: "127.0.0.1:0", Cluster: "127.0.0.1:0", conns: map[net.Conn]bool{}}
		n.Start()
		c.Nodes = append(c.Nodes, n)
	}
	for s := range c.leader {
		c.leader[s] = s * nodes / sharding.Slots
	}
	t.Cleanup(func() {
		for _, n := range c.Nodes {
			n.Stop()
		}
	})
	return c
}

// Addrs are the client addresses.
func (c *Cluster) Addrs() []string {
	var out []string
	for _, n := range c.Nodes {
		out = append(out, n.Client)
	}
	return out
}

// Hook sets what looks at each command before it is executed; nil for nothing.
// It may be called from many goroutines.
func (c *Cluster) Hook(h func(*Request) Fate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hook = h
}

// SetLeader moves all slots to a node; -1: nobody leads.
func (c *Cluster) SetLeader(node int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.leader {
		c.leader[s] = node
	}
}

// LeaderOf is the index of the node that leads a key.
func (c *Cluster) LeaderOf(key string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leader[sharding.SlotOf([]byte(key))]
}

// Value reads a key behind the clients' backs.
func (c *Cluster) Value(key string) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.data[key]
	return v, ok
}

// Put writes a key behind the clients' backs.
func (c *Cluster) Put(key, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.data[key] = value
}

// Len is how many keys there are.
func (c *Cluster) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.data)
}

// Count is how many commands of a name have arrived, served or not.
func (c *Cluster) Count(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[name]
}

// Repeats is how many numbered commands were answered without being executed.
func (c *Cluster) Repeats() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.repeats
}

// ForgetSessions makes all sessions expire.
func (c *Cluster) ForgetSessions() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.sessions)
}

// Start listens again at the node's addresses.
func (n *Node) Start() {
	n.c.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, addr := range []*string{&n.Client, &n.Cluster} {
		l, err := net.Listen("tcp", *addr)
		if err != nil {
			n.c.t.Fatalf("listen: %v", err)
		}
		*addr = l.Addr().String()
		n.listeners = append(n.listeners, l)
		n.wg.Go(func() { n.accept(l, i == 1) })
	}
}

// Stop closes the listeners and breaks all connections.
func (n *Node) Stop() {
	n.mu.Lock()
	for _, l := range n.listeners {
		l.Close()
	}
	n.listeners = nil
	for c := range n.conns {
		c.Close()
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// Conns is how many connections are open.
func (n *Node) Conns() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns)
}

// Hanging is how many of them are open on which a command had the fate Hang.
func (n *Node) Hanging() int { return int(n.hanging.Load()) }

func (n *Node) accept(l net.Listener, cluster bool) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		n.mu.Lock()
		if n.listeners == nil {
			n.mu.Unlock()
			nc.Close()
			return
		}
		n.conns[nc] = true
		n.wg.Go(func() { n.serve(nc, cluster) })
		n.mu.Unlock()
	}
}

func (n *Node) serve(nc net.Conn, cluster bool) {
	defer func() {
		nc.Close()
		n.mu.Lock()
		delete(n.conns, nc)
		n.mu.Unlock()
	}()
	r, w := resp.NewReader(nc, resp.Limits{}), resp.NewWriter(nc)
	var cmds []resp.Command
	for {
		var err error
		if cmds, err = r.ReadPipeline(cmds[:0]); err != nil {
			return
		}
		for _, cmd := range cmds {
			req := &Request{Node: n, Cluster: cluster, Reply: w}
			for _, a := range cmd.Args {
				req.Args = append(req.Args, string(a))
			}
			req.parse()
			switch n.c.fate(req) {
			case Serve:
				n.c.once(req, nc)
			case Refuse:
				return
			case Lose:
				req.Reply = resp.NewWriter(&bytes.Buffer{})
				n.c.once(req, io.Discard)
				return
			case Hang:
				w.Flush()
				n.hanging.Add(1)
				defer n.hanging.Add(-1)
				for {
					if _, err := nc.Read(make([]byte, 4096)); err != nil {
						return
					}
				}
			}
		}
		if w.Flush() != nil {
			return
		}
	}
}

func (c *Cluster) fate(r *Request) Fate {
	c.mu.Lock()
	hook := c.hook
	c.counts[r.Args[0]]++
	c.mu.Unlock()
	if hook == nil {
		return Serve
	}
	return hook(r)
}

// parse takes a numbered command apart. What is none stays as it is.
func (r *Request) parse() {
	r.Args[0] = strings.ToUpper(r.Args[0])
	if r.Args[0] != "IDEM" || len(r.Args) < 4 {
		return
	}
	var err1, err2, err3 error
	r.Session, err1 = strconv.ParseUint(r.Args[1], 10, 64)
	seq, floor, _ := strings.Cut(r.Args[2], "/")
	r.Seq, err2 = strconv.ParseUint(seq, 10, 64)
	r.Floor, err3 = strconv.ParseUint(floor, 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		panic(fmt.Sprintf("clienttest: a client sent %q", r.Args))
	}
	r.Args = r.Args[3:]
	r.Args[0] = strings.ToUpper(r.Args[0])
}

// maxAnswers is how many answers of a session a shard remembers.
const maxAnswers = 1024

// once executes a numbered command unless it was before, and any other one.
func (c *Cluster) once(r *Request, nc io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Session == 0 {
		c.serve(r)
		return
	}
	w := r.Reply
	s := c.sessions[r.Session]
	if s == nil || r.Seq < s.floor {
		w.Error("SESSIONEXPIRED forgotten")
		return
	}
	s.floor = max(s.floor, r.Floor)
	for seq := range s.answers {
		if seq < s.floor {
			delete(s.answers, seq)
		}
	}
	answer, again := s.answers[r.Seq]
	if again {
		c.repeats++
	} else if len(s.answers) >= maxAnswers {
		w.Error("TRYAGAIN too many answers")
		return
	} else {
		var buf bytes.Buffer
		r.Reply = resp.NewWriter(&buf)
		c.serve(r)
		r.Reply.Flush()
		answer = buf.Bytes()
		if !bytes.HasPrefix(answer, []byte("-MOVED")) && !bytes.HasPrefix(answer, []byte("-CLUSTERDOWN")) {
			s.answers[r.Seq] = answer
		}
	}
	w.Flush()
	nc.Write(answer)
}

// serve executes a command and writes its answer.
func (c *Cluster) serve(r *Request) {
	w, args := r.Reply, r.Args
	if len(args) > 1 && slices.Contains([]string{"GET", "SET", "INCR", "INCRBY", "DEL"}, args[0]) {
		slot := sharding.SlotOf([]byte(args[1]))
		switch leader := c.leader[slot]; {
		case leader < 0:
			w.Error("CLUSTERDOWN nothing was done, try again: no leader")
			return
		case r.Cluster && leader != r.Node.n:
			w.Error(fmt.Sprintf("MOVED %d %s", slot, c.Nodes[leader].Cluster))
			return
		}
	}
	switch args[0] {
	case "PING":
		w.SimpleString("PONG")
	case "IDEM":
		c.opened++
		c.sessions[c.opened] = &session{answers: map[uint64][]byte{}}
		w.BulkString(strconv.FormatUint(c.opened, 10))
	case "GET":
		if v, ok := c.data[args[1]]; ok {
			w.BulkString(v)
		} else {
			w.Null()
		}
	case "SET":
		c.set(w, args)
	case "INCR":
		c.incr(w, args[1], "1")
	case "INCRBY":
		c.incr(w, args[1], args[2])
	case "DEL":
		n := int64(0)
		for _, k := range args[1:] {
			if _, ok := c.data[k]; ok {
				n++
				delete(c.data, k)
			}
		}
		w.Int(n)
	case "DBSIZE":
		w.Int(int64(len(c.data)))
	case "SCAN":
		c.scan(w, args)
	case "CLUSTER":
		c.slots(w)
	case "ABACUS.STATUS":
		text, err := json.Marshal(c.status(r.Node))
		if err != nil {
			panic(err)
		}
		w.Bulk(text)
	default:
		w.Error("ERR unknown command '" + args[0] + "'")
	}
}

func (c *Cluster) set(w *resp.Writer, args []string) {
	old, exists := c.data[args[1]]
	ok := true
	for i := 3; i < len(args); i++ {
		switch strings.ToUpper(args[i]) {
		case "NX":
			ok = ok && !exists
		case "XX":
			ok = ok && exists
		case "IFEQ":
			i++
			ok = ok && exists && old == args[i]
		case "PX":
			i++
		}
	}
	if len(args[2]) > 1<<20 {
		w.Error("TOOLARGE key or value over the limit of 1048576 bytes")
		return
	}
	if !ok {
		w.Null()
		return
	}
	c.data[args[1]] = args[2]
	w.SimpleString("OK")
}

func (c *Cluster) incr(w *resp.Writer, key, by string) {
	old := c.data[key]
	if old == "" {
		old = "0"
	}
	n, err1 := strconv.ParseInt(old, 10, 64)
	d, err2 := strconv.ParseInt(by, 10, 64)
	if err1 != nil || err2 != nil {
		w.Error("ERR value is not an integer or out of range")
		return
	}
	c.data[key] = strconv.FormatInt(n+d, 10)
	w.Int(n + d)
}

// scan pages through the sorted keys; MATCH takes a prefix and a *, with
// backslashes.
func (c *Cluster) scan(w *resp.Writer, args []string) {
	from, _ := strconv.Atoi(args[1])
	count, prefix := 10, ""
	for i := 2; i+1 < len(args); i += 2 {
		switch args[i] {
		case "COUNT":
			count, _ = strconv.Atoi(args[i+1])
		case "MATCH":
			var ok bool
			if prefix, ok = prefixOf(args[i+1]); !ok {
				w.Error("ERR this cluster matches a prefix and a * only")
				return
			}
		}
	}
	keys := slices.Sorted(maps.Keys(c.data))
	to := min(from+count, len(keys))
	next := "0"
	if to < len(keys) {
		next = strconv.Itoa(to)
	}
	var page []string
	for _, k := range keys[min(from, to):to] {
		if strings.HasPrefix(k, prefix) {
			page = append(page, k)
		}
	}
	w.Array(2)
	w.BulkString(next)
	w.Array(len(page))
	for _, k := range page {
		w.BulkString(k)
	}
}

// prefixOf takes a pattern apart that is a literal prefix and a *.
func prefixOf(pattern string) (prefix string, ok bool) {
	body, ok := strings.CutSuffix(pattern, "*")
	if !ok {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(body); i++ {
		switch body[i] {
		case '\\':
			if i++; i == len(body) {
				return "", false
			}
		case '*', '?', '[', ']':
			return "", false
		}
		b.WriteByte(body[i])
	}
	return b.String(), true
}

func (c *Cluster) slots(w *resp.Writer) {
	type run struct{ from, to, leader int }
	var runs []run
	for s, l := range c.leader {
		if n := len(runs); n > 0 && runs[n-1].leader == l {
			runs[n-1].to = s
		} else {
			runs = append(runs, run{s, s, l})
		}
	}
	runs = slices.DeleteFunc(runs, func(r run) bool { return r.leader < 0 })
	w.Array(len(runs))
	for _, r := range runs {
		host, port, _ := net.SplitHostPort(c.Nodes[r.leader].Cluster)
		p, _ := strconv.Atoi(port)
		w.Array(3)
		w.Int(int64(r.from))
		w.Int(int64(r.to))
		w.Array(3)
		w.BulkString(host)
		w.Int(int64(p))
		w.BulkString(fmt.Sprintf("%040d", r.leader))
	}
}

func (c *Cluster) status(asked *Node) client.Status {
	st := client.Status{ClusterID: "test", Epoch: 1, Node: fmt.Sprintf("n%d", asked.n+1), ReplicasWanted: len(c.Nodes), Healthy: true}
	for i, n := range c.Nodes {
		st.Nodes = append(st.Nodes, client.NodeStatus{ID: fmt.Sprintf("n%d", i+1), Alive: true, Addrs: sharding.Addrs{Client: n.Client, Cluster: n.Cluster}})
	}
	st.Shards = []client.ShardStatus{{ID: 0, Slots: "0-16383", Leader: "n1", Healthy: true, Records: int64(len(c.data))}}
	return st
}
