package sim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
)

// lists is the workload of values that only grow: clients append tokens. In the end
// each acknowledged token is there once, where its answer said; what failed for certain
// is not; and every read was a beginning of the end that had all that was
// acknowledged before it.
type lists struct {
	keys *keys

	mu     sync.Mutex
	tokens int
	active map[sharding.ShardID]*list
	all    []*list
}

type list struct {
	key    string
	shard  sharding.ShardID
	ops    int
	tokens map[string]*token
	acked  int // bytes of the furthest acknowledged end
	reads  []listRead
	end    []byte
	read   bool // end is known
}

type token struct {
	o   outcome
	end int // length of the list after it, as answered
}

type listRead struct {
	value []byte
	least int // bytes that were acknowledged before
}

func newLists(k *keys) *lists { return &lists{keys: k, active: map[sharding.ShardID]*list{}} }

func (ls *lists) next(_ *rand.Rand, shard sharding.ShardID, read bool) ask {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.active[shard]
	if l == nil || l.ops >= 2*keyLife {
		l = &list{key: ls.keys.make(shard), shard: shard, tokens: map[string]*token{}}
		ls.active[shard] = l
		ls.all = append(ls.all, l)
	}
	l.ops++
	least := l.acked
	if read {
		return ask{on(command.OpGet, l.key), func(o outcome, r command.Result) {
			ls.mu.Lock()
			defer ls.mu.Unlock()
			if o == answered {
				l.reads = append(l.reads, listRead{r.Bytes, least})
			}
		}}
	}
	ls.tokens++
	name := strconv.Itoa(ls.tokens) + ";"
	t := &token{o: uncertain}
	l.tokens[name] = t
	return ask{on(command.OpAppend, l.key, name), func(o outcome, r command.Result) {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		if t.o = o; o == answered {
			t.end = int(r.Int)
			l.acked = max(l.acked, t.end)
		}
	}}
}

func (ls *lists) final() (asks []ask) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.all {
		asks = append(asks, ask{on(command.OpGet, l.key), func(o outcome, r command.Result) {
			ls.mu.Lock()
			defer ls.mu.Unlock()
			l.end, l.read = r.Bytes, o == answered
		}})
	}
	return asks
}

func (ls *lists) check(f *failure) int {
	for _, l := range ls.all {
		l.check(f)
	}
	return len(ls.all)
}

func (l *list) check(f *failure) {
	wrong := func(format string, args ...any) {
		f.add("list %s of shard %d: %s", l.key, l.shard, fmt.Sprintf(format, args...))
		f.save("list-"+l.key+".txt", l.end)
	}
	if !l.read {
		wrong("its end could not be read")
		return
	}
	ends := map[string]int{}
	at := 0
	for name := range strings.SplitAfterSeq(string(l.end), ";") {
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
		case t.o == failed:
			wrong("holds %q, which certainly failed", name)
		case t.o == answered && t.end != at:
			wrong("%q ends at %d, the answer said %d", name, at, t.end)
		}
		ends[name] = at
	}
	for name, t := range l.tokens {
		if t.o == answered && ends[name] == 0 {
			wrong("%q was acknowledged and is not there", name)
		}
	}
	for _, r := range l.reads {
		if !bytes.HasPrefix(l.end, r.value) {
			wrong("a read of %d bytes is no beginning of the end", len(r.value))
		} else if len(r.value) < r.least {
			wrong("a read of %d bytes lacks what was acknowledged before it, up to %d", len(r.value), r.least)
		}
	}
}
