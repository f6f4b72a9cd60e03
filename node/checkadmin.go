package node

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// What people and peers ask about comparisons of replicas: to begin one, what came of the last, which replicas differ.

// checkVerbs: check begins, checked looks. A check takes as long as to read the largest replica, so nobody waits for it here.
var checkVerbs = []verb{
	{words: []string{"shard", "check"}, args: "SHARD", least: 1, most: 1, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		if has := n.Router().Map().Level; has < sharding.LevelPins {
			return nil, transport.Errorf(transport.CodeRefused, "%v", &sharding.LevelError{Has: has, Needs: sharding.LevelPins})
		}
		return n.askCheck(ctx, a[0], true)
	}},
	{words: []string{"shard", "checked"}, args: "SHARD", least: 1, most: 1, run: func(n *Node, ctx context.Context, a []string) (any, error) {
		return n.askCheck(ctx, a[0], false)
	}},
}

// checkRequest is MethodChecksum: of a replica, a piece of its hash; of a shard's leader, to begin a check or tell of the newest.
type checkRequest struct {
	Piece *hashRequest      `json:"piece,omitempty"`
	Begin *sharding.ShardID `json:"begin,omitempty"`
	Show  *sharding.ShardID `json:"show,omitempty"`
}

// askCheck asks a shard's leader for the newest check, or for a new one. To ask again does no harm: while one is under way, that is the one.
func (n *Node) askCheck(ctx context.Context, number string, begin bool) (r checkReport, err error) {
	id, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return r, transport.Errorf(transport.CodeBadRequest, "shard %q: want a number", number)
	}
	shard := sharding.ShardID(id)
	if _, ok := n.Router().Map().Shard(shard); !ok {
		return r, transport.Errorf(transport.CodeNotFound, "there is no shard %d", shard)
	}
	q := checkRequest{Show: &shard}
	if begin {
		q = checkRequest{Begin: &shard}
	}
	err = n.atLeader(ctx, shard, true, func(ctx context.Context, leader sharding.NodeID, st *store.Store) (err error) {
		if leader == n.cfg.ID {
			r, err = n.checkHere(shard, begin)
			return err
		}
		r = checkReport{}
		return n.callJSON(ctx, leader, transport.MethodChecksum, q, &r)
	})
	return r, err
}

func (n *Node) checkHere(shard sharding.ShardID, begin bool) (checkReport, error) {
	st, err := n.hosted(shard)
	if err != nil {
		return checkReport{}, err
	}
	ask := n.checks.show
	if begin {
		ask = n.checks.begin
	}
	if r, ok := ask(shard); ok {
		return r, nil
	}
	leader, _ := st.Leader()
	if leader == n.cfg.ID {
		return checkReport{}, transport.Errorf(transport.CodeUnavailable, "node %s has just begun to lead shard %d", leader, shard)
	}
	return checkReport{}, transport.Errorf(transport.CodeNotLeader, "%s", leader)
}

func (n *Node) handleChecksum(ctx context.Context, _ string, raw []byte) ([]byte, error) {
	var q checkRequest
	if err := decodeWire(raw, &q); err != nil {
		return nil, transport.Errorf(transport.CodeBadRequest, "checksum: %v", err)
	}
	var answer any
	var err error
	switch {
	case q.Piece != nil:
		answer, err = n.hashPiece(ctx, *q.Piece)
	case q.Begin != nil:
		answer, err = n.checkHere(*q.Begin, true)
	case q.Show != nil:
		answer, err = n.checkHere(*q.Show, false)
	default:
		err = transport.Errorf(transport.CodeBadRequest, "checksum: nothing is asked that this version knows")
	}
	if err != nil {
		return nil, err
	}
	return encodeWire(answer)
}

// alarmStatus is what a leader tells its peers of a replica that differs.
type alarmStatus struct {
	Replica sharding.ReplicaID `json:"replica"`
	Index   uint64             `json:"index"`
	Result  string             `json:"result"`
}

// alarms are the replicas that differ by a report.
func (r checkReport) alarms() (list []alarmStatus) {
	for _, row := range r.Replicas {
		if row.Alarm != nil {
			list = append(list, alarmStatus{row.Replica, row.Alarm.Index, row.Alarm.Result})
		}
	}
	return list
}

// differing are sentences about the alarms of replicas that the shard still has.
func differing(sh sharding.Shard, alarms []alarmStatus) (problems []string) {
	for _, a := range alarms {
		for _, r := range sh.Replicas {
			if r.ID != a.Replica {
				continue
			}
			what := "does not hold what the others hold"
			if a.Result == checkDisagrees {
				what = "holds something else than another, and no majority says which is right"
			}
			problems = append(problems, fmt.Sprintf("replica %s on node %s %s (log index %d): see abacus shard check %d, and the runbook for replicas that differ", r.ID, r.Node, what, a.Index, sh.ID))
		}
	}
	return problems
}

// differsHere are sentences about replicas on this node that differ, as their leaders say.
func (n *Node) differsHere() (problems []string) {
	for _, sh := range n.Router().Map().Shards {
		mine, here := sh.On(n.cfg.ID)
		if !here {
			continue
		}
		sh.Replicas = []sharding.Replica{mine}
		leader := n.Leader(sh.ID)
		said, _ := n.peers.get(leader)
		for _, r := range said.Replicas {
			if r.Shard == sh.ID && leader != n.cfg.ID {
				problems = append(problems, differing(sh, r.Alarms)...)
			}
		}
		if leader == n.cfg.ID {
			problems = append(problems, differing(sh, n.checks.last(sh.ID).alarms())...)
		}
	}
	return problems
}

// check is POST and GET /v1/shards/{id}/check, on any node: to begin one, and to see how far it is.
func (h *httpServer) check(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), announceTimeout)
	defer cancel()
	words := []string{"shard", "checked", r.PathValue("id")}
	if r.Method == http.MethodPost {
		words[1] = "check"
	}
	answer, err := h.n.Admin(ctx, words)
	if r.Method == http.MethodPost {
		h.audit(r, "admin", words, err)
	}
	h.raw(w)(answer, err)
}
