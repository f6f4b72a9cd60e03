package sharding

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// survivor is a replica of a group of voters, whose log ends at term and index.
func survivor(shard ShardID, id ReplicaID, term, index uint64, voters ...ReplicaID) Survivor {
	node, _, _ := strings.Cut(id, ".")
	return Survivor{Shard: shard, Replica: id, Node: node, Last: Position{term, index}, Term: term + 1, Voters: voters}
}

func fencedSurvivor(s Survivor) Survivor { s.Fenced = true; return s }

func useless(s Survivor, why string) Survivor { s.Problem = why; return s }

// One shard, on five nodes as the map says: who goes on, if anybody must.
func TestPlanRecovery(t *testing.T) {
	five := []ReplicaID{"n1.1", "n2.1", "n3.1", "n4.1", "n5.1"}
	three := five[:3]
	for _, tc := range []struct {
		name     string
		replicas []ReplicaID // by the map
		lost     string
		left     []Survivor
		empty    bool
		from, to string // "" with to: begins anew
		refused  string
	}{
		{name: "a majority is left", replicas: three, lost: "n3", left: []Survivor{survivor(0, "n1.1", 3, 40, three...), survivor(0, "n2.1", 3, 41, three...)}, refused: "every shard has a majority"},
		{name: "one of three", replicas: three, lost: "n2,n3", left: []Survivor{survivor(0, "n1.1", 3, 40, three...)}, from: "n1.1", to: "n1.1000000000"},
		{name: "the longer log", replicas: five, lost: "n3,n4,n5", left: []Survivor{survivor(0, "n1.1", 3, 40, five...), survivor(0, "n2.1", 3, 41, five...)}, from: "n2.1", to: "n2.1000000000"},
		{name: "a later term beats a longer log", replicas: five, lost: "n3,n4,n5", left: []Survivor{survivor(0, "n1.1", 4, 12, five...), survivor(0, "n2.1", 3, 4100, five...)}, from: "n1.1", to: "n1.1000000000"},
		{name: "of equals the first", replicas: five, lost: "n3,n4,n5", left: []Survivor{survivor(0, "n2.1", 3, 40, five...), survivor(0, "n1.1", 3, 40, five...)}, from: "n1.1", to: "n1.1000000000"},
		{name: "a learner that has more", replicas: five, lost: "n1,n2", left: []Survivor{survivor(0, "n3.1", 3, 40, three...), survivor(0, "n4.1", 3, 44, three...)}, from: "n4.1", to: "n4.1000000000"},
		{name: "learners do not make a majority", replicas: five, lost: "n1,n2", left: []Survivor{survivor(0, "n3.1", 3, 40, three...), survivor(0, "n4.1", 3, 40, three...), survivor(0, "n5.1", 3, 40, three...)}, from: "n3.1", to: "n3.1000000000"},
		{name: "the group counts, not the map", replicas: []ReplicaID{"n2.1"}, lost: "n2", left: []Survivor{survivor(0, "n1.1", 3, 40, "n1.1", "n2.1")}, from: "n1.1", to: "n1.1000000000"},
		{name: "the newest log says who votes", replicas: three, lost: "n2,n3",
			left: []Survivor{survivor(0, "n1.1", 5, 90, "n1.1", "n4.7", "n5.8"), survivor(0, "n4.7", 5, 80, "n1.1", "n2.1", "n3.1")}, refused: "every shard has a majority"},
		{name: "an earlier incarnation does not vote", replicas: three, lost: "n3", left: []Survivor{survivor(0, "n1.1", 3, 40, three...), survivor(0, "n2.9", 3, 40, three...)}, from: "n1.1", to: "n1.1000000000"},
		{name: "damaged ones do not count", replicas: three, left: []Survivor{survivor(0, "n1.1", 3, 40, three...), useless(survivor(0, "n2.1", 3, 99), "damaged"), useless(survivor(0, "n3.1", 0, 0), "gone")}, from: "n1.1", to: "n1.1000000000"},
		{name: "what was begun is ended", replicas: three, lost: "n3", left: []Survivor{fencedSurvivor(survivor(0, "n1.1", 3, 40, three...)), fencedSurvivor(survivor(0, "n2.1", 3, 41, three...))}, from: "n2.1", to: "n2.1000000000"},
		{name: "nothing is left", replicas: three, lost: "n1,n2,n3", refused: "shard 0: nothing of use is left"},
		{name: "nothing of use is left", replicas: three, lost: "n1,n2", left: []Survivor{useless(survivor(0, "n3.1", 3, 40), "its log is damaged")}, refused: "replica n3.1: its log is damaged"},
		{name: "it begins anew", replicas: three, lost: "n1,n2,n3", empty: true, to: "n4.1000000000"},
		{name: "no such node", replicas: three, lost: "n9", refused: `no node "n9"`},
		{name: "nobody left", replicas: three, lost: "n1,n2,n3,n4,n5", refused: "no node would be left"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := oneShard(t, tc.replicas)
			var lost []NodeID
			if tc.lost != "" {
				lost = strings.Split(tc.lost, ",")
			}
			r, err := PlanRecovery(m, lost, tc.left, tc.empty)
			if tc.refused != "" {
				var e *RecoveryError
				if !errors.As(err, &e) || !strings.Contains(err.Error(), tc.refused) {
					t.Fatalf("%v, want %q", err, tc.refused)
				}
				return
			}
			if err != nil || len(r.Shards) != 1 || r.Era != 1 || r.Epoch != 1_000_000_000 {
				t.Fatalf("%+v, %v", r, err)
			}
			l := r.Shards[0]
			if (l.From == nil) != (tc.from == "") || l.From != nil && l.From.Replica != tc.from || l.To.ID != tc.to {
				t.Fatalf("from %+v to %+v, want %s to %s", l.From, l.To, tc.from, tc.to)
			}
			next, err := r.Next(m)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range lost {
				if _, ok := next.Node(id); ok {
					t.Errorf("node %s is still there", id)
				}
			}
			if got := next.Shards[0].Replicas; !slices.Equal(got, []Replica{l.To}) || next.Epoch != r.Epoch || next.Level < LevelMoves {
				t.Errorf("%+v at epoch %d, level %d", got, next.Epoch, next.Level)
			}
			// What comes next is ordinary, and its ids are of the era.
			for range 3 {
				if grown, ok := PlanGrow(next, func(NodeID) bool { return true }, func(Shard) bool { return true }); ok {
					if err := ValidateTransition(next, grown); err != nil || Era(grown.Epoch) != 1 {
						t.Fatalf("epoch %d, %v", grown.Epoch, err)
					}
					next = grown
				}
			}
			// Whatever the lost have placed since, the era's ids are others.
			for _, id := range tc.replicas {
				if next.Shards[0].place(id) >= 0 || !next.Removed(0, id) {
					t.Errorf("replica %s of the earlier era is wanted still", id)
				}
			}
			// The next disaster begins the next era.
			all := slices.Clone(next.Shards[0].Replicas)
			if len(next.Nodes) > 1 {
				if r, err := PlanRecovery(next, []NodeID{}, []Survivor{fencedSurvivor(survivor(0, all[0].ID, 9, 9, all[0].ID))}, false); err != nil || r.Epoch != 2_000_000_000 {
					t.Errorf("epoch %d, %v", r.Epoch, err)
				}
			}
		})
	}
}

