package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
)

// clusterStatus is GET /v1/status and ABACUS.STATUS: the cluster as this node
// sees it, from its own replicas and the peers' last words. It asks nobody, so
// it answers however sick the cluster is.
type clusterStatus struct {
	ClusterID      string          `json:"cluster_id"`
	Epoch          uint64          `json:"epoch"`
	Node           sharding.NodeID `json:"node"`
	ReplicasWanted int             `json:"replicas_wanted"`
	// Level is the cluster's feature level.
	Level int `json:"level"`
	// Balance is when replicas are moved for evenness alone: once (it is being done), always, or only when somebody says so.
	Balance sharding.Balance `json:"balance,omitempty"`
	// DeadAfterMillis is after how long a silent node is taken for dead; 0: never.
	DeadAfterMillis int64       `json:"dead_after_ms,omitempty"`
	Nodes           []nodeView  `json:"nodes"`
	Shards          []shardView `json:"shards"`
	// SlotMoves are slots that are to become another shard's, in the order in which they were asked for.
	SlotMoves []slotMoveView `json:"slot_moves,omitempty"`
	Healthy   bool           `json:"healthy"`
	Problems  []string       `json:"problems"`
	// Notes are worth knowing and nothing is sick.
	Notes []string `json:"notes"`
}

type nodeView struct {
	ID           sharding.NodeID `json:"id"`
	Addrs        sharding.Addrs  `json:"addrs"`
	Alive        bool            `json:"alive"`
	Version      string          `json:"version"`
	UptimeMillis int64           `json:"uptime_ms"`
	Leads        int             `json:"leads"`
	Replicas     int             `json:"replicas"`
	// DiskFree is in bytes; DiskFull: writes that add data are refused there.
	DiskFree uint64 `json:"disk_free"`
	DiskFull bool   `json:"disk_full,omitempty"`
	// DiskSize is the file system's; DiskLow: the node hands its leaderships over. StateBytes is what the states of its replicas take.
	DiskSize   uint64 `json:"disk_size"`
	DiskLow    bool   `json:"disk_low,omitempty"`
	StateBytes int64  `json:"state_bytes"`
	// Load is what the node does for clients, nil if it did not say; HeardMillis is how long ago it said something, -1 if it never has.
	Load        *load `json:"load,omitempty"`
	HeardMillis int64 `json:"heard_ms"`
	// Jobs is what the node does for jobs, nil if it did not say.
	Jobs     *jobLoad `json:"jobs,omitempty"`
	Stopping bool     `json:"stopping,omitempty"`

	Zone      string          `json:"zone,omitempty"`
	Cordoned  bool            `json:"cordoned,omitempty"`
	Draining  bool            `json:"draining,omitempty"`
	Dead      bool            `json:"dead,omitempty"`
	Successor sharding.NodeID `json:"successor,omitempty"`
}

type shardView struct {
	ID      sharding.ShardID `json:"id"`
	Slots   string           `json:"slots"`
	Leader  sharding.NodeID  `json:"leader"`
	Term    uint64           `json:"term"`
	Records int64            `json:"records"`
	// Bytes is how much of the leader's state file is in use: about what a copy takes. It grows with checkpoints.
	Bytes    int64         `json:"bytes"`
	Replicas []replicaView `json:"replicas"`
	Healthy  bool          `json:"healthy"`
	Problem  string        `json:"problem,omitempty"`
	Move     *moveView     `json:"move,omitempty"`
}

// moveView is a replica on its way.
type moveView struct {
	From   sharding.ReplicaID `json:"from"`
	To     sharding.ReplicaID `json:"to"`
	Paused bool               `json:"paused,omitempty"`
	// State says what it is at, or waits for.
	State string `json:"state"`
	// CopySent of CopySize bytes of the state were sent, while they are.
	CopySent int64 `json:"copy_sent,omitempty"`
	CopySize int64 `json:"copy_size,omitempty"`
}

