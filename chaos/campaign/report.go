//go:build linux

package campaign

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/chaos/workload"
)

// Report is what came of a run.
type Report struct {
	Began    time.Time     `json:"began"`
	Took     time.Duration `json:"took_ns"`
	Seed     uint64        `json:"seed"`
	Nodes    int           `json:"nodes"`
	Shards   int           `json:"shards"`
	Replicas int           `json:"replicas"`

	// Rootless: without networks and disks of its own; see Config.
	Rootless bool `json:"rootless,omitempty"`

	// Answered, Failed and Uncertain are operations; Keys, those whose histories were judged.
	Answered  int `json:"answered"`
	Failed    int `json:"failed"`
	Uncertain int `json:"uncertain"`
	Keys      int `json:"keys"`
	// Jobs were begun, JobsDone ended with a result.
	Jobs     int `json:"jobs"`
	JobsDone int `json:"jobs_done"`
	// JobsLost are those of them that lost somebody on the way.
	JobsLost JobsLost `json:"jobs_lost"`

	// Quiet is what was measured while nothing was broken and all had recovered.
	QuietSeconds int     `json:"quiet_seconds"`
	QuietRate    float64 `json:"quiet_rate"`    // answered operations a second
	QuietSuccess float64 `json:"quiet_success"` // share of operations that were answered

	Events []Event `json:"events"`
	// Recovery is how long it took a shard, after the end of a fault, until a write that began then was answered. Outage is the
	// same from the beginning of faults that took away one node and no more.
	Recovery Quantiles `json:"recovery"`
	Outage   Quantiles `json:"outage"`
	// Moved are replicas that have gone to another node, Joined are nodes that have come, those of the beginning among them.
	Moved  int `json:"moved"`
	Joined int `json:"joined"`
	// SlotMoves are ranges of slots that have come to another shard, SlotsStay moves of them that were given up; ShardsInTheEnd, with those that came by splits.
	SlotMoves      int `json:"slot_moves"`
	SlotsStay      int `json:"slots_stay"`
	ShardsInTheEnd int `json:"shards_in_the_end"`
	// Exits are processes that ended by themselves, as they are to when their disk fails.
	Exits int `json:"exits"`
	// Errors are what clients were told, and how often.
	Errors map[string]int `json:"errors"`
	// Ways are the operations by workload and by way of reading.
	Ways map[string]*Tally `json:"ways"`
	// Resolved are increments without an answer that got one when they were sent again; Slack, those of which nobody knows in the end whether
	// they count. Behind each of these one that was lost or doubled may hide.
	Resolved int `json:"resolved"`
	Slack    int `json:"slack"`
	// Checks are what was judged, in order.
	Checks []Check `json:"checks"`

	// Violations are what must not be. Late is what took too long. Shortcomings make the run worth nothing.
	Violations   []string `json:"violations"`
	Late         []string `json:"late"`
	Shortcomings []string `json:"shortcomings"`
	// Failures is where files about violations are.
	Failures string `json:"failures,omitempty"`

	seconds []second
}

// Check is one thing that was looked at: so many keys, or shards, or nodes, and how many violations that made.
type Check struct {
	Name   string `json:"name"`
	What   string `json:"what"`
	Judged int    `json:"judged"`
	Wrong  int    `json:"wrong"`
}

// Event is one fault.
type Event struct {
	Kind   string    `json:"kind"`
	Detail string    `json:"detail"`
	Nodes  []int     `json:"nodes,omitempty"`
	Began  time.Time `json:"began"`
	Broken time.Time `json:"broken"` // what was to be done is done
	// Healed is when nothing was broken any more, Mended when all was done that had to be done then, as to fetch what was lost.
	Healed time.Time `json:"healed"`
	Mended time.Time `json:"mended"`
	// Bit: it had an effect.
	Bit bool `json:"bit"`
	// Recovery is by shard, after Healed; Outage, after Broken, where one node was gone at once.
	Recovery []time.Duration `json:"recovery_ns,omitempty"`
	Outage   []time.Duration `json:"outage_ns,omitempty"`

	dead   bool
	second bool // it began inside another
}

// Quantiles of a number of times.
type Quantiles struct {
	Count         int           `json:"count"`
	P50, P99, Max time.Duration `json:",omitempty"`
}

func quantiles(list []time.Duration) (q Quantiles) {
	if q.Count = len(list); q.Count == 0 {
		return q
	}
	slices.Sort(list)
	at := func(p float64) time.Duration { return list[min(len(list)-1, int(p*float64(len(list))))] }
	return Quantiles{Count: len(list), P50: at(.5), P99: at(.99), Max: list[len(list)-1]}
}

