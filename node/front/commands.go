package front

import (
	"context"
	"sort"
	"strings"
)

// spec is one row of the command table: what COMMAND tells about it, what a
// call of it must look like, and what is done. Exactly one of plan, run, never
// and subs is set; IDEM has a plan beside its subs.
type spec struct {
	name  string // lower case; "client|id" for a subcommand
	arity int    // arguments with the name; negative: at least so many
	flags flags
	// The keys are arguments first, first+step, ... up to last (negative: from the end).
	first, last, step int
	group, since      string
	summary           string
	tips              string // separated by blanks

	// plan takes a command on keys apart.
	plan func(p *plan, r *request) error
	// rounds executes a command that reads more values than a window may hold.
	rounds func(c *conn, ctx context.Context, args [][]byte) error
	// run executes any other command and writes its reply, unless it returns an error.
	run func(c *conn, ctx context.Context, args [][]byte) error
	// never is the reply to a command that we refuse, saying what to use instead.
	never string
	subs  []*spec
	need  need // see rights.go
}

type flags uint16

const (
	flagWrite flags = 1 << iota
	flagReadOnly
	flagDenyOOM
	flagAdmin
	flagFast
	flagLoading
	flagStale
	flagBlocking
	flagNoScript
)

var flagNames = [...]string{"write", "readonly", "denyoom", "admin", "fast", "loading", "stale", "blocking", "noscript"}

func (s *spec) has(f flags) bool { return s.flags&f != 0 }

