package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
	"github.com/abacusdb/abacus/sharding"
)

// script is a cluster of two shards on three nodes, whose answers about views a test writes.
type script struct {
	*clienttest.Cluster
	mu     sync.Mutex
	opened map[string]int // by shard
	views  map[string]string
	closed int
	// slots are those that a view of a shard has, by how often one was opened before; the last one goes on for ever.
	slots map[string][]string
	// fail says that a read of a shard fails, by node and how often a view of that shard was opened.
	fail func(shard, node string, opened int) string
}

const half = "0-8191"
const otherHalf = "8192-16383"

func newScript(t *testing.T) (*script, *client.Client) {
	s := &script{Cluster: clienttest.New(t, 3), opened: map[string]int{}, views: map[string]string{}, slots: map[string][]string{"0": {half}, "1": {otherHalf}},
		fail: func(string, string, int) string { return "" }}
	s.Hook(s.answer)
	c, err := client.Open(client.Config{Addrs: s.Addrs()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return s, c
}

func (s *script) answer(r *clienttest.Request) clienttest.Fate {
	s.mu.Lock()
	defer s.mu.Unlock()
	node := ""
	st := client.Status{ClusterID: "c"}
	for i, n := range s.Nodes {
		id := fmt.Sprintf("n%d", i+1)
		st.Nodes = append(st.Nodes, client.NodeStatus{ID: id, Alive: true, Addrs: sharding.Addrs{Client: n.Client}})
		if n == r.Node {
			node = id
		}
	}
	switch {
	case r.Args[0] == "ABACUS.STATUS":
		for id, slots := range []string{half, otherHalf} {
			sh := client.ShardStatus{ID: uint32(id), Slots: slots, Leader: "n1"}
			for _, n := range st.Nodes {
				sh.Replicas = append(sh.Replicas, client.ReplicaStatus{Node: n.ID, Voter: true})
			}
			st.Shards = append(st.Shards, sh)
		}
		r.Reply.BulkString(string(mustMarshal(st)))
	case r.Args[0] != "ABACUS.BACKUP":
		return clienttest.Serve
	case r.Args[1] == "OPEN":
		shard := r.Args[2]
		slots := s.slots[shard][min(s.opened[shard], len(s.slots[shard])-1)]
		s.opened[shard]++
		id := uint64(len(s.views) + 1)
		s.views[fmt.Sprint(id)] = shard
		v := client.ShardView{Node: node, Slots: slots, Index: uint64(10 + s.opened[shard]), Term: 1, ClusterID: "c", ID: id}
		for _, rec := range recordsOf(shard) {
			v.Records++
			v.Bytes += int64(len(rec.Key) + len(rec.Value))
		}
		r.Reply.BulkString(string(mustMarshal(v)))
	case r.Args[1] == "READ":
		shard := s.views[r.Args[2]]
		switch fail := s.fail(shard, node, s.opened[shard]); fail {
		case "":
			b := []byte{1}
			for _, rec := range recordsOf(shard) {
				b = AppendRecord(b, rec)
			}
			r.Reply.Bulk(b)
		case "part":
			r.Reply.Bulk(AppendRecord([]byte{1}, recordsOf(shard)[0]))
		case "break":
			return clienttest.Refuse
		default:
			r.Reply.Error(fail)
		}
	default:
		if r.Args[1] == "CLOSE" {
			s.closed++
		}
		r.Reply.BulkString("OK")
	}
	return clienttest.Done
}

func mustMarshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// recordsOf are three records of a shard.
func recordsOf(shard string) (out []Record) {
	var keys []string
	for i := 0; len(keys) < 3; i++ {
		k := fmt.Sprint("key/", i)
		if (sharding.SlotOf([]byte(k)) < sharding.Slots/2) == (shard == "0") {
			keys = append(keys, k)
		}
	}
	for _, k := range ordered(keys...) {
		out = append(out, Record{Key: []byte(k), Value: []byte("v")})
	}
	return out
}

// What goes wrong with one replica is mended by another, and that shard is read anew; followers are asked, not the leader; every view is closed.
func TestCreateFindsAnotherReplica(t *testing.T) {
	for _, name := range []string{"b.abk", "dir/"} {
		for _, fault := range []string{"NOTFOUND view 1 is gone", "CLUSTERDOWN no such replica", "part", "break", "ERR unknown command"} {
			s, c := newScript(t)
			s.fail = func(shard, node string, opened int) string {
				if shard == "1" && opened < 3 {
					return fault
				}
				return ""
			}
			path := t.TempDir() + "/" + name
			var notes []string
			var last Amount
			m, err := Create(t.Context(), c, path, Options{Note: func(s string) { notes = append(notes, s) }, Progress: func(done, _ Amount) { last = done }})
			if err != nil {
				t.Fatalf("%s: %v", fault, err)
			}
			if err := verify(path); err != nil {
				t.Errorf("%s: %v", fault, err)
			}
			if s0, s1 := m.Shards[0], m.Shards[1]; s0.Attempt != 1 || s0.Node == "n1" || s1.Attempt != 3 || s1.Index != 13 || m.Records != 6 || last.Records != 6 {
				t.Errorf("%s: %+v, progress %+v", fault, m, last)
			}
			if len(notes) != 2 || !strings.Contains(notes[0], "another replica is asked") {
				t.Errorf("%s: notes %q", fault, notes)
			}
			if s.closed < 2 {
				t.Errorf("%s: %d views were closed", fault, s.closed)
			}
		}
	}
}

// Slots that go from shard to shard between two views are in none or in both of them: then the views are taken again, until they fit.
func TestCreateTakesViewsThatFit(t *testing.T) {
	for _, tc := range []struct {
		name   string
		slots0 []string
		slots1 []string
	}{
		{"in both", []string{"0-8200", half}, []string{otherHalf}},
		{"in none", []string{"0-8000", "0-8000", half}, []string{otherHalf}},
	} {
		s, c := newScript(t)
		s.slots = map[string][]string{"0": tc.slots0, "1": tc.slots1}
		path := filepath.Join(t.TempDir(), "b.abk")
		m, err := Create(t.Context(), c, path, Options{})
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if err := verify(path); err != nil || s.opened["0"] != len(tc.slots0) || m.Shards[0].Slots != half {
			t.Errorf("%s: %v; %d views of shard 0, %+v", tc.name, err, s.opened["0"], m)
		}
	}
	// A shard that is read anew has other slots by then.
	s, c := newScript(t)
	s.slots["1"] = []string{otherHalf, "8193-16383", otherHalf}
	s.fail = func(shard, _ string, opened int) string {
		if shard == "1" && opened == 1 {
			return "NOTFOUND gone"
		}
		return ""
	}
	path := filepath.Join(t.TempDir(), "b.abk")
	if _, err := Create(t.Context(), c, path, Options{}); err != nil || s.opened["1"] != 3 || s.opened["0"] != 2 {
		t.Errorf("%v; views %v", err, s.opened)
	}
	if err := verify(path); err != nil {
		t.Error(err)
	}
}

// What does not succeed says so with an error of a type, and leaves nothing.
func TestCreateFails(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(s *script)
		want   error
	}{
		{"slots always move", func(s *script) { s.slots["0"] = []string{"0-8000"} }, ErrUneven},
		{"nobody knows the command", func(s *script) { s.fail = func(string, string, int) string { return "ERR unknown command" } }, ErrSnapshotLost},
	} {
		s, c := newScript(t)
		tc.change(s)
		dir := t.TempDir()
		_, err := Create(t.Context(), c, dir+"/b.abk", Options{})
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("%s: left: %v, %v", tc.name, entries, err)
		}
	}
}
