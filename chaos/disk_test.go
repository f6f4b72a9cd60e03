//go:build system

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
)

const exitFatal = 70

// TestSystemFailedSync has every write and sync of the files of one of three nodes fail with EIO
// (strace). The node ends with exit code 70 and names the file, the others go on, and once the disk is
// well it comes back; nothing acknowledged is lost.
func TestSystemFailedSync(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 3})
	l := load.Start(open(t, c), load.Config{Prefix: "eio/", Writers: 4})
	t.Cleanup(l.Stop)
	progress(t, l, "before", 200, 30*time.Second)

	n := c.Node(2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	trace := exec.CommandContext(ctx, "strace", "-f", "-qq", "-o", os.DevNull, "-p", strconv.Itoa(n.Pid()),
		"-e", "trace=pwrite64,fdatasync,fsync", "-e", "inject=pwrite64,fdatasync,fsync:error=EIO")
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the node ends", func() bool { return !n.Running() })
	cancel()
	_ = trace.Wait()
	died(t, n, n.DataDir()+string(filepath.Separator), "input/output error")
	progress(t, l, "without it", 200, 30*time.Second)

	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	progress(t, l, "with it back", 200, 30*time.Second)
	check(t, c, l)
}

// died checks that a node ended as it must when its disk fails, and said why.
func died(t *testing.T, n *proc.Node, said ...string) {
	t.Helper()
	eventually(t, 5*time.Second, "the exit code is known", func() bool { return n.ExitCode() >= 0 })
	if code := n.ExitCode(); code != exitFatal {
		t.Errorf("%s ended with exit code %d, want %d", n.ID(), code, exitFatal)
	}
	last := lastWords(n)
	for _, s := range append(said, "exit code 70") {
		if !strings.Contains(last, s) {
			t.Errorf("%s does not say %q before it ends: %s", n.ID(), s, last)
		}
	}
	t.Logf("%s: %s", n.ID(), last)
}

// lastWords is the line in which a node says why it ends.
func lastWords(n *proc.Node) string {
	lines := strings.Split(n.LogTail(50), "\n")
	for _, line := range slices.Backward(lines) {
		if strings.HasPrefix(line, "abacusd: ") {
			return line
		}
	}
	return ""
}

// TestSystemHungDisk freezes the file system of a node for longer than --disk-timeout
// while it leads. It ends with exit code 70 and names the file; the others lead and go on.
// A process that waits in the kernel for a frozen disk is not gone before the thaw, but
// it does nothing any more.
func TestSystemHungDisk(t *testing.T) {
	mounts := mountThree(t)
	c := startCluster(t, proc.Config{Shards: 3, Args: []string{"--disk-timeout", "5s"}, DataDir: func(n int) string { return filepath.Join(mounts[n-1], "data") }})
	t.Cleanup(func() { freeze(t, mounts, false) })
	l := load.Start(open(t, c), load.Config{Prefix: "hung/", Writers: 4})
	t.Cleanup(l.Stop)
	progress(t, l, "before", 100, 30*time.Second)

	n := c.Node(1)
	eventually(t, 30*time.Second, "n1 leads a shard", func() bool { return leads(t, c, "n1") > 0 })
	freeze(t, mounts[:1], true)
	began := time.Now()
	eventually(t, 15*time.Second, "the node says that it ends", func() bool { return lastWords(n) != "" })
	t.Logf("after %v", time.Since(began).Round(100*time.Millisecond))
	l.Tally(true)
	progress(t, l, "with the disk still frozen", 100, 30*time.Second)
	eventually(t, 10*time.Second, "the others lead everything", func() bool {
		s, err := c.Node(2).Status(timeout(t, 5*time.Second))
		if err != nil {
			return false
		}
		for _, sh := range s.Shards {
			if sh.Leader != "n2" && sh.Leader != "n3" {
				return false
			}
		}
		return true
	})
	freeze(t, mounts[:1], false)
	eventually(t, 10*time.Second, "the node is gone", func() bool { return !n.Running() })
	died(t, n, n.DataDir()+string(filepath.Separator), "has not returned for")

	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	progress(t, l, "with it back", 100, 30*time.Second)
	check(t, c, l)
}

// leads is how many shards a node leads, as the cluster says.
func leads(t *testing.T, c *proc.Cluster, id string) int {
	t.Helper()
	s, err := c.Status(timeout(t, 5*time.Second))
	if err != nil {
		return -1
	}
	n := 0
	for _, sh := range s.Shards {
		if sh.Leader == id {
			n++
		}
	}
	return n
}

