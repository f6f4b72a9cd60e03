package store

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
)

// Clients that come back at their own pace after an answer share the next entry; one that
// is alone does not wait for others.
func TestGather(t *testing.T) {
	for _, c := range []struct {
		clients   int
		perEntry  float64 // at least
		atMost    time.Duration
		patiently time.Duration // how long a client may take to come back
	}{
		{1, 0, 100 * time.Microsecond, 0},
		{8, 4, 600 * time.Microsecond, 150 * time.Microsecond},
	} {
		err := situation(t, 1, nil, func(t *testing.T, cl *cluster) error {
			cl.put("a", "1")
			l := cl.waitLeader()
			const puts = 50
			before, began := l.store.Applied(), time.Now()
			var wg sync.WaitGroup
			for range c.clients {
				wg.Go(func() {
					for range puts {
						if _, _, err := l.store.Propose(bg(t), []command.Command{set("k", "v")}); err != nil {
							t.Error(err)
						}
						time.Sleep(time.Duration(rand.Int64N(int64(c.patiently) + 1)))
					}
				})
			}
			wg.Wait()
			took := time.Since(began)
			entries := l.store.Applied() - before
			if got := float64(c.clients*puts) / float64(entries); got < c.perEntry {
				t.Errorf("%d clients: %.1f proposals in an entry, want %.1f", c.clients, got, c.perEntry)
			}
			if each := took / puts; each > c.atMost+c.patiently {
				t.Errorf("%d clients: a proposal took %v, want at most %v", c.clients, each, c.atMost)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
