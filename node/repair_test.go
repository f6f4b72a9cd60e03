package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// replicaPath is where a node keeps its replica of a shard.
func replicaPath(t *testing.T, n *Node, shard sharding.ShardID) (sharding.ReplicaID, string) {
	t.Helper()
	sh, _ := n.Router().Map().Shard(shard)
	r, ok := sh.On(n.cfg.ID)
	if !ok {
		t.Fatalf("node %s has no replica of shard %d", n.cfg.ID, shard)
	}
	return r.ID, n.dir.file(replicaKey(shard, r.ID))
}

// stopped closes a node and pins its ports, so that it comes back where it was.
func stopped(t *testing.T, n *Node, cfg Config) Config {
	t.Helper()
	a := n.Addrs()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.PeerAddr, cfg.ClientAddr, cfg.ClusterAddr, cfg.HTTPAddr = a.Peer, a.Client, a.Cluster, a.HTTP
	return cfg
}

func fill(t *testing.T, n *Node, prefix string) {
	t.Helper()
	for i := range 40 {
		put(t, n, fmt.Sprintf("%s%d", prefix, i), "v")
	}
}

func wantAll(t *testing.T, prefix string, nodes ...*Node) {
	t.Helper()
	for _, n := range nodes {
		for i := range 40 {
			if got := get(t, n, fmt.Sprintf("%s%d", prefix, i)); got != "v" {
				t.Fatalf("%s: %s%d = %q", n.cfg.ID, prefix, i, got)
			}
		}
	}
}

// untilEqual waits until all replicas of every shard are at one index with one state.
func untilEqual(t *testing.T, nodes ...*Node) {
	t.Helper()
	for _, sh := range nodes[0].Router().Map().Shards {
		until(t, fmt.Sprintf("replicas of shard %d equal", sh.ID), func() error {
			var hashes, indexes []uint64
			for _, n := range nodes {
				st := n.host.get(sh.ID)
				if st == nil {
					return fmt.Errorf("%s does not hold it", n.cfg.ID)
				}
				v, err := st.View()
				if err != nil {
					return err
				}
				hashes, indexes = append(hashes, v.Hash()), append(indexes, v.Index())
				v.Close()
			}
			if len(slices.Compact(hashes)) != 1 || len(slices.Compact(indexes)) != 1 {
				return fmt.Errorf("hashes %x at %v", hashes, indexes)
			}
			return nil
		})
	}
}

// A node starts with one replica's state damaged, serves with its others, and re-seeds that one.
func TestRepairStateOfNode(t *testing.T) {
	t.Parallel()
	nodes, cfgs := three(t)
	fill(t, nodes[0], "a")
	id, dir := replicaPath(t, nodes[2], 1)
	cfgs[2] = stopped(t, nodes[2], cfgs[2])
	damageState(t, dir)
	fill(t, nodes[0], "b")
	epoch := nodes[0].Router().Map().Epoch
	nodes[2] = open(t, cfgs[2])
	untilHealthy(t, nodes...)
	if again, _ := replicaPath(t, nodes[2], 1); again != id || nodes[2].Router().Map().Epoch != epoch {
		t.Errorf("the replica %s is %s now, epoch %d was %d", id, again, nodes[2].Router().Map().Epoch, epoch)
	}
	wantAll(t, "a", nodes...)
	wantAll(t, "b", nodes...)
	untilEqual(t, nodes...)
	if done := nodes[2].repairs.done.Load(); done != 1 || len(nodes[2].repairs.all()) != 0 {
		t.Errorf("%d repairs done, %v left", done, nodes[2].repairs.all())
	}
}

func damageState(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "state", "state-*.db"))
	if err != nil || len(files) != 1 {
		t.Fatalf("state files %v, %v", files, err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("damage! "), 1024), 0); err != nil {
		t.Fatal(err)
	}
}