// oneShard is a map of five nodes and one shard with these replicas.
func oneShard(t *testing.T, replicas []ReplicaID) Map {
	t.Helper()
	m := cluster(t, 5, 1, 5)
	m.Epoch, m.Shards[0].Replicas = 9, nil
	for _, id := range replicas {
		node, _, _ := strings.Cut(id, ".")
		m.Shards[0].Replicas = append(m.Shards[0].Replicas, Replica{ID: id, Node: node})
	}
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	return m
}

// A move with a lost end is over. A shard that is well loses the lost nodes' replicas and nothing else.
func TestRecoveryKeepsWhatIsWell(t *testing.T) {
	m := cluster(t, 5, 3, 3)
	for shard, on := range []string{"n1 n2 n3", "n3 n4 n5", "n1 n2 n3"} {
		m.Shards[shard].Replicas = nil
		for _, n := range strings.Fields(on) {
			m.Shards[shard].Replicas = append(m.Shards[shard].Replicas, Replica{ID: n + ".1", Node: n})
		}
	}
	var err error
	if m, err = StartMove(m, 0, "n2.1", "n5"); err != nil {
		t.Fatal(err)
	}
	if m, err = StartMove(m, 2, "n1.1", "n4"); err != nil {
		t.Fatal(err)
	}
	abc := []ReplicaID{"n1.1", "n2.1", "n3.1"}
	r, err := PlanRecovery(m, []NodeID{"n4", "n5"}, []Survivor{
		survivor(0, "n1.1", 2, 9, abc...), survivor(0, "n2.1", 2, 9, abc...), survivor(0, "n3.1", 2, 9, abc...),
		survivor(1, "n3.1", 2, 9, "n3.1", "n4.1", "n5.1"),
		survivor(2, "n1.1", 2, 9, abc...), survivor(2, "n2.1", 2, 9, abc...), survivor(2, "n3.1", 2, 9, abc...),
	}, false)
	if err != nil || len(r.Shards) != 1 || r.Shards[0].Shard != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	next, err := r.Next(m)
	if err != nil {
		t.Fatal(err)
	}
	for shard, want := range [][]ReplicaID{abc, {"n3.1000000000"}, abc} {
		var got []ReplicaID
		for _, o := range next.Shards[shard].Replicas {
			got = append(got, o.ID)
		}
		if !slices.Equal(got, want) || next.Shards[shard].Move != nil {
			t.Errorf("shard %d: %v, move %+v", shard, got, next.Shards[shard].Move)
		}
	}
	other := r
	other.Lost = []NodeID{"n5"}
	if r.Phrase() == other.Phrase() {
		t.Error("two recoveries have one phrase")
	}
}

