package front

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"runtime"
	"runtime/metrics"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/abacusdb/abacus/sharding/access"
)

// pretendVersion is the Redis version that we claim: client libraries switch
// features on by it. Ours is abacus_version. From 8.4 on redis-cli would use
// commands that we do not have.
const pretendVersion = "7.2.4"

func adminCommands() []*spec {
	row := func(name string, arity int, since, summary string, run func(*conn, context.Context, [][]byte) error) *spec {
		return &spec{name: name, arity: arity, flags: flagFast | flagLoading | flagStale, group: "connection", since: since, summary: summary, run: run}
	}
	ok := func(c *conn, _ context.Context, _ [][]byte) error { c.w.SimpleString("OK"); return nil }
	ping := row("ping", -1, "1.0.0", "Returns the server's liveliness response.", (*conn).ping)
	ping.tips = "request_policy:all_shards response_policy:all_succeeded"
	cluster := func(name string, summary string, run func(*conn, context.Context, [][]byte) error) *spec {
		s := row(name, 1, "3.0.0", summary, run)
		s.group = "cluster"
		return s
	}
	return []*spec{
		ping,
		row("echo", 2, "1.0.0", "Returns the given string.", func(c *conn, _ context.Context, args [][]byte) error { c.w.Bulk(args[1]); return nil }),
		row("quit", -1, "1.0.0", "Closes the connection.", func(c *conn, _ context.Context, _ [][]byte) error {
			c.quit = true
			c.w.SimpleString("OK")
			return nil
		}),
		row("reset", 1, "6.2.0", "Resets the connection.", (*conn).resetConn),
		row("hello", -1, "6.0.0", "Handshakes with the server.", (*conn).hello),
		row("auth", -2, "1.0.0", "Authenticates the connection.", (*conn).authenticate),
		row("select", 2, "1.0.0", "Changes the selected database: there is only 0.", (*conn).selectDB),
		clientCommand(ok),
		commandCommand(),
		&spec{name: "info", arity: -1, flags: flagLoading | flagStale, group: "server", since: "1.0.0", summary: "Returns information and statistics about the server.",
			tips: "nondeterministic_output request_policy:all_shards response_policy:special", run: (*conn).info},
		configCommand(),
		cluster("readonly", "Lets replicas on this node that do not lead answer this connection's reads. They are linearizable all the same.", func(c *conn, _ context.Context, _ [][]byte) error {
			c.reading.Local = true
			c.w.SimpleString("OK")
			return nil
		}),
		cluster("readwrite", "Takes READONLY back.", func(c *conn, _ context.Context, _ [][]byte) error {
			c.reading.Local = false
			c.w.SimpleString("OK")
			return nil
		}),
		cluster("asking", "Does nothing: slots never need it here.", ok),
		&spec{name: "time", arity: 1, flags: flagFast | flagLoading | flagStale, group: "server", since: "2.6.0", summary: "Returns the time of this node's clock.", tips: "nondeterministic_output",
			run: func(c *conn, _ context.Context, _ [][]byte) error {
				now := c.srv.cfg.Now()
				c.w.Array(2)
				c.w.BulkString(strconv.FormatInt(now.Unix(), 10))
				c.w.BulkString(strconv.Itoa(now.Nanosecond() / 1000))
				return nil
			}},
		&spec{name: "lolwut", arity: -1, flags: flagReadOnly | flagFast, group: "server", since: "5.0.0", summary: "Shows an abacus.",
			run: func(c *conn, _ context.Context, _ [][]byte) error {
				c.w.Verbatim("txt", "|--o-oo-ooo----|\n|--ooo-oooo----|\n|--oo-ooooo----|\nAbacus "+c.srv.backend.Info().Version+"\n")
				return nil
			}},
	}
}

func (c *conn) ping(_ context.Context, args [][]byte) error {
	switch len(args) {
	case 1:
		c.w.SimpleString("PONG")
	case 2:
		c.w.Bulk(args[1])
	default:
		return refusal("ERR wrong number of arguments for 'ping' command")
	}
	return nil
}

func (c *conn) resetConn(_ context.Context, _ [][]byte) error {
	c.reading = Reading{}
	c.endTx()
	c.logOut()
	c.setProto(2)
	c.mu.Lock()
	c.name = ""
	c.mu.Unlock()
	c.w.SimpleString("RESET")
	return nil
}

func (c *conn) setProto(version int) {
	c.w.SetProto(version)
	c.mu.Lock()
	c.proto = version
	c.mu.Unlock()
}

