package node

import (
	"context"
	"errors"
	"time"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
)

const (
	// scrubRate is how many bytes a second the scrub reads: 4 MiB/s is a few percent of
	// a slow disk, and 340 GiB a day.
	scrubRate = 4 << 20
	// scrubSpread: the first scrub after a start comes this part of the interval later, so
	// that a node which is restarted daily is scrubbed all the same, and not while it
	// catches up.
	scrubSpread = 24
)

// runScrub reads the state of one replica after the other, each once per interval,
// and has every row checked. Damage that nobody meets for long is met by several
// replicas at once one day.
func (n *Node) runScrub(ctx context.Context) error {
	interval := n.cfg.ScrubInterval
	if interval == 0 {
		return nil
	}
	last := map[sharding.ShardID]time.Time{}
	tick := time.NewTicker(min(interval/scrubSpread+time.Millisecond, time.Minute))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if st := scrubDue(n.host.all(), last, n.started, time.Now(), interval); st != nil {
			last[st.Shard()] = time.Now()
			n.scrub(ctx, st)
		}
	}
}

// scrubDue returns the replica that was checked longest ago, if that is an interval ago.
func scrubDue(stores []*store.Store, last map[sharding.ShardID]time.Time, started, now time.Time, interval time.Duration) (due *store.Store) {
	oldest := now.Add(-interval)
	for _, st := range stores {
		at, ok := last[st.Shard()]
		if !ok {
			at = started.Add(interval/scrubSpread - interval)
		}
		if !at.After(oldest) {
			due, oldest = st, at.Add(-1)
		}
	}
	return due
}

// scrub checks one replica. Damage has gone to Config.Fatal when it returns.
func (n *Node) scrub(ctx context.Context, st *store.Store) {
	began, total := time.Now(), 0
	err := st.Scrub(ctx, func(bytes int) error {
		total += bytes
		n.scrubbed.Add(float64(bytes))
		// By the whole, so that the time that reading took counts.
		wait := time.NewTimer(time.Duration(float64(total)/scrubRate*float64(time.Second)) - time.Since(began))
		defer wait.Stop()
		select {
		case <-wait.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	switch {
	case err == nil:
		n.scrubs.Inc()
		n.log.Info("scrubbed", "shard", st.Shard(), "bytes", total, "took", time.Since(began).Round(time.Millisecond))
	case ctx.Err() == nil && !errors.Is(err, fsm.ErrClosed):
		n.log.Error("scrub", "shard", st.Shard(), "err", err)
	}
}
