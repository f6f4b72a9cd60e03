package workload

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// database is a linearizable one, but for what a test has it do wrong.
type database struct {
	mu     sync.Mutex
	values map[string]string
	ends   map[string]time.Time
	// wrong may carry out an operation in its own way.
	wrong func(d *database, op Op) (Result, bool)
}

func newDatabase() *database {
	return &database{values: map[string]string{}, ends: map[string]time.Time{}}
}

func (d *database) do(op Op) Result {
	if d.wrong != nil {
		if r, ok := d.wrong(d, op); ok {
			return r
		}
	}
	if end, ok := d.ends[op.Key]; ok && !time.Now().Before(end) {
		delete(d.values, op.Key)
		delete(d.ends, op.Key)
	}
	now := d.values[op.Key]
	switch op.Kind {
	case Get:
		return Result{Value: now}
	case Set:
		if op.Compare && now != op.Old {
			return Result{}
		}
		d.values[op.Key] = op.Value
		if op.TTL > 0 {
			d.ends[op.Key] = time.Now().Add(op.TTL)
		}
		return Result{Done: true}
	case Delete:
		delete(d.values, op.Key)
		return Result{Done: now != ""}
	case Append:
		d.values[op.Key] = now + op.Value
		return Result{Int: int64(len(now + op.Value))}
	case Incr:
		n, _ := atoi(now)
		d.values[op.Key] = strconv.FormatInt(n+op.By, 10)
		return Result{Int: n + op.By}
	case Multi:
		var r Result
		for _, p := range op.Parts {
			r.Parts = append(r.Parts, d.do(p))
		}
		return r
	case List:
		var r Result
		for key := range d.values {
			if strings.HasPrefix(key, op.Key) {
				r.Parts = append(r.Parts, Result{Value: key})
			}
		}
		return r
	case Job:
		var r Result
		for key, v := range d.values {
			if strings.HasPrefix(key, op.Key) {
				n, _ := atoi(v)
				if op.Value == JobCount {
					n = 1
				}
				if op.Value == JobGroups {
					r.Parts = append(r.Parts, Result{Value: strings.Split(key, "/")[1], Int: n})
				}
				r.Int += n
			}
		}
		return r
	}
	panic("no such operation")
}

// without answers an operation as if it were carried out.
func (d *database) without(op Op) Result {
	before := maps.Clone(d.values)
	r := d.do(op)
	d.values = before
	return r
}

func numbered(shard int) Keys {
	n := 0
	var mu sync.Mutex
	return func(int) string {
		mu.Lock()
		defer mu.Unlock()
		n++
		return "k" + strconv.Itoa(shard) + "." + strconv.Itoa(n)
	}
}

// play has some clients work for a while, in virtual time, one in ten operations with an unknown end, and returns what is found wrong.
func play(t *testing.T, make func(*Order, Keys) []Workload, wrong func(d *database, op Op) (Result, bool)) (faults []string) {
	t.Helper()
	f := &Findings{Dir: t.TempDir()}
	var loads []Workload
	synctest.Test(t, func(t *testing.T) {
		d := newDatabase()
		loads = make(new(Order), numbered(0))
		do := func(rng *rand.Rand, call Call) {
			think := func() { time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond) }
			think()
			fate := rng.IntN(20)
			if fate == 0 {
				call.Settle(Failed, Result{})
				return
			}
			d.mu.Lock()
			r := d.do(call.Op)
			d.mu.Unlock()
			think()
			if fate == 1 {
				call.Settle(Uncertain, Result{})
				return
			}
			call.Settle(Answered, r)
		}
		for _, w := range loads {
			if b, ok := w.(*Banks); ok {
				for _, call := range b.Opening() {
					call.Settle(Answered, d.do(call.Op))
				}
			}
		}
		d.wrong = wrong
		var clients sync.WaitGroup
		for c := range 6 {
			rng := rand.New(rand.NewPCG(7, uint64(c)))
			clients.Go(func() {
				for range 300 {
					do(rng, loads[rng.IntN(len(loads))].Next(rng, rng.IntN(3), rng.IntN(2) == 0))
				}
			})
		}
		clients.Wait()
		time.Sleep(time.Minute)
		for _, w := range loads {
			for _, call := range w.Final() {
				call.Settle(Answered, d.do(call.Op))
			}
		}
	})
	for _, w := range loads {
		w.Check(f)
	}
	return f.Faults()
}

