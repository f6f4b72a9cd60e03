package node

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Where the others are. The map says where they were when it was last changed, and changing it takes a majority that finds each other. So each node says in the exchange
// where it is, and passes on what it has heard of others that the map does not say; and a node that misses somebody asks its seeds, at whatever address they are now. After
// all nodes came back with new addresses, one of these is enough: whoever was told it is found there by all.

const (
	findEvery   = 500 * time.Millisecond
	findTimeout = time.Second
	// maxSeeds bounds what a name or a file may stand for.
	maxSeeds = 64
)

// whereabouts is an address and when the node itself said that it is there, as far as elapsed time tells.
type whereabouts struct {
	addr  string
	heard time.Time
}

// found is what a node passes on of another's whereabouts.
type found struct {
	Addr string `json:"addr"`
	// AgeMillis is how long ago the node itself has said so.
	AgeMillis int64 `json:"age_ms"`
}

// note remembers where a node is, unless something newer is known.
func (p *peers) note(id sharding.NodeID, addr string, heard time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noteLocked(id, addr, heard)
}

func (p *peers) noteLocked(id sharding.NodeID, addr string, heard time.Time) {
	if was, ok := p.where[id]; addr != "" && (!ok || heard.After(was.heard)) {
		p.where[id] = whereabouts{addr, heard}
	}
}

// address is where a node has said that it is, "" if nobody has heard.
func (p *peers) address(id sharding.NodeID) string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.where[id].addr
}

// moved forgets where nodes were that the map says are elsewhere now: they have announced that themselves.
func (p *peers) moved(old, now sharding.Map) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.where {
		was, _ := old.Node(id)
		if is, ok := now.Node(id); !ok || is.Addrs.Peer != was.Addrs.Peer {
			delete(p.where, id)
		}
	}
}

// found is what is known of nodes that are not where the map says.
func (p *peers) found(m sharding.Map, now time.Time) map[sharding.NodeID]found {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var list map[sharding.NodeID]found
	for id, w := range p.where {
		if nd, ok := m.Node(id); ok && nd.Addrs.Peer != w.addr {
			if list == nil {
				list = map[sharding.NodeID]found{}
			}
			list[id] = found{w.addr, now.Sub(w.heard).Milliseconds()}
		}
	}
	return list
}

// learn takes over what a status says of others.
func (n *Node) learn(s peerStatus) {
	for id, f := range s.Found {
		if id != n.cfg.ID && f.AgeMillis >= 0 && len(f.Addr) <= 512 {
			n.peers.note(id, f.Addr, time.Now().Add(-time.Duration(f.AgeMillis)*time.Millisecond))
		}
	}
}

// resolve says where a node's peer port is.
func (n *Node) resolve(id string) (string, error) {
	m, ok := n.Router().Map().Node(id)
	if !ok {
		return "", transport.Errorf(transport.CodeUnavailable, "node %s is not in the shard map", id)
	}
	if addr := n.peers.address(id); addr != "" {
		return addr, nil
	}
	return m.Addrs.Peer, nil
}

// runFind asks the seeds while any node of the map is missing.
func (n *Node) runFind(ctx context.Context) error {
	tick := time.NewTicker(findEvery)
	defer tick.Stop()
	for {
		if n.missesSomebody() {
			n.askSeeds(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (n *Node) missesSomebody() bool {
	for _, nd := range n.Router().Map().Nodes {
		if _, alive := n.peers.get(nd.ID); nd.ID != n.cfg.ID && !alive {
			return true
		}
	}
	return false
}

// askSeeds tells all seeds where this node is, and hears who is there and whom they know.
func (n *Node) askSeeds(ctx context.Context) {
	seeds := n.seeds(ctx)
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	var calls sync.WaitGroup
	defer calls.Wait()
	there := n.aliveAt()
	for _, seed := range seeds {
		if there[seed] { // it is told in the exchange, and passes on
			continue
		}
		calls.Go(func() {
			raw, err := n.transport.CallAddr(ctx, seed, transport.MethodStatus, n.statusJSON())
			if err != nil {
				n.log.Debug("seed does not answer", "seed", seed, "err", err)
				return
			}
			s, err := decodeStatus(raw)
			if err != nil || s.Node == n.cfg.ID {
				return
			}
			if _, ours := n.Router().Map().Node(s.Node); ours {
				n.peers.note(s.Node, cmp.Or(s.Addr, seed), time.Now())
				n.learn(s)
			}
		})
	}
}

// aliveAt are the addresses of nodes that answer.
func (n *Node) aliveAt() map[string]bool {
	there := map[string]bool{}
	for _, nd := range n.Router().Map().Nodes {
		if _, alive := n.peers.get(nd.ID); alive {
			if addr, err := n.resolve(nd.ID); err == nil {
				there[addr] = true
			}
		}
	}
	return there
}

// seeds are the addresses to ask: those given, those in the file, and for a name each address that it has now; without our own.
func (n *Node) seeds(ctx context.Context) (list []string) {
	given := slices.Clone(n.cfg.Join)
	if n.cfg.JoinFile != "" {
		lines, err := readSeeds(n.cfg.JoinFile)
		if err != nil {
			n.log.Warn("seeds", "err", err)
		}
		given = append(given, lines...)
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout) // names together
	defer cancel()
	expanded := make([][]string, len(given))
	var lookups sync.WaitGroup
	for i, seed := range given {
		lookups.Go(func() { expanded[i] = expand(ctx, seed) })
	}
	lookups.Wait()
	for i := range given {
		for _, addr := range expanded[i] {
			if addr != n.addrs.Peer && addr != n.cfg.PeerAddr && !slices.Contains(list, addr) && len(list) < maxSeeds {
				list = append(list, addr)
			}
		}
	}
	return list
}

// expand looks a name up: behind one there may be many nodes. What cannot be looked up stays as it is.
func expand(ctx context.Context, seed string) []string {
	host, port, err := net.SplitHostPort(seed)
	if err != nil || net.ParseIP(host) != nil {
		return []string{seed}
	}
	addrs, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil || len(addrs) == 0 {
		return []string{seed}
	}
	for i, a := range addrs {
		addrs[i] = net.JoinHostPort(a, port)
	}
	return addrs
}

// readSeeds reads a file of addresses, one to a line; # begins a comment.
func readSeeds(path string) (list []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--join-file: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for i := 1; lines.Scan(); i++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if _, _, bad := net.SplitHostPort(line); bad != nil {
			err = fmt.Errorf("--join-file %s, line %d: %q: want host:port of a member's peer address", path, i, line)
			continue
		}
		list = append(list, line)
	}
	if lines.Err() != nil {
		err = fmt.Errorf("--join-file %s: %w", path, lines.Err())
	}
	return list, err
}

// seedNames are the seeds as they were given, for messages.
func (n *Node) seedNames() string {
	names := slices.Clone(n.cfg.Join)
	if n.cfg.JoinFile != "" {
		names = append(names, "in "+n.cfg.JoinFile)
	}
	return strings.Join(names, ", ")
}
