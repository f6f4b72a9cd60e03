package proc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary play abacusd: a process that logs a line,
// answers /v1/status and stops on SIGTERM, or ignores it when told to.
func TestMain(m *testing.M) {
	if os.Getenv("PROC_TEST_NODE") != "" {
		playNode()
		return
	}
	os.Exit(m.Run())
}

func playNode() {
	flag := func(name string) string {
		if i := slices.Index(os.Args, name); i >= 0 && i+1 < len(os.Args) {
			return os.Args[i+1]
		}
		return ""
	}
	fmt.Println("started", flag("--id"))
	if slices.Contains(os.Args, "--exit-at-once") {
		fmt.Println("the reason why")
		os.Exit(3)
	}
	go func() {
		_ = http.ListenAndServe(flag("--http-addr"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			s := Status{Healthy: true, Nodes: []NodeStatus{{ID: "n1", Alive: true}, {ID: "n2", Alive: true}}, Shards: []ShardStatus{
				{ID: 0, Leader: "n1", Replicas: []ReplicaStatus{{Node: "n1", State: "leader", Voter: true}, {Node: "n2", State: "follower", Voter: true}}}}}
			_ = json.NewEncoder(w).Encode(s)
		}))
	}()
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	for range term {
		if !slices.Contains(os.Args, "--stubborn") {
			os.Exit(0)
		}
	}
}

