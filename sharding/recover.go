package sharding

import (
	"cmp"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
)

// Recovery from the loss of a majority. A shard whose Raft group has lost it can never elect anybody again, and what the lost replicas alone had acknowledged is
// gone. An administrator may have it go on with what the best survivor has, under another identity: a new era of the map. See docs/decisions/0023-recovery.md.

// eraEpochs is how many epochs of the map an era has: more than a cluster ever makes.
const eraEpochs = 1_000_000_000

// Era says after how many recoveries an epoch is. The ids of replicas that are placed in an era end in an epoch of it, so none can be that of a replica of an earlier one, whatever nodes that are
// taken for lost have done meanwhile.
func Era(epoch uint64) uint64 { return epoch / eraEpochs }

// Position is how far a log reaches. That of a later term is further, whatever its length (Raft thesis 3.6.1).
type Position struct {
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
}

func (p Position) compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Term, q.Term), cmp.Compare(p.Index, q.Index))
}

// Survivor is a replica on a node that answers, as that node describes it.
type Survivor struct {
	Shard   ShardID   `json:"shard"`
	Replica ReplicaID `json:"replica"`
	Node    NodeID    `json:"node"`
	// Last is the end of its log, or of its state if that is further.
	Last Position `json:"last"`
	// Commit is up to where it knows the log committed, Applied how far its state is.
	Commit  uint64 `json:"commit"`
	Applied uint64 `json:"applied"`
	// Term is the newest that it knows of.
	Term uint64 `json:"term"`
	// Records is how many keys its state has.
	Records int64 `json:"records"`
	// Voters are the replicas that vote, by the newest configuration in its log.
	Voters []ReplicaID `json:"voters,omitempty"`
	// Fenced: it was stopped for a recovery, and does not run again under this id.
	Fenced bool `json:"fenced,omitempty"`
	// Problem says why its data are of no use; empty if they are.
	Problem string `json:"problem,omitempty"`
}

// Recovery is what a recovery would do, or does.
type Recovery struct {
	// Era is the one that it begins.
	Era uint64 `json:"era"`
	// Epoch is the map's in which it is, the first of the era.
	Epoch  uint64      `json:"epoch"`
	Lost   []NodeID    `json:"lost"`
	Shards []LostShard `json:"shards"`
	base   Map
}

// LostShard is a shard without a majority.
type LostShard struct {
	Shard ShardID `json:"shard"`
	// Voters are how many decide together with those that are gone, VotersLeft how many of them can still vote.
	Voters     int `json:"voters"`
	VotersLeft int `json:"voters_left"`
	// From is the survivor with which it goes on. nil: none is of use, and the shard begins anew, empty.
	From *Survivor `json:"from,omitempty"`
	// To is what it becomes: the shard's only replica, on the same node.
	To Replica `json:"to"`
	// Term is the newest that a survivor knows of: the shard goes on above it.
	Term uint64 `json:"term"`
	// Left are all survivors, those that are given up included.
	Left []Survivor `json:"left"`
}

// PlanRecovery finds the shards that have lost their majority, and with whom each goes on: the survivor whose log is furthest, which has every entry that any survivor knows to be
// committed. left are all replicas on all nodes of the map but the lost. With startEmpty a shard of which nothing is left begins anew. The error is a *RecoveryError if it must not be done.
func PlanRecovery(m Map, lost []NodeID, left []Survivor, startEmpty bool) (Recovery, error) {
	r := Recovery{Era: Era(m.Epoch) + 1, Lost: slices.Compact(slices.Sorted(slices.Values(lost))), Shards: []LostShard{}, base: m}
	r.Epoch = r.Era * eraEpochs
	var faults []string
	for _, id := range r.Lost {
		if _, ok := m.Node(id); !ok {
			faults = append(faults, fmt.Sprintf("there is no node %q", truncate(id)))
		}
	}
	if len(r.Lost) >= len(m.Nodes) {
		faults = append(faults, "no node would be left")
	}
	if len(faults) > 0 {
		return r, &RecoveryError{Faults: faults}
	}
	given := map[NodeID]int{} // shards that begin anew there
	for _, s := range m.Shards {
		l, isLost := lossOf(s, left)
		if !isLost {
			continue
		}
		if l.From != nil {
			l.To.Node = l.From.Node
		} else if startEmpty {
			l.To.Node = r.emptiest(given)
			given[l.To.Node]++
		} else {
			faults = append(faults, fmt.Sprintf("shard %d: nothing of use is left of it%s: bring back a node that holds it and leave that out of the lost ones, or let it begin anew without its data", s.ID, whyNot(l.Left)))
			continue
		}
		l.To.ID = replicaID(l.To.Node, r.Epoch)
		r.Shards = append(r.Shards, l)
	}
	switch {
	case len(faults) > 0:
		return r, &RecoveryError{Faults: faults}
	case len(r.Shards) == 0:
		return r, &RecoveryError{Faults: []string{"every shard has a majority of its replicas: drain or replace the nodes that do not answer, and remove them"}}
	}
	return r, nil
}

