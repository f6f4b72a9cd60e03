package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	probeTimeout = 2 * time.Second
	probeKept    = time.Second
)

// readiness keeps the last answer, so that asking often costs no log entries.
type readiness struct {
	turn chan struct{} // capacity 1: who holds its token probes
	at   time.Time
	err  error
}

func newReadiness() *readiness { return &readiness{turn: make(chan struct{}, 1)} }

// Ready says whether the node can serve: every shard that it leads has just
// committed a probe, and for every other one a leader is known. A state flag
// would say "healthy" while no write gets through.
func (n *Node) Ready(ctx context.Context) error {
	if n.stopping.Load() {
		return errors.New("stopping")
	}
	r := n.ready
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if !r.at.IsZero() && time.Since(r.at) < probeKept {
		return r.err
	}
	// Not under the asker's context: one who hangs up must not make it look sick.
	probe, cancel := context.WithTimeout(n.ctx, probeTimeout)
	defer cancel()
	r.err = n.probe(probe)
	r.at = time.Now()
	return r.err
}

func (n *Node) probe(ctx context.Context) error {
	shards := n.Router().Map().Shards
	if len(shards) == 0 {
		return errors.New("not a member of a cluster yet")
	}
	if n.dir.ident().Founding {
		return errors.New("the cluster is still being set up")
	}
	var probes errgroup.Group
	defer probes.Wait()
	for _, sh := range shards {
		if sh.Founding != "" {
			continue // nothing is asked of it yet: a split must not take the nodes out of service
		}
		switch st := n.host.get(sh.ID); {
		case st != nil && st.IsLeader():
			probes.Go(func() error {
				if err := st.Probe(ctx); err != nil {
					return fmt.Errorf("shard %d commits nothing: %w", sh.ID, err)
				}
				return nil
			})
		default:
			switch n.Leader(sh.ID) {
			case "":
				return fmt.Errorf("shard %d has no leader that is known here", sh.ID)
			case n.cfg.ID: // elected, and its opening entry is not committed
				return fmt.Errorf("shard %d commits nothing yet under its new leader, this node", sh.ID)
			}
		}
	}
	return probes.Wait()
}
