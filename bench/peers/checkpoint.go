package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The metrics that tell of checkpoints, each with a label shard.
const (
	metricUnderWay = "abacus_shard_checkpoint_keys"       // gauge: keys of the checkpoint under way, 0 if there is none
	metricEnded    = "abacus_shard_checkpoints_total"     // counter: checkpoints that have ended
	metricKeys     = "abacus_shard_checkpoint_keys_total" // counter: their keys
)

// checkpointSpan is a time in which a shard of a node was writing checkpoints, to
// within one look at the metrics.
type checkpointSpan struct {
	from, to time.Time
	keys     float64 // of the largest
	ended    float64
}

// shardCheckpoints is what one look at a node's metrics says, by shard.
type shardCheckpoints map[string]*struct{ underWay, ended, keys float64 }

// parseCheckpoints reads the three metrics out of a page of them.
func parseCheckpoints(page []byte) (shardCheckpoints, error) {
	out, seen := shardCheckpoints{}, map[string]bool{}
	for sc := bufio.NewScanner(bytes.NewReader(page)); sc.Scan(); {
		name, rest, ok := strings.Cut(sc.Text(), `{shard="`)
		if !ok || name != metricUnderWay && name != metricEnded && name != metricKeys {
			continue
		}
		shard, val, _ := strings.Cut(rest, `"} `)
		v, err := strconv.ParseFloat(val, 64)
		if err != nil {
			return nil, err
		}
		seen[name] = true
		if out[shard] == nil {
			out[shard] = new(struct{ underWay, ended, keys float64 })
		}
		switch name {
		case metricUnderWay:
			out[shard].underWay = v
		case metricEnded:
			out[shard].ended = v
		case metricKeys:
			out[shard].keys = v
		}
	}
	for _, name := range []string{metricUnderWay, metricEnded, metricKeys} {
		if !seen[name] {
			return nil, errors.New("the servers do not export " + name)
		}
	}
	return out, nil
}

// spansBetween are the checkpoints that two looks at one node tell of: those under way
// at one of them, and those that ended between them, of which a short one may have
// been seen at neither.
func spansBetween(a, b shardCheckpoints, from, to time.Time) (out []checkpointSpan) {
	for shard, now := range b {
		span := checkpointSpan{from: from, to: to, keys: now.underWay}
		if was := a[shard]; was != nil {
			span.keys = max(span.keys, was.underWay)
			if span.ended = now.ended - was.ended; span.ended > 0 {
				span.keys = max(span.keys, (now.keys-was.keys)/span.ended)
			}
		}
		if span.keys > 0 || span.ended > 0 {
			out = append(out, span)
		}
	}
	return out
}

// checkpointWatch looks at the metrics of all nodes ten times a second.
type checkpointWatch struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	spans  []checkpointSpan
	err    error
}

const lookEvery = 100 * time.Millisecond

func watchCheckpoints(ctx context.Context, urls []string) *checkpointWatch {
	ctx, cancel := context.WithCancel(ctx)
	w := &checkpointWatch{cancel: cancel}
	for _, url := range urls {
		w.wg.Go(func() { w.run(ctx, url) })
	}
	return w
}

func (w *checkpointWatch) run(ctx context.Context, url string) {
	var last shardCheckpoints
	var lastAt time.Time
	for tick := time.NewTicker(lookEvery); ; {
		// The look may be answered late: what it says holds for some moment between.
		before := time.Now()
		page, err := httpGet(ctx, url)
		if ctx.Err() != nil {
			return
		}
		var now shardCheckpoints
		if err == nil {
			now, err = parseCheckpoints(page)
		}
		w.mu.Lock()
		if err != nil {
			w.err = err
		} else if last != nil {
			w.spans = append(w.spans, spansBetween(last, now, lastAt, time.Now())...)
		}
		w.mu.Unlock()
		if err == nil {
			last, lastAt = now, before
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// stop ends the watch. An error means that some of it is not known.
func (w *checkpointWatch) stop() ([]checkpointSpan, error) {
	w.cancel()
	w.wg.Wait()
	return w.spans, w.err
}
