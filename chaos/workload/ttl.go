package workload

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// TTLs is the workload of keys that end by themselves. None ends before its time: a read that is over before then shows it.
// In the end all whose time is long over are gone. How late one ends meanwhile is nobody's promise: a shard's time
// stands still while nobody leads it.
type TTLs struct {
	keys Keys

	mu    sync.Mutex
	all   []*mortal
	wrong []string
	early int // reads that looked before the end
}

type mortal struct {
	key  string
	ttl  time.Duration
	sent time.Time
	// acked is when it was known to be stored; zero: not.
	acked time.Time
	gone  bool // somebody saw it gone
}

// Lateness is how long after its time a key may still be there when nothing breaks any more.
const Lateness = 10 * time.Second

// NewTTLs returns one without keys yet.
func NewTTLs(k Keys) *TTLs { return &TTLs{keys: k} }

func (t *TTLs) Next(rng *rand.Rand, shard int, read bool) Call {
	t.mu.Lock()
	defer t.mu.Unlock()
	if read && len(t.all) > 0 {
		const recent = 200 // older ones are over
		return t.read(t.all[max(0, len(t.all)-recent)+rng.IntN(min(recent, len(t.all)))])
	}
	m := &mortal{key: t.keys(shard), ttl: time.Duration(1+rng.IntN(8)) * 500 * time.Millisecond, sent: time.Now()}
	t.all = append(t.all, m)
	return Call{Op{Kind: Set, Key: m.key, Value: "alive", TTL: m.ttl}, func(o Outcome, _ Result) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if o == Answered {
			m.acked = time.Now()
		}
	}}
}

// read is called with mu held.
func (t *TTLs) read(m *mortal) Call {
	known, gone := !m.acked.IsZero(), m.gone
	return Call{Op{Kind: Get, Key: m.key}, func(o Outcome, r Result) {
		now := time.Now()
		t.mu.Lock()
		defer t.mu.Unlock()
		if o != Answered {
			return
		}
		left := m.ttl - now.Sub(m.sent) // at least; its time began when it was stored
		if known && left > 0 {
			t.early++
		}
		switch {
		case r.Value == "" && known && left > 0:
			t.wrongf("%s lives for %v and was gone %v before", m.key, m.ttl, left)
		case r.Value != "" && gone:
			t.wrongf("%s was gone and is there again", m.key)
		}
		m.gone = m.gone || r.Value == "" && known
	}}
}

func (t *TTLs) wrongf(format string, args ...any) {
	if len(t.wrong) < mostFaults {
		t.wrong = append(t.wrong, fmt.Sprintf(format, args...))
	}
}

// Final reads all keys: those whose time was over Lateness ago must be gone.
func (t *TTLs) Final() (calls []Call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.all {
		if m.acked.IsZero() || time.Since(m.acked) < m.ttl+Lateness {
			continue
		}
		calls = append(calls, Call{Op{Kind: Get, Key: m.key}, func(o Outcome, r Result) {
			t.mu.Lock()
			defer t.mu.Unlock()
			if o == Answered && r.Value != "" {
				t.wrongf("%s lives for %v and is there %v after it was stored", m.key, m.ttl, time.Since(m.acked))
			}
		}})
	}
	return calls
}

func (t *TTLs) Check(f *Findings) int {
	for _, w := range t.wrong {
		f.Add("time to live: %s", w)
	}
	return len(t.all)
}
