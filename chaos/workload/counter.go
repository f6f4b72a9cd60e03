package workload

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strconv"
	"sync"
)

// Counters is the workload of one number per shard that clients raise by one.
// Every answer lies between what was acknowledged before its call and what was begun
// before its return, no two are the same, and the end is the number of
// acknowledged ones plus at most the uncertain ones.
type Counters struct {
	keys Keys

	mu  sync.Mutex
	all map[int]*counter
	// wrong are the violations found on the way.
	wrong []string
}

type counter struct {
	key                          string
	begun, acked, open, withdrew int64
	answers                      map[int64]bool
	read                         bool // its end is known
}

// NewCounters returns one without keys yet.
func NewCounters(k Keys) *Counters { return &Counters{keys: k, all: map[int]*counter{}} }

func (cs *Counters) Next(_ *rand.Rand, shard int, read bool) Call {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.all[shard]
	if c == nil {
		c = &counter{key: cs.keys(shard), answers: map[int64]bool{}}
		cs.all[shard] = c
	}
	return cs.call(c, read)
}

// call is called with mu held.
func (cs *Counters) call(c *counter, read bool) Call {
	least, withdrew := c.acked, c.withdrew
	if read {
		return Call{Op{Kind: Get, Key: c.key}, func(o Outcome, r Result) {
			cs.mu.Lock()
			defer cs.mu.Unlock()
			if o != Answered {
				return
			}
			n, ok := atoi(r.Value)
			// One that failed for certain never counted; one whose failure is not known yet may have seemed to.
			if most := c.begun - withdrew; !ok || n < least || n > most {
				cs.wrongf("counter %s: read %q, want %d to %d", c.key, r.Value, least, most)
			}
		}}
	}
	c.begun++
	return Call{Op{Kind: Incr, Key: c.key, By: 1}, func(o Outcome, r Result) {
		cs.mu.Lock()
		defer cs.mu.Unlock()
		switch o {
		case Failed:
			c.withdrew++
		case Uncertain:
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

func (cs *Counters) wrongf(format string, args ...any) {
	if len(cs.wrong) < mostFaults {
		cs.wrong = append(cs.wrong, fmt.Sprintf(format, args...))
	}
}

// exactly says between what a counter must end. With exactly-once sessions, whose
// clients repeat until they know, nothing is open and the two are one.
func (c *counter) exactly() (least, most int64) { return c.acked, c.acked + c.open }

func (cs *Counters) Final() (list []Call) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.all {
		list = append(list, Call{Op{Kind: Get, Key: c.key}, func(o Outcome, r Result) {
			cs.mu.Lock()
			defer cs.mu.Unlock()
			least, most := c.exactly()
			n, ok := atoi(r.Value)
			if c.read = c.read || o == Answered; o != Answered {
				return
			}
			if !ok || n < least || n > most {
				cs.wrongf("counter %s ends at %q, want %d to %d", c.key, r.Value, least, most)
			}
		}})
	}
	return list
}

func (cs *Counters) Check(f *Findings) int {
	for _, w := range cs.wrong {
		f.Add("%s", w)
	}
	for _, c := range cs.all {
		if !c.read {
			f.Add("counter %s: its end could not be read", c.key)
		}
	}
	return len(cs.all)
}

// atoi reads a counter; no value is 0.
func atoi(s string) (int64, bool) {
	if s == "" {
		return 0, true
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

var seed = maphash.MakeSeed()

func hashOf(s string) uint64 { return maphash.String(seed, s) }
