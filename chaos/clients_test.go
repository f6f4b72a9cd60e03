package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/abacusdb/abacus/chaos/proc"
)

// TestGoRedisCluster drives go-redis' cluster client, as it comes, against the
// cluster ports: what it writes is there, pipelines keep their order,
// and on a quiet cluster DBSize and a scan of every master are exact.
func TestGoRedisCluster(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 8})
	ctx := timeout(t, time.Minute)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.ClusterAddrs()})
	defer rdb.Close()

	const keys = 5000
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for w := range 8 {
		wg.Go(func() {
			pipe := rdb.Pipeline()
			for i := w; i < keys; i += 8 {
				pipe.Set(ctx, "go:"+strconv.Itoa(i), i, 0)
				if pipe.Len() == 100 {
					if _, err := pipe.Exec(ctx); err != nil {
						errs <- err
						return
					}
				}
			}
			if _, err := pipe.Exec(ctx); err != nil {
				errs <- err
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}

	if n, err := rdb.DBSize(ctx).Result(); err != nil || n != keys {
		t.Errorf("DBSize: %d (%v), want %d", n, err, keys)
	}
	masters, seen := 0, map[string]int{}
	var mu sync.Mutex
	err := rdb.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error {
		mu.Lock()
		masters++
		mu.Unlock()
		it := master.Scan(ctx, 0, "go:*", 500).Iterator()
		for it.Next(ctx) {
			mu.Lock()
			seen[it.Val()]++
			mu.Unlock()
		}
		return it.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	if masters != 3 {
		t.Errorf("%d masters", masters)
	}
	if len(seen) != keys {
		t.Errorf("scanning every master gave %d keys, want %d", len(seen), keys)
	}
	for k, n := range seen {
		if n != 1 {
			t.Errorf("%s was seen %d times on a quiet cluster", k, n)
			break
		}
	}
	for i := range keys {
		if i%97 != 0 {
			continue
		}
		if v, err := rdb.Get(ctx, "go:"+strconv.Itoa(i)).Int(); err != nil || v != i {
			t.Errorf("go:%d holds %d (%v)", i, v, err)
		}
	}

	// What the client knows of a command it decides by COMMAND; what it is told of
	// failures, by their wording.
	if _, err := rdb.Get(ctx, "none").Result(); !errors.Is(err, redis.Nil) {
		t.Errorf("a missing key: %v", err)
	}
	if n, err := rdb.IncrBy(ctx, "counter", 5).Result(); err != nil || n != 5 {
		t.Errorf("INCRBY: %d, %v", n, err)
	}
	if ok, err := rdb.SetNX(ctx, "counter", 1, 0).Result(); err != nil || ok {
		t.Errorf("SETNX on a key that is there: %v, %v", ok, err)
	}
	if v, err := rdb.MGet(ctx, "{t}1", "{t}2").Result(); err != nil || len(v) != 2 {
		t.Errorf("MGET: %v, %v", v, err)
	}
	if err := rdb.MSet(ctx, "{t}1", "a", "{t}2", "b").Err(); err != nil {
		t.Errorf("MSET: %v", err)
	}
	if v, err := rdb.MGet(ctx, "{t}1", "{t}2", "{t}3").Result(); err != nil || fmt.Sprint(v) != "[a b <nil>]" {
		t.Errorf("MGET: %v, %v", v, err)
	}
	if err := rdb.Set(ctx, "short", "x", 5*time.Second).Err(); err != nil {
		t.Error(err)
	}
	if ttl, err := rdb.PTTL(ctx, "short").Result(); err != nil || ttl <= 0 || ttl > 5*time.Second {
		t.Errorf("PTTL: %v, %v", ttl, err)
	}
	eventually(t, 30*time.Second, "a key ends", func() bool {
		n, err := rdb.Exists(ctx, "short").Result()
		return err == nil && n == 0
	})
	if n, err := rdb.Del(ctx, "{t}1", "{t}2").Result(); err != nil || n != 2 {
		t.Errorf("DEL: %d, %v", n, err)
	}
	if err := rdb.Do(ctx, "NOSUCH", "counter").Err(); err == nil || err.Error()[:19] != "ERR unknown command" {
		t.Errorf("an unknown command: %v", err)
	}
}

// TestGoRedisPlain drives go-redis' plain client against the client port of one
// node, which forwards: it needs to know nothing of shards.
func TestGoRedisPlain(t *testing.T) {
	c := sharedCluster(t)
	ctx := timeout(t, time.Minute)
	for _, protocol := range []int{2, 3} {
		rdb := redis.NewClient(&redis.Options{Addr: c.Node(2).Addrs().Client, Protocol: protocol})
		defer rdb.Close()
		prefix := fmt.Sprintf("plain%d:", protocol)
		pipe := rdb.Pipeline()
		for i := range 300 {
			pipe.Set(ctx, prefix+strconv.Itoa(i), i, 0)
			pipe.Get(ctx, prefix+strconv.Itoa(i))
		}
		cmds, err := pipe.Exec(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			if got := cmds[2*i+1].(*redis.StringCmd).Val(); got != strconv.Itoa(i) {
				t.Fatalf("RESP%d: a GET right behind its SET in a pipeline gives %q, want %d", protocol, got, i)
			}
		}
		var keys []string
		for it := rdb.Scan(ctx, 0, prefix+"*", 1000).Iterator(); it.Next(ctx); {
			keys = append(keys, it.Val())
		}
		if len(keys) != 300 {
			t.Errorf("RESP%d: SCAN of the whole cluster through one node gives %d keys, want 300", protocol, len(keys))
		}
		var want, args []any
		for i := range 300 {
			want, args = append(want, strconv.Itoa(i)), append(args, prefix+strconv.Itoa(i))
		}
		got, err := rdb.Do(ctx, append([]any{"MGET"}, args...)...).Slice()
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("RESP%d: MGET over all shards: %v", protocol, err)
		}
		if n, err := rdb.Do(ctx, append([]any{"DEL"}, args...)...).Int(); err != nil || n != 300 {
			t.Errorf("RESP%d: DEL over all shards: %d, %v", protocol, n, err)
		}
	}
}

// TestRueidis drives rueidis against the cluster ports. It wants client
// tracking unless its cache is off, which docs tell its users to do.
func TestRueidis(t *testing.T) {
	c := sharedCluster(t)
	ctx := timeout(t, time.Minute)
	for name, opt := range map[string]rueidis.ClientOption{
		"RESP3": {InitAddress: c.ClusterAddrs(), DisableCache: true},
		"RESP2": {InitAddress: c.ClusterAddrs(), DisableCache: true, AlwaysRESP2: true},
	} {
		t.Run(name, func(t *testing.T) {
			cl, err := rueidis.NewClient(opt)
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			var cmds rueidis.Commands
			for i := range 1000 {
				cmds = append(cmds, cl.B().Set().Key("ru:"+name+strconv.Itoa(i)).Value(strconv.Itoa(i)).Build())
			}
			for _, r := range cl.DoMulti(ctx, cmds...) {
				if err := r.Error(); err != nil {
					t.Fatal(err)
				}
			}
			for i := 0; i < 1000; i += 37 {
				if v, err := cl.Do(ctx, cl.B().Get().Key("ru:"+name+strconv.Itoa(i)).Build()).AsInt64(); err != nil || v != int64(i) {
					t.Errorf("ru:%s%d holds %d (%v)", name, i, v, err)
				}
			}
			if n, err := cl.Do(ctx, cl.B().Incr().Key("ru:n"+name).Build()).AsInt64(); err != nil || n != 1 {
				t.Errorf("INCR: %d, %v", n, err)
			}
			if err := cl.Do(ctx, cl.B().Get().Key("ru:none").Build()).Error(); !rueidis.IsRedisNil(err) {
				t.Errorf("a missing key: %v", err)
			}
		})
	}
}
