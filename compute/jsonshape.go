package compute

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// jsonShape is what stands between the values of a document that was searched for a path: `{"id":`, `,"name":`, `}`. Documents under one prefix are
// mostly of one shape, and of one that has it only the values are read; what stands between them is compared. (Mison foresees
// structure in the same way: Li et al., VLDB 2017.)
//
// That is as strict as reading all, for any value may stand where one has stood: with the same texts between its values the next document is as valid, and the
// same of them is at the path's end. Not so where a value had the right name and was no object or array to go into: the next may be
// one. Documents like that make no shape.
//
// It belongs to one goroutine.
type jsonShape struct {
	gaps   []jsonGap // before each value, and behind the last; none: no shape is known
	text   []byte    // of all gaps
	wanted int       // which value is at the path's end, -1 for none
	// credit is what it has earned by documents that have it; when it is gone, the shape is given up.
	credit int
	vain   int // bytes of the last document that were compared in vain
	// pause is how many documents are parsed before the next makes a shape, and rest how long the last pause was.
	pause, rest int
}

// jsonGap is the text before a value.
type jsonGap struct {
	text []byte
	// The first bytes of text, as many as mask has: one comparison instead of a call for what is short, as most are.
	word, mask uint64
	// long: the last string that followed was.
	long bool
}

const (
	// Documents with more values, or more text between them, make no shape.
	shapeValues = 64
	shapeText   = 4096
	// A shape begins with some credit and has at most so much; a pause is of at most so many documents.
	firstCredit = 4
	mostCredit  = 16
	mostRest    = 1024
)

// find looks through a document of this shape. It says false for any other, valid or not; with valid set, it ends when the value is found.
func (p *jsonShape) find(s *jsonScan, doc []byte, valid bool) bool {
	s.found = jsonSpan{}
	i := 0
	for n := range p.gaps {
		g := &p.gaps[n]
		if !g.at(doc, i) {
			break
		}
		if i += len(g.text); n == len(p.gaps)-1 {
			if i != len(doc) {
				break
			}
			p.hit()
			return true
		}
		if i >= len(doc) {
			break
		}
		wanted := n == p.wanted
		if wanted {
			if s.found = (jsonSpan{start: i, kind: kindOf(doc[i])}); valid && s.found.kind == jsonOther {
				p.hit()
				return true
			}
		}
		end := g.skip(s, doc, i)
		if end < 0 {
			break
		}
		if i = end; wanted {
			if s.found.end = i; valid {
				p.hit()
				return true
			}
		}
	}
	p.vain = i
	return false
}

// at says whether the gap's text stands at i.
func (g *jsonGap) at(doc []byte, i int) bool {
	if i+8 <= len(doc) {
		return (binary.LittleEndian.Uint64(doc[i:])^g.word)&g.mask == 0 && (len(g.text) <= 8 || bytes.HasPrefix(doc[i+8:], g.text[8:]))
	}
	return bytes.HasPrefix(doc[i:], g.text)
}

// skip returns where the value ends that begins at i, or -1.
func (g *jsonGap) skip(s *jsonScan, doc []byte, i int) int {
	switch c := doc[i]; {
	case c >= '1' && c <= '9':
		end := i + 1
		for end < len(doc) && doc[end] >= '0' && doc[end] <= '9' {
			end++
		}
		if end == len(doc) || doc[end] != '.' && doc[end]|0x20 != 'e' {
			return end
		}
	case c == '"':
		if !g.long {
			if end := shortString(doc, i); end > 0 {
				return end
			}
		}
		end := skipString(doc, i)
		g.long = end-i > 16
		return end
	}
	return s.skip(doc, i)
}

// hit pays in for a document of this shape.
func (p *jsonShape) hit() {
	if p.credit++; p.credit >= mostCredit { // only then it has paid: one of many shapes has hits, too
		p.credit, p.pause, p.rest = mostCredit, 0, 0
	}
}

// due charges for a document of size bytes that does not have the shape, and says whether to make one of it. To compare up to the first bytes costs
// about what a document of the shape saves; up to the last, several times that. Where documents are of many shapes, most are parsed at once: each
// shape that has not paid has the next made after a longer pause.
func (p *jsonShape) due(size int) bool {
	if len(p.gaps) > 0 {
		if p.credit -= 1 + 3*p.vain/max(size, 1); p.credit > 0 {
			return false
		}
		p.gaps = p.gaps[:0]
	}
	if p.pause > 0 {
		p.pause--
		return false
	}
	p.rest = min(max(2*p.rest, 1), mostRest)
	p.pause = p.rest
	return true
}

// make takes the shape of a document, of which it keeps nothing, when there is none.
func (p *jsonShape) make(doc []byte, values []jsonSpan, wanted int) {
	p.text, p.wanted, p.credit = p.text[:0], wanted, firstCredit
	size := len(doc)
	for _, v := range values {
		size -= v.end - v.start
	}
	if size > shapeText {
		return
	}
	p.text = slices.Grow(p.text, size) // in one piece
	at := 0
	for n := range len(values) + 1 {
		end, next := len(doc), 0
		if n < len(values) {
			end, next = values[n].start, values[n].end
		}
		start := len(p.text)
		p.text = append(p.text, doc[at:end]...)
		g := jsonGap{text: p.text[start:]}
		for n, c := range g.text[:min(len(g.text), 8)] {
			g.word |= uint64(c) << (8 * n)
			g.mask |= 0xff << (8 * n)
		}
		p.gaps = append(p.gaps, g)
		at = next
	}
}
