package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
	"github.com/abacusdb/abacus/transport/resp"
)

// client speaks RESP over a plain connection.
type client struct {
	t  testing.TB
	nc net.Conn
	r  *resp.ReplyReader
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{t: t, nc: nc, r: resp.NewReplyReader(nc, resp.ReplyLimits{})}
}

func (c *client) send(lines ...string) {
	c.t.Helper()
	var buf []byte
	for _, l := range lines {
		buf = resp.AppendCommandStrings(buf, strings.Fields(l)...)
	}
	if _, err := c.nc.Write(buf); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) read() string {
	c.t.Helper()
	r, err := c.r.ReadReply()
	if err != nil {
		c.t.Fatalf("read a reply: %v", err)
	}
	return show(r)
}

// do sends lines as one pipeline and returns the replies.
func (c *client) do(lines ...string) []string {
	c.t.Helper()
	c.send(lines...)
	var out []string
	for range lines {
		out = append(out, c.read())
	}
	return out
}

func (c *client) one(line string) string { c.t.Helper(); return c.do(line)[0] }

// show writes a reply like redis-cli --no-raw on one line.
func show(r resp.Reply) string {
	switch {
	case r.IsNull():
		return "(nil)"
	case r.Type == resp.TypeInt:
		return strconv.FormatInt(r.Int, 10)
	case r.Type == resp.TypeError:
		return "-" + string(r.Str)
	case r.Type == resp.TypeSimple:
		return "+" + string(r.Str)
	case r.Type == resp.TypeArray || r.Type == resp.TypeMap || r.Type == resp.TypeSet:
		var parts []string
		for _, e := range r.Elems {
			parts = append(parts, show(e))
		}
		return "[" + strings.Join(parts, " ") + "]"
	}
	return string(r.Str)
}

func (c *client) want(lines, replies []string) {
	c.t.Helper()
	got := c.do(lines...)
	for i := range lines {
		if got[i] != replies[i] && !(strings.HasSuffix(replies[i], "...") && strings.HasPrefix(got[i], strings.TrimSuffix(replies[i], "..."))) {
			c.t.Errorf("%s: got %q, want %q", lines[i], got[i], replies[i])
		}
	}
}

