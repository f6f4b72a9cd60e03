package front

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// TestTransactionIsOneCommand: EXEC is one Exec with one command, and what is in a
// pipeline before and after it keeps its place.
func TestTransactionIsOneCommand(t *testing.T) {
	cl := newCluster(t, 3, 4)
	_, addr := serve(t, Config{}, cl.node("n1"))
	c := dial(t, addr)
	c.want([]string{"SET {t}a 1", "MULTI", "INCR {t}a", "INCR {t}a", "GET {t}a", "EXEC", "INCR {t}a", "GET other"},
		[]string{"+OK", "+OK", "+QUEUED", "+QUEUED", "+QUEUED", "[2 3 3]", "4", "(nil)"})
	cl.takeExecs()
	c.want([]string{"MULTI", "INCR {t}a", "INCR {t}a", "EXEC"}, []string{"+OK", "+QUEUED", "+QUEUED", "[5 6]"})
	if execs := cl.takeExecs(); len(execs) != 1 || execs[0].cmds != 1 {
		t.Errorf("a transaction was %v", execs)
	}
}

// TestTransactionBounds: what is queued is bounded, charged to the port, and given
// back by EXEC, DISCARD, RESET and the end of the connection.
func TestTransactionBounds(t *testing.T) {
	cl := newCluster(t, 1, 1)
	srv, addr := serve(t, Config{MaxCommandBytes: 2 << 20, MaxBufferedBytes: 3 << 20}, cl.node("n1"))
	abort := "-EXECABORT Transaction discarded because of previous errors."
	free := func(when string) { // a request's own bytes are given back behind its reply
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); srv.Stats().Buffered != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d bytes are charged %s", srv.Stats().Buffered, when)
			}
		}
	}
	c := dial(t, addr)
	c.want([]string{"MULTI"}, []string{"+OK"})
	for range 10 {
		var lines []string
		for range 1000 {
			lines = append(lines, "INCR n")
		}
		for _, got := range c.do(lines...) {
			if got != "+QUEUED" {
				t.Fatal(got)
			}
		}
	}
	if srv.Stats().Buffered < 1_000_000 {
		t.Errorf("%d bytes are charged for 10,000 commands", srv.Stats().Buffered)
	}
	c.want([]string{"INCR n", "EXEC"}, []string{"-ERR a transaction has at most 10000 commands", abort})
	free("after EXEC")
	var gets []string
	for i := range 64 {
		gets = append(gets, fmt.Sprintf("GET {t}%d", i))
	}
	c.one("MULTI")
	c.do(gets...)
	c.want([]string{"GETDEL {t}x", "EXEC"}, []string{"-ERR a transaction reads at most 64 values", abort})
	c.one("MULTI")
	c.want([]string{"MGET " + strings.Repeat("{t}x ", 65), "EXEC"}, []string{"-ERR a transaction reads at most 64 values", abort})
	c.one("MULTI")
	c.do(gets...)
	if got := c.one("EXEC"); got != "["+strings.TrimSpace(strings.Repeat("(nil) ", 64))+"]" {
		t.Errorf("64 values: %s", got)
	}
	id := c.one("IDEM OPEN")
	c.one("MULTI")
	c.do(gets[:9]...)
	c.want([]string{"IDEM " + id + " 1 EXEC", "EXEC"}, []string{"-ERR a numbered transaction reads at most 8 values...", "-ERR EXEC without MULTI"})

	big := "SET {t}big " + strings.Repeat("x", 900_000)
	c.want([]string{"MULTI", big, big, big, "EXEC"}, []string{"+OK", "+QUEUED", "+QUEUED", "-TOOLARGE a transaction of more than 2097152 bytes", abort})
	for _, end := range []string{"DISCARD", "RESET"} {
		c.want([]string{"WATCH {t}big", "MULTI", big, end}, []string{"+OK", "+OK", "+QUEUED", "..."})
		free("after " + end)
	}
	// Two clients may not hold more than the port takes, and one that goes away holds nothing.
	c.want([]string{"MULTI", big, big}, []string{"+OK", "+QUEUED", "+QUEUED"})
	d := dial(t, addr)
	d.one("MULTI")
	if got := d.one("APPEND {t}b " + strings.Repeat("x", 600_000)); got != "+QUEUED" {
		t.Fatal(got)
	}
	d.send("APPEND {t}b " + strings.Repeat("x", 700_000))
	if got := d.read(); !strings.HasPrefix(got, "-ERR this node holds too many bytes") {
		t.Errorf("over the port's bound: %s", got)
	}
	c.nc.Close()
	d.nc.Close()
	free("of clients that are gone")
}

// TestTransactionErrors: what EXEC answers when its proposal fails, by what the failure proves.
func TestTransactionErrors(t *testing.T) {
	cl := newCluster(t, 2, 2)
	var fail error
	cl.setHook(func(_ context.Context, _ sharding.NodeID, _ sharding.ShardID, cmds []command.Command) error {
		if cmds[0].Op == command.OpMulti {
			return fail
		}
		return nil
	})
	addrs := serveCluster(t, cl)
	key := ""
	for i := range 100 {
		if k := fmt.Sprintf("{%d}", i); cl.leaders[cl.router.ShardOf(sharding.SlotOf([]byte(k)))] == "n1" {
			key = k
			break
		}
	}
	for _, tc := range []struct {
		err         error
		write, read string
	}{
		{transport.Errorf(transport.CodeUncertain, "the leader was lost"), "-UNCERTAIN ...", "-TRYAGAIN nothing was done..."},
		{transport.Errorf(transport.CodeBusy, "full"), "-TRYAGAIN nothing was done...", "-TRYAGAIN nothing was done..."},
		{transport.Errorf(transport.CodeNotLeader, ""), "-CLUSTERDOWN ...", "-CLUSTERDOWN ..."},
	} {
		cl.mu.Lock()
		fail = tc.err
		cl.mu.Unlock()
		c := dial(t, addrs[0])
		c.want([]string{"MULTI", "SET " + key + " 1", "EXEC", "EXEC"}, []string{"+OK", "+QUEUED", tc.write, "-ERR EXEC without MULTI"})
		c.want([]string{"MULTI", "GET " + key, "EXEC"}, []string{"+OK", "+QUEUED", tc.read})
	}
}

// TestWatchedReadsAreLinearizable: a stale read behind WATCH could miss the very change
// that WATCH no longer sees.
func TestWatchedReadsAreLinearizable(t *testing.T) {
	cl := newCluster(t, 1, 1)
	_, addr := serve(t, Config{}, cl.node("n1"))
	c := dial(t, addr)
	for _, step := range []struct {
		line  string
		stale bool
	}{{"CLIENT CONSISTENCY stale", true}, {"WATCH k", false}, {"UNWATCH", true}, {"WATCH k", false}, {"RESET", false}} {
		c.one(step.line)
		c.one("GET k")
		cl.mu.Lock()
		how := cl.readings[len(cl.readings)-1]
		cl.mu.Unlock()
		if how.Stale != step.stale {
			t.Errorf("after %s reads are %+v", step.line, how)
		}
	}
}
