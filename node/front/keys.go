package front

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
)

// keyCommands are those on keys, whatever their value, and on the key space.
func keyCommands() []*spec {
	key := func(name string, arity int, f flags, since, summary string, plan func(*plan, *request) error) *spec {
		return &spec{name: name, arity: arity, flags: f, first: 1, last: 1, step: 1, group: "generic", since: since, summary: summary, plan: plan}
	}
	many := func(name string, f flags, since, summary string, op command.Op) *spec {
		s := key(name, -2, f, since, summary, func(p *plan, r *request) error {
			r.reply = replySum
			return p.keyed(op, r.args[1:], 1)
		})
		s.last, s.tips = -1, "request_policy:multi_shard response_policy:agg_sum"
		return s
	}
	all := func(name string, arity int, f flags, since, summary, tips string, run func(*conn, context.Context, [][]byte) error) *spec {
		return &spec{name: name, arity: arity, flags: f, group: "generic", since: since, summary: summary, tips: tips, run: run}
	}
	dbsize := all("dbsize", 1, onRead, "1.0.0", "Returns the number of keys in the cluster; on a cluster port, in the slots led by this node.",
		"request_policy:all_shards response_policy:agg_sum", (*conn).dbSize)
	dbsize.group = "server"
	return []*spec{
		many("del", flagWrite, "1.0.0", "Deletes one or more keys; atomically those of one slot.", command.OpDel),
		many("unlink", flagWrite|flagFast, "4.0.0", "Deletes one or more keys, as DEL does.", command.OpDel),
		many("exists", onRead, "1.0.0", "Determines whether one or more keys exist.", command.OpExists),
		many("touch", onRead, "3.2.1", "Returns the number of existing keys out of those specified.", command.OpExists),
		key("type", 2, onRead, "1.0.0", "Determines the type of value stored at a key.", planOne(command.OpType, replySimple)),
		key("expire", -3, flagWrite|flagFast, "1.0.0", "Sets the expiration time of a key in seconds.", planExpire(time.Second, false, "expire")),
		key("pexpire", -3, flagWrite|flagFast, "2.6.0", "Sets the expiration time of a key in milliseconds.", planExpire(time.Millisecond, false, "pexpire")),
		key("expireat", -3, flagWrite|flagFast, "1.2.0", "Sets the expiration time of a key to a Unix timestamp, by this node's clock.", planExpire(time.Second, true, "expireat")),
		key("pexpireat", -3, flagWrite|flagFast, "2.6.0", "Sets the expiration time of a key to a Unix milliseconds timestamp, by this node's clock.", planExpire(time.Millisecond, true, "pexpireat")),
		key("ttl", 2, onRead, "1.0.0", "Returns the expiration time in seconds of a key.", planTTL(0, 0)),
		key("pttl", 2, onRead, "2.6.0", "Returns the expiration time in milliseconds of a key.", planTTL(1, 0)),
		key("expiretime", 2, onRead, "7.0.0", "Returns the expiration time of a key as a Unix timestamp, by this node's clock.", planTTL(0, 1)),
		key("pexpiretime", 2, onRead, "7.0.0", "Returns the expiration time of a key as a Unix milliseconds timestamp, by this node's clock.", planTTL(1, 1)),
		key("persist", 2, flagWrite|flagFast, "2.2.0", "Removes the expiration time of a key.", planOne(command.OpPersist, replyResult)),
		all("scan", -2, flagReadOnly, "2.8.0", "Iterates over the key names in the cluster; on a cluster port, in the slots led by this node.",
			"nondeterministic_output request_policy:special response_policy:special", (*conn).scan),
		dbsize,
		all("randomkey", 1, flagReadOnly, "1.0.0", "Returns a random key name.", "request_policy:all_shards response_policy:special nondeterministic_output", (*conn).randomKey),
		all("wait", 3, flagBlocking, "3.0.0", "Returns how many followers have every acknowledged write for certain; it never has to wait.",
			"request_policy:all_shards response_policy:agg_min", (*conn).wait),
	}
}

// planExpire is EXPIRE key n [NX|XX|GT|LT ...] and its kin.
func planExpire(unit time.Duration, absolute bool, name string) func(*plan, *request) error {
	return func(p *plan, r *request) error {
		ttl, err := expiryUnit{unit: unit}.millis(r.args[2], name)
		if err != nil {
			return err
		}
		if absolute {
			ttl -= p.c.srv.cfg.Now().UnixMilli()
		}
		var f command.Flags
		for _, arg := range r.args[3:] {
			var room [maxName]byte
			switch string(lower(room[:0], arg)) {
			case "nx":
				f |= command.FlagIfNoTTL
			case "xx":
				f |= command.FlagIfTTL
			case "gt":
				f |= command.FlagIfLonger
			case "lt":
				f |= command.FlagIfShorter
			default:
				return refusal("ERR Unsupported option " + quoted(arg))
			}
		}
		const gtlt = command.FlagIfLonger | command.FlagIfShorter
		if f&command.FlagIfNoTTL != 0 && f != command.FlagIfNoTTL {
			return refusal("ERR NX and XX, GT or LT options at the same time are not compatible")
		}
		if f&gtlt == gtlt {
			return refusal("ERR GT and LT options at the same time are not compatible")
		}
		r.reply = replyResult
		cmd, err := p.command(command.OpExpire, r.args[1:])
		if err == nil {
			cmd.Flags, cmd.TTL = f, ttl
		}
		return err
	}
}

func planTTL(millis, dated int64) func(*plan, *request) error {
	return func(p *plan, r *request) error {
		r.reply, r.a, r.b = replyTTL, millis, dated
		_, err := p.command(command.OpTTL, r.args[1:])
		return err
	}
}

