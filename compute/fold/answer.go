package fold

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/abacusdb/abacus/compute/job"
)

// MixedKindsError: some values are numbers and some are text, which have no order between them.
type MixedKindsError struct{ Numbers, Texts int64 }

func (e *MixedKindsError) Error() string {
	return fmt.Sprintf("%d values are numbers and %d are text: they have no common order", e.Numbers, e.Texts)
}

// ResultTooLargeError: a result over what a job can answer.
type ResultTooLargeError struct {
	// Text tells a text, which may have MaxTextBytes, from a structured answer, which may have MaxResultBytes.
	Text bool
	Max  int
}

func (e *ResultTooLargeError) Error() string {
	if e.Text {
		return fmt.Sprintf("the resulting text is longer than %d bytes", e.Max)
	}
	return fmt.Sprintf("the result takes more than %d bytes: group by something coarser, ask for fewer values, or leave records out with a filter or a longer prefix", e.Max)
}

// GroupError says which group has no answer.
type GroupError struct {
	Group string
	Err   error
}

func (e *GroupError) Error() string { return fmt.Sprintf("group %.100q: %v", e.Group, e.Err) }

// Unwrap is the group's own error.
func (e *GroupError) Unwrap() error { return e.Err }

// answer is what a state comes to: a number, a text, or a document. One of them is set.
type answer struct {
	digits string
	text   []byte // nil: not a text
	doc    *document
}

func numberAnswer(digits string) (answer, error) { return answer{digits: digits}, nil }

func textAnswer(text []byte) (answer, error) {
	if len(text) > MaxTextBytes {
		return answer{}, &ResultTooLargeError{Text: true, Max: MaxTextBytes}
	}
	return answer{text: append([]byte{}, text...)}, nil
}

func valueAnswer(v *Value) (answer, error) {
	if v.Kind == Text {
		return textAnswer(v.Text)
	}
	return numberAnswer(v.Digits())
}

// value is the answer of a table without groups.
func (a answer) value() (result job.Value, note string, err error) {
	switch {
	case a.doc != nil:
		return a.doc.value()
	case a.text == nil:
		return job.Number(a.digits), "", nil
	case !utf8.Valid(a.text):
		return job.Text(base64.StdEncoding.EncodeToString(a.text)), "the result is not UTF-8 and shown in base64", nil
	}
	return job.Text(string(a.text)), "", nil
}

// appendTo writes the answer as a part of a document.
func (a answer) appendTo(doc *document) {
	switch {
	case a.doc != nil:
		doc.raw(string(a.doc.json))
	case a.text == nil:
		doc.raw(a.digits)
	default:
		doc.text(a.text)
	}
}

// document builds JSON. Once it is too large it takes nothing more.
type document struct{ json []byte }

// raw appends JSON as it is.
func (d *document) raw(s string) {
	if !d.full() {
		d.json = append(d.json, s...)
	}
}

func (d *document) full() bool { return len(d.json) > MaxResultBytes }

// comma goes before every element but the first, number 0.
func (d *document) comma(i int) {
	if i > 0 {
		d.raw(",")
	}
}

// text appends a text: a string, or what is not UTF-8 as an object, so that nobody takes the base64 for the text.
func (d *document) text(b []byte) {
	if !utf8.Valid(b) {
		d.raw(`{"base64":"` + base64.StdEncoding.EncodeToString(b) + `"}`)
		return
	}
	var quoted bytes.Buffer
	e := json.NewEncoder(&quoted)
	e.SetEscapeHTML(false) // "a&b" is to be read by people
	if err := e.Encode(string(b)); err != nil {
		panic("fold: quote " + err.Error()) // no text has an error
	}
	d.raw(string(bytes.TrimSuffix(quoted.Bytes(), []byte("\n"))))
}

// append appends a number or a text that can be kept.
func (d *document) append(v *Value) error {
	a, err := valueAnswer(v)
	if err == nil {
		a.appendTo(d)
	}
	return err
}

// value closes the document. What encoding/json writes longer when it stores a result is counted as it is then.
func (d *document) value() (result job.Value, note string, err error) {
	stored := len(d.json)
	for _, c := range d.json {
		if c == '<' || c == '>' || c == '&' {
			stored += len(`\u003c`) - 1
		}
	}
	if stored > MaxResultBytes {
		return job.Value{}, "", &ResultTooLargeError{Max: MaxResultBytes}
	}
	return job.Document(string(d.json)), "", nil
}
