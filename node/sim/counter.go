package sim

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
)

// counters is the workload of one number per shard that clients raise by one.
// Every answer lies between what was acknowledged before its call and what was begun
// before its return, no two are the same, and the end is the number of
// acknowledged ones plus at most the uncertain ones.
type counters struct {
	keys *keys

	mu  sync.Mutex
	all map[sharding.ShardID]*counter
	// wrong are the violations found on the way.
	wrong []string
}

type counter struct {
	key                          string
	begun, acked, open, withdrew int64
	answers                      map[int64]bool
}

func newCounters(k *keys) *counters { return &counters{keys: k, all: map[sharding.ShardID]*counter{}} }

func (cs *counters) next(_ *rand.Rand, shard sharding.ShardID, read bool) ask {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.all[shard]
	if c == nil {
		c = &counter{key: cs.keys.make(shard), answers: map[int64]bool{}}
		cs.all[shard] = c
	}
	return cs.ask(c, read)
}

// ask is called with mu held.
func (cs *counters) ask(c *counter, read bool) ask {
	least, withdrew := c.acked, c.withdrew
	if read {
		return ask{on(command.OpGet, c.key), func(o outcome, r command.Result) {
			cs.mu.Lock()
			defer cs.mu.Unlock()
			if o != answered {
				return
			}
			n, ok := atoi(r.Bytes)
			// One that failed for certain never counted; one whose failure is not known yet may have seemed to.
			if most := c.begun - withdrew; !ok || n < least || n > most {
				cs.wrongf("counter %s: read %q, want %d to %d", c.key, r.Bytes, least, most)
			}
		}}
	}
	c.begun++
	cmd := on(command.OpIncr, c.key)
	cmd.Int = 1
	return ask{cmd, func(o outcome, r command.Result) {
		cs.mu.Lock()
		defer cs.mu.Unlock()
		switch o {
		case failed:
			c.withdrew++
		case uncertain:
			c.open++
		default:
			if most := c.begun - withdrew; r.Int <= least || r.Int > most || c.answers[r.Int] {
				cs.wrongf("counter %s: raised to %d (before: %v), want %d to %d and each once", c.key, r.Int, c.answers[r.Int], least+1, most)
			}
			c.answers[r.Int] = true
			c.acked++
		}
	}}
}

func (cs *counters) wrongf(format string, args ...any) {
	if len(cs.wrong) < 20 {
		cs.wrong = append(cs.wrong, fmt.Sprintf(format, args...))
	}
}

// exactly says between what a counter must end. With exactly-once sessions, whose
// clients repeat until they know, nothing is open and the two are one.
func (c *counter) exactly() (least, most int64) { return c.acked, c.acked + c.open }

func (cs *counters) final() (list []ask) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.all {
		list = append(list, ask{on(command.OpGet, c.key), func(o outcome, r command.Result) {
			cs.mu.Lock()
			defer cs.mu.Unlock()
			least, most := c.exactly()
			n, ok := atoi(r.Bytes)
			if o != answered || !ok || n < least || n > most {
				cs.wrongf("counter %s ends at %q, want %d to %d", c.key, r.Bytes, least, most)
			}
		}})
	}
	return list
}

func (cs *counters) check(f *failure) int {
	for _, w := range cs.wrong {
		f.add("%s", w)
	}
	return len(cs.all)
}
