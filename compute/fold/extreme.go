package fold

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/compute/wire"
)

// extremeState is the smallest or the largest value. Numbers and texts have no order between them: it keeps
// one of each, and having met both is an error in the end.
type extremeState struct {
	side           int // -1: the smallest, 1: the largest
	numbers, texts int64
	number         Value // None without numbers
	text           []byte
}

func (s *extremeState) add(_ []byte, v *Value) (grown int, err error) {
	if v.Kind == Text {
		grown = -len(s.text)
		s.texts++
		s.addText(cut(v.Text))
		return grown + len(s.text), nil
	}
	s.numbers++
	return s.addNumber(v), nil
}

func (s *extremeState) addNumber(v *Value) (grown int) {
	if s.number.Kind != None && !replaces(v, &s.number, s.side) {
		return 0
	}
	grown = -s.number.size()
	s.number = v.keep()
	return grown + s.number.size()
}

// replaces says whether a replaces b as the extreme on one side. Between an
// integer and a float of one worth the integer stays, whichever came first.
func replaces(a, b *Value, side int) bool {
	c := CompareNumbers(a, b)
	return c == side || c == 0 && a.Kind != Float && b.Kind == Float
}

// addText comes after it was counted, so the first text is the one that makes texts 1.
func (s *extremeState) addText(text []byte) {
	if s.texts == 1 || bytes.Compare(text, s.text) == s.side {
		s.text = append(s.text[:0], text...)
	}
}

func (s *extremeState) merge(other state) error {
	o := other.(*extremeState)
	if o.numbers > 0 {
		s.numbers += o.numbers
		s.addNumber(&o.number)
	}
	if o.texts > 0 {
		first := s.texts == 0
		s.texts += o.texts
		if first || bytes.Compare(o.text, s.text) == s.side {
			s.text = append(s.text[:0], o.text...)
		}
	}
	return nil
}

func (s *extremeState) size() int   { return s.number.size() + len(s.text) }
func (s *extremeState) empty() bool { return s.numbers+s.texts == 0 }

func (s *extremeState) appendTo(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(s.numbers))
	if s.numbers > 0 {
		b = appendValue(b, &s.number)
	}
	b = binary.AppendUvarint(b, uint64(s.texts))
	if s.texts > 0 {
		b = wire.AppendBytes(b, s.text)
	}
	return b
}

func (s *extremeState) readFrom(d *decoder) {
	if s.numbers = d.count(); s.numbers > 0 {
		s.number = d.number()
	}
	if s.texts = d.count(); s.texts > 0 {
		s.text = slices.Clone(d.Take(d.Uvarint(), MaxTextBytes+1))
	}
}

func (s *extremeState) final() (answer, error) {
	switch {
	case s.empty():
		return answer{}, job.ErrNoRecords
	case s.numbers > 0 && s.texts > 0:
		return answer{}, &MixedKindsError{Numbers: s.numbers, Texts: s.texts}
	case s.texts > 0:
		return textAnswer(s.text)
	}
	return numberAnswer(s.number.Digits())
}
