//go:build linux

package campaign

import (
	"math/rand/v2"
	"slices"
	"time"
)

// step is one fault of a plan.
type step struct {
	kind string
	// hold is how long what was broken stays so.
	hold time.Duration
	// seed is for the choices that depend on the cluster: who leads, which file.
	seed uint64
	// with is a second fault that begins inside this one, or nil.
	with *step
}

// plan is what a seed makes of kinds: endless rounds, in each of which every kind comes once, in random order; one in three has a
// companion. It depends on nothing else, so that a seed repeats it.
type plan struct {
	rng   *rand.Rand
	kinds []kind
	round []kind
}

func newPlan(seed uint64, kinds []kind) *plan {
	return &plan{rng: rand.New(rand.NewPCG(seed, 'p'<<8|'l')), kinds: kinds}
}

// next is the next step.
func (p *plan) next() step {
	if len(p.round) == 0 {
		p.round = slices.Clone(p.kinds)
		p.rng.Shuffle(len(p.round), func(i, j int) { p.round[i], p.round[j] = p.round[j], p.round[i] })
	}
	k := p.round[0]
	p.round = p.round[1:]
	s := p.step(k)
	var others []kind
	const shortest = 3 * time.Second // that leaves time for another inside
	if s.hold < shortest {
		return s
	}
	for _, o := range p.kinds {
		if o.name != k.name && k.goesWith(o) && o.least <= s.hold/2 { // or it would be over before it has an effect
			others = append(others, o)
		}
	}
	if len(others) > 0 && p.rng.IntN(3) == 0 {
		with := p.step(others[p.rng.IntN(len(others))])
		with.hold = min(with.hold, s.hold/2)
		s.with = &with
	}
	return s
}

func (p *plan) step(k kind) step {
	span := int64(k.most-k.least) + 1
	return step{kind: k.name, hold: k.least + time.Duration(p.rng.Int64N(span)), seed: p.rng.Uint64()}
}
