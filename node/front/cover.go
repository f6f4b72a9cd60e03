package front

import (
	"context"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// What reads slots while they may change hands: the map says whom to ask, and the answer whether he had them.

const (
	// A slot that changes hands has no owner that answers for less than a second as a rule; the
	// client's deadline bounds the wait.
	minMovePause = 2 * time.Millisecond
	maxMovePause = 50 * time.Millisecond
)

// settled asks again, by the map as it then is, while slots are changing hands under the question, until ctx ends.
func (c *conn) settled(ctx context.Context, ask func(router *sharding.Router, how Reading) error) error {
	how := c.reading
	for pause := minMovePause; ; pause = min(2*pause, maxMovePause) {
		err := ask(c.srv.backend.Router(), how)
		if transport.CodeOf(err) != transport.CodeSlotsMoved {
			return err
		}
		how = Reading{} // of leaders: a replica that may be behind would go on saying the same
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// covers says whether SCAN, DBSIZE and RANDOMKEY are about a shard: on a cluster port if it is led here.
func (c *conn) covers(id sharding.ShardID) bool {
	return c.srv.cfg.Mode != ModeCluster || c.srv.backend.Leader(id) == c.srv.backend.Self()
}

// covered are the shards with slots that are covered. One that has just got its first and is left out
// is noticed by who adds up.
func (c *conn) covered(m sharding.Map) (shards []sharding.Shard) {
	for _, s := range m.Shards {
		if len(s.Slots) > 0 && c.covers(s.ID) {
			shards = append(shards, s)
		}
	}
	return shards
}
