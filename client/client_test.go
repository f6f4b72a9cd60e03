package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport/resp"
)

// open makes a client with short times, for the cluster's addresses.
func open(t *testing.T, c *clienttest.Cluster, change ...func(*client.Config)) *client.Client {
	t.Helper()
	cfg := client.Config{Addrs: c.Addrs(), Timeout: 20 * time.Second, Stall: 2 * time.Second}
	for _, f := range change {
		f(&cfg)
	}
	cl, err := client.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return cl
}

func TestKeysAndValues(t *testing.T) {
	c := clienttest.New(t, 3)
	cl, ctx := open(t, c), t.Context()
	binary := "\x00\r\n\xff" + strings.Repeat("x", 100_000) // longer than one gathered write

	if _, err := cl.Get(ctx, "k"); !errors.Is(err, client.ErrNotFound) {
		t.Fatalf("get of a missing key: %v", err)
	}
	if err := cl.Put(ctx, "k", []byte(binary)); err != nil {
		t.Fatal(err)
	}
	if v, err := cl.Get(ctx, "k"); err != nil || string(v) != binary {
		t.Fatalf("get: %d bytes, %v", len(v), err)
	}
	if err := cl.Put(ctx, "empty", nil); err != nil {
		t.Fatal(err)
	}
	if v, err := cl.MGet(ctx, "k", "none", "empty"); err != nil || string(v[0]) != binary || v[1] != nil || v[2] == nil {
		t.Fatalf("mget: %v %v", v[1:], err)
	}
	if ok, err := cl.PutWith(ctx, "k", []byte("v"), client.PutOptions{IfAbsent: true}); ok || err != nil {
		t.Fatalf("put if absent over a key: %v %v", ok, err)
	}
	if ok, err := cl.PutWith(ctx, "k2", []byte("v"), client.PutOptions{IfPresent: true}); ok || err != nil {
		t.Fatalf("put if present of nothing: %v %v", ok, err)
	}
	if ok, err := cl.CAS(ctx, "empty", []byte("other"), []byte("new")); ok || err != nil {
		t.Fatalf("cas with another old value: %v %v", ok, err)
	}
	if ok, err := cl.CAS(ctx, "empty", nil, []byte("new")); !ok || err != nil {
		t.Fatalf("cas: %v %v", ok, err)
	}
	for i, want := range []int64{5, 3} {
		if n, err := cl.Incr(ctx, "n", []int64{5, -2}[i]); err != nil || n != want {
			t.Fatalf("incr: %d %v", n, err)
		}
	}
	var refused *client.ServerError
	if _, err := cl.Incr(ctx, "k", 1); !errors.As(err, &refused) || refused.Code != "ERR" {
		t.Fatalf("incr of bytes: %v", err)
	}
	if err := cl.Put(ctx, "big", make([]byte, 1<<20+1)); !errors.Is(err, client.ErrTooLarge) {
		t.Fatalf("put over the limit: %v", err)
	}
	if n, err := cl.Size(ctx); err != nil || n != 3 {
		t.Fatalf("size: %d %v", n, err)
	}
	if n, err := cl.Del(ctx, "k", "n", "none", "empty"); err != nil || n != 3 {
		t.Fatalf("del over slots: %d %v", n, err)
	}
	if st, err := cl.Status(ctx); err != nil || len(st.Nodes) != 3 || !st.Healthy {
		t.Fatalf("status: %+v %v", st, err)
	}
}