// A replica whose log is gone, one whose log is damaged, and one whose whole
// directory is gone come back under new ids, one shard each; shard 0, which keeps the
// map, is among them. The old ids are out of the Raft groups.
func TestRepairLostLogs(t *testing.T) {
	t.Parallel()
	nodes, cfgs := three(t)
	fill(t, nodes[0], "a")
	var old []sharding.ReplicaID
	var dirs []string
	for shard := range sharding.ShardID(3) {
		id, dir := replicaPath(t, nodes[1], shard)
		old, dirs = append(old, id), append(dirs, dir)
	}
	cfgs[1] = stopped(t, nodes[1], cfgs[1])
	if err := os.Remove(filepath.Join(dirs[0], "raft.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dirs[1], "raft.db"), 10_000); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dirs[2]); err != nil {
		t.Fatal(err)
	}
	fill(t, nodes[0], "b")
	nodes[1] = open(t, cfgs[1])
	until(t, "new ids everywhere", func() error {
		for _, n := range nodes {
			for shard := range sharding.ShardID(3) {
				if sh, _ := n.Router().Map().Shard(shard); slices.ContainsFunc(sh.Replicas, func(r sharding.Replica) bool { return r.ID == old[shard] }) {
					return fmt.Errorf("%s: shard %d still has %s", n.cfg.ID, shard, old[shard])
				}
			}
		}
		return nil
	})
	untilHealthy(t, nodes...)
	for _, n := range nodes {
		for shard := range sharding.ShardID(3) {
			wantMembers(t, n, shard, old[shard])
		}
	}
	for i, want := range []bool{true, true, false} {
		if _, err := os.Stat(dirs[i] + damagedSuffix); (err == nil) != want {
			t.Errorf("files of %s put aside: %v", old[i], err)
		}
	}
	wantAll(t, "a", nodes...)
	wantAll(t, "b", nodes...)
	untilEqual(t, nodes...)
	// And again after a restart: a new id is no special one.
	cfgs[1] = stopped(t, nodes[1], cfgs[1])
	nodes[1] = open(t, cfgs[1])
	untilHealthy(t, nodes...)
}

// A node whose log is damaged puts it aside, and all its replicas come back under new ids: whose
// part is damaged, nobody knows.
func TestRepairDamagedNodeLog(t *testing.T) {
	t.Parallel()
	nodes, cfgs := three(t)
	fill(t, nodes[0], "a")
	var old []sharding.ReplicaID
	for shard := range sharding.ShardID(3) {
		id, _ := replicaPath(t, nodes[1], shard)
		old = append(old, id)
	}
	cfgs[1] = stopped(t, nodes[1], cfgs[1])
	dir := filepath.Join(cfgs[1].DataDir, "wal")
	segments, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("segments %v, %v", segments, err)
	}
	f, err := os.OpenFile(segments[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 5000) // within the first commits, behind which are others
	if err == nil {
		b[0] ^= 0x10
		_, err = f.WriteAt(b, 5000)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	fill(t, nodes[0], "b")
	nodes[1] = open(t, cfgs[1])
	until(t, "new ids everywhere", func() error {
		for shard := range sharding.ShardID(3) {
			if sh, _ := nodes[0].Router().Map().Shard(shard); slices.ContainsFunc(sh.Replicas, func(r sharding.Replica) bool { return r.ID == old[shard] }) {
				return fmt.Errorf("shard %d still has %s", shard, old[shard])
			}
		}
		return nil
	})
	untilHealthy(t, nodes...)
	if _, err := os.Stat(dir + damagedSuffix + "-1"); err != nil {
		t.Errorf("the damaged log was not put aside: %v", err)
	}
	for _, name := range nodes[1].wal.Names() {
		if slices.Contains(old, name.Replica) {
			t.Errorf("%v is still in the log", name)
		}
	}
	wantAll(t, "a", nodes...)
	wantAll(t, "b", nodes...)
	untilEqual(t, nodes...)
}

// A data directory keeps the kind of log that it was made with, and says so.
func TestLogStoreOfDirectory(t *testing.T) {
	t.Parallel()
	for made, given := range map[string]string{LogWAL: LogBolt, LogBolt: LogWAL} {
		cfg := testConfig(t, "n1")
		cfg.Bootstrap, cfg.LogStore = true, made
		n := open(t, cfg)
		untilHealthy(t, n)
		fill(t, n, "a")
		cfg = stopped(t, n, cfg)
		cfg.LogStore = given
		if n, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "--log-store="+made) {
			t.Errorf("made with %s, opened with %s: %v", made, given, err)
			if n != nil {
				n.Close()
			}
		}
		cfg.LogStore = made
		n = open(t, cfg)
		untilHealthy(t, n)
		wantAll(t, "a", n)
	}
}

// wantMembers waits until a shard's leader, who may be changing, tells of three voters and not of the old one.
func wantMembers(t *testing.T, n *Node, shard sharding.ShardID, old sharding.ReplicaID) {
	t.Helper()
	until(t, "three voters", func() error {
		_, members := n.membersOf(shard)
		if len(members) != 3 || slices.ContainsFunc(members, func(m store.Member) bool { return m.Replica == old || !m.Voter }) {
			return fmt.Errorf("%s: shard %d has members %+v", n.cfg.ID, shard, members)
		}
		return nil
	})
}

// Without another majority there is nobody to take the replica out. The node
// serves what it can, says why, and keeps the files.
func TestRepairWithoutMajority(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	n := open(t, cfg)
	untilHealthy(t, n)
	fill(t, n, "a")
	id, dir := replicaPath(t, n, 1)
	cfg = stopped(t, n, cfg)
	if err := os.Remove(filepath.Join(dir, "raft.db")); err != nil {
		t.Fatal(err)
	}
	n = open(t, cfg)
	until(t, "the reason", func() error {
		s := n.clusterStatus()
		if all := strings.Join(s.Problems, "\n"); !strings.Contains(all, id+" has lost its log") || !strings.Contains(all, "majority") || !strings.Contains(all, dir+damagedSuffix) {
			return fmt.Errorf("problems: %s", all)
		}
		return nil
	})
	if kept, _ := filepath.Glob(filepath.Join(dir+damagedSuffix, "state", "state-*.db")); len(kept) != 1 {
		t.Errorf("kept %v", kept)
	}
	// The other shards serve.
	served := 0
	for i := range 40 {
		key := fmt.Sprintf("a%d", i)
		if _, shard := n.Router().Locate([]byte(key)); shard == 1 {
			continue
		}
		if got := get(t, n, key); got != "v" {
			t.Fatalf("%s = %q", key, got)
		}
		served++
	}
	if served == 0 {
		t.Error("no key of another shard")
	}
}

// A node whose whole disk is gone comes back under its id, with a new instance and new replicas.
// While its old process runs it is refused, and so it is where the others are no majority.
func TestRepairWipedNode(t *testing.T) {
	t.Parallel()
	nodes, cfgs := three(t)
	fill(t, nodes[0], "a")
	fresh := cfgs[2]
	fresh.DataDir = filepath.Join(t.TempDir(), "n3")
	fresh.Join = []string{nodes[0].Addrs().Peer, nodes[1].Addrs().Peer}
	refuse := func(ctx context.Context, want string, cfg Config) {
		t.Helper()
		n, err := Open(ctx, cfg)
		if err == nil {
			n.Close()
			t.Fatal("let in")
		}
		if !strings.Contains(err.Error(), want) {
			t.Fatalf("%v does not say %q", err, want)
		}
	}
	refuse(t.Context(), "running node has the id", fresh)
	old := nodes[2].dir.ident().Instance
	was := map[sharding.ShardID]sharding.ReplicaID{}
	for shard := range sharding.ShardID(3) {
		was[shard], _ = replicaPath(t, nodes[2], shard)
	}
	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	fill(t, nodes[0], "b")

	nodes[2] = open(t, fresh) // at other ports, too
	untilHealthy(t, nodes...)
	if now, _ := nodes[0].Router().Map().Node("n3"); now.Instance == old || now.Addrs != nodes[2].Addrs() {
		t.Errorf("the map has %+v", now)
	}
	for shard := range sharding.ShardID(3) {
		if now, _ := replicaPath(t, nodes[2], shard); now == was[shard] {
			t.Errorf("shard %d still has %s", shard, now)
		}
		wantMembers(t, nodes[0], shard, was[shard])
	}
	wantAll(t, "a", nodes...)
	wantAll(t, "b", nodes...)
	untilEqual(t, nodes...)

	// The old directory comes back: it is not part of the cluster any more.
	returned := cfgs[2]
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cfgs[2] = stopped(t, nodes[2], fresh)
	back, err := Open(ctx, returned)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	select {
	case err := <-back.Failed():
		if !strings.Contains(err.Error(), "another data directory") {
			t.Errorf("the old directory: %v", err)
		}
	case <-ctx.Done():
		t.Error("the old directory came back unnoticed")
	}
	back.Close()
	nodes[2] = open(t, cfgs[2])
	untilHealthy(t, nodes...)
}

// A node that was cut off while another directory took its place learns it from the
// map, and opens none of the replicas that are not its own.
func TestRepairReplacedNodeEnds(t *testing.T) {
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	n, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	untilHealthy(t, n)
	m := n.Router().Map().Clone()
	m.Epoch++
	m.Nodes[0].Instance = "another"
	for i := range m.Shards {
		m.Shards[i].Replicas[0].ID = fmt.Sprintf("n1.%d", m.Epoch)
	}
	n.offerMap(m)
	select {
	case err := <-n.Failed():
		if !strings.Contains(err.Error(), "another data directory has taken the place") {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
	if got, _ := filepath.Glob(filepath.Join(cfg.DataDir, "shard-*", fmt.Sprintf("n1.%d", m.Epoch))); len(got) > 0 {
		t.Errorf("it opened %v", got)
	}
}

// A replica is only given up while the other voters that answer are a majority, and
// nothing else is being changed.
func TestRepairMaySpare(t *testing.T) {
	sh := sharding.Shard{ID: 4, Replicas: []sharding.Replica{{ID: "a.1", Node: "a"}, {ID: "b.2", Node: "b"}, {ID: "c.3", Node: "c"}}}
	voter := func(id, node string, ago time.Duration) store.Member {
		return store.Member{Replica: id, Node: node, Voter: true, LastContact: ago}
	}
	a, b, c := voter("a.1", "a", 0), voter("b.2", "b", time.Second), voter("c.3", "c", -1)
	for _, tc := range []struct {
		name    string
		sh      sharding.Shard
		leader  sharding.NodeID
		members []store.Member
		code    transport.Code
		want    string
	}{
		{"the others answer", sh, "a", []store.Member{a, b, c}, 0, ""},
		{"one of the others was silent for long", sh, "a", []store.Member{a, voter("b.2", "b", 3*time.Second), c}, transport.CodeConflict, "1 of 3 voters"},
		{"one of the others never answered", sh, "a", []store.Member{a, voter("b.2", "b", -1), c}, transport.CodeConflict, "1 of 3 voters"},
		{"one of the others has no vote yet", sh, "a", []store.Member{a, {Replica: "b.2", Node: "b"}, c}, transport.CodeConflict, "catching up"},
		{"one of the others is not in yet", sh, "a", []store.Member{a, c}, transport.CodeConflict, "being added"},
		{"an old one is not out yet", sh, "a", []store.Member{a, b, c, voter("d.1", "d", time.Second)}, transport.CodeConflict, "being removed"},
		{"it is not in itself", sh, "a", []store.Member{a, b}, 0, ""},
		{"nobody leads", sh, "", nil, transport.CodeConflict, "no leader"},
		{"it leads itself", sh, "c", []store.Member{a, b, c}, transport.CodeConflict, "no leader"},
		{"two of two", sharding.Shard{ID: 4, Replicas: sh.Replicas[1:]}, "b", []store.Member{b, c}, transport.CodeRefused, "majority"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := &Node{host: newHost(func(int) {}), peers: newPeers()}
			if tc.leader != "" {
				n.peers.hear(peerStatus{Node: tc.leader, Replicas: []replicaStatus{{Shard: 4, Leads: true, Term: 7, Members: tc.members}}})
			}
			err := n.maySpare(tc.sh, "c")
			if tc.want == "" && err != nil || tc.want != "" && (transport.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v", err)
			}
		})
	}
}

// With two nodes neither can be done without.
func TestRepairWipedNodeOfTwo(t *testing.T) {
	t.Parallel()
	nodes, _ := several(t, 2)
	n1, n2 := nodes[0], nodes[1]
	m := n1.Router().Map()
	known, _ := m.Node("n2")
	known.Instance = "new"
	n2.Close()
	until(t, "a clear refusal", func() error {
		_, _, err := n1.decideReturn(t.Context(), m, known, joinRequest{Node: known, Boot: ""})
		if err == nil {
			t.Fatal("let in")
		}
		if want := "shard 0 has 1 of 2 replicas without it, and 2 are a majority"; !strings.Contains(err.Error(), want) {
			return fmt.Errorf("%v does not say %q", err, want)
		}
		return nil
	})
}
