package client

import (
	"context"
	"errors"
	"iter"
	"strconv"
)

// ScanOptions say which keys to visit.
type ScanOptions struct {
	// Prefix that keys begin with, byte by byte. Empty: all keys.
	Prefix string
	// Page is about how many keys to fetch at once. Default 1000.
	Page int
}

// Scan visits keys, in no order that means anything. A key that is there during
// the whole scan is visited at least once; one that comes or goes meanwhile, perhaps.
// An error ends the scan and comes as the last pair.
//
// The context bounds the whole scan; without a deadline, each page has the
// client's Timeout.
func (c *Client) Scan(ctx context.Context, o ScanOptions) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for keys, err := range c.ScanPages(ctx, o) {
			if err != nil {
				yield("", err)
				return
			}
			for _, k := range keys {
				if !yield(k, nil) {
					return
				}
			}
		}
	}
}

// ScanPages is Scan, a page of keys at a time; a page may be empty.
func (c *Client) ScanPages(ctx context.Context, o ScanOptions) iter.Seq2[[]string, error] {
	if o.Page <= 0 {
		o.Page = 1000
	}
	return func(yield func([]string, error) bool) {
		cursor := "0"
		for {
			args := []string{"SCAN", cursor, "COUNT", strconv.Itoa(o.Page)}
			if o.Prefix != "" {
				args = append(args, "MATCH", globEscape(o.Prefix)+"*")
			}
			r, err := c.Do(ctx, args...)
			if err != nil {
				yield(nil, err)
				return
			}
			next, keys, err := parseScan(r)
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(keys, nil) || next == "0" {
				return
			}
			cursor = next
		}
	}
}

func parseScan(r Reply) (cursor string, keys []string, err error) {
	parts, ok := replyArray(r)
	if !ok || len(parts) != 2 {
		return "", nil, errors.New("SCAN: the answer is not a cursor and keys")
	}
	cur, ok1 := replyBytes(parts[0])
	list, ok2 := replyArray(parts[1])
	if !ok1 || !ok2 || len(cur) == 0 {
		return "", nil, errors.New("SCAN: the answer is not a cursor and keys")
	}
	keys = make([]string, 0, len(list))
	for _, k := range list {
		b, ok := replyBytes(k)
		if !ok {
			return "", nil, errors.New("SCAN: a key is no string")
		}
		keys = append(keys, string(b))
	}
	return string(cur), keys, nil
}