func (q Quantiles) String() string {
	return fmt.Sprintf("p50 %v, p99 %v, max %v of %d", q.P50.Round(time.Millisecond), q.P99.Round(time.Millisecond), q.Max.Round(time.Millisecond), q.Count)
}

const (
	// leastSuccess is the share of operations outside faults that are to be answered. Some are under way when a fault begins.
	leastSuccess = .95
	// leastKeys is how many keys a minute are to be judged.
	leastKeys = 100
	// leastOfWay is how many operations of each way of working are to be answered in a minute, a hundredth of what is usual; leastJobs, jobs.
	leastOfWay, leastJobs = 60, 3
	// leastTimes is from how many times on it is asked that few are late: those of five faults on sixteen shards.
	leastTimes = 80
)

// waysWanted are those that a workload must have shown.
var waysWanted = map[string][]string{
	"register": {"register", byFollower},
	"counter":  {"counter", byFollower},
	"list":     {"list", byFollower, staleReads, boundedReads},
	"set":      {"set", byFollower},
	"bank":     {"bank"},
	"ttl":      {"ttl"},
	"job":      {"job", "bank"},
}

// report sums up.
func (c *campaign) report() *Report {
	r := &Report{
		Began: c.tl.began, Took: time.Since(c.tl.began), Seed: c.cfg.Seed, Nodes: c.cfg.Nodes, Shards: c.cfg.Shards, Replicas: c.cfg.Replicas, Rootless: c.cfg.Rootless,
		Keys: c.keys, Events: c.events, Errors: c.tl.errors, Ways: c.tl.ways, seconds: c.tl.seconds,
	}
	for _, w := range c.workers {
		r.Resolved += w.known
	}
	for _, l := range c.distinct() {
		if counters, ok := l.Workload.(*workload.Counters); ok {
			r.Slack, _ = counters.Slack()
		}
	}
	for _, s := range c.tl.seconds {
		r.Answered += s.answered
		r.Failed += s.failed
		r.Uncertain += s.uncertain
	}
	if c.jobs != nil {
		r.Jobs, r.JobsDone = c.jobs.Done()
		r.JobsLost = c.tl.lost
	}
	var quiet second
	for _, q := range c.quiet {
		sum, seconds := c.tl.between(q.from, q.to)
		quiet.answered += sum.answered
		quiet.failed += sum.failed
		quiet.uncertain += sum.uncertain
		r.QuietSeconds += seconds
	}
	if all := quiet.answered + quiet.failed + quiet.uncertain; all > 0 && r.QuietSeconds > 0 {
		r.QuietRate, r.QuietSuccess = float64(quiet.answered)/float64(r.QuietSeconds), float64(quiet.answered)/float64(all)
	}
	var recovery, outage []time.Duration
	for _, ev := range c.events {
		recovery, outage = append(recovery, ev.Recovery...), append(outage, ev.Outage...)
	}
	r.Recovery, r.Outage = quantiles(recovery), quantiles(outage)
	wrong, exits := c.bed.unexplained()
	r.Exits = exits
	start := make([]int64, c.cfg.Nodes)
	r.Moved, r.Joined = c.bed.counted(movesSaid, start), c.bed.counted("msg=joined", start)
	r.SlotMoves, r.SlotsStay, r.ShardsInTheEnd = c.bed.counted(slotsSaid, start), c.bed.counted(staySaid, start), c.shards
	r.Violations = append(c.findings.Faults(), wrong...)
	r.Checks = append(c.checks, Check{Name: "exits and damage are explained", What: "exits", Judged: exits, Wrong: len(wrong)})
	r.Late = c.late(r)
	r.Shortcomings = c.shortcomings(r)
	if len(r.Violations) > 0 {
		r.Failures = c.findings.Dir
	}
	return r
}

