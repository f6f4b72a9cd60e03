// Package fold has the values that records are mapped to and what folds them to one: states that take values in any
// order and in any grouping, and come to the same bytes.
package fold

import (
	"bytes"
	"math"
	"math/big"
	"strconv"
)

// Kind says what a Value is.
type Kind uint8

const (
	None  Kind = iota
	Int        // an integer that fits an int64
	Big        // one that does not
	Float      // finite, never -0
	Text
	Other // there, but neither number nor text (a JSON bool, object or array): it can only be counted
)

// IsNumber says whether values of the kind can be added.
func (k Kind) IsNumber() bool { return k == Int || k == Big || k == Float }

// Value is what a record is mapped to. Its text may alias the record: whoever keeps a value copies it.
type Value struct {
	Kind  Kind
	Int   int64
	Float float64
	Big   *big.Int
	Text  []byte
}

// SetInt makes it an integer.
func (v *Value) SetInt(n int64) { *v = Value{Kind: Int, Int: n} }

// SetText makes it a text, which is not copied.
func (v *Value) SetText(b []byte) { *v = Value{Kind: Text, Text: b} }

// SetBig makes it an integer. One value has one form: what fits an int64 is an Int.
func (v *Value) SetBig(b *big.Int) {
	if b.IsInt64() {
		v.SetInt(b.Int64())
		return
	}
	*v = Value{Kind: Big, Big: b}
}

// SetFloat makes it a float, which must be finite.
func (v *Value) SetFloat(f float64) {
	if f == 0 {
		f = 0 // -0 and 0 are one value, or a minimum would depend on which came first
	}
	*v = Value{Kind: Float, Float: f}
}

// Square multiplies a number with itself, exactly for integers. It says false for what is no number, and for a float whose square
// is too large for a float64.
func (v *Value) Square() bool {
	const maxRoot = 3037000499 // the largest integer whose square fits an int64
	switch {
	case v.Kind == Int && v.Int >= -maxRoot && v.Int <= maxRoot:
		v.Int *= v.Int
	case v.Kind == Int:
		b := big.NewInt(v.Int)
		v.SetBig(b.Mul(b, b))
	case v.Kind == Big:
		v.SetBig(new(big.Int).Mul(v.Big, v.Big))
	case v.Kind == Float:
		v.SetFloat(v.Float * v.Float)
		return !math.IsInf(v.Float, 0)
	default:
		return false
	}
	return true
}

// Digits writes a number.
func (v *Value) Digits() string {
	switch v.Kind {
	case Int:
		return strconv.FormatInt(v.Int, 10)
	case Big:
		return v.Big.String()
	}
	return FormatFloat(v.Float)
}

// CompareNumbers orders numbers of any kind exactly.
func CompareNumbers(a, b *Value) int {
	switch {
	case a.Kind == Int && b.Kind == Int:
		return compare(a.Int, b.Int)
	case a.Kind == Float && b.Kind == Float:
		return compare(a.Float, b.Float)
	case a.Kind == Int && b.Kind == Float && exactFloat(a.Int):
		return compare(float64(a.Int), b.Float)
	case a.Kind == Float && b.Kind == Int && exactFloat(b.Int):
		return compare(a.Float, float64(b.Int))
	}
	return a.exact().Cmp(b.exact())
}

// exactFloat says whether n, and every integer nearer to zero, is a float64.
func exactFloat(n int64) bool { return -1<<53 <= n && n <= 1<<53 }

func compare[T int64 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// worth orders values that can be kept: numbers before texts, numbers by what they are worth, texts by their bytes.
func worth(a, b *Value) int {
	switch {
	case a.Kind == Text && b.Kind == Text:
		return bytes.Compare(a.Text, b.Text)
	case a.Kind == Text:
		return 1
	case b.Kind == Text:
		return -1
	}
	return CompareNumbers(a, b)
}

// order is worth made total: an integer goes before a float of the same worth.
func order(a, b *Value) int {
	c := worth(a, b)
	switch {
	case c == 0 && a.Kind != Float && b.Kind == Float:
		return -1
	case c == 0 && a.Kind == Float && b.Kind != Float:
		return 1
	}
	return c
}

// keep copies what a value points to, a text as far as a job can answer it and one byte more.
func (v *Value) keep() Value {
	kept := *v
	if v.Kind == Text {
		kept.Text = bytes.Clone(cut(v.Text))
	}
	if v.Kind == Big {
		kept.Big = new(big.Int).Set(v.Big)
	}
	return kept
}

func cut(text []byte) []byte { return text[:min(len(text), MaxTextBytes+1)] }

// size is what a kept value takes beyond a fixed part, in bytes.
func (v *Value) size() int {
	if v.Kind == Big {
		return bigSize(v.Big)
	}
	return len(v.Text)
}

// exact is a number without rounding: SetInt takes the precision that the integer needs.
func (v *Value) exact() *big.Float {
	switch v.Kind {
	case Int:
		return new(big.Float).SetInt64(v.Int)
	case Big:
		return new(big.Float).SetInt(v.Big)
	}
	return new(big.Float).SetFloat64(v.Float)
}

// rat is a number as a fraction.
func (v *Value) rat() *big.Rat {
	switch v.Kind {
	case Int:
		return new(big.Rat).SetInt64(v.Int)
	case Big:
		return new(big.Rat).SetInt(v.Big)
	}
	return new(big.Rat).SetFloat64(v.Float)
}
