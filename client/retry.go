package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/abacusdb/abacus/fsm/planted"
)

// call is a command on its way through the retry loop.
type call struct {
	cmd  Cmd
	plan plan
	out  *Result

	moved    string // where a MOVED answer sent it; for one attempt
	avoid    string // address that failed it last
	attempts int
	last     error // what the last attempt met
	told     error // what the one before met, if our own end cut off the last
	unsure   bool  // an earlier attempt of it may have been executed

	num        number // of a write
	renumbered int    // how often its session had expired
}

var errEmptyCommand = errors.New("empty command")

const (
	backoffMin = 5 * time.Millisecond
	backoffMax = 250 * time.Millisecond
)

// run is the retry loop, the only one. Each round sends what is pending,
// grouped by node, and sorts the answers: done, to be sent again, given up.
// private names a lane of its own for wide commands, 0 is the common one.
func (c *Client) run(ctx context.Context, cmds []Cmd, private int) []Result {
	results := make([]Result, len(cmds))
	for from := 0; from < len(cmds); {
		to := piece(cmds, from)
		c.runPiece(ctx, cmds[from:to], results[from:to], private)
		from = to
	}
	return results
}

// runPiece is run for as many commands as can be numbered at once.
func (c *Client) runPiece(ctx context.Context, cmds []Cmd, results []Result, private int) {
	calls := make([]call, len(cmds))
	pending := make([]*call, 0, len(cmds))
	for i := range cmds {
		if len(cmds[i].Args) == 0 { // has no answer, so those of the others would be given to the wrong ones
			results[i].Err = errEmptyCommand
			continue
		}
		calls[i] = call{cmd: cmds[i], plan: planOf(cmds[i]), out: &results[i]}
		if calls[i].plan.shared {
			results[i].Err = fmt.Errorf("%s is about one connection, and those of a client are shared", cmds[i].Name())
			continue
		}
		pending = append(pending, &calls[i])
	}
	if c.routes.Load() == nil && !c.cfg.NoRouting {
		c.refresh(ctx) // without routes the seeds forward
	}
	for round := 0; len(pending) > 0; round++ {
		if ctx.Err() != nil || c.life.Err() != nil {
			break
		}
		if round > 0 && !c.pause(ctx, round, pending) {
			break
		}
		if err := c.number(ctx, pending); err != nil {
			numbered := pending[:0]
			for _, p := range pending {
				if p.plan.weight == 0 || p.num.s != nil {
					numbered = append(numbered, p)
					continue
				}
				if p.met(ctx, unnumbered(err)); errors.Is(err, ErrAuth) || errors.Is(err, ErrNoPermission) {
					p.out.Err = p.refused(p.last)
				} else {
					p.giveUp(ctx, c)
				}
			}
			pending = numbered
		}
		c.round(ctx, pending, private)
		again := pending[:0]
		for _, p := range pending {
			if p.settle(c) {
				again = append(again, p)
			} else {
				c.numbers.give(p.num)
			}
		}
		pending = again
		if len(pending) > 0 && c.allRefuse() {
			break
		}
	}
	for _, p := range pending {
		p.giveUp(ctx, c)
		c.numbers.give(p.num)
	}
}

// pause waits before another round. Commands that all have been told where to
// go need no pause the first times.
func (c *Client) pause(ctx context.Context, round int, pending []*call) bool {
	if round <= 3 {
		told := true
		for _, p := range pending {
			told = told && p.moved != ""
		}
		if told {
			return true
		}
	}
	d := min(backoffMin<<min(round, 10), backoffMax)
	d = d/2 + rand.N(d/2+1) // so that callers who failed together do not come back together
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	case <-c.life.Done():
		return false
	}
}

// lane is where a group of commands goes in one round.
type lane struct {
	addr string
	wide bool
}

// target chooses the address of a call for this round.
func (c *Client) target(p *call) lane {
	if p.moved != "" {
		l := lane{addr: p.moved}
		p.moved = ""
		return l
	}
	if p.plan.keyed && !c.cfg.NoRouting && !(c.cfg.Stale && p.plan.read) {
		if addr := c.routes.Load().leader(p.plan.slot); addr != "" && addr != p.avoid {
			return lane{addr: addr}
		}
	}
	// A client address: the node there forwards to whoever leads.
	return lane{addr: c.seeds.current(), wide: p.plan.wide}
}