type replicaView struct {
	ID    sharding.ReplicaID `json:"id"`
	Node  sharding.NodeID    `json:"node"`
	State string             `json:"state"` // leader, follower, learner, missing or down
	Voter bool               `json:"voter"`
	// Applied and LastIndex are log indexes; Lag is how many entries the replica
	// has still to apply.
	Applied   uint64 `json:"applied"`
	LastIndex uint64 `json:"last_index"`
	Lag       uint64 `json:"lag"`
}

// laggards are replicas this many entries behind.
const laggards = 1000

// StatusJSON is the cluster's state as JSON.
func (n *Node) StatusJSON(context.Context) ([]byte, error) {
	return json.Marshal(n.clusterStatus())
}

func (n *Node) clusterStatus() clusterStatus {
	m := n.Router().Map()
	said := map[sharding.NodeID]peerStatus{n.cfg.ID: n.status()}
	alive := map[sharding.NodeID]bool{n.cfg.ID: true}
	for _, nd := range m.Nodes {
		if nd.ID != n.cfg.ID {
			said[nd.ID], alive[nd.ID] = n.peers.get(nd.ID)
		}
	}
	s := clusterStatus{ClusterID: m.ClusterID, Epoch: m.Epoch, Node: n.cfg.ID, ReplicasWanted: m.ReplicasWanted, Level: m.Level, Balance: m.Balance, DeadAfterMillis: m.DeadAfterMillis, Problems: []string{}, Notes: []string{},
		Nodes: []nodeView{}, Shards: []shardView{}, SlotMoves: viewSlotMoves(m, said)}
	for _, nd := range m.Nodes {
		v := nodeView{ID: nd.ID, Addrs: nd.Addrs, Alive: alive[nd.ID], Version: said[nd.ID].Version, UptimeMillis: said[nd.ID].UptimeMillis,
			DiskFree: said[nd.ID].DiskFree, DiskFull: said[nd.ID].DiskFull,
			Zone: nd.Zone, Cordoned: nd.Cordoned, Draining: nd.Draining, Dead: nd.Dead, Successor: nd.Successor}
		v.DiskSize, v.DiskLow, v.Stopping, v.HeardMillis = said[nd.ID].DiskSize, said[nd.ID].DiskLow, said[nd.ID].Stopping, n.heardMillis(nd.ID)
		if v.Alive {
			v.Load, v.Jobs = said[nd.ID].Load, said[nd.ID].Jobs
			for _, r := range said[nd.ID].Replicas {
				v.Replicas++
				v.StateBytes += r.File
				if r.Leads {
					v.Leads++
				}
			}
			if v.DiskFull {
				s.Problems = append(s.Problems, fmt.Sprintf("node %s: %s", nd.ID, diskProblem(v.DiskFree)))
			}
		} else {
			s.Problems = append(s.Problems, fmt.Sprintf("node %s does not answer", nd.ID))
		}
		s.Nodes = append(s.Nodes, v)
	}
	for _, sh := range m.Shards {
		v := viewShard(sh, min(m.ReplicasWanted, len(m.Nodes)), said, alive)
		if v.Problem != "" {
			s.Problems = append(s.Problems, fmt.Sprintf("shard %d: %s", sh.ID, v.Problem))
		}
		s.Shards = append(s.Shards, v)
	}
	s.Healthy = len(s.Problems) == 0
	if note := thinNote(min(m.ReplicasWanted, len(m.Nodes)), m.ReplicasWanted); note != "" {
		s.Notes = append(s.Notes, note)
	}
	s.Notes = append(s.Notes, n.drainNotes(m)...)
	s.Notes = append(s.Notes, n.deadNotes(m)...)
	for _, nd := range m.Nodes {
		if said[nd.ID].NoAuth && alive[nd.ID] {
			s.Notes = append(s.Notes, fmt.Sprintf("node %s lets everybody in who reaches it, for it runs with --no-auth: start it without once an admin has a token", nd.ID))
		}
	}
	if m.Level < sharding.Level {
		s.Notes = append(s.Notes, fmt.Sprintf("the cluster is at feature level %d and may go back to an older version; once all its nodes run this one, raise it to %d with abacus upgrade", m.Level, sharding.Level))
	}
	return s
}

