//go:build system

package chaos_test

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the power-cut tests remember of their writes, and how they judge what
// they find after a cut. A key has one writer, which waits for its answers, so its
// writes have an order; a cut ends all that is under way, so what is found after
// it is settled for good.

// write is one write to a key. The zero value is the key's absence.
type write struct {
	version uint64 // of the key, from 1; never used twice
	size    int
	del     bool
	ttl     time.Duration // 0: none
	sent    time.Time
}

func (w write) gone() bool { return w.version == 0 || w.del }

// register is a key and what is known of it.
type register struct {
	name    string
	version uint64
	// last was acknowledged, or found after the last cut; pending are the writes
	// since that have no answer.
	last    write
	pending []write
	// closed: a write ended uncertain and may still take effect at any time, so no
	// more are sent until a cut has settled it.
	closed bool
}

// value is what a write puts: its name and version, so that a fault can be read,
// and bytes of its own, so that pages which got mixed up are noticed.
func (r *register) value(w write) []byte {
	b := fmt.Appendf(nil, "%s version %d ", r.name, w.version)
	if len(b) >= w.size {
		return b
	}
	h := fnv.New64a()
	h.Write(b)
	fill := rand.New(rand.NewPCG(h.Sum64(), 0))
	for len(b) < w.size {
		v := fill.Uint64()
		b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56))
	}
	return b
}

// matches says whether the key looks as it must if w was its last write. A key
// with a time to live ends late, but never early.
func (r *register) matches(w write, got []byte, found bool, now time.Time) bool {
	switch {
	case w.gone():
		return !found
	case !found:
		return w.ttl > 0 && now.Sub(w.sent) >= w.ttl
	}
	return bytes.Equal(got, r.value(w))
}

// settle judges what was found after a cut: the last acknowledged write, or a
// later one that had no answer; never an older one, nor anything else. It returns how
// many of the unanswered writes survived and how many did not.
func (r *register) settle(got []byte, found bool, now time.Time) (survived, vanished int, err error) {
	candidates := append([]write{r.last}, r.pending...)
	for i := len(candidates) - 1; i >= 0; i-- {
		if !r.matches(candidates[i], got, found, now) {
			continue
		}
		if i > 0 {
			survived = 1
		}
		vanished = len(r.pending) - survived
		r.last, r.pending, r.closed = candidates[i], nil, false
		if !found {
			r.last = write{}
		}
		return survived, vanished, nil
	}
	return 0, 0, fmt.Errorf("%s %s; %s", r.name, shown(got, found), r.known(now))
}

func shown(got []byte, found bool) string {
	if !found {
		return "is not there"
	}
	head := got
	if i := bytes.Index(got, []byte(" version ")); i >= 0 {
		if j := bytes.IndexByte(got[i+9:], ' '); j >= 0 {
			head = got[:i+9+j]
		}
	}
	return fmt.Sprintf("holds %.60q of %d bytes", head, len(got))
}

func (r *register) known(now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "acknowledged was %s", r.last.describe(now))
	for _, w := range r.pending {
		fmt.Fprintf(&b, ", then without an answer %s", w.describe(now))
	}
	return b.String()
}

func (w write) describe(now time.Time) string {
	switch {
	case w.version == 0:
		return "its absence"
	case w.del:
		return fmt.Sprintf("version %d, a deletion", w.version)
	}
	s := fmt.Sprintf("version %d of %d bytes, sent %v ago", w.version, w.size, now.Sub(w.sent).Round(time.Millisecond))
	if w.ttl > 0 {
		s += fmt.Sprintf(" with a time to live of %v", w.ttl)
	}
	return s
}

// counter is a key that several writers add one to.
type counter struct {
	name string

	mu             sync.Mutex
	base           int64 // found after the last cut
	acked, pending int64 // since then
}

// settle judges: all that was acknowledged, and at most what had no answer too.
func (c *counter) settle(got int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	low, high := c.base+c.acked, c.base+c.acked+c.pending
	if got < low || got > high {
		return fmt.Errorf("%s is %d: it was %d after the last cut, %d increments since were acknowledged and %d have no answer", c.name, got, c.base, c.acked, c.pending)
	}
	c.base, c.acked, c.pending = got, 0, 0
	return nil
}

// TestPowerCutModel shows that the judgement lets pass what may be and nothing
// else: a checker that lets everything pass would make the other tests worthless.
func TestPowerCutModel(t *testing.T) {
	now := time.Now()
	v := func(version uint64) write { return write{version: version, size: 100, sent: now.Add(-time.Second)} }
	ttl := func(version uint64, d time.Duration) write { w := v(version); w.ttl = d; return w }
	del := func(version uint64) write { return write{version: version, del: true} }
	absent := write{}
	for _, tc := range []struct {
		name    string
		last    write
		pending []write
		found   write
		ok      bool
	}{
		{"the acknowledged", v(2), nil, v(2), true},
		{"an older one", v(2), nil, v(1), false},
		{"gone", v(2), nil, absent, false},
		{"one that nobody wrote", v(2), nil, v(3), false},
		{"the unanswered", v(2), []write{v(3)}, v(3), true},
		{"not the unanswered", v(2), []write{v(3)}, v(2), true},
		{"older than the acknowledged", v(2), []write{v(3)}, v(1), false},
		{"gone, with an unanswered one", v(2), []write{v(3)}, absent, false},
		{"never written", absent, nil, absent, true},
		{"never acknowledged", absent, []write{v(1)}, absent, true},
		{"deleted", del(2), nil, absent, true},
		{"back after its deletion", del(2), nil, v(1), false},
		{"perhaps deleted", v(1), []write{del(2)}, absent, true},
		{"perhaps not deleted", v(1), []write{del(2)}, v(1), true},
		{"ended", ttl(2, time.Second), nil, absent, true},
		{"ended late", ttl(2, time.Millisecond), nil, ttl(2, time.Millisecond), true},
		{"ended early", ttl(2, time.Hour), nil, absent, false},
		{"an older one, for it ended", ttl(2, time.Second), nil, v(1), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &register{name: "key", last: tc.last, pending: tc.pending}
			found := !tc.found.gone()
			_, _, err := r.settle(r.value(tc.found), found, now)
			if (err == nil) != tc.ok {
				t.Errorf("judged %v", err)
			}
			if err == nil && (r.pending != nil || r.last.gone() != !found) {
				t.Errorf("settled on %+v", r.last)
			}
		})
	}
	r := &register{name: "key", last: v(2)}
	mixed := r.value(v(2))
	mixed[len(mixed)-1] ^= 1
	if _, _, err := r.settle(mixed, true, now); err == nil {
		t.Error("a flipped bit was let pass")
	}
	for got, ok := range map[int64]bool{12: false, 13: true, 15: true, 16: false} {
		c := &counter{name: "counter", base: 10, acked: 3, pending: 2}
		if err := c.settle(got); (err == nil) != ok {
			t.Errorf("a counter at %d: %v", got, err)
		}
	}
}
