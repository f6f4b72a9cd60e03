package chaos_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
)

// The tests here damage the files of one node of three while it is down, under load, and
// start it again. It must come back whole by itself: three voters of every shard, nothing acknowledged
// missing. In the end a sound node is killed, so that what is read back rests on the mended one.

// files of a node.
func files(t *testing.T, n *proc.Node, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(n.DataDir(), pattern))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// rewrite changes a file's bytes.
func rewrite(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// flipBits flips a bit in every page from the first one given on.
func flipBits(first int) func([]byte) []byte {
	return func(b []byte) []byte {
		for at := first*4096 + 45; at < len(b); at += 4096 {
			b[at] ^= 8
		}
		return b
	}
}

// mended waits until a node that may find more damage while it runs, and end, is well again.
func mended(t *testing.T, c *proc.Cluster, n *proc.Node) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for starts := 1; ; starts++ {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		err := c.WaitReady(timeout(t, time.Until(deadline)), nil)
		if err == nil {
			return
		}
		if !errors.Is(err, proc.ErrExited) || n.Running() || starts == 10 {
			t.Fatal(err)
		}
		t.Logf("%s found more damage and ended with code %d: started again", n.ID(), n.ExitCode())
	}
}

// restOn kills a sound node and reads everything back from the other and the mended one.
func restOn(t *testing.T, c *proc.Cluster, sound *proc.Node, l *load.Load) {
	t.Helper()
	progress(t, l, "when all is mended", 100, 30*time.Second)
	if err := sound.Kill(); err != nil {
		t.Fatal(err)
	}
	progress(t, l, "without "+sound.ID(), 100, 30*time.Second)
	check(t, c, l)
}

// TestRepairBitFlips flips bits in every state file: in all pages of those of two shards, in
// all but the first two, which bbolt itself checks, of the others.
func TestRepairBitFlips(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 4})
	l := load.Start(open(t, c), load.Config{Prefix: "flips/", Writers: 4, Pause: 5 * time.Millisecond})
	t.Cleanup(l.Stop)
	progress(t, l, "before the damage", 300, 30*time.Second)
	n := c.Node(3)
	if err := n.Stop(15 * time.Second); err != nil { // so that all is in the files
		t.Fatal(err)
	}
	states := files(t, n, "shard-*/*/state/state-*.db")
	if len(states) != 4 {
		t.Fatalf("state files: %v", states)
	}
	for i, path := range states {
		rewrite(t, path, flipBits(i/2*2))
	}
	logs := sizes(t, files(t, n, "shard-*/*/raft.db"))
	progress(t, l, "without "+n.ID(), 200, 30*time.Second)
	mended(t, c, n)
	if aside := files(t, n, "shard-*/*/state.damaged-*"); len(aside) < 2 {
		t.Errorf("put aside: %v", aside)
	}
	if now := sizes(t, files(t, n, "shard-*/*/raft.db")); len(now) != len(logs) {
		t.Errorf("the replicas' logs are %v, they were %v: they were to stay", now, logs)
	}
	if lost := files(t, n, "shard-*/*.damaged"); len(lost) > 0 {
		t.Errorf("replicas put aside, though their logs were sound: %v", lost)
	}
	restOn(t, c, c.Node(1), l)
}

func sizes(t *testing.T, paths []string) map[string]int64 {
	t.Helper()
	m := map[string]int64{}
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		m[p] = info.Size()
	}
	return m
}

// TestRepairLogs truncates, garbles, flips and removes files of log and votes, and one
// whole replica. None of these replicas may vote again under its id: the node gets new ones.
func TestRepairLogs(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 5})
	l := load.Start(open(t, c), load.Config{Prefix: "logs/", Writers: 4, Pause: 5 * time.Millisecond})
	t.Cleanup(l.Stop)
	progress(t, l, "before the damage", 300, 30*time.Second)
	n := c.Node(2)
	before := replicasOn(t, c, n.ID())
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	logs := files(t, n, "shard-*/*/raft.db")
	if len(logs) != 5 {
		t.Fatalf("logs: %v", logs)
	}
	rewrite(t, logs[0], func(b []byte) []byte { return b[:4096*3+17] })
	rewrite(t, logs[1], func(b []byte) []byte { clear(b[8192:]); return b })
	rewrite(t, logs[2], flipBits(0))
	rewrite(t, logs[3], func(b []byte) []byte { return b[:0] })
	if err := os.RemoveAll(filepath.Dir(logs[4])); err != nil {
		t.Fatal(err)
	}
	progress(t, l, "without "+n.ID(), 200, 30*time.Second)
	mended(t, c, n)
	for shard, id := range replicasOn(t, c, n.ID()) {
		if id == before[shard] {
			t.Errorf("shard %d is still kept by %s", shard, id)
		}
	}
	if kept := files(t, n, "shard-*/*.damaged/raft.db"); len(kept) != 4 {
		t.Errorf("kept: %v", kept)
	}
	restOn(t, c, c.Node(3), l)
}

// replicasOn lists a node's replicas by shard.
func replicasOn(t *testing.T, c *proc.Cluster, id string) map[uint32]string {
	t.Helper()
	s, err := c.Status(timeout(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	m := map[uint32]string{}
	for _, sh := range s.Shards {
		for _, r := range sh.Replicas {
			if r.Node == id {
				m[sh.ID] = r.ID
			}
		}
	}
	if len(m) != len(s.Shards) {
		t.Fatalf("%s has the replicas %v", id, m)
	}
	return m
}

// TestRepairWipedNode removes a node's whole data directory. The same command starts it
// again: it joins under its old id, as another.
func TestRepairWipedNode(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 4})
	l := load.Start(open(t, c), load.Config{Prefix: "wiped/", Writers: 4, Pause: 5 * time.Millisecond})
	t.Cleanup(l.Stop)
	progress(t, l, "before the loss", 300, 30*time.Second)
	n := c.Node(3)
	before := replicasOn(t, c, n.ID())
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.DataDir()); err != nil {
		t.Fatal(err)
	}
	mended(t, c, n)
	for shard, id := range replicasOn(t, c, n.ID()) {
		if id == before[shard] || !strings.HasPrefix(id, "n3.") {
			t.Errorf("shard %d is kept by %s, it was %s", shard, id, before[shard])
		}
	}
	restOn(t, c, c.Node(1), l)
}
