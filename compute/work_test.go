package compute

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// book writes rows as a shard's log would.
type book struct {
	t    *testing.T
	rows []Row
}

func (b *book) add(rows []Row, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, r := range rows {
		r.Revision = int64(len(b.rows) + 1)
		b.rows = append(b.rows, r)
	}
}

const bookPrefix = "job-work/j~x/00000000/"

func (b *book) claim(n int, pin uint64, slots ...[2]uint16) {
	b.t.Helper()
	b.add(claimRows(bookPrefix, n, claimRow{Pin: Pin{ID: pin, Index: pin}, Slots: slots, Master: "n1"}))
}

func (b *book) done(claim int, from, to uint16, values ...string) {
	b.t.Helper()
	b.add(doneRows(bookPrefix, claim, job.TaskReport{From: from, To: to}, over(b.t, sumOf(""), values...)))
}

// What the rows of a shard's log say, whatever masters did one after the other.
func TestReadWork(t *testing.T) {
	type slots = []sharding.SlotRange
	for _, c := range []struct {
		name  string
		write func(b *book)
		done  slots
		left  slots
	}{
		{"nobody has begun", func(*book) {}, nil, nil},
		{"a claim and no task", func(b *book) { b.claim(1, 7, [2]uint16{0, 99}) }, nil, slots{{From: 0, To: 99}}},
		{"tasks in the middle", func(b *book) {
			b.claim(1, 7, [2]uint16{0, 99}, [2]uint16{200, 299})
			b.done(1, 10, 19, "1")
			b.done(1, 200, 299, "2")
		}, slots{{From: 10, To: 19}, {From: 200, To: 299}}, slots{{From: 0, To: 9}, {From: 20, To: 99}}},
		{"all", func(b *book) {
			b.claim(1, 7, [2]uint16{0, 9})
			b.done(1, 5, 9, "1")
			b.done(1, 0, 4, "2")
		}, slots{{From: 0, To: 4}, {From: 5, To: 9}}, nil},
		{"the next master goes on", func(b *book) {
			b.claim(1, 7, [2]uint16{0, 9})
			b.done(1, 0, 4, "1")
			b.claim(2, 7, [2]uint16{0, 9})
			b.done(2, 5, 6, "2")
		}, slots{{From: 0, To: 4}, {From: 5, To: 6}}, slots{{From: 7, To: 9}}},
		{"what the last one still had on its way does not count", func(b *book) {
			b.claim(1, 7, [2]uint16{0, 9})
			b.claim(2, 7, [2]uint16{0, 9})
			b.done(1, 0, 4, "1")
			b.done(2, 0, 2, "2")
			b.claim(3, 7, [2]uint16{0, 9})
			b.done(2, 3, 9, "3")
			b.done(1, 5, 9, "3")
		}, slots{{From: 0, To: 2}}, slots{{From: 3, To: 9}}},
		{"another pin is another state", func(b *book) {
			b.claim(1, 7, [2]uint16{0, 9})
			b.done(1, 0, 4, "1")
			b.claim(2, 8, [2]uint16{0, 7})
			b.done(2, 6, 7, "2")
		}, slots{{From: 6, To: 7}}, slots{{From: 0, To: 5}}},
		{"the last slot", func(b *book) {
			b.claim(1, 7, [2]uint16{0, 16383})
			b.done(1, 16383, 16383, "1")
		}, slots{{From: 16383, To: 16383}}, slots{{From: 0, To: 16382}}},
	} {
		b := &book{t: t}
		c.write(b)
		f, err := readWork(bookPrefix, b.rows)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var done slots
		for _, d := range f.done {
			done = append(done, sharding.SlotRange{From: d.report.From, To: d.report.To})
		}
		if !slices.Equal(done, c.done) || !slices.Equal(f.left(), c.left) {
			t.Errorf("%s: done %v, left %v; want %v and %v", c.name, done, f.left(), c.done, c.left)
		}
		slices.Reverse(b.rows) // their order is not what counts
		if again, err := readWork(bookPrefix, b.rows); err != nil || len(again.done) != len(f.done) {
			t.Errorf("%s: reversed %+v, %v", c.name, again, err)
		}
	}
}

