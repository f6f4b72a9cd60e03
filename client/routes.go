package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/abacusdb/abacus/sharding"
)

// routes says which cluster address leads a slot. It is immutable and swapped
// whole; it is a hint, and a node that is asked in error answers MOVED.
type routes struct {
	addrs []string               // [0] is "": nobody known to lead
	slots [sharding.Slots]uint16 // index into addrs
}

func (r *routes) leader(slot sharding.Slot) string {
	if r == nil {
		return ""
	}
	return r.addrs[r.slots[slot]]
}

// parseRoutes reads an answer to CLUSTER SLOTS that came from the address
// `from`: [[first, last, [host, port, id ...], followers ...] ...]. An empty host
// means the host that was asked.
func parseRoutes(r Reply, from string) (*routes, error) {
	ranges, ok := replyArray(r)
	if !ok {
		return nil, errors.New("CLUSTER SLOTS: the answer is no array")
	}
	fromHost, _, err := net.SplitHostPort(from)
	if err != nil {
		return nil, fmt.Errorf("CLUSTER SLOTS: asked address %q: %w", from, err)
	}
	out := &routes{addrs: []string{""}}
	index := map[string]uint16{}
	for _, item := range ranges {
		fields, ok := replyArray(item)
		if !ok || len(fields) < 3 {
			return nil, errors.New("CLUSTER SLOTS: a range has fewer than three fields")
		}
		first, ok1 := replyInt(fields[0])
		last, ok2 := replyInt(fields[1])
		leader, ok3 := replyArray(fields[2])
		if !ok1 || !ok2 || !ok3 || len(leader) < 2 || first < 0 || last >= sharding.Slots || first > last {
			return nil, errors.New("CLUSTER SLOTS: malformed range")
		}
		host, _ := replyBytes(leader[0])
		port, ok := replyInt(leader[1])
		if !ok || port < 0 || port > 65535 {
			return nil, errors.New("CLUSTER SLOTS: malformed port")
		}
		if port == 0 {
			continue // the leader is not known
		}
		if len(host) == 0 {
			host = []byte(fromHost)
		}
		addr := net.JoinHostPort(string(host), strconv.FormatInt(port, 10))
		n, ok := index[addr]
		if !ok {
			n = uint16(len(out.addrs))
			index[addr] = n
			out.addrs = append(out.addrs, addr)
		}
		for s := first; s <= last; s++ {
			out.slots[s] = n
		}
	}
	return out, nil
}

const (
	refreshEvery   = 50 * time.Millisecond // at most so often
	refreshTimeout = time.Second           // for one node's answer
	learnEvery     = 10 * time.Second      // how often the members' client addresses are asked for
)

// refresh fetches the routes, from one address after the other until one
// answers. Callers share one refresh; a refresh that has just been made is
// good enough.
func (c *Client) refresh(ctx context.Context) error {
	select {
	case c.refreshing <- struct{}{}:
		defer func() { <-c.refreshing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if time.Since(c.refreshedAt) < refreshEvery {
		return nil
	}
	err := ErrUnavailable
	for _, addr := range c.routeSources() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var reply Reply
		reply, err = c.ask(ctx, addr, Command("CLUSTER", "SLOTS"), refreshTimeout)
		if err != nil {
			continue
		}
		var r *routes
		if r, err = parseRoutes(reply, addr); err != nil {
			continue
		}
		c.routes.Store(r)
		c.refreshedAt = time.Now()
		c.learn(ctx, addr)
		return nil
	}
	// Not to be tried by every caller in turn while nobody answers.
	c.refreshedAt = time.Now()
	return fmt.Errorf("fetch the routes: %w", err)
}

// refreshSoon starts a refresh in the background, unless one is under way.
func (c *Client) refreshSoon() {
	if c.cfg.NoRouting || len(c.refreshing) > 0 {
		return
	}
	c.goBackground(func(ctx context.Context) { c.refresh(ctx) })
}

// routeSources are the addresses that may know the routes: client addresses
// first, the last one that answered foremost, then the leaders known so far.
func (c *Client) routeSources() []string {
	out := c.seeds.list()
	if r := c.routes.Load(); r != nil {
		out = append(out, r.addrs[1:]...)
	}
	return out
}

// learn asks for the members' client addresses, so that a client that was given
// one address outlives that node. It is a help, so its failure is none.
func (c *Client) learn(ctx context.Context, addr string) {
	if time.Since(c.learnedAt) < learnEvery {
		return
	}
	c.learnedAt = time.Now()
	reply, err := c.ask(ctx, addr, Command("ABACUS.STATUS"), refreshTimeout)
	if err != nil {
		return
	}
	text, _ := replyBytes(reply)
	st, err := parseStatus(text)
	if err != nil {
		return
	}
	for _, n := range st.Nodes {
		c.seeds.add(n.Addrs.Client)
	}
}