func TestKeyedCommandsGoToTheLeader(t *testing.T) {
	c := clienttest.New(t, 3)
	var strayed atomic.Int64
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] == "SET" && (!r.Cluster || c.Nodes[c.LeaderOf(r.Args[1])] != r.Node) {
			strayed.Add(1)
		}
		return clienttest.Serve
	})
	cl := open(t, c)
	for i := range 100 {
		if err := cl.Put(t.Context(), fmt.Sprint("key", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := strayed.Load(); n != 0 {
		t.Errorf("%d of 100 commands went elsewhere", n)
	}
}

// Commands of many callers share a connection and go out together.
func TestPipelining(t *testing.T) {
	c := clienttest.New(t, 1)
	var writes, conns atomic.Int64
	cl := open(t, c, func(cfg *client.Config) {
		cfg.Stall = 5 * time.Second
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			nc, err := d.DialContext(ctx, "tcp", addr)
			conns.Add(1)
			return countingConn{nc, &writes}, err
		}
	})
	if err := cl.Put(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	writes.Store(0)
	before := conns.Load()
	const callers, each = 100, 50
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for j := range each {
				want := fmt.Sprintf("%d.%d", i, j)
				if _, err := cl.Do(t.Context(), "SET", "k"+fmt.Sprint(i), want); err != nil {
					t.Error(err)
				}
				if v, err := cl.Get(t.Context(), "k"+fmt.Sprint(i)); err != nil || string(v) != want {
					t.Errorf("got %q, want %q: %v", v, want, err)
				}
			}
		})
	}
	wg.Wait()
	if n := conns.Load() - before; n != 0 {
		t.Errorf("%d more connections", n)
	}
	if n := writes.Load(); n > callers*each*2/4 {
		t.Errorf("%d commands went out in %d writes", callers*each*2, n)
	}
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

func TestBatchesOfManyCommands(t *testing.T) {
	c := clienttest.New(t, 3)
	cl := open(t, c, func(cfg *client.Config) { cfg.Stall, cfg.Timeout = time.Minute, time.Minute })
	const n = 20_000
	cmds := make([]client.Cmd, 0, 2*n)
	for i := range n {
		cmds = append(cmds, client.Command("SET", fmt.Sprint("k", i%1000), fmt.Sprint(i)), client.Command("GET", fmt.Sprint("k", i%1000)))
	}
	for i, r := range cl.DoMulti(t.Context(), cmds) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		if i%2 == 1 && string(r.Reply.Str) != fmt.Sprint(i/2) { // commands of one node keep their order
			t.Fatalf("answer %d is %q", i, r.Reply.Str)
		}
	}
	if r := cl.DoMulti(t.Context(), nil); len(r) != 0 {
		t.Errorf("no commands: %v", r)
	}
	if r := cl.DoMulti(t.Context(), []client.Cmd{{}}); r[0].Err == nil {
		t.Error("a command without a name was accepted")
	}
}

// Keys of one slot go to their leader; keys of several to a client address,
// where the node splits the command.
func TestCommandsOfSeveralKeys(t *testing.T) {
	c := clienttest.New(t, 3)
	var cluster atomic.Bool
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] == "MSET" {
			cluster.Store(r.Cluster)
			r.Reply.SimpleString("OK")
			return clienttest.Done
		}
		return clienttest.Serve
	})
	cl := open(t, c)
	for _, tc := range []struct {
		args    []string
		cluster bool
	}{
		{[]string{"MSET", "{a}1", "x", "{a}2", "y"}, true},
		{[]string{"mset", "a", "b", "b", "a"}, false},
		{[]string{"MSET", "a", "{b}", "a", "{c}"}, true}, // values are no keys
	} {
		if _, err := cl.Do(t.Context(), tc.args...); err != nil || cluster.Load() != tc.cluster {
			t.Errorf("%q: to the cluster port %v, want %v; %v", tc.args, cluster.Load(), tc.cluster, err)
		}
	}
}

// Room on a connection comes back with the answers: far more goes through than
// may be pending.
func TestRoomComesBack(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := open(t, c, func(cfg *client.Config) { cfg.MaxPendingBytes = 1000 })
	for i := range 100 {
		if err := cl.Put(t.Context(), fmt.Sprint("k", i), make([]byte, 300)); err != nil {
			t.Fatal(err)
		}
	}
}