// Rows that cannot be of this code are refused: an answer from them would be wrong.
func TestReadWorkRefuses(t *testing.T) {
	for name, write := range map[string]func(b *book){
		"tasks that overlap": func(b *book) {
			b.claim(1, 7, [2]uint16{0, 9})
			b.done(1, 0, 5, "1")
			b.done(1, 5, 9, "1")
		},
		"slots of another": func(b *book) {
			b.claim(1, 7, [2]uint16{0, 9})
			b.done(1, 5, 10, "1")
		},
		"a claim that is no JSON":  func(b *book) { b.add([]Row{{Name: claimName(bookPrefix, 1), Value: []byte("x")}}, nil) },
		"a claim without a number": func(b *book) { b.add([]Row{{Name: bookPrefix + "c/x", Value: []byte("{}")}}, nil) },
		"a task that is cut off": func(b *book) {
			b.claim(1, 7, [2]uint16{0, 9})
			b.done(1, 0, 5, "1")
			last := &b.rows[len(b.rows)-1]
			last.Value = last.Value[:len(last.Value)-1]
		},
	} {
		b := &book{t: t}
		write(b)
		if f, err := readWork(bookPrefix, b.rows); err == nil {
			t.Errorf("%s: read %+v", name, f)
		}
	}
}

// A partial too large for one row comes back from its pieces, and is refused without one of them.
func TestWorkInPieces(t *testing.T) {
	long := strings.Repeat("x", maxTextBytes)
	p := over(t, job.Spec{As: "string", Reduce: "max"}.WithDefaults(), long, strings.Repeat("y", maxTextBytes))
	b := &book{t: t}
	b.claim(1, 7, [2]uint16{0, 9})
	b.add(doneRows(bookPrefix, 1, job.TaskReport{From: 0, To: 9}, p))
	if len(b.rows) != 4 { // a claim, two pieces, and what makes them count
		t.Fatalf("%d rows", len(b.rows))
	}
	f, err := readWork(bookPrefix, b.rows)
	if err != nil || len(f.done) != 1 || !bytes.Equal(f.done[0].partial.Encode(), p.Encode()) {
		t.Errorf("%d tasks, %v", len(f.done), err)
	}
	if _, err := readWork(bookPrefix, append(slices.Clone(b.rows[:1]), b.rows[2:]...)); err == nil {
		t.Error("read without its first piece")
	}
}

// scans counts, key by key, how often it was read.
type scans struct {
	mu sync.Mutex
	of map[string]int
}

func (c *cluster) countScans(before func(node string, shard uint32, key string) error) *scans {
	s := &scans{of: map[string]int{}}
	c.hook(func(h *hooks) {
		h.scan = func(node string, shard uint32, key string) error {
			s.mu.Lock()
			s.of[fmt.Sprint(shard, key)]++
			s.mu.Unlock()
			return before(node, shard, key)
		}
	})
	return s
}

func (s *scans) total() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, times := range s.of {
		n += times
	}
	return n
}

func slowScan(string, uint32, string) error { time.Sleep(time.Millisecond); return nil }

// A master that dies takes the tasks with it that were under way, and no others.
func TestNextMasterGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		want := c.fill("a/", 2000)
		s := sumOf("a/")
		s.TasksPerReplica = 16
		seen := c.countScans(slowScan)
		time.AfterFunc(300*time.Millisecond, func() {
			c.kill("n1")
			time.Sleep(100 * time.Millisecond)
			c.lead(0, "n2")
		})
		rec := c.run(t.Context(), "n3", s)
		wantResult(t, rec, want)
		if rec.Shards[0].Master != "n2" || rec.Shards[0].Attempts < 2 {
			t.Errorf("shard %+v", rec.Shards[0])
		}
		// Five tasks may have been under way, of 42 keys each, and what came in since the last results were written, up to flushAfter before.
		if again := seen.total() - 2000; again == 0 || again > 1000 {
			t.Errorf("%d keys were read twice", again)
		}
	})
}