// Who shows what was, within the bound, is not accused either.
func TestStaleWithinBound(t *testing.T) {
	old, since := map[string]string{}, time.Time{}
	faults := play(t, lists, func(d *database, op Op) (Result, bool) {
		if time.Since(since) > StaleBound/2 {
			old, since = maps.Clone(d.values), time.Now()
		}
		return Result{Value: old[op.Key]}, op.Kind == Get && op.Reading == Bounded
	})
	if len(faults) > 0 {
		t.Errorf("stale reads within their bound: %q", faults)
	}
}

func registers(o *Order, k Keys) []Workload { return []Workload{NewRegisters(o, k)} }
func lists(_ *Order, k Keys) []Workload     { return []Workload{NewLists(k)} }
func counters(_ *Order, k Keys) []Workload  { return []Workload{NewCounters(k)} }
func sets(_ *Order, k Keys) []Workload      { return []Workload{NewSets("set/", k)} }
func ttls(_ *Order, k Keys) []Workload      { return []Workload{NewTTLs(k)} }
func banks(_ *Order, k Keys) []Workload {
	b := NewBanks("bank/", 3, k)
	return []Workload{b, NewJobs(b)}
}

// A database that does what it should is not accused.
func TestNothingIsWrong(t *testing.T) {
	for name, make := range map[string]func(*Order, Keys) []Workload{
		"registers": registers, "lists": lists, "counters": counters, "sets": sets, "ttls": ttls, "banks": banks,
	} {
		t.Run(name, func(t *testing.T) {
			if faults := play(t, make, nil); len(faults) > 0 {
				t.Errorf("a database without a fault: %q", faults)
			}
		})
	}
}

