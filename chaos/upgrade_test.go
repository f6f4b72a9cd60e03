//go:build tools

package chaos_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
)

// previousRelease is what nodes are upgraded from, and go back to; previousCommit is the same, for clones without tags.
const (
	previousRelease = "v0.4.0"
	previousCommit  = "cbef2e6973340a074b132ea6955707ced5e84d68"
)

// buildPrevious builds the nodes' program of the previous release.
func buildPrevious(t *testing.T) string {
	t.Helper()
	rev := previousRelease
	if command(t, "", "git", "cat-file", "-e", rev+"^{commit}").code != 0 {
		rev = previousCommit
	}
	if command(t, "", "git", "cat-file", "-e", rev+"^{commit}").code != 0 {
		t.Fatalf("this clone has no history down to %s (git fetch --unshallow --tags)", previousRelease)
	}
	src, bin := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "abacusd")
	command(t, "", "git", "worktree", "add", "--detach", "--force", src, rev).must(t)
	t.Cleanup(func() { _ = exec.Command("git", "worktree", "remove", "--force", src).Run() })
	build := exec.CommandContext(timeout(t, 5*time.Minute), "go", "build", "-trimpath", "-o", bin, "./cmd/abacusd")
	build.Dir = src
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", rev, err, out)
	}
	return bin
}

// TestToolsUpgrade shows that a cluster of the previous release is upgraded node by node while clients write, goes back one node, and forward again; that what is
// new is refused until all nodes understand it and somebody has said so; and that no old node gets in afterwards. In the end every acknowledged write is read back.
func TestToolsUpgrade(t *testing.T) {
	old := buildPrevious(t)
	c := createCluster(t, proc.Config{Abacusd: old, Nodes: 4, Shards: 4, Replicas: 3})
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	l := load.Start(open(t, c), load.Config{Prefix: "upgrade/", Writers: 4})
	t.Cleanup(l.Stop)
	progress(t, l, "with the previous release", 300, 30*time.Second)
	change := func(n *proc.Node, program, what string) {
		t.Helper()
		if err := n.Stop(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		n.UseProgram(program)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		waitReady(t, c)
		progress(t, l, n.ID()+" "+what, 300, 30*time.Second)
	}
	refused := func(n *proc.Node, why string, args ...string) {
		t.Helper()
		if r := cli(t, n, args...); r.code == 0 || !strings.Contains(r.stderr, why) {
			t.Errorf("%v: exit code %d, %s; want %q", args, r.code, r.stderr, why)
		}
	}
	change(c.Node(2), abacusd, "is new")
	change(c.Node(1), abacusd, "is new")
	refused(c.Node(1), "feature level", "node", "cordon", "n4")
	refused(c.Node(1), "upgrade it first", "upgrade")
	change(c.Node(2), old, "is old again")
	for _, n := range c.Nodes()[1:] {
		change(n, abacusd, "is new")
	}
	refused(c.Node(3), "abacus upgrade", "node", "drain", "n1")
	cli(t, c.Node(3), "upgrade").must(t)
	cli(t, c.Node(4), "upgrade").must(t) // once more changes nothing
	cli(t, c.Node(4), "node", "drain", "n1", "--timeout", "30s").must(t)
	progress(t, l, "n1 is drained", 300, 30*time.Second)

	// An old one that comes back now ends, and says why; the new one is let in again.
	n := c.Node(1)
	if err := n.Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	n.UseProgram(old)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "an old node ends in a cluster that has been upgraded", func() bool { return !n.Running() && n.Ended() })
	if code := n.ExitCode(); code != 1 {
		t.Errorf("it ended with code %d: %s", code, n.LogTail(3))
	}
	n.UseProgram(abacusd)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	check(t, c, l)
}
