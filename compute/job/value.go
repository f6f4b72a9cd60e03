package job

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Value is a job's result: a number of any size, a text, or a JSON object or array (what has which shape, package fold
// tells). Numbers keep their decimal digits, those in a document too, so that no reader's float rounds them. Values are comparable.
type Value struct {
	text string
	form form
}

type form uint8

const (
	number form = iota
	text
	document
)

// Number is a numeric value; digits must be a JSON number.
func Number(digits string) Value { return Value{text: digits} }

// Text is a text value, which must be UTF-8.
func Text(s string) Value { return Value{text: s, form: text} }

// Document is a structured value: a JSON object or array, without blanks between its parts.
func Document(s string) Value { return Value{text: s, form: document} }

// String is the value as it is printed alone: digits, the text without quotes, or the document in JSON.
func (v Value) String() string { return v.text }

// IsText tells a text from a number and a document.
func (v Value) IsText() bool { return v.form == text }

// IsDocument tells a JSON object or array from a number and a text.
func (v Value) IsDocument() bool { return v.form == document }

// MarshalJSON writes a JSON number, string, object or array.
func (v Value) MarshalJSON() ([]byte, error) {
	switch v.form {
	case text:
		return json.Marshal(v.text)
	case document:
		return []byte(v.text), nil // which encoding/json checks
	}
	return json.Marshal(json.Number(v.text))
}

// UnmarshalJSON reads a JSON number, string, object or array.
func (v *Value) UnmarshalJSON(data []byte) error {
	switch data[0] {
	case '"':
		v.form = text
		return json.Unmarshal(data, &v.text)
	case '{', '[':
		var compact bytes.Buffer
		if err := json.Compact(&compact, data); err != nil {
			return fmt.Errorf("decode job value: %w", err)
		}
		*v = Document(string(unescapeHTML(compact.Bytes())))
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(data, &n); err != nil || n == "" {
		return fmt.Errorf("decode job value: neither a number, a string, an object nor an array: %.40q", data)
	}
	*v = Number(n.String())
	return nil
}

// unescapeHTML takes back in place what encoding/json does to a document that it writes as a part of another: a group
// named "a&b" is to be printed with that name after it went through the ledger, too.
func unescapeHTML(doc []byte) []byte {
	out := doc[:0]
	for len(doc) > 0 {
		switch {
		case doc[0] != '\\':
			out, doc = append(out, doc[0]), doc[1:]
		case bytes.HasPrefix(doc, []byte(`\u003c`)):
			out, doc = append(out, '<'), doc[6:]
		case bytes.HasPrefix(doc, []byte(`\u003e`)):
			out, doc = append(out, '>'), doc[6:]
		case bytes.HasPrefix(doc, []byte(`\u0026`)):
			out, doc = append(out, '&'), doc[6:]
		default: // two bytes: what follows an escaped backslash is no escape
			out, doc = append(out, doc[:2]...), doc[2:]
		}
	}
	return out
}
