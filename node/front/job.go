package front

import (
	"context"
	"errors"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// maxJobWait bounds JOB.RESULT WAIT: who wants to wait longer asks again.
const maxJobWait = 10 * time.Minute

func jobCommands() []*spec {
	cmd := func(name string, arity int, f flags, summary string, run func(*conn, context.Context, [][]byte) error) *spec {
		return &spec{name: name, arity: arity, flags: f, group: "jobs", since: "7.2.0", summary: summary, run: run}
	}
	return []*spec{
		cmd("job.submit", 2, flagWrite, "Queues the job of a JSON spec and returns its id.", (*conn).jobSubmit),
		cmd("job.status", 2, flagReadOnly, "Returns a job's record as JSON.", (*conn).jobStatus),
		cmd("job.result", -2, flagReadOnly|flagBlocking, "Returns a job's record as JSON when it has ended, or as it is after WAIT milliseconds.", (*conn).jobResult),
		cmd("job.cancel", 2, flagWrite, "Cancels a job.", (*conn).jobCancel),
		cmd("job.list", 1, flagReadOnly, "Returns the records of all jobs as a JSON array.", (*conn).jobList),
		cmd("abacus.status", 1, flagReadOnly, "Returns the state of nodes, shards and replicas as JSON.", (*conn).abacusStatus),
		cmd("abacus.admin", -2, flagAdmin, "Changes nodes and moves replicas: node cordon|uncordon|drain|remove, shard move|cancel|pause|resume, rebalance plan|once|always|stop, upgrade.", (*conn).abacusAdmin),
	}
}

func (c *conn) jobSubmit(ctx context.Context, args [][]byte) error {
	if _, err := job.ParseSpec(args[1]); err != nil { // a wrong one need not travel
		return err
	}
	id, err := c.srv.backend.SubmitJob(ctx, args[1])
	if err != nil {
		if e := (*transport.Error)(nil); errors.As(err, &e) && !transport.Certain(e) {
			return refusal(errUnknownFate + err.Error()) // whole: it names the job, to be looked for
		}
		return jobError(err)
	}
	c.w.BulkString(id)
	return nil
}

// jobError gives refusals of the job queue their own prefixes: what a client
// library would retry at once is not what somebody should do with a full queue.
func jobError(err error) error {
	text := err.Error()
	if e, ok := err.(*transport.Error); ok && e.Detail != "" { // else it wraps one, and says more
		text = e.Detail
	}
	switch transport.CodeOf(err) {
	case transport.CodeBusy:
		return refusal("BUSY " + text)
	case transport.CodeBadRequest:
		return refusal("BADJOB " + text)
	case transport.CodeNotFound:
		return refusal("NOTFOUND " + text)
	case transport.CodeRefused, transport.CodeConflict:
		return refusal("ERR " + text)
	}
	return err
}

func (c *conn) jobID(arg []byte) (string, error) {
	if err := job.CheckID(string(arg)); err != nil {
		return "", refusal("NOTFOUND no job can have the id " + quoted(arg))
	}
	return string(arg), nil
}

func (c *conn) jobStatus(ctx context.Context, args [][]byte) error {
	id, err := c.jobID(args[1])
	if err != nil {
		return err
	}
	record, err := c.srv.backend.JobStatus(ctx, id)
	return c.jsonReply(record, err)
}

// jobResult is JOB.RESULT id [WAIT ms].
func (c *conn) jobResult(_ context.Context, args [][]byte) error {
	id, err := c.jobID(args[1])
	if err != nil {
		return err
	}
	wait := time.Duration(0)
	switch {
	case len(args) == 2:
	case len(args) == 4 && string(lower(nil, args[2])) == "wait":
		ms, ok := parseInt(args[3])
		if !ok || ms < 0 {
			return errNotInteger
		}
		wait = time.Duration(min(ms, maxJobWait.Milliseconds())) * time.Millisecond
	default:
		return errSyntax
	}
	ctx, cancel := context.WithTimeout(c.srv.ctx, wait+c.srv.cfg.CommandTimeout)
	defer cancel()
	stop := context.AfterFunc(c.srv.stopping, cancel) // a node that stops does not wait for jobs
	defer stop()
	record, err := c.srv.backend.JobResult(ctx, id, wait)
	return c.jsonReply(record, err)
}

func (c *conn) jobCancel(ctx context.Context, args [][]byte) error {
	id, err := c.jobID(args[1])
	if err != nil {
		return err
	}
	if err := c.srv.backend.CancelJob(ctx, id); err != nil {
		return jobError(err)
	}
	c.w.SimpleString("OK")
	return nil
}

func (c *conn) jobList(ctx context.Context, _ [][]byte) error {
	list, err := c.srv.backend.ListJobs(ctx)
	return c.jsonReply(list, err)
}

func (c *conn) abacusStatus(ctx context.Context, _ [][]byte) error {
	status, err := c.srv.backend.StatusJSON(ctx)
	return c.jsonReply(status, err)
}

// abacusAdmin is ABACUS.ADMIN word [word ...].
func (c *conn) abacusAdmin(ctx context.Context, args [][]byte) error {
	words := make([]string, 0, len(args)-1)
	for _, a := range args[1:] {
		words = append(words, string(a))
	}
	answer, err := c.srv.backend.Admin(ctx, words)
	if err != nil {
		return adminError(err)
	}
	c.w.Bulk(answer)
	return nil
}

// adminError lets client libraries wait for what only has to come first, and gives up on what somebody has to change.
func adminError(err error) error {
	var e *transport.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case transport.CodeConflict:
		return refusal("TRYAGAIN nothing was done: " + e.Detail)
	case transport.CodeNotFound:
		return refusal("NOTFOUND " + e.Detail)
	case transport.CodeBadRequest, transport.CodeRefused:
		return refusal("ERR " + e.Detail)
	}
	return err
}

func (c *conn) jsonReply(doc []byte, err error) error {
	if err != nil {
		return jobError(err)
	}
	c.w.Bulk(doc)
	return nil
}