// shipment is a group of calls that goes to one node as one flight.
type shipment struct {
	lane  lane
	calls []*call
	f     *flight
	conn  *conn
	err   error
}

// maxShipment bounds the commands of one flight: what a node takes as one
// pipeline anyhow.
const maxShipment = 4096

// round sends every pending call once and notes in call.last what became of it.
func (c *Client) round(ctx context.Context, pending []*call, private int) {
	var ships []*shipment
	if len(pending) == 1 {
		ships = []*shipment{{lane: c.target(pending[0]), calls: pending}}
	} else {
		open := map[lane]*shipment{}
		for _, p := range pending {
			l := c.target(p)
			s := open[l]
			if s == nil || len(s.calls) == maxShipment {
				s = &shipment{lane: l}
				open[l] = s
				ships = append(ships, s)
			}
			s.calls = append(s.calls, p)
		}
	}
	for _, s := range ships {
		c.ship(ctx, s, private)
	}
	for _, s := range ships {
		c.collect(ctx, s)
	}
}

// ship starts a shipment. Shipments to one lane are started one after the
// other, so they keep their order.
func (c *Client) ship(ctx context.Context, s *shipment, private int) {
	l, err := c.link(s.lane.addr, s.lane.wide, private)
	if err != nil {
		s.err = err
		return
	}
	if s.conn, s.err = l.get(ctx); s.err != nil {
		return
	}
	cmds := make([]Cmd, len(s.calls))
	for i, p := range s.calls {
		if cmds[i] = p.cmd; p.num.s != nil {
			cmds[i] = c.numbers.wire(p.num, p.cmd)
		}
		if p.unsure && !isRead(p.cmd) {
			c.stats.repeated.Add(1)
		}
	}
	s.f = newFlight(cmds)
	s.err = s.conn.start(ctx, s.f)
}

// collect waits for a shipment's answers.
func (c *Client) collect(ctx context.Context, s *shipment) {
	if s.err == nil {
		s.err = s.conn.wait(ctx, s.f)
	}
	lost := false
	for i, p := range s.calls {
		p.attempts++
		p.met(ctx, s.err)
		p.avoid = ""
		if s.err != nil {
			p.avoid = s.lane.addr
			continue
		}
		reply := s.f.replies[i]
		if text, ok := replyError(reply); ok {
			server := parseServerError(text)
			if p.met(ctx, server); server.lost() {
				p.avoid, lost = s.lane.addr, true
			}
			continue
		}
		p.out.Reply = reply
	}
	if s.err != nil || lost {
		c.seeds.bad(s.lane.addr)
		c.refreshSoon()
	}
}

// met notes what became of an attempt; nil: it was answered.
func (p *call) met(ctx context.Context, err error) {
	if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) { // there is no attempt after this one
		p.told = p.last
	}
	p.last = err
}

// settle looks at what the attempt brought. It returns true if the call is to
// be sent again.
func (p *call) settle(c *Client) bool {
	if p.last == nil {
		return false
	}
	var (
		server *ServerError
		link   *linkError
	)
	switch {
	case errors.As(p.last, &link) && errors.Is(link.err, ErrClosed) && !link.sent:
		kind := ErrClosed
		if p.unsure && !isRead(p.cmd) { // this attempt was not sent; an earlier one was
			kind = ErrUncertain
		}
		p.out.Err = p.failure(kind)
		return false

	case errors.Is(p.last, ErrNotClientPort) && p.attempts >= len(c.cfg.Addrs):
		p.giveUp(context.Background(), c)
		return false

	case errors.As(p.last, &link) && errors.Is(link.err, ErrAuth): // while connecting: another node has the same users
		p.out.Err = p.refused(link.err)
		return false

	case errors.As(p.last, &link):
		return !link.sent || p.repeat(c)

	case errors.As(p.last, &server):
		switch {
		case server.Code == "MOVED":
			if f := strings.Fields(server.Message); len(f) == 2 && p.plan.keyed {
				p.moved = f[1]
			}
			c.refreshSoon()
			return true
		case server.refused():
			c.refreshSoon()
			return true
		case errors.Is(server, ErrAuth), errors.Is(server, ErrNoPermission):
			p.out.Err = p.refused(server)
			return false
		case server.Code == "UNCERTAIN":
			return p.repeat(c)
		case server.Code == "DISKFULL" && p.unsure && !isRead(p.cmd): // it speaks of this attempt only
			p.out.Err = p.failure(ErrUncertain)
			return false
		case server.Code == "SESSIONEXPIRED" && p.num.s != nil:
			c.numbers.drop(p.num.s)
			if p.unsure && !p.plan.repeatable { // the answer to an earlier attempt is lost for ever
				p.out.Err = p.failure(ErrUncertain)
				return false
			}
			if p.renumbered++; p.renumbered <= maxRenumbered {
				p.renumber(c)
				return true
			}
		}
	}
	p.out.Err = p.last
	return false
}

