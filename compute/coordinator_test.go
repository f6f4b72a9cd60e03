package compute

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport"
)

// The master dies in the middle: the shard's next leader does the whole part
// again, and nothing of the old one's is counted.
func TestMasterDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3)
		want := c.fill("a/", 1000)
		c.hook(func(h *hooks) {
			h.scan = func(string, uint32, string) error { time.Sleep(time.Millisecond); return nil }
		})
		killed := make(chan struct{})
		time.AfterFunc(60*time.Millisecond, func() { // n2 masters shard 1, with tasks done and tasks under way
			defer close(killed)
			c.kill("n2")
			time.Sleep(time.Second) // the election
			c.lead(1, "n3")
		})
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		<-killed
		wantResult(t, rec, want)
		if s := rec.Shards[1]; s.Master != "n3" || s.Attempts < 2 {
			t.Errorf("shard 1: %+v", s)
		}
	})
}

// The master lives but loses the lead.
func TestMasterLosesTheLead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 3)
		want := c.fill("a/", 1000)
		c.hook(func(h *hooks) {
			h.scan = func(string, uint32, string) error { time.Sleep(5 * time.Millisecond); return nil }
		})
		time.AfterFunc(60*time.Millisecond, func() { c.lead(1, "n3") })
		rec := c.run(t.Context(), "n1", sumOf("a/"))
		wantResult(t, rec, want)
		if s := rec.Shards[1]; s.Master != "n3" || s.Attempts < 2 {
			t.Errorf("shard 1: %+v", s)
		}
	})
}

// A shard without a leader: the job waits for its time-out and then fails. The
// other shards' answers are no result.
func TestNeverPartial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 4)
		c.fill("a/", 100)
		c.lead(3, "")
		s := sumOf("a/")
		s.TimeoutMillis = 20_000
		start := time.Now()
		rec := c.run(t.Context(), "n1", s)
		if rec.State != job.Failed || rec.Code != job.CodeTimeout || rec.Result != nil || rec.Progress.ShardsDone != 3 {
			t.Errorf("job %s (%s): result %v, %q", rec.State, rec.Code, rec.Result, rec.Error)
		}
		if took := time.Since(start); took < 20*time.Second || took > 22*time.Second {
			t.Errorf("took %s", took)
		}
		if !strings.Contains(rec.Error, "shard 3 was asked") {
			t.Errorf("%q does not say which shard it waited for", rec.Error)
		}
	})
}

// A master that cannot have a pinned view, for there are too many, is asked again and again, and whoever waits is told why.
func TestRefusedPinIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		want := c.fill("a/", 1000)
		master := c.leader(1)
		full := time.Now().Add(10 * time.Second)
		c.hook(func(h *hooks) {
			h.view = func(_ context.Context, node string, shard uint32) error {
				if node == master && shard == 1 && time.Now().Before(full) {
					return transport.Errorf(transport.CodeNoPin, "too many views are pinned here")
				}
				return nil
			}
		})
		s := sumOf("a/")
		s.TasksPerReplica, s.TimeoutMillis = 4, 5_000
		if rec := c.run(t.Context(), "n1", s); rec.State != job.Failed || rec.Code != job.CodeTimeout || !strings.Contains(rec.Error, "too many views are pinned here") {
			t.Errorf("job %s (%s): %q", rec.State, rec.Code, rec.Error)
		}
		s.TimeoutMillis = 60_000
		rec := c.run(t.Context(), "n1", s)
		wantResult(t, rec, want)
		if shard := rec.Shards[1]; shard.Attempts < 3 || shard.Trouble != "" {
			t.Errorf("shard 1: asked %d times, trouble %q", shard.Attempts, shard.Trouble)
		}
	})
}

// The time-out is of the job: a coordinator goes on with what the ones before it have left of it.
func TestTimeOutIsOfAllRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.lead(1, "")
		s := sumOf("a/")
		s.TimeoutMillis = 60_000
		rec := job.Record{ID: "j1", Spec: s.WithDefaults(), State: job.Running, Epoch: 3, RanMillis: 50_000}
		start := time.Now()
		rec = c.coordinate(t.Context(), rec, savedNowhere{c.node("n1")})
		if took := time.Since(start); rec.Code != job.CodeTimeout || took < 10*time.Second || took > 11*time.Second || rec.RanMillis < 60_000 {
			t.Errorf("%s (%s) after %v, %d ms in all", rec.State, rec.Code, took, rec.RanMillis)
		}
	})
}

// A record that cannot be stored is a failure that can: else the job would be run again and again.
func TestResultThatCannotBeStored(t *testing.T) {
	r := &jobRun{now: time.Now, began: time.Now(), rec: job.Record{Spec: job.Spec{Reduce: job.ReduceCount, Prefix: strings.Repeat("<", 90<<10)}}}
	r.conclude(nil)
	if r.rec.State != job.Failed || r.rec.Result != nil || r.rec.Error == "" {
		t.Errorf("%s: %s", r.rec.State, r.rec.Error)
	}
}

