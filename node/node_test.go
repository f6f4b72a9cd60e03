package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
)

// What one node took, every node answers, wherever the leaders are; leaders and
// replicas spread evenly; after a restart of one, then of all, everything is there.
func TestClusterServesAndRestarts(t *testing.T) {
	t.Parallel()
	nodes, cfgs := three(t)
	for i := range 60 {
		put(t, nodes[i%3], fmt.Sprintf("key%d", i), fmt.Sprintf("value%d", i))
	}
	check := func(n *Node) {
		t.Helper()
		for i := range 60 {
			if got, want := get(t, n, fmt.Sprintf("key%d", i)), fmt.Sprintf("value%d", i); got != want {
				t.Fatalf("%s: key%d = %q, want %q", n.cfg.ID, i, got, want)
			}
		}
	}
	for _, n := range nodes {
		check(n)
	}
	untilBalanced(t, nodes[0])

	// One goes and comes back, on other ports: it keeps its identity.
	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	put(t, nodes[0], "key0", "value0") // two of three go on
	old := nodes[2].Addrs()
	nodes[2] = open(t, cfgs[2])
	if nodes[2].Addrs() == old {
		t.Fatal("want other ports for this test")
	}
	untilHealthy(t, nodes...)
	check(nodes[2])
	until(t, "the map has its new ports", func() error { // it may be healthy before: its own calls reach the others
		if m, _ := nodes[0].Router().Map().Node("n3"); m.Addrs != nodes[2].Addrs() {
			return fmt.Errorf("map has %+v, want %+v", m.Addrs, nodes[2].Addrs())
		}
		return nil
	})

	// All go. The first ones to come back know the others' addresses from their cached map.
	for i, n := range nodes {
		a := n.Addrs()
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		cfgs[i].PeerAddr, cfgs[i].ClientAddr, cfgs[i].ClusterAddr, cfgs[i].HTTPAddr = a.Peer, a.Client, a.Cluster, a.HTTP
	}
	for i := range nodes {
		nodes[i] = open(t, cfgs[i])
	}
	untilHealthy(t, nodes...)
	for _, n := range nodes {
		check(n)
	}
}

