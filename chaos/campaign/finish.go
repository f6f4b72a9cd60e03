//go:build linux

package campaign

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
)

// finish reads everything back from a cluster that is whole again, compares its replicas, and judges. Where the cluster is not whole that is a
// violation, and what can be read is read and judged all the same: it may show why.
func (c *campaign) finish(ctx context.Context, cs *clients) error {
	c.cfg.Log("all is mended: reading back")
	patience := settleTime
	if c.findings.Count() > 0 { // it has had its time
		patience /= 4
	}
	settled, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := c.bed.sound(settled)
	c.check("whole cluster", "nodes", func() int {
		if err != nil {
			c.findings.Add("in the end the cluster is not whole: %v", err)
		}
		return c.cfg.Nodes
	})
	whole := err == nil
	if whole {
		c.repay()
		wait(ctx, workload.Lateness)
	} else {
		c.giveUp()
	}
	c.readBack(ctx, cs, whole)
	if whole {
		c.check("replicas, logs and owners of slots agree", "shards", func() int {
			if err := c.compare(ctx); err != nil {
				c.findings.Add("%v", err)
			}
			return c.compared
		})
		cs.close()
		c.check("nothing leaks", "nodes", func() int {
			if err := c.backToBase(ctx); err != nil {
				c.findings.Add("%v", err)
			}
			return c.cfg.Nodes
		})
		c.check("no stray replicas", "nodes", func() int { c.zombies(ctx); return c.cfg.Nodes })
	}
	c.judge()
	return nil
}

// repay has all increments answered that were sent and are not known.
func (c *campaign) repay() {
	c.check("numbered increments are answered", "increments", func() (known int) {
		limit := time.Now().Add(repayLimit)
		for _, w := range c.workers {
			if err := w.repayAll(limit); err != nil {
				c.findings.Add("%v, though nothing is broken any more", err)
			}
			known += w.known
		}
		return known
	})
}

// giveUp leaves them unknown.
func (c *campaign) giveUp() {
	for _, w := range c.workers {
		_ = w.repayAll(time.Now())
	}
}

const (
	// readers read back at once.
	readers = 8
	// Reading back may take readBase and readEach for each key: several times what it takes. A cluster that is not whole gets a quarter of that.
	readBase, readEach = 2 * time.Minute, 5 * time.Millisecond
)

// readLimit is how long so many reads may take.
func readLimit(calls int, whole bool) time.Duration {
	limit := readBase + time.Duration(calls)*readEach
	if !whole {
		limit /= 4
	}
	return limit
}

// readBack has every workload read what there is in the end.
func (c *campaign) readBack(ctx context.Context, cs *clients, whole bool) {
	var calls []workload.Call
	for _, load := range c.distinct() {
		calls = append(calls, load.Final()...)
	}
	limit, tries, patience := readLimit(len(calls), whole), 3, opTimeout
	if !whole {
		tries, patience = 1, time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var list []*worker
	for i := range readers {
		list = append(list, &worker{cs: cs, c: cs.all, home: i % c.cfg.Nodes, patience: patience, rng: rand.New(rand.NewPCG(c.cfg.Seed, uint64(i)<<8|'f')), tl: c.tl})
	}
	c.check("all can be read back", "reads", func() int {
		missing, last := readAll(ctx, calls, tries, readers, func(reader int, op workload.Op) (workload.Result, error) { return list[reader].exec(ctx, op) })
		if len(missing) > 0 {
			c.findings.Add("%d of %d reads were not answered in %v and %d tries each, though nothing is broken any more: %s; the last error: %v", len(missing), len(calls), limit.Round(time.Second), tries, workload.Few(missing), last)
		}
		return len(calls)
	})
	for _, w := range list {
		w.close()
	}
}

// readAll carries out calls, several at once, and settles them. It returns the keys of those without an answer, in order, and an error that one of
// them met.
func readAll(ctx context.Context, calls []workload.Call, tries, readers int, exec func(reader int, op workload.Op) (workload.Result, error)) (missing []string, last error) {
	queue := make(chan workload.Call, len(calls))
	for _, call := range calls {
		queue <- call
	}
	close(queue)
	var mu sync.Mutex
	var reading sync.WaitGroup
	for reader := range readers {
		reading.Go(func() {
			for call := range queue {
				var result workload.Result
				err := errors.New("there was no time left")
				for try := 0; try < tries && err != nil && ctx.Err() == nil; try++ {
					result, err = exec(reader, call.Op)
				}
				if err == nil {
					call.Settle(workload.Answered, result)
					continue
				}
				call.Settle(workload.Failed, workload.Result{})
				mu.Lock()
				missing, last = append(missing, call.Op.Key), err
				mu.Unlock()
			}
		})
	}
	reading.Wait()
	slices.Sort(missing)
	return missing, last
}

// judge has every workload judge what is known.
func (c *campaign) judge() {
	for _, load := range c.distinct() {
		what := "keys"
		if load.name == "job" {
			what = "jobs"
		}
		c.check(load.name, what, func() int {
			keys := load.Check(&c.findings)
			c.keys += keys
			if load.name == "job" {
				_, keys = c.jobs.Done()
			}
			return keys
		})
	}
}

// check looks at one thing, and notes how much of it there was and how many violations that made.
func (c *campaign) check(name, what string, look func() (judged int)) {
	before := c.findings.Count()
	judged := look()
	c.checks = append(c.checks, Check{Name: name, What: what, Judged: judged, Wrong: c.findings.Count() - before})
}

// distinct are the workloads, each once: in the list are some several times, to be chosen more often.
func (c *campaign) distinct() (list []load) {
	for _, l := range c.loads {
		if !slices.ContainsFunc(list, func(o load) bool { return o.Workload == l.Workload }) {
			list = append(list, l)
		}
	}
	return list
}
