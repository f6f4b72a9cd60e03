package client

import (
	"strings"

	"github.com/abacusdb/abacus/sharding"
)

// spec is what a client must know of a command to route and to repeat it.
type spec struct {
	first, last, step int  // key positions as in COMMAND INFO; first 0: no key
	read              bool // changes nothing, so it may be sent again
	idem              bool // a number and another command, or OPEN and a key
	shared            bool // about the state of one connection, which all callers share: refused
	wide              bool // about the whole cluster, or slow: goes to a client address, beside the keyed traffic
}

var (
	readKey  = spec{first: 1, last: 1, step: 1, read: true}
	readKeys = spec{first: 1, last: -1, step: 1, read: true}
	oneKey   = spec{first: 1, last: 1, step: 1}
	allKeys  = spec{first: 1, last: -1, step: 1}
	readWide = spec{read: true, wide: true}
)

var specs = map[string]spec{
	"GET": readKey, "STRLEN": readKey, "TTL": readKey, "PTTL": readKey, "TYPE": readKey,
	"MGET": readKeys, "EXISTS": readKeys, "TOUCH": readKeys,

	"SET": oneKey, "SETNX": oneKey, "SETEX": oneKey, "PSETEX": oneKey, "GETSET": oneKey, "GETDEL": oneKey, "GETEX": oneKey,
	"APPEND": oneKey, "INCR": oneKey, "DECR": oneKey, "INCRBY": oneKey, "DECRBY": oneKey, "INCRBYFLOAT": oneKey,
	"EXPIRE": oneKey, "PEXPIRE": oneKey, "EXPIREAT": oneKey, "PEXPIREAT": oneKey, "PERSIST": oneKey,
	"DEL": allKeys, "UNLINK": allKeys,
	"IDEM": {first: 2, last: 2, step: 1, idem: true},
	"MSET": {first: 1, last: -1, step: 2}, "MSETNX": {first: 1, last: -1, step: 2},

	"PING": readWide, "ECHO": readWide, "INFO": readWide, "TIME": readWide, "COMMAND": readWide, "CLUSTER": readWide,
	"DBSIZE": readWide, "SCAN": readWide, "RANDOMKEY": readWide,
	"ABACUS.STATUS": readWide, "JOB.STATUS": readWide, "JOB.RESULT": readWide, "JOB.LIST": readWide, "JOB.EXPLAIN": readWide, "JOB.HELP": readWide,
	"MULTI": {shared: true}, "EXEC": {shared: true}, "DISCARD": {shared: true}, "WATCH": {shared: true}, "UNWATCH": {shared: true},
	"RESET": {shared: true}, "QUIT": {shared: true}, "HELLO": {shared: true}, "AUTH": {shared: true}, "SELECT": {shared: true},

	"JOB.CANCEL": {wide: true}, "JOB.SUBMIT": {wide: true}, "JOB.RETRY": {wide: true}, "JOB.DELETE": {wide: true},
}

// Cmd is one command: its name and arguments, as bytes.
type Cmd struct {
	Args [][]byte
	// Repeatable says that to run this command twice is as good as once, so it
	// may be sent again when its fate is unknown. Commands on keys may be anyhow: those that
	// write are numbered, and carried out once, as long as the cluster knows their session.
	Repeatable bool
}

// Command builds a Cmd from strings.
func Command(args ...string) Cmd {
	out := make([][]byte, len(args))
	for i, a := range args {
		out[i] = []byte(a)
	}
	return Cmd{Args: out}
}

// Name is the command's name in upper case.
func (c Cmd) Name() string {
	if len(c.Args) == 0 {
		return "empty command"
	}
	return strings.ToUpper(string(c.Args[0]))
}

// plan is where a command goes: keyed commands to the leader of their slot.
type plan struct {
	slot       sharding.Slot
	keyed      bool // slot is set: all its keys share it
	wide       bool
	read       bool
	repeatable bool
	shared     bool
	// weight is how many numbers the command takes; 0: it is not numbered.
	weight uint64
	key    []byte // of a numbered one
}

// planOf looks at a command's keys. Keys of several slots go to a client
// address, where the node splits the command. An unknown command too.
func planOf(c Cmd) plan {
	p := plan{wide: true, repeatable: c.Repeatable}
	if len(c.Args) == 0 {
		return p
	}
	s, ok := lookup(c.Args[0])
	switch {
	case !ok:
		return p
	case s.shared:
		p.shared = true
		return p
	case s.idem && len(c.Args) > 3: // the caller has numbered it
		p = planOf(Cmd{Args: c.Args[3:]})
		p.repeatable, p.weight = true, 0
		return p
	}
	p.wide, p.read, p.repeatable = s.wide, s.read, s.read || c.Repeatable
	if s.first == 0 || s.first >= len(c.Args) {
		return p
	}
	last := s.last
	if last < 0 {
		last += len(c.Args)
	}
	p.slot = sharding.SlotOf(c.Args[s.first])
	p.keyed = true
	for i := s.first + s.step; i <= last; i += s.step {
		if sharding.SlotOf(c.Args[i]) != p.slot {
			p.keyed = false
			break
		}
	}
	if !s.read && !s.idem {
		p.key, p.weight = c.Args[s.first], 1
		if !p.keyed {
			p.weight = weigh(c, s, last)
		}
	}
	return p
}

// lookup finds a command by name in any case, without allocating.
func lookup(name []byte) (spec, bool) {
	var buf [32]byte
	if len(name) > len(buf) {
		return spec{}, false
	}
	for i, ch := range name {
		if 'a' <= ch && ch <= 'z' {
			ch -= 'a' - 'A'
		}
		buf[i] = ch
	}
	s, ok := specs[string(buf[:len(name)])]
	return s, ok
}
