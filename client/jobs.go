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

// CancelJob ends a job. To cancel one that has ended changes nothing.
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
