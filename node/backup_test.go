package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/backup"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

func clientOf(t *testing.T, nodes []*Node) *client.Client {
	t.Helper()
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.Addrs().Client)
	}
	c, err := client.Open(client.Config{Addrs: addrs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A backup of three nodes, made while clients write, has everything that was acknowledged before it began, of each shard one
// state, from followers; then a node of its own.
func TestBackupWhileWriting(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	untilBalanced(t, nodes[0])
	c := clientOf(t, nodes)
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stop()
	// A pair of keys of one shard is set in one transaction: no state has two different values.
	for w := range 3 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				a, b := fmt.Sprintf("{pair%d}a", w), fmt.Sprintf("{pair%d}b", w)
				r := c.DoMulti(t.Context(), []client.Cmd{client.Command("MSET", a, strconv.Itoa(i), b, strconv.Itoa(i))})
				if r[0].Err != nil {
					t.Error(r[0].Err)
					return
				}
			}
		})
	}
	large := strings.Repeat("\x00\xff", 512<<10)
	want := map[string]string{"large": large, strings.Repeat("k", 1024): large, "empty": ""}
	for i := range 2000 {
		want[fmt.Sprint("key/", i)] = fmt.Sprint("value ", i)
	}
	for k, v := range want {
		if err := c.Put(ctx, k, []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.PutWith(ctx, "ends", []byte("soon"), client.PutOptions{TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	before := c.DoMulti(ctx, []client.Cmd{client.Command("GET", "{pair0}a")})[0]
	if before.Err != nil {
		t.Fatal(before.Err)
	}
	path := filepath.Join(t.TempDir(), "b.abk")
	m, err := backup.Create(ctx, c, path, backup.Options{Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	stop()
	writers.Wait()
	for _, s := range m.Shards {
		if leader := string(nodes[0].Leader(s.ID)); s.Node == leader || s.Index == 0 || s.Term == 0 || s.Attempt != 1 {
			t.Errorf("shard %d, led by %s: %+v", s.ID, leader, s)
		}
	}
	b, err := backup.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	if err := b.Each(ctx, nil, func(backup.Shard, backup.Record) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("read with a context that has ended: %v", err)
	}
	err = b.Each(t.Context(), nil, func(_ backup.Shard, r backup.Record) error {
		if string(r.Key) == "ends" && (r.Left > time.Hour.Milliseconds() || r.Left < (time.Hour-time.Minute).Milliseconds()) || string(r.Key) != "ends" && r.Left != 0 {
			t.Errorf("key %s has %d ms left", r.Key, r.Left)
		}
		got[string(r.Key)] = string(r.Value)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range want {
		if g, ok := got[k]; !ok || g != v {
			t.Errorf("key %.30s has %d bytes in the backup (%v), want %d", k, len(g), ok, len(v))
		}
	}
	for w := range 3 {
		a, b := got[fmt.Sprintf("{pair%d}a", w)], got[fmt.Sprintf("{pair%d}b", w)]
		if a != b {
			t.Errorf("pair %d is %q and %q: no state ever was", w, a, b)
		}
	}
	if then, _ := strconv.Atoi(string(before.Reply.Str)); got["{pair0}a"] < "0" || must(t, got["{pair0}a"]) < then {
		t.Errorf("pair 0 is %s in the backup, and was %d before it began", got["{pair0}a"], then)
	}
	if len(got) != len(want)+1+6 || m.Records != int64(len(got)) {
		t.Errorf("%d keys, the manifest says %d, want %d", len(got), m.Records, len(want)+7)
	}
	// All views are closed again.
	for _, n := range nodes {
		n.backups.mu.Lock()
		for id, v := range n.backups.views {
			if v.gone == "" {
				t.Errorf("node %s: view %d of shard %d is open", n.cfg.ID, id, v.shard)
			}
		}
		n.backups.mu.Unlock()
	}
}

func must(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A view that a follower opens has every write that was acknowledged just before, although the follower hears of it later.
func TestBackupOfAFollowerMissesNothing(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	untilBalanced(t, nodes[0])
	for i := range int64(60) {
		key := fmt.Sprintf("{one}%d", i)
		_, shard := nodes[0].Router().Locate([]byte(key))
		var leader, follower *Node
		for _, n := range nodes {
			if n.cfg.ID == nodes[0].Leader(shard) {
				leader = n
			} else {
				follower = n
			}
		}
		do(t, leader, key, command.Command{Op: command.OpSet, Values: [][]byte{[]byte("v")}})
		raw, err := follower.Backup(t.Context(), []string{"OPEN", fmt.Sprint(shard)})
		if err != nil {
			t.Fatal(err)
		}
		var v client.ShardView
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		if v.Records != i+1 || v.Node != string(follower.cfg.ID) {
			t.Fatalf("after %d writes the view on %s has %d records", i+1, v.Node, v.Records)
		}
		if _, err := follower.Backup(t.Context(), []string{"CLOSE", fmt.Sprint(v.ID)}); err != nil {
			t.Fatal(err)
		}
	}
}

// What a view says of the time that is left is right also where nothing was written for a while: the clock of an idle shard stands.
func TestBackupOfAnIdleShardTellsTheTime(t *testing.T) {
	t.Parallel()
	n := open(t, func() Config { c := testConfig(t, "n1"); c.Bootstrap, c.Shards = true, 1; return c }())
	untilHealthy(t, n)
	do(t, n, "ends", command.Command{Op: command.OpSet, Values: [][]byte{[]byte("v")}, TTL: 60_000})
	st := n.host.get(0)
	v, err := st.View()
	if err != nil {
		t.Fatal(err)
	}
	clock := v.Clock()
	v.Close()
	began := time.Now()
	until(t, "time passes", func() error {
		if time.Since(began) < 300*time.Millisecond {
			return errors.New("not yet")
		}
		return nil
	})
	v, err = n.viewToTheMinute(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if v.Clock() < clock+300 {
		t.Errorf("the view's clock is at %d ms, %d ms after %d", v.Clock(), time.Since(began).Milliseconds(), clock)
	}
}

// Views are let go of when nobody asks, when they are old, when their replica is gone and when the node stops; who asks for one then is told why.
func TestBackupViewsAreLetGo(t *testing.T) {
	t.Parallel()
	n := open(t, func() Config { c := testConfig(t, "n1"); c.Bootstrap, c.Shards = true, 1; return c }())
	untilHealthy(t, n)
	st := n.host.get(0)
	here := func(sharding.ShardID) *store.Store { return st }
	gone := func(sharding.ShardID) *store.Store { return nil }
	for _, tc := range []struct {
		name    string
		used    time.Duration // ago
		began   time.Duration
		current func(sharding.ShardID) *store.Store
		why     string
	}{
		{"in use", 0, backupAge / 2, here, ""},
		{"idle", backupIdle + time.Second, 2 * backupIdle, here, "nobody asked"},
		{"old", 0, backupAge + time.Second, here, "it was open for 1h"},
		{"gone", 0, 0, gone, "not here any more"},
	} {
		v, err := st.View()
		if err != nil {
			t.Fatal(err)
		}
		b := newBackups()
		id, err := b.add(&backupView{st: st, v: v})
		if err != nil {
			t.Fatal(err)
		}
		b.views[id].used, b.views[id].began = time.Now().Add(-tc.used), time.Now().Add(-tc.began)
		due := b.overdue(time.Now(), tc.current, true)
		if why, ok := due[id]; ok != (tc.why != "") || !strings.Contains(why, tc.why) {
			t.Errorf("%s: %q", tc.name, why)
		}
		if tc.why == "" {
			if out, err := b.read(id); err != nil || len(out) != 1 || out[0] != 1 {
				t.Errorf("%s: read %x, %v", tc.name, out, err)
			}
			b.close()
		}
		for id, why := range due {
			b.drop(id, why)
		}
		if _, err := b.read(id); transport.CodeOf(err) != transport.CodeNotFound || !strings.Contains(err.Error(), tc.why) {
			t.Errorf("%s: read of a view that is gone: %v", tc.name, err)
		}
		b.views[id].goneAt = time.Now().Add(-2 * backupTold)
		b.overdue(time.Now(), tc.current, false)
		if len(b.views) != 0 {
			t.Errorf("%s: it is remembered for ever", tc.name)
		}
	}
	for _, words := range [][]string{{}, {"OPEN"}, {"OPEN", "x"}, {"READ", "-1"}, {"NOSUCH", "1"}, {"OPEN", "4294967296"}} {
		if _, err := n.Backup(t.Context(), words); transport.CodeOf(err) != transport.CodeBadRequest {
			t.Errorf("%q: %v", words, err)
		}
	}
	if _, err := n.Backup(t.Context(), []string{"OPEN", "7"}); transport.CodeOf(err) != transport.CodeNoReplica {
		t.Errorf("open a shard that is not here: %v", err)
	}
	if _, err := n.Backup(t.Context(), []string{"READ", "7"}); transport.CodeOf(err) != transport.CodeNotFound {
		t.Errorf("read a view that never was: %v", err)
	}
	// The node stops although a view is open.
	if _, err := n.Backup(t.Context(), []string{"OPEN", "0"}); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("close with an open view: %v", err)
	}
}
