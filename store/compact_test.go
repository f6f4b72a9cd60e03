package store

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestLooks shows that each shard looks once in an interval whether its log is to be cut, and that a node wakes up for
// them at few moments, which are not one.
func TestLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &Net{began: time.Now()}
		every := DefaultSnapshots().Interval
		moments := map[time.Duration]int{}
		for shard := range uint32(64) {
			s := &Store{cfg: Config{Shard: shard, Net: net, Snapshots: DefaultSnapshots()}}
			time.Sleep(137 * time.Millisecond)
			wait := s.untilLook()
			if wait <= 0 || wait > every {
				t.Errorf("shard %d waits for %v", shard, wait)
			}
			time.Sleep(wait)
			moments[time.Since(net.began)%every]++
			if wait := s.untilLook(); wait != every {
				t.Errorf("shard %d looks again after %v, want %v", shard, wait, every)
			}
		}
		if len(moments) != lookPhases {
			t.Errorf("64 shards look at %d moments: %v", len(moments), moments)
		}
	})
}
