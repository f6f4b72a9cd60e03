package compute

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Slots change hands while a job runs. Whatever its shards have read by then, each key counts once.
// The fakes hide what a shard does not own at a view's index, as views do.

// movedSlots are slots of shard 0 at the beginning, of two.
var movedSlots = sharding.SlotRange{From: 1000, To: 3000}

// Where a move falls between the views of two shards: one of them has taken its view and answered when it happens,
// and the other takes its view afterwards.
func TestSlotsMoveBetweenViews(t *testing.T) {
	for _, c := range []struct {
		name string
		// planned is the shard that has answered by then; the move is from 0 to 1.
		planned   uint32
		giveFirst bool
		pause     time.Duration
	}{
		{"both have them", 0, false, 0},
		{"both have them for a while", 0, false, 700 * time.Millisecond},
		{"the second has them for a while too", 1, false, 700 * time.Millisecond},
		{"neither has them", 1, true, 0},
		{"neither has them for a while", 1, true, 700 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cl := newCluster(t, 3, 2)
				want := cl.fill("a/", 500)
				var once sync.Once
				var moving sync.WaitGroup
				cl.hook(func(h *hooks) {
					h.fence = func(shard uint32) {
						if shard == c.planned {
							return
						}
						once.Do(func() {
							time.Sleep(200 * time.Millisecond) // virtual: the other has answered
							moving.Go(func() { cl.move(movedSlots, 0, 1, c.giveFirst, c.pause) })
							time.Sleep(time.Millisecond) // the first half of the move is done
						})
					}
				})
				rec := cl.run(t.Context(), "n1", sumOf("a/"))
				moving.Wait()
				wantResult(t, rec, want)
				// With the receiver read first and the giver keeping them till the end, they are counted once.
				if again := !(c.planned == 1 && !c.giveFirst); again != (rec.Rounds > 1) {
					t.Errorf("%d rounds", rec.Rounds)
				}
			})
		})
	}
}

// A move before the first view, or after the last task, costs nothing; multi-range and empty shards are as good as others.
func TestSlotsMoveBeforeAndAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3)
		want := c.fill("a/", 500)
		c.move(movedSlots, 0, 1, true, 0)
		all := c.founded(2)[0]
		c.move(all, 2, 0, true, 0) // shard 2 has nothing left
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		if n := len(rec.Shards[2].Tasks); n != 0 || rec.Rounds != 0 {
			t.Errorf("%d tasks in an empty shard, %d rounds", n, rec.Rounds)
		}
		c.move(movedSlots, 1, 2, true, 0)
		if got := rec.Result.String(); got != fmt.Sprint(want) {
			t.Errorf("got %s", got)
		}
		wantResult(t, c.run(t.Context(), "n2", sumOf("a/")), want)
	})
}

// heard notes what a coordinator asks masters in.
type heard struct {
	transport.Transport
	mu    sync.Mutex
	calls int
	round bool
}

func (h *heard) Call(ctx context.Context, to string, l transport.Lane, m transport.Method, req []byte) ([]byte, error) {
	h.mu.Lock()
	h.calls++
	h.round = h.round || bytes.Contains(req, []byte(`"round"`))
	h.mu.Unlock()
	return h.Transport.Call(ctx, to, l, m, req)
}

// Without a pin, slots go between a master's plan and a task: the task finds that it would read what is another shard's, and says
// so; that is not its node's fault.
func TestSlotsMoveBetweenPlanAndTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.level = sharding.LevelFirst
		want := c.fill("a/", 500)
		var once sync.Once
		c.hook(func(h *hooks) {
			h.view = func(_ context.Context, _ string, shard uint32) error {
				if shard == 0 {
					once.Do(func() { c.move(movedSlots, 0, 1, false, 0) })
				}
				return nil
			}
		})
		words := &heard{Transport: c.node("n1").t}
		c.node("n1").t = words
		start := time.Now()
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		if rec.Rounds != 2 || time.Since(start) > time.Second {
			t.Errorf("%d rounds, %s", rec.Rounds, time.Since(start))
		}
		if words.calls == 0 || words.round {
			t.Errorf("in %d calls, masters were told of rounds: %t", words.calls, words.round)
		}
		for _, s := range rec.Shards {
			if s.Exact || s.Cached || c.rows[s.Shard] != nil {
				t.Errorf("shard %d says or keeps what an older member does not understand: %+v", s.Shard, s)
			}
			for _, task := range s.Tasks {
				if task.Bytes != 0 {
					t.Errorf("task %d says what an older master does not understand: %+v", task.ID, task)
				}
				if len(task.FailedOn) != 0 {
					t.Errorf("shard %d: task %+v", s.Shard, task)
				}
			}
		}
	})
}

// A worker whose replica has not applied yet that the shard owns the slots waits until it has, or another does the task.
func TestSlotsMoveAndAWorkerIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		want := c.fill("a/", 500)
		c.move(movedSlots, 0, 1, true, 0)
		start := time.Now()
		c.hook(func(h *hooks) {
			h.lag = func(node string, shard uint32) uint64 {
				if node == "n3" && shard == 1 && time.Since(start) < 800*time.Millisecond {
					return 1 // the entry that gives it the slots
				}
				return 0
			}
		})
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		if rec.Rounds != 0 {
			t.Errorf("%d rounds", rec.Rounds)
		}
	})
}

