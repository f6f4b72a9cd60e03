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
	"math/rand/v2"
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
	jitters  map[direction]time.Duration
	losses   map[direction]float64
	rng      *rand.Rand // of jitters and losses
	swallows Swallowed
}

// Swallowed counts requests and answers that did not arrive.
type Swallowed struct {
	Cut  uint64 // over a cut link or to or from an isolated node
	Lost uint64 // by chance, see Lose
}

// direction is one way of a link; an empty end means any node, in delays, jitters and losses.
type direction struct{ from, to string }

// NewNetwork returns a network without nodes, cuts, delays or losses.
func NewNetwork() *Network {
	return &Network{
		nodes:    make(map[string]*node),
		cut:      make(map[direction]bool),
		isolated: make(map[string]bool),
		delays:   make(map[direction]time.Duration),
		jitters:  make(map[direction]time.Duration),
		losses:   make(map[direction]float64),
		rng:      rand.New(rand.NewPCG(1, 1)),
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

// Jitter adds a random time below most to each delay from one node to another. It
// goes by the same rules as Delay.
func (n *Network) Jitter(from, to string, most time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.jitters[direction{from, to}] = most
}

// Lose swallows each request and answer from one node to another with
// probability p, by the same rules as Delay. Streams are left alone: a
// connection hides losses, or breaks.
func (n *Network) Lose(from, to string, p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.losses[direction{from, to}] = p
}

// Seed begins the random numbers of Jitter and Lose anew.
func (n *Network) Seed(seed uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rng = rand.New(rand.NewPCG(seed, 1))
}

// Swallowed tells what has not arrived so far: a test whose cut swallowed
// nothing has shown nothing.
func (n *Network) Swallowed() Swallowed {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.swallows
}

// lost says whether what from sends does not reach to.
func (n *Network) lost(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.severed(from, to)
}

// severed is lost for who holds mu.
func (n *Network) severed(from, to string) bool {
	return from != to && (n.isolated[from] || n.isolated[to] || n.cut[direction{from, to}])
}

// swallow says whether one request or answer is lost, and counts it.
func (n *Network) swallow(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.severed(from, to) {
		n.swallows.Cut++
		return true
	}
	if p := setting(n.losses, from, to); p > 0 && n.rng.Float64() < p {
		n.swallows.Lost++
		return true
	}
	return false
}

func (n *Network) delay(from, to string) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := setting(n.delays, from, to)
	if j := setting(n.jitters, from, to); j > 0 {
		d += time.Duration(n.rng.Int64N(int64(j)))
	}
	return d
}

// setting is the most exact one that there is. A node's calls to itself have none.
func setting[T any](settings map[direction]T, from, to string) (v T) {
	if from == to || len(settings) == 0 {
		return v
	}
	for _, d := range [...]direction{{from, to}, {from, ""}, {"", to}, {"", ""}} {
		if v, ok := settings[d]; ok {
			return v
		}
	}
	return v
}

// node returns the open node with an id, or nil.
func (n *Network) node(id string) *node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[id]
}

// leave removes a node that closes, and returns those of the others that find it gone.
func (n *Network) leave(nd *node) (others []*node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[nd.id] != nd {
		return nil
	}
	delete(n.nodes, nd.id)
	for _, other := range n.nodes {
		if !n.severed(nd.id, other.id) && !n.severed(other.id, nd.id) {
			others = append(others, other)
		}
	}
	return others
}
