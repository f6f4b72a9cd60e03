package front

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
)

const (
	onRead  = flagReadOnly | flagFast
	onWrite = flagWrite | flagDenyOOM | flagFast
)

// stringCommands are those on values.
func stringCommands() []*spec {
	str := func(name string, arity int, f flags, since, summary string, plan func(*plan, *request) error) *spec {
		return &spec{name: name, arity: arity, flags: f, first: 1, last: 1, step: 1, group: "string", since: since, summary: summary, plan: plan}
	}
	many := func(s *spec, last, step int, tips string) *spec {
		s.last, s.step, s.tips = last, step, tips
		return s
	}
	mget := many(str("mget", -2, onRead, "1.0.0", "Atomically returns the string values of the keys of one slot; over slots, one after the other.", planMGet), -1, 1, "request_policy:multi_shard")
	mget.rounds = roundsMGet
	return []*spec{
		str("get", 2, onRead, "1.0.0", "Returns the string value of a key.", planValue(command.OpGet)),
		str("set", -3, flagWrite|flagDenyOOM, "1.0.0", "Sets the string value of a key, ignoring its type. The key is created if it doesn't exist.", planSet),
		str("setnx", 3, onWrite, "1.0.0", "Set the string value of a key only when the key doesn't exist.", func(p *plan, r *request) error {
			r.reply = replyZeroOne
			return p.set(r.args[1:], r.args[2:], command.FlagIfAbsent, 0)
		}),
		str("setex", 4, flagWrite|flagDenyOOM, "2.0.0", "Sets the string value and expiration time of a key.", planSetEx(time.Second, "setex")),
		str("psetex", 4, flagWrite|flagDenyOOM, "2.6.0", "Sets both string value and expiration time in milliseconds of a key.", planSetEx(time.Millisecond, "psetex")),
		str("getset", 3, onWrite, "1.0.0", "Returns the previous string value of a key after setting it to a new value.", func(p *plan, r *request) error {
			r.reply = replyResult
			p.values++
			return p.set(r.args[1:], r.args[2:], command.FlagGet, 0)
		}),
		str("getdel", 2, flagWrite|flagFast, "6.2.0", "Returns the string value of a key after deleting the key.", planValue(command.OpGetDel)),
		str("getex", -2, flagWrite|flagFast, "6.2.0", "Returns the string value of a key after setting its expiration time.", planGetEx),
		str("getrange", 4, flagReadOnly, "2.4.0", "Returns a substring of the string stored at a key.", planRange),
		str("substr", 4, flagReadOnly, "1.0.0", "Returns a substring from a string value.", planRange),
		str("strlen", 2, onRead, "2.2.0", "Returns the length of a string value.", planOne(command.OpStrlen, replyResult)),
		str("append", 3, onWrite, "2.0.0", "Appends a string to the value of a key. Creates the key if it doesn't exist.", func(p *plan, r *request) error {
			r.reply = replyResult
			if err := p.sized(r.args[2]); err != nil {
				return err
			}
			cmd, err := p.command(command.OpAppend, r.args[1:])
			if err == nil {
				cmd.Values = r.args[2:3:3]
			}
			return err
		}),
		str("incr", 2, onWrite, "1.0.0", "Increments the integer value of a key by one. Uses 0 as initial value if the key doesn't exist.", planAdd(1)),
		str("decr", 2, onWrite, "1.0.0", "Decrements the integer value of a key by one. Uses 0 as initial value if the key doesn't exist.", planAdd(-1)),
		str("incrby", 3, onWrite, "1.0.0", "Increments the integer value of a key by a number. Uses 0 as initial value if the key doesn't exist.", planAddBy(1)),
		str("decrby", 3, onWrite, "1.0.0", "Decrements a number from the integer value of a key. Uses 0 as initial value if the key doesn't exist.", planAddBy(-1)),
		str("incrbyfloat", 3, onWrite, "2.6.0", "Increment the floating point value of a key by a number. Uses 0 as initial value if the key doesn't exist.", func(p *plan, r *request) error {
			r.reply = replyResult
			f, err := strconv.ParseFloat(string(r.args[2]), 64)
			if err != nil || math.IsNaN(f) {
				return errNotFloat
			}
			if math.IsInf(f, 0) {
				return errNaN
			}
			cmd, err := p.command(command.OpIncrFloat, r.args[1:])
			if err == nil {
				cmd.Values = r.args[2:3:3]
			}
			return err
		}),
		mget,
		many(str("mset", -3, flagWrite|flagDenyOOM, "1.0.1", "Sets the string values of one or more keys; atomically for the keys of one slot.", planMSet), -1, 2, "request_policy:multi_shard response_policy:all_succeeded"),
		many(str("msetnx", -3, flagWrite|flagDenyOOM, "1.0.1", "Atomically sets the string values of keys of one slot only when all keys don't exist.", planMSetNX), -1, 2, ""),
	}
}