// A shard that comes to be while the job runs, and takes slots, is asked in the next round.
func TestShardsSplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.level = sharding.LevelFirst
		want := c.fill("a/", 500)
		var once sync.Once
		c.hook(func(h *hooks) {
			h.fence = func(shard uint32) {
				once.Do(func() {
					c.mu.Lock()
					c.writes, c.leaders, c.rows, c.revs = append(c.writes, nil), append(c.leaders, "n3"), append(c.rows, nil), append(c.revs, 0)
					c.terms = append(c.terms, 0)
					c.mu.Unlock()
					c.move(movedSlots, 0, 2, true, 0)
				})
			}
		})
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		if len(rec.Shards) != 3 || rec.Rounds != 2 {
			t.Errorf("%d shards, %d rounds", len(rec.Shards), rec.Rounds)
		}
	})
}

// Moves every few milliseconds for a while, in all directions, with both halves in either order, while nodes are slow:
// every job that is answered is answered exactly, and all are once it is quiet.
func TestSlotsKeepMovingForAWhile(t *testing.T) {
	rounds := 0
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 11))
			c := newCluster(t, 3, 4)
			want := c.fill("a/", 300)
			c.hook(func(h *hooks) {
				h.scan = func(string, uint32, string) error { time.Sleep(100 * time.Microsecond); return nil }
			})
			var moving sync.WaitGroup
			moving.Go(func() {
				for range 100 {
					from := rnd.IntN(len(c.writes))
					slots := c.someRun(uint32(from), rnd)
					if slots.From <= slots.To {
						to := (from + 1 + rnd.IntN(len(c.writes)-1)) % len(c.writes)
						c.move(slots, uint32(from), uint32(to), rnd.IntN(2) == 0, time.Duration(rnd.IntN(8))*time.Millisecond)
					}
					time.Sleep(time.Duration(rnd.IntN(6)) * time.Millisecond)
				}
			})
			for i := range 3 {
				rec := job.Record{ID: fmt.Sprintf("j%d", i), Spec: sumOf("a/").WithDefaults(), State: job.Running, Epoch: 1}
				rec = c.coordinate(t.Context(), rec, savedNowhere{c.node("n1")})
				wantResult(t, rec, want)
				rounds += rec.Rounds
				for shard := range c.first {
					if err := c.node(c.leader(uint32(shard))).master.Forget(t.Context(), uint32(shard), rec.Key()); err != nil {
						t.Fatal(err)
					}
				}
				c.wantNoPins()
			}
			moving.Wait()
		})
	}
	if rounds < 8 {
		t.Errorf("%d rounds: the moves hit nothing", rounds)
	}
}

// wantNoPins says whether some round has left its pin behind.
func (c *cluster) wantNoPins() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, n := range c.nodes {
		for shard, pins := range n.pins {
			if len(pins) > 0 {
				c.t.Errorf("%s has %d pins of shard %d yet", id, len(pins), shard)
			}
		}
	}
}

// someRun is a part of what a shard owns; none (From > To) if it owns nothing.
func (c *cluster) someRun(shard uint32, rnd *rand.Rand) sharding.SlotRange {
	c.mu.Lock()
	defer c.mu.Unlock()
	owned, _ := c.state(shard, uint64(len(c.writes[shard])))
	var slots []int
	for slot, own := range owned {
		if own {
			slots = append(slots, slot)
		}
	}
	if len(slots) == 0 {
		return sharding.SlotRange{From: 1}
	}
	from := slots[rnd.IntN(len(slots))]
	to := from
	for last := from + rnd.IntN(2000); to < last && to+1 < sharding.Slots && owned[to+1]; to++ {
	}
	return sharding.SlotRange{From: uint16(from), To: uint16(to)}
}

// Slots that never stay, as they change hands in each round between the views of two shards: the job ends at its
// deadline and says why.
func TestSlotsNeverStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.fill("a/", 500)
		owner := uint32(0)
		c.hook(func(h *hooks) {
			h.fence = func(shard uint32) {
				if shard == 1 {
					time.Sleep(200 * time.Millisecond) // virtual: shard 0 has answered
					c.move(movedSlots, owner, 1-owner, true, 0)
					owner = 1 - owner
				}
			}
		})
		s := sumOf("a/")
		s.TimeoutMillis = 5000
		start := time.Now()
		rec := c.run(t.Context(), "n1", s)
		if rec.State != job.Failed || rec.Code != job.CodeTimeout || rec.Result != nil || rec.Rounds < 3 || !strings.Contains(rec.Error, "slots kept changing hands") {
			t.Errorf("job %s (%s) after %d rounds: %v %q", rec.State, rec.Code, rec.Rounds, rec.Result, rec.Error)
		}
		if took := time.Since(start); took < 5*time.Second || took > 7*time.Second {
			t.Errorf("took %s", took)
		}
	})
}
