package compute

import (
	"context"
	"time"

	"github.com/abacusdb/abacus/transport"
)

// Tasks are sent by masters, who know what waits; and asked for by nodes, who know when they have nothing to do. Every node
// publishes what waits at the masters on it (Master.Loads), node carries that to the others, and an idle one
// asks the most loaded master for tasks of a shard that it holds too: for one that waits, or for the tail of one that is under way.

const (
	// offerAge is how long it is believed that tasks wait somewhere.
	offerAge  = 2 * time.Second
	fetchWait = time.Second
	// fetchPause is how long a node that has asked waits before it asks again.
	fetchPause = 100 * time.Millisecond
)

// offer is what a node has said of the tasks that wait there.
type offer struct {
	loads []Load
	at    time.Time
}

// Offered notes what waits at another node, and asks for some of it if nothing is to be done here. It does not block.
func (w *Worker) Offered(from string, loads []Load) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(loads) == 0 {
		delete(w.offers, from)
		return
	}
	w.offers[from] = offer{loads, time.Now()}
	w.fetchLocked()
}

// fetchLocked asks for work, if there is none here and some elsewhere.
func (w *Worker) fetchLocked() {
	now := time.Now()
	if w.closed || len(w.tasks) > 0 || now.Sub(w.asked) < fetchPause {
		return
	}
	var node string
	var most Load
	for from, o := range w.offers {
		if now.Sub(o.at) > offerAge {
			delete(w.offers, from)
			continue
		}
		for _, l := range o.loads {
			if w.views.Hosts(l.Shard) && (l.Queued > most.Queued || l.Queued == most.Queued && from < node) {
				node, most = from, l
			}
		}
	}
	if node == "" {
		return
	}
	w.asked = now
	w.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), fetchWait)
		defer cancel()
		req, err := encodeMessage(fetchRequest{Shard: most.Shard}, nil)
		if err == nil {
			_, err = w.t.Call(ctx, node, transport.LaneControl, transport.MethodTaskFetch, req)
		}
		if err != nil {
			w.log.Debug("asked for tasks in vain", "node", node, "shard", most.Shard, "err", err)
		}
	})
}