// A replica that is taken out of the map leaves its group and its node, also if the
// node restarts before that is done. As there are fewer then than wanted, the node gets another, with another id.
func TestReplaceReplica(t *testing.T) {
	t.Parallel()
	nodes, cfgs := three(t)
	put(t, nodes[0], "key", "value")
	// Down while it is taken out, so that it comes back as a voter of its group.
	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	_, err := nodes[0].changeMap(t.Context(), func(m sharding.Map) (sharding.Map, bool, error) {
		next := m.Clone()
		next.Epoch++
		sh := &next.Shards[1]
		sh.Replicas = slices.DeleteFunc(sh.Replicas, func(r sharding.Replica) bool { return r.Node == "n3" })
		return next, true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	nodes[2] = open(t, cfgs[2])
	until(t, "another replica has its place", func() error {
		sh, _ := nodes[2].Router().Map().Shard(1)
		r, ok := sh.On("n3")
		if got := nodes[2].dir.replicas(1); !ok || !slices.Equal(got, []string{r.ID}) {
			return fmt.Errorf("replicas %v are remembered, and the map has %v", got, sh.Replicas)
		}
		if left, _ := filepath.Glob(filepath.Join(cfgs[2].DataDir, "shard-1", "*")); len(left) != 1 || filepath.Base(left[0]) != r.ID {
			return fmt.Errorf("%v is left, want that of %s", left, r.ID)
		}
		return nil
	})
	untilHealthy(t, nodes...)
	if got := get(t, nodes[2], "key"); got != "value" {
		t.Errorf("key = %q", got)
	}
}

// What a restarting node must open again: a replica that the map has taken out and
// that its group may still need.
func TestReplicaHere(t *testing.T) {
	d := &dataDir{id: ident{Replicas: []string{"shard-1/n1.1", "shard-11/n1.1", "shard-2/n1.2", "shard-3/n1.1"}}}
	n := &Node{cfg: Config{ID: "n1"}, dir: d}
	on := func(ids ...string) (list []sharding.Replica) {
		for _, id := range ids {
			node, _, _ := strings.Cut(id, ".")
			list = append(list, sharding.Replica{ID: id, Node: node})
		}
		return list
	}
	for _, c := range []struct {
		sh   sharding.Shard
		want string
	}{
		{sharding.Shard{ID: 1, Replicas: on("n1.1", "n2.2")}, "n1.1"},
		{sharding.Shard{ID: 2, Replicas: on("n2.2")}, "n1.2"},         // taken out, not dropped
		{sharding.Shard{ID: 3, Replicas: on("n2.2", "n1.9")}, "n1.1"}, // before its successor
		{sharding.Shard{ID: 4, Replicas: on("n2.2", "n1.9")}, "n1.9"},
		{sharding.Shard{ID: 5, Replicas: on("n2.2")}, ""},
	} {
		if r, ok := n.replicaHere(c.sh); r.ID != c.want || ok != (c.want != "") {
			t.Errorf("shard %d: %q, %v, want %q", c.sh.ID, r.ID, ok, c.want)
		}
	}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	n := open(t, cfg)
	untilHealthy(t, n)
	base := "http://" + n.Addrs().HTTP
	call := func(method, path, body string, header ...string) (int, string, http.Header) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			if header[i] == "Host" {
				req.Host = header[i+1]
			}
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(got), resp.Header
	}
	expect := func(code int, method, path, body string, header ...string) (string, http.Header) {
		t.Helper()
		got, text, h := call(method, path, body, header...)
		if got != code {
			t.Fatalf("%s %s: %d %s, want %d", method, path, got, text, code)
		}
		return text, h
	}

	expect(200, "GET", "/livez", "")
	expect(200, "GET", "/readyz", "")
	text, _ := expect(200, "GET", "/metrics", "")
	for _, line := range []string{`abacus_shard_leads{shard="2"} 1`, `abacus_shard_pins{shard="2"} 0`, `abacus_shard_pins_ended_total{reason="bytes",shard="2"} 0`} {
		if !strings.Contains(text, line) {
			t.Fatalf("metrics lack %s:\n%s", line, text)
		}
	}
	var s clusterStatus
	if text, _ := expect(200, "GET", "/v1/status", ""); json.Unmarshal([]byte(text), &s) != nil || !s.Healthy {
		t.Fatalf("status %s", text)
	}

	// Browsers are shown a page, others what there is.
	if text, h := expect(200, "GET", "/", "", "Accept", "text/html,application/xhtml+xml"); !strings.Contains(text, "<!doctype html>") || h.Get("Content-Security-Policy") == "" {
		t.Errorf("a browser is answered %.80s", text)
	}
	if text, h := expect(200, "GET", "/", ""); !strings.Contains(text, `"endpoints"`) || h.Get("Vary") != "Accept" {
		t.Errorf("curl is answered %.80s", text)
	}
	var looks loadHistory
	until(t, "a look at the load", func() error {
		if text, _ := expect(200, "GET", "/v1/load?since=0", ""); json.Unmarshal([]byte(text), &looks) != nil || len(looks.Reads) == 0 || len(looks.WriteP99) != len(looks.Reads) {
			return fmt.Errorf("%s", text)
		}
		return nil
	})
	expect(400, "GET", "/v1/load?since=-1", "")
	expect(400, "GET", "/v1/load?sinse=1", "")

	// Keys: any bytes, percent-encoded; raw bodies; time to live and index in headers.
	key := "/v1/kv/" + "a%2Fb%00%FF%20c"
	expect(404, "GET", key, "")
	expect(204, "PUT", key+"?ttl=1h", "one\x00two")
	text, h := expect(200, "GET", key, "")
	if text != "one\x00two" || h.Get("Abacus-Ttl-Ms") == "" || h.Get("Abacus-Index") == "" {
		t.Fatalf("got %q, headers %v", text, h)
	}
	if got := get(t, n, "a/b\x00\xff c"); got != "one\x00two" {
		t.Fatalf("stored under another key: %q", got)
	}
	expect(204, "PUT", key, "one\x00two", "Abacus-TTL-Ms", h.Get("Abacus-TTL-Ms")) // as it was read
	if _, h := expect(200, "GET", key, ""); h.Get("Abacus-TTL-Ms") == "" {
		t.Fatal("the time to live was lost")
	}
	expect(400, "PUT", key, "x", "Abacus-TTL-Ms", "soon")
	expect(412, "PUT", key, "x", "If-None-Match", "*")
	// A path is taken as it is written: a//b is not a/b.
	expect(204, "PUT", "/v1/kv/a//b", "slashes")
	if got := get(t, n, "a//b"); got != "slashes" {
		t.Fatalf("a//b holds %q", got)
	}
	expect(404, "GET", "/v1/kv/a/b", "")
	expect(204, "DELETE", key, "")
	expect(404, "DELETE", key, "")
	expect(400, "PUT", "/v1/kv/k?ttl=soon", "x")
	// What would be passed over is refused: a mistyped parameter, a condition that nobody checks.
	for _, path := range []string{"/v1/kv/k?tll=10s", "/v1/kv/k?ttl=", "/v1/kv/k?ttl=1s&ttl=2s", "/v1/kv/k?%zz", "/v1/kv/k?ttl=10s&nx"} {
		expect(400, "PUT", path, "x")
	}
	expect(400, "PUT", "/v1/kv/k", "x", "If-Match", `"1"`)
	expect(400, "PUT", "/v1/kv/k", "x", "If-None-Match", `"1"`)
	expect(400, "DELETE", key, "", "If-Match", "*")
	expect(400, "GET", key, "", "If-None-Match", `"1"`)
	expect(400, "GET", key+"?ttl=1h", "")
	expect(400, "GET", "/v1/status?verbose", "")
	expect(400, "GET", "/v1/jobs/x/result?wiat=1s", "")
	expect(404, "GET", "/v1/kv/k", "")
	expect(200, "GET", "/livez?probe=1", "") // nothing depends on it
	expect(200, "GET", "/", "")
	expect(404, "GET", "/nosuch", "")
	expect(400, "PUT", "/v1/kv/", "x")
	expect(413, "PUT", "/v1/kv/"+strings.Repeat("k", 1025), "x")
	expect(413, "PUT", "/v1/kv/k", strings.Repeat("v", 1<<20+1))
	expect(204, "PUT", "/v1/kv/k", strings.Repeat("v", 1<<20))
	expect(405, "PATCH", "/v1/kv/k", "")
	// Only pages of this very port may call: not another server on this machine.
	expect(200, "GET", "/livez", "", "Origin", base)
	for _, origin := range []string{"null", "http://localhost:3000", "http://127.0.0.1", "http://evil.example"} {
		expect(403, "GET", "/livez", "", "Origin", origin)
	}

	// Pages of other origins, and names that were rebound to this address, get nothing.
	expect(403, "GET", "/v1/status", "", "Host", "evil.example")
	expect(403, "PUT", "/v1/kv/k", "x", "Origin", "http://evil.example")
	expect(204, "PUT", "/v1/kv/k", "x", "Origin", base)

	// Numbered writes.
	text, _ = expect(200, "POST", "/v1/sessions", "")
	var opened struct{ Session string }
	if err := json.Unmarshal([]byte(text), &opened); err != nil || opened.Session == "" {
		t.Fatalf("session: %s", text)
	}
	numbered := func(seq, floor string) []string {
		return []string{"Abacus-Session", opened.Session, "Abacus-Seq", seq, "Abacus-Floor", floor}
	}
	expect(204, "PUT", "/v1/kv/once", "1", append(numbered("1", "0"), "If-None-Match", "*")...)
	expect(204, "PUT", "/v1/kv/once", "1", append(numbered("1", "0"), "If-None-Match", "*")...) // answered as before
	expect(412, "PUT", "/v1/kv/once", "1", append(numbered("2", "2"), "If-None-Match", "*")...)
	expect(410, "PUT", "/v1/kv/once", "1", numbered("1", "")...)
	expect(204, "DELETE", "/v1/kv/once", "", numbered("3", "3")...)
	expect(204, "DELETE", "/v1/kv/once", "", numbered("3", "3")...)
	expect(410, "DELETE", "/v1/kv/once", "", "Abacus-Session", "12345", "Abacus-Seq", "1")
	for _, bad := range [][]string{numbered("0", ""), numbered("4", "5"), {"Abacus-Session", "x", "Abacus-Seq", "1"}, {"Abacus-Seq", "1"}, {"Abacus-Session", opened.Session}} {
		expect(400, "DELETE", "/v1/kv/once", "", bad...)
	}

	// Jobs.
	for i := range 10 {
		put(t, n, fmt.Sprintf("num/%d", i), fmt.Sprint(i))
	}
	text, _ = expect(202, "POST", "/v1/jobs", `{"prefix":"num/","as":"int","map":"square","reduce":"sum"}`)
	var id struct{ ID string }
	if err := json.Unmarshal([]byte(text), &id); err != nil {
		t.Fatal(err)
	}
	text, _ = expect(200, "GET", "/v1/jobs/"+id.ID+"/result?wait=20s", "")
	if !strings.Contains(text, `"result":285`) {
		t.Fatalf("job: %s", text)
	}
	expect(200, "GET", "/v1/jobs/"+id.ID, "")
	expect(404, "GET", "/v1/jobs/nope", "")
	expect(400, "POST", "/v1/jobs", `{"reduce":"multiply"}`)
	expect(400, "POST", "/v1/jobs", `not json`)
	expect(413, "POST", "/v1/jobs", `{"prefix":"`+strings.Repeat("a", 64<<10)+`"}`)
	if text, _ := expect(200, "GET", "/v1/jobs", ""); !strings.Contains(text, id.ID) {
		t.Fatalf("list: %s", text)
	}
}

// A leadership that comes back soon after it was handed over stays longer each
// time; one that was not handed over, or long ago, does not.
func TestStays(t *testing.T) {
	var s stays
	now := time.Now()
	for i, step := range []struct {
		after time.Duration // the last hand-over
		want  time.Duration
	}{
		{0, minStay}, {5 * time.Second, 2 * minStay}, {5 * time.Second, 4 * minStay}, {5 * time.Second, 8 * minStay}, {5 * time.Second, 16 * minStay},
		{5 * time.Second, 32 * minStay}, {5 * time.Second, maxStay}, {5 * time.Second, maxStay}, {returnedWithin + 1, minStay}, {5 * time.Second, 2 * minStay},
	} {
		now = now.Add(step.after)
		if got := s.begin(3, now); got != step.want {
			t.Errorf("step %d: stays %v, want %v", i, got, step.want)
		}
		if got := s.begin(4, now); got != minStay {
			t.Errorf("step %d: another shard stays %v", i, got)
		}
		s.handOver(3, now)
	}
}

// No more connections than there is room for are taken; one that ends makes
// room, and Close ends a wait for it.
func TestLimitListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &limitListener{Listener: inner, room: make(chan struct{}, 1), closed: make(chan struct{})}
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	select {
	case <-accepted:
		t.Fatal("a second one was taken")
	case <-time.After(20 * time.Millisecond):
	}
	first.Close()
	first.Close() // gives one place back, not two
	second := <-accepted
	select {
	case <-accepted:
		t.Fatal("a third one was taken")
	case <-time.After(20 * time.Millisecond):
	}
	l.Close()
	l.Close()
	if c, ok := <-accepted; ok {
		t.Fatalf("accepted %v after Close", c.RemoteAddr())
	}
	second.Close()
}