// TestCommands runs every command on values and keys, in one pipeline and one by
// one: the replies must be the same.
func TestCommands(t *testing.T) {
	past, future := time.Now().Add(-time.Hour).Unix(), time.Now().Add(time.Hour).Unix()
	table := [][2]string{
		{"SET a 1", "+OK"}, {"GET a", "1"}, {"GET none", "(nil)"}, {"set a 2 nx", "(nil)"}, {"SET a 2 XX", "+OK"}, {"SET none 2 XX", "(nil)"},
		{"SET a 3 GET", "2"}, {"SET fresh x GET", "(nil)"}, {"SET a 4 IFEQ 3", "+OK"}, {"SET a 5 IFEQ 3", "(nil)"}, {"SET a 5 IFEQ 3 GET", "4"}, {"SET none 5 IFEQ 3", "(nil)"},
		{"SET a 4 EX 100", "+OK"}, {"TTL a", "100"}, {"SET a 5 KEEPTTL", "+OK"}, {"TTL a", "100"}, {"SET a 5", "+OK"}, {"TTL a", "-1"}, {"TTL none", "-2"}, {"PTTL none", "-2"},
		{"SET a 5 PX 100000", "+OK"}, {"TTL a", "100"}, {fmt.Sprintf("SET a 5 EXAT %d", future), "+OK"}, {"TTL a", "3..."}, {fmt.Sprintf("SET a 5 PXAT %d000", future), "+OK"},
		{"TTL a", "3..."}, {"EXPIRETIME a", strconv.FormatInt(future, 10)}, {"PERSIST a", "1"}, {"PERSIST a", "0"}, {"EXPIRETIME a", "-1"}, {"PEXPIRETIME none", "-2"},
		{"SET a 1 NX XX", "-ERR syntax error"}, {"SET a 1 EX 1 PX 1", "-ERR syntax error"}, {"SET a 1 EX", "-ERR syntax error"}, {"SET a 1 BOGUS", "-ERR syntax error"}, {"SET a 1 IFEQ", "-ERR syntax error"},
		{"SET a 1 EX 0", "-ERR invalid expire time in 'set' command"}, {"SET a 1 EX x", "-ERR value is not an integer or out of range"}, {"SET a 1 EX 9223372036854775807", "-ERR invalid expire time in 'set' command"},
		{"SETNX a 1", "0"}, {"SETNX nx 1", "1"}, {"SETEX se 10 v", "+OK"}, {"TTL se", "10"}, {"PSETEX se 20000 v", "+OK"}, {"TTL se", "20"}, {"SETEX se 0 v", "-ERR invalid expire time in 'setex' command"},
		{"GETSET a 7", "5"}, {"GETDEL a", "7"}, {"GETDEL a", "(nil)"}, {"SET a hello", "+OK"}, {"GETEX a EX 50", "hello"}, {"TTL a", "50"}, {"GETEX a PERSIST", "hello"}, {"TTL a", "-1"}, {"GETEX a BOGUS", "-ERR syntax error"}, {"GETEX a", "hello"},
		{"STRLEN a", "5"}, {"APPEND a !!", "7"}, {"APPEND new x", "1"}, {"GETRANGE a 0 4", "hello"}, {"GETRANGE a -2 -1", "!!"}, {"GETRANGE a 5 2", ""}, {"GETRANGE a 0 -100", ""}, {"SUBSTR a -100 0", "h"}, {"GETRANGE none 0 1", ""},
		{"INCR n", "1"}, {"INCRBY n 41", "42"}, {"DECR n", "41"}, {"DECRBY n 1", "40"}, {"INCRBY n x", "-ERR value is not an integer or out of range"}, {"INCRBY n +1", "-ERR value is not an integer or out of range"}, {"INCR a", "-ERR value is not an integer or out of range"},
		{"DECRBY n -9223372036854775808", "-ERR decrement would overflow"}, {"INCRBY n 9223372036854775807", "-ERR increment or decrement would overflow"}, {"INCRBYFLOAT n 0.5", "40.5"}, {"INCRBYFLOAT n x", "-ERR value is not a valid float"}, {"INCRBYFLOAT a 1", "-ERR value is not a valid float"}, {"INCRBYFLOAT n inf", "-ERR increment would produce NaN or Infinity"},
		{"MSET m1 a m2 b m3 c", "+OK"}, {"MGET m1 none m3 m2 m1", "[a (nil) c b a]"}, {"MSET m1", "-ERR wrong number of arguments for 'mset' command"}, {"MSET m1 a m2", "-ERR wrong number of arguments for 'mset' command"},
		{"MGET {t}1 {t}2", "[(nil) (nil)]"}, {"MSETNX {t}1 a {t}2 b", "1"}, {"MSETNX {t}2 x {t}3 y", "0"}, {"MGET {t}1 {t}2 {t}3", "[a b (nil)]"}, {"MSETNX m1 a m2 b", "-CROSSSLOT Keys..."}, {"MSETNX m1 a m2", "-ERR wrong number of arguments for 'msetnx' command"},
		{"EXISTS m1 m2 m1 none", "3"}, {"TOUCH m1 m2 none", "2"}, {"TYPE m1", "+string"}, {"TYPE none", "+none"}, {"DEL m1 m2 none", "2"}, {"UNLINK m3 m3", "1"}, {"EXISTS m1 m2 m3", "0"},
		{"EXPIRE a 100", "1"}, {"TTL a", "100"}, {"EXPIRE none 100", "0"}, {"EXPIRE a 50 NX", "0"}, {"EXPIRE a 50 GT", "0"}, {"EXPIRE a 50 LT", "1"}, {"EXPIRE a 60 XX GT", "1"}, {"TTL a", "60"}, {"EXPIRE a 1 NX XX", "-ERR NX and XX, GT or LT options at the same time are not compatible"},
		{"EXPIRE a 1 GT LT", "-ERR GT and LT options at the same time are not compatible"}, {"EXPIRE a 1 BOGUS", "-ERR Unsupported option 'BOGUS'"}, {"EXPIRE a x", "-ERR value is not an integer or out of range"}, {"EXPIRE a 9223372036854775807", "-ERR invalid expire time in 'expire' command"},
		{"PEXPIRE a 100000", "1"}, {"TTL a", "100"}, {fmt.Sprintf("EXPIREAT a %d", future), "1"}, {"TTL a", "3..."}, {fmt.Sprintf("PEXPIREAT a %d000", future), "1"}, {fmt.Sprintf("EXPIREAT a %d", past), "1"}, {"EXISTS a", "0"}, {"SET b 1", "+OK"}, {"EXPIRE b 0", "1"}, {"GET b", "(nil)"},
		{"GET", "-ERR wrong number of arguments for 'get' command"}, {"GET a b", "-ERR wrong number of arguments for 'get' command"}, {"DEL", "-ERR wrong number of arguments for 'del' command"},
		{"NOSUCH a b", "-ERR unknown command 'NOSUCH', with args beginning with: 'a' 'b' "}, {"client|id", "-ERR unknown command 'client|id', with args beginning with: "}, {"CLUSTER BOGUS", "-ERR unknown subcommand 'BOGUS'. Try CLUSTER HELP."}, {"CLIENT", "-ERR wrong number of arguments for 'client' command"},
		{"PING", "+PONG"}, {"PING hi", "hi"}, {"PING a b", "-ERR wrong number of arguments for 'ping' command"}, {"ECHO x", "x"}, {"SELECT 0", "+OK"}, {"SELECT 1", "-ERR DB index is out of range..."}, {"SELECT x", "-ERR invalid DB index"},
		{"AUTH pw", "-ERR AUTH <password> called without any password configured..."}, {"AUTH default pw", "+OK"}, {"AUTH bob pw", "+OK"}, {"READONLY", "+OK"}, {"READWRITE", "+OK"}, {"ASKING", "+OK"},
		{"CLIENT CONSISTENCY", "linearizable"}, {"CLIENT CONSISTENCY stale", "+OK"}, {"CLIENT CONSISTENCY", "stale"}, {"client consistency STALE 250", "+OK"}, {"CLIENT CONSISTENCY", "stale 250"}, {"CLIENT CONSISTENCY linearizable", "+OK"}, {"CLIENT CONSISTENCY", "linearizable"},
		{"CLIENT CONSISTENCY stale 0", "-ERR max-ms..."}, {"CLIENT CONSISTENCY stale x", "-ERR max-ms..."}, {"CLIENT CONSISTENCY linearizable 5", "-ERR want CLIENT CONSISTENCY..."}, {"CLIENT CONSISTENCY eventual", "-ERR want CLIENT CONSISTENCY..."}, {"CLIENT CONSISTENCY stale 1 2", "-ERR want CLIENT CONSISTENCY..."},
		{"CLIENT SETNAME me", "+OK"}, {"CLIENT GETNAME", "me"}, {"CLIENT SETINFO LIB-NAME x", "+OK"}, {"CLIENT SETINFO LIB-X x", "-ERR Unrecognized option 'LIB-X'"}, {"CLIENT NO-EVICT on", "+OK"}, {"CLIENT NO-TOUCH maybe", "-ERR syntax error"}, {"CLIENT TRACKING ON", "-ERR client-side caching is not supported..."}, {"RESET", "+RESET"}, {"CLIENT GETNAME", "(nil)"},
		{"KEYS *", "-ERR KEYS is not supported: it would hold every key of the cluster at once: use SCAN..."}, {"FLUSHALL", "-ERR FLUSHALL is not supported..."}, {"HSET h f v", "-ERR HSET is not supported: values are strings: SET each field under..."}, {"lpush l v", "-ERR LPUSH is not supported: values are strings: ..."}, {"ZADD z 1 a", "-ERR ZADD is not supported: values are strings: ..."}, {"SETRANGE k 1 a", "-ERR SETRANGE is not supported: a value is replaced as a whole..."}, {"OBJECT ENCODING k", "-ERR OBJECT is not supported: values are strings: ..."}, {"MEMORY USAGE k", "-ERR MEMORY..."},
		{"EVAL x 0", "-ERR EVAL is not supported: there are no scripts: a job..."}, {"CLUSTER MEET a 1", "-ERR CLUSTER MEET is not supported: Abacus places shards..."}, {"DEBUG SLEEP 1", "-ERR DEBUG is not supported..."}, {"MONITOR", "-ERR MONITOR..."}, {"SAVE", "-ERR SAVE..."}, {"REPLICAOF a 1", "-ERR REPLICAOF..."}, {"CONFIG SET a b", "-ERR settings are flags..."},
		{"CLUSTER KEYSLOT foo", "12182"}, {"CLUSTER COUNTKEYSINSLOT 16384", "-ERR Invalid or out of range slot"}, {"SET foo bar", "+OK"}, {"CLUSTER COUNTKEYSINSLOT 12182", "1"}, {"WAIT 1 0", "1"}, {"WAIT x 0", "-ERR value is not..."},
		{"COMMAND GETKEYS MSET a 1 b 2", "[a b]"}, {"COMMAND GETKEYS GET k", "[k]"}, {"COMMAND GETKEYS PING", "-ERR The command has no key arguments"}, {"COMMAND GETKEYS NOSUCH a", "-ERR Invalid command specified"}, {"COMMAND GETKEYS GET a b", "-ERR Invalid number of arguments specified for command"},
		{"CONFIG GET save", "[save ]"}, {"CONFIG GET appendonl? databases", "[appendonly yes databases 1]"}, {"CONFIG GET nothing", "[]"}, {"RANDOMKEY", "..."}, {"SCAN x", "-ERR invalid cursor"}, {"SCAN 0 COUNT 0", "-ERR syntax error"}, {"SCAN 0 COUNT", "-ERR syntax error"}, {"SCAN 18446744073709551615", "-ERR invalid cursor"}, {"SCAN 0 TYPE hash", "[0 []]"},
	}
	var lines, replies []string
	for _, row := range table {
		lines, replies = append(lines, row[0]), append(replies, row[1])
	}
	t.Run("one by one", func(t *testing.T) {
		_, addr := serve(t, Config{}, newCluster(t, 3, 8).node("n1"))
		c := dial(t, addr)
		for i := range lines {
			c.want(lines[i:i+1], replies[i:i+1])
		}
	})
	t.Run("one pipeline", func(t *testing.T) {
		_, addr := serve(t, Config{}, newCluster(t, 3, 8).node("n1"))
		dial(t, addr).want(lines, replies)
	})
	t.Run("one node's cluster port", func(t *testing.T) { // it leads everything, so nothing is refused
		_, addr := serve(t, Config{Mode: ModeCluster}, newCluster(t, 1, 8).node("n1"))
		replies := append([]string(nil), replies...)
		for i := range lines {
			if lines[i] == "WAIT 1 0" {
				replies[i] = "0"
			}
		}
		dial(t, addr).want(lines, replies)
	})
}

