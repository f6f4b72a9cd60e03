package compute

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/abacusdb/abacus/compute/fold"
	"github.com/abacusdb/abacus/compute/job"
)

const (
	maxBadKeys     = 10
	maxBadKeyBytes = 256
	// maxTextBytes is the longest text a job can answer. A partial keeps one byte
	// more, which is enough to tell that a text is too long and to order it
	// rightly among all that fit.
	maxTextBytes = fold.MaxTextBytes
)

// Partial is what a part of the keys comes to: of a task, of a shard, of the
// job. Partials merge in any order and any grouping to the same bytes.
// Its size is bounded whatever it has read.
type Partial struct {
	Records  int64 // matched keys, those included that the filter dropped, and bad ones
	Filtered int64 // of these, the ones that the filter dropped
	Bad      int64 // and the ones that did not parse
	// A sample of the bad ones, sorted, and what an expression says of each, which may be empty.
	badKeys, badWhy []string

	// verdict is why the job cannot be answered, whatever else there is; then nothing else of the partial counts.
	verdict error

	ints, floats, texts, others int64 // values by Kind: without a flat_map Records-Filtered-Bad in all

	sum    fold.IntSum    // of the integers
	fsum   *fold.FloatSum // of the floats; nil for none
	lo, hi fold.Value     // smallest and largest number; fold.None for none
	// Smallest and largest text; they count only if texts > 0.
	loText, hiText []byte

	// What is not a sum or an extreme of all is kept here, and shape says what it is; nil for none.
	table *fold.Table
	shape shape
}

// shape is what a table folds, as far as its bytes depend on it.
type shape struct {
	reduce    string
	grouped   bool
	maxGroups int
}

func shapeOf(spec job.Spec) shape {
	sh := shape{reduce: spec.Reduce, grouped: spec.GroupBy != ""}
	if sh.grouped {
		sh.maxGroups = cmp.Or(spec.MaxGroups, job.DefaultMaxGroups)
	}
	return sh
}

// table says whether the values go to a table. What v0.4 knew does not: its partials have the bytes that they always had.
func (sh shape) table() bool {
	switch sh.reduce {
	case job.ReduceSum, job.ReduceCount, job.ReduceMin, job.ReduceMax, job.ReduceMean:
		return sh.grouped
	}
	return true
}

func (sh shape) newTable() *fold.Table {
	r, _ := job.ParseReduce(sh.reduce) // the spec, or the decoder, was validated
	return fold.NewTable(r, sh.grouped, sh.maxGroups)
}

// values is how many there are.
func (p *Partial) values() int64 { return p.ints + p.floats + p.texts + p.others }

// Err is not nil if the job cannot be answered whatever the other parts are: too many groups, for one. Its error is a
// *fold.TooManyGroupsError, *fold.TooLargeError, *fold.TooManyValuesError, *expr.CostError or *MismatchError.
func (p *Partial) Err() error { return p.verdict }

// decide makes p a verdict. Of two one is kept, whichever came first.
func (p *Partial) decide(err error) {
	if p.verdict != nil && verdictLess(p.verdict, err) {
		err = p.verdict
	}
	*p = Partial{verdict: err}
}

// MismatchError: parts of different jobs were to be merged. A node has answered another question than it was asked.
type MismatchError struct{}

func (e *MismatchError) Error() string { return "the parts do not belong to one job" }

// addToTable folds a value into the table.
func (p *Partial) addToTable(sh shape, group, key []byte, it *fold.Value) fate {
	if p.table == nil {
		p.table, p.shape = sh.newTable(), sh
	}
	ok, err := p.table.Add(group, key, it)
	switch {
	case err != nil:
		p.decide(err)
		return stop
	case !ok:
		return bad
	}
	p.count(it.Kind)
	return good
}

// BadKeys is a sample of the keys that did not parse, the smallest first.
func (p *Partial) BadKeys() []string { return slices.Clone(p.badKeys) }

func (p *Partial) count(k fold.Kind) {
	switch k {
	case fold.Int, fold.Big:
		p.ints++
	case fold.Float:
		p.floats++
	case fold.Text:
		p.texts++
	default:
		p.others++
	}
}

func (p *Partial) addBad(key []byte, why string) {
	p.Records++
	p.Bad++
	if len(p.badKeys) == maxBadKeys && isPlain(key) && string(key) > p.badKeys[maxBadKeys-1] {
		return // without building a string: with millions of bad records nearly all end here
	}
	p.addBadKey(printable(key), shorten(strings.ToValidUTF8(why, "?")))
}

