// Package load writes to a cluster from many writers and remembers what became
// of every write, so that afterwards it can be said whether anything
// acknowledged was lost.
//
// Each writer takes turns: it puts a key that nobody wrote before, overwrites a
// register of its own with a value that was never used before, and adds one to
// a counter that all writers share. A write ends acknowledged, refused (certainly
// not executed) or uncertain. Check then reads everything back:
//
//   - a key that was acknowledged holds its value; one that was refused is not there;
//     one that is uncertain is absent or holds its value;
//   - a register holds its last acknowledged value, or one that is uncertain, for
//     an uncertain write may take effect at any time after it began;
//   - the counter lies between what was acknowledged and that plus what is uncertain.
//
// The goroutines are the writers; Stop waits for them.
package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/abacusdb/abacus/client"
)

// Config says what to write.
type Config struct {
	// Prefix begins every key.
	Prefix string
	// Writers is how many write at once, each waiting for its answers. Default 8.
	Writers int
	// Timeout bounds one write, all attempts of the client together. Default 20 s.
	Timeout time.Duration
	// Pause is what a writer waits between two writes, to load a machine less.
	Pause time.Duration
}

// outcome of one write.
type outcome byte

const (
	refused outcome = iota
	uncertain
	acked
)

// Load is writers at work.
type Load struct {
	cfg     Config
	c       *client.Client
	stop    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
	writers []*writer
}

type writer struct {
	id int

	mu       sync.Mutex
	keys     []outcome // by sequence number
	register []outcome // by sequence number
	counted  [3]int64  // increments, by outcome
	slowest  time.Duration
	failure  error // an answer that is none of the three
	lastFail error // the last refusal or uncertainty, for people
}

// Start begins to write through c, which must outlive the load.
func Start(c *client.Client, cfg Config) *Load {
	if cfg.Writers == 0 {
		cfg.Writers = 8
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Second
	}
	l := &Load{cfg: cfg, c: c, stop: make(chan struct{})}
	for id := range cfg.Writers {
		w := &writer{id: id}
		l.writers = append(l.writers, w)
		l.wg.Go(func() { l.run(w) })
	}
	return l
}

// Stop lets every writer finish the write it is at. It may be called again.
func (l *Load) Stop() {
	l.once.Do(func() { close(l.stop) })
	l.wg.Wait()
}

func (l *Load) run(w *writer) {
	for seq := 0; ; seq++ {
		for _, write := range []func(context.Context, int) (*[]outcome, error){
			func(ctx context.Context, seq int) (*[]outcome, error) {
				return &w.keys, l.c.Put(ctx, l.key(w.id, seq), value(w.id, seq))
			},
			func(ctx context.Context, seq int) (*[]outcome, error) {
				return &w.register, l.c.Put(ctx, l.registerKey(w.id), value(w.id, seq))
			},
			func(ctx context.Context, _ int) (*[]outcome, error) {
				_, err := l.c.Incr(ctx, l.counterKey(), 1)
				return nil, err
			},
		} {
			select {
			case <-l.stop:
				return
			case <-time.After(l.cfg.Pause):
			}
			ctx, cancel := context.WithTimeout(context.Background(), l.cfg.Timeout)
			began := time.Now()
			history, err := write(ctx, seq)
			cancel()
			if !w.note(history, time.Since(began), err) {
				return
			}
		}
	}
}

// note records what became of a write and says whether to go on.
func (w *writer) note(history *[]outcome, took time.Duration, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	var o outcome
	switch {
	case err == nil:
		o = acked
		w.slowest = max(w.slowest, took)
	case errors.Is(err, client.ErrUncertain):
		o, w.lastFail = uncertain, err
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrDiskFull):
		o, w.lastFail = refused, err
	default:
		o, w.failure = uncertain, err
	}
	if history != nil {
		*history = append(*history, o)
	} else {
		w.counted[o]++
	}
	return w.failure == nil
}

// Tally counts writes by what became of them.
type Tally struct {
	Acked, Uncertain, Refused int64
	// Slowest is the longest that a writer waited for an acknowledgement since the
	// last call of Tally that reset it.
	Slowest time.Duration
	// LastError is the last refusal or uncertainty, nil if there was none.
	LastError error
}

// Tally returns the counts so far. With reset, Slowest begins anew.
func (l *Load) Tally(reset bool) Tally {
	var t Tally
	for _, w := range l.writers {
		w.mu.Lock()
		for _, list := range [][]outcome{w.keys, w.register} {
			for _, o := range list {
				t.add(o, 1)
			}
		}
		for o, n := range w.counted {
			t.add(outcome(o), n)
		}
		t.Slowest = max(t.Slowest, w.slowest)
		if reset {
			w.slowest = 0
		}
		if w.lastFail != nil {
			t.LastError = w.lastFail
		}
		w.mu.Unlock()
	}
	return t
}

