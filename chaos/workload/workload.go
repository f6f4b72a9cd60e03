// Package workload makes operations for many clients at once, keeps what came back, and judges it.
//
// A Workload knows keys, values and what may follow from what. It knows no cluster: whoever drives it carries out the Op of
// each Call and settles the call with an Outcome. The simulation (node/sim) drives the same workloads in
// virtual time as the chaos tests do with real processes.
//
// Each workload judges what it can be sure of: Registers, whether one order of all operations explains what every client saw
// (Porcupine, key by key); the others, a property that needs no search and so holds over histories of any length.
//
// Nothing here starts a goroutine. Next, Settle and Final may be called concurrently; Check, once all calls are settled.
package workload

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/sharding"
)

// Outcome is what a client knows of an operation.
type Outcome int

const (
	// Answered: carried out, and the Result is its.
	Answered Outcome = iota
	// Failed: certainly not carried out, and it will not be.
	Failed
	// Uncertain: carried out, or not, or still to come.
	Uncertain
)

func (o Outcome) String() string { return [...]string{"answered", "failed", "uncertain"}[o] }

// Kind is what an Op does.
type Kind int

const (
	// Get reads a value.
	Get Kind = iota
	// Set stores one; with Compare, only if Old is there.
	Set
	// Delete takes a key out.
	Delete
	// Append adds to the end of a value.
	Append
	// Incr adds By to a number.
	Incr
	// Multi carries out Parts as one, or none of them. Their keys have one {tag}, and so has Key.
	Multi
	// List reads all keys that begin with Key.
	List
	// Job computes Value, one of JobKinds, over all keys that begin with Key.
	Job
)

// Reading is who may answer a Get.
type Reading int

const (
	// Linearizable: whoever the client turns to.
	Linearizable Reading = iota
	// ByFollower: a replica that does not lead, linearizable all the same.
	ByFollower
	// Stale: any replica, from a state of the past.
	Stale
	// Bounded: any replica, from a state of the past that has all that was acknowledged StaleBound ago.
	Bounded
)

// StaleBound is how old what a Bounded Get shows may be. A follower of a shard that is well is sure of a little less.
const StaleBound = time.Second

// Op is one operation.
type Op struct {
	Kind    Kind
	Key     string
	Value   string        // Set, Append
	Compare bool          // Set
	Old     string        // Set, with Compare
	TTL     time.Duration // Set; 0: for ever
	By      int64         // Incr
	Reading Reading       // Get
	Parts   []Op          // Multi
}

// Reads says whether the operation changes nothing.
func (o Op) Reads() bool {
	for _, p := range o.Parts {
		if !p.Reads() {
			return false
		}
	}
	return o.Kind != Set && o.Kind != Delete && o.Kind != Append && o.Kind != Incr
}

// Result is what an answered operation answered.
type Result struct {
	Value string   // Get; "" if there is none
	Int   int64    // Incr: the number now; Append: the length now; Job: its result, of all groups together
	Done  bool     // Set: stored; Delete: the key was there
	Parts []Result // Multi; List: the keys, as Values; Job: its groups, as Value and Int
}

// Call is an operation under way.
type Call struct {
	Op Op
	// Settle is called once, when all is known that will be. The result is of an answered one.
	Settle func(Outcome, Result)
}

// Workload is one kind of work.
type Workload interface {
	// Next begins a read or a write in a shard, or in what the driver takes for one.
	Next(rng *rand.Rand, shard int, read bool) Call
	// Final begins reads of everything, once nothing breaks any more. All must be answered.
	Final() []Call
	// Check adds what is wrong, and returns how many keys it judged.
	Check(*Findings) (keys int)
}

// Order numbers the beginnings and the ends of calls: what ended before another began has the smaller number.
type Order struct{ n atomic.Int64 }

func (o *Order) next() int64 { return o.n.Add(1) }

// Never is after everything.
const Never = math.MaxInt64

// Keys makes a key in a shard that nobody has had.
type Keys func(shard int) string

// KeysOf makes keys in the shards of a map.
func KeysOf(m sharding.Map) Keys {
	var mu sync.Mutex
	n, spare, router := 0, map[sharding.ShardID][]string{}, sharding.NewRouter(m)
	return func(shard int) string {
		mu.Lock()
		defer mu.Unlock()
		id := sharding.ShardID(shard)
		for len(spare[id]) == 0 {
			n++
			key := "k" + strconv.Itoa(n)
			_, s := router.Locate([]byte(key))
			spare[s] = append(spare[s], key)
		}
		key := spare[id][0]
		spare[id] = spare[id][1:]
		return key
	}
}

// Findings are what is wrong, and files that show it.
type Findings struct {
	// Dir is made with the first file.
	Dir string
	// Partial: nobody has read the ends, and so it is no violation that they are not known. What is known is judged all the same.
	Partial bool

	mu     sync.Mutex
	faults []string
	more   int
}

// mostFaults are kept word for word.
const mostFaults = 30

// Add adds a violation.
func (f *Findings) Add(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.faults) < mostFaults {
		f.faults = append(f.faults, fmt.Sprintf(format, args...))
	} else {
		f.more++
	}
}

// Faults are the violations so far.
func (f *Findings) Faults() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.faults[:len(f.faults):len(f.faults)]
	if f.more > 0 {
		all = append(all, fmt.Sprintf("and %d more", f.more))
	}
	return all
}

// unread adds that the ends of some keys could not be read, in one line for all of them: what else is wrong should not be lost behind it.
func (f *Findings) unread(what string, keys []string, of int) {
	if len(keys) > 0 && !f.Partial {
		f.Add("%s: the end of %d of %d keys could not be read: %s", what, len(keys), of, Few(keys))
	}
}

// Few is a list of names that may be long, in a line that is not.
func Few(names []string) string {
	const most = 8
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// Count is how many violations there are.
func (f *Findings) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.faults) + f.more
}

// Save writes a file into Dir.
func (f *Findings) Save(name string, data []byte) {
	f.SaveWith(name, func(w io.Writer) error { _, err := w.Write(data); return err })
}

// SaveWith is Save for what writes itself.
func (f *Findings) SaveWith(name string, write func(io.Writer) error) {
	err := os.MkdirAll(f.Dir, 0o755)
	if err == nil {
		var file *os.File
		if file, err = os.Create(filepath.Join(f.Dir, name)); err == nil {
			err = write(file)
			if e := file.Close(); err == nil {
				err = e
			}
		}
	}
	if err != nil {
		f.Add("save %s: %v", name, err)
	}
}
