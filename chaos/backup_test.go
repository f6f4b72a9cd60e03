//go:build tools

package chaos_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
)

// TestToolsBackup shows backups by what an administrator types: one is made of three nodes with four shards while clients write and a replica
// is killed; each value in it is one that was there between its start and its end, pairs of keys that one transaction sets are of one state, and what was acknowledged before
// it began is in it. Restored into one node with eight shards, all keys are the same, with their times; a restore that is killed is said again.
func TestToolsBackup(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 4, Replicas: 3})
	cl := open(t, c)
	dir := t.TempDir()

	// What is still, some of it at the limits.
	large := strings.Repeat("\x00\xff", 512<<10)
	still := map[string]string{strings.Repeat("k", 1024): large, "large": large, "empty": ""}
	for i := range 40 {
		still[fmt.Sprintf("large/%d", i)] = fmt.Sprint(i) + large[:1<<20-10]
	}
	for i := range 20_000 {
		still[fmt.Sprintf("still/%d", i)] = fmt.Sprint("value ", i)
	}
	store(t, cl, still)
	if stored, err := cl.PutWith(t.Context(), "ends", []byte("later"), client.PutOptions{TTL: time.Hour}); err != nil || !stored {
		t.Fatal(stored, err)
	}
	if stored, err := cl.PutWith(t.Context(), "ends/soon", []byte("x"), client.PutOptions{TTL: 15 * time.Second}); err != nil || !stored {
		t.Fatal(stored, err)
	}

	w := startPairs(t, cl, 16)
	eventually(t, 30*time.Second, "the pairs are written", func() bool { return slices.Min(w.acknowledged()) > 5 })
	before := w.acknowledged()
	// Slow enough that a node can be killed meanwhile: the large values alone take eight seconds.
	path := filepath.Join(dir, "b.abk")
	var out result
	var making sync.WaitGroup
	making.Go(func() {
		out = command(t, "", abacus, "--addr", strings.Join(c.ClientAddrs(), ","), "-o", "json", "backup", "create", path, "--rate", "5000000")
	})
	eventually(t, 10*time.Second, "it has begun", func() bool { return len(partials(t, dir)) == 1 })
	time.Sleep(2 * time.Second) // into the middle: what is shown does not depend on it
	if _, err := os.Stat(path); err == nil {
		t.Error("the file has its name before it is whole")
	}
	if err := c.Node(2).Kill(); err != nil {
		t.Fatal(err)
	}
	making.Wait()
	after := w.tried()
	text := out.must(t)
	t.Logf("notes: %s", out.stderr)
	var m struct {
		Records int64
		Shards  []struct {
			Node    string
			Index   uint64
			Attempt int
		}
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil || len(m.Shards) != 4 {
		t.Fatalf("%v\n%s", err, text)
	}
	anew := 0
	for _, s := range m.Shards {
		if s.Attempt > 1 {
			anew++
		}
	}
	if anew == 0 {
		t.Errorf("no shard was read anew, and a node was killed: %s", text)
	}
	if err := c.Node(2).Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	w.stop()

	if left := partials(t, dir); len(left) != 0 {
		t.Errorf("left beside it: %q", left)
	}
	if out := command(t, "", abacus, "backup", "verify", path).must(t); !strings.Contains(out, "the backup is whole") {
		t.Errorf("verify: %s", out)
	}

	// Into a cluster of another size.
	other := startCluster(t, proc.Config{Nodes: 1, Shards: 8, Replicas: 1})
	ocl := open(t, other)
	first := exec.Command(abacus, "--addr", other.Node(1).Addrs().Client, "backup", "restore", path)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the restore has stored something", func() bool { n, err := ocl.Size(t.Context()); return err == nil && n > 0 })
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	if out := cli(t, other.Node(1), "backup", "restore", path); out.code != 1 || !strings.Contains(out.stderr, "--overwrite") {
		t.Errorf("restore into what is not empty: %d, %s", out.code, out.stderr)
	}
	if out := cli(t, other.Node(1), "backup", "restore", path, "--overwrite").must(t); !strings.Contains(out, "keys restored from") {
		t.Errorf("restore: %s", out)
	}

	got := everything(t, ocl)
	for i := range before {
		a, b := got[w.key(i, "a")], got[w.key(i, "b")]
		n, err := strconv.ParseInt(a, 10, 64)
		if err != nil || a != b {
			t.Errorf("pair %d is %q and %q: no state ever was", i, a, b)
		}
		if n < before[i] || n > after[i] {
			t.Errorf("pair %d is %d: %d was acknowledged before the backup began, %d begun when it had ended", i, n, before[i], after[i])
		}
		delete(got, w.key(i, "a"))
		delete(got, w.key(i, "b"))
	}
	if got["ends"] != "later" {
		t.Errorf("ends is %q", got["ends"])
	}
	if ttl := cli(t, other.Node(1), "get", "ends/soon"); ttl.code == 0 {
		eventually(t, 20*time.Second, "a key ends that was to end", func() bool { return cli(t, other.Node(1), "get", "ends/soon").code == 1 })
	}
	if r, err := ocl.Do(t.Context(), "PTTL", "ends"); err != nil || r.Int <= (50*time.Minute).Milliseconds() || r.Int > time.Hour.Milliseconds() {
		t.Errorf("ends has %d ms left (%v)", r.Int, err)
	}
	delete(got, "ends")
	delete(got, "ends/soon")
	if !maps.Equal(got, still) {
		t.Errorf("%d keys were restored that were still, want %d; or one differs", len(got), len(still))
	}

	// A directory, of the cluster that is still now: every key is as it is.
	path = filepath.Join(dir, "all") + "/"
	cli(t, c.Node(1), "backup", "create", path, "--rate", "0").must(t)
	command(t, "", "sh", "-c", "cd "+path+" && sha256sum -c manifest.json.sha256").must(t)
	third := startCluster(t, proc.Config{Nodes: 1, Shards: 1, Replicas: 1})
	cli(t, third.Node(1), "backup", "restore", path, "--pause-ttl").must(t)
	tcl := open(t, third)
	want, have := everything(t, cl), everything(t, tcl)
	delete(want, "ends/soon")
	delete(have, "ends/soon")
	if len(want) < len(still)+32 || !maps.Equal(want, have) {
		t.Errorf("%d keys there, %d restored, or one differs", len(want), len(have))
	}
	// One flipped bit.
	shard := filepath.Join(path, "shard-0002.abk")
	b, err := os.ReadFile(shard)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(shard, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := command(t, "", abacus, "backup", "verify", path); out.code != 1 || !strings.Contains(out.stderr, "shard-0002.abk") {
		t.Errorf("verify of a damaged one: %d, %s", out.code, out.stderr)
	}
}

// TestToolsBackupInterrupted shows that Ctrl-C ends a backup soon, and that nothing is left of it.
func TestToolsBackupInterrupted(t *testing.T) {
	c := sharedCluster(t)
	store(t, open(t, c), map[string]string{"interrupt/1": strings.Repeat("x", 1<<20), "interrupt/2": strings.Repeat("y", 1<<20)})
	for _, name := range []string{"b.abk", "dir/"} {
		dir := t.TempDir()
		cmd := exec.CommandContext(timeout(t, time.Minute), abacus, "--addr", c.Node(1).Addrs().Client, "backup", "create", filepath.Join(dir, "x")+"-"+name, "--rate", "100000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "it has begun", func() bool { return len(partials(t, dir)) == 1 })
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		said := time.Now()
		_ = cmd.Wait()
		if took := time.Since(said); took > 5*time.Second {
			t.Errorf("%s: it ended %v after Ctrl-C", name, took)
		}
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("%s: exit code %d", name, code)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("%s: left: %v, %v", name, entries, err)
		}
	}
}

// partials are the unfinished backups in a directory.
func partials(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, ".*.partial-*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func store(t *testing.T, cl *client.Client, pairs map[string]string) {
	t.Helper()
	keys := slices.Collect(maps.Keys(pairs))
	for some := range slices.Chunk(keys, 500) {
		var cmds []client.Cmd
		for _, k := range some {
			cmds = append(cmds, client.Command("SET", k, pairs[k]))
		}
		for _, r := range cl.DoMulti(timeout(t, time.Minute), cmds) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
	}
}

// everything reads all keys.
func everything(t *testing.T, cl *client.Client) map[string]string {
	t.Helper()
	ctx := timeout(t, time.Minute)
	all := map[string]string{}
	for keys, err := range cl.ScanPages(ctx, client.ScanOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		for some := range slices.Chunk(keys, 20) {
			values, err := cl.MGet(ctx, some...)
			if err != nil {
				t.Fatal(err)
			}
			for i, k := range some {
				if values[i] != nil {
					all[k] = string(values[i])
				}
			}
		}
	}
	return all
}

// pairs are writers, each of which counts up in two keys of one slot, both in one transaction.
type pairs struct {
	t          *testing.T
	begun, ack []atomic.Int64
	cancel     context.CancelFunc
	wg         sync.WaitGroup
}

func startPairs(t *testing.T, cl *client.Client, n int) *pairs {
	ctx, cancel := context.WithCancel(context.Background())
	p := &pairs{t: t, begun: make([]atomic.Int64, n), ack: make([]atomic.Int64, n), cancel: cancel}
	t.Cleanup(p.stop)
	for i := range n {
		p.wg.Go(func() {
			for v := int64(1); ctx.Err() == nil; v++ {
				p.begun[i].Store(v)
				s := strconv.FormatInt(v, 10)
				r := cl.DoMulti(context.Background(), []client.Cmd{client.Command("MSET", p.key(i, "a"), s, p.key(i, "b"), s)})[0]
				if r.Err != nil {
					t.Errorf("set pair %d: %v", i, r.Err)
					return
				}
				p.ack[i].Store(v)
			}
		})
	}
	return p
}

func (p *pairs) key(i int, which string) string { return fmt.Sprintf("pair/{%d}/%s", i, which) }

func (p *pairs) acknowledged() []int64 { return loaded(p.ack) }
func (p *pairs) tried() []int64        { return loaded(p.begun) }

func loaded(list []atomic.Int64) (out []int64) {
	for i := range list {
		out = append(out, list[i].Load())
	}
	return out
}

func (p *pairs) stop() {
	p.cancel()
	p.wg.Wait()
}