// addBadKey keeps the maxBadKeys smallest, so that the sample does not depend on who scanned what when.
func (p *Partial) addBadKey(key, why string) {
	i, found := slices.BinarySearch(p.badKeys, key)
	if found { // long keys may look alike
		p.badWhy[i] = min(p.badWhy[i], why)
		return
	}
	if i == maxBadKeys {
		return
	}
	p.badKeys, p.badWhy = slices.Insert(p.badKeys, i, key), slices.Insert(p.badWhy, i, why)
	if len(p.badKeys) > maxBadKeys {
		p.badKeys, p.badWhy = p.badKeys[:maxBadKeys], p.badWhy[:maxBadKeys]
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
	return shorten(s)
}

// shorten cuts a text to maxBadKeyBytes.
func shorten(s string) string {
	if len(s) > maxBadKeyBytes {
		cut := maxBadKeyBytes - len("…")
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return s
}

func (p *Partial) addSum(it *fold.Value) {
	switch it.Kind {
	case fold.Int:
		p.sum.Add(it.Int)
	case fold.Big:
		p.sum.AddBig(it.Big)
	case fold.Float:
		if p.fsum == nil {
			p.fsum = new(fold.FloatSum)
		}
		p.fsum.Add(it.Float)
	}
}

// addExtreme comes after count, so the first text is the one that makes texts 1.
func (p *Partial) addExtreme(it *fold.Value) {
	if it.Kind == fold.Text {
		p.addText(it.Text, p.texts == 1)
		return
	}
	p.addNumber(it)
}

func (p *Partial) addNumber(it *fold.Value) {
	if p.lo.Kind == fold.None || before(it, &p.lo, -1) {
		p.lo = *it
	}
	if p.hi.Kind == fold.None || before(it, &p.hi, 1) {
		p.hi = *it
	}
}

// before says whether a replaces b as the extreme on one side. Between an
// integer and a float of one value the integer stays, whichever came first.
func before(a, b *fold.Value, side int) bool {
	c := fold.CompareNumbers(a, b)
	return c == side || c == 0 && a.Kind != fold.Float && b.Kind == fold.Float
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
	if p.verdict != nil || o.verdict != nil {
		if o.verdict != nil {
			p.decide(o.verdict)
		}
		return
	}
	if err := p.mergeTable(o); err != nil {
		p.decide(err)
		return
	}
	if o.texts > 0 {
		p.addText(o.loText, p.texts == 0)
		p.addText(o.hiText, false)
	}
	p.Records += o.Records
	p.Filtered += o.Filtered
	p.Bad += o.Bad
	p.ints += o.ints
	p.floats += o.floats
	p.texts += o.texts
	p.others += o.others
	for i, key := range o.badKeys {
		p.addBadKey(key, o.badWhy[i])
	}
	p.sum.AddBig(o.sum.Total())
	if o.fsum != nil {
		if p.fsum == nil {
			p.fsum = new(fold.FloatSum)
		}
		p.fsum.AddTotal(o.fsum.Total())
	}
	if o.lo.Kind != fold.None {
		p.addNumber(&o.lo)
		p.addNumber(&o.hi)
	}
}

func (p *Partial) mergeTable(o *Partial) error {
	switch {
	case o.table == nil:
		return nil
	case p.table == nil:
		p.table, p.shape = o.shape.newTable(), o.shape
	case p.shape != o.shape:
		return &MismatchError{}
	}
	return p.table.Merge(o.table)
}

// Final is the answer, with a note for people if there is something to say.
// Its error is a *BadRecordsError, job.ErrNoRecords, a *fold.MixedKindsError, a *fold.ResultTooLargeError, or what Err says.
func (p *Partial) Final(spec job.Spec) (job.Value, string, error) {
	if p.verdict != nil {
		return job.Value{}, "", p.verdict
	}
	if err := p.tooManyBad(spec); err != nil {
		return job.Value{}, "", err
	}
	note := p.note(spec)
	if sh := shapeOf(spec); sh.table() {
		table := p.table
		if table == nil {
			table = sh.newTable()
		} else if p.shape != sh {
			return job.Value{}, "", &MismatchError{}
		}
		result, more, err := table.Final()
		return result, join(note, more), err
	}
	good := p.values()
	switch spec.Reduce {
	case job.ReduceCount:
		return job.Number(strconv.FormatInt(good, 10)), note, nil
	case job.ReduceSum:
		if p.fsum == nil {
			return job.Number(p.sum.Total().String()), note, nil
		}
		return job.Number(fold.Decimal(fold.Ratio(p.sum.Total(), p.fsum.Total(), 1))), note, nil
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

// tooManyBad is not nil if there are more bad records than on_error allows.
func (p *Partial) tooManyBad(spec job.Spec) error {
	switch {
	case p.Bad == 0 || spec.OnError == job.OnErrorSkip || spec.OnError == job.OnErrorCount && p.Bad <= spec.MaxErrors:
		return nil
	}
	return &BadRecordsError{Bad: p.Bad, Records: p.Records, Spec: spec, Keys: p.BadKeys(), Why: p.badWhy[0]}
}

// note says what a person should know about the records that went into the result.
func (p *Partial) note(spec job.Spec) string {
	switch {
	case p.Records == 0:
		return fmt.Sprintf("no key begins with %q", spec.Prefix)
	case p.Filtered == p.Records:
		return fmt.Sprintf("the filter let none of %d records through", p.Records)
	case p.Bad > 0:
		return fmt.Sprintf("%d of %d records did not parse and were left out", p.Bad, p.Records)
	}
	return ""
}

func join(note, more string) string {
	if note != "" && more != "" {
		note += "; "
	}
	return note + more
}

func (p *Partial) mean(count int64) string {
	fsum := p.fsum
	if fsum == nil {
		fsum = new(fold.FloatSum)
	}
	r := fold.Ratio(p.sum.Total(), fsum.Total(), count)
	if p.floats == 0 && r.IsInt() { // no rounding where none is needed, however large
		return r.Num().String()
	}
	return fold.Decimal(r)
}

func (p *Partial) extreme(number *fold.Value, text []byte, note string) (job.Value, string, error) {
	if p.texts == 0 {
		return job.Number(number.Digits()), note, nil
	}
	if numbers := p.ints + p.floats; numbers > 0 {
		return job.Value{}, "", &fold.MixedKindsError{Numbers: numbers, Texts: p.texts}
	}
	if len(text) > maxTextBytes {
		return job.Value{}, "", &fold.ResultTooLargeError{Text: true, Max: maxTextBytes}
	}
	if !utf8.Valid(text) {
		return job.Text(base64.StdEncoding.EncodeToString(text)), join(note, "the result is not UTF-8 and shown in base64"), nil
	}
	return job.Text(string(text)), note, nil
}
