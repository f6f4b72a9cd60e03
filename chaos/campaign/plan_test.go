//go:build linux

package campaign

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/chaos/workload"
)

// noCluster is one of which nothing runs.
func noCluster(t *testing.T) *proc.Cluster {
	t.Helper()
	c, err := proc.Create(proc.Config{Dir: t.TempDir(), Abacusd: "none", Nodes: 3, Host: func(int) proc.Host { return proc.Host{Addr: "127.0.0.1"} }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A seed is a plan, and each kind comes once in a round.
func TestPlan(t *testing.T) {
	one, two, other := newPlan(7, kinds), newPlan(7, kinds), newPlan(8, kinds)
	differs, companions := 0, 0
	for round := range 20 {
		seen := map[string]int{}
		for range kinds {
			s, again, x := one.next(), two.next(), other.next()
			if fmt.Sprint(s.kind, s.hold, s.seed, s.with != nil) != fmt.Sprint(again.kind, again.hold, again.seed, again.with != nil) {
				t.Fatalf("one seed, two plans: %+v, %+v", s, again)
			}
			if s.kind != x.kind || s.seed != x.seed {
				differs++
			}
			seen[s.kind]++
			k := find(s.kind)
			if s.hold < k.least || s.hold > k.most {
				t.Errorf("%s for %v, want %v to %v", s.kind, s.hold, k.least, k.most)
			}
			if s.with == nil {
				continue
			}
			companions++
			with := find(s.with.kind)
			if k.alone || with.alone || with.outer || k.touches&with.touches != 0 {
				t.Errorf("%s during %s", s.with.kind, s.kind)
			}
			if s.with.hold < with.least || s.with.hold > s.hold/2 {
				t.Errorf("%s for %v during %s for %v", s.with.kind, s.with.hold, s.kind, s.hold)
			}
		}
		for _, k := range kinds {
			if seen[k.name] != 1 {
				t.Errorf("round %d: %s came %d times", round, k.name, seen[k.name])
			}
		}
	}
	if differs < len(kinds) {
		t.Error("another seed is the same plan")
	}
	if all := 20 * len(kinds); companions < all/10 || companions > all/2 {
		t.Errorf("%d of %d faults had a companion", companions, all)
	}
}

func TestChoose(t *testing.T) {
	if list, err := choose([]string{"split", "kill one"}, true, true); err != nil || len(list) != 2 || list[0].name != "split" {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := choose([]string{"meteor"}, false, true); err == nil {
		t.Error("a fault that there is not")
	}
	if _, err := choose([]string{"full disk"}, true, true); err == nil {
		t.Error("a fault that takes root, without")
	}
	if list, err := choose(nil, true, true); err != nil || len(list) < 15 || slices.ContainsFunc(list, func(k kind) bool { return k.root }) {
		t.Errorf("%d kinds without root, %v", len(list), err)
	}
	if list, err := choose(nil, false, true); err != nil || len(list) != len(kinds) {
		t.Errorf("%d kinds of %d, %v", len(list), len(kinds), err)
	}
	if _, err := choose([]string{"ring"}, false, false); err == nil {
		t.Error("a fault that takes more nodes")
	}
	if list, err := choose(nil, false, false); err != nil || len(list) != len(kinds)-4 || slices.ContainsFunc(list, func(k kind) bool { return k.spare }) {
		t.Errorf("%d kinds of %d with three nodes, %v", len(list), len(kinds), err)
	}
	seen := map[string]bool{}
	for _, k := range kinds {
		if seen[k.name] || k.bear == nil || k.most < k.least {
			t.Errorf("kind %q", k.name)
		}
		seen[k.name] = true
	}
}

// What outlives a fault is told: the first write that began after a moment.
func TestServed(t *testing.T) {
	tl := newTimeline(1)
	at := func(ms int) time.Time { return tl.began.Add(time.Duration(ms) * time.Millisecond) }
	tl.probed(0, at(0), at(10))
	tl.probed(0, at(100), at(900)) // began before the end of the fault, says nothing of the time after
	tl.probed(0, at(1000), at(1010))
	if got, ok := tl.served(0, at(500)); !ok || got != at(1010) {
		t.Errorf("served at %v, %v", got.Sub(tl.began), ok)
	}
	if _, ok := tl.served(0, at(1001)); ok {
		t.Error("served by a write that nobody began")
	}
}

// A run that shows too little does not pass, whatever it found.
func TestShortcomings(t *testing.T) {
	some := []kind{find("split"), find("pause")}
	c := &campaign{cfg: Config{Floor: 500}, plan: newPlan(1, some), worked: time.Minute,
		loads: []load{{"list", workload.NewLists(nil)}, {"job", workload.NewJobs(nil)}, {"bank", workload.NewBanks("", 0, nil)}}}
	ways := map[string]*Tally{"list": {Answered: 1000}, byFollower: {Answered: 100}, staleReads: {Answered: 100}, boundedReads: {Answered: 100}, "bank": {Answered: 500}, "job": {Answered: 10}}
	without := func(way string) func(*Report) {
		return func(r *Report) {
			r.Ways = maps.Clone(ways)
			r.Ways[way] = &Tally{Failed: 900, Uncertain: 50}
		}
	}
	good := Report{QuietRate: 600, QuietSuccess: 1, Keys: 1000, Took: time.Minute, Ways: ways, Events: []Event{{Kind: "split", Bit: true}, {Kind: "pause", Bit: true}}}
	if list := c.shortcomings(&good); len(list) > 0 {
		t.Errorf("a good run: %q", list)
	}
	for name, spoil := range map[string]func(*Report){
		"slow":               func(r *Report) { r.QuietRate = 499 },
		"unavailable":        func(r *Report) { r.QuietSuccess = .9 },
		"few keys":           func(r *Report) { r.Keys = 3 },
		"no jobs":            without("job"),
		"no follower reads":  without(byFollower),
		"no stale reads":     without(staleReads),
		"no bounded reads":   without(boundedReads),
		"an idle workload":   without("bank"),
		"nobody counts ways": func(r *Report) { r.Ways = nil },
		"a kind missing":     func(r *Report) { r.Events = r.Events[:1] },
		"no effect":          func(r *Report) { r.Events = []Event{{Kind: "split"}, {Kind: "pause", Bit: true}} },
	} {
		r := good
		if spoil(&r); len(c.shortcomings(&r)) == 0 {
			t.Errorf("%s: it would pass", name)
		}
	}
}

// One case in a hundred that takes too long is one too many, where there are enough to tell.
func TestLate(t *testing.T) {
	c := &campaign{cfg: Config{Within: 5 * time.Second}}
	times := func(n, slow int) Quantiles {
		list := slices.Repeat([]time.Duration{time.Second}, n)
		for i := range slow {
			list[i] = 6 * time.Second
		}
		return quantiles(list)
	}
	for _, tc := range []struct {
		recovery, outage Quantiles
		late             int
	}{
		{times(500, 0), times(200, 0), 0},
		{times(500, 4), times(200, 1), 0},
		{times(500, 6), times(200, 1), 1},
		{times(500, 6), times(200, 3), 2},
		{times(16, 16), times(0, 0), 0}, // too few
	} {
		r := &Report{Recovery: tc.recovery, Outage: tc.outage}
		if r.Late = c.late(r); len(r.Late) != tc.late || r.OK() != (tc.late == 0) {
			t.Errorf("%v, %v: %q", tc.recovery, tc.outage, r.Late)
		}
	}
}

// Recovery is told from when nothing was broken any more, not from when a node that fetches what it has lost is well again.
func TestRecoveryFromTheHeal(t *testing.T) {
	c := &campaign{cfg: Config{Shards: 1, Log: func(string, ...any) {}}, tl: newTimeline(1), bed: &bed{}}
	c.bed.c = noCluster(t)
	f := &fault{}
	healed := time.Now()
	f.mend = func() error { f.healed = healed; return nil }
	c.events = []Event{{Kind: "wiped node"}}
	if err := c.end(f, 0); err != nil {
		t.Fatal(err)
	}
	c.tl.probed(0, healed, healed.Add(3*time.Second))
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // whether the cluster is sound is not what this is about
	if err := c.recover(ctx, 0, true); err != nil {
		t.Fatal(err)
	}
	if got := c.events[0].Recovery; len(got) != 1 || got[0] != 3*time.Second {
		t.Errorf("recovery %v, want 3 s", got)
	}
}

// Operations are counted by workload and by way of reading; what jobs have the banks do is the banks'.
func TestWaysOf(t *testing.T) {
	for _, c := range []struct {
		load string
		op   workload.Op
		want []string
	}{
		{"register", workload.Op{Kind: workload.Set}, []string{"register"}},
		{"list", workload.Op{Reading: workload.ByFollower}, []string{"list", byFollower}},
		{"list", workload.Op{Reading: workload.Stale}, []string{"list", staleReads}},
		{"list", workload.Op{Reading: workload.Bounded}, []string{"list", boundedReads}},
		{"job", workload.Op{Kind: workload.Job}, []string{"job"}},
		{"job", workload.Op{Kind: workload.Multi}, []string{"bank"}},
	} {
		if got := waysOf(c.load, c.op); !slices.Equal(got, c.want) {
			t.Errorf("%s %+v: %q, want %q", c.load, c.op, got, c.want)
		}
	}
}

// The page holds what a run has, and nothing of it can break out of its place.
func TestPage(t *testing.T) {
	began := time.Now()
	r := &Report{Began: began, Events: []Event{{Kind: "split", Detail: "n1 <script>", Began: began.Add(time.Second), Mended: began.Add(2 * time.Second), Recovery: []time.Duration{time.Second}}},
		Errors: map[string]int{"<b>": 1}, Violations: []string{"a & b"}, Late: []string{"9 s"},
		Checks: []Check{{"register", "keys", 4711, 0}, {"bank", "keys", 80, 2}, {"ttl", "keys", 0, 0}}, Ways: map[string]*Tally{staleReads: {Answered: 815}}, seconds: make([]second, 70)}
	page, err := r.page()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"n1 &lt;script&gt;", "a &amp; b", "&lt;b&gt;", "<svg", "1 min", "Too late: 9 s",
		`<td>register</td><td class="n">4711</td><td>keys</td><td>nothing wrong</td>`, `<td>bank</td><td class="n">80</td><td>keys</td><td><b class="wrong">2 violations</b></td>`, "nothing to judge",
		`<td>stale reads</td><td class="n">815</td>`} {
		if !strings.Contains(string(page), want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if strings.Contains(string(page), "<script>") {
		t.Error("a script in the page")
	}
}
