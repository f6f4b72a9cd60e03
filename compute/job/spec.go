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
	OnErrorFail = "fail" // the job fails and names how many and a sample of their keys
	OnErrorSkip = "skip" // they are counted, reported and left out
)

// Bounds of a spec.
const (
	MaxSpecBytes       = 64 << 10
	MaxPrefixBytes     = 1 << 10 // the longest key
	MaxPathBytes       = 1 << 10
	MaxNameBytes       = 128
	MaxIDBytes         = 64
	MaxTasksPerReplica = 16
	DefaultTimeout     = 5 * time.Minute
	MaxTimeout         = time.Hour
)

// Spec says what a job computes: over every key that begins with Prefix, read
// the value As, Map it, Reduce what comes out.
type Spec struct {
	// ID makes a submit idempotent: the same id with the same spec is the same job. Empty: one is made up.
	ID string `json:"id,omitempty"`
	// Name is for people.
	Name    string `json:"name,omitempty"`
	Prefix  string `json:"prefix"`
	As      string `json:"as"`
	Map     string `json:"map"`
	Reduce  string `json:"reduce"`
	OnError string `json:"on_error"`
	// TimeoutMillis bounds the run; 0 means DefaultTimeout.
	TimeoutMillis int64 `json:"timeout_ms,omitempty"`
	// TasksPerReplica is how finely a shard is cut; 0 lets the master choose by the number of records.
	TasksPerReplica int `json:"tasks_per_replica,omitempty"`
}

// SpecError says which field of a spec is wrong, why, and what to write instead.
type SpecError struct {
	Field  string
	Reason string
	Hint   string
}

func (e *SpecError) Error() string {
	s := e.Field + ": " + e.Reason
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

var specFields = []string{"id", "name", "prefix", "as", "map", "reduce", "on_error", "timeout_ms", "tasks_per_replica"}

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
	for name := range fields {
		if !slices.Contains(specFields, name) {
			return Spec{}, &SpecError{Field: name, Reason: "unknown field", Hint: "known are " + strings.Join(specFields, ", ")}
		}
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

// WithDefaults fills in what may be left out: as string, map value, reduce count, on_error fail.
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

// Validate reports the first fault as a *SpecError: what cannot give a result
// is refused when it is submitted, not after a scan.
func (s Spec) Validate() error {
	for _, check := range []func() *SpecError{s.checkNames, s.checkBounds, s.checkWords, s.checkCombination} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (s Spec) checkNames() *SpecError {
	if err := CheckID(s.ID); s.ID != "" && err != nil {
		return err
	}
	if len(s.Name) > MaxNameBytes || !utf8.ValidString(s.Name) {
		return &SpecError{Field: "name", Reason: fmt.Sprintf("must be UTF-8 of at most %d bytes", MaxNameBytes)}
	}
	if len(s.Prefix) > MaxPrefixBytes {
		return &SpecError{Field: "prefix", Reason: fmt.Sprintf("%d bytes, longer than any key (%d)", len(s.Prefix), MaxPrefixBytes)}
	}
	if !utf8.ValidString(s.Prefix) {
		return &SpecError{Field: "prefix", Reason: "not UTF-8", Hint: "use a shorter prefix that is"}
	}
	return nil
}

// CheckID says whether id can name a job. The error is a *SpecError.
func CheckID(id string) *SpecError {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	}
	if id == "" || len(id) > MaxIDBytes || strings.ContainsFunc(id, bad) {
		return &SpecError{Field: "id", Reason: fmt.Sprintf("must be 1 to %d of a-z A-Z 0-9 . _ -", MaxIDBytes)}
	}
	return nil
}

func (s Spec) checkBounds() *SpecError {
	if s.TimeoutMillis < 0 || s.TimeoutMillis > MaxTimeout.Milliseconds() {
		return &SpecError{Field: "timeout_ms", Reason: fmt.Sprintf("must be 1 to %d, or left out for %d", MaxTimeout.Milliseconds(), DefaultTimeout.Milliseconds())}
	}
	if s.TasksPerReplica < 0 || s.TasksPerReplica > MaxTasksPerReplica {
		return &SpecError{Field: "tasks_per_replica", Reason: fmt.Sprintf("must be 1 to %d, or left out to let the master choose", MaxTasksPerReplica)}
	}
	return nil
}

func (s Spec) checkWords() *SpecError {
	oneOf := func(field, value string, words ...string) *SpecError {
		if slices.Contains(words, value) {
			return nil
		}
		return &SpecError{Field: field, Reason: fmt.Sprintf("unknown %q", value), Hint: "one of " + strings.Join(words, ", ")}
	}
	if err := oneOf("as", s.As, AsString, AsInt, AsFloat, AsJSON); err != nil {
		return err
	}
	if path, ok := s.Path(); ok {
		if err := checkPath(path); err != nil {
			return err
		}
	} else if err := oneOf("map", s.Map, MapValue, MapKey, MapLen, MapSquare, MapJSON+"PATH"); err != nil {
		return err
	}
	if err := oneOf("reduce", s.Reduce, ReduceSum, ReduceCount, ReduceMin, ReduceMax, ReduceMean); err != nil {
		return err
	}
	return oneOf("on_error", s.OnError, OnErrorFail, OnErrorSkip)
}

// checkPath refuses the path language's modifiers, literals and multipaths:
// a path picks one scalar. A backslash before such a character takes it as itself.
func checkPath(path string) *SpecError {
	if path == "" || len(path) > MaxPathBytes {
		return &SpecError{Field: "map", Reason: fmt.Sprintf("the path after json: must have 1 to %d bytes", MaxPathBytes), Hint: "for example json:price or json:items.0.price"}
	}
	for i := 0; i < len(path); i++ {
		switch path[i] {
		case '\\':
			i++
		case '@', '!', '{', '}', '[', ']', '|':
			return &SpecError{Field: "map", Reason: fmt.Sprintf("%q is not supported in a path", path[i]), Hint: "put a backslash before it to mean the character itself"}
		}
	}
	return nil
}

func (s Spec) checkCombination() *SpecError {
	_, isPath := s.Path()
	if isPath && s.As != AsJSON {
		return &SpecError{Field: "map", Reason: s.Map + " needs values read as json", Hint: "set as to json: --as json"}
	}
	if s.Map == MapSquare && s.As != AsInt && s.As != AsFloat {
		return &SpecError{Field: "map", Reason: "only numbers can be squared, not " + s.As, Hint: "set as to int or float: --as int"}
	}
	if s.Reduce != ReduceSum && s.Reduce != ReduceMean {
		return nil
	}
	if s.Map == MapKey {
		return &SpecError{Field: "reduce", Reason: "a " + s.Reduce + " of keys makes no sense, they are text", Hint: "use map len or reduce count, min or max: --map len, --reduce max"}
	}
	if s.Map == MapValue && s.As == AsString {
		return &SpecError{Field: "reduce", Reason: "a " + s.Reduce + " of strings makes no sense", Hint: "set as to int or float, or map to len: --as int, --map len"}
	}
	return nil
}
