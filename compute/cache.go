package compute

import (
	"container/list"
	"encoding/json"
	"sync"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
)

const (
	// cacheBytes bounds what a node keeps of shards' parts, in all; cachePart what it keeps of one.
	cacheBytes = 32 << 20
	cachePart  = 256 << 10
)

// cache keeps what shards' parts came to, for as long as the shard does not change: the same question to the same state has the same
// answer. It is the master's own, in memory, and forgets what was not asked for longest. Any goroutine may use it.
type cache struct {
	mu    sync.Mutex
	parts map[cacheKey]*list.Element // of *cachedPart
	order list.List                  // the last one used first
	bytes int
}

// cacheKey is a shard and what was asked of it.
type cacheKey struct {
	shard uint32
	spec  string
}

// cachedPart is an answer and the version of the state that it is about.
type cachedPart struct {
	key     cacheKey
	version [2]uint64
	slots   []sharding.SlotRange
	partial []byte
}

// question is what of a spec decides its answer.
func question(shard uint32, s job.Spec) (cacheKey, bool) {
	text, err := json.Marshal(s.Question())
	return cacheKey{shard, string(text)}, err == nil
}

// get returns what was kept for the question, if the state has that version still.
func (c *cache) get(key cacheKey, version [2]uint64) (slots []sharding.SlotRange, p *Partial, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.parts[key]
	if e == nil {
		return nil, nil, false
	}
	part := e.Value.(*cachedPart)
	if part.version != version {
		c.remove(e)
		return nil, nil, false
	}
	p, err := DecodePartial(part.partial)
	if err != nil { // it was encoded here: a fault of ours, and no reason to fail a job
		c.remove(e)
		return nil, nil, false
	}
	c.order.MoveToFront(e)
	return part.slots, p, true
}

// put keeps an answer, in the place of an older one to the same question.
func (c *cache) put(key cacheKey, version [2]uint64, slots []sharding.SlotRange, p *Partial) {
	data := p.Encode()
	if len(data) > cachePart {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.parts[key]; e != nil {
		c.remove(e)
	}
	if c.parts == nil {
		c.parts = map[cacheKey]*list.Element{}
	}
	part := &cachedPart{key, version, slots, data}
	c.parts[key] = c.order.PushFront(part)
	c.bytes += part.size()
	for c.bytes > cacheBytes {
		c.remove(c.order.Back())
	}
}

func (c *cache) remove(e *list.Element) {
	part := c.order.Remove(e).(*cachedPart)
	delete(c.parts, part.key)
	c.bytes -= part.size()
}

func (p *cachedPart) size() int { return len(p.partial) + 2*len(p.key.spec) + 4*len(p.slots) + 200 }