// TestPipelineIsGrouped shows that a pipeline costs one Exec per shard.
func TestPipelineIsGrouped(t *testing.T) {
	cl := newCluster(t, 3, 4)
	_, addr := serve(t, Config{}, cl.node("n1"))
	c := dial(t, addr)
	var lines, want []string
	for i := range 200 {
		lines = append(lines, fmt.Sprintf("SET k%d %d", i, i), fmt.Sprintf("GET k%d", i))
		want = append(want, "+OK", strconv.Itoa(i))
	}
	lines, want = append(lines, "INCR k7", "MGET k7 k8 k9"), append(want, "8", "[8 8 9]")
	c.want(lines, want)
	execs := cl.takeExecs()
	// The network may deliver the pipeline in a few pieces.
	if pieces := len(execs); pieces > 4*4 {
		t.Errorf("%d commands were %d calls of Exec", len(lines), pieces)
	}
	c.want([]string{"SET {t}1 a", "SET {t}2 b", "PING", "MSET {t}1 c {t}2 d {t}1 e"}, []string{"+OK", "+OK", "+PONG", "+OK"})
	c.want([]string{"MGET {t}1 {t}2"}, []string{"[e d]"})
	if execs := cl.takeExecs(); len(execs) != 3 || execs[1].cmds != 1 {
		t.Errorf("want three calls, the MSET of one slot being one command: %v", execs)
	}
}

