package sharding

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of a map. They are far above what a cluster of this design runs well,
// and keep a map (100 KB with a thousand shards) below the limit of one value.
const (
	MaxShards   = 1024
	MaxReplicas = 9
	MaxNodes    = 1024
	MaxNodeID   = 64 // bytes
	MaxZone     = 64 // bytes
)

// mapVersion is the first byte of an encoded map.
const mapVersion = 1

// NewMap is the map of a new cluster: shards with contiguous, nearly equal slot
// ranges, each with one replica on the first node. It grows by PlanJoin.
func NewMap(clusterID string, first Node, shards, replicasWanted int) (Map, error) {
	if shards < 1 || shards > MaxShards {
		return Map{}, fmt.Errorf("new shard map: %d shards: must be 1 to %d", shards, MaxShards)
	}
	m := Map{
		ClusterID:      clusterID,
		Epoch:          1,
		ReplicasWanted: replicasWanted,
		Level:          Level,
		Nodes:          []Node{first},
		Shards:         make([]Shard, shards),
	}
	for i := range m.Shards {
		m.Shards[i] = Shard{
			ID:       ShardID(i),
			Slots:    []SlotRange{{From: Slot(i * Slots / shards), To: Slot((i+1)*Slots/shards - 1)}},
			Replicas: []Replica{{ID: replicaID(first.ID, 1), Node: first.ID}},
		}
	}
	if err := m.Validate(); err != nil {
		return Map{}, fmt.Errorf("new shard map: %w", err)
	}
	return m, nil
}