// A pipeline longer than one proposal is carried out in order.
func TestLongPipeline(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	n := open(t, cfg)
	untilHealthy(t, n)
	slot, shard := n.Router().Locate([]byte("k"))
	var cmds []command.Command
	for i := range 30 {
		value := append(bytes.Repeat([]byte{'x'}, 100<<10), byte(i))
		cmds = append(cmds, command.Command{Op: command.OpSet, Slot: slot, Keys: [][]byte{[]byte("k")}, Values: [][]byte{value}},
			command.Command{Op: command.OpGet, Slot: slot, Keys: [][]byte{[]byte("k")}})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	results, err := n.Exec(ctx, shard, cmds)
	if err != nil || len(results) != len(cmds) {
		t.Fatalf("%d results, %v", len(results), err)
	}
	for i := range 30 {
		if got := results[2*i+1].Bytes; len(got) == 0 || got[len(got)-1] != byte(i) {
			t.Fatalf("read %d of the pipeline does not see the write before it", i)
		}
	}
}

// Answers must fit a frame between nodes: a leader that carries out what it
// cannot answer has lost the values that GETDEL took.
func TestLargeAnswersThroughFollower(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	untilBalanced(t, nodes[0]) // a write under way when a leadership moves may be uncertain
	const n = 80
	value := bytes.Repeat([]byte{'x'}, 1<<20)
	slot, shard := nodes[0].Router().Locate([]byte("{big}"))
	key := func(i int) [][]byte { return [][]byte{fmt.Appendf(nil, "{big}%d", i)} }
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var takes []command.Command
	for i := range n {
		takes = append(takes, command.Command{Op: command.OpGetDel, Slot: slot, Keys: key(i)})
	}
	// All of it again where there was no leader for a while: a machine that writes so much may hold an election.
	until(t, "all values through a follower", func() error {
		for i := range n {
			set := command.Command{Op: command.OpSet, Slot: slot, Keys: key(i), Values: [][]byte{value}}
			if _, err := nodes[0].Exec(ctx, shard, []command.Command{set}); err != nil {
				return err
			}
		}
		for _, nd := range nodes {
			if nd.host.get(shard).IsLeader() {
				continue
			}
			results, err := nd.Exec(ctx, shard, takes)
			if err != nil {
				return err
			}
			for i, r := range results {
				if len(r.Bytes) != len(value) {
					t.Fatalf("value %d has %d bytes", i, len(r.Bytes))
				}
			}
			return nil
		}
		return fmt.Errorf("shard %d has no follower", shard)
	})
}

// A prober that hangs up must not make a healthy node look sick to others.
func TestReadyOutlivesItsAsker(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	n := open(t, cfg)
	untilHealthy(t, n)
	n.ready = newReadiness()
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	n.Ready(gone) // whatever it says to one who is gone
	if err := n.Ready(t.Context()); err != nil {
		t.Fatalf("after an asker hung up: %v", err)
	}
}

func TestConfigFaultsTogether(t *testing.T) {
	cfg := DefaultConfig()
	cfg.ID, cfg.Shards, cfg.PeerAddr, cfg.Join, cfg.Bootstrap = "no spaces", 0, "nonsense", []string{"x"}, true
	cfg.Insecure, cfg.HTTPAddr, cfg.StopTimeout = true, "0.0.0.0:7601", -time.Second
	err := cfg.Validate()
	for _, want := range []string{"--advertise-http-addr", "--stop-timeout", "--id", "--shards", "--peer-addr", "--join", "exclude each other"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %s", err, want)
		}
	}
}
