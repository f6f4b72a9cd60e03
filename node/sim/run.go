package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/chaos/workload"
	"github.com/abacusdb/abacus/sharding"
)

const (
	// settle bounds the time that a healed cluster takes to agree, in virtual time.
	settle = 3 * time.Minute
	// wallLimit bounds a scenario's bubble in real time. One that stands still waits for
	// a lock whose holder sleeps.
	wallLimit = 4 * time.Minute
)

// Run is one scenario. dir is for its files while it runs; it should be in memory.
// If the error is not nil, it names a directory below failures with what is
// known of it.
func Run(t *testing.T, seed uint64, opt Options, dir, failures string) (Report, error) {
	opt = opt.withDefaults(seed)
	began := time.Now()
	dir, err := os.MkdirTemp(dir, "abacus-sim-")
	if err != nil {
		return Report{}, err
	}
	defer os.RemoveAll(dir)
	f := &workload.Findings{Dir: filepath.Join(failures, fmt.Sprintf("seed-%d", seed))}
	s := &scenario{opt: opt, seed: seed, dir: dir}
	watch := time.AfterFunc(wallLimit, func() {
		stacks := make([]byte, 8<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		f.Save("stacks.txt", stacks)
		panic(fmt.Sprintf("sim: seed %d stands still after %v; stacks in %s", seed, wallLimit, f.Dir))
	})
	if left := bubble(t, s.bubble); left != "" {
		f.Add("goroutines are left behind")
		f.Save("stacks.txt", []byte(left))
	}
	watch.Stop()

	if s.err != nil {
		f.Add("%v", s.err)
	}
	for _, w := range s.loads {
		s.report.Keys += w.Check(f)
	}
	s.report.Scenarios, s.report.Wall = 1, time.Since(began)
	if len(f.Faults()) == 0 {
		if err := opt.floors(s.report); err != nil {
			f.Add("%v", err)
		}
	}
	if len(f.Faults()) == 0 {
		return s.report, nil
	}
	what := strings.Join(f.Faults(), "\n")
	options, _ := json.MarshalIndent(opt, "", "  ") // plain fields
	f.Save("options.json", options)
	f.Save("failure.txt", fmt.Appendf(nil, "seed %d, %d nodes, %d shards, %d replicas each\n%s\n\n%s\n", seed, opt.Nodes, opt.Shards, opt.Replicas, what, s.report))
	f.Save("log.txt", s.text())
	return s.report, fmt.Errorf("seed %d: %s\nhistory, options and logs: %s\nagain: ABACUS_SIM_SEED=%d ABACUS_SIM_OPTIONS=%s go test ./node/sim -run '^TestSeed$' -v -count=20",
		seed, what, f.Dir, seed, filepath.Join(f.Dir, "options.json"))
}

// bubble runs f in virtual time and returns the stacks of the goroutines that outlived
// it. Those of a leadership transfer that Raft never ends are left out: it holds two
// for ever when it loses its leadership at the wrong moment (hashicorp/raft#696), and
// store can only start another Raft.
func bubble(t *testing.T, f func()) (left string) {
	ended := false
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if !ended {
			panic(p)
		}
		stacks := make([]byte, 8<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for g := range strings.SplitSeq(string(stacks), "\n\n") {
			first, _, _ := strings.Cut(g, "\n")
			if strings.Contains(first, "synctest bubble") && !strings.Contains(g, "raft.(*Raft).leadershipTransfer(") && !strings.Contains(g, "raft.(*Raft).leaderLoop.func2(") {
				left += g + "\n\n"
			}
		}
	}()
	synctest.Test(t, func(*testing.T) { f(); ended = true })
	return ""
}

// scenario is one run, and after its bubble what came out of it.
type scenario struct {
	opt    Options
	seed   uint64
	dir    string
	loads  []workload.Workload
	report Report
	text   func() []byte // the nodes' log
	err    error
}

// bubble is what happens in virtual time.
func (s *scenario) bubble() {
	c := newCluster(s.seed, s.opt, s.dir)
	began := time.Now()
	var counts [3]atomic.Int64
	stop := make(chan struct{})
	n := &nemesis{c: c, stop: stop}
	err := c.open()
	if err == nil {
		order, k := new(workload.Order), workload.KeysOf(c.newest())
		s.loads = []workload.Workload{workload.NewRegisters(order, k), workload.NewRegisters(order, k), workload.NewCounters(k), workload.NewLists(k)}
		var clients sync.WaitGroup
		for i := range s.opt.Clients {
			cl := &client{c: c, rng: newRand(s.seed, fmt.Sprintf("client %d", i)), counts: &counts, numbers: i%2 == 0}
			clients.Go(func() { cl.run(stop, s.loads, s.opt.Shards) })
		}
		n.run()
		time.Sleep(s.opt.Duration)
		close(stop)
		clients.Wait()
		n.loop.Wait() // undoes what is under way, restarts what is down
		c.net.Heal()
		err = s.finish(c, &counts)
	}
	// Also after a failure: a bubble ends when its goroutines have.
	c.net.Heal()
	err = errors.Join(err, c.stop())
	s.err = errors.Join(c.err(), err)
	s.report = n.report
	r := &s.report
	r.OK, r.Failed, r.Uncertain = int(counts[workload.Answered].Load()), int(counts[workload.Failed].Load()), int(counts[workload.Uncertain].Load())
	r.Elections, r.Snapshots, r.Installs, r.Moved = c.journal.count(saysLeading), c.journal.count(saysSnapshot), c.journal.count(saysInstall), c.journal.count(saysMoved)
	r.SlotMoves, r.SlotsStay, r.Splits, r.Freeze = c.journal.count(saysSlotsMoved), c.journal.count(saysSlotsStay), max(0, c.shards-s.opt.Shards), c.journal.longestFreeze()
	r.Simulated = time.Since(began)
	swallowed := c.net.Swallowed()
	r.Cut, r.Lost = swallowed.Cut, swallowed.Lost
	s.text = c.journal.text
}

// finish reads everything back from a healed cluster and compares its replicas.
func (s *scenario) finish(c *cluster, counts *[3]atomic.Int64) error {
	if len(c.up()) < len(c.members) {
		return errors.New("some nodes did not restart")
	}
	if err := until("nothing is wished any more", settle, c.release); err != nil {
		return err
	}
	if err := until("the healed cluster is complete", settle, c.complete); err != nil {
		return err
	}
	if err := until("each slot is one shard's", settle, func() error { return c.ownedOnce(c.newest()) }); err != nil {
		return err
	}
	c.shards = len(c.newest().Shards)
	cl := &client{c: c, rng: newRand(s.seed, "final"), counts: counts}
	groups := map[sharding.ShardID][]workload.Call{}
	router := sharding.NewRouter(c.newest())
	for _, w := range s.loads {
		for _, a := range w.Final() {
			shard := router.ShardOf(sharding.SlotOf([]byte(a.Op.Key)))
			groups[shard] = append(groups[shard], a)
		}
	}
	for shard, group := range groups {
		for len(group) > 0 {
			k := min(len(group), 32)
			if o := cl.do(shard, group[:k]); o != workload.Answered {
				return fmt.Errorf("shard %d cannot be read after everything was healed", shard)
			}
			group = group[k:]
		}
	}
	return until("all replicas hold one state", settle, func() error { return c.converged() })
}

// converged compares the replicas of each shard: states by hash at one index, logs
// entry by entry where they overlap.
func (c *cluster) converged() error {
	m := c.newest()
	if err := c.complete(); err != nil {
		return err
	}
	for _, sh := range m.Shards {
		var index, hash uint64
		for i, r := range sh.Replicas {
			v, err := c.replica(r.Node, sh.ID).View()
			if err != nil {
				return err
			}
			at, h := v.Index(), v.Hash()
			v.Close()
			switch {
			case i == 0:
				index, hash = at, h
			case at != index:
				return fmt.Errorf("shard %d: replica %s is at index %d, %s at %d", sh.ID, sh.Replicas[0].ID, index, r.ID, at)
			case h != hash:
				c.fault("shard %d: replicas %s and %s hold different states at index %d", sh.ID, sh.Replicas[0].ID, r.ID, index)
			}
		}
		c.compareLogs(sh, index)
	}
	return nil
}

// compareLogs finds committed entries that differ between replicas.
func (c *cluster) compareLogs(sh sharding.Shard, commit uint64) {
	type entry struct {
		term, hash uint64
		replica    string
	}
	seen := map[uint64]entry{}
	for _, m := range c.members {
		l := m.life.Load()
		if l == nil {
			continue
		}
		l.disk.mu.Lock()
		logs := l.disk.logs
		l.disk.mu.Unlock()
		for _, log := range logs {
			if log.shard != sh.ID || !current(sh, log.replica) {
				continue
			}
			first, err := log.FirstIndex()
			last, err2 := log.LastIndex()
			if err = errors.Join(err, err2); err != nil {
				c.fault("read log of replica %s: %w", log.replica, err)
				continue
			}
			for i := max(first, 1); i <= min(last, commit); i++ {
				var e raft.Log
				if err := log.GetLog(i, &e); err != nil {
					c.fault("shard %d, replica %s: entry %d of %d to %d: %w", sh.ID, log.replica, i, first, last, err)
					break
				}
				h := fnv.New64a()
				h.Write(e.Data)
				got := entry{e.Term, h.Sum64(), log.replica}
				if was, ok := seen[i]; ok && (was.term != got.term || was.hash != got.hash) {
					c.fault("shard %d: committed entry %d is of term %d in %s and of term %d in %s", sh.ID, i, was.term, was.replica, got.term, got.replica)
					break
				}
				seen[i] = got
			}
		}
	}
}

func current(sh sharding.Shard, replica string) bool {
	for _, r := range sh.Replicas {
		if r.ID == replica {
			return true
		}
	}
	return false
}
