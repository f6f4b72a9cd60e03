package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// What an administrator asks of one shard on one node, over HTTP.

// replicaDigest is what a replica holds, in a form that two replicas can be compared by.
type replicaDigest struct {
	Shard   sharding.ShardID `json:"shard"`
	Replica string           `json:"replica"`
	// Index is that of the last entry in the state, and Hash the state's: replicas at one index have one hash.
	Index uint64 `json:"index"`
	Hash  string `json:"hash"`
	// Slots are those that the shard serves by this state: what it owns, but for what is frozen for another.
	Slots string `json:"slots"`
	// LogFirst to LogLast are the entries in its log. LogHash is of those from LogFrom to LogTo, if they were asked for.
	LogFirst uint64 `json:"log_first"`
	LogLast  uint64 `json:"log_last"`
	LogHash  string `json:"log_hash,omitempty"`
}

// replica is GET /v1/shards/{id}/replica?from=&to=: it reads all of the state that the asked node has of that shard, and
// checks every row on the way, and so many entries of its log. One at a time: it costs as much as a scan.
func (h *httpServer) replica(w http.ResponseWriter, r *http.Request) {
	st, err := h.shard(r)
	if err != nil {
		h.fail(w, err)
		return
	}
	from, err1 := indexParameter(r, "from")
	to, err2 := indexParameter(r, "to")
	if err := errors.Join(err1, err2); err != nil || from > to {
		if err == nil {
			err = fmt.Errorf("from %d to %d: want the first index and the last", from, to)
		}
		httpError(w, http.StatusBadRequest, err)
		return
	}
	select {
	case h.digesting <- struct{}{}:
		defer func() { <-h.digesting }()
	case <-r.Context().Done():
		return
	}
	d, err := digest(st, from, to)
	if err != nil {
		h.fail(w, err)
		return
	}
	writeJSON(w, http.StatusOK, d)
}

func digest(st *store.Store, from, to uint64) (d replicaDigest, err error) {
	v, err := st.View()
	if err != nil {
		return d, err
	}
	defer v.Close()
	d = replicaDigest{Shard: sharding.ShardID(st.Shard()), Replica: st.Status().Replica, Index: v.Index(), Hash: fmt.Sprintf("%016x", v.Hash()), Slots: slotText(ownedSlots(v))}
	has, err := st.LogRange()
	if err != nil {
		return d, err
	}
	d.LogFirst, d.LogLast = has.First, has.Last
	if to == 0 {
		return d, nil
	}
	if from < has.First || to > has.Last {
		return d, transport.Errorf(transport.CodeNotFound, "the log has the entries %d to %d", has.First, has.Last)
	}
	sum, err := st.LogDigest(from, to)
	d.LogHash = fmt.Sprintf("%016x", sum)
	return d, err
}

// moveLeader is POST /v1/shards/{id}/leader?node=ID, at the shard's leader: it hands the leadership to that node. Where
// leaders are balanced, it may go back after some seconds.
func (h *httpServer) moveLeader(w http.ResponseWriter, r *http.Request) {
	st, err := h.shard(r)
	if err != nil {
		h.fail(w, err)
		return
	}
	to := r.URL.Query().Get("node")
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	for _, m := range st.Status().Members {
		if m.Node != to {
			continue
		}
		err := st.TransferLeadership(ctx, m.Replica)
		h.audit(r, "move leader", []string{r.PathValue("id"), to}, err)
		if err != nil {
			h.fail(w, err)
			return
		}
		writeJSON(w, http.StatusOK, map[string]string{"leader": to})
		return
	}
	h.fail(w, transport.Errorf(transport.CodeNotFound, "node %q has no replica of shard %d", to, st.Shard()))
}

// shard is the one in the path, as far as this node has a replica of it.
func (h *httpServer) shard(r *http.Request) (*store.Store, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 32)
	if err != nil {
		return nil, transport.Errorf(transport.CodeBadRequest, "shard %q: want a number", r.PathValue("id"))
	}
	if st := h.n.host.get(sharding.ShardID(id)); st != nil {
		return st, nil
	}
	return nil, transport.Errorf(transport.CodeNotFound, "node %s has no replica of shard %d", h.n.cfg.ID, id)
}

func indexParameter(r *http.Request, name string) (uint64, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parameter %q: want the index of an entry", name)
	}
	return n, nil
}