// Tasks that another master had done count by how fast they went, too, when one is to be done twice because it is slow.
func TestResumedTasksHaveARate(t *testing.T) {
	b := &book{t: t}
	b.claim(1, 7, [2]uint16{0, 99})
	b.add(doneRows(bookPrefix, 1, job.TaskReport{From: 0, To: 99, Records: 3, Bytes: 5000, Millis: 10}, over(t, sumOf(""), "1")))
	known, err := readWork(bookPrefix, b.rows)
	if err != nil {
		t.Fatal(err)
	}
	r := &shardRun{memory: testAdmission(1).masters.open()}
	if err := r.resume(known); err != nil {
		t.Fatal(err)
	}
	s := scheduler{tasks: r.tasks}
	if rate, enough := s.medianRate(); rate != 5e5 || !enough {
		t.Errorf("%f bytes a second, enough: %t", rate, enough)
	}
}

// A master that has no memory for what is done already claims nothing: it is asked again each second, and each claim would stay.
func TestNoClaimWithoutMemory(t *testing.T) {
	s := job.Spec{As: job.AsString, GroupBy: "value", Reduce: job.ReduceCount}.WithDefaults()
	values := make([]string, 5000)
	for i := range values {
		values[i] = fmt.Sprint("group ", i)
	}
	b := &book{t: t}
	b.claim(1, 7, [2]uint16{0, 99})
	b.add(doneRows(bookPrefix, 1, job.TaskReport{From: 0, To: 49, Records: 5000}, over(t, s, values...)))
	known, err := readWork(bookPrefix, b.rows)
	if err != nil {
		t.Fatal(err)
	}
	full := &budget{limit: func() int64 { return 0 }}
	full.open()                         // the oldest may have more
	r := &shardRun{memory: full.open()} // no shard: a claim would be a panic
	if err := r.resume(known); transport.CodeOf(err) != transport.CodeBusy || r.claim != 0 {
		t.Errorf("error %v, claim %d", err, r.claim)
	}
}

// A result that is on its way into the log while the next master takes over comes to count, or does not, but it is not counted
// by some masters only: that would have them do what it covers again, and the one after them find it done twice.
func TestResultDuringTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, 1)
		want := c.fill("a/", 8000)
		s := sumOf("a/")
		s.TasksPerReplica = 16
		var late Row
		c.hook(func(h *hooks) {
			h.scan = slowScan
			h.change = func(shard uint32, rows []Row) {
				switch last := &rows[len(rows)-1]; {
				case late.Name == "" && strings.Contains(last.Name, "/t/00000001/"): // it is held up
					late, last.Name = *last, "elsewhere"
				case late.Revision == 0 && strings.Contains(last.Name, "/c/00000002"): // until the next master has read what is there
					c.revs[shard]++
					late.Revision = c.revs[shard]
					c.rows[shard][late.Name] = late
				}
			}
		})
		lead := func(after time.Duration, from, to string) {
			time.AfterFunc(after, func() {
				c.kill(from)
				time.Sleep(100 * time.Millisecond)
				c.lead(0, to)
			})
		}
		lead(500*time.Millisecond, "n1", "n2")
		lead(1200*time.Millisecond, "n2", "n3")
		rec := c.run(t.Context(), "n4", s)
		wantResult(t, rec, want)
		if late.Revision == 0 || rec.Shards[0].Master != "n3" {
			t.Errorf("row %s, shard led by %s", late.Name, rec.Shards[0].Master)
		}
	})
}

