// Package marks finds where the text of a JSON string cannot simply go on: at a quotation mark, a backslash or a control character.
package marks

import (
	"encoding/binary"
	"math/bits"
)

// Index is the place of the first mark in p, len(p) if there is none.
func Index(p []byte) int {
	at := 0
	if wide && len(p) >= width {
		if at = index(&p[0], len(p)); at < len(p) {
			return at
		}
		// What is left is less than a width: the last of it again, which begins with what is known to have none.
		return len(p) - width + index(&p[len(p)-width], width)
	}
	return indexWords(p)
}

// indexWords is Index by words of eight bytes.
func indexWords(p []byte) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	at := 0
	for ; at+8 <= len(p); at += 8 {
		w := binary.LittleEndian.Uint64(p[at:])
		quote, slash := w^(ones*'"'), w^(ones*'\\') // with the top bits of w
		// Of the tops that the subtractions leave the lowest is right; those above may come of a borrow.
		if m := ((quote - ones) | (slash - ones) | (w - ones*' ')) &^ w & tops; m != 0 {
			return at + bits.TrailingZeros64(m)/8
		}
	}
	for ; at < len(p); at++ {
		if c := p[at]; c < ' ' || c == '"' || c == '\\' {
			break
		}
	}
	return at
}
