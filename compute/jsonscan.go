package compute

import (
	"strings"

	"github.com/abacusdb/abacus/compute/marks"
)

// jsonScan finds the value at a path of a document while it checks that the document is valid: by the shape of the one before, or else in one pass over its
// bytes, without recursion (a value may be one long run of brackets). It is as strict as gjson.Valid and
// finds what gjson.Get finds, which are its judges in the tests. It belongs to one goroutine.
type jsonScan struct {
	open  []byte // the brackets that are open on the way to the value
	index []int  // of the present element of each array among them
	nest  []byte // what closes the brackets of a value beside the way
	found jsonSpan

	// What a shape of the document is made of; shapes says whether one is to be made.
	shapes bool
	values []jsonSpan
	wanted int // which of values is found, -1 for none
}

// jsonSpan is where a value stands.
type jsonSpan struct {
	start, end int
	kind       jsonKind
}

type jsonKind byte

const (
	jsonNone jsonKind = iota // nothing there
	jsonNull
	jsonBool
	jsonNumber
	jsonString
	jsonOther // an object or array; its end need not be known
)

// jsonPath is a path taken apart. It belongs to one goroutine, for it learns.
type jsonPath struct {
	text  string
	steps []jsonStep // nil if plain is false
	// plain: nothing but names and positions. What gjson has beyond that (wildcards, queries, # for a length) is left to gjson.
	plain bool
	shape jsonShape // of documents that were searched for it
}

// jsonStep picks a member of an object by name, or of an array by position (-1 for none).
type jsonStep struct {
	name     string
	position int
}

// compilePath takes a path apart; the empty one is the document.
func compilePath(path string) jsonPath {
	p := jsonPath{text: path, plain: true}
	if path == "" {
		return p
	}
	var name []byte
	special := false // the step is none that is plain
	step := func() {
		if len(name) == 0 {
			special = true
		}
		s := jsonStep{name: string(name), position: -1}
		if strings.Trim(s.name, "0123456789") == "" {
			if len(s.name) > 9 {
				special = true
			} else {
				s.position = 0
				for _, c := range s.name {
					s.position = 10*s.position + int(c-'0')
				}
			}
		}
		p.steps = append(p.steps, s)
		name = name[:0]
	}
	for i := 0; i < len(path); i++ {
		switch c := path[i]; c {
		case '.':
			step()
		case '\\':
			if i++; i < len(path) {
				name = append(name, path[i])
				special = special || path[i] >= '0' && path[i] <= '9'
			}
		case '*', '?', '#', '@', '!', '|', '{', '[', '(', ':':
			special = true
			name = append(name, c)
		default:
			name = append(name, c)
		}
	}
	if step(); special {
		p.plain, p.steps = false, nil
	}
	return p
}

// find looks for the path in a document. It says false for one that is not valid; with valid set, that is known already, and the scan ends when
// the value is found.
func (s *jsonScan) find(doc []byte, path *jsonPath, valid bool) bool {
	if path.shape.find(s, doc, valid) {
		return true
	}
	s.shapes = path.shape.due(len(doc))
	if !s.parse(doc, path, valid && !s.shapes) {
		return false
	}
	if s.shapes {
		path.shape.make(doc, s.values, s.wanted)
	}
	return true
}

// parse is find for a document of any shape. What is not on the way to the value is left to skip: the fewer variables are alive in a loop, the quicker it is.
func (s *jsonScan) parse(doc []byte, path *jsonPath, valid bool) bool {
	s.found, s.values, s.wanted = jsonSpan{}, s.values[:0], -1
	s.open = s.open[:0]
	if len(s.index) < len(path.steps) {
		s.index = make([]int, len(path.steps))
	}
	var (
		steps    = path.steps
		at       = 0 // how many steps have been gone, as many as brackets are open
		searches = true
		i        = skipSpace(doc, 0)
	)
value: // the one, or on the way to it
	if i >= len(doc) {
		return false
	}
	if at == len(steps) {
		s.found = jsonSpan{start: i, kind: kindOf(doc[i])}
		s.wanted = len(s.values)
		searches = false
		if valid && s.found.kind == jsonOther {
			return true
		}
		if i = s.skip(doc, i); i < 0 {
			return false
		}
		if s.found.kind != jsonOther {
			s.found.end = i
		}
		s.note(s.found.start, i)
		if valid {
			return true
		}
		goto after
	}
	switch c := doc[i]; c {
	case '{', '[':
		s.open = append(s.open, c)
		s.index[at] = 0
		at++
		if i = skipSpace(doc, i+1); i < len(doc) && doc[i] == c+2 { // as } is to {, and ] to [
			goto closing
		}
		if c == '{' {
			goto member
		}
		goto element
	}
	s.shapes = false // the next document may have an object here, to go into
	goto beside
member:
	{
		if i >= len(doc) || doc[i] != '"' {
			return false
		}
		end := shortString(doc, i)
		short := end > 0
		if !short {
			if end = skipString(doc, i); end < 0 {
				return false
			}
		}
		wanted := searches && (string(doc[i+1:end-1]) == steps[at-1].name || !short && string(unquote(doc[i:end])) == steps[at-1].name)
		if i = skipSpace(doc, end); i >= len(doc) || doc[i] != ':' {
			return false
		}
		if i = skipSpace(doc, i+1); wanted {
			goto value
		}
	}
beside: // a value that is not on the way
	if i >= len(doc) {
		return false
	}
	{
		start := i
		if i = s.skip(doc, i); i < 0 {
			return false
		}
		s.note(start, i)
	}
after: // a value
	i = skipSpace(doc, i)
	if at == 0 {
		return i == len(doc)
	}
	if i >= len(doc) {
		return false
	}
	if doc[i] == ',' {
		i = skipSpace(doc, i+1)
		if s.open[at-1] == '{' {
			goto member
		}
		s.index[at-1]++
		goto element
	}
	if doc[i] != s.open[at-1]+2 {
		return false
	}
closing:
	i++
	at--
	s.open = s.open[:at]
	goto after
element:
	if searches && s.index[at-1] == steps[at-1].position {
		goto value
	}
	goto beside
}

