package compute

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/fold"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/compute/job/jobtest"
)

// However the records are split, in whatever order the parts are computed, sent
// and merged, the bytes are those of one straight loop.
func TestSplitsAndOrdersAgree(t *testing.T) {
	specs := []job.Spec{
		spec("int", "square", "sum"), spec("int", "value", "mean"), spec("int", "value", "min"), spec("int", "square", "max"),
		spec("float", "value", "sum"), spec("float", "square", "mean"), spec("float", "value", "max"),
		spec("json", "json:x", "sum"), spec("json", "json:x", "min"), spec("json", "json:x", "max"),
		spec("string", "value", "min"), spec("string", "key", "max"), spec("string", "len", "sum"), spec("string", "value", "count"),
	}
	for _, s := range specs {
		t.Run(s.As+" "+s.Map+" "+s.Reduce, func(t *testing.T) {
			for seed := range uint64(40) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				values := make([]string, rnd.IntN(200))
				for i := range values {
					values[i] = jobtest.Value(rnd, s.As)
				}
				whole := over(t, s, values...).Encode()
				if got := inParts(t, s, rnd, values).Encode(); !bytes.Equal(got, whole) {
					t.Fatalf("seed %d: in parts %x, whole %x", seed, got, whole)
				}
			}
		})
	}
}

// inParts deals the records out at random, sends each part through the codec
// and merges them as a random tree.
func inParts(t *testing.T, s job.Spec, rnd *rand.Rand, values []string) *Partial {
	parts := make([]*Partial, 1+rnd.IntN(8))
	for i := range parts {
		parts[i] = new(Partial)
	}
	fn, err := compile(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range rnd.Perm(len(values)) {
		fn.step(context.Background(), parts[rnd.IntN(len(parts))], fmt.Appendf(nil, "k%d", i), []byte(values[i]))
	}
	for len(parts) > 1 {
		i := rnd.IntN(len(parts) - 1)
		sent, err := DecodePartial(parts[i+1].Encode())
		if err != nil {
			t.Fatalf("part of %q: %v", values, err)
		}
		parts[i].Merge(sent)
		parts = append(parts[:i+1], parts[i+2:]...)
	}
	return parts[0]
}

// goldenPartial has something in every field.
func goldenPartial() *Partial {
	p := &Partial{Records: 7, Bad: 1, badKeys: []string{"bad"}, badWhy: []string{""}, ints: 2, floats: 1, texts: 2, others: 1, loText: []byte("a"), hiText: []byte("b")}
	p.sum.AddBig(new(big.Int).Neg(new(big.Int).Lsh(big.NewInt(1), 80)))
	p.fsum = new(fold.FloatSum)
	p.fsum.Add(math.SmallestNonzeroFloat64 * 3)
	p.lo.SetBig(new(big.Int).Neg(new(big.Int).Lsh(big.NewInt(1), 80)))
	p.hi.SetFloat(1.5)
	return p
}

// The bytes of version 1 are fixed: nodes of two releases work on one job.
func TestPartialGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/partial-v1.hex")
	if err != nil {
		t.Fatal(err)
	}
	got := goldenPartial().Encode()
	if hex.EncodeToString(got) != strings.TrimSpace(string(want)) {
		t.Errorf("encoded as %x, want %s", got, want)
	}
	back, err := DecodePartial(got)
	if err != nil || !bytes.Equal(back.Encode(), got) || back.Records != 7 {
		t.Errorf("read back as %+v, %v", back, err)
	}
}