func (n *Node) heardMillis(id sharding.NodeID) int64 {
	switch ago, ever := n.peers.heard(id); {
	case id == n.cfg.ID:
		return 0
	case ever:
		return ago.Milliseconds()
	}
	return -1
}

// drainNotes say how far nodes that drain are, and which shards they cannot get rid of.
func (n *Node) drainNotes(m sharding.Map) (notes []string) {
	if !slices.ContainsFunc(m.Nodes, func(nd sharding.Node) bool { return nd.Draining || nd.Dead }) {
		return nil
	}
	planned := map[sharding.ShardID]bool{}
	for _, w := range sharding.PlanDrains(m, n.mayTake) {
		planned[w.Shard] = true
	}
	for _, nd := range m.Nodes {
		is := "drains"
		switch {
		case nd.Draining:
		case nd.Dead:
			is = "is taken for dead"
		default:
			continue
		}
		left, stuck := 0, []string{}
		for _, sh := range m.Shards {
			if _, has := sh.On(nd.ID); !has {
				continue
			}
			left++
			if sh.Move == nil && !planned[sh.ID] {
				stuck = append(stuck, strconv.FormatUint(uint64(sh.ID), 10))
			}
		}
		switch {
		case left == 0 && !nd.Draining:
			notes = append(notes, fmt.Sprintf("node %s is taken for dead, and its replicas are elsewhere: start it again, or abacus node remove %s", nd.ID, nd.ID))
		case left == 0 && n.letGoOf(m, nd.ID) != nil:
			notes = append(notes, fmt.Sprintf("node %s drains: its groups let go of the last replicas", nd.ID))
		case left == 0:
			notes = append(notes, fmt.Sprintf("node %s is drained, and may be stopped or removed", nd.ID))
		case len(stuck) == 0:
			notes = append(notes, fmt.Sprintf("node %s %s: %d replicas are left on it", nd.ID, is, left))
		default:
			notes = append(notes, fmt.Sprintf("node %s %s: %d replicas are left on it, and no node may take those of shards %s: start another node with --join, or uncordon one",
				nd.ID, is, left, strings.Join(stuck, ", ")))
		}
	}
	return notes
}

// thinNote says what fewer replicas than wanted mean, where no more are possible
// yet: the cluster is as well as its nodes allow, and its owner should know how
// well that is.
func thinNote(have, wanted int) string {
	const more = "; start more nodes with abacusd --join"
	switch {
	case have == 1 && wanted == 1:
		return "1 replica of each shard, as the cluster was made: a lost disk loses data"
	case have == 1:
		return fmt.Sprintf("1 of %d replicas: a lost disk loses data"+more, wanted)
	case have == 2 && wanted > 2:
		return fmt.Sprintf("2 of %d replicas: a lost disk loses nothing, but with one node down nothing is answered"+more, wanted)
	case have < wanted:
		return fmt.Sprintf("%d of %d replicas"+more, have, wanted)
	}
	return ""
}

