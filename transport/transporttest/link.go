package transporttest

import (
	"bytes"
	"context"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/transport"
)

// link carries the requests of one node to one peer on one lane, in order.
type link struct {
	origin *node
	queue  chan *call
}

// run delivers until the sending node closes, which fails what is queued.
func (l *link) run() {
	for {
		select {
		case <-l.origin.ctx.Done():
			return
		case c := <-l.queue:
			if wait(l.origin.ctx, time.Until(c.at)) {
				l.origin.net.deliver(c)
			}
		}
	}
}

// wait sleeps; it returns false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// deliver hands a request to its node.
func (n *Network) deliver(c *call) {
	if c.ctx.Err() != nil {
		return // a request whose caller gave up is never dispatched
	}
	if n.swallow(c.origin.id, c.to) {
		c.finishLater(c.to)
		return
	}
	nd := n.node(c.to)
	if nd == nil {
		c.finish(nil, transport.Errorf(transport.CodeUnavailable, "no node %s", c.to))
		return
	}
	nd.dispatch(c)
}

// dispatch runs the handler of a request that arrived.
func (nd *node) dispatch(c *call) {
	var replied atomic.Bool
	reply := func(resp []byte, err error) {
		if replied.CompareAndSwap(false, true) {
			nd.answer(c, resp, err)
		}
	}
	caller := c.origin.id
	nd.mu.Lock()
	h := nd.handlers[c.method]
	switch h.(type) {
	case transport.Handler, transport.InOrderHandler:
	default:
		h = nil
	}
	switch {
	case nd.closed:
		nd.mu.Unlock()
		c.finish(nil, transport.Errorf(transport.CodeUnavailable, "no node %s", c.to))
		return
	case !c.deadline.After(time.Now()):
		nd.mu.Unlock()
		reply(nil, transport.Errorf(transport.CodeTimeout, "the deadline passed before %s began", nd.id))
		return
	case h == nil:
		nd.mu.Unlock()
		reply(nil, transport.Errorf(transport.CodeNoMethod, "method %d", c.method))
		return
	case nd.running[caller] >= maxRunning:
		nd.mu.Unlock()
		reply(nil, transport.Errorf(transport.CodeBusy, "%s serves %d requests of %s", nd.id, maxRunning, caller))
		return
	}
	nd.serving[c] = struct{}{}
	nd.running[caller]++
	nd.wg.Add(1)
	nd.mu.Unlock()

	switch h := h.(type) {
	case transport.InOrderHandler:
		defer nd.wg.Done()
		h(c.from, c.req, reply)
	case transport.Handler:
		go func() {
			defer nd.wg.Done()
			ctx, cancel := context.WithDeadline(nd.ctx, c.deadline)
			defer cancel()
			// The caller's giving up is a message too: it does not cross a cut link.
			stop := context.AfterFunc(c.ctx, func() {
				if !nd.net.lost(caller, nd.id) {
					cancel()
				}
			})
			defer stop()
			reply(h(ctx, c.from, c.req))
		}()
	}
}

// answer sends an answer back over the other direction of the link.
func (nd *node) answer(c *call, resp []byte, err error) {
	caller := c.origin.id
	nd.mu.Lock()
	if _, ok := nd.serving[c]; ok {
		delete(nd.serving, c)
		if nd.running[caller]--; nd.running[caller] == 0 {
			delete(nd.running, caller)
		}
	}
	closed := nd.closed
	nd.mu.Unlock()
	if closed {
		nd.breakOff(c)
		return
	}
	if e := transport.AsError(err); e != nil {
		resp, err = nil, e
	} else if len(resp) > c.limit {
		// Not CodeTooLarge: that would say that the request had no effect.
		resp, err = nil, transport.Errorf(transport.CodeUnknown, "answer of %d bytes, limit %d", len(resp), c.limit)
	} else {
		resp = bytes.Clone(resp)
	}
	arrive := func() {
		if !nd.net.swallow(nd.id, caller) {
			c.finish(resp, err)
			return
		}
		c.finishLater(nd.id)
	}
	if d := nd.net.delay(nd.id, caller); d > 0 {
		time.AfterFunc(d, arrive)
		return
	}
	arrive()
}