func TestDecodePartialRefuses(t *testing.T) {
	good := goldenPartial().Encode()
	for n := range good {
		if _, err := DecodePartial(good[:n]); err == nil {
			t.Errorf("%d of %d bytes were decoded", n, len(good))
		}
	}
	if _, err := DecodePartial(append(good, 0)); err == nil {
		t.Error("bytes after the end were accepted")
	}
	var version *job.VersionError
	if _, err := DecodePartial([]byte{3}); !errors.As(err, &version) || version.Version != 3 {
		t.Errorf("version 3: %v", err)
	}
	spoil := func(change func(p *Partial)) []byte {
		p := goldenPartial()
		change(p)
		return p.Encode()
	}
	for name, data := range map[string][]byte{
		"bad keys without bad records": spoil(func(p *Partial) { p.Bad = 0 }),
		"bad records without keys":     spoil(func(p *Partial) { p.badKeys = nil }),
		"bad keys out of order":        spoil(func(p *Partial) { p.Bad, p.badKeys, p.badWhy = 2, []string{"b", "a"}, []string{"", ""} }),
		"a sum without integers":       spoil(func(p *Partial) { p.ints = 0 }),
		"a sum without floats":         spoil(func(p *Partial) { p.floats = 0 }),
		"extremes without numbers":     spoil(func(p *Partial) { p.ints, p.floats, p.sum, p.fsum = 0, 0, fold.IntSum{}, nil }),
		"texts without texts":          spoil(func(p *Partial) { p.texts = 0 }),
		"one extreme":                  spoil(func(p *Partial) { p.lo = fold.Value{} }),
		"minimum above maximum":        spoil(func(p *Partial) { p.lo, p.hi = p.hi, p.lo }),
		"an infinite float":            spoil(func(p *Partial) { p.hi.Float = math.Inf(1) }),
		"texts out of order":           spoil(func(p *Partial) { p.loText, p.hiText = p.hiText, p.loText }),
		"a huge integer":               spoil(func(p *Partial) { p.sum.AddBig(new(big.Int).Lsh(big.NewInt(1), 8*maxBigBytes+8)) }),
		"a huge text":                  spoil(func(p *Partial) { p.hiText = bytes.Repeat([]byte("b"), maxTextBytes+2) }),
		"a length beyond the end":      {partialVersion, 1, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"a count that wraps":           {partialVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
	} {
		var wrong *DecodeError
		if p, err := DecodePartial(data); !errors.As(err, &wrong) {
			t.Errorf("%s: decoded as %+v, %v", name, p, err)
		}
	}
}

// widePartials are of every kind that takes version 2.
func widePartials(t testing.TB) map[string]*Partial {
	filtered, _ := overRows(t, `{"filter":"key prefix a","reduce":"max"}`, "a=1", "b=2")
	grouped, _ := overRows(t, `{"as":"int","group_by":"value","max_groups":7,"on_error":"skip"}`, "a=1", "b=2", "c=x")
	sketch, _ := overRows(t, `{"as":"int","reduce":"quantile:0.5"}`, "a=1", "b=2")
	words, _ := overRows(t, `{"flat_map":"words"}`, "a=1 2 3", "b=")
	why, _ := overRows(t, `{"as":"json","map":"v.x","reduce":"sum"}`, "a={}", `b={"x":1}`)
	verdict, _ := overRows(t, `{"group_by":"key","max_groups":1}`, "a=1", "b=2")
	return map[string]*Partial{"filtered": filtered, "grouped": grouped, "sketch": sketch, "words": words, "why": why, "verdict": verdict}
}

// The bytes of version 2 are fixed, too, and nothing else is read as one.
func TestWidePartials(t *testing.T) {
	want, err := os.ReadFile("testdata/partial-v2.hex")
	if err != nil {
		t.Fatal(err)
	}
	wides := widePartials(t)
	var got strings.Builder
	for _, name := range slices.Sorted(maps.Keys(wides)) {
		data := wides[name].Encode()
		fmt.Fprintf(&got, "%s %x\n", name, data)
		back, err := DecodePartial(data)
		if err != nil || !bytes.Equal(back.Encode(), data) || back.Records != wides[name].Records {
			t.Errorf("%s was read back as %+v, %v", name, back, err)
		}
		for n := range data {
			if p, err := DecodePartial(data[:n]); err == nil && !bytes.Equal(p.Encode(), data[:n]) {
				t.Errorf("%s: %d of %d bytes were decoded as %+v", name, n, len(data), p)
			}
		}
		if _, err := DecodePartial(append(data, 0)); err == nil {
			t.Errorf("%s: a byte after the end was accepted", name)
		}
	}
	if got.String() != string(want) {
		t.Errorf("encoded as\n%swant\n%s", got.String(), want)
	}
	classic := over(t, spec("int", "value", "sum"), "1").Encode()[1:]
	wide := func(head ...byte) []byte { return append(append([]byte{partialWideVersion}, head...), classic...) }
	table := func(tail string) []byte { return append(wide(0, 1, 0), tail...) }
	for name, data := range map[string][]byte{
		"no need of version 2":          wide(0, 1, 0),
		"more filtered than there were": wide(0, 0, 1),
		"an unknown verdict":            {partialWideVersion, 6, 0},
		"a mismatch with a limit":       {partialWideVersion, 5, 1},
		"a verdict and more":            {partialWideVersion, 1, 5, 0},
		"an unknown reduce":             table("\x05cubic\x00\x00\x01\x00"),
		"a table for a plain sum":       table("\x03sum\x00\x00\x01\x00"),
		"neither grouped nor not":       table("\x03sum\x02\x05\x01\x00"),
		"groups without a limit":        table("\x03sum\x01\x00\x01\x00"),
		"a limit without groups":        table("\x05first\x00\x05\x01\x00"),
		"a limit beyond all":            table("\x03sum\x01\xa1\x8d\x06\x01\x00"),
		"no table after its head":       table("\x03sum\x01\x05"),
	} {
		if p, err := DecodePartial(data); err == nil {
			t.Errorf("%s: decoded as %+v", name, p)
		}
	}
}

// Whatever is decoded is encoded as the same bytes again, and merges without a panic.
func FuzzDecodePartial(f *testing.F) {
	f.Add(goldenPartial().Encode())
	f.Add(new(Partial).Encode())
	f.Add(over(f, spec("string", "value", "min"), "a", "bb").Encode())
	var wides [][]byte
	for _, p := range widePartials(f) {
		wides = append(wides, p.Encode())
		f.Add(p.Encode())
	}
	f.Add(over(f, spec("json", "json:x", "max"), `{"x":1.5}`, `{"x":99999999999999999999}`, `{`).Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := DecodePartial(data)
		if err != nil {
			return
		}
		if again := p.Encode(); !bytes.Equal(again, data) {
			t.Fatalf("%x was encoded as %x", data, again)
		}
		sum := goldenPartial()
		sum.Merge(p)
		for _, data := range wides {
			wide, err := DecodePartial(data)
			if err != nil {
				t.Fatal(err)
			}
			wide.Merge(p)
			p.Merge(wide)
		}
		for _, reduce := range []string{"sum", "count", "min", "max", "mean"} {
			s := spec("json", "value", reduce)
			s.OnError = job.OnErrorSkip
			_, _, _ = sum.Final(s)
			_, _, _ = p.Final(s)
		}
	})
}

func FuzzDecodeMessage(f *testing.F) {
	good, err := encodeMessage(taskRequest{Spec: spec("int", "value", "sum")}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{messageVersion, 2, '{', '}'})
	f.Add([]byte{messageVersion, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		var req taskRequest
		rest, err := decodeMessage(data, &req)
		if err != nil {
			return
		}
		again, err := encodeMessage(req, nil)
		if err != nil {
			t.Fatal(err)
		}
		var back taskRequest
		if _, err := decodeMessage(again, &back); err != nil || back != req {
			t.Fatalf("%+v was read back as %+v, %v", req, back, err)
		}
		if len(rest) > len(data) {
			t.Fatal("more is left than there was")
		}
	})
}

func TestDecodeMessageRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"nothing":           "",
		"another version":   "\x02\x02{}",
		"truncated":         "\x01\x05{}",
		"no JSON":           "\x01\x02}{",
		"an unknown field":  "\x01\x09{\"new\":1}",
		"two heads":         "\x01\x04{}{}",
		"a wrong type":      "\x01\x0c{\"shard\":-1}",
		"too long a length": "\x01\xff\xff\xff\xff\x0f",
	} {
		if _, err := decodeMessage([]byte(data), new(taskRequest)); err == nil {
			t.Errorf("%s was decoded", name)
		}
	}
}
