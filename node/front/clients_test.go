package front

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestGoRedis: the plain client, RESP2 and RESP3, on a client port.
func TestGoRedis(t *testing.T) {
	for _, proto := range []int{2, 3} {
		t.Run("RESP"+strconv.Itoa(proto), func(t *testing.T) {
			ctx := testContext(t)
			cl := newCluster(t, 3, 8)
			_, addr := serve(t, Config{}, cl.node("n2"))
			c := redis.NewClient(&redis.Options{Addr: addr, Protocol: proto, ClientName: "test", Username: "default", Password: "habit"})
			defer c.Close()
			check := func(what string, err error) {
				t.Helper()
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			check("set", c.Set(ctx, "k", "v\r\n\x00", time.Minute).Err())
			if v, err := c.Get(ctx, "k").Result(); err != nil || v != "v\r\n\x00" {
				t.Errorf("get: %q %v", v, err)
			}
			if d, err := c.TTL(ctx, "k").Result(); err != nil || d < 59*time.Second {
				t.Errorf("ttl: %v %v", d, err)
			}
			if err := c.Get(ctx, "none").Err(); !errors.Is(err, redis.Nil) {
				t.Errorf("get of no key: %v", err)
			}
			if n, err := c.Incr(ctx, "n").Result(); err != nil || n != 1 {
				t.Errorf("incr: %d %v", n, err)
			}
			if f, err := c.IncrByFloat(ctx, "f", 1.5).Result(); err != nil || f != 1.5 {
				t.Errorf("incrbyfloat: %v %v", f, err)
			}
			check("mset", c.MSet(ctx, "a", 1, "b", 2, "c", 3).Err())
			if vs, err := c.MGet(ctx, "c", "none", "a").Result(); err != nil || fmt.Sprint(vs) != "[3 <nil> 1]" {
				t.Errorf("mget: %v %v", vs, err)
			}
			if ok, err := c.SetNX(ctx, "a", 1, 0).Result(); err != nil || ok {
				t.Errorf("setnx: %v %v", ok, err)
			}
			cmds, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i := range 1000 {
					p.Set(ctx, fmt.Sprintf("p%d", i), i, 0)
					p.Get(ctx, fmt.Sprintf("p%d", i))
				}
				return nil
			})
			check("pipeline", err)
			if got := cmds[1999].(*redis.StringCmd).Val(); got != "999" {
				t.Errorf("pipeline: %q", got)
			}
			if n, err := c.DBSize(ctx).Result(); err != nil || n != 1006 {
				t.Errorf("dbsize: %d %v", n, err)
			}
			var keys []string
			it := c.Scan(ctx, 0, "p*", 50).Iterator()
			for it.Next(ctx) {
				keys = append(keys, it.Val())
			}
			check("scan", it.Err())
			if len(keys) != 1000 {
				t.Errorf("scan: %d keys", len(keys))
			}
			info, err := c.Command(ctx).Result()
			check("command", err)
			if g := info["mset"]; g == nil || g.FirstKeyPos != 1 || g.StepCount != 2 || g.LastKeyPos != -1 || g.ReadOnly {
				t.Errorf("command: %+v", g)
			}
			cfg, err := c.ConfigGet(ctx, "append*").Result()
			check("config get", err)
			if cfg["appendonly"] != "yes" {
				t.Errorf("config: %v", cfg)
			}
			if name, err := c.ClientGetName(ctx).Result(); err != nil || name != "test" {
				t.Errorf("client getname: %q %v", name, err)
			}
			list, err := c.ClientList(ctx).Result()
			check("client list", err)
			if !strings.Contains(list, "lib-name=go-redis") {
				t.Errorf("CLIENT SETINFO did not arrive: %s", list)
			}
			if sh, err := c.ClusterShards(ctx).Result(); err != nil || len(sh) != 3 || len(sh[0].Nodes) != 3 || sh[0].Nodes[0].Role != "master" || len(sh[0].Slots) != 3 {
				t.Errorf("cluster shards: %+v %v", sh, err)
			}
			if links, err := c.InfoMap(ctx, "server").Result(); err != nil || links["Server"]["server_name"] != "abacus" {
				t.Errorf("info: %v %v", links, err)
			}
			if err := c.Do(ctx, "EVAL", "return 1", "0").Err(); err == nil || !strings.Contains(err.Error(), "JOB.SUBMIT") {
				t.Errorf("eval: %v", err)
			}
			if raw, err := c.Do(ctx, "JOB.SUBMIT", `{"as":"int","reduce":"sum"}`).Text(); err != nil || raw != "job1" {
				t.Errorf("job.submit: %v %v", raw, err)
			}
		})
	}
}

