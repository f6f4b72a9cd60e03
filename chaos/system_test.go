//go:build system

package chaos_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/sharding"
)

// TestSystemFrozenDisks gives each node a file system of its own and freezes
// them (fsfreeze): every sync then hangs, and nothing else does.
//
// With one of three frozen, every write to a shard that another node leads is acknowledged.
// With two frozen, no write to a shard that the third leads is, for a majority cannot have it on
// disk; and after the thaw everything goes on and nothing acknowledged is missing.
func TestSystemFrozenDisks(t *testing.T) {
	mounts := mountThree(t)
	// Longer than any freeze here: that a disk which hangs for good ends the process is
	// TestSystemHungDisk's.
	c := startCluster(t, proc.Config{Shards: 6, Args: []string{"--disk-timeout", "2m"}, DataDir: func(n int) string { return filepath.Join(mounts[n-1], "data") }})
	// Thawed before the nodes are killed: a process in a frozen write does not die.
	t.Cleanup(func() { freeze(t, mounts, false) })
	cl := open(t, c)
	l := load.Start(cl, load.Config{Prefix: "before/", Writers: 4})
	progress(t, l, "before any freeze", 300, 30*time.Second)
	l.Stop()

	leaders := stableLeaders(t, c)
	t.Logf("leaders: %v", leaders)

	frozen := c.Node(1)
	freeze(t, mounts[:1], true)
	acked, failed := putEach(t, cl, "one", keysLedBy(leaders, "n2", "n3"), 15*time.Second)
	if len(failed) > 0 {
		t.Errorf("with the disk of %s frozen, %d of %d writes to shards of the others were not acknowledged: %v", frozen.ID(), len(failed), acked+len(failed), failed)
	}
	freeze(t, mounts[:1], false)
	waitReady(t, c)

	leaders = stableLeaders(t, c)
	t.Logf("leaders: %v", leaders)
	freeze(t, mounts[:2], true)
	keys := keysLedBy(leaders, "n3")
	if len(keys) == 0 {
		t.Fatal("n3 leads nothing")
	}
	acked, failed = putEach(t, cl, "two", keys, 5*time.Second)
	if acked > 0 || len(failed) == 0 {
		t.Fatalf("with the disks of n1 and n2 frozen, %d writes to shards of n3 were acknowledged", acked)
	}
	t.Logf("with two disks frozen none of %d writes was acknowledged; for example: %v", len(failed), failed[0])
	freeze(t, mounts[:2], false)
	waitReady(t, c)

	if acked, failed := putEach(t, cl, "after", keysLedBy(stableLeaders(t, c), "n1", "n2", "n3"), 20*time.Second); len(failed) > 0 {
		t.Errorf("after the thaw, %d of %d writes were not acknowledged: %v", len(failed), acked+len(failed), failed)
	}
	for _, k := range keysLedBy(leaders, "n2", "n3") {
		if _, err := cl.Get(timeout(t, 20*time.Second), "one:"+k); err != nil {
			t.Errorf("one:%s was acknowledged: %v", k, err)
		}
	}
	check(t, c, l)
}

// mountThree makes three ext4 file systems in files and mounts them.
func mountThree(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	var mounts []string
	for n := 1; n <= 3; n++ {
		image, at := filepath.Join(dir, fmt.Sprintf("disk%d", n)), filepath.Join(dir, fmt.Sprintf("mount%d", n))
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		shell(t, "truncate", "-s", "512M", image)
		shell(t, "mkfs.ext4", "-q", image)
		shell(t, "mount", "-o", "loop", image, at)
		t.Cleanup(func() { shell(t, "umount", at) })
		mounts = append(mounts, at)
	}
	return mounts
}

// freeze or thaw file systems. To thaw what is not frozen is no fault.
func freeze(t *testing.T, mounts []string, on bool) {
	t.Helper()
	for _, m := range mounts {
		if on {
			shell(t, "fsfreeze", "--freeze", m)
		} else {
			_ = exec.Command("fsfreeze", "--unfreeze", m).Run()
		}
	}
}

func shell(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// shardRange is a shard's slots and leader.
type shardRange struct {
	from, to sharding.Slot
	leader   string
}

// stableLeaders waits until every node leads a shard and the leaders have not
// changed for three seconds, so that the balancer has done its work.
func stableLeaders(t *testing.T, c *proc.Cluster) []shardRange {
	t.Helper()
	var last []shardRange
	since := time.Now()
	eventually(t, 60*time.Second, "every node leads a shard, for three seconds", func() bool {
		s, err := c.Status(timeout(t, 5*time.Second))
		if err != nil {
			return false
		}
		var now []shardRange
		leads := map[string]bool{}
		for _, sh := range s.Shards {
			for run := range strings.FieldsFuncSeq(sh.Slots, func(r rune) bool { return r == ',' }) {
				from, to, ok := strings.Cut(run, "-")
				lo, errLo := strconv.Atoi(from)
				hi, errHi := strconv.Atoi(to)
				if !ok || errLo != nil || errHi != nil {
					t.Fatalf("shard %d has slots %q", sh.ID, sh.Slots)
				}
				now = append(now, shardRange{sharding.Slot(lo), sharding.Slot(hi), sh.Leader})
			}
			leads[sh.Leader] = true
		}
		if fmt.Sprint(now) != fmt.Sprint(last) || len(leads) != 3 || leads[""] {
			last, since = now, time.Now()
		}
		return time.Since(since) > 3*time.Second
	})
	return last
}

// keysLedBy returns twenty keys of each shard that one of the nodes leads. A key
// here is what goes in the braces, so that several keys can share a slot.
func keysLedBy(shards []shardRange, nodes ...string) []string {
	var keys []string
	for _, s := range shards {
		led := false
		for _, n := range nodes {
			led = led || s.leader == n
		}
		if !led {
			continue
		}
		for i, found := 0, 0; found < 20; i++ {
			k := fmt.Sprintf("{%d}", i)
			if slot := sharding.SlotOf([]byte(k)); s.from <= slot && slot <= s.to {
				keys = append(keys, k)
				found++
			}
		}
	}
	return keys
}

// putEach writes all keys at once, each with the time limit.
func putEach(t *testing.T, cl *client.Client, prefix string, keys []string, limit time.Duration) (acked int, failed []error) {
	t.Helper()
	ctx := timeout(t, limit)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, k := range keys {
		wg.Go(func() {
			err := cl.Put(ctx, prefix+":"+k, []byte("x"))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				acked++
			case errors.Is(err, client.ErrUncertain), errors.Is(err, client.ErrUnavailable):
				failed = append(failed, err)
			default:
				t.Errorf("put: %v", err)
			}
		})
	}
	wg.Wait()
	return acked, failed
}