// refused is the error of a call that the cluster does not let this user make. It speaks of the last attempt only.
func (p *call) refused(err error) error {
	if p.unsure && !isRead(p.cmd) {
		return p.failure(ErrUncertain)
	}
	return err
}

// repeat is for a call whose attempt may have been executed: whether to send it again.
func (p *call) repeat(c *Client) bool {
	if !p.plan.repeatable && p.num.s == nil {
		p.out.Err = p.failure(ErrUncertain)
		return false
	}
	p.unsure = true
	if planted.Is(planted.RetryUnknown) {
		p.renumber(c)
	}
	return true
}

// renumber lets go of a call's number; it gets another one before it is sent again.
func (p *call) renumber(c *Client) {
	c.numbers.give(p.num)
	p.num = number{}
}

// giveUp ends a call for which there is no more time. It is uncertain if any
// attempt was, unless it only read.
func (p *call) giveUp(ctx context.Context, c *Client) {
	kind := ErrUnavailable
	switch {
	case p.unsure && !isRead(p.cmd):
		kind = ErrUncertain
	case c.life.Err() != nil:
		kind = ErrClosed
	}
	err := p.failure(kind)
	if ctx.Err() != nil {
		end := context.Cause(ctx)
		if errors.Is(end, context.DeadlineExceeded) {
			end = ErrTimeout
		}
		if p.last == nil {
			err.Cause = end
		} else {
			err.Cause = &endError{end: end, last: p.last, told: p.told}
		}
	}
	p.out.Err = err
}

func (p *call) failure(kind error) *CommandError {
	return &CommandError{Command: p.cmd.Name(), Kind: kind, Cause: p.last, Attempts: p.attempts}
}

func isRead(c Cmd) bool {
	if len(c.Args) == 0 {
		return false
	}
	s, ok := lookup(c.Args[0])
	return ok && s.read
}

// endError is why there were no more attempts, and what the last one met. If that is no more than the end itself, told is what the one before did,
// or nil.
type endError struct{ end, last, told error }

func (e *endError) Error() string {
	text := e.end.Error() + "; the last attempt met: " + e.last.Error()
	if e.told != nil {
		text += "; the one before: " + e.told.Error()
	}
	return text
}

func (e *endError) Unwrap() []error {
	if e.told == nil {
		return []error{e.end, e.last}
	}
	return []error{e.end, e.last, e.told}
}

// ask sends one command to one address, once: for the refresh, which has its
// own order of addresses.
func (c *Client) ask(ctx context.Context, addr string, cmd Cmd, timeout time.Duration) (Reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errStalled)
	defer cancel()
	var none Reply
	l, err := c.link(addr, true, 0)
	if err != nil {
		return none, err
	}
	conn, err := l.get(ctx)
	if err != nil {
		return none, err
	}
	f := newFlight([]Cmd{cmd})
	if err := conn.start(ctx, f); err != nil {
		return none, err
	}
	if err := conn.wait(ctx, f); err != nil {
		return none, err
	}
	if text, ok := replyError(f.replies[0]); ok {
		return none, parseServerError(text)
	}
	return f.replies[0], nil
}