// What is queued on a connection is bounded; who waits for room when the
// deadline comes has certainly not sent anything.
func TestPendingBytesAreBounded(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := open(t, c, func(cfg *client.Config) {
		cfg.MaxPendingBytes, cfg.NoRouting = 1000, true
		cfg.Stall = 10 * time.Second
	})
	if err := cl.Put(t.Context(), "k", nil); err != nil { // opens the session
		t.Fatal(err)
	}
	c.Hook(func(*clienttest.Request) clienttest.Fate { return clienttest.Hang })
	var wg sync.WaitGroup
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
		defer cancel()
		if err := cl.Put(ctx, "first", make([]byte, 2000)); !errors.Is(err, client.ErrUncertain) { // larger than the bound: goes alone
			t.Errorf("first: %v", err)
		}
	})
	eventually(t, "the first to be sent", func() bool { return c.Count("SET") == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := cl.Put(ctx, "second", nil); !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrUncertain) {
		t.Errorf("second: %v", err)
	}
	wg.Wait()
}

func TestScan(t *testing.T) {
	c := clienttest.New(t, 2)
	want := map[string]bool{}
	for i := range 250 {
		want[fmt.Sprintf("a*[%d", i)] = true
		c.Put(fmt.Sprintf("a*[%d", i), "v")
		c.Put(fmt.Sprintf("ax[%d", i), "v")
	}
	cl := open(t, c)
	for key, err := range cl.Scan(t.Context(), client.ScanOptions{Prefix: "a*[", Page: 20}) {
		if err != nil {
			t.Fatal(err)
		}
		if !want[key] {
			t.Fatalf("visited %q", key)
		}
		delete(want, key)
	}
	if len(want) != 0 {
		t.Errorf("%d keys were not visited", len(want))
	}
	for range cl.Scan(t.Context(), client.ScanOptions{}) {
		break // stopping early must be possible
	}
	c.Hook(func(r *clienttest.Request) clienttest.Fate { r.Reply.Error("ERR broken"); return clienttest.Done })
	for _, err := range cl.Scan(t.Context(), client.ScanOptions{}) {
		if err == nil {
			t.Error("a scan that failed gave no error")
		}
	}
}

// JobWait with a time-out under the second that it would like to wait asks the node to
// answer well before.
func TestJobWaitWithShortTimeouts(t *testing.T) {
	const timeout = 700 * time.Millisecond // less than what a poll waits as a rule
	c := clienttest.New(t, 1)
	var polls atomic.Int64
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "JOB.RESULT" {
			return clienttest.Serve
		}
		ms, err := strconv.Atoi(r.Args[3])
		if err != nil {
			t.Error(err)
		}
		if time.Duration(ms)*time.Millisecond > timeout/2 { // or the answer would come too late
			t.Errorf("it waits for %d ms of %v", ms, timeout)
		}
		rec := job.Record{ID: "a", State: job.Running}
		if polls.Add(1) == 3 {
			rec.State = job.Succeeded
		}
		text, _ := json.Marshal(rec)
		r.Reply.Bulk(text)
		return clienttest.Done
	})
	cl := open(t, c, func(cfg *client.Config) { cfg.Timeout, cfg.Stall = timeout, time.Minute })
	if rec, err := cl.JobWait(t.Context(), "a", nil); err != nil || rec.State != job.Succeeded {
		t.Errorf("%+v, %v", rec, err)
	}
}

// What to do about a lost answer depends on what was asked for.
func TestUncertainSaysWhatToDo(t *testing.T) {
	c := clienttest.New(t, 1)
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] == "SET" || r.Args[0] == "JOB.SUBMIT" {
			return clienttest.Lose
		}
		return clienttest.Serve
	})
	cl := open(t, c, func(cfg *client.Config) { cfg.Timeout = time.Second })
	if err := cl.Put(t.Context(), "k", nil); !errors.Is(err, client.ErrUncertain) || !strings.Contains(err.Error(), "read the key") {
		t.Errorf("put: %v", err)
	}
	_, err := cl.SubmitJob(t.Context(), job.Spec{})
	if !errors.Is(err, client.ErrUncertain) || !strings.Contains(err.Error(), "same id") || strings.Contains(err.Error(), "the key") {
		t.Errorf("submit: %v", err)
	}
}