// A step to another era must be a recovery.
func TestValidateRecovery(t *testing.T) {
	m := cluster(t, 3, 2, 3)
	r, err := PlanRecovery(m, []NodeID{"n2", "n3"}, []Survivor{
		survivor(0, m.Shards[0].Replicas[0].ID, 1, 1, m.Shards[0].Replicas[0].ID, "n2.2", "n3.3"),
		survivor(1, m.Shards[1].Replicas[0].ID, 1, 1, m.Shards[1].Replicas[0].ID, "n2.2", "n3.3")}, false)
	if err != nil {
		t.Fatal(err)
	}
	good, err := r.Next(m)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Map){
		"not the era's first epoch":  func(n *Map) { n.Epoch++ },
		"an era is left out":         func(n *Map) { n.Epoch = 2_000_000_000 },
		"another cluster":            func(n *Map) { n.ClusterID = "other" },
		"a node comes":               func(n *Map) { n.Nodes = append(n.Nodes, Node{ID: "n9"}) },
		"another directory":          func(n *Map) { n.Nodes[0].Instance = "another" },
		"slots change hands":         func(n *Map) { n.Shards[0].Slots, n.Shards[1].Slots = n.Shards[1].Slots, n.Shards[0].Slots },
		"a new id of an earlier era": func(n *Map) { n.Shards[0].Replicas[0].ID = "n1.77" },
	} {
		bad := good.Clone()
		change(&bad)
		if err := ValidateTransition(m, bad); err == nil {
			t.Errorf("%s: allowed", name)
		}
	}
	if err := ValidateTransition(m, good); err != nil {
		t.Error(err)
	}
}
