package compute

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/abacusdb/abacus/compute/job"
)

const (
	maxBadKeys     = 10
	maxBadKeyBytes = 256
	// maxTextBytes is the longest text a job can answer. A partial keeps one byte
	// more, which is enough to tell that a text is too long and to order it
	// rightly among all that fit.
	maxTextBytes = 64 << 10
)

// Partial is what a part of the keys comes to: of a task, of a shard, of the
// job. Partials merge in any order and any grouping to the same bytes.
// Its size is bounded whatever it has read.
type Partial struct {
	Records int64 // matched keys, bad ones included
	Bad     int64 // of these, the ones that did not parse
	badKeys []string

	ints, floats, texts, others int64 // good records by kind: Records-Bad in all

	sum    intSum    // of the integers
	fsum   *floatSum // of the floats; nil for none
	lo, hi item      // smallest and largest number; kindNone for none
	// Smallest and largest text; they count only if texts > 0.
	loText, hiText []byte
}

// BadRecordsError fails a job with on_error fail.
type BadRecordsError struct {
	Bad, Records int64
	As, Map      string
	Reduce       string
	Keys         []string // a sample
}

func (e *BadRecordsError) Error() string {
	hint := "use --on-error skip to leave them out"
	if e.As == job.AsJSON && e.Map == job.MapValue && e.wants() != "value" {
		hint = "take a field of an object with --map json:PATH, or " + hint
	}
	return fmt.Sprintf("%d of %d records %s, for example %s; %s", e.Bad, e.Records, e.fault(), e.Keys[0], hint)
}

// fault is what bad records have in common. A document may be well-formed and
// lack what the job looks for.
func (e *BadRecordsError) fault() string {
	path, isPath := strings.CutPrefix(e.Map, job.MapJSON)
	switch {
	case e.As == job.AsJSON && isPath:
		return fmt.Sprintf("have no JSON %s at the path %s", e.wants(), path)
	case e.As == job.AsJSON && e.Map == job.MapValue && e.wants() != "value":
		return "are no JSON " + e.wants() + " in themselves"
	}
	return fmt.Sprintf("do not parse as %s for map %s", e.As, e.Map)
}

// wants is what the reduce can take of a JSON document.
func (e *BadRecordsError) wants() string {
	switch e.Reduce {
	case job.ReduceSum, job.ReduceMean:
		return "number"
	case job.ReduceMin, job.ReduceMax:
		return "number or text"
	}
	return "value"
}

// MixedKindsError: some values are numbers and some are text, which have no order between them.
type MixedKindsError struct{ Numbers, Texts int64 }

func (e *MixedKindsError) Error() string {
	return fmt.Sprintf("%d values are numbers and %d are text: they have no common order", e.Numbers, e.Texts)
}

// ResultTooLargeError: a text result over what a job can answer.
type ResultTooLargeError struct{ Max int }

func (e *ResultTooLargeError) Error() string {
	return fmt.Sprintf("the resulting text is longer than %d bytes", e.Max)
}

// BadKeys is a sample of the keys that did not parse, the smallest first.
func (p *Partial) BadKeys() []string { return slices.Clone(p.badKeys) }

func (p *Partial) count(k kind) {
	p.Records++
	switch k {
	case kindInt, kindBig:
		p.ints++
	case kindFloat:
		p.floats++
	case kindText:
		p.texts++
	default:
		p.others++
	}
}

func (p *Partial) addBad(key []byte) {
	p.Records++
	p.Bad++
	if len(p.badKeys) == maxBadKeys && isPlain(key) && string(key) >= p.badKeys[maxBadKeys-1] {
		return // without building a string: with millions of bad records nearly all end here
	}
	p.addBadKey(printable(key))
}

// addBadKey keeps the maxBadKeys smallest, so that the sample does not depend on who scanned what when.
func (p *Partial) addBadKey(key string) {
	i, found := slices.BinarySearch(p.badKeys, key)
	if found || i == maxBadKeys {
		return
	}
	p.badKeys = slices.Insert(p.badKeys, i, key)
	if len(p.badKeys) > maxBadKeys {
		p.badKeys = p.badKeys[:maxBadKeys]
	}
}