// shortcomings are why a run shows nothing.
func (c *campaign) shortcomings(r *Report) (list []string) {
	check := func(ok bool, format string, args ...any) {
		if !ok {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	check(r.QuietRate >= c.cfg.Floor, "%.0f operations a second outside faults, want %.0f", r.QuietRate, c.cfg.Floor)
	check(r.QuietSuccess >= leastSuccess, "%.1f %% of the operations outside faults were answered, want %.0f %%", 100*r.QuietSuccess, 100*leastSuccess)
	check(len(c.cfg.Workloads) > 0 || float64(r.Keys) >= leastKeys*r.Took.Minutes(), "%d keys were judged in %v, want %d a minute", r.Keys, r.Took.Round(time.Second), leastKeys)
	check(r.JobsDone*10 >= r.Jobs*9, "%d of %d jobs had a result", r.JobsDone, r.Jobs)
	check(c.compared*2 >= max(c.shards, c.cfg.Shards), "the logs of %d shards of %d could be compared", c.compared, max(c.shards, c.cfg.Shards))
	seen := map[string]bool{}
	for _, l := range c.distinct() {
		for _, way := range waysWanted[l.name] {
			want, got := leastOfWay*c.worked.Minutes(), 0
			if way == "job" {
				want = leastJobs * c.worked.Minutes()
			}
			if t := r.Ways[way]; t != nil {
				got = t.Answered
			}
			check(seen[way] || got > 0 && float64(got) >= want, "%s: %d were answered in %v, want %.0f", way, got, c.worked.Round(time.Second), max(1, want))
			seen[way] = true
		}
	}
	tried, bit := map[string]int{}, map[string]int{}
	for _, ev := range r.Events {
		// Beside another fault one may have no effect, and be none the worse for it: who is dead drops no packets.
		if ev.Bit || !ev.second {
			tried[ev.Kind]++
		}
		if ev.Bit {
			bit[ev.Kind]++
		}
	}
	for _, k := range c.plan.kinds {
		// One may miss by chance, as when its node was just being killed by another.
		check(bit[k.name] > 0 && bit[k.name]*2 >= tried[k.name], "%s: %d of %d had an effect", k.name, bit[k.name], tried[k.name])
	}
	return list
}

// late is what took longer than is promised, where there is enough to tell; of fewer than a hundred none may.
func (c *campaign) late(r *Report) (list []string) {
	for _, m := range []struct {
		what string
		q    Quantiles
	}{{"after the end of a fault", r.Recovery}, {"after the loss of one node", r.Outage}} {
		if m.q.Count >= leastTimes && m.q.P99 > c.cfg.Within {
			list = append(list, fmt.Sprintf("a shard serves again %s: %v, want p99 within %v", m.what, m.q, c.cfg.Within))
		}
	}
	return list
}

// OK says whether nothing was wrong or late and the run is worth something.
func (r *Report) OK() bool {
	return len(r.Violations) == 0 && len(r.Late) == 0 && len(r.Shortcomings) == 0
}

// ByKind is how many faults of each kind there were.
func (r *Report) ByKind() map[string]int {
	m := map[string]int{}
	for _, ev := range r.Events {
		m[ev.Kind]++
	}
	return m
}

// String is a line for a log, and more of what is wrong.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "chaos: seed %d, %v, %d faults of %d kinds; %d operations answered, %d failed, %d uncertain; %.0f a second outside faults; %d keys and %d of %d jobs judged, of which %d lost their coordinator, %d a master, %d a worker; served again: %v; one node less: %v; %d replicas moved, %d nodes joined; %d ranges of slots moved, %d stayed, %d shards in the end; %d exits of nodes whose disk failed; %d increments known later, %d never; %d violations",
		r.Seed, r.Took.Round(time.Second), len(r.Events), len(r.ByKind()), r.Answered, r.Failed, r.Uncertain, r.QuietRate, r.Keys, r.JobsDone, r.Jobs, r.JobsLost.Coordinator, r.JobsLost.Master, r.JobsLost.Worker, r.Recovery, r.Outage, r.Moved, r.Joined, r.SlotMoves, r.SlotsStay, r.ShardsInTheEnd, r.Exits, r.Resolved, r.Slack, len(r.Violations))
	for _, v := range r.Violations {
		fmt.Fprintf(&b, "\nVIOLATION: %s", v)
	}
	for _, s := range r.Late {
		fmt.Fprintf(&b, "\nTOO LATE: %s", s)
	}
	for _, s := range r.Shortcomings {
		fmt.Fprintf(&b, "\nthis run shows too little: %s", s)
	}
	return b.String()
}

// Again is the command that runs the same faults and operations again.
func (c Config) Again() string {
	line := []string{"make", "chaos", fmt.Sprintf("SEED=%d", c.Seed), fmt.Sprintf("DURATION=%v", c.Duration), fmt.Sprintf("NODES=%d", c.Nodes)}
	if len(c.Kinds) > 0 {
		line = append(line, "NEMESES="+strings.Join(c.Kinds, ","))
	}
	if len(c.Workloads) > 0 {
		line = append(line, "WORKLOADS="+strings.Join(c.Workloads, ","))
	}
	if c.Plaintext {
		line = append(line, "TLS=off")
	}
	return proc.Shell(line)
}

// Save writes report.json and report.html into a directory.
func (r *Report) Save(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "report.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	page, err := r.page()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "report.html"), page, 0o644)
}

func sortedKeys(m map[string]int) []string {
	list := slices.Collect(maps.Keys(m))
	slices.SortFunc(list, func(a, b string) int {
		if m[a] != m[b] {
			return m[b] - m[a]
		}
		return strings.Compare(a, b)
	})
	return list
}
