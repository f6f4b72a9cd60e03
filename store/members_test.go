package store

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/transport"
)

// TestRemoveWaitsForLaggard shows that a voter is not removed while, of those that would stay, no majority has the present
// members in its log: with the leader gone, the laggard and one that it does not know would refuse each other for ever.
func TestRemoveWaitsForLaggard(t *testing.T) { synctest.Test(t, testRemoveWaitsForLaggard) }

func testRemoveWaitsForLaggard(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.converge()
	l, fs := c.waitLeader(), c.followers()
	laggard, goes := fs[0], fs[1]
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	laggard.gate.hold()
	defer laggard.gate.release()
	// The leader and the one that goes commit another configuration.
	if err := l.store.AddLearner(ctx, "n9.1", "n9"); err != nil {
		t.Fatal(err)
	}
	if err := l.store.Remove(ctx, goes.replica); transport.CodeOf(err) != transport.CodeBusy {
		t.Errorf("removed while one that stays knows only the members before: %v", err)
	}
	if err := l.store.Remove(ctx, "n9.1"); err != nil { // it has no vote
		t.Errorf("a learner: %v", err)
	}
	laggard.gate.release()
	until(t, "the voter to be removed", func() bool { return l.store.Remove(ctx, goes.replica) == nil })
}
