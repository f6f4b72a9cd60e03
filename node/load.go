package node

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/node/front"
)

const (
	// loadEvery is how often a node looks at what it does.
	loadEvery = 2 * time.Second
	// loadKept is how many looks a node keeps of the whole cluster: ten minutes.
	loadKept = 300
)

// load is what a node does for its clients, over its last loadEvery. Peers tell it to each other. Commands are those on keys, counted where
// their client is connected; a rate is by the second, a time in microseconds from when a command is there to when it is answered.
type load struct {
	Reads  float64 `json:"reads"`
	Writes float64 `json:"writes"`
	// Errors are replies that refuse or do not know, all but MOVED.
	Errors   float64 `json:"errors"`
	ReadP50  int64   `json:"read_p50_us"`
	ReadP99  int64   `json:"read_p99_us"`
	WriteP50 int64   `json:"write_p50_us"`
	WriteP99 int64   `json:"write_p99_us"`
	// HTTP is requests about keys on the HTTP port, which are not among the others.
	HTTP    float64 `json:"http,omitempty"`
	Clients int     `json:"clients"` // of RESP
	// LogBytes is what the node's log takes on disk; 0 if each replica has a log of its own.
	LogBytes int64 `json:"log_bytes,omitempty"`
}

// loads is this node's own load now, and the cluster's for some minutes. runLoad alone changes it, but for the counter.
type loads struct {
	now  atomic.Pointer[load]
	seen atomic.Uint64 // commands of all that this node had worked by then
	http atomic.Uint64 // requests about keys on the HTTP port
	mu   sync.Mutex
	// past is a ring under mu: look number i is past[i%loadKept]; looks is how many there were.
	past  [loadKept]load
	looks int
}

// runLoad looks at what this node does, and puts it beside what the peers say of themselves.
func (n *Node) runLoad(ctx context.Context) error {
	tick := time.NewTicker(loadEvery)
	defer tick.Stop()
	was, looked := n.worked(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, at := n.worked(), time.Now()
		own := now.since(was, at.Sub(looked))
		if n.wal != nil {
			own.LogBytes = n.wal.Stats().DiskBytes
		}
		was, looked = now, at
		n.loads.seen.Store(now.commands())
		n.loads.now.Store(&own)
		all := []load{own}
		for _, nd := range n.Router().Map().Nodes {
			if said, alive := n.peers.get(nd.ID); nd.ID != n.cfg.ID && alive && said.Load != nil {
				all = append(all, *said.Load)
			}
		}
		n.loads.note(together(all))
	}
}

func (l *loads) note(cluster load) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.past[l.looks%loadKept] = cluster
	l.looks++
}

// together is the load of several nodes as one: sums, and the times of the slowest, for quantiles cannot be added.
func together(nodes []load) (t load) {
	for _, l := range nodes {
		t.Reads, t.Writes, t.Errors, t.Clients = t.Reads+l.Reads, t.Writes+l.Writes, t.Errors+l.Errors, t.Clients+l.Clients
		t.HTTP += l.HTTP
		t.ReadP50, t.ReadP99 = max(t.ReadP50, l.ReadP50), max(t.ReadP99, l.ReadP99)
		t.WriteP50, t.WriteP99 = max(t.WriteP50, l.WriteP50), max(t.WriteP99, l.WriteP99)
	}
	return t
}

// worked is what both RESP ports have counted, and the HTTP port.
type worked struct {
	reads, writes front.Latency
	errors, http  uint64
	clients       int
}

func (n *Node) worked() (w worked) {
	w.http = n.loads.http.Load()
	for _, f := range n.fronts {
		st := f.Stats()
		w.reads, w.writes, w.clients = w.reads.Plus(st.Reads), w.writes.Plus(st.Writes), w.clients+st.Clients
		for kind, count := range st.Errors {
			if kind != "MOVED" { // as a Cluster client finds its way
				w.errors += count
			}
		}
	}
	return w
}

func (w *worked) commands() uint64 { return w.reads.Count() + w.writes.Count() + w.http }

// since is the load between two looks.
func (w worked) since(was worked, took time.Duration) load {
	reads, writes := w.reads.Since(was.reads), w.writes.Since(was.writes)
	rate := func(count uint64) float64 { return float64(count) / max(took.Seconds(), 1e-3) }
	return load{Reads: rate(reads.Count()), Writes: rate(writes.Count()), Errors: rate(w.errors - was.errors), HTTP: rate(w.http - was.http), Clients: w.clients,
		ReadP50: reads.Quantile(.5).Microseconds(), ReadP99: reads.Quantile(.99).Microseconds(),
		WriteP50: writes.Quantile(.5).Microseconds(), WriteP99: writes.Quantile(.99).Microseconds()}
}

// loadHistory is GET /v1/load: the cluster's load over the last minutes, as this node has heard of it. Column i of each row is look number First+i.
type loadHistory struct {
	First       int   `json:"first"`
	EveryMillis int64 `json:"every_ms"`
	// The rows are as in load; times are those of the slowest node.
	Reads    []float64 `json:"reads"`
	Writes   []float64 `json:"writes"`
	Errors   []float64 `json:"errors"`
	ReadP50  []int64   `json:"read_p50_us"`
	ReadP99  []int64   `json:"read_p99_us"`
	WriteP50 []int64   `json:"write_p50_us"`
	WriteP99 []int64   `json:"write_p99_us"`
}

// history is the looks from number first on, as far as they are kept; all, if there is no such number yet: who asks so has numbers of
// an earlier process.
func (l *loads) history(first int) loadHistory {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := max(0, l.looks-loadKept)
	if first < oldest || first > l.looks {
		first = oldest
	}
	h := loadHistory{First: first, EveryMillis: loadEvery.Milliseconds(), Reads: []float64{}, Writes: []float64{}, Errors: []float64{},
		ReadP50: []int64{}, ReadP99: []int64{}, WriteP50: []int64{}, WriteP99: []int64{}}
	for i := first; i < l.looks; i++ {
		s := l.past[i%loadKept]
		h.Reads, h.Writes, h.Errors = append(h.Reads, s.Reads), append(h.Writes, s.Writes), append(h.Errors, s.Errors)
		h.ReadP50, h.ReadP99 = append(h.ReadP50, s.ReadP50), append(h.ReadP99, s.ReadP99)
		h.WriteP50, h.WriteP99 = append(h.WriteP50, s.WriteP50), append(h.WriteP99, s.WriteP99)
	}
	return h
}