// planOne is for commands of one key and nothing else.
func planOne(op command.Op, reply replier) func(*plan, *request) error {
	return func(p *plan, r *request) error {
		r.reply = reply
		_, err := p.command(op, r.args[1:])
		return err
	}
}

// planValue is planOne for a command that answers the value.
func planValue(op command.Op) func(*plan, *request) error {
	one := planOne(op, replyResult)
	return func(p *plan, r *request) error { p.values++; return one(p, r) }
}

// set adds an OpSet of keys[0] and values[0].
func (p *plan) set(keys, values [][]byte, f command.Flags, ttl int64) error {
	if err := p.sized(values[0]); err != nil {
		return err
	}
	cmd, err := p.command(command.OpSet, keys)
	if err == nil {
		cmd.Values, cmd.Flags, cmd.TTL = values[:1:1], f, ttl
	}
	return err
}

// planSet is SET key value [NX|XX|IFEQ value] [GET] [EX|PX|EXAT|PXAT n|KEEPTTL].
func planSet(p *plan, r *request) error {
	if len(r.args) == 3 { // nearly all of them
		r.reply = replyResult
		return p.set(r.args[1:], r.args[2:], 0, 0)
	}
	var f command.Flags
	var ttl int64
	var equals []byte
	conditional, timed := false, false
	once := func(seen *bool) bool { again := *seen; *seen = true; return !again }
	for i := 3; i < len(r.args); i++ {
		var room [maxName]byte
		option := string(lower(room[:0], r.args[i]))
		switch option {
		case "nx", "xx", "ifeq":
			if !once(&conditional) {
				return errSyntax
			}
			switch option {
			case "nx":
				f |= command.FlagIfAbsent
			case "xx":
				f |= command.FlagIfPresent
			default:
				if i++; i == len(r.args) {
					return errSyntax
				}
				f |= command.FlagIfEqual
				equals = r.args[i]
			}
		case "get":
			f |= command.FlagGet
		case "keepttl":
			if !once(&timed) {
				return errSyntax
			}
			f |= command.FlagKeepTTL
		default:
			u, ok := expiryUnits[option]
			if !ok || !once(&timed) {
				return errSyntax
			}
			if i++; i == len(r.args) {
				return errSyntax
			}
			var err error
			if ttl, err = u.ttl(p.c.srv.cfg.Now, r.args[i], "set"); err != nil {
				return err
			}
		}
	}
	r.reply = replyResult
	if f&command.FlagGet != 0 {
		p.values++
	}
	if f&command.FlagIfEqual == 0 {
		return p.set(r.args[1:], r.args[2:], f, ttl)
	}
	if err := p.sized(equals); err != nil {
		return err
	}
	if err := p.set(r.args[1:], r.args[2:], f, ttl); err != nil {
		return err
	}
	cmd := p.cmd(&p.parts[len(p.parts)-1])
	cmd.Values = [][]byte{r.args[2], equals}
	return nil
}

// expiryUnit is how an option counts.
type expiryUnit struct {
	unit     time.Duration
	absolute bool
}

var expiryUnits = map[string]expiryUnit{
	"ex": {time.Second, false}, "px": {time.Millisecond, false}, "exat": {time.Second, true}, "pxat": {time.Millisecond, true},
}

// maxTTL keeps a shard's clock plus a TTL far from overflow.
const maxTTL = math.MaxInt64 / 4

// millis reads a number of units as milliseconds.
func (u expiryUnit) millis(arg []byte, name string) (int64, error) {
	n, ok := parseInt(arg)
	if !ok {
		return 0, errNotInteger
	}
	factor := u.unit.Milliseconds()
	if n > maxTTL/factor || n < -maxTTL/factor {
		return 0, refusal("ERR invalid expire time in '" + name + "' command")
	}
	return n * factor, nil
}

// ttl is the time to live, at least one millisecond: a moment in the past ends
// the key with the shard's next tick, not before it was written.
func (u expiryUnit) ttl(now func() time.Time, arg []byte, name string) (int64, error) {
	ms, err := u.millis(arg, name)
	if err != nil {
		return 0, err
	}
	if ms <= 0 {
		return 0, refusal("ERR invalid expire time in '" + name + "' command")
	}
	if u.absolute {
		ms -= now().UnixMilli()
	}
	return max(ms, 1), nil
}

func planSetEx(unit time.Duration, name string) func(*plan, *request) error {
	return func(p *plan, r *request) error {
		ttl, err := expiryUnit{unit: unit}.ttl(p.c.srv.cfg.Now, r.args[2], name)
		if err != nil {
			return err
		}
		r.reply = replyOK
		return p.set(r.args[1:], r.args[3:], 0, ttl)
	}
}