// hello is HELLO [version [AUTH user password] [SETNAME name]].
func (c *conn) hello(_ context.Context, args [][]byte) error {
	version := c.proto
	name, named := []byte(nil), false
	var login [][]byte
	if len(args) > 1 {
		n, ok := parseInt(args[1])
		if !ok {
			return refusal("ERR Protocol version is not an integer or out of range")
		}
		if n != 2 && n != 3 {
			return refusal("NOPROTO unsupported protocol version")
		}
		version = int(n)
	}
	for i := 2; i < len(args); {
		switch option := string(lower(nil, args[i])); {
		case option == "auth" && i+2 < len(args):
			login = args[i+1 : i+3]
			i += 3
		case option == "setname" && i+1 < len(args):
			if name, named = args[i+1], true; !printableName(name) {
				return errClientName
			}
			i += 2
		default:
			return refusal("ERR Syntax error in HELLO option " + quoted(args[i]))
		}
	}
	if err := c.helloAuth(login); err != nil {
		return err
	}
	c.setProto(version)
	if named {
		c.setName(name)
	}
	mode := "standalone"
	if c.srv.cfg.Mode == ModeCluster {
		mode = "cluster"
	}
	w := c.w
	w.Map(7)
	w.BulkString("server")
	w.BulkString("redis")
	w.BulkString("version")
	w.BulkString(pretendVersion)
	w.BulkString("proto")
	w.Int(int64(version))
	w.BulkString("id")
	w.Int(c.id)
	w.BulkString("mode")
	w.BulkString(mode)
	w.BulkString("role")
	w.BulkString("master")
	w.BulkString("modules")
	w.Array(0)
	return nil
}

func (c *conn) selectDB(_ context.Context, args [][]byte) error {
	n, ok := parseInt(args[1])
	if !ok {
		return refusal("ERR invalid DB index")
	}
	if n != 0 {
		return refusal("ERR DB index is out of range: there is one database, 0; put a prefix before the keys instead")
	}
	c.w.SimpleString("OK")
	return nil
}

const errClientName = refusal("ERR Client names cannot contain spaces, newlines or special characters.")

// printableName says whether s can stand in a line of CLIENT LIST.
func printableName(s []byte) bool {
	return len(s) <= 256 && bytes.IndexFunc(s, func(r rune) bool { return r < '!' || r > '~' }) < 0
}

func (c *conn) setName(name []byte) {
	c.mu.Lock()
	c.name = string(name)
	c.mu.Unlock()
}

func clientCommand(ok func(*conn, context.Context, [][]byte) error) *spec {
	sub := func(name string, arity int, summary string, run func(*conn, context.Context, [][]byte) error) *spec {
		return &spec{name: name, arity: arity, flags: flagLoading | flagStale, summary: summary, run: run}
	}
	onOff := func(c *conn, ctx context.Context, args [][]byte) error {
		if v := string(lower(nil, args[2])); v != "on" && v != "off" {
			return errSyntax
		}
		return ok(c, ctx, args)
	}
	never := func(name, why string) *spec { return &spec{name: name, arity: -2, never: "ERR " + why} }
	const noTracking = "client-side caching is not supported: switch client tracking off (rueidis: DisableCache)"
	return container(spec{name: "client", arity: -2, flags: flagLoading | flagStale, group: "connection", since: "2.4.0", summary: "A container for client connection commands."},
		sub("id", 2, "Returns the unique client ID of the connection.", func(c *conn, _ context.Context, _ [][]byte) error { c.w.Int(c.id); return nil }),
		sub("getname", 2, "Returns the name of the connection.", func(c *conn, _ context.Context, _ [][]byte) error {
			c.mu.Lock()
			name := c.name
			c.mu.Unlock()
			if name == "" {
				c.w.Null()
			} else {
				c.w.BulkString(name)
			}
			return nil
		}),
		sub("setname", 3, "Sets the connection name.", func(c *conn, ctx context.Context, args [][]byte) error {
			if !printableName(args[2]) {
				return errClientName
			}
			c.setName(args[2])
			return ok(c, ctx, args)
		}),
		sub("setinfo", 4, "Sets information specific to the client or connection.", func(c *conn, ctx context.Context, args [][]byte) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			option := string(lower(nil, args[2]))
			if option != "lib-name" && option != "lib-ver" {
				return refusal("ERR Unrecognized option " + quoted(args[2]))
			}
			if !printableName(args[3]) {
				return refusal("ERR " + option + " cannot contain spaces, newlines or special characters.")
			}
			if option == "lib-name" {
				c.libName = string(args[3])
			} else {
				c.libVer = string(args[3])
			}
			return ok(c, ctx, args)
		}),
		sub("consistency", -2, "Sets how reads of the connection are answered: linearizable (default), or stale [max-ms]; alone, tells.", (*conn).consistency),
		sub("info", 2, "Returns information about the connection.", func(c *conn, _ context.Context, _ [][]byte) error {
			c.w.Verbatim("txt", c.line(time.Now())+"\n")
			return nil
		}),
		sub("list", -2, "Lists open connections of this port.", func(c *conn, _ context.Context, args [][]byte) error {
			if len(args) > 2 {
				return refusal("ERR CLIENT LIST takes no options here")
			}
			var b strings.Builder
			now := time.Now()
			for _, other := range c.srv.list() {
				b.WriteString(other.line(now))
				b.WriteByte('\n')
			}
			c.w.Verbatim("txt", b.String())
			return nil
		}),
		sub("no-evict", 3, "Does nothing: connections are not evicted.", onOff),
		sub("no-touch", 3, "Does nothing: keys have no last access time.", onOff),
		never("tracking", noTracking),
		never("caching", noTracking),
		never("maint_notifications", "maintenance notifications are not supported"),
		never("kill", "CLIENT KILL is not supported"),
		never("pause", "CLIENT PAUSE is not supported"),
	)
}