func (f flags) names() []string {
	var names []string
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// categories are the ACL categories that follow from the flags.
func (s *spec) categories() []string {
	var names []string
	add := func(when bool, name string) {
		if when {
			names = append(names, "@"+name)
		}
	}
	add(s.first > 0 || s.group == "generic", "keyspace")
	add(s.has(flagReadOnly), "read")
	add(s.has(flagWrite), "write")
	add(s.group == "string", "string")
	add(s.has(flagAdmin), "admin")
	add(s.has(flagAdmin), "dangerous")
	add(s.group == "connection", "connection")
	add(s.group == "transactions", "transaction")
	add(s.has(flagBlocking), "blocking")
	add(s.has(flagFast), "fast")
	add(!s.has(flagFast), "slow")
	return names
}

// keys returns the places of the keys in a call, nil if it has none.
func (s *spec) keys(args [][]byte) []int {
	if s.first == 0 {
		return nil
	}
	last := s.last
	if last < 0 {
		last += len(args)
	}
	var at []int
	for i := s.first; i <= last && i < len(args); i += s.step {
		at = append(at, i)
	}
	return at
}

func (s *spec) arityFits(n int) bool { return n == s.arity || s.arity < 0 && n >= -s.arity }

// table finds a command by name. It is built once and not changed.
type table struct {
	byName map[string]*spec
	sorted []*spec
}

func newTable() *table {
	t := &table{byName: make(map[string]*spec)}
	for _, list := range [][]*spec{stringCommands(), keyCommands(), multiCommands(), {idemCommand(), aclCommand()}, adminCommands(), clusterCommands(), jobCommands(), backupCommands(), neverCommands()} {
		for _, s := range list {
			if t.byName[s.name] != nil {
				panic("front: command " + s.name + " is in the table twice")
			}
			t.byName[s.name] = s
			if s.never == "" {
				t.sorted = append(t.sorted, s)
			}
			for _, sub := range s.subs {
				sub.group, sub.since = s.group, orElse(sub.since, s.since)
				t.byName[sub.name] = sub
			}
		}
	}
	t.declareNeeds()
	sort.Slice(t.sorted, func(i, j int) bool { return t.sorted[i].name < t.sorted[j].name })
	return t
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// maxName is longer than any name in the table.
const maxName = 32

// lower copies a name to buf in lower case; "" for what cannot be a name.
func lower(buf []byte, name []byte) []byte {
	if len(name) > maxName {
		return nil
	}
	for _, b := range name {
		if b >= 'A' && b <= 'Z' {
			b += 'a' - 'A'
		}
		buf = append(buf, b)
	}
	return buf
}

// resolve finds the row of a call and checks its shape. Otherwise it returns the
// error to reply.
func (t *table) resolve(args [][]byte) (*spec, string) {
	var room [2*maxName + 1]byte
	name := lower(room[:0], args[0])
	s := t.byName[string(name)]
	if s == nil || strings.Contains(s.name, "|") {
		return nil, unknownCommand(args)
	}
	if s.subs != nil && len(args) > 1 {
		sub := lower(append(name, '|'), args[1])
		if named := t.byName[string(sub)]; named != nil {
			s = named
		} else if s.plan == nil { // IDEM takes commands, too
			return nil, "ERR unknown subcommand " + quoted(args[1]) + ". Try " + strings.ToUpper(string(name)) + " HELP."
		}
	}
	if s.never != "" {
		return nil, s.never
	}
	if !s.arityFits(len(args)) {
		return nil, "ERR wrong number of arguments for '" + s.name + "' command"
	}
	return s, ""
}

func unknownCommand(args [][]byte) string {
	var b strings.Builder
	b.WriteString("ERR unknown command " + quoted(args[0]) + ", with args beginning with: ")
	for _, a := range args[1:] {
		if b.Len() > 160 {
			break
		}
		b.WriteString(quoted(a) + " ")
	}
	return b.String()
}

// help is the HELP subcommand of a container.
func help(parent string, subs []*spec) *spec {
	return &spec{name: parent + "|help", arity: 2, flags: flagLoading | flagStale, summary: "Lists the subcommands.",
		run: func(c *conn, _ context.Context, _ [][]byte) error {
			lines := []string{strings.ToUpper(parent) + " <subcommand> [<arg> ...]. Subcommands are:"}
			for _, s := range served(subs) {
				_, name, _ := strings.Cut(s.name, "|")
				lines = append(lines, strings.ToUpper(name), "    "+s.summary)
			}
			c.w.Array(len(lines))
			for _, l := range lines {
				c.w.SimpleString(l)
			}
			return nil
		}}
}

// container makes a command of its subcommands and adds HELP. Called without a
// subcommand it does bare, if there is one.
func container(s spec, subs ...*spec) *spec {
	for _, sub := range subs {
		sub.name = s.name + "|" + sub.name
	}
	s.subs = append(subs, help(s.name, subs))
	if s.run == nil { // never reached with a subcommand, and its arity refuses less
		s.arity = -2
	}
	return &s
}

func commandCommand() *spec {
	return container(spec{name: "command", arity: -1, flags: flagLoading | flagStale, group: "server", since: "2.8.13",
		summary: "Returns detailed information about all commands.", tips: "nondeterministic_output_order",
		run: func(c *conn, _ context.Context, _ [][]byte) error {
			c.w.Array(len(c.srv.table.sorted))
			for _, s := range c.srv.table.sorted {
				c.describe(s)
			}
			return nil
		}},
		&spec{name: "count", arity: 2, flags: flagLoading | flagStale, summary: "Returns the number of commands.",
			run: func(c *conn, _ context.Context, _ [][]byte) error {
				c.w.Int(int64(len(c.srv.table.sorted)))
				return nil
			}},
		&spec{name: "list", arity: -2, flags: flagLoading | flagStale, summary: "Returns the names of all commands.",
			run: func(c *conn, _ context.Context, args [][]byte) error {
				if len(args) > 2 {
					return errSyntax
				}
				c.w.Array(len(c.srv.table.sorted))
				for _, s := range c.srv.table.sorted {
					c.w.BulkString(s.name)
				}
				return nil
			}},
		&spec{name: "info", arity: -2, flags: flagLoading | flagStale, summary: "Returns information about one, several or all commands.",
			run: func(c *conn, _ context.Context, args [][]byte) error {
				rows := c.srv.table.rows(args[2:])
				c.w.Array(len(rows))
				for _, s := range rows {
					if s == nil {
						c.w.NullArray()
					} else {
						c.describe(s)
					}
				}
				return nil
			}},
		&spec{name: "docs", arity: -2, flags: flagLoading | flagStale, summary: "Returns documentation about one, several or all commands.",
			run: func(c *conn, _ context.Context, args [][]byte) error {
				rows := c.srv.table.rows(args[2:])
				known := rows[:0]
				for _, s := range rows {
					if s != nil {
						known = append(known, s)
					}
				}
				c.docs(known)
				return nil
			}},
		&spec{name: "getkeys", arity: -3, flags: flagLoading | flagStale, summary: "Extracts the key names from a command.",
			run: func(c *conn, _ context.Context, args [][]byte) error {
				call := args[2:]
				s, bad := c.srv.table.resolve(call)
				switch {
				case s == nil && strings.HasPrefix(bad, "ERR wrong number"):
					return refusal("ERR Invalid number of arguments specified for command")
				case s == nil:
					return refusal("ERR Invalid command specified")
				}
				for s.name == "idem" && len(call) > 3 { // its keys are those of its command
					call = call[3:]
					if s, _ = c.srv.table.resolve(call); s == nil {
						return refusal("ERR Invalid command specified")
					}
				}
				at := s.keys(call)
				if len(at) == 0 {
					return refusal("ERR The command has no key arguments")
				}
				c.w.Array(len(at))
				for _, i := range at {
					c.w.Bulk(call[i])
				}
				return nil
			}},
	)
}

// rows returns the named rows, nil where there is none, or all.
func (t *table) rows(names [][]byte) []*spec {
	if len(names) == 0 {
		return append([]*spec(nil), t.sorted...)
	}
	rows := make([]*spec, len(names))
	for i, n := range names {
		if s := t.byName[string(lower(nil, n))]; s != nil && s.never == "" {
			rows[i] = s
		}
	}
	return rows
}

// served leaves out the rows that only refuse.
func served(rows []*spec) []*spec {
	var out []*spec
	for _, s := range rows {
		if s.never == "" {
			out = append(out, s)
		}
	}
	return out
}

// describe writes a row as COMMAND shows it.
func (c *conn) describe(s *spec) {
	w := c.w
	w.Array(10)
	w.BulkString(s.name)
	w.Int(int64(s.arity))
	status := func(names []string) {
		w.Set(len(names))
		for _, n := range names {
			w.SimpleString(n)
		}
	}
	status(s.flags.names())
	w.Int(int64(s.first))
	w.Int(int64(s.last))
	w.Int(int64(s.step))
	status(s.categories())
	tips := strings.Fields(s.tips)
	w.Set(len(tips))
	for _, t := range tips {
		w.BulkString(t)
	}
	c.keySpecs(s)
	subs := served(s.subs)
	w.Array(len(subs))
	for _, sub := range subs {
		c.describe(sub)
	}
}

func (c *conn) keySpecs(s *spec) {
	w := c.w
	if s.first == 0 {
		w.Array(0)
		return
	}
	w.Array(1)
	w.Map(3)
	w.BulkString("flags")
	names := []string{"RO", "ACCESS"}
	if s.has(flagWrite) {
		names = []string{"RW", "ACCESS", "UPDATE"}
	}
	w.Set(len(names))
	for _, n := range names {
		w.SimpleString(n)
	}
	w.BulkString("begin_search")
	w.Map(2)
	w.BulkString("type")
	w.BulkString("index")
	w.BulkString("spec")
	w.Map(1)
	w.BulkString("index")
	w.Int(int64(s.first))
	w.BulkString("find_keys")
	w.Map(2)
	w.BulkString("type")
	w.BulkString("range")
	w.BulkString("spec")
	w.Map(3)
	last := s.last // relative to the first, or from the end
	if last > 0 {
		last -= s.first
	}
	for _, f := range []struct {
		name string
		n    int
	}{{"lastkey", last}, {"keystep", s.step}, {"limit", 0}} {
		w.BulkString(f.name)
		w.Int(int64(f.n))
	}
}

// docs writes rows as COMMAND DOCS shows them.
func (c *conn) docs(rows []*spec) {
	w := c.w
	w.Map(len(rows))
	for _, s := range rows {
		w.BulkString(s.name)
		n, subs := 3, served(s.subs)
		if len(subs) > 0 {
			n++
		}
		w.Map(n)
		w.BulkString("summary")
		w.BulkString(s.summary)
		w.BulkString("since")
		w.BulkString(s.since)
		w.BulkString("group")
		w.BulkString(s.group)
		if len(subs) > 0 {
			w.BulkString("subcommands")
			c.docs(subs)
		}
	}
}
