package command

import "fmt"

// Bounds that hold whatever a shard's Limits say.
const (
	// Slots is the number of hash slots.
	Slots = 16384
	// MaxKeyLimit is the highest Limits.MaxKey: what the storage takes, less the
	// prefixes that it adds.
	MaxKeyLimit = 32<<10 - 64
	// MaxValueLimit is the highest Limits.MaxValue.
	MaxValueLimit = 512 << 20
	// MaxRecord bounds the value of a system record; Limits.MaxValue does not apply to it.
	MaxRecord = 8 << 20
	// MaxParts bounds the keys and values of one command taken together.
	MaxParts = 1 << 20
)

const allFlags = FlagIfAbsent | FlagIfPresent | FlagGet | FlagKeepTTL | FlagIfEqual |
	FlagPersist | FlagIfNoTTL | FlagIfTTL | FlagIfLonger | FlagIfShorter

// LimitError says that something is larger than the shard takes, or is an empty key.
type LimitError struct {
	What      string // "key", "value", "record" or "number of keys and values"
	Size, Max int
}

func (e *LimitError) Error() string {
	if e.Size == 0 {
		return fmt.Sprintf("empty %s: it must have 1 to %d bytes", e.What, e.Max)
	}
	return fmt.Sprintf("%s too large: %d, the limit is %d", e.What, e.Size, e.Max)
}

// BadCommandError says that a command has not the shape that its op asks for.
type BadCommandError struct {
	Op     Op
	Reason string
}

func (e *BadCommandError) Error() string { return fmt.Sprintf("bad %v command: %s", e.Op, e.Reason) }

// many stands for one or more keys, any0 for none or more; perKey for as many
// values as keys, loaded for one more.
const (
	many   = -1
	perKey = -2
	any0   = -3
	loaded = -4 // as many values as keys, and one
)

// shapes says for each op how many keys and values it takes and which flags.
var shapes = [opEnd]struct {
	name         string
	keys, values int
	flags        Flags
}{
	OpNoop:         {name: "noop"},
	OpInit:         {name: "init", values: 1},
	OpGet:          {name: "get", keys: 1},
	OpMGet:         {name: "mget", keys: many},
	OpStrlen:       {name: "strlen", keys: 1},
	OpExists:       {name: "exists", keys: many},
	OpType:         {name: "type", keys: 1},
	OpTTL:          {name: "ttl", keys: 1},
	OpSet:          {name: "set", keys: 1, values: 1, flags: FlagIfAbsent | FlagIfPresent | FlagGet | FlagKeepTTL | FlagIfEqual},
	OpMSet:         {name: "mset", keys: many, values: perKey, flags: FlagIfAbsent},
	OpDel:          {name: "del", keys: many},
	OpIncr:         {name: "incr", keys: 1},
	OpIncrFloat:    {name: "incrfloat", keys: 1, values: 1},
	OpAppend:       {name: "append", keys: 1, values: 1},
	OpGetDel:       {name: "getdel", keys: 1},
	OpGetEx:        {name: "getex", keys: 1, flags: FlagPersist},
	OpExpire:       {name: "expire", keys: 1, flags: FlagIfNoTTL | FlagIfTTL | FlagIfLonger | FlagIfShorter},
	OpPersist:      {name: "persist", keys: 1},
	OpRecordSet:    {name: "recordset", keys: 1, values: 1},
	OpRecordDelete: {name: "recorddelete", keys: 1},
	OpSessionOpen:  {name: "sessionopen"},
	OpSessionCheck: {name: "sessioncheck"},
	OpMulti:        {name: "multi", keys: any0, values: 2},
	OpSlotsExpect:  {name: "slotsexpect", values: 1},
	OpSlotsLoad:    {name: "slotsload", keys: any0, values: loaded},
	OpSlotsAnswers: {name: "slotsanswers", values: 1},
	OpSlotsOwn:     {name: "slotsown"},
	OpSlotsAbort:   {name: "slotsabort"},
	OpSlotsFreeze:  {name: "slotsfreeze", values: 1},
	OpSlotsThaw:    {name: "slotsthaw"},
	OpSlotsRelease: {name: "slotsrelease"},
	OpSlotsClear:   {name: "slotsclear"},
	OpSessionSkip:  {name: "sessionskip"},
	OpPin:          {name: "pin"},
	OpUnpin:        {name: "unpin"},
}

// String is the op's name, for logs and errors.
func (op Op) String() string {
	if op == 0 || op >= opEnd {
		return fmt.Sprintf("op(%d)", uint8(op))
	}
	return shapes[op].name
}

