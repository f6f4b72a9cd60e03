package client

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Get returns the value of a key, ErrNotFound if there is none. Reads are
// linearizable, unless Config.Stale asks for less.
func (c *Client) Get(ctx context.Context, key string) ([]byte, error) {
	r, err := c.Do(ctx, "GET", key)
	if err != nil {
		return nil, err
	}
	v, ok := replyBytes(r)
	if !ok {
		return nil, fmt.Errorf("key %q: %w", key, ErrNotFound)
	}
	return v, nil
}

// PutOptions qualify a Put.
type PutOptions struct {
	// TTL after which the key ends, to the millisecond. 0: never.
	TTL time.Duration
	// IfAbsent stores only if there is no such key, IfPresent only if there is.
	IfAbsent, IfPresent bool
}

// Put stores a value. nil error: it is on the disks of a majority.
func (c *Client) Put(ctx context.Context, key string, value []byte) error {
	_, err := c.PutWith(ctx, key, value, PutOptions{})
	return err
}

// PutWith stores a value if the options allow, and says whether it did.
func (c *Client) PutWith(ctx context.Context, key string, value []byte, o PutOptions) (stored bool, err error) {
	args := [][]byte{[]byte("SET"), []byte(key), value}
	if o.TTL != 0 {
		ms := o.TTL.Milliseconds()
		if ms <= 0 {
			return false, fmt.Errorf("put %q: TTL %v is shorter than a millisecond", key, o.TTL)
		}
		args = append(args, []byte("PX"), itoa(ms))
	}
	if o.IfAbsent {
		args = append(args, []byte("NX"))
	}
	if o.IfPresent {
		args = append(args, []byte("XX"))
	}
	r := c.DoMulti(ctx, []Cmd{{Args: args}})[0]
	return r.Err == nil && !replyNil(r.Reply), r.Err
}

// CAS replaces a key's value if it is old, and says whether it did.
func (c *Client) CAS(ctx context.Context, key string, old, new []byte) (swapped bool, err error) {
	r := c.DoMulti(ctx, []Cmd{{Args: [][]byte{[]byte("SET"), []byte(key), new, []byte("IFEQ"), old}}})[0]
	return r.Err == nil && !replyNil(r.Reply), r.Err
}

// Incr adds to an integer and returns the sum. A key that is not there counts
// as 0.
func (c *Client) Incr(ctx context.Context, key string, delta int64) (int64, error) {
	r := c.DoMulti(ctx, []Cmd{{Args: [][]byte{[]byte("INCRBY"), []byte(key), itoa(delta)}}})[0]
	if r.Err != nil {
		return 0, r.Err
	}
	return wantInt("INCRBY", r.Reply)
}

// Del removes keys and returns how many there were. Keys of one slot are
// removed as one; over several slots the removal is not atomic.
func (c *Client) Del(ctx context.Context, keys ...string) (int64, error) {
	if len(keys) == 0 {
		return 0, nil
	}
	all := Command(append([]string{"DEL"}, keys...)...)
	cmds := []Cmd{all}
	if !planOf(all).keyed {
		cmds = cmds[:0]
		for _, k := range keys {
			cmds = append(cmds, Command("DEL", k))
		}
	}
	var removed int64
	for _, r := range c.DoMulti(ctx, cmds) {
		if r.Err != nil {
			return removed, r.Err
		}
		n, err := wantInt("DEL", r.Reply)
		if err != nil {
			return removed, err
		}
		removed += n
	}
	return removed, nil
}

// MGet returns the values of keys, nil for a key that is not there (an empty
// value is not nil). Each key is read by itself: linearizable, but not all at
// one instant.
func (c *Client) MGet(ctx context.Context, keys ...string) ([][]byte, error) {
	cmds := make([]Cmd, len(keys))
	for i, k := range keys {
		cmds[i] = Command("GET", k)
	}
	out := make([][]byte, len(keys))
	for i, r := range c.DoMulti(ctx, cmds) {
		if r.Err != nil {
			return nil, fmt.Errorf("get %q: %w", keys[i], r.Err)
		}
		if v, ok := replyBytes(r.Reply); ok {
			if v == nil {
				v = []byte{}
			}
			out[i] = v
		}
	}
	return out, nil
}

// Size returns how many keys the cluster holds.
func (c *Client) Size(ctx context.Context) (int64, error) {
	r, err := c.Do(ctx, "DBSIZE")
	if err != nil {
		return 0, err
	}
	return wantInt("DBSIZE", r)
}

// Ping asks a node for a sign of life.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.Do(ctx, "PING")
	return err
}

// globEscape makes a pattern that matches exactly s.
func globEscape(s string) string {
	if !strings.ContainsAny(s, `*?[]\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.IndexByte(`*?[]\`, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
