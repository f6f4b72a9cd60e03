package chaos_test

import (
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
)

// TestKills shows that nothing acknowledged is lost when nodes die: under load
// each node is killed with SIGKILL in turn and comes back, then all are killed
// at once and started again. After each the writers get on, and in the end
// every acknowledged write is read back, and the counter lies between what was acknowledged
// and that plus what is uncertain.
func TestKills(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 4})
	cl := open(t, c)
	l := load.Start(cl, load.Config{Prefix: "kills/", Writers: 6})
	t.Cleanup(l.Stop)
	progress(t, l, "before any kill", 300, 30*time.Second)

	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		l.Tally(true)
		progress(t, l, "without "+n.ID(), 300, 30*time.Second)
		t.Logf("%s killed: a writer waited at most %v", n.ID(), l.Tally(false).Slowest)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		waitReady(t, c)
		progress(t, l, "with "+n.ID()+" back", 300, 30*time.Second)
	}

	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	progress(t, l, "after the death of all", 300, 30*time.Second)

	check(t, c, l)
}

// TestKillAllAtRest kills all nodes when nothing runs and looks at what a client
// that never saw them before reads.
func TestKillAllAtRest(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 4})
	l := load.Start(open(t, c), load.Config{Prefix: "rest/", Writers: 4})
	progress(t, l, "some writes", 500, 30*time.Second)
	l.Stop()
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	check(t, c, l)
}

// TestPauses stops a node where it is (SIGSTOP) and lets it go on when the
// others have long elected new leaders: it must not answer from its past.
func TestPauses(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 4})
	l := load.Start(open(t, c), load.Config{Prefix: "pauses/", Writers: 4})
	t.Cleanup(l.Stop)
	for _, n := range c.Nodes() {
		progress(t, l, "before the pause of "+n.ID(), 200, 30*time.Second)
		if err := n.Pause(); err != nil {
			t.Fatal(err)
		}
		progress(t, l, "while "+n.ID()+" is paused", 200, 30*time.Second)
		if err := n.Resume(); err != nil {
			t.Fatal(err)
		}
		waitReady(t, c)
	}
	check(t, c, l)
}

// progress waits until so many more writes are acknowledged.
func progress(t *testing.T, l *load.Load, when string, more int64, limit time.Duration) {
	t.Helper()
	start := l.Tally(false).Acked
	deadline := time.Now().Add(limit)
	for {
		now := l.Tally(false)
		if now.Acked >= start+more {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d writes were acknowledged in %v, %d were expected; %d are uncertain and %d refused in all, the last because: %v",
				when, now.Acked-start, limit, more, now.Uncertain, now.Refused, now.LastError)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// check stops the load and reads everything back with a fresh client.
func check(t *testing.T, c *proc.Cluster, l *load.Load) {
	t.Helper()
	l.Stop()
	tally := l.Tally(false)
	report, err := l.Check(timeout(t, time.Minute), open(t, c))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Faults {
		t.Error(f)
	}
	t.Logf("%d acknowledged, %d uncertain, %d refused; read back %d keys and %d registers; the counter is %d of %d to %d",
		tally.Acked, tally.Uncertain, tally.Refused, report.Keys, report.Registers, report.Counter, report.CounterMin, report.CounterMax)
	if int64(report.Keys) < tally.Acked/10 {
		t.Errorf("only %d keys were read back of %d acknowledged writes", report.Keys, tally.Acked)
	}
}