// TestGoRedisCluster: the cluster client on cluster ports, through a change of
// leaders, with exact totals.
func TestGoRedisCluster(t *testing.T) {
	ctx := testContext(t)
	cl := newCluster(t, 3, 8)
	addrs := serveCluster(t, cl)
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs[:1]})
	defer c.Close()
	for i := range 300 {
		if err := c.Set(ctx, fmt.Sprintf("k%d", i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	// Each node was sent only what it leads.
	for _, e := range cl.takeExecs() {
		if cl.leaders[e.shard] != e.node {
			t.Fatalf("shard %d executed on %s", e.shard, e.node)
		}
	}
	totals := func() {
		t.Helper()
		if n, err := c.DBSize(ctx).Result(); err != nil || n != 300 {
			t.Errorf("dbsize: %d %v", n, err)
		}
		var mu sync.Mutex
		var keys []string
		err := c.ForEachMaster(ctx, func(ctx context.Context, m *redis.Client) error {
			it := m.Scan(ctx, 0, "", 20).Iterator()
			for it.Next(ctx) {
				mu.Lock()
				keys = append(keys, it.Val())
				mu.Unlock()
			}
			return it.Err()
		})
		sort.Strings(keys)
		for i := 1; i < len(keys); i++ {
			if keys[i] == keys[i-1] {
				t.Errorf("%s twice", keys[i])
			}
		}
		if err != nil || len(keys) != 300 {
			t.Errorf("scan of all masters: %d keys, %v", len(keys), err)
		}
	}
	totals()
	if _, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i := range 300 {
			p.Incr(ctx, fmt.Sprintf("k%d", i))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// Leaders move: MOVED is followed, and nothing is done twice.
	for s := range cl.leaders {
		cl.lead(s, "n"+strconv.Itoa(int(s+1)%3+1))
	}
	for i := range 300 {
		if n, err := c.Incr(ctx, fmt.Sprintf("k%d", i)).Result(); err != nil || n != int64(i)+2 {
			t.Fatalf("incr k%d: %d %v", i, n, err)
		}
	}
	c.ReloadState(ctx)
	totals()
	if err := c.MSet(ctx, "{t}a", 1, "{t}b", 2).Err(); err != nil {
		t.Error(err)
	}
	if n, err := c.Del(ctx, "{t}a", "{t}b").Result(); err != nil || n != 2 {
		t.Errorf("del: %d %v", n, err)
	}

	// Certain errors are retried by the library, uncertain ones are not.
	var calls atomic.Int32
	cl.setHook(func(context.Context, sharding.NodeID, sharding.ShardID, []command.Command) error {
		if calls.Add(1) <= 2 {
			return transport.Errorf(transport.CodeBusy, "for a moment")
		}
		return nil
	})
	if n, err := c.Incr(ctx, "k7").Result(); err != nil || n != 10 || calls.Load() != 3 {
		t.Errorf("incr with two refusals: %d %v after %d calls", n, err, calls.Load())
	}
	calls.Store(0)
	cl.setHook(func(context.Context, sharding.NodeID, sharding.ShardID, []command.Command) error {
		calls.Add(1)
		return transport.Errorf(transport.CodeUncertain, "who knows")
	})
	if err := c.Incr(ctx, "k7").Err(); err == nil || !strings.HasPrefix(err.Error(), "UNCERTAIN") || calls.Load() != 1 {
		t.Errorf("uncertain incr: %v after %d calls", err, calls.Load())
	}
}

// TestRueidis: single and cluster, with client-side caching off as our
// documentation says.
func TestRueidis(t *testing.T) {
	for _, resp2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("resp2=%v", resp2), func(t *testing.T) {
			ctx := testContext(t)
			cl := newCluster(t, 3, 8)
			_, addr := serve(t, Config{}, cl.node("n3"))
			single, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, AlwaysRESP2: resp2, ForceSingleClient: true})
			if err != nil {
				t.Fatal(err)
			}
			defer single.Close()
			clustered, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: serveCluster(t, cl)[1:2], DisableCache: true, AlwaysRESP2: resp2})
			if err != nil {
				t.Fatal(err)
			}
			defer clustered.Close()
			for name, c := range map[string]rueidis.Client{"single": single, "cluster": clustered} {
				if name == "cluster" {
					if n := len(c.Nodes()); n != 3 {
						t.Errorf("the cluster client sees %d nodes", n)
					}
				}
				var wg sync.WaitGroup
				for g := range 8 {
					wg.Go(func() {
						for i := range 50 {
							key := fmt.Sprintf("%s:%d:%d", name, g, i)
							if err := c.Do(ctx, c.B().Set().Key(key).Value(key).Build()).Error(); err != nil {
								t.Errorf("%s set: %v", name, err)
								return
							}
							if v, err := c.Do(ctx, c.B().Get().Key(key).Build()).ToString(); err != nil || v != key {
								t.Errorf("%s get: %q %v", name, v, err)
								return
							}
						}
					})
				}
				wg.Wait()
				if err := c.Do(ctx, c.B().Get().Key("none").Build()).Error(); !rueidis.IsRedisNil(err) {
					t.Errorf("%s get of no key: %v", name, err)
				}
				var cmds rueidis.Commands
				for i := range 100 {
					cmds = append(cmds, c.B().Incr().Key(fmt.Sprintf("%s:n%d", name, i%10)).Build())
				}
				for _, r := range c.DoMulti(ctx, cmds...) {
					if r.Error() != nil {
						t.Errorf("%s DoMulti: %v", name, r.Error())
					}
				}
				vs, err := rueidis.MGet(c, ctx, []string{name + ":n0", name + ":n9", "none"})
				if v := vs[name+":n9"]; err != nil || v.String() == "" {
					t.Errorf("%s mget: %v %v", name, vs, err)
				}
				if v, err := c.Do(ctx, c.B().Get().Key(name+":n9").Build()).AsInt64(); err != nil || v != 10 {
					t.Errorf("%s counter: %d %v", name, v, err)
				}
			}
			// Leaders move under the cluster client.
			for s := range cl.leaders {
				cl.lead(s, "n1")
			}
			for i := range 10 {
				if v, err := clustered.Do(ctx, clustered.B().Incr().Key(fmt.Sprintf("cluster:n%d", i)).Build()).AsInt64(); err != nil || v != 11 {
					t.Errorf("after the move: %d %v", v, err)
				}
			}
		})
	}
}