// A coordinator that takes over asks all shards again; those that were done answer from what they remember.
func TestNextCoordinatorGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		want := c.fill("a/", 2000)
		s := sumOf("a/")
		seen := c.countScans(func(string, uint32, string) error { return nil })
		c.hook(func(h *hooks) {
			h.fence = func(shard uint32) {
				if shard == 1 {
					time.Sleep(200 * time.Millisecond)
				}
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // shard 0 is done, shard 1 is at it
		defer cancel()
		rec := job.Record{ID: "j1", Instance: "i", Spec: s.WithDefaults(), State: job.Running, Epoch: 1}
		if rec := c.coordinate(ctx, rec, savedNowhere{c.node("n1")}); rec.State.Finished() {
			t.Fatalf("job %s", rec.State)
		}
		for key, n := range seen.of {
			if strings.HasPrefix(key, "0") && n != 1 {
				t.Fatalf("%s was read %d times", key, n)
			}
		}
		c.mu.Lock()
		at := sharding.SlotOf([]byte("a/1"))
		c.writes[0] = append(c.writes[0], write{slot: at % (sharding.Slots / 2), key: "a/more", value: "1000000"}) // after the job's index: it must not show
		c.mu.Unlock()
		rec.Epoch = 2
		rec = c.coordinate(t.Context(), rec, savedNowhere{c.node("n2")})
		wantResult(t, rec, want)
		for key, n := range seen.of {
			if strings.HasPrefix(key, "0") && n != 1 {
				t.Errorf("%s was read %d times", key, n)
			}
		}
	})
}

// Money moves between accounts of one shard all the time; every task of a shard reads one state, so the sum is exact, whoever dies.
func TestSumOfOneIndex(t *testing.T) {
	for seed := range uint64(20 / min(slowed, 4)) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 11))
			c := newCluster(t, 4, 2)
			accounts := map[uint32][]string{} // by shard
			for i := 0; len(accounts[0]) < 40 || len(accounts[1]) < 40; i++ {
				key := fmt.Sprintf("a/%d", i)
				shard := uint32(sharding.SlotOf([]byte(key)) / (sharding.Slots / 2))
				accounts[shard] = append(accounts[shard], key)
				c.put(key, "100")
			}
			want := 100 * (len(accounts[0]) + len(accounts[1]))
			c.hook(func(h *hooks) { h.scan = slowScan })
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			wg.Go(func() {
				balance := map[string]int{}
				for ctx.Err() == nil {
					of := accounts[rnd.Uint32N(2)]
					from, to := of[rnd.IntN(len(of))], of[rnd.IntN(len(of))]
					if from != to {
						n := rnd.IntN(50)
						balance[from], balance[to] = balance[from]-n, balance[to]+n
						c.both(from, fmt.Sprint(100+balance[from]), to, fmt.Sprint(100+balance[to]))
					}
					time.Sleep(time.Millisecond)
				}
			})
			wg.Go(func() { c.disturb(ctx, rand.New(rand.NewPCG(seed, 12))) })
			wg.Go(func() { c.publish(ctx) })
			for i := range 5 {
				s := sumOf("a/")
				s.TasksPerReplica = []int{4, 0, 1}[i%3] // 0: one task, and no pin
				rec := c.run(ctx, "n1", s)
				wantResult(t, rec, want)
				for _, shard := range rec.Shards {
					for _, task := range shard.Tasks {
						if !shard.Exact || task.Index != shard.Index {
							t.Fatalf("shard %+v", shard)
						}
					}
				}
			}
		})
	}
}