// covered are the shards that SCAN, DBSIZE and RANDOMKEY are about, in the order
// of their first slots: on a cluster port those led here, else all.
func (c *conn) covered(m sharding.Map) []sharding.Shard {
	var shards []sharding.Shard
	leaders := c.srv.backend.Leaders()
	for _, s := range bySlot(m) {
		if len(s.Slots) > 0 && (c.srv.cfg.Mode != ModeCluster || leaders.Leads(s.ID)) {
			shards = append(shards, s)
		}
	}
	return shards
}

const (
	maxScanCount = 10_000
	// scanPages bounds the shards that one SCAN looks at for its keys.
	scanPages = 16
)

// scan is SCAN cursor [MATCH glob] [COUNT n] [TYPE t].
//
// A cursor is the cursor within a shard, whose upper bits are a slot, so it
// tells the shard by itself and needs no state here: shards are gone through in
// the order of their first slots.
func (c *conn) scan(ctx context.Context, args [][]byte) error {
	cursor, err := strconv.ParseUint(string(args[1]), 10, 64)
	if err != nil || cursor>>48 >= sharding.Slots {
		return errBadCursor
	}
	count, match, strings := 10, "", true
	for i := 2; i < len(args); i += 2 {
		if i+1 == len(args) {
			return errSyntax
		}
		v := args[i+1]
		switch string(lower(nil, args[i])) {
		case "match":
			if match = string(v); match == "*" {
				match = ""
			}
		case "count":
			n, ok := parseInt(v)
			if !ok {
				return errNotInteger
			}
			if n < 1 {
				return errSyntax
			}
			count = int(min(n, maxScanCount))
		case "type":
			strings = string(lower(nil, v)) == "string"
		default:
			return errSyntax
		}
	}
	var keys [][]byte
	if strings { // there are no other types, so any other has no keys
		if keys, cursor, err = c.scanPage(ctx, cursor, count, match); err != nil {
			return err
		}
	} else {
		cursor = 0
	}
	c.w.Array(2)
	c.w.BulkString(strconv.FormatUint(cursor, 10))
	c.w.Array(len(keys))
	for _, k := range keys {
		c.w.Bulk(k)
	}
	return nil
}

func (c *conn) scanPage(ctx context.Context, cursor uint64, count int, match string) ([][]byte, uint64, error) {
	router := c.srv.backend.Router()
	shards := c.covered(router.Map())
	at := router.ShardOf(sharding.Slot(cursor >> 48))
	next := 0
	if m := router.Map(); cursor != 0 {
		s, ok := m.Shard(at)
		if !ok || len(s.Slots) == 0 {
			return nil, 0, errBadCursor
		}
		for next < len(shards) && shards[next].Slots[0].From <= s.Slots[0].From {
			next++
		}
		switch {
		case next > 0 && shards[next-1].ID == at:
			next--
		case cursor != start(s):
			// Led elsewhere by now, but this scan has begun it: the new leader's
			// scan may have been past it already.
			shards, next = append([]sharding.Shard{s}, shards[next:]...), 0
		default: // not begun, and no longer ours
			cursor = 0
		}
	}
	var keys [][]byte
	for page := 0; next < len(shards); page++ {
		s := shards[next]
		if cursor == 0 || router.ShardOf(sharding.Slot(cursor>>48)) != s.ID {
			cursor = start(s)
		}
		if len(keys) >= count || page == scanPages {
			return keys, cursor, nil
		}
		found, after, err := c.srv.backend.ScanPage(ctx, s.ID, cursor, count-len(keys), match, c.reading)
		if err != nil {
			if len(keys) > 0 { // what was found is good; the client comes again for the rest
				return keys, cursor, nil
			}
			return nil, 0, err
		}
		keys = append(keys, found...)
		if cursor = after; after == 0 {
			next++
		}
	}
	return keys, 0, nil
}

// start is the cursor of a shard's beginning. For the shard of slot 0 it is 0,
// which is the beginning of everything.
func start(s sharding.Shard) uint64 { return uint64(s.Slots[0].From) << 48 }

func (c *conn) dbSize(ctx context.Context, _ [][]byte) error {
	shards := c.covered(c.srv.backend.Router().Map())
	var mu sync.Mutex
	var total int64
	var failed error
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, s := range shards {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			n, err := c.srv.backend.Size(ctx, s.ID, c.reading)
			mu.Lock()
			defer mu.Unlock()
			if total += n; err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	c.w.Int(total)
	return nil
}

func (c *conn) randomKey(ctx context.Context, _ [][]byte) error {
	shards := c.covered(c.srv.backend.Router().Map())
	rand.Shuffle(len(shards), func(i, j int) { shards[i], shards[j] = shards[j], shards[i] })
	for _, s := range shards {
		key, ok, err := c.srv.backend.RandomKey(ctx, s.ID, c.reading)
		if err != nil {
			return err
		}
		if ok {
			c.w.Bulk(key)
			return nil
		}
	}
	c.w.Null()
	return nil
}

// wait answers WAIT: an acknowledged write is on disk on a majority, the leader
// among them, so at least majority-1 followers have it; the others nearly
// always have too, but that is not promised.
func (c *conn) wait(_ context.Context, args [][]byte) error {
	if n, ok := parseInt(args[1]); !ok || n < 0 {
		return errNotInteger
	}
	if ms, ok := parseInt(args[2]); !ok || ms < 0 {
		return refusal("ERR timeout is not an integer or out of range")
	}
	least := -1
	for _, s := range c.srv.backend.Router().Map().Shards {
		if n := len(s.Replicas) / 2; least < 0 || n < least {
			least = n
		}
	}
	c.w.Int(int64(max(least, 0)))
	return nil
}