// One that does not is, each in a way that a replicated database is known for.
func TestEverythingIsFound(t *testing.T) {
	// few has something go wrong at the nth operation of a kind and the four after it, and never again: of one alone
	// the client may not have heard, or somebody may have written over it.
	few := func(kind Kind, n int, how func(d *database, op Op) Result) func(*database, Op) (Result, bool) {
		seen := 0
		return func(d *database, op Op) (Result, bool) {
			if op.Kind != kind {
				return Result{}, false
			}
			if seen++; seen < n || seen >= n+5 {
				return Result{}, false
			}
			return how(d, op), true
		}
	}
	twice := func(d *database, op Op) Result { d.do(op); return d.do(op) }
	// transfers is few for transactions that write: the money of the bank stays what it was.
	transfers := func(how func(d *database, op Op) Result) func(*database, Op) (Result, bool) {
		some := few(Multi, 50, how)
		return func(d *database, op Op) (Result, bool) {
			if op.Reads() {
				return Result{}, false
			}
			return some(d, op)
		}
	}
	// stale remembers what a key was, and shows it so many reads later.
	stale := func(from, later int) func(*database, Op) (Result, bool) {
		old, seen := map[string]string{}, 0
		return func(d *database, op Op) (Result, bool) {
			if op.Kind != Get {
				return Result{}, false
			}
			if seen++; seen > from && seen < from+40 {
				if v, ok := old[op.Key]; ok {
					return Result{Value: v}, true
				}
			}
			if seen == from-later {
				for k, v := range d.values {
					old[k] = v
				}
			}
			return Result{}, false
		}
	}
	for _, c := range []struct {
		name  string
		make  func(*Order, Keys) []Workload
		wrong func(*database, Op) (Result, bool)
	}{
		{"a write is acknowledged and lost", registers, few(Set, 200, func(*database, Op) Result { return Result{Done: true} })},
		{"old values are read", registers, stale(300, 100)},
		{"a compared write is carried out all the same", registers, func(d *database, op Op) (Result, bool) {
			if !op.Compare {
				return Result{}, false
			}
			d.values[op.Key] = op.Value
			return Result{}, true
		}},
		{"an append is lost", lists, few(Append, 150, func(d *database, op Op) Result { return Result{Int: int64(len(d.values[op.Key] + op.Value))} })},
		{"an append is carried out twice", lists, few(Append, 150, twice)},
		{"an old list is read", lists, stale(300, 100)},
		{"a list that never was is read", lists, few(Get, 150, func(*database, Op) Result { return Result{Value: "1;999999;"} })},
		{"stale reads show nothing", lists, func(_ *database, op Op) (Result, bool) { return Result{}, op.Kind == Get && op.Reading == Stale }},
		{"stale reads with a bound are older", lists, func() func(*database, Op) (Result, bool) {
			old, since := map[string]string{}, time.Time{}
			return func(d *database, op Op) (Result, bool) {
				if time.Since(since) > 2*StaleBound {
					old, since = maps.Clone(d.values), time.Now()
				}
				return Result{Value: old[op.Key]}, op.Kind == Get && op.Reading == Bounded
			}
		}()},
		{"a counter counts twice", counters, few(Incr, 100, twice)},
		{"a counter does not count", counters, few(Incr, 100, func(d *database, op Op) Result {
			n, _ := atoi(d.values[op.Key])
			return Result{Int: n + 1}
		})},
		{"a counter is read from before", counters, stale(300, 10)},
		{"an element is lost", sets, few(Set, 200, func(*database, Op) Result { return Result{Done: true} })},
		{"elements come back", sets, few(Delete, 20, func(*database, Op) Result { return Result{Done: true} })},
		{"an element is taken out twice", sets, few(Delete, 20, func(d *database, op Op) Result { d.do(op); return d.do(op) })},
		{"a strange element is there", sets, few(Delete, 20, func(d *database, op Op) Result { d.values["set/strange"] = "in"; return d.do(op) })},
		{"half a transfer", banks, few(Multi, 150, func(d *database, op Op) Result {
			r := d.do(op.Parts[0])
			return Result{Parts: []Result{r, r}}
		})},
		{"a transfer is lost", banks, transfers(func(d *database, op Op) Result { return d.without(op) })},
		{"a transfer is carried out twice", banks, transfers(func(d *database, op Op) Result { r := d.do(op); d.do(op); return r })},
		{"a transfer's money moves twice", banks, transfers(func(d *database, op Op) Result { d.do(op.Parts[0]); d.do(op.Parts[1]); return d.do(op) })},
		{"a transfer leaves its name and moves nothing", banks, transfers(func(d *database, op Op) Result {
			r := d.without(op)
			d.do(op.Parts[2])
			return r
		})},
		{"half a transfer is seen", banks, func() func(*database, Op) (Result, bool) {
			half, seen := false, 0
			return func(d *database, op Op) (Result, bool) {
				if op.Kind != Multi {
					return Result{}, false
				}
				if seen++; seen == 200 {
					half = true
				}
				if half && op.Reads() {
					half = false
					a := d.do(op)
					n, _ := atoi(a.Parts[0].Value)
					a.Parts[0].Value = strconv.FormatInt(n-7, 10)
					return a, true
				}
				return Result{}, false
			}
		}()},
		{"a job counts a record twice", banks, few(Job, 60, func(d *database, op Op) Result { r := d.do(op); r.Int++; return r })},
		{"a job puts money into another group", banks, func() func(*database, Op) (Result, bool) {
			asked := false
			return func(d *database, op Op) (Result, bool) {
				if asked = !asked && op.Kind == Job && op.Value == JobGroups; !asked {
					return Result{}, false
				}
				r := d.do(op) // which comes by here again
				other := slices.IndexFunc(r.Parts, func(p Result) bool { return p.Value != r.Parts[0].Value })
				r.Parts[0].Int--
				r.Parts[other].Int++
				return r, true
			}
		}()},
		{"a key ends early", ttls, few(Set, 100, func(d *database, op Op) Result { op.TTL /= 10; return d.do(op) })},
		{"a key does not end", ttls, few(Set, 100, func(d *database, op Op) Result { op.TTL = time.Hour; return d.do(op) })},
		{"keys end early", ttls, func(d *database, op Op) (Result, bool) {
			if op.Kind != Set {
				return Result{}, false
			}
			op.Kind, op.TTL = Set, op.TTL/4
			d.values[op.Key], d.ends[op.Key] = op.Value, time.Now().Add(op.TTL)
			return Result{Done: true}, true
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if faults := play(t, c.make, c.wrong); len(faults) == 0 {
				t.Error("it was not found")
			}
		})
	}
}
