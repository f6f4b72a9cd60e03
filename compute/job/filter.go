package job

import (
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// What a condition looks at.
const (
	SubjectKey   = "key"
	SubjectValue = "value" // the default
	SubjectJSON  = "json:" // followed by a path
)

// How a condition judges it.
const (
	FilterPrefix = "prefix" // a text begins with it
	FilterSuffix = "suffix" // a text ends with it
	FilterRe     = "re"     // a text matches the regular expression (RE2), anywhere
	FilterRange  = "range"  // a number lies between two
)

var filterOps = []string{FilterPrefix, FilterSuffix, FilterRe, FilterRange}

const maxConditions = 32

// Condition is one condition of a filter; a record passes if it meets all.
type Condition struct {
	Subject string // SubjectKey, SubjectValue or SubjectJSON
	Path    string // of SubjectJSON
	Op      string // FilterPrefix and so on; FuncGo has no subject
	Arg     string // the text, the regular expression, or the name
	Range   Range
}

// Range is the argument of FilterRange. An empty end is open. Both are in it, but To if Below.
type Range struct {
	From, To string
	Below    bool
}

// ParseFilter reads a filter in words: `[SUBJECT] OP ARG [and …]`. If it is an expression
// instead, which is left to whoever runs them, there is one condition of Op FuncCEL. The error is a *SpecError.
//
// ARG reaches to the next " and ", or is quoted: "as in JSON", or 'just as it is'.
func ParseFilter(text string) ([]Condition, *SpecError) {
	if err := checkText("filter", text); err != nil || text == "" {
		return nil, err
	}
	if arg, ok := strings.CutPrefix(text, FuncCEL); ok || !isWords(text) {
		f, err := expression("filter", arg)
		return []Condition{{Op: FuncCEL, Arg: f.Arg}}, err
	}
	p := &filterParser{src: text}
	var all []Condition
	for {
		c, err := p.condition()
		if err != nil {
			return nil, err
		}
		all = append(all, c)
		p.space()
		switch at := p.pos; {
		case p.pos == len(p.src):
			return all, nil
		case p.token() != "and":
			return nil, p.wrong(at, "conditions are joined by and", "")
		case len(all) == maxConditions:
			return nil, p.wrong(at, fmt.Sprintf("more than %d conditions", maxConditions), "join texts in one regular expression: re '^(a|b)'")
		}
	}
}

// isWords tells conditions from an expression: by a first word that is none in an expression, or by two words that follow on each other.
func isWords(text string) bool {
	words := strings.Fields(text)
	if len(words) == 0 || strings.HasPrefix(words[0], SubjectJSON) || strings.HasPrefix(words[0], FuncGo) {
		return true
	}
	switch {
	case slices.Contains(filterOps, words[0]) || words[0] == SubjectValue:
		return true
	case len(words) == 1:
		return isWord(words[0]) && words[0] != "v" && words[0] != "true" && words[0] != "false"
	}
	return isWord(words[0]) && isWord(words[1]) && words[1] != "in"
}

// orCondition finds what looks like another condition, joined by or, in a text without quotes.
var orCondition = regexp.MustCompile(`\sor\s+(?:(?:(?:key|value|json:\S+)\s+)?(?:prefix|suffix|re|range)\s|go:|v\.|key\.)`)

type filterParser struct {
	src string
	pos int
}

// wrong is a fault at a byte of the filter.
func (p *filterParser) wrong(at int, reason, hint string) *SpecError {
	return &SpecError{Field: "filter", Reason: fmt.Sprintf("character %d: %s", utf8.RuneCountInString(p.src[:at])+1, reason), Hint: hint, Where: Caret(p.src, at)}
}

// Caret shows the place of a fault: the line that holds byte at of text and, below it, a caret under the fault.
func Caret(text string, at int) string {
	start := strings.LastIndexByte(text[:at], '\n') + 1
	line, _, _ := strings.Cut(text[start:], "\n")
	line = strings.ReplaceAll(line, "\t", " ") // as wide as it counts
	return line + "\n" + strings.Repeat(" ", utf8.RuneCountInString(text[start:at])) + "^"
}

func (p *filterParser) space() {
	for p.pos < len(p.src) && isSpace(p.src[p.pos]) {
		p.pos++
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// token takes what comes up to a space; one after a backslash, as a path may have it, is none.
func (p *filterParser) token() string {
	p.space()
	start := p.pos
	for p.pos < len(p.src) && !isSpace(p.src[p.pos]) {
		if p.src[p.pos] == '\\' && p.pos+1 < len(p.src) {
			p.pos++
		}
		p.pos++
	}
	return p.src[start:p.pos]
}

func (p *filterParser) condition() (Condition, *SpecError) {
	p.space()
	at := p.pos
	word := p.token()
	if name, ok := strings.CutPrefix(word, FuncGo); ok {
		return Condition{Op: FuncGo, Arg: name}, p.at(at, checkFuncName("filter", name))
	}
	c := Condition{Subject: SubjectValue}
	if path, ok := strings.CutPrefix(word, SubjectJSON); ok {
		c.Subject, c.Path = SubjectJSON, path
		if err := checkPath("filter", path); err != nil {
			return c, p.at(at, err)
		}
	} else if word == SubjectKey || word == SubjectValue {
		c.Subject = word
	} else {
		p.pos = at
	}
	p.space()
	at = p.pos
	if c.Op = p.token(); !slices.Contains(filterOps, c.Op) {
		hint := "one of " + strings.Join(filterOps, ", ") + ` comes here; quote a text that has " and " in it`
		if c.Op == "" {
			return c, p.wrong(at, "a condition is missing", hint)
		}
		return c, p.wrong(at, fmt.Sprintf("unknown %q", c.Op), hint)
	}
	p.space()
	at = p.pos
	arg, err := p.arg()
	if err != nil {
		return c, err
	}
	c.Arg = arg
	switch c.Op {
	case FilterRe:
		size, err := PatternSize(arg)
		if err != nil {
			return c, p.wrong(at, err.Error(), "the syntax is RE2's: https://github.com/google/re2/wiki/Syntax")
		}
		if size > MaxPattern {
			return c, p.wrong(at, fmt.Sprintf("the regular expression is a program of %d instructions, at most %d are allowed", size, MaxPattern), "count less: x{100} is a hundred times x")
		}
	case FilterRange:
		c.Arg = ""
		c.Range, err = p.parseRange(at, arg)
	}
	return c, err
}

// MaxPattern bounds the instructions of a regular expression, and MaxMatch those times the bytes of a text: a match takes up to so many steps, and
// nothing can interrupt it. A text with which they are more does not match: the record is bad.
const (
	MaxPattern = 1000
	MaxMatch   = 1 << 28
)

// PatternSize is how many instructions a regular expression has; about as many, if they are far too many, for to compile it would take long then.
func PatternSize(pattern string) (int, error) {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return 0, err
	}
	if about := unfolded(re); about > 10*MaxPattern {
		return about, nil
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return 0, err
	}
	return len(prog.Inst), nil
}

// unfolded is about how many instructions an expression has when its repetitions are written out, at most a billion.
func unfolded(re *syntax.Regexp) int {
	n := 1 + len(re.Rune)
	if re.Op == syntax.OpCharClass {
		n = 1
	}
	for _, sub := range re.Sub {
		n += unfolded(sub)
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min, re.Max)
	}
	return min(n, 1e9)
}

// at gives a fault that was found elsewhere its place.
func (p *filterParser) at(at int, err *SpecError) *SpecError {
	if err != nil {
		err = p.wrong(at, err.Reason, err.Hint)
	}
	return err
}

// arg takes the argument of a condition.
func (p *filterParser) arg() (string, *SpecError) {
	at, rest := p.pos, p.src[p.pos:]
	switch {
	case rest == "":
		return "", p.wrong(at, "the argument is missing", `an empty text is written ""`)
	case rest[0] == '\'':
		end := strings.IndexByte(rest[1:], '\'')
		if end < 0 {
			return "", p.wrong(at, "a quote that is not closed", "")
		}
		p.pos += end + 2
		return rest[1 : end+1], nil
	case rest[0] == '"':
		dec := json.NewDecoder(strings.NewReader(rest))
		var text string
		if err := dec.Decode(&text); err != nil {
			return "", p.wrong(at, "not a text in quotes as JSON has it", "'single quotes' take what is in them as it is")
		}
		p.pos += int(dec.InputOffset())
		return text, nil
	}
	end := len(rest)
	for i := 1; i < len(rest)-4; i++ {
		if isSpace(rest[i]) && rest[i+1:i+4] == "and" && isSpace(rest[i+4]) {
			end = i
			break
		}
	}
	if or := orCondition.FindStringIndex(rest[:end]); or != nil {
		return "", p.wrong(at+or[0]+1, "conditions are joined by and alone", `write an expression instead, such as key.startsWith("a") || v > 5; or quote the text, if " or " is a part of it`)
	}
	p.pos += end
	return strings.TrimRight(rest[:end], " \t\r\n"), nil
}

func (p *filterParser) parseRange(at int, arg string) (r Range, err *SpecError) {
	from, to, ok := strings.Cut(arg, "..")
	r.From = from
	r.To, r.Below = strings.CutPrefix(to, "<")
	if !ok || r.From == "" && r.To == "" {
		return r, p.wrong(at, fmt.Sprintf("%q is no range of numbers", arg), "18..65 has both in it, 18..<65 not the last, 18.. and ..65 are open")
	}
	var ends [2]*big.Float
	for i, text := range []string{r.From, r.To} {
		if text == "" {
			continue
		}
		if ends[i] = readNumber(text); ends[i] == nil {
			return r, p.wrong(at, fmt.Sprintf("%q is no number", text), "a range is of numbers: 18..65, 0.5..1e6; for texts use prefix or re")
		}
	}
	if ends[0] != nil && ends[1] != nil && (ends[0].Cmp(ends[1]) > 0 || r.Below && ends[0].Cmp(ends[1]) == 0) {
		return r, p.wrong(at, fmt.Sprintf("nothing lies in %q", arg), "the smaller number comes first")
	}
	return r, nil
}

// readNumber reads a number as values are read: an integer exactly, else the nearest float64. nil if it is none.
func readNumber(text string) *big.Float {
	digits := strings.TrimLeft(text, "+-")
	if len(digits) > maxRangeDigits || len(text)-len(digits) > 1 || digits == "" || strings.Trim(digits, "0123456789.eE+-") != "" {
		return nil
	}
	if strings.Trim(digits, "0123456789") == "" {
		n, ok := new(big.Int).SetString(text, 10)
		if !ok {
			return nil
		}
		return new(big.Float).SetInt(n)
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil
	}
	return new(big.Float).SetFloat64(f)
}

// maxRangeDigits is as many as an integer value may have.
const maxRangeDigits = 1000
