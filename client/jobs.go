package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/abacusdb/abacus/compute/job"
)

// SubmitJob hands a job to the cluster and returns its id. Without an id in the
// spec one is made up here, so that a submit whose answer was lost can be sent
// again: the same id with the same spec is the same job. A job sees every
// write that was acknowledged before it was submitted.
func (c *Client) SubmitJob(ctx context.Context, spec job.Spec) (id string, err error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return "", fmt.Errorf("%w: %w", ErrBadJob, err)
	}
	if spec.ID == "" {
		spec.ID = newJobID()
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return "", fmt.Errorf("encode job: %w", err)
	}
	r := c.DoMulti(ctx, []Cmd{{Args: [][]byte{[]byte("JOB.SUBMIT"), text}, Repeatable: true}})[0]
	if r.Err != nil {
		return spec.ID, r.Err
	}
	b, err := wantBytes("JOB.SUBMIT", r.Reply)
	return string(b), err
}

// newJobID makes an id of 100 random bits.
func newJobID() string { return "j-" + strings.ToLower(rand.Text())[:20] }

// RetryJob submits the spec of a job that has ended once more, as job newID, and returns that; empty: an id is made up.
// ErrNotFound: the cluster does not know the job id. It is refused if the job has not ended. A lost answer is asked for again,
// as with SubmitJob; what is still not known then is ErrUncertain, returned with the new id.
func (c *Client) RetryJob(ctx context.Context, id, newID string) (string, error) {
	if newID == "" {
		newID = newJobID()
	}
	cmd := Command("JOB.RETRY", id, newID)
	cmd.Repeatable = true // the new id is one job however often it is asked for
	if r := c.DoMulti(ctx, []Cmd{cmd})[0]; r.Err != nil {
		return newID, r.Err
	}
	return newID, nil
}

// DeleteJob forgets a job that has ended, and its result with it. It is refused if the job has not ended. ErrNotFound: there is
// no such job; after an answer that was lost that is the success of an earlier attempt.
func (c *Client) DeleteJob(ctx context.Context, id string) error {
	cmd := Command("JOB.DELETE", id)
	cmd.Repeatable = true // to delete twice is to delete once
	return c.DoMulti(ctx, []Cmd{cmd})[0].Err
}

// ExplainJob returns what a job would do: which shards and nodes would read about how much. Nothing is run.
func (c *Client) ExplainJob(ctx context.Context, spec job.Spec) (job.Explanation, error) {
	var e job.Explanation
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return e, fmt.Errorf("%w: %w", ErrBadJob, err)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return e, fmt.Errorf("encode job: %w", err)
	}
	r, err := c.Do(ctx, "JOB.EXPLAIN", string(text))
	if err != nil {
		return e, err
	}
	if text, err = wantBytes("JOB.EXPLAIN", r); err != nil {
		return e, err
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return e, fmt.Errorf("parse the explanation: %w", err)
	}
	return e, nil
}

// JobEvents tells what happens to a job, from its beginning, until it has ended, and returns its record then. each is called on this
// goroutine, for every event once and in order; events that were dropped before they could be told are an event that says how
// many. When each returns an error, that is returned. When ctx ends the job goes on.
func (c *Client) JobEvents(ctx context.Context, id string, each func(job.Event) error) (job.Record, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	told := 0
	tell := func(rec job.Record) error {
		if missed := rec.EventsOmitted - told; missed > 0 {
			e := job.Event{AtMillis: rec.SubmittedMillis, Text: fmt.Sprintf("(%d events are not kept)", missed)}
			if len(rec.Events) > 0 {
				e.AtMillis = rec.Events[0].AtMillis
			}
			told = rec.EventsOmitted
			if err := each(e); err != nil {
				return err
			}
		}
		for _, e := range rec.Events[min(told-rec.EventsOmitted, len(rec.Events)):] {
			told++
			if err := each(e); err != nil {
				return err
			}
		}
		return nil
	}
	var failed error
	rec, err := c.JobStatus(ctx, id)
	if err == nil && !rec.State.Finished() {
		if failed = tell(rec); failed != nil {
			return rec, failed
		}
		rec, err = c.JobWait(ctx, id, func(r job.Record) {
			if failed == nil {
				if failed = tell(r); failed != nil {
					cancel(failed)
				}
			}
		})
	}
	switch {
	case failed != nil:
		return rec, failed
	case err != nil:
		return rec, err
	}
	return rec, tell(rec)
}