// The same, with coordinators that die, too, and a log that takes its time and does not always say what it has done. No job fails for it.
func TestSumWhoeverGoesOn(t *testing.T) {
	for seed := range uint64(20 / min(slowed, 4)) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 21))
			c := newCluster(t, 4, 2)
			want := c.fill("a/", 600)
			from, to := "", ""
			for i := 0; to == ""; i++ { // two accounts of one shard
				switch key := fmt.Sprintf("a/%d", i); {
				case from == "":
					from = key
				case c.owner(sharding.SlotOf([]byte(key))) == c.owner(sharding.SlotOf([]byte(from))):
					to = key
				}
			}
			var first, second int
			_, _ = fmt.Sscan(strings.TrimPrefix(from, "a/"), &first)
			_, _ = fmt.Sscan(strings.TrimPrefix(to, "a/"), &second)
			var mu sync.Mutex
			log := rand.New(rand.NewPCG(seed, 22))
			c.hook(func(h *hooks) {
				h.scan = slowScan
				h.late = func() (time.Duration, bool) {
					mu.Lock()
					defer mu.Unlock()
					return time.Duration(log.IntN(300)) * time.Millisecond, log.IntN(4) == 0
				}
			})
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			wg.Go(func() {
				for i := 1; ctx.Err() == nil; i++ {
					c.both(from, fmt.Sprint(first-i), to, fmt.Sprint(second+i))
					time.Sleep(time.Millisecond)
				}
			})
			wg.Go(func() { c.disturb(ctx, rand.New(rand.NewPCG(seed, 23))) })
			wg.Go(func() { c.publish(ctx) })
			for range 5 {
				s := sumOf("a/")
				s.TasksPerReplica = 8
				rec := job.Record{ID: "j1", Instance: fmt.Sprint(instances.Add(1)), Spec: s.WithDefaults(), State: job.Running}
				for !rec.State.Finished() {
					rec.Epoch++
					live, die := context.WithTimeout(ctx, time.Duration(100+rnd.IntN(900)*int(rec.Epoch))*time.Millisecond)
					rec = c.coordinate(live, rec, savedNowhere{c.node("n1")})
					die()
				}
				if rec.State != job.Succeeded || rec.Result.String() != fmt.Sprint(want) || rec.Records != 600 {
					t.Fatalf("seed %d: job %s, %v over %d records, want %d: %s", seed, rec.State, rec.Result, rec.Records, want, rec.Error)
				}
			}
		})
	}
}

// both writes two keys of one shard in one entry.
func (c *cluster) both(key1, value1, key2, value2 string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := sharding.SlotOf([]byte(key1))
	shard := c.owner(slot)
	first := write{slot: slot, key: key1, value: value1}
	second := write{slot: sharding.SlotOf([]byte(key2)), key: key2, value: value2}
	first.also = &second
	c.writes[shard] = append(c.writes[shard], first)
}

// A replica that has no pinned view is done without; when no replica has it any more, the part begins anew.
func TestPinIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		want := c.fill("a/", 1000)
		c.hook(func(h *hooks) { h.scan = slowScan })
		lose := func(nodes ...string) func() {
			return func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				for _, id := range nodes {
					clear(c.nodes[id].pins[0])
				}
			}
		}
		time.AfterFunc(100*time.Millisecond, lose("n2"))
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		late := 0
		for _, task := range rec.Shards[0].Tasks {
			if task.Node == "n2" {
				late++
			}
			if len(task.FailedOn) > 0 {
				t.Errorf("to have no pin is no failure: %+v", task)
			}
		}
		if late > 3 {
			t.Errorf("n2 did %d tasks after its pin was lost", late)
		}

		first := rec.Shards[0].Index
		c.put("a/one", "1")
		time.AfterFunc(100*time.Millisecond, func() { c.put("a/two", "1"); lose("n1", "n2", "n3")() })
		rec = c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want+2)
		if rec.Shards[0].Index != first+2 || !rec.Shards[0].Exact {
			t.Errorf("shard %+v", rec.Shards[0])
		}
	})
}

// A pin that is lost again and again does not hold a job for ever.
func TestPinIsAlwaysLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, 1)
		c.fill("a/", 1000)
		pins := 0
		c.hook(func(h *hooks) {
			h.scan = slowScan
			h.change = func(uint32, []Row) {
				for _, n := range c.nodes {
					clear(n.pins[0])
				}
			}
			h.pin = func(uint32) { pins++ }
		})
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		if rec.State != job.Failed || !strings.Contains(rec.Error, "let go of their view") || pins != maxPins {
			t.Errorf("job %s after %d pins: %s", rec.State, pins, rec.Error)
		}
	})
}