// TestWindows shows that many values are read in windows, in order.
func TestWindows(t *testing.T) {
	cl := newCluster(t, 3, 4)
	_, addr := serve(t, Config{}, cl.node("n1"))
	c := dial(t, addr)
	big := strings.Repeat("x", 1<<20)
	c.do("SET big " + big)
	c.do("GET big") // now the connection expects large values
	mget, want := "MGET", []string{}
	for i := range 500 {
		key := fmt.Sprintf("k%d", i)
		mget += " " + key
		want = append(want, key)
		cl.keys[key] = entry{value: []byte(key)}
	}
	cl.takeExecs()
	if got := c.one(mget); got != "["+strings.Join(want, " ")+"]" {
		t.Errorf("MGET of 500 keys: %.200s", got)
	}
	if n := len(cl.takeExecs()); n < 20 {
		t.Errorf("read in %d calls, which is not in windows", n)
	}
	var gets, values []string
	for i := range 500 {
		gets, values = append(gets, fmt.Sprintf("GET k%d", i)), append(values, fmt.Sprintf("k%d", i))
	}
	c.do("GET big")
	cl.takeExecs()
	c.want(gets, values)
	if n := len(cl.takeExecs()); n < 20 {
		t.Errorf("a pipeline was read in %d calls, which is not in windows", n)
	}
	huge := "MGET"
	for range 300 {
		huge += " big"
	}
	if got := c.one(huge); !strings.HasPrefix(got, "-TOOLARGE") {
		t.Errorf("300 MiB in one reply: %.100s", got)
	}
	c.want([]string{"PING"}, []string{"+PONG"})
}

// TestErrors shows which error a client sees for what happened, above all which
// of them libraries will retry.
func TestErrors(t *testing.T) {
	for _, row := range []struct {
		name  string
		err   error
		write string
		read  string
	}{
		{"not leader", transport.Errorf(transport.CodeNotLeader, "n9"), "-CLUSTERDOWN", "-CLUSTERDOWN"},
		{"unavailable", transport.Errorf(transport.CodeUnavailable, "x"), "-CLUSTERDOWN", "-CLUSTERDOWN"},
		{"busy", transport.Errorf(transport.CodeBusy, "x"), "-TRYAGAIN", "-TRYAGAIN"},
		{"timeout", transport.Errorf(transport.CodeTimeout, "x"), "-TRYAGAIN", "-TRYAGAIN"},
		{"closed", transport.Errorf(transport.CodeClosed, "x"), "-TRYAGAIN", "-TRYAGAIN"},
		{"too large", transport.Errorf(transport.CodeTooLarge, "x"), "-TOOLARGE x", "-TOOLARGE x"},
		{"refused", transport.Errorf(transport.CodeRefused, "x"), "-ERR refused: x", "-ERR refused: x"},
		{"wrong node", transport.Errorf(transport.CodeWrongNode, "x"), "-TRYAGAIN nothing was done: wrong node: x", "-TRYAGAIN nothing was done: wrong node: x"},
		{"uncertain", transport.Errorf(transport.CodeUncertain, "x"), "-UNCERTAIN", "-TRYAGAIN"},
		{"link lost", transport.Errorf(transport.CodeLinkLost, "x"), "-UNCERTAIN", "-TRYAGAIN"},
		{"wrapped", fmt.Errorf("exec: %w", transport.Errorf(transport.CodeBusy, "x")), "-TRYAGAIN", "-TRYAGAIN"},
		{"unknown", errors.New("boom"), "-UNCERTAIN", "-TRYAGAIN"},
		{"deadline", context.DeadlineExceeded, "-UNCERTAIN", "-TRYAGAIN"},
	} {
		t.Run(row.name, func(t *testing.T) {
			cl := newCluster(t, 3, 2)
			s, addr := serve(t, Config{}, cl.node("n1"))
			cl.setHook(func(context.Context, sharding.NodeID, sharding.ShardID, []command.Command) error { return row.err })
			got := dial(t, addr).do("INCR k", "GET k", "PING")
			if !strings.HasPrefix(got[0], row.write) || !strings.HasPrefix(got[1], row.read) || got[2] != "+PONG" {
				t.Errorf("got %q, want a write to say %q and a read %q", got, row.write, row.read)
			}
			if n := s.Stats().Errors[strings.Fields(row.write[1:])[0]]; n == 0 {
				t.Error("not counted")
			}
		})
	}
}