// JobStatus returns a job's record as it stands. ErrNotFound: the cluster does
// not know the job, or has forgotten it.
func (c *Client) JobStatus(ctx context.Context, id string) (job.Record, error) {
	return c.jobRecord(c.DoMulti(ctx, []Cmd{Command("JOB.STATUS", id)})[0])
}

// JobWait waits for a job's end and returns its record, whatever the end was:
// Record.Err tells. progress, if not nil, is called with the record about once
// a second meanwhile. When ctx ends the job goes on; the last known record is
// returned with the error.
func (c *Client) JobWait(ctx context.Context, id string, progress func(job.Record)) (job.Record, error) {
	// The node holds the answer back until the job ends, and with it all later
	// answers on the connection: so this takes a connection of its own.
	lane := int(c.spread.Add(1))
	defer c.dropPrivate(lane)
	// The answer must come within the attempt, and before the node counts as dead.
	wait := itoa(min(time.Second, c.cfg.Timeout/2, c.cfg.Stall/2).Milliseconds())
	var rec job.Record
	for {
		slice, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, ErrTimeout)
		got, err := c.jobRecord(c.run(slice, []Cmd{Command("JOB.RESULT", id, "WAIT", string(wait))}, lane)[0])
		cancel()
		if err != nil {
			return rec, err
		}
		rec = got
		if rec.State.Finished() {
			return rec, nil
		}
		if progress != nil {
			progress(rec)
		}
		// A node that does not hold the answer back must not be asked in a tight loop.
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return rec, fmt.Errorf("wait for job %s: %w", id, context.Cause(ctx))
		}
	}
}

// JobResult waits for a job's end and returns its result, or the reason why it
// has none (job.FailedError, job.ErrCancelled).
func (c *Client) JobResult(ctx context.Context, id string) (job.Value, error) {
	rec, err := c.JobWait(ctx, id, nil)
	if err != nil {
		return job.Value{}, err
	}
	if err := rec.Err(); err != nil {
		return job.Value{}, err
	}
	if rec.Result == nil {
		return job.Value{}, fmt.Errorf("job %s succeeded without a result", id)
	}
	return *rec.Result, nil
}

// CancelJob ends a job. To cancel one that is cancelled changes nothing; one that has ended otherwise is refused, as a *ServerError.
func (c *Client) CancelJob(ctx context.Context, id string) error {
	cmd := Command("JOB.CANCEL", id)
	cmd.Repeatable = true // to cancel twice is to cancel once
	return c.DoMulti(ctx, []Cmd{cmd})[0].Err
}

// Jobs lists the jobs that the cluster remembers.
func (c *Client) Jobs(ctx context.Context) ([]job.Record, error) {
	r, err := c.Do(ctx, "JOB.LIST")
	if err != nil {
		return nil, err
	}
	text, err := wantBytes("JOB.LIST", r)
	if err != nil {
		return nil, err
	}
	var recs []job.Record
	if err := json.Unmarshal(text, &recs); err != nil {
		return nil, fmt.Errorf("parse the list of jobs: %w", err)
	}
	return recs, nil
}

func (c *Client) jobRecord(r Result) (job.Record, error) {
	if r.Err != nil {
		return job.Record{}, r.Err
	}
	text, err := wantBytes("job", r.Reply)
	if err != nil {
		return job.Record{}, err
	}
	var rec job.Record
	if err := json.Unmarshal(text, &rec); err != nil {
		return job.Record{}, fmt.Errorf("parse the job's record: %w", err)
	}
	return rec, nil
}