// publish carries to every node what waits at the others, as nodes do.
func (c *cluster) publish(ctx context.Context) {
	for ctx.Err() == nil {
		for _, from := range c.ids() {
			for _, to := range c.ids() {
				if a, b := c.node(from), c.node(to); a != nil && b != nil && from != to {
					b.worker.Offered(from, a.master.Loads())
				}
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// A node with nothing to do asks for work, and gets the tail of what a slow one is at: nobody waits for the slow one.
func TestIdleNodesFetchWork(t *testing.T) {
	took := func(publish bool) (d time.Duration, tasks int) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 3, 1)
			want := c.fill("a/", 3000)
			seen := c.countScans(func(node string, _ uint32, _ string) error {
				if node == "n2" {
					time.Sleep(10 * time.Millisecond)
				} else {
					time.Sleep(time.Millisecond)
				}
				return nil
			})
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			if publish {
				wg.Go(func() { c.publish(ctx) })
			}
			s := sumOf("a/")
			s.TasksPerReplica = 1
			start := time.Now()
			rec := c.run(ctx, "n1", s)
			d, tasks = time.Since(start), rec.Progress.Tasks
			wantResult(t, rec, want)
			if publish && seen.total() > 3000+30 { // one batch of keys that a cut came too late for
				t.Errorf("%d keys read, with %d there: work that was handed over was done twice", seen.total(), 3000)
			}
		})
		return d, tasks
	}
	alone, three := took(false)
	shared, more := took(true)
	if three != 3 || more <= 3 || shared > alone/2 {
		t.Errorf("%d tasks took %s; with work fetched, %d took %s", three, alone, more, shared)
	}
}

// When a job has ended, shards forget it: at once, or when they are swept.
func TestShardsForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		want := c.fill("a/", 500)
		defer c.leadJobs("n1")()
		rows := func() (n int) {
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, r := range c.rows {
				n += len(r)
			}
			return n
		}
		written := 0
		c.hook(func(h *hooks) { h.change = func(_ uint32, rows []Row) { written += len(rows) } })
		wantResult(t, c.result("n2", c.submit("n2", sumOf("a/"))), want)
		time.Sleep(time.Second)
		if left := rows(); written == 0 || left != 0 {
			t.Errorf("%d rows were written, %d are left", written, left)
		}

		c.slowly(10 * time.Millisecond)
		id := c.submit("n1", sumOf("a/"))
		time.Sleep(100 * time.Millisecond)
		n := c.node("n1")
		sweep := func(shard uint32) {
			t.Helper()
			if err := n.jobs.Sweep(t.Context(), c.node(c.leader(shard)).master, shard, c.rowNames(shard)); err != nil {
				t.Error(err)
			}
		}
		if rows() == 0 {
			t.Fatal("no rows of a job that runs")
		}
		sweep(0)
		sweep(1)
		if rows() == 0 {
			t.Error("rows of a job that runs are gone")
		}
		if err := n.jobs.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		sweep(0)
		sweep(1)
		if rows() != 0 {
			t.Errorf("rows after a cancelled job: %v, %v", c.rowNames(0), c.rowNames(1))
		}
		for _, n := range c.nodes {
			for shard, pins := range n.pins {
				if len(pins) > 0 {
					t.Errorf("%s keeps pins %v of shard %d", n.id, pins, shard)
				}
			}
		}
	})
}

func (c *cluster) rowNames(shard uint32) (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.rows[shard] {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// A node that has lost the lead while it took a part over has claimed nothing.
func TestClaimOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		want := c.fill("a/", 500)
		once := true
		c.hook(func(h *hooks) {
			h.change = func(shard uint32, rows []Row) {
				if once && len(rows) == 1 && strings.Contains(rows[0].Name, "/c/") {
					once = false
					c.revs[shard]++
					if c.rows[shard] == nil {
						c.rows[shard] = map[string]Row{}
					}
					c.rows[shard][rows[0].Name] = Row{Name: rows[0].Name, Value: rows[0].Value, Revision: c.revs[shard]}
				}
			}
		})
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		if rec.Shards[0].Attempts != 2 {
			t.Errorf("shard %+v", rec.Shards[0])
		}
	})
}

