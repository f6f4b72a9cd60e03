package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxLine bounds one line of an input file; no record could be longer.
const maxLine = 64 << 20

// record is one key and value of an input file.
type record struct {
	key, value []byte
	line       int64 // where it begins, from 1; 0 if there are no lines
	ttl        int64 // milliseconds that the key is to live; 0: for ever
}

// lineError is a fault in the input, at a line.
type lineError struct {
	line int64
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e *lineError) Unwrap() error { return e.err }

// recordOptions say how an input is read.
type recordOptions struct {
	format string // lines, csv, jsonl, kv
	prefix string
	key    string // column or field whose content is the key; empty: the record's number
	value  string // column or field to store alone; empty: the whole row or object
	width  int    // digits of a record's number
}

func (o recordOptions) validate() error {
	switch o.format {
	case "lines", "kv":
		if o.key != "" || o.value != "" {
			return usagef("--key and --value go with --format csv or jsonl, not %s", o.format)
		}
	case "csv", "jsonl":
	default:
		return usagef("--format %s: it must be lines, csv, jsonl or kv", o.format)
	}
	if o.width < 1 || o.width > 19 {
		return usagef("--key-width %d: it must be within 1..19", o.width)
	}
	return nil
}

// newRecords returns a function that yields the records of an input one by one
// and then io.EOF. Input that begins with gzip's magic bytes is unpacked.
func newRecords(r io.Reader, o recordOptions) (func() (record, error), error) {
	br := bufio.NewReaderSize(r, 256<<10)
	if magic, _ := br.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("unpack gzip: %w", err)
		}
		br = bufio.NewReaderSize(z, 256<<10)
	}
	n := newNumberer(o)
	switch o.format {
	case "csv":
		return csvRecords(br, o, n)
	case "jsonl":
		return jsonlRecords(lines{r: br}, o, n), nil
	case "kv":
		return kvRecords(lines{r: br}, o), nil
	}
	return lineRecords(lines{r: br}, n), nil
}

// numberer makes keys of record numbers, from 1, padded so that they sort.
type numberer struct {
	o recordOptions
	n int64
}

func newNumberer(o recordOptions) *numberer { return &numberer{o: o} }

func (n *numberer) next() []byte {
	n.n++
	return fmt.Appendf(nil, "%s%0*d", n.o.prefix, n.o.width, n.n)
}

// lines reads lines of bounded length.
type lines struct {
	r *bufio.Reader
	n int64
}

// next returns a line without its newline, in memory of its own.
func (l *lines) next() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return nil, &lineError{l.n + 1, fmt.Errorf("longer than %d MiB", maxLine>>20)}
		}
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == io.EOF && len(line) > 0:
		case err == io.EOF:
			return nil, io.EOF
		case err != nil:
			return nil, fmt.Errorf("read line %d: %w", l.n+1, err)
		}
		l.n++
		return bytes.TrimSuffix(line, []byte("\n")), nil
	}
}

func lineRecords(l lines, n *numberer) func() (record, error) {
	return func() (record, error) {
		line, err := l.next()
		if err != nil {
			return record{}, err
		}
		return record{key: n.next(), value: bytes.TrimSuffix(line, []byte("\r")), line: l.n}, nil
	}
}

func kvRecords(l lines, o recordOptions) func() (record, error) {
	return func() (record, error) {
		line, err := l.next()
		if err != nil {
			return record{}, err
		}
		key, value, ok := bytes.Cut(line, []byte("\t"))
		if !ok {
			return record{}, &lineError{l.n, errors.New("no TAB between key and value")}
		}
		return keyed(o, key, value, l.n)
	}
}

// keyed builds the record of a key from the input.
func keyed(o recordOptions, key, value []byte, line int64) (record, error) {
	full := append([]byte(o.prefix), key...)
	if len(full) == 0 {
		return record{}, &lineError{line, errors.New("the key is empty")}
	}
	return record{key: full, value: value, line: line}, nil
}

