package compute

import (
	"bytes"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/abacusdb/abacus/compute/job"
)

type kind uint8

const (
	kindNone  kind = iota
	kindInt        // an integer that fits an int64
	kindBig        // one that does not
	kindFloat      // finite, never -0
	kindText
	kindOther // there, but neither number nor text (a JSON bool, object or array): it can only be counted
)

// item is what a record is mapped to. Its text aliases the record.
type item struct {
	kind  kind
	int   int64
	float float64
	big   *big.Int
	text  []byte
}

// maxDigits bounds an integer; a longer one does not parse.
const maxDigits = 1000

// function is a compiled spec: it maps a record to an item and folds it. It
// belongs to one goroutine.
type function struct {
	read  func(value []byte, it *item) bool // as
	mapTo func(key, value []byte, it *item) bool
	folds func(k kind) bool // which kinds the reduce can take
	fold  func(p *Partial, it *item)
	item  item // of the present record: here, so that a record costs no allocation
}

// compile makes the function of a valid spec.
func compile(spec job.Spec) (*function, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	f := new(function)
	path, _ := spec.Path()
	switch spec.As {
	case job.AsString:
		f.read = readString
	case job.AsInt:
		f.read = readInt
	case job.AsFloat:
		f.read = readFloat
	case job.AsJSON:
		f.read = func(value []byte, it *item) bool { return readJSON(value, path, it) }
	}
	switch spec.Map {
	case job.MapKey:
		f.mapTo = func(key, _ []byte, it *item) bool { it.setText(key); return true }
	case job.MapLen: // of the raw value, whatever it is read as
		f.mapTo = func(_, value []byte, it *item) bool { it.setInt(int64(len(value))); return true }
	case job.MapSquare:
		f.mapTo = func(_, _ []byte, it *item) bool { return it.square() }
	default: // value, and what readJSON found at a path
		f.mapTo = func(_, _ []byte, _ *item) bool { return true }
	}
	switch spec.Reduce {
	case job.ReduceCount:
		f.fold, f.folds = func(*Partial, *item) {}, func(kind) bool { return true }
	case job.ReduceSum, job.ReduceMean:
		f.fold, f.folds = (*Partial).addSum, isNumber
	case job.ReduceMin, job.ReduceMax:
		f.fold, f.folds = (*Partial).addExtreme, func(k kind) bool { return isNumber(k) || k == kindText }
	}
	return f, nil
}

// step folds one record into p. It keeps nothing of key and value.
func (f *function) step(p *Partial, key, value []byte) {
	it := &f.item
	if !f.read(value, it) || !f.mapTo(key, value, it) || !f.folds(it.kind) {
		p.addBad(key)
		return
	}
	p.count(it.kind)
	f.fold(p, it)
}

func isNumber(k kind) bool { return k == kindInt || k == kindBig || k == kindFloat }

func (it *item) setInt(n int64)   { *it = item{kind: kindInt, int: n} }
func (it *item) setText(b []byte) { *it = item{kind: kindText, text: b} }

// setBig keeps one form for one value: what fits an int64 is a kindInt.
func (it *item) setBig(b *big.Int) {
	if b.IsInt64() {
		it.setInt(b.Int64())
		return
	}
	*it = item{kind: kindBig, big: b}
}

func (it *item) setFloat(f float64) {
	if f == 0 {
		f = 0 // -0 and 0 are one value, or a minimum would depend on which came first
	}
	*it = item{kind: kindFloat, float: f}
}

func readString(value []byte, it *item) bool { it.setText(value); return true }

// readInt reads a decimal integer: an optional sign and up to maxDigits digits, nothing else.
func readInt(value []byte, it *item) bool {
	if len(value) > maxDigits+1 {
		return false
	}
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err == nil {
		it.setInt(n)
		return true
	}
	digits := value
	if len(digits) > 0 && (digits[0] == '-' || digits[0] == '+') {
		digits = digits[1:]
	}
	if len(digits) == 0 || len(digits) > maxDigits {
		return false
	}
	for _, c := range digits { // big.Int would also take underscores
		if c < '0' || c > '9' {
			return false
		}
	}
	b, ok := new(big.Int).SetString(string(value), 10)
	if ok {
		it.setBig(b)
	}
	return ok
}

// readFloat reads a finite decimal float. NaN, infinities, hexadecimal and what
// is too large for a float64 do not parse.
func readFloat(value []byte, it *item) bool {
	if len(value) > maxDigits+1 {
		return false
	}
	for _, c := range value {
		if (c < '0' || c > '9') && c != '.' && c != '-' && c != '+' && c != 'e' && c != 'E' {
			return false
		}
	}
	f, err := strconv.ParseFloat(string(value), 64)
	it.setFloat(f)
	return err == nil
}

// readJSON reads the scalar at path, or the document itself if path is empty.
// Nothing there, or null, does not parse.
func readJSON(value []byte, path string, it *item) bool {
	if !gjson.ValidBytes(value) {
		return false
	}
	var r gjson.Result
	if path == "" {
		r = gjson.ParseBytes(value)
	} else {
		r = gjson.GetBytes(value, path)
	}
	switch {
	case !r.Exists() || r.Type == gjson.Null:
		return false
	case r.Type == gjson.String:
		it.setText([]byte(r.Str))
		return true
	case r.Type == gjson.Number:
		return readJSONNumber(r, it)
	}
	*it = item{kind: kindOther}
	return true
}

// readJSONNumber takes a number without point or exponent as an integer, which
// is then exact however large. One of too many digits does not become a float.
func readJSONNumber(r gjson.Result, it *item) bool {
	if r.Raw == "" { // a path that ends in # counts an array and has no text
		it.setInt(int64(r.Num))
		return true
	}
	text := []byte(strings.TrimSpace(r.Raw))
	if bytes.ContainsAny(text, ".eE") {
		return readFloat(text, it)
	}
	return readInt(text, it)
}

// square multiplies a number with itself, exactly for integers. A float whose
// square is too large for a float64 does not parse.
func (it *item) square() bool {
	const maxRoot = 3037000499 // the largest integer whose square fits an int64
	switch {
	case it.kind == kindInt && it.int >= -maxRoot && it.int <= maxRoot:
		it.int *= it.int
	case it.kind == kindInt:
		b := big.NewInt(it.int)
		it.setBig(b.Mul(b, b))
	case it.kind == kindBig:
		it.setBig(new(big.Int).Mul(it.big, it.big))
	case it.kind == kindFloat:
		it.setFloat(it.float * it.float)
		return !math.IsInf(it.float, 0)
	default:
		return false
	}
	return true
}

// compareNumbers orders numbers of any kind exactly.
func compareNumbers(a, b *item) int {
	switch {
	case a.kind == kindInt && b.kind == kindInt:
		return compare(a.int, b.int)
	case a.kind == kindFloat && b.kind == kindFloat:
		return compare(a.float, b.float)
	}
	return exact(a).Cmp(exact(b))
}

func compare[T int64 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// exact is a number without rounding: SetInt takes the precision that the integer needs.
func exact(it *item) *big.Float {
	switch it.kind {
	case kindInt:
		return new(big.Float).SetInt64(it.int)
	case kindBig:
		return new(big.Float).SetInt(it.big)
	}
	return new(big.Float).SetFloat64(it.float)
}

func (it *item) digits() string {
	switch it.kind {
	case kindInt:
		return strconv.FormatInt(it.int, 10)
	case kindBig:
		return it.big.String()
	}
	return formatFloat(it.float)
}