// A worker that is asked to leave a tail keeps to what it has said.
func TestCutTask(t *testing.T) {
	task := &running{at: 10, to: 20, cancel: func(error) {}}
	if _, to, _ := task.status(false); to != 20 {
		t.Errorf("to %d", to)
	}
	if _, to, _ := task.status(true); to != 15 {
		t.Errorf("cut at %d", to)
	}
	if !task.enter(15, 0, 0) || task.enter(16, 0, 0) {
		t.Error("slots beyond the cut are scanned")
	}
	if _, to, _ := task.status(true); to != 15 {
		t.Errorf("cut at %d, where it works", to)
	}
	task.at = 14
	if _, to, _ := task.status(true); to != 14 {
		t.Errorf("cut at %d of 14 to 15", to)
	}
	if to := task.finish(); to != 14 {
		t.Errorf("finished at %d", to)
	}
	task.at = 0
	if _, to, _ := task.status(true); to != 14 {
		t.Errorf("cut at %d after its end", to)
	}
	w := &Worker{tasks: map[taskKey]*running{}}
	req, err := encodeMessage(statusRequest{taskKey: taskKey{Task: 1}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.serveStatus(t.Context(), "n2", req); transport.CodeOf(err) != transport.CodeNotFound {
		t.Errorf("status of nothing: %v", err)
	}
}

// A job that can have no answer ends as soon as one task has found that, and not after all have read.
func TestNoAnswerEndsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.fill("a/", 4000)
		seen := c.countScans(slowScan)
		s := sumOf("a/")
		s.GroupBy, s.MaxGroups, s.TasksPerReplica = "key", 10, 16
		rec := c.run(t.Context(), "n1", s)
		if rec.State != job.Failed || rec.Result != nil || !strings.Contains(rec.Error, "10") {
			t.Errorf("job %s: %v %q", rec.State, rec.Result, rec.Error)
		}
		if n := seen.total(); n > 1000 {
			t.Errorf("%d keys were read", n)
		}
	})
}

// A master that is cut off, and so neither answers nor hears that another leads, is not waited for until its link is found dead.
func TestMasterIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, 1)
		want := c.fill("a/", 2000)
		c.hook(func(h *hooks) { h.scan = slowScan })
		time.AfterFunc(100*time.Millisecond, func() {
			c.net.Isolate("n1")
			time.Sleep(time.Second) // the election
			c.lead(0, "n2")
		})
		start := time.Now()
		rec := c.run(t.Context(), "n4", sumOf("a/"))
		wantResult(t, rec, want)
		// The election; until its part was missed twice; until what it has as a worker is done again.
		if took := time.Since(start); took > 1100*time.Millisecond+2*progressTick+lateAfter+500*time.Millisecond {
			t.Errorf("took %s", took)
		}
		if rec.Shards[0].Master != "n2" {
			t.Errorf("shard %+v", rec.Shards[0])
		}
		c.net.Heal()
	})
}

// Who waits for a job on a node that has the ledger hears of its end when that is applied there.
func TestEndIsHeardAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 1)
		c.fill("a/", 300)
		c.listen()
		defer c.leadJobs("n1")()
		c.hook(func(h *hooks) { h.scan = slowScan })
		id := c.submit("n2", sumOf("a/"))
		var wg sync.WaitGroup
		for _, node := range []string{"n2", "n2", "n3"} {
			wg.Go(func() {
				rec := c.result(node, id)
				if late := time.Now().UnixMilli() - rec.FinishedMillis; rec.State != job.Succeeded || late > 0 {
					t.Errorf("job %s was heard of at %s %d ms after its end", rec.State, node, late)
				}
			})
		}
		wg.Wait()
		for _, n := range c.nodes {
			if len(n.jobs.watching) > 0 {
				t.Errorf("%s watches %d jobs", n.id, len(n.jobs.watching))
			}
		}
	})
}

