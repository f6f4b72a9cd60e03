package expr

import (
	"strconv"
	"unicode/utf8"
	"unsafe"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"

	"github.com/abacusdb/abacus/compute/job"
)

// Record is the record that expressions run over. One Record serves all expressions of a job over the same record (filter, map,
// key), so that a JSON document is decoded once, and only where an expression looks. It belongs to one goroutine.
type Record struct {
	as         string
	key, value []byte
	k, v       ref.Val // of key and value; nil until an expression asks
	objects    []*object
	used       int // of objects, by this record
}

// NewRecord makes a record whose values are read as (job.AsString and so on).
func NewRecord(as string) *Record { return &Record{as: as} }

// Set makes it the next record. It copies nothing: key and value must not change until the next Set.
func (r *Record) Set(key, value []byte) {
	r.key, r.value, r.k, r.v, r.used = key, value, nil, nil, 0
}

// ResolveName implements cel.Activation: the variables v and key. A value that does not parse is an error where it is used, so an
// expression over keys alone runs over any value.
func (r *Record) ResolveName(name string) (any, bool) {
	switch name {
	case "v":
		if r.v == nil {
			r.v = r.read()
		}
		return r.v, true
	case "key":
		if r.k == nil {
			r.k = text(r.key, "the key")
		}
		return r.k, true
	}
	return nil, false
}

// Parent implements cel.Activation: there is none.
func (r *Record) Parent() interpreter.Activation { return nil }

func (r *Record) read() ref.Val {
	switch r.as {
	case job.AsRaw:
		return types.Bytes(r.value)
	case job.AsInt:
		n, err := strconv.ParseInt(string(r.value), 10, 64)
		if err == nil {
			return types.Int(n)
		}
		return types.NewErr("the value is not an integer of at most 64 bits")
	case job.AsFloat:
		return readDouble(r.value)
	case job.AsJSON:
		return r.document(r.value)
	}
	return text(r.value, "the value")
}

// readDouble reads what `as: float` reads: digits, so NaN, infinities, hexadecimal and underscores are none.
func readDouble(value []byte) ref.Val {
	for _, c := range value {
		if (c < '0' || c > '9') && c != '.' && c != '-' && c != '+' && c != 'e' && c != 'E' {
			return types.NewErr("the value is not a decimal number")
		}
	}
	f, err := strconv.ParseFloat(view(value), 64)
	if err != nil {
		return types.NewErr("the value is not a decimal number that a double can hold")
	}
	return types.Double(f)
}

func text(b []byte, what string) ref.Val {
	if !utf8.Valid(b) {
		return types.NewErr("%s is not UTF-8", what)
	}
	return types.String(view(b))
}

// view is b as a string, without a copy. It holds as long as b does: until the next Set.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf is s as bytes, without a copy, to be read only.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// newObject takes an object that an earlier record has left, with its space.
func (r *Record) newObject(raw string) *object {
	if r.used == len(r.objects) {
		if r.used == keptObjects {
			return &object{record: r, raw: raw}
		}
		r.objects = append(r.objects, new(object))
	}
	o := r.objects[r.used]
	r.used++
	if cap(o.fields) > keptFields {
		o.fields = nil
	}
	*o = object{record: r, raw: raw, fields: o.fields[:0]}
	return o
}

// What a Record keeps for the next: enough for what documents usually have.
const (
	keptObjects = 256
	keptFields  = 256
)