func (t *Tally) add(o outcome, n int64) {
	switch o {
	case acked:
		t.Acked += n
	case uncertain:
		t.Uncertain += n
	default:
		t.Refused += n
	}
}

// Report is what Check found.
type Report struct {
	// Keys, Registers: how many acknowledged ones were read back.
	Keys, Registers int
	// Counter is its value; it must lie in [CounterMin, CounterMax].
	Counter, CounterMin, CounterMax int64
	// Faults says, in words, what was lost or invented; at most some.
	Faults []string
}

const maxFaults = 20

func (r *Report) fault(format string, args ...any) {
	if len(r.Faults) < maxFaults {
		r.Faults = append(r.Faults, fmt.Sprintf(format, args...))
	}
}

// Check reads everything back through c. Call it after Stop. An error is a
// failure to read; what is wrong with what was read is in Report.Faults.
func (l *Load) Check(ctx context.Context, c *client.Client) (Report, error) {
	var r Report
	for _, w := range l.writers {
		if w.failure != nil {
			r.fault("writer %d met an error that says neither done, nor refused, nor uncertain: %v", w.id, w.failure)
		}
		if err := l.checkKeys(ctx, c, w, &r); err != nil {
			return r, err
		}
		if err := l.checkRegister(ctx, c, w, &r); err != nil {
			return r, err
		}
		r.CounterMin += w.counted[acked]
		r.CounterMax += w.counted[acked] + w.counted[uncertain]
	}
	got, err := c.Get(ctx, l.counterKey())
	switch {
	case errors.Is(err, client.ErrNotFound):
	case err != nil:
		return r, fmt.Errorf("read the counter: %w", err)
	default:
		if r.Counter, err = strconv.ParseInt(string(got), 10, 64); err != nil {
			r.fault("the counter holds %.40q", got)
		}
	}
	if r.Counter < r.CounterMin || r.Counter > r.CounterMax {
		r.fault("the counter is %d: %d increments were acknowledged and %d more are uncertain", r.Counter, r.CounterMin, r.CounterMax-r.CounterMin)
	}
	return r, nil
}

func (l *Load) checkKeys(ctx context.Context, c *client.Client, w *writer, r *Report) error {
	const page = 500
	for from := 0; from < len(w.keys); from += page {
		to := min(from+page, len(w.keys))
		var names []string
		for seq := from; seq < to; seq++ {
			names = append(names, l.key(w.id, seq))
		}
		values, err := c.MGet(ctx, names...)
		if err != nil {
			return fmt.Errorf("read back keys: %w", err)
		}
		for i, got := range values {
			seq := from + i
			want := value(w.id, seq)
			switch o := w.keys[seq]; {
			case o == acked && got == nil:
				r.fault("%s was acknowledged and is gone", names[i])
			case o == refused && got != nil:
				r.fault("%s was refused and is there", names[i])
			case got != nil && !bytes.Equal(got, want):
				r.fault("%s holds %.40q, written was %q", names[i], got, want)
			case o == acked:
				r.Keys++
			}
		}
	}
	return nil
}

func (l *Load) checkRegister(ctx context.Context, c *client.Client, w *writer, r *Report) error {
	allowed := map[string]bool{}
	var last []byte
	for seq, o := range w.register {
		switch o {
		case acked:
			last = value(w.id, seq)
		case uncertain:
			allowed[string(value(w.id, seq))] = true
		}
	}
	got, err := c.Get(ctx, l.registerKey(w.id))
	if err != nil && !errors.Is(err, client.ErrNotFound) {
		return fmt.Errorf("read back a register: %w", err)
	}
	missing := err != nil
	switch {
	case missing && last != nil:
		r.fault("register %s was acknowledged and is gone", l.registerKey(w.id))
	case !missing && !bytes.Equal(got, last) && !allowed[string(got)]:
		r.fault("register %s holds %.40q, its last acknowledged value is %q", l.registerKey(w.id), got, last)
	case last != nil:
		r.Registers++
	}
	return nil
}

func (l *Load) key(writer, seq int) string {
	return l.cfg.Prefix + "key/" + strconv.Itoa(writer) + "/" + strconv.Itoa(seq)
}
func (l *Load) registerKey(writer int) string {
	return l.cfg.Prefix + "register/" + strconv.Itoa(writer)
}
func (l *Load) counterKey() string { return l.cfg.Prefix + "counter" }

// Counter is the key that all writers count in.
func (l *Load) Counter() string { return l.counterKey() }

func value(writer, seq int) []byte {
	return []byte("value " + strconv.Itoa(writer) + "/" + strconv.Itoa(seq))
}
