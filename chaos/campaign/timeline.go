//go:build linux

package campaign

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
	"github.com/abacusdb/abacus/compute/job"
)

// timeline is what happened when. Its methods may be called by several goroutines.
type timeline struct {
	began time.Time

	mu      sync.Mutex
	seconds []second
	probes  [][]probe // by shard
	errors  map[string]int
	ways    map[string]*Tally
	lost    JobsLost
}

// JobsLost are jobs in the course of which somebody went away: a job may be counted for each.
type JobsLost struct {
	Coordinator int `json:"coordinator"` // another node went on with it
	Master      int `json:"master"`      // a shard's part was asked for again
	Worker      int `json:"worker"`      // a task was given to another node
}

// Tally is how many operations of one way ended how.
type Tally struct {
	Answered  int `json:"answered"`
	Failed    int `json:"failed"`
	Uncertain int `json:"uncertain"`
}

// Ways of reading that are counted by themselves, beside the workloads.
const (
	byFollower   = "reads by followers"
	staleReads   = "stale reads"
	boundedReads = "stale reads with a bound"
)

// waysOf is what an operation of a workload is counted as.
func waysOf(load string, op workload.Op) (list []string) {
	if op.Kind == workload.Job {
		return []string{"job"}
	}
	if load == "job" { // which has the banks work beside its jobs
		load = "bank"
	}
	switch list = []string{load}; op.Reading {
	case workload.ByFollower:
		list = append(list, byFollower)
	case workload.Stale:
		list = append(list, staleReads)
	case workload.Bounded:
		list = append(list, boundedReads)
	}
	return list
}

// second is one second of a run, by when operations ended.
type second struct {
	answered, failed, uncertain int
	took                        []float32 // ms, of those answered
}

// probe is a write to a shard that was answered.
type probe struct{ began, ended time.Time }

func newTimeline(shards int) *timeline {
	return &timeline{began: time.Now(), probes: make([][]probe, shards), errors: map[string]int{}, ways: map[string]*Tally{}}
}

// operation notes that one of a workload has ended.
func (t *timeline) operation(load string, op workload.Op, began time.Time, took time.Duration, o workload.Outcome, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, way := range waysOf(load, op) {
		if t.ways[way] == nil {
			t.ways[way] = new(Tally)
		}
		switch o {
		case workload.Answered:
			t.ways[way].Answered++
		case workload.Failed:
			t.ways[way].Failed++
		default:
			t.ways[way].Uncertain++
		}
	}
	at := int(began.Add(took).Sub(t.began) / time.Second)
	for len(t.seconds) <= at {
		t.seconds = append(t.seconds, second{})
	}
	s := &t.seconds[at]
	switch o {
	case workload.Answered:
		s.answered++
		s.took = append(s.took, float32(took.Seconds()*1000))
		return
	case workload.Failed:
		s.failed++
	default:
		s.uncertain++
	}
	const kinds = 200
	if text := short(err); t.errors[text] > 0 || len(t.errors) < kinds {
		t.errors[text]++
	}
}

// job notes what a job that has ended went through.
func (t *timeline) job(rec job.Record) {
	master, worker := false, false
	for _, s := range rec.Shards {
		master = master || s.Attempts > 1
		for _, k := range s.Tasks {
			worker = worker || len(k.FailedOn) > 0
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range []struct {
		lost bool
		n    *int
	}{{rec.Epoch > 1, &t.lost.Coordinator}, {master, &t.lost.Master}, {worker, &t.lost.Worker}} {
		if l.lost {
			*l.n++
		}
	}
}

// short is an error without what differs each time.
func short(err error) string {
	text := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return '#'
		}
		return r
	}, err.Error())
	for strings.Contains(text, "##") {
		text = strings.ReplaceAll(text, "##", "#")
	}
	return text[:min(len(text), 160)]
}

// probed notes a write to a shard that was answered.
func (t *timeline) probed(shard int, began, ended time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.probes[shard] = append(t.probes[shard], probe{began, ended})
}

// served says when a write to a shard that began at or after a moment was answered; ok: there is one.
func (t *timeline) served(shard int, after time.Time) (at time.Time, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.probes[shard]
	i, _ := slices.BinarySearchFunc(list, after, func(p probe, at time.Time) int { return p.began.Compare(at) })
	if i == len(list) {
		return time.Time{}, false
	}
	return list[i].ended, true
}

// between sums up the seconds that lie wholly between two moments.
func (t *timeline) between(from, to time.Time) (sum second, seconds int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first, last := int((from.Sub(t.began)+time.Second-1)/time.Second), int(to.Sub(t.began)/time.Second)
	for i := first; i < last && i < len(t.seconds); i++ {
		s := t.seconds[i]
		sum.answered += s.answered
		sum.failed += s.failed
		sum.uncertain += s.uncertain
		seconds++
	}
	return sum, seconds
}
