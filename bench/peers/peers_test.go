package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/keyspace"
)

func TestParsePeer(t *testing.T) {
	for _, tc := range []struct {
		name, system string
		v            variant
		ok           bool
	}{
		{"etcd", "etcd", variant{}, true},
		{"abacus", "abacus", variant{}, true},
		{"abacus@16", "abacus", variant{shards: 16}, true},
		{"abacus:/old/bin", "abacus", variant{path: "/old/bin"}, true},
		{"abacus-plain@64:/old/bin@2/abacusd", "abacus-plain", variant{shards: 64, path: "/old/bin@2/abacusd"}, true},
		{"abacus@", "", variant{}, false},
		{"abacus@0", "", variant{}, false},
		{"ETCD", "", variant{}, false},
	} {
		system, v, err := parsePeer(tc.name)
		if (err == nil) != tc.ok || tc.ok && (system != tc.system || v != tc.v) {
			t.Errorf("%s: %q %+v %v", tc.name, system, v, err)
		}
	}
	if _, err := drivers["etcd"](variant{shards: 3}); err == nil {
		t.Error("etcd took a number of shards")
	}
}

// Servers get none of what would set them otherwise than their defaults, unless told to.
func TestServerEnv(t *testing.T) {
	environ := []string{"PATH=/bin", "GOMAXPROCS=1", "GOGC=off", "ABACUS_SHARDS=3", "ETCD_NAME=x", "ABACUS_ENV=GOMAXPROCS=4 GOGC=200"}
	for system, want := range map[string][]string{
		"abacus":       {"PATH=/bin", "GOMAXPROCS=4", "GOGC=200"},
		"abacus-plain": {"PATH=/bin", "GOMAXPROCS=4", "GOGC=200"},
		"etcd":         {"PATH=/bin"},
	} {
		if got := serverEnv(environ, system); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", system, got, want)
		}
	}
}

func status(shards ...string) (st abacusStatus) {
	for _, id := range []string{"n1", "n2", "n3"} {
		st.Nodes = append(st.Nodes, struct {
			ID    string
			Alive bool
			Leads int
		}{id, true, 0})
	}
	for i, leader := range shards {
		st.Shards = append(st.Shards, abacusShard{ID: i, Slots: []string{"0-99", "100-199,300-16383", "200-299"}[i%3], Leader: leader})
		for _, n := range st.Nodes {
			st.Shards[i].Replicas = append(st.Shards[i].Replicas, struct {
				Node, State string
				Voter       bool
				Lag         uint64
			}{n.ID, "follower", true, 0})
		}
	}
	return st
}

// Nothing is measured on a cluster that is still moving.
func TestSettled(t *testing.T) {
	if err := status("n1", "n2", "n3").settled(3, 3); err != nil {
		t.Errorf("all is well: %v", err)
	}
	if err := status("n1", "n2", "n3", "n1", "n2", "n3", "n1", "n2").settled(3, 8); err != nil {
		t.Errorf("3, 3 and 2 leaders are as even as can be: %v", err)
	}
	for name, change := range map[string]func(*abacusStatus){
		"leaders on one node": func(st *abacusStatus) { st.Shards[1].Leader, st.Shards[2].Leader = "n1", "n1" },
		"two of three lead":   func(st *abacusStatus) { st.Shards[2].Leader = "n1" },
		"no leader":           func(st *abacusStatus) { st.Shards[0].Leader = "" },
		"a learner":           func(st *abacusStatus) { st.Shards[0].Replicas[1].Voter = false },
		"a replica is down":   func(st *abacusStatus) { st.Shards[0].Replicas[1].State = "down" },
		"a replica is behind": func(st *abacusStatus) { st.Shards[0].Replicas[1].Lag = 5000 },
		"two replicas":        func(st *abacusStatus) { st.Shards[0].Replicas = st.Shards[0].Replicas[:2] },
		"a dead node":         func(st *abacusStatus) { st.Nodes[2].Alive = false },
		"a missing node":      func(st *abacusStatus) { st.Nodes = st.Nodes[:2] },
		"a problem":           func(st *abacusStatus) { st.Problems = []string{"x"} },
		"a shard too few":     func(st *abacusStatus) { st.Shards = st.Shards[:2] },
	} {
		st := status("n1", "n2", "n3")
		change(&st)
		if st.settled(3, 3) == nil {
			t.Errorf("settled with %s", name)
		}
	}
}

