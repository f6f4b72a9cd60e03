package workload

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

// Sets is the workload of elements that are put in once and perhaps taken out once, each a key of its own. What was put in
// and acknowledged, or seen there, is there until somebody begins to take it out; what was taken out, or seen to be, never comes back; what
// failed for certain never shows; in the end a list of all keys has each once, and no others.
type Sets struct {
	keys   Keys
	prefix string

	mu     sync.Mutex
	all    []*element
	byKey  map[string]*element
	wrong  []string
	listed bool
}

type element struct {
	key     string
	in, out Outcome
	// inDone and outDone: the outcome is known; outBegun: somebody takes it out.
	inDone, outBegun, outDone bool
	// seen: somebody saw it there; missed: somebody saw that it was there no more.
	seen, missed bool
}

// surelyIn says whether it has been there: somebody was told.
func (e *element) surelyIn() bool { return e.inDone && e.in == Answered || e.seen }

// NewSets returns an empty set whose keys begin with the prefix.
func NewSets(prefix string, k Keys) *Sets {
	return &Sets{keys: k, prefix: prefix, byKey: map[string]*element{}}
}

// must says what a read that begins now has to show: there, or not, or either.
func (e *element) must() (there, absent bool) {
	switch {
	case e.outDone && e.out == Answered, e.missed, e.inDone && e.in == Failed:
		return false, true
	case e.surelyIn() && (!e.outBegun || e.outDone && e.out == Failed):
		return true, false
	}
	return false, false
}

func (s *Sets) Next(rng *rand.Rand, shard int, read bool) Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) > 0 {
		e := s.all[rng.IntN(len(s.all))]
		if read {
			return s.read(e, Reading(rng.IntN(2)))
		}
		if rng.IntN(3) == 0 && e.inDone && e.in == Answered && !e.outBegun {
			e.outBegun = true
			return Call{Op{Kind: Delete, Key: e.key}, func(o Outcome, r Result) {
				s.mu.Lock()
				defer s.mu.Unlock()
				e.out, e.outDone = o, true
				switch {
				case o == Answered && !r.Done:
					s.wrongf("%s was put in, nobody else took it out, and it was not there to be taken out", e.key)
				case o == Failed && e.missed:
					s.wrongf("%s was certainly not taken out, and a read had not shown it", e.key)
				}
			}}
		}
	}
	e := &element{key: fmt.Sprintf("%s{%s}", s.prefix, s.keys(shard))}
	s.all = append(s.all, e)
	s.byKey[e.key] = e
	return Call{Op{Kind: Set, Key: e.key, Value: "in"}, func(o Outcome, _ Result) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if e.in, e.inDone = o, true; o == Failed && e.seen {
			s.wrongf("%s was certainly not put in, and a read had shown it", e.key)
		}
	}}
}

// read is called with mu held.
func (s *Sets) read(e *element, by Reading) Call {
	there, absent := e.must()
	wasIn := e.surelyIn()
	return Call{Op{Kind: Get, Key: e.key, Reading: by}, func(o Outcome, r Result) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if o != Answered {
			return
		}
		// What began meanwhile may show; what was over before may not be missing.
		switch {
		case r.Value == "" && there && !e.outBegun:
			s.wrongf("%s was acknowledged or seen before a read that does not show it", e.key)
		case r.Value != "" && absent:
			s.wrongf("%s was taken out, or certainly never put in, and a read shows it", e.key)
		}
		// Whoever asks after this one must be told no less.
		e.seen = e.seen || r.Value != ""
		e.missed = e.missed || r.Value == "" && wasIn
	}}
}

func (s *Sets) wrongf(format string, args ...any) {
	if len(s.wrong) < mostFaults {
		s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
	}
}

// Final is a list of all keys.
func (s *Sets) Final() []Call {
	return []Call{{Op{Kind: List, Key: s.prefix}, func(o Outcome, r Result) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if o != Answered {
			return
		}
		s.listed = true
		seen := map[string]bool{}
		for _, p := range r.Parts {
			switch e := s.byKey[p.Value]; {
			case e == nil:
				s.wrongf("%q is listed, and nobody put it in", p.Value)
			case seen[p.Value]:
				s.wrongf("%s is listed twice", p.Value)
			}
			seen[p.Value] = true
		}
		for _, e := range s.all {
			switch there, absent := e.must(); {
			case there && !seen[e.key]:
				s.wrongf("%s was acknowledged or seen and is lost", e.key)
			case absent && seen[e.key]:
				s.wrongf("%s was taken out, or certainly never put in, and is there", e.key)
			}
		}
	}}}
}

func (s *Sets) Check(f *Findings) int {
	if !s.listed && !f.Partial {
		f.Add("set: its keys could not be listed")
	}
	for _, w := range s.wrong {
		f.Add("set: %s", w)
	}
	return len(s.all)
}
