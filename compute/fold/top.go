package fold

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// topState is the largest values, ties by key, with their keys.
type topState struct {
	limit          int
	numbers, texts int64
	list           []keyed // by rank
	listBytes      int
}

// rank orders the list: the larger value first, of equal ones (also 1 and 1.0) the smaller key.
func rank(a, b *keyed) int {
	return cmp.Or(worth(&b.value, &a.value), bytes.Compare(a.key, b.key), order(&a.value, &b.value))
}

func (s *topState) add(key []byte, v *Value) (grown int, err error) {
	k := keyed{key: key, value: *v}
	if v.Kind == Text {
		s.texts++
		k.value.Text = cut(v.Text)
	} else {
		s.numbers++
	}
	grown = -s.listBytes
	s.take(&k)
	return grown + s.listBytes, nil
}

func (s *topState) take(k *keyed) {
	if len(s.list) == s.limit {
		last := &s.list[s.limit-1]
		if rank(k, last) >= 0 {
			return // where nearly every record of a large scan ends
		}
		s.listBytes -= last.size()
		s.list = s.list[:s.limit-1]
	}
	low, high := 0, len(s.list) // not slices.BinarySearchFunc: k would escape to the heap for every record
	for low < high {
		if middle := (low + high) / 2; rank(k, &s.list[middle]) < 0 {
			high = middle
		} else {
			low = middle + 1
		}
	}
	s.list = slices.Insert(s.list, low, k.keep()) // of two that are the same both stay
	s.listBytes += k.size()
}

func (s *topState) merge(other state) error {
	o := other.(*topState)
	s.numbers += o.numbers
	s.texts += o.texts
	for i := range o.list {
		s.take(&o.list[i])
	}
	return nil
}

func (s *topState) size() int   { return s.listBytes }
func (s *topState) empty() bool { return s.numbers+s.texts == 0 }

func (s *topState) appendTo(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(s.numbers))
	b = binary.AppendUvarint(b, uint64(s.texts))
	for i := range s.list { // how many, the counts say
		b = s.list[i].appendTo(b)
	}
	return b
}

func (s *topState) readFrom(d *decoder) {
	s.numbers, s.texts = d.count(), d.count()
	var numbers, texts int64
	for i := 0; i < int(min(int64(s.limit), s.numbers+s.texts)) && d.Reason == ""; i++ {
		var k keyed
		k.readFrom(d)
		if i > 0 && rank(&s.list[i-1], &k) > 0 {
			d.Fail("values out of order")
		}
		if k.value.Kind == Text {
			texts++
		} else {
			numbers++
		}
		s.list = append(s.list, k)
		s.listBytes += k.size()
	}
	// Texts rank before numbers: a number is listed only after every text.
	if texts > s.texts || numbers > s.numbers || numbers > 0 && texts < s.texts {
		d.Fail("other values than counted")
	}
}

func (s *topState) final() (answer, error) {
	if s.numbers > 0 && s.texts > 0 {
		return answer{}, &MixedKindsError{Numbers: s.numbers, Texts: s.texts}
	}
	doc := new(document)
	doc.raw("[")
	for i := range s.list {
		doc.comma(i)
		doc.raw(`{"value":`)
		if err := doc.append(&s.list[i].value); err != nil {
			return answer{}, err
		}
		doc.raw(`,"key":`)
		doc.text(s.list[i].key)
		doc.raw("}")
	}
	doc.raw("]")
	return answer{doc: doc}, nil
}
