package sharding

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func node(id string) Node {
	return Node{ID: id, Addrs: Addrs{Peer: id + ":7501", Client: id + ":7401", Cluster: id + ":7701", HTTP: id + ":7601"}, Instance: "dir-" + id}
}

// cluster is the map after the nodes n1, n2 … have joined in order.
func cluster(t testing.TB, nodes, shards, wanted int) Map {
	t.Helper()
	m, err := NewMap("c1", node("n1"), shards, wanted)
	if err != nil {
		t.Fatal(err)
	}
	for i := 2; i <= nodes; i++ {
		if m, err = PlanJoin(m, node(fmt.Sprintf("n%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestNewMapSharesSlotsEvenly(t *testing.T) {
	for _, shards := range []int{1, 2, 3, 8, 100, 1000, MaxShards} {
		m, err := NewMap("c1", node("n1"), shards, 3)
		if err != nil {
			t.Fatalf("%d shards: %v", shards, err)
		}
		if m.Epoch != 1 || len(m.Shards) != shards {
			t.Fatalf("%d shards: epoch %d and %d shards", shards, m.Epoch, len(m.Shards))
		}
		for _, s := range m.Shards {
			if len(s.Slots) != 1 || len(s.Replicas) != 1 || s.Replicas[0] != (Replica{ID: "n1.1", Node: "n1"}) {
				t.Fatalf("%d shards: shard %+v", shards, s)
			}
			size, even := int(s.Slots[0].To)-int(s.Slots[0].From)+1, Slots/shards
			if size != even && size != even+1 {
				t.Errorf("%d shards: shard %d has %d slots", shards, s.ID, size)
			}
		}
	}
}

func TestNewMapRefuses(t *testing.T) {
	for name, make := range map[string]func() (Map, error){
		"no shards":     func() (Map, error) { return NewMap("c", node("n1"), 0, 3) },
		"many shards":   func() (Map, error) { return NewMap("c", node("n1"), MaxShards+1, 3) },
		"no replicas":   func() (Map, error) { return NewMap("c", node("n1"), 8, 0) },
		"many replicas": func() (Map, error) { return NewMap("c", node("n1"), 8, MaxReplicas+1) },
		"no cluster id": func() (Map, error) { return NewMap("", node("n1"), 8, 3) },
		"node id":       func() (Map, error) { return NewMap("c", node("n 1"), 8, 3) },
	} {
		if _, err := make(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCheckNodeID(t *testing.T) {
	for _, id := range []string{"n1", "db-1.example.org", "A_b", strings.Repeat("x", MaxNodeID)} {
		if err := CheckNodeID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{"", ".", "..", ".n", "a/b", "a b", "ä", "a\x00", "a\n", strings.Repeat("x", MaxNodeID+1)} {
		if CheckNodeID(id) == nil {
			t.Errorf("%q: accepted", id)
		}
	}
}

// Each row breaks a valid map in one way and names a part of the fault reported.
func TestValidateFindsFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*Map)
		want  string
	}{
		"cluster id":           {func(m *Map) { m.ClusterID = "" }, "cluster id"},
		"epoch":                {func(m *Map) { m.Epoch = 0 }, "epoch 0"},
		"replicas wanted":      {func(m *Map) { m.ReplicasWanted = 0 }, "0 replicas wanted"},
		"no nodes":             {func(m *Map) { m.Nodes = nil }, "0 nodes"},
		"nodes out of order":   {func(m *Map) { m.Nodes[0], m.Nodes[1] = m.Nodes[1], m.Nodes[0] }, "in order"},
		"node twice":           {func(m *Map) { m.Nodes[1] = m.Nodes[0] }, "unique"},
		"node id":              {func(m *Map) { m.Nodes[0].ID = "a b" }, "not allowed"},
		"address":              {func(m *Map) { m.Nodes[0].Addrs.HTTP = strings.Repeat("h", 513) }, "512 bytes"},
		"instance":             {func(m *Map) { m.Nodes[0].Instance = "\xff" }, "instance"},
		"no shards":            {func(m *Map) { m.Shards = nil }, "0 shards"},
		"no shard 0":           {func(m *Map) { m.Shards[0].ID = 1; m.Shards[1].ID = 2; m.Shards[2].ID = 3; m.Shards[3].ID = 4 }, "no shard 0"},
		"shards out of order":  {func(m *Map) { m.Shards[2], m.Shards[3] = m.Shards[3], m.Shards[2] }, "in order"},
		"shard twice":          {func(m *Map) { m.Shards[3].ID = 2 }, "unique"},
		"reserved shard":       {func(m *Map) { m.Shards[3].ID = NoShard }, "reserved"},
		"no replicas":          {func(m *Map) { m.Shards[1].Replicas = nil }, "0 replicas"},
		"unknown node":         {func(m *Map) { m.Shards[1].Replicas[0] = Replica{ID: "n9.1", Node: "n9"} }, "not in the map"},
		"two on one node":      {func(m *Map) { m.Shards[1].Replicas[1] = Replica{ID: "n1.2", Node: "n1"} }, "both on node"},
		"replica id":           {func(m *Map) { m.Shards[1].Replicas[1].ID = "n2" }, "replica id"},
		"replica of another":   {func(m *Map) { m.Shards[1].Replicas[1].ID = "n3.2" }, "replica id"},
		"replica id spelling":  {func(m *Map) { m.Shards[1].Replicas[1].ID = "n2.02" }, "replica id"},
		"replica of tomorrow":  {func(m *Map) { m.Shards[1].Replicas[1].ID = "n2.99" }, "replica id"},
		"slot without owner":   {func(m *Map) { m.Shards[1].Slots[0].From++ }, "owned by no shard"},
		"last slot unowned":    {func(m *Map) { m.Shards[3].Slots[0].To-- }, "slot 16383 is owned by no shard"},
		"slot owned twice":     {func(m *Map) { m.Shards[1].Slots[0].From-- }, "owned twice"},
		"range backwards":      {func(m *Map) { m.Shards[1].Slots[0] = SlotRange{From: 9, To: 8} }, "no range"},
		"range beyond the end": {func(m *Map) { m.Shards[3].Slots[0].To = Slots }, "no range"},
		"ranges not joined": {func(m *Map) {
			r := m.Shards[1].Slots[0]
			m.Shards[1].Slots = []SlotRange{{r.From, r.From}, {r.From + 1, r.To}}
		}, "apart and in order"},
	} {
		t.Run(name, func(t *testing.T) {
			m := cluster(t, 3, 4, 3)
			if err := m.Validate(); err != nil {
				t.Fatalf("before: %v", err)
			}
			tc.spoil(&m)
			err := m.Validate()
			var me *MapError
			if !errors.As(err, &me) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want a MapError with %q", err, tc.want)
			}
			if len(me.Faults) > 16 {
				t.Fatalf("%d faults reported", len(me.Faults))
			}
		})
	}
}

func TestValidateAcceptsRangesInPieces(t *testing.T) {
	m := cluster(t, 1, 2, 1)
	m.Shards[0].Slots = []SlotRange{{0, 99}, {200, 16383}}
	m.Shards[1].Slots = []SlotRange{{100, 199}}
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	r := NewRouter(m)
	for slot, want := range map[Slot]ShardID{0: 0, 99: 0, 100: 1, 199: 1, 200: 0, 16383: 0} {
		if got := r.ShardOf(slot); got != want {
			t.Errorf("slot %d: shard %d, want %d", slot, got, want)
		}
	}
}

func TestValidateTransition(t *testing.T) {
	old := cluster(t, 3, 4, 3)
	for name, tc := range map[string]struct {
		change func(*Map)
		want   string // "": legal
	}{
		"nothing but the epoch": {func(m *Map) {}, ""},
		"another address":       {func(m *Map) { m.Nodes[1].Addrs.Peer = "elsewhere:1" }, ""},
		"another directory":     {func(m *Map) { m.Nodes[1].Instance = "dir-new" }, "another node"},
		"a node joins":          {func(m *Map) { m.Nodes = append(m.Nodes, node("n4")) }, ""},
		"one replica removed":   {func(m *Map) { m.Shards[1].Replicas = m.Shards[1].Replicas[:2] }, ""},
		"one added":             {func(m *Map) { addReplica(m, "n4.4") }, ""},
		"one in every shard":    {func(m *Map) { removeEverywhere(m, "n2") }, ""},
		"added under an old id": {func(m *Map) { addReplica(m, "n4.3") }, "must end in the new epoch"},
		"the epoch again":       {func(m *Map) { m.Epoch = old.Epoch }, "must be one more"},
		"an epoch left out":     {func(m *Map) { m.Epoch++ }, "must be one more"},
		"another cluster":       {func(m *Map) { m.ClusterID = "c2" }, "never changes"},
		"an invalid map":        {func(m *Map) { m.Nodes = nil }, "0 nodes"},
		"a shard gone":          {func(m *Map) { m.Shards[2].Slots[0].To = Slots - 1; m.Shards = m.Shards[:3] }, "shard 3 is gone"},
		"a shard new":           {func(m *Map) { m.Shards = append(m.Shards, Shard{ID: 9, Replicas: m.Shards[0].Replicas}) }, "shard 9 is new, and nobody founds it"},
		"slots change hands":    {func(m *Map) { m.Shards[0].Slots[0].To--; m.Shards[1].Slots[0].From-- }, "its slots change"},
		"two replicas at once":  {func(m *Map) { m.Shards[1].Replicas = m.Shards[1].Replicas[:1] }, "one change a step"},
		"one for another":       {func(m *Map) { m.Shards[1].Replicas = m.Shards[1].Replicas[:2]; addReplica(m, "n4.4") }, "one change a step"},
		"a replica replaced":    {func(m *Map) { m.Shards[1].Replicas[2].ID = "n3.4" }, ""},
		"one in each shard":     {func(m *Map) { m.Shards[1].Replicas[2].ID, m.Shards[2].Replicas[0].ID = "n3.4", "n1.4" }, ""},
		"two of a shard":        {func(m *Map) { m.Shards[1].Replicas[2].ID, m.Shards[1].Replicas[1].ID = "n3.4", "n2.4" }, "one change a step"},
		"by an old id":          {func(m *Map) { m.Shards[1].Replicas[2].ID = "n3.2" }, "must end in the new epoch"},
		"a node returns":        {func(m *Map) { *m = returned(t, old, "n2") }, ""},
		"and keeps a replica":   {func(m *Map) { *m = returned(t, old, "n2"); m.Shards[3].Replicas[1] = old.Shards[3].Replicas[1] }, "another node"},
	} {
		t.Run(name, func(t *testing.T) {
			next := old.Clone()
			next.Epoch++
			tc.change(&next)
			err := ValidateTransition(old, next)
			switch {
			case tc.want == "" && err != nil:
				t.Fatal(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// returned is the map with a node back after it lost its data.
func returned(t *testing.T, old Map, id NodeID) Map {
	t.Helper()
	n := node(id)
	n.Instance = "dir-new"
	next, err := PlanReturn(old, n)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// Whoever is no majority without the replica keeps it, whatever became of it.
func TestPlanReplace(t *testing.T) {
	m := cluster(t, 3, 2, 3)
	next, err := PlanReplace(m, 1, "n2.2")
	if err != nil || next.Epoch != 4 || next.Shards[1].Replicas[1] != (Replica{ID: "n2.4", Node: "n2"}) || next.Shards[0].Replicas[1].ID != "n2.2" {
		t.Fatalf("%+v, %v", next, err)
	}
	if _, err := PlanReplace(next, 1, "n2.2"); err == nil {
		t.Error("replaced twice")
	}
	for r, want := range map[Replica]bool{{"n2.2", "n2"}: true, {"n2.4", "n2"}: false, {"n2.5", "n2"}: false, {"n1.1", "n1"}: false, {"n9.3", "n9"}: true, {"odd", "n1"}: false} {
		if got := next.Removed(1, r.ID); got != want {
			t.Errorf("%s removed: %v", r.ID, got)
		}
	}
	if !(Replica{"n2.4", "n2"}).Newer(Replica{"n2.2", "n2"}) || (Replica{"n2.2", "n2"}).Newer(Replica{"n2.4", "n2"}) || (Replica{"n3.4", "n3"}).Newer(Replica{"n2.2", "n2"}) {
		t.Error("newer")
	}
	for nodes := 1; nodes <= 2; nodes++ {
		small := cluster(t, nodes, 2, 3)
		if _, err := PlanReplace(small, 1, "n1.1"); err == nil || !strings.Contains(err.Error(), "majority") {
			t.Errorf("with %d nodes: %v", nodes, err)
		}
		n := node("n1")
		n.Instance = "dir-new"
		if _, err := PlanReturn(small, n); err == nil || !strings.Contains(err.Error(), "majority") {
			t.Errorf("return with %d nodes: %v", nodes, err)
		}
	}
	if _, err := PlanReturn(m, node("n7")); err == nil {
		t.Error("a stranger returned")
	}
}

// addReplica puts a replica of shard 1 on n4, which joins.
func addReplica(m *Map, id ReplicaID) {
	m.Nodes = append(m.Nodes, node("n4"))
	m.Shards[1].Replicas = append(m.Shards[1].Replicas, Replica{ID: id, Node: "n4"})
}

func removeEverywhere(m *Map, id NodeID) {
	for i := range m.Shards {
		var rest []Replica
		for _, r := range m.Shards[i].Replicas {
			if r.Node != id {
				rest = append(rest, r)
			}
		}
		m.Shards[i].Replicas = rest
	}
}

// A map knows which replicas were taken out, if it is as new as they are.
func TestRemoved(t *testing.T) {
	m, err := NewMap("c", Node{ID: "n1", Instance: "i"}, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	m.Epoch = 5
	for id, want := range map[ReplicaID]bool{"n1.1": false, "n1.2": true, "n.2.5": true, "n1.6": false, "n1": false, ".": false, "": false, "n1.x": false} {
		if got := m.Removed(1, id); got != want {
			t.Errorf("%q: %v, want %v", id, got, want)
		}
	}
	if m.Removed(9, "n1.2") {
		t.Error("a shard that is not there has lost a replica")
	}
}

func TestEncodeRoundTrip(t *testing.T) {
	for _, m := range []Map{cluster(t, 1, 1, 1), cluster(t, 5, 8, 3), cluster(t, 3, MaxShards, 3)} {
		got, err := DecodeMap(m.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, m) {
			t.Fatalf("got %+v, want %+v", got, m)
		}
	}
}

// The format is stored in shard 0 and read by later releases, and by v0.4.0 as long as the cluster is at its feature level: that refuses
// fields that it does not know.
func TestEncodeGolden(t *testing.T) {
	m := cluster(t, 2, 2, 3)
	m.Level = LevelFirst
	const want = "\x01" + `{"cluster_id":"c1","epoch":2,"replicas_wanted":3,"nodes":[` +
		`{"id":"n1","addrs":{"peer":"n1:7501","client":"n1:7401","cluster":"n1:7701","http":"n1:7601"},"instance":"dir-n1"},` +
		`{"id":"n2","addrs":{"peer":"n2:7501","client":"n2:7401","cluster":"n2:7701","http":"n2:7601"},"instance":"dir-n2"}],` +
		`"shards":[{"id":0,"slots":[{"from":0,"to":8191}],"replicas":[{"id":"n1.1","node":"n1"},{"id":"n2.2","node":"n2"}]},` +
		`{"id":1,"slots":[{"from":8192,"to":16383}],"replicas":[{"id":"n1.1","node":"n1"},{"id":"n2.2","node":"n2"}]}]}`
	if got := string(m.Encode()); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	m = must(t)(RaiseLevel(m, func(NodeID) int { return LevelMoves }))
	m = must(t)(SetBalance(m, BalanceAlways))
	zoned := node("n3")
	zoned.Zone = "a"
	m, _ = PlanJoin(m, zoned)
	m = must(t)(CordonNode(m, "n2"))
	m = edit(m, "n1", func(n *Node) { n.Draining, n.Successor = true, "n3" })
	m.Shards[0].Replicas = m.Shards[0].Replicas[:2]
	var err error
	if m, err = StartMove(m, 0, "n1.1", "n3"); err != nil {
		t.Fatal(err)
	}
	const moved = "\x01" + `{"cluster_id":"c1","epoch":7,"replicas_wanted":3,"level":1,"balance":"always","nodes":[` +
		`{"id":"n1","addrs":{"peer":"n1:7501","client":"n1:7401","cluster":"n1:7701","http":"n1:7601"},"instance":"dir-n1","draining":true,"successor":"n3"},` +
		`{"id":"n2","addrs":{"peer":"n2:7501","client":"n2:7401","cluster":"n2:7701","http":"n2:7601"},"instance":"dir-n2","cordoned":true},` +
		`{"id":"n3","addrs":{"peer":"n3:7501","client":"n3:7401","cluster":"n3:7701","http":"n3:7601"},"instance":"dir-n3","zone":"a"}],` +
		`"shards":[{"id":0,"slots":[{"from":0,"to":8191}],"replicas":[{"id":"n1.1","node":"n1"},{"id":"n2.2","node":"n2"},{"id":"n3.7","node":"n3"}],"move":{"from":"n1.1","to":"n3.7"}},` +
		`{"id":1,"slots":[{"from":8192,"to":16383}],"replicas":[{"id":"n1.1","node":"n1"},{"id":"n2.2","node":"n2"},{"id":"n3.5","node":"n3"}]}]}`
	if got := string(m.Encode()); got != moved {
		t.Fatalf("got  %s\nwant %s", got, moved)
	}
	m = must(t)(SetUsers(m, true))
	withUsers := strings.NewReplacer(`"epoch":7`, `"epoch":8`, `"balance":"always",`, `"balance":"always","users":true,`).Replace(moved)
	if got := string(m.Encode()); got != withUsers {
		t.Fatalf("got  %s\nwant %s", got, withUsers)
	}
	m = edit(must(t)(SetDeadAfter(m, time.Minute)), "n2", func(n *Node) { n.Dead = true })
	withDead := strings.NewReplacer(`"epoch":8`, `"epoch":9`, `"balance":"always",`, `"balance":"always","dead_after_ms":60000,`, `"cordoned":true}`, `"cordoned":true,"dead":true}`).Replace(withUsers)
	if got := string(m.Encode()); got != withDead {
		t.Fatalf("got  %s\nwant %s", got, withDead)
	}
}

// At the first level nothing comes into the map that v0.4.0 does not understand; the level rises when all nodes do, and never falls.
func TestLevels(t *testing.T) {
	m := cluster(t, 4, 2, 3)
	m.Level = LevelFirst
	for name, change := range map[string]func() (Map, bool, error){
		"cordon":  func() (Map, bool, error) { return CordonNode(m, "n1") },
		"drain":   func() (Map, bool, error) { return DrainNode(m, "n1", "", anyNode) },
		"balance": func() (Map, bool, error) { return SetBalance(m, BalanceOnce) },
		"users":   func() (Map, bool, error) { return SetUsers(m, true) },
		"move":    func() (Map, bool, error) { next, err := StartMove(m, 0, "n1.1", "n4"); return next, true, err },
	} {
		var low *LevelError
		if _, _, err := change(); !errors.As(err, &low) || low.Needs != LevelMoves {
			t.Errorf("%s: %v", name, err)
		}
	}
	unchanged(t, m)(SetUsers(m, false))
	zoned := node("n5")
	zoned.Zone = "a"
	next, err := PlanJoin(m, zoned)
	if n, _ := next.Node("n5"); err != nil || n.Zone != "" {
		t.Errorf("%+v, %v", n, err)
	}
	for _, level := range []int{-1, LevelFirst} {
		if _, _, err := RaiseLevel(m, func(n NodeID) int {
			if n == "n3" {
				return level
			}
			return Level
		}); err == nil || !strings.Contains(err.Error(), "n3") {
			t.Errorf("raised with a node at %d: %v", level, err)
		}
	}
	up := must(t)(RaiseLevel(m, func(NodeID) int { return Level + 1 }))
	unchanged(t, up)(RaiseLevel(up, func(NodeID) int { return -1 }))
	down := up.Clone()
	down.Epoch++
	down.Level = LevelFirst
	if err := ValidateTransition(up, down); err == nil {
		t.Error("the level fell")
	}
	// What a node says of itself is stored as soon as it can be.
	if next, changed := UpdateNode(up, Node{ID: "n1", Instance: "dir-n1", Addrs: node("n1").Addrs, Zone: "a"}); !changed || next.Nodes[0].Zone != "a" {
		t.Errorf("%+v", next.Nodes[0])
	}
}

func TestDecodeMapRefuses(t *testing.T) {
	good := cluster(t, 2, 2, 3).Encode()
	for name, data := range map[string][]byte{
		"nothing":           nil,
		"version only":      {1},
		"no json":           []byte("\x01hello"),
		"cut short":         good[:len(good)-1],
		"bytes behind":      append(append([]byte{}, good...), "{}"...),
		"an unknown field":  []byte("\x01" + `{"color":"red",` + string(good[2:])),
		"a slot over 65535": []byte(strings.Replace(string(good), `"to":16383`, `"to":70000`, 1)),
		"an invalid map":    []byte(strings.Replace(string(good), `"epoch":2`, `"epoch":0`, 1)),
	} {
		if m, err := DecodeMap(data); err == nil {
			t.Errorf("%s: accepted as %+v", name, m)
		}
	}
	var ve *VersionError
	if _, err := DecodeMap(append([]byte{2}, good[1:]...)); !errors.As(err, &ve) || ve.Version != 2 {
		t.Errorf("version 2: got %v", err)
	}
}

func FuzzDecodeMap(f *testing.F) {
	f.Add(cluster(f, 3, 4, 3).Encode())
	f.Add(split(f).Encode())
	f.Add([]byte("\x01{}"))
	f.Add([]byte("\x02{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeMap(data)
		if err != nil {
			return
		}
		// What was accepted is valid, routes every slot, and encodes to itself.
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
		r := NewRouter(m)
		for slot := range Slots {
			if r.ShardOf(Slot(slot)) == NoShard {
				t.Fatalf("slot %d has no shard", slot)
			}
		}
		again, err := DecodeMap(m.Encode())
		if err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(m)
		b, _ := json.Marshal(again)
		if string(a) != string(b) {
			t.Fatalf("%s became %s", a, b)
		}
	})
}

func TestLookups(t *testing.T) {
	m := cluster(t, 3, 8, 3)
	if n, ok := m.Node("n2"); !ok || n != node("n2") {
		t.Errorf("Node(n2) = %+v, %v", n, ok)
	}
	if _, ok := m.Node("n4"); ok {
		t.Error("Node(n4) found")
	}
	if s, ok := m.Shard(7); !ok || s.ID != 7 {
		t.Errorf("Shard(7) = %+v, %v", s, ok)
	}
	for _, id := range []ShardID{8, NoShard} {
		if _, ok := m.Shard(id); ok {
			t.Errorf("Shard(%d) found", id)
		}
	}
	r := NewRouter(m)
	for slot := range Slots {
		if a, b := m.ShardOf(Slot(slot)), r.ShardOf(Slot(slot)); a != b {
			t.Fatalf("slot %d: map says %d, router %d", slot, a, b)
		}
	}
	if slot, shard := r.Locate([]byte("foo")); slot != 12182 || shard != m.ShardOf(12182) {
		t.Errorf("Locate(foo) = %d, %d", slot, shard)
	}
	if got := r.ShardOf(Slots); got != NoShard {
		t.Errorf("slot %d belongs to %d", Slots, got)
	}
	if got := NewRouter(Map{}).ShardOf(0); got != NoShard {
		t.Errorf("an empty map gives slot 0 to %d", got)
	}
	if got := (Map{}).ShardOf(0); got != NoShard {
		t.Errorf("an empty map gives slot 0 to %d", got)
	}
}
