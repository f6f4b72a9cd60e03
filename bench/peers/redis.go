package main

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
)

// redisDriver runs one Redis with an append-only file. It is not replicated:
// what it shows is what one node without consensus does.
type redisDriver struct {
	fsync string
	mux   bool // all callers of a Client share one connection, as with abacus and the gRPC clients
	p     Procs
	addr  string
}

func (d *redisDriver) Procs() *Procs { return &d.p }
func (d *redisDriver) Leader() int   { return 0 }

func (d *redisDriver) Version(string) string {
	return versionOf("redis-server", "--version")
}

// Settled: one process, which answers since Start.
func (d *redisDriver) Settled(context.Context) error { return nil }

func (d *redisDriver) Pipe(int) string { return d.addr }

func (d *redisDriver) Start(ctx context.Context, cfg Config) error {
	port := freePorts(1)[0]
	d.addr = fmt.Sprintf("127.0.0.1:%d", port)
	if err := d.p.add(cfg, "redis-server", "--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--dir", cfg.Dir, "--save", "",
		"--appendonly", "yes", "--appendfsync", d.fsync); err != nil {
		return err
	}
	c := redis.NewClient(&redis.Options{Addr: d.addr})
	defer c.Close()
	return retry(ctx, 10*time.Second, func() error { return c.Ping(ctx).Err() })
}

func (d *redisDriver) Connect(int, int) (Client, error) {
	if d.mux {
		return connectRESP([]string{d.addr}, true)
	}
	// The generator opens many Clients; each has a pool that grows to the goroutines that share it.
	return redisClient{redis.NewClient(&redis.Options{Addr: d.addr, PoolSize: 64})}, nil
}

type redisClient struct{ c *redis.Client }

func (c redisClient) Close() { c.c.Close() }
func (c redisClient) Put(ctx context.Context, k string, v []byte) error {
	return c.c.Set(ctx, k, v, 0).Err()
}

func (c redisClient) Get(ctx context.Context, k string, _ bool) error {
	return c.c.Get(ctx, k).Err()
}

func (c redisClient) Range(context.Context, string, int, func(string, []byte)) (int, error) {
	return 0, errUnsupported
}

// Load pipelines 1000 SETs at a time.
func (d *redisDriver) Load(ctx context.Context, n int, key func(int) string, rec func(int) []byte) error {
	c := redis.NewClient(&redis.Options{Addr: d.addr})
	defer c.Close()
	for i := 0; i < n; i += 1000 {
		if _, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
			for j := i; j < min(i+1000, n); j++ {
				p.Set(ctx, key(j), rec(j), 0)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (d *redisDriver) Tasks() []Task {
	c := redis.NewClient(&redis.Options{Addr: d.addr, ReadTimeout: 2 * time.Minute})
	scan := func(parse func([]byte) int64) func(context.Context) (int64, error) {
		return func(ctx context.Context) (sum int64, err error) {
			seen := map[string]struct{}{} // SCAN may name a key twice
			for cur := uint64(0); ; {
				keys, next, err := c.Scan(ctx, cur, "k*", 10000).Result()
				if err != nil {
					return 0, err
				}
				u := keys[:0]
				for _, k := range keys {
					if _, ok := seen[k]; !ok {
						seen[k] = struct{}{}
						u = append(u, k)
					}
				}
				if len(u) > 0 {
					vs, err := c.MGet(ctx, u...).Result()
					if err != nil {
						return 0, err
					}
					for _, v := range vs {
						sum += parse([]byte(v.(string)))
					}
				}
				if cur = next; cur == 0 {
					return sum, nil
				}
			}
		}
	}
	lua := func(parse string) func(context.Context) (int64, error) {
		src := `local s, cur = 0, '0'
repeat
  local r = redis.call('SCAN', cur, 'MATCH', 'k*', 'COUNT', 1000)
  cur = r[1]
  if #r[2] > 0 then
    for _, v in ipairs(redis.call('MGET', unpack(r[2]))) do s = s + ` + parse + ` end
  end
until cur == '0'
return s`
		return func(ctx context.Context) (int64, error) { return c.Eval(ctx, src, nil).Int64() }
	}
	return []Task{
		{Name: "client scan (SCAN+MGET of 10k), byte-scan parse", Run: scan(dataset.ScanN)},
		{Name: "client scan (SCAN+MGET of 10k), encoding/json", Run: scan(dataset.DecodeN)},
		{Name: "Lua in the server, string.match (blocks it)", Run: lua(`tonumber(string.match(v, '"n":(%d+)'))`)},
		{Name: "Lua in the server, cjson.decode (blocks it)", Run: lua(`cjson.decode(v).n`)},
	}
}
