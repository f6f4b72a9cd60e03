package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Prefixes of functions that take an argument.
const (
	FuncGo  = "go:"  // followed by the name of a function that the servers were built with
	FuncCEL = "cel:" // followed by an expression; it may be left out where the text is no word
)

// What a record is taken apart into, before map.
const (
	FlatMapWords = "words" // the words of the value: runs of Unicode letters, marks and digits
)

// What names the group of a value. All but GroupValue, GroupLower and GroupPair look at the record, whatever flat_map made of it.
const (
	GroupKey     = "key"
	GroupValue   = "value"     // the value, or with flat_map each of its values; before map
	GroupLower   = "lower"     // the same in lower case
	GroupPair    = "pair"      // the key of each [key, value] pair that an expression in flat_map makes
	GroupJSON    = "json:"     // followed by a path
	GroupKeyPart = "key-part:" // followed by SEP:N: the N-th part of the key between SEPs, from 1; from the end if N is negative
)

const (
	// MaxFunctionBytes bounds each of filter, map, flat_map and group_by.
	MaxFunctionBytes = 8 << 10
	maxParts         = 1000 // of a key
)

// Func is what map, flat_map or group_by says, taken apart.
type Func struct {
	// Word is a word, or a prefix that ends in a colon and has an argument; empty if the field is.
	Word string
	Arg  string // the path, name or expression; for GroupKeyPart the separator
	Part int    // of GroupKeyPart
}

// IsExpression says whether the field holds an expression.
func (f Func) IsExpression() bool { return f.Word == FuncCEL }

// MapFunc takes Map apart. The error is a *SpecError.
func (s Spec) MapFunc() (Func, *SpecError) {
	return parseFunc("map", s.Map, MapValue, MapKey, MapLen, MapSquare, MapParse, MapLower, MapJSON, FuncGo)
}

// FlatMapFunc takes FlatMap apart. The error is a *SpecError.
func (s Spec) FlatMapFunc() (Func, *SpecError) { return parseFunc("flat_map", s.FlatMap, FlatMapWords) }

// GroupByFunc takes GroupBy apart. The error is a *SpecError.
func (s Spec) GroupByFunc() (Func, *SpecError) {
	return parseFunc("group_by", s.GroupBy, GroupKey, GroupValue, GroupLower, GroupPair, GroupJSON, GroupKeyPart)
}

// parseFunc reads a field that takes one of words, a registered function or an expression. Those that end in a colon have an argument.
func parseFunc(field, text string, words ...string) (Func, *SpecError) {
	if err := checkText(field, text); err != nil || text == "" {
		return Func{}, err
	}
	if slices.Contains(words, text) && !strings.HasSuffix(text, ":") {
		return Func{Word: text}, nil
	}
	for _, word := range append(words, FuncCEL) {
		arg, ok := strings.CutPrefix(text, word)
		if !ok || !strings.HasSuffix(word, ":") {
			continue
		}
		f := Func{Word: word, Arg: arg}
		switch word {
		case MapJSON:
			return f, checkPath(field, arg)
		case GroupKeyPart:
			return keyPart(field, arg)
		case FuncGo:
			return f, checkFuncName(field, arg)
		}
		return expression(field, arg)
	}
	if strings.HasPrefix(text, FuncGo) {
		return Func{}, &SpecError{Field: field, Reason: text + " cannot be used here", Hint: "only map and filter know functions that the servers were built with"}
	}
	if name := strings.TrimSpace(text); isWord(name) && name != "v" && name != "key" {
		return Func{}, &SpecError{Field: field, Reason: fmt.Sprintf("unknown %q", text), Hint: "one of " + describe(words) + ", or an expression over v and key"}
	}
	return expression(field, text)
}

func expression(field, text string) (Func, *SpecError) {
	text = strings.TrimSpace(text)
	if text == "" {
		return Func{}, &SpecError{Field: field, Reason: "an empty expression", Hint: "for example v.price * v.qty"}
	}
	return Func{Word: FuncCEL, Arg: text}, nil
}

// describe lists words as they are written: json: as json:PATH.
func describe(words []string) string {
	var list []string
	for _, w := range words {
		switch w {
		case MapJSON:
			w += "PATH"
		case GroupKeyPart:
			w += "SEP:N"
		case FuncGo:
			w += "NAME"
		}
		list = append(list, w)
	}
	return strings.Join(list, ", ")
}

func keyPart(field, arg string) (Func, *SpecError) {
	colon := strings.LastIndexByte(arg, ':')
	if colon > 0 {
		n, err := strconv.Atoi(arg[colon+1:])
		if err == nil && n != 0 && n >= -maxParts && n <= maxParts {
			return Func{Word: GroupKeyPart, Arg: arg[:colon], Part: n}, nil
		}
	}
	return Func{}, &SpecError{Field: field, Reason: fmt.Sprintf("key-part:%s is not key-part:SEP:N", arg),
		Hint: fmt.Sprintf("N is 1 to %d, or -1 for the last: key-part:/:2 is b of the key a/b/c", maxParts)}
}

// checkFuncName says whether name can be a registered function's. The error is a *SpecError for the field.
func checkFuncName(field, name string) *SpecError {
	if isWord(name) && len(name) <= MaxIDBytes {
		return nil
	}
	return &SpecError{Field: field, Reason: fmt.Sprintf("%q is no name of a function", name), Hint: fmt.Sprintf("letters, digits, _ and -, at most %d, a letter first", MaxIDBytes)}
}

// IsFuncName says whether a function can be registered under name: a letter and then letters, digits, _ and -, MaxIDBytes in all.
func IsFuncName(name string) bool { return checkFuncName("", name) == nil }

func isWord(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if !(c >= 'a' && c <= 'z' || i > 0 && (s[i] >= '0' && s[i] <= '9' || s[i] == '_' || s[i] == '-')) {
			return false
		}
	}
	return s != ""
}

func checkText(field, text string) *SpecError {
	if len(text) > MaxFunctionBytes {
		return &SpecError{Field: field, Reason: fmt.Sprintf("%d bytes, at most %d are allowed", len(text), MaxFunctionBytes)}
	}
	if !utf8.ValidString(text) {
		return &SpecError{Field: field, Reason: "not UTF-8"}
	}
	return nil
}

// checkPath refuses the path language's modifiers, literals and multipaths:
// a path picks one scalar. A backslash before such a character takes it as itself.
func checkPath(field, path string) *SpecError {
	if path == "" || len(path) > MaxPathBytes {
		return &SpecError{Field: field, Reason: fmt.Sprintf("the path after json: must have 1 to %d bytes", MaxPathBytes), Hint: "for example json:price or json:items.0.price"}
	}
	stars := 0
	for i := 0; i < len(path); i++ {
		switch path[i] {
		case '\\':
			i++
		case '.':
			stars = 0
		case '*':
			if stars++; stars > 1 { // each more would try all places for each of the one before
				return &SpecError{Field: field, Reason: "more than one * between two points of a path", Hint: "put a backslash before it to mean the character itself"}
			}
		case '@', '!', '{', '}', '[', ']', '|':
			return &SpecError{Field: field, Reason: fmt.Sprintf("%q is not supported in a path", path[i]), Hint: "put a backslash before it to mean the character itself"}
		}
	}
	return nil
}