// TestSystemFullDisk fills the small file systems of the nodes. One nearly full: it hands
// its leaderships over and writes go on. Two: no majority has room, and writes that add
// data are refused with an error that nobody repeats (DISKFULL, HTTP 507), while reads and
// deletes go on; with room again, so do writes. One without any limit, filled to the last byte:
// its log fails, it ends with exit code 70, and comes back when there is room. Nothing
// acknowledged is lost.
func TestSystemFullDisk(t *testing.T) {
	const least = 16 << 20
	var mounts []string
	for n := 1; n <= 3; n++ {
		at := filepath.Join(t.TempDir(), "disk")
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		shell(t, "mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", at)
		t.Cleanup(func() { shell(t, "umount", "-l", at) })
		mounts = append(mounts, at)
	}
	limited := []string{"--min-free-disk", strconv.Itoa(least)}
	c := startCluster(t, proc.Config{Shards: 3, NodeArgs: map[int][]string{1: limited, 2: limited, 3: {"--min-free-disk", "1"}},
		DataDir: func(n int) string { return filepath.Join(mounts[n-1], "data") }})
	cl := open(t, c)
	l := load.Start(cl, load.Config{Prefix: "full/", Writers: 4, Pause: 5 * time.Millisecond})
	t.Cleanup(l.Stop)
	progress(t, l, "before", 100, 30*time.Second)
	if err := cl.Put(timeout(t, 10*time.Second), "old", []byte("x")); err != nil {
		t.Fatal(err)
	}

	// All but half of what must stay free.
	fill(t, mounts[0], least/2)
	eventually(t, 20*time.Second, "n1 hands its leaderships over", func() bool { return leads(t, c, "n1") == 0 })
	progress(t, l, "with one disk nearly full", 100, 20*time.Second)

	fill(t, mounts[1], least/2)
	put := func() error { return cl.Put(timeout(t, 5*time.Second), "new", []byte("x")) }
	eventually(t, 10*time.Second, "writes are refused", func() bool { return errors.Is(put(), client.ErrDiskFull) })
	if v, err := cl.Get(timeout(t, 5*time.Second), "old"); err != nil || string(v) != "x" {
		t.Errorf("read with full disks: %q, %v", v, err)
	}
	if _, err := cl.Del(timeout(t, 5*time.Second), "old"); err != nil {
		t.Errorf("delete with full disks: %v", err)
	}
	if _, err := cl.Get(timeout(t, 5*time.Second), "old"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("read after the delete: %v", err)
	}
	if code, body := httpPut(t, c.Node(3), "new"); code != http.StatusInsufficientStorage {
		t.Errorf("HTTP %d: %s", code, body)
	}
	s, err := c.Node(3).Status(timeout(t, 5*time.Second))
	if err != nil || s.Healthy || !strings.Contains(fmt.Sprint(s.Problems), "node n1: the disk is nearly full") {
		t.Errorf("status: %v, %+v", err, s)
	}
	t.Logf("refused: %v", put())

	empty(t, mounts[0])
	empty(t, mounts[1])
	eventually(t, 10*time.Second, "writes are taken again", func() bool { return put() == nil })
	progress(t, l, "with room again", 100, 20*time.Second)

	n := c.Node(3)
	fill(t, mounts[2], 0)
	big := make([]byte, 256<<10)
	for i := 0; n.Running(); i++ { // new keys: in the log's old segments there may be room for a while
		if i == 400 {
			t.Fatal("100 MiB went into a full disk")
		}
		_ = cl.Put(timeout(t, 10*time.Second), fmt.Sprintf("big%d", i), big)
	}
	died(t, n, n.DataDir()+string(filepath.Separator), "no space left on device", "is full: make room")
	progress(t, l, "without n3", 100, 30*time.Second)
	empty(t, mounts[2])
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	check(t, c, l)
}

// fill writes a file that leaves so many bytes free; empty takes it away.
func fill(t *testing.T, at string, leave int64) {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(at, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(at, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, 64<<10)
	for n := int64(st.Bavail)*st.Bsize - leave; n > 0; n -= int64(len(chunk)) {
		if _, err := f.Write(chunk[:min(n, int64(len(chunk)))]); err != nil {
			if leave == 0 && errors.Is(err, syscall.ENOSPC) {
				return
			}
			t.Fatal(err)
		}
	}
}

func empty(t *testing.T, at string) {
	t.Helper()
	if err := os.Remove(filepath.Join(at, "filler")); err != nil {
		t.Fatal(err)
	}
}

func httpPut(t *testing.T, n *proc.Node, key string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(timeout(t, 5*time.Second), http.MethodPut, "http://"+n.Addrs().HTTP+"/v1/kv/"+key, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(body))
}

// TestSystemLongPause stops a node (SIGSTOP) under load for longer than --disk-timeout:
// what its disk was at then looks old when it goes on, and it must not end for that.
func TestSystemLongPause(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 3, Args: []string{"--disk-timeout", "5s"}})
	l := load.Start(open(t, c), load.Config{Prefix: "pause/", Writers: 4})
	t.Cleanup(l.Stop)
	progress(t, l, "before", 100, 30*time.Second)
	n := c.Node(1)
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(7 * time.Second) // there is nothing to wait for but time
	if err := n.Resume(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	progress(t, l, "with it back", 100, 30*time.Second)
	if !n.Running() {
		t.Errorf("%s ended: %s", n.ID(), lastWords(n))
	}
	check(t, c, l)
}