// Validate says whether a shard with these limits would take the command: nil,
// a *LimitError or a *BadCommandError. A router asks before it proposes; Apply
// asks again, for the entry may be another's.
func (c *Command) Validate(l Limits) error {
	if c.Op == 0 || c.Op >= opEnd {
		return c.bad("no such op")
	}
	s := &shapes[c.Op]
	switch {
	case s.keys == many && len(c.Keys) == 0:
		return c.bad("it needs at least one key")
	case s.keys >= 0 && len(c.Keys) != s.keys:
		return c.bad("wrong number of keys")
	}
	values := s.values
	switch {
	case values == perKey:
		values = len(c.Keys)
	case values == loaded:
		values = len(c.Keys) + 1
	case c.Op == OpSet && c.Flags&FlagIfEqual != 0:
		values = 2
	}
	if len(c.Values) != values {
		return c.bad("wrong number of values")
	}
	if n := len(c.Keys) + len(c.Values); n > MaxParts {
		return &LimitError{What: "number of keys and values", Size: n, Max: MaxParts}
	}
	if c.Flags != 0 {
		if c.Flags&^s.flags != 0 {
			return c.bad("a flag that it does not take")
		}
		if reason := c.flagConflict(); reason != "" {
			return c.bad(reason)
		}
	}
	for _, k := range c.Keys {
		if len(k) == 0 || len(k) > int(l.MaxKey) {
			return &LimitError{What: "key", Size: len(k), Max: int(l.MaxKey)}
		}
	}
	if c.Session != 0 && (c.Op.IsRead() || c.Seq == 0 || c.Floor > c.Seq) {
		return c.bad("it is numbered wrongly")
	}
	switch {
	case c.Op == OpMulti:
		return c.validateMulti(l)
	case c.Op.IsPin() && (c.Int <= 0 || c.Session != 0): // numbered, a repeated one would be answered with the index of a pin that has ended since
		return c.bad("it is numbered wrongly")
	case c.Op == OpPin && (c.TTL <= 0 || c.TTL > MaxPinTTL):
		return c.bad(fmt.Sprintf("it lives for %d ms, which is not in 1..%d", c.TTL, int64(MaxPinTTL)))
	case c.Op == OpUnpin && c.TTL != 0:
		return c.bad("it has no time to live")
	}
	what, limit := "value", int(l.MaxValue)
	switch {
	case c.Op == OpRecordSet || c.Op == OpInit:
		what, limit = "record", MaxRecord
	case c.Op.IsSlots():
		if c.Int <= 0 || c.TTL < 0 {
			return c.bad("it is numbered wrongly")
		}
		limit = max(limit, MaxRecord)
	}
	for _, v := range c.Values {
		if len(v) > limit {
			return &LimitError{What: what, Size: len(v), Max: limit}
		}
	}
	return nil
}

// MaxPinTTL is how long a pin may live unused at most, in milliseconds: an hour.
const MaxPinTTL = 3600_000

// MaxMulti bounds the commands of one OpMulti, and its watched keys.
const MaxMulti = 10_000

// validateMulti looks into an OpMulti: plain commands on keys of its own slot.
func (c *Command) validateMulti(l Limits) error {
	inner, err := DecodeCommands(c.Values[0])
	if err != nil {
		return c.bad(err.Error())
	}
	if len(inner) > MaxMulti || len(c.Keys) > MaxMulti {
		return &LimitError{What: "number of commands or watched keys", Size: max(len(inner), len(c.Keys)), Max: MaxMulti}
	}
	for i := range inner {
		in := &inner[i]
		if in.Op < OpGet || in.Op > OpPersist || in.Session != 0 || in.Slot != c.Slot {
			return c.bad(fmt.Sprintf("%v cannot be part of it", in.Op))
		}
		if err := in.Validate(l); err != nil {
			return err
		}
	}
	if _, err := DecodeIndexes(c.Values[1], len(c.Keys)); err != nil {
		return c.bad(err.Error())
	}
	return nil
}

// flagConflict names flags that exclude each other, or returns "".
func (c *Command) flagConflict() string {
	has := func(f Flags) bool { return c.Flags&f != 0 }
	switch {
	case has(FlagIfAbsent) && has(FlagIfPresent|FlagIfEqual):
		return "if-absent excludes if-present and if-equal"
	case has(FlagKeepTTL) && c.TTL != 0:
		return "keep-ttl excludes a TTL"
	case has(FlagPersist) && c.TTL != 0:
		return "persist excludes a TTL"
	case has(FlagIfNoTTL) && has(FlagIfTTL|FlagIfLonger|FlagIfShorter):
		return "if-no-ttl excludes the other conditions"
	case has(FlagIfLonger) && has(FlagIfShorter):
		return "if-longer excludes if-shorter"
	}
	return ""
}

func (c *Command) bad(reason string) error { return &BadCommandError{Op: c.Op, Reason: reason} }

// String says the code in words for a person.
func (c Code) String() string {
	switch c {
	case CodeNone:
		return "no error"
	case CodeNotInteger:
		return "value is not an integer or out of range"
	case CodeOverflow:
		return "increment or decrement would overflow"
	case CodeNotFloat:
		return "value is not a valid float"
	case CodeNaN:
		return "increment would produce NaN or Infinity"
	case CodeTooLarge:
		return "key or value is too large"
	case CodeWrongShard:
		return "this shard does not own the slot"
	case CodeConflict:
		return "the record was changed by another"
	case CodeUninitialized:
		return "the shard has no identity yet"
	case CodeBadCommand:
		return "malformed command"
	case CodeSessionUnknown:
		return "the session was never opened here"
	case CodeSessionExpired:
		return "the session or the number is forgotten"
	case CodeSessionFull:
		return "too many numbers of the session wait for their answers to be given up"
	case CodeDiskFull:
		return "a disk has no room for more data"
	case CodeSlotsMoving:
		return "the slot is moving to another shard"
	case CodeSlotsLeft:
		return "rows of an earlier attempt are in the way"
	}
	return fmt.Sprintf("code(%d)", uint8(c))
}
