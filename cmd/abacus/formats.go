package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// Formats of results. Every command has table and json; some have more, which they declare with writes.
const (
	formatTable = "table"
	formatWide  = "wide" // a table with more columns
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatCSV   = "csv"
	formatName  = "name" // ids alone, one a line
)

const formatsOf = "formats" // the annotation of a command

// writes declares what -o of a command may be, beside table and json.
func writes(cmd *cobra.Command, more ...string) {
	cmd.Annotations = map[string]string{formatsOf: strings.Join(more, " ")}
}

// formats are what -o of a command may be.
func formats(cmd *cobra.Command) []string {
	return append([]string{formatTable, formatJSON}, strings.Fields(cmd.Annotations[formatsOf])...)
}

// checkFormat refuses an -o that the command does not have.
func checkFormat(cmd *cobra.Command, format string) error {
	known := formats(cmd)
	if slices.Contains(known, format) {
		return nil
	}
	last := len(known) - 1
	return fmt.Errorf("-o %q: it must be %s or %s", format, strings.Join(known[:last], ", "), known[last])
}

func completeFormats(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return formats(cmd), cobra.ShellCompDirectiveNoFileComp
}

// grid is what tables and CSV show: the same cells, as they are.
type grid struct {
	head []string
	rows [][]string
}

func (g *grid) add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = fmt.Sprint(c)
	}
	g.rows = append(g.rows, row)
}

// print writes doc or g in the format that was asked for: a command that declares a format needs no more.
func (a *app) print(w io.Writer, doc any, g grid) error {
	switch a.output {
	case formatJSON:
		return writeJSON(w, doc)
	case formatYAML:
		return writeYAML(w, doc)
	case formatCSV:
		return g.writeCSV(w)
	case formatName:
		for _, row := range g.rows {
			if _, err := fmt.Fprintln(w, row[0]); err != nil {
				return fmt.Errorf("write the result: %w", err)
			}
		}
		return nil
	}
	return g.writeTable(w)
}

func (g grid) writeTable(w io.Writer) error {
	t := newTable(w, g.head...)
	for _, row := range g.rows {
		t.row(toAny(row)...)
	}
	return t.flush()
}

// writeCSV writes what RFC 4180 describes, with line feeds. The header is in lower case, as the fields of JSON are.
func (g grid) writeCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	head := make([]string, len(g.head))
	for i, h := range g.head {
		head[i] = strings.ReplaceAll(strings.ToLower(h), " ", "_")
	}
	if err := out.WriteAll(append([][]string{head}, g.rows...)); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// writeYAML writes what writeJSON does, in YAML: the same fields, and numbers with the digits that they have there.
func writeYAML(w io.Writer, v any) error {
	var text bytes.Buffer
	if err := writeJSON(&text, v); err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text.Bytes(), &doc); err != nil { // JSON is YAML
		return fmt.Errorf("write the result: %w", err)
	}
	plain(&doc)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return enc.Close()
}

// plain takes the braces and quotes of JSON away; what needs quotes in YAML gets them again.
func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
}

// gridOf shows a JSON document that a job answered: a list of objects as their fields, a list of lists as they
// are, another list or an object as one row for each part. Numbers keep their digits. ok is false for what is one value.
func gridOf(doc json.RawMessage) (g grid, ok bool, err error) {
	parts, isList, err := partsOf(doc)
	if err != nil || parts == nil {
		return g, false, err
	}
	if !isList {
		g.head = []string{"KEY", "VALUE"}
		for _, p := range parts {
			g.rows = append(g.rows, []string{p.name, cellOf(p.value)})
		}
		return g, true, nil
	}
	var rows [][]part
	var names []string
	for _, p := range parts {
		fields, inner, err := partsOf(p.value)
		if err != nil {
			return g, false, err
		}
		if fields == nil {
			fields = []part{{"value", p.value}}
		}
		at := len(names) // a name that is new comes before the known one that follows it: the first bucket of a histogram has no "from"
		for i := range slices.Backward(fields) {
			f := &fields[i]
			if inner {
				f.name = fmt.Sprint(i + 1)
			}
			if known := slices.Index(names, f.name); known >= 0 {
				at = known
			} else {
				names = slices.Insert(names, at, f.name)
			}
		}
		rows = append(rows, fields)
	}
	for _, r := range rows {
		row := make([]string, len(names))
		for _, f := range r {
			row[slices.Index(names, f.name)] = cellOf(f.value)
		}
		g.rows = append(g.rows, row)
	}
	for _, name := range names {
		g.head = append(g.head, strings.ToUpper(name))
	}
	if g.head == nil {
		g.head = []string{"VALUE"}
	}
	return g, true, nil
}

// part is an element of a list or a field of an object.
type part struct {
	name  string
	value json.RawMessage
}

// partsOf takes a list or an object apart, in its order; nil of what is neither.
func partsOf(doc json.RawMessage) (parts []part, isList bool, err error) {
	dec := json.NewDecoder(bytes.NewReader(doc))
	open, err := dec.Token()
	if err != nil {
		return nil, false, fmt.Errorf("parse the result: %w", err)
	}
	delim, nested := open.(json.Delim)
	if !nested {
		return nil, false, nil
	}
	parts = []part{}
	for dec.More() {
		var p part
		if delim == '{' {
			name, err := dec.Token()
			if err != nil {
				return nil, false, fmt.Errorf("parse the result: %w", err)
			}
			p.name, _ = name.(string)
		}
		if err := dec.Decode(&p.value); err != nil {
			return nil, false, fmt.Errorf("parse the result: %w", err)
		}
		parts = append(parts, p)
	}
	return parts, delim == '[', nil
}

// cellOf is a value as a cell shows it: a text without its quotes, anything else in JSON.
func cellOf(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil && len(raw) > 0 && raw[0] == '"' {
		return text
	}
	var compact bytes.Buffer
	if json.Compact(&compact, raw) != nil {
		return string(raw)
	}
	return compact.String()
}