// planGetEx is GETEX key [EX|PX|EXAT|PXAT n | PERSIST].
func planGetEx(p *plan, r *request) error {
	r.reply = replyResult
	p.values++
	var f command.Flags
	var ttl int64
	if len(r.args) > 2 {
		var room [maxName]byte
		option := string(lower(room[:0], r.args[2]))
		u, timed := expiryUnits[option]
		switch {
		case option == "persist" && len(r.args) == 3:
			f = command.FlagPersist
		case timed && len(r.args) == 4:
			var err error
			if ttl, err = u.ttl(p.c.srv.cfg.Now, r.args[3], "getex"); err != nil {
				return err
			}
		default:
			return errSyntax
		}
	}
	cmd, err := p.command(command.OpGetEx, r.args[1:])
	if err == nil {
		cmd.Flags, cmd.TTL = f, ttl
	}
	return err
}

// planRange reads the whole value: values are small, and a range is cut where
// the reply is written.
func planRange(p *plan, r *request) error {
	var okA, okB bool
	if r.a, okA = parseInt(r.args[2]); !okA {
		return errNotInteger
	}
	if r.b, okB = parseInt(r.args[3]); !okB {
		return errNotInteger
	}
	r.reply = replyRange
	p.values++
	_, err := p.command(command.OpGet, r.args[1:])
	return err
}

func (p *plan) incr(r *request, n int64) error {
	r.reply = replyResult
	cmd, err := p.command(command.OpIncr, r.args[1:])
	if err == nil {
		cmd.Int = n
	}
	return err
}

func planAdd(n int64) func(*plan, *request) error {
	return func(p *plan, r *request) error { return p.incr(r, n) }
}

func planAddBy(sign int64) func(*plan, *request) error {
	return func(p *plan, r *request) error {
		n, ok := parseInt(r.args[2])
		if !ok {
			return errNotInteger
		}
		if sign < 0 && n == math.MinInt64 {
			return refusal("ERR decrement would overflow")
		}
		return p.incr(r, sign*n)
	}
}

func planMGet(p *plan, r *request) error {
	r.reply = replyArray
	first := len(p.parts)
	p.values += len(r.args) - 1
	if err := p.keyed(command.OpMGet, r.args[1:], 1); err != nil {
		return err
	}
	p.place(first, r.args[1:])
	return nil
}

// maxReplyBytes bounds the values of one MGET.
const maxReplyBytes = 64 << 20

// roundsMGet reads many keys window by window, and replies when it has all:
// until then any of them may fail.
func roundsMGet(c *conn, ctx context.Context, args [][]byte) error {
	values := make([]command.Result, 0, len(args)-1)
	size := 0
	p := &c.plan
	room := maxReplyBytes + windowValues*int64(c.srv.cfg.Limits.MaxValue)
	if err := c.srv.replies.Acquire(ctx, room); err != nil {
		return errRepliesFull
	}
	defer c.srv.replies.Release(room)
	began := time.Now()
	defer func() { c.srv.stats.reads.add(time.Since(began), 1) }()
	for from := 1; from < len(args); {
		to := min(from+windowValues, len(args))
		p.add(c.srv.table.byName["mget"], args[from-1:to])
		p.exec(ctx)
		r := &p.requests[0]
		text := r.refused
		if text == "" {
			text = p.failed(r)
		}
		if text != "" {
			p.reset()
			return refusal(text)
		}
		for _, v := range p.inOrder(r) {
			values = append(values, *v)
			size += len(v.Bytes)
		}
		p.reset()
		if size > maxReplyBytes {
			return refusef("TOOLARGE the values of these keys are over %d bytes: ask for fewer keys at once", maxReplyBytes)
		}
		from = to
	}
	c.w.Array(len(values))
	for i := range values {
		c.value(&values[i])
	}
	return nil
}

func planMSet(p *plan, r *request) error {
	if len(r.args)%2 == 0 {
		return refusal("ERR wrong number of arguments for 'mset' command")
	}
	r.reply = replyOK
	return p.keyed(command.OpMSet, r.args[1:], 2)
}

func planMSetNX(p *plan, r *request) error {
	if len(r.args)%2 == 0 {
		return refusal("ERR wrong number of arguments for 'msetnx' command")
	}
	r.reply = replyZeroOne
	first := len(p.parts)
	if err := p.keyed(command.OpMSet, r.args[1:], 2); err != nil {
		return err
	}
	if len(p.parts)-first > 1 {
		return refusal("CROSSSLOT Keys in request don't hash to the same slot: MSETNX is all or nothing, so give its keys one {tag}")
	}
	p.cmd(&p.parts[first]).Flags = command.FlagIfAbsent
	return nil
}

// parseInt reads a 64-bit integer as Redis does: no plus sign, no blanks, no
// leading zeros.
func parseInt(b []byte) (int64, bool) {
	digits := b
	if len(digits) > 0 && digits[0] == '-' {
		digits = digits[1:]
	}
	if len(digits) == 0 || len(digits) > 19 || digits[0] < '0' || digits[0] > '9' || digits[0] == '0' && len(b) > 1 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	return n, err == nil
}
