//go:build linux

package campaign

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
)

// timeline is what happened when. Its methods may be called by several goroutines.
type timeline struct {
	began time.Time

	mu      sync.Mutex
	seconds []second
	probes  [][]probe // by shard
	errors  map[string]int
}

// second is one second of a run, by when operations ended.
type second struct {
	answered, failed, uncertain int
	took                        []float32 // ms, of those answered
}

// probe is a write to a shard that was answered.
type probe struct{ began, ended time.Time }

func newTimeline(shards int) *timeline {
	return &timeline{began: time.Now(), probes: make([][]probe, shards), errors: map[string]int{}}
}

// operation notes that one has ended.
func (t *timeline) operation(began time.Time, took time.Duration, o workload.Outcome, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
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
