package compute

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/abacusdb/abacus/compute/fold"
	"github.com/abacusdb/abacus/compute/job"
)

// A MapFunc makes the value of a record: it sets out and says true, or says false for a record that is bad. It must depend on
// nothing but its arguments, or replicas come to different answers; it keeps none of them, and may run on many goroutines. A text in
// out may alias key or value. A panic fails the task.
type MapFunc func(key, value []byte, out *fold.Value) bool

// A FilterFunc says whether a job looks at a record. It is bound by what binds a MapFunc.
type FilterFunc func(key, value []byte) bool

// registry has the functions that the program was built with.
var registry = struct {
	sync.RWMutex
	maps    map[string]MapFunc
	filters map[string]FilterFunc
}{maps: map[string]MapFunc{}, filters: map[string]FilterFunc{}}

// RegisterMap gives a job's map a function of the program's own: `"map":"go:NAME"`. It is for a main of one's own, before it opens a node, and
// all nodes of a cluster must have the same. It panics if job.IsFuncName does not hold or if the name is taken.
func RegisterMap(name string, fn MapFunc) { register(registry.maps, name, fn, fn == nil) }

// RegisterFilter does the same for a filter: `"filter":"go:NAME"`, also beside other conditions.
func RegisterFilter(name string, fn FilterFunc) { register(registry.filters, name, fn, fn == nil) }

func register[F any](to map[string]F, name string, fn F, none bool) {
	registry.Lock()
	defer registry.Unlock()
	_, taken := to[name]
	switch {
	case !job.IsFuncName(name):
		panic(fmt.Sprintf("compute: %q cannot name a function: a letter, then letters, digits, _ and -", name))
	case none:
		panic("compute: function " + name + " is nil")
	case taken:
		panic("compute: function " + name + " is registered twice")
	}
	to[name] = fn
}

func registeredMap(name string) (MapFunc, error) { return registered(registry.maps, "map", name) }

func registeredFilter(name string) (FilterFunc, error) {
	return registered(registry.filters, "filter", name)
}

func registered[F any](from map[string]F, field, name string) (F, error) {
	registry.RLock()
	defer registry.RUnlock()
	fn, ok := from[name]
	if ok {
		return fn, nil
	}
	hint := "it was built with none"
	if len(from) > 0 {
		hint = "it was built with " + strings.Join(slices.Sorted(maps.Keys(from)), ", ")
	}
	return fn, &job.SpecError{Field: field, Reason: "this node does not know go:" + name, Hint: hint}
}
