package expr

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// maxDepth bounds how deep a document nests: its readers call themselves at each level.
const maxDepth = 128

// document reads a JSON text. Objects in it are read when an expression looks into them, a level at a time.
func (r *Record) document(text []byte) ref.Val {
	switch {
	case TooDeep(text, maxDepth):
		return types.NewErr("the JSON document nests more than %d levels", maxDepth)
	case !utf8.Valid(text):
		return types.NewErr("the value is not UTF-8, as JSON must be")
	case !gjson.ValidBytes(text):
		return types.NewErr("the value is not a JSON document")
	}
	return r.json(gjson.Parse(view(text)))
}

// TooDeep says whether a JSON document, valid or not, nests more than so many levels: readers that call themselves at each ask first.
func TooDeep(text []byte, levels int) bool {
	if len(text) <= levels || bytes.Count(text, []byte("{"))+bytes.Count(text, []byte("[")) <= levels {
		return false // the common case, at the speed of memory
	}
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > levels {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

func (r *Record) json(v gjson.Result) ref.Val {
	switch v.Type {
	case gjson.Null:
		return types.NullValue
	case gjson.False:
		return types.False
	case gjson.True:
		return types.True
	case gjson.String:
		return types.String(v.Str)
	case gjson.Number:
		return number(v)
	}
	if v.IsObject() {
		return r.newObject(v.Raw)
	}
	var items []ref.Val
	v.ForEach(func(_, item gjson.Result) bool {
		items = append(items, r.json(item))
		return true
	})
	return types.NewRefValList(types.DefaultTypeAdapter, items)
}

// number makes an int of a number without point and exponent, and a double of any other. What fits neither is an error: it is
// not rounded to one that does.
func number(v gjson.Result) ref.Val {
	if !strings.ContainsAny(v.Raw, ".eE") {
		n, err := strconv.ParseInt(v.Raw, 10, 64)
		if err != nil {
			return types.NewErr("the integer %s does not fit 64 bits", shorten(v.Raw))
		}
		return types.Int(n)
	}
	f, err := strconv.ParseFloat(v.Raw, 64)
	if err != nil {
		return types.NewErr("the number %s is too large for a double", shorten(v.Raw))
	}
	return types.Double(f)
}

// object is a JSON object, whose fields are found when one is asked for, and made into values one by one. Its order is the
// document's, so loops over it are the same everywhere; of two fields with one name it has the first, as json: paths do.
// It belongs to a Record and is used again for the next.
type object struct {
	record *Record
	raw    string
	read   bool
	fields []field
	byName map[string]int // into fields, if they are many
}

type field struct {
	name  string
	json  gjson.Result
	value ref.Val // nil until it is asked for
}

const manyFields = 16 // up to which a search is faster than a map

func (o *object) load() {
	if o.read {
		return
	}
	o.read = true
	gjson.Parse(o.raw).ForEach(func(name, value gjson.Result) bool {
		if o.find(name.Str) >= 0 {
			return true
		}
		o.fields = append(o.fields, field{name: name.Str, json: value})
		switch n := len(o.fields); {
		case o.byName != nil:
			o.byName[name.Str] = n - 1
		case n > manyFields:
			o.byName = make(map[string]int, 4*manyFields)
			for i := range o.fields {
				o.byName[o.fields[i].name] = i
			}
		}
		return true
	})
}

// find returns the number of a field, or -1.
func (o *object) find(name string) int {
	if o.byName != nil {
		if i, ok := o.byName[name]; ok {
			return i
		}
		return -1
	}
	return slices.IndexFunc(o.fields, func(f field) bool { return f.name == name })
}

// Find implements traits.Mapper.
func (o *object) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return nil, false
	}
	o.load()
	i := o.find(string(name))
	if i < 0 {
		return nil, false
	}
	f := &o.fields[i]
	if f.value == nil {
		f.value = o.record.json(f.json)
	}
	return f.value, true
}

// Get implements traits.Indexer.
func (o *object) Get(key ref.Val) ref.Val {
	v, found := o.Find(key)
	if !found {
		return types.NewErr("no such key: %v", key.Value())
	}
	return v
}

// Contains implements traits.Container.
func (o *object) Contains(key ref.Val) ref.Val {
	_, found := o.Find(key)
	return types.Bool(found)
}

// Size implements traits.Sizer.
func (o *object) Size() ref.Val {
	o.load()
	return types.Int(len(o.fields))
}

// AggregateSize implements types.AggregateSizeVisitor without reading the object: it has no more values than bytes.
func (o *object) AggregateSize(sizer types.AggregateSizer) uint32 { return sizer.AggregateSize(o.raw) }

// Iterator implements traits.Iterable.
func (o *object) Iterator() traits.Iterator {
	o.load()
	names := make([]ref.Val, len(o.fields))
	for i := range o.fields {
		names[i] = types.String(o.fields[i].name)
	}
	return types.NewRefValList(types.DefaultTypeAdapter, names).Iterator()
}

// Equal implements ref.Val.
func (o *object) Equal(other ref.Val) ref.Val {
	m, ok := other.(traits.Mapper)
	if !ok || o.Size() != m.Size() {
		return types.False
	}
	for i := range o.fields {
		name := types.String(o.fields[i].name)
		mine, _ := o.Find(name)
		theirs, found := m.Find(name)
		if !found {
			return types.False
		}
		if eq := types.Equal(mine, theirs); eq != types.True {
			return eq
		}
	}
	return types.True
}

// ConvertToNative implements ref.Val; nothing asks for it, results are read field by field.
func (o *object) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("%w to %v", errNoConversion, t)
}

var errNoConversion = errors.New("a JSON object is not converted")

// ConvertToType implements ref.Val.
func (o *object) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.MapType:
		return o
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("an object is no %s", t.TypeName())
}

// Type implements ref.Val.
func (o *object) Type() ref.Type { return types.MapType }

// Value implements ref.Val.
func (o *object) Value() any { return o.raw }
