// Package transporttest is the in-memory twin of package transport: nodes of
// one process that call each other without sockets, over links that a test
// can cut, delay and heal.
//
// A Network holds the nodes and says which directed links are cut. Each node
// has one sending loop per peer and lane (link.run), which delivers in order
// and owns nothing but its queue; requests run on goroutines that the
// receiving node's Close waits for. There are no sockets and no lock is held
// while anything waits, so whole clusters run inside testing/synctest.
//
// A cut link swallows what is sent over it, as a switch without power would:
// the caller learns it when its context ends, or after DeadAfter, and then
// does not know whether its request arrived. A node that is not there (never
// joined, or closed) refuses at once. Addresses, as in CallAddr, are node ids.
package transporttest

import (
	"sync"
	"time"

	"github.com/abacusdb/abacus/transport"
)

// DeadAfter is the time after which a call over a cut link fails even if its
// context goes on: what the keepalive of real links does.
const DeadAfter = 3 * time.Second

// Network is a set of nodes and the state of the links between them.
type Network struct {
	mu       sync.Mutex
	nodes    map[string]*node
	cut      map[direction]bool
	isolated map[string]bool
	delays   map[direction]time.Duration
}

// direction is one way of a link; an empty end means any node, in delays.
type direction struct{ from, to string }

// NewNetwork returns a network without nodes, cuts or delays.
func NewNetwork() *Network {
	return &Network{
		nodes:    make(map[string]*node),
		cut:      make(map[direction]bool),
		isolated: make(map[string]bool),
		delays:   make(map[direction]time.Duration),
	}
}

// Join adds a node and returns its transport, which takes calls at once. A
// node that was closed may join again under its old id; an id in use panics.
func (n *Network) Join(id string) transport.Transport {
	nd := newNode(n, id)
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, used := n.nodes[id]; used {
		panic("transporttest: node id " + id + " is in use")
	}
	n.nodes[id] = nd
	return nd
}

// Cut swallows everything sent from one node to another: its requests, and
// its answers to the other's requests. The other direction goes on.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[direction{from, to}] = true
}

// CutBoth cuts both directions between two nodes.
func (n *Network) CutBoth(a, b string) {
	n.Cut(a, b)
	n.Cut(b, a)
}

// Isolate cuts a node off from all others, those that join later included.
func (n *Network) Isolate(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isolated[id] = true
}

// Partition cuts all links between nodes of different groups.
func (n *Network) Partition(groups ...[]string) {
	for i, g := range groups {
		for j, h := range groups {
			if i == j {
				continue
			}
			for _, a := range g {
				for _, b := range h {
					n.Cut(a, b)
				}
			}
		}
	}
}

// Heal undoes every Cut, Partition and Isolate. Delays stay.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.isolated)
}

// HealLink undoes Cut(from, to).
func (n *Network) HealLink(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, direction{from, to})
}

// Rejoin undoes Isolate(id).
func (n *Network) Rejoin(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.isolated, id)
}

// Delay holds everything sent from one node to another for d; "" stands for
// any node, and the more exact setting wins. Order within a lane is kept. A
// node's calls to itself are never delayed. Zero ends the delay.
func (n *Network) Delay(from, to string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delays[direction{from, to}] = d
}

// lost says whether what from sends does not reach to.
func (n *Network) lost(from, to string) bool {
	if from == to {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.isolated[from] || n.isolated[to] || n.cut[direction{from, to}]
}

func (n *Network) delay(from, to string) time.Duration {
	if from == to {
		return 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range []direction{{from, to}, {from, ""}, {"", to}, {"", ""}} {
		if t, ok := n.delays[d]; ok {
			return t
		}
	}
	return 0
}

// node returns the open node with an id, or nil.
func (n *Network) node(id string) *node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[id]
}

// leave removes a node that closes.
func (n *Network) leave(nd *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[nd.id] == nd {
		delete(n.nodes, nd.id)
	}
}