// A task that takes long and comes further is let go on: nothing is gained by beginning it again.
func TestLongTaskGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		want := c.fill("a/", 100)
		c.slowly(2 * time.Second)
		s := sumOf("a/")
		s.TasksPerReplica, s.TimeoutMillis = 2, time.Hour.Milliseconds()
		rec := c.run(t.Context(), "n1", s)
		wantResult(t, rec, want)
		if n := totalAttempts(rec); n != 2 {
			t.Errorf("%d attempts at 2 tasks", n)
		}
	})
}

// A task holds its view for ten minutes at most, whatever its job's time-out: the storage keeps all that changes meanwhile.
func TestTaskHoldsNoViewForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		c.fill("a/", 500)
		c.slowly(2 * time.Second)
		s := sumOf("a/")
		s.TasksPerReplica, s.TimeoutMillis, s.Filter = 1, time.Hour.Milliseconds(), "key re a" // of others no record takes so long
		rec := c.run(t.Context(), "n1", s)
		if rec.State != job.Failed || !strings.Contains(rec.Error, "took longer than 10m0s") {
			t.Errorf("%s after %d ms: %s (%+v)", rec.State, rec.RanMillis, rec.Error, rec.Shards)
		}
	})
}

// A task that waits for its turn, however long others take, is no task that has failed; and its pin is kept for it.
func TestWaitingTaskIsNotGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		want := c.fill("a/", 100)
		renewed := 0
		c.hook(func(h *hooks) { h.renew = func(string, uint32, Pin) { renewed++ } })
		a := c.node("n1").worker.admission
		for range a.slots {
			if err := a.turns.take(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
		}
		time.AfterFunc(3*time.Minute, func() {
			for range a.slots {
				a.turns.give("")
			}
		})
		s := sumOf("a/")
		s.TasksPerReplica = 2
		rec := c.run(t.Context(), "n1", s)
		wantResult(t, rec, want)
		if n := totalAttempts(rec); n != 2 || renewed < 100 {
			t.Errorf("%d attempts at 2 tasks, the pin was renewed %d times", n, renewed)
		}
	})
}

// A part keeps no more results in the log than is good for it: those beyond are done again, should the master die.
func TestResultsKeptAreBounded(t *testing.T) {
	r := &shardRun{pin: Pin{ID: 1, Index: 1}, rows: bookPrefix, claim: 1}
	p := over(t, sumOf(""), "1")
	for i := range 3 {
		r.remember(&taskState{report: job.TaskReport{From: sharding.Slot(i)}}, p, 0)
		r.kept = maxKept - 1
	}
	if r.tally != 1 || len(r.fresh) != 1 {
		t.Errorf("%d results are kept, in %d rows", r.tally, len(r.fresh))
	}
}

// FuzzReadWork shows that no rows break who reads them: they come from a log, which a node of another version may have written to.
func FuzzReadWork(f *testing.F) {
	b := &book{}
	rows, err := claimRows(bookPrefix, 1, claimRow{Pin: Pin{ID: 7, Index: 7}, Slots: [][2]uint16{{0, 99}}, Master: "n1"})
	b.rows = append(b.rows, rows...)
	if err != nil {
		f.Fatal(err)
	}
	done, err := doneRows(bookPrefix, 1, job.TaskReport{From: 0, To: 49}, new(Partial))
	if err != nil {
		f.Fatal(err)
	}
	b.rows = append(b.rows, done...)
	f.Add(b.rows[0].Name, b.rows[0].Value, b.rows[1].Name, b.rows[1].Value)
	f.Add(bookPrefix+"t/00000001/0000/0000", []byte{1}, bookPrefix+"t/00000001/0000", []byte("{}"))
	f.Fuzz(func(t *testing.T, name1 string, value1 []byte, name2 string, value2 []byte) {
		known, err := readWork(bookPrefix, []Row{{Name: name1, Value: value1, Revision: 1}, {Name: name2, Value: value2, Revision: 2}})
		if err == nil {
			known.left()
		}
	})
}
