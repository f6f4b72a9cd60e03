package workload

import (
	"fmt"
	"math/rand/v2"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Lists is the workload of values that only grow: clients append tokens. In the end
// each acknowledged token is there once, where its answer said; what failed for certain
// is not; and every read was a beginning of the end that had all that was
// acknowledged before it, or that anybody had seen. A stale read is a beginning of the end, too, and one with a bound had all that was
// acknowledged or seen so long before.
type Lists struct {
	keys Keys

	mu     sync.Mutex
	tokens int
	active map[int]*list
	all    []*list
	// stale reads were answered; of those, empty ones.
	stale, empty int
}

type list struct {
	key    string
	shard  int
	ops    int
	tokens map[string]*token
	known  []knownEnd // the furthest, in order
	reads  []listRead
	end    string // or the most that was seen of it
	read   bool   // end is known
}

// knownEnd is how long the list surely was from some moment on: somebody was told.
type knownEnd struct {
	at    time.Time
	bytes int
}

// least is how long the list surely was at some moment.
func (l *list) least(at time.Time) int {
	i := sort.Search(len(l.known), func(i int) bool { return l.known[i].at.After(at) })
	if i == 0 {
		return 0
	}
	return l.known[i-1].bytes
}

// told notes that somebody knows how long the list is: whoever asks from now on must not be told less, whoever it was that knew.
func (l *list) told(bytes int) {
	if now := time.Now(); bytes > l.least(now) {
		l.known = append(l.known, knownEnd{now, bytes})
	}
}

type token struct {
	o     Outcome
	end   int // length of the list after it, as answered
	least int // what the list surely had before it
}

// listRead is what a read saw: a length and the last token of it, for reads are many and lists long.
type listRead struct {
	bytes int
	sum   uint64
	least int // bytes that were acknowledged before
}

// NewLists returns one without keys yet.
func NewLists(k Keys) *Lists { return &Lists{keys: k, active: map[int]*list{}} }

func (ls *Lists) Next(rng *rand.Rand, shard int, read bool) Call {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.active[shard]
	if l == nil || l.ops >= 2*keyLife {
		l = &list{key: ls.keys(shard), shard: shard, tokens: map[string]*token{}}
		ls.active[shard] = l
		ls.all = append(ls.all, l)
	}
	l.ops++
	if read {
		op := Op{Kind: Get, Key: l.key, Reading: Reading(rng.IntN(4))}
		least := 0
		switch op.Reading {
		case Linearizable, ByFollower:
			least = l.least(time.Now())
		case Bounded:
			least = l.least(time.Now().Add(-StaleBound))
		}
		return Call{op, func(o Outcome, r Result) {
			ls.mu.Lock()
			defer ls.mu.Unlock()
			if o == Answered && op.Reading == Stale {
				if ls.stale++; r.Value == "" {
					ls.empty++
				}
			}
			if o == Answered {
				l.reads = append(l.reads, listRead{len(r.Value), hashOf(r.Value), least})
				l.told(len(r.Value)) // a stale one, too, has shown what is committed
				if len(r.Value) > len(l.end) {
					l.end = r.Value
				}
			}
		}}
	}
	ls.tokens++
	name := strconv.Itoa(ls.tokens) + ";"
	t := &token{o: Uncertain, least: l.least(time.Now())}
	l.tokens[name] = t
	return Call{Op{Kind: Append, Key: l.key, Value: name}, func(o Outcome, r Result) {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		if t.o = o; o == Answered {
			t.end = int(r.Int)
			l.told(t.end)
		}
	}}
}

func (ls *Lists) Final() (calls []Call) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.all {
		calls = append(calls, Call{Op{Kind: Get, Key: l.key}, func(o Outcome, r Result) {
			ls.mu.Lock()
			defer ls.mu.Unlock()
			if o == Answered {
				l.end, l.read = r.Value, true
			}
		}})
	}
	return calls
}

func (ls *Lists) Check(f *Findings) int {
	var unread []string
	for _, l := range ls.all {
		if l.check(f); !l.read {
			unread = append(unread, l.key)
		}
	}
	f.unread("list", unread, len(ls.all))
	// Each list grows fast: who always answers nothing keeps every promise about one state, and is no database.
	if ls.stale >= 100 && ls.empty*2 > ls.stale {
		f.Add("%d of %d stale reads of lists that grow showed nothing", ls.empty, ls.stale)
	}
	return len(ls.all)
}

// check judges a list by its end, or if nobody could read that, by the most that was seen of it.
func (l *list) check(f *Findings) {
	wrong := func(format string, args ...any) {
		f.Add("list %s of shard %d: %s", l.key, l.shard, fmt.Sprintf(format, args...))
		f.Save("list-"+l.key+".txt", []byte(l.end))
	}
	ends := map[string]int{}
	at := 0
	for name := range strings.SplitAfterSeq(l.end, ";") {
		if name == "" {
			continue
		}
		at += len(name)
		t := l.tokens[name]
		switch {
		case t == nil:
			wrong("holds %q, which nobody appended", name)
		case ends[name] != 0:
			wrong("holds %q twice", name)
		case t.o == Failed:
			wrong("holds %q, which certainly failed", name)
		case t.o == Answered && t.end != at:
			wrong("%q ends at %d, the answer said %d", name, at, t.end)
		case at-len(name) < t.least:
			wrong("%q begins at %d, and %d bytes were there before it", name, at-len(name), t.least)
		}
		ends[name] = at
	}
	for name, t := range l.tokens {
		if t.o == Answered && ends[name] == 0 && (l.read || t.end <= len(l.end)) {
			wrong("%q was acknowledged and is not there", name)
		}
	}
	for _, r := range l.reads {
		if r.bytes > len(l.end) || hashOf(l.end[:r.bytes]) != r.sum {
			wrong("a read of %d bytes is no beginning of the end", r.bytes)
		} else if r.bytes < r.least {
			wrong("a read of %d bytes lacks what it should have, up to %d", r.bytes, r.least)
		}
	}
}