// Encode returns the map as it is stored and sent: a version byte, then JSON.
func (m Map) Encode() []byte {
	var buf bytes.Buffer
	buf.WriteByte(mapVersion)
	if err := json.NewEncoder(&buf).Encode(m); err != nil {
		panic(fmt.Sprintf("encode shard map: %v", err)) // strings and numbers only: cannot be
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}

// DecodeMap reads what Encode wrote and validates it. A field that this build
// does not know is an error: it would be lost when the map is next changed.
func DecodeMap(data []byte) (Map, error) {
	if len(data) == 0 {
		return Map{}, fmt.Errorf("decode shard map: %w", io.ErrUnexpectedEOF)
	}
	if data[0] != mapVersion {
		return Map{}, fmt.Errorf("decode shard map: %w", &VersionError{Version: data[0]})
	}
	d := json.NewDecoder(bytes.NewReader(data[1:]))
	d.DisallowUnknownFields()
	var m Map
	if err := d.Decode(&m); err != nil {
		return Map{}, fmt.Errorf("decode shard map: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Map{}, fmt.Errorf("decode shard map: bytes after its end")
	}
	if err := m.Validate(); err != nil {
		return Map{}, fmt.Errorf("decode shard map: %w", err)
	}
	return m, nil
}

// Node returns the node with this id.
func (m Map) Node(id NodeID) (Node, bool) {
	i, ok := slices.BinarySearchFunc(m.Nodes, id, func(n Node, id NodeID) int { return strings.Compare(n.ID, id) })
	if !ok {
		return Node{}, false
	}
	return m.Nodes[i], true
}

// Shard returns the shard with this id.
func (m Map) Shard(id ShardID) (Shard, bool) {
	i, ok := slices.BinarySearchFunc(m.Shards, id, func(s Shard, id ShardID) int { return int(int64(s.ID) - int64(id)) })
	if !ok {
		return Shard{}, false
	}
	return m.Shards[i], true
}

// ShardOf returns the owner of a slot, NoShard if nobody owns it. It searches;
// a path that routes keys uses a Router.
func (m Map) ShardOf(slot Slot) ShardID {
	for _, s := range m.Shards {
		for _, r := range s.Slots {
			if r.From <= slot && slot <= r.To {
				return s.ID
			}
		}
	}
	return NoShard
}

// On returns the shard's replica on a node.
func (s Shard) On(node NodeID) (Replica, bool) {
	for _, r := range s.Replicas {
		if r.Node == node {
			return r, true
		}
	}
	return Replica{}, false
}

// place is where a replica stands in the shard's list, -1 if it is not in it.
func (s Shard) place(id ReplicaID) int {
	return slices.IndexFunc(s.Replicas, func(r Replica) bool { return r.ID == id })
}

// Clone returns a copy that shares nothing with m. Whoever changes a map
// changes a clone, because routers and readers hold the one before.
func (m Map) Clone() Map {
	m.Nodes = slices.Clone(m.Nodes)
	m.Shards = slices.Clone(m.Shards)
	for i := range m.Shards {
		m.Shards[i].Slots = slices.Clone(m.Shards[i].Slots)
		m.Shards[i].Replicas = slices.Clone(m.Shards[i].Replicas)
	}
	m.SlotMoves = slices.Clone(m.SlotMoves)
	for i := range m.SlotMoves {
		m.SlotMoves[i].Slots = slices.Clone(m.SlotMoves[i].Slots)
	}
	return m
}

// CheckNodeID says whether id can name a node: 1 to 64 letters, digits, '-',
// '_' and '.'. It becomes part of replica ids, file names and log lines.
func CheckNodeID(id NodeID) error {
	if id == "" || len(id) > MaxNodeID {
		return fmt.Errorf("node id %q: must have 1 to %d characters", truncate(id), MaxNodeID)
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return fmt.Errorf("node id %q: %q is not allowed: use letters, digits, '-', '_' and '.'", id, c)
		}
	}
	if id[0] == '.' {
		return fmt.Errorf("node id %q: must not begin with a dot", id) // ".." as a directory
	}
	return nil
}

// Validate reports every fault of the map in one *MapError.
func (m Map) Validate() error {
	var f faults
	if m.ClusterID == "" || len(m.ClusterID) > 128 || !utf8.ValidString(m.ClusterID) {
		f.add("cluster id %q: must be text of 1 to 128 bytes", truncate(m.ClusterID))
	}
	if m.Epoch == 0 {
		f.add("epoch 0: the first is 1")
	}
	if m.Level < LevelFirst || m.Level > Level {
		f.add("feature level %d: this build understands %d to %d", m.Level, LevelFirst, Level)
	}
	if m.ReplicasWanted < 1 || m.ReplicasWanted > MaxReplicas {
		f.add("%d replicas wanted: must be 1 to %d", m.ReplicasWanted, MaxReplicas)
	}
	if m.Balance != BalanceNever && m.Balance != BalanceOnce && m.Balance != BalanceAlways {
		f.add("balance %q: must be once, always or nothing", truncate(string(m.Balance)))
	}
	if why := badDeadAfter(m.DeadAfterMillis); why != "" {
		f.add("%s", why)
	}
	m.validateNodes(&f)
	m.validateShards(&f)
	m.validateSlots(&f)
	m.validateSlotMoves(&f)
	return f.err()
}

func (m Map) validateNodes(f *faults) {
	if len(m.Nodes) == 0 || len(m.Nodes) > MaxNodes {
		f.add("%d nodes: must be 1 to %d", len(m.Nodes), MaxNodes)
	}
	for i, n := range m.Nodes {
		if err := CheckNodeID(n.ID); err != nil {
			f.add("%v", err)
		}
		if i > 0 && m.Nodes[i-1].ID >= n.ID {
			f.add("node %q follows %q: ids must be unique and in order", n.ID, m.Nodes[i-1].ID)
		}
		if len(n.Zone) > MaxZone || !utf8.ValidString(n.Zone) {
			f.add("node %q: zone %q: must be text of at most %d bytes", n.ID, truncate(n.Zone), MaxZone)
		}
		if n.Dead && m.DeadAfterMillis == 0 {
			f.add("node %q: it is taken for dead in a cluster that does not do that", n.ID)
		}
		if _, ok := m.Node(n.Successor); n.Successor != "" && (!ok || !n.Draining || n.Successor == n.ID) {
			f.add("node %q: its successor is %q: must be another node, and only while it drains", n.ID, truncate(n.Successor))
		}
		if len(n.Instance) > 128 || !utf8.ValidString(n.Instance) {
			f.add("node %q: instance %q: must be text of at most 128 bytes", n.ID, truncate(n.Instance))
		}
		for _, a := range []string{n.Addrs.Peer, n.Addrs.Client, n.Addrs.Cluster, n.Addrs.HTTP} {
			if len(a) > 512 || !utf8.ValidString(a) {
				f.add("node %q: address %q: must be text of at most 512 bytes", n.ID, truncate(a))
			}
		}
	}
}

func (m Map) validateShards(f *faults) {
	if len(m.Shards) == 0 || len(m.Shards) > MaxShards {
		f.add("%d shards: must be 1 to %d", len(m.Shards), MaxShards)
		return
	}
	if m.Shards[0].ID != 0 {
		f.add("no shard 0: it keeps this map")
	}
	known := make(map[NodeID]bool, len(m.Nodes))
	for _, n := range m.Nodes {
		known[n.ID] = true
	}
	for i, s := range m.Shards {
		s.validateFounding(f)
		if s.ID == NoShard {
			f.add("shard id %d is reserved", s.ID)
		}
		if i > 0 && m.Shards[i-1].ID >= s.ID {
			f.add("shard %d follows %d: ids must be unique and in order", s.ID, m.Shards[i-1].ID)
		}
		if mv := s.Move; mv != nil {
			from := s.place(mv.From)
			to := s.place(mv.To)
			if from < 0 || to < 0 || from == to {
				f.add("shard %d: a move of %q to %q: both must be replicas of it", s.ID, mv.From, mv.To)
			}
		}
		// One more than the most wanted: a replica that replaces another is added before the other goes.
		if len(s.Replicas) == 0 || len(s.Replicas) > MaxReplicas+1 {
			f.add("shard %d: %d replicas: must be 1 to %d", s.ID, len(s.Replicas), MaxReplicas+1)
		}
		for j, r := range s.Replicas {
			if !known[r.Node] {
				f.add("shard %d: replica %q is on node %q, which is not in the map", s.ID, r.ID, r.Node)
			}
			if epoch, ok := placedAt(r); !ok || epoch == 0 || epoch > m.Epoch {
				f.add("shard %d: replica id %q: must be %q, a dot and an epoch from 1 to %d", s.ID, truncate(r.ID), r.Node, m.Epoch)
			}
			for _, other := range s.Replicas[:j] {
				if other.Node == r.Node {
					f.add("shard %d: replicas %q and %q are both on node %q", s.ID, other.ID, r.ID, r.Node)
				}
			}
		}
	}
}

func (m Map) validateSlots(f *faults) {
	owned := make([]bool, Slots)
	for _, s := range m.Shards {
		for i, r := range s.Slots {
			switch {
			case r.From > r.To || r.To >= Slots:
				f.add("shard %d: slots %d-%d are no range within 0-%d", s.ID, r.From, r.To, Slots-1)
				continue
			case i > 0 && int(s.Slots[i-1].To)+1 >= int(r.From):
				// Joined and in order, so that one ownership has one form.
				f.add("shard %d: slots %d-%d follow %d-%d: ranges must be apart and in order",
					s.ID, r.From, r.To, s.Slots[i-1].From, s.Slots[i-1].To)
			}
			for slot := r.From; slot <= r.To; slot++ {
				if owned[slot] {
					f.add("slot %d is owned twice, the second time by shard %d", slot, s.ID)
					break
				}
				owned[slot] = true
			}
		}
	}
	if i := slices.Index(owned, false); i >= 0 {
		f.add("slot %d is owned by no shard", i)
	}
}

// ValidateTransition says whether the map may change from old to new in one
// step. A step leaves every shard its majority: one replica more or one fewer, or
// a new one in the place of one on the same node while the others are a majority.
// Slots change hands only by the end of one slot move: a shard's slots are state in
// its own log, and the map must not claim anything that the logs have not agreed on.
// A shard comes empty, for such a move, and never goes. A step to the next era is a recovery, with rules of its own.
func ValidateTransition(old, new Map) error {
	if err := new.Validate(); err != nil {
		return err
	}
	if Era(new.Epoch) != Era(old.Epoch) {
		return validateRecovery(old, new)
	}
	var f faults
	if needs := new.needs(); needs > new.Level {
		return &LevelError{Has: new.Level, Needs: needs}
	}
	if new.Level < old.Level {
		f.add("feature level %d becomes %d: it never falls", old.Level, new.Level)
	}
	if new.ClusterID != old.ClusterID {
		f.add("cluster id %q becomes %q: it never changes", old.ClusterID, new.ClusterID)
	}
	if new.Epoch != old.Epoch+1 {
		f.add("epoch %d follows %d: must be one more", new.Epoch, old.Epoch)
	}
	for _, n := range new.Nodes {
		if was, ok := old.Node(n.ID); ok && was.Instance != n.Instance && keepsReplica(old, new, n.ID) {
			f.add("node %q: instance %q becomes %q: another directory is another node", n.ID, was.Instance, n.Instance)
		}
	}
	slotSteps(old, new, &f)
	for _, was := range old.Shards {
		now, ok := new.Shard(was.ID)
		if !ok {
			f.add("shard %d is gone", was.ID)
			continue
		}
		if why := foundingStep(was, now); why != "" {
			f.add("shard %d: %s", was.ID, why)
		}
		added, removed := 0, 0
		var gone, came Replica
		for _, r := range now.Replicas {
			if slices.Contains(was.Replicas, r) {
				continue
			}
			added++
			came = r
			if epoch, _ := placedAt(r); epoch != new.Epoch {
				// An id of an earlier epoch may have voted already.
				f.add("shard %d: new replica %q: its id must end in the new epoch, %d", was.ID, r.ID, new.Epoch)
			}
		}
		for _, r := range was.Replicas {
			if !slices.Contains(now.Replicas, r) {
				removed++
				gone = r
			}
		}
		if why := moveStep(was, now); why != "" {
			f.add("shard %d: %s", was.ID, why)
		}
		if added == 1 && removed == 1 && came.Node == gone.Node {
			if now.Founding == came.ID {
				continue // nothing was acknowledged in a group that is still to be founded
			}
			if rest, most := len(was.Replicas)-1, Majority(len(was.Replicas)); rest < most {
				f.add("shard %d: without replica %q there are %d of %d replicas, and %d are a majority: it cannot be replaced", was.ID, gone.ID, rest, len(was.Replicas), most)
			}
			continue
		}
		if added+removed > 1 {
			f.add("shard %d: %d replicas added and %d removed: one change a step", was.ID, added, removed)
		}
	}
	return f.err()
}

// moveStep says what is wrong with how a shard's move changes in a step. It begins with its new replica, and ends with one of its two.
func moveStep(was, now Shard) string {
	had := func(id ReplicaID) bool { return was.place(id) >= 0 }
	has := func(id ReplicaID) bool { return now.place(id) >= 0 }
	a, b := was.Move, now.Move
	switch {
	case a == nil && b == nil:
	case a == nil:
		if !had(b.From) || had(b.To) {
			return fmt.Sprintf("a move of %s to %s begins: the one must be there before, and the other come with it", b.From, b.To)
		}
	case b == nil:
		if has(a.From) == has(a.To) {
			return fmt.Sprintf("the move of %s to %s ends: one of them must go with it", a.From, a.To)
		}
	case a.From != b.From && has(a.From), a.To != b.To && has(a.To):
		return fmt.Sprintf("the move of %s to %s becomes one of %s to %s", a.From, a.To, b.From, b.To)
	}
	return ""
}

// keepsReplica says whether a node has a replica in both maps.
func keepsReplica(old, new Map, node NodeID) bool {
	for _, was := range old.Shards {
		r, ok := was.On(node)
		if now, _ := new.Shard(was.ID); ok && slices.Contains(now.Replicas, r) {
			return true
		}
	}
	return false
}

// replicaID names the replica placed on node at an epoch.
func replicaID(node NodeID, epoch uint64) ReplicaID {
	return node + "." + strconv.FormatUint(epoch, 10)
}

// placedAt is the inverse of replicaID; ok is false for any other spelling.
func placedAt(r Replica) (epoch uint64, ok bool) {
	digits, ok := strings.CutPrefix(r.ID, r.Node+".")
	if !ok {
		return 0, false
	}
	epoch, err := strconv.ParseUint(digits, 10, 64)
	return epoch, err == nil && replicaID(r.Node, epoch) == r.ID
}

// Removed says whether a replica was in the shard and was taken out. A map older
// than the replica cannot know, and says no.
func (m Map) Removed(shard ShardID, id ReplicaID) bool {
	s, ok := m.Shard(shard)
	if !ok || s.place(id) >= 0 {
		return false
	}
	node := id[:max(strings.LastIndexByte(id, '.'), 0)]
	epoch, ok := placedAt(Replica{ID: id, Node: node})
	return ok && epoch <= m.Epoch
}

func truncate(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