// TestPartlyDone: a split write of which one part failed must not be retried
// blindly, whatever the error of that part was; a read may.
func TestPartlyDone(t *testing.T) {
	cl := newCluster(t, 3, 2)
	_, addr := serve(t, Config{}, cl.node("n1"))
	cl.setHook(func(_ context.Context, _ sharding.NodeID, shard sharding.ShardID, _ []command.Command) error {
		if shard == 1 {
			return transport.Errorf(transport.CodeUnavailable, "gone")
		}
		return nil
	})
	low, high := keyOf(t, cl, 0), keyOf(t, cl, 1)
	got := dial(t, addr).do("MSET "+low+" a "+high+" b", "DEL "+low+" "+high, "MGET "+low+" "+high, "SET "+low+" c", "SET "+high+" c")
	for i, want := range []string{"-UNCERTAIN done for the keys of 1 of 2 slots", "-UNCERTAIN", "-CLUSTERDOWN", "+OK", "-CLUSTERDOWN"} {
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("reply %d: %q, want %q", i, got[i], want)
		}
	}
}

// keyOf finds a key of a shard.
func keyOf(t *testing.T, cl *cluster, shard sharding.ShardID) string {
	for i := range 10_000 {
		k := "key" + strconv.Itoa(i)
		if _, s := cl.router.Locate([]byte(k)); s == shard {
			return k
		}
	}
	t.Fatal("no key")
	return ""
}

