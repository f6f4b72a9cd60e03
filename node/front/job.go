package front

import (
	"context"
	"errors"
	"strings"
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
		cmd("job.explain", 2, flagReadOnly, "Returns what the job of a JSON spec would do as JSON, and does not run it.", (*conn).jobExplain),
		cmd("job.retry", -2, flagWrite, "Queues the spec of a job that has ended once more, as a job of the id given or of one made up, and returns the id.", (*conn).jobRetry),
		cmd("job.delete", 2, flagWrite, "Forgets a job that has ended, with its result.", (*conn).jobDelete),
		cmd("job.help", 1, flagLoading|flagStale, "Lists the JOB commands.", (*conn).jobHelp),
		cmd("abacus.status", 1, flagReadOnly, "Returns the state of nodes, shards and replicas as JSON.", (*conn).abacusStatus),
		cmd("abacus.admin", -2, flagAdmin, "Changes nodes and moves replicas: node cordon|uncordon|drain|remove|dead-after, shard move|cancel|pause|resume, rebalance plan|once|always|stop, recover plan|run, upgrade.", (*conn).abacusAdmin),
	}
}

func (c *conn) jobSubmit(ctx context.Context, args [][]byte) error {
	spec, err := job.ParseSpec(args[1])
	if err != nil { // a wrong one need not travel
		return err
	}
	if err := c.jobDenied("job.submit", spec.Prefix); err != nil {
		return err
	}
	id, err := c.srv.backend.SubmitJob(ctx, args[1])
	return c.submitted(id, err)
}

// submitted answers with the id of a job that was queued, or says that it was not, or may have been.
func (c *conn) submitted(id string, err error) error {
	if err != nil {
		if e := (*transport.Error)(nil); errors.As(err, &e) && !transport.Certain(e) {
			return refusal(errUnknownFate + err.Error()) // whole: it names the job, to be looked for
		}
		return jobError(err)
	}
	c.w.BulkString(id)
	return nil
}

func (c *conn) jobExplain(ctx context.Context, args [][]byte) error {
	spec, err := job.ParseSpec(args[1])
	if err != nil {
		return err
	}
	if err := c.jobDenied("job.explain", spec.Prefix); err != nil {
		return err
	}
	doc, err := c.srv.backend.ExplainJob(ctx, args[1])
	return c.jsonReply(doc, err)
}

// jobRetry is JOB.RETRY id [newid]. With newid it may be repeated when the answer is lost.
func (c *conn) jobRetry(ctx context.Context, args [][]byte) error {
	if len(args) > 3 {
		return errSyntax
	}
	id, err := c.jobID(args[1])
	if err != nil {
		return err
	}
	newID := ""
	if len(args) == 3 {
		newID = string(args[2])
		if err := job.CheckID(newID); err != nil {
			return err
		}
	}
	if err := c.mayTouch(ctx, "job.retry", id); err != nil {
		return err
	}
	newID, err = c.srv.backend.RetryJob(ctx, id, newID)
	return c.submitted(newID, err)
}

func (c *conn) jobDelete(ctx context.Context, args [][]byte) error {
	return c.touchJob(ctx, args[1], "job.delete", "job delete", c.srv.backend.DeleteJob)
}

var jobHelpLines = []string{
	"JOB commands; a spec is JSON, such as {\"prefix\":\"num/\",\"as\":\"int\",\"reduce\":\"sum\"}:",
	"JOB.SUBMIT spec", "    Queues a job and returns its id. With an id in the spec it may be repeated.",
	"JOB.EXPLAIN spec", "    What it would do, as JSON: shards, nodes, tasks, and about how much it reads.",
	"JOB.STATUS id", "    The job's record as JSON, with its tasks and events.",
	"JOB.RESULT id [WAIT ms]", "    The record when it has ended, or as it is after ms milliseconds.",
	"JOB.LIST", "    The records of all jobs, without tasks and events.",
	"JOB.CANCEL id", "    Ends a job without a result.",
	"JOB.RETRY id [newid]", "    Queues the spec of a job that has ended once more.",
	"JOB.DELETE id", "    Forgets a job that has ended.",
}

func (c *conn) jobHelp(context.Context, [][]byte) error {
	c.w.Array(len(jobHelpLines))
	for _, line := range jobHelpLines {
		c.w.SimpleString(line)
	}
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
	return c.jobReply("job.status", record, err)
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
	return c.jobReply("job.result", record, err)
}

func (c *conn) jobCancel(ctx context.Context, args [][]byte) error {
	return c.touchJob(ctx, args[1], "job.cancel", "job cancel", c.srv.backend.CancelJob)
}

// touchJob does to a job what its user may do; that is audited.
func (c *conn) touchJob(ctx context.Context, arg []byte, command, verb string, touch func(context.Context, string) error) error {
	id, err := c.jobID(arg)
	if err != nil {
		return err
	}
	if err := c.mayTouch(ctx, command, id); err != nil {
		return err
	}
	err = touch(ctx, id)
	c.audit(verb, []string{id}, err)
	if err != nil {
		return jobError(err)
	}
	c.w.SimpleString("OK")
	return nil
}

func (c *conn) jobList(ctx context.Context, _ [][]byte) error {
	list, err := c.srv.backend.ListJobs(ctx)
	if err == nil {
		list, err = VisibleJobs(c.auth.grant, list)
	}
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
	if looks := len(words) > 1 && strings.EqualFold(words[0]+" "+words[1], "shard checked"); !looks || err != nil { // said again and again while one waits
		c.audit("admin", words, err)
	}
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