func TestJobs(t *testing.T) {
	c := clienttest.New(t, 2)
	var (
		mu    sync.Mutex
		jobs  = map[string]job.Record{}
		lost  atomic.Bool
		polls atomic.Int64
	)
	bulk := func(w *resp.Writer, v any) clienttest.Fate {
		b, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		w.Bulk(b)
		return clienttest.Done
	}
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		mu.Lock()
		defer mu.Unlock()
		switch r.Args[0] {
		case "JOB.SUBMIT":
			spec, err := job.ParseSpec([]byte(r.Args[1]))
			if err != nil {
				t.Error(err)
			}
			jobs[spec.ID] = job.Record{ID: spec.ID, Spec: spec, State: job.Queued}
			if !lost.Swap(true) {
				return clienttest.Refuse // submitted, and the answer is lost
			}
			r.Reply.BulkString(spec.ID)
			return clienttest.Done
		case "JOB.STATUS", "JOB.RESULT":
			rec, ok := jobs[r.Args[1]]
			if !ok {
				r.Reply.Error("NOTFOUND no such job")
				return clienttest.Done
			}
			if r.Args[0] == "JOB.RESULT" && polls.Add(1) == 3 {
				v := job.Number("285")
				rec.State, rec.Result = job.Succeeded, &v
			}
			return bulk(r.Reply, rec)
		case "JOB.LIST":
			return bulk(r.Reply, []job.Record{{ID: "a"}, {ID: "b"}})
		case "JOB.CANCEL":
			r.Reply.SimpleString("OK")
			return clienttest.Done
		}
		return clienttest.Serve
	})
	cl, ctx := open(t, c), t.Context()

	id, err := cl.SubmitJob(ctx, job.Spec{Prefix: "num/", As: job.AsInt, Map: job.MapSquare, Reduce: job.ReduceSum})
	if err != nil || id == "" {
		t.Fatalf("submit: %q, %v", id, err)
	}
	if len(jobs) != 1 {
		t.Errorf("a submit that was sent again made %d jobs", len(jobs))
	}
	progress := 0
	rec, err := cl.JobWait(ctx, id, func(job.Record) { progress++ })
	if err != nil || rec.State != job.Succeeded || rec.Result.String() != "285" || progress != 2 {
		t.Errorf("wait: %+v, %v, %d times progress", rec, err, progress)
	}
	polls.Store(2)
	if v, err := cl.JobResult(ctx, id); err != nil || v.String() != "285" {
		t.Errorf("result: %v, %v", v, err)
	}
	if _, err := cl.JobStatus(ctx, "other"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("status of an unknown job: %v", err)
	}
	if recs, err := cl.Jobs(ctx); err != nil || len(recs) != 2 {
		t.Errorf("list: %v, %v", recs, err)
	}
	if err := cl.CancelJob(ctx, id); err != nil {
		t.Errorf("cancel: %v", err)
	}
	if _, err := cl.SubmitJob(ctx, job.Spec{Map: "cube"}); !errors.Is(err, client.ErrBadJob) {
		t.Errorf("submit of a bad job: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	polls.Store(100)
	if _, err := cl.JobWait(short, id, nil); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, client.ErrTimeout) {
		t.Errorf("wait with a deadline: %v", err)
	}
}

