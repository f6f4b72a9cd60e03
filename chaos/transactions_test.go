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
)

// TestGoRedisTransactions drives go-redis' transactions on both ports: TxPipelined
// carries out all or, for an error when it is queued, nothing; and the optimistic loop of its
// documentation (WATCH, GET, MULTI, SET, EXEC, again if it was stopped) counts exactly
// with several goroutines in one key.
func TestGoRedisTransactions(t *testing.T) {
	c := sharedCluster(t)
	ctx := timeout(t, time.Minute)
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.ClusterAddrs()})
	defer cluster.Close()
	for name, rdb := range map[string]redis.UniversalClient{
		"cluster": cluster,
		"plain2":  redis.NewClient(&redis.Options{Addr: c.Node(2).Addrs().Client, Protocol: 2}),
		"plain3":  redis.NewClient(&redis.Options{Addr: c.Node(3).Addrs().Client, Protocol: 3}),
	} {
		t.Run(name, func(t *testing.T) {
			defer rdb.Close()
			tag := "{tx" + name + "}"
			var sum *redis.IntCmd
			var gone *redis.StringCmd
			if _, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
				p.Set(ctx, tag+"a", 1, 0)
				sum = p.IncrBy(ctx, tag+"a", 41)
				gone = p.Get(ctx, tag+"none")
				p.MSet(ctx, tag+"b", 2, tag+"c", 3)
				return nil
			}); err != nil && !errors.Is(err, redis.Nil) {
				t.Fatal(err)
			}
			if sum.Val() != 42 || !errors.Is(gone.Err(), redis.Nil) {
				t.Errorf("in a transaction: %v, %v", sum, gone)
			}
			if _, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
				p.Set(ctx, tag+"a", 9, 0)
				p.Do(ctx, "SET", tag+"a")
				return nil
			}); err == nil {
				t.Error("a transaction with a malformed command was carried out")
			}
			if v, err := rdb.Get(ctx, tag+"a").Int(); err != nil || v != 42 {
				t.Errorf("after it: %d, %v", v, err)
			}

			const workers, each = 4, 15
			increment := func(key string) error {
				for {
					err := rdb.Watch(ctx, func(tx *redis.Tx) error {
						n, err := tx.Get(ctx, key).Int()
						if err != nil && !errors.Is(err, redis.Nil) {
							return err
						}
						_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
							p.Set(ctx, key, n+1, 0)
							return nil
						})
						return err
					}, key)
					if !errors.Is(err, redis.TxFailedErr) {
						return err
					}
				}
			}
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					for range each {
						if err := increment(tag + "n"); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			if n, err := rdb.Get(ctx, tag+"n").Int(); err != nil || n != workers*each {
				t.Errorf("the counter is %d (%v), want %d", n, err, workers*each)
			}

			// A number makes a write happen once, whatever client sends it.
			id, err := rdb.Do(ctx, "IDEM", "OPEN").Text()
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if n, err := rdb.Do(ctx, "IDEM", id, 1, "INCR", tag+"once").Int(); err != nil || n != 1 {
					t.Errorf("IDEM: %d, %v", n, err)
				}
			}
		})
	}
}

// TestRueidisTransactions does the same with rueidis: MULTI and EXEC in one DoMulti
// on a dedicated connection, and the optimistic loop.
func TestRueidisTransactions(t *testing.T) {
	c := sharedCluster(t)
	ctx := timeout(t, time.Minute)
	cl, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: c.ClusterAddrs(), DisableCache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	const key = "{rutx}n"
	increment := func(ctx context.Context) (done bool, err error) {
		err = cl.Dedicated(func(d rueidis.DedicatedClient) error {
			if err := d.Do(ctx, d.B().Watch().Key(key).Build()).Error(); err != nil {
				return err
			}
			n, err := d.Do(ctx, d.B().Get().Key(key).Build()).AsInt64()
			if err != nil && !rueidis.IsRedisNil(err) {
				return err
			}
			r := d.DoMulti(ctx, d.B().Multi().Build(), d.B().Set().Key(key).Value(strconv.FormatInt(n+1, 10)).Build(), d.B().Incr().Key("{rutx}all").Build(), d.B().Exec().Build())
			answers, err := r[3].ToArray()
			if rueidis.IsRedisNil(err) {
				return nil
			}
			if err == nil && len(answers) != 2 {
				err = fmt.Errorf("%d answers", len(answers))
			}
			done = err == nil
			return err
		})
		return done, err
	}
	const workers, each = 3, 15
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for n := 0; n < each; {
				done, err := increment(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				if done {
					n++
				}
			}
		})
	}
	wg.Wait()
	for _, k := range []string{key, "{rutx}all"} {
		if n, err := cl.Do(ctx, cl.B().Get().Key(k).Build()).AsInt64(); err != nil || n != workers*each {
			t.Errorf("%s is %d (%v), want %d", k, n, err, workers*each)
		}
	}
}