// lossOf says whether a shard has lost its majority, by the newest configuration that is left, and who is left.
func lossOf(s Shard, all []Survivor) (l LostShard, isLost bool) {
	l = LostShard{Shard: s.ID, Left: []Survivor{}}
	for _, v := range all {
		if v.Shard == s.ID {
			l.Left = append(l.Left, v)
		}
	}
	slices.SortFunc(l.Left, func(a, b Survivor) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Replica, b.Replica)) })
	fenced := false
	for i, v := range l.Left {
		l.Term = max(l.Term, v.Term)
		fenced = fenced || v.Fenced
		if v.Problem == "" && (l.From == nil || v.Last.compare(l.From.Last) > 0) {
			l.From = &l.Left[i]
		}
	}
	voters := make([]ReplicaID, 0, len(s.Replicas))
	for _, r := range s.Replicas {
		voters = append(voters, r.ID)
	}
	if l.From != nil && len(l.From.Voters) > 0 {
		voters = l.From.Voters
	}
	l.Voters = len(voters)
	for _, v := range l.Left {
		if v.Problem == "" && slices.Contains(voters, v.Replica) {
			l.VotersLeft++
		}
	}
	// Those that were fenced never vote again: that recovery has to be brought to its end.
	return l, fenced || l.VotersLeft < Majority(l.Voters)
}

func whyNot(left []Survivor) string {
	var list []string
	for _, v := range left {
		list = append(list, fmt.Sprintf("replica %s: %s", v.Replica, v.Problem))
	}
	if len(list) == 0 {
		return ""
	}
	return " (" + strings.Join(list, "; ") + ")"
}

// emptiest is the node that stays and holds the least.
func (r Recovery) emptiest(given map[NodeID]int) (best NodeID) {
	least := 0
	for _, n := range r.base.Nodes {
		if slices.Contains(r.Lost, n.ID) {
			continue
		}
		load := given[n.ID]
		for _, s := range r.base.Shards {
			if _, has := s.On(n.ID); has {
				load++
			}
		}
		if best == "" || load < least {
			best, least = n.ID, load
		}
	}
	return best
}

// Phrase is what an administrator has to type: it changes with the nodes that are given up, with the shards, and with whether any begins anew.
func (r Recovery) Phrase() string {
	sum := crc32.NewIEEE()
	fmt.Fprintf(sum, "%s %d %q", r.base.ClusterID, r.Era, r.Lost)
	for _, l := range r.Shards {
		fmt.Fprintf(sum, " %d %v", l.Shard, l.From == nil)
	}
	return fmt.Sprintf("recover-%d-of-%d-shards-%04x", len(r.Shards), len(r.base.Shards), sum.Sum32()>>16)
}

// Next is the map of the new era, made from m: without the lost nodes and what they held, and each lost shard with its one new replica. Shards that have their majority lose
// no other replica than those on lost nodes, and get others in the ordinary way.
func (r Recovery) Next(m Map) (Map, error) {
	next := m.Clone()
	next.Epoch, next.Level = r.Epoch, max(m.Level, LevelMoves)
	isLost := func(id NodeID) bool { return slices.Contains(r.Lost, id) }
	next.Nodes = slices.DeleteFunc(next.Nodes, func(n Node) bool { return isLost(n.ID) })
	for i := range next.Nodes {
		if isLost(next.Nodes[i].Successor) {
			next.Nodes[i].Successor = ""
		}
	}
	for i := range next.Shards {
		s := &next.Shards[i]
		s.Replicas = slices.DeleteFunc(s.Replicas, func(o Replica) bool { return isLost(o.Node) })
		if j := slices.IndexFunc(r.Shards, func(l LostShard) bool { return l.Shard == s.ID }); j >= 0 {
			s.Replicas = []Replica{r.Shards[j].To}
			s.Founding = "" // what was founded has gone on; what was not begins by our word
		}
		if mv := s.Move; mv != nil && (s.place(mv.From) < 0 || s.place(mv.To) < 0) {
			s.Move = nil
		}
	}
	if err := ValidateTransition(m, next); err != nil {
		return Map{}, fmt.Errorf("recover: %w", err)
	}
	return next, nil
}

// validateRecovery says whether the map may change from old to new by a recovery: nodes and replicas only go, but that a shard may have one new replica in
// the place of all that it had. Whether the shard has lost its majority, the map does not know.
func validateRecovery(old, new Map) error {
	var f faults
	if Era(new.Epoch) != Era(old.Epoch)+1 || new.Epoch%eraEpochs != 0 {
		f.add("epoch %d follows %d: a recovery begins the next era", new.Epoch, old.Epoch)
	}
	if new.ClusterID != old.ClusterID {
		f.add("cluster id %q becomes %q: it never changes", old.ClusterID, new.ClusterID)
	}
	if new.Level < old.Level {
		f.add("feature level %d becomes %d: it never falls", old.Level, new.Level)
	}
	for _, n := range new.Nodes {
		if was, ok := old.Node(n.ID); !ok || was.Instance != n.Instance {
			f.add("node %q is new", n.ID)
		}
	}
	if len(new.Shards) != len(old.Shards) {
		f.add("%d shards become %d", len(old.Shards), len(new.Shards))
		return f.err()
	}
	for i, now := range new.Shards {
		was := old.Shards[i]
		if now.ID != was.ID || !slices.Equal(now.Slots, was.Slots) {
			f.add("shard %d or its slots change", was.ID)
		}
		for _, r := range now.Replicas {
			if epoch, _ := placedAt(r); !slices.Contains(was.Replicas, r) && (epoch != new.Epoch || len(now.Replicas) > 1) {
				f.add("shard %d: new replica %q: it must be the only one, with an id that ends in the new epoch, %d", was.ID, r.ID, new.Epoch)
			}
		}
	}
	return f.err()
}