// consistency is CLIENT CONSISTENCY [linearizable | stale [max-ms]].
func (c *conn) consistency(_ context.Context, args [][]byte) error {
	r := Reading{Local: c.reading.Local}
	switch mode := args[2:]; {
	case len(mode) == 0:
		c.w.BulkString(c.reading.consistency())
		return nil
	case len(mode) == 1 && string(lower(nil, mode[0])) == "linearizable":
	case len(mode) <= 2 && string(lower(nil, mode[0])) == "stale":
		r.Stale = true
		if len(mode) == 2 {
			ms, ok := parseInt(mode[1])
			if !ok || ms < 1 || ms > MaxStale.Milliseconds() {
				return refusef("ERR max-ms must be 1 to %d milliseconds; leave it out for any age", MaxStale.Milliseconds())
			}
			r.MaxAge = time.Duration(ms) * time.Millisecond
		}
	default:
		return refusal("ERR want CLIENT CONSISTENCY [linearizable | stale [max-ms]]")
	}
	c.reading = r
	c.w.SimpleString("OK")
	return nil
}

// consistency is the mode as CLIENT CONSISTENCY takes it.
func (r Reading) consistency() string {
	switch {
	case !r.Stale:
		return "linearizable"
	case r.MaxAge == 0:
		return "stale"
	}
	return "stale " + strconv.FormatInt(r.MaxAge.Milliseconds(), 10)
}

// line describes the connection as CLIENT LIST does.
func (c *conn) line(now time.Time) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	cmd := "NULL"
	if s := c.lastSpec.Load(); s != nil {
		cmd = s.name
	}
	idle := now.Sub(time.Unix(0, c.lastActive.Load()))
	return fmt.Sprintf("id=%d addr=%s laddr=%s fd=-1 name=%s age=%s idle=%s flags=N db=0 sub=0 psub=0 ssub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r cmd=%s user=%s redir=-1 resp=%d lib-name=%s lib-ver=%s",
		c.id, c.nc.RemoteAddr(), c.nc.LocalAddr(), c.name, seconds(now.Sub(c.created)), seconds(max(idle, 0)), cmd, orElse(c.user, access.Default), c.proto, c.libName, c.libVer)
}

func configCommand() *spec {
	never := "ERR settings are flags, environment variables and the file of abacusd: see 'abacusd --help'"
	return container(spec{name: "config", arity: -2, flags: flagAdmin | flagLoading | flagStale, group: "server", since: "2.0.0", summary: "A container for server configuration commands."},
		&spec{name: "get", arity: -3, flags: flagAdmin | flagLoading | flagStale, summary: "Returns the effective values of configuration parameters.", run: (*conn).configGet},
		&spec{name: "set", arity: -4, never: never},
		&spec{name: "rewrite", arity: 2, never: never},
		&spec{name: "resetstat", arity: 2, never: "ERR counters are never reset here: take differences"},
	)
}

