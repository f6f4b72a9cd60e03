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
	// Exits are processes that ended by themselves, as they are to when their disk fails.
	Exits int `json:"exits"`
	// Errors are what clients were told, and how often.
	Errors map[string]int `json:"errors"`

	// Violations are what must not be. Shortcomings make the run worth nothing.
	Violations   []string `json:"violations"`
	Shortcomings []string `json:"shortcomings"`
	// Failures is where files about violations are.
	Failures string `json:"failures,omitempty"`

	seconds []second
}

// Event is one fault.
type Event struct {
	Kind   string    `json:"kind"`
	Detail string    `json:"detail"`
	Nodes  []int     `json:"nodes,omitempty"`
	Began  time.Time `json:"began"`
	Broken time.Time `json:"broken"` // what was to be done is done
	Mended time.Time `json:"mended"`
	// Bit: it had an effect.
	Bit bool `json:"bit"`
	// Recovery is by shard, after Mended; Outage, after Broken, where one node was gone at once.
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
)

// report sums up.
func (c *campaign) report() *Report {
	r := &Report{
		Began: c.tl.began, Took: time.Since(c.tl.began), Seed: c.cfg.Seed, Nodes: c.cfg.Nodes, Shards: c.cfg.Shards, Replicas: c.cfg.Replicas, Rootless: c.cfg.Rootless,
		Keys: c.keys, Events: c.events, Errors: c.tl.errors, seconds: c.tl.seconds,
	}
	for _, s := range c.tl.seconds {
		r.Answered += s.answered
		r.Failed += s.failed
		r.Uncertain += s.uncertain
	}
	if c.jobs != nil {
		r.Jobs, r.JobsDone = c.jobs.Done()
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
	r.Violations = append(c.findings.Faults(), wrong...)
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
	check(r.JobsDone*2 >= r.Jobs, "%d of %d jobs had a result", r.JobsDone, r.Jobs)
	check(c.compared*2 >= c.cfg.Shards, "the logs of %d shards of %d could be compared", c.compared, c.cfg.Shards)
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

// OK says whether nothing was wrong and the run is worth something.
func (r *Report) OK() bool { return len(r.Violations) == 0 && len(r.Shortcomings) == 0 }

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
	fmt.Fprintf(&b, "chaos: seed %d, %v, %d faults of %d kinds; %d operations answered, %d failed, %d uncertain; %.0f a second outside faults; %d keys and %d of %d jobs judged; served again: %v; one node less: %v; %d replicas moved, %d nodes joined; %d exits of nodes whose disk failed; %d violations",
		r.Seed, r.Took.Round(time.Second), len(r.Events), len(r.ByKind()), r.Answered, r.Failed, r.Uncertain, r.QuietRate, r.Keys, r.JobsDone, r.Jobs, r.Recovery, r.Outage, r.Moved, r.Joined, r.Exits, len(r.Violations))
	for _, v := range r.Violations {
		fmt.Fprintf(&b, "\nVIOLATION: %s", v)
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
