package compute

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strings"

	"github.com/tidwall/gjson"
)

// jsonScan finds the value at a path of a document while it checks that the document is valid: in one pass over its
// bytes, without recursion (a value may be one long run of brackets) and without allocating. It is as strict as gjson.Valid and
// finds what gjson.Get finds, which are its judges in the tests. It belongs to one goroutine.
type jsonScan struct {
	open  []byte // the brackets that are open
	index []int  // of the present element of each array on the path, by depth
	found jsonSpan
}

// jsonSpan is where a value stands.
type jsonSpan struct {
	start, end int
	kind       jsonKind
	escaped    bool // a string with backslashes
}

type jsonKind byte

const (
	jsonNone jsonKind = iota // nothing there
	jsonNull
	jsonBool
	jsonNumber
	jsonString
	jsonOther // an object or array; its end is not known
)

// jsonPath is a path taken apart.
type jsonPath struct {
	text  string
	steps []jsonStep // nil if plain is false
	// plain: nothing but names and positions. What gjson has beyond that (wildcards, queries, # for a length) is left to gjson.
	plain bool
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
	s.found = jsonSpan{}
	s.open = s.open[:0]
	if len(s.index) < len(path.steps) {
		s.index = make([]int, len(path.steps))
	}
	var (
		steps = path.steps
		on    int                    // how many of the open brackets, from the first, are on the path
		hit   = len(path.steps) == 0 // the value that comes next is the one
		enter = len(path.steps) > 0  // the value that comes next may hold it
		i     = skipSpace(doc, 0)
	)
value:
	if i >= len(doc) {
		return false
	}
	{
		span := jsonSpan{start: i}
		switch c := doc[i]; {
		case c == '"':
			span.kind = jsonString
			i, span.escaped = skipString(doc, i)
		case c == '-' || c >= '0' && c <= '9':
			span.kind = jsonNumber
			i = skipNumber(doc, i)
		case c == '{':
			s.open = append(s.open, '{')
			if hit {
				s.found, hit = jsonSpan{start: i, kind: jsonOther}, false
				if valid {
					return true
				}
			} else if enter {
				on = len(s.open)
			}
			if i = skipSpace(doc, i+1); i < len(doc) && doc[i] == '}' {
				goto closing
			}
			goto name
		case c == '[':
			s.open = append(s.open, '[')
			if hit {
				s.found, hit = jsonSpan{start: i, kind: jsonOther}, false
				if valid {
					return true
				}
			} else if enter {
				on = len(s.open)
				s.index[on-1] = 0
			}
			if i = skipSpace(doc, i+1); i < len(doc) && doc[i] == ']' {
				goto closing
			}
			goto element
		case c == 't':
			span.kind = jsonBool
			i = skipWord(doc, i, "true")
		case c == 'f':
			span.kind = jsonBool
			i = skipWord(doc, i, "false")
		case c == 'n':
			span.kind = jsonNull
			i = skipWord(doc, i, "null")
		default:
			return false
		}
		if i < 0 {
			return false
		}
		if hit {
			span.end = i
			if s.found, hit = span, false; valid {
				return true
			}
		}
	}
after: // a value
	i = skipSpace(doc, i)
	if len(s.open) == 0 {
		return i == len(doc)
	}
	if i >= len(doc) {
		return false
	}
	switch in := s.open[len(s.open)-1]; {
	case doc[i] == ',':
		i = skipSpace(doc, i+1)
		if in == '{' {
			goto name
		}
		if on == len(s.open) {
			s.index[on-1]++
		}
		goto element
	case doc[i] == in+2: // as } is to {, and ] to [
		goto closing
	}
	return false
closing:
	if on == len(s.open) {
		on--
	}
	s.open = s.open[:len(s.open)-1]
	i++
	goto after
name:
	{
		if i >= len(doc) || doc[i] != '"' {
			return false
		}
		start := i
		var escaped bool
		if i, escaped = skipString(doc, i); i < 0 {
			return false
		}
		hit, enter = false, false
		if on == len(s.open) && s.found.kind == jsonNone {
			name := doc[start+1 : i-1]
			if string(name) == steps[on-1].name || escaped && gjson.ParseBytes(doc[start:i]).Str == steps[on-1].name {
				hit, enter = on == len(steps), on < len(steps)
			}
		}
		if i = skipSpace(doc, i); i >= len(doc) || doc[i] != ':' {
			return false
		}
		i = skipSpace(doc, i+1)
		goto value
	}
element:
	hit, enter = false, false
	if on == len(s.open) && s.found.kind == jsonNone && s.index[on-1] == steps[on-1].position {
		hit, enter = on == len(steps), on < len(steps)
	}
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

// plainBytes counts how many bytes of eight, from the first, may stand in a string and end nothing. Of the marks that the subtractions leave
// the lowest is right; those above may come of a borrow.
func plainBytes(w uint64) int { return bits.TrailingZeros64(marks(w)) / 8 }

func marks(w uint64) uint64 {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	quote, slash := w^(ones*'"'), w^(ones*'\\') // with the top bits of w
	return ((quote - ones) | (slash - ones) | (w - ones*' ')) &^ w & tops
}

// skipString returns where a string ends that begins at i, or -1.
func skipString(doc []byte, i int) (end int, escaped bool) {
	if i++; i+8 > len(doc) {
		return skipEscaped(doc, i)
	}
	if n := plainBytes(binary.LittleEndian.Uint64(doc[i:])); n < 8 {
		if i += n; doc[i] == '"' { // a short one, as most are
			return i + 1, false
		}
		return skipEscaped(doc, i)
	}
	// A long one. Where it ends, if nothing in it is escaped, the library finds 32 bytes at a time.
	i += 8
	n := bytes.IndexByte(doc[i:], '"')
	if n < 0 {
		return -1, false
	}
	if plainText(doc[i : i+n]) {
		return i + n + 1, false
	}
	return skipEscaped(doc, i)
}

// plainText says that there are no backslashes and no control characters.
func plainText(s []byte) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	word := func(at int) uint64 { // as marks
		w := binary.LittleEndian.Uint64(s[at : at+8])
		return (((w ^ ones*'\\') - ones) | (w - ones*' ')) &^ w
	}
	at := 0
	for ; at+32 <= len(s); at += 32 { // four words at once: one branch, and the processor does them side by side
		if (word(at)|word(at+8)|word(at+16)|word(at+24))&tops != 0 {
			return false
		}
	}
	for ; at+8 <= len(s); at += 8 {
		if word(at)&tops != 0 {
			return false
		}
	}
	for _, c := range s[at:] {
		if c < ' ' || c == '\\' {
			return false
		}
	}
	return true
}

// skipEscaped goes on in a string from any place in it that is not within an escape.
func skipEscaped(doc []byte, i int) (end int, escaped bool) {
	for ; i < len(doc); i++ {
		for i+8 <= len(doc) {
			n := plainBytes(binary.LittleEndian.Uint64(doc[i:]))
			if i += n; n < 8 {
				break
			}
		}
		for i < len(doc) && doc[i] >= ' ' && doc[i] != '"' && doc[i] != '\\' { // the last bytes of the document
			i++
		}
		if i == len(doc) {
			break
		}
		switch doc[i] {
		case '"':
			return i + 1, escaped
		case '\\':
			escaped = true
			if i++; i >= len(doc) {
				return -1, escaped
			}
			switch doc[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if i+4 >= len(doc) {
					return -1, escaped
				}
				for _, c := range doc[i+1 : i+5] {
					if !(c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f') {
						return -1, escaped
					}
				}
				i += 4
			default:
				return -1, escaped
			}
		default: // a control character
			return -1, escaped
		}
	}
	return -1, escaped
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
