package workload

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strconv"
	"sync"
)

// Counters is the workload of numbers that clients raise by one, one in each shard at a time.
// Every answer lies between what was acknowledged or seen before its call and what was begun
// before its return, no two are the same, and the end is the number of
// acknowledged ones plus at most the uncertain ones.
//
// Who drives it should number the increments, repeat one without an answer until it is known, and settle it then: nothing is uncertain
// in that case, and the end is exact. Where that is not done, a number is left alone after its first uncertain increment, so that what may
// hide behind others is never more than what was under way at once.
type Counters struct {
	keys Keys

	mu     sync.Mutex
	active map[int]*counter
	all    []*counter
	// wrong are the violations found on the way.
	wrong []string
}

type counter struct {
	key                          string
	ops                          int
	begun, acked, open, withdrew int64
	seen                         int64 // the most that anybody was told
	answers                      map[int64]bool
	read                         bool // its end is known
}

// NewCounters returns one without keys yet.
func NewCounters(k Keys) *Counters { return &Counters{keys: k, active: map[int]*counter{}} }

func (cs *Counters) Next(rng *rand.Rand, shard int, read bool) Call {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.active[shard]
	if c == nil || c.ops >= 2*keyLife || c.open > 0 {
		c = &counter{key: cs.keys(shard), answers: map[int64]bool{}}
		cs.active[shard], cs.all = c, append(cs.all, c)
	}
	c.ops++
	if read {
		return cs.read(c, Reading(rng.IntN(2))) // Linearizable or ByFollower
	}
	return cs.raise(c)
}

// read is called with mu held.
func (cs *Counters) read(c *counter, by Reading) Call {
	least, withdrew := max(c.acked, c.seen), c.withdrew
	return Call{Op{Kind: Get, Key: c.key, Reading: by}, func(o Outcome, r Result) {
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
		c.seen = max(c.seen, n)
	}}
}

// raise is called with mu held.
func (cs *Counters) raise(c *counter) Call {
	least, withdrew := max(c.acked, c.seen), c.withdrew
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
			c.seen = max(c.seen, r.Int)
		}
	}}
}

func (cs *Counters) wrongf(format string, args ...any) {
	if len(cs.wrong) < mostFaults {
		cs.wrong = append(cs.wrong, fmt.Sprintf(format, args...))
	}
}

// Slack is how many increments nobody knows of whether they count: behind each of them a lost or a doubled one of the same number
// may hide.
func (cs *Counters) Slack() (increments, keys int) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.all {
		if increments += int(c.open); c.open > 0 {
			keys++
		}
	}
	return increments, keys
}

func (cs *Counters) Final() (list []Call) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.all {
		list = append(list, Call{Op{Kind: Get, Key: c.key}, func(o Outcome, r Result) {
			cs.mu.Lock()
			defer cs.mu.Unlock()
			if o != Answered {
				return
			}
			c.read = true
			least, most := max(c.acked, c.seen), c.acked+c.open
			if n, ok := atoi(r.Value); !ok || n < least || n > most {
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
	var unread []string
	for _, c := range cs.all {
		if !c.read {
			unread = append(unread, c.key)
		}
	}
	f.unread("counter", unread, len(cs.all))
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