// A retry and a delete whose answers are lost are sent again and count once; an explanation runs nothing.
func TestJobsAgain(t *testing.T) {
	c := clienttest.New(t, 2)
	var (
		mu   sync.Mutex
		seen []string
		lost = map[string]bool{}
	)
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		mu.Lock()
		defer mu.Unlock()
		if !strings.HasPrefix(r.Args[0], "JOB.") {
			return clienttest.Serve
		}
		seen = append(seen, strings.Join(r.Args, " "))
		if !lost[r.Args[0]] {
			lost[r.Args[0]] = true
			return clienttest.Refuse
		}
		switch {
		case len(r.Args) > 1 && r.Args[1] == "running":
			r.Reply.Error("ERR job running has not ended, it is running: cancel it first")
		case r.Args[0] == "JOB.RETRY":
			r.Reply.BulkString(r.Args[2])
		case r.Args[0] == "JOB.DELETE":
			r.Reply.SimpleString("OK")
		case r.Args[0] == "JOB.EXPLAIN":
			r.Reply.BulkString(`{"spec":{"prefix":"a/","as":"string","map":"value","reduce":"count","on_error":"fail"},"shards":[{"shard":1,"tasks":3}],"tasks":3}`)
		}
		return clienttest.Done
	})
	cl, ctx := open(t, c), t.Context()
	if id, err := cl.RetryJob(ctx, "old", ""); err != nil || id == "" || seen[0] != "JOB.RETRY old "+id || seen[1] != seen[0] {
		t.Errorf("retry: %q, %v, sent %q", id, err, seen)
	}
	if id, err := cl.RetryJob(ctx, "old", "new"); err != nil || id != "new" {
		t.Errorf("retry under an id: %q, %v", id, err)
	}
	seen = nil
	if err := cl.DeleteJob(ctx, "old"); err != nil || len(seen) != 2 {
		t.Errorf("delete: %v, sent %q", err, seen)
	}
	if err := cl.DeleteJob(ctx, "running"); err == nil || !strings.Contains(err.Error(), "cancel it first") {
		t.Errorf("delete of a running job: %v", err)
	}
	if e, err := cl.ExplainJob(ctx, job.Spec{Prefix: "a/"}); err != nil || e.Tasks != 3 || len(e.Shards) != 1 || e.Spec.Reduce != job.ReduceCount {
		t.Errorf("explain: %+v, %v", e, err)
	}
	if _, err := cl.ExplainJob(ctx, job.Spec{Reduce: "multiply"}); !errors.Is(err, client.ErrBadJob) {
		t.Errorf("explain a bad job: %v", err)
	}
}

// Every event is told once and in order, those that came while nobody asked and those that were dropped meanwhile included.
func TestJobEvents(t *testing.T) {
	c := clienttest.New(t, 1)
	var (
		mu    sync.Mutex
		rec   = job.Record{ID: "a", State: job.Running}
		asked int
	)
	log := func(n int) {
		for range n {
			rec.Log(time.UnixMilli(1), fmt.Sprint(rec.EventsOmitted+len(rec.Events)+1))
		}
	}
	log(2)
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		mu.Lock()
		defer mu.Unlock()
		if !strings.HasPrefix(r.Args[0], "JOB.") {
			return clienttest.Serve
		}
		switch asked++; asked {
		case 3:
			log(1)
		case 4:
			log(job.MaxEvents + 7) // 110 by now, of which 10 are gone
		case 5:
			log(1)
			rec.State = job.Succeeded
		}
		text, err := json.Marshal(rec)
		if err != nil {
			t.Error(err)
		}
		r.Reply.Bulk(text)
		return clienttest.Done
	})
	cl := open(t, c)
	var told []string
	got, err := cl.JobEvents(t.Context(), "a", func(e job.Event) error { told = append(told, e.Text); return nil })
	if err != nil || got.State != job.Succeeded {
		t.Fatalf("%+v, %v", got, err)
	}
	want := []string{"1", "2", "3", "(7 events are not kept)"}
	for n := 11; n <= 111; n++ {
		want = append(want, fmt.Sprint(n))
	}
	if !slices.Equal(told, want) {
		t.Errorf("told %q", told)
	}
	told = nil // of a job that has ended
	if _, err := cl.JobEvents(t.Context(), "a", func(e job.Event) error { told = append(told, e.Text); return nil }); err != nil || len(told) != 101 || told[0] != "(11 events are not kept)" {
		t.Errorf("%v: %q", err, told)
	}
	stop := errors.New("enough")
	if _, err := cl.JobEvents(t.Context(), "a", func(job.Event) error { return stop }); err != stop {
		t.Errorf("stopped: %v", err)
	}
	mu.Lock()
	rec, asked = job.Record{ID: "a", State: job.Running}, 10
	log(1)
	mu.Unlock()
	seen := 0
	if _, err := cl.JobEvents(t.Context(), "a", func(job.Event) error {
		if seen++; seen == 2 {
			return stop
		}
		mu.Lock()
		defer mu.Unlock()
		log(1) // heard of with the next look; the job never ends
		return nil
	}); err != stop {
		t.Errorf("stopped while it runs: %v", err)
	}
}