// note is told where each value stands, but for those that are gone into on the way.
func (s *jsonScan) note(start, end int) {
	if !s.shapes {
		return
	}
	if s.values = append(s.values, jsonSpan{start: start, end: end}); len(s.values) > shapeValues {
		s.shapes = false
	}
}

// kindOf is the kind of a value that begins with c, if it is one.
func kindOf(c byte) jsonKind {
	switch c {
	case '"':
		return jsonString
	case '{', '[':
		return jsonOther
	case 't', 'f':
		return jsonBool
	case 'n':
		return jsonNull
	}
	return jsonNumber
}

// skip returns where the value ends that begins at i, or -1.
func (s *jsonScan) skip(doc []byte, i int) int {
	switch c := doc[i]; c {
	case '"':
		if end := shortString(doc, i); end > 0 {
			return end
		}
		return skipString(doc, i)
	case '{', '[':
		return s.skipNested(doc, i)
	case 't':
		return skipWord(doc, i, "true")
	case 'f':
		return skipWord(doc, i, "false")
	case 'n':
		return skipWord(doc, i, "null")
	}
	return skipNumber(doc, i)
}

// skipNested is skip for an object or array, and calls it for what is neither: a value may be one long run of brackets.
func (s *jsonScan) skipNested(doc []byte, i int) int {
	s.nest = s.nest[:0]
value:
	if i >= len(doc) {
		return -1
	}
	switch c := doc[i]; c {
	case '{', '[':
		s.nest = append(s.nest, c+2)
		if i = skipSpace(doc, i+1); i < len(doc) && doc[i] == c+2 {
			goto closing
		}
		if c == '{' {
			goto name
		}
		goto value
	}
	if i = s.skip(doc, i); i < 0 {
		return -1
	}
after:
	if i = skipSpace(doc, i); i >= len(doc) {
		return -1
	}
	if doc[i] == ',' {
		i = skipSpace(doc, i+1)
		if s.nest[len(s.nest)-1] == '}' {
			goto name
		}
		goto value
	}
	if doc[i] != s.nest[len(s.nest)-1] {
		return -1
	}
closing:
	i++
	if s.nest = s.nest[:len(s.nest)-1]; len(s.nest) == 0 {
		return i
	}
	goto after
name:
	if i >= len(doc) || doc[i] != '"' {
		return -1
	}
	if i = s.skip(doc, i); i < 0 {
		return -1
	}
	if i = skipSpace(doc, i); i >= len(doc) || doc[i] != ':' {
		return -1
	}
	i = skipSpace(doc, i+1)
	goto value
}

// skipSpace is short where there is none, which is so in most documents: that is inlined.
func skipSpace(doc []byte, i int) int {
	if i < len(doc) && doc[i] > ' ' {
		return i
	}
	return skipSpaces(doc, i)
}

func skipSpaces(doc []byte, i int) int {
	for i < len(doc) && (doc[i] == ' ' || doc[i] == '\n' || doc[i] == '\t' || doc[i] == '\r') {
		i++
	}
	return i
}

// shortString returns where the string ends that begins at i, if it has less than fifteen bytes and none that is escaped, as most have, and else 0. It is inlined,
// and where the branches are foreseen, as those of names are that come in each document, nothing waits for where it ends.
func shortString(doc []byte, i int) int {
	for n := i + 1; n < len(doc) && n < i+16; n++ {
		if !plain[doc[n]] {
			if doc[n] == '"' {
				return n + 1
			}
			break
		}
	}
	return 0
}

// plain bytes may stand in a string, and end nothing.
var plain = func() (p [256]bool) {
	for c := range p {
		p[c] = marks.Index([]byte{byte(c)}) > 0
	}
	return p
}()

// skipString returns where the string ends that begins at i, or -1.
func skipString(doc []byte, i int) int {
	for i++; i < len(doc); i++ {
		if i += marks.Index(doc[i:]); i == len(doc) {
			break
		}
		switch doc[i] {
		case '"':
			return i + 1
		case '\\':
			if i++; i >= len(doc) {
				return -1
			}
			switch doc[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if i+4 >= len(doc) {
					return -1
				}
				for _, c := range doc[i+1 : i+5] {
					if !(c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f') {
						return -1
					}
				}
				i += 4
			default:
				return -1
			}
		default: // a control character
			return -1
		}
	}
	return -1
}

// skipNumber returns where a number ends that begins at i, or -1.
func skipNumber(doc []byte, i int) int {
	digits := func() bool {
		start := i
		for i < len(doc) && doc[i] >= '0' && doc[i] <= '9' {
			i++
		}
		return i > start
	}
	if doc[i] == '-' {
		i++
	}
	if i < len(doc) && doc[i] == '0' {
		i++
	} else if !digits() {
		return -1
	}
	if i < len(doc) && doc[i] == '.' {
		if i++; !digits() {
			return -1
		}
	}
	if i < len(doc) && doc[i]|0x20 == 'e' {
		if i++; i < len(doc) && (doc[i] == '+' || doc[i] == '-') {
			i++
		}
		if !digits() {
			return -1
		}
	}
	return i
}

func skipWord(doc []byte, i int, word string) int {
	if len(doc)-i < len(word) || string(doc[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}
