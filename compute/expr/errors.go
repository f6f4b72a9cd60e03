package expr

import (
	"fmt"
	"strings"
	"unicode"
)

// Error is a fault in the text of an expression, found by Compile. Of several faults it has the first.
type Error struct {
	Source       string // the expression
	Line, Column int    // of the fault, from 1; the column counts characters. 0: it is about the whole
	Reason       string
	Hint         string // what to write instead, if that is known
}

// place sets where the fault is. CEL's place of a call is its parenthesis; here it is its name.
func place(e *Error, line, column int) *Error {
	lines := strings.Split(e.Source, "\n")
	if line < 1 || line > len(lines) {
		return e
	}
	text := []rune(lines[line-1])
	if column < len(text) && text[column] == '(' {
		for column > 0 && isNameRune(text[column-1]) {
			column--
		}
	}
	e.Line, e.Column = line, column+1
	return e
}

func isNameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_'
}

// Error has the reason, the hint, and the faulty line with a caret under the fault.
func (e *Error) Error() string {
	s := e.Reason
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	lines := strings.Split(e.Source, "\n")
	if e.Line < 1 || e.Line > len(lines) {
		return s
	}
	if len(lines) > 1 {
		s += fmt.Sprintf(", line %d", e.Line)
	}
	line, column := window([]rune(lines[e.Line-1]), e.Column-1)
	return s + "\n  " + line + "\n  " + strings.Repeat(" ", column) + "^"
}

// window cuts the part around a fault out of a long line, and leaves out what would move a terminal's cursor.
func window(line []rune, column int) (string, int) {
	const before, after = 50, 30
	column = max(0, min(column, len(line)))
	from, to := 0, len(line)
	var head, tail string
	if column > before+1 {
		from, head = column-before, "…"
	}
	if to > column+after+1 {
		to, tail = column+after, "…"
	}
	shown := make([]rune, 0, to-from)
	for _, r := range line[from:to] {
		if !unicode.IsPrint(r) {
			r = ' '
		}
		shown = append(shown, r)
	}
	return head + string(shown) + tail, len([]rune(head)) + column - from
}

// RecordError says that an expression has no result for a record: a missing field, an overflow, a type that does not fit.
type RecordError struct{ Reason string }

func (e *RecordError) Error() string { return e.Reason }

// CostError says that an expression takes more than Limit steps for a single record, or makes more of it than has a place in memory.
// Its task fails, whatever on_error says: the next records may take as long, and nobody would be told why the job is slow.
type CostError struct{ Limit uint64 }

func (e *CostError) Error() string {
	return fmt.Sprintf("the expression takes more than %d steps for one record, or makes too much of it: leave such records out by a filter on size(v), or loop over less", e.Limit)
}