// isPlain says whether printable leaves the key as it is.
func isPlain(key []byte) bool {
	for _, c := range key {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return len(key) <= maxBadKeyBytes
}

// printable shows a key in a report: as it is if it is text, else quoted.
func printable(key []byte) string {
	s := string(key)
	if isPlain(key) {
		return s
	}
	if quoted := strconv.Quote(s); quoted[1:len(quoted)-1] != s {
		s = quoted
	}
	if len(s) > maxBadKeyBytes {
		cut := maxBadKeyBytes - len("…")
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return s
}

func (p *Partial) addSum(it *item) {
	switch it.kind {
	case kindInt:
		p.sum.add(it.int)
	case kindBig:
		p.sum.addBig(it.big)
	case kindFloat:
		if p.fsum == nil {
			p.fsum = new(floatSum)
		}
		p.fsum.add(it.float)
	}
}

// addExtreme comes after count, so the first text is the one that makes texts 1.
func (p *Partial) addExtreme(it *item) {
	if it.kind == kindText {
		p.addText(it.text, p.texts == 1)
		return
	}
	p.addNumber(it)
}

func (p *Partial) addNumber(it *item) {
	if p.lo.kind == kindNone || before(it, &p.lo, -1) {
		p.lo = *it
	}
	if p.hi.kind == kindNone || before(it, &p.hi, 1) {
		p.hi = *it
	}
}

// before says whether a replaces b as the extreme on one side. Between an
// integer and a float of one value the integer stays, whichever came first.
func before(a, b *item, side int) bool {
	c := compareNumbers(a, b)
	return c == side || c == 0 && a.kind != kindFloat && b.kind == kindFloat
}

func (p *Partial) addText(text []byte, first bool) {
	text = text[:min(len(text), maxTextBytes+1)]
	if first || bytes.Compare(text, p.loText) < 0 {
		p.loText = append(p.loText[:0], text...)
	}
	if first || bytes.Compare(text, p.hiText) > 0 {
		p.hiText = append(p.hiText[:0], text...)
	}
}

// Merge adds o, which must come from the same spec, to p. o stays usable.
func (p *Partial) Merge(o *Partial) {
	if o.texts > 0 {
		p.addText(o.loText, p.texts == 0)
		p.addText(o.hiText, false)
	}
	p.Records += o.Records
	p.Bad += o.Bad
	p.ints += o.ints
	p.floats += o.floats
	p.texts += o.texts
	p.others += o.others
	for _, key := range o.badKeys {
		p.addBadKey(key)
	}
	p.sum.addBig(o.sum.total())
	if o.fsum != nil {
		if p.fsum == nil {
			p.fsum = new(floatSum)
		}
		p.fsum.base.Add(&p.fsum.base, o.fsum.total())
	}
	if o.lo.kind != kindNone {
		p.addNumber(&o.lo)
		p.addNumber(&o.hi)
	}
}

// Final is the answer, with a note for people if there is something to say.
// Its error is a *BadRecordsError, job.ErrNoRecords, a *MixedKindsError or a *ResultTooLargeError.
func (p *Partial) Final(spec job.Spec) (job.Value, string, error) {
	if p.Bad > 0 && spec.OnError != job.OnErrorSkip {
		return job.Value{}, "", &BadRecordsError{Bad: p.Bad, Records: p.Records, As: spec.As, Map: spec.Map, Reduce: spec.Reduce, Keys: p.BadKeys()}
	}
	note := ""
	good := p.Records - p.Bad
	switch {
	case p.Records == 0:
		note = fmt.Sprintf("no key begins with %q", spec.Prefix)
	case p.Bad > 0:
		note = fmt.Sprintf("%d of %d records did not parse and were left out", p.Bad, p.Records)
	}
	switch spec.Reduce {
	case job.ReduceCount:
		return job.Number(strconv.FormatInt(good, 10)), note, nil
	case job.ReduceSum:
		if p.fsum == nil {
			return job.Number(p.sum.total().String()), note, nil
		}
		return job.Number(decimal(ratio(p.sum.total(), p.fsum.total(), 1))), note, nil
	}
	if good == 0 {
		return job.Value{}, note, job.ErrNoRecords
	}
	switch spec.Reduce {
	case job.ReduceMean:
		return job.Number(p.mean(good)), note, nil
	case job.ReduceMin:
		return p.extreme(&p.lo, p.loText, note)
	case job.ReduceMax:
		return p.extreme(&p.hi, p.hiText, note)
	}
	return job.Value{}, "", &job.SpecError{Field: "reduce", Reason: fmt.Sprintf("unknown %q", spec.Reduce)}
}

func (p *Partial) mean(count int64) string {
	fsum := p.fsum
	if fsum == nil {
		fsum = new(floatSum)
	}
	r := ratio(p.sum.total(), fsum.total(), count)
	if p.floats == 0 && r.IsInt() { // no rounding where none is needed, however large
		return r.Num().String()
	}
	return decimal(r)
}

func (p *Partial) extreme(number *item, text []byte, note string) (job.Value, string, error) {
	if p.texts == 0 {
		return job.Number(number.digits()), note, nil
	}
	if numbers := p.ints + p.floats; numbers > 0 {
		return job.Value{}, "", &MixedKindsError{Numbers: numbers, Texts: p.texts}
	}
	if len(text) > maxTextBytes {
		return job.Value{}, "", &ResultTooLargeError{Max: maxTextBytes}
	}
	if !utf8.Valid(text) {
		if note != "" {
			note += "; "
		}
		return job.Text(base64.StdEncoding.EncodeToString(text)), note + "the result is not UTF-8 and shown in base64", nil
	}
	return job.Text(string(text)), note, nil
}
