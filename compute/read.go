package compute

import (
	"bytes"
	"math/big"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/abacusdb/abacus/compute/expr"
	"github.com/abacusdb/abacus/compute/fold"
)

// maxDigits bounds an integer; a longer one does not parse.
const maxDigits = 1000

func readString(value []byte, it *fold.Value) bool { it.SetText(value); return true }

// readInt reads a decimal integer: an optional sign and up to maxDigits digits, nothing else.
func readInt(value []byte, it *fold.Value) bool {
	digits, negative := value, false
	if len(digits) > 0 && (digits[0] == '-' || digits[0] == '+') {
		digits, negative = digits[1:], digits[0] == '-'
	}
	if len(digits) == 0 || len(digits) > maxDigits {
		return false
	}
	var n int64 // as long as it fits
	for _, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
		n = 10*n + int64(c-'0')
	}
	if len(digits) <= 18 {
		if negative {
			n = -n
		}
		it.SetInt(n)
		return true
	}
	if n, err := strconv.ParseInt(string(value), 10, 64); err == nil {
		it.SetInt(n)
		return true
	}
	b, ok := new(big.Int).SetString(string(value), 10)
	if ok {
		it.SetBig(b)
	}
	return ok
}

// readFloat reads a finite decimal float. NaN, infinities, hexadecimal and what
// is too large for a float64 do not parse.
func readFloat(value []byte, it *fold.Value) bool {
	if len(value) > maxDigits+1 {
		return false
	}
	for _, c := range value {
		if (c < '0' || c > '9') && c != '.' && c != '-' && c != '+' && c != 'e' && c != 'E' {
			return false
		}
	}
	f, err := strconv.ParseFloat(string(value), 64)
	it.SetFloat(f)
	return err == nil
}

// readNumber reads a text that has a point or an exponent as a float, any other as an integer, which is then
// exact however large. One of too many digits does not become a float.
func readNumber(text []byte, it *fold.Value) bool {
	for _, c := range text {
		if c == '.' || c|0x20 == 'e' {
			return readFloat(text, it)
		}
	}
	return readInt(text, it)
}

// document reads JSON. It belongs to one goroutine.
type document struct {
	scan  jsonScan
	valid bool // known of the present record: then a scan may end when it has found what it looks for
}

// lookup finds what stands at a path, as it is written. It says false for a document that is not valid JSON.
func (d *document) lookup(doc []byte, path *jsonPath) (kind jsonKind, raw []byte, ok bool) {
	if !path.plain {
		if !d.valid && (expr.TooDeep(doc, maxDepth) || !gjson.ValidBytes(doc)) {
			return jsonNone, nil, false
		}
		d.valid = true
		kind, raw = query(doc, path.text)
		return kind, raw, true
	}
	if !d.scan.find(doc, path, d.valid) && !d.valid {
		return jsonNone, nil, false
	}
	d.valid = true
	at := d.scan.found
	if at.kind == jsonNone || at.kind == jsonOther {
		return at.kind, nil, true
	}
	return at.kind, doc[at.start:at.end], true
}

// maxDepth is how deep a document may nest that gjson reads, which calls itself at each level.
const maxDepth = 10_000

// query has gjson find what stands at a path.
func query(doc []byte, path string) (jsonKind, []byte) {
	r := gjson.GetBytes(doc, path)
	raw := bytes.TrimSpace([]byte(r.Raw))
	switch {
	case !r.Exists():
		return jsonNone, nil
	case r.Type == gjson.Null:
		return jsonNull, raw
	case r.Type == gjson.String:
		return jsonString, raw
	case r.Type == gjson.Number && len(raw) == 0: // a path that ends in # counts an array and has no text
		return jsonNumber, strconv.AppendInt(nil, int64(r.Num), 10)
	case r.Type == gjson.Number:
		return jsonNumber, raw
	case r.IsBool():
		return jsonBool, raw
	}
	return jsonOther, nil
}