// A shard that is forgotten, or asked twice, is noticed.
func TestEverySlotOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 4)
		c.fill("a/", 100)
		for _, shards := range [][]uint32{{0, 1, 3}, {0, 1, 2, 2, 3}, {}} {
			rec := job.Record{ID: "j1", Spec: sumOf("a/").WithDefaults(), State: job.Running, Epoch: 1}
			rec = c.coordinate(t.Context(), rec, someShards{savedNowhere{c.node("n1")}, shards})
			if rec.State != job.Failed || rec.Result != nil {
				t.Errorf("shards %v: job %s, result %v", shards, rec.State, rec.Result)
			}
		}
	})
}

type someShards struct {
	CoordinatorEnv
	shards []uint32
}

func (s someShards) Shards() []uint32 { return s.shards }

// A job that kills every master is given up.
func TestJobThatKillsItsMasters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		calls := 0
		env := lossy{savedNowhere{c.node("n1")}, func(m transport.Method) error {
			if m == transport.MethodShardJob {
				calls++
				return transport.Errorf(transport.CodeLinkLost, "node died")
			}
			return nil
		}}
		rec := c.coordinate(t.Context(), job.Record{ID: "j1", Spec: sumOf("a/").WithDefaults(), State: job.Running, Epoch: 1}, env)
		if rec.State != job.Failed || calls != maxMasterLosses || !strings.Contains(rec.Error, "lost its master 8 times") {
			t.Errorf("job %s after %d masters: %q", rec.State, calls, rec.Error)
		}
	})
}

type lossy struct {
	CoordinatorEnv
	fail func(m transport.Method) error
}

func (l lossy) CallLeader(ctx context.Context, shard uint32, m transport.Method, req []byte) ([]byte, error) {
	if err := l.fail(m); err != nil {
		return nil, err
	}
	return l.CoordinatorEnv.CallLeader(ctx, shard, m, req)
}

// Random faults in virtual time: nodes die and come back, links are cut, leads
// move, scans are slow. A job is answered exactly or fails; it is never wrong.
func TestFaultsNeverMakeAnAnswerWrong(t *testing.T) {
	const seeds = 60 / min(slowed, 4)
	succeeded := 0
	for seed := range uint64(seeds) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 6))
			c := newCluster(t, 3+rnd.IntN(3), 1+rnd.IntN(5))
			want := c.fill("a/", 200+rnd.IntN(800))
			slow := time.Duration(rnd.IntN(3000)) * time.Microsecond
			c.hook(func(h *hooks) {
				h.scan = func(string, uint32, string) error { time.Sleep(slow); return nil }
			})
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { defer close(ended); c.disturb(ctx, rnd) }()
			s := sumOf("a/")
			s.TimeoutMillis = 60_000
			rec := c.run(t.Context(), "n1", s)
			cancel()
			<-ended
			switch {
			case rec.State == job.Succeeded && rec.Result.String() != strconv.Itoa(want):
				t.Errorf("seed %d: result %s, want %d", seed, rec.Result, want)
			case rec.State == job.Succeeded:
				succeeded++
				wantComplete(t, rec)
			case rec.State != job.Failed || rec.Result != nil || rec.Error == "":
				t.Errorf("seed %d: %+v", seed, rec)
			}
		})
	}
	if succeeded < seeds*5/6 {
		t.Errorf("only %d of %d jobs came through", succeeded, seeds)
	}
}

// disturb does damage every now and then until ctx ends. n1, where the
// coordinator is, stays.
func (c *cluster) disturb(ctx context.Context, rnd *rand.Rand) {
	nodes := len(c.ids())
	for {
		select {
		case <-time.After(time.Duration(rnd.IntN(300)) * time.Millisecond):
		case <-ctx.Done():
			return
		}
		node := fmt.Sprintf("n%d", 2+rnd.IntN(nodes-1))
		switch rnd.IntN(6) {
		case 0:
			c.kill(node)
		case 1:
			if c.node(node) == nil {
				c.start(node)
			}
		case 2:
			c.net.Cut(node, fmt.Sprintf("n%d", 1+rnd.IntN(nodes)))
		case 3:
			c.net.Heal()
		case 4:
			c.lead(uint32(rnd.IntN(len(c.writes))), node)
		case 5:
			c.net.Delay(node, "", time.Duration(rnd.IntN(200))*time.Millisecond)
		}
		ids := c.ids()
		for shard := range c.writes { // elections
			if leader := c.leader(uint32(shard)); c.node(leader) == nil {
				c.lead(uint32(shard), ids[rnd.IntN(len(ids))])
			}
		}
	}
}
