//go:build tools

package chaos_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
)

// TestToolsRecover loses two nodes of three in the middle of writes, and goes through the runbook by what an administrator types: nothing that the node that is left had before is missing, the
// others are refused when they come back together with their disks, and join again without.
func TestToolsRecover(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 4})
	const keys = 40
	for i := range keys {
		cli(t, c.Node(1+i%3), "put", fmt.Sprintf("known/%d", i), fmt.Sprint(i)).must(t)
	}
	if err := c.WaitCaughtUp(timeout(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	wantKnown := func(n *proc.Node) {
		t.Helper()
		for i := range keys {
			if got := strings.TrimSpace(cli(t, n, "get", fmt.Sprintf("known/%d", i)).must(t)); got != fmt.Sprint(i) {
				t.Errorf("known/%d is %q", i, got)
			}
		}
	}
	l := load.Start(open(t, c), load.Config{Prefix: "before/", Writers: 4})
	t.Cleanup(l.Stop)
	progress(t, l, "with three nodes", 200, 30*time.Second)
	left, lost := c.Node(1), []*proc.Node{c.Node(2), c.Node(3)}
	for _, n := range lost {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	l.Stop()

	refused := func(code int, why string, args ...string) {
		t.Helper()
		if r := cli(t, left, append([]string{"recover"}, args...)...); r.code != code || !strings.Contains(r.stderr, why) {
			t.Errorf("recover %s: exit code %d, want %d: %s", strings.Join(args, " "), r.code, code, r.stderr)
		}
	}
	refused(1, "is not lost", "--lost", "n1")
	refused(2, "give it with --confirm", "--lost", "n2,n3", "--timeout", "30s")
	refused(1, "is not the phrase", "--lost", "n2,n3", "--confirm", "yes")
	var plan struct {
		Phrase string           `json:"phrase"`
		Shards []map[string]any `json:"shards"`
	}
	if err := json.Unmarshal([]byte(cli(t, left, "recover", "--lost", "n2,n3", "--dry-run", "-o", "json").must(t)), &plan); err != nil || len(plan.Shards) != 4 {
		t.Fatalf("%+v, %v", plan, err)
	}
	t.Log(cli(t, left, "recover", "--lost", "n2,n3", "--dry-run").must(t))
	t.Log(cli(t, left, "recover", "--lost", "n2,n3", "--confirm", plan.Phrase, "--timeout", "30s").must(t))
	wantKnown(left)
	cli(t, left, "put", "after", "1").must(t)

	for _, n := range lost {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range lost {
		eventually(t, time.Minute, n.ID()+" ends", func() bool { return !n.Running() && n.Ended() })
		t.Logf("%s ended with code %d", n.ID(), n.ExitCode())
		if tail := n.LogTail(20); !strings.Contains(tail, "removed from its cluster") && !strings.Contains(tail, "not a member of cluster") {
			t.Errorf("%s does not say why it ends:\n%s", n.ID(), tail)
		}
	}
	wantKnown(left)

	for _, n := range lost {
		if err := os.RemoveAll(n.DataDir()); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	waitReady(t, c)
	l = load.Start(open(t, c), load.Config{Prefix: "afterwards/", Writers: 4})
	t.Cleanup(l.Stop)
	progress(t, l, "with three nodes again", 200, 30*time.Second)
	wantKnown(c.Node(3))
	check(t, c, l)
}
