package job

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// How a value is read.
const (
	AsString = "string" // any bytes
	AsRaw    = "raw"    // the same, which an expression sees as bytes and not as a text
	AsInt    = "int"    // a decimal integer of any size up to 1,000 digits
	AsFloat  = "float"  // a finite decimal float64
	AsJSON   = "json"   // a valid JSON document
)

// What each record is mapped to.
const (
	MapValue  = "value"  // the value, as read
	MapKey    = "key"    // the key, as text
	MapLen    = "len"    // the length of the value in bytes
	MapSquare = "square" // the value times itself
	MapParse  = "parse"  // the number that a text is: an integer, else a float
	MapLower  = "lower"  // the text in lower case
	MapJSON   = "json:"  // followed by a path: the scalar at that path
)

// How the mapped records are combined.
const (
	ReduceSum   = "sum"
	ReduceCount = "count"
	ReduceMin   = "min"
	ReduceMax   = "max"
	ReduceMean  = "mean"
)

// What a record that does not parse does to the job.
const (
	OnErrorFail  = "fail"  // the job fails and names how many and a sample of their keys
	OnErrorSkip  = "skip"  // they are counted, reported and left out
	OnErrorCount = "count" // the same, but more than MaxErrors of them fail the job
)

// Which jobs go first.
const (
	PriorityLow    = "low"
	PriorityNormal = "normal" // the default
	PriorityHigh   = "high"
)

// Whether an answer may come from the result cache.
const (
	CacheOn  = "on" // the default
	CacheOff = "off"
)

// Bounds of a spec.
const (
	MaxSpecBytes       = 64 << 10
	MaxPrefixBytes     = 1 << 10 // the longest key
	MaxPathBytes       = 1 << 10
	MaxNameBytes       = 128
	MaxIDBytes         = 64
	MaxTasksPerReplica = 16
	DefaultMaxGroups   = 10_000 // about as many as fit a result
	MaxMaxGroups       = 10_000
	MaxMaxErrors       = 1 << 53 // what every reader of JSON takes for itself
	DefaultTimeout     = 5 * time.Minute
	MaxTimeout         = time.Hour
)

// Spec says what a job computes: over every key that begins with Prefix whose record passes Filter, read
// the value As, take it apart with FlatMap, Map what there is, and Reduce what comes out, by group if there is GroupBy.
//
// What is empty is not written: to a node of an older version a job that uses nothing new looks as it always did.
type Spec struct {
	// ID makes a submit idempotent: the same id with the same spec is the same job. Empty: one is made up.
	ID string `json:"id,omitempty"`
	// Name is for people.
	Name    string `json:"name,omitempty"`
	Prefix  string `json:"prefix"`
	As      string `json:"as"`
	Filter  string `json:"filter,omitempty"` // conditions (ParseFilter) or an expression
	FlatMap string `json:"flat_map,omitempty"`
	Map     string `json:"map"`
	GroupBy string `json:"group_by,omitempty"`
	Reduce  string `json:"reduce"`
	OnError string `json:"on_error"`
	// MaxErrors is how many records may be bad with OnErrorCount, which needs it.
	MaxErrors int64 `json:"max_errors,omitempty"`
	// MaxGroups bounds the groups of GroupBy; 0 means DefaultMaxGroups. One more fails the job.
	MaxGroups int `json:"max_groups,omitempty"`
	// Priority is PriorityLow, empty for normal, or PriorityHigh.
	Priority string `json:"priority,omitempty"`
	// Cache is CacheOff, or empty for on.
	Cache string `json:"cache,omitempty"`
	// TimeoutMillis bounds the run; 0 means DefaultTimeout.
	TimeoutMillis int64 `json:"timeout_ms,omitempty"`
	// TasksPerReplica is how finely a shard is cut; 0 lets the master choose by the number of records.
	TasksPerReplica int `json:"tasks_per_replica,omitempty"`
}

// Question is what of a spec decides its answer: two specs with the same question have the same answer of the same records.
func (s Spec) Question() Spec {
	return Spec{Prefix: s.Prefix, As: s.As, Filter: s.Filter, FlatMap: s.FlatMap, Map: s.Map, GroupBy: s.GroupBy, Reduce: s.Reduce,
		OnError: s.OnError, MaxErrors: s.MaxErrors, MaxGroups: s.MaxGroups}
}

// SpecError says which field of a spec is wrong, why, and what to write instead.
type SpecError struct {
	Field  string
	Reason string
	Hint   string
	// Where is empty, or shows the place in what the field says: a line of it, and below that a caret under the fault.
	Where string
}

