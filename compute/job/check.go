package job

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Validate reports the first fault as a *SpecError: what cannot give a result
// is refused when it is submitted, not after a scan.
func (s Spec) Validate() error {
	for _, check := range []func() *SpecError{s.checkNames, s.checkBounds, s.checkWords, s.checkFunctions, s.checkReduce} {
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
	switch counts := s.OnError == OnErrorCount; {
	case s.MaxErrors < 0 || s.MaxErrors > MaxMaxErrors:
		return &SpecError{Field: "max_errors", Reason: fmt.Sprintf("must be 1 to %d", int64(MaxMaxErrors))}
	case counts && s.MaxErrors == 0:
		return &SpecError{Field: "max_errors", Reason: "on_error count needs a number of bad records that is too much", Hint: "--max-errors 100; with --on-error skip there is no bound, with fail it is none"}
	case !counts && s.MaxErrors > 0:
		return &SpecError{Field: "max_errors", Reason: "it means nothing with on_error " + s.OnError, Hint: "set on_error to count: --on-error count"}
	case s.MaxGroups < 0 || s.MaxGroups > MaxMaxGroups:
		return &SpecError{Field: "max_groups", Reason: fmt.Sprintf("must be 1 to %d, or left out for %d", MaxMaxGroups, DefaultMaxGroups)}
	case s.MaxGroups > 0 && s.GroupBy == "":
		return &SpecError{Field: "max_groups", Reason: "there are no groups without group_by", Hint: "say what names them: --group-by key"}
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
	for _, err := range []*SpecError{
		oneOf("as", s.As, AsString, AsInt, AsFloat, AsJSON, AsRaw),
		oneOf("on_error", s.OnError, OnErrorFail, OnErrorSkip, OnErrorCount),
		oneOf("priority", cmp.Or(s.Priority, PriorityNormal), PriorityLow, PriorityNormal, PriorityHigh),
		oneOf("cache", cmp.Or(s.Cache, CacheOn), CacheOn, CacheOff),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkFunctions refuses fields that cannot be taken apart, and pairs of them that no record could satisfy.
func (s Spec) checkFunctions() *SpecError {
	conditions, err := ParseFilter(s.Filter)
	if err != nil {
		return err
	}
	for _, c := range conditions {
		if c.Subject == SubjectJSON && s.As != AsJSON {
			return needsJSON("filter", SubjectJSON+c.Path)
		}
	}
	flat, err := s.FlatMapFunc()
	if err != nil {
		return err
	}
	if flat.Word == FlatMapWords && s.As != AsString && s.As != AsRaw {
		return &SpecError{Field: "flat_map", Reason: "words are taken from texts, not from " + s.As, Hint: "set as to string: --as string; or write an expression: v.text.split(' ')"}
	}
	m, err := s.MapFunc()
	if err != nil {
		return err
	}
	if err := s.checkMap(m, flat); err != nil {
		return err
	}
	group, err := s.GroupByFunc()
	if err != nil {
		return err
	}
	switch {
	case group.Word == GroupJSON && s.As != AsJSON:
		return needsJSON("group_by", s.GroupBy)
	case group.Word == GroupLower && !s.flatMade(flat).texts:
		return &SpecError{Field: "group_by", Reason: "only texts have a lower case, not " + s.As, Hint: "use value: --group-by value; or an expression: v.name.lowerAscii()"}
	case group.Word == GroupPair && !flat.IsExpression():
		return &SpecError{Field: "group_by", Reason: "there are no pairs without an expression in flat_map that makes them", Hint: "--flat-map 'v.items.map(i, [i.name, i.qty])' --group-by pair"}
	}
	return nil
}

func (s Spec) checkMap(m, flat Func) *SpecError {
	made := s.flatMade(flat)
	switch {
	case m.Word == MapJSON && s.As != AsJSON:
		return needsJSON("map", s.Map)
	case flat.Word != "" && (m.Word == MapJSON || m.IsExpression() || m.Word == FuncGo):
		return &SpecError{Field: "map", Reason: "after flat_map there are values, and " + s.Map + " is about the record", Hint: "make the wanted values in flat_map: v.items.map(i, i.price)"}
	case m.Word == MapSquare && (!made.numbers || s.As == AsJSON && flat.Word == ""):
		return &SpecError{Field: "map", Reason: "only numbers can be squared, not " + made.name(s), Hint: "set as to int or float: --as int"}
	case m.Word == MapParse && !made.texts:
		return &SpecError{Field: "map", Reason: "values read as " + s.As + " are numbers already", Hint: "leave map out, or set as to string: --as string"}
	case m.Word == MapParse && s.As == AsJSON && flat.Word == "":
		return &SpecError{Field: "map", Reason: "a JSON document is no text", Hint: "an expression takes a number from a text in it: --map 'double(v.price)'; a number is taken by --map json:price"}
	case m.Word == MapLower && (!made.texts || s.As == AsJSON && flat.Word == ""):
		return &SpecError{Field: "map", Reason: "only texts have a lower case, not " + s.As, Hint: "set as to string: --as string; or write an expression: v.name.lowerAscii()"}
	}
	return nil
}

func needsJSON(field, text string) *SpecError {
	return &SpecError{Field: field, Reason: text + " needs values read as json", Hint: "set as to json: --as json"}
}

// kinds says what values may be, as far as the spec tells.
type kinds struct{ numbers, texts bool }

func (k kinds) name(s Spec) string {
	if k.texts && !k.numbers && s.FlatMap != "" {
		return "words"
	}
	return s.As
}

// flatMade is what flat_map makes, or what there is without.
func (s Spec) flatMade(flat Func) kinds {
	switch {
	case flat.Word == FlatMapWords:
		return kinds{texts: true}
	case flat.Word != "" || s.As == AsJSON:
		return kinds{numbers: true, texts: true}
	}
	text := s.As == AsString || s.As == AsRaw
	return kinds{numbers: !text, texts: text}
}

// mapped is what map makes of it.
func (s Spec) mapped(m, flat Func) kinds {
	switch m.Word {
	case MapValue:
		return s.flatMade(flat)
	case MapKey, MapLower:
		return kinds{texts: true}
	case MapLen, MapSquare, MapParse:
		return kinds{numbers: true}
	}
	return kinds{numbers: true, texts: true}
}

func (s Spec) checkReduce() *SpecError {
	m, _ := s.MapFunc()
	flat, _ := s.FlatMapFunc()
	r, err := ParseReduce(s.Reduce)
	if err != nil {
		return err
	}
	if !r.NumbersOnly() || s.mapped(m, flat).numbers {
		return nil
	}
	name := strings.TrimSuffix(r.Name, ":")
	if m.Word == MapKey {
		return &SpecError{Field: "reduce", Reason: "a " + name + " of keys makes no sense, they are text", Hint: "use map len or reduce count, min or max: --map len, --reduce max"}
	}
	return &SpecError{Field: "reduce", Reason: "a " + name + " of strings makes no sense", Hint: "set as to int or float, or map to len or parse: --as int, --map len"}
}