// TestDeadline: a backend that hangs is given CommandTimeout, and one that hangs
// on one shard holds no other connection.
func TestDeadline(t *testing.T) {
	cl := newCluster(t, 3, 2)
	_, addr := serve(t, Config{CommandTimeout: 100 * time.Millisecond}, cl.node("n1"))
	cl.setHook(func(ctx context.Context, _ sharding.NodeID, shard sharding.ShardID, _ []command.Command) error {
		if shard == 1 {
			<-ctx.Done()
			return transport.Errorf(transport.CodeUncertain, "no answer in time")
		}
		return nil
	})
	low, high := keyOf(t, cl, 0), keyOf(t, cl, 1)
	a, b := dial(t, addr), dial(t, addr)
	began := time.Now()
	a.send("SET "+high+" 1", "SET "+low+" 1")
	b.want([]string{"SET " + low + " 2"}, []string{"+OK"})
	if got := a.read(); !strings.HasPrefix(got, "-UNCERTAIN") {
		t.Errorf("hung shard: %q", got)
	}
	if got := a.read(); got != "+OK" {
		t.Errorf("healthy shard in the same pipeline: %q", got)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestPipelineToSickShard: what a pipeline asks of a shard that does not answer takes
// one time-out in all, not one a window, and what is answered is not held back.
func TestPipelineToSickShard(t *testing.T) {
	const timeout = 500 * time.Millisecond
	cl := newCluster(t, 3, 2)
	_, addr := serve(t, Config{CommandTimeout: timeout}, cl.node("n1"))
	cl.setHook(func(ctx context.Context, _ sharding.NodeID, shard sharding.ShardID, _ []command.Command) error {
		if shard == 1 {
			<-ctx.Done()
			return transport.Errorf(transport.CodeTimeout, "no leader")
		}
		return nil
	})
	sick := keyOf(t, cl, 1)
	c := dial(t, addr)
	began := time.Now()
	const windows = 8
	var lines []string
	for range windows {
		lines = append(lines, "SET "+sick+" 1", "TIME") // TIME ends the window
	}
	c.send(lines...)
	for range windows {
		if got := c.read(); !strings.HasPrefix(got, "-TRYAGAIN") && !strings.HasPrefix(got, "-CLUSTERDOWN") {
			t.Errorf("sick shard: %q", got)
		}
		c.read()
	}
	if d := time.Since(began); d > 3*timeout {
		t.Errorf("%d windows took %v", windows, d)
	}

	// On a cluster port, waiting for a leader is a matter of the pipeline too.
	_, addr = serve(t, Config{Mode: ModeCluster}, cl.node("n1"))
	cl.lead(1, "")
	c = dial(t, addr)
	began = time.Now()
	c.send(slices.Repeat([]string{"SET " + sick + " 1"}, 20)...)
	for range 20 {
		if got := c.read(); !strings.HasPrefix(got, "-CLUSTERDOWN") {
			t.Errorf("no leader: %q", got)
		}
	}
	if d := time.Since(began); d > 5*leaderWait {
		t.Errorf("20 commands took %v", d)
	}
}

// TestClusterPort: what a node answers for keys that it does not lead.
func TestClusterPort(t *testing.T) {
	cl := newCluster(t, 3, 3)
	_, addr := serve(t, Config{Mode: ModeCluster}, cl.node("n1"))
	c := dial(t, addr)
	k0, k1, k2 := keyOf(t, cl, 0), keyOf(t, cl, 1), keyOf(t, cl, 2)
	slot := func(k string) string { return strconv.Itoa(int(sharding.SlotOf([]byte(k)))) }
	c.want([]string{"SET " + k0 + " a", "SET " + k1 + " b", "GET " + k1, "MSET " + k1 + " b", "MGET " + k0 + " " + k1, "DBSIZE"},
		[]string{"+OK", "-MOVED " + slot(k1) + " 10.0.0.2:7701", "-MOVED " + slot(k1) + " 10.0.0.2:7701", "-MOVED " + slot(k1) + " 10.0.0.2:7701", "-CROSSSLOT Keys...", "1"})
	// Nothing of what was refused was done.
	if len(cl.keys) != 1 {
		t.Errorf("keys: %v", cl.keys)
	}

	cl.lead(1, "")
	c.want([]string{"SET " + k1 + " b"}, []string{"-CLUSTERDOWN nothing was done..."})
	// A leadership on its way is waited for.
	moved := time.AfterFunc(100*time.Millisecond, func() { cl.lead(1, "n1") })
	defer moved.Stop()
	c.want([]string{"SET " + k1 + " b"}, []string{"+OK"})
	c.want([]string{"MSET " + k0 + " x " + k1 + " y", "MGET " + k1 + " " + k0, "DBSIZE"}, []string{"+OK", "[y x]", "2"})

	// READONLY: reads of what the node follows.
	c.want([]string{"READONLY", "GET " + k2, "SET " + k2 + " z", "READWRITE", "GET " + k2},
		[]string{"+OK", "(nil)", "-MOVED " + slot(k2) + " 10.0.0.3:7701", "+OK", "-MOVED " + slot(k2) + " 10.0.0.3:7701"})

	// So with stale reads. What the client has asked for goes with the reads, and RESET takes all of it back.
	cl.takeReadings()
	c.want([]string{"CLIENT CONSISTENCY stale 40", "GET " + k2, "READONLY", "GET " + k2, "SET " + k2 + " z", "RESET", "GET " + k0, "GET " + k2},
		[]string{"+OK", "(nil)", "+OK", "(nil)", "-MOVED " + slot(k2) + " 10.0.0.3:7701", "+RESET", "x", "-MOVED " + slot(k2) + " 10.0.0.3:7701"})
	if got, want := cl.takeReadings(), []Reading{{Stale: true, MaxAge: 40 * time.Millisecond}, {Local: true, Stale: true, MaxAge: 40 * time.Millisecond}, {}}; !slices.Equal(got, want) {
		t.Errorf("reads were asked for as %+v, want %+v", got, want)
	}

	// The hint was wrong: the node finds out when it executes.
	cl.setHook(func(context.Context, sharding.NodeID, sharding.ShardID, []command.Command) error {
		cl.lead(0, "n2")
		return transport.Errorf(transport.CodeNotLeader, "n2")
	})
	c.want([]string{"SET " + k0 + " a"}, []string{"-MOVED " + slot(k0) + " 10.0.0.2:7701"})
}

// TestScan: every key once or more on a client port whatever the page size, and
// on the cluster ports together exactly the same keys.
func TestScan(t *testing.T) {
	cl := newCluster(t, 3, 8)
	want := make(map[string]bool)
	for i := range 500 {
		k := fmt.Sprintf("user:%d", i)
		cl.keys[k], want[k] = entry{value: []byte("x")}, true
	}
	cl.keys["other"] = entry{value: []byte("x")}
	scan := func(addr, options string) map[string]bool {
		c := dial(t, addr)
		seen, cursor := make(map[string]bool), "0"
		for range 2000 {
			c.send("SCAN " + cursor + options)
			r, err := c.r.ReadReply()
			if err != nil || len(r.Elems) != 2 {
				t.Fatalf("SCAN %s: %v %s", cursor, err, show(r))
			}
			for _, k := range r.Elems[1].Elems {
				if seen[string(k.Str)] {
					t.Errorf("key %s twice on a quiet cluster", k.Str)
				}
				seen[string(k.Str)] = true
			}
			if cursor = string(r.Elems[0].Str); cursor == "0" {
				return seen
			}
		}
		t.Fatal("the scan does not end")
		return nil
	}
	_, forward := serve(t, Config{}, cl.node("n1"))
	for _, options := range []string{" MATCH user:*", " MATCH user:* COUNT 1", " MATCH user:* COUNT 37", " COUNT 100000 MATCH user:* TYPE STRING"} {
		if got := scan(forward, options); !reflect.DeepEqual(got, want) {
			t.Errorf("SCAN%s: %d keys, want %d", options, len(got), len(want))
		}
	}
	if got := scan(forward, ""); len(got) != 501 {
		t.Errorf("SCAN: %d keys", len(got))
	}
	all, addrs := make(map[string]bool), serveCluster(t, cl)
	for _, addr := range addrs {
		for k := range scan(addr, " COUNT 13") {
			if all[k] {
				t.Errorf("%s on two nodes", k)
			}
			all[k] = true
		}
	}
	if len(all) != 501 {
		t.Errorf("%d keys on the cluster ports", len(all))
	}

	// A node that loses a shard in the middle of its scan finishes it.
	c := dial(t, addrs[0])
	c.send("SCAN 0 COUNT 5")
	r, err := c.r.ReadReply()
	if err != nil {
		t.Fatal(err)
	}
	cl.lead(0, "n3")
	seen := len(r.Elems[1].Elems)
	for cursor := string(r.Elems[0].Str); cursor != "0"; {
		c.send("SCAN " + cursor + " COUNT 50")
		if r, err = c.r.ReadReply(); err != nil || len(r.Elems) != 2 {
			t.Fatalf("SCAN %s: %v %s", cursor, err, show(r))
		}
		seen += len(r.Elems[1].Elems)
		cursor = string(r.Elems[0].Str)
	}
	led := 0
	for _, shard := range []sharding.ShardID{0, 3, 6} {
		led += len(cl.shardKeys(shard))
	}
	if seen != led {
		t.Errorf("saw %d keys, the shards led at the start have %d", seen, led)
	}
}

// TestJobs: the JOB commands and their errors.
func TestJobs(t *testing.T) {
	_, addr := serve(t, Config{}, newCluster(t, 3, 2).node("n1"))
	c := dial(t, addr)
	spec := `{"prefix":"num/","as":"int","map":"square","reduce":"sum"}`
	c.want([]string{"JOB.SUBMIT " + spec, "JOB.STATUS job1", "JOB.RESULT job1", "JOB.RESULT job1 WAIT 1000", "JOB.RESULT slow wait 1", "JOB.CANCEL job1", "JOB.LIST"},
		[]string{"job1", `{"id":"job1","state":"succeeded","result":285}`, `{"id":"job1",...`, `{"id":"job1",...`, `{"id":"slow","state":"running"}`, "+OK", `[{"id":"job1","state":"succeeded","result":285}]`})
	c.want([]string{"JOB.STATUS nope", "JOB.STATUS no/such", "JOB.RESULT job1 WAIT x", "JOB.RESULT job1 WAIT", `JOB.SUBMIT {"reduce":"max","as":"colour"}`, "JOB.SUBMIT {", "JOB.CANCEL nope", "JOB.SUBMIT " + spec, "JOB.SUBMIT " + spec, "ABACUS.STATUS"},
		[]string{"-NOTFOUND...", "-NOTFOUND...", "-ERR value is not an integer...", "-ERR syntax error", "-BADJOB as: ...", "-BADJOB spec: ...", "-NOTFOUND...", "job2", "-BUSY 2 jobs are queued, try again in 1s", `{"healthy":true}`})
}

// TestJobsAgain: jobs are explained, tried again and deleted.
func TestJobsAgain(t *testing.T) {
	_, addr := serve(t, Config{}, newCluster(t, 3, 2).node("n1"))
	c := dial(t, addr)
	spec := `{"prefix":"num/"}`
	c.want([]string{"JOB.EXPLAIN " + spec, `JOB.EXPLAIN {"as":"colour"}`, "JOB.SUBMIT " + spec, "JOB.SUBMIT " + spec},
		[]string{`{"spec":{"prefix":"num/"}}`, "-BADJOB as: ...", "job1", "job2"})
	c.want([]string{"JOB.RETRY job1", "JOB.RETRY job1 mine", "JOB.RETRY job1 a/b", "JOB.RETRY job1 a b", "JOB.RETRY nope", "JOB.RETRY no/pe", "JOB.RETRY job1 unsure"},
		[]string{"job1again", "mine", "-BADJOB id: ...", "-ERR syntax error", "-NOTFOUND...", "-NOTFOUND...", "-UNCERTAIN ..."})
	c.want([]string{"JOB.DELETE job1", "JOB.DELETE job1", "JOB.DELETE job2", "JOB.DELETE no/pe", "JOB.DELETE"},
		[]string{"+OK", "-NOTFOUND...", "-ERR job job2 has not ended, it is running: cancel it first", "-NOTFOUND...", "-ERR wrong number of arguments..."})
	// The help has every command.
	help := c.one("JOB.HELP")
	for name, s := range newTable().byName {
		if name != "job.help" && strings.HasPrefix(name, "job.") && s.never == "" && !strings.Contains(help, strings.ToUpper(name)+" ") {
			t.Errorf("%s is missing in %s", name, help)
		}
	}
}

// TestUnsureSubmit: who does not know whether a job was queued is told its id.
func TestUnsureSubmit(t *testing.T) {
	_, addr := serve(t, Config{}, newCluster(t, 3, 2).node("n1"))
	if got := dial(t, addr).one(`JOB.SUBMIT {"name":"unsure","prefix":"num/"}`); !strings.HasPrefix(got, "-UNCERTAIN ") || !strings.Contains(got, "j7") {
		t.Errorf("got %q", got)
	}
}

// TestConnectionState: HELLO, RESP3, QUIT in the middle of a pipeline.
func TestConnectionState(t *testing.T) {
	cl := newCluster(t, 3, 2)
	_, addr := serve(t, Config{}, cl.node("n1"))
	c := dial(t, addr)
	c.want([]string{"HELLO 4", "HELLO x", "HELLO 3 AUTH", "HELLO 3 SETNAME a b"},
		[]string{"-NOPROTO unsupported protocol version", "-ERR Protocol version is not an integer or out of range", "-ERR Syntax error in HELLO option 'AUTH'", "-ERR Syntax error in HELLO option 'b'"})
	c.send("GET none", "HELLO 3 SETNAME me", "GET none", "CLIENT GETNAME", "RESET", "GET none")
	var types []resp.Type
	for range 6 {
		r, err := c.r.ReadReply()
		if err != nil {
			t.Fatal(err)
		}
		types = append(types, r.Type)
	}
	if types[1] != resp.TypeMap {
		t.Errorf("HELLO 3 is no map: %c", types)
	}
	c.send("SET k 1", "QUIT", "SET k 2")
	if a, b := c.read(), c.read(); a != "+OK" || b != "+OK" {
		t.Errorf("SET and QUIT: %s %s", a, b)
	}
	if _, err := c.r.ReadReply(); err != io.EOF {
		t.Errorf("after QUIT: %v", err)
	}
	if string(cl.keys["k"].value) != "1" {
		t.Error("a command after QUIT was executed")
	}
}

// TestUnknownHost: an address that says nothing to a client elsewhere becomes
// the one that it dialled.
func TestUnknownHost(t *testing.T) {
	cl := newCluster(t, 2, 2)
	m := cl.router.Map().Clone()
	m.Nodes[0].Addrs.Cluster, m.Nodes[1].Addrs.Cluster = ":7701", "0.0.0.0:7702"
	cl.router = sharding.NewRouter(m)
	_, addr := serve(t, Config{Mode: ModeCluster}, cl.node("n1"))
	if got := dial(t, addr).one("CLUSTER SLOTS"); strings.Count(got, "127.0.0.1 770") != 4 {
		t.Error(got)
	}
}

// TestTable: every row of the command table is whole.
func TestTable(t *testing.T) {
	for name, s := range newTable().byName {
		ways := 0
		for _, set := range []bool{s.plan != nil, s.run != nil, s.never != ""} {
			if set {
				ways++
			}
		}
		if ways != 1 && !(ways == 0 && len(s.subs) > 0) {
			t.Errorf("%s: %d ways to run it", name, ways)
		}
		if s.never == "" && (s.arity == 0 || s.summary == "" || s.since == "" || s.group == "") {
			t.Errorf("%s: incomplete", name)
		}
		if (s.plan != nil) != (s.first > 0) && name != "watch" || s.first > 0 && s.step == 0 {
			t.Errorf("%s: key positions %d %d %d", name, s.first, s.last, s.step)
		}
		if s.plan != nil && s.has(flagWrite) == s.has(flagReadOnly) {
			t.Errorf("%s: must be a read or a write", name)
		}
		if len(s.never) > 0 && !strings.HasPrefix(s.never, "ERR ") {
			t.Errorf("%s: %q", name, s.never)
		}
		if len(name) > 2*maxName {
			t.Errorf("%s: the name is too long", name)
		}
	}
	// The list.
	for _, name := range strings.Fields("ping echo quit reset hello auth select client|setname client|getname client|id client|info client|list client|setinfo client|no-evict client|no-touch " +
		"command command|count command|info command|docs command|getkeys info config|get readonly readwrite asking cluster|slots cluster|shards cluster|nodes cluster|info cluster|myid cluster|keyslot cluster|countkeysinslot cluster|help time " +
		"get set getdel getex getset setnx append strlen mget mset del unlink exists type touch incr decr incrby decrby incrbyfloat expire pexpire expireat ttl pttl persist scan dbsize wait " +
		"multi exec discard watch unwatch idem idem|open keys flushall eval cluster|setslot cluster|meet cluster|addslots cluster|forget migrate replicaof save debug monitor job.submit job.status job.result job.cancel job.list job.explain job.retry job.delete job.help abacus.status") {
		if newTable().byName[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
}
