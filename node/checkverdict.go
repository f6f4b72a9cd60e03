package node

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/abacusdb/abacus/sharding"
)

// What a comparison of a shard's replicas comes to, and when the next one is due: decisions only.

// checkReport is a comparison of the replicas of a shard: under way, or what came of it. The last one is kept in a record of the shard.
type checkReport struct {
	// Check names it; empty: there never was one.
	Check string           `json:"check"`
	Shard sharding.ShardID `json:"shard"`
	// State is waiting, running or done. Waiting: for another of the same leader, or for the pin.
	State string `json:"state,omitempty"`
	// Index is the one at which all were looked at.
	Index       uint64 `json:"index,omitempty"`
	BeganMillis int64  `json:"began_ms,omitempty"`
	TookMillis  int64  `json:"took_ms,omitempty"`
	// Total is about how many keys there are to each replica.
	Total int64 `json:"records_total,omitempty"`
	// Result is equal, mismatch or not compared; Error says why there is none.
	Result   string         `json:"result,omitempty"`
	Error    string         `json:"error,omitempty"`
	Replicas []replicaCheck `json:"replicas"`
}

// The states of a check.
const (
	checkWaiting = "waiting"
	checkRunning = "running"
	checkDone    = "done"
)

// replicaCheck is one of them.
type replicaCheck struct {
	Replica sharding.ReplicaID `json:"replica"`
	Node    sharding.NodeID    `json:"node"`
	// Hash is of its state, empty if it was not compared; Why says why.
	Hash    string `json:"hash,omitempty"`
	Records int64  `json:"records"`
	Result  string `json:"result,omitempty"`
	Why     string `json:"why,omitempty"`
	// Alarm is of the last comparison that found it different, if none has found it equal since.
	Alarm *replicaAlarm `json:"alarm,omitempty"`
}

// replicaAlarm is what was found.
type replicaAlarm struct {
	Result   string `json:"result"` // differs or disagrees
	Index    uint64 `json:"index"`
	AtMillis int64  `json:"at_ms"`
	Hash     string `json:"hash"`
}

// What is said of a replica, and of all of them together.
const (
	checkEqual       = "equal"
	checkDiffers     = "differs"      // from a majority of those that were compared
	checkDisagrees   = "disagrees"    // with some of them, and there is no majority
	checkAlone       = "alone"        // it was looked at, and no other
	checkNotCompared = "not compared" // nor looked at to the end
	checkMismatch    = "mismatch"
)

// compareReplicas says what the hashes mean: those that more than half of the compared ones do not share are named, all of them if no half is the larger one. It takes no
// side beyond that. before are those of the comparison before: an alarm stays until its replica is found equal.
func compareReplicas(rows, before []replicaCheck, index uint64, at time.Time) (result string, judged []replicaCheck) {
	judged = slices.Clone(rows)
	votes := map[string]int{}
	compared := 0
	for _, r := range judged {
		if r.Hash != "" {
			votes[r.Hash]++
			compared++
		}
	}
	right := ""
	for hash, n := range votes {
		if 2*n > compared {
			right = hash
		}
	}
	for i := range judged {
		r := &judged[i]
		switch {
		case r.Hash == "":
			r.Result = checkNotCompared
		case compared == 1:
			r.Result = checkAlone
		case right == "":
			r.Result = checkDisagrees
		case r.Hash != right:
			r.Result = checkDiffers
		default:
			r.Result = checkEqual
		}
		switch r.Result {
		case checkDisagrees, checkDiffers:
			r.Alarm = &replicaAlarm{Result: r.Result, Index: index, AtMillis: at.UnixMilli(), Hash: r.Hash}
		case checkAlone, checkNotCompared:
			if j := slices.IndexFunc(before, func(b replicaCheck) bool { return b.Replica == r.Replica }); j >= 0 {
				r.Alarm = before[j].Alarm
			}
		}
	}
	slices.SortFunc(judged, func(a, b replicaCheck) int { return cmp.Compare(a.Node, b.Node) })
	switch {
	case len(votes) > 1:
		return checkMismatch, judged
	case compared > 1:
		return checkEqual, judged
	}
	return checkNotCompared, judged
}

// hashesOf are the hashes that were found, each once, in order.
func hashesOf(rows []replicaCheck) []string {
	found := map[string]bool{}
	for _, r := range rows {
		if r.Hash != "" {
			found[r.Hash] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// nextCheck is when a shard's replicas are to be compared next. The shards of a cluster are spread over the interval by their numbers, always at the
// same times of day, so that it does not matter who leads, nor when he began. last is zero if they never were; it may be in the future, for clocks are set.
func nextCheck(last, now time.Time, every time.Duration, shard sharding.ShardID, shards int) time.Time {
	if last.IsZero() || last.After(now) {
		last = now
	}
	phase := every / time.Duration(max(shards, 1)) * time.Duration(int(shard)%max(shards, 1))
	next := last.Truncate(every).Add(phase)
	for !next.After(last) {
		next = next.Add(every)
	}
	return next
}
