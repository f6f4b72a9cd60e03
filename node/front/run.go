package front

import (
	"context"
	"time"

	"github.com/abacusdb/abacus/transport/resp"
)

// run executes a pipeline and writes its replies in order. Runs of commands on
// keys become windows, executed as one; any other command runs by itself,
// between windows.
func (c *conn) run(cmds []resp.Command) {
	c.srv.stats.pipelines.Add(1)
	c.lastActive.Store(time.Now().UnixNano())
	c.lookUpUsers()
	c.plan.reset()
	c.pace.begin(c.srv.cfg.CommandTimeout)
	for i := range cmds {
		args := cmds[i].Args
		spec, err := c.srv.table.resolve(args)
		if err == "" {
			err = c.permit(spec, args)
		}
		c.srv.stats.commands.Add(1)
		if err == "" && (spec.run != nil || i == len(cmds)-1) {
			c.lastSpec.Store(spec)
		}
		switch {
		case c.queue(spec, args, err): // between MULTI and EXEC
		case err != "":
			c.plan.refuse(err)
		case spec.rounds != nil && len(args)-1 > windowValues:
			c.flushPlan()
			c.alone(spec, func(ctx context.Context) error { return spec.rounds(c, ctx, args) })
		case spec.plan != nil:
			if !c.plan.add(spec, args) {
				c.flushPlan()
				c.plan.add(spec, args)
			}
		default:
			c.flushPlan()
			c.alone(spec, func(ctx context.Context) error { return spec.run(c, ctx, args) })
			if c.quit { // nothing after QUIT is executed
				return
			}
		}
	}
	c.flushPlan()
}

// pace is a pipeline's time. The deadline is put off as long as it is met; once
// it was not, the rest gets no more, or a pipeline to a sick cluster would take
// the time-out of every command in it, one after the other.
type pace struct {
	timeout  time.Duration
	deadline time.Time
	flushed  time.Time
	missed   bool // the deadline
	waited   bool // for a leader, in vain
}

// replyDelay is how long replies may be held back for those that follow.
const replyDelay = 100 * time.Millisecond

func (t *pace) begin(timeout time.Duration) {
	now := time.Now()
	*t = pace{timeout: timeout, deadline: now.Add(timeout), flushed: now}
}

// flushLate sends replies that are known if they have waited.
func (c *conn) flushLate() {
	if now := time.Now(); now.Sub(c.pace.flushed) > replyDelay {
		c.pace.flushed = now
		c.w.Flush() // its error comes back with the last flush
	}
}

// term is the context of a connection's windows. One serves all that begin within an eighth of the time-out, of which the
// first has all of it: one for each was 4 % of what reads cost a node.
type term struct {
	ctx    context.Context
	cancel context.CancelFunc
	ends   time.Time
}

// until returns a context for as long as t says, or a little less.
func (m *term) until(parent context.Context, t *pace) context.Context {
	if m.ctx == nil || m.ctx.Err() != nil || t.deadline.Sub(m.ends) > t.timeout/8 {
		m.end()
		m.ends = t.deadline
		m.ctx, m.cancel = context.WithDeadline(parent, m.ends)
	}
	return m.ctx
}

// end lets go of the context. It may be called at any time between windows.
func (m *term) end() {
	if m.cancel != nil {
		m.cancel()
	}
	*m = term{}
}

// done puts off the deadline, if it was met so far.
func (t *pace) done(missed bool) {
	if t.missed = t.missed || missed; !t.missed {
		t.deadline = time.Now().Add(t.timeout)
	}
}

// alone executes a command that is not part of a window.
func (c *conn) alone(spec *spec, execute func(context.Context) error) {
	c.flushLate()
	ctx, cancel := context.WithDeadline(c.srv.ctx, c.pace.deadline)
	defer cancel()
	err := execute(ctx)
	if err != nil {
		c.fail(err, spec.has(flagWrite))
	}
	c.pace.done(err != nil && ctx.Err() != nil) // JOB.RESULT waits as long as it was told to
}

// flushPlan executes the window and writes its replies.
func (c *conn) flushPlan() {
	p := &c.plan
	if len(p.requests) == 0 {
		return
	}
	c.flushLate()
	began := time.Now()
	held := p.execute(c.term.until(c.srv.ctx, &c.pace))
	p.timed(time.Since(began))
	for i := range p.requests {
		p.reply(&p.requests[i])
	}
	p.reset()
	c.srv.replies.Release(held)
}
