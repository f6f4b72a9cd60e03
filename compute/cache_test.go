package compute

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
)

// A shard that has not changed answers a question that it was asked before without reading; one that has reads.
func TestCachedAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		want := c.fill("a/", 400)
		seen := c.countScans(func(string, uint32, string) error { return nil })
		read := func(what string, s job.Spec, want any, cached bool, keys int) {
			t.Helper()
			before := seen.total()
			rec := c.run(t.Context(), "n1", s)
			if rec.State != job.Succeeded || rec.Result.String() != fmt.Sprint(want) || rec.Cached != cached {
				t.Errorf("%s: job %s, %v, cached %t: %s", what, rec.State, rec.Result, rec.Cached, rec.Error)
			}
			if n := seen.total() - before; n != keys {
				t.Errorf("%s: %d keys were read, want %d", what, n, keys)
			}
			for _, s := range rec.Shards {
				if !s.Exact || s.Index == 0 {
					t.Errorf("%s: shard %+v", what, s)
				}
			}
		}
		sum := sumOf("a/")
		sum.Cache = ""
		read("first", sum, want, false, 400)
		read("again", sum, want, true, 0)
		named := sum
		named.ID, named.Name, named.TimeoutMillis, named.TasksPerReplica, named.Priority = "x", "y", 1000, 1, job.PriorityLow
		read("by another name", named, want, true, 0)
		off := sum
		off.Cache = job.CacheOff
		read("not from the cache", off, want, false, 400)
		read("and it is still there", sum, want, true, 0)
		count := sum
		count.Reduce = job.ReduceCount
		read("another question", count, 400, false, 400)

		slot := sharding.SlotOf([]byte("a/1"))
		shard := slot / (sharding.Slots / 2)
		of := c.keysOf(uint32(shard), "a/")
		c.put("a/1", "1001")
		read("after a write, only its shard", sum, want+1000, false, of)
		read("and again", sum, want+1000, true, 0)
		few := job.Spec{Prefix: "a/39", Reduce: job.ReduceCount}
		read("a small job", few, 11, false, 11)
		read("a small job again", few, 11, true, 0)
		c.move(sharding.SlotRange{From: 0, To: 99}, 0, 1, true, 0)
		read("after slots have moved", sum, want+1000, false, 400)
		for i := range uint32(2) {
			c.lead(i, "n3")
		}
		read("another leader knows nothing", sum, want+1000, false, 400)
	})
}

// keysOf is how many keys with a prefix a shard has.
func (c *cluster) keysOf(shard uint32, prefix string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	owned, keys := c.state(shard, uint64(len(c.writes[shard])))
	for _, w := range keys {
		if owned[w.slot] && strings.HasPrefix(w.key, prefix) {
			n++
		}
	}
	return n
}

// The cache stays within its bounds, forgets what was not asked for longest, and keeps nothing that is too large.
func TestCacheIsBounded(t *testing.T) {
	var c cache
	text := func(size int) *Partial {
		return over(t, job.Spec{As: job.AsString, Reduce: job.ReduceMax}.WithDefaults(), strings.Repeat("x", size))
	}
	key := func(i int) cacheKey { return cacheKey{0, fmt.Sprint(i)} }
	large := text(60 << 10)
	for i := range 1000 {
		c.put(key(i), [2]uint64{1, 1}, nil, large)
		if _, _, ok := c.get(key(0), [2]uint64{1, 1}); !ok {
			t.Fatalf("after %d others the one that is asked for is gone", i)
		}
		if c.bytes > cacheBytes || len(c.parts) != c.order.Len() {
			t.Fatalf("%d bytes, %d parts, %d in order", c.bytes, len(c.parts), c.order.Len())
		}
	}
	if n := len(c.parts); n < 100 || n > 300 {
		t.Errorf("%d parts of 120 KiB are kept", n)
	}
	if _, _, ok := c.get(key(1), [2]uint64{1, 1}); ok {
		t.Error("the oldest is still there")
	}
	if _, _, ok := c.get(key(999), [2]uint64{1, 2}); ok {
		t.Error("an answer about another state")
	}
	if _, _, ok := c.get(key(999), [2]uint64{1, 1}); ok {
		t.Error("what was found to be old is still there")
	}
	for i := range c.order.Len() {
		c.put(key(i), [2]uint64{2, 2}, nil, text(1))
	}
	for e := c.order.Front(); e != nil; e = c.order.Front() {
		c.remove(e)
	}
	if c.bytes != 0 || len(c.parts) != 0 {
		t.Errorf("%d bytes of nothing", c.bytes)
	}
}