func jsonlRecords(l lines, o recordOptions, n *numberer) func() (record, error) {
	return func() (record, error) {
		for {
			line, err := l.next()
			if err != nil {
				return record{}, err
			}
			line = bytes.TrimSpace(line)
			if len(line) == 0 {
				continue
			}
			fail := func(err error) (record, error) { return record{}, &lineError{l.n, err} }
			if !json.Valid(line) {
				return fail(errors.New("not a JSON document"))
			}
			var fields map[string]json.RawMessage
			if o.key != "" || o.value != "" {
				if err := json.Unmarshal(line, &fields); err != nil {
					return fail(errors.New("not a JSON object"))
				}
			}
			value := line
			if o.value != "" {
				if value, err = field(fields, o.value); err != nil {
					return fail(err)
				}
			}
			if o.key == "" {
				return record{key: n.next(), value: value, line: l.n}, nil
			}
			key, err := field(fields, o.key)
			if err != nil {
				return fail(err)
			}
			return keyed(o, key, value, l.n)
		}
	}
}

// field returns the content of a field: a string without its quotes, all else
// as written. NAME_base64, which export writes for bytes that are no text,
// stands for NAME.
func field(fields map[string]json.RawMessage, name string) ([]byte, error) {
	raw, ok := fields[name]
	if !ok {
		if raw, ok = fields[name+"_base64"]; ok {
			var s string
			if err := json.Unmarshal(raw, &s); err == nil {
				if b, err := base64.StdEncoding.DecodeString(s); err == nil {
					return b, nil
				}
			}
			return nil, fmt.Errorf("field %q is not base64", name+"_base64")
		}
		return nil, fmt.Errorf("no field %q", name)
	}
	if raw[0] != '"' {
		return raw, nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("field %q: %w", name, err)
	}
	return []byte(s), nil
}

// csvRecords reads a table: the first line names the columns, a row becomes a
// JSON object in their order.
func csvRecords(br *bufio.Reader, o recordOptions, n *numberer) (func() (record, error), error) {
	if bom, _ := br.Peek(3); bytes.Equal(bom, []byte("\xef\xbb\xbf")) {
		br.Discard(3)
	}
	r := csv.NewReader(br)
	r.ReuseRecord = true
	header, err := r.Read()
	if err == io.EOF {
		return nil, errors.New("no header line: the first line of a csv must name the columns")
	}
	if err != nil {
		return nil, csvError(err)
	}
	names := slices.Clone(header)
	for i, name := range names {
		if !utf8.ValidString(name) {
			return nil, fmt.Errorf("the name of column %d is not UTF-8", i+1)
		}
		if slices.Index(names, name) != i {
			return nil, fmt.Errorf("the header names the column %q twice", name)
		}
	}
	keyCol, valueCol := slices.Index(names, o.key), slices.Index(names, o.value)
	if o.key != "" && keyCol < 0 {
		return nil, usagef("--key %s: no such column; there are %s", o.key, strings.Join(names, ", "))
	}
	if o.value != "" && valueCol < 0 {
		return nil, usagef("--value %s: no such column; there are %s", o.value, strings.Join(names, ", "))
	}
	prefixes := make([][]byte, len(names)) // `{"name":` and `,"other":`
	for i, name := range names {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		prefixes[i] = append(appendJSONString([]byte{sep}, name), ':')
	}
	return func() (record, error) {
		row, err := r.Read()
		if err != nil {
			return record{}, csvError(err)
		}
		at, _ := r.FieldPos(0)
		line := int64(at)
		var value []byte
		if o.value != "" {
			value = []byte(row[valueCol])
		} else if value, err = rowJSON(prefixes, names, row); err != nil {
			return record{}, &lineError{line, err}
		}
		if o.key == "" {
			return record{key: n.next(), value: value, line: line}, nil
		}
		return keyed(o, []byte(row[keyCol]), value, line)
	}, nil
}

func csvError(err error) error {
	var p *csv.ParseError
	if errors.As(err, &p) {
		if errors.Is(p.Err, csv.ErrFieldCount) {
			return &lineError{int64(p.StartLine), errors.New("not as many cells as the header has columns")}
		}
		return &lineError{int64(p.Line), p.Err}
	}
	return err
}

var jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)

// rowJSON writes a row as an object: cells that are JSON numbers as numbers,
// digit by digit, all others as strings.
func rowJSON(prefixes [][]byte, names, row []string) ([]byte, error) {
	var b []byte
	for i, cell := range row {
		b = append(b, prefixes[i]...)
		switch {
		case jsonNumber.MatchString(cell):
			b = append(b, cell...)
		case utf8.ValidString(cell):
			b = appendJSONString(b, cell)
		default:
			return nil, fmt.Errorf("column %q is not UTF-8; convert the file first (iconv -t UTF-8)", names[i])
		}
	}
	return append(b, '}'), nil
}

func appendJSONString(b []byte, s string) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.Encode(s) // a string cannot fail
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}