func (e *SpecError) Error() string {
	s := e.Field + ": " + e.Reason
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	if e.Where != "" {
		s += "\n" + e.Where
	}
	return s
}

var specFields = []string{"id", "name", "prefix", "as", "filter", "flat_map", "map", "group_by", "reduce", "on_error", "max_errors", "max_groups",
	"priority", "cache", "timeout_ms", "tasks_per_replica"}

// ParseSpec reads a spec in JSON, fills in the defaults and validates it.
// Every error is a *SpecError.
func ParseSpec(data []byte) (Spec, error) {
	if len(data) > MaxSpecBytes {
		return Spec{}, &SpecError{Field: "spec", Reason: fmt.Sprintf("%d bytes, at most %d are allowed", len(data), MaxSpecBytes)}
	}
	// encoding/json would quietly replace bad bytes, and the job would then read another prefix than the one meant.
	if !utf8.Valid(data) {
		return Spec{}, &SpecError{Field: "spec", Reason: "not UTF-8"}
	}
	// Names are checked here because encoding/json matches them in any case and has no typed error for unknown ones.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil || fields == nil {
		return Spec{}, &SpecError{Field: "spec", Reason: "not a JSON object", Hint: `for example {"prefix":"num/","as":"int","map":"square","reduce":"sum"}`}
	}
	for name, value := range fields {
		switch {
		case !slices.Contains(specFields, name):
			return Spec{}, &SpecError{Field: name, Reason: "unknown field", Hint: "known are " + strings.Join(specFields, ", ")}
		case string(value) == "null": // a prefix that is none reads all keys
			return Spec{}, &SpecError{Field: name, Reason: "it is null", Hint: "leave out what shall be as it is by default"}
		}
	}
	if name := twice(data); name != "" {
		return Spec{}, &SpecError{Field: name, Reason: "it is there twice"}
	}
	var s Spec
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&s); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return Spec{}, &SpecError{Field: wrong.Field, Reason: "a JSON " + wrong.Value + " cannot be used here", Hint: "it must be a " + wrong.Type.String()}
		}
		return Spec{}, &SpecError{Field: "spec", Reason: err.Error()}
	}
	s = s.WithDefaults()
	return s, s.Validate()
}

// twice is a name that an object has more than once, of which encoding/json takes the last; or "".
func twice(object []byte) string {
	d := json.NewDecoder(bytes.NewReader(object))
	seen := map[string]bool{}
	_, err := d.Token()
	for err == nil && d.More() {
		var name json.Token
		var value json.RawMessage
		if name, err = d.Token(); err != nil {
			break
		}
		key, _ := name.(string)
		if seen[key] {
			return key
		}
		seen[key] = true
		err = d.Decode(&value)
	}
	return "" // faults were told already
}

// WithDefaults fills in what may be left out: as string, map value, reduce count, on_error fail. Words that mean
// the same become one, so that specs that ask for the same are the same.
func (s Spec) WithDefaults() Spec {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&s.As, AsString)
	set(&s.Map, MapValue)
	set(&s.Reduce, ReduceCount)
	set(&s.OnError, OnErrorFail)
	if s.Priority == PriorityNormal {
		s.Priority = ""
	}
	if s.Cache == CacheOn {
		s.Cache = ""
	}
	return s
}

// Timeout is how long the job may run.
func (s Spec) Timeout() time.Duration {
	if s.TimeoutMillis == 0 {
		return DefaultTimeout
	}
	return time.Duration(s.TimeoutMillis) * time.Millisecond
}

// Path returns the path of a json: map, and whether it is one.
func (s Spec) Path() (string, bool) {
	if !strings.HasPrefix(s.Map, MapJSON) {
		return "", false
	}
	return s.Map[len(MapJSON):], true
}

// Classic says whether v0.4 knows all that the spec uses. Any other is refused until the cluster has feature level 1.
func (s Spec) Classic() bool {
	old := func(word string, known ...string) bool { return slices.Contains(known, word) }
	_, path := s.Path()
	return s.Filter+s.FlatMap+s.GroupBy+s.Priority+s.Cache == "" && s.MaxErrors == 0 && s.MaxGroups == 0 &&
		old(s.As, AsString, AsInt, AsFloat, AsJSON) &&
		(path || old(s.Map, MapValue, MapKey, MapLen, MapSquare)) &&
		old(s.Reduce, ReduceSum, ReduceCount, ReduceMin, ReduceMax, ReduceMean) &&
		old(s.OnError, OnErrorFail, OnErrorSkip)
}