// The keys that are written in a failover are those of the killed node's shards, all
// of its shards, and no others.
func TestKeysOfLedShards(t *testing.T) {
	led, err := status("n1", "n2", "n1").led("n1")
	if err != nil || len(led) != 2 {
		t.Fatalf("led %v, %v", led, err)
	}
	two, _ := status("n1", "n2", "n1").led("n2")
	if !slices.Equal(two[1], []SlotRange{{100, 199}, {300, 16383}}) {
		t.Errorf("shard 1: %v", two[1])
	}
	for i := range 20_000 {
		slot := keyspace.Slot(key(i))
		id, mine := shardOf(led, slot)
		_, other := shardOf(two, slot)
		if mine == other || mine && (id == 0) != (slot < 100) || mine && slot >= 300 {
			t.Fatalf("key %s, slot %d: shard %d %v, other node's %v", key(i), slot, id, mine, other)
		}
	}
	if _, err := (abacusStatus{Shards: status("n1").Shards}).led("n1"); err != nil {
		t.Error(err)
	}
	if none, err := (abacusStatus{Shards: []abacusShard{{ID: 3, Leader: "n1"}}}).led("n1"); err != nil || len(none) != 0 {
		t.Errorf("a shard without slots: %v, %v", none, err)
	}
}

// A pipeline counts the replies that were OK, keeps the connection after an error reply,
// and gives it up after a late answer, which would else be taken for the next one's.
func TestPipeline(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	replies := make(chan string, 10)
	accepted := make(chan struct{}, 10)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- struct{}{}
			go func() {
				defer nc.Close()
				for r := bufio.NewReader(nc); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					if strings.HasPrefix(line, "*3") {
						for range 5 {
							r.ReadString('\n')
						}
						if v, _ := r.ReadString('\n'); v != "val\r\n" {
							t.Errorf("value %q", v)
						}
						if s := <-replies; s != "" {
							nc.Write([]byte(s))
						}
					}
				}
			}()
		}
	}()
	c := &respConn{addr: l.Addr().String()}
	defer c.Close()
	put := func(d time.Duration, rs ...string) (int, error) {
		for _, r := range rs {
			replies <- r
		}
		return c.PutMany(time.Now().Add(d), slices.Repeat([]string{"key"}, len(rs)), []byte("val"))
	}
	if ok, err := put(5*time.Second, "+OK\r\n", "+OK\r\n", "+OK\r\n"); ok != 3 || err != nil {
		t.Errorf("three OK: %d, %v", ok, err)
	}
	if ok, err := put(5*time.Second, "+OK\r\n", "-TRYAGAIN no\r\n", "+OK\r\n"); ok != 2 || err == nil || err.Error() != "TRYAGAIN no" {
		t.Errorf("one refused: %d, %v", ok, err)
	}
	if len(accepted) != 1 {
		t.Errorf("%d connections, want 1", len(accepted))
	}
	if ok, err := put(50*time.Millisecond, "+OK\r\n", ""); ok != 1 || err == nil {
		t.Errorf("one late: %d, %v", ok, err)
	}
	if ok, err := put(5*time.Second, "+OK\r\n"); ok != 1 || err != nil {
		t.Errorf("on a new connection: %d, %v", ok, err)
	}
	if len(accepted) != 2 {
		t.Errorf("%d connections, want 2", len(accepted))
	}
}

// A process that ends by itself is noticed, one that does not end is killed, and all are
// gone after Stop.
func TestProcs(t *testing.T) {
	var p Procs
	cfg := Config{Dir: t.TempDir(), Env: os.Environ()}
	if err := p.add(cfg, "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"); err != nil {
		t.Fatal(err)
	}
	if err := p.add(cfg, "sleep", "60"); err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	time.Sleep(100 * time.Millisecond) // until the trap is set
	if err := p.End(0, syscall.SIGTERM, 200*time.Millisecond); err == nil {
		t.Error("no word of a process that did not end")
	}
	if err := p.Check(); err != nil {
		t.Errorf("what we ended is missed: %v", err)
	}
	syscall.Kill(p.Pids()[1], syscall.SIGKILL)
	if err := retry(context.Background(), 5*time.Second, func() error {
		if p.Check() == nil {
			return os.ErrExist
		}
		return nil
	}); err != nil {
		t.Error("a process ended by itself and nothing was said")
	}
	p.Stop()
	for _, pid := range p.Pids() {
		if syscall.Kill(pid, 0) == nil {
			t.Errorf("process %d is still there", pid)
		}
	}
}

func TestSettings(t *testing.T) {
	for args, ok := range map[string]bool{
		"-peer etcd,abacus@16 -op put -c 1,64 -rate 50%": true,
		"-rate 1000":             true,
		"-rate 0":                false,
		"-c 0":                   false,
		"-signal HUP":            false,
		"-signal KILL":           true,
		"-rate 100 -pipeline 16": false,
		"-target one":            false,
		"-keys 0":                false,
	} {
		s := defaultSettings()
		f := newFlags("peers", &s)
		f.SetOutput(io.Discard)
		err := f.Parse(strings.Fields(args))
		if err == nil {
			err = s.validate()
		}
		if (err == nil) != ok {
			t.Errorf("%s: %v", args, err)
		}
	}
}
