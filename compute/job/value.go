package job

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Value is a job's result: a JSON scalar, either a number of any size or a
// text. A number keeps its decimal digits, so that no reader's float rounds it.
type Value struct {
	text   string
	isText bool
}

// Number is a numeric value; digits must be a JSON number.
func Number(digits string) Value { return Value{text: digits} }

// Text is a text value, which must be UTF-8.
func Text(s string) Value { return Value{text: s, isText: true} }

// String is the value as it is printed alone: digits, or the text without quotes.
func (v Value) String() string { return v.text }

// IsText tells a text from a number.
func (v Value) IsText() bool { return v.isText }

// MarshalJSON writes a JSON number or string.
func (v Value) MarshalJSON() ([]byte, error) {
	if v.isText {
		return json.Marshal(v.text)
	}
	return json.Marshal(json.Number(v.text))
}

// UnmarshalJSON reads a JSON number or string.
func (v *Value) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte{'"'}) {
		v.isText = true
		return json.Unmarshal(data, &v.text)
	}
	var n json.Number
	if err := json.Unmarshal(data, &n); err != nil || n == "" {
		return fmt.Errorf("decode job value: neither a number nor a string: %.40q", data)
	}
	*v = Number(n.String())
	return nil
}