// configGet answers the parameters that tools look at, with what is true here in
// Redis' terms.
func (c *conn) configGet(_ context.Context, args [][]byte) error {
	cfg := &c.srv.cfg
	enabled := "no"
	if cfg.Mode == ModeCluster {
		enabled = "yes"
	}
	params := []struct{ name, value string }{
		{"appendfsync", "always"},
		{"appendonly", "yes"},
		{"bind", ""},
		{"cluster-enabled", enabled},
		{"databases", "1"},
		{"maxclients", strconv.Itoa(cfg.MaxClients)},
		{"maxmemory", "0"},
		{"maxmemory-policy", "noeviction"},
		{"proto-max-bulk-len", strconv.Itoa(cfg.MaxCommandBytes)},
		{"requirepass", ""},
		{"save", ""},
		{"timeout", "0"},
	}
	found := params[:0:0]
	for _, p := range params {
		for _, pattern := range args[2:] {
			if len(pattern) > 64 {
				continue
			}
			if ok, err := path.Match(strings.ToLower(string(pattern)), p.name); ok && err == nil {
				found = append(found, p)
				break
			}
		}
	}
	c.w.Map(len(found))
	for _, p := range found {
		c.w.BulkString(p.name)
		c.w.BulkString(p.value)
	}
	return nil
}

// info is INFO [section ...].
func (c *conn) info(_ context.Context, args [][]byte) error {
	wanted := make(map[string]bool)
	everything := len(args) == 1
	for _, a := range args[1:] {
		name := string(lower(nil, a))
		everything = everything || name == "all" || name == "default" || name == "everything"
		wanted[name] = true
	}
	var b strings.Builder
	for _, s := range c.sections() {
		if !everything && !wanted[strings.ToLower(s.name)] {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("# " + s.name + "\r\n")
		for _, l := range s.lines {
			b.WriteString(l + "\r\n")
		}
	}
	c.w.Verbatim("txt", b.String())
	return nil
}

type section struct {
	name  string
	lines []string
}

func (c *conn) sections() []section {
	i := c.srv.backend.Info()
	st := c.srv.Stats()
	mode := "standalone"
	if c.srv.cfg.Mode == ModeCluster {
		mode = "cluster"
	}
	_, port := splitHostPort(c.nc.LocalAddr().String())
	mem := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/total:bytes"}}
	metrics.Read(mem) // unlike runtime.ReadMemStats it stops nobody
	heap, total := mem[0].Value.Uint64(), mem[1].Value.Uint64()
	abacus := []string{"abacus_version:" + i.Version, "cluster_id:" + i.ClusterID, "node_id:" + i.NodeID, "replicas_wanted:" + strconv.Itoa(i.Replicas)}
	names := make([]string, 0, len(i.Counters))
	for name := range i.Counters {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		abacus = append(abacus, name+":"+strconv.FormatInt(i.Counters[name], 10))
	}
	failed := uint64(0)
	for _, n := range st.Errors {
		failed += n
	}
	var keyspace []string
	if i.Records > 0 {
		keyspace = []string{fmt.Sprintf("db0:keys=%d,expires=0,avg_ttl=0", i.Records)}
	}
	return []section{
		{"Server", []string{"redis_version:" + pretendVersion, "server_name:abacus", "redis_mode:" + mode, "os:" + runtime.GOOS + " " + runtime.GOARCH, "arch_bits:64",
			"process_id:" + strconv.Itoa(os.Getpid()), "run_id:" + nodeHex(i.NodeID), "tcp_port:" + strconv.Itoa(port),
			"uptime_in_seconds:" + seconds(i.Uptime), "uptime_in_days:" + strconv.Itoa(int(i.Uptime/(24*time.Hour)))}},
		{"Clients", []string{"connected_clients:" + strconv.Itoa(st.Clients), "maxclients:" + strconv.Itoa(c.srv.cfg.MaxClients), "blocked_clients:0", "tracking_clients:0"}},
		{"Memory", []string{"used_memory:" + strconv.FormatUint(heap, 10), fmt.Sprintf("used_memory_human:%.2fM", float64(heap)/(1<<20)),
			"used_memory_rss:" + strconv.FormatUint(total, 10), "maxmemory:0", "maxmemory_human:0B", "maxmemory_policy:noeviction"}},
		{"Persistence", []string{"loading:0", "async_loading:0", "rdb_bgsave_in_progress:0", "aof_enabled:1"}},
		{"Stats", []string{"total_connections_received:" + strconv.FormatUint(st.Accepted, 10), "total_commands_processed:" + strconv.FormatUint(st.Commands, 10),
			"rejected_connections:" + strconv.FormatUint(st.Refused, 10), "total_error_replies:" + strconv.FormatUint(failed, 10), "evicted_keys:0"}},
		{"Replication", []string{"role:master", "connected_slaves:0", "master_failover_state:no-failover", "master_replid:" + nodeHex(i.ClusterID), "master_repl_offset:0"}},
		{"Cluster", []string{"cluster_enabled:" + c.clusterEnabled()}},
		{"Keyspace", keyspace},
		{"Abacus", abacus},
	}
}
