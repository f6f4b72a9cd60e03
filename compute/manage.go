package compute

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// What is done with jobs beside running them: deleted, submitted again, explained.

// Delete forgets a job that has ended, and with it its result. Its id may be used again. CodeRefused: it has not
// ended; CodeNotFound: there is no such job.
func (j *Jobs) Delete(ctx context.Context, id string) error {
	tried := false
	return j.retry(ctx, func(ctx context.Context) error {
		rec, rev, err := j.ledger.Get(ctx, id)
		switch {
		case tried && transport.CodeOf(err) == transport.CodeNotFound:
			return nil // the try whose answer was lost has done it
		case err != nil:
			return err
		case !rec.State.Finished():
			return transport.Errorf(transport.CodeRefused, "job %s has not ended, it is %s: cancel it first", id, rec.State)
		}
		tried = true
		return j.ledger.Delete(ctx, id, rev)
	})
}

// Retry submits the spec of a job that has ended once more, as job newID (made up if it is empty), and returns the new id.
// With a newID it is idempotent, as Submit is. CodeRefused: the job has not ended; else Submit's errors.
func (j *Jobs) Retry(ctx context.Context, id, newID string) (string, error) {
	rec, _, err := j.ledger.Get(ctx, id)
	switch {
	case err != nil:
		return "", err
	case !rec.State.Finished():
		return "", transport.Errorf(transport.CodeRefused, "job %s has not ended, it is %s: wait for it, or cancel it first", id, rec.State)
	case newID == id:
		return "", &job.SpecError{Field: "id", Reason: "job " + id + " is to be tried again under another id"}
	}
	rec.Spec.ID = newID
	return j.Submit(ctx, rec.Spec)
}

// ShardFacts is what is known of a shard without asking it, for Explain.
type ShardFacts struct {
	Shard    uint32
	Slots    string
	Records  int64
	Bytes    int64
	Replicas []ReplicaState
}

// Explain tells what a spec would do on shards that own slots, by what is known of these. It refuses what Submit would.
func (j *Jobs) Explain(spec job.Spec, shards []ShardFacts) (job.Explanation, error) {
	spec = spec.WithDefaults()
	if err := j.check(spec); err != nil {
		return job.Explanation{}, err
	}
	return explain(spec, shards), nil
}

func explain(spec job.Spec, shards []ShardFacts) job.Explanation {
	e := job.Explanation{Spec: spec, Shards: []job.ExplainedShard{}, Notes: []string{}}
	nodes := map[string]bool{}
	for _, f := range shards {
		s := job.ExplainedShard{Shard: f.Shard, Slots: f.Slots, Records: f.Records, Bytes: f.Bytes, Nodes: []string{}}
		for _, r := range f.Replicas {
			switch {
			case !r.Alive:
			case r.Leader:
				s.Master = r.Node
				s.Nodes = append([]string{r.Node}, s.Nodes...)
			default:
				s.Nodes = append(s.Nodes, r.Node)
			}
		}
		if s.Master == "" {
			e.Notes = append(e.Notes, fmt.Sprintf("shard %d has no leader that is known here: a job waits for one until its time-out, and how much the shard holds is not known", f.Shard))
		}
		s.Tasks = wantedTasks(f.Records, f.Bytes, len(s.Nodes), spec)
		for _, n := range s.Nodes {
			nodes[n] = true
		}
		e.Records, e.Bytes, e.Tasks = e.Records+s.Records, e.Bytes+s.Bytes, e.Tasks+s.Tasks
		e.Shards = append(e.Shards, s)
	}
	e.Nodes = append([]string{}, slices.Sorted(maps.Keys(nodes))...)
	if spec.Prefix != "" {
		e.Notes = append(e.Notes, "records and bytes are of all keys: those that begin with the prefix are among them, and the others are not read")
	}
	return e
}