func newCluster(t *testing.T, args ...string) *Cluster {
	t.Helper()
	t.Setenv("PROC_TEST_NODE", "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Create(Config{Dir: t.TempDir(), Abacusd: self, Nodes: 2, Shards: 1, Args: args, DieWithParent: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Kill(); c.Release() })
	return c
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestLifeOfACluster takes a cluster through start, ready, pause, kill, restart
// and stop.
func TestLifeOfACluster(t *testing.T) {
	c := newCluster(t)
	if err := c.CheckPorts(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Node(1).Start(); !errors.Is(err, ErrRunning) {
		t.Errorf("second start: %v", err)
	}
	if err := c.WaitReady(deadline(t), nil); err != nil {
		t.Fatal(err)
	}
	if n := c.Leader(deadline(t), 0); n != c.Node(1) {
		t.Errorf("leader of shard 0: %v", n)
	}

	n := c.Node(2)
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	wait(t, "paused", n.Paused)
	if err := n.Resume(); err != nil {
		t.Fatal(err)
	}
	wait(t, "resumed", func() bool { return !n.Paused() && n.Running() })

	pid := n.Pid()
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if n.Running() || n.Pid() != 0 {
		t.Errorf("n2 runs after Kill")
	}
	if err := n.Kill(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("second kill: %v", err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if n.Pid() == pid || n.Pid() == 0 {
		t.Errorf("restarted as process %d, before %d", n.Pid(), pid)
	}
	wait(t, "both starts in the log", func() bool { return strings.Count(n.LogTail(10), "started n2") == 2 })

	if err := c.WaitReady(deadline(t), nil); err != nil {
		t.Fatal(err)
	}
	if err := n.Pause(); err != nil { // Stop must wake it
		t.Fatal(err)
	}
	if c.Down() {
		t.Error("down before Stop")
	}
	if err := c.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if !c.Down() {
		t.Error("not down after Stop")
	}
	if c.Node(1).Running() || n.Running() || n.ExitCode() != 0 {
		t.Errorf("after Stop: %v %v, exit code %d", c.Node(1).Running(), n.Running(), n.ExitCode())
	}
}

// TestOtherProcess acts on nodes through a second handle on the directory, as
// `abacus dev kill` does in another terminal.
func TestOtherProcess(t *testing.T) {
	c := newCluster(t)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	other, err := Open(c.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Node(1).Kill(); err != nil {
		t.Fatal(err)
	}
	if c.Node(1).Running() {
		t.Error("n1 runs after the other handle killed it")
	}
	if err := other.Node(1).Start(); err != nil {
		t.Fatal(err)
	}
	if c.Node(1).Pid() != other.Node(1).Pid() {
		t.Errorf("the handles see processes %d and %d", c.Node(1).Pid(), other.Node(1).Pid())
	}
	if err := c.Node(1).Kill(); err != nil {
		t.Fatal(err)
	}
	if got, want := other.Node(2).CommandLine(), c.Node(2).CommandLine(); !slices.Equal(got, want) {
		t.Errorf("command line %q, created with %q", got, want)
	}
}

// TestStranger shows that a process which only has the id of a node's old
// process is not signalled.
func TestStranger(t *testing.T) {
	c := newCluster(t)
	if err := c.update(func(st *state) error {
		st.Nodes[0].Pid, st.Nodes[0].StartTime = os.Getpid(), "1"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.Node(1).Kill(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("kill of a stranger: %v", err)
	}
	if c.Node(1).Running() {
		t.Error("a stranger is taken for the node")
	}
	if !alive(os.Getpid(), StartTime(os.Getpid())) {
		t.Error("this process is taken for dead")
	}
}

func TestWaitReadyNamesTheDead(t *testing.T) {
	c := newCluster(t, "--exit-at-once")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	err := c.WaitReady(deadline(t), nil)
	if !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "the reason why") {
		t.Errorf("wait for a node that ended: %v", err)
	}
	wait(t, "exit code 3", func() bool { return c.Node(1).ExitCode() == 3 })
}

// TestStopKillsTheStubborn shows that Stop leaves no process and says when it
// had to kill one.
func TestStopKillsTheStubborn(t *testing.T) {
	c := newCluster(t, "--stubborn")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(deadline(t), nil); err != nil { // the handler is in place
		t.Fatal(err)
	}
	if err := c.Stop(200 * time.Millisecond); err == nil {
		t.Error("Stop says nothing of processes that it had to kill")
	}
	if c.Node(1).Running() || c.Node(2).Running() {
		t.Error("a node runs after Stop")
	}
}

func TestPortInUse(t *testing.T) {
	c := newCluster(t)
	l, err := net.Listen("tcp", c.Node(2).Addrs().HTTP)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := c.CheckPorts(); !errors.Is(err, ErrPortInUse) || !strings.Contains(err.Error(), "the HTTP port of n2") {
		t.Errorf("check ports: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrNoCluster) {
		t.Errorf("open an empty directory: %v", err)
	}
	dir := t.TempDir()
	for _, content := range []string{"", "{}", `{"version":2}`, `{"version":1}`} {
		if err := os.WriteFile(statePath(dir), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || errors.Is(err, ErrNoCluster) {
			t.Errorf("open with %q: %v", content, err)
		}
	}
}

func TestReady(t *testing.T) {
	leader := ReplicaStatus{Node: "n1", State: "leader", Voter: true}
	follower := ReplicaStatus{Node: "n2", State: "follower", Voter: true}
	learner := ReplicaStatus{Node: "n2", State: "learner"}
	down := ReplicaStatus{Node: "n2", State: "down", Voter: true}
	two := []NodeStatus{{ID: "n1", Alive: true}, {ID: "n2", Alive: true}}
	for _, tc := range []struct {
		name  string
		s     Status
		ready int
		want  string
	}{
		{"nothing", Status{}, 0, "no shard is known yet"},
		{"all there", Status{Healthy: true, Nodes: two, Shards: []ShardStatus{{Leader: "n1", Replicas: []ReplicaStatus{leader, follower}}}}, 1, ""},
		{"a node missing", Status{Healthy: true, Nodes: two[:1], Shards: []ShardStatus{{Leader: "n1", Replicas: []ReplicaStatus{leader, follower}}}}, 1, "1 of 2 nodes have joined"},
		{"no leader", Status{Nodes: two, Shards: []ShardStatus{{Replicas: []ReplicaStatus{follower, follower}}}}, 0, "shard 0 has no leader"},
		{"a learner", Status{Nodes: two, Shards: []ShardStatus{{Leader: "n1", Replicas: []ReplicaStatus{leader, learner}}}}, 0, "shard 0 has 1 of 2 voters"},
		{"a voter down", Status{Nodes: two, Shards: []ShardStatus{{Leader: "n1", Replicas: []ReplicaStatus{leader, down}}}}, 0, "shard 0 has 1 of 2 voters"},
		{"one leads all", Status{Healthy: true, Nodes: two, Shards: []ShardStatus{{Leader: "n1", Replicas: []ReplicaStatus{leader, follower}}, {Leader: "n1", Replicas: []ReplicaStatus{leader, follower}}}}, 2, "leaders are not balanced yet"},
		{"each leads one", Status{Healthy: true, Nodes: two, Shards: []ShardStatus{{Leader: "n1", Replicas: []ReplicaStatus{leader, follower}}, {Leader: "n2", Replicas: []ReplicaStatus{leader, follower}}}}, 2, ""},
		{"a problem", Status{Nodes: two, Problems: []string{"disk full"}, Shards: []ShardStatus{{Leader: "n1", Replicas: []ReplicaStatus{leader, follower}}}}, 1, "disk full"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ready, waiting := tc.s.ready(2, 3)
			if ready != tc.ready || waiting != tc.want {
				t.Errorf("got %d, %q; want %d, %q", ready, waiting, tc.ready, tc.want)
			}
		})
	}
}

func TestShell(t *testing.T) {
	if got, want := Shell([]string{"abacus", "put", "a key", "it's", ""}), `abacus put 'a key' 'it'\''s' ''`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx := deadline(t)
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestFounds shows who makes a cluster: the first node, unless it has lost what it had and others have not. With --bootstrap it would then
// make a second cluster beside the first.
func TestFounds(t *testing.T) {
	for _, tc := range []struct {
		name  string
		data  []int // nodes that have some
		makes bool  // the first node makes a cluster
	}{
		{"nobody has anything", nil, true},
		{"all have", []int{1, 2, 3}, true}, // --bootstrap is nothing to one that has data
		{"it alone has", []int{1}, true},
		{"it has lost all", []int{2, 3}, false},
		{"it has lost all, and another as well", []int{3}, false},
		{"another has lost all", []int{1, 2}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Create(Config{Dir: t.TempDir(), Abacusd: "abacusd", Nodes: 3, Host: func(int) Host { return Host{Addr: "127.0.0.1"} }})
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range tc.data {
				dir := c.Node(n).DataDir()
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(dir+"/ident.json", nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for _, n := range c.Nodes() {
				line := n.CommandLine()
				founds, joins := slices.Contains(line, "--bootstrap"), slices.Contains(line, "--join")
				if want := n.N == 1 && tc.makes; founds != want || joins == want {
					t.Errorf("%s founds: %v, joins: %v; want it to found: %v", n.ID(), founds, joins, want)
				}
			}
		})
	}
}
