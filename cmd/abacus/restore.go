package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/backup"
)

// restoring is a backup on its way into a cluster, by the ordinary writes of an import: batches, numbered, repeated until they are answered.
type restoring struct {
	b        *backup.Backup
	pauseTTL bool
	now      func() time.Time

	read    int64 // bytes of the backup
	ended   int64 // keys that were left out, for their time is over
	forever int64 // keys that were read and do not end
	stored  int64
	bytes   int64
}

// maxTTL bounds what a key gets that has longer to live than a cluster: sums with it must not overflow.
const maxTTL = 1 << 53

// ttl is what a key is to have that had left milliseconds at a time; 0: for ever, false: it has ended since.
func (r *restoring) ttl(left int64, at time.Time) (int64, bool) {
	if left == 0 {
		return 0, true
	}
	if !r.pauseTTL {
		left -= max(0, r.now().Sub(at).Milliseconds()) // a clock that is behind makes keys live longer, not shorter
	}
	return min(left, maxTTL), left > 0
}

// store stores all records.
func (r *restoring) store(ctx context.Context, c *client.Client, bar *progress) error {
	defer bar.clear()
	size, err := r.b.Size()
	if err != nil {
		return err
	}
	next, stop := iter.Pull2(r.records(ctx))
	defer stop()
	done, err := pump(ctx, c, func() (record, error) {
		rec, err, ok := next()
		if !ok {
			return record{}, io.EOF
		}
		return rec, err
	}, func() int64 { return r.read }, func(total pumped) { bar.to(total.read, size) })
	r.stored, r.bytes = done.records, done.bytes
	return err
}

// errStopReading ends a reading whose reader has enough.
var errStopReading = errors.New("stopped")

// records are those that are to be stored; an error is the last.
func (r *restoring) records(ctx context.Context) iter.Seq2[record, error] {
	return func(yield func(record, error) bool) {
		err := r.b.Each(ctx, func(n int64) { r.read = n }, func(s backup.Shard, rec backup.Record) error {
			ttl, alive := r.ttl(rec.Left, s.At)
			switch {
			case !alive:
				r.ended++
				return nil
			case ttl == 0:
				r.forever++
			}
			if !yield(record{key: bytes.Clone(rec.Key), value: bytes.Clone(rec.Value), ttl: ttl}, nil) {
				return errStopReading
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStopReading) {
			yield(record{}, err)
		}
	}
}

// count compares the cluster's number of keys with what was stored: keys may end meanwhile, and nothing else may change, unless
// there were others before.
func (r *restoring) count(ctx context.Context, c *client.Client, others bool) error {
	n, err := c.Size(ctx)
	if err != nil {
		return fmt.Errorf("count the keys that are restored: %w", err)
	}
	if n < r.forever || n > r.stored && !others {
		return &exitError{exitFailed, fmt.Errorf("the cluster has %s after %s were restored, of which %s never end: does somebody else write to it?", plural(n, "key"), plural(r.stored, "key"), count(r.forever))}
	}
	return nil
}