func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	c := clienttest.New(t, 1)
	cl, err := client.Open(client.Config{Addrs: c.Addrs()})
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.Put(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	c.Hook(func(*clienttest.Request) clienttest.Fate { return clienttest.Hang })
	errs := make(chan error, 2)
	go func() { errs <- cl.Put(t.Context(), "k", nil) }()
	go func() { _, err := cl.Get(t.Context(), "k"); errs <- err }()
	eventually(t, "commands under way", func() bool { return c.Count("SET") == 2 || c.Count("GET") == 1 })
	cl.Close()
	cl.Close()
	for range 2 {
		if err := <-errs; !errors.Is(err, client.ErrUncertain) && !errors.Is(err, client.ErrClosed) {
			t.Errorf("a command under way at Close: %v", err)
		}
	}
	if err := cl.Put(t.Context(), "k", nil); !errors.Is(err, client.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	c.Nodes[0].Stop()
	eventually(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestConfigFaultsAreAllNamed(t *testing.T) {
	_, err := client.Open(client.Config{Addrs: []string{"localhost", "a:1"}, Timeout: -1, Conns: -3})
	for _, want := range []string{`"localhost"`, "Timeout", "Conns"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if _, err := client.Open(client.Config{}); err == nil {
		t.Error("no address was accepted")
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		runtime.Gosched()
		<-time.After(time.Millisecond)
	}
}

func BenchmarkGet(b *testing.B) {
	c := clienttest.New(b, 1)
	c.Put("k", "v")
	cl, err := client.Open(client.Config{Addrs: c.Addrs()})
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := cl.Get(context.Background(), "k"); err != nil {
				b.Error(err)
			}
		}
	})
}

// A client that is content with stale reads tells each node so, first thing, and
// reads where it was told to connect. Its writes go to the leaders.
func TestStale(t *testing.T) {
	c := clienttest.New(t, 3)
	key := "k"
	for i := 0; c.LeaderOf(key) == 0; i++ {
		key = fmt.Sprint("k", i)
	}
	var mu sync.Mutex
	var seen []string
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] == "CLIENT" || r.Args[0] == "GET" || r.Args[0] == "SET" {
			mu.Lock()
			seen = append(seen, fmt.Sprint(r.Node == c.Nodes[0] && !r.Cluster, r.Args))
			mu.Unlock()
		}
		return clienttest.Serve
	})
	cl, err := client.Open(client.Config{Addrs: []string{c.Nodes[0].Client}, Stale: true, MaxStale: 250 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.Put(t.Context(), key, []byte("v")); err != nil {
		t.Fatal(err)
	}
	if v, err := cl.Get(t.Context(), key); err != nil || string(v) != "v" {
		t.Fatalf("got %q, %v", v, err)
	}
	mu.Lock()
	defer mu.Unlock()
	want := []string{"false [CLIENT CONSISTENCY stale 250]", fmt.Sprintf("false [SET %s v]", key), "true [CLIENT CONSISTENCY stale 250]", fmt.Sprintf("true [GET %s]", key)}
	at := 0
	for _, s := range seen {
		if at < len(want) && s == want[at] {
			at++
		}
	}
	if at < len(want) {
		t.Errorf("the nodes saw %q, want among it in order %q", seen, want)
	}
	if _, err := client.Open(client.Config{Addrs: c.Addrs(), MaxStale: time.Second}); err == nil {
		t.Error("MaxStale without Stale is taken")
	}
}
