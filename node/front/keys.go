package front

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
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

const (
	maxScanCount = 10_000
	// scanPages bounds the runs of slots that one SCAN looks at for its keys.
	scanPages = 16
)

// scan is SCAN cursor [MATCH glob] [COUNT n] [TYPE t].
//
// A cursor's upper bits are a slot and the lower ones a place in it, the same
// whichever shard owns the slot: it needs no state here and stays good when slots move.
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

// scanPage goes through the slots in order, run by run, each from the shard that owns it now: so a key that stays is
// found whatever slots change hands, for all of a slot's keys move with it, and none moves to a slot that was passed.
func (c *conn) scanPage(ctx context.Context, cursor uint64, count int, match string) ([][]byte, uint64, error) {
	var keys [][]byte
	for page := 0; ; page++ {
		var found [][]byte
		var after uint64
		ended := false
		ask := func(router *sharding.Router, how Reading) error {
			shard, slots, ok, err := c.runAt(router, cursor)
			if ended = !ok; err != nil || ended {
				return err
			}
			cursor = max(cursor, uint64(slots.From)<<48)
			if len(keys) >= count || page == scanPages {
				return nil
			}
			found, after, err = c.srv.backend.ScanPage(ctx, shard, slots, cursor, count-len(keys), match, how)
			return err
		}
		var err error
		if len(keys) == 0 {
			err = c.settled(ctx, ask)
		} else {
			err = ask(c.srv.backend.Router(), c.reading)
		}
		switch {
		case err != nil && len(keys) == 0:
			return nil, 0, err
		case err != nil: // what was found is good; the client comes again for the rest
			return keys, cursor, nil
		case ended:
			return keys, 0, nil
		case after == 0:
			return keys, cursor, nil
		}
		keys, cursor = append(keys, c.auth.readable(found)...), after
	}
}

// runAt returns the run of slots of one shard in which a scan goes on; ok is false after the last. On a cluster port
// the scan is of the slots led here, but for a run that it has begun: if that is led elsewhere by now, the
// new leader's scan may have been past it already.
func (c *conn) runAt(router *sharding.Router, cursor uint64) (id sharding.ShardID, slots sharding.SlotRange, ok bool, err error) {
	m := router.Map()
	for slot := cursor >> 48; slot < sharding.Slots; {
		slots.From = sharding.Slot(slot)
		id = router.ShardOf(slots.From)
		s, _ := m.Shard(id)
		if slots.To, ok = sharding.RunFrom(s.Slots, slots.From); !ok {
			return id, slots, false, refusef("CLUSTERDOWN Hash slot not served: %d", slot)
		}
		begins := func(r sharding.SlotRange) bool { return cursor == uint64(r.From)<<48 }
		begun := slot == cursor>>48 && !slices.ContainsFunc(s.Slots, begins)
		if begun || c.covers(id) {
			return id, slots, true, nil
		}
		slot = uint64(slots.To) + 1
	}
	return id, slots, false, nil
}

func (c *conn) dbSize(ctx context.Context, _ [][]byte) error {
	var total int64
	err := c.settled(ctx, func(router *sharding.Router, how Reading) (err error) {
		total, err = c.count(ctx, router.Map(), how)
		return err
	})
	if err == nil {
		c.w.Int(total)
	}
	return err
}

// count adds up the keys of all shards, each slot once, or is CodeSlotsMoved. On a cluster port it is about
// the shards led here, whatever slots these have.
func (c *conn) count(ctx context.Context, m sharding.Map, how Reading) (total int64, err error) {
	var mu sync.Mutex
	var owned []sharding.SlotRange
	var wg sync.WaitGroup
	turns := make(chan struct{}, 16)
	for _, s := range c.covered(m) {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			n, slots, failed := c.srv.backend.Size(ctx, s.ID, how)
			mu.Lock()
			defer mu.Unlock()
			total += n
			owned = append(owned, slots...)
			if failed != nil {
				err = failed
			}
		})
	}
	wg.Wait()
	if err != nil {
		return 0, err
	}
	if slot, ok := sharding.Partition(owned); !ok && c.srv.cfg.Mode != ModeCluster && len(m.Shards) > 0 {
		return 0, transport.Errorf(transport.CodeSlotsMoved, "slot %d is changing hands", slot)
	}
	return total, nil
}

func (c *conn) randomKey(ctx context.Context, _ [][]byte) error {
	var key []byte
	found := false
	err := c.settled(ctx, func(router *sharding.Router, how Reading) (err error) {
		shards := c.covered(router.Map())
		rand.Shuffle(len(shards), func(i, j int) { shards[i], shards[j] = shards[j], shards[i] })
		for _, s := range shards {
			if key, found, err = c.srv.backend.RandomKey(ctx, s.ID, how); err != nil || found {
				return err
			}
		}
		// Nobody has any: for certain, or because the keys were on their way from one shard to another.
		n, err := c.count(ctx, router.Map(), how)
		if err == nil && n > 0 {
			err = transport.Errorf(transport.CodeSlotsMoved, "%d keys have come or moved while one was looked for", n)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case found:
		c.w.Bulk(key)
	default:
		c.w.Null()
	}
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
		if len(s.Slots) == 0 { // nothing is written there
			continue
		}
		if n := len(s.Replicas) / 2; least < 0 || n < least {
			least = n
		}
	}
	c.w.Int(int64(max(least, 0)))
	return nil
}