// read reads the scalar at a path. Nothing there, or null, does not parse.
func (d *document) read(doc []byte, path *jsonPath, it *fold.Value) bool {
	kind, raw, ok := d.lookup(doc, path)
	if !ok {
		return false
	}
	switch kind {
	case jsonNone, jsonNull:
		return false
	case jsonNumber:
		return readNumber(raw, it)
	case jsonString:
		it.SetText(unquote(raw))
		return true
	}
	*it = fold.Value{Kind: fold.Other}
	return true
}

// name reads the scalar at a path as the name of a group. Nothing there, null, an object and an array name none.
func (d *document) name(doc []byte, path *jsonPath, f *function) bool {
	kind, raw, ok := d.lookup(doc, path)
	switch {
	case !ok:
		return false
	case kind == jsonBool:
		f.name = raw
		return true
	case kind == jsonString:
		f.name = unquote(raw)
		return true
	case kind == jsonNumber:
		var it fold.Value
		return readNumber(raw, &it) && f.nameOf(&it)
	}
	return false
}

// unquote is the text of a valid JSON string; it aliases raw if nothing in it is escaped.
func unquote(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	return []byte(gjson.ParseBytes(raw).Str)
}

// nameOf makes a value the name of a group: a text as it is, a number in its shortest digits, so that 5 and 5.0 are one.
func (f *function) nameOf(it *fold.Value) bool {
	switch it.Kind {
	case fold.Text:
		f.name = it.Text
	case fold.Int:
		start := len(f.text)
		f.text = strconv.AppendInt(f.text, it.Int, 10)
		f.name = f.text[start:]
	case fold.Big, fold.Float:
		f.name = []byte(it.Digits())
	default:
		return false
	}
	return true
}

// lower makes a text lower case, each letter by itself. What is not UTF-8 stays as it is.
func (f *function) lower(it *fold.Value) bool {
	if it.Kind != fold.Text {
		return false
	}
	start := len(f.text)
	for i := 0; i < len(it.Text); {
		if c := it.Text[i]; c < utf8.RuneSelf {
			if c >= 'A' && c <= 'Z' {
				c |= 0x20
			}
			f.text = append(f.text, c)
			i++
			continue
		}
		r, n := utf8.DecodeRune(it.Text[i:])
		if r == utf8.RuneError && n == 1 {
			f.text = append(f.text, it.Text[i])
		} else {
			f.text = utf8.AppendRune(f.text, unicode.ToLower(r))
		}
		i += n
	}
	it.SetText(f.text[start:])
	return true
}

// eachWord calls each for the words of a text: runs of letters, marks and digits, as Unicode has them. It stops at the first that is not good.
func eachWord(text []byte, it *fold.Value, each func(*fold.Value) fate) fate {
	for start, i := -1, 0; ; {
		r, n := utf8.RuneError, 0
		if i < len(text) {
			if r, n = rune(text[i]), 1; r >= utf8.RuneSelf {
				r, n = utf8.DecodeRune(text[i:])
			}
		}
		switch in := inWord(r); {
		case in && start < 0:
			start = i
		case !in && start >= 0:
			it.SetText(text[start:i:i])
			if fate := each(it); fate != good {
				return fate
			}
			start = -1
		}
		if n == 0 {
			return good
		}
		i += n
	}
}

func inWord(r rune) bool {
	if r < utf8.RuneSelf {
		return r|0x20 >= 'a' && r|0x20 <= 'z' || r >= '0' && r <= '9'
	}
	return unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r)
}

func textLen(it *fold.Value) bool {
	if it.Kind != fold.Text {
		return false
	}
	it.SetInt(int64(len(it.Text)))
	return true
}

// keyPart is the n-th part of a key between separators, from the end if n is negative.
func keyPart(key, sep []byte, n int) ([]byte, fate) {
	if n < 0 {
		for ; n < -1; n++ {
			i := bytes.LastIndex(key, sep)
			if i < 0 {
				return nil, bad
			}
			key = key[:i]
		}
		if i := bytes.LastIndex(key, sep); i >= 0 {
			key = key[i+len(sep):]
		}
		return key, good
	}
	for ; n > 1; n-- {
		i := bytes.Index(key, sep)
		if i < 0 {
			return nil, bad
		}
		key = key[i+len(sep):]
	}
	if i := bytes.Index(key, sep); i >= 0 {
		key = key[:i]
	}
	return key, good
}