// viewShard puts together what the nodes said of one shard.
func viewShard(sh sharding.Shard, want int, said map[sharding.NodeID]peerStatus, alive map[sharding.NodeID]bool) shardView {
	v := shardView{ID: sh.ID, Slots: slotText(sh.Slots), Replicas: []replicaView{}}
	var lead replicaStatus
	reports := map[sharding.ReplicaID]replicaStatus{}
	for _, r := range sh.Replicas {
		if !alive[r.Node] {
			continue
		}
		for _, st := range said[r.Node].Replicas {
			if st.Replica != r.ID || st.Shard != sh.ID {
				continue
			}
			reports[r.ID] = st
			if st.Leads && st.Term > lead.Term {
				lead, v.Leader, v.Term, v.Records, v.Bytes = st, r.Node, st.Term, st.Records, st.File
			}
		}
	}
	members := lead.Members
	if v.Leader == "" {
		members = lastMembers(sh, said)
	}
	// Nothing is asked yet of a shard that a split has made: it is not sick because it grows.
	fresh := len(sh.Slots) == 0 && sh.ID != metaShard
	var problems []string
	voters := 0
	for _, r := range sh.Replicas {
		rv := replicaView{ID: r.ID, Node: r.Node, State: "missing"}
		i := slices.IndexFunc(members, func(m store.Member) bool { return m.Replica == r.ID })
		st, reported := reports[r.ID]
		rv.Voter = i >= 0 && members[i].Voter || v.Leader == "" && st.Voter
		switch {
		case !alive[r.Node]:
			rv.State = "down"
		case reported && r.Node == v.Leader:
			rv.State = "leader"
		case reported && rv.Voter:
			rv.State = "follower"
		case reported:
			rv.State = "learner"
		}
		arriving := sh.Move != nil && sh.Move.To == r.ID && alive[r.Node] // it is not counted on yet
		rv.Applied, rv.LastIndex = st.Applied, st.Last
		if reported && lead.Commit > st.Applied {
			rv.Lag = lead.Commit - st.Applied
		}
		if rv.Voter && alive[r.Node] {
			voters++
		}
		i = slices.IndexFunc(said[r.Node].Repairs, func(o repairStatus) bool { return o.Shard == sh.ID && o.Replica == r.ID })
		if rv.State == "missing" && i >= 0 {
			problems = append(problems, said[r.Node].Repairs[i].Text)
		} else if arriving || fresh && alive[r.Node] {
			// What it lacks is what the move is about.
		} else if rv.State == "down" || rv.State == "missing" {
			problems = append(problems, fmt.Sprintf("replica %s on node %s is %s", r.ID, r.Node, rv.State))
		} else if rv.Lag > laggards {
			problems = append(problems, fmt.Sprintf("replica %s on node %s is %d entries behind", r.ID, r.Node, rv.Lag))
		}
		v.Replicas = append(v.Replicas, rv)
	}
	slices.SortFunc(v.Replicas, func(a, b replicaView) int { return cmp.Compare(a.Node, b.Node) })
	problems = append(problems, differing(sh, lead.Alarms)...)
	switch {
	case sh.Founding != "" && len(problems) == 0:
	case sh.Founding != "":
		problems = append([]string{"being founded on node " + sh.Replicas[0].Node + ": it owns no slots before"}, problems...)
	case v.Leader == "":
		problems = append([]string{"no leader: neither reads nor writes, until a majority of its replicas is back (if it is lost for good: abacus recover --help)"}, problems...)
	case voters < want && len(problems) == 0 && !fresh:
		problems = append(problems, fmt.Sprintf("%d of %d voters, growing", voters, want))
	}
	v.Move = viewMove(sh, v.Leader, members)
	v.Problem = strings.Join(problems, "; ")
	v.Healthy = v.Problem == ""
	return v
}

// viewMove is a shard's move as its leader's word shows it, nil if there is none.
func viewMove(sh sharding.Shard, leader sharding.NodeID, members []store.Member) *moveView {
	if sh.Move == nil {
		return nil
	}
	v := &moveView{From: sh.Move.From, To: sh.Move.To, Paused: sh.Move.Paused}
	for _, m := range members {
		if m.Replica == v.To {
			v.CopySent, v.CopySize = m.CopySent, m.CopySize
		}
	}
	on, _ := sh.On(leader)
	switch step := sharding.Next(*sh.Move, observed(on.ID, members)); {
	case leader == "":
		v.State = "the shard has no leader"
	case step.Kind == sharding.StepHandOver:
		v.State = "the leadership is handed over"
	case step.Kind == sharding.StepFinish:
		v.State = v.From + " is taken out"
	default:
		v.State = step.Why
	}
	return v
}

// lastMembers are the members by the last word of who was in the newest term, dead
// though it may be.
func lastMembers(sh sharding.Shard, said map[sharding.NodeID]peerStatus) []store.Member {
	var last replicaStatus
	for _, r := range sh.Replicas {
		for _, st := range said[r.Node].Replicas {
			if st.Shard == sh.ID && st.Members != nil && st.Term >= last.Term {
				last = st
			}
		}
	}
	return last.Members
}

func slotText(ranges []sharding.SlotRange) string {
	var b strings.Builder
	for i, r := range ranges {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d-%d", r.From, r.To)
	}
	return b.String()
}

// uptime of this process.
func (n *Node) uptime() time.Duration { return time.Since(n.started) }
