package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"
)

// writeJSON writes one indented JSON document.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// pair is a key and a value as JSON. What is no UTF-8 goes as base64, under
// another name, so that nothing is altered quietly.
type pair struct {
	Key         *string `json:"key,omitempty"`
	KeyBase64   *string `json:"key_base64,omitempty"`
	Value       *string `json:"value,omitempty"`
	ValueBase64 *string `json:"value_base64,omitempty"`
}

func newPair(key string, value []byte, withValue bool) pair {
	var p pair
	p.Key, p.KeyBase64 = textOrBase64(key)
	if withValue {
		p.Value, p.ValueBase64 = textOrBase64(string(value))
	}
	return p
}

func textOrBase64(s string) (text, b64 *string) {
	if utf8.ValidString(s) {
		return &s, nil
	}
	e := base64.StdEncoding.EncodeToString([]byte(s))
	return nil, &e
}

// writeLine writes v as one line of JSON.
func writeLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table collects rows and writes them aligned.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, header ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(toAny(header)...)
	return t
}

func toAny(s []string) []any {
	out := make([]any, len(s))
	for i := range s {
		out[i] = s[i]
	}
	return out
}

func (t *table) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(t.w, "\t")
		}
		fmt.Fprint(t.w, shown(fmt.Sprint(c)))
	}
	fmt.Fprintln(t.w)
}

func (t *table) flush() error {
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// shown is text as a terminal may see it: keys are any bytes, and escape
// sequences or tabs in them must not act.
func shown(s string) string {
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

// count writes 1234567 as 1,234,567.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// plural is "1 key", "2 keys".
func plural(n int64, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return count(n) + " " + word + "s"
}

// bar shows progress on a terminal, and nothing elsewhere.
type bar struct{ pb *progressbar.ProgressBar }

// newBar returns a bar towards total, -1 if that is not known.
func newBar(w io.Writer, what string, total int64, bytes bool) bar {
	if !terminal(w) {
		return bar{}
	}
	return bar{progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(bytes),
		progressbar.OptionThrottle(100*time.Millisecond),
	)}
}

// to moves the bar to done, of a total that may not be known, under a new description.
func (b bar) to(done int64, what string) {
	if b.pb == nil {
		return
	}
	b.pb.Describe(what)
	if most := b.pb.GetMax64(); most > 0 {
		done = min(done, most-1) // a bar that is full says it is finished
	}
	b.pb.Set64(done)
}

func (b bar) describe(what string) {
	if b.pb != nil {
		b.pb.Describe(what)
	}
}

func (b bar) set(done, total int) {
	if b.pb != nil && total > 0 {
		b.pb.ChangeMax(total)
		b.pb.Set(min(done, total-1)) // a bar that is full says it is finished
	}
}

func (b bar) clear() {
	if b.pb != nil {
		b.pb.Clear()
	}
}
